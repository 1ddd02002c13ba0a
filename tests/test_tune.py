"""`grpokit tune`, in Triton's interpreter: a table that is read, and files that appear whole or not at all."""

import json
import os
import subprocess
import sys

import pytest

from grpokit import InputError
from grpokit.tune import tune

READ = """
import torch
from grpokit.kernels.table import choose
print([choose(name, torch.device("cpu")).block for name in ("stats", "gradient", "sweep")])
"""


@pytest.mark.slow
def test_a_table_is_written_and_read(tmp_path):
    path = tmp_path / "table.json"
    environment = os.environ | {"TRITON_INTERPRET": "1", "GRPOKIT_KERNEL_TABLE": ""}
    command = [sys.executable, "-m", "grpokit", "tune", "-o", path, "--device", "cpu", "--rows", "1", "--json"]
    done = subprocess.run(
        [*command, "--vocabulary", "300"], env=environment, capture_output=True, text=True, check=True
    )
    told, table = json.loads(done.stdout), json.loads(path.read_text(encoding="utf-8"))
    assert told["table"] == table
    (found,) = table.values()
    for kernel, times in told["times"].items():
        best = min(times, key=lambda x: x["seconds"])
        assert found[kernel] == {name: x for name, x in best.items() if name != "seconds"}
    assert len(told["times"]["stats"]) == 3 * len(told["times"]["gradient"]) > 20
    read = subprocess.run(
        [sys.executable, "-c", READ],
        env=os.environ | {"GRPOKIT_KERNEL_TABLE": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(read.stdout) == [found[name]["block"] for name in ("stats", "gradient", "sweep")]
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_what_cannot_be_timed():
    with pytest.raises(InputError, match="tune cannot run: there is no CUDA device|TRITON_INTERPRET") as caught:
        tune(1, 10, device="cpu")
    assert caught.value.kind == "no_kernel"
    with pytest.raises(InputError, match="rows=0"):
        tune(0)


TABLES = ["", "[1]", *(f'{{"sm_90": {{"stats": {config}}}}}' for config in ('{"blocks": 1}', "[1, 2]", "3"))]
TABLES += [f'{{"sm_90": {{"stats": {{"block": {block}, "warps": {warps}}}}}}}' for block, warps in ((1000, 4), (64, 0))]
TABLES += ['{"sm_90": {"stats": {"block": 64, "warps": 4, "stages": 0}}}', '{"sm90": {"stats": {}}}', None]


REFUSED = """
import os, sys
import torch
from grpokit.kernels.table import choose
for path in sys.argv[1:]:
    os.environ["GRPOKIT_KERNEL_TABLE"] = path
    try:
        print("read", choose("stats", torch.device("cpu")))
    except ValueError as problem:
        print(problem)
"""


def test_a_table_that_is_none(tmp_path):
    paths = [tmp_path / f"{i}.json" for i in range(len(TABLES))]
    for path, text in zip(paths, TABLES, strict=True):
        if text is not None:
            path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", REFUSED, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for path, text, said in zip(paths, TABLES, done.stdout.splitlines(), strict=True):
        assert said.startswith(f"GRPOKIT_KERNEL_TABLE={path}: "), text
        assert said.endswith("expected a file that `grpokit tune -o FILE` wrote"), text
