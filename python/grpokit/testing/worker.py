"""The child process in which somebody's function runs: one law at a time, as the parent asks.

It reads JSON lines, first what to try (`Order`), then laws, and answers each with a line. What the function prints goes
to a file; whether it is in the function, and since when, stands in a few shared bytes, so that the parent can tell a
hang from work. With ``careful`` every call is written down before it is made, for the one that ends the process.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import mmap
import os
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpokit.errors import GrpokitError, error, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .trial import Trial

_NO_RESULT = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
STAMP = struct.Struct("d")


@dataclass(frozen=True)
class Order:
    """What is to be tried.

    Attributes
    ----------
    implementation : str
        ``module:attribute``.
    recipe, kind, said, settings
        As in `engine.trial`.
    path : list of str
        Where modules are looked for.
    directory : str
        Where the child may write.
    """

    implementation: str
    recipe: str
    kind: str | None = None
    said: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    directory: str = ""


def resolve(implementation: str) -> Callable[..., Any]:
    """The function that ``module:attribute`` names.

    Raises
    ------
    InputError
        `bad_implementation`: it is not written so, the module does not import, there is no such attribute, or it is
        not callable.
    """
    module, colon, attribute = implementation.partition(":")
    if not colon or not module or not attribute:
        raise _bad(implementation, "is not of the form module:attribute", "Write mypackage.losses:policy_loss.")
    if module.endswith(".py") or "/" in module:
        name = module.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise _bad(implementation, "names a file where a module should stand", f"Write {name}:{attribute}.")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as problem:
        why = f"cannot be imported: {type(problem).__name__}: {problem}"
        raise _bad(implementation, why, "Is it installed, or in the working directory?") from problem
    for name in attribute.split("."):
        try:
            there = hasattr(found, name)
        except Exception as problem:  # a module that imports its parts when they are asked for
            raise _bad(
                implementation,
                f"cannot be read: {type(problem).__name__}: {problem}",
                "Is all that it needs installed?",
            ) from problem
        if not there:
            close = nearest(name, [x for x in dir(found) if not x.startswith("_")]).strip()
            raise _bad(implementation, f"does not exist: {module} has no {attribute}", close or "Name one that it has.")
        found = getattr(found, name)
    if not callable(found):
        raise _bad(implementation, f"is not callable but {found!r:.60}", "Name a function.")
    if inspect.isclass(found):
        raise _bad(implementation, "is a class", "Name an instance that can be called, or a function.")
    if any(is_one(found) for is_one in _NO_RESULT):
        raise _bad(implementation, "is async or a generator: a call gives no result", "Wrap it in a plain function.")
    function: Callable[..., Any] = found
    return function


def _bad(implementation: str, why: str, remedy: str) -> GrpokitError:
    return error("bad_implementation", implementation=implementation, why=why, remedy=remedy)


class _Watch:
    """Tells the parent when the function is entered and left, and with what where that is wanted."""

    def __init__(self, directory: Path) -> None:
        self.file = (directory / "stamp").open("r+b")
        self.shared = mmap.mmap(self.file.fileno(), STAMP.size)
        self.last, self.careful = directory / "call", False

    def before(self, snippet: Callable[[], str]) -> None:
        if self.careful:
            self.last.write_text(snippet())
        self.shared[:] = STAMP.pack(time.monotonic())

    def after(self) -> None:
        self.shared[:] = STAMP.pack(0.0)


def main() -> None:
    """Serves one parent until it closes the pipe."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    order = Order(**json.loads(requests.readline()))
    printed = Path(order.directory) / "printed"
    _silence(printed)
    sys.path[:0] = [place for place in order.path if place not in sys.path]
    try:
        watch = _Watch(Path(order.directory))
        tried = _ready(order, watch)
    except GrpokitError as problem:
        _answer(answers, error={"kind": problem.kind, "context": {k: str(v) for k, v in problem.context.items()}})
        return
    _answer(answers, ready=_description(tried))
    from . import engine

    seen = printed.stat().st_size
    for line in requests:
        request = json.loads(line)
        watch.careful = request.pop("careful")
        (law,) = engine.chosen(tried.target.kind, [request.pop("law")])
        verdict = engine.run(law, tried, **request)
        sys.stdout.flush()
        with printed.open("rb") as file:
            file.seek(seen)
            text = file.read(1 << 20).decode(errors="replace")
        seen = printed.stat().st_size
        if text.strip():
            lines = text.strip().splitlines()
            note = f"it prints: {len(lines)} lines, the first {lines[0][:80]!r}"
            verdict = dataclasses.replace(verdict, notes=(note,))
        _answer(answers, verdict=dataclasses.asdict(verdict))


def _ready(order: Order, watch: _Watch) -> Trial:
    function = resolve(order.implementation)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)  # the cases are small
    from . import engine

    return engine.trial(
        function,
        order.recipe,
        order.kind,
        name=order.implementation,
        said=order.said,
        settings=order.settings,
        before=watch.before,
        after=watch.after,
    )


def _description(tried: Trial) -> dict[str, Any]:
    from . import engine

    target, subject = tried.target, tried.subject
    form = subject.form
    how = {"library": form.library}
    if "advantages" in subject.sources:
        how["advantages"] = "(S,)" if form.advantages == "row" else "(S, T)"
    if "mask" in subject.sources:
        how["mask"] = form.mask
    if "group_ids" in subject.sources and form.ids != "own":
        how["group_ids"] = {"objects": "texts in an array", "list": "a list", "dense": "numbered from 0"}[form.ids]
    if target.kind in ("advantage", "filter"):
        how["rows"] = {"table": "all at once", "group": "a group a call", "matrix": "(G, n)"}[form.rows]
    return {
        "kind": target.kind,
        "recipe": target.name,
        "paper": target.paper,
        "equation": target.equation,
        "arguments": [str(argument) for argument in subject.arguments],
        "form": how,
        "left_out": [list(pair) for pair in target.left_out],
        "laws": [[law.name, law.says] for law in engine.LAWS[target.kind]],
    }


def _silence(printed: Path) -> None:
    """What is printed from here on, by C code too, goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)


def _answer(stream: Any, **fields: Any) -> None:
    print(json.dumps(fields), file=stream, flush=True)


if __name__ == "__main__":
    main()
