"""MASPO's Gaussian gate (arXiv:2602.17550): a soft clip whose width depends on the token's rarity and the advantage.

LOSS_t = −A sg(w) r, r = π / π_old; w = exp(−(r − 1)² / (2 σ²)) on the side that A pushes towards (r > 1 where A > 0,
r < 1 where A < 0), else 1. The width: b = σ_base / π_old^α, at least σ_base and at most σ_high; σ = b · (1 + β A) where
A > 0 and b / (1 − β A) where A < 0, each factor within [adv_low, adv_high].

Read from the authors' code and README, whose clamps the formula in the README does not show; the paper's text was not
read. Left out: nothing. There is no hard clip, so A < 0 and r > 1 is without bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpokit.errors import error
from grpokit.parameters import check_number
from grpokit.stages import Objective, register

from .columns import clip, ratio, stop, where

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class GaussianGate(Objective):
    """−A sg(w) r, w a Gaussian of r − 1 on the side that A pushes towards, else 1.

    Parameters
    ----------
    sigma : float
        σ_base, more than 0.
    alpha : float
        How much wider the gate is for rare tokens: σ_base / π_old^α.
    beta : float
        How much the advantage widens it (A > 0) or narrows it (A < 0); the paper's β_high = β_low.
    sigma_high : float
        The widest base, at least `sigma`.
    adv_low, adv_high : float
        The bounds of the advantage's factor, 0 < adv_low <= adv_high.

    Raises
    ------
    InputError
        `bad_parameter`.
    """

    sigma: float = 1.0
    alpha: float = 0.3
    beta: float = 0.03
    sigma_high: float = 10.0
    adv_low: float = 0.1
    adv_high: float = 10.0
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages", "old_logps"})
    equation: ClassVar[str] = "−A sg(w) r"
    where: ClassVar[str] = (
        "w = exp(−(r − 1)² / (2 σ²)) if A (r − 1) > 0, else 1; σ = b (1 + β A) if A > 0, b / (1 − β A) if A < 0, "
        "the factor within [adv_low, adv_high]; b = sigma / π_old^α, at most sigma_high"
    )
    gradient: ClassVar[str] = "g = −A w r"

    def __post_init__(self) -> None:
        for name in ("sigma", "adv_low"):
            check_number(self, name, more_than=0)
        for name in ("alpha", "beta"):
            check_number(self, name, at_least=0)
        for name, least in (("sigma_high", "sigma"), ("adv_high", "adv_low")):
            check_number(self, name, more_than=0)
            if getattr(self, name) < getattr(self, least):
                expected = f"at least {least}={getattr(self, least)}"
                raise error(
                    "bad_parameter", owner="GaussianGate", name=name, given=getattr(self, name), expected=expected
                )

    @property
    def breaks(self) -> Mapping[str, str]:
        unbounded = {"bounded": "A < 0 and r → ∞ has no gate"}
        return unbounded | ({"homogeneous": "the gate's width depends on A"} if self.beta else {})

    def value(self, tokens: Tokens) -> Tensor:
        r, A = ratio(tokens.log_ratio), tokens.advantages
        width = self.sigma * clip(-self.alpha * tokens.old_logps, 0.0, math.log(self.sigma_high / self.sigma)).exp()
        risk = where(A < 0, 1 / (1 + self.beta * A.abs()), 1 + self.beta * A.abs())
        width = width * clip(risk, self.adv_low, self.adv_high)
        gate = (-(((r - 1) / width) ** 2) / 2).exp()
        return -A * stop(where((r - 1) * A > 0, gate, 1.0)) * r
