"""Rewards that say nothing, and rewards that are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.rule import Bounds, Seen, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.record import Metrics, Record


@rule(
    "D001",
    "dead-scorer",
    "All rewards are equal",
    severity="error",
    cause="The scorer answers the same to all: it fails inside, compares with the wrong column, cannot find the answer "
    "in the text; or no answer is ever right, as when the tasks are too hard or an update has broken the policy.",
    fix="Call the reward function by hand on five rows of `rollouts.jsonl`. If it is right, take easier prompts "
    "(`task.difficulty=easy`), a reward with degrees, or, where it fell within a step, a lower `learning_rate`.",
    source="arXiv:2402.03300, eq. 3: the advantage of equal rewards is 0; verl #2738",
    reads="rewards of rows, or the metrics reward and frac_reward_zero_std, rewards/NAME/mean and /std",
    bounds={
        "rows": (64, "with no other reward among n rows, its share is below 3/n at 95 %: below 5 % here"),
        "steps": (5, "metrics do not say how many rows a step has; five steps of one group of 8 are 40"),
        "tail": (10, "a scorer that dies later: so many last steps of one reward, below what was reached before"),
    },
    online=True,
)
def dead_scorer(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Over the whole record, over its end, or of one reward function."""
    seen = all_equal(record, bound)
    if seen is not None:
        yield seen
        return
    if record.metrics is not None:
        yield from _functions(record.metrics.trained(), int(bound["steps"]))


def all_equal(record: Record, bound: Bounds) -> Seen | None:
    """All rewards of the record, or of its end."""
    if record.rows is not None:
        scored = record.rows.scored("reward")
        if len(scored) >= bound["rows"] and np.ptp(scored) == 0:
            numbers = {"rows": len(scored), "reward": scored[0]}
            return Seen(f"All {len(scored):,} rewards are {scored[0]:g}.", numbers, record.rows.span())
    if record.metrics is None:
        return None
    steps, reward = record.metrics.trained().there("reward")
    flat = (record.metrics.trained()["frac_reward_zero_std"] == 1)[np.isfinite(record.metrics.trained()["reward"])]
    if not len(reward):
        return None
    same = flat & (reward == reward[-1])
    tail = len(same) if same.all() else int(np.argmin(same[::-1]))
    if tail < bound["steps"] or (tail < len(same) and (tail < bound["tail"] or reward.max() <= reward[-1])):
        return None
    best = "" if tail == len(same) else f", where it was up to {reward.max():.3g} before"
    message = f"In the last {tail} of {len(same)} steps all rewards are {reward[-1]:g}{best}."
    return Seen(message, {"steps": tail, "reward": reward[-1], "best": reward.max()}, (steps[-tail], steps[-1]))


def _functions(metrics: Metrics, fewest: int) -> Iterator[Seen]:
    for name in metrics.columns:
        if not (name.startswith("rewards/") and name.endswith("/std")):
            continue
        steps, means = metrics.there(name.removesuffix("std") + "mean")
        spread = metrics.there(name)[1]
        if len(means) >= fewest and len(spread) and not spread.any() and np.ptp(means) == 0:
            function = name.removeprefix("rewards/").removesuffix("/std")
            message = f"The reward function {function!r} gives {means[0]:g} to every answer of {len(means)} steps."
            numbers = {"function": function, "steps": len(means), "reward": means[0]}
            # What everybody has fulfilled takes nothing away.
            yield Seen(message, numbers, (steps[0], steps[-1]), "info" if means[0] > 0 else "warning")


@rule(
    "D002",
    "failing-scorer",
    "Rewards are missing",
    severity="warning",
    cause="The scorer raises, exceeds its time, or answers None: these rows are dropped, and their groups are smaller.",
    fix="See `rewards/timeouts`: raise `rewards.seconds`, or mend what raises. A scorer that cannot say is to be rare.",
    source="TRL #5773: one NaN reward poisoned its group; grpokit drops the row",
    reads="the metrics rewards/failed and sampling/completions, or rewards of rows",
    bounds={
        "share": (0.01, "at 1 % one group of 8 in 13 has lost a row: 1 − 0.99⁸ is 7.7 %"),
        "rows": (3, "one or two answers that ran out of time say nothing about the scorer"),
    },
    online=True,
)
def failing_scorer(record: Record, bound: Bounds) -> Iterator[Seen]:
    """By the count of failures, else by null rewards of rows."""
    failed, count, steps = 0.0, 0.0, None
    timeouts = 0.0
    if record.metrics is not None and "rewards/failed" in record.metrics:
        metrics = record.metrics.trained()
        at, values = metrics.there("rewards/failed")
        failed, count = float(values.sum()), float(np.nansum(metrics["sampling/completions"]))
        timeouts = float(np.nansum(metrics["rewards/timeouts"]))
        steps = (at[values > 0][0], at[values > 0][-1]) if failed else None
    if not failed and record.rows is not None:
        # An answer of None is no failure of the call.
        missing = ~np.isfinite(record.rows["reward"])
        failed, count, steps = float(missing.sum()), float(len(missing)), record.rows.span(missing)
    if failed < bound["rows"] or not count or failed / count < bound["share"]:
        return
    message = f"{failed:.0f} of {count:.0f} answers ({failed / count:.1%}) have no reward, {timeouts:.0f} by time-out."
    yield Seen(message, {"failed": failed, "answers": count, "share": failed / count, "timeouts": timeouts}, steps)
