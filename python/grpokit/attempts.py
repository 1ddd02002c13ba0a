"""What k attempts at a prompt would give: pass@k, best@k, worst@k, maj@k.

In: a value for each attempt, and which attempts belong to one prompt. Out: an estimate for each prompt, their mean,
and how certain it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from .columns import floats, integers
from .errors import error
from .parameters import whole
from .rollouts import _grouped, _threads

if TYPE_CHECKING:
    from numpy.typing import NDArray


MOST = 1_000_000


@dataclass(frozen=True, eq=False)
class AtK:
    """An estimate for k attempts, for each group and over all.

    Attributes
    ----------
    k : int
        Attempts drawn.
    values : (G,) float64
        The mean over draws of k of the group's attempts, groups in order of first appearance.
    std : (G,) float64
        The standard deviation between such draws, that is between runs of k attempts at this prompt.
    """

    k: int
    values: NDArray[np.float64]
    std: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The mean of `values` over groups, each with the same weight; NaN without groups."""
        return float(self.values.mean()) if len(self.values) else float("nan")

    @property
    def standard_error(self) -> float:
        """The standard error of `mean` over groups: the prompts are a sample. NaN for fewer than two groups."""
        n = len(self.values)
        return float(self.values.std(ddof=1)) / n**0.5 if n > 1 else float("nan")

    @property
    def between_runs(self) -> float:
        """The standard deviation of `mean` between runs of k attempts at the same prompts: √Σ std² / G; NaN without."""
        return float(np.sqrt((self.std**2).sum())) / len(self.std) if len(self.std) else float("nan")

    def __repr__(self) -> str:
        return f"AtK(k={self.k}, {self.mean:.4g} ± {self.standard_error:.2g}, {len(self.values):,} groups)"


def pass_at_k(outcomes: Any, groups: Any, k: int) -> AtK:
    """The probability that at least one of k attempts passes, without bias.

    Parameters
    ----------
    outcomes : (N,) bool, or float that is 0 or 1
        Whether each attempt passed.
    groups : Groups, or a column of ids
        Which attempts belong to one prompt.
    k : int
        Attempts; no group may have fewer.

    Returns
    -------
    AtK
        `mean` ± `standard_error` over prompts; `values` and `std` of each group.

    Raises
    ------
    InputError
        An outcome that is neither 0 nor 1, null, a group with fewer than k attempts, columns of different lengths.

    See Also
    --------
    pass_at_k_of_counts : from the numbers of attempts and passes.

    Notes
    -----
    With c of n attempts passed: ``1 − C(n − c, k) / C(n, k)`` (arXiv:2107.03374, eq. 1), exact, without binomials.

    Examples
    --------
    >>> import grpokit as gk
    >>> groups = gk.group(["a", "a", "a", "b", "b", "b"])
    >>> estimate = gk.pass_at_k([1, 0, 0, 0, 0, 0], groups, k=2)
    >>> estimate.values.round(3).tolist(), round(estimate.mean, 3), round(estimate.standard_error, 3)
    ([0.667, 0.0], 0.333, 0.333)
    """
    k = whole("pass_at_k", "k", k, at_least=1, at_most=MOST)
    return AtK(k, *_native.pass_at_k(floats("outcomes", outcomes), _grouped(groups), k))


def pass_at_k_of_counts(attempts: Any, passed: Any, k: Any) -> NDArray[np.float64]:
    """`pass_at_k` from counts: 1 − C(n − c, k) / C(n, k).

    Parameters
    ----------
    attempts, passed, k : int, or arrays of int that broadcast
        n attempts, c of which passed, k drawn.

    Returns
    -------
    (...) float64
        Of the broadcast shape.

    Raises
    ------
    InputError
        Counts without 0 ≤ c ≤ n and 1 ≤ k ≤ n.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.pass_at_k_of_counts(1_000_000, [0, 1, 10], 100).round(6).tolist()
    [0.0, 0.0001, 0.001]
    """
    columns = {"attempts": attempts, "passed": passed, "k": k}
    flat = {name: integers(name, np.ravel(column)).astype(np.int64) for name, column in columns.items()}
    try:
        shaped = np.broadcast_arrays(*(flat[name].reshape(np.shape(column)) for name, column in columns.items()))
    except ValueError:
        shapes = ", ".join(str(np.shape(column)) for column in columns.values())
        expected = "shapes that broadcast"
        owner = "pass_at_k_of_counts"
        raise error("bad_parameter", owner=owner, name="shapes", given=shapes, expected=expected) from None
    n, c, k = (np.ascontiguousarray(column.ravel()) for column in shaped)
    for name, column, wrong, expected in (
        ("passed", c, (c < 0) | (c > n), "from 0 to the number of attempts"),
        ("k", k, (k < 1) | (k > n), "from 1 to the number of attempts"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise error("bad_value", column=name, given=int(column[row]), row=row, expected=f"{expected}, {n[row]}")
    return _native.pass_of_counts(n, c, k).reshape(shaped[0].shape)


def best_at_k(values: Any, groups: Any, k: int) -> AtK:
    """The greatest value of k attempts, in the mean over draws with replacement.

    Parameters
    ----------
    values : (N,) float, any scale
        Scores of the attempts.
    groups : Groups, or a column of ids
        Which attempts belong to one prompt.
    k : int
        Attempts drawn; it may be more than a group has.

    Returns
    -------
    AtK
        `mean` ± `standard_error` over prompts; `values` and `std` of each group.

    Raises
    ------
    InputError
        A value that is NaN, infinite or null, columns of different lengths.

    Notes
    -----
    The expectation and the standard deviation that a bootstrap of k attempts estimates, exactly and without drawing.
    With a group's n values sorted, ``E max = x_n − Σ_{i<n} (i/n)^k (x_{i+1} − x_i)``. Drawing with replacement gives
    too small a value where k is not small beside n; for outcomes of 0 and 1 `pass_at_k` has no such bias.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.best_at_k([0.0, 1.0, 0.5, 0.5], gk.group([7, 7, 8, 8]), k=2).values.tolist()
    [0.75, 0.5]
    """
    k = whole("best_at_k", "k", k, at_least=1, at_most=MOST)
    return AtK(k, *_native.best_at_k(floats("values", values), _grouped(groups), k, False))


def worst_at_k(values: Any, groups: Any, k: int) -> AtK:
    """The least value of k attempts, in the mean over draws with replacement; else as `best_at_k`.

    Parameters
    ----------
    values : (N,) float, any scale
        Scores of the attempts.
    groups : Groups, or a column of ids
        Which attempts belong to one prompt.
    k : int
        Attempts drawn; it may be more than a group has.

    Returns
    -------
    AtK
        `mean` ± `standard_error` over prompts; `values` and `std` of each group.

    Raises
    ------
    InputError
        A value that is NaN, infinite or null, columns of different lengths.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.worst_at_k([0.0, 1.0, 0.5, 0.5], gk.group([7, 7, 8, 8]), k=2).values.tolist()
    [0.25, 0.5]
    """
    k = whole("worst_at_k", "k", k, at_least=1, at_most=MOST)
    return AtK(k, *_native.best_at_k(floats("values", values), _grouped(groups), k, True))


def majority_at_k(
    values: Any,
    groups: Any,
    k: int,
    *,
    answers: Any,
    draws: int = 1000,
    seed: int = 0,
    threads: int | None = None,
) -> AtK:
    """The value of the answer that most of k attempts give, in the mean over draws with replacement: maj@k.

    Parameters
    ----------
    values : (N,) float, any scale
        Scores of the attempts.
    groups : Groups, or a column of ids
        Which attempts belong to one prompt.
    k : int
        Attempts drawn; it may be more than a group has.
    answers : Groups, or a column of ids
        The answer of each attempt: integers or strings.
    draws : int
        Simulated draws a group.
    seed : int
        Another seed, other draws.
    threads : int, optional
        As in `process`; the result does not depend on it.

    Returns
    -------
    AtK
        `mean` ± `standard_error` over prompts; `values` and `std` of each group. The simulation itself is off by
        about std / √draws in each group.

    Raises
    ------
    InputError, InputTypeError
        A value that is NaN, infinite or null, an answer that is null, columns of different lengths.

    Notes
    -----
    Of answers that are given equally often the one that was drawn first counts. Where attempts with the same answer
    differ in value, that of the first of them in the draw is taken. What is drawn from a group depends on the seed and
    on its own rows in their order, and on nothing else: not on other groups, nor on what answers and ids are called.

    Examples
    --------
    >>> import grpokit as gk
    >>> groups, answers = gk.group([5, 5, 5, 5]), ["4", "4", "4", "5"]
    >>> estimate = gk.majority_at_k([1.0, 1.0, 1.0, 0.0], groups, k=3, answers=answers)
    >>> abs(estimate.mean - 27 / 32) < 0.05  # two or three of three draws say "4"
    True
    """
    k = whole("majority_at_k", "k", k, at_least=1, at_most=MOST)
    draws = whole("majority_at_k", "draws", draws, at_least=1, at_most=MOST)
    seed = whole("majority_at_k", "seed", seed, at_least=0, at_most=2**64 - 1)
    column = floats("values", values)
    return AtK(
        k, *_native.majority_at_k(column, _grouped(groups), _grouped(answers), k, draws, seed, _threads(threads))
    )
