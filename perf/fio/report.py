#!/usr/bin/env python3
"""Turns fio's JSON into a table and a plot: report.py DIRECTORY NAME.ROUND.json...

NAME is what was driven; of several rounds the median counts. Writes table.md, plot.dat and plot.png into DIRECTORY. Needs
nothing but Python; the plot is drawn by gnuplot, and left out with a word where that is not installed.
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys

PERCENTILES = ("50.000000", "99.000000", "99.900000")


def figures(job):
    """IOPS, MiB/s, and the percentiles of the latency in microseconds, of one job; the worse direction's where it has two."""
    sides = [job[side] for side in ("read", "write", "trim") if job[side]["total_ios"]]
    latencies = [side["clat_ns"].get("percentile", {}) for side in sides]
    tails = [max((one.get(p, 0) for one in latencies), default=0) / 1000 for p in PERCENTILES]
    return [sum(s["iops"] for s in sides), sum(s["bw_bytes"] for s in sides) / 2**20, *tails]


def load(paths):
    """{load: {name: [figures of each round]}}, loads in fio's order. A job that failed ends it all."""
    table = {}
    for path in paths:
        name = path.name.split(".")[0]
        text = path.read_text()
        for job in json.loads(text[text.index("{"):])["jobs"]:
            if job["error"]:
                sys.exit(f"{path}: {job['jobname']} ended with error {job['error']}")
            table.setdefault(job["jobname"], {}).setdefault(name, []).append(figures(job))
    return table


def median(rounds):
    return [statistics.median(column) for column in zip(*rounds)]


def write_table(table, place):
    lines = ["| load | target | IOPS | MiB/s | p50 µs | p99 µs | p99.9 µs | rounds |", "|---|---|---|---|---|---|---|---|"]
    for job, names in table.items():
        for name, rounds in names.items():
            iops, mib, p50, p99, p999 = median(rounds)
            lines.append(
                f"| {job} | {name} | {iops:,.0f} | {mib:,.0f} | {p50:.1f} | {p99:.1f} | {p999:.1f} | {len(rounds)} |"
            )
    place.write_text("\n".join(lines) + "\n")
    print(place.read_text(), end="")


def write_plot(table, directory):
    names = sorted({name for names in table.values() for name in names})
    rows = ["load " + " ".join(names)]
    for job, by_name in table.items():
        values = [str(median(by_name[n])[0] / 1000) if n in by_name else "0" for n in names]
        rows.append(" ".join([job, *values]))
    (directory / "plot.dat").write_text("\n".join(rows) + "\n")
    if not shutil.which("gnuplot"):
        print("no plot: gnuplot is not installed (Debian: gnuplot-nox)", file=sys.stderr)
        return
    script = f"""
        set terminal pngcairo size 1200,600 noenhanced
        set output "{directory}/plot.png"
        set style data histograms
        set style fill solid 0.8 border -1
        set boxwidth 0.9
        set ylabel "thousand I/Os per second"
        set yrange [0:*]
        set grid ytics
        set key outside top center horizontal
        set xtics rotate by -25
        plot for [i=2:{len(names) + 1}] "{directory}/plot.dat" using i:xtic(1) title columnheader(i)
    """
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    directory = pathlib.Path(sys.argv[1])
    table = load(sorted(map(pathlib.Path, sys.argv[2:])))
    write_table(table, directory / "table.md")
    write_plot(table, directory)


if __name__ == "__main__":
    main()
