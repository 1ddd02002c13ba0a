"""The pytest plugin: `pytest --pyargs grpokit.testing.conformance --impl module:attr --recipe gspo`.

It is loaded by every pytest that runs where grpokit is installed, so it is a package of its own and imports neither
grpokit nor NumPy nor hypothesis; `grpokit_pytest.session` does, once laws are collected.
"""

from __future__ import annotations

import contextlib
from typing import Any

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


def pytest_addoption(parser: Any) -> None:
    """Options, each an ini key and an environment variable too: --impl, grpokit_impl, GRPOKIT_IMPL."""
    group = parser.getgroup("grpokit", "hold an implementation against a recipe (grpokit.testing.conformance)")

    def add(*names: str, **how: Any) -> None:
        # Another plugin may have an option of that name; the ini key and the variable are left.
        with contextlib.suppress(ValueError):
            group.addoption(*names, **how)

    for name, about in OPTIONS.items():
        key = name.replace("-", "_")
        add(f"--{name}", dest=f"grpokit_{key}", default=None, help=about)
        parser.addini(f"grpokit_{key}", about)
    add(
        "--derandomize",
        dest="grpokit_derandomize",
        action="store_true",
        default=None,
        help="the same inputs every time",
    )
    parser.addini("grpokit_derandomize", "the same inputs every time", type="bool", default=False)
    for name, about in (
        ("set", "KEY=VALUE: a parameter of the recipe"),
        ("map", "ARGUMENT=SOURCE: what an argument is"),
    ):
        add(f"--{name}", dest=f"grpokit_{name}", action="append", default=None, help=f"{about} (may be repeated)")
        parser.addini(f"grpokit_{name}", about, type="linelist", default=[])


def pytest_collection(session: Any) -> None:
    """Resolves the implementation once, before anything is collected: what is wrong with it is said once."""
    if any(SUITE in str(argument).replace("/", ".") for argument in session.config.args):
        from .session import of

        of(session.config)
