"""Checks for code that others write.

`conform` holds a loss, an advantage, a filter, a KL estimator or an aggregation of anyone's against a recipe, law by
law; on the command line it is `grpokit conform module:attr --recipe gspo`, in pytest
`pytest --pyargs grpokit.testing.conformance --impl module:attr --recipe gspo`. `strategies` has what it draws from.
`laws` has what holds for every `grpokit.Objective` whatever its formula: `laws.check(MyObjective())`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .report import Report
    from .session import Session, conform

__all__ = ["Report", "Session", "conform"]


def __getattr__(name: str) -> Any:
    # hypothesis, and whatever the function under test is written with, are imported where they are used.
    if name in __all__:
        from . import session

        return getattr(session, name)
    raise AttributeError(name)
