"""Stage 4, advantage: each estimator on one group (or one batch) of rewards.

Sums are exact (`math.fsum`), so that what is left of rounding is the definition's own.
"""

from __future__ import annotations

import itertools
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


def greedy_baseline(R: Sequence[float], greedy: Sequence[float]) -> list[float]:
    """A_i = R_i − R_greedy (ReMax, arXiv:2310.10505)."""
    return [r - g for r, g in zip(R, greedy, strict=True)]


def length_baseline(R: Sequence[float], L: Sequence[float]) -> list[float]:
    """A_i = R_i − Σ_j L_j R_j / Σ_j L_j (OPO, arXiv:2505.23585)."""
    total = math.fsum(L)
    if not has_signal(R):
        return [0.0] * len(R)
    b = math.fsum(l * r for l, r in zip(L, R, strict=True)) / total if total else R[0]
    return [r - b for r in R]


def minimum_variance_baseline(
    R: Sequence[float], norms: Sequence[float], log_w: Sequence[float], eps: float | None
) -> list[float]:
    """R_i − Σ W R / Σ W, W_j = w_j² ‖s_j‖², over σ + eps where there is an eps (2602.17616, eqs. 7, 13); ddof 0."""
    most = max(log_w)
    W = [math.exp(2 * (x - most)) * n for x, n in zip(log_w, norms, strict=True)]
    b = math.fsum(w * r for w, r in zip(W, R, strict=True)) / math.fsum(W) if any(W) else mean(R)
    sigma = 1.0 if eps is None else std(R, 0) + eps
    return [0.0 if max(R) == min(R) or sigma == 0 else (r - b) / sigma for r in R]


def soft_value(R: Sequence[float], beta: float) -> list[float]:
    """A_i = R_i − V, V = β log mean_j exp(R_j / β) (OAPL, arXiv:2602.19362, eq. 2)."""
    top = max(R)
    V = top + beta * math.log1p(math.fsum(math.expm1((r - top) / beta) for r in R) / len(R))
    return [r - V for r in R]


def best_of(R: Sequence[float], k: int) -> float:
    """max@k: the mean over all subsets of k of their best."""
    subsets = list(itertools.combinations(R, k))
    return math.fsum(max(S) for S in subsets) / len(subsets)


def pkpo(R: Sequence[float], k: int, baseline: str) -> list[float]:
    """s_i = Σ_{S∋i, |S|=k} max_S R / C(n, k), less a baseline (PKPO, arXiv:2505.15201, eqs. 19, 29, 33)."""
    n, A = len(R), []
    for i in range(n):
        others = [r for j, r in enumerate(R) if j != i]
        rests = list(itertools.combinations(others, k - 1))
        if baseline == "loo-1":
            A.append(math.fsum(max(*rest, R[i]) - max(rest) for rest in rests) / math.comb(n, k))
        else:
            s = math.fsum(max([*rest, R[i]]) for rest in rests) / math.comb(n, k)
            A.append(s - k / (n - 1) * best_of(others, k) if baseline == "loo" else s)
    return A


def pass_k_training(R: Sequence[float], k: int, eps: float) -> list[float]:
    """A+ and A− of Pass@k Training (arXiv:2508.10751) for rewards that are 0 or 1."""
    n, c = len(R), sum(r == 1 for r in R)
    rho = 1 - math.comb(n - c, k) / math.comb(n, k)
    sigma = math.sqrt(max(rho * (1 - rho), 0.0))
    if sigma + eps == 0:
        return [0.0] * n
    wrong = math.comb(n - c - 1, k - 1) / math.comb(n - 1, k - 1) if c < n else 0.0
    return [(1 - rho if r == 1 else 1 - rho - wrong) / (sigma + eps) for r in R]


def pass_k_argmax(R: Sequence[float], spread: float) -> list[float]:
    """(R_best − R_second) / spread for the single best (arXiv:2503.19595)."""
    ranked = sorted(R, reverse=True)
    if len(R) < 2 or ranked[0] == ranked[1] or spread == 0:
        return [0.0] * len(R)
    return [(ranked[0] - ranked[1]) / spread if r == ranked[0] else 0.0 for r in R]


def rescaled_mean(groups: Sequence[Sequence[float]]) -> list[list[float]]:
    """A = B / (B − M) · (R − mean), M of a batch's B groups have no signal (GPG, arXiv:2504.02546)."""
    M = sum(not has_signal(R) for R in groups)
    alpha = len(groups) / (len(groups) - M) if len(groups) > M else 0.0
    return [[alpha * a for a in mean_baseline(R)] for R in groups]


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
