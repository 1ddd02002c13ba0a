"""Steered coefficients: where they go, what they leave as it was, and that a checkpoint holds them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 10), st.integers(1, 100), st.floats(0, 1e6))
def test_kl_moves_towards_its_target_and_no_faster_than_a_fifth(beta, target, rollouts, kl):
    control = gk.AdaptiveKL(beta, target, horizon=100)
    control.update(kl, rollouts)
    change = control.coefficient / beta - 1
    assert abs(change) <= 0.2 * rollouts / 100 * (1 + 1e-9)
    assert change >= -1e-12 if kl >= target else change <= 1e-12


def test_no_number_of_rollouts_makes_the_coefficient_negative():
    control = gk.AdaptiveKL(0.1, target=0.05, horizon=100)
    for kl in (0.0, 1e9, 0.0):
        control.update(kl, 10**6)
        assert control.coefficient > 0
    assert control.coefficient == pytest.approx(0.1 * 0.8 * 1.2 * 0.8)


def test_what_is_not_steered_stays():
    """Terms that hold the policy to the old one, and the sources of everything else."""
    recipe = gk.recipe("grpo")
    both = recipe.replace(extra=(*recipe.extra, gk.Term(gk.KL("k2", "old"), 0.5)))
    assert [term.scale for term in gk.AdaptiveKL(0.3, 0.1).apply(both).extra] == [0.3, 0.5]
    with pytest.raises(gk.InputError, match="no KL penalty"):
        gk.AdaptiveKL(0.3, 0.1).apply(recipe.replace(extra=both.extra[1:]))
    steered = dict(gk.AdaptiveKL(0.3, 0.1).apply(recipe).sources)
    assert steered == dict(recipe.sources) | {"extra.scale": "steered by AdaptiveKL"}


def test_kl_in_every_place():
    control = gk.AdaptiveKL(0.3, 0.1)
    assert control.apply(gk.recipe("grpo")).extra[0].scale == 0.3
    assert control.apply(gk.recipe("rloo", beta=0.1)).shape == (gk.KLPenalty(0.3),)
    assert control.apply(gk.recipe("reinforce_pp", ddof=1, eps=0.1)).advantage.beta == 0.3
    with pytest.raises(gk.InputError) as caught:
        control.apply(gk.recipe("sapo"))
    assert caught.value.kind == "nothing_to_control"


def test_entropy_bonus():
    """arXiv:2505.22312: raised below the target, lowered above it, and switched off there."""
    control = gk.AdaptiveEntropy(0.2, delta=0.5, high=1.2)
    recipe = gk.recipe("dapo", max_len=9)
    assert control.apply(recipe) == recipe
    seen = []
    for entropy in (0.1, 0.1, 0.1, 0.3, 0.2, 0.1, math.nan):
        control.update(entropy)
        seen.append((round(control.raised, 9), round(control.coefficient, 9)))
    assert seen == [(0.5, 0.5), (1.0, 1.0), (1.2, 1.2), (0.7, 0.0), (0.7, 0.7), (1.2, 1.2), (1.2, 1.2)]
    bonus = control.apply(recipe).extra
    assert bonus == (gk.Term(gk.Entropy(), -1.2, (), recipe.aggregate),)
    assert control.apply(control.apply(recipe)).extra == bonus


@pytest.mark.parametrize("make", [lambda: gk.AdaptiveKL(0.1, 0.2, 50), lambda: gk.AdaptiveEntropy(0.2, 0.1)])
def test_the_state_goes_on(make):
    step = (lambda c: c.update(0.15, 8)) if isinstance(make(), gk.AdaptiveKL) else (lambda c: c.update(0.15))
    one, other = make(), make()
    for _ in range(3):
        step(one)
    other.load_state_dict(one.state_dict())
    step(one)
    step(other)
    assert one.state_dict() == other.state_dict()
    for state in ({}, *(dict.fromkeys(one.state_dict(), wrong) for wrong in (math.nan, -1.0, "1"))):
        with pytest.raises(gk.InputError, match="a state_dict of"):
            other.load_state_dict(state)
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: gk.AdaptiveKL(0.0, 0.1), "beta"),
        (lambda: gk.AdaptiveKL(0.1, 0.0), "target"),
        (lambda: gk.AdaptiveKL(0.1, 0.1, math.inf), "horizon"),
        (lambda: gk.AdaptiveKL("a", 0.1), "beta"),
        (lambda: gk.AdaptiveEntropy(0.0), "target"),
        (lambda: gk.AdaptiveEntropy(0.1, -1.0), "delta"),
        (lambda: gk.AdaptiveEntropy(0.1, low=2.0), "high"),
    ],
)
def test_bad_parameters(make, name):
    with pytest.raises(gk.InputError) as caught:
        make()
    assert caught.value.kind == "bad_parameter"
    assert caught.value.context["name"] == name


def test_nothing_measured_changes_nothing():
    control = gk.AdaptiveKL(0.1, 0.2)
    control.update(math.nan, 100)
    assert control.coefficient == 0.1


@pytest.mark.parametrize("rollouts", [-1, math.nan, 2.5, None])
def test_rollouts_are_counted(rollouts):
    with pytest.raises(gk.InputError, match="rollouts=.*expected a whole number from 0"):
        gk.AdaptiveKL(0.1, 0.1).update(0.1, rollouts)


def test_the_bonus_begins_at_its_lower_bound():
    recipe = gk.recipe("dapo", max_len=9)
    assert gk.AdaptiveEntropy(0.2, low=0.1).apply(recipe).extra[0].scale == -0.1


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.floats(-1e4, 1e4))
def test_the_effective_sample_size(x, shift):
    """Between 1/B and 1, the same whatever is added to all, 1 for equal weights alone."""
    share = gk.effective_sample_size(x)
    assert 1 / len(x) * (1 - 1e-12) <= share <= 1 + 1e-12
    # x + shift is rounded: 2e4 in size, so by 4e-12.
    assert gk.effective_sample_size([a + shift for a in x]) == pytest.approx(share, rel=1e-10)
    assert gk.effective_sample_size([shift] * len(x)) == 1
    w = [math.exp(a - max(x)) for a in x]
    assert share == pytest.approx(math.fsum(w) ** 2 / (len(x) * math.fsum(a * a for a in w)), rel=1e-12)


def test_weights_that_explode_meet_the_smallest_step():
    control = gk.ESSLearningRate()
    for bad in (math.inf, math.nan, 1e308):
        assert control.update([0.0, 0.0, 0.0, bad]) == 0.5
    assert control.update([math.nan] * 4) == 0.5
    assert control.update([-math.inf] * 4) == 0.5
    assert control.update([0.0, -math.inf]) == pytest.approx(math.sqrt(0.5))
    assert control.update([]) == 1
    linear = gk.ESSLearningRate(base=0.5, scale="linear")
    assert linear.update([0.0, 1000.0]) == 1
    assert linear.update([0.0, 0.0, 0.0, 1000.0]) == 0.5
    control.load_state_dict(linear.state_dict())
    assert control.coefficient == 0.5
    with pytest.raises(gk.InputError, match="scale='log'"):
        gk.ESSLearningRate(scale="log")


@pytest.mark.parametrize("given", [None, 5.0, "abc", [[0.0, 1.0]], [[0.0], [1.0, 2.0]], [None, 1.0]])
def test_what_is_no_column_of_weights(given):
    with pytest.raises(gk.GrpokitError) as caught:
        gk.effective_sample_size(given)
    assert caught.value.kind in ("token_type", "token_shape")
    assert "log_weights" in str(caught.value)
    with pytest.raises(gk.InputError):
        gk.ESSLearningRate().load_state_dict(None)


def test_the_losses_hand_over_what_it_reads():
    import torch

    batch = gk.TokenBatch(
        torch.zeros(3, 2, dtype=torch.int64),
        mask=torch.tensor([[1, 1], [0, 0], [1, 0]]),
        advantages=torch.ones(3),
        rollout_logps=torch.tensor([[-1.0, -2.0], [0.0, 0.0], [-3.0, torch.nan]]),
    )
    out = gk.loss.from_logps(torch.full((3, 2), -1.0, requires_grad=True), batch, gk.recipe("vcpo"))
    assert out.log_weights.tolist() == [1.0, 2.0]
    assert {name: x.tolist() for name, x in out.columns.items()} == {"logps": [-1.0] * 3}
    plain = gk.TokenBatch(torch.zeros(1, 2, dtype=torch.int64), advantages=torch.ones(1))
    assert gk.loss.from_logps(torch.zeros(1, 2, requires_grad=True), plain, gk.recipe("rloo")).log_weights is None
