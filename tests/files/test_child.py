"""The command's files are read in a child process: whatever ends it, and whoever is told to end."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.files.test_files import rows, write

COMMAND = [sys.executable, "-m", "grpokit", "filter"]
CRASHES = [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGKILL]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Takes some time to filter."""
    return write(tmp_path_factory.mktemp("large") / "in.jsonl", rows(100_000))


class Running:
    """The command at work: parent and child, which is stopped when it has begun to write."""

    def __init__(self, source, directory):
        command = [*COMMAND, str(source), "-o", str(directory / "out.jsonl"), "--recipe", "rloo", "--overwrite"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
        self.child, caught = None, False
        while not caught:
            # It may be done before it is seen, on a machine that has other things to do.
            self.parent = subprocess.Popen(command, **options)
            while self.parent.poll() is None and not list(directory.glob("*.part")):
                pass
            for child in children(self.parent.pid):
                os.kill(child, signal.SIGSTOP)
                while state(child) not in ("T", "Z", None):
                    pass
                self.child, caught = child, state(child) == "T" and list(directory.glob("*.part"))
            if not caught:
                if state(self.child) == "T":
                    os.kill(self.child, signal.SIGCONT)
                assert self.parent.communicate()[1] == b""
                (directory / "out.jsonl").unlink(missing_ok=True)

    def end(self, *, heeded=True):
        """The exit code and what was said, when the child has got what it was sent and both have ended."""
        while heeded and state(self.child) == "T" and not pending(self.child):
            pass
        if state(self.child) == "T":
            os.kill(self.child, signal.SIGCONT)
        out, said = self.parent.communicate(timeout=60)
        assert out == b"" or self.parent.returncode == 0
        return self.parent.returncode, said.decode()


def pending(pid):
    """Whether a signal waits for a process that is stopped."""
    found = re.search(r"ShdPnd:\s(\w+)", status(pid))
    return found is None or int(found[1], 16) > 0


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def state(pid):
    """The letter of a process's state, or None when there is none."""
    found = re.search(r"State:\s(\w)", status(pid))
    return None if found is None else found[1]


def status(pid):
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize("number", CRASHES)
def test_a_crash_is_an_error_that_names_the_file(tmp_path, large, number):
    running = Running(large, tmp_path)
    os.kill(running.child, number)
    code, said = running.end()
    assert code == 2
    assert said.startswith(f"grpokit: {large} cannot be read: the process that read it was ended by {number.name}.")
    assert said.count("\n") == 1
    assert "What it had begun to write is removed." in said
    assert list(tmp_path.iterdir()) == []


def test_the_kind_of_the_error():
    code = "from grpokit.child import in_child; import os\nif in_child() is None: os.abort()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "grpokit.errors.FileError: the input cannot be read" in done.stderr
    code = (
        "from grpokit.child import in_child; from grpokit import FileError; import os\n"
        "try: ended = in_child()\nexcept FileError as problem: print(problem.kind)\nelse: os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "reader_died"


@pytest.mark.parametrize("whom", ["both", "parent", "child"])
def test_interrupted(tmp_path, large, whom):
    """A terminal tells both."""
    running = Running(large, tmp_path)
    if whom == "both":
        os.killpg(running.parent.pid, signal.SIGINT)
    else:
        os.kill(running.parent.pid if whom == "parent" else running.child, signal.SIGINT)
    assert running.end() == (130, "grpokit: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whom", ["parent", "child"])
def test_told_to_end(tmp_path, large, number, whom):
    running = Running(large, tmp_path)
    os.kill(running.parent.pid if whom == "parent" else running.child, number)
    assert running.end() == (-number, "")
    assert state(running.child) is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_ignored_stays_so(tmp_path, large):
    """As under nohup, and for what a shell runs behind."""
    directory = tmp_path / "out"
    directory.mkdir()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = Running(large, directory)
    finally:
        signal.signal(signal.SIGHUP, before)
    os.killpg(running.parent.pid, signal.SIGHUP)
    assert running.end(heeded=False) == (0, "")
    assert [path.name for path in directory.iterdir()] == ["out.jsonl"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child ends when it is done")
def test_a_parent_that_is_killed_takes_the_child_along(tmp_path, large):
    running = Running(large, tmp_path)
    running.parent.kill()
    assert running.end() == (-signal.SIGKILL, "")
    # Its pipes were the child's, too: they are closed, so it has ended.
    assert state(running.child) in (None, "Z")
    assert not (tmp_path / "out.jsonl").exists()
    assert all(path.name.endswith(".part") for path in tmp_path.iterdir())


def test_standard_input_is_removed_after_a_crash(tmp_path, large):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [*COMMAND, "-", "-o", "-", "--recipe", "rloo"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    parent = subprocess.Popen(command, env=environment, **pipes)
    parent.stdin.write(large.read_bytes()[:100_000])
    parent.stdin.flush()
    while not list(tmp_path.glob("grpokit-*/*")):
        assert parent.poll() is None
    os.kill(children(parent.pid)[0], signal.SIGSEGV)
    out, said = parent.communicate()
    assert (parent.returncode, out) == (2, b"")
    assert b"ended by SIGSEGV" in said
    assert list(tmp_path.iterdir()) == []


def test_results_and_codes_pass(tmp_path):
    path = write(tmp_path / "in.jsonl", rows())
    done = subprocess.run([*COMMAND, str(path), "--dry-run", "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["counts"]["in"] == 40
    assert subprocess.run([*COMMAND, str(path)], capture_output=True).returncode == 2
    nothing = write(tmp_path / "none.jsonl", {"group_id": [1], "reward": [None]})
    assert subprocess.run([*COMMAND, str(nothing), "--dry-run"], capture_output=True).returncode == 1


def test_a_reader_who_has_seen_enough(tmp_path, large):
    command = [*COMMAND, str(large), "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert len(running.stdout.read(10)) == 10
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 141


def test_an_unexpected_exception_is_seen(tmp_path):
    path = write(tmp_path / "in.jsonl", rows())
    code = "import grpokit.io; grpokit.io.filter_files = None; import sys; sys.argv[0] = 'grpokit'\n"
    code += "from grpokit.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "filter", str(path), "-o", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "TypeError: 'NoneType' object is not callable" in done.stderr
    assert done.stderr.count("Traceback") == 1


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["parent", "child"])
def test_killed_at_any_moment(tmp_path, large, whom):
    """Parent or child alone, from the first moments on."""
    rng, target = random.Random(0), tmp_path / "out.jsonl"
    command = [*COMMAND, str(large), "-o", str(target), "--recipe", "rloo"]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    taken = time.monotonic() - start
    whole = target.read_bytes()
    target.unlink()
    found = {"none": 0, "whole": 0}
    for _ in range(50):
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child = None
        while child is None and running.poll() is None:
            child = next(iter(children(running.pid)), None)
        try:
            running.wait(timeout=rng.uniform(0.0, 1.6 * taken))
        except subprocess.TimeoutExpired:
            # The child may be done already, and the parent about to be.
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid if whom == "parent" else child, signal.SIGKILL)
        said = running.communicate()[1]
        if whom == "child" and running.returncode:
            assert (running.returncode, said.count(b"\n")) == (2, 1), said
            assert not list(tmp_path.glob(".*"))
        found["whole" if target.exists() else "none"] += 1
        if target.exists():
            assert target.read_bytes() == whole
            target.unlink()
    assert min(found.values()) > 0, found
