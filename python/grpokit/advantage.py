"""Stage 4, advantage: one number a row, from the shaped rewards of its group or of the whole batch.

In: shaped rewards and groups. Out: (N,) float64, exactly 0 for dropped rows and, where an estimator is relative to the
group, for groups whose shaped rewards are all equal. Statistics are two-pass in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from .parameters import check_choice, check_number
from .ranking import batches
from .stages import Advantage, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._native import Groups, Rows
    from .stages import Columns


@register("advantage")
@dataclass(frozen=True)
class GroupNorm(Advantage):
    """A = (R − mean) / (std + eps) over the group: GRPO (arXiv:2402.03300, §4.1.2).

    Parameters
    ----------
    ddof : int
        What is taken off the count in the variance. The paper does not say; TRL and verl use 1.
    eps : float
        Added to the standard deviation. The paper does not say; TRL uses 1e-4, verl 1e-6.

    Notes
    -----
    A group of one, or one whose rewards are all equal, gets exactly 0.
    """

    ddof: int = 1
    eps: float = 1e-4
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "A = (R − mean) / (std + eps), over the group"

    def __post_init__(self) -> None:
        check_number(self, "ddof", at_least=0)
        check_number(self, "eps", at_least=0)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("group_norm", self.ddof, self.eps)


@register("advantage")
@dataclass(frozen=True)
class MeanBaseline(Advantage):
    """A = R − mean over the group: Dr.GRPO (arXiv:2503.20783, §3.2)."""

    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "A = R − mean, over the group"

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("mean_baseline")


@register("advantage")
@dataclass(frozen=True)
class LeaveOneOut(Advantage):
    """A = R_i − mean of the others = n / (n − 1) · (R_i − mean): RLOO (arXiv:2402.14740).

    Notes
    -----
    A group of one has no others and gets exactly 0.
    """

    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "A_i = R_i − mean_{j≠i} R_j, over the group"

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("leave_one_out")


@register("advantage")
@dataclass(frozen=True)
class GlobalNorm(Advantage):
    """A = (x − mean) / (std + eps) over the whole batch: REINFORCE++ (arXiv:2501.03262).

    Parameters
    ----------
    ddof : int
        What is taken off the weight in the variance; required, since the paper does not say. verl uses 1 (in
        tokens), OpenRLHF 0.
    eps : float
        Added to the standard deviation; required, since the paper does not say.
    baseline : {"none", "group"}
        x = R, one answer a prompt; or x = R − the group's mean, the paper's variant with a baseline.
    over : {"tokens", "sequences"}
        Whether a row counts by its tokens (`response_len`), as in the paper's "all tokens of the global batch",
        or once.

    Notes
    -----
    The batch is the step where the table has a column `step`, and the whole table otherwise. A group of one is
    ordinary. A batch whose x are all equal gets exactly 0.
    """

    ddof: int
    eps: float
    baseline: Literal["none", "group"] = "none"
    over: Literal["tokens", "sequences"] = "tokens"
    signal: ClassVar[Literal["batch"]] = "batch"
    scope: ClassVar[Literal["batch"]] = "batch"
    equation: ClassVar[str] = "A = (x − mean) / (std + eps), over the batch"

    def __post_init__(self) -> None:
        check_number(self, "ddof", at_least=0)
        check_number(self, "eps", at_least=0)
        check_choice(self, "baseline", ("none", "group"))
        check_choice(self, "over", ("tokens", "sequences"))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """`response_len` where tokens are counted."""
        return frozenset({"response_len"} if self.over == "tokens" else ())

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        kind = "global_norm" if self.baseline == "none" else "global_norm_baseline"
        weights = columns["response_len"] if self.over == "tokens" else None
        return rows.advantages(kind, self.ddof, self.eps, weights, batches(columns))
