#!/bin/sh
# penstockd's vhost-user-blk beside qemu-storage-daemon's, over the same file in memory, in one session: medians of five
# interleaved rounds of two seconds, in I/Os per second; and what fio gets of that file by io_uring and by plain calls, which
# is what one core can do without a guest. Device's side on core 0, client on core 1. Needs qemu-storage-daemon (Debian:
# qemu-utils), fio and two idle cores; RUN="chrt -f 10" keeps others off them.
#
#     [RUN=...] [ROUNDS=5] [SECONDS_EACH=2] perf/vhost.sh [DEPTH...]          (default: 1 32 128)
set -eu
cd "$(dirname "$0")/.."
cargo build --release -q -p penstock-ctl
cargo build --release -q -p penstock-tests --example vhost_bench
run=${RUN:-} rounds=${ROUNDS:-5} seconds=${SECONDS_EACH:-2}
bin=$PWD/${CARGO_TARGET_DIR:-target}/release
dir=$(mktemp -d /dev/shm/penstock-vhost.XXXXXX)
pids=
trap 'kill $pids 2>/dev/null; wait 2>/dev/null; rm -rf "$dir"' EXIT INT TERM
head -c 268435456 /dev/zero >"$dir/disk"

$run taskset -c 0 "$bin/penstockd" --socket "$dir/control" --reactors 1 --memory-max 256M 2>"$dir/log" &
pids="$pids $!"
until "$bin/penstock" --socket "$dir/control" status >/dev/null 2>&1; do sleep 0.1; done
call() { "$bin/penstock" --socket "$dir/control" rpc "$@" >/dev/null; }
call bdev_uring_create "{\"name\": \"file\", \"filename\": \"$dir/disk\", \"block_size\": 512}"
call bdev_malloc_create '{"name": "malloc", "num_blocks": 524288, "block_size": 512}'
call vhost_create_blk_controller '{"ctrlr": "penstock-file", "dev_name": "file"}'
call vhost_create_blk_controller '{"ctrlr": "penstock-malloc", "dev_name": "malloc"}'
$run taskset -c 0 qemu-storage-daemon --blockdev "driver=file,node-name=f0,filename=$dir/disk,cache.direct=on,aio=io_uring" \
    --object iothread,id=t0 \
    --export "type=vhost-user-blk,id=e0,node-name=f0,addr.type=unix,addr.path=$dir/qsd-file,writable=on,iothread=t0" &
pids="$pids $!"
until [ -S "$dir/qsd-file" ]; do sleep 0.1; done

for depth in ${*:-1 32 128}; do
    for kind in read write; do
        for round in $(seq "$rounds"); do
            for target in penstock-file qsd-file penstock-malloc; do
                $run taskset -c 1 "$bin/examples/vhost_bench" "$dir/$target" "$depth" "$seconds" $kind >>"$dir/$target.$kind.$depth"
            done
            for engine in io_uring psync; do
                $run taskset -c 0 fio --name=x --filename="$dir/disk" --rw=rand$kind --bs=4k --ioengine=$engine --iodepth="$depth" \
                    --norandommap --random_generator=lfsr --time_based --runtime="$seconds" --output-format=terse 2>/dev/null |
                    awk -F';' -v field="$([ $kind = read ] && echo 8 || echo 49)" 'NF > 50 { print $field }' >>"$dir/fio-$engine.$kind.$depth"
            done
        done
        for target in penstock-file qsd-file penstock-malloc fio-io_uring fio-psync; do
            printf '%-16s %-6s depth %-4s %s\n' $target $kind "$depth" "$(sort -n "$dir/$target.$kind.$depth" | sed -n "$((rounds / 2 + 1))p")"
        done
    done
done
