"""Completions as files that `grpokit filter` and everybody's tools read: Parquet, or JSON lines."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def check_format(path: Path) -> None:
    """Refuses a file that could not be written in the end.

    Raises
    ------
    InputError
        `missing_extra`: Parquet without pyarrow.
    """
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise error("missing_extra", what=f"a Parquet file, {path},", package="pyarrow", extra="io")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, parquet: bool) -> None:
    """Writes rows under grpokit's column names.

    Parameters
    ----------
    path : Path
        Of the file.
    rows : iterable of mappings
        A row may lack a key of another one: Parquet has null there.
    parquet : bool
        Whether as Parquet; else as JSON lines.
    """
    if not parquet:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    of = {
        pa.int64(): ("step", "group_id", "prompt_len", "response_len", "version_min", "version_max"),
        pa.string(): ("prompt", "text", "answer", "finish", "source"),
        pa.float64(): ("reward", "shaped_reward", "baseline_reward", "score_norm"),
        pa.bool_(): ("keep", "off_policy"),
        pa.list_(pa.float64()): ("logp_old", "logp_ref", "logp_rollout"),
    }
    types = {name: kind for kind, names in of.items() for name in names}
    rows = list(rows)
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain(*rows))}
    if "answer" in columns:
        # A task's answers may be numbers, and one column has one type.
        columns["answer"] = [None if answer is None else str(answer) for answer in columns["answer"]]
    if "reward_parts" in columns:
        names = dict.fromkeys(name for parts in columns["reward_parts"] for name in parts or ())
        types["reward_parts"] = pa.struct([(name, pa.float64()) for name in names])
    # An advantage, a number a row or a token, is never null: its type is seen.
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path, compression="zstd")
