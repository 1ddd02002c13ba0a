"""A run that was killed goes on to the bits of one that was not: by SIGKILL, and wherever it stops."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import grpokit as gk
from grpokit.trainer import Trainer, snapshot
from grpokit.trainer.config import EntropyControl, KLControl, LRControl, Snapshots, TaskConfig

SMALL = [
    "tiny.hidden_size=16", "tiny.intermediate_size=32", "tiny.layers=1", "tiny.heads=2", "evaluation.prompts=8",
    "evaluation.every=5", "warm_start.steps=20", "warm_start.batch_size=8", "prompts_per_step=4", "max_rounds=2",
    "recipe=grpo", "steps=40", "snapshots.every=3",
]  # fmt: skip
# What a clock says, and where the run is.
CLOCKS = {"step_time", "tokens_per_second", "warm_start_seconds", "total_seconds", "directory"}


def clock(name):
    return name in CLOCKS or name.startswith("time/")


def told(run):
    """All that a run leaves behind, but for what a clock says."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if not clock(k)} for line in lines]
    summary = json.loads((run / "summary.json").read_text())
    summary = {k: v for k, v in summary.items() if not clock(k)}
    weights = (run / "checkpoint" / "model.safetensors").read_bytes()
    completions = {path.name: path.read_bytes() for path in (run / "completions").iterdir()}
    assert list(completions), "there are none, and nothing is compared"
    return metrics, (run / "rollouts.jsonl").read_bytes(), completions, weights, summary


def command(*words):
    return [sys.executable, "-m", "grpokit", "train", "--json", *map(str, words)]


def begin(place):
    return command("--runs", place.parent, "--name", place.name, *(w for setting in SMALL for w in ("--set", setting)))


def killed(place, kills, rng):
    """Runs, kills and resumes; the last time it is left alone. How far each had come."""
    start = time.perf_counter()
    alone = place.with_name("alone")
    subprocess.run(begin(alone), check=True, capture_output=True)
    seconds, steps = time.perf_counter() - start, []
    for number in range(kills):
        # Until its directory is there, the run has not begun, and there is nothing to resume.
        words = command("--resume", place) if (place / "config.toml").exists() else begin(place)
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                process.wait(rng.uniform(0.4 if number else 0.5, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        lines = (place / "metrics.jsonl").read_text() if (place / "metrics.jsonl").exists() else ""
        steps.append(lines.count("\n"))
        if process.returncode == 0:
            break
    if process.returncode != 0:
        done = subprocess.run(command("--resume", place), capture_output=True, text=True)
        # Killed on its way out, it had written everything.
        assert done.returncode == 0 or "is at its end" in done.stderr, done.stderr
    assert told(place) == told(alone)
    return steps


@pytest.mark.slow
def test_many_kills(tmp_path):
    """Ten, or as many as `make soak` says, five a run at most."""
    left, seed = int(os.environ.get("GRPOKIT_KILLS", "10")), 0
    while left > 0:
        (tmp_path / str(seed)).mkdir()
        left -= len(killed(tmp_path / str(seed) / "run", min(left, 5), random.Random(seed)))
        shutil.rmtree(tmp_path / str(seed))
        seed += 1


class Stopped(Exception):  # noqa: N818
    pass


@contextmanager
def stopped(monkeypatch, moment, at=4):
    """Inside, a run stops in that method of the trainer's, at that step; the end is told its status, and not a step."""
    real = getattr(Trainer, moment)

    def stop(self, step, **more):
        if step in {at, "finished"}:
            raise Stopped
        return real(self, step, **more)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, moment, stop)
        yield


STEERED = {
    "kl_control": KLControl(target=0.01, horizon=100.0),
    "entropy_control": EntropyControl(target=2.0),
    "lr_control": LRControl(base=0.5),
    "recipe": "grpo",
    "recipe_parameters": {"beta": 0.04},
}


@pytest.mark.parametrize(
    "changes", [{"recipe": "dapo"}, STEERED, {"recipe": "luffy"}], ids=["dapo", "steered", "luffy"]
)
@pytest.mark.parametrize("moment", ["_step", "_evaluate", "_snapshot", "_close"])
def test_wherever_it_stops(config, task, silent, tmp_path, monkeypatch, changes, moment):
    """Controllers, the reference policy and the optimizer go on as well."""
    config = dataclasses.replace(config, steps=6, snapshots=Snapshots(every=2), **changes)
    how = {"task": task, "console": silent}
    Trainer(config, directory=tmp_path / "alone", **how).train()
    with stopped(monkeypatch, moment):
        Trainer(config, directory=tmp_path / "run", **how).train()
    resumed = Trainer(config, directory=tmp_path / "run", resume=True, **how)
    resumed.train()
    assert told(tmp_path / "run") == told(tmp_path / "alone")
    assert len(list((tmp_path / "run" / "snapshots").iterdir())) == 2


def test_a_prompt_file_goes_on_where_it_was(config, silent, tmp_path, monkeypatch):
    """No prompt is lost or repeated within an epoch; another file is refused."""
    path = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"prompt": f"{i} is>", "answer": str(i)}) for i in range(40)]
    path.write_text("\n".join(rows), encoding="utf-8")
    file = TaskConfig(file=str(path))
    evaluation = dataclasses.replace(config.evaluation, prompts=2)
    snapshots = Snapshots(every=1)
    config = dataclasses.replace(
        config, steps=6, task=file, snapshots=snapshots, evaluation=evaluation, recipe="gpg", recipe_parameters={}
    )
    config = dataclasses.replace(config, warm_start=dataclasses.replace(config.warm_start, steps=0))
    Trainer(config, directory=tmp_path / "alone", console=silent).train()
    with stopped(monkeypatch, "_step", at=5):
        Trainer(config, directory=tmp_path / "run", console=silent).train()
    path.write_text("\n".join([*rows[:-1], rows[-1].replace("39 is", "93 is")]), encoding="utf-8")
    with pytest.raises(gk.StateError, match="the prompts' fingerprint was .* and is") as caught:
        Trainer(config, directory=tmp_path / "run", console=silent, resume=True).train()
    assert caught.value.kind == "resume_differs"
    path.write_text("\n".join(rows), encoding="utf-8")
    Trainer(config, directory=tmp_path / "run", console=silent, resume=True).train()
    assert told(tmp_path / "run") == told(tmp_path / "alone")


def test_a_disk_that_is_full_while_a_snapshot_is_written(config, task, silent, tmp_path, monkeypatch):
    config = dataclasses.replace(config, steps=4, snapshots=Snapshots(every=1))
    how = {"task": task, "console": silent}
    Trainer(config, directory=tmp_path / "alone", **how).train()
    real, calls = snapshot.torch.save, []

    def save(state, path):
        calls.append(path)
        real(state, path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(gk.FileError, match="No space left on device") as caught:
        patch.setattr(snapshot.torch, "save", save)
        Trainer(config, directory=tmp_path / "run", **how).train()
    assert caught.value.kind == "file_unwritable"
    assert sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir()) == [
        "step-00000000",
        "step-00000001",
    ]
    Trainer(config, directory=tmp_path / "run", resume=True, **how).train()
    assert told(tmp_path / "run") == told(tmp_path / "alone")


@pytest.fixture
def finished(config, task, silent, tmp_path):
    config = dataclasses.replace(config, snapshots=Snapshots(every=1))
    Trainer(config, task=task, console=silent, directory=tmp_path / "run").train()
    return config, tmp_path / "run", {"task": task, "console": silent, "directory": tmp_path / "run", "resume": True}


def test_nothing_is_left_to_do(finished):
    config, run, how = finished
    before = told(run)
    with pytest.raises(gk.StateError, match="all 3 steps are done. Say --set steps=") as caught:
        Trainer(config, **how)
    assert caught.value.kind == "no_steps_left"
    assert told(run) == before
    longer = Trainer(dataclasses.replace(config, steps=5), **how).train()
    assert (longer.status, longer.steps) == ("finished", 5)
    assert Trainer(dataclasses.replace(config, steps=6), **how).config.steps == 6


def test_a_run_without_snapshots_stays_as_it_is_where_it_is_refused(config, task, silent, tmp_path):
    how = {"task": task, "console": silent, "directory": tmp_path / "run"}
    config = dataclasses.replace(config, snapshots=Snapshots(every=0))
    Trainer(config, **how).train()
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    for steps, learning_rate in ((3, 3e-4), (3, 0.1), (5, 0.1)):
        other = dataclasses.replace(config, steps=steps, learning_rate=learning_rate)
        with pytest.raises(gk.StateError):
            Trainer(other, resume=True, **how)
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before


def test_another_run_is_refused_with_what_differs(finished):
    config, run, how = finished
    before = told(run)
    other = dataclasses.replace(config, learning_rate=0.1, tiny=dataclasses.replace(config.tiny, layers=3))
    with pytest.raises(
        gk.StateError, match="learning_rate was 0.0003 and is 0.1; tiny.layers was 2 and is 3"
    ) as caught:
        Trainer(other, **how)
    assert caught.value.kind == "resume_differs"
    with pytest.raises(gk.StateError, match="steps was 3 and is 2"):
        Trainer(dataclasses.replace(config, steps=2), **how)
    assert told(run) == before


@pytest.mark.parametrize("name", ["state.json", "state.pt", "weights.safetensors"])
def test_a_damaged_snapshot_is_named(finished, name):
    config, run, how = finished
    path = run / "snapshots" / "step-00000003" / name
    path.write_bytes(path.read_bytes()[:100])
    before = told(run), (run / "config.toml").read_bytes()
    with pytest.raises(gk.FileError, match="step-00000003 cannot be read") as caught:
        Trainer(dataclasses.replace(config, steps=5), **how).train()
    assert caught.value.kind == "file_unreadable"
    assert (told(run), (run / "config.toml").read_bytes()) == before


def test_what_is_no_run(config, tmp_path):
    with pytest.raises(gk.FileError) as caught:
        Trainer(config, directory=tmp_path, resume=True)
    assert caught.value.kind == "not_a_run"
    done = subprocess.run(command("--resume", tmp_path), capture_output=True, text=True)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
