"""How some files are read: which of their fields are grpokit's columns, and what is made of the others.

In: opened files, a format or none, and what the user named. Out: tables of the columns that a recipe reads, in batches,
under names that `process` is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from grpokit.errors import GrpokitError, error, nearest

from .ahead import ahead
from .decide import OPTIONAL, key_of, listed, needed
from .formats import BY_NAME, FORMATS, WORDS, Format
from .parquet import ParquetInput
from .rules import Rule, UnmeantError, scored, weighted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from grpokit._recipe import Recipe

    Names = str | Sequence[str]

TRL_OWN = ("step", "prompt", "completion", "advantage")


@dataclass(frozen=True)
class Reading:
    """What is read of some files.

    Attributes
    ----------
    format : Format
    names : dict of str to str or sequence of str
        The tables' names by grpokit's, as `process` takes them.
    rules : dict of str to Rule
        How a column of that name is made, for those that the files do not have.
    group_size : int or None
        So many rows, one after another, are a group.
    watched : dict of str to str
        Fields that the first lines lack and that would be read, by grpokit's names: no later line may have them.
    """

    format: Format
    names: dict[str, Names]
    rules: dict[str, Rule] = field(default_factory=dict)
    group_size: int | None = None
    watched: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that make the key of a group."""
        return key_of(self.names)

    @property
    def used(self) -> list[str]:
        """The files' fields that are read."""
        plain = [name for names in self.names.values() for name in listed(names)]
        return list(dict.fromkeys([*plain, *(name for rule in self.rules.values() for name in rule.reads)]))

    def described(self) -> dict[str, Any]:
        """What each of grpokit's columns is, in words."""
        return {
            word: self.rules[str(theirs)].text if str(theirs) in self.rules else theirs
            for word, theirs in self.names.items()
        }

    def tables(self, opened: list[Any], progress: Callable[[str, int], None]) -> Iterator[pa.Table]:
        """The columns that are read of all files, in batches."""
        made = set(self.rules) | ({_by_place(self.group_size)} if self.group_size else set())
        plain = list(dict.fromkeys(n for names in self.names.values() for n in listed(names) if n not in made))
        objects = list(dict.fromkeys(name for rule in self.rules.values() for name in rule.reads))
        rows = 0
        for file in opened:
            before = rows
            watched = [] if isinstance(file, ParquetInput) else [n for n in self.watched.values() if n not in plain]
            try:
                for found, values in ahead(file.read([*plain, *watched], objects)):
                    table = self._unwatched(file, found, watched, rows - before)
                    count = len(next(iter(values.values()))) if values else len(table)
                    self._refuse_nested(table, rows - before)
                    yield self._completed(table, values, count, rows, rows - before)
                    rows += count
                    progress("decided", rows)
            except GrpokitError as problem:
                if "row" in problem.context and problem.kind in ("column_type", "reward_nested", "late_field"):
                    row = before + int(str(problem.context["row"]))
                    raise error(problem.kind, **problem.context | {"row": row}) from None
                raise
            for rule in self.rules.values():
                if rule.unseen and rows > before and file is opened[-1]:
                    parts = ", ".join(sorted(rule.unseen))
                    raise error("missing_part", path=str(file.path), parts=parts, column=" and ".join(rule.reads))
            if self.group_size and (rows - before) % self.group_size:
                raise error("group_size", path=str(file.path), rows=rows - before, size=self.group_size)

    def _unwatched(self, file: Any, table: pa.Table, watched: list[str], start: int) -> pa.Table:
        """The table without the columns in which nothing may be."""
        for name in watched:
            there = np.flatnonzero(np.asarray(table[name].is_valid()))
            if len(there):
                word = next(word for word, theirs in self.watched.items() if theirs == name)
                raise error("late_field", column=name, word=word, row=start + int(there[0]))
        return table.drop_columns(watched) if watched else table

    def _completed(
        self, table: pa.Table, values: dict[str, list[Any]], count: int, start: int, in_file: int
    ) -> pa.Table:
        """The table with the columns that are made; `start` is its first row, of all files and of this one."""
        made: dict[str, pa.Array] = {}
        for name, rule in self.rules.items():
            made[name] = _made(rule, [values[field] for field in rule.reads], in_file)
        if self.group_size:
            made[_by_place(self.group_size)] = pa.array(np.arange(start, start + count) // self.group_size)
        if not table.num_columns:
            return pa.table(made)
        for name, column in made.items():
            table = table.append_column(name, column)
        return table

    def _refuse_nested(self, table: pa.Table, start: int) -> None:
        """A reward that is a list or an object, where nobody said what of it counts."""
        name = self.names.get("reward")
        if not isinstance(name, str) or name not in table.column_names:
            return
        column = table[name]
        if pa.types.is_nested(column.type):
            row = int(np.argmax(~np.asarray(column.is_null())))
            kind = "a list" if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) else "an object"
            parts = [part.name for part in column.type] if pa.types.is_struct(column.type) else []
            way = f"--reward {parts[0]} takes one of its parts ({', '.join(parts)})" if parts else ""
            way = way or f"--reward {name} adds them up, where they are the rewards of tokens"
            raise error("reward_nested", column=name, given=kind, row=start + row, way=way)


def _by_place(size: int) -> str:
    return f"the row's number // {size}"


def _made(rule: Rule, columns: list[list[Any]], start: int) -> pa.Array:
    found = []
    for row, values in enumerate(zip(*columns, strict=True), start):
        try:
            found.append(rule.of(*values))
        except UnmeantError as problem:
            name = " and ".join(rule.reads)
            raise error("column_type", column=name, given=problem.given, expected=problem.expected, row=row) from None
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as problem:
            given = f"what is not of the format ({type(problem).__name__}: {problem})"
            raise error(
                "column_type", column=" and ".join(rule.reads), given=given, expected=rule.text, row=row
            ) from None
    try:
        return pa.array(found, getattr(pa, {"double": "float64"}.get(rule.kind, rule.kind))())
    except (pa.ArrowException, OverflowError) as problem:
        given = str(problem).splitlines()[0]
        raise error(
            "column_type", column=" and ".join(rule.reads), given=given, expected=rule.kind, row=start
        ) from None


def recognised(fields: list[str]) -> Format:
    """The format of a file with these fields; `columns`, in grpokit's words, where nothing else fits."""
    return next((known for known in FORMATS if known.fits(fields)), BY_NAME["columns"])


def reading(
    opened: list[Any],
    recipe: Recipe | None,
    columns: dict[str, Any],
    *,
    version: int | None = None,
    format_: str = "auto",
    reward: dict[str, float] | None = None,
    group_size: int | None = None,
) -> Reading:
    """What is read of some files.

    Parameters
    ----------
    opened : list of ParquetInput or JsonLinesInput
    recipe : Recipe or None
        Whose stages say what is needed; None finds everything that the files allow.
    columns : dict
        The user's names by grpokit's.
    version : int, optional
        The trainer's, for which the answers' are needed.
    format_ : str
        "auto", or a name of `formats.FORMATS`.
    reward : dict of str to float, optional
        The parts of the reward and their weights.
    group_size : int, optional
        So many rows, one after another, are a group.

    Raises
    ------
    InputError
        `unknown_format`, `not_of_format`, `missing_field`, `choose_reward`.
    """
    if format_ != "auto" and format_ not in BY_NAME:
        near = nearest(format_, BY_NAME)
        raise error("unknown_format", given=format_, nearest=near, known=", ".join(["auto", *BY_NAME]))
    # A file without a row says nothing.
    filled = [file for file in opened if file.fields] or opened
    chosen = recognised(filled[0].fields) if format_ == "auto" else BY_NAME[format_]
    for file in filled:
        if chosen.name != "columns" and not chosen.fits(file.fields):
            shape = max(chosen.fields, key=lambda shape: len(set(shape) & set(file.fields)))
            missing = ", ".join(repr(name) for name in shape if name not in file.fields)
            given = ", ".join(map(repr, file.fields)) or "no column"
            way = f"{filled[0].path} is: filter each format by itself" if format_ == "auto" else "leave --format out"
            context = {"missing": missing, "given": given, "way": way}
            raise error("not_of_format", path=str(file.path), format=chosen.name, **context)
    for word in columns:
        stages = () if recipe is None else (*recipe.shape, *recipe.select, recipe.advantage)
        known = [*WORDS, *(name for stage in stages for name in sorted(stage.reads))]
        if word not in known:
            near = nearest(word, known)
            raise error("unknown_parameter", owner="--column", given=word, nearest=near, known=", ".join(known))
    if group_size and "group_id" in columns:
        expected = "no --group-size with it, or no group_id"
        raise error("bad_parameter", owner="--column", name="group_id", given=columns["group_id"], expected=expected)
    find = _Finder(filled, chosen, columns, reward, group_size)
    names: dict[str, Names] = {}
    rules: dict[str, Rule] = {}
    for word, must in _words(recipe, chosen, columns, version).items():
        theirs = find(word, needed=must)
        if isinstance(theirs, Rule):
            names[word] = f"{word} of {', '.join(theirs.reads)}"
            rules[str(names[word])] = theirs
        elif theirs is not None:
            names[word] = theirs
    return Reading(chosen, names, rules, group_size, find.watched)


def _words(recipe: Recipe | None, chosen: Format, columns: dict[str, Any], version: int | None) -> dict[str, bool]:
    """The columns of grpokit's to look for, and whether each must be there."""
    if recipe is None:
        words = dict.fromkeys(chosen.columns, False)
        return {"group_id": True, "reward": True} | words | dict.fromkeys(columns, True)
    words = dict.fromkeys(needed(recipe, version), True)
    return words | {word: word in columns for word in (*OPTIONAL, *columns) if word not in words}


class _Finder:
    """What a column of grpokit's is in some files: a field, several, a rule, or None."""

    def __init__(
        self,
        opened: list[Any],
        chosen: Format,
        columns: dict[str, Any],
        reward: dict[str, float] | None,
        group_size: int | None,
    ) -> None:
        self.opened, self.chosen, self.columns = opened, chosen, columns
        self.reward, self.group_size = reward, group_size
        self.watched: dict[str, str] = {}

    def __call__(self, word: str, *, needed: bool) -> Names | Rule | None:
        if word == "group_id" and self.group_size:
            return _by_place(self.group_size)
        if word == "step" and self.group_size and word not in self.columns:
            return None
        if word != "reward":
            return self._found(word, needed=needed)
        reward = self._weighted(self.reward) if self.reward else self._found(word, needed=needed)
        failed = next((rule for rule in self.chosen.failed if all(self._has(file, rule) for file in self.opened)), None)
        return scored(reward, failed) if failed is not None and isinstance(reward, str | Rule) else reward

    def _found(self, word: str, *, needed: bool) -> Names | Rule | None:
        if word not in self.columns:
            # A framework's own field may be called what is optional here, and mean something else.
            own = (word,) if needed or self.chosen.name == "columns" else ()
            for candidate in self.chosen.columns.get(word, own):
                there = [self._has(file, candidate) for file in self.opened]
                if all(there):
                    return candidate
                if any(there):
                    one, other = self.opened[there.index(True)], self.opened[there.index(False)]
                    name = candidate if isinstance(candidate, str) else " and ".join(_fields(candidate))
                    raise error("uneven_files", path=str(one.path), other=str(other.path), column=name, word=word)
                if isinstance(candidate, str):
                    self.watched.setdefault(word, candidate)
            if word == "reward" and self.chosen.name == "trl":
                return self._only_function()
            if not needed:
                return None
        theirs = self.columns.get(word, word)
        for file in self.opened:
            missing = [name for name in listed(theirs) if name not in file.fields]
            if missing and not needed:
                return None
            if missing:
                self._refuse(file, word, missing[0])
        return theirs  # type: ignore[no-any-return]

    def _refuse(self, file: Any, word: str, name: str) -> None:
        given = ", ".join(map(repr, file.fields)) or "no column"
        near = nearest(name, file.fields)
        raise error("missing_field", path=str(file.path), column=name, word=word, given=given, nearest=near)

    @staticmethod
    def _has(file: Any, candidate: Names | Rule) -> bool:
        if isinstance(candidate, Rule):
            # A line of JSON may have fields that the first one lacks.
            return all(name in file.fields for name in candidate.reads if name not in candidate.maybe)
        return all(name in file.fields for name in listed(candidate))

    def _weighted(self, terms: dict[str, float]) -> Rule:
        base = self.columns.get("reward") or ("score" if self.chosen.name == "verl" else "reward")
        for file in self.opened:
            for name in terms:
                if name not in file.fields and base not in file.fields:
                    self._refuse(file, "reward", name)
        fields = [name for name in self.opened[0].fields if all(name in file.fields for file in self.opened)]
        return weighted(terms, fields, base if base in fields else None)

    def _only_function(self) -> Rule:
        fields = dict.fromkeys(name for file in self.opened for name in file.fields)
        functions = [name for name in fields if name not in TRL_OWN]
        if len(functions) != 1:
            names = ", ".join(map(repr, functions)) or "none"
            raise error("choose_reward", path=str(self.opened[0].path), names=names)
        return self._weighted({functions[0]: 1.0})


def _fields(candidate: Names | Rule) -> list[str]:
    return list(candidate.reads) if isinstance(candidate, Rule) else listed(candidate)


def in_words(theirs: Names) -> str:
    """One name or several, as a person reads them."""
    return " and ".join(listed(theirs))


def placed(problem: GrpokitError, opened: list[Any]) -> GrpokitError:
    """The same error with the file, and for JSON lines the line, of its first row."""
    context: Any = problem.context
    if problem.kind in ("not_contiguous", "group_too_large", "needs_version") or (
        "path" in context and "row" not in context
    ):
        return problem
    rows = context.get("rows")
    row = rows[0] if isinstance(rows, list) and rows else context.get("row")
    path: Any = opened[0].path
    path = path if len(opened) == 1 else f"{path} and {len(opened) - 1} more"
    place = "as a whole"
    if isinstance(row, int):
        for file in opened:
            rows = file.rows if isinstance(file, ParquetInput) else sum(1 for _ in file.lines())
            if row < rows:
                path, place = file.path, f"row {row}"
                if not isinstance(file, ParquetInput):
                    number = next(number for at, (number, _) in enumerate(file.lines()) if at == row)
                    place = f"line {number}"
                break
            row -= rows
    return error("in_file", path=str(path), place=place, problem=str(problem), cause=problem.kind)
