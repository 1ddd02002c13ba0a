"""Findings of docs/scoreboard.md by their own commands, and its wrappers by their names."""

import importlib
import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benches" / "results" / "scoreboard.json").read_text())["entries"]
FINDINGS = [
    ("trl:dapo", "far"),
    ("trl:scale_rewards_group", "constant_fp32"),
    ("verl:gspo", "bound"),
    ("verl:grpo", "constant_fp32"),
    ("verl:k3", "value"),
    ("verl:filter_groups_acc", "constant"),
    ("liger:triton_luspo", "padding"),
    ("liger:chunked_luspo", "masked_nan"),
]


@pytest.mark.parametrize(("name", "law"), FINDINGS)
def test_a_command_shows_what_the_page_says(name, law):
    written = RESULTS[name]["laws"][law]
    assert written["verdict"] in ("departs", "choice")
    (place, *_), command = shlex.split(written["command"]), shlex.split(written["command"])[2:]
    assert place == "PYTHONPATH=.peers:benches"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["benches", *filter(None, sys.path)])}
    ran = subprocess.run(
        [sys.executable, "-m", "grpokit", *command, "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 1, ran.stderr
    (verdict,) = json.loads(ran.stdout)["verdicts"]
    # On a bound the last bit of the processor's exp decides which of two calls is the smallest.
    fields = ("problem", "guess") if law == "bound" else ("problem", "expected", "got", "guess", "snippet")
    for field in fields:
        assert verdict[field] == written.get(field, "")


def test_the_wrappers_are_there(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    entries = importlib.import_module("scoreboard.entries")
    for name in RESULTS:
        module, _, attribute = name.partition(":")
        found = importlib.import_module(f"scoreboard.{module}")
        for part in attribute.split("."):
            found = getattr(found, part)
        assert callable(found)
    assert set(RESULTS) == {entry.name for entry in entries.ENTRIES}
