"""JSON lines: some fields to decide, and the lines themselves, byte for byte, to copy.

Lines end with a newline or with a carriage return and a newline; blank lines are skipped. Compressed files (.gz, .zst)
are recognised by what they begin with.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa

from grpokit._native import read_lines
from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK = 1 << 22
BOM = b"\xef\xbb\xbf"
CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def codec_of(start: bytes) -> str | None:
    """How a file that begins so is compressed."""
    return next((codec for magic, codec in CODECS.items() if start.startswith(magic)), None)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            codec = codec_of(file.read(4))
            file.seek(0)
            if codec is None:
                yield file
            else:
                with pa.CompressedInputStream(pa.PythonFile(file, "r"), codec) as stream:
                    yield stream
    except (OSError, pa.ArrowException) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        raise error("file_unreadable", path=str(path), reason=reason.split("\n")[0].rstrip(".")) from None


class JsonLinesInput:
    """A file of JSON lines that is read.

    Parameters
    ----------
    path : Path
    max_line : int
        Longer lines are refused, in bytes.

    Raises
    ------
    FileError
        `file_unreadable`.
    """

    def __init__(self, path: Path, *, max_line: int = 1 << 28) -> None:
        self.path, self.max_line = path, max_line
        first = next(self.lines(), None)
        self.fields: list[str] = []
        if first is not None:
            number, line = first
            self.fields = list(self._record(number, line))

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """The file in pieces that end with a line, and the number of each one's first line, from 1."""
        number, rest = 1, b""
        with _opened(self.path) as file:
            while block := file.read(BLOCK):
                if number == 1 and not rest and block.startswith(BOM):
                    block = block[len(BOM) :]
                end = block.rfind(b"\n") + 1
                if end:
                    piece = rest + block[:end]
                    yield number, piece
                    number, rest = number + piece.count(b"\n"), block[end:]
                else:
                    rest += block
                if len(rest) > self.max_line:
                    raise error("line_too_long", path=str(self.path), line=number, limit=self.max_line)
            if rest:
                yield number, rest

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line that is not blank, with its end, and its number, from 1."""
        for start, block in self.blocks():
            for at, line in enumerate(block.split(b"\n")):
                if line.strip():
                    yield start + at, line + b"\n"

    def read(
        self, fields: Sequence[str], objects: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, dict[str, list[Any]]]]:
        """Some fields of all lines, in batches, and others as Python objects; null where a line has none.

        The other fields are not decoded.
        """
        kinds: dict[str, str] = {}
        rows = 0
        for start, block in self.blocks():
            count, found, broken = read_lines(block, [*fields, *objects])
            values: dict[str, list[Any]] = {}
            if broken:
                # NaN and Infinity are no JSON, and Python writes them; the rest is an error that says what is wrong.
                records = [self._record(start + at, line) for at, line in enumerate(block.split(b"\n")) if line.strip()]
                columns = {name: _listed(name, [record.get(name) for record in records]) for name in fields}
                values = {name: [record.get(name) for record in records] for name in objects}
                count = len(records)
            else:
                columns = {name: _column(name, count, field) for name, field in zip(fields, found, strict=False)}
                values = {name: _objects(field) for name, field in zip(objects, found[len(fields) :], strict=True)}
            if count:
                yield pa.table({name: _checked(name, column, kinds, rows) for name, column in columns.items()}), values
            rows += count

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as problem:
            reason = f"it is no JSON ({problem})"
            raise error("bad_line", path=str(self.path), line=number, reason=reason) from None
        if not isinstance(record, dict):
            reason = f"it holds {type(record).__name__}, not an object"
            raise error("bad_line", path=str(self.path), line=number, reason=reason)
        return record


Column = tuple[pa.Array, "NDArray[np.uint8]"]
NULL, BOOL, INTEGER, FLOAT, TEXT, OTHER = range(6)
CLASS = {BOOL: "a number", INTEGER: "a number", FLOAT: "a number", TEXT: "text", OTHER: "a list or an object"}


def _column(name: str, count: int, field: Any) -> Column:
    """A field as an Arrow array, and the kind of each value."""
    kinds, integers, numbers, text, ends = field
    some = set(np.unique(kinds).tolist()) - {NULL}
    absent = kinds == NULL
    if some == {INTEGER}:
        return pa.array(integers, mask=absent), kinds
    if some == {BOOL}:
        return pa.array(numbers == 1, mask=absent), kinds
    if some and some <= {BOOL, INTEGER, FLOAT}:
        return pa.array(numbers, mask=absent), kinds
    if some == {TEXT}:
        valid = pa.array(~absent).buffers()[1] if absent.any() else None
        offsets = np.concatenate([np.zeros(1, np.int64), ends])
        buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.large_string(), count, buffers), kinds
    if some == {OTHER}:
        starts = [0, *ends.tolist()]
        values = [json.loads(text[starts[i] : starts[i + 1]]) if kinds[i] else None for i in range(count)]
        return _arrow(name, values), kinds
    return pa.nulls(count), kinds


def _objects(field: Any) -> list[Any]:
    """A field as Python objects."""
    kinds, integers, numbers, text, ends = field
    starts = [0, *ends.tolist()]
    read: dict[int, Callable[[int], Any]] = {
        NULL: lambda _row: None,
        BOOL: lambda row: bool(numbers[row]),
        INTEGER: lambda row: int(integers[row]),
        FLOAT: lambda row: float(numbers[row]),
        TEXT: lambda row: text[starts[row] : starts[row + 1]].decode(),
        OTHER: lambda row: json.loads(text[starts[row] : starts[row + 1]]),
    }
    return [read[kind](row) for row, kind in enumerate(kinds.tolist())]


def _listed(name: str, values: list[Any]) -> Column:
    """The same of Python objects."""
    of = {bool: BOOL, int: INTEGER, float: FLOAT, str: TEXT, type(None): NULL}
    kinds = np.array([of.get(type(value), OTHER) for value in values], np.uint8)
    some = set(np.unique(kinds).tolist()) - {NULL}
    if FLOAT in some and some <= {BOOL, INTEGER, FLOAT}:
        values = [None if value is None else float(value) for value in values]
        return pa.array(values, pa.float64()), kinds
    if len({CLASS[kind] for kind in some}) > 1:
        return pa.nulls(len(values)), kinds
    return pa.array(values, pa.large_string()) if some == {TEXT} else _arrow(name, values), kinds


def _arrow(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as problem:
        given = f"what Arrow cannot hold ({str(problem).splitlines()[0]})"
        raise error("column_type", column=name, given=given, expected="numbers, text, or lists of these") from None


def _checked(name: str, column: Column, classes: dict[str, str], start: int) -> pa.Array:
    """The array, where all values so far are of one class; else an error that names the row."""
    array, kinds = column
    for kind in np.unique(kinds[kinds != NULL]).tolist():
        first = classes.setdefault(name, CLASS[int(kinds[kinds != NULL][0])])
        if CLASS[kind] != first:
            row = start + int((kinds == kind).argmax())
            given = f"{CLASS[kind]} after {first}"
            raise error("column_type", column=name, given=given, expected="one type in all rows", row=row)
    return array
