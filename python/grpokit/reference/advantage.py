"""Stage 4, advantage: each estimator on one group (or one batch) of rewards.

Sums are exact (`math.fsum`), so that what is left of rounding is the definition's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .selection import has_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from numpy.typing import NDArray


def mean(R: Sequence[float]) -> float:
    """Σ R / n."""
    return math.fsum(R) / len(R)


def std(R: Sequence[float], ddof: float) -> float:
    """sqrt(Σ (R − mean)² / (n − ddof)); 0 for equal rewards and where n ≤ ddof.

    Examples
    --------
    >>> std([0.1, 0.1, 0.1], 1), std([1.0, 3.0], 0)
    (0.0, 1.0)
    """
    if not has_signal(R) or len(R) <= ddof:
        return 0.0
    m = mean(R)
    return math.sqrt(math.fsum((r - m) ** 2 for r in R) / (len(R) - ddof))


def group_norm(R: Sequence[float], ddof: float, eps: float) -> list[float]:
    """A_i = (R_i − mean) / (std + eps) (GRPO, arXiv:2402.03300, §4.1.2)."""
    s = std(R, ddof)
    if not has_signal(R) or s + eps == 0:
        return [0.0] * len(R)
    return [(r - mean(R)) / (s + eps) for r in R]


def mean_baseline(R: Sequence[float]) -> list[float]:
    """A_i = R_i − mean (Dr.GRPO, arXiv:2503.20783)."""
    return [r - mean(R) for r in R] if has_signal(R) else [0.0] * len(R)


def leave_one_out(R: Sequence[float]) -> list[float]:
    """A_i = R_i − mean_{j≠i} R_j (RLOO, arXiv:2402.14740)."""
    if not has_signal(R):
        return [0.0] * len(R)
    return [r - mean([other for j, other in enumerate(R) if j != i]) for i, r in enumerate(R)]


def global_norm(x: Sequence[float], w: Sequence[float], ddof: float, eps: float) -> list[float]:
    """A_i = (x_i − mean) / (std + eps) over a batch, row i counting w_i times (REINFORCE++, arXiv:2501.03262)."""
    total = math.fsum(w)
    counted = [value for value, weight in zip(x, w, strict=True) if weight > 0]
    m = counted[0] if not has_signal(counted) else math.fsum(a * b for a, b in zip(w, x, strict=True)) / total
    s = 0.0
    if has_signal(counted) and total > ddof:
        s = math.sqrt(math.fsum(b * (a - m) ** 2 for a, b in zip(x, w, strict=True)) / (total - ddof))
    return [0.0 if a == m or s + eps == 0 else (a - m) / (s + eps) for a in x]


def by_group(
    groups: Sequence[Hashable],
    rewards: Sequence[float | None],
    live: Sequence[bool],
    keep: Sequence[bool],
    estimator: Callable[[list[float]], list[float]],
) -> NDArray[np.float64]:
    """An estimator on the live rows of each group; exactly 0 for the rows that are not kept."""
    A = np.zeros(len(groups))
    for g in set(groups):
        rows = [i for i in range(len(groups)) if groups[i] == g and live[i]]
        R = [float(r) for i in rows if (r := rewards[i]) is not None]
        for i, a in zip(rows, estimator(R), strict=True):
            A[i] = a if keep[i] else 0.0
    return A


def by_batch(  # noqa: PLR0917
    steps: Sequence[Hashable],
    x: Sequence[float],
    weights: Sequence[float],
    keep: Sequence[bool],
    ddof: float,
    eps: float,
) -> NDArray[np.float64]:
    """`global_norm` on the kept rows of each step; exactly 0 for the others."""
    A = np.zeros(len(steps))
    for step in set(steps):
        rows = [i for i in range(len(steps)) if steps[i] == step and keep[i]]
        if rows:
            for i, a in zip(
                rows, global_norm([x[i] for i in rows], [weights[i] for i in rows], ddof, eps), strict=True
            ):
                A[i] = a
    return A
