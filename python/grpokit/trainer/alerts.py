"""The doctor beside a run: what it finds in the metrics is said once, written to ``alerts.jsonl`` and passed on.

In: a step's metrics, which are in ``metrics.jsonl`` already. So a run that is resumed looks at what the killed one saw,
and knows what it has told.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from grpokit.doctor import Watch
from grpokit.doctor.watch import STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .config import TrainConfig
    from .console import Console
    from .run import RunDirectory
    from .sinks import Sinks


class Alerts:
    """Looks every ``logging.doctor`` steps.

    Parameters
    ----------
    config : TrainConfig
        The run's.
    run : RunDirectory
        Whose files are read at the first step, and added to.
    console : Console
        Where it is said.
    sinks : Sinks
        Trackers.
    first : bool
        Whether this is the rank that writes; on others the files may be half written.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory, console: Console, sinks: Sinks, *, first: bool) -> None:
        self.config, self.run, self.console, self.sinks = config, run, console, sinks
        self.every = config.logging.doctor if first else 0
        self.watch: Watch | None = None

    def see(self, metrics: Mapping[str, float]) -> None:
        """A step's metrics, after they were written."""
        step = int(metrics["step"])
        if not self.every:
            return
        if self.watch is None:
            told = (row["code"] for row in _lines(self.run.path / "alerts.jsonl"))
            self.watch = Watch(self.config.to_dict(), _lines(self.run.path / "metrics.jsonl")[-STEPS:], told)
        else:
            self.watch.add(metrics)
        if step % self.every or not step:
            return
        found = self.watch.new()
        if not found:
            return
        self.run.alerts([{"step": step} | finding.to_dict() for finding in found])
        for finding in found:
            title = f"{finding.code} {finding.title}"
            self.console.alert(f"step {step:>4}  {title}. {finding.message} Fix: {finding.fix}", finding.severity)
            self.sinks.alert(title, f"{finding.message} {finding.fix}", finding.severity)


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]
