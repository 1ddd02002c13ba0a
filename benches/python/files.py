"""`grpokit filter` on rollout files against what a user would write; writes benches/results/files.md.

Parquet with text, 4 and 20 million rows, rows of a group together: pyarrow reading all and writing the same kept rows
with no decision at all (the mask is given), polars' streaming engine and DuckDB doing the same filter. JSON lines: a
loop of `json.loads` that decides and writes lines, and polars' scan. Each is a process of its own, of which wall time
and peak memory are taken; rivals take turns, and what they write is compared first. And how long `--dry-run` takes on a
small file beyond importing NumPy and pyarrow.parquet.

    make bench                                          (python benches/python/files.py MILLIONS... for other sizes)
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from timing import machine, save

SIZE, PART = 8, 1 << 18
WORDS = np.array(["the", "a", "solve", "find", "let", "so", "we", "have", "that", "answer", "is", "x", "equals", "of"])

RIVALS = {
    "pyarrow, no decision": """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
source, target, mask = sys.argv[1:]
keep, file, row = np.load(mask), pq.ParquetFile(source), 0
with pq.ParquetWriter(target, file.schema_arrow) as out:
    for batch in file.iter_batches():
        kept = batch.filter(pa.array(keep[row:row + len(batch)]))
        row += len(batch)
        out.write_batch(kept)
""",
    "polars, streaming": """
import sys, polars as pl
source, target, mask = sys.argv[1:]
r = pl.col("reward")
pl.scan_parquet(source).filter((r.max() != r.min()).over("group_id")).sink_parquet(target, compression="snappy")
""",
    "DuckDB": """
import sys, duckdb
source, target, mask = sys.argv[1:]
duckdb.sql("set threads=2; set preserve_insertion_order=true")
duckdb.sql(f"copy (select * exclude (lo, hi) from (select *, min(reward) over (partition by group_id) lo, "
           f"max(reward) over (partition by group_id) hi from read_parquet('{source}')) where lo != hi) "
           f"to '{target}' (format parquet)")
""",
    "json.loads loop": """
import json, sys
source, target, mask = sys.argv[1:]
def flush(lines, rewards, out):
    if rewards and max(rewards) != min(rewards):
        out.writelines(lines)
with open(source, "rb") as file, open(target, "wb") as out:
    group, lines, rewards = None, [], []
    for line in file:
        record = json.loads(line)
        if record["group_id"] != group:
            flush(lines, rewards, out)
            group, lines, rewards = record["group_id"], [], []
        lines.append(line)
        rewards.append(record["reward"])
    flush(lines, rewards, out)
""",
    "polars, scan_ndjson": """
import sys, polars as pl
source, target, mask = sys.argv[1:]
r = pl.col("reward")
pl.scan_ndjson(source).filter((r.max() != r.min()).over("group_id")).sink_ndjson(target)
""",
    "imports": "import numpy, pyarrow.parquet",
}


def table(start, rows, rng):
    group = np.arange(start, start + rows) // SIZE
    ease = np.random.default_rng(start).beta(0.5, 0.5, rows // SIZE + 1)[(group - group[0])]
    phrases = np.array([" ".join(row) for row in rng.choice(WORDS, (4096, 16))], object)
    texts = phrases[rng.integers(0, 4096, rows)] + " " + phrases[rng.integers(0, 4096, rows)]
    return pa.table(
        {
            "group_id": pa.array([f"prompt-{g:09d}" for g in group.tolist()]),
            "reward": (rng.random(rows) < ease).astype(np.float64),
            "text": pa.array(texts),
            "response_len": rng.integers(1, 4000, rows),
            "finish": pa.array(np.array(["stop", "length"])[rng.integers(0, 2, rows)]),
        }
    )


def parts(rows):
    rng = np.random.default_rng(0)
    for start in range(0, rows, PART):
        yield table(start, min(PART, rows - start), rng)


# A process counts the memory of the one that started it, so a small one starts it.
STARTER = """
import os, sys, time
start = time.perf_counter()
null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=null), 0)
print(time.perf_counter() - start, used.ru_maxrss / 1024, status)
"""


def measured(command):
    """Wall seconds and peak megabytes of a process."""
    started = [sys.executable, "-S", "-c", STARTER, *command]
    wall, peak, status = subprocess.run(started, capture_output=True, text=True, check=True).stdout.split()
    if status != "0":
        raise SystemExit(f"{command} failed")
    return float(wall), float(peak)


def ours(source, target):
    return [sys.executable, "-m", "grpokit", "filter", str(source), "-o", str(target), "--overwrite"]


def compared(report, lines, source, rivals, mask):
    place, suffix = source.parent, source.suffix
    commands = {"grpokit filter": ours(source, place / f"ours{suffix}")}
    for name in rivals:
        target = place / f"{name.split(',')[0].replace(' ', '')}{suffix}"
        commands[name] = [sys.executable, "-c", RIVALS[name], str(source), str(target), str(mask)]
    taken = {name: [] for name in commands}
    for _ in range(3):
        for name, command in commands.items():
            taken[name].append(measured(command))
    best = {name: (min(wall for wall, _ in runs), max(peak for _, peak in runs)) for name, runs in taken.items()}
    for name, command in commands.items():
        written = Path(command[-2] if name != "grpokit filter" else command[6])
        count = sum(1 for _ in written.open("rb")) if suffix == ".jsonl" else pq.read_metadata(written).num_rows
        wall, peak = best[name]
        ratio = wall / best["grpokit filter"][0]
        report.append(
            {"file": source.name, "what": name, "seconds": wall, "peak_mb": peak, "ratio": ratio, "kept": count}
        )
        lines.append(f"| {source.name} | {name} | {wall:.2f} | {peak:,.0f} | {ratio:.2f} | {count:,} |")
        print(lines[-1], flush=True)
        written.unlink()
    if len({row["kept"] for row in report if row["file"] == source.name}) > 1:
        raise SystemExit("they keep different rows: the bench compares different things")


def parquet(place, millions, report, lines):
    rows = int(millions * 1e6)
    source = place / f"{millions:g}M rows.parquet"
    keep = []
    with pq.ParquetWriter(source, next(parts(PART)).schema) as out:
        for part in parts(rows):
            out.write_table(part, row_group_size=131_072)
            reward = part["reward"].to_numpy().reshape(-1, SIZE)
            keep.append(np.repeat(reward.max(1) != reward.min(1), SIZE))
    np.save(place / "mask.npy", np.concatenate(keep))
    rivals = ("pyarrow, no decision", "polars, streaming", "DuckDB")
    compared(report, lines, source, rivals, place / "mask.npy")
    source.unlink()


def json_lines(place, gigabytes, report, lines):
    source = place / f"{gigabytes:g} GB.jsonl"
    start, rng = 0, np.random.default_rng(0)
    with source.open("wb") as out:
        import polars as pl

        while out.tell() < gigabytes * 1e9:
            pl.from_arrow(table(start, PART, rng)).write_ndjson(out)
            start += PART
    compared(report, lines, source, ("json.loads loop", "polars, scan_ndjson"), "-")
    source.unlink()


def start_up(place, report, lines):
    source = place / "small.parquet"
    pq.write_table(table(0, 800, np.random.default_rng(0)), source)
    commands = {
        "grpokit filter --dry-run": [sys.executable, "-m", "grpokit", "filter", str(source), "--dry-run"],
        "import numpy, pyarrow.parquet": [sys.executable, "-c", RIVALS["imports"]],
    }
    taken = {name: [] for name in commands}
    for _ in range(15):
        for name, command in commands.items():
            taken[name].append(measured(command)[0])
    best = {name: min(runs) for name, runs in taken.items()}
    over = best["grpokit filter --dry-run"] - best["import numpy, pyarrow.parquet"]
    report.append({"what": "dry run beyond the imports", "seconds": over})
    lines += [
        "",
        f"`--dry-run` on 800 rows: {best['grpokit filter --dry-run']:.3f} s, {over:.3f} s more than the imports.",
    ]
    print(lines[-1])


def main():
    # An installed package has its byte code.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sizes = [float(x) for x in sys.argv[1:]] or [4, 20]
    about = machine("make bench", ("numpy", "pyarrow", "polars", "duckdb"))
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    report = []
    lines = [
        "# Filtering files",
        "",
        f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {versions}; commit {about['commit']};",
        f"`{about['command']}`. Best wall time and largest peak of 3 turns in one run; a ratio is the time over ours.",
        "",
        "| file | what | s | peak, MB | ratio | rows kept |",
        "|---|---|---:|---:|---:|---:|",
    ]
    print(*lines, sep="\n")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as place:
        for millions in sizes:
            parquet(Path(place), millions, report, lines)
        json_lines(Path(place), sizes[0] / 4, report, lines)
        start_up(Path(place), report, lines)
    save("files", {"machine": about, "rows": report}, lines)


if __name__ == "__main__":
    main()
