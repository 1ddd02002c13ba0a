"""VESPO's weight of whole sequences (arXiv:2602.10693): REINFORCE, weighed by a Gamma-shaped function of W.

LOSS_t = −sg(φ(W)) A log π, W = Π_t r_t over the sequence, r = π / π_old: the true product, without a length
normalisation. φ(W) = W^k e^{λ (1 − W)}, (k, λ) by the sign of A; φ(1) = 1. A correction for the sampler is folded in:
W = Π_t r_t w_t, and w_t is used nowhere else.

log W is kept within [log 1e-8, 20], as in the authors' code and in TRL: with the paper's numbers φ is 2e-15 and less at
the lower end, and 0 at the upper.
Left out: nothing of the objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grpokit.errors import error
from grpokit.parameters import check_number
from grpokit.stages import Objective, register

from .columns import LIMIT, clip, stop, where

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens

LEAST = math.log(1e-8)


@register("objective")
@dataclass(frozen=True)
class GammaWeight(Objective):
    """−sg(φ(W)) A log π, φ(W) = W^k e^{λ (1 − W)}, W = Π_t r_t w_t.

    Parameters
    ----------
    k_pos, lambda_pos : float
        Where A >= 0; 0 or more.
    k_neg, lambda_neg : float
        Where A < 0; 0 or more.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂LOSS_t/∂log π = −A φ(W), at most (k/λ)^k e^{λ − k} in size (at W = k/λ): 1.208 for (2, 3), 1.242 for (3, 2).
    """

    k_pos: float = 2.0
    lambda_pos: float = 3.0
    k_neg: float = 3.0
    lambda_neg: float = 2.0
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "logps", "advantages", "weight"})
    scope: ClassVar[Literal["sequence"]] = "sequence"
    folds: ClassVar[bool] = True
    equation: ClassVar[str] = "−sg(φ(W)) A log π"
    where: ClassVar[str] = "φ(W) = W^k e^{λ (1 − W)}, W = Π_t r_t w_t within [1e-8, e^20], k and λ by the sign of A"
    gradient: ClassVar[str] = "g = −A φ(W)"

    def __post_init__(self) -> None:
        for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg"):
            check_number(self, name, at_least=0)
        for name, k, lam in self._pairs():
            if _largest(k, lam) > 60:
                expected = "one whose largest φ(W), W from 1e-8 to e^20, is at most e^60 with the other of its sign"
                raise error(
                    "bad_parameter", owner="GammaWeight", name=name, given=getattr(self, name), expected=expected
                )

    @property
    def breaks(self) -> Mapping[str, str]:
        largest = max(_largest(k, lam) for _, k, lam in self._pairs())
        return {"bounded": "the largest φ(W) is beyond 5"} if largest > math.log(5) else {}

    def _pairs(self) -> tuple[tuple[str, float, float], ...]:
        return ("k_pos", self.k_pos, self.lambda_pos), ("k_neg", self.k_neg, self.lambda_neg)

    def value(self, tokens: Tokens) -> Tensor:
        A = tokens.advantages
        log_W = clip(tokens.total(tokens.log_ratio + tokens.weight.log()), LEAST, LIMIT)
        k = where(A < 0, self.k_neg, self.k_pos).to(log_W.dtype)
        lam = where(A < 0, self.lambda_neg, self.lambda_pos).to(log_W.dtype)
        # 1 − W as −expm1(log W): near W = 1 nothing cancels.
        return -stop((k * log_W - lam * log_W.expm1()).exp()) * A * tokens.logps


def _largest(k: float, lam: float) -> float:
    """The largest log φ: at W = k / λ, or at the first or last W."""
    inside = [min(max(math.log(k / lam), LEAST), LIMIT)] if k and lam else []
    return max(k * log_W - lam * math.expm1(log_W) for log_W in (LEAST, LIMIT, *inside))
