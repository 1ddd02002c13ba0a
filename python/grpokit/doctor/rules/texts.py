"""What the answers look like: loops, and the same answer again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.rule import Bounds, Seen, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.record import Record, Rows

GROUPS, LONGEST = 48, 2000


@rule(
    "D015",
    "loops",
    "Answers end in loops",
    severity="warning",
    cause="The policy repeats itself until it is cut: entropy is too low or temperature too low, or length is rewarded "
    "whatever the text says.",
    fix="Keep cut answers out (`NotTruncated()`), or punish length (`recipe=dapo`); a penalty on repeated n-grams "
    "among the rewards; see D006 and D013, which usually come first.",
    source="arXiv:1904.09751 (degeneration); Trinity #470 (repetition as an operator)",
    reads="texts of the rows of some of the last groups",
    bounds={
        "share": (0.02, "of the answers that were looked at; a text that ends in five repeats is no accident"),
        "rows": (3, "at least"),
        "repeats": (5, "of a piece of up to 200 characters, at the end"),
        "characters": (100, "that the repeats fill: short answers repeat by nature"),
    },
)
def loops(record: Record, bound: Bounds) -> Iterator[Seen]:
    """How many of the texts end in repeats of one piece."""
    rows = record.rows
    if rows is None:
        return
    chosen = _last_groups(rows)
    texts = [text["text"] for text in rows.texts(chosen)]
    found = [_loop(text, int(bound["repeats"]), int(bound["characters"])) for text in texts if text]
    looped = [piece for piece in found if piece]
    if len(looped) < bound["rows"] or len(looped) < bound["share"] * len(found):
        return
    message = f"{len(looped)} of {len(found)} answers end in repeats, such as of {looped[0][:40]!r}."
    yield Seen(message, {"answers": len(found), "loops": len(looped)}, rows.span(chosen))


def _loop(text: str, repeats: int, characters: int) -> str:
    """The piece that the text's end repeats, or nothing."""
    end = text[-LONGEST:].rstrip()[::-1]
    if len(end) < characters:
        return ""
    # Of the reversed text's prefixes the one with the shortest period: Knuth, Morris and Pratt's failure function.
    failure, k = [0] * len(end), 0
    for at in range(1, len(end)):
        while k and end[at] != end[k]:
            k = failure[k - 1]
        k += end[at] == end[k]
        failure[at] = k
        length, period = at + 1, at + 1 - k
        if length >= characters and period <= 200 and length >= repeats * period:
            return end[:period][::-1]
    return ""


@rule(
    "D016",
    "duplicates",
    "Groups are full of the same long answer",
    severity="warning",
    cause="The answers of a group are copies: the sampler has one seed for all, temperature 0 or a cache of prompts "
    "and answers; or the policy has collapsed. A copy brings no new evidence, and counts once more.",
    fix="Check `temperature` and the sampler's seeds; `Distinct(on='text')` among the recipe's `select` drops copies. "
    "With D006, mend that first.",
    source="arXiv:2504.13818 (PODS: what a group's answers are worth); grpokit lint, duplicate_answers",
    reads="texts of the rows of some of the last groups",
    bounds={
        "share": (0.25, "of the rows are a copy of another of their group; n long sampled answers hardly ever meet"),
        "characters": (40, "of the median text: right short answers are the same by nature"),
        "rows": (64, "that were looked at, at least"),
    },
)
def duplicates(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Rows whose text another row of their group has."""
    rows = record.rows
    if rows is None:
        return
    chosen = _last_groups(rows)
    texts = [text["text"] for text in rows.texts(chosen)]
    lengths = [len(text) for text in texts if text]
    if len(lengths) < bound["rows"] or np.median(lengths) < bound["characters"]:
        return
    pairs = {(int(rows["group"][row]), text) for row, text in zip(chosen.tolist(), texts, strict=True) if text}
    copies = len(lengths) - len(pairs)
    if copies < bound["share"] * len(lengths):
        return
    message = f"{copies} of {len(lengths)} answers are a copy of another of their group."
    yield Seen(message, {"answers": len(lengths), "copies": copies}, rows.span(chosen))


def _last_groups(rows: Rows) -> np.ndarray:
    """The rows of some groups of the last third."""
    places = np.unique(np.linspace(2 * rows.groups // 3, rows.groups - 1, GROUPS).round().astype(int))
    chosen = np.flatnonzero(np.isin(rows["group"], rows.in_time[places]))
    # A group may be all there is.
    return chosen[np.unique(np.linspace(0, len(chosen) - 1, 800).round().astype(int))] if len(chosen) else chosen
