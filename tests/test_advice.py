"""Advice on recipes: all that it says can be typed, each row is reached, README and docs print the same table."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk
from grpokit._recipe import check_recipe
from grpokit.advice import RECIPES, SETTINGS, Situation, advise, signal, table
from grpokit.cli import main

ROOT = Path(__file__).parent.parent
EACH = {
    "demonstrations": {"demonstrations": True},
    "one-answer": {"group": 1},
    "very-stale": {"stale": 64, "moe": True},
    "mixture": {"moe": True, "stale": 8},
    "asynchronous": {"stale": 2},
    "preferences": {"task": "preferences"},
    "preferences-stale": {"task": "preferences", "stale": 1},
    "scarce": {"scarce": True},
    "default": {},
    "no-signal": {"pass_rate": 0.05},
    "hopeless": {"pass_rate": 0.0},
    "long": {"length": "long"},
    "stale": {"stale": 1},
    "sampler": {"sampler": "other"},
    "sampler-mixture": {"sampler": "other", "moe": True},
    "agents": {"task": "agents"},
    "pass-at-k": {"aim": "pass@k"},
    "several-rewards": {"rewards": 2},
    "collapse": {"collapse": True},
    "rare": {"rare": True},
}

situations = st.builds(
    Situation,
    stale=st.sampled_from([0, 1, 2, 8, 16, 64]),
    group=st.integers(1, 64),
    pass_rate=st.none() | st.floats(0, 1),
    rewards=st.integers(1, 3),
)


def test_each_row_is_reached():
    assert list(EACH) == [one.key for one in (*RECIPES, *SETTINGS)]
    for key, situation in EACH.items():
        found = [one.key for one in advise(Situation(**situation))]
        assert found[0] in {one.key for one in RECIPES}
        assert key in found


@given(situations)
def test_all_that_it_says_can_be_typed(situation):
    from grpokit.trainer import TrainConfig

    found = advise(situation)
    assert [one.applies(situation) for one in found] == [True] * len(found)
    for one in found:
        assert "{" not in one.advice + one.code + "".join(one.settings)
        TrainConfig().with_settings([*one.settings]).resolve()
        made = eval(one.code, {"gk": gk}) if one.code else None
        if isinstance(made, gk.Recipe):
            check_recipe(made)
    settings = [setting for setting in found[0].settings if setting.startswith("recipe=")]
    assert eval(found[0].code, {"gk": gk}).name == settings[0].removeprefix("recipe=")


@given(st.floats(0.01, 0.99), st.integers(1, 256))
def test_groups_are_as_large_as_half_of_them_need(p, group):
    found = advise(Situation(pass_rate=p, group=group))
    told = [setting for one in found if one.key == "no-signal" for setting in one.settings]
    assert bool(told) == (signal(p, group) < 0.5)
    if told:
        size = int(told[0].partition("=")[2])
        assert signal(p, size) >= 0.5 > signal(p, size // 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"task": "math"}, "Did you mean 'maths'?"),
        ({"aim": "speed"}, "one of pass@1, pass@k"),
        ({"stale": -1}, "at least 0"),
        ({"group": 0}, "at least 1"),
        ({"group": 2.5}, "a whole number"),
        ({"rewards": True}, "a whole number"),
        ({"pass_rate": 1.2}, "between 0 and 1"),
        ({"pass_rate": float("nan")}, "between 0 and 1"),
    ],
)
def test_what_is_no_situation(given, told):
    with pytest.raises(gk.InputError, match=re.escape(told)):
        Situation(**given)


def test_the_command(capsys):
    assert main(["recipes", "--advise", "--length", "long", "--moe", "--stale", "8"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("task maths, length long, moe, stale 8, group 8")
    for words in ("GSPO", "--set recipe=gspo", "gk.MaxLag(8)", "why: ", "source: arXiv:2507.18071, §5.3 (reported)"):
        assert words in page
    # Any part of a situation asks for advice.
    assert main(["recipes", "--collapse", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["situation"]["collapse"] is True
    assert [one["key"] for one in told["advice"]] == ["default", "collapse"]
    assert main(["recipes", "dapo", "--advise"]) == 2
    assert "no recipe and no --set with it" in capsys.readouterr().err
    assert main(["recipes", "--advise", "--stale", "-1"]) == 2
    assert "at least 0" in capsys.readouterr().err


def test_on_a_terminal_it_asks():
    parent, child = pty.openpty()
    program = [sys.executable, "-m", "grpokit", "recipes", "--advise"]
    with subprocess.Popen(program, stdin=child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        os.write(parent, b"math\nagents\n\nyes\nmany\n3\n" + b"\n" * 9)
        out, talk = run.communicate(timeout=60)
    os.close(child)
    os.close(parent)
    assert run.returncode == 0, talk
    assert out.startswith("task agents, length short, moe, stale 3, group 8")
    assert "Did you mean 'maths'?" in talk
    assert "task (maths, code, agents, preferences) [maths]:" in talk


def test_readme_and_docs_print_it():
    assert table(RECIPES) in (ROOT / "README.md").read_text()
    assert table() in (ROOT / "docs" / "algorithms.md").read_text()
