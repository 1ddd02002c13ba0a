"""The groups that are worth reading: the best, the worst, and those whose reward does not fit what was written.

What is suspicious is looked for in a sample: groups with high rewards, with answers that were cut off or are of unusual
length, and the last ones. Each says why it is there.
"""

from __future__ import annotations

import unicodedata
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.errors import GrpokitError

from .numbers import finite, told
from .visible import excerpt, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from grpokit.record import Rows

BEST, SUSPICIOUS = 3, 8
LOOKED_AT = 48  # groups whose texts are read
ROWS = 16  # of a group, whose texts are read
COMPLETIONS = 4  # of a group, that are shown
HEAD, TAIL, PROMPT = 800, 200, 400  # characters that are shown
# Text of a language shrinks to a third or a half of its size; a loop to a few hundredths.
REPEATED = 0.15
ENOUGH = 200  # characters below which nothing is said of repetition and sameness
LONG = 3.0  # times the step's median length


def groups(rows: Rows, problems: list[str]) -> dict[str, Any]:
    """The groups to read, as plain data.

    Parameters
    ----------
    rows : Rows
        Of a run, or of rollout files.
    problems : list of str
        Why texts cannot be read is added.

    Returns
    -------
    dict
        ``count``, ``looked_at`` (for suspicious ones), ``head``, ``tail`` (characters that are shown), and the lists
        ``best``, ``worst``, ``suspicious``.
    """
    table = _Table(rows)
    best, worst = table.extremes(BEST)
    candidates = table.candidates(LOOKED_AT)
    wanted = list(dict.fromkeys([*best, *worst, *candidates]))
    members = table.members(wanted)
    listed = [row for at in wanted for row in members[at]]
    try:
        found = rows.texts(listed)
    except GrpokitError as problem:
        problems.append(f"prompts and completions were not read: {problem}")
        found = [{"prompt": None, "text": None} for _ in listed]
    texts = dict(zip(listed, found, strict=True))
    doubts = {at: table.doubts(members[at], texts) for at in candidates}
    ranked = sorted((at for at in candidates if doubts[at]), key=lambda at: -len(doubts[at]))[:SUSPICIOUS]

    def shown(chosen: Sequence[int]) -> list[dict[str, Any]]:
        return [table.shown(at, members[at], texts, doubts.get(at, [])) for at in chosen]

    return {
        "count": table.count,
        "looked_at": len(candidates),
        "head": HEAD,
        "tail": TAIL,
        "best": shown(best),
        "worst": shown(worst),
        "suspicious": shown(ranked),
    }


class _Table:
    """Rows by group."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        counts = rows.group_rewards.count
        self.count = rows.groups
        self.mean_G = rows.group_rewards.mean
        self.place_G = np.argsort(rows.in_time)
        self.high = float(np.quantile(self.mean_G[counts > 0], 0.9)) if (counts > 0).any() else np.inf
        self.low = float(self.mean_G[counts > 0].min()) if (counts > 0).any() else np.inf

    def extremes(self, most: int) -> tuple[list[int], list[int]]:
        """The groups with the highest and the lowest mean; of equal ones the last."""
        known = np.flatnonzero(np.isfinite(self.mean_G))
        if not len(known):
            return [], []
        latest = self.place_G[known]
        best = known[np.lexsort((-latest, -self.mean_G[known]))][:most].tolist()
        worst = known[np.lexsort((-latest, self.mean_G[known]))]
        return best, [at for at in worst[:most].tolist() if at not in best]

    def candidates(self, most: int) -> list[int]:
        """Groups to look at more closely, a third of each kind: cut off, of unusual length, the last ones."""
        rows = self.rows
        rewarded = np.nan_to_num(rows["reward"], nan=-np.inf) > self.low
        lists: list[Any] = []
        if "truncated" in rows:
            lists.append(self.last(rewarded & (rows["truncated"] == 1), most // 3))
        if "response_len" in rows:
            usual = self.usual()
            lists.append(self.last(rewarded & (rows["response_len"] > LONG * usual), most // 3))
            lists.append(self.last(rewarded & (rows["response_len"] <= 1), most // 6))
        good = np.flatnonzero(np.nan_to_num(self.mean_G, nan=-np.inf) >= self.high)
        lists.append(good[np.argsort(self.place_G[good])][-most // 3 :][::-1])
        taken = dict.fromkeys(int(at) for part in lists for at in part)
        for at in self.last(slice(None), most):
            if len(taken) >= most:
                break
            taken.setdefault(int(at))
        return list(taken)[:most]

    def last(self, which: Any, most: int) -> list[int]:
        """The last groups of some rows, the very last first."""
        there = np.bincount(self.rows["group"][which], minlength=self.count) > 0
        found: list[int] = self.rows.in_time[there[self.rows.in_time]][-most:][::-1].tolist()
        return found

    def usual(self) -> float:
        """The median length, of a sample where there are many."""
        lengths = self.rows["response_len"]
        lengths = lengths[:: max(1, len(lengths) // 100_000)]
        lengths = lengths[np.isfinite(lengths)]
        return float(np.median(lengths)) if len(lengths) else np.inf

    def members(self, wanted: Sequence[int]) -> dict[int, list[int]]:
        """Rows of some groups, at most `ROWS` of each."""
        chosen = np.zeros(self.count + 1, bool)
        chosen[list(wanted)] = True
        found: dict[int, list[int]] = {at: [] for at in wanted}
        for row in np.flatnonzero(chosen[self.rows["group"]]).tolist():
            own = found[int(self.rows["group"][row])]
            if len(own) < ROWS:
                own.append(row)
        return found

    def doubts(self, members: Sequence[int], texts: dict[int, dict[str, str | None]]) -> list[str]:
        """Why a group is suspicious, a sentence each."""
        rows, said = self.rows, []
        reward = {row: float(rows["reward"][row]) for row in members}
        good = [row for row in members if reward[row] > self.low]
        cut = [row for row in good if "truncated" in rows and rows["truncated"][row] == 1]
        if cut:
            said.append(f"{_many(cut)} cut off, and got a reward of {told(max(reward[row] for row in cut))}.")
        if "response_len" in rows:
            usual = self.usual()
            long = [row for row in good if rows["response_len"][row] > LONG * usual]
            if long:
                longest = told(max(float(rows["response_len"][row]) for row in long))
                said.append(f"{_many(long)} rewarded at {longest} tokens; the median is {told(usual)}.")
        written = {row: texts[row]["text"] for row in members if isinstance(texts[row]["text"], str)}
        empty = [row for row in good if row in written and not (written[row] or "").strip()]
        if empty:
            said.append(f"{_many(empty)} empty, and got a reward of {told(max(reward[row] for row in empty))}.")
        looped = [row for row in good if _loops(written.get(row) or "")]
        if looped:
            said.append(f"{_many(looped)} rewarded for the same words again and again.")
        hidden = [row for row in good if row in written and _hides(written[row] or "")]
        if hidden:
            said.append(f"{_many(hidden)} rewarded with control characters in it.")
        return said + _same(written, reward)

    def shown(
        self, at: int, members: Sequence[int], texts: dict[int, dict[str, str | None]], why: list[str]
    ) -> dict[str, Any]:
        """A group with some of its completions, from the best to the worst."""
        rows = self.rows
        ordered = sorted(members, key=lambda row: -np.nan_to_num(rows["reward"][row], nan=-np.inf))
        places = np.unique(np.linspace(0, len(ordered) - 1, min(COMPLETIONS, len(ordered))).round().astype(int))
        prompt = next((texts[row]["prompt"] for row in members if texts[row]["prompt"] is not None), None)
        step = float(rows["step"][members[0]]) if "step" in rows else np.nan
        completions = []
        for row in (ordered[place] for place in places):
            text = texts[row]["text"]
            completions.append(
                {
                    "row": row,
                    "reward": finite(float(rows["reward"][row])),
                    "advantage": finite(float(rows["advantage"][row])) if "advantage" in rows else None,
                    "tokens": _whole(rows["response_len"], row) if "response_len" in rows else None,
                    "truncated": bool(rows["truncated"][row] == 1) if "truncated" in rows else None,
                    "kept": bool(rows["keep"][row] == 1) if "keep" in rows else None,
                    "text": None if text is None else excerpt(text, HEAD, TAIL),
                }
            )
        return {
            "group": at,
            "step": int(step) if np.isfinite(step) else None,
            "mean_reward": finite(float(self.mean_G[at])),
            "completions_read": len(members),
            "why": why,
            "prompt": None if prompt is None else excerpt(prompt, PROMPT, TAIL),
            "completions": completions,
        }


def _many(rows: Sequence[int]) -> str:
    return "1 completion was" if len(rows) == 1 else f"{len(rows)} completions were"


def _loops(text: str) -> bool:
    part = text[-20_000:].encode("utf-8", "replace")
    return len(part) >= ENOUGH and len(zlib.compress(part, 1)) < REPEATED * len(part)


def _hides(text: str) -> bool:
    part = text[:20_000].replace("\r\n", "\n")
    # What this Python's Unicode does not know yet is an emoji of last year.
    return visible(part) != part and any(visible(x) != x and unicodedata.category(x) != "Cn" for x in set(part))


def _same(written: dict[int, str | None], reward: dict[int, float]) -> list[str]:
    """The same text with different rewards; a group in which all that is written is the same, and long."""
    by_text: dict[str | None, list[float]] = {}
    for row, text in written.items():
        if np.isfinite(reward[row]):
            by_text.setdefault(text, []).append(reward[row])
    said = []
    for values in by_text.values():
        if len(values) > 1 and min(values) < max(values):
            said.append(f"The same text got rewards from {told(min(values))} to {told(max(values))}.")
            break
    texts = set(written.values())
    if len(texts) == 1 and len(written) > 1 and len(next(iter(texts)) or "") >= ENOUGH:
        said.append(f"All {len(written)} completions are the same text.")
    return said


def _whole(values_N: NDArray[np.float64], row: int) -> int | None:
    return int(values_N[row]) if np.isfinite(values_N[row]) else None
