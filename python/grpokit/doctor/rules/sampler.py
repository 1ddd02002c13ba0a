"""The sampler and the trainer: their log-probs part, the weights are worn, or the sampler's weights are old."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.configured import is_stale
from grpokit.doctor.rule import Bounds, Seen, rule
from grpokit.doctor.series import ends, rising

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.record import Record

GAP = "sampling/sampling_logp_difference/mean"


@rule(
    "D010",
    "mismatch-grows",
    "The sampler and the trainer disagree more and more",
    severity="warning",
    cause="They compute the same policy with different kernels or precision, and as it grows sure of unlikely tokens "
    "the difference does too: the gradient is of another policy than the one that sampled.",
    fix="A recipe that corrects for it: `recipe=icepop`, or truncated weights among `weigh`; `precision=fp32`, or one "
    "precision in both; for mixtures of experts replay the routing (docs/routing.md).",
    source="Yao et al., fengyao.notion.site/off-policy-rl (TIS); arXiv:2510.26788 (precision)",
    reads=f"the metric {GAP}",
    bounds={
        "gap": (0.01, "nats a token, of the last steps: what bf16 and another engine give from the beginning"),
        "growth": (3, "times what it was"),
        "trend": (4, "standard deviations of the rank test: this is no noise"),
    },
    online=True,
)
def mismatch_grows(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Larger than rounding explains, several times what it was, and rising; not where the weights are plainly old."""
    found = ends(record.metrics, GAP)
    if found is None or record.metrics is None:
        return
    early, late = float(np.median(found.early)), float(np.median(found.late))
    if late < bound["gap"] or late < bound["growth"] * early:
        return
    trend = rising(record.metrics.trained().there(GAP)[1])
    if trend < bound["trend"] or _unsynced(record, old_weights.thresholds()) is not None:
        return
    message = f"The mean difference of log-probs rose from {early:.2g} to {late:.2g} nats a token."
    yield Seen(message, {"early": early, "late": late, "trend": trend}, found.steps)


@rule(
    "D011",
    "small-effective-sample",
    "A few weights are most of the batch",
    severity="warning",
    cause="The ratios between the policy that learns and the one that sampled are so uneven that the batch is worth a "
    "fraction of its rows: the data is stale, there are many updates a step, or sampler and trainer differ.",
    fix="Fewer `updates_per_step` or `num_iterations`, a lower `async_level`, a lower `learning_rate`; `recipe=vcpo` "
    "with `lr_control.base=1` scales the step by it, `recipe=m2po_clip` is made for stale data.",
    source="Kong's effective sample size, (Σw)² / Σw²; arXiv:2602.17616 (VCPO)",
    reads="the metrics mismatch/ess_current and mismatch/ess_token",
    bounds={
        "ess": (0.5, "of the rows: the gradient's standard error is √2 times what the batch's size says"),
        "steps": (0.8, "share of the last steps that are below it"),
    },
    online=True,
)
def small_sample(record: Record, bound: Bounds) -> Iterator[Seen]:
    """At the end of the run, and not in single steps."""
    for name in ("mismatch/ess_current", "mismatch/ess_token"):
        found = ends(record.metrics, name)
        if found is None:
            continue
        late = float(np.median(found.late))
        if (found.late < bound["ess"]).mean() >= bound["steps"]:
            message = f"The effective sample size ({name}) is {late:.0%} of the batch in the last steps."
            yield Seen(message, {"metric": name, "late": late, "early": float(np.median(found.early))}, found.steps)
            return


@rule(
    "D018",
    "old-weights",
    "The sampler does not get the new weights",
    severity="error",
    cause="The update of the weights does not reach the sampler, or it goes on with a cache: answers come from the "
    "policy of the beginning, which nothing that is learned changes.",
    fix="Look at what loads the weights: a directory that both can read (`engine.weights`), the engine's sleep mode, "
    "names of low-rank layers. `max_logp_gap` stops a run of ours at the first step that differs; leave it at 0.",
    source="TRL #5312 (sleep mode without a sync of weights); verl-omni #552 (a sync that binds no module)",
    reads=f"the metric {GAP} without sampling ahead; or versions of rows by step",
    bounds={
        "gap": (0.05, "nats a token, of the last steps: beyond what bf16 and another engine give"),
        "growth": (10, "times the first step's, when the weights still were the same"),
        "first": (3, "times the first step's already in steps 4 to 8: it begins with the first updates"),
        "trend": (2, "standard deviations of the rank test: it rises with the steps"),
        "steps": (5, "whose rows have one and the same version"),
    },
    online=True,
)
def old_weights(record: Record, bound: Bounds) -> Iterator[Seen]:
    """By log-probs, else by the versions that rows were sampled with."""
    seen = _unsynced(record, bound)
    if seen is not None:
        yield seen
        return
    rows = record.rows
    if rows is None or "step" not in rows or "version_min" not in rows:
        return
    known = np.isfinite(rows["version_min"])
    steps, at = np.unique(rows["step"][known], return_inverse=True)
    newest = np.full(len(steps), -np.inf)
    np.maximum.at(newest, at, rows["version_min"][known])
    # A version of 0 in files of others may be one that nobody recorded.
    if len(steps) >= bound["steps"] and np.ptp(newest) == 0 and (newest[0] > 0 or rows.format == "columns"):
        message = f"The answers of {len(steps)} steps were all sampled with version {newest[0]:.0f}."
        yield Seen(message, {"steps": len(steps), "version": newest[0]}, (int(steps[0]), int(steps[-1])))


def _unsynced(record: Record, bound: Bounds) -> Seen | None:
    if record.metrics is None or is_stale(record):
        return None
    steps, gaps = record.metrics.trained().there(GAP)
    if len(gaps) < 8 or steps[0] > 1:
        return None
    first, soon, late = float(gaps[0]), float(np.median(gaps[3:8])), float(np.median(gaps[-5:]))
    if late < max(bound["gap"], bound["growth"] * first) or soon < bound["first"] * first:
        return None
    trend = rising(gaps)
    if trend < bound["trend"]:
        return None
    message = (
        f"The mean difference of log-probs was {first:.2g} in the first step, {soon:.2g} soon after, {late:.2g} now."
    )
    numbers = {"first": first, "steps 4 to 8": soon, "late": late, "trend": trend}
    return Seen(message, numbers, (int(steps[1]), int(steps[-1])))
