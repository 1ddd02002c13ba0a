"""Ctrl-C as it happens: a real process, a real SIGINT, in the warm start and in reinforcement learning."""

import json
import signal
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpokit.trainer.config import TrainConfig
from grpokit.trainer.policy import Policy

from .conftest import generated

# A process that is started in the background inherits that SIGINT is ignored, hence the first line.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from grpokit.cli import main
sys.exit(main(sys.argv[1:]))
"""
SMALL = [
    "tiny.hidden_size=16", "tiny.intermediate_size=32", "tiny.layers=1", "tiny.heads=2", "evaluation.prompts=8",
    "evaluation.every=1", "warm_start.batch_size=8", "prompts_per_step=4", "max_rounds=1", "recipe=rloo",
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "moment", "steps"),
    [
        (["warm_start.steps=1000000"], "weights, in", None),
        (["warm_start.steps=1", "steps=1000000"], "step    2", 2),
    ],
)
def test_ctrl_c_leaves_a_usable_run(tmp_path, settings, moment, steps):
    command = [sys.executable, "-c", PROGRAM, "train", "--json", "--runs", str(tmp_path), "--name", "run"]
    command += [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = ""
        for line in process.stderr:
            said += line
            if moment in line:
                process.send_signal(signal.SIGINT)
                break
        out, rest = process.communicate()
    said += rest
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.endswith("grpokit: interrupted\n")

    summary = json.loads(out)
    assert summary["status"] == "interrupted"
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert TrainConfig.from_file(run / "config.toml").recipe == "rloo"
    if steps is None:
        assert not (run / "metrics.jsonl").exists()
        assert summary["before"] is None
    else:
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in metrics] == list(range(len(metrics)))
        # The line of a step is written after it was said, and steps go on until the signal is seen.
        assert len(metrics) >= steps
        assert summary["steps"] >= len(metrics) - 1
    policy = Policy(
        AutoModelForCausalLM.from_pretrained(run / "checkpoint"), AutoTokenizer.from_pretrained(run / "checkpoint")
    )
    generated(policy, ["cab>"], 5)


def test_sigterm_ends_the_step_with_a_snapshot(tmp_path):
    """What a cluster sends before it takes a machine away: nothing that was done is done again."""
    command = [sys.executable, "-c", PROGRAM, "train", "--json", "--runs", str(tmp_path), "--name", "run"]
    settings = ["warm_start.steps=1", "steps=1000000", "snapshots.every=1000", "evaluation.every=0"]
    command += [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if "step    0" in line:
                break
        while not (tmp_path / "run" / "rollouts.jsonl").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        out, rest = process.communicate()
    assert process.returncode == 143, rest
    assert "the run ends after this step, with a snapshot; once more, and it ends at once" in rest
    summary = json.loads(out)
    assert (summary["status"], summary["steps"] >= 1) == ("interrupted", True)
    (snapshot,) = [
        path.name for path in (tmp_path / "run" / "snapshots").glob("step-*") if path.name != "step-00000000"
    ]
    assert snapshot == f"step-{summary['steps']:08}"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == summary["steps"]
