"""The tests of the tests: faults planted in our own code are caught within 200 examples, and named."""

import pytest

from grpokit.testing import engine

from .mutants import MUTANTS, planted

NAMED = [mutant for mutant in MUTANTS if mutant[0]]


def caught(mutant):
    mistake, function, kind, recipe, settings = planted(mutant)
    tried = engine.trial(function, recipe, kind, settings=settings, name="faulty:function")
    for law in engine.chosen(kind):
        verdict = engine.run(law, tried, examples=200, derandomize=True)
        if verdict.status == "fail":
            return mistake, verdict
    return mistake, None


# Each is tried in the slow run, and some of every kind always.
ALWAYS = {next(i for i, mutant in enumerate(MUTANTS) if mutant[0] == name) for name, *_ in NAMED[::8]}
NUMBERS = [i if i in ALWAYS else pytest.param(i, marks=pytest.mark.slow) for i in range(len(MUTANTS))]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda i: f"{i}-{MUTANTS[i][0] or 'unnamed'}")
def test_a_planted_fault_is_caught_and_named(number):
    mistake, verdict = caught(MUTANTS[number])
    assert verdict is not None, "a mutant that survives is a defect of the kit"
    assert verdict.guess == mistake
    assert verdict.snippet.startswith("from faulty import function")
    assert bool(verdict.guess_says) == bool(mistake)


def test_there_are_enough_of_them():
    kinds = [planted(mutant)[2] for mutant in MUTANTS]
    assert len(MUTANTS) >= 40
    assert len(NAMED) >= 30
    assert set(kinds) == {"loss", "advantage", "filter", "kl", "aggregate"}
