"""What rows alone say: metrics by step where nobody has logged them, and how rewards are spread."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.record import Metrics

from .numbers import finite, told

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grpokit.record import Rows

# Values that are drawn one by one; more are put into ten bins.
FEW = 9
BINS = 10


def metrics_of(rows: Rows) -> Metrics | None:
    """TRL's metrics as far as rows give them; None where rows have no steps."""
    if "step" not in rows or not len(rows):
        return None
    steps = rows["step"]
    known = np.isfinite(steps) & np.isfinite(rows["reward"])
    if not known.any():
        return None
    if known.all():
        known = slice(None)  # ten million rows are not copied
    steps_S, codes = _coded(steps[known])
    rewards = rows["reward"][known]
    counts = np.bincount(codes, minlength=len(steps_S))
    columns = {"reward": _mean(codes, rewards, counts)}
    spread_G, flat_G, first_G = _groups(rows["group"][known], rewards)
    step_G = codes[first_G]
    groups_S = np.bincount(step_G, minlength=len(steps_S))
    columns["reward_std"] = _mean(step_G, spread_G, groups_S)
    columns["frac_reward_zero_std"] = _mean(step_G, flat_G.astype(np.float64), groups_S)
    for word, name in (
        ("response_len", "completions/mean_length"),
        ("truncated", "completions/clipped_ratio"),
        ("keep", "sampling/kept_share"),
    ):
        if word in rows:
            values = rows[word][known]
            there = np.isfinite(values)
            if there.all():
                columns[name] = _mean(codes, values, counts)
            else:
                columns[name] = _mean(codes[there], values[there], np.bincount(codes[there], minlength=len(steps_S)))
    return Metrics(steps_S, columns)


def histograms(rows: Rows, run: int, *, several: bool = False) -> list[dict[str, Any]]:
    """Rewards, and the groups' pass rates, at a few steps."""
    rewards = rows["reward"]
    known = np.isfinite(rewards)
    if not known.any():
        return []
    letter = f", {'AB'[run]}" if several else ""
    taken: list[tuple[float | None, Any]] = [(None, known)]
    if "step" in rows:
        steps = rows["step"]
        taken = [(step, known & (steps == step)) for step in _few_steps(steps, known)] or taken
    samples = [(step, rewards[at]) for step, at in taken]
    made = [_bars("rewards", f"Rewards at a few steps{letter}", "share of a step’s completions", samples, run)]
    # As an evaluation counts: a completion passes whose reward is 1 or more.
    passes = bool((rewards[known] >= 1).any())
    rates: list[tuple[float | None, Any]] = []
    for step, at in taken:
        codes = np.unique(rows["group"][at], return_inverse=True)[1] if step is not None else rows["group"][at]
        counts = np.bincount(codes)
        outcome = (rewards[at] >= 1).astype(np.float64) if passes else rewards[at]
        rates.append((step, _mean(codes, outcome, counts)[counts > 0]))
    title, note = (
        ("Groups’ pass rates", "share of a step’s groups; a reward of 1 or more passes")
        if passes
        else ("Groups’ mean rewards", "share of a step’s groups")
    )
    made.append(_bars("pass_rates", f"{title}{letter}", note, rates, run))
    return made


def _coded(steps_N: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The steps that there are, and each row's place among them; without sorting where steps are close together."""
    whole = steps_N.astype(np.int64)
    low = int(whole.min())
    if int(whole.max()) - low > 4 * len(whole) + 1000:
        found, codes = np.unique(whole, return_inverse=True)
        return found, codes
    whole -= low
    there = np.bincount(whole) > 0
    np.take(np.cumsum(there) - 1, whole, out=whole, mode="clip")
    return np.flatnonzero(there) + low, whole


def _mean(codes: NDArray[np.int64], values: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        means: NDArray[np.float64] = np.bincount(codes, values, minlength=len(counts)) / counts
    return means


def _groups(
    groups_N: NDArray[np.int64], rewards_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Of each group that has a row: the standard deviation (N − 1), whether it is 0, and a row of it."""
    counts = np.bincount(groups_N)
    row_G = np.zeros(len(counts), np.int64)
    row_G[groups_N] = np.arange(len(groups_N))
    there = counts > 0
    centred = _mean(groups_N, rewards_N, counts)[groups_N]
    np.subtract(rewards_N, centred, out=centred)
    squares = np.bincount(groups_N, np.square(centred, out=centred))
    del centred
    same = np.bincount(groups_N, rewards_N != rewards_N[row_G[groups_N]]) == 0
    return np.sqrt(squares / np.maximum(counts - 1, 1))[there], same[there], row_G[there]


def _few_steps(steps_N: NDArray[np.float64], known_N: NDArray[np.bool_]) -> list[float]:
    """The first, those at the thirds, and the last."""
    known = steps_N[known_N & np.isfinite(steps_N)]
    if not len(known):
        return []
    found = _coded(known)[0]
    del known
    places = np.unique(np.linspace(0, len(found) - 1, min(4, len(found))).round().astype(int))
    return [float(step) for step in found[places]]


def _bars(id_: str, title: str, note: str, samples: list[tuple[float | None, Any]], run: int) -> dict[str, Any]:
    every = np.concatenate([values for _, values in samples])
    distinct = np.unique(every)
    if len(distinct) <= FEW:
        labels = [told(value) for value in distinct.tolist()]
        counted = [np.bincount(np.searchsorted(distinct, values), minlength=len(distinct)) for _, values in samples]
    else:
        edges = np.linspace(distinct[0], distinct[-1], BINS + 1)
        labels = [f"{told(low)} to {told(high)}" for low, high in pairwise(edges)]
        counted = [np.histogram(values, edges)[0] for _, values in samples]
    series: list[dict[str, Any]] = []
    for (step, values), counts in zip(samples, counted, strict=True):
        shares = [finite(share) for share in (counts / max(len(values), 1)).tolist()]
        mean = finite(values.mean())
        series.append(
            {"run": run, "step": None if step is None else int(step), "count": len(values), "mean": mean}
            | {"shares": shares}
        )
    parts = [
        f"{'all steps' if one['step'] is None else 'step ' + format(one['step'], ',')}: "
        f"mean {told(one['mean'])} of {one['count']:,}"
        for one in series
    ]
    return {
        "id": f"{id_}-{run}" if run else id_,
        "title": title,
        "note": note,
        "kind": "bars",
        "bins": labels,
        "description": f"{title}: {'; '.join(parts)}.",
        "series": series,
    }
