"""Sequences to bins and to ranks: first-fit decreasing, the largest differencing method, and the best possible.

Rows are numbers from 0; a bin or a rank is the sorted list of its rows.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def first_fit_decreasing(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Rows by falling length, equal ones by row number, each into the first bin with room.

    Examples
    --------
    >>> first_fit_decreasing([700, 200, 500, 300, 300], 1000)
    [[0, 3], [1, 2, 4]]
    """
    bins: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        for rows in bins:
            if sum(lengths[i] for i in rows) + lengths[row] <= max_tokens:
                rows.append(row)
                break
        else:
            bins.append([row])
    return [sorted(rows) for rows in bins]


def fewest_bins(lengths: Sequence[int], max_tokens: int) -> int:
    """OPT, by trying everything: for a few rows."""

    def place(rows: list[int], room: list[int], best: int) -> int:
        if not rows:
            return len(room)
        for i in {space: i for i, space in enumerate(room) if space >= rows[0]}.values():
            best = min(best, place(rows[1:], [space - rows[0] * (i == j) for j, space in enumerate(room)], best))
        if len(room) + 1 < best:
            best = min(best, place(rows[1:], [*room, max_tokens - rows[0]], best))
        return best

    return place(sorted(lengths, reverse=True), [], len(lengths))


def cost(length: int, a: float, b: float) -> float:
    """a·n + b·n²."""
    return a * length + b * length * length


def largest_differencing(costs: Sequence[float], ranks: int, *, equal_counts: bool = False) -> list[list[int]]:
    """Karmarkar and Karp's method for several ranks; ranks by falling load.

    A state is a list of (load, rows), by falling load. The two states with the largest spread are merged, the
    heaviest of the first with the lightest of the second. Of equal spreads a merged state comes before one that was
    there from the start, the newest first; of those from the start the one with the costlier rows.

    Examples
    --------
    >>> largest_differencing([8, 7, 6, 5, 4], 2)
    [[1, 3, 4], [0, 2]]
    """
    width = min(ranks, len(costs))
    order = sorted(range(len(costs)), key=lambda row: (-costs[row], row))
    size = width if equal_counts else 1
    states = []
    for start in range(0, len(order), max(size, 1)):
        shares = [(costs[row], [row]) for row in order[start : start + size]]
        states.append((-start, shares + [(0, [])] * (width - len(shares))))
    age = 0
    while len(states) > 1:
        states.sort(key=lambda state: (state[1][0][0] - state[1][-1][0], state[0]))
        (_, first), (_, second) = states.pop(), states.pop()
        merged = [(a + b, rows + more) for (a, rows), (b, more) in zip(first, reversed(second), strict=True)]
        age += 1
        states.append((age, sorted(merged, key=lambda share: -share[0])))
    shares = states[0][1] if states else []
    return [sorted(rows) for _, rows in shares] + [[] for _ in range(ranks - width)]


def longest_first(costs: Sequence[float], ranks: int) -> float:
    """The largest load when each row, by falling cost, goes to the least loaded rank (LPT, Graham 1969)."""
    loads = [0.0] * ranks
    for load in sorted(costs, reverse=True):
        loads[loads.index(min(loads))] += load
    return max(loads)


def smallest_maximum(costs: Sequence[float], ranks: int) -> float:
    """The best possible largest load, by trying everything: for a few rows.

    Examples
    --------
    >>> smallest_maximum([8, 7, 6, 5, 4], 2)
    15.0
    """
    best = math.inf
    for choice in itertools.product(range(ranks), repeat=len(costs)):
        loads = [0.0] * ranks
        for load, rank in zip(costs, choice, strict=True):
            loads[rank] += load
        best = min(best, max(loads))
    return best
