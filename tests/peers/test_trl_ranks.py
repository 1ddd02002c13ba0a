"""Two ranks under torchrun give the gradient of one process, whatever rows each of them has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from . import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By the number of ranks, the directory with what each case gave: 8 rows at once, and 2 ranks x 2 x 2."""
    directory = tiny.save(tmp_path_factory.mktemp("tiny"))
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), str(ROOT / ".peers")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module", "tests.peers.trl_ranks"]
    out = {}
    for ranks, module, sizes in [(1, ["tests.peers.trl_ranks"], ["8", "1"]), (2, launch, ["2", "2"])]:
        out[ranks] = tmp_path_factory.mktemp("ranks")
        command = [sys.executable, "-W", "ignore", "-m", *module, directory, str(out[ranks]), *sizes]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("name", ["dapo", "gspo", "dapo_one_rank", "top_one_rank"])
def test_two_ranks_are_one_step(name, found):
    """'one_rank': all that the recipe keeps is on the first one; 'top' weighs by the whole step's entropies."""
    one, two = (torch.load(found[ranks] / f"{name}.pt") for ranks in (1, 2))
    assert (one["ranks"], two["ranks"]) == (1, 2)
    size = max(float(g.norm()) for g in one["grads"].values())
    assert size > 0
    for key, g in one["grads"].items():
        assert float((two["grads"][key] - g).norm()) <= 2e-5 * size, key
    for metric in ("entropy", "sampling/kept_share", "loss", "ratio/mean", "clip_ratio/region_mean"):
        assert two["log"][metric] == pytest.approx(one["log"][metric], rel=1e-4, abs=2e-4), metric
