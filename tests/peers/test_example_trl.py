"""examples/trl_loss.py on the real trainer: its steps are those of TRL's own GSPO, which has all logits at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "trl_loss.py"


def steps(place, source):
    """What two steps logged: losses of micro-batches, and each step's gradient norm."""
    (place / "script.py").write_text(source, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".peers"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "script.py"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    norms = [float(x) for x in re.findall(r"'grad_norm': '([\d.e+-]+)'", done.stdout)]
    return re.findall(r"loss ([+-][\d.]+) by eager", done.stdout), norms


def test_its_steps_are_those_of_trl(tmp_path):
    source = EXAMPLE.read_text(encoding="utf-8")
    losses, ours = steps(tmp_path, source)
    assert len(losses) == 4
    assert any(float(loss) for loss in losses)
    # On-policy the clip is open: TRL's own, with the mean over sequences of the mean over their tokens.
    own = 'loss_type="grpo", importance_sampling_level="sequence", '
    trls = source.replace("trainer = Trainer(", "trainer = GRPOTrainer(").replace('"trl_loss", ', f'"trl_loss", {own}')
    none, theirs = steps(tmp_path, trls)
    assert none == []
    assert len(theirs) == 2
    assert ours == pytest.approx(theirs, rel=1e-3)
