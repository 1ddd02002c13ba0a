"""Hypothesis strategies for what RL losses, advantages and filters are given; each says which edge cases are in it.

from grpokit.testing import strategies as gst

@given(gst.batches(), gst.rollouts())
def test_mine(batch, rollouts): ...

Numbers are drawn from palettes, a byte each, the plainest first: draws are quick and shrink to plain numbers. Log-probs
are multiples of 2^-10, so that their differences are exact in fp32 too, except those that stand exactly on a bound.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from .cases import Batch, Rollouts, TokenValues

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "batches",
    "groups",
    "ledgers",
    "logprob_pairs",
    "ragged_masks",
    "rewards",
    "rollouts",
    "token_values",
]

FINE = 2.0**-10
MOST = {1: (12,), 2: (4, 5)}
# Of log r; 20 is where ratios stop growing.
FAR = (-18.0, -8.0, -3.0, -1.5, 1.5, 3.0, 8.0, 18.0)
BOUNDS = (0.8, 1.2, 1.28)
# No power of two in their denominators: the mean of equal ones is rounded.
NON_DYADIC = (0.1, 0.2, 0.3, 0.7, 0.9, 0.98, 1.1, -0.2)


def _dyadic(x: float) -> float:
    return round(x / FINE) * FINE


def _palette(plain: Sequence[float], spread: float, seed: int) -> NDArray[np.float64]:
    """256 numbers: the plain ones, then multiples of 2^-10 from a bell of the given width."""
    more = np.random.default_rng(seed).normal(0.0, spread, 256 - len(plain))
    return np.array([*plain, *np.round(more / FINE) * FINE])


@functools.cache
def _bytes(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def _drawn(draw: st.DrawFn, size: int) -> bytes:
    """Bytes, of which all that a strategy chooses is made: a draw costs more than what is drawn."""
    return draw(_bytes(size))


def _cells(draw: st.DrawFn, shape: tuple[int, ...], *palettes: NDArray[Any]) -> list[NDArray[Any]]:
    """An array of the shape for each palette of 256 numbers.

    As many bytes are drawn for small shapes as for the largest: each place keeps its own when a case shrinks.
    """
    most = tuple(map(max, shape, MOST[len(shape)]))
    drawn = np.frombuffer(_drawn(draw, math.prod(most) * len(palettes)), np.uint8).reshape(len(palettes), *most)
    found = drawn[(slice(None), *map(slice, shape))]
    return [palette[at] for palette, at in zip(palettes, found, strict=True)]


def on_bound(r: float) -> float:
    """A log-ratio whose exp is the bound itself in float64, in the middle of those that are.

    Examples
    --------
    >>> float(np.exp(on_bound(1.2))), math.exp(on_bound(0.8))
    (1.2, 0.8)
    """
    d = math.log(r)
    step = math.ulp(d)
    hits = [d + i * step for i in range(-12, 13) if math.exp(d + i * step) == r]
    return hits[len(hits) // 2] if hits else d


@functools.cache
def gaps(bounds: tuple[float, ...], *, exact: bool) -> NDArray[np.float64]:
    """256 log-ratios: 0, near, just inside and outside each bound of the ratio, on it if so wanted, and far."""
    logs = [math.log(r) for r in bounds if r > 0]
    around = [_dyadic(d) + side for d in logs for side in (-2 * FINE, 2 * FINE)]
    plain = [0.0, 0.25, -0.25, *around, *([on_bound(r) for r in bounds if r > 0] if exact else []), *FAR]
    return _palette(plain, 0.3, 1)


LOGPS = -np.abs(_palette((-1.0, -0.25, 0.0, -2.0, -16.0), 1.5, 2))
ENTROPIES = np.abs(_palette((1.0, 0.0, 0.5, 2.0), 1.0, 3))
ADVANTAGES = _palette((1.0, -1.0, 0.0, 0.5, -2.0, -0.75, FINE), 1.0, 4)
BASELINES = _palette((0.0, 1.0, 0.5), 1.0, 8)
NAMES = np.array([7, 3, -2, 2**40, 0, 11])
REWARDS: tuple[NDArray[Any], ...] = (
    np.arange(256.0) % 2,
    np.array([NON_DYADIC[i % len(NON_DYADIC)] for i in range(256)]),
    _palette((1.0, 0.0, -1.0, 0.5), 2.0, 6),
    1e6 + np.arange(256) % 5 * 0.25,
    np.round(np.random.default_rng(7).normal(0, 1, 256) * 64) / 64,
    np.where(np.arange(256) % 8 == 7, 0.9, 0.3),
)
VALUES = _palette((1.0, 2.0, 0.0, -1.0, 1e6, -1e6), 1.0, 5)


@st.composite
def ragged_masks(
    draw: st.DrawFn, max_rows: int = MOST[2][0], max_tokens: int = MOST[2][1], min_rows: int = 1
) -> NDArray[np.bool_]:
    """Masks (S, T), bool, of answers of unequal length.

    Edge cases: no padding; right and left padding; holes inside (tool outputs, masked turns); a row that is masked
    altogether (a truncated answer); everything masked; one row; one token.
    """
    s, t, kind, *rest = _drawn(draw, 3 + max_rows * max_tokens)
    S, T = min_rows + s % (max_rows - min_rows + 1), 1 + t % max_tokens
    places, cells = np.arange(T), np.array(rest).reshape(max_rows, max_tokens)[:S, :T]
    lengths = cells[:, :1] % (T + 1)
    masks: dict[str, NDArray[np.bool_]] = {
        "right": places < lengths,
        "full": np.ones((S, T), bool),
        "left": places >= T - lengths,
        "holes": cells % 3 != 2,
        "none": np.zeros((S, T), bool),
    }
    return masks[("right", "full", "left", "holes", "none")[kind % 5]]


@st.composite
def logprob_pairs(
    draw: st.DrawFn, shape: tuple[int, ...] = (3, 4), bounds: tuple[float, ...] = BOUNDS, *, exact: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probs of two policies, float64 of a shape, at most 0.

    Edge cases: equal ones (ratio 1); a probability of 1; ratios just inside and just outside each of `bounds`, and with
    `exact` on it to the last bit; ratios up to e^±18.
    """
    return _pair(*_cells(draw, shape, LOGPS, gaps(bounds, exact=exact)))


def _pair(l: NDArray[Any], d: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two log-probs, both at most 0, with exactly the difference `d`."""
    fine = np.round(d / FINE) * FINE == d
    l = np.where(fine, np.minimum(l, l + d) - l + l, 0.0)  # where both are multiples of 2^-10, so is what is made
    old = l - d
    above = np.maximum(old, 0.0)
    # A difference that is no multiple is exact only against 0.
    new = np.where(fine, l - above, np.minimum(d, 0.0))
    return new, np.where(fine, old - above, np.minimum(-d, 0.0))


@st.composite
def batches(
    draw: st.DrawFn,
    bounds: tuple[float, ...] = BOUNDS,
    weights: tuple[float, ...] = BOUNDS,
    *,
    exact: bool = True,
    per_row: bool | None = None,
    distinct: bool = False,
    masks: st.SearchStrategy[NDArray[np.bool_]] | None = None,
) -> Batch:
    """One optimizer step of tokens with the columns of four policies.

    Edge cases: those of `ragged_masks` and `logprob_pairs`; advantages of both signs, 0, all equal and tiny, per row or
    per token; finite rubbish behind the mask.

    Parameters
    ----------
    bounds : sequence of float
        Bounds of the ratio π / π_old around which draws lie.
    weights : sequence of float
        The same of π_old / π_rollout; never exactly on them.
    exact : bool
        Whether ratios stand exactly on the bounds of `bounds` at times.
    per_row : bool, optional
        Whether each sequence has one advantage; either when not given.
    distinct : bool
        Whether no two tokens have the same numbers, as quantiles and covariances want it.
    masks : strategy, optional
        Other masks than `ragged_masks`.
    """
    mask = draw(ragged_masks() if masks is None else masks)
    S, T = shape = mask.shape
    palettes = LOGPS, gaps(bounds, exact=exact), gaps(weights, exact=False), gaps((), exact=False)
    l, d, rho, y, H, A, off = _cells(draw, shape, *palettes, ENTROPIES, ADVANTAGES, np.arange(256) % 4 == 3)
    logps, old = _pair(l, d)
    by_row = draw(st.booleans()) if per_row is None else per_row
    columns: dict[str, NDArray[Any]] = {
        "logps": logps,
        "old_logps": old,
        "rollout_logps": np.minimum(old - rho, 0.0),
        "ref_logps": np.minimum(logps - y, 0.0),
        "entropies": H,
        "advantages": np.repeat(A[:, :1], T, 1) if by_row else A,
        "off_policy": off,
        "rollout_ids": np.repeat(np.arange(S)[:, None], T, 1),
    }
    if distinct:
        apart = FINE * (1 + np.arange(S * T).reshape(shape)) / 64
        columns = {k: x - apart if x.dtype == float and k != "advantages" else x for k, x in columns.items()}
        columns["entropies"] = np.abs(columns["entropies"]) + 2 * apart
    return Batch(mask, columns, by_row)


@st.composite
def groups(draw: st.DrawFn, max_rows: int = MOST[1][0], *, equal: bool = False) -> NDArray[np.int64]:
    """Group ids (N,), int64.

    Edge cases: no rows; a single group; groups of one; unequal sizes; rows of a group that are not neighbours; ids that
    are neither small, nor sorted, nor positive. With `equal`: whole groups of one size, one after another.
    """
    n, g, ordered, *rest = _drawn(draw, 3 + max_rows)
    if equal:
        return np.repeat(NAMES[: 1 + g % 3], 2 + n % 3)
    N, most = n % (max_rows + 1), (2, 1, 4, 6)[g % 4]
    ids: NDArray[np.int64] = NAMES[np.array(rest[:N], np.int64) % most]
    return ids[np.argsort(ids, kind="stable")] if ordered % 2 else ids


@st.composite
def rewards(
    draw: st.DrawFn, group_ids: NDArray[np.int64], *, signal: bool | None = None, finite: bool = True
) -> NDArray[np.float64]:
    """Rewards (N,), float64, for rows with group ids.

    Edge cases: 0 and 1; groups of equal rewards that are no dyadic fractions (their mean is rounded); all but one equal
    (7 to 1); ties; tiny differences on a huge offset; values that bf16 holds; negative, tiny and large ones. With
    `signal=False` every group is constant, with True none of more than one row is. With `finite=False` one reward, if
    there are any, is NaN, ∞ or −∞.
    """
    N, names = len(group_ids), dict.fromkeys(group_ids.tolist())
    style, *rest = _drawn(draw, 1 + max(N, MOST[1][0]) + len(NAMES))
    found = REWARDS[style % len(REWARDS)][np.array(rest[:N], np.int64)]
    for i, g in enumerate(names):
        rows, byte = group_ids == g, rest[-1 - i % len(NAMES)]
        if signal is False or (signal is None and byte % 4 == 3):
            found[rows] = NON_DYADIC[byte // 4 % len(NON_DYADIC)]
        elif signal and rows.sum() > 1 and np.ptp(found[rows]) == 0:
            found[np.argmax(rows)] += 1.0 + i
    if N and not finite:
        at, which = _drawn(draw, 2)
        found[at % N] = (np.nan, np.inf, -np.inf)[which % 3]
    return found


@st.composite
def rollouts(draw: st.DrawFn, *, signal: bool | None = None, equal: bool = False, finite: bool = True) -> Rollouts:
    """Scored answers with their groups; edge cases of `groups` and `rewards`, and lengths from 1 on."""
    ids = draw(groups(equal=equal))
    N = len(ids)
    found = draw(rewards(ids, signal=signal, finite=finite))
    lengths, baselines = _cells(draw, (N,), 1 + np.arange(256) % 7, BASELINES)
    return Rollouts(ids, found, lengths, baselines)


@st.composite
def token_values(draw: st.DrawFn) -> TokenValues:
    """A value per token with a mask; edge cases of `ragged_masks`, and values of ±1e6 beside small ones."""
    mask = draw(ragged_masks())
    (values,) = _cells(draw, mask.shape, VALUES)
    return TokenValues(values, mask)


@st.composite
def ledgers(draw: st.DrawFn) -> Any:
    """A `grpokit.StalenessLedger` after some of its operations.

    Edge cases: a new one; a staleness of 0; nothing ready; rollouts that span versions; aborted, requeued, evicted and
    consumed ones; several sources; one that was restored from its snapshot.
    """
    from grpokit import StalenessLedger

    sources = draw(st.sampled_from((None, ["maths", "code"])))
    ledger = StalenessLedger(draw(st.integers(1, 4)), draw(st.integers(0, 3)), sources=sources)
    for step in draw(st.lists(st.integers(0, 6), max_size=24)):
        running = ledger.running()
        if step <= 1:
            ledger.admit(None if sources is None else sources[step])
        elif step == 2 and running:
            ledger.complete(running[0])
        elif step == 3 and running:
            ledger.abort(running[-1])
            if draw(st.booleans()):
                ledger.requeue(running[-1])
        elif step == 4:
            ledger.take()
        elif step == 5:
            ledger.advance()
        else:
            ledger.evict(draw(st.integers(0, 2)))
    return StalenessLedger.restore(ledger.snapshot(), running="keep") if draw(st.booleans()) else ledger
