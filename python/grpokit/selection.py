"""Stage 3, select: which rows are worth training on, and why the others are not.

In: outcomes (the gate, or the reward before shaping) and groups. Out: a reason for each row that is dropped. Stages run
in the order written and see what the earlier ones left.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, ClassVar, Literal

from .errors import error
from .parameters import check_choice, check_count, check_number
from .stages import OTHER, Select, register

if TYPE_CHECKING:
    from ._native import Groups, Rows
    from .stages import Columns

FINISH = ("stop", "length", "abort", "error", "env", "unknown")


class Reason(IntFlag):
    """Why a row was dropped; the bits of `out.reasons`."""

    UNSCORED = 1
    """The reward (or the gate) is null: the answer could not be scored."""
    NOT_FINITE = 1 << 1
    """The reward is NaN or infinite, and the recipe says not_finite="drop"."""
    TRUNCATED = 1 << 2
    """The answer was cut off at the length limit."""
    NO_SIGNAL = 1 << 3
    """All outcomes of the group are equal."""
    OTHER = OTHER
    """A stage of another package."""


@register("select")
@dataclass(frozen=True)
class HasSignal(Select):
    """Dynamic sampling: keeps the groups whose outcomes are not all equal (DAPO, arXiv:2503.14476, eq. 11).

    Parameters
    ----------
    tolerance : float
        A group has signal iff max − min > tolerance over its rows.

    Notes
    -----
    Never `std > 0`: in floating point the standard deviation of equal numbers is often not 0.
    """

    tolerance: float = 0.0
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "max_i R_i − min_i R_i > tolerance, on the outcome"

    def __post_init__(self) -> None:
        check_number(self, "tolerance", at_least=0)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the groups without signal."""
        rows.drop_without_signal(self.tolerance)


@register("select")
@dataclass(frozen=True)
class NotTruncated(Select):
    """Overlong filtering: drops answers that were cut off at the length limit (DAPO, arXiv:2503.14476, §3.4).

    Parameters
    ----------
    max_len : int or None
        With a number, an answer of at least that many tokens (`response_len`) counts as cut off; without, one
        whose `finish` is "length".
    stats : {"keep", "drop"}
        Whether the dropped rows stay in their group's statistics. "drop": they are as if they had not been sampled.
    """

    max_len: int | None = None
    stats: Literal["keep", "drop"] = "drop"
    equation: ClassVar[str] = "finish ≠ length"

    def __post_init__(self) -> None:
        check_choice(self, "stats", ("keep", "drop"))
        if self.max_len is not None:
            check_count(self, "max_len")

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """`finish`, or `response_len` where `max_len` is given."""
        return frozenset({"finish" if self.max_len is None else "response_len"})

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the truncated rows."""
        from .columns import words

        if self.max_len is None:
            truncated = words("finish", columns["finish"], FINISH) == FINISH.index("length")
        else:
            lengths_N = columns["response_len"]
            if (lengths_N < 0).any():
                row = int((lengths_N < 0).argmax())
                raise error("negative_length", column="response_len", row=row, value=int(lengths_N[row]))
            truncated = lengths_N >= self.max_len
        rows.drop(truncated, Reason.TRUNCATED, self.stats == "keep")
