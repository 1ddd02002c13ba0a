"""Stage 4, advantage: one number a row, from the shaped rewards of its group or of the whole batch.

In: shaped rewards and groups. Out: (N,) float64, exactly 0 for dropped rows and, where an estimator is relative to the
group, for groups whose shaped rewards are all equal. Statistics are two-pass in float64. The estimators of pass@k
and of several rewards are in `passk` and `gdpo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from . import arithmetic
from .columns import Ragged, check_values, floats
from .errors import error
from .parameters import check_choice, check_number
from .ranking import batches
from .shaping import estimates
from .stages import Advantage, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from ._native import Groups, Rows
    from .columns import Column
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

    @property
    def facts(self) -> tuple[str, ...]:
        return arithmetic.with_std()

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("group_norm", self.ddof, self.eps)


@register("advantage")
@dataclass(frozen=True)
class MeanBaseline(Advantage):
    """A = R − mean over the group: Dr.GRPO (arXiv:2503.20783, §3.2)."""

    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "A = R − mean, over the group"

    @property
    def facts(self) -> tuple[str, ...]:
        return arithmetic.without_std()

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
class Given(Advantage):
    """A = R: the rewards are the advantages, of a critic or of anything else, and nothing is taken off.

    Notes
    -----
    Advantages per token go to the loss directly, as `TokenBatch(advantages=...)`.
    """

    signal: ClassVar[Literal["none"]] = "none"
    scope: ClassVar[Literal["row"]] = "row"
    equation: ClassVar[str] = "A = R, as given"

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return _of_kept(rows, rows.shaped())


@register("advantage")
@dataclass(frozen=True)
class GreedyBaseline(Advantage):
    """A = R − R_greedy, the reward of the greedy answer to the same prompt: ReMax (arXiv:2310.10505).

    Notes
    -----
    Reads `baseline_reward`. Sampled and greedy answers must be of the same policy. A group of one is ordinary.
    """

    signal: ClassVar[Literal["none"]] = "none"
    scope: ClassVar[Literal["row"]] = "row"
    reads: ClassVar[frozenset[str]] = frozenset({"baseline_reward"})
    equation: ClassVar[str] = "A = R − R_greedy"

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return _of_kept(rows, rows.shaped() - _baselines(rows, columns["baseline_reward"]))


@register("advantage")
@dataclass(frozen=True)
class LengthBaseline(Advantage):
    """A = R − Σ_j |o_j| R_j / Σ_j |o_j| over the group: OPO (arXiv:2505.23585).

    Notes
    -----
    The baseline of least variance where a score's squared norm grows with the answer's length; the answer itself is in
    the sum. Reads `response_len`. A group whose rewards are all equal gets exactly 0.
    """

    scope: ClassVar[Literal["group"]] = "group"
    reads: ClassVar[frozenset[str]] = frozenset({"response_len"})
    equation: ClassVar[str] = "A = R − Σ_j |o_j| R_j / Σ_j |o_j|, over the group"

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("length_baseline", weights=columns["response_len"])


@register("advantage")
@dataclass(frozen=True)
class RescaledMean(Advantage):
    """A = α (R − mean), α = B / (B − M) with M of the batch's B groups without signal: GPG (arXiv:2504.02546).

    Notes
    -----
    α undoes that groups without signal are counted in the denominator and add nothing. Groups that a selection dropped
    are counted neither in B nor in M, so after `HasSignal` α is 1. The batch is the step where the table has a column
    `step`, and the whole table otherwise.
    """

    scope: ClassVar[Literal["batch"]] = "batch"
    equation: ClassVar[str] = "A = B / (B − M) · (R − mean), M of the batch's B groups have no signal"

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("rescaled_mean", batches=batches(columns))


@register("advantage")
@dataclass(frozen=True)
class SoftValue(Advantage):
    """A = R − V, V = β log mean_j exp(R_j / β) over the group: OAPL (arXiv:2602.19362, eq. 2).

    Parameters
    ----------
    beta : float
        The paper's β_1, more than 0. V is the best reward for β → 0, the mean for β → ∞.

    Notes
    -----
    Not centred: V is at least the mean. A group of one gets 0.
    """

    beta: float = 1.0
    sources: ClassVar[Mapping[str, str]] = {"beta": "the paper's β_1, as two ports and a digest quote it"}
    signal: ClassVar[Literal["none"]] = "none"
    scope: ClassVar[Literal["group"]] = "group"
    equation: ClassVar[str] = "A = R − β log mean_j exp(R_j / β), over the group"

    def __post_init__(self) -> None:
        check_number(self, "beta", more_than=0)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        return rows.advantages("soft_value", beta=self.beta)


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
    beta : float
        With KL in the reward, token by token: x_t = R − β Σ_{s≥t} (log π_old − log π_ref)_s. Then the advantages are
        one a token (`out.token_advantages`); reads `logp_old` and `logp_ref`, a list of numbers a row.

    Notes
    -----
    The batch is the step where the table has a column `step`, and the whole table otherwise. A group of one is
    ordinary. A batch whose x are all equal gets exactly 0.
    """

    ddof: int
    eps: float
    baseline: Literal["none", "group"] = "none"
    over: Literal["tokens", "sequences"] = "tokens"
    beta: float = 0.0
    signal: ClassVar[Literal["batch"]] = "batch"
    scope: ClassVar[Literal["batch"]] = "batch"
    example: ClassVar[Mapping[str, Any]] = {"ddof": 1, "eps": 1e-8}

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of rows or of tokens."""
        x = "R" if self.baseline == "none" else "R − the group's mean"
        kl = " − β Σ_{s≥t} log(π_old / π_ref)_s" if self.beta else ""
        return f"A = (x − mean) / (std + eps), over the batch's {self.over}, x = {x}{kl}"

    def __post_init__(self) -> None:
        check_number(self, "ddof", at_least=0)
        check_number(self, "eps", at_least=0)
        check_choice(self, "baseline", ("none", "group"))
        check_choice(self, "over", ("tokens", "sequences"))
        check_number(self, "beta", at_least=0)
        if self.beta and self.over != "tokens":
            raise error(
                "bad_parameter", owner="GlobalNorm", name="over", given=self.over, expected="'tokens', with a beta"
            )

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """`response_len` where tokens are counted; the log-probs instead, which have lengths, with a beta."""
        if self.beta:
            return frozenset({"logp_old", "logp_ref"})
        return frozenset({"response_len"} if self.over == "tokens" else ())

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64] | Ragged:
        """The advantages of all rows."""
        if self.beta:
            return self._per_token(rows, groups, columns)
        kind = "global_norm" if self.baseline == "none" else "global_norm_baseline"
        weights = columns["response_len"] if self.over == "tokens" else None
        return rows.advantages(kind, self.ddof, self.eps, weights=weights, batches=batches(columns))

    def _per_token(self, rows: Rows, groups: Groups, columns: Columns) -> Ragged:
        import numpy as np

        from ._native import Groups as Codes
        from ._native import Rows as Tokens

        old, kept = columns["logp_old"], rows.keep()
        k, sizes = estimates("k1", old, columns["logp_ref"]), np.diff(old.offsets)
        x = rows.shaped()
        if self.baseline == "group":
            x = _centred(rows, groups)
        x_T = np.repeat(np.where(kept, x, 0.0), sizes)
        for row in np.flatnonzero(kept & (sizes > 0)).tolist():
            at = slice(old.offsets[row], old.offsets[row + 1])
            x_T[at] -= self.beta * np.cumsum(k[at][::-1])[::-1]
        steps = batches(columns)
        codes = np.zeros(rows.n, np.int64) if steps is None else steps.codes.astype(np.int64)
        of_token = Codes([np.repeat(codes, sizes)], ["step"])
        tokens = Tokens(of_token, (x_T, np.repeat(kept, sizes)))
        values = tokens.advantages("global_norm", self.ddof, self.eps, batches=of_token)
        return Ragged(values * np.repeat(rows.weigh(np.ones(rows.n)), sizes), old.offsets)


def _of_kept(rows: Rows, values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of the kept rows, weighed as `DuplicateWeight` says, and 0 for the others."""
    values_N[~rows.keep()] = 0.0
    return rows.weigh(values_N)


def _centred(rows: Rows, groups: Groups) -> NDArray[np.float64]:
    """Each row's reward less its group's mean."""
    import numpy as np

    from ._native import Rows as Fresh

    live = rows.live()
    return Fresh(groups, (np.where(live, rows.shaped(), 0.0), live)).advantages("mean_baseline")


def _baselines(rows: Rows, column: Column) -> NDArray[np.float64]:
    """The column as numbers; what a kept row lacks is an error."""
    import numpy as np

    from ._native import numbers

    name = "baseline_reward"
    values_N, known_N = numbers(name, floats(name, column))
    kept = rows.keep()
    if (kept & ~known_N).any():
        found = np.flatnonzero(kept & ~known_N)
        raise error("null_value", column=name, count=len(found), rows=found[:5].tolist())
    check_values(name, values_N, kept)
    return values_N
