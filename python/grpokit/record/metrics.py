"""A run's numbers by step: from metrics.jsonl, or from the log of TRL's trainer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Metrics:
    """Numbers by step.

    Parameters
    ----------
    steps_N : (N,) int64
        The steps, ascending.
    columns : dict of str to (N,) float64
        By TRL's names where TRL has one; NaN where a step has none.
    of_rows : bool
        Whether they are those of rows: then a step 0 is a step like the others, and no evaluation.

    Examples
    --------
    >>> metrics = Metrics.of([{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75, "kl": 0.1}])
    >>> metrics["kl"]
    array([nan, 0.1])
    >>> "entropy" in metrics, metrics["entropy"]
    (False, array([nan, nan]))
    """

    steps_N: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]] = field(repr=False)
    of_rows: bool = False

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]]) -> Metrics:
        """From an object a step, each with a whole number ``step``; of a step that is there twice, the later one."""
        last = {int(row["step"]): row for row in rows}
        ordered = [last[step] for step in sorted(last)]
        found: dict[str, NDArray[np.float64]] = {}
        for at, row in enumerate(ordered):
            for name, value in row.items():
                if name == "step" or isinstance(value, str) or not isinstance(value, int | float):
                    continue
                if name not in found:
                    found[name] = np.full(len(ordered), np.nan)
                found[name][at] = value
        return cls(np.array(sorted(last), np.int64), found)

    def __len__(self) -> int:
        return len(self.steps_N)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """(N,) float64; all NaN where there is no such metric."""
        return self.columns[name] if name in self.columns else np.full(len(self), np.nan)

    def there(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The steps that have the metric, and its values."""
        values = self[name]
        known = np.isfinite(values)
        return self.steps_N[known], values[known]

    def trained(self) -> Metrics:
        """Without step 0, which is the evaluation before the first one."""
        if self.of_rows:
            return self
        at = self.steps_N > 0
        return Metrics(self.steps_N[at], {name: values[at] for name, values in self.columns.items()})


def read_metrics(path: Path, problems: list[str]) -> Metrics | None:
    """The metrics of a file of JSON lines; what is no object with a step is left out and said."""
    rows, bad, first = [], 0, 0
    data = path.read_bytes()
    lines = data.split(b"\n")
    cut = bool(lines[-1].strip())
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _object(line)
        if row is not None:
            rows.append(row)
        elif cut and number == len(lines):
            problems.append(f"{path}: the last line is cut off, as where a run is still written or was killed")
        else:
            bad, first = bad + 1, first or number
    if bad:
        problems.append(
            f"{path}: lines that are no objects with a step were left out: {bad}, the first is line {first}"
        )
    if not rows:
        problems.append(f"{path}: no line can be read")
        return None
    steps = [int(row["step"]) for row in rows]
    if len(set(steps)) < len(steps):
        problems.append(f"{path}: {len(steps) - len(set(steps))} steps are there twice; the later line counts")
    if any(later < earlier for earlier, later in pairwise(steps)):
        problems.append(f"{path}: steps go backwards; they were put in order")
    versions = {row["schema_version"] for row in rows if "schema_version" in row}
    if len(versions) > 1 or versions - {1}:
        told = ", ".join(sorted(map(str, versions)))
        problems.append(f"{path}: lines of schema version {told}; names may mean something else than here")
    return Metrics.of(rows)


def read_trainer_state(path: Path, problems: list[str]) -> Metrics | None:
    """The metrics of `trainer_state.json`, which transformers' trainers write with TRL's names in it."""
    try:
        rows = json.loads(path.read_bytes())["log_history"]
        rows = [row for row in rows if isinstance(row, dict) and _is_step(row.get("step"))]
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        problems.append(f"{path}: it is no state of a trainer ({type(problem).__name__}: {problem})")
        return None
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        # What is logged of evaluations is a line of its own.
        merged.setdefault(int(row["step"]), {}).update(row)
    return Metrics.of(merged.values()) if merged else None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _is_step(row.get("step")) else None


def _is_step(step: Any) -> bool:
    return isinstance(step, int | float) and not isinstance(step, bool) and step == step // 1 and 0 <= step < 2**53
