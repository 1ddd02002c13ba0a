"""A record from what is there: a directory of ours or of TRL's, or rollout files."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpokit.errors import GrpokitError, error

from .metrics import Metrics, read_metrics, read_trainer_state
from .rows import Rows, read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Record:
    """What can be read of a run.

    Parameters
    ----------
    path : Path
        The directory, or the first file.
    metrics : Metrics or None
        By step; None where there are none, as in a rollout dump.
    rows : Rows or None
        Rows of rollouts.
    config : dict or None
        The configuration, as in ``config.toml``.
    summary : dict or None
        How it ended, as in ``summary.json``; None while it goes on.
    problems : list of str
        What could not be read, a sentence each.
    environment : dict or None
        What it began with, as in ``environment.json``: the command, versions, the machine.
    """

    path: Path
    metrics: Metrics | None
    rows: Rows | None
    config: dict[str, Any] | None
    summary: dict[str, Any] | None
    problems: list[str]
    environment: dict[str, Any] | None = None


def read_record(
    inputs: str | Path | Sequence[str | Path],
    *,
    columns: dict[str, Any] | None = None,
    format: str = "auto",  # noqa: A002
    reward: dict[str, float] | None = None,
    group_size: int | None = None,
) -> Record:
    """What can be read of a run, or of rollout files.

    Parameters
    ----------
    inputs : path, or sequence of paths
        A directory that `grpokit train` wrote, or TRL's trainer (with ``trainer_state.json``, or ``checkpoint-*`` that
        have one); or rollout files, patterns or directories of these.
    columns, format, reward, group_size
        How rollout files are read, as in `grpokit.io.filter_files`.

    Raises
    ------
    FileError
        `nothing_to_read`: of what is there nothing can be read.
    InputError
        What the last four ask for is not there.

    Examples
    --------
    >>> read_record("runs/NAME").metrics["reward"]  # doctest: +SKIP
    """
    listed = [Path(inputs)] if isinstance(inputs, str | Path) else list(map(Path, inputs))
    problems: list[str] = []
    how: dict[str, Any] = {"columns": columns, "format": format, "reward": reward, "group_size": group_size}
    place = listed[0] if listed else Path()
    metrics = config = summary = environment = None
    if len(listed) == 1 and place.is_dir():
        metrics = _metrics(place, problems)
        config, summary = _config(place / "config.toml", problems), _object(place / "summary.json", "summary", problems)
        environment = _object(place / "environment.json", "description of an environment", problems)
    known = any(x is not None for x in (metrics, config, summary))
    rows = _rows(listed, problems, how, known=known)
    if rows is None and metrics is None:
        raise error(
            "nothing_to_read", path=place, problems="; ".join(problems) or "it holds no metrics and no rollouts"
        )
    return Record(place, metrics, rows, config, summary, problems, environment)


def _metrics(place: Path, problems: list[str]) -> Metrics | None:
    states = [*place.glob("checkpoint-*/trainer_state.json"), *place.glob("trainer_state.json")]
    try:
        if (place / "metrics.jsonl").is_file():
            return read_metrics(place / "metrics.jsonl", problems)
        if states:
            newest = max(states, key=lambda path: path.stat().st_mtime_ns)
            # Files that were copied, or fetched, are of the time at which that was done.
            furthest = max(states, key=lambda path: (_steps_of(path), path == newest))
            if furthest != newest:
                problems.append(f"{newest} is newer than {furthest}, which was read: it has more steps")
            return read_trainer_state(furthest, problems)
    except OSError as problem:
        problems.append(f"{problem.filename}: {problem.strerror}")
    return None


def _steps_of(path: Path) -> int:
    """How many steps a state of a trainer is of; -1 where it does not say."""
    try:
        steps = json.loads(path.read_bytes())["log_history"][-1]["step"]
        return steps if isinstance(steps, int) else -1
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return -1


def _config(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError) as problem:
        problems.append(f"{path}: it is no configuration ({problem})")
        return None


def _object(path: Path, what: str, problems: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as problem:
        problems.append(f"{path}: it is no {what} ({problem})")
        return None
    if found is not None and not isinstance(found, dict):
        problems.append(f"{path}: it is no {what} (an object was expected)")
        return None
    return found


def _rows(listed: list[Path], problems: list[str], how: dict[str, Any], *, known: bool) -> Rows | None:
    """Of a run's directory what it has of rows; else of the files that are named."""
    if find_spec("pyarrow") is None:
        problems.append("rows were not read: they need pyarrow, pip install 'grpokit[io]'")
        return None
    from grpokit.io.files import expand

    if known:
        parts = sorted((listed[0] / "completions").glob("*.parquet"))
        parts = [path for path in parts if not path.name.startswith(".")] or [
            path for path in (listed[0] / "rollouts.jsonl",) if path.is_file() and path.stat().st_size
        ]
    else:
        try:
            parts = expand(listed)[0]
        except GrpokitError as problem:
            problems.append(str(problem))
            return None
    try:
        return read_rows(parts, problems, **how) if parts else None
    except GrpokitError as problem:
        if not known or any(how[name] for name in ("columns", "reward", "group_size")):
            raise
        problems.append(f"rows were not read: {problem}")
        return None
