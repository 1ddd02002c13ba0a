"""`grpokit doctor`: exit codes, what is printed where, and records of which not all can be read."""

import json

import numpy as np
import pytest

import grpokit as gk
from grpokit.cli import main
from grpokit.doctor import RULES

from . import dumps


@pytest.fixture
def ill(tmp_path):
    dumps.run(tmp_path / "ill", dumps.steps_of(np.random.default_rng(0), learning_rate=lambda t: 0.0))
    return tmp_path / "ill"


@pytest.fixture
def well(tmp_path):
    dumps.run(tmp_path / "well", dumps.steps_of(np.random.default_rng(0)))
    return tmp_path / "well"


def test_exit_codes(ill, well, tmp_path, capsys):
    assert main(["doctor", str(well)]) == 0
    assert capsys.readouterr().out == f"{well}: {len(RULES)} rules looked at 60 steps; nothing found\n"
    assert main(["doctor", str(ill)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("D019 error: The learning rate is 0 (steps 1 to 60)\n  seen:  The learning rate is 0 in the")
    assert "  cause: " in out
    assert "  fix:   " in out
    assert out.endswith("1 error: grpokit doctor --explain CODE says more\n")
    assert main(["doctor", str(ill), "--exit-zero"]) == 0
    assert main(["doctor", str(ill), "--ignore", "D019"]) == 0
    assert main(["doctor", str(ill), "--select", "no-learning-rate,d001"]) == 1
    assert main(["doctor", str(tmp_path / "none")]) == 2
    assert main(["doctor"]) == 2
    assert main(["doctor", "--list", str(ill)]) == 2


def test_json(ill, capsys):
    assert main(["doctor", str(ill), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema_version"] == 1
    assert printed["looked_at"] == {"steps": 60}
    (finding,) = printed["findings"]
    assert finding["code"] == "D019"
    assert finding["steps"] == [1, 60]
    assert main(["doctor", "--list", "--json"]) == 0
    assert [rule["code"] for rule in json.loads(capsys.readouterr().out)["rules"]] == list(RULES)


def test_rules_are_explained(capsys):
    for code, rule in RULES.items():
        assert main(["doctor", "--explain", code]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{code} {rule.name} ({rule.severity}): {rule.title}\n")
        assert out.count("Bound: ") == len(rule.bounds)
    assert main(["doctor", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RULES)
    assert main(["doctor", "--explain", "D0019"]) == 2
    assert "names no rule 'D0019'. Did you mean 'D019'?" in capsys.readouterr().err
    assert "unknown_rule" in gk.errors.KINDS


def test_what_cannot_be_read_is_said_and_the_rest_is_looked_at(ill, capsys):
    with (ill / "metrics.jsonl").open("a") as file:
        file.write('rubbish\n{"step": 61, "schema_version": 9}\n{"step": 62, "rew')
    (ill / "config.toml").write_text("= no")
    assert main(["doctor", str(ill)]) == 1
    out, err = capsys.readouterr()
    assert "D019" in out
    lines = err.splitlines()
    assert all(line.startswith("not read: ") for line in lines)
    for words in ("cut off", "left out: 1", "version 9", "config.toml: it is no configuration"):
        assert any(words in line for line in lines)


@pytest.mark.parametrize("made", ["empty", "rubbish", "directory"])
def test_where_nothing_can_be_read(made, tmp_path, capsys):
    place = tmp_path / "run"
    place.mkdir()
    if made != "directory":
        (place / "metrics.jsonl").write_text("" if made == "empty" else "rubbish\n")
    assert main(["doctor", str(place)]) == 2
    assert "can be read" in capsys.readouterr().err


def test_files_are_read_as_filter_reads_them(tmp_path, capsys):
    rows = [{"uid": at // 4, "score": 0.0, "said": "x"} for at in range(80)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["doctor", str(tmp_path / "mine.jsonl"), "--column", "group_id=uid", "--column", "reward=score"]
    assert main([*words, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["looked_at"] == {"rows": 80, "groups": 20}
    assert [finding["code"] for finding in printed["findings"]] == ["D001"]
    assert main(["doctor", str(tmp_path / "mine.jsonl"), "--column", "group_id"]) == 2
