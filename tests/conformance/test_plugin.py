"""The pytest plugin and the strategies of an installed grpokit."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grpokit as gk
from grpokit.testing import strategies as gst
from grpokit.testing.cases import Batch, Rollouts, TokenValues

HERE = "tests.conformance.implementations"
SUITE = ("--pyargs", "grpokit.testing.conformance", "-p", "no:cacheprovider", "-q")


def run(*arguments, environment=None, ini=""):
    command = [sys.executable, "-m", "pytest", *SUITE, *arguments]
    with_ini = [] if not ini else ["-c", ini]
    root = pathlib.Path(__file__).parents[2]
    found = subprocess.run(
        [*command, *with_ini], capture_output=True, text=True, cwd=root, env=os.environ | (environment or {})
    )
    return found.returncode, found.stdout


def test_a_sound_function_passes():
    code, out = run("--impl", f"{HERE}:sound", "--recipe", "dapo", "--set", "max_len=100", "--max-examples", "5")
    assert code == 0, out
    assert "13 passed, 2 skipped" in out


def test_a_wrong_one_fails_and_teaches(tmp_path):
    file = tmp_path / "conformance.json"
    arguments = ["--impl", f"{HERE}:wrong", "--recipe", "dapo", "--set", "max_len=100", "--derandomize"]
    code, out = run(*arguments, "--conformance-json", str(file), "-k", "gradient and not entropy")
    assert code == 1, out
    assert "looks like ratio_not_differentiated" in out
    assert out.count("LOSS = Σ_t [−min(r A, clip(r, 1 − low, 1 + high) A)] / (Σ_i |o_i|)") >= 1
    told = json.loads(file.read_text())
    assert (told["badge"], told["conforms"]) == ("dapo: 0 of 1 laws", False)
    assert list(tmp_path.iterdir()) == [file]


def test_expected_failures(tmp_path):
    lines = tmp_path / "xfails.txt"
    lines.write_text("gradient  # a known departure\nvalue\nnonsense\n\n# a comment\n")
    arguments = ["--impl", f"{HERE}:wrong", "--recipe", "dapo", "--set", "max_len=100", "--max-examples", "20"]
    code, out = run(*arguments, "--xfails", str(lines), "-k", "gradient and not entropy or value", "-rx")
    assert code == 0, out
    assert "1 passed" in out
    assert "1 xfailed" in out
    assert "a known departure" in out
    assert "value: it does not fail (pass)" in out
    assert "nonsense: there is no such law of a loss" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--impl", f"{HERE}:nothing", "--recipe", "dapo"], "has no nothing"),
        (["--recipe", "dapo"], "nothing says which impl is meant: give --impl, GRPOKIT_IMPL or the ini key"),
        (["--impl", f"{HERE}:sound"], "nothing says which recipe is meant"),
        (["--impl", f"{HERE}:sound", "--recipe", "gspo", "--xfails", "nowhere"], "--xfails nowhere cannot be read"),
    ],
)
def test_what_cannot_be_resolved_is_one_line_and_exit_code_4(arguments, says):
    code, out = run(*arguments)
    assert code == 4
    assert out.count("grpokit: ") == 1
    assert says in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-examples", "many"], "--max-examples many: expected a number, 1 or more"),
        (["--limit", "-1"], "--limit -1: expected a number"),
        (["--set", "max_len"], "expected key=value"),
        (["--conformance-json", "nowhere/at/all.json"], "there is no such directory"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_code_4(arguments, says):
    code, out = run("--impl", f"{HERE}:sound", "--recipe", "gspo", *arguments)
    assert code == 4, out
    assert says in out


def test_without_a_terminal_the_file_is_written(tmp_path):
    file = tmp_path / "conformance.json"
    arguments = ["--impl", f"{HERE}:sound", "--recipe", "dapo", "--set", "max_len=9"]
    arguments += ["--max-examples", "3", "--conformance-json", str(file)]
    command = [sys.executable, "-m", "pytest", *SUITE[:-1], *arguments, "-k", "all_masked", "-p", "no:terminal"]
    root = pathlib.Path(__file__).parents[2]
    found = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert found.returncode == 0, found.stderr
    assert json.loads(file.read_text())["badge"] == "dapo: 1 of 1 laws"


def test_options_of_others_are_left_alone(tmp_path):
    """Names as short as --kind are ours only where the suite is asked for."""
    (tmp_path / "theirs.py").write_text(
        "def pytest_addoption(parser):\n    for name in ('kind', 'set', 'map', 'limit', 'impl'):\n"
        "        parser.addoption('--' + name, default='theirs')\n"
    )
    (tmp_path / "test_it.py").write_text("def test(request): assert request.config.getoption('kind') == 'theirs'\n")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    alone = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "theirs", "test_it.py"]
    found = subprocess.run(alone, capture_output=True, text=True, cwd=tmp_path, env=os.environ | path)
    assert found.returncode == 0, found.stdout + found.stderr
    said = path | {"GRPOKIT_IMPL": f"{HERE}:sound", "GRPOKIT_MAX_EXAMPLES": "3", "GRPOKIT_SET": "max_len=9"}
    code, out = run("-p", "theirs", "--recipe", "dapo", "-k", "all_masked", environment=said)
    assert code == 0, out


def test_environment_variables_and_ini_keys(tmp_path):
    ini = tmp_path / "pytest.ini"
    ini.write_text(f"[pytest]\ngrpokit_impl = {HERE}:sound\ngrpokit_set =\n    max_len=100\n")
    variables = {"GRPOKIT_RECIPE": "dapo", "GRPOKIT_MAX_EXAMPLES": "3"}
    code, out = run("-k", "all_masked", environment=variables, ini=str(ini))
    assert code == 0, out
    assert "1 passed" in out


def test_the_plugin_imports_nothing_heavy(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test(): assert not {'grpokit', 'numpy', 'torch', 'hypothesis.strategies'} & set(sys.modules)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        "test_it.py",
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "order",
    [
        "import hypothesis.strategies as st; from grpokit.testing.cases import Batch",
        "from grpokit.testing.cases import Batch; import hypothesis.strategies as st",
    ],
)
def test_from_type_in_either_order(order):
    code = f"{order}; print(type(st.from_type(Batch)), end='')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Strategy" in found.stdout, found.stderr
    lazy = "import sys, hypothesis; assert not {'grpokit', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", lazy], capture_output=True, text=True).stderr == ""


@settings(max_examples=40)
@given(st.from_type(Batch), st.from_type(Rollouts), st.from_type(TokenValues), st.from_type(gk.StalenessLedger))
def test_from_type(batch, rollouts, values, ledger):
    assert batch.mask.shape == batch["logps"].shape == batch["advantages"].shape
    for name in ("logps", "old_logps", "rollout_logps", "ref_logps"):
        assert (batch[name] <= 0).all()
    assert len(rollouts.rewards) == len(rollouts.group_ids) == len(rollouts.lengths)
    assert values.values.shape == values.mask.shape
    assert sum(ledger.counts.values()) >= 0


def seen(strategy, found, examples=600):
    """The words that hold of anything that a strategy draws."""
    words = set()

    @settings(max_examples=examples, database=None, derandomize=True)
    @given(strategy)
    def collect(x):
        words.update(word for word, there in found(x).items() if there)

    collect()
    return words


def test_the_edge_cases_are_drawn():
    def of_masks(mask):
        rows = mask.any(1)
        edges = np.abs(np.diff(mask.astype(int), axis=1)).sum(1)
        return {
            "all masked": not mask.any(),
            "a row masked": rows.any() and not rows.all(),
            "one token": mask.sum() == 1,
            "full": mask.all(),
            "hole": (edges > 1).any(),
            "left": mask.shape[1] > 1 and (~mask[:, 0] & mask[:, -1]).any(),
        }

    assert seen(gst.ragged_masks(), of_masks) == {"all masked", "a row masked", "one token", "full", "hole", "left"}

    def of_pairs(pair):
        d = pair[0] - pair[1]
        r = np.exp(d)
        places = {"1": r == 1, "on 1.2": r == 1.2, "on 0.8": r == 0.8, "far": np.abs(d) > 10}
        places |= {"inside": (r < 1.2) & (r > 1.19), "outside": (r > 1.2) & (r < 1.21)}
        return {name: there.any() for name, there in places.items()}

    assert seen(gst.logprob_pairs(), of_pairs) == {"1", "on 1.2", "on 0.8", "far", "inside", "outside"}

    def of_rollouts(case):
        ids, groups = case.group_ids, [case.rewards[case.group_ids == g] for g in set(case.group_ids.tolist())]
        return {
            "none": not len(ids),
            "singleton": any(len(R) == 1 for R in groups),
            "interleaved": (np.diff(ids) != 0).sum() > max(len(groups) - 1, 0),
            "constant": any(len(R) > 2 and np.ptp(R) == 0 and R.mean() != R[0] for R in groups),
            "tie": any(len(R) > 2 and 1 < len(set(R.tolist())) < len(R) for R in groups),
            "bf16": any(0 < abs(x) < 0.4 and x == torch.tensor(x).bfloat16().double() for x in case.rewards.tolist()),
            "offset": any(0 < np.ptp(R) < 2 and abs(R[0]) > 1e5 for R in groups),
        }

    assert seen(gst.rollouts(), of_rollouts) == {
        "none",
        "singleton",
        "interleaved",
        "constant",
        "offset",
        "tie",
        "bf16",
    }

    def of_spoilt(case):
        R = case.rewards
        return {"nan": np.isnan(R).any(), "inf": (np.inf == R).any(), "-inf": (-np.inf == R).any()}

    assert seen(gst.rollouts(finite=False), of_spoilt) == {"nan", "inf", "-inf"}
    assert seen(gst.rollouts(), of_spoilt) == set()

    assert {"consumed", "evicted", "ready", "running"} <= seen(gst.ledgers(), lambda ledger: ledger.counts)
