"""Stage 3, select: which rows are kept, stage after stage, and the reasons of the others.

A group key is any hashable value; rewards and gates may be None (not scored).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

UNSCORED, NOT_FINITE, TRUNCATED, NO_SIGNAL = 1, 2, 4, 8


def has_signal(outcomes: Sequence[float], tolerance: float = 0.0) -> bool:
    """Whether a group can teach anything: max > min, beyond a tolerance.

    Examples
    --------
    >>> has_signal([0.1, 0.1, 0.1]), has_signal([0.0, 1.0]), has_signal([])
    (False, True, False)
    """
    return len(outcomes) > 0 and max(outcomes) - min(outcomes) > tolerance


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

    def has_signal(self, tolerance: float = 0.0) -> None:
        """Dynamic sampling (DAPO, arXiv:2503.14476, eq. 11): drops the groups without signal."""
        for g in set(self.groups):
            rows = [i for i in range(len(self.groups)) if self.groups[i] == g]
            if not has_signal([x for i in rows if self.live[i] and (x := self.outcomes[i]) is not None], tolerance):
                for i in rows:
                    self.reasons[i].append(NO_SIGNAL)

    def not_truncated(self, truncated: Callable[[int], bool], *, stats: str) -> None:
        """Overlong filtering (DAPO, arXiv:2503.14476, §3.4)."""
        self.drop([truncated(i) for i in range(len(self.groups))], TRUNCATED, stats=stats)

    def keep(self) -> list[bool]:
        """The rows without a reason."""
        return [not reasons for reasons in self.reasons]
