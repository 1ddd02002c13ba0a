"""Training and held-out prompts go different ways."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.rule import Bounds, Seen, rule
from grpokit.doctor.series import difference, rising

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.record import Record

# What is measured on held-out prompts, the first that is there.
HELD_OUT = ("eval/pass@1", "eval_reward", "eval/reward")


@rule(
    "D017",
    "held-out-falls",
    "The reward rises and held-out prompts get worse",
    severity="warning",
    cause="The policy learns its prompts by heart, or what the scorer pays for and the evaluation does not.",
    fix="Go back to the snapshot of the best evaluation; more prompts, fewer passes (`steps`), a KL penalty "
    "(`recipe=grpo recipe.beta=0.04`); read the best completions for what is paid for.",
    source="Gao et al., arXiv:2210.10760 (over-optimisation of a proxy)",
    reads="the metrics reward and eval/pass@1 with its standard error, or eval_reward",
    bounds={
        "errors": (4, "standard errors below the best evaluation, which is the luckiest of several"),
        "reward": (3, "standard errors that the reward has risen since"),
        "evaluations": (3, "at least"),
    },
    online=True,
)
def held_out_falls(record: Record, bound: Bounds) -> Iterator[Seen]:
    """From the best evaluation to the last one."""
    if record.metrics is None:
        return
    name = next((name for name in HELD_OUT if len(record.metrics.there(name)[1]) >= bound["evaluations"]), None)
    if name is None:
        return
    steps, passed = record.metrics.there(name)
    best = int(np.argmax(passed[:-1]))
    fall = float(passed[best] - passed[-1])
    errors = record.metrics[f"{name}_stderr"][np.isin(record.metrics.steps_N, steps)]
    if np.isfinite(errors).all():
        surely = fall / math.hypot(errors[best], errors[-1], 1e-9)
    else:
        surely = -rising(passed[best:]) + 1  # without a standard error a trend must tell
    at, rewards = record.metrics.trained().there("reward")
    since, before = rewards[at > steps[best]], rewards[at <= max(steps[best], at[0] if len(at) else 0)]
    if surely < bound["errors"] or len(since) < 10:
        return
    late, early = since[-max(5, len(since) // 3) :], (before if len(before) >= 5 else since[: max(5, len(since) // 3)])
    rise = difference(early, late)
    if rise < bound["reward"]:
        return
    message = (
        f"{name} fell from {passed[best]:.3f} at step {steps[best]} to {passed[-1]:.3f}, {surely:.1f} standard errors, "
        f"while the reward rose from {early.mean():.3f} to {late.mean():.3f}."
    )
    numbers = {"best": passed[best], "last": passed[-1], "errors": surely, "reward before": early.mean()}
    yield Seen(message, numbers | {"reward after": late.mean()}, (int(steps[best]), int(steps[-1])))
