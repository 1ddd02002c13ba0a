"""The doctor beside a run: each fault is told once, on the console, in a file, to trackers; resuming as well."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console as Terminal

from grpokit.doctor import Watch
from grpokit.record import Metrics
from grpokit.trainer import Trainer
from grpokit.trainer.config import Snapshots
from grpokit.trainer.config_tables import Logging
from grpokit.trainer.console import Plain, Silent
from grpokit.trainer.live import Live
from grpokit.trainer.sinks import SINKS, Sinks
from tests.trainer.conftest import config, task  # noqa: F401

from . import dumps


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Heard(Silent):
    def __init__(self):
        self.told = []

    def alert(self, text, severity):
        self.told.append((text, severity))


def test_each_fault_is_told_once_and_a_watch_that_begins_later_knows_it():
    rows = dumps.steps_of(np.random.default_rng(0), learning_rate=lambda t: 0.0)
    watch = Watch({}, rows[:20])
    assert [finding.code for finding in watch.new()] == ["D019"]
    for row in rows[20:]:
        watch.add(row)
        assert watch.new() == []
    assert Watch({}, rows, watch.told).new() == []
    assert Watch({}, rows[:4]).new() == []


def test_a_watch_sees_what_a_reader_sees_of_the_last_steps():
    rng = np.random.default_rng(0)
    rows = [
        row | ({"now_and_then": None if at % 2 else 1.0} if at > 5 else {})
        for at, row in enumerate(dumps.steps_of(rng))
    ]
    watch = Watch({}, rows, steps=20)
    found, wanted = watch.metrics(), Metrics.of(rows[-20:])
    assert found.steps_N.tolist() == wanted.steps_N.tolist()
    assert found.columns.keys() == wanted.columns.keys()
    for name, values in wanted.columns.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.fixture
def ill(config):  # noqa: F811
    """Its learning rate is none."""
    logging = Logging(doctor=5, samples=0)
    return dataclasses.replace(config, steps=12, learning_rate=1e-12, logging=logging, snapshots=Snapshots(every=4))


def test_a_run_says_what_is_wrong(ill, task, tmp_path):  # noqa: F811
    heard = Heard()
    Trainer(ill, task=task, directory=tmp_path / "run", console=heard).train()
    (alert,) = lines(tmp_path / "run" / "alerts.jsonl")
    assert (alert["step"], alert["code"], alert["steps"]) == (5, "D019", [1, 5])
    ((text, severity),) = heard.told
    assert text.startswith(
        "step    5  D019 The learning rate is 0. The learning rate is 1e-12 in the last 5 of 5 steps."
    )
    assert severity == "error"
    off = dataclasses.replace(ill, logging=Logging(doctor=0, samples=0))
    Trainer(off, task=task, directory=tmp_path / "off", console=Silent()).train()
    assert not (tmp_path / "off" / "alerts.jsonl").exists()


class Stopped(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("at", [4, 5, 6, 9])
def test_a_resumed_run_has_the_alerts_of_one_that_was_not_stopped(ill, task, tmp_path, at):  # noqa: F811
    class Stops(Trainer):
        def _tell(self, metrics):
            super()._tell(metrics)
            if metrics["step"] == at:
                raise Stopped

    Trainer(ill, task=task, directory=tmp_path / "alone", console=Silent()).train()
    with pytest.raises(Stopped):
        Stops(ill, task=task, directory=tmp_path / "run", console=Silent()).train()
    Trainer(ill, task=task, directory=tmp_path / "run", console=Silent(), resume=True).train()
    assert (tmp_path / "run" / "alerts.jsonl").read_bytes() == (tmp_path / "alone" / "alerts.jsonl").read_bytes()


def test_consoles(monkeypatch):
    plain = io.StringIO()
    Plain(plain).alert("D019 [red]so", "error")
    assert plain.getvalue() == "D019 [red]so\n"
    coloured = io.StringIO()
    live = Live(coloured)
    live.bar.live.console = Terminal(file=coloured, force_terminal=True, color_system="standard", width=80)
    live.alert("D019 [red]so", "error")
    live.alert("D006 so", "warning")
    assert coloured.getvalue() == "\x1b[31mD019 [red]so\x1b[0m\n\x1b[33mD006 so\x1b[0m\n"


def test_trackers_that_show_alerts_get_them(monkeypatch, tmp_path):
    class Plainly:
        def __init__(self, *_):
            pass

        def log(self, metrics, step):
            pass

        def close(self):
            pass

    class Showing(Plainly):
        got = []

        def alert(self, title, text, severity):
            self.got.append((title, text, severity))

    for name, sink in (("json", Plainly), ("math", Showing)):
        monkeypatch.setitem(SINKS, name, sink)
    with Sinks(("json", "math"), print) as several:
        several.open(tmp_path, None, -1)
        several.alert("D019 so", "and so", "error")
    assert Showing.got == [("D019 so", "and so", "error")]
