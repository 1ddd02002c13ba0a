"""Settings as they are typed: ``key=value``, the value as TOML writes it."""

from __future__ import annotations

import tomllib
from typing import Any

from .errors import error


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
