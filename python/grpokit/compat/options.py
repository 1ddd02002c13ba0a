"""What the recipes of other libraries share: options are checked together, and none is silently without effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpokit.errors import error, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping


def choose(owner: str, name: str, given: Any, choices: tuple[Any, ...], *, not_covered: str = "") -> None:
    """Refuses an option's value that is not one of the choices, naming the nearest.

    Raises
    ------
    InputError
        `bad_parameter`.
    """
    if not any(given is choice or (type(given) is type(choice) and given == choice) for choice in choices):
        words = ", ".join(map(repr, choices))
        near = nearest(given, [c for c in choices if isinstance(c, str)]) if isinstance(given, str) else ""
        expected = f"one of {words}{not_covered}" + (near and f" ({near.strip()})")
        raise error("bad_parameter", owner=owner, name=name, given=given, expected=expected)


def refuse_unread(
    owner: str, given: Mapping[str, Any], defaults: Mapping[str, Any], read: set[str], decides: Mapping[str, str]
) -> None:
    """Refuses an option that is given and that the library does not read in this setting.

    Parameters
    ----------
    owner : str
        For the message.
    given, defaults : dict
        The options, and what they are where they are not given.
    read : set of str
        Those that are read.
    decides : dict of str
        By an option, the one that decides whether it is read.

    Raises
    ------
    InputError
        `bad_parameter`.
    """
    for name, default in defaults.items():
        if name not in read and given[name] != default:
            setting = decides[name]
            expected = f"{default!r}: with {setting}={given[setting]!r} it has no effect"
            raise error("bad_parameter", owner=owner, name=name, given=given[name], expected=expected)


def positive(
    owner: str, name: str, given: Any, *, least: float = 0.0, inclusive: bool = True, optional: bool = False
) -> None:
    """Refuses an option that is no finite number of `least` or more (or more than it).

    Raises
    ------
    InputError
        `bad_parameter`.
    """
    if optional and given is None:
        return
    number = isinstance(given, int | float) and not isinstance(given, bool) and abs(given) <= 1e9
    if not number or given < least or (given == least and not inclusive):
        expected = f"a finite number, {'at least' if inclusive else 'more than'} {least:g}" + ", or None" * optional
        raise error("bad_parameter", owner=owner, name=name, given=given, expected=expected)
