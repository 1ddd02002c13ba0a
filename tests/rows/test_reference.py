"""The native core against the float64 reference, and the laws that each estimator declares."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk
from grpokit.reference import advantage as ref
from grpokit.reference import ranking, shaping
from grpokit.reference.selection import Selection

from .strategies import rollouts

RELATIVE = {
    gk.GroupNorm(): lambda R: ref.group_norm(R, 1, 1e-4),
    gk.GroupNorm(ddof=0, eps=1e-8): lambda R: ref.group_norm(R, 0, 1e-8),
    gk.MeanBaseline(): ref.mean_baseline,
    gk.LeaveOneOut(): ref.leave_one_out,
}
# Each stage, and what the reference does for it.
VERSION = 10
BY_REFERENCE = {
    gk.HasSignal: lambda s, data, stage: s.has_signal(stage.tolerance),
    gk.PassRate: lambda s, data, stage: s.pass_rate(stage.low, stage.high),
    gk.MinGroupSize: lambda s, data, stage: s.min_group_size(stage.rows),
    gk.MaxLag: lambda s, data, stage: s.max_lag([VERSION - v for v in data.version_min], stage.lag, stats=stage.stats),
    gk.Distinct: lambda s, data, stage: s.distinct(data.text, stats=stage.stats),
    gk.MaxVariance: lambda s, data, stage: ranking.max_variance(s, stage.m, stats=stage.stats),
    gk.VarianceQuantile: lambda s, data, stage: ranking.variance_quantile(s, stage.share, data.batch),
    gk.Learnability: lambda s, data, stage: ranking.learnability(s, stage.groups, data.batch),
    gk.SourceLimit: lambda s, data, stage: ranking.source_limit(
        s, stage.groups, data.source, data.batch, only=stage.source
    ),
    gk.NotTruncated: lambda s, data, stage: s.not_truncated(
        lambda i: data.finish[i] == "length" if stage.max_len is None else data.response_len[i] >= stage.max_len,
        stats=stage.stats,
    ),
}
# What happens to a group depends on nothing else ...
ALONE = (
    gk.HasSignal(),
    gk.HasSignal(0.5),
    gk.NotTruncated(),
    gk.NotTruncated(stats="keep"),
    gk.NotTruncated(max_len=20, stats="keep"),
    gk.NotTruncated(max_len=30),
    gk.PassRate(0.2, 0.8),
    gk.PassRate(0.0, 0.5),
    gk.MinGroupSize(2),
    gk.MinGroupSize(4),
    gk.MaxLag(3),
    gk.MaxLag(7, stats="keep"),
    gk.Distinct("text"),
    gk.Distinct("text", stats="keep"),
    gk.MaxVariance(2),
    gk.MaxVariance(3, stats="keep"),
)
# ... or on the other groups of its batch.
COMPETING = (
    gk.VarianceQuantile(0.25),
    gk.VarianceQuantile(0.75),
    gk.Learnability(2),
    gk.SourceLimit(1),
    gk.SourceLimit(1, source="math"),
    gk.SourceLimit(0, source="nobody's"),
)
SELECT = st.lists(st.sampled_from(ALONE), max_size=4)
SELECT_ANY = st.lists(st.sampled_from((*ALONE, *COMPETING)), max_size=5)


def recipe(advantage, select=(), shape=()):
    return gk.recipe("grpo").replace(advantage=advantage, select=tuple(select), shape=tuple(shape))


def run(data, *args, **kwargs):
    return gk.process(data.table, recipe(*args), version=VERSION, **kwargs)


def select_by_reference(data, stages):
    outcomes = data.reward if data.gate is None else data.gate
    unscored = [r is None or o is None for r, o in zip(data.reward, outcomes, strict=True)]
    selection = Selection(data.key, [None if gone else o for gone, o in zip(unscored, outcomes, strict=True)])
    for stage in stages:
        BY_REFERENCE[type(stage)](selection, data, stage)
    return selection


def check_selection(out, selection, data):
    assert out.keep.tolist() == selection.keep()
    assert out.reasons.tolist() == [sum(set(reasons)) for reasons in selection.reasons]
    assert out.first_reason.tolist() == [reasons[0] if reasons else 0 for reasons in selection.reasons]
    assert set(out.counts_by_source) == set(data.source)
    for counts, rows in (
        (out.counts, range(len(data.key))),
        *((of, [i for i, x in enumerate(data.source) if x == source]) for source, of in out.counts_by_source.items()),
    ):
        assert counts["in"] == len(rows) == sum(n for name, n in counts.items() if name != "in")
        assert counts["kept"] == sum(out.keep[i] for i in rows)
        for reason in gk.Reason:
            assert counts.get(reason.name.lower(), 0) == sum(out.first_reason[i] == reason for i in rows)


def close(given, expected, R):
    """Equal to 1e-12 of what the deviations are made of: the condition of R − mean is |R| / |R − mean|."""
    scale = max((abs(r) for r in R if r is not None), default=0.0)
    return np.abs(given - expected) <= 1e-12 * (np.abs(expected) + scale + 1e-300)


@given(rollouts(), SELECT_ANY)
def test_selection_is_the_reference(data, stages):
    out = run(data, gk.MeanBaseline(), stages)
    selection = select_by_reference(data, stages)
    check_selection(out, selection, data)
    live = {}
    for key, outcome, alive in zip(data.key, selection.outcomes, selection.live, strict=True):
        live.setdefault(key, []).extend([outcome] if alive else [])
    groups = out.groups
    assert groups.id == list(live)
    assert groups.n.tolist() == [len(R) for R in live.values()]
    for g, R in enumerate(live.values()):
        assert groups.signal[g] == (len(R) > 0 and max(R) > min(R))
        if R:
            assert (groups.min[g], groups.max[g]) == (min(R), max(R))
            assert close(groups.mean[g], ref.mean(R), R)
            assert close(groups.std[g], ref.std(R, 1), R)


@given(rollouts(), SELECT_ANY, st.sampled_from(list(RELATIVE)), st.booleans())
def test_advantages_are_the_reference(data, stages, estimator, shaped):
    shape = [gk.Overlong(30, 20)] if shaped else []
    out = run(data, estimator, stages, shape)
    selection = select_by_reference(data, stages)
    penalty = shaping.overlong(data.response_len, 30, 20) if shaped else np.zeros(len(data.reward))
    rewards = [None if r is None else r + p for r, p in zip(data.reward, penalty, strict=True)]
    expected = ref.by_group(data.key, rewards, selection.live, selection.keep(), RELATIVE[estimator])
    # std enters GroupNorm's condition: an error in the mean counts 1 / (std + eps) times.
    spread = 1 / estimator.eps if isinstance(estimator, gk.GroupNorm) else 1.0
    given = out.advantages
    stds = {}
    for key, r, alive in zip(data.key, rewards, selection.live, strict=True):
        stds.setdefault(key, []).extend([r] if alive else [])
    for i, key in enumerate(data.key):
        R = stds[key]
        if isinstance(estimator, gk.GroupNorm) and R:
            spread = 1 / (ref.std(R, estimator.ddof) + estimator.eps)
        # Below 1e-300 a mean underflows.
        scale = max(map(abs, R), default=0.0) + 1e-300
        assert abs(given[i] - expected[i]) <= 1e-12 * abs(expected[i]) + 4e-15 * len(R) * scale * max(spread, 1.0)
    listed = [np.nan if r is None else r for r in rewards]
    np.testing.assert_array_equal(out.shaped_rewards, listed)


@given(
    rollouts(nulls=False, gate=False),
    st.sampled_from(("tokens", "sequences")),
    st.sampled_from(("none", "group")),
    st.sampled_from((0, 1)),
)
def test_global_norm_is_the_reference(data, over, baseline, ddof):
    data.response_len = [n + 1 for n in data.response_len]
    estimator = gk.GlobalNorm(ddof=ddof, eps=1e-8, baseline=baseline, over=over)
    given = gk.process(data.table, recipe(estimator)).advantages
    n = len(data.reward)
    everything = [True] * n
    x = list(data.reward)
    if baseline == "group":
        x = ref.by_group(data.key, data.reward, everything, everything, ref.mean_baseline).tolist()
    weights = data.response_len if over == "tokens" else [1] * n
    steps = data.step or [0] * n
    expected = ref.by_batch(steps, x, weights, everything, ddof, 1e-8)
    # An x that is a rounding error away from a constant has a std of that size, and no digit is certain.
    scale = max(map(abs, data.reward), default=0.0)
    for step in set(steps):
        rows = [i for i in range(n) if steps[i] == step]
        deviation = max(abs(x[i] - ref.mean([x[j] for j in rows])) for i in rows)
        if deviation > 1e-6 * scale:
            np.testing.assert_allclose(given[rows], expected[rows], rtol=1e-6, atol=1e-6)
        elif deviation == 0:
            assert not given[rows].any()


@given(rollouts(nulls=False), st.sampled_from(list(RELATIVE)), st.integers(-4, 4), st.floats(0.25, 4))
def test_shift_and_scale(data, estimator, shift, scale):
    """Exact in binary: rewards that are small multiples of a power of two."""
    rewards = [round(r) % 8 / 4 for r in data.reward]
    scale = 2.0 ** round(math.log2(scale))
    groups = gk.group(data.key and list(map(str, data.key)))
    base = gk.advantages(rewards, groups, estimator)
    moved = gk.advantages([r + shift for r in rewards], groups, estimator)
    np.testing.assert_allclose(moved, base, rtol=1e-12, atol=1e-12)
    if not isinstance(estimator, gk.GroupNorm):
        np.testing.assert_allclose(gk.advantages([r * scale for r in rewards], groups, estimator), base * scale, 1e-12)
    elif estimator.eps == 1e-8:
        np.testing.assert_allclose(gk.advantages([r * scale for r in rewards], groups, estimator), base, rtol=1e-6)


@given(rollouts(), SELECT, st.sampled_from(list(RELATIVE)), st.randoms(use_true_random=False))
def test_permutation_and_relabelling(data, stages, estimator, random):
    """The order of groups and their names change nothing, to the bit; rows of a group keep their order."""
    out = run(data, estimator, stages)
    key = data.key
    labels = {k: i for i, k in enumerate(random.sample(sorted(set(key), key=repr), len(set(key))))}
    order = list(range(len(key)))
    random.shuffle(order)
    # A stable sort within each group restores the order of its rows.
    waiting = {k: iter([i for i in range(len(key)) if key[i] == k]) for k in labels}
    order = [next(waiting[key[i]]) for i in order]
    moved = data.take(order)
    moved.step, moved.group_id = None, [labels[key[i]] for i in order]
    again = run(moved, estimator, stages)
    np.testing.assert_array_equal(again.advantages, out.advantages[order])
    np.testing.assert_array_equal(again.reasons, out.reasons[order])


@given(rollouts(), SELECT, st.sampled_from(list(RELATIVE)))
def test_tables_of_whole_groups_can_be_split_and_merged(data, stages, estimator):
    out = run(data, estimator, stages)
    key = data.key
    left = set(list(dict.fromkeys(key))[::2])
    for rows in ([i for i in range(len(key)) if (key[i] in left) == side] for side in (True, False)):
        part = run(data.take(rows), estimator, stages)
        np.testing.assert_array_equal(part.advantages, out.advantages[rows])
        np.testing.assert_array_equal(part.first_reason, out.first_reason[rows])


@given(rollouts(), st.sampled_from(list(RELATIVE)))
def test_sum_is_zero_and_no_signal_is_exactly_zero(data, estimator):
    out = gk.process(data.table, recipe(estimator))
    groups = gk.group(*([data.group_id] if data.step is None else [data.step, data.group_id]))
    for g in range(len(groups)):
        rows = np.flatnonzero(groups.codes == g)
        R = [data.reward[i] for i in rows if data.reward[i] is not None]
        if not R or max(R) == min(R):
            assert not out.advantages[rows].any()
        else:
            condition = max(map(abs, R)) / (ref.std(R, 1) + 1e-4 if isinstance(estimator, gk.GroupNorm) else 1)
            size = np.abs(out.advantages[rows]).sum()
            # Below 1e-300 the mean itself underflows.
            assert abs(out.advantages[rows].sum()) <= 1e-14 * len(R) * (size + condition * len(R)) + 1e-300


@pytest.mark.parametrize("value", [0.1, 0.7, 1.1, -0.2, 0.98, 1 / 3, 1e8 + 0.1])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 64])
def test_constant_groups_of_awkward_values(value, n):
    for estimator in RELATIVE:
        out = gk.process({"group_id": [5] * n, "reward": [value] * n}, recipe(estimator, [gk.HasSignal()]))
        assert not out.keep.any()
        assert not out.advantages.any()
        assert out.groups.mean[0] == value
        assert out.groups.std[0] == 0


def test_singletons():
    rows = {"group_id": [1, 2], "reward": [0.7, 1.0], "response_len": [3, 1]}
    for estimator in RELATIVE:
        assert gk.process(rows, recipe(estimator)).advantages.tolist() == [0.0, 0.0]
    global_norm = gk.GlobalNorm(ddof=0, eps=0.0)
    given = gk.process(rows, recipe(global_norm)).advantages
    mean, std = (3 * 0.7 + 1.0) / 4, math.sqrt((3 * (0.7 - 0.775) ** 2 + (1 - 0.775) ** 2) / 4)
    np.testing.assert_allclose(given, [(0.7 - mean) / std, (1.0 - mean) / std], rtol=1e-12)


def test_empty_one_row_one_group():
    for name in ("grpo", "rloo"):
        assert len(gk.process({"group_id": [], "reward": []}, name).keep) == 0
        assert gk.process({"group_id": ["x"], "reward": [2.0]}, name).advantages.tolist() == [0.0]
    out = gk.process([], "grpo")
    assert out.counts == {"in": 0, "kept": 0}
    assert str(out) == "0 rows in 0 groups\n  kept                    0    0.00%"


@pytest.mark.parametrize("length", [16384, 16385, 18432, 20480, 20481])
def test_overlong_exactly(length):
    expected = {16384: 0.0, 16385: -1 / 4096, 18432: -0.5, 20480: -1.0, 20481: -1.0}[length]
    assert gk.overlong_penalty([length], max_len=20_480, cache=4_096).tolist() == [expected]
    assert shaping.overlong([length], 20_480, 4_096).tolist() == [expected]


@given(st.lists(st.integers(0, 2**40), max_size=30), st.integers(0, 2**33), st.floats(0, 1))
def test_overlong_is_the_reference(lengths, longest, share):
    cache = int(longest * share)
    given = gk.overlong_penalty(lengths, max_len=longest, cache=cache)
    np.testing.assert_array_equal(given, shaping.overlong(lengths, longest, cache))


def test_filters_read_the_outcome_and_advantages_the_shaped_reward():
    rows = {"group_id": [1, 1, 2, 2], "reward": [1.0, 1.0, 1.0, 0.0], "response_len": [10, 18, 10, 10]}
    out = gk.process(rows, gk.recipe("dapo", max_len=20, cache=4))
    # Group 1 differs only by the punishment of its second row: no signal, whatever the shaped rewards say.
    assert out.keep.tolist() == [False, False, True, True]
    assert out.shaped_rewards.tolist() == [1.0, 0.5, 1.0, 0.0]
    gated = gk.process(rows | {"gate": [0.0, 1.0, 1.0, 1.0]}, gk.recipe("dapo", max_len=20, cache=4))
    assert gated.keep.tolist() == [True, True, False, False]
    assert gated.advantages[0] == -gated.advantages[1] != 0
