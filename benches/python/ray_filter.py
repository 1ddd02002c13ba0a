"""grpokit.io.ray.filter with two workers against one, on one file in one run; writes ray_filter.{json,md}.

A Parquet file of rollouts with text and string ids is read, shuffled so that groups are whole, decided on and written.
The workers are real processes of a local Ray, started anew for each turn, in which the second pass is counted: in the
first one Ray starts processes. What is written must hold the rows that one call on the whole table keeps.

    make bench
"""

import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from timing import heading, machine, save

import grpokit as gk
import grpokit.io.ray

GROUP, TEXT, BLOCKS, STORE, SENT = 8, 400, 16, 1000 * 2**20, 64 * 2**20
RECIPE = gk.recipe("rloo").replace(select=(gk.HasSignal(),))


def write(path, rows):
    """Rollouts whose rows of a group lie together, with text that compresses about as well as text does."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(map(chr, rng.integers(97, 123, 7))) for _ in range(5000)], object)
    schema = pa.schema([("uid", pa.string()), ("reward", pa.float64()), ("text", pa.string()), ("at", pa.int64())])
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, rows, 50_000):
            n = min(50_000, rows - start)
            at = np.arange(start, start + n)
            uids = [f"prompt-{i:09d}" for i in at // GROUP]
            hard = np.repeat(rng.random(n // GROUP + 1) ** 3, GROUP)[:n]
            text = [" ".join(line) for line in words[rng.integers(0, 5000, (n, TEXT // 8))]]
            file.write_table(pa.table([uids, (rng.random(n) < hard).astype(float), text, at], schema=schema))


def turn(workers, path, place):
    """The seconds that some workers take, and the numbers of the rows that they keep."""
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=STORE,
        _temp_dir=str(place / "ray"),
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray sends up to 1 GiB into its shuffle from one task, which would be all of this file.
    context.shuffle_input_batch_bytes = SENT
    for _ in range(2):
        shutil.rmtree(place / "kept", ignore_errors=True)
        start = time.perf_counter()
        rollouts = ray.data.read_parquet(str(path))
        kept = grpokit.io.ray.filter(rollouts, RECIPE, columns={"group_id": "uid"}, num_blocks=BLOCKS)
        kept.write_parquet(str(place / "kept"))
        taken = time.perf_counter() - start
    ray.shutdown()
    found = np.sort(pq.read_table(place / "kept", columns=["at"])["at"].to_numpy())
    shutil.rmtree(place / "kept")
    return taken, found


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    taken = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as directory:
        place = Path(directory)
        path = place / "rollouts.parquet"
        write(path, rows)
        table = pq.read_table(path, columns=["uid", "reward"])
        expected = np.flatnonzero(gk.process(table, RECIPE, columns={"group_id": "uid"}).keep)
        for _ in range(turns):
            for workers in (2, 1):
                seconds, found = turn(workers, path, place)
                if not np.array_equal(found, expected):
                    raise SystemExit(f"{workers} workers kept other rows: the bench compares different things")
                taken[workers].append(seconds)
                print(f"{workers} workers: {seconds:.1f} s", flush=True)
        size = path.stat().st_size
    best = {workers: min(times) for workers, times in taken.items()}
    ratio = best[1] / best[2]
    report = {"machine": machine("make bench", ("ray", "pyarrow")), "rows": rows, "bytes": size, "seconds": taken}
    report["ratio"] = ratio
    lines = [
        *heading("Two Ray workers against one", report["machine"])[:-2],
        f"`{report['machine']['command']}`. Best of {turns} turns, in one run; each with workers of its own.",
        "",
        f"{rows:,} rows in groups of {GROUP}, text of {TEXT} characters, a Parquet file of {size / 2**20:,.0f} MiB;",
        f"read, shuffled into {BLOCKS} blocks, decided on, {len(expected):,} rows written. Goal: 1.4.",
        "",
        "| workers | s | rows a second |",
        "|---:|---:|---:|",
        *(f"| {workers} | {best[workers]:.1f} | {rows / best[workers]:,.0f} |" for workers in (1, 2)),
        "",
        f"Ratio: {ratio:.2f}.",
    ]
    print(*lines, sep="\n")
    save("ray_filter", report, lines)


if __name__ == "__main__":
    main()
