"""Stage 3, select: which rows are worth training on, and why the others are not.

In: outcomes (the gate, or the reward before shaping) and groups. Out: a reason for each row that is dropped. Stages run
in the order written and see what the earlier ones left. Those that let rows or groups compete are in `ranking`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, ClassVar, Literal

from . import arithmetic
from .errors import error
from .parameters import check_choice, check_count, check_number
from .stages import OTHER, Select, register

if TYPE_CHECKING:
    from ._native import Groups, Rows
    from .stages import Columns, Read

FINISH = ("stop", "length", "abort", "error", "env", "unknown")


class Reason(IntFlag):
    """Why a row was dropped; the bits of `out.reasons`."""

    UNSCORED = 1
    """The reward (or the gate) is null: the answer could not be scored."""
    NOT_FINITE = 1 << 1
    """The reward is NaN or infinite, and the recipe says not_finite="drop"."""
    TRUNCATED = 1 << 2
    """The answer was cut off at the length limit (`NotTruncated`)."""
    NO_SIGNAL = 1 << 3
    """All outcomes of the group are equal (`HasSignal`)."""
    PASS_RATE = 1 << 4
    """The group's mean outcome is outside the band (`PassRate`)."""
    DUPLICATE = 1 << 5
    """The same answer as an earlier one of its group (`Distinct`)."""
    SMALL_GROUP = 1 << 6
    """The group has too few rows that count (`MinGroupSize`)."""
    DOWNSAMPLED = 1 << 7
    """Not among the rows that the group was sampled down to (`MaxVariance`)."""
    LOW_VARIANCE = 1 << 8
    """The group's outcomes vary less than those of the groups that were chosen (`VarianceQuantile`)."""
    LOW_LEARNABILITY = 1 << 9
    """The group is less learnable than those that were chosen (`Learnability`)."""
    SOURCE_LIMIT = 1 << 10
    """Its source has had its share of the batch (`SourceLimit`)."""
    STALE = 1 << 11
    """Sampled by a policy that is too old (`MaxLag`)."""
    SURPLUS = 1 << 12
    """Nothing is wrong with it, but the batch is full (`need=`): carry it over to the next."""
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
        check_number(self, "tolerance", at_least=0, at_most=1e150)

    @property
    def facts(self) -> tuple[str, ...]:
        return arithmetic.equal_groups()

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the groups without signal."""
        rows.drop_without_signal(self.tolerance)

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        within = f" within {self.tolerance:g}" if self.tolerance else ""
        if read is None or read.n < 2:
            return "its group has no two outcomes that count"
        return f"all {read.n} outcomes of its group are equal{within} ({read.low:g})"


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

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        return "its finish is 'length'" if self.max_len is None else f"its answer has {self.max_len:,} tokens or more"


@register("select")
@dataclass(frozen=True)
class PassRate(Select):
    """Online difficulty filtering: keeps the groups whose pass rate is in a band (arXiv:2504.03380).

    Parameters
    ----------
    low, high : float
        The band, whose ends belong to it. Required: published bounds differ (.2 to .8 is common).

    Notes
    -----
    The pass rate is the mean outcome, so outcomes should be 0 or 1 (give a `gate` where the reward is not); the lint
    says where they are not.
    """

    low: float
    high: float
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "low ≤ mean_i R_i ≤ high, on the outcome"

    def __post_init__(self) -> None:
        check_number(self, "low", at_most=1e150)
        check_number(self, "high", at_most=1e150)
        if self.low > self.high:
            raise error("bad_parameter", owner="PassRate", name="high", given=self.high, expected=f">= low={self.low}")

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the groups outside the band."""
        rows.drop_outside_pass_rate(self.low, self.high)

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        found = "nothing that counts" if read is None or not read.n else f"a pass rate of {read.mean:.3g}"
        return f"its group has {found}, outside {self.low:g} to {self.high:g}"


@register("select")
@dataclass(frozen=True)
class MinGroupSize(Select):
    """Keeps the groups in which enough rows count.

    Parameters
    ----------
    rows : int
        The fewest. Rows without a reward, and those that earlier stages took out of the statistics, do not count.
    """

    rows: int
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "n ≥ rows"

    def __post_init__(self) -> None:
        check_count(self, "rows")

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the small groups."""
        rows.drop_small_groups(self.rows)

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        return f"its group has {read.n if read else 'few'} rows that count, fewer than {self.rows}"


@register("select")
@dataclass(frozen=True)
class MaxLag(Select):
    """Drops answers of a policy that is too old: drop at consumption (prime-rl, TRL's async trainer, open-instruct).

    Parameters
    ----------
    lag : int
        The most versions that the trainer may be ahead.
    of : {"oldest", "newest"}
        Which of an answer's tokens count: the oldest (`version_min`) or the newest (`version_max`). They differ where
        weights change during sampling.
    stats : {"keep", "drop"}
        Whether the dropped rows stay in their group's statistics: "keep" leaves the others' advantages as they were.

    Notes
    -----
    Reads ``process(..., version=...)``, the trainer's version.
    """

    lag: int
    of: Literal["oldest", "newest"] = "oldest"
    stats: Literal["keep", "drop"] = "drop"
    equation: ClassVar[str] = "version − version of the answer ≤ lag"

    def __post_init__(self) -> None:
        check_count(self, "lag")
        check_choice(self, "of", ("oldest", "newest"))
        check_choice(self, "stats", ("keep", "drop"))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The version of the answer's oldest or newest token, and the trainer's."""
        return frozenset({"version", "version_min" if self.of == "oldest" else "version_max"})

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the stale rows."""
        versions_N = columns["version_min" if self.of == "oldest" else "version_max"]
        rows.drop(versions_N < columns["version"] - self.lag, Reason.STALE, self.stats == "keep")

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        return f"its {self.of} token is more than {self.lag} versions old"


@register("select")
@dataclass(frozen=True)
class Distinct(Select):
    """Drops answers that their group has already, token for token; the first in the table stays.

    Parameters
    ----------
    on : {"token_ids", "text"}
        The column that must be equal, exactly.
    stats : {"keep", "drop"}
        Whether the copies stay in their group's statistics.

    Notes
    -----
    No paper states a rule. Dropping copies changes n and the group's mean, and favours what is seldom sampled;
    `DuplicateWeight` keeps all rows and lets an answer count once. The lint counts copies in any case.
    """

    on: Literal["token_ids", "text"]
    stats: Literal["keep", "drop"] = "drop"
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "o_i ≠ o_j for all j < i of the group"

    def __post_init__(self) -> None:
        check_choice(self, "on", ("token_ids", "text"))
        check_choice(self, "stats", ("keep", "drop"))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The column that is compared."""
        return frozenset({self.on})

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Drops the copies."""
        from .columns import contents

        rows.drop_duplicates(contents(self.on, columns[self.on], groups), self.stats == "keep")

    def because(self, read: Read | None) -> str:
        """Why a row was dropped."""
        return f"an earlier row of its group has the same {self.on}"


@register("select")
@dataclass(frozen=True)
class DuplicateWeight(Select):
    """Lets an answer count once, however often its group has it: each copy's advantage is divided by their number.

    Parameters
    ----------
    on : {"token_ids", "text"}
        The column that must be equal, exactly.

    Notes
    -----
    Drops nothing, and the copies stay in the group's statistics.
    """

    on: Literal["token_ids", "text"]
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "A_i / #{j of the group: o_j = o_i}"

    def __post_init__(self) -> None:
        check_choice(self, "on", ("token_ids", "text"))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The column that is compared."""
        return frozenset({self.on})

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Sets the weights."""
        from .columns import contents

        rows.weigh_duplicates(contents(self.on, columns[self.on], groups))
