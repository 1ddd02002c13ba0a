"""A run's rows, or those of rollout files: what is needed of each in columns, and texts of those that are asked for."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from grpokit.io.reading import Reading

NUMBERS = {"step": np.int64, "reward": np.float64, "response_len": np.int64, "version_min": np.int64}
# Of grpokit's own files; those of others may mean something else by the name.
OWN = {"keep": np.bool_, "advantage": np.float64, "off_policy": np.bool_}
TEXTS = ("prompt", "text")
HALF = b"\\ud"  # it may be half of a surrogate pair, which is no text


@dataclass(frozen=True, eq=False)
class GroupRewards:
    """Of each group's rewards, each (G,); of a group without any the mean is NaN, low is inf and high -inf.

    Parameters
    ----------
    count : int64
        How many rows have a reward.
    mean, low, high : float64
    squares : float64
        Σ (R − mean)²; 0 where all are equal, whatever rounding says of their mean.
    distance : float64
        Σ |R − mean|, likewise.
    """

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    squares: NDArray[np.float64]
    distance: NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Rows of rollouts, in the order of the files' names, 9 before 10.

    Parameters
    ----------
    columns : dict of str to (N,) array
        ``group``: int64, the number of its group (of its step, where rows have one), from 0 in order of appearance.
        ``reward``: float64, NaN where it could not be scored. Of these what the files have: ``step``, ``response_len``
        (tokens), ``version_min``: float64, NaN where none is; ``truncated``: 1 where it was cut at the limit;
        ``keep``, ``off_policy``: 0 or 1; ``advantage``, where it is one a row; ``source``: numbers of `sources`.
    format : str
        Whose files they are.
    sources : tuple of str
        The names of sources.
    files : int
        How many files there are; `read` of them, spread evenly, were read.
    read : int
        See there.
    """

    columns: dict[str, NDArray[Any]] = field(repr=False)
    format: str
    sources: tuple[str, ...]
    files: int
    read: int
    _paths: list[Path] = field(repr=False)
    _starts: NDArray[np.int64] = field(repr=False)
    _texts: Reading = field(repr=False)
    _held: _Held = field(repr=False)
    _known: dict[int, dict[str, str | None]] = field(repr=False, default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["reward"])

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self["group"].max()) + 1 if len(self) else 0

    def scored(self, name: str) -> NDArray[Any]:
        """A column, of the rows that have a reward."""
        known = self._scored
        return self[name] if known is None else self[name][known]

    @cached_property
    def _scored(self) -> NDArray[np.bool_] | None:
        known = np.isfinite(self["reward"])
        return None if known.all() else known  # ten million rows are not copied

    @cached_property
    def group_rewards(self) -> GroupRewards:
        """What the rewards of each group are like."""
        group, rewards, G = self.scored("group"), self.scored("reward"), self.groups
        count = np.bincount(group, minlength=G)
        low, high = np.full(G, np.inf), np.full(G, -np.inf)
        np.minimum.at(low, group, rewards)
        np.maximum.at(high, group, rewards)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(group, rewards, G) / count
        off = mean[group]
        np.abs(np.subtract(rewards, off, out=off), out=off)
        distance = np.bincount(group, off, G).astype(np.float64)
        squares = np.bincount(group, np.square(off, out=off), G).astype(np.float64)
        same = ~(high > low)
        distance[same] = squares[same] = 0
        return GroupRewards(count, mean, low, high, squares, distance)

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """The first row of each group, (G,)."""
        rows_G = np.zeros(self.groups, np.int64)
        rows_G[self["group"][::-1]] = np.arange(len(self) - 1, -1, -1)
        return rows_G

    @cached_property
    def in_time(self) -> NDArray[np.int64]:
        """The groups, (G,), by their steps where there are some, then in order of appearance."""
        return np.argsort(self["step"][self.firsts], kind="stable") if "step" in self else np.arange(self.groups)

    def by_step(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The steps that there are, (S,) in order, and each row's place among them, (N,); S where a row has none."""
        steps_N = self["step"]
        known = np.isfinite(steps_N)
        if known.all():
            return _coded(steps_N)
        steps_S, codes = _coded(steps_N[known])
        codes_N = np.full(len(steps_N), len(steps_S))
        codes_N[known] = codes
        return steps_S, codes_N

    def step_means(self, *names: str) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
        """The steps that there are, (S,) in order, and of each column its mean over the rows of a step that have it."""
        steps_S, codes_N = self.by_step()
        means = []
        for name in names:
            there = np.isfinite(self[name])
            codes, values = (codes_N, self[name]) if there.all() else (codes_N[there], self[name][there])
            counts = np.bincount(codes, minlength=len(steps_S) + 1)
            with np.errstate(invalid="ignore"):
                means.append((np.bincount(codes, values, len(steps_S) + 1) / counts)[: len(steps_S)])
        return steps_S, means

    def span(self, which: Any = slice(None)) -> tuple[int, int] | None:
        """The first and the last step of some rows, if they have steps."""
        steps = self["step"][which] if "step" in self else np.zeros(0)
        steps = steps[np.isfinite(steps)]
        return (int(steps.min()), int(steps.max())) if len(steps) else None

    def texts(self, rows: Sequence[int] | NDArray[np.int64]) -> list[dict[str, str | None]]:
        """Prompt and text of some rows, each a str, or None where the files have none.

        Parameters
        ----------
        rows : (K,) int
            Row numbers; in the order in which they are given.

        Returns
        -------
        list of dict, (K,)
            ``{"prompt": ..., "text": ...}``.
        """
        from grpokit.io.files import open_input

        # Several rules and the report ask for the same rows.
        wanted = np.array(sorted({int(row) for row in rows} - self._known.keys()), np.int64)
        names = {word: str(theirs) for word, theirs in self._texts.names.items()}
        found: dict[int, dict[str, str | None]] = {row: dict.fromkeys(TEXTS) for row in wanted.tolist()}
        for at, path in enumerate(self._paths):
            first, end = self._starts[at], self._starts[at + 1]
            own = wanted[(first <= wanted) & (wanted < end)]
            if not len(own) or not names:
                continue
            file = open_input(path)
            for start, table in _spans(file, self._texts, own - first):
                inside = own[(own - first >= start) & (own - first < start + len(table))]
                for word, theirs in names.items():
                    values = table[theirs].take(inside - first - start).to_pylist()
                    for row, value in zip(inside.tolist(), values, strict=True):
                        found[row][word] = _plain(value)
        self._known.update(found)
        return [dict(self._known[int(row)]) for row in rows]


def read_rows(
    paths: list[Path],
    problems: list[str],
    *,
    columns: dict[str, Any] | None = None,
    format: str = "auto",  # noqa: A002
    reward: dict[str, float] | None = None,
    group_size: int | None = None,
    most_files: int = 400,
) -> Rows | None:
    """Rows of files.

    Parameters
    ----------
    paths : list of Path
        Parquet or JSON lines, of one format.
    problems : list of str
        What cannot be read is added.
    columns, format, reward, group_size
        As in `grpokit.io.filter_files`.
    most_files : int
        Of more files so many are read, spread evenly, the last among them.

    Returns
    -------
    Rows or None
        None where nothing can be read.

    Raises
    ------
    InputError
        What `columns`, `format`, `reward` and `group_size` ask for is not there.
    """
    from grpokit.errors import FileError, GrpokitError
    from grpokit.io.files import open_input
    from grpokit.io.reading import reading

    paths = sorted(paths, key=_by_number)
    chosen = [paths[at] for at in np.unique(np.linspace(0, len(paths) - 1, most_files).round().astype(int))]
    held = _Held()
    opened, readable = [], []
    for path in chosen:
        whole = _mended(path, held, problems)
        try:
            opened.append(open_input(whole))
            readable.append(whole)
        except GrpokitError as problem:
            problems.append(str(problem))
    if not opened:
        return None
    read = reading(opened, None, columns or {}, format_=format, reward=reward, group_size=group_size)
    own = [name for name in OWN if read.format.name == "columns" and all(name in file.fields for file in opened)]
    wanted = ("group_id", "source", "finish", *NUMBERS)
    few = _only(read, wanted)
    few = replace(few, names=few.names | {name: name for name in own})
    parts: list[dict[str, NDArray[Any]]] = []
    sources: dict[str, int] = {}
    starts, kept = [0], []
    for path, file in zip(readable, opened, strict=True):
        before, count = len(parts), 0
        try:
            for table in few.tables([file], lambda *_: None):
                parts.append(_columns(table, few, own, sources))
                count += len(table)
        except FileError as problem:
            problems.append(str(problem))
            del parts[before:]
            continue
        starts.append(starts[-1] + count)
        kept.append(path)
    if not parts or not starts[-1]:
        problems.append(f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: there are no rows")
        return None
    names = dict.fromkeys(name for part in parts for name in part)
    for name in [name for name in names if any(name not in part for part in parts)]:
        problems.append(f"the column {name!r} was not read: it has numbers in some files and something else in others")
        del names[name]
    joined = {name: np.concatenate([part.pop(name) for part in parts]) for name in names}
    joined["group"] = _numbered(joined["group"])
    return Rows(
        joined,
        read.format.name,
        tuple(sources),
        len(paths),
        len(kept),
        kept,
        np.array(starts),
        _only(read, TEXTS),
        held,
    )


def _by_number(path: Path) -> list[str | int]:
    """A name whose numbers are numbers: file 9 comes before file 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


class _Held:
    """Directories of their own for copies, as long as this is there."""

    def place(self) -> Path:
        """A new one."""
        made = tempfile.mkdtemp(prefix="grpokit-")
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        return Path(made)


def _only(read: Reading, words: Sequence[str]) -> Reading:
    names = {word: theirs for word, theirs in read.names.items() if word in words}
    used = set(map(str, names.values()))
    return replace(read, names=names, rules={k: rule for k, rule in read.rules.items() if k in used}, watched={})


def _columns(table: pa.Table, read: Reading, own: Sequence[str], sources: dict[str, int]) -> dict[str, NDArray[Any]]:
    import pyarrow.compute as pc

    from grpokit._native import ArrowColumn
    from grpokit.columns import take
    from grpokit.errors import error
    from grpokit.io.decide import hashes
    from grpokit.rollouts import group

    ids = [table[name] for name in read.key]
    groups = group(*ids)
    found: dict[str, NDArray[Any]] = {
        "group": hashes([take(ArrowColumn(column), groups.first) for column in ids])[groups.codes]
    }
    for word in (*NUMBERS, *own):
        if word in read.names:
            column = table[str(read.names[word])]
            if not _is_number(column.type):
                if word == "reward":
                    given = f"Arrow's {column.type}"
                    raise error("column_type", column=read.names[word], given=given, expected="numbers")
                continue
            found[word] = np.array(column.cast("float64").to_numpy(), np.float64)  # no view, which would hold the table
    if "finish" in read.names:
        finish = table[str(read.names["finish"])]
        found["truncated"] = np.asarray(pc.equal(finish.cast("string"), "length").cast("float64").to_numpy())
    if "source" in read.names:
        column = pc.fill_null(table[str(read.names["source"])].cast("string"), "").combine_chunks().dictionary_encode()
        codes = [sources.setdefault(name, len(sources)) for name in column.dictionary.to_pylist()]
        found["source"] = np.asarray(codes, np.int64)[column.indices.to_numpy()]
    return found


def _is_number(type_: pa.DataType) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(kind(type_) for kind in kinds)


def _coded(steps_N: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values that there are, and each one's place among them; without sorting where they are close together."""
    whole = steps_N.astype(np.int64)
    low, high = (int(whole.min()), int(whole.max())) if len(whole) else (0, 0)
    if high - low > 4 * len(whole) + 1000:
        return np.unique(whole, return_inverse=True)
    whole -= low
    there = np.bincount(whole) > 0
    np.take(np.cumsum(there) - 1, whole, out=whole, mode="clip")
    return np.flatnonzero(there) + low, whole


def _numbered(hashes_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of equal values, from 0 in order of appearance."""
    # Rows of a group mostly lie together: what is sorted is the first of each stretch.
    starts_R = np.flatnonzero(np.diff(hashes_N, prepend=hashes_N[:1] ^ 1))
    _, first, codes_R = np.unique(hashes_N[starts_R], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered: NDArray[np.int64] = np.repeat(rank[codes_R], np.diff(starts_R, append=len(hashes_N)))
    return numbered


def _mended(path: Path, held: _Held, problems: list[str]) -> Path:
    """The file, or a copy of the lines of it that are whole."""
    from grpokit._native import read_lines
    from grpokit.io.jsonl import codec_of
    from grpokit.io.magic import LONGEST
    from grpokit.io.parquet import MAGIC

    try:
        with path.open("rb") as file:
            start = file.read(LONGEST)
        if start.startswith(MAGIC) or codec_of(start) or path.suffix == ".parquet":
            return path
        data = path.read_bytes() if path.stat().st_size < 1 << 28 else b""
    except OSError:
        return path  # opening it says why not
    if not read_lines(data, [])[2] and HALF not in data.lower():
        return path
    lines = data.split(b"\n")
    good = [line for line in lines if line.strip() and _whole(line)]
    bad = sum(bool(line.strip()) for line in lines) - len(good)
    if not bad or not good:
        return path
    problems.append(f"{path}: lines that are no JSON objects were left out: {bad}")
    copy = held.place() / path.name
    copy.write_bytes(b"\n".join(good) + b"\n")
    return copy


def _whole(line: bytes) -> bool:
    try:
        value = json.loads(line)
        if HALF in line.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return isinstance(value, dict)
    except (ValueError, RecursionError):
        return False


def _spans(file: Any, read: Reading, rows: NDArray[np.int64]) -> Any:
    """The tables that have some of these rows, each with its first row."""
    from grpokit.io.parquet import ParquetInput

    if read.rules or not isinstance(file, ParquetInput):
        start = 0
        for table in read.tables([file], lambda *_: None):
            yield start, table
            start += len(table)
        return
    metadata, start = file.file.metadata, 0
    names = list(dict.fromkeys(str(theirs) for theirs in read.names.values()))
    for at in range(metadata.num_row_groups):
        end = start + metadata.row_group(at).num_rows
        if ((rows >= start) & (rows < end)).any():
            yield start, file.file.read_row_group(at, columns=names)
        start = end


def _plain(value: Any) -> str | None:
    """A text, or messages as one."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return "\n".join(f"{part.get('role', '')}: {part.get('content', '')}" for part in value)
    return json.dumps(value, ensure_ascii=False, default=str)
