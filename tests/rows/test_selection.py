"""Selections by hand and by law: PODS against brute force, copies, full batches, and the reasons in words."""

import itertools
import json
import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk
from grpokit.reference import ranking

from .strategies import REWARDS, rollouts
from .test_reference import (
    ALONE,
    BY_REFERENCE,
    COMPETING,
    SELECT,
    SELECT_ANY,
    check_selection,
    recipe,
    run,
    select_by_reference,
)


def keep(outcomes, stage, **columns):
    table = {"group_id": [0] * len(outcomes), "reward": outcomes} | columns
    return gk.process(table, recipe(gk.MeanBaseline(), [stage])).keep.tolist()


@given(st.lists(REWARDS, min_size=1, max_size=9), st.integers(1, 9))
def test_most_varied_against_brute_force(outcomes, m):
    chosen = ranking.most_varied(outcomes, m)
    assert len(chosen) == len(set(chosen)) == min(m, len(outcomes))

    def variance(rows):
        mean = math.fsum(outcomes[i] for i in rows) / len(rows)
        return math.fsum((outcomes[i] - mean) ** 2 for i in rows)

    best = max(variance(rows) for rows in itertools.combinations(range(len(outcomes)), len(chosen)))
    # Values near 1e8 are known to 1e-8, and so is how far apart they are.
    assert variance(chosen) >= best * (1 - 1e-9) - 1e-12 * max(map(abs, outcomes)) * math.sqrt(best)


@pytest.mark.parametrize(
    ("outcomes", "m", "expected"),
    [
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),  # no variance: the m largest
        ([0, 0, 1, 1], 2, [0, 1, 1, 0]),  # one of each: the first of the largest, the last of the smallest
        ([1, 0, 0, 0], 3, [1, 1, 1, 0]),  # the m largest and h = 1 vary alike
        ([1, 1, 1, 0, 0], 3, [0, 0, 1, 1, 1]),  # h = 0 beats the three largest, h = 1 does not beat h = 0
        ([1, 1, 0, 0], 3, [1, 1, 1, 0]),  # two right ones vary as much as one: the m largest come first
        ([3, 2, 1, 0], 1, [1, 0, 0, 0]),  # one row has no variance: the largest
        ([0.1, 0.9, 0.9, 0.1], 3, [1, 1, 1, 0]),  # as for zeros and ones, whatever the rounding
        ([1, 0], 5, [1, 1]),
    ],
)
def test_max_variance_ties(outcomes, m, expected):
    assert keep([float(x) for x in outcomes], gk.MaxVariance(m)) == [bool(x) for x in expected]
    assert ranking.most_varied(outcomes, m) == [i for i, kept in enumerate(expected) if kept]


def test_advantages_are_taken_over_what_max_variance_left():
    table = {"group_id": [1] * 4, "reward": [0.0, 0.2, 0.8, 1.0]}
    left = gk.process(table, recipe(gk.MeanBaseline(), [gk.MaxVariance(2)]))
    assert left.advantages.tolist() == [-0.5, 0.0, 0.0, 0.5]
    all_count = gk.process(
        table | {"reward": [0.0, 0.0, 0.0, 1.0]}, recipe(gk.MeanBaseline(), [gk.MaxVariance(2, "keep")])
    )
    assert all_count.advantages.tolist() == [-0.25, 0.0, 0.0, 0.75]


def test_pass_rate_has_its_ends():
    table = {"group_id": np.repeat(range(6), 5), "reward": [float(i < k) for k in range(6) for i in range(5)]}
    out = gk.process(table, recipe(gk.MeanBaseline(), [gk.PassRate(0.2, 0.8)]))
    assert out.keep[::5].tolist() == [False, True, True, True, True, False]


def test_the_most_learnable_are_those_near_one_half_whatever_the_rounding():
    # One third and two thirds are equally learnable; the first in the table wins.
    table = {"group_id": np.repeat([0, 1, 2], 3), "reward": [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]}
    out = gk.process(table, recipe(gk.MeanBaseline(), [gk.Learnability(1)]))
    assert out.keep[::3].tolist() == [True, False, False]


TOKENS = [[1, 2], [1, 2], [], [12], [1, 2]]


@pytest.mark.parametrize(
    "token_ids",
    [
        TOKENS,
        np.array([np.array(ids, np.int32) for ids in TOKENS], object),
        pa.array(TOKENS, pa.list_(pa.int32())),
        pa.chunked_array(
            [
                pa.array([[9], *TOKENS[:2]]).slice(1),
                pa.array(TOKENS[2:], pa.large_list(pa.int64())).cast(pa.list_(pa.int64())),
            ]
        ),
        pa.array(TOKENS, pa.large_list(pa.uint16())),
        pl.Series(TOKENS),
    ],
)
def test_copies_by_token_ids(token_ids):
    columns = {"token_ids": token_ids}
    outcomes = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert keep(outcomes, gk.Distinct("token_ids"), **columns) == [True, False, True, True, False]
    # The fourth is no copy once the group's first is gone, and copies in another group are none.
    table = {"group_id": [0, 1, 0, 0, 0], "reward": outcomes} | columns
    assert gk.process(table, recipe(gk.MeanBaseline(), [gk.Distinct("token_ids")])).keep.tolist() == [True] * 4 + [
        False
    ]


@given(rollouts(), SELECT)
def test_copies_share_their_weight(data, stages):
    plain = run(data, gk.MeanBaseline(), stages)
    out = run(data, gk.MeanBaseline(), [*stages, gk.DuplicateWeight("text")])
    copies = select_by_reference(data, stages).copies(data.text)
    np.testing.assert_array_equal(out.advantages, plain.advantages * (1 / np.array(copies)))
    np.testing.assert_array_equal(out.reasons, plain.reasons)


@given(rollouts(), SELECT_ANY, st.integers(1, 4), st.sampled_from(("arrival", "index")))
def test_a_full_batch_leaves_the_surplus(data, stages, need, order):
    out = run(data, gk.MeanBaseline(), stages, need=need, order=order)
    selection = select_by_reference(data, stages)
    last = {key: i for i, key in enumerate(data.key)}
    key = last.__getitem__ if order == "arrival" else lambda g: g
    taken = ranking.surplus(selection, need, key)
    check_selection(out, selection, data)
    assert out.missing == need - taken
    assert out.surplus.tolist() == [reasons[:1] == [gk.Reason.SURPLUS] for reasons in selection.reasons]
    assert not out.advantages[out.surplus].any()


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=4), max_size=12), st.integers(1, 3), st.integers(1, 3))
def test_refilling_as_dapo_does_loses_nothing(groups, need, at_once):
    """Kept rows wait for a full batch, the surplus begins the next: each good group is trained on once."""
    fresh = [{"group_id": g, "reward": float(x)} for g, group in enumerate(groups) for x in group]
    dapo = recipe(gk.MeanBaseline(), [gk.HasSignal()])
    trained, waiting = [], []
    for start in range(0, len(groups), at_once):
        waiting += [row for row in fresh if start <= row["group_id"] < start + at_once]
        out = gk.process(waiting, dapo, need=need)
        if out.missing:
            waiting = [row for row, kept in zip(waiting, out.keep, strict=True) if kept]
            continue
        trained.append({row["group_id"] for row, kept in zip(waiting, out.keep, strict=True) if kept})
        waiting = [row for row, more in zip(waiting, out.surplus, strict=True) if more]
    assert all(len(batch) == need for batch in trained)
    done = [g for batch in trained for g in sorted(batch)]
    good = [g for g, group in enumerate(groups) if len(set(group)) > 1]
    assert done == good[: len(done)]
    assert done + sorted({row["group_id"] for row in waiting if row["group_id"] in good}) == good


def test_every_stage_says_why():
    table = {
        "group_id": [1, 1, 2, 2, 3, 3],
        "reward": [1.0, 0.0, 1.0, 1.0, None, float("nan")],
        "text": ["a", "a", "b", "c", "d", "e"],
        "finish": ["stop", "length", "stop", "stop", "stop", "stop"],
        "response_len": [5, 50, 5, 5, 5, 5],
        "version_min": [3, 1, 3, 3, 3, 3],
        "source": ["s"] * 6,
    }
    reasons = {
        gk.HasSignal(): (2, "no_signal: all 2 outcomes of its group are equal (1)"),
        gk.PassRate(0.2, 0.8): (2, "pass_rate: its group has a pass rate of 1, outside 0.2 to 0.8"),
        gk.NotTruncated(): (1, "truncated: its finish is 'length'"),
        gk.NotTruncated(40): (1, "truncated: its answer has 40 tokens or more"),
        gk.MinGroupSize(3): (0, "small_group: its group has 2 rows that count, fewer than 3"),
        gk.MaxLag(1): (1, "stale: its oldest token is more than 1 versions old"),
        gk.Distinct("text"): (1, "duplicate: an earlier row of its group has the same text"),
        gk.MaxVariance(1): (1, "downsampled: it is not among the 1 rows of its group"),
        gk.VarianceQuantile(0.5): (
            2,
            "low_variance: the outcomes of its group (1 to 1) vary less than those of the 50%",
        ),
        gk.Learnability(1): (2, "low_learnability: the pass rate 1 of its group is not among the 1 nearest"),
        gk.SourceLimit(1): (2, "source_limit: 1 groups of its source came before it"),
    }
    assert {type(stage) for stage in reasons} == set(BY_REFERENCE)
    for stage, (row, words) in reasons.items():
        out = gk.process(table, recipe(gk.MeanBaseline(), [stage]).replace(not_finite="drop"), version=3)
        assert f"Row {row} (group {table['group_id'][row]}, outcome {table['reward'][row]:g}) is dropped, {words}" in (
            out.explain(row)
        )
        assert "unscored: its reward (or gate) is null" in out.explain(4)
        assert "not_finite: its reward (or gate) is NaN or infinite" in out.explain(5)
    both = gk.process(table, recipe(gk.MeanBaseline(), [gk.HasSignal(), gk.NotTruncated()]).replace(not_finite="drop"))
    assert both.explain(4).endswith("so it could not be scored. It would be dropped for no_signal as well.")
    assert both.explain(0) == "Row 0 (group 1, outcome 1) is kept: 1 outcomes of its group count, mean 1; advantage +0."
    full = gk.process(table, recipe(gk.MeanBaseline()).replace(not_finite="drop"), need=1)
    assert "surplus: nothing is wrong with it, but the batch is full" in full.explain(2)
    assert full.missing == 0
    assert "2 groups are missing to a full batch" in str(
        gk.process(table, recipe(gk.MeanBaseline()).replace(not_finite="drop"), need=4)
    )


def test_stages_of_other_packages_are_named():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Odd(gk.Select):
        def __call__(self, outcomes_N, groups, columns):
            return np.arange(len(outcomes_N)) % 2 == 0

    out = gk.process({"group_id": [1, 1], "reward": [0.0, 1.0]}, recipe(gk.MeanBaseline(), [Odd()]))
    assert out.counts == {"in": 2, "kept": 1, "other:Odd": 1}
    assert out.explain(1).endswith("is dropped, other:Odd: the stage Odd says so.")


def test_zeros_of_both_signs_are_one():
    assert keep([-0.0, -0.0, 0.0, 0.0], gk.MaxVariance(2)) == [True, True, False, False]
    table = {"group_id": [0, 0, 1, 1], "reward": [-0.0, -0.0, 0.0, 0.0]}
    assert gk.process(table, recipe(gk.MeanBaseline(), [gk.Learnability(1)])).keep.tolist() == [
        True,
        True,
        False,
        False,
    ]


@given(st.permutations([0.1, 0.2, 0.3]))
def test_the_order_of_rows_decides_no_pass_rate(rewards):
    assert keep(rewards, gk.PassRate(0.0, 0.2)) == [True] * 3
    assert keep(rewards, gk.PassRate(0.2, 1.0)) == [True] * 3


def test_numbers_of_numpy_are_numbers():
    stage = gk.MaxVariance(np.int64(2))
    assert (stage, type(stage.m)) == (gk.MaxVariance(2), int)
    assert gk.PassRate(np.float64(0.25), 0.75) == gk.PassRate(0.25, 0.75)
    table = {"group_id": [1, 1], "reward": [0.0, 1.0], "version_min": np.array([2, 3], np.int32)}
    out = gk.process(table, "rloo", need=np.int64(2), version=np.int64(3), threads=np.int64(1))
    assert (out.missing, out.staleness.tolist()) == (1, [1, 0])
    far = recipe(gk.MeanBaseline(), [gk.MaxLag(1)])
    assert not gk.process(table, far, version=2**40).keep.any()


def test_limits_of_sources_that_are_numbers_or_named_none():
    table = {"group_id": [0, 1, 2], "reward": [1.0] * 3, "source": [7, 7, 8]}
    assert gk.process(table, recipe(gk.MeanBaseline(), [gk.SourceLimit(1, source=7)])).keep.tolist() == [1, 0, 1]
    named = recipe(gk.MeanBaseline(), [gk.SourceLimit(3, source="none")])
    assert gk.Recipe.from_dict(named.to_dict()) == named


def test_the_newest_token_may_decide():
    table = {"group_id": [0, 0, 0], "reward": [1.0, 0.0, 1.0], "version_max": [5, 3, 4]}
    out = gk.process(table, recipe(gk.MeanBaseline(), [gk.MaxLag(1, of="newest")]), version=5)
    assert out.keep.tolist() == [True, False, True]
    assert out.staleness is None
    with pytest.raises(gk.InputError, match="'version_max' is 6 in row 0"):
        gk.process(
            table | {"version_max": [6, 3, 4]}, recipe(gk.MeanBaseline(), [gk.MaxLag(1, of="newest")]), version=5
        )


def test_an_empty_batch_under_other_names():
    assert len(gk.process([], "rloo", columns={"group_id": "uid", "reward": "score"})) == 0


def test_reasons_are_one_bit_each():
    assert [reason.value for reason in gk.Reason] == [*(1 << bit for bit in range(13)), 1 << 31]


@pytest.mark.parametrize("stage", [*ALONE, *COMPETING, gk.DuplicateWeight("token_ids")], ids=repr)
def test_stages_go_to_json_and_back(stage):
    mine = recipe(gk.MeanBaseline(), [stage])
    assert gk.Recipe.from_dict(json.loads(json.dumps(mine.to_dict()))) == mine
    line = next(line for line in mine.explain().splitlines() if line.startswith("  select"))
    assert line.split(maxsplit=2) == ["select", type(stage).__name__, stage.equation]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gk.PassRate(0.8, 0.2), "high=0.2"),
        (lambda: gk.PassRate("0.2", 0.8), "low='0.2'"),
        (lambda: gk.MinGroupSize(-1), "rows=-1"),
        (lambda: gk.MaxLag(2.5), "lag=2.5"),
        (lambda: gk.MaxLag(2, of="middle"), "of='middle'"),
        (lambda: gk.Distinct("prompt"), "on='prompt'"),
        (lambda: gk.Distinct("text", stats="some"), "stats='some'"),
        (lambda: gk.DuplicateWeight("prompt"), "on='prompt'"),
        (lambda: gk.MaxVariance(0), "m=0"),
        (lambda: gk.VarianceQuantile(0), "share=0"),
        (lambda: gk.VarianceQuantile(1.5), "share=1.5"),
        (lambda: gk.Learnability(0), "groups=0"),
        (lambda: gk.SourceLimit(3, source=1.5), "source=1.5"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo", need=0), "need=0"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo", order="random"), "order='random'"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo").explain(1), "row=1"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo").explain("x"), "row='x'"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo").explain(np.array([0])), "row=array"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo").pass_rates(0), "bins=0"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo", strict=5), "strict=5"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo", need=2**64), "need=18"),
        (lambda: gk.process({"group_id": [1], "reward": [0.0]}, "rloo", version=2**63), "version=9"),
    ],
)
def test_what_cannot_be_meant(make, words):
    with pytest.raises(gk.InputError) as caught:
        make()
    assert caught.value.kind == "bad_parameter"
    assert words in str(caught.value)


@pytest.mark.parametrize("token_ids", [[[1.5]], [["a"]], [3], [[[1], [2]]], [None]])
def test_what_are_not_token_ids(token_ids):
    with pytest.raises(gk.InputTypeError, match="token_ids"):
        keep([1.0], gk.Distinct("token_ids"), token_ids=token_ids)


def test_the_smallest_pass_rates_differ():
    """Rounding is dropped relative to the score, below the smallest normal number as well."""
    rows = {"group_id": ["a", "a", "b", "b", "c", "c"], "reward": [0.0, 0.0, 5e-324, 5e-324, 0.1, 0.1]}
    out = gk.process(rows, gk.recipe("rloo").replace(select=(gk.Learnability(2),)))
    assert out.keep.tolist() == [False, False, True, True, True, True]
