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
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from grpokit._native import Groups
    from grpokit._recipe import Recipe
    from grpokit.lint import Finding
    from grpokit.processed import Processed


WORDS = np.array(["", *(name_of(1 << bit) for bit in range(32))], object)


class NotContiguousError(Exception):
    """A group came back after another had begun."""


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
        # The exponent of a power of two, plus 1; a byte a row, since a file may have many.
        self.reasons.append(np.frexp(out.first_reason)[1].astype(np.uint8))
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
        return np.concatenate(self.reasons) if self.reasons else np.zeros(0, np.uint8)

    @property
    def advantages(self) -> NDArray[np.float64]:
        return np.concatenate(self.values) if self.values else np.zeros(0)


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
            raise _shifted(problem, start) from None

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
            raise _shifted(problem if column is None else _with(problem, column=column), start) from None

    def contiguous(self, tables: Iterator[pa.Table]) -> Verdicts:
        """The verdicts where rows of a group lie together.

        Raises
        ------
        NotContiguousError
            They do not.
        """
        verdicts, seen, start = Verdicts(), Seen(), 0
        carry: pa.Table | None = None
        for table in tables:
            joined = table if carry is None else _joined([carry, table])
            carry = joined
            if not len(joined):
                continue
            keys = [joined[name] for name in self.key]
            groups = self._group(keys, start)
            if (np.diff(groups.codes.astype(np.int64)) < 0).any():
                raise NotContiguousError
            cut = int(groups.first[-1])
            if len(joined) - cut > self.max_group_rows:
                given = take(ArrowColumn(keys[-1]), groups.first[-1:])[0]
                raise error("group_too_large", group=given, rows=len(joined) - cut, limit=self.max_group_rows)
            if cut:
                _new(seen, keys, groups.first[:-1])
                self._process(joined.slice(0, cut), start, verdicts)
                carry, start = joined.slice(cut), start + cut
        if carry is not None and len(carry):
            _new(seen, [carry[name] for name in self.key], np.zeros(1, np.int64))
            self._process(carry, start, verdicts)
        return verdicts


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


def _new(seen: Seen, keys: list[pa.ChunkedArray], first_G: NDArray[np.int64]) -> None:
    """Notes the groups, by the rows at which they begin."""
    columns = [take(ArrowColumn(key), first_G) for key in keys]
    hashes = np.fromiter(map(hash, zip(*columns, strict=True)), np.int64, len(first_G))
    if seen.add(hashes) is not None:
        raise NotContiguousError


def _shifted(problem: GrpokitError, start: int) -> GrpokitError:
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
