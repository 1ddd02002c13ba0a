"""Answers that grow until they are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.configured import whole
from grpokit.doctor.rule import Bounds, Seen, rule
from grpokit.doctor.series import difference, ends, rising

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from grpokit.record import Record


@rule(
    "D008",
    "longer-and-cut",
    "Answers grow longer and are cut at the limit",
    severity="warning",
    cause="Length is paid for, by the reward or by a mean over each answer's own tokens, in which a long wrong answer "
    "loses less a token. What is cut is scored as wrong whatever it would have said.",
    fix="`recipe=dapo` (its overlong punishment) or `dr_grpo`; a larger `max_completion_length`; `NotTruncated()` "
    "among the recipe's `select` keeps cut answers out.",
    source="arXiv:2503.14476, §3.4; arXiv:2503.20783, §3.1 (length bias)",
    reads="the metrics completions/mean_length and completions/clipped_ratio, or lengths and ends of rows by step",
    bounds={
        "cut": (
            0.1,
            "share of the answers, of the last steps: with groups of 8, most groups have a cut one (1 − 0.9⁸)",
        ),
        "errors": (3, "standard errors by which the share has grown"),
        "trend": (3, "standard deviations of the rank test: lengths rise"),
    },
    online=True,
)
def longer_and_cut(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Both rise, and many are cut."""
    lengths, cut, steps = _series(record)
    if len(lengths) < 10:
        return
    many = max(5, min(len(lengths) // 5, 50))
    early, late = cut[:many], cut[-many:]
    if late.mean() < bound["cut"] or difference(early, late) < bound["errors"] or rising(lengths) < bound["trend"]:
        return
    limit = whole(record, "max_completion_length")
    message = (
        f"The mean length rose from {lengths[:many].mean():.0f} to {lengths[-many:].mean():.0f} tokens, and the share "
        f"that is cut from {early.mean():.1%} to {late.mean():.1%}."
    )
    numbers = {
        "length early": lengths[:many].mean(),
        "length late": lengths[-many:].mean(),
        "cut early": early.mean(),
        "cut late": late.mean(),
    }
    yield Seen(message, numbers | ({"limit": limit} if limit else {}), (steps[-many], steps[-1]))


def _series(record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean length and share cut, by step."""
    if record.metrics is not None and ends(record.metrics, "completions/clipped_ratio") is not None:
        metrics = record.metrics.trained()
        there = np.isfinite(metrics["completions/mean_length"]) & np.isfinite(metrics["completions/clipped_ratio"])
        cut = metrics["completions/clipped_ratio"][there]
        return metrics["completions/mean_length"][there], cut, metrics.steps_N[there]
    rows = record.rows
    if rows is None or not all(name in rows for name in ("step", "response_len", "truncated")):
        nothing = np.zeros(0)
        return nothing, nothing, nothing.astype(np.int64)
    steps, (lengths, cut) = rows.step_means("response_len", "truncated")
    there = np.isfinite(lengths) & np.isfinite(cut)
    return lengths[there], cut[there], steps[there]
