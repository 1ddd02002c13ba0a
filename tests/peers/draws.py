"""One optimizer step of padded fp32 columns, what a library makes of it, and what grpokit does."""

from dataclasses import dataclass

import torch

import grpokit as gk
from grpokit.loss import coefficients

TOLERANCE = 1e-6


@dataclass
class Step:
    """(B, T) columns and (B,) advantages."""

    mask: torch.Tensor
    logps: torch.Tensor
    entropies: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    rollout: torch.Tensor
    advantages: torch.Tensor

    @classmethod
    def draw(cls, seed, *, near=0.3, spike=0.0, holes=True, empty=True, B=6, T=9):
        """Ragged rows; log-ratios of the size `near`, a twentieth of them `spike` more; zeros among the advantages."""
        g = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=g)

        lengths = torch.randint(1, T + 1, (B,), generator=g)
        if empty:
            lengths[torch.randint(B, (1,), generator=g)] = 0
        mask = torch.arange(T) < lengths[:, None]
        if holes:
            mask &= torch.rand(B, T, generator=g) > 0.15
        logps = -3 * torch.rand(B, T, generator=g) ** 2 - 1e-3
        spikes = spike * torch.sign(normal(B, T)) * (torch.rand(B, T, generator=g) < 0.05)
        advantages = normal(B)
        advantages[torch.randint(B, (1,), generator=g)] = 0.0
        others = logps - near * normal(B, T) - spikes, logps + 0.4 * normal(B, T), logps - near * normal(B, T)
        # No log-prob is above 0; the ratios stay what they are.
        above = torch.stack(others).amax(0).clip(0) + 1e-3
        logps, old, ref, rollout = (x - above for x in (logps, *others))
        entropies = 2 * torch.rand(B, T, generator=g)
        return cls(mask, logps, entropies, old, ref, rollout, advantages)

    def batch(self, **columns):
        """The constants as grpokit takes them."""
        constants = {"old_logps": self.old, "ref_logps": self.ref, "advantages": self.advantages} | columns
        return gk.TokenBatch(torch.zeros(self.mask.shape, dtype=torch.int64), mask=self.mask, **constants)


def ours(recipe, step, **columns):
    """Value, its scale Σ_t |loss_t|, gradients by logps and entropies."""
    batch = step.batch(**columns)
    leaves = {name: getattr(step, name).clone().requires_grad_() for name in ("logps", "entropies")}
    out = gk.loss.from_logps(leaves["logps"], batch, recipe, entropies=leaves["entropies"])
    out.loss.backward()
    now = {name: batch.column(name, x.detach()) for name, x in leaves.items()}
    scale = sum(
        coefficients(
            batch, recipe.replace(objective=t.objective, correct=t.weigh, aggregate=t.aggregate, extra=()), now
        )
        .loss.abs()
        .sum()
        * abs(t.scale)
        for t in recipe.terms
    )
    return out.loss.detach(), scale, leaves["logps"].grad, gradient(leaves["entropies"])


def gradient(leaf):
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def same(found, expected, slack=1.0):
    """Value to 1e-6 of what is added up, gradients to 1e-6 of their largest entry."""
    value, scale, *gradients = found
    assert torch.isfinite(value)
    assert (value - expected[0]).abs() <= slack * TOLERANCE * scale, (value, expected[0], scale)
    for g, e in zip(gradients, expected[1:], strict=True):
        assert torch.isfinite(g).all()
        assert (g - e).abs().max() <= slack * TOLERANCE * e.abs().max(), ((g - e).abs().max() / e.abs().max(), g, e)


def of_sums(step, exponent):
    """By how much 1e-6 grows where log-ratios are added up over a sequence: in fp32 there, in float64 here.

    The fp32 sum of n numbers is off by up to (n − 1) 2^-24 Σ|d|, 5e-7 Σ|d| for the 9 tokens of a step; what is made of
    it is off by that times the exponent that multiplies it: one over the tokens for a mean, k for W^k.
    """
    d = torch.where(step.mask, step.logps - step.old, 0.0).abs().sum(1)
    per_row = d / step.mask.sum(1).clip(1) if exponent == "mean" else exponent * d
    return max(1.0, float(per_row.max()))
