"""`grpokit filter`: the rows of rollout files that are worth training on, in files of the same kind.

In: Parquet or JSON lines. Out: the kept rows with all their columns, in their order, and on demand the others with
their reasons. The files are read twice: first the columns that the recipe reads, to decide; then everything, to copy.
"""

from __future__ import annotations

import glob
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from grpokit.errors import GroupWarning, GrpokitError, error
from grpokit.parameters import whole as whole_number
from grpokit.whole_files import same_file, whole

from .copying import Added, copy
from .decide import WORDS, Decider, NotContiguousError, Verdicts
from .formats import FORMATS
from .jsonl import JsonLinesInput
from .magic import LONGEST, why_not
from .parquet import MAGIC, ParquetInput
from .reading import Reading, in_words, placed, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from grpokit._recipe import Recipe

    Input = ParquetInput | JsonLinesInput

BESIDE = tuple(pattern + end for known in FORMATS for pattern in known.beside for end in ("", ".gz", ".zst"))
KINDS = {"ParquetInput": "Parquet", "JsonLinesInput": "JSON lines"}
Order = Literal["auto", "contiguous", "any"]
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst")


@dataclass(frozen=True)
class Filtered:
    """What became of the rows of some files.

    Attributes
    ----------
    inputs : list of Path
    beside : list of Path
        Files of directories and patterns that were left out, since they hold no rollouts.
    output, dropped : Path or None
        What was written.
    kind : {"parquet", "jsonl"}
    format : str
        The framework's, one of `grpokit.io.formats.FORMATS`.
    contiguous : bool
        Whether the rows of each group lie together.
    columns : dict
        What each of grpokit's columns was, of those that were read.
    verdicts : Verdicts
    """

    inputs: list[Path]
    beside: list[Path]
    output: Path | None
    dropped: Path | None
    kind: str
    format: str
    contiguous: bool
    columns: dict[str, Any]
    verdicts: Verdicts = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self.verdicts
        return {
            "inputs": [str(path) for path in self.inputs],
            "left_out": [str(path) for path in self.beside],
            "output": None if self.output is None else str(self.output),
            "dropped": None if self.dropped is None else str(self.dropped),
            "kind": self.kind,
            "format": self.format,
            "contiguous": self.contiguous,
            "columns": {word: in_words(theirs) for word, theirs in self.columns.items()},
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
        made = [f"{word} from {in_words(theirs)}" for word, theirs in self.columns.items() if word != theirs]
        if made:
            lines.insert(0, f"format {self.format}: " + " | ".join(made))
        width = max(12, *map(len, counts))
        for name, count in counts.items():
            if name != "in":
                lines.append(f"  {name:<{width}} {count:>14,}  {count / rows:7.2%}")
        for source, of in found.counts_by_source.items():
            lines.append(f"  {source!s:<{width}} {of['kept']:>14,}  of {of['in']:,}")
        lines += [f"lint {finding}" for finding in found.lint.values()]
        lines += [f"left out {path}, which holds no rollouts" for path in self.beside]
        lines += [f"wrote {path}" for path in (self.output, self.dropped) if path is not None]
        return "\n".join(lines)


def filter_files(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path | None,
    recipe: Recipe,
    *,
    columns: dict[str, Any] | None = None,
    format: str = "auto",  # noqa: A002
    reward: dict[str, float] | None = None,
    group_size: int | None = None,
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
        The files' names by grpokit's, as in `grpokit.process`; `advantage` and `reason` are the names of what is added.
    format : str
        The framework that wrote the files, one of `grpokit.io.formats.FORMATS`; "auto" recognises it by its fields.
    reward : dict of str to float, optional
        Columns, or parts of the reward where it has several, and their weights: the reward is the weighted sum of those
        that are there; one that is a list (a reward a token) is summed.
    group_size : int, optional
        So many rows, one after another, are a group, where the files have no id.
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
    if group_size is not None:
        whole_number("filter_files", "group_size", group_size, at_least=1, at_most=2**31)
    whole_number("filter_files", "max_group_rows", max_group_rows, at_least=1, at_most=2**62)
    paths, beside = expand(inputs)
    opened = [open_input(path) for path in paths]
    kinds = sorted({KINDS[type(file).__name__] for file in opened})
    if len(kinds) > 1:
        raise error("mixed_files", kinds=" and ".join(kinds))
    targets = [Path(path) for path in (output, keep_dropped) if path is not None]
    for target in targets:
        for path in paths:
            if same_file(path, target):
                raise error("file_unwritable", path=str(target), reason="it is an input")
    if len(targets) > 1 and targets[0].absolute() == targets[1].absolute():
        raise error("file_unwritable", path=str(targets[0]), reason="it is the place of the dropped rows as well")
    theirs = dict(columns or {})
    written = {word: theirs.pop(word, word) for word in ("advantage", "reason")}
    for word, name in written.items():
        if not isinstance(name, str):
            raise error("bad_parameter", owner="columns", name=word, given=name, expected="one name")
    read = reading(opened, recipe, theirs, version=version, format_=format, reward=reward, group_size=group_size)
    decider = Decider(recipe, read.key, read.names, advantages, version, max_group_rows)
    verdicts, contiguous = _decide(opened, read, decider, order, progress)
    if "all_singletons" in (lint := verdicts.lint):
        warnings.warn(str(lint["all_singletons"]), GroupWarning, stacklevel=2)
    found = Filtered(
        inputs=paths,
        beside=beside,
        output=None if output is None else Path(output),
        dropped=None if keep_dropped is None else Path(keep_dropped),
        kind="parquet" if isinstance(opened[0], ParquetInput) else "jsonl",
        format=read.format.name,
        contiguous=contiguous,
        columns=read.described(),
        verdicts=verdicts,
    )
    if targets:
        codes_N = verdicts.codes
        jobs = []
        if output is not None:
            added = {written["advantage"]: Added(verdicts.advantages)} if advantages else {}
            jobs.append((np.ones(len(codes_N), bool) if keep_all else codes_N == 0, added))
        if keep_dropped is not None:
            jobs.append((codes_N != 0, {written["reason"]: Added(codes_N, WORDS)}))
        with whole(targets, overwrite=overwrite) as places:
            for place, (keep_N, added) in zip(places, jobs, strict=True):
                copy(opened, place, keep_N, added, progress)
    return found


def expand(inputs: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """The files behind names, patterns and directories, in order of their names; and those that were left out.

    Frameworks write files beside their rollouts that hold none (`formats.Format.beside`): of a directory or a pattern
    they are left out. A file that is named is always read.

    Raises
    ------
    FileError
        Nothing is there.
    """
    listed = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    found: list[Path] = []
    beside: list[Path] = []
    for given in listed:
        try:
            files, left = _expanded(given)
        except OSError as problem:
            if isinstance(problem, GrpokitError):
                raise
            raise error("file_unreadable", path=str(given), reason=problem.strerror or str(problem)) from None
        found += files
        beside += left
    if not found:
        raise error("file_unreadable", path="the list of inputs", reason="it is empty")
    known: set[Path] = set()
    for path in found:
        real = path.absolute() if not path.exists() else path.resolve()
        if real in known:
            raise error("file_twice", path=str(path))
        known.add(real)
    return found, beside


def explain(
    inputs: str | Path | Sequence[str | Path],
    *,
    columns: dict[str, Any] | None = None,
    format: str = "auto",  # noqa: A002
    reward: dict[str, float] | None = None,
    group_size: int | None = None,
) -> str:
    """What some files are taken for, and what of them is read as what; parameters are those of `filter_files`."""
    paths, beside = expand(inputs)
    theirs = {word: name for word, name in (columns or {}).items() if word not in ("advantage", "reason")}
    opened = [open_input(path) for path in paths]
    read = reading(opened, None, theirs, format_=format, reward=reward, group_size=group_size)
    fields = opened[0].fields
    shape = next((shape for shape in read.format.fields if set(shape) <= set(fields)), ())
    known = f"known by {', '.join(shape)}" if shape and format == "auto" else "as it was said to be"
    if read.format.name == "columns" and not shape:
        known = "the columns are named one by one"
    lines = [f"format {read.format.name} ({known})", f"schema: {read.format.schema}"]
    for word, theirs_ in read.described().items():
        lines.append(f"  {word:<12} {in_words(theirs_)}")
    left = [name for name in fields if name not in read.used]
    lines.append(f"not read: {', '.join(left) or 'nothing'}; every column is written as it is")
    lines += [f"note: {note}" for note in read.format.notes]
    lines += [f"left out: {path}" for path in beside]
    return "\n".join(lines)


def _expanded(given: str | Path) -> tuple[list[Path], list[Path]]:
    path = Path(given)
    if not str(given):
        raise error("file_unreadable", path="''", reason="the name is empty")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
    elif path.exists() or not glob.has_magic(str(given)):
        return [path], []
    else:
        files = sorted(file for file in map(Path, glob.glob(str(given), recursive=True)) if not file.is_dir())  # noqa: PTH207
    # What nothing was kept of is empty, and is no reason to refuse the rest.
    beside = [file for file in files if any(map(file.match, BESIDE)) or (file.is_file() and not file.stat().st_size)]
    if len(files) == len(beside):
        what = "a directory without Parquet or JSON-lines files" if path.is_dir() else "matched by no file"
        what = (
            f"there is nothing but {beside[0].name}, which holds no rollouts; name it to have it read"
            if beside
            else what
        )
        raise error("file_unreadable", path=str(given), reason=what)
    return [file for file in files if file not in beside], beside


def open_input(path: Path) -> Input:
    """A file by what it begins with.

    Raises
    ------
    FileError
        `file_unreadable`.
    """
    try:
        if not path.is_file():
            raise error("file_unreadable", path=str(path), reason=_why_not(path))
        with path.open("rb") as file:
            start = file.read(LONGEST)
    except OSError as problem:
        if isinstance(problem, GrpokitError):
            raise
        raise error("file_unreadable", path=str(path), reason=problem.strerror or str(problem)) from None
    reason = why_not(start)
    if not start:
        reason = "it is empty"
    elif path.suffix == ".parquet" and not start.startswith(MAGIC):
        reason = reason or "it is named .parquet, and does not begin as Parquet does"
    if reason is not None:
        raise error("file_unreadable", path=str(path), reason=reason)
    return ParquetInput(path) if start.startswith(MAGIC) else JsonLinesInput(path)


def _why_not(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "it is a link that leads nowhere"
    if not path.exists():
        return "it is not there"
    return "it is a pipe or a device, and it is read twice; give - and send it to standard input"


def _decide(
    opened: list[Any], read: Reading, decider: Decider, order: Order, progress: Callable[[str, int], None]
) -> tuple[Verdicts, bool]:
    try:
        if order != "any" and not decider.needs_all:
            try:
                return decider.contiguous(read.tables(opened, progress)), True
            except NotContiguousError:
                if order == "contiguous":
                    raise error("not_contiguous", path=str(opened[0].path)) from None
        return decider.anywhere(read.tables(opened, progress)), False
    except GrpokitError as problem:
        raise placed(problem, opened) from None
