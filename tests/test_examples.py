"""The examples, each in a process of its own: under 25 lines, and what they print is what the algorithm says."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("with_*.py"))
NUMBER = r"-?\d+\.\d+(?:e-\d+)?"


def expected(path):
    """DAPO written out: groups whose scores differ, and each score's distance from its group's mean."""
    rows = pq.read_table(path).to_pylist()
    groups = {}
    for row in rows:
        if row["score"] is not None:
            groups.setdefault(row["uid"], []).append(row["score"])
    found = {}
    for row in rows:
        scores = groups[row["uid"]]
        if row["score"] is not None and max(scores) > min(scores):
            found[row["response"]] = (row["score"] - np.mean(scores)) / np.std(scores, ddof=1)
    assert 0 < len(found) < len(rows)
    return found


def test_there_is_one_for_each_library():
    libraries = ("datasets", "duckdb", "pandas", "polars", "pyarrow", "ray", "records")
    assert [path.stem for path in EXAMPLES] == [f"with_{name}" for name in libraries]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_is_kept(path, tmp_path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 25
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short:
        environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "RAY_TMPDIR": short}
        done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    want = expected(tmp_path / "rollouts.parquet")
    lines = [line for line in done.stdout.splitlines() if "answer" in line]
    printed = {re.search(r"answer\d+", line).group(): float(re.findall(NUMBER, line)[-1]) for line in lines}
    assert len(lines) == len(printed)
    assert printed == pytest.approx(want, rel=1e-3)
    if "rows in" in done.stdout:
        assert re.search(rf"kept +{len(want)} ", done.stdout)
    if (tmp_path / "kept.parquet").exists():
        kept = pq.read_table(tmp_path / "kept.parquet")
        assert dict(zip(kept["response"].to_pylist(), kept["advantage"].to_pylist(), strict=True)) == pytest.approx(
            want, rel=1e-3
        )
