"""Whatever the function does, the one who asked is told: it runs in a child process, with a limit."""

import sys
from pathlib import Path

import pytest

import grpokit as gk
from grpokit.testing import Session, conform

HERE = "tests.conformance.implementations"
DAPO = {"settings": {"max_len": 100}}


def verdict(name, law, **more):
    with Session(f"{HERE}:{name}", "dapo", limit=more.pop("limit", 30.0), **DAPO) as session:
        return session.run(law, examples=60, **more)


@pytest.mark.parametrize(
    ("implementation", "says"),
    [
        ("nomodule.here:f", "cannot be imported: ModuleNotFoundError"),
        (f"{HERE}:soundd", "has no soundd. Did you mean 'sound'?"),
        (f"{HERE}:NOT_CALLABLE", "is not callable but 3"),
        (HERE, "is not of the form module:attribute"),
        (f"{HERE}:exits", "SystemExit: no"),
        (f"{HERE}:aborts_at_once", "did not come to its first result: it ends the interpreter with SIGABRT"),
        (f"{HERE}:waits", "is async or a generator"),
        (f"{HERE}:PolicyLoss", "is a class. Name an instance"),
        (f"{HERE}:scripted", "has no names of arguments that Python can read"),
        (f"{HERE}:spoils_its_gradient", "its gradient raised RuntimeError: one of the variables"),
        ("./tests/conformance/implementations.py:sound", "Write tests.conformance.implementations:sound."),
        (f"{HERE}:nameless", "has a parameter 'something' that says nothing"),
    ],
)
def test_what_cannot_be_tried(implementation, says):
    with pytest.raises(gk.InputError) as caught, Session(implementation, "dapo", "loss", **DAPO):
        pass
    assert caught.value.kind in ("bad_implementation", "uncallable_implementation", "unmapped_argument")
    assert says in str(caught.value)


def test_a_function_that_ends_the_interpreter():
    with Session(f"{HERE}:aborts", "dapo", **DAPO) as session:
        first = session.run("all_masked", examples=20)
        assert (first.status, first.part) == ("error", "crash")
        assert first.problem == "ends the interpreter with SIGSEGV"
        assert "False" in first.snippet  # the call that did it
        assert "True" not in first.snippet
        # The laws that it does not break go on.
        assert session.run("far", examples=5, seed=3).status in ("pass", "error")
        assert session.run("bound", examples=20).status == "pass"
    assert verdict("leaves", "all_masked").problem == "ends the interpreter with the exit code 0"


@pytest.mark.slow
def test_after_three_deaths_it_is_left_alone():
    with Session(f"{HERE}:aborts", "dapo", **DAPO) as session:
        for _ in range(3):
            assert session.run("all_masked", examples=20).status == "error"
        skipped = session.run("bound", examples=5)
    assert (skipped.status, "ended or hung in 3 laws" in skipped.reason) == ("skip", True)


def test_a_function_that_hangs():
    found = verdict("hangs", "all_masked", limit=2.0)
    assert (found.status, found.part, found.problem) == ("error", "hang", "hangs: a call took longer than 2 s")
    assert "hangs(" in found.snippet
    found = verdict("hangs_backwards", "all_masked", limit=2.0)
    assert (found.part, "hangs_backwards(" in found.snippet) == ("hang", True)


@pytest.mark.parametrize(
    ("name", "law", "part", "says"),
    [
        ("sometimes_raises", "all_masked", "raises", "ZeroDivisionError: an empty batch"),
        ("per_token", "value", "shape", "its loss is no scalar"),
        ("text", "value", "shape", "its loss is no scalar"),
        ("is_complex", "value", "dtype", "its loss is complex"),
        ("writes_logps", "inputs", "inputs", "it changes its argument logps"),
        ("writes", "inputs", "inputs", "it changes its argument advantages"),
        ("draws", "repeatable", "random", "it draws random numbers"),
    ],
)
def test_misbehaviour_is_said(name, law, part, says):
    found = verdict(name, law)
    assert (found.status, found.part) == ("fail", part)
    assert says in found.problem
    assert f"{name}(" in found.snippet


def test_a_module_that_hangs_when_imported(tmp_path, monkeypatch):
    (tmp_path / "imported_forever.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("grpokit.testing.session.IMPORT_LIMIT", 3.0)
    with (
        pytest.raises(gk.InputError, match="its module was not imported in 3 s"),
        Session("imported_forever:f", "gspo", limit=1.0),
    ):
        pass


def test_what_a_function_starts_ends_with_it(tmp_path):
    (tmp_path / "starts.py").write_text(
        "import subprocess, torch\nchild = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "def f(logps, old_logps, advantages, mask): return (logps * advantages)[mask].sum()\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with Session("starts:f", "gspo"):
            pid = int((tmp_path / "pid").read_text())
    finally:
        sys.path.remove(str(tmp_path))
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split(") ")[1][0] == "Z"


def test_wrong_results_of_estimators():
    for name, stage, kind, part in (
        ("short", "GroupNorm()", None, "shape"),
        ("words", "GroupNorm()", None, "dtype"),
    ):
        with Session(f"{HERE}:{name}", stage, kind) as session:
            assert session.run("value", examples=20).part == part


def test_what_is_printed_is_a_note(capfd):
    found = verdict("prints", "value")
    assert found.status == "pass"
    assert "'hello from the loss'" in found.notes[0]
    assert capfd.readouterr() == ("", "")


def test_a_report():
    report = conform(f"{HERE}:wrong", "dapo", laws=["value", "gradient"], examples=40, derandomize=True, **DAPO)
    assert [v.law for v in report.failed] == ["gradient"]
    text = str(report)
    for part in ("DAPO, arXiv:2503.14476", "LOSS = Σ_t", "logps ← logps", "FAILS  gradient", "expected", "got"):
        assert part in text
    assert report.summary == "1 hold, 1 do not hold"
    assert report.badge == "dapo: 1 of 2 laws"
    told = report.to_dict()
    assert (told["conforms"], told["recipe"], len(told["verdicts"])) == (False, "dapo", 2)
    assert told["versions"]["torch"]


def test_more_minutes_are_more_cases():
    report = conform(f"{HERE}:sound", "dapo", laws=["all_masked"], examples=10, minutes=0.05, **DAPO)
    assert report.verdicts[0].status == "pass"
    assert report.verdicts[0].examples > 10
