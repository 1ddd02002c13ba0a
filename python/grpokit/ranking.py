"""Stage 3, select: the stages in which rows of a group, or groups of a batch, compete.

In: outcomes, groups, and the batch of each (`step`; without, the whole table). Out: a reason for each row that was not
chosen. A tie goes to what comes first in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from .errors import error
from .parameters import check_choice, check_count, check_number
from .stages import Select, register

if TYPE_CHECKING:
    from ._native import Groups, Rows
    from .stages import Columns, Read


@register("select")
@dataclass(frozen=True)
class MaxVariance(Select):
    """PODS: of each group the m rows whose outcomes vary most (arXiv:2504.13818, §3.2).

    Parameters
    ----------
    m : int
        The rows to keep of a group, of those that are left; smaller groups stay whole.
    stats : {"keep", "drop"}
        "drop", as in the authors' code: advantages are taken over the m rows.

    Notes
    -----
    The m rows of greatest variance are the h largest and the m − h smallest for some h. As in the authors' code the m
    largest are compared with h = 0, 1, ..., m − 1, and only what is better is taken.
    """

    m: int
    stats: Literal["keep", "drop"] = "drop"
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "argmax over S of the group, |S| = m, of var {R_i: i ∈ S}, on the outcome"

    def __post_init__(self) -> None:
        check_count(self, "m", at_least=1)
        check_choice(self, "stats", ("keep", "drop"))

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the rows that were not chosen."""
        rows.keep_max_variance(self.m, self.stats == "keep")

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        return f"it is not among the {self.m} rows of its group whose outcomes vary most"


@register("select")
@dataclass(frozen=True)
class VarianceQuantile(Select):
    """StarPO-S: of each batch the share of the groups whose outcomes vary most (arXiv:2504.20073, §4.2).

    Parameters
    ----------
    share : float
        The share of the groups that are left, rounded down, at least one. Required: the paper finds the best one to
        depend on the task (.25 is its configuration, .5 and .75 are reported).

    Notes
    -----
    Groups are ranked by the standard deviation with ddof 1; a group of one has 0.
    """

    share: float
    scope: ClassVar[Literal["batch"]] = "batch"
    equation: ClassVar[str] = "std_i R_i among the largest share of the batch"

    def __post_init__(self) -> None:
        check_number(self, "share", more_than=0)
        if self.share > 1:
            raise error("bad_parameter", owner="VarianceQuantile", name="share", given=self.share, expected="at most 1")

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the groups that were not chosen."""
        rows.keep_highest_groups(learnability=False, share=self.share, batches=batches(columns))

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        return f"the outcomes of its group{_range(read)} vary less than those of the {self.share:.0%} that vary most"


@register("select")
@dataclass(frozen=True)
class Learnability(Select):
    """LILO: of each batch the groups with the largest p(1 − p), p the pass rate (arXiv:2502.12272).

    Parameters
    ----------
    groups : int
        How many groups of a batch to keep; required: it is the size of the training batch (the paper samples 4 to 8
        times as many).

    Notes
    -----
    Goldilocks' utility √(p(1 − p)) (arXiv:2602.14868) ranks alike: it belongs to advantages that are divided by the
    standard deviation, p(1 − p) to those that are not. With few attempts ties are the norm.
    """

    groups: int
    scope: ClassVar[Literal["batch"]] = "batch"
    equation: ClassVar[str] = "p(1 − p) among the largest of the batch, p = mean_i R_i"

    def __post_init__(self) -> None:
        check_count(self, "groups", at_least=1)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the groups that were not chosen."""
        rows.keep_highest_groups(learnability=True, count=self.groups, batches=batches(columns))

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        rate = f" {read.mean:.3g}" if read else ""
        return f"the pass rate{rate} of its group is not among the {self.groups} nearest to one half"


@register("select")
@dataclass(frozen=True)
class SourceLimit(Select):
    """Of each batch at most so many groups of one source, those that come first.

    Parameters
    ----------
    groups : int
        The most groups.
    source : str, int or None
        The source that is limited; None: each of them. Several limits are several stages.

    Notes
    -----
    Reads `source`; a group is of the source of its first row.
    """

    groups: int
    source: str | int | None = None
    reads: ClassVar[frozenset[str]] = frozenset({"source"})
    scope: ClassVar[Literal["batch"]] = "batch"
    equation: ClassVar[str] = "at most `groups` groups of a source"

    def __post_init__(self) -> None:
        check_count(self, "groups")
        if self.source is not None and (isinstance(self.source, bool) or not isinstance(self.source, str | int)):
            raise error(
                "bad_parameter", owner="SourceLimit", name="source", given=self.source, expected="a name, or None"
            )

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the groups beyond the limit."""
        from ._native import Groups as Sources
        from .columns import keys, take

        sources = Sources([keys("source", columns["source"])], ["source"])
        only = None
        if self.source is not None:
            names = take(columns["source"], sources.first)
            if self.source not in names:
                return
            only = list(names).index(self.source)
        rows.limit_sources(self.groups, sources, only, batches(columns))

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        return f"{self.groups} groups of its source came before it" if self.groups else "its source is to have no group"


def batches(columns: Columns) -> Groups | None:
    """The batch of each row: its step, or None where all rows are one."""
    from ._native import Groups as Batches

    return Batches([columns["step"]], ["step"]) if "step" in columns else None


def _range(read: Read | None) -> str:
    return f" ({read.low:g} to {read.high:g})" if read and read.n else ""
