"""Killed at any moment, a filter leaves the whole file or none."""

import random
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.files.test_files import write


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_kill_at_random_moments(tmp_path, suffix):
    rows = 60_000
    table = {
        "group_id": [f"p{i // 8}" for i in range(rows)],
        "reward": [float(i % 3 == 0) for i in range(rows)],
        "text": [f"{i} " * 20 for i in range(rows)],
    }
    source = write(tmp_path / f"in{suffix}", table)
    target = tmp_path / f"out{suffix}"
    command = [sys.executable, "-m", "grpokit", "filter", str(source), "-o", str(target), "--overwrite"]
    command += ["--recipe", "rloo", "--keep-dropped", str(tmp_path / f"dropped{suffix}")]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = target.read_bytes()
    taken = time.monotonic() - start
    target.unlink()
    rng, found = random.Random(0), {"none": 0, "whole": 0}
    for _ in range(50):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            running.wait(timeout=rng.uniform(0.0, 1.6 * taken))
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        if target.exists():
            assert target.read_bytes() == whole
            found["whole"] += 1
            target.unlink()
        else:
            found["none"] += 1
    # What is not yet in its place has a name that no pattern of rollout files matches.
    assert all(path.name.startswith(".") for path in tmp_path.glob(".*.part"))
    assert min(found.values()) > 0, found
    if suffix == ".parquet":
        assert pq.read_table(pa.BufferReader(whole)).num_rows > 0
