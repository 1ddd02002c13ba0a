"""Stage 4, advantage: estimators whose policy gradient is that of what k attempts would give.

In: shaped rewards and groups of n >= k attempts. Out: (N,) float64. None of them divides by the group's standard
deviation; which are centred, and which are 0 for a group without signal, is said at each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .errors import error
from .parameters import check_choice, check_count, check_flag, check_number
from .stages import Advantage, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from ._native import Groups, Rows
    from .stages import Columns


@register("advantage")
@dataclass(frozen=True)
class PKPO(Advantage):
    """The transformed rewards of PKPO (arXiv:2505.15201): Σ_i s_i ∇ log π(o_i) is an unbiased gradient of max@k.

    Parameters
    ----------
    k : int
        The attempts, at least 1 (2 with "loo-1"), at most the group's size (less 1 with "loo").
    baseline : {"loo-1", "loo", "none"}
        What is taken off for less variance, without a bias: the best of the other k − 1 of each subset (eq. 33), the
        best of k of the other n − 1 (eq. 29), or nothing (eq. 19).

    Raises
    ------
    InputError
        `bad_parameter`; when run, `too_few_attempts`.

    Notes
    -----
    s_i = Σ_{S∋i, |S|=k} max_{j∈S} R_j / C(n, k): for k = 1 it is R_i / n, so the estimate is a sum over the group, and
    a mean over it is n times smaller. "loo-1" is 0 or more, not centred, and 0 where all rewards are equal; the others
    are not 0 there. No standard deviation divides.
    """

    k: int
    baseline: Literal["loo-1", "loo", "none"] = "loo-1"
    scope: ClassVar[Literal["group"]] = "group"
    sources: ClassVar[Mapping[str, str]] = {"baseline": "our choice: of the three the one that is 0 for equal rewards"}
    leaves_out: ClassVar[str] = (
        "the schedule of k (8 to 1 in the paper), which is yours; sum over a group, do not average"
    )
    example: ClassVar[Mapping[str, Any]] = {"k": 2}

    @property
    def signal(self) -> Literal["group", "none"]:  # type: ignore[override]
        """Equal rewards give 0 with "loo-1" alone."""
        return "group" if self.baseline == "loo-1" else "none"

    def __post_init__(self) -> None:
        check_choice(self, "baseline", ("loo-1", "loo", "none"))
        check_count(self, "k", at_least=2 if self.baseline == "loo-1" else 1)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Eq. 19, 29 or 33."""
        less = {"loo-1": "max_S R − max_{S∖i} R", "loo": "max_S R", "none": "max_S R"}[self.baseline]
        loo = " − k/(n−1) · max@k of the others" if self.baseline == "loo" else ""
        return f"A_i = Σ_{{S∋i, |S|=k}} [{less}] / C(n, k){loo}"

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("pkpo" if self.baseline == "none" else f"pkpo_{self.baseline}", k=self.k)


@register("advantage")
@dataclass(frozen=True)
class PassKTraining(Advantage):
    """The analytic advantage of Pass@k Training (arXiv:2508.10751), for rewards that are 0 or 1.

    Parameters
    ----------
    k : int
        The attempts, at least 1 and at most the group's size.
    eps : float
        Added to the standard deviation; 1e-6 in the authors' code.

    Raises
    ------
    InputError
        `bad_parameter`; when run, `too_few_attempts`, or `bad_value` for a reward that is neither 0 nor 1.

    Notes
    -----
    With ρ = 1 − C(n−c, k) / C(n, k) for c right answers of n and σ = √(ρ (1 − ρ)): (1 − ρ) / (σ + eps) for a right one,
    (1 − ρ − C(n−c−1, k−1) / C(n−1, k−1)) / (σ + eps) for a wrong one. They add up to 0 over the group, and are all 0
    where none is right or where k attempts cannot all be wrong.
    """

    k: int
    eps: float = 1e-6
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = (
        "A = (1 − ρ) / (σ + eps) if right, else (1 − ρ − C(n−c−1, k−1) / C(n−1, k−1)) / (σ + eps), ρ the group's pass@k"
    )
    sources: ClassVar[Mapping[str, str]] = {"eps": "the authors' code"}
    leaves_out: ClassVar[str] = "the sampled forms (full and bootstrap sampling) that the analytic one replaces"
    example: ClassVar[Mapping[str, Any]] = {"k": 2}

    def __post_init__(self) -> None:
        check_count(self, "k", at_least=1)
        check_number(self, "eps", at_least=0)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("pass_k_training", eps=self.eps, k=self.k)


@register("advantage")
@dataclass(frozen=True)
class PassKArgmax(Advantage):
    """The lead of a group's best answer, for the best answer alone (arXiv:2503.19595); k is the group's size.

    Parameters
    ----------
    normalize : bool
        Divides by the group's standard deviation; verl's `grpo_passk` does by default.
    ddof, eps : float
        Of that standard deviation: taken off the count, and added to it. Required where it divides.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    A = (R_best − R_second) / (std + eps) for the best, 0 for all others, and 0 for all where two are best or the group
    has one row. For 0/1 rewards only an answer that is right alone gets any.
    """

    normalize: bool
    ddof: float | None = None
    eps: float | None = None
    scope: ClassVar[Literal["group"]] = "group"
    leaves_out: ClassVar[str] = "other k than the group's size; the paper was not read, verl 0.9.1's `grpo_passk` was"
    example: ClassVar[Mapping[str, Any]] = {"normalize": True, "ddof": 1, "eps": 1e-6}

    def __post_init__(self) -> None:
        check_flag(self, "normalize")
        for name in ("ddof", "eps"):
            check_number(self, name, at_least=0, optional=not self.normalize)
            if not self.normalize and getattr(self, name) is not None:
                given, expected = getattr(self, name), "None, since no standard deviation divides (normalize=False)"
                raise error("bad_parameter", owner="PassKArgmax", name=name, given=given, expected=expected)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """With or without the standard deviation."""
        over = " / (std + eps)" if self.normalize else ""
        return f"A = (R_best − R_second){over} for the group's single best, else 0"

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("pass_k_argmax", self.ddof, self.eps or 0.0)
