"""What k attempts at a prompt would give, from the attempts of one prompt."""

from __future__ import annotations

import itertools
import math
import struct
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence


def pass_at_k(n: int, c: int, k: int) -> Fraction:
    """1 − C(n − c, k) / C(n, k) (arXiv:2107.03374, eq. 1), with no rounding at all.

    Examples
    --------
    >>> pass_at_k(3, 1, 2)
    Fraction(2, 3)
    """
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


def over_draws(n: int, k: int, value: Callable[[tuple[int, ...]], float]) -> tuple[float, float]:
    """The mean and the standard deviation of `value` over all n^k draws of k of n attempts, with replacement."""
    drawn = [value(rows) for rows in itertools.product(range(n), repeat=k)]
    mean = math.fsum(drawn) / len(drawn)
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in drawn) / len(drawn))


def best_at_k(values: Sequence[float], k: int) -> tuple[float, float]:
    """The greatest of k values: mean and standard deviation over all draws.

    Examples
    --------
    >>> best_at_k([0.0, 1.0], 2)[0]
    0.75
    """
    return over_draws(len(values), k, lambda rows: max(values[row] for row in rows))


def worst_at_k(values: Sequence[float], k: int) -> tuple[float, float]:
    """The least of k values: mean and standard deviation over all draws."""
    return over_draws(len(values), k, lambda rows: min(values[row] for row in rows))


def elected(values: Sequence[float], answers: Sequence[Hashable], rows: Sequence[int]) -> float:
    """The value of the answer given most often; of several the one drawn first, at its first place.

    Examples
    --------
    >>> elected([0.1, 0.2, 0.3], ["a", "b", "b"], [1, 0, 2, 0])
    0.2
    """
    given = [answers[row] for row in rows]
    most = max(given.count(answer) for answer in given)
    return next(values[row] for row, answer in zip(rows, given, strict=True) if given.count(answer) == most)


def majority_at_k(values: Sequence[float], answers: Sequence[Hashable], k: int) -> tuple[float, float]:
    """The value of the answer given most often among k: mean and standard deviation over all draws."""
    return over_draws(len(values), k, lambda rows: elected(values, answers, rows))


WORD = 1 << 64
STEP = 0x9E3779B97F4A7C15


def mix(state: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014)."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
    return state ^ (state >> 31)


def draws_of(values: Sequence[float], answers: Sequence[Hashable], k: int, seed: int) -> Iterator[list[int]]:
    """The draws of one group, without end: SplitMix64 from a hash of the seed, the values and the answers' numbers."""
    numbers: dict[Hashable, int] = {}
    state = mix((seed + STEP) % WORD)
    for value, answer in zip(values, answers, strict=True):
        bits = int.from_bytes(struct.pack("<d", value + 0.0), "little")
        for word in (bits, numbers.setdefault(answer, len(numbers))):
            state = mix(((state ^ word) + STEP) % WORD)
    while True:
        rows = []
        for _ in range(k):
            state = (state + STEP) % WORD
            rows.append(mix(state) * len(values) // WORD)
        yield rows


def majority_by_simulation(
    values: Sequence[float], answers: Sequence[Hashable], k: int, draws: int, seed: int
) -> tuple[float, float]:
    """`majority_at_k` over simulated draws."""
    some = itertools.islice(draws_of(values, answers, k, seed), draws)
    results = np.array([elected(values, answers, rows) for rows in some])
    return float(results.mean()), float(results.std())
