"""Where metrics go beside ``metrics.jsonl``: TensorBoard, trackio and wandb, each an extra that is imported when used.

A tracker must never cost a run: one that fails is named once and gets no more, and the run goes on.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .config import TrainConfig


class Sink(Protocol):
    """A tracker that is open."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """A step's numbers, none of them NaN or infinite."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


@runtime_checkable
class Alerted(Protocol):
    """A tracker that shows what is wrong with a run."""

    def alert(self, title: str, text: str, severity: str) -> None:
        """Something that is wrong, "error" or "warning"."""
        ...


class Sinks:
    """The trackers of a run: a context manager that closes them.

    Parameters
    ----------
    names : sequence of str
        Of `SINKS`.
    note : callable
        Where it is said that one failed.

    Raises
    ------
    InputError
        `missing_extra`.
    """

    def __init__(self, names: tuple[str, ...], note: Callable[[str], None]) -> None:
        for name in names:
            if find_spec(name) is None:
                raise error("missing_extra", what=f"logging.sinks={name!r}", package=name, extra=name)
        self.names, self.note = dict.fromkeys(names), note
        self.opened: dict[str, Sink] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name, sink in list(self.opened.items()):
            self._try(name, sink.close)
        self.opened = {}

    def open(self, directory: Path, config: TrainConfig, step: int) -> None:
        """Begins a run there, or goes on with it.

        Parameters
        ----------
        directory : Path
            The run's; its name is the run's.
        config : TrainConfig
            What is shown as the run's configuration.
        step : int
            The last step that a run which goes on has passed on before, -1 for a new one. A tracker that can forgets
            what it was given of later ones.
        """
        for name in self.names:

            def begin(name: str = name) -> None:
                self.opened[name] = SINKS[name](directory, config, step)

            self._try(name, begin)

    def metrics(self, row: Mapping[str, float]) -> None:
        """Passes a step's numbers on; what is NaN or infinite is left out."""
        numbers = {name: float(value) for name, value in row.items() if name != "step" and math.isfinite(value)}
        for name, sink in list(self.opened.items()):

            def log(sink: Sink = sink) -> None:
                sink.log(numbers, int(row["step"]))

            self._try(name, log)

    def alert(self, title: str, text: str, severity: str) -> None:
        """Passes on what is wrong, to those that can show it."""
        for name, sink in list(self.opened.items()):
            if isinstance(sink, Alerted):
                self._try(name, partial(sink.alert, title, text, severity))

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            # What it prints is talk, and standard output is for results.
            with contextlib.redirect_stdout(sys.stderr):
                action()
        except Exception as problem:  # noqa: BLE001 - whatever a tracker raises
            self.opened.pop(name, None)
            self.note(f"the sink {name!r} failed and gets no more, the run goes on: {problem!r}")


class _TensorBoard:
    """Event files in ``tensorboard/`` of the run."""

    def __init__(self, directory: Path, config: TrainConfig, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(directory / "tensorboard", purge_step=step + 1)

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Trackio:
    """A run of trackio, where its own settings say: by default its folder in the user's cache."""

    def __init__(self, directory: Path, config: TrainConfig, step: int) -> None:
        import trackio

        self.trackio = trackio
        self.run = trackio.init(
            project=config.logging.project,
            name=directory.name,
            config=config.to_dict(),
            resume="never" if step < 0 else "allow",
            embed=False,
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def alert(self, title: str, text: str, severity: str) -> None:
        levels = self.trackio.AlertLevel
        self.trackio.alert(title, text, level=levels.ERROR if severity == "error" else levels.WARN)

    def close(self) -> None:
        # Not the run's own: what ends with the process would end it again, and print.
        self.trackio.finish()


class _Wandb:
    """A run of wandb in ``wandb/`` of the run; offline, unless WANDB_MODE says otherwise."""

    def __init__(self, directory: Path, config: TrainConfig, step: int) -> None:
        import wandb

        # wandb's folders end with the run's id.
        former = [path.name.rpartition("-")[2] for path in sorted((directory / "wandb").glob("*run-*-*"))]
        self.run = wandb.init(
            project=config.logging.project,
            name=directory.name,
            id=former[-1] if step >= 0 and former else None,
            resume=None if step < 0 else "allow",
            dir=directory,
            config=config.to_dict(),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


SINKS: dict[str, Callable[[Path, TrainConfig, int], Sink]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}
