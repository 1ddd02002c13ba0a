"""GMPO's geometric mean of clipped ratios (Zhao et al., arXiv:2507.20673, eqs. 4, 5).

LOSS is the mean over sequences of −A · exp(1/|o| Σ_t d̃_t), where d̃ is d = log π − log π_old, clipped token by token
and on the side that A pushes towards: at most `high` where A >= 0, at least −`low` where A < 0. The bounds are those of
the logarithm: the paper's (e^−0.4, e^0.4) is low = high = 0.4.

Left out: nothing of the objective; the paper's ablations (no clip, no length normalisation) are not recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grpokit.parameters import check_number
from grpokit.stages import Objective, register

from .columns import LIMIT, clip, ratio, where

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class GeometricClip(Objective):
    """−A exp(mean_t d̃), d̃ = min(d, high) where A >= 0, max(d, −low) where A < 0.

    Parameters
    ----------
    low, high : float or None
        The bounds of the log-ratio, 0 or more; inclusive, the gradient is on at the bound. None is no bound.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂LOSS/∂log π_j = −(Σ_t k_t A_t) S / |o| where d_j is inside, else 0: a clipped token still scales the others.
    """

    low: float | None = 0.4
    high: float | None = 0.4
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})
    scope: ClassVar[Literal["sequence"]] = "sequence"
    limit: ClassVar[float] = LIMIT
    equation: ClassVar[str] = "−A S"
    where: ClassVar[str] = "S = exp(1/|o| Σ_t d̃_t), d̃ = min(log r, high) if A ≥ 0, max(log r, −low) if A < 0"
    gradient: ClassVar[str] = "g_j = −(Σ_t A_t) S / |o| while log r_j ≤ high (A ≥ 0) or log r_j ≥ −low (A < 0), else 0"

    def __post_init__(self) -> None:
        check_number(self, "low", at_least=0, optional=True)
        check_number(self, "high", at_least=0, optional=True)

    @property
    def breaks(self) -> Mapping[str, str]:
        return {"bounded": "A < 0 and r → ∞ is pushed down with the sequence's ratio"}

    def value(self, tokens: Tokens) -> Tensor:
        d, A = tokens.log_ratio, tokens.advantages
        low = None if self.low is None else -self.low
        return -A * ratio(tokens.mean(where(A < 0, clip(d, low, None), clip(d, None, self.high))), self.limit)
