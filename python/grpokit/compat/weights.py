"""REINFORCE weighed as TRL 1.16.0 weighs it: `cispo`, whose bound is the cap itself, and `vespo`, limited per token.

In and out as in `grpokit.objective`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from grpokit.objective import GammaWeight
from grpokit.objective.columns import LIMIT, clip, stop, where
from grpokit.objective.gamma_weight import LEAST
from grpokit.parameters import check_choice, check_number
from grpokit.stages import Objective, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.stages import Scope
    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class CappedWeight(Objective):
    """−sg(min(r, cap)) A log π: `ClippedWeight` whose bound is the largest weight, and not 1 + it.

    Parameters
    ----------
    cap : float
        The largest weight, more than 0; below 1 it scales every on-policy gradient.
    level : {"token", "sequence"}
        r of the token, or the geometric mean of its sequence's.

    Raises
    ------
    InputError
        `bad_parameter`.
    """

    cap: float
    level: Literal["token", "sequence"] = "token"
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "logps", "advantages"})
    example: ClassVar[Mapping[str, Any]] = {"cap": 0.2}

    def __post_init__(self) -> None:
        check_number(self, "cap", more_than=0)
        check_choice(self, "level", ("token", "sequence"))

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """The token's or its sequence's."""
        return self.level

    @property
    def symbol(self) -> str:
        """Of the ratio."""
        return "r" if self.level == "token" else "s"

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of either level."""
        return f"−sg(min({self.symbol}, cap)) A log π"

    @property
    def where(self) -> str:  # type: ignore[override]
        """What s is."""
        return "" if self.level == "token" else "s = exp(1/|o| Σ_t log r_t)"

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Of either level."""
        return f"g = −A min({self.symbol}, cap)"

    @property
    def breaks(self) -> Mapping[str, str]:
        found = {"on_policy": "a cap below 1 is every weight's: the gradient is cap times the plain one"}
        found = found if self.cap < 1 else {}
        return found | ({"bounded": "the weight is the ratio up to the cap"} if self.cap > 5 else {})

    def value(self, tokens: Tokens) -> Tensor:
        d = tokens.log_ratio if self.level == "token" else tokens.mean(tokens.log_ratio)
        return -stop(clip(d, None, math.log(self.cap)).exp()) * tokens.advantages * tokens.logps


@register("objective")
@dataclass(frozen=True)
class LimitedGammaWeight(GammaWeight):
    """`GammaWeight` whose W is a product of factors that are limited one by one: TRL 1.16.0's `vespo`."""

    where: ClassVar[str] = (
        "φ(W) = W^k e^{λ (1 − W)}, W = Π_t r_t w_t within [1e-8, e^20], r_t within e^±20, w_t within [1e-8, e^20], "
        "k and λ by the sign of A"
    )

    def value(self, tokens: Tokens) -> Tensor:
        A = tokens.advantages
        factors = clip(tokens.log_ratio, -LIMIT, LIMIT) + clip(tokens.weight.log(), LEAST, LIMIT)
        log_W = clip(tokens.total(factors), LEAST, LIMIT)
        k = where(A < 0, self.k_neg, self.k_pos).to(log_W.dtype)
        lam = where(A < 0, self.lambda_neg, self.lambda_pos).to(log_W.dtype)
        # Term by term as there: what λ − λ W loses near W = 1 is lost in the same way.
        return -stop((lam + k * log_W - lam * log_W.exp()).exp()) * A * tokens.logps
