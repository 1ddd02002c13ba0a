"""Functions that are handed to the kit by name: well behaved in every form, and badly behaved in every way."""

import functools
import os
import signal
import sys
import time
from typing import NamedTuple

import numpy as np
import torch

from . import textbook

NOT_CALLABLE = 3


def sound(logps, old_logps, advantages, mask):
    return textbook.dapo(logps, old_logps, advantages, mask)


def wrong(logps, old_logps, advantages, mask):
    return sound(logps, old_logps, advantages, mask).detach()


# Forms.
def row_advantages(log_probs, old_log_probs, adv, response_mask, eps_low=0.1, eps_high=0.1):
    """Advantages per answer, the bounds as arguments, a mask of floats, several results."""
    A, mask = adv.unsqueeze(1), response_mask > 0
    ratio = textbook.log_ratios(log_probs, old_log_probs, mask).exp()
    up, low = 1 + eps_high, 1 - eps_low
    clipped = torch.where(A > 0, torch.where(ratio > up, up, ratio), torch.where(ratio < low, low, ratio))
    loss = (textbook.masked(-clipped * A, mask) * (1 - (1 - response_mask))).sum() / response_mask.sum().clamp(min=1)
    return loss, {"clipped": 0.0}


def packed(logprobs, old_logprobs, advantages, cu_seqlens):
    loss = sound(logprobs, old_logprobs, advantages, torch.ones_like(logprobs, dtype=torch.bool))
    assert cu_seqlens[-1] == len(logprobs)
    return {"loss": loss}


def in_numpy(logps, old_logps, advantages, mask):
    d = np.clip(np.where(mask, logps, 0) - np.where(mask, old_logps, 0), -20, 20)
    ratio = np.exp(d)
    clipped = np.where(advantages > 0, np.minimum(ratio, 1.28), np.maximum(ratio, 0.8))
    return np.where(mask, -clipped * advantages, 0).sum() / max(mask.sum(), 1)


def in_numpy_with_gradient(logps, old_logps, advantages, mask):
    d = np.clip(np.where(mask, logps, 0) - np.where(mask, old_logps, 0), -20, 20)
    ratio = np.exp(d)
    inside = np.where(advantages > 0, ratio <= 1.28, ratio >= 0.8) & (np.abs(d) < 20)
    g = np.where(mask & inside, -ratio * advantages, 0) / max(mask.sum(), 1)
    return in_numpy(logps, old_logps, advantages, mask), g


def counted(logps, old_logps, advantages, mask, num_items_in_batch):
    ratio = textbook.log_ratios(logps, old_logps, mask).exp()
    clipped = torch.where(advantages > 0, torch.where(ratio > 1.28, 1.28, ratio), torch.where(ratio < 0.8, 0.8, ratio))
    return textbook.masked(-clipped * advantages, mask).sum() / max(num_items_in_batch, 1)


def of_one_group(rewards):
    R = np.asarray(rewards)
    return (R - R.mean()) / (R.std(ddof=1) + 1e-4) if R.max() > R.min() else 0 * R


def of_a_matrix(rewards, num_generations):
    R = rewards.reshape(-1, num_generations)
    equal = R.max(1, keepdims=True) == R.min(1, keepdims=True)
    A = (R - R.mean(1, keepdims=True)) / (R.std(1, ddof=1, keepdims=True) + 1e-4)
    return np.where(equal, 0.0, A).reshape(rewards.shape)


def of_tokens(token_level_rewards, response_mask, index):
    """As verl's: rewards at the last token, groups as an array of texts, (N, T) out, twice."""
    assert index.dtype == object
    R = token_level_rewards.sum(-1).double()
    A = torch.zeros_like(R)
    for g in set(index.tolist()):
        rows = torch.tensor([i == g for i in index])
        r = R[rows]
        if r.max() > r.min():
            A[rows] = (r - r.mean()) / (r.std() + 1e-4)
        elif not r.isfinite().all():
            A[rows] = torch.nan
    A = A[:, None].where(response_mask > 0, 0.0)
    return A, A


def with_optional_parts(
    logps, old_logps, advantages, mask, ref_logps=None, rollout_logps=None, beta=0.04, clip_ratio_c=None
):
    """As trainers' are: a KL term and a correction where their log-probs are given."""
    loss = textbook.dapo(logps, old_logps, advantages, mask)
    if ref_logps is not None:
        loss = loss + beta * (ref_logps - logps)[mask].sum()
    if rollout_logps is not None:
        loss = loss * (old_logps - rollout_logps)[mask].exp().mean().detach()
    return loss


class Output(NamedTuple):
    """As trainers that return their metrics beside the loss have it."""

    clipped: float
    loss: torch.Tensor


def named_parts(logps, old_logps, advantages, mask):
    return Output(0.0, sound(logps, old_logps, advantages, mask))


class PolicyLoss(torch.nn.Module):
    """As OpenRLHF's: the parameters are those of `forward`."""

    def forward(self, log_probs, old_log_probs, advantages, action_mask):
        return textbook.dapo(log_probs, old_log_probs, advantages, action_mask)


as_module = PolicyLoss()


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments, **named):
        return function(*arguments, **named)

    return wrapper


twice_decorated = decorated(decorated(sound))
bound_numbers = functools.partial(row_advantages, eps_low=0.2, eps_high=0.28)


def by_position(logps, old_logps, advantages, mask, /):
    return textbook.dapo(logps, old_logps, advantages, mask)


def list_of_arrays(rewards, group_ids):
    return [np.float32(x) for x in textbook.group_norm(np.asarray(rewards), np.asarray(group_ids))]


def as_everybody_writes_it(logps, old_logps, advantages, mask):
    ratio = torch.where(mask, logps - old_logps, 0.0).clamp(-20, 20).exp()
    surrogate = torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    return torch.where(mask, -surrogate, 0.0).sum() / mask.sum().clamp(min=1)


def without_gradient(logps, old_logps, advantages, mask):
    return as_everybody_writes_it(logps, old_logps, advantages, mask).item()


def wrong_and_per_row(logps, old_logps, advantages, mask):
    """With advantages (S, T) it would broadcast to (S, S, T) and not complain."""
    A = advantages.unsqueeze(1)
    ratio = textbook.log_ratios(logps, old_logps, mask).exp()
    surrogate = torch.min(ratio * A, ratio.clamp(0.8, 1.28) * A)
    return (-surrogate * mask).mean()


def of_numbered_groups(rewards, group_ids):
    """Group ids are places in an array."""
    R, ids = torch.as_tensor(rewards), torch.as_tensor(group_ids)
    n, total = torch.zeros(len(R), dtype=R.dtype), torch.zeros(len(R), dtype=R.dtype)
    n.index_add_(0, ids, torch.ones_like(R))
    total.index_add_(0, ids, R)
    low = torch.full_like(total, torch.inf).scatter_reduce_(0, ids, R, "amin")
    high = torch.full_like(total, -torch.inf).scatter_reduce_(0, ids, R, "amax")
    A = R - (total / n)[ids]
    return torch.where((low == high)[ids], torch.zeros_like(A), A)


def keep_of_one_group(rewards):
    return bool(max(rewards) > min(rewards)) and bool(np.isfinite(rewards).all())


# Misbehaviour.
def aborts(logps, old_logps, advantages, mask):
    if not mask.any():
        os.kill(os.getpid(), signal.SIGSEGV)
    return sound(logps, old_logps, advantages, mask)


def leaves(logps, old_logps, advantages, mask):
    if not mask.any():
        os._exit(0)
    return sound(logps, old_logps, advantages, mask)


def aborts_at_once(logps, old_logps, advantages, mask):
    os.abort()


def hangs(logps, old_logps, advantages, mask):
    if not mask.any():
        time.sleep(600)
    return sound(logps, old_logps, advantages, mask)


def prints(logps, old_logps, advantages, mask):
    print("hello from the loss")
    os.write(1, b"and from below\n")
    print("and to stderr", file=sys.stderr)
    return sound(logps, old_logps, advantages, mask)


def exits(logps, old_logps, advantages, mask):
    sys.exit("no")


def sometimes_raises(logps, old_logps, advantages, mask):
    if not mask.any():
        raise ZeroDivisionError("an empty batch")
    return sound(logps, old_logps, advantages, mask)


def per_token(logps, old_logps, advantages, mask):
    return -(logps - old_logps).exp() * advantages


def text(logps, old_logps, advantages, mask):
    return "0.5"


def writes(logps, old_logps, advantages, mask):
    advantages[:] = torch.where(mask, advantages, 0)
    return sound(logps, old_logps, advantages, mask)


def draws(logps, old_logps, advantages, mask):
    return sound(logps, old_logps, advantages, mask) * (1 + 1e-12 * torch.rand(()))


def nameless(logps, something):
    return logps.sum() * something


def writes_logps(logps, old_logps, advantages, mask):
    return sound(logps.masked_fill_(~mask, 0.0), old_logps, advantages, mask)


def is_complex(logps, old_logps, advantages, mask):
    return sound(logps, old_logps, advantages, mask) * (1 + 0j)


def spoils_its_gradient(logps, old_logps, advantages, mask):
    ratio = (logps - old_logps).exp()
    loss = (ratio * advantages)[mask].sum()
    ratio.add_(1.0)
    return loss


class _HangsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        time.sleep(600)


def hangs_backwards(logps, old_logps, advantages, mask):
    loss = sound(logps, old_logps, advantages, mask)
    return loss if mask.any() else _HangsBackwards.apply(loss)


async def waits(logps, old_logps, advantages, mask):
    return sound(logps, old_logps, advantages, mask)


scripted = _HangsBackwards.apply


def short(rewards, group_ids):
    return textbook.group_norm(rewards, group_ids)[:-1]


def words(rewards, group_ids):
    return np.array(["a"] * len(rewards))
