"""One test a law of the implementation that --impl names."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from grpokit.testing.report import heading, told
from grpokit_pytest.session import PROPERTY, of

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpokit_pytest.session import Conformance


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each law of the implementation's kind."""
    metafunc.parametrize("law", of(metafunc.config).session.laws)


@pytest.fixture(scope="session")
def conformance(request: pytest.FixtureRequest) -> Conformance:
    """The session with the implementation."""
    found = of(request.config)
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line("\n" + heading(found.session.order.implementation, found.session.description))
    return found


def test_law(conformance: Conformance, law: str, record_property: Callable[[str, object], None]) -> None:
    """The law holds, or is known not to, or cannot be looked at."""
    verdict = conformance.run(law)
    record_property(PROPERTY, asdict(verdict) | {"notes": list(verdict.notes)})
    if verdict.status == "skip":
        pytest.skip(verdict.reason)
    if verdict.status != "pass":
        text = told(verdict, conformance.session.description["equation"])
        if law in conformance.expected:
            pytest.xfail(f"{conformance.expected[law]}\n{text}")
        pytest.fail(text, pytrace=False)
