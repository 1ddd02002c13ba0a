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
# TRL's names of means over completions.
MEANS = {
    "reward": "reward",
    "response_len": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "keep": "sampling/kept_share",
}


def metrics_of(rows: Rows) -> Metrics | None:
    """TRL's metrics as far as rows give them; None where rows have no steps."""
    if "step" not in rows or not len(rows) or not np.isfinite(rows["step"]).any():
        return None
    names = [word for word in MEANS if word in rows]
    steps_S, means = rows.step_means(*names)
    columns = {MEANS[word]: mean for word, mean in zip(names, means, strict=True)}
    columns |= _spreads(rows, steps_S)
    return Metrics(steps_S, columns, of_rows=True)


def _spreads(rows: Rows, steps_S: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """By step: the mean over groups of the standard deviation (N − 1), and the share in which it is 0."""
    step_G, of = rows["step"][rows.firsts], rows.group_rewards
    known = (of.count > 0) & np.isfinite(step_G)
    codes = np.searchsorted(steps_S, step_G[known])
    counts = np.bincount(codes, minlength=len(steps_S))
    spread = np.sqrt(of.squares[known] / np.maximum(of.count[known] - 1, 1))
    flat = (of.low == of.high)[known].astype(np.float64)
    return {"reward_std": _mean(codes, spread, counts), "frac_reward_zero_std": _mean(codes, flat, counts)}


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
        taken = [(step, known & (steps == step)) for step in _few_steps(rows, known)] or taken
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


def _mean(codes: NDArray[np.int64], values: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        means: NDArray[np.float64] = np.bincount(codes, values, minlength=len(counts)) / counts
    return means


def _few_steps(rows: Rows, known_N: NDArray[np.bool_]) -> list[int]:
    """The first that has such a row, those at the thirds, and the last."""
    steps_S, codes_N = rows.by_step()
    found = steps_S[np.bincount(codes_N, known_N, len(steps_S) + 1)[: len(steps_S)] > 0]
    places = np.unique(np.linspace(0, len(found) - 1, min(4, len(found))).round().astype(int))
    return [int(step) for step in found[places]]


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
