"""Stage 3, select: which rows are kept, stage after stage, and the reasons of the others.

A group key is any hashable value; rewards and gates may be None (not scored).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

UNSCORED, NOT_FINITE, TRUNCATED, NO_SIGNAL, PASS_RATE, DUPLICATE, SMALL_GROUP = (1 << bit for bit in range(7))
DOWNSAMPLED, LOW_VARIANCE, LOW_LEARNABILITY, SOURCE_LIMIT, STALE, SURPLUS = (1 << bit for bit in range(7, 13))


def has_signal(outcomes: Sequence[float], tolerance: float = 0.0) -> bool:
    """Whether a group can teach anything: max > min, beyond a tolerance.

    Examples
    --------
    >>> has_signal([0.1, 0.1, 0.1]), has_signal([0.0, 1.0]), has_signal([])
    (False, True, False)
    """
    return len(outcomes) > 0 and max(outcomes) - min(outcomes) > tolerance


def mean(outcomes: Sequence[float]) -> float:
    """The mean; exactly the common value where all are equal, 0 of nothing."""
    if not outcomes or max(outcomes) == min(outcomes):
        return outcomes[0] if outcomes else 0.0
    return sum(outcomes) / len(outcomes)


@dataclass
class Selection:
    """Rows on their way through selection.

    Attributes
    ----------
    live : list of bool
        The rows that statistics are taken over.
    reasons : list of list of int
        Every reason that applied to a row, in the order of the stages.
    """

    groups: Sequence[Hashable]
    outcomes: Sequence[float | None]
    live: list[bool] = field(init=False)
    reasons: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.live = [True] * len(self.groups)
        self.reasons = [[] for _ in self.groups]
        self.drop([x is None for x in self.outcomes], UNSCORED, stats="drop")

    def drop(self, dropped: Sequence[bool], reason: int, *, stats: str) -> None:
        """Drops rows; with stats="keep" they still count in their group's statistics."""
        for i, gone in enumerate(dropped):
            if gone:
                self.reasons[i].append(reason)
                if stats == "drop":
                    self.live[i] = False

    def not_finite(self) -> None:
        """Drops what is NaN or infinite."""
        self.drop([x is not None and not math.isfinite(x) for x in self.outcomes], NOT_FINITE, stats="drop")

    def rows_of(self, g: Hashable) -> list[int]:
        """The rows of a group."""
        return [i for i in range(len(self.groups)) if self.groups[i] == g]

    def counted(self, g: Hashable) -> list[float]:
        """The outcomes of a group that count."""
        return [x for i in self.rows_of(g) if self.live[i] and (x := self.outcomes[i]) is not None]

    def drop_groups(self, dropped: Callable[[Hashable], bool], reason: int) -> None:
        """Drops whole groups."""
        for g in [g for g in dict.fromkeys(self.groups) if dropped(g)]:
            for i in self.rows_of(g):
                self.reasons[i].append(reason)

    def has_signal(self, tolerance: float = 0.0) -> None:
        """Dynamic sampling (DAPO, arXiv:2503.14476, eq. 11): drops the groups without signal."""
        self.drop_groups(lambda g: not has_signal(self.counted(g), tolerance), NO_SIGNAL)

    def pass_rate(self, low: float, high: float) -> None:
        """Online difficulty filtering (arXiv:2504.03380): drops the groups whose mean outcome is outside a band."""
        # A mean is rounded; no two pass rates are as near as that.
        low, high = low - 1e-12 * abs(low), high + 1e-12 * abs(high)
        self.drop_groups(lambda g: not self.counted(g) or not low <= mean(self.counted(g)) <= high, PASS_RATE)

    def min_group_size(self, rows: int) -> None:
        """Drops the groups in which fewer rows count."""
        self.drop_groups(lambda g: len(self.counted(g)) < rows, SMALL_GROUP)

    def max_lag(self, lags: Sequence[int], lag: int, *, stats: str) -> None:
        """Drops the answers of a policy that is too old."""
        self.drop([x > lag for x in lags], STALE, stats=stats)

    def distinct(self, contents: Sequence[Hashable], *, stats: str) -> None:
        """Drops each kept row whose group has an earlier kept row of the same content."""
        kept = [(self.groups[i], contents[i]) if keep else None for i, keep in enumerate(self.keep())]
        self.drop([pair is not None and pair in kept[:i] for i, pair in enumerate(kept)], DUPLICATE, stats=stats)

    def copies(self, contents: Sequence[Hashable]) -> list[int]:
        """How many kept rows of its group share a kept row's content, itself included; 1 for the others."""
        kept = [(self.groups[i], contents[i]) if keep else None for i, keep in enumerate(self.keep())]
        return [1 if pair is None else kept.count(pair) for pair in kept]

    def not_truncated(self, truncated: Callable[[int], bool], *, stats: str) -> None:
        """Overlong filtering (DAPO, arXiv:2503.14476, §3.4)."""
        self.drop([truncated(i) for i in range(len(self.groups))], TRUNCATED, stats=stats)

    def keep(self) -> list[bool]:
        """The rows without a reason."""
        return [not reasons for reasons in self.reasons]
