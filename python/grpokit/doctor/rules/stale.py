"""Sources whose answers come too late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.rule import Bounds, Seen, rule
from grpokit.doctor.series import shares_differ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from grpokit.record import Record, Rows


@rule(
    "D012",
    "starved-source",
    "A source is starved: its answers are too old when they come",
    severity="warning",
    cause="Its answers take long, so that the policy has moved on, and what is too old is dropped: the slow and hard "
    "prompts are trained on less than they are asked.",
    fix="A larger limit (`MaxLag`), or one on the newest version (`of='newest'`); a quota a source; continue answers "
    "over an update of the weights instead of dropping them.",
    source="tinker-cookbook #822 (discard and ask again starves slow prompts); verl #6975; marin #8955",
    reads="source, version_min and step of rows, and keep where it is there",
    bounds={
        "share": (0.5, "of what the others keep, or of what it had at the beginning: half of the source is lost"),
        "age": (1, "versions older than the others' answers, in the mean: it is age that costs it"),
        "errors": (5, "standard errors, since every source is compared"),
    },
)
def starved_source(record: Record, bound: Bounds) -> Iterator[Seen]:
    """A source that is older than the others, and is kept less or vanishes."""
    rows = record.rows
    if rows is None or not all(name in rows for name in ("source", "version_min", "step")) or len(rows.sources) < 2:
        return
    age = _ages(rows)
    for code, name in enumerate(rows.sources):
        own = rows["source"] == code
        aged = np.isfinite(age)
        if not (own & aged).any() or not (~own & aged).any():
            continue
        older = float(age[own & aged].mean() - age[~own & aged].mean())
        if older < bound["age"]:
            continue
        measured = _kept(rows, own) if "keep" in rows else _vanishes(rows, own)
        if measured is None:
            continue
        now, before, errors, words = measured
        if now <= bound["share"] * before and errors >= bound["errors"]:
            message = f"Of the source {name!r} {words.format(now, before)}; its answers are {older:.1f} versions older."
            numbers = {"source": name, "share": now, "against": before, "older": older, "errors": errors}
            yield Seen(message, numbers, rows.span())


def _ages(rows: Rows) -> NDArray[np.float64]:
    """(N,) versions behind the newest answer of the step."""
    steps, at = rows.by_step()
    newest = np.full(len(steps) + 1, -np.inf)
    known = np.isfinite(rows["version_min"])
    np.maximum.at(newest, at[known], rows["version_min"][known])
    ages: NDArray[np.float64] = newest[at] - rows["version_min"]
    return ages


def _kept(rows: Rows, own: NDArray[np.bool_]) -> tuple[float, float, float, str]:
    kept = rows["keep"] > 0
    hits, others = kept[own], kept[~own]
    errors = shares_differ(others.sum(), len(others), hits.sum(), len(hits))
    return hits.mean(), others.mean(), errors, "{:.0%} are kept, and {:.0%} of the others"


def _vanishes(rows: Rows, own: NDArray[np.bool_]) -> tuple[float, float, float, str] | None:
    cuts = np.quantile(rows["step"], [1 / 3, 2 / 3])
    early, late = rows["step"] <= cuts[0], rows["step"] > cuts[1]
    if not early.any() or not late.any():
        return None
    errors = shares_differ(own[early].sum(), early.sum(), own[late].sum(), late.sum())
    return own[late].mean(), own[early].mean(), errors, "{:.0%} of the rows are at the end, and were {:.0%}"
