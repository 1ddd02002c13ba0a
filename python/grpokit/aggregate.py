"""Stage 7, aggregate: the denominators of the four ways to average over tokens.

In: how many tokens and sequences a term counts in the whole optimizer step, and each token's sequence length. Out:
what each token's contribution is divided by. A denominator never depends on how the step is cut into micro-batches.

`over` says what is counted: "live" tokens (inside the mask) and the sequences that have any; those that the weights
"kept"; or all "rows", the empty ones too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from .parameters import check_choice, check_number
from .stages import Aggregate, register

if TYPE_CHECKING:
    from torch import Tensor

    from .tokens import Normalizer

Over = Literal["live", "kept", "rows"]


@dataclass(frozen=True)
class _Aggregate(Aggregate):
    over: Over = field(default="live", kw_only=True)
    formula: ClassVar[str]

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The formula, with what is counted where that is not what lives."""
        return (
            self.formula.replace("|o_i|", "|o_i|_kept").replace("N", "N_kept") if self.over == "kept" else self.formula
        )

    def __post_init__(self) -> None:
        check_choice(self, "over", ("live", "kept", "rows"))


@register("aggregate")
@dataclass(frozen=True)
class TokenMean(_Aggregate):
    """The mean over all tokens of the step: DAPO's 1 / Σ_i |o_i| (arXiv:2503.14476, eq. 8)."""

    formula: ClassVar[str] = "Σ_i |o_i|"

    def denominator(self, counts: Normalizer, lengths_T: Tensor) -> Tensor:
        return counts.tokens + 0 * lengths_T


@register("aggregate")
@dataclass(frozen=True)
class SequenceMean(_Aggregate):
    """The mean over sequences of the mean over their tokens: GRPO's 1/G Σ_i 1/|o_i| (arXiv:2402.03300, eq. 3)."""

    formula: ClassVar[str] = "N · |o_i|"

    def denominator(self, counts: Normalizer, lengths_T: Tensor) -> Tensor:
        return counts.sequences * lengths_T


@register("aggregate")
@dataclass(frozen=True)
class SequenceSum(_Aggregate):
    """The mean over sequences of the sum over their tokens: REINFORCE on whole answers."""

    formula: ClassVar[str] = "N"

    def denominator(self, counts: Normalizer, lengths_T: Tensor) -> Tensor:
        return counts.sequences + 0 * lengths_T


@register("aggregate")
@dataclass(frozen=True)
class Constant(_Aggregate):
    """Sequences times a constant length: Dr.GRPO, which divides by the generation budget (arXiv:2503.20783, §3.2).

    Parameters
    ----------
    length : float
        The constant, in tokens.
    over : {"live", "kept", "rows"}
        Which sequences count.
    """

    length: float = 1.0
    formula: ClassVar[str] = "N · L"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "length", more_than=0)

    def denominator(self, counts: Normalizer, lengths_T: Tensor) -> Tensor:
        return counts.sequences * self.length + 0 * lengths_T
