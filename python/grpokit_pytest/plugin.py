"""The pytest plugin: `pytest --pyargs grpokit.testing.conformance --impl module:attr --recipe gspo`.

It is loaded by every pytest that runs where grpokit is installed, so it imports neither grpokit nor NumPy nor
hypothesis; `grpokit_pytest.session` does, once laws are collected.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import pytest

SUITE = "grpokit.testing.conformance"
OPTIONS = {
    "impl": "the function under test, module:attr",
    "recipe": "what it should be: a recipe (gspo) or a stage ('GroupNorm(1, 1e-6)', k3, 'TokenMean()')",
    "kind": "loss, advantage, filter, kl or aggregate (default: told by its arguments)",
    "xfails": "a file with a law a line that is known not to hold",
    "max-examples": "inputs a law (default: 200)",
    "limit": "seconds that one call may take (default: 10)",
    "conformance-json": "write what came of every law to this file",
}
SEVERAL = {
    "set": "KEY=VALUE: a parameter of the recipe (may be repeated)",
    "map": "ARGUMENT=SOURCE: what an argument is (may be repeated)",
}
DERANDOMIZE = "the same inputs every time"


def pytest_addoption(parser: Any) -> None:
    """An ini key for each option: --impl is grpokit_impl, and the environment variable GRPOKIT_IMPL."""
    for name, about in OPTIONS.items():
        parser.addini(_key(name), about)
    for name, about in SEVERAL.items():
        parser.addini(_key(name), about, type="linelist", default=[])
    parser.addini(_key("derandomize"), DERANDOMIZE, type="bool", default=False)


def pytest_load_initial_conftests(args: list[str], parser: Any) -> None:
    """The options, where the suite is asked for: names as short as --kind are others' everywhere else."""
    if not _asked(args) and not any(str(argument).startswith("--impl") for argument in args):
        return
    group = parser.getgroup("grpokit", "hold an implementation against a recipe (grpokit.testing.conformance)")

    def add(name: str, about: str, **how: Any) -> None:
        # Another plugin may have an option of that name; the ini key and the variable are left.
        with contextlib.suppress(ValueError, argparse.ArgumentError):
            group.addoption(f"--{name}", dest=_key(name), default=None, help=about, **how)

    for name, about in OPTIONS.items():
        add(name, about)
    for name, about in SEVERAL.items():
        add(name, about, action="append")
    add("derandomize", DERANDOMIZE, action="store_true")


def _key(name: str) -> str:
    return f"grpokit_{name.replace('-', '_')}"


def _asked(arguments: Any) -> bool:
    return any(SUITE in str(argument).replace("/", ".") for argument in arguments)


@pytest.hookimpl(tryfirst=True)  # before that of pytest-xdist, which collects nothing where it reports
def pytest_collection(session: Any) -> None:
    """Resolves the implementation once, before anything is collected: what is wrong with it is said once."""
    if _asked(session.config.args):
        from .session import of

        of(session.config)
