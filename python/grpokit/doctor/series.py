"""Series of a noisy run: how it began and how it ended, whether it moves, and whether two shares differ.

A step's numbers are noisy and near steps are alike, so rules compare medians of many steps, ask for a trend that ranks
show, and for a difference of several standard errors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grpokit.record import Metrics

FEWEST, MOST, BLOCKS = 5, 50, 200


class Ends(NamedTuple):
    """The beginning and the end of a series.

    Parameters
    ----------
    early, late : (K,) float64
        The values of the first and of the last fifth of the steps, from 5 to 50 of them.
    steps : (int, int)
        The first and the last step of the end.
    """

    early: NDArray[np.float64]
    late: NDArray[np.float64]
    steps: tuple[int, int]


def ends(metrics: Metrics | None, name: str, fewest: int = 2 * FEWEST) -> Ends | None:
    """The beginning and the end of a metric, or None where fewer steps than `fewest` have it."""
    if metrics is None:
        return None
    steps, values = metrics.trained().there(name)
    if len(values) < max(2, fewest):
        return None
    many = min(max(len(values) // 5, FEWEST), MOST, len(values) // 2)
    return Ends(values[:many], values[-many:], (int(steps[-many]), int(steps[-1])))


def rising(values: NDArray[np.float64]) -> float:
    """How surely a series rises, or falls where it is negative: Kendall's rank test of Mann, in standard deviations.

    Of more than 200 values the means of 200 blocks are compared.

    Examples
    --------
    >>> round(rising(np.arange(20.0)), 1)
    6.1
    >>> rising(np.ones(20))
    0.0
    """
    if len(values) > BLOCKS:
        values = np.array([part.mean() for part in np.array_split(values, BLOCKS)])
    count = len(values)
    if count < 3:
        return 0.0
    score = float(np.sign(values[None, :] - values[:, None])[np.triu_indices(count, 1)].sum())
    ties = np.unique(values, return_counts=True)[1].astype(float)
    variance = (count * (count - 1) * (2 * count + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    return (score - math.copysign(1, score)) / math.sqrt(variance) if variance > 0 and score else 0.0


def slope(values: NDArray[np.float64]) -> float:
    """What the series gains from one value to the next: the median of the slopes between all pairs (Theil and Sen)."""
    if len(values) > BLOCKS:
        values = values[np.linspace(0, len(values) - 1, BLOCKS).round().astype(int)]
    first, second = np.triu_indices(len(values), 1)
    return float(np.median((values[second] - values[first]) / (second - first))) if len(first) else 0.0


def difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """How far the second mean is above the first, in standard errors; infinite where both are constant."""
    gap = float(second.mean() - first.mean())
    error = math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    return gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0


def shares_differ(hits: float, count: float, other_hits: float, other_count: float) -> float:
    """How far the first share is above the other, in standard errors of two binomials with one share."""
    pooled = (hits + other_hits) / (count + other_count)
    error = math.sqrt(pooled * (1 - pooled) * (1 / count + 1 / other_count))
    return (hits / count - other_hits / other_count) / error if error > 0 else 0.0
