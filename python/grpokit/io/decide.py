"""Verdicts on rows that come in batches: which are kept, why the others are not, and their advantages.

In: tables of the columns that the recipe reads, one after another. Out: the verdicts, in the order of the rows. Where
the rows of a group lie together a batch is enough, and the last group of each waits for the next (`contiguous`);
otherwise all rows are seen first (`anywhere`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from grpokit._native import ArrowColumn, Seen
from grpokit.columns import take
from grpokit.errors import GroupWarning, GrpokitError, error
from grpokit.lint import Tally, of_rows
from grpokit.processed import name_of
from grpokit.rollouts import group, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from grpokit._native import Groups
    from grpokit._recipe import Recipe
    from grpokit.lint import Finding
    from grpokit.processed import Processed


WORDS = np.array([None, *(name_of(1 << bit) for bit in range(32))], object)
OPTIONAL = ("gate", "step", "rollout_id", "turn_idx", "source")


class NotContiguousError(Exception):
    """A group came back after another had begun.

    Attributes
    ----------
    group : object
        The last column of its key.
    """

    def __init__(self, group: object) -> None:
        super().__init__(group)
        self.group = group


@dataclass
class Verdicts:
    """What was decided, for all rows in their order.

    Attributes
    ----------
    codes : (N,) uint8
        0 where kept, else the number of the first reason's bit plus 1, by which `WORDS` names it.
    advantages : (N,) float64
        Empty unless they were asked for.
    counts : dict of str to int
        Rows by what became of them.
    counts_by_source : dict
        The same for each source.
    tally : Tally
        Counts over all parts, for the findings about all groups together.
    found : dict of str to (int, int, Finding)
        The first finding of each kind about single rows and groups, with the part's first row and number of rows.
    groups, without_signal : int
        How many there are.
    """

    reasons: list[NDArray[np.uint8]] = field(default_factory=list)
    values: list[NDArray[np.float64]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"in": 0, "kept": 0})
    counts_by_source: dict[Any, dict[str, int]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    found: dict[str, tuple[int, int, Finding]] = field(default_factory=dict)
    groups: int = 0
    without_signal: int = 0

    def add(self, out: Processed, start: int, *, advantages: bool) -> None:
        """Takes the verdicts on the next rows, of which the first has that number."""
        self.reasons.append(codes_of(out.first_reason))
        if advantages:
            self.values.append(out.advantages)
        _add(self.counts, out.counts)
        for source, counts in out.counts_by_source.items():
            _add(self.counts_by_source.setdefault(source, {"in": 0, "kept": 0}), counts)
        self.tally.add(out, start)
        for finding in of_rows(out):
            rows = tuple(row + start for row in finding.rows)
            self.found.setdefault(finding.code, (start, len(out.keep), replace(finding, rows=rows)))
        signal = out.groups.signal
        self.groups += len(signal)
        self.without_signal += int((~signal).sum())

    @property
    def lint(self) -> dict[str, Finding]:
        """The findings, each kind once."""
        found = {finding.code: finding for finding in self.tally.findings()}
        for code, (start, rows, finding) in self.found.items():
            where = "" if rows == self.counts["in"] else f"among rows {start:,} to {start + rows - 1:,}, "
            found[code] = replace(finding, evidence=where + finding.evidence)
        return found

    @property
    def codes(self) -> NDArray[np.uint8]:
        # In place of its parts, so that it is held once.
        self.reasons = (
            [np.concatenate([np.zeros(0, np.uint8), *self.reasons])] if len(self.reasons) != 1 else self.reasons
        )
        return self.reasons[0]

    @property
    def advantages(self) -> NDArray[np.float64]:
        self.values = [np.concatenate([np.zeros(0), *self.values])] if len(self.values) != 1 else self.values
        return self.values[0]


def _add(total: dict[str, int], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count


@dataclass(frozen=True)
class Decider:
    """How rows are decided on.

    Parameters
    ----------
    recipe : Recipe
        Whose stages 1 to 4 are run.
    key : tuple of str
        The columns that make the key of a group.
    names : dict
        The tables' names by grpokit's, as `process` takes them.
    advantages : bool
        Whether they are kept.
    version : int or None
        As in `grpokit.process`.
    max_group_rows : int
        The most rows that a group may have before it is refused, where rows of a group lie together.
    """

    recipe: Recipe
    key: tuple[str, ...]
    names: dict[str, Any]
    advantages: bool = False
    version: int | None = None
    max_group_rows: int = 1_000_000

    @property
    def needs_all(self) -> bool:
        """Whether a stage looks at a whole batch, which no part of a file is."""
        stages = (*self.recipe.shape, *self.recipe.select, self.recipe.advantage)
        return any(stage.scope == "batch" for stage in stages)

    def _process(self, table: pa.Table, start: int, verdicts: Verdicts) -> None:
        try:
            with warnings.catch_warnings():
                # What is true of a part need not be true of the whole, which says it itself.
                warnings.simplefilter("ignore", GroupWarning)
                out = process(table, self.recipe, version=self.version, columns=self.names)
            verdicts.add(out, start, advantages=self.advantages)
        except GrpokitError as problem:
            raise shifted(problem, start) from None

    def anywhere(self, tables: Iterator[pa.Table]) -> Verdicts:
        """The verdicts where rows of a group may lie apart: all needed columns are held."""
        verdicts = Verdicts()
        listed = list(tables)
        if listed:
            self._process(_joined(listed), 0, verdicts)
        return verdicts

    def _group(self, keys: list[pa.ChunkedArray], start: int) -> Groups:
        for name, key in zip(self.key, keys, strict=True):
            if pa.types.is_nested(key.type):
                raise error("bad_keys", column=name, given=str(key.type))
        try:
            return group(*keys)
        except GrpokitError as problem:
            # There the columns have numbers.
            names = {f"ids {at}": name for at, name in enumerate(self.key)}
            column = names.get(str(problem.context.get("column")))
            raise shifted(problem if column is None else _with(problem, column=column), start) from None

    def contiguous(self, tables: Iterator[pa.Table]) -> Verdicts:
        """The verdicts where rows of a group lie together.

        Raises
        ------
        NotContiguousError
            They do not.
        """
        verdicts, start = Verdicts(), 0
        for table in whole_groups(tables, self.key, self.max_group_rows, self._group):
            self._process(table, start, verdicts)
            start += len(table)
        return verdicts


def columns_of(
    fields: Iterable[str], recipe: Recipe, columns: Mapping[str, Any], version: int | None
) -> dict[str, Any]:
    """The tables' names by grpokit's of the columns that decide: the needed ones, and the optional ones that are there.

    Whether the needed ones are there is what `process` says.
    """
    there = set(fields)
    words = [*needed(recipe, version), *columns, *(word for word in OPTIONAL if word in there)]
    return {word: columns.get(word, word) for word in dict.fromkeys(words)}


def needed(recipe: Recipe, version: int | None) -> list[str]:
    """The columns of grpokit's without which a recipe cannot decide."""
    stages = (*recipe.shape, *recipe.select, recipe.advantage)
    words = dict.fromkeys(["group_id", "reward", *(name for stage in stages for name in sorted(stage.reads))])
    words.pop("version", None)
    if version is not None and "version_max" not in words:
        words["version_min"] = None
    return list(words)


def listed(theirs: str | Sequence[str]) -> list[str]:
    """The names of one column of grpokit's."""
    return [theirs] if isinstance(theirs, str) else list(theirs)


def key_of(names: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that make the key of a group."""
    return tuple(name for word in ("step", "group_id") if word in names for name in listed(names[word]))


def together(recipe: Recipe, names: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns whose equal rows must be decided on together: a group's key, or the step.

    Raises
    ------
    InputError
        `needs_whole_batch`: a stage looks at a whole batch, and there is no `step`.
    """
    stages = (*recipe.shape, *recipe.select, recipe.advantage)
    wide = next((stage for stage in stages if stage.scope == "batch"), None)
    if wide is None:
        return key_of(names)
    if "step" not in names:
        raise error("needs_whole_batch", stage=type(wide).__name__)
    return tuple(listed(names["step"]))


def codes_of(reasons_N: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The numbers of first reasons in `WORDS`: 0, or that of the bit plus 1."""
    # The exponent of a power of two, plus 1; a byte a row, since a file may have many.
    return np.frexp(reasons_N)[1].astype(np.uint8)


def words(reasons_N: NDArray[np.uint32]) -> NDArray[Any]:
    """The names of first reasons; None where a row is kept."""
    named: NDArray[Any] = WORDS[codes_of(reasons_N)]
    return named


def whole_groups(
    tables: Iterable[pa.Table],
    key: tuple[str, ...],
    max_group_rows: int,
    grouped: Callable[[list[pa.ChunkedArray], int], Groups] = lambda ids, _start: group(*ids),
) -> Iterator[pa.Table]:
    """The same rows in tables of whole groups, where rows of a group lie together.

    Raises
    ------
    NotContiguousError
        They do not.
    InputError
        `group_too_large`.
    """
    seen, carry, start = Seen(), None, 0
    for table in tables:
        joined = table if carry is None else _joined([carry, table])
        carry = joined
        if not len(joined):
            continue
        ids = [joined[name] for name in key]
        groups = grouped(ids, start)
        back = np.flatnonzero(np.diff(groups.codes.astype(np.int64)) < 0)
        if len(back):
            raise NotContiguousError(ids[-1][int(back[0]) + 1].as_py())
        cut = int(groups.first[-1])
        large = np.flatnonzero(groups.sizes > max_group_rows)
        if len(large):
            given = ids[-1][int(groups.first[large[0]])].as_py()
            raise error("group_too_large", group=given, rows=int(groups.sizes[large[0]]), limit=max_group_rows)
        if cut:
            _new(seen, ids, groups.first[:-1])
            yield joined.slice(0, cut)
            carry, start = joined.slice(cut), start + cut
    if carry is not None and len(carry):
        _new(seen, [carry[name] for name in key], np.zeros(1, np.int64))
        yield carry


def _joined(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        for name in tables[0].column_names:
            types = {str(table.schema.field(name).type) for table in tables} - {"null"}
            if len(types) > 1:
                given = " and ".join(sorted(types))
                raise error("column_type", column=name, given=given, expected="one type in all rows") from None
        raise


def _new(seen: Seen, ids: list[pa.ChunkedArray], first_G: NDArray[np.int64]) -> None:
    """Notes the groups, by the rows at which they begin."""
    columns = [take(ArrowColumn(column), first_G) for column in ids]
    known = seen.add(hashes(columns))
    if known is not None:
        raise NotContiguousError(columns[-1][known])


def hashes(columns: list[list[Any]]) -> NDArray[np.int64]:
    """One hash of each key, good within a process; columns of Python's integers, strings or bytes."""
    # Of integers Python's hash is not one to one: -1 and -2 have the same.
    distinct = [list(map(str, column)) if column and isinstance(column[0], int) else column for column in columns]
    return np.fromiter(map(hash, zip(*distinct, strict=True)), np.int64, len(columns[0]))


def shifted(problem: GrpokitError, start: int) -> GrpokitError:
    """The same error with row numbers of the file."""
    context = dict(problem.context)
    for name in ("row", "first"):
        if isinstance(context.get(name), int):
            context[name] = context[name] + start  # type: ignore[operator]
    if isinstance(context.get("rows"), list):
        context["rows"] = [row + start for row in context["rows"]]  # type: ignore[attr-defined]
    return _with(problem, **context)


def _with(problem: GrpokitError, **context: Any) -> GrpokitError:
    return error(problem.kind, **problem.context | context)
