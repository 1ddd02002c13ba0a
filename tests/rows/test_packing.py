"""Bins and ranks: the reference's very rows, the bounds that are proven, and what order and type must not change."""

import itertools
import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import grpokit as gk
from grpokit.reference import packing as ref

LENGTHS = st.one_of(
    st.lists(st.integers(0, 100), max_size=60),
    st.lists(st.integers(0, 3), max_size=60),
    st.lists(st.sampled_from((0, 33, 34, 50, 51, 100)), max_size=60),
    st.lists(st.integers(1, 2**45), max_size=20),
)
FEW = st.lists(st.integers(0, 30), max_size=7)
RANKS = st.integers(1, 9)


def partitions(parts, n):
    """Every row exactly once, in rising order within a part."""
    assert all(rows.dtype == np.int64 and (np.diff(rows) > 0).all() for rows in parts)
    return sorted(row for rows in parts for row in rows.tolist()) == list(range(n))


@given(LENGTHS, st.integers(0, 200))
def test_pack_is_first_fit_decreasing(lengths, more):
    max_tokens = max([1, *lengths]) + more
    packing = gk.pack(lengths, max_tokens=max_tokens)
    assert [rows.tolist() for rows in packing.bins] == ref.first_fit_decreasing(lengths, max_tokens)
    assert partitions(packing.bins, len(lengths))
    assert packing.tokens.tolist() == [sum(lengths[row] for row in rows) for rows in packing.bins]
    assert (packing.tokens <= max_tokens).all()
    empty = sum(max_tokens - tokens for tokens in packing.tokens.tolist())
    assert math.isclose(packing.waste, empty / max(1, max_tokens * len(packing.bins)), abs_tol=1e-15)


@given(st.lists(st.integers(1, 30), max_size=9), st.integers(30, 45))
def test_pack_is_within_its_bound(lengths, max_tokens):
    bins, best = len(gk.pack(lengths, max_tokens=max_tokens).bins), ref.fewest_bins(lengths, max_tokens)
    assert best <= bins <= 11 / 9 * best + 6 / 9


@pytest.mark.parametrize("longest", [100, 3_000, 8_192])
def test_many_rows_fill_their_bins(longest):
    lengths = np.random.default_rng(longest).integers(1, longest + 1, 100_000)
    packing = gk.pack(lengths, max_tokens=8192)
    assert partitions(packing.bins, len(lengths))
    np.testing.assert_array_equal(packing.tokens, [lengths[rows].sum() for rows in packing.bins])
    # All bins but the last few are more than half full in any case; first-fit decreasing does far better.
    assert len(packing.bins) <= 1.01 * math.ceil(lengths.sum() / 8192) + 1
    assert packing.waste < 0.011


@given(LENGTHS, RANKS, st.booleans(), st.sampled_from([None, (1, 0), (3, 2), (0.0, 1.0)]))
@example([0, 0, 0, 0, 0], 3, False, None)
@example([1, 1, 1, 1, 1, 1, 1], 3, False, None)
@example([1, 1, 1, 1, 1, 1], 2, False, None)
@example([2, 1, 2, 1, 2, 1, 2, 1], 2, True, None)
def test_balance_is_the_reference(lengths, ranks, equal_counts, cost):
    lengths = [n % 2**20 for n in lengths]  # so that squares are exact
    shares = gk.balance(lengths, ranks=ranks, equal_counts=equal_counts, cost=cost)
    costs = [ref.cost(n, *(cost or (1, 0))) for n in lengths]
    assert [rows.tolist() for rows in shares.ranks] == ref.largest_differencing(costs, ranks, equal_counts=equal_counts)
    assert partitions(shares.ranks, len(lengths))
    loads = [sum(costs[row] for row in rows) for rows in shares.ranks]
    assert shares.loads.tolist() == loads == sorted(loads, reverse=True)
    assert shares.spread == max(loads) - min(loads)
    assert math.isclose(shares.idle, 1 - sum(loads) / ranks / max(loads) if max(loads) else 0.0, abs_tol=1e-12)
    # No spread grows when two states are merged, so the last is no larger than the first.
    assert shares.spread <= max(costs, default=0)
    if equal_counts:
        counts = [len(rows) for rows in shares.ranks]
        assert max(counts) - min(counts) <= (len(lengths) % ranks > 0)


@given(FEW, st.integers(1, 4))
def test_balance_is_within_its_bound(lengths, ranks):
    most, best = gk.balance(lengths, ranks=ranks).loads.max(), ref.smallest_maximum(lengths, ranks)
    assert best <= most <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


@given(st.sampled_from([(3, 4 / 3), (4, 3 / 2), (5, 3 / 2)]), st.data())
def test_equal_counts_are_within_their_bound(case, data):
    """On each of two ranks 3, 4 or 5 rows (Michiels, Korst, Aarts and van Leeuwen 2003, 10.1007/3-540-36494-3_51)."""
    count, bound = case
    lengths = data.draw(st.lists(st.integers(0, 30), min_size=2 * count, max_size=2 * count))
    halves = (sum(half) for half in itertools.combinations(lengths, count))
    best = min(max(half, sum(lengths) - half) for half in halves)
    assert best <= gk.balance(lengths, ranks=2, equal_counts=True).loads.max() <= bound * best + 1e-9


@pytest.mark.parametrize("equal_counts", [True, False])
@pytest.mark.parametrize("ranks", [2, 8, 13])
def test_many_rows_leave_next_to_no_spread(ranks, equal_counts):
    lengths = np.random.default_rng(ranks).integers(100, 20_000, 8_000)
    shares = gk.balance(lengths, ranks=ranks, equal_counts=equal_counts)
    assert partitions(shares.ranks, len(lengths))
    np.testing.assert_array_equal(shares.loads, [lengths[rows].sum() for rows in shares.ranks])
    assert shares.spread <= 2
    assert shares.loads.max() <= ref.longest_first(lengths.tolist(), ranks)
    attention = gk.balance(lengths, ranks=ranks, equal_counts=equal_counts, cost=(24_576, 1))
    costs = 24_576 * lengths + lengths * lengths
    np.testing.assert_array_equal(attention.loads, [costs[rows].sum() for rows in attention.ranks])
    assert attention.idle < 1e-6


@given(LENGTHS, RANKS, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(lengths, ranks, equal_counts, random):
    order = random.sample(range(len(lengths)), len(lengths))
    moved = [lengths[row] for row in order]
    max_tokens = max([1, *lengths]) + 7
    for one, other in (
        (gk.pack(lengths, max_tokens=max_tokens).bins, gk.pack(moved, max_tokens=max_tokens).bins),
        (
            gk.balance(lengths, ranks=ranks, equal_counts=equal_counts).ranks,
            gk.balance(moved, ranks=ranks, equal_counts=equal_counts).ranks,
        ),
    ):
        inside = lambda parts, lengths: [sorted(lengths[row] for row in rows) for rows in parts]
        assert inside(one, lengths) == inside(other, moved)


@given(LENGTHS, RANKS, st.floats(0, 1e6), st.floats(0, 1e6))
def test_costs_of_any_size(lengths, ranks, a, b):
    shares = gk.balance(lengths, ranks=ranks, cost=(a, b))
    costs = np.array([ref.cost(n, a, b) for n in lengths])
    assert partitions(shares.ranks, len(lengths))
    np.testing.assert_allclose(shares.loads, [costs[rows].sum() for rows in shares.ranks], rtol=1e-12)
    assert shares.spread <= costs.max(initial=0) + 1e-12 * costs.sum()


def test_the_edges():
    nothing = gk.pack([], max_tokens=5)
    assert (nothing.bins, nothing.tokens.tolist(), nothing.waste) == ([], [], 0.0)
    assert [rows.tolist() for rows in gk.pack([0, 5, 0, 3], max_tokens=5).bins] == [[0, 1, 2], [3]]
    assert [rows.tolist() for rows in gk.pack([0, 0], max_tokens=1).bins] == [[0, 1]]
    empty = gk.balance([], ranks=2)
    assert ([rows.tolist() for rows in empty.ranks], empty.loads.tolist(), empty.idle) == ([[], []], [0.0, 0.0], 0.0)
    few = gk.balance([3, 9], ranks=4, equal_counts=True)
    assert [rows.tolist() for rows in few.ranks] == [[1], [0], [], []]
    assert gk.balance([3, 9], ranks=1).ranks[0].tolist() == [0, 1]
    assert gk.balance([2**40], ranks=1_000_000).spread == 2**40
    largest = gk.balance([2**62] * 4, ranks=2, cost=(1e150, 1e150))
    assert np.isfinite(largest.loads).all()


@pytest.mark.parametrize(
    "lengths",
    [
        np.array([5, 3, 4], np.int32),
        np.array([5, 3, 4], np.uint16),
        np.array([5, 0, 3, 0, 4])[::2],
        (5, 3, 4),
        pa.array([5, 3, 4], pa.int16()),
        pl.Series([5, 3, 4]),
    ],
)
def test_containers(lengths):
    assert [rows.tolist() for rows in gk.pack(lengths, max_tokens=9).bins] == [[0, 2], [1]]
    assert [rows.tolist() for rows in gk.balance(lengths, ranks=2).ranks] == [[1, 2], [0]]


BAD = {
    "too_long": [
        (lambda: gk.pack([5, 11, 3, 12], max_tokens=10), ["row 1 has 11 tokens", "max_tokens=10", "2 rows"]),
        (lambda: gk.pack([2**63 - 1], max_tokens=2**53), ["row 0"]),
    ],
    "negative_length": [
        (lambda: gk.pack([5, -1], max_tokens=10), ["'lengths'", "row 1: -1"]),
        (lambda: gk.balance([-7], ranks=1), ["'lengths'", "row 0: -7"]),
    ],
    "null_value": [(lambda: gk.pack([5, None], max_tokens=10), ["'lengths'", "[1]"])],
    "column_type": [(lambda: gk.balance([0.5], ranks=2), ["'lengths'", "whole numbers"])],
    "bad_parameter": [
        (lambda: gk.pack([1], max_tokens=0), ["pack: max_tokens=0", "from 1 to"]),
        (lambda: gk.pack([1], max_tokens=10.0), ["max_tokens=10.0"]),
        (lambda: gk.balance([1], ranks=True), ["balance: ranks=True"]),
        (lambda: gk.balance([1], ranks=10**7), ["1,000,000"]),
        (lambda: gk.balance([1], ranks=2, equal_counts="no"), ["equal_counts='no'"]),
        (lambda: gk.balance([1], ranks=2, cost="12"), ["cost='12'"]),
        (lambda: gk.balance([1], ranks=2, cost=3), ["cost=3", "a·n + b·n²"]),
        (lambda: gk.balance([1], ranks=2, cost=(1, float("nan"))), ["cost=(1, nan)"]),
        (lambda: gk.balance([1], ranks=2, cost=(1, -1)), ["cost=(1, -1)"]),
    ],
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(kind):
    for provoke, words in BAD[kind]:
        with pytest.raises(gk.GrpokitError) as caught:
            provoke()
        assert caught.value.kind == kind, caught.value
        assert all(word in str(caught.value) for word in words), str(caught.value)
