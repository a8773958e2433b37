#!/bin/busybox sh
# The first process of a guest. It loads the modules that the root needs, puts a writable layer
# over the host's root file system, and hands over to root.sh there. Without /host the guest has
# no other root: the command runs here.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module" || echo "kernels: the guest cannot load the module $module"
done </modules/order
if ! test -d /host; then
    mount -t bpf bpf /sys/fs/bpf
    ip link set lo up
    exec sh /root.sh
fi
mount -t virtiofs -o ro root /host || echo "kernels: the guest cannot mount the host's root"
mount -t tmpfs -o size=75% tmpfs /layer
mkdir /layer/upper /layer/work
if ! mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new; then
    echo "kernels: the guest's root is read-only: its kernel has no module overlay"
    mount -o bind /host /new
fi
# What is mounted on /new keeps what it needs of both.
umount -l /host /layer
mount -t tmpfs tmpfs /new/run
mkdir /new/run/kernels
cp /bin/busybox /root.sh /command /new/run/kernels/
# busybox starts itself as /proc/self/exe. The host's /proc, which the overlay shows, leads to the
# daemon that serves it instead; so ours moves there first, and from then on paths are needed.
mount -o move /sys /new/sys
mount -o move /proc /new/proc
exec /bin/switch_root /new /run/kernels/busybox sh /run/kernels/root.sh
