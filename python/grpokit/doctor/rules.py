"""All rules, by code, and what they find together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpokit.record import Record

    from .finding import Finding

RULES: dict[str, Any] = {}


def diagnose(record: Record) -> list[Finding]:
    """What is wrong with a run, the worst first.

    Parameters
    ----------
    record : Record
        What can be read of it.
    """
    return [finding for rule in RULES.values() for finding in rule(record)]
