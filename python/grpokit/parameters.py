"""Checks of stages' parameters and functions' arguments: a number within bounds, one of some words."""

from __future__ import annotations

import math
import operator
from typing import Any

from .errors import error

SMALLEST, LARGEST = 1e-9, 1e9  # of a parameter's size: beyond them its products leave float32


def check_number(
    stage: Any,
    name: str,
    *,
    at_least: float | None = None,
    more_than: float | None = None,
    less_than: float | None = None,
    at_most: float = LARGEST,
    optional: bool = False,
) -> None:
    """Refuses a parameter that is no number within the bounds and of an ordinary size, or None where it is `optional`.

    Raises
    ------
    InputError
        `bad_parameter`, with the stage, the parameter and what was expected.
    """
    value = _plain(stage, name)
    if optional and value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    sized = number and abs(value) <= at_most and (more_than is None or value <= 0 or value >= SMALLEST)
    fine = sized and (at_least is None or value >= at_least) and (more_than is None or value > more_than)
    if not fine or (less_than is not None and value >= less_than):
        words = (("at least", at_least), ("more than", more_than), ("less than", less_than))
        kind = f"a number between {SMALLEST:g} and {at_most:g} in size" if number and not sized else "a finite number"
        expected = ", ".join([kind, *(f"{word} {bound:g}" for word, bound in words if bound is not None)])
        expected += ", or None for no bound" * optional
        raise error("bad_parameter", owner=type(stage).__name__, name=name, given=value, expected=expected)


def check_choice(stage: Any, name: str, choices: tuple[str, ...]) -> None:
    """Refuses a parameter that is not one of the words.

    Raises
    ------
    InputError
        `bad_parameter`, with the stage, the parameter and the words.
    """
    value = getattr(stage, name)
    if value not in choices:
        expected = "one of " + ", ".join(map(repr, choices))
        raise error("bad_parameter", owner=type(stage).__name__, name=name, given=value, expected=expected)


def check_flag(stage: Any, name: str) -> None:
    """Refuses a parameter that is neither True nor False.

    Raises
    ------
    InputError
        `bad_parameter`, with the stage and the parameter.
    """
    value = _plain(stage, name)
    if not isinstance(value, bool):
        raise error("bad_parameter", owner=type(stage).__name__, name=name, given=value, expected="True or False")


def check_count(stage: Any, name: str, *, at_least: int = 0) -> None:
    """Refuses a parameter that is not a whole number, 0 (or `at_least`) or more.

    Raises
    ------
    InputError
        `bad_parameter`, with the stage and the parameter.
    """
    value = _plain(stage, name)
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value < 2**53:
        expected = f"a whole number, {at_least} or more, less than 2^53"
        raise error("bad_parameter", owner=type(stage).__name__, name=name, given=value, expected=expected)


def whole(owner: str, name: str, given: Any, *, at_least: int, at_most: int) -> int:
    """A function's argument that is a whole number within the bounds, NumPy's among them.

    Raises
    ------
    InputError
        `bad_parameter`, with the function, the argument and the bounds.
    """
    try:
        number = at_least - 1 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        number = at_least - 1
    if not at_least <= number <= at_most:
        expected = f"a whole number from {at_least:,} to {at_most:,}"
        raise error("bad_parameter", owner=owner, name=name, given=given, expected=expected)
    return number


def _plain(stage: Any, name: str) -> Any:
    """The parameter; a NumPy number is put in as Python's, which goes to JSON."""
    value = getattr(stage, name)
    if hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0:
        value = value.item()
        object.__setattr__(stage, name, value)
    return value
