# Runs the command of a guest, writes its output and its exit status to ports that QEMU copies to
# files, and powers off. In the host's root it is started by switch_root, else by init.sh.
here=$(dirname "$0")
# Servers, ip and tc live where the PATH of an ordinary user does not lead.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
busybox=$here/busybox
test -e "$busybox" || busybox=/bin/busybox
if test "$here" = /run/kernels; then
    mount -t devtmpfs devtmpfs /dev
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o ptmxmode=666 devpts /dev/pts
    mount -t tmpfs tmpfs /dev/shm
    # A project that lies there itself is not to be hidden.
    case "KERNEL_MODULES" in /tmp/*) ;; *) mount -t tmpfs tmpfs /tmp ;; esac
    chmod 1777 /tmp /dev/shm
    ln -sf /proc/self/fd /dev/fd
    mount -t bpf bpf /sys/fs/bpf
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p /lib/modules && ln -s "KERNEL_MODULES" "/lib/modules/$(uname -r)"
    $busybox ip link set lo up
    $busybox hostname guest
    ulimit -n 1048576
fi
for port in /sys/class/virtio-ports/*; do
    case $(cat "$port/name") in
        output) output=/dev/${port##*/} ;;
        status) status=/dev/${port##*/} ;;
    esac
done
# Through a pipe: a port cannot be opened twice, as servers open /dev/stdout. What the command
# leaves behind may hold the pipe open for ever, so that the copy is not waited for long.
$busybox mkfifo "$here/output"
cat <"$here/output" >"$output" &
copy=$!
exec 3>"$status"
read -r up rest </proc/uptime
echo "up $up" >&3
/bin/sh "$here/command" >"$here/output" 2>&1 3>&- </dev/null
code=$?
tries=0
while kill -0 "$copy" 2>/dev/null && test $tries -lt 50; do
    tries=$((tries + 1))
    sleep 0.1
done
read -r up rest </proc/uptime
echo "down $up" >&3
echo "exit $code" >&3
$busybox poweroff -f
