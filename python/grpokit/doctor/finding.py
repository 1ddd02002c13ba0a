"""What a rule found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    Parameters
    ----------
    code : str
        ``D001`` and so on; never used for anything else again.
    name : str
        In words, with hyphens: ``dead-scorer``.
    title : str
        What is wrong, in general.
    severity : {"error", "warning", "info"}
        error: the run cannot learn, or its numbers are not what they are called; warning: it learns badly, or will;
        info: worth knowing.
    message : str
        What was seen in this run, a sentence with numbers.
    evidence : dict of str to float, int or str
        The numbers that the rule looked at, its thresholds among them.
    steps : (int, int) or None
        The first and the last step that show it; None where rows have no steps.
    cause : str
        Why this happens.
    fix : str
        What to change: a recipe, an option, a command.
    source : str
        Where this is known from.
    """

    code: str
    name: str
    title: str
    severity: Severity
    message: str
    evidence: dict[str, float | int | str]
    steps: tuple[int, int] | None
    cause: str
    fix: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dataclasses.asdict(self)
