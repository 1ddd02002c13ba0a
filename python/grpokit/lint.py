"""Group lint: what a table of rollouts says about the code that wrote it.

In: a processed table. Out: findings, each with its evidence and a remedy. They are apart from the drops: a table can
lose no row and still be wrong, as when every group has one row and GRPO silently becomes REINFORCE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ._native import Groups
from .columns import contents, integers, prompt_keys, words
from .errors import InputError, InputTypeError, error
from .selection import FINISH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .processed import Processed

LARGEST_GROUP = 256
CODES = (
    *("all_singletons", "uneven_groups", "one_group", "mixed_prompts", "split_prompt", "constant_rewards"),
    *("dead_source", "dead_part", "not_binary", "beyond_max_len", "duplicate_rows", "repeated_rollouts"),
    *("duplicate_answers", "unreadable_column"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that is probably wrong.

    Attributes
    ----------
    code : str
        What it is, one of `grpokit.lint.CODES`.
    evidence : str
        What was seen.
    remedy : str
        What to do.
    rows : tuple of int
        The first rows that show it, at most five.
    """

    code: str
    evidence: str
    remedy: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = f" (rows {', '.join(map(str, self.rows))})" if self.rows else ""
        return f"{self.code}: {self.evidence}{where}. {self.remedy}"


def every_group_is_one(rollouts: int, groups: int, signal: str) -> Finding | None:
    """The finding that no number can survive: an estimator relative to the group, and groups of one."""
    if groups < rollouts or rollouts < 2 or signal != "group":
        return None
    evidence = f"each of the {groups:,} groups has one rollout, so every advantage is 0"
    return Finding("all_singletons", evidence, "group_id must be the id of the prompt, not of the rollout.")


def lint(out: Processed) -> tuple[Finding, ...]:
    """All findings about a table."""
    tally = Tally()
    tally.add(out, 0)
    return (*tally.findings(), *of_rows(out))


def of_rows(out: Processed) -> tuple[Finding, ...]:
    """The findings about single rows and groups, which a part of a table shows as well as the whole."""
    found: list[Finding] = []
    for look in (_prompts, _not_binary, _lengths, _words, _turns, _copies):
        try:
            found += look(out)
        except (InputError, InputTypeError) as problem:
            evidence = f"a column that no stage reads cannot be read: {problem}"
            found.append(Finding("unreadable_column", evidence, "Mend it, or leave it out."))
    return tuple(found)


@dataclass
class _Count:
    """How many there are, how many of them are not 0, and the first rows."""

    n: int = 0
    right: int = 0
    rows: tuple[int, ...] = ()

    def add(self, n: int, right: int, rows: tuple[int, ...]) -> None:
        self.n, self.right, self.rows = self.n + n, self.right + right, (self.rows + rows)[:5]


@dataclass
class Tally:
    """What is known of all groups together, summed over the parts of a table.

    No group may lie in two parts.
    """

    signal: str = ""
    rollouts: int = 0
    sizes: dict[int, _Count] = field(default_factory=dict)
    scored: int = 0
    lowest: float = float("inf")
    highest: float = float("-inf")
    sources: dict[Any, _Count] = field(default_factory=dict)
    parts: dict[str, _Count] = field(default_factory=dict)

    def add(self, out: Processed, start: int) -> None:
        """Takes the next rows, of which the first has that number."""
        self.signal = out._recipe.advantage.signal
        self.rollouts += out._rows.n
        sizes_G = out._groups.sizes
        for size, n in zip(*(column.tolist() for column in np.unique(sizes_G, return_counts=True)), strict=True):
            rows = out._first_rows(out._groups.first[sizes_G == size][:5])
            self.sizes.setdefault(size, _Count()).add(n, 0, tuple((rows + start).tolist()))
        outcomes_M, scored_M = out._outcomes, (out._reasons & 3) == 0
        scored = outcomes_M[scored_M]
        if len(scored):
            self.scored += len(scored)
            self.lowest, self.highest = min(self.lowest, scored.min()), max(self.highest, scored.max())
        if out._sources is not None:
            sources, names = out._sources
            rows_S = np.bincount(sources.codes, scored_M, len(names)).astype(int).tolist()
            right_S = np.bincount(sources.codes, scored_M & (outcomes_M != 0), len(names)).astype(int).tolist()
            for code, (name, n, right) in enumerate(zip(names, rows_S, right_S, strict=True)):
                held = self.sources.setdefault(name, _Count())
                wrong = not right and not held.right and len(held.rows) < 5
                marked_M = (sources.codes == code) & scored_M
                held.add(n, right, tuple(row + start for row in _rows_of(out, marked_M)) if wrong else ())
        for part, values_N in out._parts.items():
            known = values_N[~np.isnan(values_N)]
            self.parts.setdefault(part, _Count()).add(len(known), int(np.count_nonzero(known)), ())

    @property
    def groups(self) -> int:
        """How many there are."""
        return sum(count.n for count in self.sizes.values())

    def findings(self) -> Iterator[Finding]:
        """The findings about all groups together."""
        single = every_group_is_one(self.rollouts, self.groups, self.signal)
        if single:
            yield single
        else:
            yield from self._sizes()
        if self.scored > 1 and self.groups > 1 and self.lowest == self.highest:
            evidence = f"all {self.scored:,} outcomes are {self.lowest:g}"
            yield Finding("constant_rewards", evidence, "Look at what the scorer is given and what it returns.")
        else:
            yield from self._dead()
        for part, count in self.parts.items():
            if count.n > 1 and not count.right:
                yield Finding("dead_part", f"the reward part {part!r} is 0 in every row", "Its scorer may have died.")

    def _sizes(self) -> Iterator[Finding]:
        smallest, largest = min(self.sizes, default=0), max(self.sizes, default=0)
        if self.groups == 1 and largest > LARGEST_GROUP:
            evidence = f"all {largest:,} rollouts are one group"
            yield Finding("one_group", evidence, "Give every prompt a group_id of its own.")
        if smallest != largest:
            # Of equally common sizes the larger: rows are lost more often than won.
            usual = max(self.sizes, key=lambda size: (self.sizes[size].n, size))
            odd = [count for size, count in self.sizes.items() if size != usual]
            evidence = (
                f"{sum(count.n for count in odd):,} of {self.groups:,} groups do not have {usual} rollouts; they "
            )
            evidence += f"have {smallest} to {largest}"
            rows = tuple(sorted(row for count in odd for row in count.rows)[:5])
            remedy = "Look for rollouts that were lost, or for a group that a batch boundary has cut."
            yield Finding("uneven_groups", evidence, remedy, rows)

    def _dead(self) -> Iterator[Finding]:
        dead = {name: count for name, count in self.sources.items() if count.n > 1 and not count.right}
        if dead:
            listed = ", ".join(f"all {count.n:,} outcomes of {name!r}" for name, count in list(dead.items())[:5])
            evidence = f"{listed}{f' and of {len(dead) - 5:,} more sources' if len(dead) > 5 else ''} are 0"
            rows = tuple(sorted(row for count in dead.values() for row in count.rows)[:5])
            yield Finding("dead_source", evidence, "Its scorer may have died: try it by hand.", rows)


def _rows_of(out: Processed, marked_M: NDArray[np.bool_]) -> tuple[int, ...]:
    """The first rows of the table of what is marked."""
    return tuple(out._first_rows(np.flatnonzero(marked_M)[:5]).tolist())


def _prompts(out: Processed) -> Iterator[Finding]:
    if "prompt" not in out._held:
        return
    alone = Groups([prompt_keys(out._held["prompt"])], ["prompt"])
    groups = out._row_groups
    # A turn's prompt may hold the turns before it, so a rollout is known by its first row's.
    first = out._fan_out.opening if out._fan_out else np.arange(len(groups.codes))
    kinds = _pairs(groups.codes[first], alone.codes[first])
    mixed_G = np.bincount(groups.codes[first][kinds.first], minlength=len(groups)) > 1
    if mixed_G.any():
        evidence = f"{int(mixed_G.sum()):,} groups hold different prompts"
        remedy = "group_id must be the id of the prompt; with several epochs or steps, add `step`."
        yield Finding("mixed_prompts", evidence, remedy, tuple(groups.first[mixed_G][:5].tolist()))
    prompts_G = np.zeros(len(groups), np.uint32)
    prompts_G[groups.codes[first[::-1]]] = alone.codes[first[::-1]]
    apart = (
        _pairs(integers("step", out._held["step"])[groups.first], prompts_G)
        if "step" in out._held
        else Groups([_wide(prompts_G)], ["prompt"])
    )
    split_G = apart.sizes[apart.codes] > 1
    if split_G.any():
        evidence = f"{int(split_G.sum()):,} groups share their prompt with another group" + " of the step" * (
            "step" in out._held
        )
        remedy = "Was a group cut in two, or is the prompt twice in the data?"
        yield Finding("split_prompt", evidence, remedy, tuple(groups.first[split_G][:5].tolist()))


def _wide(codes: NDArray[Any]) -> NDArray[np.int64]:
    return codes.astype(np.int64)


def _pairs(a: NDArray[Any], b: NDArray[Any]) -> Groups:
    """What is the same in both."""
    return Groups([_wide(a), _wide(b)], ["a", "b"])


def _not_binary(out: Processed) -> Iterator[Finding]:
    outcomes_M, scored_M = out._outcomes, (out._reasons & 3) == 0
    rules = [type(s).__name__ for s in out._recipe.select if type(s).__name__ in ("PassRate", "Learnability")]
    odd_M = scored_M & (outcomes_M != 0) & (outcomes_M != 1)
    if rules and odd_M.any():
        evidence = f"{rules[0]} reads pass rates, and {int(odd_M.sum()):,} outcomes are neither 0 nor 1"
        yield Finding("not_binary", evidence, "Give a `gate` column of right (1) and wrong (0).", _rows_of(out, odd_M))


def _lengths(out: Processed) -> Iterator[Finding]:
    lengths_M = out._lengths
    limits = [getattr(stage, "max_len", None) for stage in (*out._recipe.shape, *out._recipe.select)]
    longest = max((limit for limit in limits if limit is not None), default=None)
    if lengths_M is None or longest is None:
        return
    long_M = lengths_M > longest
    if long_M.any():
        evidence = f"{int(long_M.sum()):,} answers are longer than max_len={longest:,}, up to {lengths_M.max():,}"
        remedy = "Is max_len that of the sampler, and response_len without the prompt?"
        yield Finding("beyond_max_len", evidence, remedy, _rows_of(out, long_M))


def _words(out: Processed) -> Iterator[Finding]:
    if "finish" in out._held:
        words("finish", out._held["finish"], FINISH)
    if "response_len" in out._held and out._lengths is None:
        lengths = integers("response_len", out._held["response_len"])
        row = int((lengths < 0).argmax())
        raise error("negative_length", column="response_len", row=row, value=int(lengths[row]))
    yield from ()


def _turns(out: Processed) -> Iterator[Finding]:
    fan_out, held = out._fan_out, out._held
    if fan_out is not None and "turn_idx" not in held:
        evidence = f"{int((fan_out.sizes > 1).sum()):,} rollouts have several rows and there is no `turn_idx`"
        remedy = "Add turn_idx, which orders the rows of a rollout, so that copies can be seen."
        yield Finding("repeated_rollouts", evidence, remedy, tuple(fan_out.first[fan_out.sizes > 1][:5].tolist()))
    elif fan_out is not None:
        turns = _pairs(fan_out.codes, integers("turn_idx", held["turn_idx"]))
        copies_N = np.arange(len(turns.codes)) != turns.first[turns.codes]
        if copies_N.any():
            evidence = f"{int(copies_N.sum()):,} rows repeat the rollout and the turn of another row"
            rows = tuple(np.flatnonzero(copies_N)[:5].tolist())
            yield Finding("duplicate_rows", evidence, "Was a file read twice, or a retry written beside it?", rows)


def _copies(out: Processed) -> Iterator[Finding]:
    fan_out, held = out._fan_out, out._held
    for name in ("token_ids", "text"):
        if name in held:
            data: Any = fan_out.reduce(name, held[name]) if fan_out else held[name]
            same = contents(name, data, out._groups)
            copies_M = np.arange(len(same.codes)) != same.first[same.codes]
            if copies_M.any():
                evidence = f"{int(copies_M.sum()):,} of {len(copies_M):,} answers repeat one of their group, by {name}"
                remedy = "Distinct drops copies, DuplicateWeight lets an answer count once."
                yield Finding("duplicate_answers", evidence, remedy, _rows_of(out, copies_M))
            return
