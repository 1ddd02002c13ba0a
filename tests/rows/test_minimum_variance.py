"""VCPO's baseline: the reference, its limits, and that no other baseline has less variance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk
from grpokit.minimum_variance import baseline_weights
from grpokit.reference import advantage as ref

row = st.tuples(
    st.integers(0, 3),
    st.sampled_from([0.0, 1.0, 0.1, -2.5]),
    st.floats(1e-6, 1e6),
    st.lists(st.floats(-400, 0), min_size=1, max_size=3),
    st.floats(-300, 300),
)


def process(rows, **parameters):
    groups, rewards, norms, old, gaps = zip(*rows, strict=True)
    table = {"group_id": list(groups), "reward": list(rewards), "score_norm": list(norms), "logp_old": list(old)}
    table["logp_rollout"] = [[x - gap / len(values) for x in values] for values, gap in zip(old, gaps, strict=True)]
    recipe = gk.recipe("rloo").replace(advantage=gk.MinimumVarianceBaseline(**parameters))
    return gk.process(table, recipe).advantages, table


@given(st.lists(row, min_size=1, max_size=12), st.booleans(), st.booleans())
def test_it_is_the_reference(rows, std, importance):
    found, table = process(rows, std=std, importance=importance)
    for group in set(table["group_id"]):
        at = [i for i, g in enumerate(table["group_id"]) if g == group]
        R, norms = ([table[name][i] for i in at] for name in ("reward", "score_norm"))
        pairs = [zip(table["logp_old"][i], table["logp_rollout"][i], strict=True) for i in at]
        log_w = [sum(a - b for a, b in pair) if importance else 0.0 for pair in pairs]
        expected = ref.minimum_variance_baseline(R, norms, log_w, 1e-4 if std else None)
        # A log-weight of size 300 is exact to 1e-13 of its exponential.
        np.testing.assert_allclose(found[at], expected, rtol=1e-11, atol=1e-11 * max(map(abs, R)))


def test_its_limits():
    equal, _ = process([(0, 1.0, 2.0, [-1.0], 0.5), (0, 0.0, 2.0, [-1.0], 0.5)], std=False)
    assert equal.tolist() == [0.5, -0.5]
    dominant, _ = process([(0, 1.0, 2.0, [-1.0], 600.0), (0, 0.0, 2.0, [-1.0], 0.5)], std=False)
    assert dominant.tolist() == [0.0, -1.0]
    nothing, _ = process([(0, 1.0, 0.0, [-1.0], 0.0), (0, 0.0, 0.0, [-1.0], 0.0)], std=False)
    assert nothing.tolist() == [0.5, -0.5]
    constant, _ = process([(0, 0.1, 1.0, [-1.0], 3.0), (0, 0.1, 5.0, [-1.0], 0.0), (0, 0.1, 2.0, [-1.0], 0.0)])
    assert constant.tolist() == [0.0, 0.0, 0.0]


def test_no_baseline_has_a_smaller_second_moment():
    """Σ w² ‖s‖² (R − b)² is least at b."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        R, norms, log_w = rng.normal(size=8), rng.gamma(1.0, size=8), rng.normal(size=8)
        b = float(baseline_weights(norms, log_w, np.zeros(8, int)) @ R)
        W = np.exp(2 * log_w) * norms
        least, *others = (float(W @ (R - x) ** 2) for x in (b, R.mean(), b + 1e-3, b - 1e-3))
        assert least <= min(others)


def test_with_lengths_for_norms_it_is_the_length_baseline():
    table = {"group_id": [0, 0, 0], "reward": [1.0, 0.0, 0.5], "response_len": [3, 9, 4]}
    mine = gk.recipe("opo").replace(advantage=gk.MinimumVarianceBaseline(std=False, importance=False))
    found = gk.process(table | {"score_norm": [3.0, 9.0, 4.0]}, mine).advantages
    np.testing.assert_allclose(found, gk.process(table, "opo").advantages, rtol=1e-14)


@pytest.mark.parametrize("norm", [-1.0, float("nan"), float("inf"), None, "much"])
def test_what_is_no_norm(norm):
    with pytest.raises(gk.InputError) as caught:
        process([(0, 1.0, 2.0, [-1.0], 0.0), (0, 0.0, norm, [-1.0], 0.0)])
    assert caught.value.kind in ("bad_score_norm", "null_value", "column_type")


def test_lists_of_different_lengths():
    table = {
        "group_id": [0],
        "reward": [1.0],
        "score_norm": [1.0],
        "logp_old": [[-1.0]],
        "logp_rollout": [[-1.0, -2.0]],
    }
    with pytest.raises(gk.InputError) as caught:
        gk.process(table, gk.recipe("vcpo", baseline="minimum_variance"))
    assert caught.value.kind == "lists_differ"
    assert "'logp_rollout'" in str(caught.value)
