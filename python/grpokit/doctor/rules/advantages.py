"""Advantages: what the division by the group's spread does, and signs that cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.configured import compares_groups, recipe_of
from grpokit.doctor.rule import Bounds, Seen, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from grpokit.record import Record


@rule(
    "D009",
    "small-spread-groups",
    "Groups of nearly equal rewards count as much as others",
    severity="warning",
    cause="Divided by the group's standard deviation, every group has advantages of size 1: with right or wrong the "
    "weight of a prompt is √(p (1 − p)) in place of p (1 − p), which favours the extreme prompts and takes from the "
    "middling ones; with rewards of degrees a group that differs by noise counts like one that differs in all.",
    fix="`recipe=dr_grpo`, `nord` or `rloo`, which do not divide; or drop such groups, `HasSignal(tolerance=...)`.",
    source="arXiv:2503.20783, §3.1 (difficulty bias); arXiv:2602.21172 (NoRD: +0.67 % with, +11.68 % without)",
    reads="rewards of rows by group; the recipe, or advantages of rows, which say whether they were divided",
    bounds={
        "spread": (0.25, "of all rewards' spread: groups below it. Right or wrong, and 8 answers, gives 0.66 at least"),
        "weight": (0.25, "of all |A| that these groups have: a quarter of the gradient is from them"),
        "groups": (20, "with signal: fewer tell nothing of a share"),
    },
)
def small_spread(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Where the division is known, by what weight the groups of small spread get."""
    rows = record.rows
    if rows is None:
        return
    of = rows.group_rewards
    spread, distance = np.sqrt(of.squares / np.maximum(of.count, 1)), of.distance
    signal = spread > 0
    if signal.sum() < bound["groups"] or not _divided(record, spread, signal):
        return
    small = signal & (spread < bound["spread"] * rows.scored("reward").std())
    safe = np.where(signal, spread, 1)
    weight = float((distance / safe)[small].sum() / (distance / safe)[signal].sum())
    undivided = float(distance[small].sum() / distance[signal].sum())
    if weight < bound["weight"]:
        return
    message = (
        f"{small.sum()} of {signal.sum()} groups with signal spread less than {bound['spread']:.0%} of what all "
        f"rewards do; they have {weight:.0%} of the advantages, and would have {undivided:.1%} undivided."
    )
    numbers = {"groups": int(signal.sum()), "small": int(small.sum()), "weight": weight, "undivided": undivided}
    yield Seen(message, numbers)


def _divided(record: Record, spread: NDArray[np.float64], signal: NDArray[np.bool_]) -> bool:
    recipe, rows = recipe_of(record), record.rows
    if recipe is not None:
        advantage = recipe.advantage
        return type(advantage).__name__ == "GroupNorm" or getattr(advantage, "scale_rewards", None) in ("group", True)
    if rows is None or "advantage" not in rows:
        return False
    largest = np.zeros(rows.groups)
    known = np.isfinite(rows["reward"]) & np.isfinite(rows["advantage"])
    group, advantages = rows["group"][known], rows["advantage"][known]
    np.maximum.at(largest, group, np.abs(advantages))
    count = np.maximum(np.bincount(group, minlength=rows.groups), 1)
    size = np.sqrt(np.bincount(group, advantages**2, rows.groups) / count)[signal & (largest > 0)]
    # Divided, the advantages of every group are of one size.
    return len(size) > 2 and bool(size.std() < 0.1 * size.mean()) and bool(spread[signal].std() > 0)


@rule(
    "D022",
    "one-sign",
    "All advantages of a batch have one sign",
    severity="error",
    cause="Advantages that compare answers add up to 0 in a group. With one sign the gradient raises (or lowers) "
    "whatever was sampled: the raw reward was taken for the advantage, the baseline is missing or is of something "
    "else, or rows of one sign were dropped.",
    fix="`grpokit advantages FILE -o OUT --recipe grpo` gives what they should be; compare. Filter before advantages "
    "are computed, not by their sign.",
    source="arXiv:2402.03300, eq. 3; arXiv:2402.14740 (a baseline changes no expectation)",
    reads="advantages and rewards of rows, by step; not where the recipe compares no answers (ppo_clip, remax)",
    bounds={
        "rows": (16, "with an advantage that is not 0 in a step; of 16 of either sign 2⁻¹⁵ are alike by chance"),
        "batches": (0.8, "share of the steps that are so: the cause is in the code, not in the luck of a step"),
    },
)
def one_sign(record: Record, bound: Bounds) -> Iterator[Seen]:
    """By step, among the rows that were kept, where their rewards differ."""
    rows = record.rows
    if rows is None or "advantage" not in rows or compares_groups(record) is False:
        return
    used = np.isfinite(rows["advantage"]) & (rows["advantage"] != 0) & np.isfinite(rows["reward"])
    if "keep" in rows:
        used &= rows["keep"] > 0
    steps = rows["step"] if "step" in rows else np.zeros(len(rows))
    found, at = np.unique(steps[used], return_inverse=True)
    count = np.bincount(at, minlength=len(found))
    above = np.bincount(at, rows["advantage"][used] > 0, len(found))
    enough = count >= bound["rows"]
    alike = enough & ((above == 0) | (above == count))
    scored = rows.scored("reward")
    differ = len(scored) > 0 and np.ptp(scored) > 0
    if not enough.any() or not differ or alike.sum() < bound["batches"] * enough.sum():
        return
    sign = "above" if above[alike][0] else "below"
    message = f"In {alike.sum()} of {enough.sum()} batches every advantage is {sign} 0."
    span = (int(found[alike].min()), int(found[alike].max())) if "step" in rows else None
    yield Seen(message, {"batches": int(enough.sum()), "of one sign": int(alike.sum()), "sign": sign}, span)
