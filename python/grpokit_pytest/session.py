"""One session for all laws of a pytest run: what is configured, the child process, expected failures, the JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from grpokit import GrpokitError
from grpokit.output import SCHEMA_VERSION
from grpokit.settings import read_setting
from grpokit.testing.report import Report
from grpokit.testing.session import EXAMPLES, LIMIT, Session
from grpokit.testing.trial import Verdict

WRONG_USE = 4
PROPERTY = "grpokit_verdict"


class Conformance:
    """The implementation that a pytest run is about.

    Parameters
    ----------
    config : pytest.Config
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.verdicts = config, dict[str, Any]()
        implementation, recipe = self.option("impl"), self.option("recipe")
        for name, given in (("impl", implementation), ("recipe", recipe)):
            if not given:
                said = f"--{name}, GRPOKIT_{name.upper()} or the ini key grpokit_{name}"
                example = "--impl mypackage.losses:policy_loss --recipe gspo"
                _leave(f"nothing says which {name} is meant: give {said}, as in {example}")
        self.examples = int(self.number("max_examples", 1, EXAMPLES))
        self.derandomize = bool(self.option("derandomize"))
        limit = self.number("limit", 1e-3, LIMIT)
        self.file = str(self.option("conformance_json") or "")
        if self.file and not Path(self.file).absolute().parent.is_dir():
            _leave(f"--conformance-json {self.file}: there is no such directory")
        try:
            settings, said_ = (dict(map(read_setting, self.option(name) or [])) for name in ("set", "map"))
            self.session = Session(
                implementation, recipe, self.option("kind") or None, said=said_, settings=settings, limit=limit
            )
            self.expected = self._expected()
        except GrpokitError as problem:
            _leave(str(problem))
        config.add_cleanup(self.session.close)

    def option(self, name: str) -> Any:
        """What was typed, or the environment variable, or the ini key."""
        typed = self.config.getoption(f"grpokit_{name}", None)
        variable = os.environ.get(f"GRPOKIT_{name.upper()}")
        if typed is not None:
            return typed
        if variable is not None:
            return variable.split(";") if name in ("set", "map") else variable
        return self.config.getini(f"grpokit_{name}")

    def number(self, name: str, least: float, usual: float) -> float:
        """An option that is a number."""
        given = self.option(name) or usual
        try:
            found = float(given)
        except ValueError:
            found = -1.0
        if not found >= least:
            _leave(f"--{name.replace('_', '-')} {given}: expected a number, {least:g} or more")
        return found

    def run(self, law: str) -> Verdict:
        """The verdict on a law."""
        return self.session.run(law, examples=self.examples, derandomize=self.derandomize)

    def _expected(self) -> dict[str, str]:
        """The laws that are known not to hold, with the reason: ``law  # reason`` a line."""
        file = self.option("xfails")
        if not file:
            return {}
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError as problem:
            _leave(f"--xfails {file} cannot be read: {problem.strerror}")
        found = {}
        for line in lines:
            law, _, reason = (part.strip() for part in line.partition("#"))
            if law:
                found[law] = reason or "known not to hold"
        return found

    def unused(self) -> list[str]:
        """Lines of the file of expected failures that explain nothing: no such law, or it holds."""
        lines = []
        for law in self.expected:
            if law not in self.session.laws:
                lines.append(f"{law}: there is no such law of a {self.session.description['kind']}")
            elif law in self.verdicts and self.verdicts[law].status not in ("fail", "error"):
                lines.append(f"{law}: it does not fail ({self.verdicts[law].status})")
        return lines

    def write(self) -> None:
        """Writes the JSON file where one is wanted."""
        order = [law for law in self.session.laws if law in self.verdicts]
        if self.file and order:
            told = tuple(self.verdicts[law] for law in order)
            report = Report(self.session.order.implementation, self.session.description, told)
            text = json.dumps({"schema_version": SCHEMA_VERSION} | report.to_dict(), ensure_ascii=False, indent=2)
            place = Path(self.file)
            place.with_suffix(".part").write_text(text + "\n", encoding="utf-8")
            place.with_suffix(".part").replace(place)


def _leave(message: str) -> None:
    pytest.exit(f"grpokit: {message}", returncode=WRONG_USE)


KEY = pytest.StashKey[Conformance]()


def of(config: pytest.Config) -> Conformance:
    """The session of a pytest run, made once."""
    if KEY not in config.stash:
        config.stash[KEY] = Conformance(config)
        config.pluginmanager.register(Summary(config.stash[KEY]))
    return config.stash[KEY]


class Summary:
    """What is said and written when all laws were tried, in this process or in those of pytest-xdist."""

    def __init__(self, conformance: Conformance) -> None:
        self.conformance = conformance

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the verdict off a test's report."""
        for name, told in report.user_properties:
            if name == PROPERTY:
                self.conformance.verdicts[str(told["law"])] = Verdict(**told | {"notes": tuple(told["notes"])})  # type: ignore[operator, index]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Writes the JSON file; not in the processes of pytest-xdist, which see some of the laws."""
        if not hasattr(session.config, "workerinput"):
            self.conformance.write()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Lines of --xfails that are not used, and where the JSON file is."""
        unused = self.conformance.unused()
        if unused:
            terminalreporter.section("--xfails: lines that are not used")
            for line in unused:
                terminalreporter.line(line)
        if self.conformance.file and self.conformance.verdicts:
            terminalreporter.line(f"grpokit: {self.conformance.file} holds what came of every law that was tried")
