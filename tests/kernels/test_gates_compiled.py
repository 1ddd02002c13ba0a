"""The kernel of coefficients as compiled for sm_90, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import grpokit
from grpokit import gates


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("triton")
    environment = {name: x for name, x in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(place), "PYTHONPATH": str(Path(grpokit.__file__).parent.parent)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_gates", str(place)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_gate_is_compiled_without_spills_and_atomics(found):
    assert {objective.__name__ for objective in gates.GATES} <= found["plans"].keys()
    for name, used in found["plans"].items():
        assert used["STACK"] == used["LOCAL"] == used["atomics"] == 0, (name, used)


def test_no_new_number_length_or_part_compiles_anything(found):
    assert found["signatures"] == [1, 2]
