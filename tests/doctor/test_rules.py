"""Every rule finds the fault that it is for, and nothing else does; healthy runs have no finding above `info`."""

from pathlib import Path

import numpy as np
import pytest

from grpokit.doctor import RULES, Finding, diagnose

from . import dumps
from .cases import FAULTS, HEALTHY, RECIPES, default_run, perturbed


def wrong(record):
    return {finding.code for finding in diagnose(record) if finding.severity != "info"}


def named(case):
    return f"{case.code} {case.name}".strip()


def check(case, place, warm=None):
    found = wrong(case.make(place, warm))
    assert ({case.code} if case.code else set()) <= found <= {case.code, *case.also}


@pytest.mark.parametrize("case", [c for c in (*FAULTS, *HEALTHY) if not c.trained], ids=named)
def test_dumps(case, tmp_path):
    check(case, tmp_path / "case")


@pytest.mark.parametrize("scored", [0, 0.2])
def test_groups_that_were_not_scored_have_no_equal_rewards(tmp_path, scored):
    rows = dumps.rows_of(np.random.default_rng(0), 200)
    rows = [row | {"reward": row["reward"] if at < scored * len(rows) else None} for at, row in enumerate(rows)]
    assert wrong(dumps.dump(tmp_path / "case", rows)) == {"D002"}


def test_nothing_is_said_of_ages_that_nobody_knows(tmp_path):
    record = dumps.dump(tmp_path / "case", dumps.unknown_versions(np.random.default_rng(0)))
    assert wrong(record) == set()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", [c for c in (*FAULTS, *RECIPES) if c.trained], ids=named)
def test_trained(case, tmp_path, warm):
    check(case, tmp_path / "case", warm)


# All ten seeds are in the table of docs/doctor.md; here as many as there is time for.
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_the_default_run_and_what_is_like_it(seed, tmp_path):
    record = default_run(tmp_path / "run", seed)
    assert wrong(record) == set()
    assert not (tmp_path / "run" / "alerts.jsonl").exists()
    for name, other in perturbed(record):
        assert wrong(other) == set(), name


def test_the_table_in_the_docs_is_fresh():
    """Its words and the number of faults; what was found in them is what the other tests say."""
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| **D")]
    for row, (code, rule) in zip(rows, RULES.items(), strict=True):
        faults = sum(case.code == code for case in FAULTS)
        assert row.startswith(f"| **{code}** {rule.title} | {rule.severity} | {faults} / {faults} | 0 / ")
        for name, (bound, reason) in rule.bounds.items():
            assert f"{name} {bound:g}: {reason}".replace("|", "\\|") in row


def test_every_rule_has_a_case_and_is_complete():
    assert list(RULES) == sorted({case.code for case in FAULTS})
    assert len({rule.name for rule in RULES.values()}) == len(RULES)
    for code, rule in RULES.items():
        assert code == rule.code
        assert all((rule.title, rule.cause, rule.fix, rule.source, rule.reads, rule.bounds))
        assert rule.severity in ("error", "warning")


@pytest.mark.parametrize("case", [case for case in FAULTS if not case.trained][:3], ids=named)
def test_a_finding_has_numbers_and_bounds(case, tmp_path):
    for finding in diagnose(case.make(tmp_path / "case", None)):
        assert isinstance(finding, Finding)
        bounds = {f"bound: {name}": value for name, value in RULES[finding.code].thresholds().items()}
        assert bounds.items() <= finding.evidence.items()
        assert any(character.isdigit() for character in finding.message)
        assert all(isinstance(value, int | float | str) for value in finding.evidence.values())
