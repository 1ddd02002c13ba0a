"""What is right passes: our code and what careful people write down; with 10,000 cases each in the slow run."""

import pytest

import grpokit as gk
from grpokit.settings import read_stage
from grpokit.stages import EXAMPLES, of_papers
from grpokit.testing import engine, ours

from . import textbook

STAGES = {
    "advantage": ["GroupNorm()", "GroupNorm(0, 1e-6)", "MeanBaseline()", "LeaveOneOut()", "LengthBaseline()"]
    + ["SoftValue()", "GreedyBaseline()", "RescaledMean()", "GlobalNorm(1, 1e-8)", 'GlobalNorm(0, 1e-8, "group")']
    + ["PKPO(2)", "Given()"],
    "filter": ["HasSignal()", "PassRate(0.2, 0.8)", "MinGroupSize(2)"],
    "kl": ['KL("k1")', 'KL("k2")', 'KL("k3")', 'KL("abs")', 'KL("k3", corrected=True)'],
    "aggregate": ["TokenMean()", "SequenceMean()", 'SequenceMean(over="rows")', "SequenceSum()", "Constant(7.0)"],
}
MADE = {"advantage": ours.advantage_of, "filter": ours.filter_of, "kl": ours.kl_of, "aggregate": ours.aggregate_of}
OURS = [("loss", name) for name in of_papers("recipe")]
OURS += [(kind, stage) for kind, stages in STAGES.items() for stage in stages]
BOOK = [("book", function.__name__) for function in textbook.HELD_AGAINST]


def made(kind, name):
    """A sound implementation, ready to be tried."""
    if kind == "book":
        function = getattr(textbook, name)
        held, recipe, settings = textbook.HELD_AGAINST[function]
        return engine.trial(function, recipe, held, settings=settings, name=f"textbook:{name}")
    settings = dict(EXAMPLES.get(name, {}))
    if kind == "loss":
        return engine.trial(ours.loss_of(gk.recipe(name, **settings)), name, kind, settings=settings, name="ours:loss")
    stage = read_stage({"kl": "objective", "filter": "select"}.get(kind, kind), name)
    return engine.trial(MADE[kind](stage), name, kind, name=f"ours:{kind}")


def departures(kind, name, examples, total=None):
    """The verdicts that are no pass, over all laws that can be looked at."""
    tried = made(kind, name)
    laws = [law for law in engine.chosen(tried.target.kind) if not law.skip(tried)]
    examples = examples if total is None else -(-total // len(laws))
    verdicts = [engine.run(law, tried, examples=examples) for law in laws]
    assert total is None or sum(v.examples for v in verdicts) >= total or any(v.status == "fail" for v in verdicts)
    return [f"{v.law}: {v.problem} {v.snippet}" for v in verdicts if v.status != "pass"]


@pytest.mark.parametrize(("kind", "name"), OURS + BOOK)
def test_a_sound_implementation_passes(kind, name):
    assert departures(kind, name, 12) == []


def distinct():
    """One recipe for each combination of formulas that there is; the others differ from it by numbers alone."""
    found = {}
    for name in of_papers("recipe"):
        recipe = gk.recipe(name, **EXAMPLES.get(name, {}))
        stages = [stage for t in recipe.terms for stage in (t.objective, *t.weigh, t.aggregate)]
        found.setdefault((recipe.ratio, *map(type, stages)), ("loss", name))
    return [*found.values(), *OURS[len(of_papers("recipe")) :], *BOOK]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as where the kit runs: a warning is no answer to a reward that is no number
@pytest.mark.parametrize(("kind", "name"), distinct())
def test_a_sound_implementation_passes_ten_thousand_cases(kind, name):
    assert departures(kind, name, 0, 10_000) == []


def test_what_is_looked_at():
    """Laws are left out for a reason only: each kind's sound implementations meet each of its laws."""
    met = {kind: set() for kind in engine.LAWS}
    for kind, name in OURS + BOOK:
        tried = made(kind, name)
        met[tried.target.kind] |= {law.name for law in engine.chosen(tried.target.kind) if not law.skip(tried)}
    unmet = {kind: [law.name for law in laws if law.name not in met[kind]] for kind, laws in engine.LAWS.items()}
    assert unmet == {kind: [] for kind in engine.LAWS}
