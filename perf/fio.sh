#!/bin/sh
# Targets beside each other, all driven by the stock fio with this project's engine: medians of ROUNDS interleaved rounds
# of the loads in perf/fio/engine.fio, as a table and as a plot.
#
#     perf/fio.sh out penstock='nvme-tcp://127.0.0.1:4420/nqn.2026-11.io.penstock:a' spdk='nvme-tcp://127.0.0.1:4421/nqn...:b'
#
# What is driven stands ready before: each NAME=TARGET is a file name of docs/fio.md, without backslashes. fio runs on core
# CORE (1). Everything that a target holds is overwritten. Leaves fio's JSON, table.md and plot.png in the directory that
# the first argument names; the plot wants gnuplot (Debian: gnuplot-nox) and is left out without it.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=$1
shift
mkdir -p "$out"
rounds=${ROUNDS:-3} core=${CORE:-1}
cargo build --release -q -p penstock-fio-engine --manifest-path "$root/Cargo.toml"
ENGINE=${CARGO_TARGET_DIR:-$root/target}/release/libpenstock_fio.so
export ENGINE TARGET
for round in $(seq "$rounds"); do
    for pair in "$@"; do
        TARGET=$(printf %s "${pair#*=}" | sed 's/:/\\:/g')
        taskset -c "$core" fio --output-format=json --output="$out/${pair%%=*}.$round.json" "$root/perf/fio/engine.fio"
    done
done
exec python3 "$root/perf/fio/report.py" "$out" "$out"/*.json
