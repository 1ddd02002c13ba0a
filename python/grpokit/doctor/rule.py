"""A rule: a function that looks at a record, with all that is to be said of what it finds.

In: a `grpokit.record.Record`. Out: findings; none where what the rule reads is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .finding import Finding, Severity

if TYPE_CHECKING:
    from grpokit.record import Record

Bounds = Mapping[str, float]


class Seen(NamedTuple):
    """What a rule saw in a run.

    Parameters
    ----------
    message : str
        A sentence with numbers.
    evidence : mapping of str to float, int or str
        The numbers; the rule's bounds are added.
    steps : (int, int) or None
        The first and the last step that show it.
    severity : str or None
        Where it is another than the rule's.
    """

    message: str
    evidence: Mapping[str, Any]
    steps: tuple[int, int] | None = None
    severity: Severity | None = None


@dataclass(frozen=True)
class Rule:
    """One fault that is known, and how it is seen.

    Parameters
    ----------
    code, name, title, severity, cause, fix, source
        As in `Finding`.
    reads : str
        The data without which the rule says nothing, in words.
    bounds : dict of str to (float, str)
        The thresholds, each with the reason for it.
    look : callable
        ``look(record, bounds)`` gives what was seen.
    online : bool
        Whether metrics and configuration are enough, so that it can look while the run goes on.
    """

    code: str
    name: str
    title: str
    severity: Severity
    cause: str
    fix: str
    source: str
    reads: str
    bounds: dict[str, tuple[float, str]]
    look: Callable[[Record, Bounds], Iterable[Seen]] = field(repr=False)
    online: bool

    def __call__(self, record: Record) -> list[Finding]:
        """What it finds in a record."""
        bounds = self.thresholds()
        return [self._finding(seen, bounds) for seen in self.look(record, bounds)]

    def thresholds(self) -> dict[str, float]:
        """The bounds without their reasons."""
        return {name: bound for name, (bound, _) in self.bounds.items()}

    def _finding(self, seen: Seen, bounds: Bounds) -> Finding:
        numbers = {**seen.evidence} | {f"bound: {name}": bound for name, bound in bounds.items()}
        return Finding(
            code=self.code,
            name=self.name,
            title=self.title,
            severity=seen.severity or self.severity,
            message=seen.message,
            evidence={name: _plain(value) for name, value in numbers.items()},
            steps=None if seen.steps is None else (int(seen.steps[0]), int(seen.steps[1])),
            cause=self.cause,
            fix=self.fix,
            source=self.source,
        )

    def to_dict(self) -> dict[str, Any]:
        """All but the function, ready for JSON."""
        names = ("code", "name", "title", "severity", "cause", "fix", "source", "reads", "online")
        bounds = {name: {"value": bound, "reason": reason} for name, (bound, reason) in self.bounds.items()}
        return {name: getattr(self, name) for name in names} | {"bounds": bounds}

    def explain(self) -> str:
        """The rule in words."""
        lines = [f"{self.code} {self.name} ({self.severity}): {self.title}", ""]
        lines += [f"Reads: {self.reads}.", f"Cause: {self.cause}", f"Fix: {self.fix}", f"Source: {self.source}"]
        lines += [f"Bound: {name} {bound:g}, {reason}." for name, (bound, reason) in self.bounds.items()]
        return "\n".join(lines)


def rule(
    code: str,
    name: str,
    title: str,
    *,
    severity: Severity,
    cause: str,
    fix: str,
    source: str,
    reads: str,
    bounds: dict[str, tuple[float, str]],
    online: bool = False,
) -> Callable[[Callable[[Record, Bounds], Iterable[Seen]]], Rule]:
    """Makes a rule of a function; see `Rule`."""

    def made(look: Callable[[Record, Bounds], Iterable[Seen]]) -> Rule:
        return Rule(code, name, title, severity, cause, fix, source, reads, bounds, look, online)

    return made


def _plain(value: Any) -> float | int | str:
    """A number of Python's, which JSON takes."""
    if isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)
