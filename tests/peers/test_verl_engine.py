"""verl's own FSDP engine, two ranks on a CPU: its micro-batches, its counts, and the gradient of the whole step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import grpokit as gk

pytest.importorskip("verl")

from .verl_step import EXAMPLES_OF, Step

ROOT = Path(__file__).parents[2]
NAMES = ("dapo", "gspo", "rloo", "dr_grpo")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By the recipe's name: loss and gradients of a step that torchrun made."""
    directory, out = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("out")
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), str(ROOT / ".peers")])
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--module", "tests.peers.verl_ranks", str(directory), str(out), *NAMES]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: torch.load(out / f"{name}.pt") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_an_engines_step_is_the_recipes(name, found):
    step = Step(empty=True)
    step.expected(gk.recipe(name, **EXAMPLES_OF[name]))
    assert found[name]["ranks"] == 2
    size = max(float(p.grad.norm()) for p in step.model.parameters())
    for key, p in step.model.named_parameters():
        assert float((found[name]["grads"][key] - p.grad).norm()) <= 1e-5 * size, key
