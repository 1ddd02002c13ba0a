"""LUFFY's mixed-policy objective with policy shaping (Yan et al., arXiv:2504.14945).

A group holds the policy's own answers and demonstrations of another model. Own tokens: PPO's surrogate. Demonstrated
tokens (`off_policy`): −A f(π), f(x) = x / (x + γ), since the other model's probability is taken as 1; f's slope is
largest for the tokens that the policy finds unlikely.

Left out: the paper's convergence theory asks for the demonstrator's probabilities; none are read here, as in its runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpokit.parameters import check_number
from grpokit.stages import Objective, register

from .columns import clip, log_bounds, ratio, where

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class MixedPolicy(Objective):
    """−A π / (π + γ) where `off_policy`, else −min(r A, clip(r, 1 − low, 1 + high) A).

    Parameters
    ----------
    gamma : float
        γ, more than 0.
    low, high : float or None
        The clip of own tokens; None is no bound.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂LOSS_t/∂log π = −A γ π / (π + γ)² where `off_policy`: largest at π = γ, where it is −A / 4. What the old policy
    holds at such tokens does not matter, even NaN. With a correction for the sampler, which weighs by
    π_old / π_rollout, give such tokens `rollout_logps` equal to `old_logps`: the sampler did not make them.
    """

    gamma: float = 0.1
    low: float | None = None
    high: float | None = None
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "logps", "advantages", "off_policy"})
    equation: ClassVar[str] = "−A π / (π + γ) where off-policy, else −min(r A, clip(r, 1 − low, 1 + high) A)"
    gradient: ClassVar[str] = "g = −A γ π / (π + γ)² where off-policy, else −A r inside the clip"

    def __post_init__(self) -> None:
        check_number(self, "gamma", more_than=0)
        check_number(self, "low", at_least=0, less_than=1, optional=True)
        check_number(self, "high", at_least=0, optional=True)

    @property
    def breaks(self) -> Mapping[str, str]:
        return {
            "on_policy": "off-policy tokens are pulled with γ π / (π + γ)²",
            "bounded": "r → ∞ is pushed down with r where A < 0, and up where A > 0 without `high`",
        }

    def value(self, tokens: Tokens) -> Tensor:
        import torch

        A, off = tokens.advantages, tokens.off_policy != 0
        low, high = log_bounds(self.low, self.high)
        d = where(off, 0.0, tokens.log_ratio)
        own = ratio(where(A < 0, clip(d, low, None), clip(d, None, high)))
        # π / (π + γ) is the sigmoid of log π − log γ.
        return -A * where(off, torch.sigmoid(tokens.logps - math.log(self.gamma)), own)
