"""Reward functions: how they are found by name, and how they are called and what they may return, in any process."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import pickle
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from grpokit.errors import GrpokitError, error, nearest

Reward = Callable[..., Any]
"""A reward function as TRL calls it: ``f(prompts, completions, **columns)``, one number or None a completion."""

NAMED = {"math_verify": "grpokit.trainer.verify:math_verify"}
"""What makes the functions that have a name of their own."""


@dataclass(frozen=True)
class Failure:
    """A call that gave no rewards: an exception, a time-out, or the end of the process.

    Parameters
    ----------
    kind : str
        The exception's type, "time-out" or "crash".
    says : str
        What happened, as the end of a sentence about the function.
    """

    kind: str
    says: str


@dataclass(frozen=True)
class Wrong:
    """What a function returned in the place of rewards: a mistake in it, and no accident."""

    given: str


Outcome = list[float | None] | Failure | Wrong


@dataclass(frozen=True)
class Signature:
    """What a function is called, and which columns it takes.

    Parameters
    ----------
    name : str
        Its name.
    takes : frozenset of str or None
        The arguments that it takes by name; None takes all.
    needs : tuple of str
        Those that have no default.
    """

    name: str
    takes: frozenset[str] | None = None
    needs: tuple[str, ...] = ()

    def chosen(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call.

        Raises
        ------
        InputError
            `reward_column`: it needs a column that is not there.
        """
        for name in self.needs:
            if name not in given:
                columns = ", ".join(name for name in given if name not in ("prompts", "completions")) or "none"
                close = nearest(name, given)
                raise error("reward_column", function=self.name, column=name, given=columns, nearest=close)
        return {name: value for name, value in given.items() if self.takes is None or name in self.takes}


def signature(function: Reward) -> Signature:
    """The function's name and columns.

    Examples
    --------
    >>> def shorter(completions, answer, limit=9): ...
    >>> signature(shorter).needs
    ('completions', 'answer')
    """
    name = getattr(function, "__name__", None) or type(function).__name__
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one of C, which does not say
        return Signature(name)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needs = tuple(p.name for p in named if p.default is p.empty)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return Signature(name, None, needs)
    return Signature(name, frozenset(p.name for p in named), needs)


def find(source: str | bytes) -> Reward:
    """The function that ``module:name``, ``path/to/file.py:name``, a word of `NAMED` or a pickle stands for.

    Raises
    ------
    InputError
        `reward_unloadable`; `missing_extra`.
    """
    try:
        if isinstance(source, bytes):
            function: Reward = pickle.loads(source)  # noqa: S301 - the parent's own
            return function
        return _named(NAMED[source])() if source in NAMED else _named(source)
    except GrpokitError:
        raise
    except (Exception, SystemExit) as problem:
        shown = "that was given" if isinstance(source, bytes) else repr(source)
        raise error("reward_unloadable", given=shown, reason=described(problem)) from problem


def _named(given: str) -> Reward:
    place, colon, path = given.rpartition(":")
    if not colon or not place or not path:
        raise error("reward_unloadable", given=repr(given), reason="it is not written so")
    module: Any = _from_file(place) if place.endswith(".py") else importlib.import_module(place)
    found = module
    for name in path.split("."):
        if not hasattr(found, name):
            close = nearest(name, [x for x in dir(found) if not x.startswith("_")])
            raise error("reward_unloadable", given=repr(given), reason=f"{place} has no {path}.{close}".rstrip("."))
        found = getattr(found, name)
    if not callable(found) or inspect.isclass(found):
        reason = f"it is {'a class' if inspect.isclass(found) else repr(found)[:60]}, not a function"
        raise error("reward_unloadable", given=repr(given), reason=reason)
    function: Reward = found
    return function


def _from_file(place: str) -> Any:
    path = Path(place).resolve()
    name = str(path)  # a name that no other module has
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(place)
    # As for a script, what lies beside it can be imported.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def source_of(function: Reward) -> str | bytes | None:
    """What another process finds it by, or None: for a lambda, a closure, what a notebook or script defines."""
    try:
        data = pickle.dumps(function)
    except Exception:  # noqa: BLE001 - whatever it is, it stays here
        return None
    if b"__main__" in data:
        return None
    return f"{function.__module__}:{function.__qualname__}" if inspect.isfunction(function) else data


def invoke(function: Reward, arguments: Mapping[str, Any], n: int, fails: type[BaseException] = Exception) -> Outcome:
    """The rewards of `n` completions, or what came in their place; a coroutine is run to its end."""
    try:
        returned = function(**arguments)
        if isinstance(returned, Awaitable):
            returned = asyncio.run(_awaited(returned))
        return checked(returned, n)
    except fails as problem:
        return Failure(type(problem).__name__, f"raised {described(problem)}")


async def _awaited(returned: Awaitable[Any]) -> Any:
    return await returned


def checked(returned: Any, n: int) -> list[float | None] | Wrong:
    """A list of `n` finite numbers or None; scalars of NumPy and torch are numbers.

    Examples
    --------
    >>> checked([1, None, True], 3)
    [1.0, None, 1.0]
    >>> checked([1, float("nan")], 2)
    Wrong(given='nan for completion 1')
    """
    if isinstance(returned, str | bytes | Mapping | AbstractSet) or not all(
        hasattr(returned, name) for name in ("__len__", "__iter__")
    ):
        return Wrong(shortened(repr(returned)))
    values: Sequence[Any] = list(returned)
    if len(values) != n:
        return Wrong(f"{len(values)} values")
    found: list[float | None] = []
    for row, value in enumerate(values):
        number = _plain(value)
        if number is not None and not (isinstance(number, Real) and math.isfinite(number)):
            return Wrong(f"{shortened(repr(value))} for completion {row}")
        found.append(None if number is None else float(number))
    return found


def _plain(value: Any) -> Any:
    try:
        return value.item() if hasattr(value, "item") else value
    except (RuntimeError, TypeError, ValueError):  # of several numbers
        return value


def described(problem: BaseException) -> str:
    """An exception as it would be written, not too long."""
    try:
        return shortened(repr(problem))
    except Exception:  # noqa: BLE001 - a repr of theirs
        return type(problem).__name__


def shortened(text: str, longest: int = 300) -> str:
    """The beginning of a long text."""
    return text if len(text) <= longest else text[:longest] + "…"
