"""What a report of much takes: 100,000 steps of metrics, 10 million rollouts; writes report.{json,md}.

make bench, or: benches/python/report.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from timing import heading, machine, save

NAMES = (
    *("reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/max_length"),
    *("completions/clipped_ratio", "sampling/completions", "sampling/kept_share", "sampling/dropped/no_signal"),
    *("entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "kl", "grad_norm", "mismatch/ess_token"),
    *("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max", "mismatch/ratio_max"),
    *("mismatch/ratio_p50", "mismatch/ratio_min", "staleness/mean", "time/generate", "time/backward", "time/other"),
)
SIZE = 16
CHILD = """
import sys, time, resource
from grpokit.cli import main
start = time.perf_counter()
code = main(["report", sys.argv[1], "-o", sys.argv[2], "-o", sys.argv[2] + ".json"])
print(code, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def steps_of(place, steps):
    """A directory with metrics alone."""
    rng = np.random.default_rng(0)
    with (place / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            values = dict(zip(NAMES, rng.random(len(NAMES)).tolist(), strict=True))
            file.write(json.dumps({"step": step, **values}) + "\n")
    return place


def rows_of(path, rows):
    """A Parquet file, groups one after another, a hundred thousand rows a step."""
    rng = np.random.default_rng(0)
    block, writer = 1_000_000, None
    for start in range(0, rows, block):
        at = np.arange(start, start + block)
        table = pa.table(
            {
                "step": at // 100_000 + 1,
                "group_id": at // SIZE,
                "prompt": [f"question {n}" for n in (at // SIZE).tolist()],
                "text": [f"the answer is {n}" for n in rng.integers(0, 10**6, block).tolist()],
                "reward": rng.integers(0, 2, block).astype(np.float64),
                "response_len": rng.integers(1, 4096, block),
                "finish": pa.array(["stop", "length"]).take(pa.array((rng.random(block) < 0.02).astype(np.int8))),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=100_000)
    writer.close()
    return path


def measured(what, source, count, place):
    """One report in a process of its own: wall time of the command, imports included, and its peak memory."""
    page = place / "report.html"
    start = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", CHILD, source, page], capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    code, inside, peak = told.stdout.split()[-3:]
    if code != "0":
        raise SystemExit(told.stderr)
    row = {"what": what, "count": count, "seconds": wall, "inside": float(inside), "peak_bytes": float(peak)}
    row |= {"page_bytes": page.stat().st_size}
    page.unlink()
    (place / "report.html.json").unlink()
    print(row, flush=True)
    return row


def main():
    report = {"machine": machine("make bench", ("numpy", "pyarrow", "matplotlib", "jinja2")), "sizes": []}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for steps in (100, 10_000, 100_000):
            run = place / f"steps{steps}"
            run.mkdir()
            report["sizes"].append(measured("steps of metrics", steps_of(run, steps), steps, place))
        for rows in (1_000_000, 10_000_000):
            path = rows_of(place / f"rows{rows}.parquet", rows)
            report["sizes"].append(measured("rollouts, Parquet", path, rows, place))
            path.unlink()
    lines = [
        *heading("Reports", report["machine"]),
        "`grpokit report`, HTML and JSON, in a process of its own, imports included; the peak is its resident memory.",
        "The goal is 10 s and 1 GB.",
        "",
        "| input | count | seconds | peak, MB | page, kB |",
        "|---|---:|---:|---:|---:|",
    ]
    for r in report["sizes"]:
        figures = f"{r['seconds']:.1f} | {r['peak_bytes'] / 1e6:,.0f} | {r['page_bytes'] / 1e3:,.0f}"
        lines.append(f"| {r['what']} | {r['count']:,} | {figures} |")
    save(
        "report",
        report,
        [
            line.replace(" Best of bursts that take turns, in one run; a ratio is the rival's time over ours.", "")
            for line in lines
        ],
    )


if __name__ == "__main__":
    main()
