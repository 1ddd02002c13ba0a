"""Three derivations of every objective: eager autograd, the reference's closed forms, central differences of the
reference with frozen stop-gradients."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.losses import (
    AGGREGATES,
    BONUSES,
    CORRECTIONS,
    OBJECTIVES,
    RECIPES,
    WEIGHED,
    current,
    kinks,
    padded,
    ragged,
    recipe,
    table,
)

from grpokit.loss import coefficients
from grpokit.reference import loss as reference
from grpokit.testing.oracle import described

EPS = 1e-6


def flat(rows, name):
    return torch.tensor([v for row in rows for v in row[name]], dtype=torch.float64)


def agree(batch, r, now):
    """Value and gradients of eager torch are the reference's."""
    result = coefficients(batch, r, now)
    rows, x = ragged(batch, now)
    value = torch.tensor([v for row in reference.loss(rows, described(r), x, x) for v in row], dtype=torch.float64)
    torch.testing.assert_close(result.loss, value, rtol=1e-10, atol=1e-12)
    closed = reference.gradient(rows, described(r), x)
    for name in now:
        torch.testing.assert_close(result.gradients[name], flat(closed, name), rtol=1e-10, atol=1e-12)
    return result


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", RECIPES | WEIGHED)
def test_every_weight_is_the_references(name, per_token):
    for seed in range(4):
        d = table(seed, near=0.15 + 0.1 * seed, per_token=per_token)
        for batch in (padded(d), padded(d, old_logps=None)):
            r = (RECIPES | WEIGHED)[name]
            result = agree(batch, r, current(batch, d))
            rows, x = ragged(batch, current(batch, d))
            w = reference.weights(rows, described(r), reference.terms(described(r))[0], x)
            expected = torch.tensor([v for row in w for v in row], dtype=torch.float64)
            torch.testing.assert_close(result.weights, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("correct", CORRECTIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_eager_is_the_closed_form(name, correct, per_token):
    d = table(1, near=0.4, per_token=per_token)
    batch, moved = padded(d), 0.0
    for aggregate in AGGREGATES:
        for extra in ((), BONUSES):
            r = recipe(OBJECTIVES[name], CORRECTIONS[correct], aggregate, extra)
            moved += sum(float(g.abs().sum()) for g in agree(batch, r, current(batch, d)).gradients.values())
    assert moved > 0


@pytest.mark.parametrize("ratio", ["old", "rollout"])
def test_the_ratio_is_taken_against_the_recipes_policy(ratio):
    d = table(2)
    batch = padded(d)
    agree(batch, recipe(ratio=ratio, correct=CORRECTIONS["wtrs"]), current(batch, d))


def test_on_policy_weights_are_constants_of_the_gradient():
    """Without old_logps TIS and the ratio read the current policy, and the gradient must not see it."""
    d = table(3)
    batch = padded(d, old_logps=None)
    for r in (RECIPES["tis"], recipe(OBJECTIVES["k2"], CORRECTIONS["tis"])):
        agree(batch, r, current(batch, d))


def check_central_differences(batch, r, now):
    """The closed form is the slope, and at a corner one of the two that meet there."""
    rows, x = ragged(batch, now)
    recipe_, closed = described(r), reference.gradient(rows, described(r), x)
    corners = 0
    for i, row in enumerate(x):
        for column in row:
            for t, here in enumerate(row[column]):
                ends = []
                for moved in (here + EPS, here, here - EPS):
                    y = [{k: list(v) for k, v in other.items()} for other in x]
                    y[i][column][t] = moved
                    ends.append(math.fsum(v for out in reference.loss(rows, recipe_, y, x) for v in out))
                right, left = (ends[0] - ends[1]) / EPS, (ends[1] - ends[2]) / EPS
                g = closed[i][column][t]
                # Rounding of a loss of size |L| is amplified by 1/EPS. One-sided, the truncation is EPS/2 times the
                # second derivative: a corner shows as a difference that is no such thing.
                noise = 1e-8 * (1 + abs(ends[1]) + abs(g))
                if abs(right - left) < 1e3 * noise:
                    assert abs((right + left) / 2 - g) < noise, (i, column, t, right, left, g)
                else:
                    corners += 1
                    ends = right, left, (right + left) / 2  # |x| has its mean at 0
                    assert min(abs(end - g) for end in ends) < 1e3 * noise, (i, column, t, right, left, g)
    return corners


@pytest.mark.parametrize("name", RECIPES | WEIGHED)
def test_central_differences_are_the_closed_form(name):
    d = table(4, lengths=(5, 0, 3, 1), near=0.4, per_token=True)
    for batch in (padded(d), padded(d, old_logps=None)):
        corners = check_central_differences(batch, (RECIPES | WEIGHED)[name], current(batch, d))
        # On-policy a ratio is 1, and that is a corner of some.
        assert not corners or "old_logps" not in batch.columns


@st.composite
def steps(draw):
    """A step whose log-ratios sit at and around every bound, its advantages of all signs, a recipe of any stages."""
    r = recipe(
        OBJECTIVES[draw(st.sampled_from(sorted(OBJECTIVES)))],
        CORRECTIONS[draw(st.sampled_from(sorted(CORRECTIONS)))],
        draw(st.sampled_from(AGGREGATES)),
        draw(st.sampled_from([(), BONUSES])),
    )
    # 3 equal numbers have exactly their own mean; of 4 the sum may be rounded, and a corner missed by an ulp.
    lengths = draw(st.lists(st.integers(0, 3), max_size=4))
    d = table(draw(st.integers(0, 99)), lengths, per_token=True)
    corners = [*kinks(r.objective), 0.0, -0.3, 0.7]
    for s, row in enumerate(d["mask"].tolist()):
        for t, live in enumerate(row):
            if live and draw(st.booleans()):
                # The reference policy is 0, so that the difference is the corner to the last bit.
                corner = draw(st.sampled_from(corners)) + draw(st.sampled_from([0.0, -0.01, 0.01]))
                d["logps"][s, t], d["old_logps"][s, t] = corner, 0.0
                d["ref_logps"][s, t] = corner + 0.2
                d["advantages"][s, t] = draw(st.sampled_from([0.0, 1.5, -0.7]))
    return r, d


@settings(deadline=None)
@given(steps())
def test_any_step_agrees(step):
    r, d = step
    batch = padded(d)
    agree(batch, r, current(batch, d))


@settings(deadline=None, max_examples=25)
@given(steps())
def test_any_step_has_these_slopes(step):
    r, d = step
    assume(d["mask"].any())
    batch = padded(d)
    check_central_differences(batch, r, current(batch, d))
