"""`grpokit filter`: the rows of rollout files that are worth training on, in files of the same kind.

In: Parquet or JSON lines. Out: the kept rows with all their columns, in their order, and on demand the others with
their reasons. The files are read twice: first the columns that the recipe reads, to decide; then everything, to copy.
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from grpokit._native import select_lines
from grpokit.errors import GrpokitError, error, nearest
from grpokit.processed import name_of

from .decide import Decider, NotContiguousError, Verdicts
from .jsonl import JsonLinesInput
from .outputs import same_file, whole
from .parquet import MAGIC, ParquetInput, ParquetOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from grpokit._recipe import Recipe

    Input = ParquetInput | JsonLinesInput

Order = Literal["auto", "contiguous", "any"]
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst")
OPTIONAL = ("gate", "step", "rollout_id", "turn_idx", "source")


@dataclass(frozen=True)
class Filtered:
    """What became of the rows of some files.

    Attributes
    ----------
    inputs : list of Path
    output, dropped : Path or None
        What was written.
    kind : {"parquet", "jsonl"}
    contiguous : bool
        Whether the rows of each group lie together.
    columns : dict
        The files' names by grpokit's, of those that were read.
    verdicts : Verdicts
    """

    inputs: list[Path]
    output: Path | None
    dropped: Path | None
    kind: str
    contiguous: bool
    columns: dict[str, Any]
    verdicts: Verdicts = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self.verdicts
        return {
            "inputs": [str(path) for path in self.inputs],
            "output": None if self.output is None else str(self.output),
            "dropped": None if self.dropped is None else str(self.dropped),
            "kind": self.kind,
            "contiguous": self.contiguous,
            "columns": self.columns,
            "counts": found.counts,
            "counts_by_source": {str(name): counts for name, counts in found.counts_by_source.items()},
            "groups": found.groups,
            "groups_without_signal": found.without_signal,
            "lint": [vars(finding) | {"rows": list(finding.rows)} for finding in found.lint.values()],
        }

    def __str__(self) -> str:
        found, counts = self.verdicts, self.verdicts.counts
        rows = max(counts["in"], 1)
        order = "together" if self.contiguous else "apart"
        lines = [
            f"{counts['in']:,} rows in {found.groups:,} groups whose rows lie {order}, {found.without_signal:,} of"
        ]
        lines[0] += " them without signal"
        width = max(12, *map(len, counts))
        for name, count in counts.items():
            if name != "in":
                lines.append(f"  {name:<{width}} {count:>14,}  {count / rows:7.2%}")
        for source, of in found.counts_by_source.items():
            lines.append(f"  {source!s:<{width}} {of['kept']:>14,}  of {of['in']:,}")
        lines += [f"lint {finding}" for finding in found.lint.values()]
        lines += [f"wrote {path}" for path in (self.output, self.dropped) if path is not None]
        return "\n".join(lines)


def filter_files(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path | None,
    recipe: Recipe,
    *,
    columns: dict[str, Any] | None = None,
    version: int | None = None,
    order: Order = "auto",
    keep_all: bool = False,
    advantages: bool = False,
    keep_dropped: str | Path | None = None,
    overwrite: bool = False,
    max_group_rows: int = 1_000_000,
    progress: Callable[[str, int], None] = lambda _what, _rows: None,
) -> Filtered:
    """Writes the rows that a recipe keeps.

    Parameters
    ----------
    inputs : path, or sequence of paths
        Parquet or JSON lines, all of one kind; files, patterns such as ``dumps/*.jsonl``, or directories.
    output : path or None
        The file to write; None decides only.
    recipe : Recipe
        Whose stages 1 to 4 decide.
    columns : dict, optional
        The files' names by grpokit's, as in `grpokit.process`.
    version : int, optional
        As in `grpokit.process`.
    order : {"auto", "contiguous", "any"}
        Whether the rows of each group lie together: then a batch is held at a time, else the needed columns of all
        rows. "auto" finds out.
    keep_all : bool
        Writes every row, for the advantages' sake.
    advantages : bool
        Adds a column `advantage`.
    keep_dropped : path, optional
        Where the dropped rows go, with a column `reason`.
    overwrite : bool
        Replaces files that are there.
    max_group_rows : int
        The most rows of one group, where they lie together.
    progress : callable, optional
        Called with what is done and the number of rows so far.

    Returns
    -------
    Filtered

    Raises
    ------
    FileError, InputError, InputTypeError
        What cannot be read, meant or written; nothing is written then.
    """
    paths = expand(inputs)
    opened = [_open(path) for path in paths]
    kinds = sorted({type(file).__name__ for file in opened})
    if len(kinds) > 1:
        raise error("mixed_files", kinds=" and ".join(kinds))
    targets = [Path(path) for path in (output, keep_dropped) if path is not None]
    for target in targets:
        for path in paths:
            if same_file(path, target):
                raise error("file_unwritable", path=str(target), reason="it is an input")
    names = _names(opened, recipe, columns or {}, version)
    decider = Decider(recipe, _key(names), names, advantages, version, max_group_rows)
    verdicts, contiguous = _decide(opened, decider, order, progress)
    found = Filtered(
        inputs=paths,
        output=None if output is None else Path(output),
        dropped=None if keep_dropped is None else Path(keep_dropped),
        kind="parquet" if isinstance(opened[0], ParquetInput) else "jsonl",
        contiguous=contiguous,
        columns=names,
        verdicts=verdicts,
    )
    if targets:
        reasons_N = verdicts.first_reason
        kept_N = np.ones(len(reasons_N), bool) if keep_all else reasons_N == 0
        added = {"advantage": verdicts.advantages} if advantages else {}
        with whole(targets, overwrite=overwrite) as places:
            jobs = []
            if output is not None:
                jobs.append((places[0], kept_N, added))
            if keep_dropped is not None:
                jobs.append((places[-1], reasons_N != 0, {"reason": _words(reasons_N)}))
            for place, keep_N, extra in jobs:
                _copy(opened, place, keep_N, extra, progress)
    return found


def expand(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files behind names, patterns and directories, in order of their names.

    Raises
    ------
    FileError
        Nothing is there.
    """
    listed = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    found: list[Path] = []
    for given in listed:
        path = Path(given)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
        elif path.exists() or not glob.has_magic(str(given)):
            files = [path]
        else:
            files = sorted(map(Path, glob.glob(str(given), recursive=True)))  # noqa: PTH207
        if not files:
            what = "a directory without Parquet or JSON-lines files" if path.is_dir() else "matched by no file"
            raise error("file_unreadable", path=str(given), reason=what)
        found += files
    if not found:
        raise error("file_unreadable", path="the list of inputs", reason="it is empty")
    return found


def _open(path: Path) -> Input:
    try:
        if not path.is_file():
            raise error("file_unreadable", path=str(path), reason=_why_not(path))
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as problem:
        if isinstance(problem, GrpokitError):
            raise
        raise error("file_unreadable", path=str(path), reason=problem.strerror or str(problem)) from None
    if start.startswith((b"PK", b"\x80")):
        reason = (
            "it is pickled (.pt, .pkl), and reading it would run code; write Parquet or JSON lines in the framework"
        )
        raise error("file_unreadable", path=str(path), reason=reason)
    if not start:
        raise error("file_unreadable", path=str(path), reason="it is empty")
    return ParquetInput(path) if start == MAGIC else JsonLinesInput(path)


def _why_not(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "it is a link that leads nowhere"
    return "it is not a file" if path.exists() else "it is not there"


def _names(opened: list[Any], recipe: Recipe, columns: dict[str, Any], version: int | None) -> dict[str, Any]:
    """The columns to read: those that are needed, and the optional ones that are there."""
    stages = (*recipe.shape, *recipe.select, recipe.advantage)
    needed = dict.fromkeys(["group_id", "reward", *(name for stage in stages for name in sorted(stage.reads))])
    needed.pop("version", None)
    if version is not None and "version_max" not in needed:
        needed["version_min"] = None
    names: dict[str, Any] = {}
    for file in opened:
        fields = set(file.fields)
        for word in [*needed, *(word for word in (*OPTIONAL, *columns) if word not in needed)]:
            theirs = columns.get(word, word)
            listed = [theirs] if isinstance(theirs, str) else list(theirs)
            missing = [name for name in listed if name not in fields]
            if missing and (word in needed or word in columns):
                given = ", ".join(map(repr, file.fields)) or "no column"
                raise error(
                    "missing_field",
                    path=str(file.path),
                    column=missing[0],
                    word=word,
                    given=given,
                    nearest=nearest(missing[0], file.fields),
                )
            if not missing:
                names[word] = theirs
    return names


def _key(names: dict[str, Any]) -> tuple[str, ...]:
    """The columns that make the key of a group."""
    return tuple(name for word in ("step", "group_id") if word in names for name in _listed(names[word]))


def _decide(
    opened: list[Any], decider: Decider, order: Order, progress: Callable[[str, int], None]
) -> tuple[Verdicts, bool]:
    read = list(dict.fromkeys(name for theirs in decider.names.values() for name in _listed(theirs)))
    try:
        if order != "any" and not decider.needs_all:
            try:
                return decider.contiguous(_tables(opened, read, progress)), True
            except NotContiguousError:
                if order == "contiguous":
                    raise error("not_contiguous", path=str(opened[0].path)) from None
        return decider.anywhere(_tables(opened, read, progress)), False
    except GrpokitError as problem:
        raise _placed(problem, opened) from None


def _listed(theirs: str | Sequence[str]) -> list[str]:
    return [theirs] if isinstance(theirs, str) else list(theirs)


def _tables(opened: list[Any], read: list[str], progress: Callable[[str, int], None]) -> Iterator[pa.Table]:
    """The columns that are read of all files, in batches."""
    rows = 0
    for file in opened:
        before = rows
        try:
            for table in file.read(read):
                rows += len(table)
                progress("decided", rows)
                yield table
        except GrpokitError as problem:
            if "row" in problem.context and problem.kind == "column_type":
                raise error(
                    problem.kind, **problem.context | {"row": before + int(str(problem.context["row"]))}
                ) from None
            raise


def _placed(problem: GrpokitError, opened: list[Any]) -> GrpokitError:
    """The same error with the file, and for JSON lines the line, of its first row."""
    context: Any = problem.context
    if problem.kind in ("not_contiguous", "group_too_large") or "path" in context:
        return problem
    rows = context.get("rows")
    row = rows[0] if isinstance(rows, list) and rows else context.get("row")
    path, place = opened[0].path, "as a whole"
    if isinstance(row, int):
        for file in opened:
            rows = file.rows if isinstance(file, ParquetInput) else sum(1 for _ in file.lines())
            if row < rows:
                path, place = file.path, f"row {row}"
                if isinstance(file, JsonLinesInput):
                    number = next(number for at, (number, _) in enumerate(file.lines()) if at == row)
                    place = f"line {number}"
                break
            row -= rows
    return error("in_file", path=str(path), place=place, problem=str(problem))


def _words(reasons_N: NDArray[np.uint32]) -> NDArray[Any]:
    """The names of first reasons."""
    found, codes = np.unique(reasons_N, return_inverse=True)
    return np.array([name_of(int(reason)) if reason else "" for reason in found], object)[codes]


def _copy(
    opened: list[Any],
    place: Path,
    keep_N: NDArray[np.bool_],
    extra: dict[str, NDArray[Any]],
    progress: Callable[[str, int], None],
) -> None:
    """Writes the kept rows of all files, with further columns."""
    (_copy_parquet if isinstance(opened[0], ParquetInput) else _copy_lines)(opened, place, keep_N, extra, progress)


def _copy_parquet(
    opened: list[ParquetInput],
    place: Path,
    keep_N: NDArray[np.bool_],
    extra: dict[str, NDArray[Any]],
    progress: Callable[[str, int], None],
) -> None:
    like = opened[0]
    for file in opened:
        if not file.schema.equals(like.schema):
            raise error("schemas_differ", path=str(file.path), other=str(like.path))
    taken = [name for name in extra if name in like.fields]
    if taken:
        raise error("column_exists", column=taken[0], path=str(like.path))
    fields = [pa.field(name, pa.string() if values.dtype == object else pa.float64()) for name, values in extra.items()]
    output = ParquetOutput(place, like, fields)
    try:
        start = 0
        for file in opened:
            for table, rows in file.kept(keep_N[start : start + file.rows]):
                written = table
                for name, values in extra.items():
                    written = written.append_column(name, pa.array(values[start + rows]))
                output.write(written)
                progress("copied", start + int(rows[-1]) + 1)
            start += file.rows
    finally:
        output.close()


def _copy_lines(
    opened: list[JsonLinesInput],
    place: Path,
    keep_N: NDArray[np.bool_],
    extra: dict[str, NDArray[Any]],
    progress: Callable[[str, int], None],
) -> None:
    taken = [name for name in extra if name in opened[0].fields]
    if taken:
        raise error("column_exists", column=taken[0], path=str(opened[0].path))
    row = 0
    with place.open("wb") as output:
        for file in opened:
            for _, block in file.blocks():
                if extra:
                    lines = list(filter(bytes.strip, block.split(b"\n")))
                    count = len(lines)
                    for at, line in enumerate(lines[: len(keep_N) - row], row):
                        if keep_N[at]:
                            output.write(_with(line + b"\n", {name: values[at] for name, values in extra.items()}))
                else:
                    kept, count = select_lines(block, keep_N[row:])
                    output.write(kept)
                row += count
                progress("copied", row)
    if row != len(keep_N):
        raise error("file_changed", path=str(opened[0].path))


def _with(line: bytes, extra: dict[str, Any]) -> bytes:
    """A JSON object's line with further fields; the rest stays, byte for byte."""
    body = line.rstrip()
    added = json.dumps({name: value if isinstance(value, str) else float(value) for name, value in extra.items()})
    comma = b"" if body[:-1].rstrip() == b"{" else b", "
    return body[:-1] + comma + added[1:].encode() + line[len(body) :]
