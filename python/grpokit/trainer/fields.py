"""The fields of a configuration: their bounds, and the check of every value against its annotation."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import field
from typing import Any

from grpokit.errors import error

_SAID = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a table"}


def at_least(low: float, default: Any) -> Any:
    """A number that is `low` or more."""
    return field(default=default, metadata={"low": low})


def above(low: float, default: Any) -> Any:
    """A number that is more than `low`."""
    return field(default=default, metadata={"above": low})


def check(config: Any) -> None:
    """Refuses a value of another type or out of range; a list becomes a tuple, a whole number a float where one is due.

    Raises
    ------
    InputError
        `bad_parameter`.
    """
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, hint = getattr(config, f.name), hints[f.name]
        cls = typing.get_origin(hint) or hint
        low, high = f.metadata.get("low"), f.metadata.get("above")
        bound = f", {low} or more" if low is not None else f" above {high}" if high is not None else ""
        if cls is tuple:
            each = typing.get_args(hint)[0]
            fine = isinstance(value, (list, tuple)) and all(_is(one, each) for one in value)
            expected = f"a list, each {_SAID[each]}"
            value = tuple(map(each, value)) if fine else value
        else:
            fine = _is(value, cls)
            expected = _SAID.get(cls, f"a table, {cls.__name__}") + bound
            if fine and bound:
                fine = math.isfinite(value) and (value >= low if low is not None else value > high)
            value = float(value) if fine and cls is float else value
        if not fine:
            raise error("bad_parameter", owner=type(config).__name__, name=f.name, given=value, expected=expected)
        object.__setattr__(config, f.name, value)


def _is(value: Any, cls: type) -> bool:
    return isinstance(value, (int, float) if cls is float else cls) and (cls is bool or not isinstance(value, bool))
