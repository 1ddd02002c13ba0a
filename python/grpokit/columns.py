"""Columns of rollouts, from whatever table holds them, without copying what need not be copied.

A column is a NumPy array, a list, or an `ArrowColumn` of a table that came through `__arrow_c_stream__`. The native
core reads all three; this module finds them by name and refuses what cannot be meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._native import ArrowColumn, Groups, Table
from .errors import error, nearest

Column = NDArray[Any] | list[Any] | ArrowColumn
Names = Mapping[str, str | Sequence[str]]


class Source:
    """The columns of a table of rollouts, by their names in grpokit's words.

    Parameters
    ----------
    rollouts : table, dict or list of dicts
        Anything with `__arrow_c_stream__`, a mapping of names to arrays or lists, or records.
    names : mapping of str to str or list of str
        The table's own names, by grpokit's; several for a composite key.
    """

    def __init__(self, rollouts: Any, names: Names | None = None) -> None:
        self.names = dict(names or {})
        self.known, self._get = _open(rollouts)
        self.lengths: dict[str, int] = {}

    def __contains__(self, column: str) -> bool:
        return all(name in self.known for name in self._theirs(column))

    def get(self, column: str, reader: str) -> Column:
        """The column of that name, checked to be as long as the others read so far."""
        return self.several(column, reader)[0]

    def several(self, column: str, reader: str) -> list[Column]:
        """The columns behind a name: more than one for a composite key."""
        found = []
        for name in self._theirs(column):
            if name not in self.known:
                given = ", ".join(map(repr, self.known)) or "no column"
                context = {"reader": reader, "column": name, "given": given}
                raise error("missing_column", nearest=nearest(name, self.known), **context)
            data = as_column(name, self._get(name))
            self._check_length(name, len(data))
            found.append(data)
        return found

    def _theirs(self, column: str) -> Sequence[str]:
        theirs = self.names.get(column, column)
        return [theirs] if isinstance(theirs, str) else theirs

    def _check_length(self, name: str, length: int) -> None:
        for other, expected in self.lengths.items():
            if length != expected:
                raise error("column_length", column=name, length=length, other=other, expected=expected)
            break
        self.lengths[name] = length


def _open(rollouts: Any) -> tuple[list[str], Callable[[str], Any]]:
    if hasattr(rollouts, "__arrow_c_stream__"):
        table = Table(_without_null_type(rollouts))
        return table.names, table.column
    if isinstance(rollouts, Mapping):
        return list(rollouts), rollouts.__getitem__
    if isinstance(rollouts, list | tuple) and all(isinstance(record, Mapping) for record in rollouts):
        fields = list(rollouts[0]) if rollouts else ["group_id", "reward"]
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
    array = data if isinstance(data, np.ndarray) else np.asarray(data)
    if array.ndim != 1:
        raise error("column_shape", column=name, shape=array.shape)
    if len(array) >= 2**32 - 1:
        raise error("too_many_rows", given=len(array))
    return array


def integers(name: str, data: Any) -> NDArray[Any] | ArrowColumn:
    """A column of whole numbers: an Arrow column, or a contiguous array of int32 or int64."""
    column = as_column(name, data)
    if isinstance(column, ArrowColumn):
        return column
    if isinstance(column, list):
        nulls = [row for row, value in enumerate(column) if value is None]
        if nulls:
            raise error("null_value", column=name, count=len(nulls), rows=nulls[:5])
    array = np.asarray(column) if len(column) else np.zeros(0, np.int64)
    if array.dtype.kind not in "iub":
        raise error("column_type", column=name, given=f"dtype {array.dtype}", expected="whole numbers")
    return np.ascontiguousarray(array, None if array.dtype in (np.int32, np.int64) else np.int64)


def floats(data: Column) -> Column:
    """A column of numbers that may be null, for the native core."""
    if isinstance(data, np.ma.MaskedArray):
        listed: list[Any] = data.tolist()
        return listed
    if isinstance(data, np.ndarray) and data.dtype.kind in "fiub":
        return np.ascontiguousarray(data, np.float64)
    return data


def keys(data: Column) -> Column:
    """A column of group ids, for the native core."""
    if not isinstance(data, np.ndarray):
        return data
    if data.dtype.kind in "iub" or not data.size:
        # A uint64 beyond int64 wraps around, which keeps different ids different.
        return np.ascontiguousarray(data).astype(np.int64, copy=False)
    if data.dtype.kind in "USO":
        return np.ascontiguousarray(data)
    if data.dtype.kind == "T":
        return np.ascontiguousarray(data.astype(object))
    raise error("bad_keys", given=f"of dtype {data.dtype}")


def as_numpy(data: Column) -> NDArray[Any]:
    """A column as a NumPy array: numbers where it holds numbers, objects otherwise."""
    if isinstance(data, ArrowColumn):
        data = data.to_list()
    if isinstance(data, np.ndarray):
        return data
    array = np.asarray(data)
    return array if array.ndim == 1 and array.dtype.kind in "biuf" else _objects(data)


def take(data: Column, rows_G: NDArray[np.int64]) -> list[Any]:
    """The values of some rows as Python objects."""
    if isinstance(data, ArrowColumn):
        return data.take(rows_G.tolist())
    if isinstance(data, np.ndarray):
        taken: list[Any] = data[rows_G].tolist()
        return taken
    return [data[row] for row in rows_G.tolist()]


def words(name: str, data: Column, known: Sequence[str]) -> NDArray[np.int64]:
    """Each row's place among some known words."""
    groups = Groups([keys(data)], [name])
    found = take(data, groups.first)
    for word in found:
        if word not in known:
            raise error("unknown_finish", given=word, expected=", ".join(known))
    return np.array([known.index(word) for word in found], np.int64)[groups.codes]


def _objects(data: list[Any]) -> NDArray[Any]:
    array = np.empty(len(data), object)
    array[:] = data
    return array
