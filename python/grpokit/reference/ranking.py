"""Stage 3, select: rows of a group, or groups of a batch, that compete; a tie goes to what comes first.

Each function takes a `Selection` and drops what was not chosen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .selection import DOWNSAMPLED, LOW_LEARNABILITY, LOW_VARIANCE, SOURCE_LIMIT, SURPLUS, Selection, mean

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence


def most_varied(outcomes: Sequence[float], m: int) -> list[int]:
    """PODS (arXiv:2504.13818, §3.2): the m of some numbers with the greatest variance, as places in the list.

    The m largest are compared with the choices of h = 0, 1, ..., m − 1 of the largest and m − h of the smallest; one is
    taken when it is better, by more than rounding.

    Examples
    --------
    >>> most_varied([1.0, 0.0, 1.0, 1.0], 2)
    [1, 3]
    """
    if len(outcomes) <= m:
        return list(range(len(outcomes)))
    falling = sorted(range(len(outcomes)), key=lambda i: -outcomes[i])
    low, high = min(outcomes), max(outcomes)

    def chosen(h: int) -> list[int]:
        return falling[:h] + falling[len(falling) - (m - h) :]

    def spread(h: int) -> float:
        y = [(outcomes[i] - low) / (high - low) if high > low else 0.0 for i in chosen(h)]
        return m * sum(x * x for x in y) - sum(y) ** 2

    best = m
    for h in range(m):
        if spread(h) > spread(best) * (1 + 1e-12) + 1e-12:
            best = h
    return sorted(chosen(best))


def max_variance(selection: Selection, m: int, *, stats: str) -> None:
    """Of each group keeps the m kept rows whose outcomes vary most."""
    dropped = [False] * len(selection.groups)
    for g in set(selection.groups):
        rows = [i for i in selection.rows_of(g) if not selection.reasons[i]]
        chosen = most_varied([x for i in rows if (x := selection.outcomes[i]) is not None], m)
        for place, i in enumerate(rows):
            dropped[i] = place not in chosen
    selection.drop(dropped, DOWNSAMPLED, stats=stats)


def std(outcomes: Sequence[float]) -> float:
    """The standard deviation with ddof 1; 0 where all are equal or alone."""
    if len(outcomes) < 2 or max(outcomes) == min(outcomes):
        return 0.0
    return math.sqrt(sum((x - mean(outcomes)) ** 2 for x in outcomes) / (len(outcomes) - 1))


def coarse(score: float) -> float:
    """A score to 32 bits: what is equal in the paper's arithmetic shall not differ by rounding."""
    mantissa, exponent = math.frexp(score)
    return math.ldexp(
        math.floor(mantissa * 2**33 + 0.5) if score >= 0 else -math.floor(-mantissa * 2**33 + 0.5), exponent - 33
    )


def _keep_highest(
    selection: Selection,
    score: Callable[[Hashable], float],
    quota: Callable[[int], int],
    batch: Callable[[Hashable], int],
) -> Callable[[Hashable], bool]:
    """Whether a group is left and not among the highest of its batch."""
    left = [g for g in dict.fromkeys(selection.groups) if any(not selection.reasons[i] for i in selection.rows_of(g))]
    lost = set()
    for b in {batch(g) for g in left}:
        ranked = sorted((g for g in left if batch(g) == b), key=lambda g: -coarse(score(g)))
        lost |= set(ranked[quota(len(ranked)) :])
    return lambda g: g in lost


def variance_quantile(selection: Selection, share: float, batch: Callable[[Hashable], int]) -> None:
    """StarPO-S (arXiv:2504.20073, §4.2): keeps the share of the groups whose outcomes vary most."""
    lost = _keep_highest(
        selection, lambda g: std(selection.counted(g)), lambda n: max(1, math.floor(share * n + 1e-9)), batch
    )
    selection.drop_groups(lost, LOW_VARIANCE)


def learnability(selection: Selection, groups: int, batch: Callable[[Hashable], int]) -> None:
    """LILO (arXiv:2502.12272): keeps the groups with the largest p(1 − p)."""

    def score(g: Hashable) -> float:
        p = mean(selection.counted(g))
        return p * (1 - p)

    selection.drop_groups(_keep_highest(selection, score, lambda _: groups, batch), LOW_LEARNABILITY)


def source_limit(
    selection: Selection,
    groups: int,
    sources: Sequence[Hashable],
    batch: Callable[[Hashable], int],
    only: Hashable | None = None,
) -> None:
    """Keeps the first groups of each source in a batch."""
    taken: dict[tuple[Hashable, int], int] = {}
    lost = set()
    for g in dict.fromkeys(selection.groups):
        rows = selection.rows_of(g)
        source = sources[rows[0]]
        if all(selection.reasons[i] for i in rows) or (only is not None and source != only):
            continue
        taken[source, batch(g)] = taken.get((source, batch(g)), 0) + 1
        if taken[source, batch(g)] > groups:
            lost.add(g)
    selection.drop_groups(lambda g: g in lost, SOURCE_LIMIT)


def surplus(selection: Selection, need: int, order: Callable[[Hashable], object]) -> int:
    """Keeps the first `need` of the groups that are left, in an order, and says how many there are."""
    left = [g for g in dict.fromkeys(selection.groups) if any(not selection.reasons[i] for i in selection.rows_of(g))]
    left.sort(key=order)  # type: ignore[arg-type]
    selection.drop_groups(lambda g: g in left[need:], SURPLUS)
    return len(left[:need])
