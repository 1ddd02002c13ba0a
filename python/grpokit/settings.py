"""Settings as they are typed: ``key=value``, the value as TOML writes it."""

from __future__ import annotations

import ast
import tomllib
from typing import Any

from .errors import GrpokitError, error


def read_setting(text: str) -> tuple[str, Any]:
    """The key and the value of ``key=value``; the value as TOML writes it, or else a text without its quotes.

    Raises
    ------
    InputError
        There is no ``=`` in it.

    Examples
    --------
    >>> read_setting("recipe.low=0.2"), read_setting("recipe=dapo")
    (('recipe.low', 0.2), ('recipe', 'dapo'))
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise error("bad_parameter", owner="--set", name="setting", given=text, expected="key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def read_stage(kind: str, text: str) -> Any:
    """A stage as Python writes it: ``HasSignal()``, ``PassRate(0.2, 0.8)``; arguments are literals.

    Raises
    ------
    InputError
        It is no such call, or its arguments cannot be meant.

    Examples
    --------
    >>> read_stage("select", "PassRate(0.2, high=0.8)")
    PassRate(low=0.2, high=0.8)
    """
    from .stages import lookup

    try:
        call: Any = ast.parse(text.strip() if "(" in text else f"{text.strip()}()", mode="eval").body
        name = call.func.id
        values = [ast.literal_eval(value) for value in call.args]
        named = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
        expected = "a stage with its arguments, such as PassRate(0.2, 0.8)"
        raise error("bad_parameter", owner=kind, name="stage", given=text, expected=expected) from None
    stage = lookup(kind, name)
    try:
        return stage(*values, **named)
    except TypeError as problem:
        if isinstance(problem, GrpokitError):
            raise
        raise error(
            "bad_parameter", owner=kind, name=name, given=text, expected=f"other arguments ({problem})"
        ) from None
