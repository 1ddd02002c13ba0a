"""Losses, estimators, filters, KL estimators and aggregations as careful people write them down."""

import numpy as np
import torch


def log_ratios(logps, old_logps, mask):
    """In float32 or wider, 0 behind the mask, and nowhere so large that its exp is infinite."""
    if logps.dtype == torch.bfloat16:
        logps, old_logps = logps.float(), old_logps.float()
    return (masked(logps, mask) - masked(old_logps, mask)).clamp(-20, 20)


def masked(x, mask):
    return torch.where(mask, x, torch.zeros_like(x))


def grpo(logps, old_logps, ref_logps, advantages, mask):
    log_ratio = log_ratios(logps, old_logps, mask)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - 0.2, 1 + 0.2)
    policy = -torch.where(ratio * advantages > clipped * advantages, clipped, ratio) * advantages
    y = log_ratios(logps, ref_logps, mask)
    kl = torch.expm1(-y) + y
    per_token = masked(policy + 0.04 * kl, mask)
    lengths = mask.sum(1)
    return (per_token.sum(1) / lengths.clamp(min=1)).mean()


def dapo(logps, old_logps, advantages, mask):
    ratio = log_ratios(logps, old_logps, mask).exp()
    clipped = torch.where(advantages > 0, torch.where(ratio > 1.28, 1.28, ratio), torch.where(ratio < 0.8, 0.8, ratio))
    per_token = masked(-clipped * advantages, mask)
    return per_token.sum() / mask.sum().clamp(min=1)


def dapo_of_a_step(logps, old_logps, advantages, mask, num_items_in_batch):
    ratio = log_ratios(logps, old_logps, mask).exp()
    clipped = torch.where(advantages > 0, torch.where(ratio > 1.28, 1.28, ratio), torch.where(ratio < 0.8, 0.8, ratio))
    return masked(-clipped * advantages, mask).sum() / max(num_items_in_batch, 1)


def with_entropy(logps, old_logps, advantages, entropies, mask):
    """TRL's default loss with its entropy bonus, coefficient 0.01."""
    ratio = log_ratios(logps, old_logps, mask).exp()
    clipped = torch.where(advantages > 0, torch.where(ratio > 1.2, 1.2, ratio), torch.where(ratio < 0.8, 0.8, ratio))
    per_token = -clipped * advantages - 0.01 * masked(entropies, mask)
    return masked(per_token, mask).sum() / mask.sum().clamp(min=1)


def gspo(logps, old_logps, advantages, mask):
    log_ratio = log_ratios(logps, old_logps, mask)
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    log_s = log_ratio.sum(1, keepdim=True) / lengths
    s = log_s.exp()
    clipped = torch.where(
        advantages > 0, torch.where(s > 1 + 4e-4, 1 + 4e-4, s), torch.where(s < 1 - 3e-4, 1 - 3e-4, s)
    )
    per_token = masked(-clipped * advantages, mask)
    return (per_token.sum(1, keepdim=True) / lengths).mean()


def cispo(logps, old_logps, advantages, mask):
    weight = log_ratios(logps, old_logps, mask).exp().clamp(max=1 + 4.0).detach()
    per_token = masked(-weight * advantages * masked(logps, mask), mask)
    return per_token.sum() / mask.sum().clamp(min=1)


def group_norm(rewards, group_ids):
    advantages = np.zeros_like(rewards)
    for g in np.unique(group_ids):
        rows = group_ids == g
        R = rewards[rows]
        if R.max() > R.min():
            advantages[rows] = (R - R.mean()) / (R.std(ddof=1) + 1e-4)
        elif not np.isfinite(R).all():
            advantages[rows] = np.nan
    return advantages


def leave_one_out(rewards, group_ids):
    advantages = np.zeros_like(rewards)
    for g in np.unique(group_ids):
        rows = group_ids == g
        R, n = rewards[rows], rows.sum()
        if n > 1 and R.max() != R.min():
            advantages[rows] = n / (n - 1) * (R - R.mean())
    return advantages


def has_signal(rewards, group_ids):
    keep = np.zeros(len(rewards), bool)
    for g in np.unique(group_ids):
        rows = group_ids == g
        R = rewards[rows]
        keep[rows] = R.max() > R.min()
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    return keep


def has_signal_of_outcomes(rewards, shaped_rewards, group_ids):
    assert rewards.shape == shaped_rewards.shape
    return has_signal(rewards, group_ids)


def pass_rate(rewards, group_ids):
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    keep = np.zeros(len(rewards), bool)
    for g in np.unique(group_ids):
        rows = group_ids == g
        R = rewards[rows]
        p = R.mean() if R.max() > R.min() else R[0]
        keep[rows] = 0.25 - 1e-9 <= p <= 0.75 + 1e-9
    return keep


def k3(logps, ref_logps):
    y = logps - ref_logps
    return torch.expm1(-y) + y


def k2(logps, ref_logps):
    y = logps - ref_logps
    return y * y / 2


def token_mean(values, mask):
    return masked(values, mask).sum() / mask.sum().clamp(min=1)


def sequence_mean(values, mask):
    lengths = mask.sum(1)
    per_sequence = masked(values, mask).sum(1) / lengths.clamp(min=1)
    return per_sequence.sum() / (lengths > 0).sum().clamp(min=1)


# What each is held against: kind, recipe or stage.
HELD_AGAINST = {
    grpo: ("loss", "grpo", {}),
    dapo: ("loss", "dapo", {"max_len": 100}),
    dapo_of_a_step: ("loss", "dapo", {"max_len": 100}),
    with_entropy: ("loss", "trl", {"entropy_coef": 0.01}),
    gspo: ("loss", "gspo", {}),
    cispo: ("loss", "cispo", {"high": 4.0}),
    group_norm: ("advantage", "GroupNorm()", {}),
    leave_one_out: ("advantage", "LeaveOneOut()", {}),
    has_signal: ("filter", "HasSignal()", {}),
    has_signal_of_outcomes: ("filter", "HasSignal()", {}),
    pass_rate: ("filter", "PassRate(0.25, 0.75)", {}),
    k3: ("kl", "k3", {}),
    k2: ("kl", "k2", {}),
    token_mean: ("aggregate", "TokenMean()", {}),
    sequence_mean: ("aggregate", "SequenceMean()", {}),
}
