"""Sampling ahead: how old what is learned from is, and that nothing is lost or repeated, whoever is killed."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import time

import pytest

import grpokit as gk
from grpokit.trainer import Trainer
from grpokit.trainer.ahead import Ahead, sendable
from grpokit.trainer.config import LRControl, Snapshots

from .conftest import Echo
from .test_resume import STEERED, begin, command, stopped, told


def books(run):
    return json.loads((run / "summary.json").read_text())["ledger"]


def same(one, other):
    """Everything that two runs leave behind, but for their ledgers, which count what was lost on the way."""
    found = []
    for run in (one, other):
        *files, summary = told(run)
        summary.pop("ledger")
        found.append((files, summary))
    assert found[0] == found[1]


def balanced(counts, steps):
    """Every step was consumed once; the others that were admitted were lost with their process."""
    assert counts["consumed"] == steps
    assert counts["admitted"] == counts["consumed"] + counts["aborted"]
    assert counts["running"] == counts["ready"] == counts["evicted"] == 0


class Level0(Trainer):
    def make_source(self):
        return Ahead(self.config, sendable(self.task, [], 0), [], self.run, clock=self.clock, note=self.console.note)


@pytest.fixture
def config(config):
    return dataclasses.replace(config, steps=6, recipe="grpo")


@pytest.fixture
def train(task, silent, tmp_path):
    def run(config, name, kind=Trainer, **how):
        return kind(config, **{"task": task, "directory": tmp_path / name, "console": silent} | how).train()

    return run


SLOW = pytest.mark.slow
CHANGES = [{}, pytest.param(STEERED, marks=SLOW), pytest.param({"recipe": "luffy", "oversampling": 2.0}, marks=SLOW)]


@pytest.mark.parametrize("changes", CHANGES, ids=["", "steered", "luffy"])
def test_level_0_is_the_synchronous_run(config, train, tmp_path, changes):
    config = dataclasses.replace(config, **changes)
    train(config, "now")
    train(config, "process", Level0)
    same(tmp_path / "now", tmp_path / "process")
    assert books(tmp_path / "now") is None
    balanced(books(tmp_path / "process"), 6)


@pytest.mark.parametrize("level", [1, pytest.param(3, marks=SLOW)])
def test_no_level_exceeds_its_bound(config, train, tmp_path, level):
    config = dataclasses.replace(config, async_level=level)
    train(config, "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()[1:]]
    assert [row["staleness/steps"] for row in rows] == [min(level, step) for step in range(6)]
    # Versions ride on the rows: an update is two of them a step, fewer where a step kept less than two groups.
    updates = [0]
    for row in rows:
        updates.append(updates[-1] + row["updates"])
    for step, row in enumerate(rows):
        if row["updates"]:
            assert row["staleness/max"] == updates[step + 1] - 1 - updates[max(0, step - level)]
    logged = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert {(row["step"], row["version_min"]) for row in logged} == {
        (step, updates[max(0, step - 1 - level)]) for step in range(1, 7)
    }
    balanced(books(tmp_path / "run"), 6)
    assert not (tmp_path / "run" / "handover").exists()
    train(config, "again")
    same(tmp_path / "run", tmp_path / "again")


def test_what_the_corrections_see_ahead(config, train, tmp_path):
    """Rows of older weights have ratios that move, and the run is not stopped for them."""
    config = dataclasses.replace(config, async_level=2, learning_rate=3e-3, lr_control=LRControl(base=1.0))
    train(config, "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()[1:]]
    assert rows[0]["sampling/sampling_logp_difference/max"] < 1e-4
    assert all(row["sampling/sampling_logp_difference/mean"] > 1e-3 for row in rows[2:])
    # Beside the weights that sampled them there is none.
    assert all(row["sampling/ahead_logp_difference/max"] < 1e-4 for row in rows)


def test_a_rollout_process_that_is_killed(config, silent, train, tmp_path):
    config = dataclasses.replace(config, async_level=2)
    train(config, "alone")
    notes = []

    class Kills(Trainer):
        def _step(self, step):
            if step in {1, 4}:
                self.source.child.process.send_signal(signal.SIGKILL)
            super()._step(step)

    class Listening(type(silent)):
        def note(self, text):
            notes.append(text)

    train(config, "run", Kills, console=Listening())
    same(tmp_path / "run", tmp_path / "alone")
    counts = books(tmp_path / "run")
    balanced(counts, 6)
    assert counts["aborted"] > 0
    assert sum("was ended by SIGKILL: another one samples" in text for text in notes) == 2


def test_one_that_always_dies_is_an_error(config, train, tmp_path, monkeypatch):
    real = Ahead._start

    def dying(self):
        real(self)
        self.child.process.send_signal(signal.SIGKILL)

    monkeypatch.setattr(Ahead, "_start", dying)
    config = dataclasses.replace(config, async_level=1, snapshots=Snapshots(every=0))
    with pytest.raises(gk.StateError, match="the rollout process was ended by SIGKILL, the 4th time") as caught:
        train(config, "run")
    assert caught.value.kind == "rollout_process_died"


@pytest.mark.parametrize(
    "moment", ["_snapshot", *(pytest.param(x, marks=SLOW) for x in ("_step", "_evaluate", "_close"))]
)
def test_a_run_ahead_goes_on_where_it_stopped(config, train, tmp_path, monkeypatch, moment):
    config = dataclasses.replace(config, async_level=2, snapshots=Snapshots(every=2), **STEERED)
    train(config, "alone")
    with stopped(monkeypatch, moment):
        train(config, "run")
    train(config, "run", resume=True)
    same(tmp_path / "run", tmp_path / "alone")
    counts = books(tmp_path / "run")
    # Two steps were under way at the snapshot.
    assert counts["consumed"] == 6
    balanced(counts, 6)


@pytest.mark.slow
def test_either_process_is_killed_at_any_moment(tmp_path):
    """The trainer by SIGKILL, and now and then its rollout process; the run ends as one that was left alone."""
    rng = random.Random(0)
    level = ["--set", "async_level=2"]
    start = time.perf_counter()
    subprocess.run([*begin(tmp_path / "alone"), *level], check=True, capture_output=True)
    seconds, place = time.perf_counter() - start, tmp_path / "run"
    for _ in range(8):
        words = command("--resume", place) if (place / "config.toml").exists() else [*begin(place), *level]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            for whose in ("its child", "it"):
                try:
                    process.wait(rng.uniform(0.3, 0.6) * seconds)
                except subprocess.TimeoutExpired:
                    for pid in _children(process.pid) if whose == "its child" else [process.pid]:
                        os.kill(pid, signal.SIGKILL)
        if process.returncode == 0:
            break
    if process.returncode != 0:
        done = subprocess.run(command("--resume", place), capture_output=True, text=True)
        assert done.returncode == 0 or "is at its end" in done.stderr, done.stderr
    same(place, tmp_path / "alone")
    balanced(books(place), 40)


def _children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def test_what_another_process_cannot_import(config, train, tmp_path):
    class Local(Echo):
        pass

    ahead = dataclasses.replace(config, async_level=1)
    for how in ({"task": Local()}, {"reward": lambda completions: [0.0] * len(completions)}):
        with pytest.raises(gk.InputError, match="cannot be given to the rollout process of async_level=1") as caught:
            train(ahead, "run", **how)
        assert caught.value.kind == "not_sendable"
    assert not (tmp_path / "run").exists()
    train(dataclasses.replace(ahead, steps=1), "run")


@dataclasses.dataclass(frozen=True)
class Homesick(Echo):
    """Has prompts in one process alone."""

    pid: int = 0

    def prompts(self, rng, n):
        if os.getpid() != self.pid:
            raise ZeroDivisionError("no prompts today")
        return super().prompts(rng, n)


def test_what_fails_in_the_process_is_raised_here(config, train, tmp_path):
    with pytest.raises(gk.StateError, match=r"the rollout process failed, as shown above: ZeroDivisionError") as caught:
        train(dataclasses.replace(config, async_level=1), "failed", task=Homesick(os.getpid()))
    assert caught.value.kind == "rollout_failed"
    (tmp_path / "wrong.py").write_text("def wrong(completions):\n    return 'a text'\n")
    config = dataclasses.replace(config, async_level=1).with_settings(
        [f'rewards.functions=["{tmp_path}/wrong.py:wrong"]']
    )
    with pytest.raises(gk.InputError, match="the reward function 'wrong'"):
        train(config, "run")
