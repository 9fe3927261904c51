#!/bin/sh
# The guest's first and only process of ours: brings up the network, then runs the scripts that the host sends
# over the virtio-serial port, one line each: `ID BASE64`, answered with `ID EXIT-CODE LENGTH` and the output.
# When the host hangs up, the guest powers off.
# The kernel's NVMe/TCP initiator sends from the task that submits, and a connection that the target has closed then
# earns that task a SIGPIPE: without this, fio dies of a reconnect.
trap '' PIPE
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# `penstock.root=DEVICE` on the kernel's command line: the root file system is there, with this script in it.
root=$(sed -n 's/.*penstock\.root=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$root" ] && ! grep -q ' / ext4 ' /proc/mounts; then
    for module in virtio_pci virtio_blk ext4; do modprobe $module; done
    until [ -b "$root" ]; do sleep 0.05; done
    mount -t ext4 "$root" /mnt
    umount /dev /sys /proc
    exec switch_root /mnt /init
fi
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/jobs /run/lock /run/nvme
for module in virtio_pci virtio_net virtio_console; do modprobe $module; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2

cd /root
until port=$(ls /dev/vport*p1 2>/dev/null); do sleep 0.05; done
exec 3<>$port
echo "ready $(uname -r)" >&3
while IFS=' ' read -r id script <&3; do
    printf %s "$script" | base64 -d >/run/script
    sh /run/script >/run/output 2>&1 </dev/null 3<&-
    code=$?
    echo "$id $code $(stat -c %s /run/output)" >&3
    cat /run/output >&3
done
poweroff -f
