"""What shows in one special case is told by the law about that case and by no other; what is no departure by none."""

import numpy as np
import torch

from grpokit.testing import engine

from . import textbook


def failing(function, recipe, kind, names=None, **settings):
    tried = engine.trial(function, recipe, kind, settings=settings, name="test:function")
    laws = [law for law in engine.chosen(kind, names) if not law.skip(tried)]
    verdicts = [engine.run(law, tried, examples=200, derandomize=True) for law in laws]
    return {v.law: v.guess for v in verdicts if v.status == "fail"}


def test_a_count_of_nothing():
    def loss(logps, old_logps, advantages, mask):
        return textbook.dapo(logps, old_logps, advantages, mask) * (mask.sum() / mask.sum())

    assert failing(loss, "dapo", "loss", max_len=100) == {"all_masked": "empty_denominator"}

    def aggregate(values, mask):
        return torch.where(mask, values, 0.0).sum() / mask.sum()

    assert failing(aggregate, "TokenMean()", "aggregate") == {"all_masked": "empty_denominator"}


def test_half_a_gradient_on_a_bound():
    def loss(logps, old_logps, advantages, mask):
        d = textbook.log_ratios(logps, old_logps, mask)
        ratio = d.exp()
        each = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
        return textbook.masked(each, mask).sum() / mask.sum().clamp(min=1)

    assert failing(loss, "dapo", "loss", max_len=100) == {"bound": "gradient_at_bound"}


def test_an_estimator_in_float32_is_held_to_float32():
    """Whatever the format of its result: here a float64 one, of float32 statistics."""

    def advantages(rewards, group_ids):
        R = rewards.astype(np.float32)
        return textbook.group_norm(R, group_ids).astype(np.float64) * 1.0

    def coarse(rewards, group_ids):
        return np.round(textbook.group_norm(rewards, group_ids), 4)

    assert failing(advantages, "GroupNorm()", "advantage") == {}
    assert "value" in failing(coarse, "GroupNorm()", "advantage", ["value"])


def of_tokens(estimator):
    def advantages(token_rewards, mask, group_ids):
        A = estimator(token_rewards.sum(-1), group_ids)
        return A[:, None] * mask

    return advantages


def test_a_row_without_a_number_has_none_behind_its_mask():
    """0 times NaN, or infinity: what stays in the group stays there."""

    def group_mean(R, ids):
        with np.errstate(invalid="ignore"):
            return R - np.array([R[ids == g].mean() for g in ids])

    assert failing(of_tokens(group_mean), "MeanBaseline()", "advantage", ["not_finite"]) == {}


def test_an_infinite_reward():
    """One that a baseline of its own row leaves in its row is none of the group's; one that becomes huge is."""

    def own_baseline(rewards, baselines, group_ids):
        return rewards - baselines

    def huge(rewards, group_ids):
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(rewards - np.array([rewards[group_ids == g].mean() for g in group_ids]))

    assert failing(own_baseline, "GreedyBaseline()", "advantage", ["not_finite"]) == {}
    assert failing(huge, "MeanBaseline()", "advantage", ["not_finite"]) == {"not_finite": "nan_spreads"}


def test_a_soft_gate_may_be_as_good_as_closed():
    """e^-100 in place of 0, where the log-ratio is limited above alone."""

    def loss(logps, old_logps, advantages, mask):
        d = (textbook.masked(logps, mask) - textbook.masked(old_logps, mask)).clamp(max=20)
        tau = torch.where(advantages > 0, 1.0, 1.05)
        each = -advantages * (4 / tau) * torch.sigmoid(tau * (d.exp() - 1))
        return (textbook.masked(each, mask).sum(1) / mask.sum(1).clamp(min=1)).mean()

    assert failing(loss, "sapo", "loss", ["far"]) == {}
