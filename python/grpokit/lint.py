"""Group lint: what a table of rollouts says about the code that wrote it.

In: a processed table. Out: findings, each with its evidence and a remedy. They are apart from the drops: a table can
lose no row and still be wrong, as when every group has one row and GRPO silently becomes REINFORCE.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    single = every_group_is_one(out._rows.n, len(out._groups), out._recipe.advantage.signal)
    found = [single] if single else list(_sizes(out))
    for look in (_prompts, _rewards, _lengths, _words, _turns, _copies):
        try:
            found += look(out)
        except (InputError, InputTypeError) as problem:
            evidence = f"a column that no stage reads cannot be read: {problem}"
            found.append(Finding("unreadable_column", evidence, "Mend it, or leave it out."))
    return tuple(found)


def _rows_of(out: Processed, marked_M: NDArray[np.bool_]) -> tuple[int, ...]:
    """The first rows of the table of what is marked."""
    return tuple(out._first_rows(np.flatnonzero(marked_M)[:5]).tolist())


def _sizes(out: Processed) -> Iterator[Finding]:
    sizes_G = out._groups.sizes
    if len(sizes_G) == 1 and sizes_G[0] > LARGEST_GROUP:
        evidence = f"all {sizes_G[0]:,} rollouts are one group"
        yield Finding("one_group", evidence, "Give every prompt a group_id of its own.")
    if len(sizes_G) > 1 and sizes_G.min() != sizes_G.max():
        values, counts = np.unique(sizes_G, return_counts=True)
        # Of equally common sizes the larger: rows are lost more often than won.
        usual = values[counts == counts.max()].max()
        evidence = f"{int((sizes_G != usual).sum()):,} of {len(sizes_G):,} groups do not have {usual} rollouts; they "
        evidence += f"have {sizes_G.min()} to {sizes_G.max()}"
        rows = tuple(out._first_rows(out._groups.first[sizes_G != usual][:5]).tolist())
        remedy = "Look for rollouts that were lost, or for a group that a batch boundary has cut."
        yield Finding("uneven_groups", evidence, remedy, rows)


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


def _rewards(out: Processed) -> Iterator[Finding]:
    outcomes_M, scored_M = out._outcomes, (out._reasons & 3) == 0
    scored = outcomes_M[scored_M]
    if len(scored) > 1 and len(out._groups) > 1 and scored.min() == scored.max():
        evidence = f"all {len(scored):,} outcomes are {scored[0]:g}"
        yield Finding("constant_rewards", evidence, "Look at what the scorer is given and what it returns.")
    elif out._sources is not None:
        sources, names = out._sources
        rows = np.bincount(sources.codes, scored_M, len(names))
        right = np.bincount(sources.codes, scored_M & (outcomes_M != 0), len(names))
        dead = np.flatnonzero((rows > 1) & (right == 0))
        if len(dead):
            listed = ", ".join(f"all {rows[code]:,.0f} outcomes of {names[code]!r}" for code in dead[:5].tolist())
            evidence = f"{listed}{f' and of {len(dead) - 5:,} more sources' if len(dead) > 5 else ''} are 0"
            of_M = np.isin(sources.codes, dead) & scored_M
            yield Finding("dead_source", evidence, "Its scorer may have died: try it by hand.", _rows_of(out, of_M))
    for part, values_N in out._parts.items():
        known = values_N[~np.isnan(values_N)]
        if len(known) > 1 and not known.any():
            yield Finding("dead_part", f"the reward part {part!r} is 0 in every row", "Its scorer may have died.")
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
