"""Runs the tests of the folder `interpreted`, a file in a process of its own, under Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))
# What stands on the others' kernels is left to the slow run.
SLOW = ("test_one_pass", "test_linear_head")
CASES = [pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else ()) for path in FILES]


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_interpreted(file):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", str(file)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
