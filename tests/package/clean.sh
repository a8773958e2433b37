#!/bin/bash
# Runs in a clean Debian of its own, without a network: the package can be installed with what
# it says it depends on, and is removed without a trace. Whether it works is for booted.sh.
set -euo pipefail
. /trial/common.sh

ip_is_gone() { ! command -v ip >/dev/null; }
ip_is_gone || fail "this Debian has more in it than it should have"

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf -o mode=700 bpf /sys/fs/bpf
files >/trial/before

apt-get -o Dpkg::Use-Pty=0 -qq -y install /trial/overspill.deb
overspill --version
# In this Debian there may be no cgroup2, which is a note; nothing may be missing.
overspill check
test -d /etc/overspill || fail "there is no /etc/overspill"
zgrep -q 'OVERSPILL-RUN' /usr/share/man/man1/overspill-run.1.gz || fail "the man page is empty"

apt-get -o Dpkg::Use-Pty=0 -qq -y purge --auto-remove overspill
files >/trial/after
same_files
echo clean: done
