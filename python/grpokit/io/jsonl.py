"""JSON lines: some fields to decide, and the lines themselves, byte for byte, to copy.

Lines end with a newline or with a carriage return and a newline; blank lines are skipped. Compressed files (.gz, .zst)
are recognised by what they begin with.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa

from grpokit._native import read_lines
from grpokit.child import tell
from grpokit.errors import error

from .ahead import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from grpokit.errors import GrpokitError

BLOCK = 1 << 22
BOM = b"\xef\xbb\xbf"
# What JSON calls white space, and so what a blank line may have.
BLANK = b" \t\r\n"
CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def codec_of(start: bytes) -> str | None:
    """How a file that begins so is compressed."""
    return next((codec for magic, codec in CODECS.items() if start.startswith(magic)), None)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    tell("reading", path)
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
    InputError
        `bad_line`, `line_too_long`.
    """

    def __init__(self, path: Path, *, max_line: int = 1 << 27) -> None:
        self.path, self.max_line = path, max_line
        first = next(self.lines(), None)
        if first is None:
            raise error("file_unreadable", path=str(path), reason="it has no lines")
        number, line = first
        if read_lines(line, [])[2]:
            raise self._broken(number, line)
        try:
            # Numbers are not looked at, so none is too long.
            self.fields = list(json.loads(line, parse_int=lambda _digits: 0))
        except RecursionError:
            raise self._broken(number, line) from None

    def blocks(self) -> Iterator[bytes]:
        """The file in pieces that end with a line."""
        rest: list[bytes] = []
        size = at = 0
        with _opened(self.path) as file:
            first = file.read(BLOCK).removeprefix(BOM)
            for block in chain([first], iter(lambda: file.read(BLOCK), b"")):
                end = block.rfind(b"\n") + 1
                if end:
                    yield b"".join([*rest, memoryview(block)[:end]])
                    rest, size, at = [], 0, at + 1
                rest.append(block[end:])
                size += len(rest[-1])
                if size > self.max_line:
                    line = 1 + sum(before.count(b"\n") for before in islice(self.blocks(), at))
                    raise error("line_too_long", path=str(self.path), line=line, limit=self.max_line)
            if size:
                yield b"".join(rest)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line that is not blank, with its end, and its number, from 1."""
        start = 1
        for block in self.blocks():
            lines = block.split(b"\n")
            for at, line in enumerate(lines if block.strip(BLANK) else (), start):
                if line.strip(BLANK):
                    yield at, line + b"\n"
            start += len(lines) - 1

    def read(
        self, fields: Sequence[str], objects: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, dict[str, list[Any]]]]:
        """Some fields of all lines, in batches, and others as Python objects; null where a line has none.

        The other fields are not decoded.
        """
        classes: dict[str, str] = {}
        rows = 0
        for at, block in enumerate(ahead(self.blocks())):
            count, found, broken = read_lines(block, [*fields, *objects])
            if broken:
                start = 1 + sum(before.count(b"\n") for before in islice(self.blocks(), at))
                lines = enumerate(block.split(b"\n"), start)
                raise next(self._broken(*line) for line in lines if read_lines(line[1], [*fields, *objects])[2])
            if count:
                columns = zip(fields, found[: len(fields)], strict=True)
                table = pa.table({name: _column(name, field, classes, rows) for name, field in columns})
                others = zip(objects, found[len(fields) :], strict=True)
                yield table, {name: _objects(name, field, rows) for name, field in others}
            rows += count

    def _broken(self, number: int, line: bytes) -> GrpokitError:
        """What is wrong with a line that cannot be read."""
        text, reason = line.strip(BLANK), "it has half of a surrogate pair, which is no text"
        try:
            record = json.loads(text.decode(), parse_int=lambda _digits: 0)
            if not isinstance(record, dict):
                reason = f"it holds {type(record).__name__}, not an object"
        except UnicodeDecodeError as problem:
            reason = f"byte {problem.start + 1} is not UTF-8"
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError as problem:
            reason = f"it is no JSON ({problem})"
        if text.startswith(b"["):
            reason += "; jq -c '.[]' makes lines of an array"
        elif text == b"{":
            reason += "; jq -c . puts an object on one line"
        elif b"\r" in text:
            reason += "; lines end with \\n or \\r\\n, not with \\r alone"
        return error("bad_line", path=str(self.path), line=number, reason=reason)


Field = tuple["NDArray[np.uint8]", "NDArray[np.int64]", "NDArray[np.float64]", bytes, "NDArray[np.int64]"]
NULL, BOOL, INTEGER, FLOAT, TEXT, OTHER = range(6)
CLASS = {BOOL: "true or false", INTEGER: "a number", FLOAT: "a number", TEXT: "text", OTHER: "a list or an object"}


def _column(name: str, field: Field, classes: dict[str, str], start: int) -> pa.Array:
    """A field as an Arrow array, where all values so far are of one class; else an error that names the row."""
    kinds, integers, numbers, text, ends = field
    starts = np.concatenate([np.zeros(1, np.int64), ends])
    absent, other = kinds == NULL, np.flatnonzero(kinds == OTHER)
    for at in other.tolist():
        if text[starts[at]] not in b"[{":
            given = "a whole number beyond 64 bits"
            raise error("column_type", column=name, given=given, expected="numbers that fit, or text", row=start + at)
    some = set(np.unique(kinds).tolist()) - {NULL}
    for kind in sorted(some, key=lambda kind: int((kinds == kind).argmax())):
        first = classes.setdefault(name, CLASS[kind])
        if CLASS[kind] != first:
            given, row = f"{CLASS[kind]} after {first}", start + int((kinds == kind).argmax())
            raise error("column_type", column=name, given=given, expected="one type in all rows", row=row)
    if some == {INTEGER}:
        return pa.array(integers, mask=absent)
    if some == {BOOL}:
        return pa.array(numbers == 1, mask=absent)
    if some == {TEXT}:
        valid = pa.array(~absent).buffers()[1] if absent.any() else None
        return pa.Array.from_buffers(pa.large_string(), len(kinds), [valid, pa.py_buffer(starts), pa.py_buffer(text)])
    if some == {OTHER}:
        return _nested(name, [text[starts[i] : starts[i + 1]] if kinds[i] else None for i in range(len(kinds))])
    return pa.array(numbers, mask=absent) if some else pa.nulls(len(kinds))


def _objects(name: str, field: Field, start: int) -> list[Any]:
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
    found = []
    for row, kind in enumerate(kinds.tolist()):
        try:
            found.append(read[kind](row))
        except (RecursionError, ValueError) as problem:
            given = f"what Python cannot read ({str(problem).splitlines()[0]})"
            raise error("column_type", column=name, given=given, expected="values that fit", row=start + row) from None
    return found


def _nested(name: str, values: list[bytes | None]) -> pa.Array:
    """Lists and objects, as they are written, as an Arrow array."""
    try:
        return pa.array([None if value is None else json.loads(value) for value in values])
    except (pa.ArrowException, OverflowError, RecursionError, ValueError) as problem:
        given = f"what Arrow cannot hold ({str(problem).splitlines()[0]})"
        raise error("column_type", column=name, given=given, expected="numbers, text, or lists of these") from None
