"""How often prompts come back."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.rule import Bounds, Seen, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.record import Record, Rows

LOOKED_AT = 4000


@rule(
    "D021",
    "prompt-visits",
    "Prompts come back too often, or never",
    severity="warning",
    cause="A small set of prompts is passed again and again and learned by heart; or a sampler of prompts that favours "
    "some has forgotten the others.",
    fix="More prompts, or fewer steps; shuffle, and give every prompt some probability. Held-out pass@1 says whether "
    "it is learned by heart: `evaluation.every=20`.",
    source="arXiv:2506.05316 (difficulty and replay); arXiv:2504.20571 (one prompt, thousands of visits: it can work)",
    reads="prompts of rows, a row of each group; the metric epoch",
    bounds={
        "visits": (20, "of each prompt, in the mean: more passes than published runs make"),
        "uneven": (10, "times the median prompt's visits for a single one, and 20 at least"),
        "unseen": (1, "pass: before its end some prompts were never asked, which is worth knowing and no fault"),
    },
)
def visits(record: Record, bound: Bounds) -> Iterator[Seen]:
    """By the epoch where there is one, else by the prompts of groups."""
    epochs = record.metrics.there("epoch")[1] if record.metrics is not None else np.zeros(0)
    steps = None if record.metrics is None or not len(record.metrics) else (1, int(record.metrics.steps_N[-1]))
    if len(epochs) and epochs[-1] >= bound["visits"]:
        yield Seen(f"Every prompt was asked about {epochs[-1]:.0f} times.", {"epochs": epochs[-1]}, steps)
        return
    if len(epochs) and len(epochs) >= 10 and 0 < epochs[-1] < bound["unseen"] and (record.summary or {}).get("status"):
        message = f"The run ended after {epochs[-1]:.0%} of the prompts; the others were never asked."
        yield Seen(message, {"epochs": epochs[-1]}, steps, "info")
        return
    counts = _counts(record.rows) if record.rows is not None else None
    if not counts:
        return
    groups, mean, most = sum(counts.values()), sum(counts.values()) / len(counts), max(counts.values())
    median = float(np.median(list(counts.values())))
    numbers = {"groups": groups, "prompts": len(counts), "mean": mean, "most": most, "median": median}
    if mean >= bound["visits"]:
        yield Seen(f"{groups} groups are of {len(counts)} prompts, {mean:.0f} visits each.", numbers, steps)
    elif most >= max(bound["visits"], bound["uneven"] * median):
        message = f"One prompt was asked {most} times, the median one {median:.0f} times ({len(counts)} prompts)."
        yield Seen(message, numbers, steps)


def _counts(rows: Rows) -> Counter[str]:
    """Visits of prompts, by the first row of each group; of many groups the last ones."""
    firsts = rows.firsts[rows.in_time[-LOOKED_AT:]]
    return Counter(text["prompt"] for text in rows.texts(firsts) if text["prompt"] is not None)
