"""Long curves with few points, in which no extreme is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 400


def decimated(values_N: NDArray[np.float64], most: int = MOST) -> NDArray[np.int64]:
    """Which points to keep: the lowest and the highest of equal stretches, the first and the last.

    Parameters
    ----------
    values_N : (N,) float64, finite
        By step.
    most : int
        How many points there may be, 4 or more.

    Returns
    -------
    (K,) int64
        Ascending places in `values_N`, K ≤ `most`; all of them where N ≤ `most`.

    Examples
    --------
    >>> decimated(np.array([0.0, 1, 0, 5, 0, -5, 1, 0, 1, 2]), 6)
    array([0, 3, 5, 9])
    """
    n = len(values_N)
    if n <= most:
        return np.arange(n)
    stretches = (most - 2) // 2
    bounds = np.linspace(0, n, stretches + 1).astype(np.int64)
    kept = {0, n - 1}
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        kept |= {start + int(values_N[start:end].argmin()), start + int(values_N[start:end].argmax())}
    return np.array(sorted(kept), np.int64)
