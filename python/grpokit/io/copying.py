"""The kept rows of some files, written as they were read, with columns added on demand.

Reading is one batch ahead of writing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from grpokit._native import read_lines, select_lines
from grpokit.errors import error

from .ahead import ahead
from .jsonl import BLANK, JsonLinesInput
from .parquet import ParquetInput, ParquetOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Added:
    """A column that is added.

    Attributes
    ----------
    values : (N,) float64, or uint8
        Of all rows; where there are words, their numbers.
    words : (W,) object, optional
    """

    values: NDArray[Any]
    words: NDArray[Any] | None = None

    def of(self, rows: NDArray[np.int64] | slice) -> NDArray[Any]:
        """The values of some rows."""
        return self.values[rows] if self.words is None else self.words[self.values[rows]]

    @property
    def word(self) -> str:
        """What it is in grpokit's words."""
        return "advantage" if self.words is None else "reason"


def copy(
    opened: list[Any],
    place: Path,
    keep_N: NDArray[np.bool_],
    added: dict[str, Added],
    progress: Callable[[str, int], None],
) -> None:
    """Writes the kept rows of all files into one.

    Raises
    ------
    InputError
        `column_exists`, `schemas_differ`.
    FileError
        `file_changed`.
    """
    for name, column in added.items():
        for file in opened:
            if name in file.fields:
                raise _exists(file, name, column)
    (_copy_parquet if isinstance(opened[0], ParquetInput) else _copy_lines)(opened, place, keep_N, added, progress)


def _exists(file: Any, name: str, column: Added) -> Exception:
    remedy = f"Write ours under another name: --column {column.word}=NAME."
    return error("column_exists", column=name, path=str(file.path), remedy=remedy)


def _copy_parquet(
    opened: list[ParquetInput],
    place: Path,
    keep_N: NDArray[np.bool_],
    added: dict[str, Added],
    progress: Callable[[str, int], None],
) -> None:
    like = opened[0]
    for file in opened:
        if not file.schema.equals(like.schema):
            raise error("schemas_differ", path=str(file.path), other=str(like.path))
    kinds = {name: pa.float64() if column.words is None else pa.string() for name, column in added.items()}
    output = ParquetOutput(place, like, [pa.field(name, kind) for name, kind in kinds.items()])
    try:
        start = 0
        for file in opened:
            for table, rows in ahead(file.kept(keep_N[start : start + file.rows])):
                written = table
                for name, column in added.items():
                    written = written.append_column(name, pa.array(column.of(start + rows), kinds[name]))
                output.write(written)
                progress("copied", start + int(rows[-1]) + 1)
            start += file.rows
    finally:
        output.close()


def _copy_lines(
    opened: list[JsonLinesInput],
    place: Path,
    keep_N: NDArray[np.bool_],
    added: dict[str, Added],
    progress: Callable[[str, int], None],
) -> None:
    rows = 0
    with place.open("wb", buffering=0) as output:
        for kept, row in ahead(_kept_lines(opened, keep_N, added)):
            rest = memoryview(kept)
            while rest:
                rest = rest[output.write(rest) :]
            rows = row
            progress("copied", rows)
    if rows != len(keep_N):
        raise error("file_changed", path=str(opened[0].path))


def _kept_lines(
    opened: list[JsonLinesInput], keep_N: NDArray[np.bool_], added: dict[str, Added]
) -> Iterator[tuple[bytes, int]]:
    """The kept lines of each block, and the number of rows so far."""
    row = 0
    for file in opened:
        for block in file.blocks():
            kept, count = select_lines(block, keep_N[row:])
            if added:
                # The first line need not have what later ones have.
                for (name, column), found in zip(added.items(), read_lines(kept, list(added))[1], strict=True):
                    if found[0].any():
                        raise _exists(file, name, column)
                columns = {name: column.of(slice(row, row + count)) for name, column in added.items()}
                rows = keep_N[row : row + count].nonzero()[0].tolist()
                lines = kept.split(b"\n")[:-1]
                kept = b"".join(
                    _with(line + b"\n", {name: values[at] for name, values in columns.items()})
                    for line, at in zip(lines, rows, strict=True)
                )
            row += count
            yield kept, row


def _with(line: bytes, more: dict[str, Any]) -> bytes:
    """A JSON object's line with further fields; the rest stays, byte for byte."""
    body = line.rstrip(BLANK)
    text = json.dumps({name: value if isinstance(value, str) else float(value) for name, value in more.items()})
    comma = b"" if body[:-1].rstrip(BLANK) == b"{" else b", "
    return body[:-1] + comma + text[1:].encode() + line[len(body) :]
