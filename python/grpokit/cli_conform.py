"""`grpokit conform`: somebody's function held against a recipe; laws that do not hold are shown with their input."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from .errors import error
from .output import print_json, standard_output
from .settings import read_setting

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from .testing import Session

KINDS = ("loss", "advantage", "filter", "kl", "aggregate")


def add_verb(verbs: Any) -> None:
    """Adds `conform` to the parser's verbs."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        "conform",
        help="find what is wrong in anyone's loss, advantage, filter, KL estimator or aggregation",
        description="Holds a function against a recipe: draws inputs with every edge that is known, compares value and "
        "gradient with the float64 reference, and shows the smallest input at which they part, with the known mistake "
        "that gives the same numbers. The function runs in a child process. Exit code 0: every law that could be "
        "looked at holds; 1: one does not; 2: there is no such function or recipe.",
    )
    verb.add_argument("implementation", metavar="module:attr", help="a function of NumPy, torch or jax arrays")
    verb.add_argument(
        "--recipe",
        required=True,
        help="what it should be: a recipe (gspo) or a stage: 'GroupNorm(1, 1e-6)', k3, 'TokenMean()', 'HasSignal()'",
    )
    verb.add_argument("--kind", choices=KINDS, help="what it is (default: told by the names of its arguments)")
    verb.add_argument(
        "--set", metavar="KEY=VALUE", dest="settings", action="append", default=[], help="a parameter of the recipe"
    )
    verb.add_argument(
        "--map",
        metavar="ARGUMENT=SOURCE",
        dest="said",
        action="append",
        default=[],
        help="what an argument of the function is, where its name does not say it (adv=advantages), or a value for it",
    )
    verb.add_argument("--law", dest="laws", action="append", default=[], help="this law alone (may be repeated)")
    verb.add_argument("--max-examples", type=int, default=200, metavar="N", help="inputs a law (default: 200)")
    verb.add_argument("--derandomize", action="store_true", help="the same inputs every time")
    verb.add_argument("--minutes", type=float, default=0.0, help="go on with new inputs for so long")
    verb.add_argument(
        "--limit", type=float, default=10.0, metavar="SECONDS", help="that one call may take (default: 10)"
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.add_argument(
        "--write-test", action="store_true", help="print a pytest file that asks the same, and run nothing"
    )
    verb.set_defaults(run=conform)


def conform(typed: argparse.Namespace) -> int:
    """Runs the laws; 1 where one does not hold."""
    settings, said = (dict(map(read_setting, given)) for given in (typed.settings, typed.said))
    for name, least in (("max_examples", 1), ("limit", 1e-3), ("minutes", 0)):
        if not getattr(typed, name) >= least:
            option = f"--{name.replace('_', '-')}"
            raise error(
                "bad_parameter", owner="conform", name=option, given=getattr(typed, name), expected=f"{least:g} or more"
            )
    try:
        import hypothesis  # noqa: F401 - the one thing that is not among the project's own needs

        from .testing.report import heading, told
        from .testing.session import Session
        from .testing.session import conform as run
    except ImportError as problem:
        raise error("missing_extra", what="grpokit conform", package=problem.name, extra="conform") from None

    def show(what: Any) -> None:
        if typed.json:
            return
        text = heading(typed.implementation, what.description) if isinstance(what, Session) else told(what)
        print(text, flush=True)

    if typed.write_test:
        asked = Session(typed.implementation, typed.recipe, typed.kind, said=said, settings=settings)
        with _tidy_when_ended(), asked as session, standard_output():
            print(pytest_file(session), end="")
        return 0
    with _tidy_when_ended(), standard_output():
        report = run(
            typed.implementation,
            typed.recipe,
            typed.kind,
            laws=typed.laws,
            said=said,
            settings=settings,
            examples=typed.max_examples,
            derandomize=typed.derandomize,
            minutes=typed.minutes,
            limit=typed.limit,
            each=show,
        )
        if typed.json:
            print_json(**report.to_dict())
        else:
            print(report.summary)
    return 1 if report.failed else 0


@contextlib.contextmanager
def _tidy_when_ended() -> Iterator[None]:
    """Whoever is asked to end clears up first: the child and its directory."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def pytest_file(session: Session) -> str:
    """A test file that holds the function against the recipe, one test a law."""
    order = session.order
    options = {"kind": session.description["kind"], "settings": order.settings, "said": order.said}
    given = "".join(f", {name}={value!r}" for name, value in options.items() if value)
    laws = "\n".join(f"    {law!r}," for law in session.laws)
    return f'''"""{order.implementation} against {order.recipe}: one test a law."""

import pytest

from grpokit.testing import Session

LAWS = [
{laws}
]


@pytest.fixture(scope="module")
def session():
    with Session({order.implementation!r}, {order.recipe!r}{given}) as found:
        yield found


@pytest.mark.parametrize("law", LAWS)
def test_conforms(session, law):
    verdict = session.run(law)
    assert verdict.status in ("pass", "skip"), verdict
'''
