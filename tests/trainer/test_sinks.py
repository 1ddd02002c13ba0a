"""TensorBoard, trackio and wandb: for real where they are installed, and a tracker that fails."""

import dataclasses
import json
import math
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import grpokit as gk
from grpokit.trainer import Trainer, sinks
from grpokit.trainer.config_tables import Logging
from grpokit.trainer.console import Silent
from grpokit.trainer.sinks import Sinks

BESIDE = Path(__file__).parents[2] / ".sinks"
THERE = (BESIDE / ".installed").exists()
SMALL = [
    "tiny.hidden_size=16", "tiny.intermediate_size=32", "tiny.layers=1", "tiny.heads=2", "evaluation.prompts=4",
    "warm_start.steps=2", "warm_start.batch_size=8", "prompts_per_step=2", "recipe=rloo", "evaluation.samples=2",
    "snapshots.every=2", "logging.project=letters", 'logging.sinks=["tensorboard", "trackio", "wandb"]',
]  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Notes(Silent):
    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)


class Kept:
    """A tracker that keeps what it is given."""

    got, closed = [], 0

    def __init__(self, directory, config, step):
        print("talk")
        type(self).got = [(directory.name, step)]

    def log(self, metrics, step):
        self.got.append((step, metrics))

    def close(self):
        type(self).closed += 1


class Failing(Kept):
    def log(self, metrics, step):
        if step == 2:
            raise ConnectionError("the tracker is gone")
        super().log(metrics, step)


class Dead(Kept):
    def __init__(self, directory, config, step):
        raise OSError("no port")


@pytest.fixture
def trackers(monkeypatch):
    """Under names of modules that are there."""
    for name, sink in (("json", Kept), ("math", Failing), ("struct", Dead)):
        monkeypatch.setitem(sinks.SINKS, name, sink)
    Kept.closed = Failing.closed = 0
    return "json", "math", "struct"


def test_a_tracker_that_fails_is_named_once_and_costs_nothing(config, task, tmp_path, trackers, capsys):
    notes = Notes()
    config = dataclasses.replace(config, logging=Logging(sinks=trackers, samples=0))
    summary = Trainer(config, task=task, directory=tmp_path / "run", console=notes).train()
    assert summary.status == "finished"
    said = [text for text in notes.told if "sink" in text]
    assert said == [
        "the sink 'struct' failed and gets no more, the run goes on: OSError('no port')",
        "the sink 'math' failed and gets no more, the run goes on: ConnectionError('the tracker is gone')",
    ]
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert Kept.got[0] == ("run", -1)
    assert [step for step, _ in Kept.got[1:]] == [0, 1, 2, 3]
    for (step, metrics), row in zip(Kept.got[1:], rows, strict=True):
        assert metrics == {name: value for name, value in row.items() if name != "step" and value is not None}
        assert all(math.isfinite(value) for value in metrics.values())
        assert step == row["step"]
    assert [step for step, _ in Failing.got[1:]] == [0, 1]
    assert (Kept.closed, Failing.closed) == (1, 0)
    out, err = capsys.readouterr()
    assert (out, "talk" in err) == ("", True)


def test_trackers_are_closed_where_a_run_fails(config, task, silent, tmp_path, trackers):
    config = dataclasses.replace(config, logging=Logging(sinks=("json",)), learning_rate=1e37)
    with pytest.raises(gk.InputError, match="diverged"):
        Trainer(config, task=task, directory=tmp_path / "run", console=silent).train()
    assert Kept.closed == 1


def test_what_is_not_finite_is_left_out(trackers, tmp_path):
    with Sinks(("json",), print) as several:
        several.open(tmp_path / "a", None, 4)
        several.metrics({"step": 5, "a": float("nan"), "b": float("inf"), "c": 1})
    assert Kept.got == [("a", 4), (5, {"c": 1.0})]


def test_names():
    with pytest.raises(gk.InputError, match="sinks='mlflow'; expected some of tensorboard, trackio, wandb"):
        Logging(sinks=("mlflow",))


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_without_it(config, task, silent, tmp_path, name):
    if find_spec(name):
        pytest.skip(f"{name} is installed")
    config = dataclasses.replace(config, logging=Logging(sinks=(name,)))
    with pytest.raises(gk.InputError, match=rf"needs {name}, .*'grpokit\[{name}\]'") as caught:
        Trainer(config, task=task, directory=tmp_path / "run", console=silent)
    assert caught.value.kind == "missing_extra"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not THERE, reason="the trackers are not installed beside the project: make .sinks/.installed")
def test_what_the_trackers_have(tmp_path):
    """Two steps, then three more of a resumed run; each tracker is read back with what it is read by."""
    inside = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BESIDE), os.environ.get("PYTHONPATH", "")])}
    inside |= {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    inside.pop("WANDB_MODE", None)
    run = tmp_path / "runs" / "mine"
    words = [
        word
        for setting in [*SMALL, "learning_rate=1e-12", "logging.doctor=5", "steps=2"]
        for word in ("--set", setting)
    ]
    for more in (["--runs", run.parent, "--name", run.name, *words], ["--resume", run, "--set", "steps=5"]):
        command = [sys.executable, "-m", "grpokit", "train", "--json", *map(str, more)]
        done = subprocess.run(command, env=inside, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "sink" not in done.stderr
        json.loads(done.stdout)  # one object, whatever the trackers print
    rows = {row["step"]: {k: v for k, v in row.items() if v is not None and k != "step"} for row in lines(
        run / "metrics.jsonl"
    )}  # fmt: skip
    assert sorted(rows) == [0, 1, 2, 3, 4, 5]
    command = [sys.executable, __file__, run, tmp_path / "trackio"]
    done = subprocess.run(command, env=inside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    alerts = [[f"{alert['code']} {alert['title']}", alert["severity"]] for alert in lines(run / "alerts.jsonl")]
    assert ["D019 The learning rate is 0", "error"] in alerts
    assert sorted(read.pop("alerts")) == sorted(alerts)
    for name, told in read.items():
        found = {int(step): numbers for step, numbers in told.items()}
        assert sorted(found) == sorted(rows), name
        for step, numbers in rows.items():
            assert found[step] == pytest.approx(numbers, rel=1e-6), (name, step)  # TensorBoard's are fp32
    assert len({path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")}) == 1


def read_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            assert name not in found.setdefault(event.step, {}), "a step is there twice"
            found[event.step][name] = event.value
    return found


def read_trackio():
    from trackio.sqlite_storage import SQLiteStorage

    (record,) = SQLiteStorage.get_run_records("letters")
    found = {}
    for row in SQLiteStorage.get_logs("letters", record["name"]):
        found.setdefault(row.pop("step"), {}).update({k: v for k, v in row.items() if k != "timestamp"})
    return found


def read_alerts():
    from trackio.sqlite_storage import SQLiteStorage

    severities = {"error": "error", "warn": "warning"}
    return [[alert["title"], severities[alert["level"]]] for alert in SQLiteStorage.get_alerts("letters")]


def read_wandb(run):
    """The records of the files that `wandb sync` would send: protobuf messages in the log format of LevelDB."""
    from wandb.proto import wandb_internal_pb2 as messages

    found = {}
    for path in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        data, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            length, kind = struct.unpack_from("<HB", data, at + 4)
            record += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or its last part
                message = messages.Record.FromString(record)
                record = b""
                if message.WhichOneof("record_type") == "history":
                    row = {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in message.history.item
                    }
                    step = row.pop("_step", message.history.step.num)
                    found.setdefault(step, {}).update({k: v for k, v in row.items() if not k.startswith("_")})
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    told = {"tensorboard": read_tensorboard(place), "trackio": read_trackio(), "wandb": read_wandb(place)}
    json.dump(told | {"alerts": read_alerts()}, sys.stdout)
