"""Recipes as values: the table, parameters, replace, round trips, explain, and stages of other packages."""

import inspect
import json
import tomllib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import grpokit as gk
from grpokit.stages import EXAMPLES as EXAMPLE_OF
from grpokit.stages import REGISTRY, fields_of, lookup, of_papers

EXAMPLES = {name: EXAMPLE_OF[name] for name in of_papers("recipe")}
TABLE = """
ppo_clip grpo dr_grpo nord dapo rloo reinforce_pp reinforce_pp_baseline remax opo gpg gspo gspo_token gmpo cispo sapo
maspo vespo oapl lad luspo luffy
"""


def test_the_table():
    assert set(TABLE.split()) <= set(EXAMPLES)
    for name in EXAMPLES:
        assert "arXiv:" in gk.recipe_names()[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_recipe_is_what_its_paper_discloses(name):
    """What is not disclosed is required, and whoever lacks a number of the paper's is experimental and says so."""
    required = [p.name for p in inspect.signature(REGISTRY["recipe"][name]).parameters.values() if p.default is p.empty]
    assert required == list(EXAMPLES[name])
    recipe = gk.recipe(name, **EXAMPLES[name])
    assert recipe.name == name
    assert recipe.leaves_out
    assert recipe.parent in {"", *EXAMPLES}
    assert bool(recipe.experimental) == (name in ("nord", "cispo", "lad", "icepop", "dppo"))
    assert all(library and what for library, what in recipe.elsewhere)
    assert {"TRL 1.16", "verl 0.9.1"} <= {library for library, _ in recipe.elsewhere}
    if required:
        with pytest.raises(gk.InputError, match="needs.*" + required[0]):
            gk.recipe(name)
    # Given otherwise, every parameter changes the recipe.
    for parameter in inspect.signature(REGISTRY["recipe"][name]).parameters:
        other = {"f": "tv", "low": 0.11, "high": 0.33, "dual": 2.5, "cache": 7, "eps": 0.5}
        other |= {
            "baseline": "minimum_variance",
            "alpha": 0.4,
            "cov_low": 2.0,
            "kind": "kl",
            "population": "tokens",
        } | dict.fromkeys(("share", "tau_p", "q", "rho"), 0.3)
        other = other.get(parameter, 7)
        assert gk.recipe(name, **EXAMPLES[name] | {parameter: other}) != recipe, parameter


def test_recipes_compose():
    """`gspo_token` with another advantage is as good as a named one."""
    mine = gk.recipe("gspo_token").replace(advantage=gk.MeanBaseline(), aggregate=gk.TokenMean())
    assert gk.Recipe.from_dict(mine.to_dict()) == mine
    out = gk.process({"group_id": [1, 1], "reward": [1.0, 0.0]}, mine)
    assert out.advantages.tolist() == [0.5, -0.5]
    batch = gk.TokenBatch(torch.zeros(2, 1, dtype=torch.int64), advantages=out.advantages)
    logps = torch.zeros(2, 1, requires_grad=True)
    gk.loss.from_logps(logps, batch, mine).loss.backward()
    assert logps.grad.tolist() == [[-0.25], [0.25]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_round_trips(name):
    recipe = gk.recipe(name, **EXAMPLES[name])
    assert hash(recipe) == hash(gk.recipe(name, **EXAMPLES[name]))
    assert gk.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert gk.Recipe.from_dict(tomllib.loads(_toml(recipe.to_dict()))) == recipe


def _toml(data, prefix=""):
    """Plain TOML: scalars first, then tables and arrays of tables."""
    inline = lambda v: (
        "{" + ", ".join(f"{json.dumps(k)} = {inline(x)}" for k, x in v.items()) + "}"
        if isinstance(v, dict)
        else "[" + ", ".join(map(inline, v)) + "]"
        if isinstance(v, list)
        else json.dumps(v, ensure_ascii=False)
    )
    return "\n".join(f"{name} = {inline(value)}" for name, value in data.items())


@pytest.mark.parametrize("name", EXAMPLES)
def test_explain_states_every_number_and_its_source(name):
    recipe = gk.recipe(name, **EXAMPLES[name])
    text = " ".join(recipe.explain().split())
    prose = (recipe.leaves_out, recipe.experimental, *(what for _, what in recipe.elsewhere))
    for part in (recipe.name, *recipe.papers, *prose, recipe.objective.gradient, "LOSS = "):
        assert part in text
    for label in ("shape", "select", "advantage", "correct", "objective", "aggregate"):
        stages = getattr(recipe, label)
        for stage in stages if isinstance(stages, tuple) else (stages,):
            assert type(stage).__name__ in text
            assert stage.equation, stage
            for parameter in fields_of(stage):
                assert f"{parameter} = {getattr(stage, parameter)!r}" in text
            # Facts on estimates hold where the objective is linear in them.
            linear = label != "advantage" or not {"homogeneous", "on_policy"} & set(recipe.objective.breaks)
            for fact in stage.facts if linear else ():
                assert fact in text
    known = {f"{label}.{p}" for label, p in _parameters(recipe)}
    assert set(dict(recipe.sources)) <= known, "a source for a number that the recipe does not have"
    sourced = {key for key in known if not key.startswith(("extra", "weigh", "over"))} - set(dict(recipe.sources))
    assert sourced <= {"objective.dual", "advantage.beta", "advantage.weights"}, "a number without a source"


def _parameters(recipe):
    for label in ("shape", "select", "advantage", "correct", "objective", "aggregate"):
        stages = getattr(recipe, label)
        for stage in stages if isinstance(stages, tuple) else (stages,):
            yield from ((label, parameter) for parameter in fields_of(stage))
    for term in recipe.extra:
        yield "extra", "scale"
        yield from (("extra", parameter) for parameter in fields_of(term.objective))
        yield from (("weigh", parameter) for weight in term.weigh for parameter in fields_of(weight))
        yield from (("over", parameter) for parameter in fields_of(term.aggregate))


def test_no_bound_survives_the_round_trip():
    recipe = gk.recipe("rloo").replace(objective=gk.Clip(low=None, high=0.3, dual=4.0))
    data = json.loads(json.dumps(recipe.to_dict()))
    assert data["objective"] == {"stage": "Clip", "low": "none", "high": 0.3, "dual": 4.0}
    assert gk.Recipe.from_dict(data) == recipe
    assert "at most −dual" in recipe.explain()
    assert "dual ·" not in gk.recipe("grpo").explain()


def test_dapo_cache_is_a_fifth():
    assert gk.recipe("dapo", max_len=20_480).shape == (gk.Overlong(20_480, 4_096),)
    assert gk.recipe("dapo", max_len=24).shape == (gk.Overlong(24, 4),)
    assert gk.recipe("dapo", max_len=24, cache=0).shape == (gk.Overlong(24, 0),)


def test_replace_forgets_the_sources_of_what_it_replaces():
    recipe = gk.recipe("dapo", max_len=9).replace(objective=gk.Clip(0.1, 0.3), select=())
    assert recipe.objective == gk.Clip(0.1, 0.3)
    assert not any(key.startswith(("objective", "select")) for key, _ in recipe.sources)
    assert "low = 0.1            given" in recipe.explain()


def test_grpo_without_kl_has_one_term():
    assert gk.recipe("grpo", beta=0.0).extra == ()
    assert gk.recipe("grpo").reads("ref_logps")
    assert not gk.recipe("grpo", beta=0.0).reads("ref_logps")


@gk.register("advantage")
@dataclass(frozen=True)
class GroupMedian(gk.Advantage):
    """A = R − median over the group."""

    reads: ClassVar[frozenset[str]] = frozenset({"difficulty"})

    def __call__(self, rewards_N, groups, columns):
        assert columns["difficulty"].shape == rewards_N.shape == groups.codes.shape
        medians = np.array([np.median(rewards_N[groups.codes == g]) for g in range(len(groups))])
        return rewards_N - medians[groups.codes]


@gk.register("select")
@dataclass(frozen=True)
class Easy(gk.Select):
    """Keeps what is easy."""

    below: float = 0.5
    reads: ClassVar[frozenset[str]] = frozenset({"difficulty"})

    def __call__(self, outcomes_N, groups, columns):
        return columns["difficulty"] < self.below


@gk.register("shape")
@dataclass(frozen=True)
class Bonus(gk.Shape):
    """Adds the difficulty."""

    reads: ClassVar[frozenset[str]] = frozenset({"difficulty"})

    def __call__(self, rewards_N, groups, columns):
        return columns["difficulty"]


ROWS = {"group_id": list("aaabb"), "reward": [0.0, 1.0, 3.0, 1.0, 0.0], "difficulty": [0.1, 0.2, 0.9, 0.3, 0.4]}


def test_stages_of_another_package():
    mine = gk.recipe("grpo", beta=0.0).replace(
        name="mine", advantage=GroupMedian(), select=(Easy(), gk.HasSignal()), shape=(Bonus(),)
    )
    assert gk.Recipe.from_dict(mine.to_dict()) == mine
    assert (mine.parent, mine.papers, mine.elsewhere, mine.leaves_out) == ("grpo", (), (), "")
    for rows in (ROWS, [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]):
        out = gk.process(rows, mine)
        assert out.keep.tolist() == [True, True, False, True, True]
        assert out.counts == {"in": 5, "kept": 4, "other:Easy": 1}
        np.testing.assert_allclose(out.shaped_rewards, [0.1, 1.2, 3.9, 1.3, 0.4])
        np.testing.assert_allclose(out.advantages, [-0.55, 0.55, 0.0, 0.45, -0.45])
    with pytest.raises(gk.InputError, match=r"GroupMedian reads column 'difficulty', which is not there"):
        gk.process({"group_id": [1], "reward": [0.0]}, mine.replace(select=(), shape=()))


def test_registered_names_are_the_classes():
    for kind, stages in REGISTRY.items():
        for name, stage in stages.items():
            assert lookup(kind, name) is stage
