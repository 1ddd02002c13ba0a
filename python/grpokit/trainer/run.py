"""What a run leaves behind: its directory, whose files appear whole, and the summary.

config.toml      everything resolved; reproduces the run
environment.json what it began with: the command, versions, the machine
metrics.jsonl    one object a step, step 0 is the evaluation after the warm start
rollouts.jsonl   some groups of each step, under grpokit's column names
alerts.jsonl     what the doctor found while the run went on, where it found something
completions/     all rows of a step as Parquet, under the same names, where pyarrow is installed
checkpoint/      model and tokenizer as `transformers` saves them; controllers.json where a coefficient is steered
weights/         while the run goes on and a server samples: the weights that it is to load
snapshots/       what the run goes on from, where it was stopped; reference.safetensors: the reference policy
summary.json     how it ended
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpokit.errors import error

from .completions import write_rows
from .environment import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .config import TrainConfig
    from .evaluate import Passed
    from .policy import Policy

SCHEMA_VERSION = 1
GROWING = ("metrics.jsonl", "rollouts.jsonl", "alerts.jsonl")


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Parameters
    ----------
    status : {"finished", "interrupted", "failed"}
        Whether it came to its end.
    directory : str
        Where its files are.
    recipe : str
        The recipe's name.
    seed : int
        The seed.
    steps : int
        Steps that were done.
    before, after : Passed or None
        The evaluation after the warm start, and the last one of reinforcement learning; None where it did not come
        to that.
    completions : int
        Completions sampled in training.
    used : int
        Those that the recipe kept and the loss saw.
    ledger : dict or None
        Steps that were admitted to sampling ahead, consumed, or aborted with their process; None where nothing was
        sampled ahead.
    warm_start_seconds, total_seconds : float
        Wall time, evaluations included in the total.
    """

    status: str
    directory: str
    recipe: str
    seed: int
    steps: int
    before: Passed | None
    after: Passed | None
    completions: int
    used: int
    ledger: dict[str, int] | None
    warm_start_seconds: float
    total_seconds: float

    @property
    def lift(self) -> float | None:
        """What reinforcement learning added to held-out pass@1."""
        return self.after.pass_1 - self.before.pass_1 if self.before and self.after else None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("before", "after"):
            told[name] = told[name].to_dict() if told[name] else None
        return {"schema_version": SCHEMA_VERSION, **told, "lift": self.lift}


def default_name(config: TrainConfig) -> str:
    """Date, time, recipe and seed."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{config.recipe}-seed{config.seed}"


class RunDirectory:
    """A run's files.

    Parameters
    ----------
    path : path
        Made by `create`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def check(self, *, overwrite: bool) -> None:
        """Refuses a place that is taken.

        Raises
        ------
        FileError
            Something is there, and it is not a run's directory or `overwrite` is not said.
        """
        if self.path.is_symlink() or self.path.exists():
            if not overwrite:
                raise error("file_exists", path=self.path)
            if self.path.is_symlink() or not (self.path / "config.toml").is_file():
                raise error("not_a_run", path=self.path)

    def create(self, config: TrainConfig, *, overwrite: bool) -> None:
        """Makes the directory with the configuration in it; the former run is gone then."""
        self.check(overwrite=overwrite)
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        self.configure(config)
        text = json.dumps(environment(), indent=2) + "\n"
        self.write(self.path / "environment.json", lambda to: to.write_text(text, encoding="utf-8"))

    def configure(self, config: TrainConfig) -> None:
        """Writes the configuration."""
        _whole(self.path / "config.toml", lambda to: to.write_text(config.to_toml(), encoding="utf-8"))

    def configuration(self) -> TrainConfig:
        """What the run was configured with.

        Raises
        ------
        FileError
            `no_run`, `file_unreadable`.
        """
        from .config import TrainConfig

        if not (self.path / "config.toml").is_file():
            raise error("no_run", path=self.path)
        return TrainConfig.from_file(self.path / "config.toml")

    @property
    def reference(self) -> Path:
        """Where the reference policy's weights are, which never change."""
        return self.path / "reference.safetensors"

    def last_snapshot(self) -> Path | None:
        """The last snapshot of a run that is there, or None where it has none.

        Raises
        ------
        FileError
            `not_a_run`.
        """
        if not (self.path / "config.toml").is_file():
            raise error("not_a_run", path=self.path)
        return max(self.snapshots().glob("step-*"), default=None)

    def steps(self) -> int:
        """How many steps are behind the checkpoint.

        Raises
        ------
        FileError
            `file_unreadable`.
        """
        path = self.path / "summary.json"
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["steps"])
        except OSError as problem:
            raise error("file_unreadable", path=path, reason=problem.strerror or problem) from None
        except (ValueError, KeyError, TypeError) as problem:
            raise error("file_unreadable", path=path, reason=f"it is no summary of a run ({problem!r})") from None

    def finished_steps(self) -> int:
        """How many steps the run had when it last came to its end; -1 if it never did."""
        path = self.path / "summary.json"
        told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return int(told["steps"]) if told.get("status") == "finished" else -1

    def snapshot(self, step: int, write: Callable[[Path], object], *, keep_last: int) -> None:
        """Adds the snapshot of a step, and removes the oldest ones."""
        place = self.snapshots()
        place.mkdir(exist_ok=True)
        self.write(place / f"step-{step:08}", write)
        for old in sorted(place.glob("step-*"))[:-keep_last]:
            _remove(old)

    def write(self, path: Path, write: Callable[[Path], object]) -> None:
        """A file or directory that is there whole or not at all.

        Raises
        ------
        FileError
            `file_unwritable`.
        """
        try:
            _whole(path, write)
        except OSError as problem:
            raise error("file_unwritable", path=path, reason=problem.strerror or problem) from problem

    def sizes(self) -> dict[str, int]:
        """How long the files are that grow with the steps."""
        return {name: (self.path / name).stat().st_size for name in GROWING if (self.path / name).exists()}

    def cut(self, sizes: Mapping[str, int], step: int = 0) -> None:
        """Takes away what was added to them since they had these sizes, and the completions of later steps."""
        for name in GROWING:
            if name not in sizes:
                (self.path / name).unlink(missing_ok=True)
            elif (self.path / name).exists():
                os.truncate(self.path / name, sizes[name])
        for path in (self.path / "completions").glob("*.parquet"):
            # What was begun has a name of its own.
            if path.name > self._completions(step).name or path.name.startswith("."):
                path.unlink()

    def snapshots(self) -> Path:
        """Where the snapshots are."""
        return self.path / "snapshots"

    def metrics(self, row: Mapping[str, float]) -> None:
        """Adds a step's numbers; what is NaN or infinite is null."""
        self._append("metrics.jsonl", [{k: v if math.isfinite(v) else None for k, v in row.items()}])

    def alerts(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds findings of the doctor's."""
        self._append("alerts.jsonl", rows)

    def rollouts(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows of rollouts."""
        self._append("rollouts.jsonl", rows)

    def completions(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes all rows of a step.

        Raises
        ------
        FileError
            `file_unwritable`.
        """
        path = self._completions(step)
        path.parent.mkdir(exist_ok=True)
        self.write(path, lambda to: write_rows(to, rows, parquet=True))

    def _completions(self, step: int) -> Path:
        return self.path / "completions" / f"step-{step:08}.parquet"

    def checkpoint(self, policy: Policy, controllers: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Writes the current weights, the tokenizer and the controllers' states, in place of the former ones."""

        def write(directory: Path) -> None:
            policy.save(directory)
            if controllers:
                text = json.dumps(controllers, indent=2) + "\n"
                (directory / "controllers.json").write_text(text, encoding="utf-8")

        _whole(self.path / "checkpoint", write)

    def summary(self, summary: Summary) -> None:
        """Writes how the run ended."""
        text = json.dumps(summary.to_dict(), indent=2) + "\n"
        _whole(self.path / "summary.json", lambda to: to.write_text(text, encoding="utf-8"))

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        # Opened for each step and written at once, so that no line is lost or cut where the run stops.
        text = "".join(json.dumps(row, allow_nan=False, default=str) + "\n" for row in rows)
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(text)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing inside: for the last files of a run, which take less than a second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """A file or directory that is there whole or not at all: written beside its place, then renamed."""
    new, old = path.with_name(f".new-{path.name}"), path.with_name(f".old-{path.name}")
    for left in (new, old):
        _remove(left)
    try:
        write(new)
        if path.is_dir():
            path.rename(old)
        new.replace(path)
    finally:
        _remove(new)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
