"""Stage 1, shape: what is added to a reward before the advantage is taken.

In: rewards, the answers' lengths or log-probs. Out: shaped rewards, which only the advantage reads; filters and metrics
read the outcome, since a filter on shaped rewards is a known way to collapse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from . import arithmetic
from .columns import Ragged, check_pairs
from .errors import error
from .parameters import check_choice, check_count, check_number
from .stages import Shape, as_result, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._native import Groups, Rows
    from .stages import Columns


@register("shape")
@dataclass(frozen=True)
class Overlong(Shape):
    """The soft overlong punishment of DAPO (arXiv:2503.14476, eq. 13).

    Parameters
    ----------
    max_len : int
        The longest answer, in tokens.
    cache : int
        The width of the ramp, in tokens; 0 makes it a step at `max_len`.

    Notes
    -----
    With |y| the answer's length, L = max_len and C = cache, added to the reward::

        0                    |y| ≤ L − C
        ((L − C) − |y|) / C  L − C < |y| ≤ L
        −1                   L < |y|

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.overlong_penalty([16384, 16385, 18432, 20480, 20481], max_len=20_480, cache=4_096).tolist()
    [0.0, -0.000244140625, -0.5, -1.0, -1.0]
    """

    max_len: int
    cache: int
    reads: ClassVar[frozenset[str]] = frozenset({"response_len"})
    equation: ClassVar[str] = "R + clip(((L − C) − |y|) / C, −1, 0)"

    def __post_init__(self) -> None:
        check_count(self, "max_len")
        check_count(self, "cache")
        if self.cache > self.max_len:
            expected = f"at most max_len={self.max_len}"
            raise error("bad_parameter", owner="Overlong", name="cache", given=self.cache, expected=expected)

    @property
    def facts(self) -> tuple[str, ...]:
        return arithmetic.overlong(self.max_len, self.cache)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Adds the punishment to the shaped rewards."""
        rows.overlong(columns["response_len"], self.max_len, self.cache)


@register("shape")
@dataclass(frozen=True)
class KLPenalty(Shape):
    """KL in the reward: takes β Σ_t k(x_t) off, x = log π_old − log π_ref, summed over the answer's tokens.

    Parameters
    ----------
    beta : float
        β, 0 or more.
    kind : {"k1", "k2", "k3"}
        k1 = x, k2 = x²/2 or k3 = e^−x + x − 1; see `KL`.

    Notes
    -----
    Reads `logp_old` and `logp_ref`, a list of numbers a row. With k1 the gradient of the expected reward is exactly
    that of R − β KL(π ‖ π_ref) over whole answers; a KL term of the loss gives that of each token's own state only.
    `GlobalNorm(beta=...)` is the same token by token, as REINFORCE++ has it.

    Examples
    --------
    >>> import grpokit as gk
    >>> rows = {"group_id": [1, 1], "reward": [1.0, 0.0], "logp_old": [[-1.0, -2.0], [-1.0]],
    ...         "logp_ref": [[-1.5, -2.0], [-1.0]]}
    >>> gk.process(rows, gk.recipe("rloo").replace(shape=(gk.KLPenalty(0.1),))).shaped_rewards.tolist()
    [0.95, 0.0]
    """

    beta: float
    kind: Literal["k1", "k2", "k3"] = "k1"
    reads: ClassVar[frozenset[str]] = frozenset({"logp_old", "logp_ref"})
    equation: ClassVar[str] = "R − β Σ_t k(x_t), x = log π_old − log π_ref"
    example: ClassVar[dict[str, float]] = {"beta": 0.05}

    def __post_init__(self) -> None:
        check_number(self, "beta", at_least=0)
        check_choice(self, "kind", ("k1", "k2", "k3"))

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Takes the penalty off the shaped rewards."""
        old, ref = columns["logp_old"], columns["logp_ref"]
        amounts = -self.beta * Ragged(estimates(self.kind, old, ref), old.offsets).sums()
        rows.add(as_result(self, amounts, rows.n, "f", rows.keep()))


def estimates(kind: str, old: Ragged, ref: Ragged) -> NDArray[np.float64]:
    """(T,) float64: the estimator at each token, x = log π_old − log π_ref.

    Raises
    ------
    InputError
        `lists_differ`: a row whose lists differ in length.
    """
    import numpy as np

    check_pairs("logp_old", old, "logp_ref", ref)
    x: NDArray[np.float64] = old.values - ref.values
    if kind == "k1":
        return x
    return x * x / 2 if kind == "k2" else np.expm1(-x) + x


def overlong_penalty(lengths: object, *, max_len: int, cache: int) -> NDArray[np.float64]:
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13); see `Overlong`.

    Parameters
    ----------
    lengths : (N,) int, tokens
        The answers' lengths.
    max_len, cache : int, tokens
        The paper's L_max and L_cache.

    Returns
    -------
    (N,) float64, between −1 and 0

    Raises
    ------
    InputError
        A negative length, or `cache` larger than `max_len`.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.overlong_penalty([3, 9, 12], max_len=10, cache=4).tolist()
    [0.0, -0.75, -1.0]
    """
    import numpy as np

    from ._native import Groups, Rows
    from .columns import integers

    column = integers("response_len", lengths)
    zeros_N = np.zeros(len(column))
    rows = Rows(Groups([zeros_N.astype(np.int64)], ["group_id"]), zeros_N)
    rows.overlong(column, Overlong(max_len, cache).max_len, cache)
    return rows.shaped()
