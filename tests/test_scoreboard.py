"""docs/scoreboard.md is what was measured, of the pinned versions; its commands are run in tests/peers."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scoreboard.md"
RESULTS = json.loads((ROOT / "benches" / "results" / "scoreboard.json").read_text())


@pytest.fixture(scope="module")
def scoreboard():
    sys.path.insert(0, str(ROOT / "benches"))
    before = set(sys.modules)
    import os

    environment = dict(os.environ)
    try:
        import scoreboard.entries
        import scoreboard.measure
        import scoreboard.page

        yield scoreboard
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path.remove(str(ROOT / "benches"))
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "scoreboard":
                del sys.modules[name]


def test_the_page_is_what_was_measured(scoreboard):
    assert PAGE.read_text() == scoreboard.page.page(RESULTS), "run `python tools/scoreboard.py --render`"


def test_the_page_names_the_pinned_versions():
    pins = (ROOT / "requirements-peers.txt").read_text().split()
    text = PAGE.read_text()
    for title, package in (("TRL", "trl"), ("verl", "verl"), ("Liger-Kernel", "liger-kernel")):
        assert f"{package}=={RESULTS['versions'][package]}" in pins
        assert f"## {title} {RESULTS['versions'][package]}" in text


def test_every_implementation_is_measured_against_what_is_written_down(scoreboard):
    """Settings, choices, reasons and commands are those of the code."""
    entries = {entry.name: entry for entry in scoreboard.entries.ENTRIES}
    assert list(entries) == list(RESULTS["entries"])
    for name, measured in RESULTS["entries"].items():
        entry = entries[name]
        assert (measured["calls"], measured["kind"], measured["against"]) == (entry.calls, entry.kind, entry.against)
        for law, verdict in measured["laws"].items():
            assert verdict["verdict"] in scoreboard.page.MARKS
            if verdict["verdict"] in ("departs", "choice"):
                assert verdict["command"] == scoreboard.measure.command(entry, law)
                chosen = scoreboard.entries.found(scoreboard.entries.CHOICES, name, law)
                chosen = chosen or verdict.get("reason") == scoreboard.entries.AT_A_BOUND
                assert verdict["verdict"] == ("choice" if chosen else "departs")


def test_no_choice_is_written_down_that_is_none(scoreboard):
    """Each line of the tables is about something that was seen."""
    seen = {(name, law): v["verdict"] for name, m in RESULTS["entries"].items() for law, v in m["laws"].items()}
    tables = {"CHOICES": "choice", "NOT_LOOKED_AT": "not looked at", "NOTES": "departs"}
    for table, verdict in tables.items():
        for fits, laws, says in getattr(scoreboard.entries, table):
            for law in laws:
                names = [n for (n, l), v in seen.items() if l == law and v == verdict]
                assert any(scoreboard.entries.fnmatchcase(n, fits) for n in names), (table, fits, law, says)


def test_nothing_of_ours_departs():
    for name, measured in RESULTS["entries"].items():
        if name.startswith("ours:"):
            assert {v["verdict"] for v in measured["laws"].values()} <= {"holds", "not looked at"}, name


def test_the_page_leads_where_it_says():
    text = PAGE.read_text()
    headings = {h.lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target[1:] in headings if target.startswith("#") else (PAGE.parent / target).is_file(), target
