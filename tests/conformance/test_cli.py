"""`grpokit conform`: exit codes, one JSON object, a test file that runs."""

import json
import os
import signal
import subprocess
import sys

import pytest

from grpokit.cli import main

HERE = "tests.conformance.implementations"
DAPO = ["--recipe", "dapo", "--set", "max_len=100", "--max-examples", "20", "--derandomize"]


def conform(*arguments):
    return main(["conform", *arguments])


def test_all_laws_hold(capsys):
    assert conform(f"{HERE}:sound", *DAPO, "--law", "value", "--law", "split") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{HERE}:sound against dapo (DAPO, arXiv:2503.14476), as loss\n")
    assert "holds  value" in out
    assert "not looked at: the function is not told the whole step's counts" in out
    assert out.endswith("1 hold, 1 not looked at\n")
    assert err == ""


def test_a_law_does_not_hold(capsys):
    assert conform(f"{HERE}:wrong", *DAPO, "--law", "gradient") == 1
    out, _ = capsys.readouterr()
    assert "looks like ratio_not_differentiated: A part of the loss has no gradient" in out
    assert f"from {HERE} import wrong" in out


def test_json_is_one_object(capsys):
    assert conform(f"{HERE}:wrong", *DAPO, "--law", "gradient", "--json") == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["schema_version"], told["conforms"], err) == (1, False, "")
    assert told["verdicts"][0]["guess"] == "ratio_not_differentiated"
    assert told["arguments"] == ["logps ← logps", "old_logps ← old_logps", "advantages ← advantages", "mask ← mask"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([f"{HERE}:nothing", *DAPO], "has no nothing"),
        ([f"{HERE}:sound", "--recipe", "dapo"], "recipe('dapo') needs max_len"),
        ([f"{HERE}:sound", *DAPO, "--law", "valeu"], "Did you mean 'value'?"),
        (
            [f"{HERE}:sound", *DAPO, "--map", "advantage=advantages"],
            "--map has no parameter 'advantage'. Did you mean 'advantages'?",
        ),
        ([f"{HERE}:sound", *DAPO, "--max-examples", "0"], "--max-examples=0; expected 1 or more"),
        ([f"{HERE}:sound", *DAPO, "--limit", "-1"], "--limit=-1.0; expected 0.001 or more"),
        ([f"{HERE}:sound", *DAPO, "--map", "mask"], "expected key=value"),
    ],
)
def test_wrong_use_is_2(arguments, says, capsys):
    assert conform(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, says in err) == ("", True)


def test_write_test(capsys, tmp_path):
    implementation = f"{HERE}:of_tokens"
    assert conform(implementation, "--recipe", "GroupNorm()", "--map", "index=group_ids", "--write-test") == 0
    out, _ = capsys.readouterr()
    (tmp_path / "test_it.py").write_text(out)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        str(tmp_path / "test_it.py"),
        "-k",
        "constant",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "2 passed" in run.stdout


def test_whoever_is_asked_to_end_clears_up(tmp_path):
    """The child and its directory go with the command, and the caller's own handlers stay."""
    before = signal.getsignal(signal.SIGTERM)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "grpokit", "conform", f"{HERE}:hangs", *DAPO, "--limit", "600"]
    asked = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert asked.stdout.readline().startswith(HERE)
    asked.terminate()
    assert asked.wait(60) == 128 + signal.SIGTERM
    asked.stdout.close()
    assert not list(tmp_path.iterdir())
    assert conform(f"{HERE}:sound", *DAPO, "--law", "all_masked") == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_help_is_instant():
    code = "import sys; from grpokit.cli import main; main(['conform', '--help'])"
    check = "import sys\ntry:\n    " + code.split("; ", 1)[1].replace("; ", "\n    ") + "\nexcept SystemExit: pass\n"
    check += "assert not {'numpy', 'torch', 'hypothesis'} & set(sys.modules), 'slow'"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stderr == ""
