"""The arithmetic that explains the family, checked by doing what it describes."""

import itertools
import math

import numpy as np
import pytest
import torch

import grpokit as gk
from grpokit import arithmetic


def slope(objective, old_p, new_p, A=1.0):
    logps = torch.full((1, 1), math.log(new_p), dtype=torch.float64, requires_grad=True)
    batch = gk.TokenBatch(
        torch.zeros(1, 1, dtype=torch.int64),
        advantages=[A],
        old_logps=torch.full((1, 1), math.log(old_p), dtype=torch.float64),
    )
    recipe = gk.Recipe(name="one", advantage=gk.Given(), objective=objective)
    gk.loss.from_logps(logps, batch, recipe).loss.backward()
    return float(logps.grad)


@pytest.mark.parametrize(("high", "steps"), [(0.2, 12.6), (0.28, 9.3)])
def test_growth_under_a_saturated_clip(high, steps):
    """Each update pushes p until the clip closes, and the next one begins there."""
    p, updates = 0.01, 0
    while p < 0.1:
        assert slope(gk.Clip(0.2, high), p, p * (1 + high) * (1 - 1e-9)) < 0
        assert slope(gk.Clip(0.2, high), p, p * (1 + high) * (1 + 1e-9)) == 0
        p, updates = p * (1 + high), updates + 1
    exact = arithmetic.steps_to_grow(0.01, 0.1, high)
    assert updates == math.ceil(exact)
    assert round(exact, 1) == steps


def test_the_gap_between_two_clips():
    """A popular walk-through prints 1.7, 3.7 and 14."""
    gaps = [arithmetic.growth_gap(n, 0.2, 0.28) for n in (20, 50, 100)]
    assert [round(gap, 1) for gap in gaps] == [3.6, 25.2, 635.1]
    for n, gap in zip((20, 50, 100), gaps, strict=True):
        assert gap == pytest.approx(math.prod([1.28 / 1.2] * n))


def test_where_the_upper_clip_cannot_bind():
    """No probability exceeds 1: above 1 / (1 + high) the ratio never reaches the bound."""
    bound = arithmetic.never_clipped_above(0.2)
    assert round(bound, 2) == 0.83
    assert slope(gk.Clip(0.2, 0.2), bound * 1.0001, 1.0) < 0
    assert slope(gk.Clip(0.2, 0.2), bound * 0.9999, 1.0) == 0


def test_a_product_of_ratios():
    """1.2^1024 has 81 decades; in fp32 the geometric mean is 1.2 all the same, and the true product limited."""
    assert arithmetic.decades_of_product(1.2, 1024) == pytest.approx(81.08, abs=0.01)
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(1.2) ** np.float32(1024))
    whole = (gk.SequenceClip(None, None), gk.GeometricClip(None, None))
    for objective in (*whole, gk.GammaWeight(), gk.Regression(), gk.Divergence("js", 1.0)):
        logps = torch.full((1, 1024), math.log(0.6), requires_grad=True)
        batch = gk.TokenBatch(
            torch.zeros(1, 1024, dtype=torch.int64), advantages=[1.0], old_logps=torch.full((1, 1024), math.log(0.5))
        )
        recipe = gk.Recipe(name="one", advantage=gk.Given(), objective=objective, aggregate=gk.SequenceMean())
        out = gk.loss.from_logps(logps, batch, recipe)
        out.loss.backward()
        assert out.loss.isfinite()
        assert logps.grad.isfinite().all()
        if objective in whole:
            assert out.loss.item() == pytest.approx(-1.2, rel=1e-5)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("G", [2, 4, 8])
def test_the_share_of_groups_without_signal(p, G):
    """Over all outcomes of a group, weighed, those that dynamic sampling drops."""
    outcomes = list(itertools.product([0.0, 1.0], repeat=G))
    rows = {"group_id": np.repeat(np.arange(len(outcomes)), G), "reward": np.ravel(outcomes)}
    kept = gk.process(rows, gk.recipe("rloo").replace(select=(gk.HasSignal(),))).keep.reshape(-1, G)[:, 0]
    weights = np.array([math.prod(p if r else 1 - p for r in outcome) for outcome in outcomes])
    assert weights[~kept].sum() == pytest.approx(arithmetic.zero_variance_share(p, G))


@pytest.mark.parametrize("p", [0.5, 0.1, 0.01])
def test_what_the_standard_deviation_weighs(p):
    """A prompt whose answer is right with probability p: E[A ∇log π] over the policy's own answers, exactly."""
    right, wrong = p, 1 - p
    # ∇log π by the logit of being right: 1 − p for a right answer, −p for a wrong one.
    score = {1.0: 1 - p, 0.0: -p}
    apart = score[1.0] - score[0.0]

    def gradient(scale):
        return sum(w * (R - p) / scale * score[R] for R, w in ((1.0, right), (0.0, wrong)))

    std = math.sqrt(p * (1 - p))
    assert gradient(std) == pytest.approx(arithmetic.signal_with_std(p) * apart)
    assert gradient(1.0) == pytest.approx(arithmetic.signal_without_std(p) * apart)
    assert gradient(std) / gradient(1.0) == pytest.approx(arithmetic.std_weight(p))
    # The estimators themselves, on groups with that share of right answers.
    n = 100
    rewards = [1.0] * round(p * n) + [0.0] * (n - round(p * n))
    normed, plain = (gk.advantages(rewards, [1] * n, e) for e in (gk.GroupNorm(0, 0.0), gk.MeanBaseline()))
    np.testing.assert_allclose(normed / plain, arithmetic.std_weight(p), rtol=1e-12)


def test_both_readings_of_the_soft_punishment():
    """The paper's 16,384 to 20,480, and 12,288 to 16,384 where L_max is read as the length before the cache."""
    lengths = [12_288, 14_336, 16_384, 18_432, 20_480]
    assert gk.overlong_penalty(lengths, max_len=20_480, cache=4_096).tolist() == [0, 0, 0, -0.5, -1]
    assert gk.overlong_penalty(lengths, max_len=16_384, cache=4_096).tolist() == [0, -0.5, -1, -1, -1]
    dapo = gk.recipe("dapo", max_len=20_480).explain()
    assert "beyond 16,384 tokens and loses 1 at 20,480" in dapo
    assert "Overlong(16,384, 4,096), which begins at 12,288" in dapo


def test_the_numbers_are_in_explain():
    dapo = " ".join(gk.recipe("dapo", max_len=20_480).explain().split())
    for words in (
        "9.3 steps",
        "p = 0.78",
        "3.64, 25.2, 635 times",
        "66% at p = 0.05",
        "for 0/1 rewards and ddof 0: 2.0 at p = 0.5",
    ):
        assert words in dapo
    grpo = gk.recipe("grpo").explain()
    assert "12.6 steps" in grpo
    assert "p = 0.83" in grpo
    assert "carries the factor p (1 − p): 0.25 at p = 0.5" in gk.recipe("dr_grpo", max_len=9).explain()
    assert "10^81" in gk.recipe("gspo").explain()
    assert "a window of 0.03% exists in fp32 only" in " ".join(gk.recipe("gspo").explain().split())
    assert "fp32 only" not in gk.recipe("gspo", low=0.1, high=0.1).explain()
    # What is said of the plain policy gradient is not said where the objective has another.
    assert "carries the factor" in gk.recipe("sapo").explain()
    for name in ("maspo", "luffy", "oapl"):
        assert "carries the factor" not in gk.recipe(name).explain()
