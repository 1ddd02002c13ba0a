"""Masks and a denominator beyond the papers': TRL 1.16.0's forks, verl 0.9.1's `dppo_kl` and its plain sum.

In and out as in `grpokit.token_selection`, `grpokit.drift` and `grpokit.aggregate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from grpokit.aggregate import _Aggregate
from grpokit.mismatch import RATIO, Mismatch, Policy, check_bounds, outside, within
from grpokit.objective.columns import ratio, where
from grpokit.parameters import check_number
from grpokit.rejection import kept
from grpokit.stages import Correct, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.stages import Scope
    from grpokit.tokens import Normalizer, Tokens

TINY = 1e-8


@register("correct")
@dataclass(frozen=True)
class BinaryKLMask(Correct):
    """`DPPOMask(kind="kl", against="old")` with verl 0.9.1's arithmetic: 1e-8 beside 1 − p, and p not limited.

    Parameters
    ----------
    low, high : float
        δ where p < q and A <= 0, and where p > q and A > 0; 0 or more.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    The digits that 1 − p loses in fp32 where p is nearly 1 are lost here as there.
    """

    low: float
    high: float
    reads: ClassVar[frozenset[str]] = frozenset({"advantages", "logps", "old_logps"})
    example: ClassVar[Mapping[str, Any]] = {"low": 0.2, "high": 0.2}
    equation: ClassVar[str] = (
        "w = 0 where D > high, A > 0, π > π_old, or D > low, A ≤ 0, π < π_old; else 1; D = q log(q / p) + "
        "(1 − q) log((1 − q + 1e-8) / (1 − p + 1e-8)), q = π_old, p = π"
    )

    def __post_init__(self) -> None:
        check_number(self, "low", at_least=0)
        check_number(self, "high", at_least=0)

    def weight(self, tokens: Tokens) -> Tensor:
        log_p, log_q = tokens.logps, tokens.old_logps
        p, q = log_p.exp(), log_q.exp()
        D = q * (log_q - log_p) + (1.0 - q) * ((1.0 - q + TINY) / (1.0 - p + TINY)).log()
        up = tokens.advantages > 0
        # Negated, since D is NaN where a log-prob is above 0, and verl then drops the token.
        far = where(up, self.high, self.low).to(D.dtype)
        return kept(~(far >= D) & where(up, p > q, p < q), log_q - log_p)


@register("correct")
@dataclass(frozen=True)
class FP32TopEntropy(Correct):
    """`TopEntropy` by torch's own quantile, in fp32: TRL 1.16.0's `top_entropy_quantile`.

    Parameters
    ----------
    top_entropy_quantile : float
        The share that is taken, between 0 and 1.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    Where the rank is a whole number but for rounding, `TopEntropy` may drop the token at the threshold that this keeps.
    torch refuses more than 2^24 tokens.
    """

    top_entropy_quantile: float
    reads: ClassVar[frozenset[str]] = frozenset({"entropies"})
    scope: ClassVar[Scope] = "batch"
    equation: ClassVar[str] = "w = 1 where H ≥ the (1 − ρ)-quantile of H over the batch, in fp32, else 0"
    example: ClassVar[Mapping[str, Any]] = {"top_entropy_quantile": 0.2}

    def __post_init__(self) -> None:
        check_number(self, "top_entropy_quantile", more_than=0, at_most=1)

    def weight(self, tokens: Tokens) -> Tensor:
        import torch

        H = tokens.entropies
        return kept(torch.quantile(H, 1 - self.top_entropy_quantile) > H, H) if len(H) else H


@register("correct")
@dataclass(frozen=True)
class FlooredMask(Mismatch):
    """w = ρ where low <= ρ <= high, else 1e-8: TRL 1.16.0's `token_mask` as its `vespo` sees it.

    `vespo` takes the logarithm of the weights, and limits that of a 0 to log 1e-8: the token keeps its own share, and
    its answer is all but lost.

    Parameters
    ----------
    high, low : float or None
        Of ρ, more than 0; None is no bound.
    policy : {"old", "current"}
        ρ = π_old / π_rollout, or u = π / π_rollout.

    Raises
    ------
    InputError
        `bad_parameter`.
    """

    high: float | None
    low: float | None = None
    policy: Policy = field(default="old", kw_only=True)
    importance: ClassVar[bool] = True
    example: ClassVar[Mapping[str, Any]] = {"high": 3.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "low", "high", needed=True)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """With what is there of bounds."""
        return f"w = {self.symbol} where {within(self.low, self.high, self.symbol)}, else 1e-8, {RATIO[self.policy]}"

    def weight(self, tokens: Tokens) -> Tensor:
        d = self.log_ratio(tokens)
        return where(outside(d, self.low, self.high), TINY, ratio(d))


@register("aggregate")
@dataclass(frozen=True)
class TokenSum(_Aggregate):
    """The sum over all tokens, nothing divides: verl 0.9.1's `token-sum`, whose scale follows the batch."""

    formula: ClassVar[str] = "1"

    def denominator(self, counts: Normalizer, lengths_T: Tensor) -> Tensor:
        return 1 + 0 * lengths_T
