"""SAPO's soft gate (Gao et al., arXiv:2511.20347): a sigmoid of the ratio in place of the clip.

LOSS_t = −A (4/τ) σ(τ (r − 1)), r = π / π_old, τ by the sign of A. The factor 4/τ makes the slope in r at 1 that of r
itself. The gate has two sides: it also damps r < 1 where A > 0, and r > 1 where A < 0.

Left out: nothing of the objective. Its value at r = 1 is −2 A / τ, no importance weight: not to be compared with a
clip's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpokit.parameters import check_number
from grpokit.stages import Objective, register

from .columns import ratio, where

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class SoftGate(Objective):
    """−A (4/τ) σ(τ (r − 1)), τ = positive where A > 0, else negative.

    Parameters
    ----------
    positive, negative : float
        The temperatures τ_pos and τ_neg; more than 0.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂LOSS_t/∂log π = −A r sech²(τ (r − 1) / 2): −A at r = 1 for every τ, at most 1.575 A (at r = 2.06, τ = 1).
    """

    positive: float = 1.0
    negative: float = 1.05
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})
    equation: ClassVar[str] = "−A (4/τ) σ(τ (r − 1))"
    where: ClassVar[str] = "τ = positive if A > 0, else negative"
    gradient: ClassVar[str] = "g = −A r sech²(τ (r − 1) / 2)"

    def __post_init__(self) -> None:
        check_number(self, "positive", more_than=0)
        check_number(self, "negative", more_than=0)

    @property
    def breaks(self) -> Mapping[str, str]:
        # r sech²(τ (r − 1) / 2) is about 1.8 / τ at most for a small τ; a scan says when that is beyond 5.
        ratios = [1 + 0.25 * i for i in range(400)]
        least = min(self.positive, self.negative)
        beyond = any(r / math.cosh(min(least * (r - 1) / 2, 300.0)) ** 2 > 5 for r in ratios)
        return {"bounded": "so flat a gate lets r grow beyond 5"} if beyond else {}

    def value(self, tokens: Tokens) -> Tensor:
        import torch

        r, A = ratio(tokens.log_ratio), tokens.advantages
        tau = where(A > 0, self.positive, self.negative).to(r.dtype)
        x = tau * (r - 1)
        # Autograd's slope is σ(1 − σ): where σ is near 1 its digits are in σ(−x).
        return -A * 4 / tau * where(x > 0, 1 - torch.sigmoid(-x), torch.sigmoid(x))
