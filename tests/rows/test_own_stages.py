"""Stages written in Python see what the built-in ones see, and are held to the same rules."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk

from .strategies import rollouts
from .test_reference import SELECT, recipe, run


@dataclass(frozen=True)
class Mean(gk.Advantage):
    """MeanBaseline once more."""

    def __call__(self, rewards_N, groups, columns):
        mean = np.array([rewards_N[groups.codes == g].mean() for g in range(len(groups))])
        return rewards_N - mean[groups.codes] if len(rewards_N) else rewards_N


@dataclass(frozen=True)
class Rate(gk.Select):
    """PassRate once more."""

    low: float
    high: float

    def __call__(self, outcomes_N, groups, columns):
        found = [outcomes_N[(groups.codes == g) & ~np.isnan(outcomes_N)] for g in range(len(groups))]
        fine = [len(x) > 0 and self.low - 1e-9 <= x.mean() <= self.high + 1e-9 for x in found]
        return np.array(fine, bool)[groups.codes]


@given(rollouts(), SELECT, st.booleans())
def test_an_estimator_of_ones_own_is_the_built_in_one(data, stages, weigh):
    stages = [*stages, gk.DuplicateWeight("text")] if weigh else stages
    expected, found = (run(data, estimator, stages).advantages for estimator in (gk.MeanBaseline(), Mean()))
    scale = max((abs(r) for r in data.reward if r is not None), default=0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14 * len(data.key) * scale)


@given(rollouts(), SELECT, st.sampled_from([(0.0, 0.5), (0.3, 0.7), (0.5, 1.0)]))
def test_a_selection_of_ones_own_is_the_built_in_one(data, stages, band):
    if data.gate is None:
        data.gate = [float(i % 2) for i in range(len(data.key))]
    expected, found = (
        run(data, gk.MeanBaseline(), [*stages, stage]).keep for stage in (gk.PassRate(*band), Rate(*band))
    )
    np.testing.assert_array_equal(found, expected)


def stage(reads, call, kind=gk.Select, **fields):
    reads = reads if isinstance(reads, str) else frozenset(reads)
    made = type("Mine", (kind,), {"reads": reads, "__call__": call, "__annotations__": {}, **fields})
    return dataclass(frozen=True)(made)()


TABLE = {
    "group_id": [1, 1, 1],
    "reward": [1.0, None, 0.0],
    "text": ["a", "b", "c"],
    "token_ids": [[1], [2, 3], []],
    "judge": np.array([0.5, 0.25, 1.0]),
    "version_min": [1, 2, 3],
}


def test_what_is_shown():
    shown = {}

    def look(self, outcomes_N, groups, columns):
        shown.update(columns, outcomes=outcomes_N)
        return np.ones(len(outcomes_N), bool)

    mine = stage({"text", "token_ids", "judge", "version"}, look)
    arrow = {**TABLE, "token_ids": pa.array(TABLE["token_ids"]), "text": pa.array(TABLE["text"])}
    for table in (TABLE, arrow, pa.table(TABLE)):
        gk.process(table, recipe(gk.MeanBaseline(), [mine]), version=5)
        np.testing.assert_array_equal(shown["outcomes"], [1.0, np.nan, 0.0])
        assert shown["text"].tolist() == ["a", "b", "c"]
        assert [list(ids) for ids in shown["token_ids"]] == [[1], [2, 3], []]
        assert shown["version"] == 5
        with pytest.raises(ValueError, match="read-only"):
            shown["judge"][0] = 9.0
    turns = {name: [column[i] for i in (0, 0, 1, 2)] for name, column in TABLE.items()}
    turns |= {"rollout_id": [0, 0, 1, 2], "turn_idx": [1, 0, 0, 0], "text": ["y", "x", "b", "c"]}
    gk.process(turns, recipe(gk.MeanBaseline(), [mine]), version=5)
    assert shown["text"].tolist() == ["xy", "b", "c"]
    assert [list(ids) for ids in shown["token_ids"]] == [[1, 1], [2, 3], []]


class Bare(gk.Select):
    """No __call__."""


@pytest.mark.parametrize(
    ("mine", "kind", "words"),
    [
        (stage((), lambda self, o, g, c: c["judge"] > 0), "undeclared_column", ["Mine touches 'judge'", "`reads`"]),
        (stage((), lambda self, r, g, c: [[1], [2, 3]], gk.Advantage), "stage_result", ["lists of different lengths"]),
        (stage((), lambda self, o, g, c: o > 0, stats="kep"), "bad_parameter", ["stats='kep'"]),
        (stage("judge", lambda self, o, g, c: o > 0), "bad_parameter", ["reads='judge'", "a set of names"]),
    ],
)
def test_what_is_refused(mine, kind, words):
    change = {"advantage": mine} if isinstance(mine, gk.Advantage) else {"select": (mine,)}
    with pytest.raises(gk.GrpokitError) as caught:
        gk.process(TABLE, recipe(gk.MeanBaseline()).replace(**change))
    assert caught.value.kind == kind
    for word in words:
        assert word in str(caught.value)


def test_a_stage_without_a_call_says_what_it_needs():
    with pytest.raises(NotImplementedError, match=r"Bare needs a method __call__; grpokit.Select says which"):
        gk.process(TABLE, recipe(gk.MeanBaseline(), [dataclass(frozen=True)(Bare)()]))


@dataclass(frozen=True)
class Half(gk.Shape):
    """Halves the reward."""

    reads: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, rewards_N, groups, columns):
        assert np.isnan(rewards_N[1])
        return -rewards_N / 2


def test_a_shaping_sees_no_reward_where_there_is_none():
    out = gk.process(TABLE, recipe(gk.MeanBaseline(), (), [Half()]))
    np.testing.assert_array_equal(out.shaped_rewards, [0.5, np.nan, 0.0])
