#!/bin/bash
# Runs as a unit of a booted Debian of its own, without a network: the package does its job by
# hand and as units, as its users would use it, and leaves nothing when it is purged.
set -euo pipefail
. /trial/common.sh

# systemd does so on a machine; in a container it leaves that to others, and /sys is closed.
mount -o remount,bind,rw /sys
mkdir -p /sys/fs/bpf
mount -o remount,bind,ro /sys
! test -w /proc/sys/kernel/pid_max || fail "the machine's settings are open to this container"
mount -t bpf -o mode=700 bpf /sys/fs/bpf

own_netns=$(stat -L -c %i /proc/self/ns/net)

# What BPF programs are attached to here, what is pinned, and what control groups have our name.
attached() {
    find /sys/fs/bpf
    find /sys/fs/cgroup -name '*overspill*'
    bpftool link list | grep -w "netns_ino $own_netns" || true
    bpftool cgroup tree /sys/fs/cgroup | grep -v '^/\|^CgroupPath\|^ID' | awk '{ print $2, $3, $4 }' |
        grep -v '^cgroup_device\|sd_' | sort -u || true
}

step() { echo "--- $*"; }

served() { test "$(curl -s -o /dev/null -m 5 -w '%{http_code}' "http://127.0.0.1:$1/")" = 200; }

# Whether a service has that many active members.
has() {
    test "$(overspill ls | awk -v name="$1" '$1 == name { print $4 }')" = "$2/$2"
}

# Changes a byte of struct ov_state: of the build (24), so that another seems to have made the
# state, or of the program's tag (16), so that it seems to be damaged.
spoil() {
    python3 - "/sys/fs/bpf/overspill/$own_netns/state" "$1" <<'PY'
import json, subprocess, sys

def bpftool(*arguments):
    command = ["bpftool", "-j", "map", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

state = ["pinned", sys.argv[1], "key", "hex", "00", "00", "00", "00"]
value = [byte.removeprefix("0x") for byte in json.loads(bpftool("lookup", *state))["value"]]
at = int(sys.argv[2])
value[at] = format(int(value[at], 16) ^ 0xFF, "02x")
bpftool("update", *state, "value", "hex", *value)
PY
}

workers() { overspill show web | awk '$5 == "active" { print $4 }'; }

step "install: nothing is started or enabled"
files >/trial/before
attached >/trial/attached.before
apt-get -o Dpkg::Use-Pty=0 -qq -y install /trial/overspill.deb
overspill check
test -z "$(systemctl list-units --no-legend 'overspill*')" || fail "a unit was started"
enabled=$(systemctl list-unit-files --no-legend --state=enabled 'overspill*' || true)
test -z "$enabled" || fail "enabled: $enabled"

step "what comes with it can be used"
pages=$(dpkg -L overspill | grep '/man1/.*\.gz$')
test "$(wc -l <<<"$pages")" = 17 || fail "the man pages are not 17: $pages"
for page in $pages; do
    name=$(basename "$page" .1.gz)
    # Not through a pipe to something that stops reading.
    man "$name" >/trial/page 2>/trial/complaints
    test ! -s /trial/complaints || fail "$name: $(cat /trial/complaints)"
    grep -q '^EXAMPLES' /trial/page || fail "man $name has no examples"
done
bash -c 'source /usr/share/bash-completion/bash_completion
    _completion_loader overspill || true; complete -p overspill' | grep -q _clap_complete_overspill
test "$(zsh -f -c 'autoload -U compinit; compinit -D; print $_comps[overspill]')" = _overspill
HOME=/trial fish -c 'complete --do-complete "overspill sh"' | grep -q '^show'
units=$(dpkg -L overspill | grep '/systemd/system/.*\.service$')
test "$(wc -l <<<"$units")" = 3 || fail "the units are not 3: $units"
for unit in $units; do
    unit=$(basename "$unit")
    systemd-analyze verify "${unit/@./@web.}" 2>&1 | tee /trial/verify
    ! grep -q overspill /trial/verify || fail "systemd finds fault with $unit"
done

for file in overspill.toml.example prometheus/overspill.rules.yml grafana/overspill.json; do
    test -s "/usr/share/doc/overspill/examples/$file" || fail "there is no $file"
done

step "it runs a server by hand"
overspill run --name hand -n 2 -- python3 -m http.server 8080 >/trial/hand.log 2>&1 &
until_it has hand 2
served 8080
overspill show hand
offered=$(bash -c 'source /usr/share/bash-completion/completions/overspill
    COMP_WORDS=(overspill show h); COMP_CWORD=2; COMP_TYPE=9; _clap_complete_overspill overspill h
    echo "${COMPREPLY[@]}"')
test "$offered" = hand || fail "at TAB bash offers: $offered"
kill %1
wait %1 || fail "run failed: $(cat /trial/hand.log)"

step "it runs a server as a unit"
cat >/etc/overspill/web.toml <<'TOML'
workers = 2
command = ["python3", "-m", "http.server", "8081"]
TOML
overspill check /etc/overspill/web.toml
systemctl start overspill@web
served 8081
has web 2
before=$(workers)
systemctl reload overspill@web
served 8081
until_it has web 2
test "$(workers)" != "$before" || fail "reload has not replaced the workers: $before"
supervisor=$(systemctl show --property MainPID --value overspill@web)
spoil 24
overspill check | grep 'of overspill'
apt-get -o Dpkg::Use-Pty=0 -qq -y install --reinstall /trial/overspill.deb >/trial/upgraded
grep '^supervisor of web: .* goes on with 2 workers' /trial/upgraded ||
    fail "the supervisor is not of this version: $(cat /trial/upgraded)"
grep '1 service in network namespace' /trial/upgraded || fail "not upgraded: $(cat /trial/upgraded)"
overspill check | grep 'of this build' || fail "the services are not of this build"
test "$(systemctl show --property MainPID --value overspill@web)" = "$supervisor" ||
    fail "an upgrade restarts what runs"
served 8081
systemctl stop overspill@web
! served 8081 || fail "the workers go on"
overspill ls >/trial/services
! grep -q '^web ' /trial/services || fail "the service is left"

step "the exporter runs as a unit"
systemctl start overspill-metrics
until_it curl -s -f -o /trial/metrics http://127.0.0.1:28534/metrics
grep -q '^overspill_' /trial/metrics || fail "it has no figures"
systemctl stop overspill-metrics

step "removed while in use: units end, servers go on without it"
systemctl enable --now overspill@web
python3 -m http.server 8082 >/trial/8082.log 2>&1 &
server=$!
until_it served 8082
overspill share left --pid "$server" --port 8082
spoil 16
! overspill rm left 2>/trial/refused || fail "a state that is damaged is changed"
grep -q 'is damaged' /trial/refused || fail "refused otherwise: $(cat /trial/refused)"
apt-get -o Dpkg::Use-Pty=0 -qq -y remove overspill
test ! -e /sys/fs/bpf/overspill || fail "a state that is damaged is left"
! systemctl --quiet is-active overspill@web || fail "overspill@web runs on"
served 8082 || fail "the server of a service that was removed does not go on"
kill "$server"
wait "$server" || true
test -e /etc/overspill/web.toml || fail "the user's file is gone"

step "purged: nothing is left but the user's file"
apt-get -o Dpkg::Use-Pty=0 -qq -y purge --auto-remove overspill
test -e /etc/overspill/web.toml || fail "the user's file is gone"
rm -r /etc/overspill
systemctl reset-failed
left=$(systemctl list-unit-files --no-legend 'overspill*' || true)
test -z "$left" || fail "left behind: $left"
attached >/trial/attached.after
diff /trial/attached.before /trial/attached.after || fail "left in the kernel"
files >/trial/after
same_files
echo booted: done
