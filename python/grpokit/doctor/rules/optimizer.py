"""The optimizer: spikes, a learning rate of 0, denominators that are not the step's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.doctor.rule import Bounds, Seen, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.record import Record

BEFORE = 20


@rule(
    "D014",
    "gradient-spikes",
    "The gradient's norm has spikes",
    severity="warning",
    cause="One batch pulls many times harder than the ones before: a group whose spread is rounding error is divided "
    "by it, a ratio exploded, or a very long answer counts whole.",
    fix="`max_grad_norm` bounds what a spike does (it is cut, not harmless). Look at that step's completions and at "
    "`mismatch/ratio_max`; a recipe with a dual clip or truncated weights bounds the cause.",
    source="NeMo-RL #4161: equal rewards of 0.3 left a spread of 1e-4, advantages of 7428 and a norm of 35",
    reads="the metric grad_norm",
    bounds={
        "times": (10, "times the median of the 20 steps before; norms of a healthy run differ by a factor of 3"),
        "before": (10, "steps before it, at least, to have a median"),
    },
    online=True,
)
def gradient_spikes(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Each step against the median of those before."""
    if record.metrics is None:
        return
    steps, norms = record.metrics.trained().there("grad_norm")
    before = int(bound["before"])
    if len(norms) <= before:
        return
    padded = np.concatenate([np.full(BEFORE, np.nan), norms])
    windows = np.lib.stride_tricks.sliding_window_view(padded, BEFORE)[before : len(norms)]
    usual = np.nanmedian(windows, 1)
    times = norms[before:] / np.where(usual > 0, usual, np.inf)
    high = np.flatnonzero(times >= bound["times"])
    if not len(high):
        return
    worst = high[np.argmax(times[high])]
    at = steps[before:]
    message = (
        f"{len(high)} of {len(norms)} steps: the largest, step {at[worst]}, has a norm of {norms[before:][worst]:.3g}, "
        f"{times[worst]:.0f} times the usual {usual[worst]:.3g}."
    )
    numbers = {"spikes": len(high), "step": int(at[worst]), "norm": norms[before:][worst], "times": times[worst]}
    yield Seen(message, numbers, (int(at[high[0]]), int(at[high[-1]])))


@rule(
    "D019",
    "no-learning-rate",
    "The learning rate is 0",
    severity="error",
    cause="The schedule has ended, warms up for ever, or a controller has scaled it away: the weights stay.",
    fix="Set `learning_rate`; see `lr_control.base`; in other trainers the scheduler's number of steps and of warm-up "
    "steps, which count optimizer steps and not batches.",
    source="AdamW moves a weight by about the learning rate an update (arXiv:1711.05101)",
    reads="the metric learning_rate",
    bounds={
        "rate": (1e-10, "fp32 near 0.01 has steps of 9e-10: smaller updates leave most weights as they are"),
        "steps": (5, "the last ones: the first step of a warm-up may be 0"),
    },
    online=True,
)
def no_learning_rate(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Of the last steps, all."""
    if record.metrics is None:
        return
    steps, rates = record.metrics.trained().there("learning_rate")
    small = np.abs(rates) < bound["rate"]
    tail = len(small) if small.all() else int(np.argmin(small[::-1]))
    # What ends in 0 as planned does so in its last steps.
    if tail >= bound["steps"] and tail >= 0.1 * len(rates):
        message = f"The learning rate is {rates[-1]:g} in the last {tail} of {len(rates)} steps."
        yield Seen(message, {"rate": rates[-1], "steps": tail}, (int(steps[-tail]), int(steps[-1])))


@rule(
    "D020",
    "changing-denominator",
    "The loss is divided by counts of a micro-batch",
    severity="warning",
    cause="A mean over the tokens of each micro-batch, added up, is not the mean over the step's: an answer counts the "
    "more the fewer tokens there are beside it, and the gradient changes with the micro-batches' size.",
    fix="TRL: `loss_type='dapo'` (the same mean over the whole step); verl: `loss_agg_mode` with the batch's counts, "
    "or dynamic batches off. Recipes of grpokit are divided by counts of the whole step, whatever the micro-batches.",
    source="TRL #3021, prime-rl #2358 (2 to 4 % of the gradient), unsloth #3006; docs/compat.md",
    reads="the configuration: options of TRL's or of verl's loss, in config.toml or as parameters of the recipes trl "
    "and verl. Metrics and rows do not show it",
    bounds={"micro-batches": (2, "an optimizer step: one alone has the step's counts")},
    online=True,
)
def changing_denominator(record: Record, bound: Bounds) -> Iterator[Seen]:
    """By the options that are known to count in a micro-batch."""
    config: dict[str, Any] = record.config or {}
    ours = config.get("recipe") in ("trl", "verl")
    options = config.get("recipe_parameters") or {} if ours else config
    found = [f"{name}={options[name]!r}" for name, values in _LOCAL.items() if str(options.get(name)).lower() in values]
    parts = config.get("gradient_accumulation_steps", 1)
    if not found or (not ours and not (isinstance(parts, int) and parts >= bound["micro-batches"])):
        return
    if ours:
        message = f"{found[0]} counts in a micro-batch there and over the whole step here: the runs differ."
        yield Seen(message, {"option": found[0]}, None, "info")
    else:
        message = f"{found[0]} with {parts} micro-batches an optimizer step."
        yield Seen(message, {"option": found[0], "micro-batches": parts})


_LOCAL = {"loss_type": {"bnpo"}, "loss_mode": {"geo_mean", "clip_cov", "kl_cov"}}
