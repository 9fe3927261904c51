# Functions for the scripts that tests run in a guest; every script begins with these.

# ns NSID: the block device of a connected namespace. (The number in its name is not its NSID.)
ns() {
    for dir in /sys/block/nvme*n*; do
        case ${dir##*/} in *c*) continue ;; esac
        [ "$(cat $dir/nsid 2>/dev/null)" = "$1" ] && echo /dev/${dir##*/} && return 0
    done
    echo "no namespace $1 here: $(ls /sys/block)" >&2
    return 1
}

# eventually SECONDS COMMAND...: runs the command until it succeeds.
eventually() {
    limit=$(($(date +%s) + $1))
    shift
    until "$@" >/run/eventually 2>&1; do
        if [ "$(date +%s)" -gt $limit ]; then
            cat /run/eventually
            echo "not in time: $*"
            return 1
        fi
        sleep 0.1
    done
    cat /run/eventually
}

# ns_bytes NSID: the size of a connected namespace.
ns_bytes() {
    dev=$(ns $1) || return 1
    blockdev --getsize64 $dev
}

# ns_has_bytes NSID BYTES
ns_has_bytes() {
    [ "$(ns_bytes $1)" = "$2" ]
}

# no_ns NSID
no_ns() {
    ! ns $1 2>/dev/null
}

# util-linux's: busybox's shell would take its own, which cannot zero.
blkdiscard() {
    /usr/bin/blkdiscard "$@"
}
