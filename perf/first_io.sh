#!/bin/sh
# How long the first I/O after idleness waits for its answer: from the arrival of the command at the target's socket to the
# departure of the answer, by the kernel's time stamps of the packets, so that how fast the host wakes does not count. Needs
# tcpdump, root and two idle cores.
#
#     perf/first_io.sh [PAUSE_MS [COUNT]]          (default: 10000 11)
set -eu
pause=${1:-10000}
count=${2:-11}
cd "$(dirname "$0")/.."
cargo build --release -q -p penstock-ctl -p penstock-perf
bin=$PWD/${CARGO_TARGET_DIR:-target}/release
dir=$(mktemp -d /dev/shm/penstock-first.XXXXXX)
pids=
trap 'kill $pids 2>/dev/null; wait 2>/dev/null; rm -rf "$dir"' EXIT INT TERM
port=24566
nqn=nqn.2026-11.io.penstock:first

"$bin/penstockd" --socket "$dir/control" --cores 1 2>"$dir/log" &
pids="$pids $!"
until "$bin/penstock" --socket "$dir/control" status >/dev/null 2>&1; do sleep 0.1; done
"$bin/penstock" --socket "$dir/control" bdev create malloc m0 64M >/dev/null
"$bin/penstock" --socket "$dir/control" nvmf create $nqn --any-host --listen 127.0.0.1:$port --ns m0 >/dev/null
tcpdump -i lo -tt -n -q --immediate-mode port $port >"$dir/packets" 2>/dev/null &
pids="$pids $!"
sleep 1
seconds=$(((pause * count + pause / 2) / 1000 + 1))
"$bin/penstock-perf" "nvme-tcp://127.0.0.1:$port/$nqn" --cores 0 --rw randread --qd 1 --bs 4k \
    --pause-ms "$pause" --warmup 0 --time $seconds -q >/dev/null
sleep 0.5

# A line: time, IP, source, >, destination:, tcp, bytes. An answer of a 4 KiB read is 24 + 4096 bytes.
awk -v port=$port '
    $7 == 72 && $5 ~ "\\." port ":" { arrived = $1 }
    $7 == 4120 && $3 ~ "\\." port "$" { print ($1 - arrived) * 1e6 }
' "$dir/packets" | sed 1d | sort -n | awk -v pause="$pause" '
    { took[NR] = $1 }
    END {
        if (NR == 0) { print "no answer was seen"; exit 1 }
        printf "%d first reads after %d ms: fastest %.0f, median %.0f, slowest %.0f us from arrival to answer\n",
            NR, pause, took[1], took[int((NR + 1) / 2)], took[NR]
    }'
