"""PPO's clipped surrogate (Schulman et al., arXiv:1707.06347, eq. 7), the policy term of GRPO, DAPO and Dr.GRPO.

LOSS_t = −min(r A, clip(r, 1 − low, 1 + high) A), r = π / π_old. DAPO (arXiv:2503.14476, eq. 8) has two different
bounds. Dual clip (Ye et al., arXiv:1912.09729, eq. 5) adds that LOSS_t is at most −dual · A where A < 0.

Left out: PPO's value and entropy terms are terms of their own; the papers' expectation is the aggregate's denominator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpokit import arithmetic
from grpokit.parameters import check_number
from grpokit.stages import Objective, register

from .columns import LIMIT, clip, log_bounds, ratio, where

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class Clip(Objective):
    """−min(r A, clip(r, 1 − low, 1 + high) A), and with `dual` at most −dual · A where A < 0.

    Parameters
    ----------
    low, high : float or None
        The bounds 1 − low and 1 + high of the ratio; inclusive, the gradient is on at the bound. 0 <= low < 1,
        0 <= high. None is no bound.
    dual : float or None
        The largest ratio that counts where A < 0; more than 1.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂LOSS_t/∂log π = −A r where the gate is open, else 0. The gate: A > 0 and r <= 1 + high, or A < 0 and
    1 − low <= r (<= dual).

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> d = torch.tensor([0.0, 0.3, -0.3], requires_grad=True)
    >>> tokens = Tokens({"log_ratio": d, "advantages": torch.tensor([1.0, 1.0, 1.0])}, torch.tensor([3]))
    >>> Clip(low=0.2, high=0.28).value(tokens).sum().backward()
    >>> d.grad
    tensor([-1.0000,  0.0000, -0.7408])
    """

    low: float | None = 0.2
    high: float | None = 0.2
    dual: float | None = None
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})
    symbol: ClassVar[str] = "r"
    limit: ClassVar[float] = LIMIT

    def __post_init__(self) -> None:
        check_number(self, "low", at_least=0, less_than=1, optional=True)
        check_number(self, "high", at_least=0, optional=True)
        check_number(self, "dual", more_than=1, optional=True)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Eq. 7, with the dual clip where there is one."""
        r, dual = self.symbol, "" if self.dual is None else ", at most −dual · A where A < 0"
        if self.low is None and self.high is None:
            return f"−{r} A{dual}"
        low, high = "0" if self.low is None else "1 − low", "∞" if self.high is None else "1 + high"
        return f"−min({r} A, clip({r}, {low}, {high}) A){dual}"

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """The same times the gate."""
        r = self.symbol
        above = [f"{r} ≤ 1 + high"] * (self.high is not None)
        below = [f"{r} ≥ 1 − low"] * (self.low is not None) + [f"{r} ≤ dual"] * (self.dual is not None)
        gates = [f"{', '.join(gate)} (A {sign} 0)" for gate, sign in ((above, ">"), (below, "<")) if gate]
        return f"g = −A {r} while {' or '.join(gates)}, else 0" if gates else f"g = −A {r}"

    @property
    def breaks(self) -> Mapping[str, str]:
        reasons = []
        if self.dual is None or self.dual > 5:
            reasons.append("A < 0 and r → ∞ is pushed down with r; a dual clip ends that")
        if self.high is None or self.high > 4:
            reasons.append("A > 0 and r → ∞ is pulled up with r; `high` ends that")
        return {"bounded": "; ".join(reasons)} if reasons else {}

    @property
    def facts(self) -> tuple[str, ...]:
        return arithmetic.token_clip(self.high)

    def value(self, tokens: Tokens) -> Tensor:
        # min(r A, clip(r) A) is A times r with the bound that A pushes towards. Written like this, d alone decides the
        # gate; of two rounded products, min would call a tie what is beyond the bound.
        d, A = self.level(tokens), tokens.advantages
        low, high = log_bounds(self.low, self.high)
        dual = None if self.dual is None else math.log(self.dual)
        return -A * ratio(where(A < 0, clip(d, low, dual), clip(d, None, high)), self.limit)

    def level(self, tokens: Tokens) -> Tensor:
        """(T,): log r, whose bounds are meant."""
        return tokens.log_ratio
