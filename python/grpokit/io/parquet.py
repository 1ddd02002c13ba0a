"""Parquet files: some columns to decide, all columns to copy, written as they were.

Only the columns that are asked for are decoded. A copy keeps order, columns, types, the schema's metadata, each
column's compression and about the size of row groups; row groups of which nothing is kept are not decoded at all.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpokit.child import tell
from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

BATCH = 1 << 16
# Copies hold all columns, text among them.
COPIED = 1 << 14
MAGIC = b"PAR1"
# The decoder takes a column that ends early for the end of the file.
ROWS = "it has other numbers of rows than it says"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    tell("reading", path)
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as problem:
        reason = str(problem).split("\n")[0].rstrip(".")
        raise error("file_unreadable", path=str(path), reason=f"it is damaged, or no Parquet file ({reason})") from None


class ParquetInput:
    """A Parquet file that is read.

    Parameters
    ----------
    path : Path

    Raises
    ------
    FileError
        `file_unreadable`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path):
            # Only what has checksums pays for them.
            self.file = pq.ParquetFile(path, page_checksum_verification=True)
            self.schema: pa.Schema = self.file.schema_arrow
            metadata = self.file.metadata
            self.rows: int = metadata.num_rows
            if self.rows != sum(metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)):
                raise ValueError(ROWS)
        self.fields: list[str] = self.schema.names

    def read(
        self, columns: Sequence[str], objects: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, dict[str, list[Any]]]]:
        """Some columns of all rows, in batches, and others as Python objects; None where there is no such column."""
        there = [name for name in objects if name in self.fields]
        for name in (*columns, *there):
            if (count := self.fields.count(name)) > 1:
                raise error("duplicate_column", column=name, count=count)
        rows = 0
        with _reading(self.path):
            for batch in self.file.iter_batches(BATCH, columns=list(dict.fromkeys([*columns, *there]))):
                rows += len(batch)
                values = {name: batch[name].to_pylist() if name in there else [None] * len(batch) for name in objects}
                yield pa.Table.from_batches([batch]).select(list(columns)), values
            if rows != self.rows:
                raise ValueError(ROWS)

    def kept(self, keep_N: NDArray[np.bool_]) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
        """All columns of the rows that are kept, a row group or less at a time, and their numbers."""
        import numpy as np

        metadata, start = self.file.metadata, 0
        with _reading(self.path):
            for at in range(metadata.num_row_groups):
                end = start + metadata.row_group(at).num_rows
                if keep_N[start:end].any():
                    row = start
                    for batch in self.file.iter_batches(COPIED, row_groups=[at]):
                        keep = keep_N[row : row + len(batch)]
                        if keep.any():
                            whole = keep.all()
                            table = pa.Table.from_batches([batch if whole else batch.filter(pa.array(keep))])
                            yield table, row + np.flatnonzero(keep)
                        row += len(batch)
                    if row != end:
                        raise ValueError(ROWS)
                start = end

    def compression(self) -> dict[str, str]:
        """The codec of each column that is stored, by its path."""
        if not self.file.metadata.num_row_groups:
            return {}
        group = self.file.metadata.row_group(0)
        columns = [group.column(at) for at in range(group.num_columns)]
        names = {"UNCOMPRESSED": "NONE"}
        return {column.path_in_schema: names.get(column.compression, column.compression) for column in columns}

    def group_rows(self) -> int:
        """The rows of its largest row group."""
        metadata = self.file.metadata
        return max((metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)), default=BATCH) or BATCH


class ParquetOutput:
    """A Parquet file that is written like another.

    Parameters
    ----------
    path : Path
        Where to write.
    like : ParquetInput
        Whose schema, metadata, compression and size of row groups are used.
    extra : sequence of pyarrow.Field
        Columns that are added.
    """

    def __init__(self, path: Path, like: ParquetInput, extra: Sequence[pa.Field] = ()) -> None:
        schema = like.schema
        for field in extra:
            schema = schema.append(field)
        codecs = like.compression()
        common = next(iter(codecs.values()), "SNAPPY")
        options: dict[str, Any] = {"compression": codecs | {field.name: common for field in extra}} if codecs else {}
        self._writer = pq.ParquetWriter(path, schema, **options)
        self._schema, self._size = schema, like.group_rows()
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        """Takes the next rows; a row group is written when it is full."""
        self._waiting.append(table)
        self._rows += len(table)
        if self._rows >= self._size:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=self._size)
        self._waiting, self._rows = [], 0

    def close(self) -> None:
        """Writes what is left and the footer."""
        self._flush()
        self._writer.close()
