"""Stage 1, shape: what is added to a reward before the advantage is taken.

In: rewards and the answers' lengths. Out: shaped rewards, which only the advantage reads; filters and metrics read the
outcome, since a filter on shaped rewards is a known way to collapse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .errors import error
from .parameters import check_count
from .stages import Shape, register

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

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Adds the punishment to the shaped rewards."""
        rows.overlong(columns["response_len"], self.max_len, self.cache)


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
