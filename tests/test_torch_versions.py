"""The loss on the oldest torch that is supported: the derivatives of clamp and its like changed in between."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import grpokit

OLDEST = "2.11"
HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_oldest_torch_has_the_same_loss(tmp_path):
    """What test_bounds.py asserts at the bounds is exact, so passing on both is being the same."""
    assert not torch.__version__.startswith(OLDEST)
    uv = shutil.which("uv", path=f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv"], check=True)
    packages = [f"torch=={OLDEST}.*", "numpy", "pytest", "hypothesis"]
    subprocess.run([uv, "pip", "install", "-q", "--python", python, *packages], check=True)
    tests = tmp_path / "tests"
    shutil.copytree(HERE / "objective", tests / "objective", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "losses.py",
        "heads.py",
        "test_hidden_states.py",
        "test_linear_head.py",
        "bits.py",
        "test_tokens.py",
        "test_batch.py",
        "test_mismatch.py",
        "test_loss.py",
        "test_metrics.py",
    ):
        shutil.copy(HERE / name, tests)
    command = [python, "-W", "error", "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", "-o", "markers=slow"]
    out = subprocess.run(
        [*command, tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(grpokit.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stdout[-4000:] + out.stderr[-4000:]
    version = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=True
    )
    assert version.stdout.startswith(OLDEST)
    # The same bits up to the library's own exp, expm1, log and sigmoid: a few ulp of what is summed, the same zeros.
    both = []
    for interpreter, place in ((python, tmp_path), (sys.executable, HERE.parent)):
        file = tmp_path / f"{len(both)}.pt"
        environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{Path(grpokit.__file__).parent.parent}"}
        subprocess.run([interpreter, "-m", "tests.bits", file], cwd=place, env=environment, check=True)
        both.append(torch.load(file))
    assert both[0].keys() == both[1].keys()
    for key, old in both[0].items():
        new, ulp = both[1][key], torch.finfo(both[1][key].dtype).eps
        assert torch.equal(old == 0, new == 0), key
        size = old.abs() + old.abs().mean()
        assert ((old - new).abs() <= 8 * ulp * size).all(), (key, ((old - new).abs() / size / ulp).max())
