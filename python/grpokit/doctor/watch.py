"""The rules of a run that goes on: those for which metrics and configuration are enough, over the last steps."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.record import Metrics, Record

from .rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .finding import Finding

STEPS = 200


class Watch:
    """Tells each fault once.

    Parameters
    ----------
    config : mapping
        The run's, as in ``config.toml``.
    rows : iterable of mappings
        The metrics of the steps so far, where there are some.
    told : iterable of str
        Codes that were told before.
    steps : int
        How many of the last steps are looked at.

    Examples
    --------
    >>> watch = Watch({"recipe": "grpo"})
    >>> for step in range(1, 11):
    ...     watch.add({"step": step, "learning_rate": 0.0})
    >>> [finding.code for finding in watch.new()], watch.new()
    (['D019'], [])
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        rows: Iterable[Mapping[str, Any]] = (),
        told: Iterable[str] = (),
        *,
        steps: int = STEPS,
    ) -> None:
        self.config, self.told = dict(config), set(told)
        self.steps: deque[int] = deque(maxlen=steps)
        self.columns: dict[str, deque[float]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """A step's metrics, later than the former ones; what is no finite number is as if it were not there."""
        before = len(self.steps) - (len(self.steps) == self.steps.maxlen)
        self.steps.append(int(row["step"]))
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        for name in numbers.keys() - self.columns.keys():
            self.columns[name] = deque([math.nan] * before, self.steps.maxlen)
        for name, values in self.columns.items():
            values.append(numbers.get(name, math.nan))

    def metrics(self) -> Metrics:
        """Those of the last steps."""
        columns = {name: np.array(values) for name, values in self.columns.items() if name != "step"}
        return Metrics(np.array(self.steps, np.int64), columns)

    def new(self) -> list[Finding]:
        """What is found now and was not told before, a finding a code, above `info` alone."""
        record = Record(Path(), self.metrics(), None, self.config, None, [])
        found: dict[str, Finding] = {}
        for rule in RULES.values():
            if rule.online and rule.code not in self.told:
                for finding in rule(record):
                    if finding.severity != "info":
                        found.setdefault(finding.code, finding)
        self.told |= found.keys()
        return list(found.values())
