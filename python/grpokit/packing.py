"""Sequences of different lengths to micro-batches of a token budget, and to ranks that finish together.

In: the rows' lengths. Out: the rows of each bin, or of each rank. A sequence is never split, and the same lengths
always give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from . import _native
from .columns import integers
from .errors import error
from .parameters import whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Packing:
    """What `pack` found.

    Attributes
    ----------
    bins : list of (n_b,) int64
        The rows of each bin, in rising order; every row is in exactly one.
    tokens : (B,) int64, tokens
        What each bin holds.
    max_tokens : int, tokens
        The budget of each bin.
    """

    bins: list[NDArray[np.int64]]
    tokens: NDArray[np.int64]
    max_tokens: int

    @property
    def waste(self) -> float:
        """The share of all bins' budgets that is empty; 0 without bins."""
        return 1 - int(self.tokens.sum()) / (len(self.bins) * self.max_tokens) if self.bins else 0.0


@dataclass(frozen=True, eq=False)
class Shares:
    """What `balance` found.

    Attributes
    ----------
    ranks : list of (n_r,) int64
        The rows of each rank, in rising order; every row is on exactly one. The most loaded rank comes first.
    loads : (R,) float64, tokens or cost
        What each rank carries.
    """

    ranks: list[NDArray[np.int64]]
    loads: NDArray[np.float64]

    @property
    def spread(self) -> float:
        """The largest load less the smallest, in tokens or cost."""
        return float(self.loads.max() - self.loads.min())

    @property
    def idle(self) -> float:
        """The share of all ranks' time spent waiting for the most loaded: 1 − mean / max; 0 without load."""
        most = float(self.loads.max())
        return 1 - float(self.loads.mean()) / most if most > 0 else 0.0


def pack(lengths: Any, *, max_tokens: int) -> Packing:
    """Sequences into as few bins as first-fit decreasing finds, each within a budget of tokens.

    Parameters
    ----------
    lengths : (N,) int, tokens
        The rows' lengths; one of 0 goes to the first bin.
    max_tokens : int, tokens
        The most that a bin holds.

    Returns
    -------
    Packing
        `bins`, the rows of each; `tokens` in each; `waste`, the share of the budgets that is empty.

    Raises
    ------
    InputError, InputTypeError
        A length above `max_tokens`, negative, null, or not a whole number.

    Notes
    -----
    Rows by falling length, equal ones by row number, each into the first bin with room. That takes at most
    11/9 OPT + 6/9 bins, where OPT is the fewest possible (Dósa 2007), in O(N log N) time.

    Examples
    --------
    >>> import grpokit as gk
    >>> packing = gk.pack([700, 200, 500, 300, 300], max_tokens=1000)
    >>> [rows.tolist() for rows in packing.bins], packing.tokens.tolist(), packing.waste
    ([[0, 3], [1, 2, 4]], [1000, 1000], 0.0)
    """
    max_tokens = whole("pack", "max_tokens", max_tokens, at_least=1, at_most=2**53)
    rows, starts, tokens = _native.pack(integers("lengths", lengths), max_tokens)
    return Packing(_cut(rows, starts), tokens, max_tokens)


def balance(lengths: Any, *, ranks: int, equal_counts: bool = False, cost: tuple[float, float] | None = None) -> Shares:
    """Sequences to ranks, so that all ranks have about the same to do: the largest differencing method.

    Parameters
    ----------
    lengths : (N,) int, tokens
        The rows' lengths.
    ranks : int
        How many ranks; those beyond the number of rows stay empty.
    equal_counts : bool
        Every rank gets the same number of rows, or one more or less where `ranks` does not divide their number.
    cost : (float, float), optional
        (a, b): a sequence of n tokens costs a·n + b·n², the square being attention's. By default its tokens.

    Returns
    -------
    Shares
        `ranks`, the rows of each; their `loads`; `spread`, the largest load less the smallest; `idle`, the share of
        time that ranks wait.

    Raises
    ------
    InputError, InputTypeError
        A length that is negative, null, or not a whole number; a cost that is negative or not finite.

    Notes
    -----
    Karmarkar and Karp's differencing for several ranks: the two partial assignments whose loads differ most are
    merged, the heaviest rank of one with the lightest of the other, until one is left. The spread is at most the
    largest cost of a row. The largest load is at most 4/3 − 1/(3·ranks) of the best possible (Michiels et al. 2007,
    10.1007/s10878-006-9010-z), with equal counts 2 − 1/ranks of the best possible with them (Michiels et al. 2003,
    10.1007/3-540-36494-3_51). Loads are exact while they are whole numbers below 2^53.

    Examples
    --------
    >>> import grpokit as gk
    >>> shares = gk.balance([8, 7, 6, 5, 4], ranks=2)
    >>> [rows.tolist() for rows in shares.ranks], shares.loads.tolist(), shares.spread
    ([[1, 3, 4], [0, 2]], [16.0, 14.0], 2.0)
    >>> gk.balance([8, 7, 6, 5, 4, 2], ranks=2, equal_counts=True).loads.tolist()
    [16.0, 16.0]
    """
    ranks = whole("balance", "ranks", ranks, at_least=1, at_most=1_000_000)
    if not isinstance(cast("object", equal_counts), bool):
        expected = "True or False"
        raise error("bad_parameter", owner="balance", name="equal_counts", given=equal_counts, expected=expected)
    a, b = _cost(cost)
    rows, starts, loads = _native.balance(integers("lengths", lengths), ranks, equal_counts, a, b)
    return Shares(_cut(rows, starts), loads)


def _cut(rows: NDArray[np.int64], starts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start:end] for start, end in pairwise(starts.tolist())]


def _cost(given: Any) -> tuple[float, float]:
    if given is None:
        return 1.0, 0.0
    try:
        a, b = (-1.0, -1.0) if isinstance(given, str) else map(float, given)
    except (TypeError, ValueError):
        a = b = -1.0
    if not (0 <= a <= 1e150 and 0 <= b <= 1e150):  # so that no load is infinite
        expected = "two numbers from 0 to 1e150: a and b of a·n + b·n²"
        raise error("bad_parameter", owner="balance", name="cost", given=given, expected=expected)
    return a, b
