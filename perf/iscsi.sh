#!/bin/sh
# penstockd's iSCSI target beside SPDK's iscsi_tgt and tgt, in one session: medians of ROUNDS interleaved rounds of SECS
# seconds. Each target is pinned to core 0, polls, and has 256 MiB in memory; one connection; the same initiator
# (penstock-perf, which polls too) on core 1 for all. Wants two idle cores.
#
#     SPDK=/path/to/a/built/spdk perf/iscsi.sh
#
# SPDK: left out where it is not set. It wants hugepages (1 GiB), or SPDK_ARGS=--no-huge. tgt: left out where tgtd is not
# installed, or TGT is empty. PORT: the first of three TCP ports. LOADS: what is measured, as KIND/DEPTH/BYTES. BIN: where the programs are
# (default: they are built). Latencies are of the round with the median.
set -eu
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-5} secs=${SECS:-2} port=${PORT:-16490}
loads=${LOADS:-randread/1/4k randwrite/1/4k randread/32/4k randwrite/32/4k read/32/128k write/32/128k}
[ -n "${BIN:-}" ] || cargo build --release -q -p penstock-ctl -p penstock-perf
bin=${BIN:-$PWD/${CARGO_TARGET_DIR:-target}/release}
dir=$(mktemp -d /dev/shm/penstock-iscsi.XXXXXX)
pids=
trap 'kill -9 $pids 2>/dev/null; wait 2>/dev/null; rm -rf "$dir" /var/run/tgtd/socket.9*' EXIT INT TERM
targets=penstock
iqn=iqn.2026-11.io.penstock:perf

taskset -c 0 "$bin/penstockd" --socket "$dir/control" --cores 0 --poll busy --memory-max 512M 2>"$dir/log" &
pids="$pids $!"
until "$bin/penstock" --socket "$dir/control" status >/dev/null 2>&1; do sleep 0.1; done
call() { "$bin/penstock" --socket "$dir/control" rpc "$@" >/dev/null; }
call bdev_malloc_create '{"name": "m", "num_blocks": 524288, "block_size": 512}'
call iscsi_create_portal_group "{\"tag\": 1, \"portals\": [{\"host\": \"127.0.0.1\", \"port\": \"$port\"}]}"
call iscsi_create_initiator_group '{"tag": 1, "initiators": ["ANY"], "netmasks": ["ANY"]}'
call iscsi_create_target_node "{\"name\": \"$iqn\", \"luns\": [{\"bdev_name\": \"m\", \"lun_id\": 0}],
    \"pg_ig_maps\": [{\"pg_tag\": 1, \"ig_tag\": 1}]}"
penstock=iscsi://127.0.0.1:$port/$iqn/0

if [ -n "${SPDK:-}" ]; then
    rpc() { "$SPDK/scripts/rpc.py" -s "$dir/spdk" "$@" >"$dir/rpc" || { cat "$dir/rpc" >&2; false; }; }
    # shellcheck disable=SC2086
    "$SPDK/build/bin/iscsi_tgt" -m '[0]' -s 1024 -r "$dir/spdk" --no-pci --disable-cpumask-locks ${SPDK_ARGS:-} >"$dir/spdk.log" 2>&1 &
    pids="$pids $!"
    until rpc spdk_get_version 2>/dev/null; do
        kill -0 $! 2>/dev/null || { tail -n 5 "$dir/spdk.log" >&2; exit 1; }
        sleep 0.5
    done
    rpc bdev_malloc_create -b M0 256 512
    rpc iscsi_create_portal_group 1 127.0.0.1:$((port + 1))
    rpc iscsi_create_initiator_group 2 ANY ANY
    rpc iscsi_create_target_node d0 a M0:0 1:2 64 -d
    spdk=iscsi://127.0.0.1:$((port + 1))/iqn.2016-06.io.spdk:d0/0
    targets="$targets spdk"
fi
if command -v "${TGT-tgtd}" >/dev/null; then
    truncate -s 256M "$dir/disk"
    taskset -c 0 tgtd -f -C 9 --iscsi portal=127.0.0.1:$((port + 2)) >"$dir/tgt.log" 2>&1 &
    pids="$pids $!"
    until tgtadm -C 9 --lld iscsi --op show --mode sys >/dev/null 2>&1; do sleep 0.1; done
    tgtadm -C 9 --lld iscsi --op new --mode target --tid 1 -T iqn.2026-11.io.tgt:perf
    tgtadm -C 9 --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b "$dir/disk"
    tgtadm -C 9 --lld iscsi --op bind --mode target --tid 1 -I ALL
    tgt=iscsi://127.0.0.1:$((port + 2))/iqn.2026-11.io.tgt:perf/1
    targets="$targets tgt"
fi

# A target that polls takes the core from the others: all but the one that is measured stand still.
# shellcheck disable=SC2086
set -- $pids
others() { for pid in "$@"; do kill -STOP "$pid"; done; }
for load in $loads; do
    kind=${load%%/*} rest=${load#*/}
    depth=${rest%%/*} bytes=${rest#*/}
    for round in $(seq "$rounds"); do
        nth=0
        for target in $targets; do
            nth=$((nth + 1))
            others "$@"
            kill -CONT "$(eval echo "\$$nth")"
            eval "url=\$$target"
            prefill=$([ "$round" = 1 ] && echo --prefill || true)
            # shellcheck disable=SC2086
            "$bin/penstock-perf" "$url" --rw "$kind" --qd "$depth" --bs "$bytes" --time "$secs" --warmup 0.2 \
                --cores 1 --json -q $prefill >"$dir/out"
            value() { sed -n "s/.*\"$1\": *\([0-9.]*\).*/\1/p" "$dir/out" | head -n 1; }
            echo "$(value iops) $(value p50) $(value p99_9)" >>"$dir/$target.$kind.$depth.$bytes"
        done
    done
    for target in $targets; do
        median=$(sort -n "$dir/$target.$kind.$depth.$bytes" | sed -n "$(((rounds + 1) / 2))p")
        # shellcheck disable=SC2086
        printf '%-9s %-9s %4s  qd %-3s %9.0f IOPS  p50 %8.1f us  p99.9 %8.1f us\n' "$target" "$kind" "$bytes" "$depth" $median
    done
done
