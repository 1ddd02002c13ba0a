"""Stage 4, advantage: VCPO's baseline of least variance for stale data, from the size of every answer's gradient.

In: rewards, groups, a caller's column of squared score norms ‖∇ log π(o)‖², and the log-probs of trainer and sampler.
Out: an advantage per row. What a norm costs is a backward pass an answer; see docs/off_policy.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .columns import check_pairs
from .errors import error
from .parameters import check_flag, check_number
from .stages import Advantage, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from ._native import Groups
    from .stages import Columns


def baseline_weights(
    score_norms_N: NDArray[np.float64], log_weights_N: NDArray[np.float64] | None, codes_N: NDArray[Any]
) -> NDArray[np.float64]:
    """W_i / Σ_j W_j over the row's group, W = w² ‖∇ log π(o)‖² (arXiv:2602.17616, eqs. 7, 13): (N,) float64.

    Parameters
    ----------
    score_norms_N : (N,) float64, 0 or more
        ‖∇ log π(o_i)‖².
    log_weights_N : (N,) float64 or None
        log w_i, of any size: the largest of a group is taken off first. None: w = 1.
    codes_N : (N,) int
        Whose group it is, counted from 0.

    Notes
    -----
    A group whose W are all 0 gets equal shares. The largest share of a group says how much the baseline hangs on one
    answer: where it nears 1, the baseline is that answer's reward.

    Examples
    --------
    >>> import numpy as np
    >>> baseline_weights(np.array([1.0, 3.0, 2.0]), None, np.array([0, 0, 1]))
    array([0.25, 0.75, 1.  ])
    """
    import numpy as np

    n = int(codes_N.max()) + 1 if len(codes_N) else 0
    with np.errstate(divide="ignore"):
        log_W = np.log(score_norms_N)
    if log_weights_N is not None:
        log_W += 2 * log_weights_N
    most = np.full(n, -np.inf)
    np.maximum.at(most, codes_N, log_W)
    W = np.exp(log_W - np.where(np.isfinite(most), most, 0.0)[codes_N])
    total = np.bincount(codes_N, W, n)
    equal = 1 / np.bincount(codes_N, minlength=n)[codes_N]
    shares: NDArray[np.float64] = np.where(total[codes_N] > 0, W / np.where(total > 0, total, 1.0)[codes_N], equal)
    return shares


@register("advantage")
@dataclass(frozen=True)
class MinimumVarianceBaseline(Advantage):
    """A = R − Σ_j W_j R_j / Σ_j W_j over the group, W = w² ‖∇ log π(o)‖²: VCPO (arXiv:2602.17616, eqs. 7, 13).

    The b that makes E[w² ‖∇ log π(o)‖² (R − b)²] least. Reads `score_norm`, the squared norms.

    Parameters
    ----------
    std : bool
        Divides by the group's standard deviation (ddof 0) plus `eps`.
    eps : float
        Added to it.
    importance : bool
        w = Π_t π_old / π_rollout of the answer; reads `logp_old` and `logp_rollout`, a list of numbers a row. False: 1.

    Raises
    ------
    InputError
        `bad_parameter`; when run, `bad_score_norm` for a norm that is below 0, infinite or not there.

    Notes
    -----
    The answer itself is in the sum. Equal w and norms give the group's mean, one dominant W its reward. With w = 1 and
    norms that grow as the length it is `LengthBaseline`. A group whose rewards are all equal gets exactly 0.

    Examples
    --------
    >>> import grpokit as gk
    >>> table = {"group_id": [1, 1], "reward": [1.0, 0.0], "score_norm": [3.0, 1.0]}
    >>> recipe = gk.recipe("rloo").replace(advantage=gk.MinimumVarianceBaseline(std=False, importance=False))
    >>> gk.process(table, recipe).advantages
    array([ 0.25, -0.75])
    """

    std: bool = True
    eps: float = 1e-4
    importance: bool = True
    scope: ClassVar[Literal["group"]] = "group"
    sources: ClassVar[Mapping[str, str]] = {
        "std": "the authors' scripts: `norm_by_std` on",
        "eps": "TRL 1.16; the authors' was not read",
        "importance": "the paper's w",
    }
    leaves_out: ClassVar[str] = "the authors' options of a median or a winsorised mean, and their code's w⁴"

    def __post_init__(self) -> None:
        check_flag(self, "std")
        check_number(self, "eps", at_least=0)
        check_flag(self, "importance")

    @property
    def equation(self) -> str:  # type: ignore[override]
        """With what is there of std and w."""
        w = "w² " if self.importance else ""
        b = f"Σ_j W_j R_j / Σ_j W_j, over the group, W = {w}‖∇ log π(o)‖²"
        of = ", w = Π_t π_old / π_rollout" if self.importance else ""
        return f"A = (R − b) / (std + eps), b = {b}{of}" if self.std else f"A = R − b, b = {b}{of}"

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """`score_norm`, and the log-probs that w is made of."""
        return frozenset({"score_norm"} | ({"logp_old", "logp_rollout"} if self.importance else set()))

    def __call__(self, rewards_N: NDArray[np.float64], groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of the rows that it is shown."""
        import numpy as np

        from ._native import Rows as Fresh

        try:
            norms = np.asarray(columns["score_norm"], np.float64)
        except (TypeError, ValueError):
            raise error("bad_score_norm", given="no number", count="some") from None
        wrong = ~((norms >= 0) & (norms < np.inf))
        if wrong.any():
            raise error("bad_score_norm", given=norms[wrong][0], count=int(wrong.sum()))
        log_weights = None
        if self.importance:
            old, rollout = columns["logp_old"], columns["logp_rollout"]
            check_pairs("logp_old", old, "logp_rollout", rollout)
            log_weights = old.sums() - rollout.sums()
        codes = groups.codes
        shares = baseline_weights(norms, log_weights, codes)
        # Relative to the group's mean, so that equal rewards leave no rounding.
        rows = Fresh(groups, (rewards_N, np.ones(len(rewards_N), bool)))
        centred = rows.advantages("mean_baseline")
        A = centred - np.bincount(codes, shares * centred, int(codes.max()) + 1 if len(codes) else 0)[codes]
        if not self.std:
            return A
        spread = np.sqrt(np.bincount(codes, centred**2)[codes] / np.bincount(codes)[codes]) if len(codes) else A
        scale = spread + self.eps
        return np.divide(A, scale, out=np.zeros_like(A), where=scale > 0)
