# What both trials of the package use.

export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
# The deadline of whatever is waited for, in seconds.
DEADLINE=20

fail() {
    echo "FAILED: $*"
    exit 1
}

trap 'echo "FAILED: $0: line $LINENO: $BASH_COMMAND"' ERR

# Runs a command again and again, until it succeeds.
until_it() {
    local end=$((SECONDS + DEADLINE))
    until "$@" >/trial/waiting 2>&1; do
        if ((SECONDS >= end)); then
            cat /trial/waiting
            fail "not within $DEADLINE s: $*"
        fi
        sleep 0.05
    done
}

# All files, but for what apt, systemd and the like write as they run: it is not the package's.
files() {
    find / -xdev \( -path /trial -o -path /var/lib/apt -o -path /var/cache -o -path /var/log \
        -o -path /var/lib/systemd -o -path /var/tmp -o -path /root/.cache \
        -o -path '/var/lib/dpkg/*-old' -o -path /var/lib/dpkg/triggers \) -prune \
        -o -printf '%p %y %m %l\n' | sort
}

same_files() {
    diff /trial/before /trial/after || fail "the package leaves files behind, or has taken some away"
    # Nor do those that are left out have its name, but for logs and caches.
    local left
    left=$(find / -xdev \( -path /trial -o -path /var/log -o -path /var/cache \) -prune \
        -o -name '*overspill*' -print)
    test -z "$left" || fail "left behind: $left"
}
