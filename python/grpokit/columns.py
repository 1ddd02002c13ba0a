"""Columns of rollouts, from whatever table holds them, without copying what need not be copied.

A column is a NumPy array, a list, or an `ArrowColumn` of a table that came through `__arrow_c_stream__`. The native
core reads all three; this module finds them by name and refuses what cannot be meant.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._native import ArrowColumn, Groups, Table, numbers
from .errors import error, nearest

Column = NDArray[Any] | list[Any] | ArrowColumn
Names = Mapping[str, str | Sequence[str]]

WORDS = (
    *("group_id", "rollout_id", "turn_idx", "step", "source"),
    *("reward", "reward_parts", "gate", "prompt", "text", "token_ids"),
    *("response_len", "finish", "version_min", "version_max"),
)
WHOLE = ("step", "turn_idx", "response_len", "version_min", "version_max")
SEVERAL = ("group_id", "reward_parts")
RAGGED = ("logp_old", "logp_ref", "logp_rollout")


@dataclass(frozen=True, eq=False)
class Ragged:
    """Some numbers a row, one after another: row i has ``values[offsets[i]:offsets[i + 1]]``.

    Attributes
    ----------
    values : (T,) float64
    offsets : (N + 1,) int64
    """

    values: NDArray[np.float64]
    offsets: NDArray[np.int64]

    def __getitem__(self, row: int) -> NDArray[np.float64]:
        """The numbers of a row: (T_i,) float64."""
        row = range(len(self))[operator.index(row)]
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        return map(self.__getitem__, range(len(self)))

    def take(self, keep_N: NDArray[np.bool_]) -> Ragged:
        """The same of some rows."""
        sizes = np.diff(self.offsets)
        return Ragged(self.values[np.repeat(keep_N, sizes)], np.append(0, np.cumsum(sizes[keep_N])))

    def sums(self) -> NDArray[np.float64]:
        """The sum of each row: (N,) float64, 0 for an empty one."""
        sums, filled = np.zeros(len(self)), np.diff(self.offsets) > 0
        if filled.any():
            sums[filled] = np.add.reduceat(self.values, self.offsets[:-1][filled])
        return sums


def check_pairs(first: str, a: Ragged, second: str, b: Ragged) -> None:
    """Refuses two columns of lists whose rows differ in length.

    Raises
    ------
    InputError
        `lists_differ`.
    """
    sizes, others = np.diff(a.offsets), np.diff(b.offsets)
    if (sizes != others).any():
        row = int((sizes != others).argmax())
        raise error("lists_differ", first=first, second=second, row=row, n=int(sizes[row]), m=int(others[row]))


class Source:
    """The columns of a table of rollouts, by their names in grpokit's words.

    Parameters
    ----------
    rollouts : table, dict or list of dicts
        Anything with `__arrow_c_stream__`, a mapping of names to arrays or lists, or records.
    names : mapping of str to str or list of str
        The table's own names, by grpokit's; several for a composite key.
    words : sequence of str
        Further columns of grpokit's, those that the recipe's stages read.
    """

    def __init__(self, rollouts: Any, names: Names | None = None, words: Sequence[str] = ()) -> None:
        self.names = _checked({} if names is None else names, words)
        theirs = [name for column in self.names for name in self.names_of(column)]
        # A frame that is written to later copies first while somebody else has a view of it.
        self.table = rollouts.copy(deep=False) if type(rollouts).__module__.split(".")[0] == "pandas" else rollouts
        self.known, self._get = _open(self.table, [*WORDS, *words, *theirs])
        self.lengths: dict[str, int] = {}
        self._found: dict[str, Column] = {}

    def __contains__(self, column: str) -> bool:
        """Whether the table has it; a name that the caller gave for it must be there."""
        return column in self.names or column in self.known

    def get(self, column: str, reader: str) -> Column:
        """The column of that name, checked to be as long as the others read so far."""
        return self.several(column, reader)[0]

    def several(self, column: str, reader: str) -> list[Column]:
        """The columns behind a name: more than one for a composite key."""
        found = []
        for name in self.names_of(column):
            if name not in self.known:
                given = ", ".join(map(repr, self.known)) or "no column"
                context = {"reader": reader, "column": name, "word": column, "given": given}
                raise error("missing_column", nearest=nearest(name, self.known), **context)
            if self.known.count(name) > 1:
                raise error("duplicate_column", count=self.known.count(name), column=name)
            if name not in self._found:
                data = self._get(name)
                if column == "token_ids" and getattr(data, "ndim", 1) == 2:
                    data = list(data)  # padded rows are compared as they are
                self._found[name] = as_column(name, data)
                self._check_length(name, len(self._found[name]))
            found.append(self._found[name])
        return found

    def optional(self, column: str, reader: str) -> Column | None:
        """The column of that name where the table has it, or the caller has named it."""
        return self.get(column, reader) if column in self else None

    def names_of(self, column: str) -> Sequence[str]:
        """The table's names for a column of grpokit's."""
        theirs = self.names.get(column, column)
        return [theirs] if isinstance(theirs, str) else theirs

    def _check_length(self, name: str, length: int) -> None:
        for other, expected in self.lengths.items():
            if length != expected:
                raise error("column_length", column=name, length=length, other=other, expected=expected)
            break
        self.lengths[name] = length


def _checked(names: Names, words: Sequence[str]) -> dict[str, str | Sequence[str]]:
    """The caller's names, each for a column that grpokit knows, several only for the key."""
    if not isinstance(names, Mapping):
        raise error("bad_parameter", owner="process", name="columns", given=names, expected="a dict of names")
    known = [*WORDS, *words]
    for word, theirs in names.items():
        if word not in known:
            near = nearest(str(word), known)
            raise error("unknown_parameter", owner="columns", given=word, nearest=near, known=", ".join(known))
        several = word in SEVERAL and isinstance(theirs, list | tuple) and theirs
        if not isinstance(theirs, str) and not (several and all(isinstance(name, str) for name in theirs)):
            purpose = {"group_id": ", or several names for a composite key", "reward_parts": ", or several names"}
            expected = "a column's name" + purpose.get(word, "")
            raise error("bad_parameter", owner="columns", name=word, given=theirs, expected=expected)
    return dict(names)


def _open(rollouts: Any, words: list[str]) -> tuple[list[str], Callable[[str], Any]]:
    if hasattr(rollouts, "__arrow_c_stream__"):
        try:
            table = Table(_without_null_type(rollouts))
        except ValueError as problem:
            given = f"{type(rollouts).__name__}, whose Arrow stream cannot be read as a table ({problem})"
            raise error("table_type", given=given) from None
        return table.names, table.column
    if isinstance(rollouts, Mapping):
        return list(rollouts), rollouts.__getitem__
    if isinstance(rollouts, list | tuple) and all(isinstance(record, Mapping) for record in rollouts):
        fields = list(dict.fromkeys(field for record in rollouts for field in record)) if rollouts else words
        for row, record in enumerate(rollouts):
            for field in fields:
                if field not in record:
                    raise error("record_fields", row=row, field=field)
        return fields, lambda name: [record[name] for record in rollouts]
    raise error("table_type", given=type(rollouts).__name__)


def _without_null_type(table: Any) -> Any:
    """Polars 2.1 exports a column without a type with a buffer that the Arrow specification does not allow."""
    if type(table).__module__.startswith("polars."):
        import polars as pl  # the caller's, imported already

        return table.with_columns(
            pl.col(name).cast(pl.Boolean) for name, kind in table.schema.items() if kind == pl.Null
        )
    return table


def as_column(name: str, data: Any) -> Column:
    """What the native core can read: an Arrow column, a list, or a one-dimensional array."""
    if isinstance(data, ArrowColumn | list):
        return data
    if isinstance(data, tuple):
        return list(data)
    if isinstance(data, str | bytes):
        raise error("column_type", column=name, given=f"one {type(data).__name__}", expected="one value per row")
    if hasattr(data, "__arrow_c_stream__"):
        return ArrowColumn(data)
    if hasattr(data, "__arrow_c_array__"):
        pyarrow = import_module("pyarrow")  # the caller's, who has such an array
        return ArrowColumn(pyarrow.chunked_array([data]))
    try:
        array = data if isinstance(data, np.ndarray) else np.asarray(data)
    except (ValueError, TypeError, RuntimeError) as problem:
        raise error(
            "column_type", column=name, given=f"{type(data).__name__} ({problem})", expected="a column"
        ) from None
    if array.ndim != 1:
        raise error("column_shape", column=name, shape=array.shape)
    if len(array) >= 2**32 - 1:
        raise error("too_many_rows", given=len(array))
    return array


def _refuse_masked(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if isinstance(array, np.ma.MaskedArray):
        nulls = np.flatnonzero(np.ma.getmaskarray(array))
        if len(nulls):
            raise error("null_value", column=name, count=len(nulls), rows=nulls[:5].tolist())
        return np.asarray(array)
    return array


def integers(name: str, data: Any) -> NDArray[Any]:
    """A column of whole numbers: a contiguous array of int32 or int64."""
    column = as_column(name, data)
    if isinstance(column, ArrowColumn):
        return column.integers(name)
    if isinstance(column, list):
        nulls = [row for row, value in enumerate(column) if value is None]
        if nulls:
            raise error("null_value", column=name, count=len(nulls), rows=nulls[:5])
        try:
            column = np.asarray(column) if column else np.zeros(0, np.int64)
        except ValueError:
            raise error(
                "column_type", column=name, given="lists of different lengths", expected="whole numbers"
            ) from None
        if column.ndim != 1:
            raise error("column_shape", column=name, shape=column.shape)
    array = _refuse_masked(name, column)
    if not array.size:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iub" or (array.dtype == np.uint64 and (array >= 2**63).any()):
        given = f"dtype {array.dtype}" + " beyond int64" * (array.dtype == np.uint64)
        raise error("column_type", column=name, given=given, expected="whole numbers that fit 64 bits")
    return np.ascontiguousarray(array, None if array.dtype in (np.int32, np.int64) else np.int64)


def floats(name: str, data: Any) -> Column:
    """A column of numbers that may be null, for the native core."""
    column = as_column(name, data)
    if isinstance(column, np.ma.MaskedArray):
        listed: list[Any] = column.tolist()
        return listed
    if not isinstance(column, np.ndarray) or column.dtype.kind == "O":
        return column
    if column.dtype.kind in "fiub":
        return np.ascontiguousarray(column, np.float64)
    raise error(
        "column_type", column=name, given=f"dtype {column.dtype}", expected="numbers, or None where there is none"
    )


def check_values(name: str, values_N: NDArray[np.float64], matters_N: NDArray[np.bool_]) -> None:
    """Refuses numbers that cannot be computed with, in the rows that matter.

    Raises
    ------
    InputError
        `column_not_finite`, `too_large`.
    """
    wrong = np.flatnonzero(matters_N & ~np.isfinite(values_N))
    if len(wrong):
        raise error("column_not_finite", column=name, count=len(wrong), rows=wrong[:5].tolist())
    wrong = np.flatnonzero(matters_N & (np.abs(values_N) > 1e150))
    if len(wrong):
        raise error("too_large", column=name, value=f"{values_N[wrong[0]]:g}", row=int(wrong[0]))


def keys(name: str, data: Column) -> Column:
    """A column of group ids, for the native core."""
    if not isinstance(data, np.ndarray):
        return data
    data = _refuse_masked(name, data)
    if data.dtype.kind in "iub" or not data.size:
        # A uint64 beyond int64 wraps around, which keeps different ids different.
        return np.ascontiguousarray(data).astype(np.int64, copy=False)
    if data.dtype.kind in "USO":
        # In native byte order, since equal ids must have equal bytes.
        return np.ascontiguousarray(data, data.dtype.newbyteorder("="))
    if data.dtype.kind == "T":
        return np.ascontiguousarray(data.astype(object))
    raise error("bad_keys", column=name, given=f"of dtype {data.dtype}")


def as_numpy(data: Column) -> NDArray[Any]:
    """A column as a NumPy array: numbers where it holds numbers, objects otherwise."""
    if isinstance(data, ArrowColumn):
        data = data.to_list()
    if isinstance(data, np.ndarray):
        return data
    try:
        array = np.asarray(data)
    except ValueError:
        return _objects(data)  # lists of different lengths
    return array if array.ndim == 1 and array.dtype.kind in "biuf" else _objects(data)


def take(data: Column, rows_G: NDArray[np.int64]) -> Any:
    """The values of some rows: an array of an array's, else a list of Python objects."""
    if isinstance(data, ArrowColumn):
        return data.take(rows_G.tolist())
    if isinstance(data, np.ndarray):
        return data[rows_G]
    if len(rows_G) < 2:
        return [data[row] for row in rows_G.tolist()]
    return list(operator.itemgetter(*rows_G.tolist())(data))


def owned(data: Column) -> Column:
    """A column that stays what it is when the caller writes to theirs."""
    return data if isinstance(data, ArrowColumn) else data.copy()


def numeric_parts(source: Source) -> dict[str, NDArray[np.float64]]:
    """The parts that rewards are made of, by name: (N,) float64 each, NaN where a row has none.

    `reward_parts` is one or several columns of numbers, a column of records, or an Arrow column of structs.
    """
    if "reward_parts" not in source:
        return {}
    found: dict[str, Any] = {}
    names = source.names_of("reward_parts")
    for name, column in zip(names, source.several("reward_parts", "process"), strict=True):
        fields = _fields(name, column)
        several = len(names) > 1
        found |= {f"{name}.{field}" if several and field != name else field: part for field, part in fields.items()}
    parts = {}
    for name, column in found.items():
        values, known = numbers(name, floats(name, column))
        values[~known] = np.nan
        parts[name] = values
    return parts


def _fields(name: str, column: Column) -> dict[str, Any]:
    """The columns in a column of records or structs; the column itself where it holds numbers."""
    if isinstance(column, ArrowColumn):
        return {field: column.field(field) for field in column.fields()} or {name: column}
    if isinstance(column, np.ndarray) and column.dtype.kind != "O":
        return {name: column}
    listed = column.tolist() if isinstance(column, np.ndarray) else column
    if not any(isinstance(value, Mapping) for value in listed):
        return {name: column}
    for row, value in enumerate(listed):
        if value is not None and not isinstance(value, Mapping):
            given = f"{type(value).__name__} in row {row} beside records"
            raise error("column_type", column=name, given=given, expected="numbers, or a record of numbers in each row")
    records = [value or {} for value in listed]
    fields = dict.fromkeys(field for record in records for field in record)
    return {str(field): [record.get(field) for record in records] for field in fields}


def contents(name: str, data: Column, groups: Groups) -> Groups:
    """The rows of a group that hold the same text or the same token ids, as groups."""
    return Groups([groups.codes.astype(np.int64), content_keys(name, data)], ["group_id", name])


def content_keys(name: str, data: Column) -> Column:
    """Text or lists of token ids as keys for the native core."""
    if isinstance(data, ArrowColumn) or (isinstance(data, np.ndarray) and data.dtype.kind != "O"):
        return keys(name, data)
    listed = data if isinstance(data, list) else list(data)
    if not listed or isinstance(listed[0], str | bytes):
        return listed
    return [_token_bytes(name, row, ids) for row, ids in enumerate(listed)]


def prompt_keys(data: Column) -> Column:
    """Prompts as keys: text, token ids, or messages, which are compared as they are written."""
    if isinstance(data, ArrowColumn):
        if "Struct" not in data.dtype:
            return data
        data = data.to_list()
    listed = data if isinstance(data, list) else data.tolist()
    return listed if all(isinstance(prompt, str) for prompt in listed) else [repr(prompt) for prompt in listed]


def _token_bytes(name: str, row: int, ids: Any) -> bytes:
    array = np.asarray(ids) if isinstance(ids, list | tuple | np.ndarray) else np.zeros((), object)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        given = f"{type(ids).__name__} in row {row}"
        raise error("column_type", column=name, given=given, expected="text, or lists of token ids")
    return array.astype(np.int64).tobytes()


def ragged(name: str, data: Column) -> Ragged:
    """A column of lists of numbers, one a token.

    Raises
    ------
    InputError
        A row that is no list of numbers, or a number that is NaN or infinite.
    """
    listed = data.to_list() if isinstance(data, ArrowColumn) else list(data)
    rows = []
    for row, given in enumerate(listed):
        array = np.asarray(given) if isinstance(given, list | tuple | np.ndarray) else np.zeros((), object)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "fiu"):
            kind = "null" if given is None else f"{type(given).__name__}"
            raise error(
                "column_type", column=name, given=f"{kind} in row {row}", expected="a list of numbers in each row"
            )
        rows.append(array.astype(np.float64))
    values = np.concatenate(rows) if rows else np.zeros(0)
    offsets = np.append(0, np.cumsum([len(row) for row in rows], dtype=np.int64))
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        where = np.unique(np.searchsorted(offsets, bad, "right") - 1)
        raise error("column_not_finite", column=name, count=len(where), rows=where[:5].tolist())
    return Ragged(values, offsets)


def words(name: str, data: Column, known: Sequence[str]) -> NDArray[np.int64]:
    """Each row's place among some known words."""
    listed = data if isinstance(data, list) else data.tolist() if isinstance(data, np.ndarray) else []
    if None in listed:
        nulls = [row for row, word in enumerate(listed) if word is None]
        raise error("null_value", column=name, count=len(nulls), rows=nulls[:5])
    groups = Groups([keys(name, data)], [name])
    found = list(take(data, groups.first))
    for word in found:
        if word not in known:
            raise error("unknown_finish", given=word, expected=", ".join(known))
    return np.array([known.index(word) for word in found], np.int64)[groups.codes]


def _objects(data: list[Any]) -> NDArray[Any]:
    array = np.empty(len(data), object)
    for row, value in enumerate(data):
        array[row] = value
    return array
