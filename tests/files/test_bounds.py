"""What is too much, out of reach, or changes meanwhile: an error within bounded memory, and nothing is written."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import grpokit as gk
from grpokit.io import filter_files
from grpokit.output import standard_output
from tests.files.test_files import rows, write

COMMAND = [sys.executable, "-m", "grpokit", "filter"]
MEBIBYTE = 1 << 20
LINE = b'{"group_id": "a", "reward": 1, "x": "%s"}\n'


# The memory of a child counts from that of its parent, which is small here.
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(done.returncode)
"""


def run(*arguments, **options):
    """Exit code, what was said, and the largest memory of a process, in bytes."""
    command = [sys.executable, "-c", MEASURED, *COMMAND, *map(str, arguments), "--recipe", "rloo"]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr, int(done.stdout.split("\n")[-2])


def bomb(path, pieces):
    """A compressed file that nobody held at once."""
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            for piece in pieces:
                stream.write(piece)
    else:
        with gzip.open(path, "wb", compresslevel=1) as stream:
            for piece in pieces:
                stream.write(piece)
    assert path.stat().st_size < 10 * MEBIBYTE
    return path


def pieces(kind):
    if kind == "a line":
        yield LINE[:38]
    for _ in range(1024):
        yield {"newlines": b"\n", "zeros": b"\0", "a line": b"x", "brackets": b"["}[kind] * MEBIBYTE


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("a line", "in.jsonl{suffix}, line 1 is longer than 134,217,728 bytes"),
        ("zeros", "in.jsonl{suffix}, line 1 is longer than"),
        ("brackets", "in.jsonl{suffix}, line 1 is longer than"),
        ("newlines", "in.jsonl{suffix} cannot be read: it has no lines"),
    ],
)
def test_a_gibibyte_in_a_few_kilobytes(tmp_path, kind, words, suffix):
    path = bomb(tmp_path / f"in.jsonl{suffix}", pieces(kind))
    code, said, memory = run(path, "-o", tmp_path / "out.jsonl")
    assert (code, words.format(suffix=suffix) in said) == (2, True), said
    assert list(tmp_path.iterdir()) == [path]
    assert memory < 700 * MEBIBYTE


@pytest.mark.slow
def test_a_gibibyte_of_lines_is_read_within_bounds(tmp_path):
    path = bomb(tmp_path / "in.jsonl.gz", (LINE % (b"x" * 1000) * 1000 for _ in range(1024)))
    code, said, memory = run(path, "--dry-run", "--max-group-rows", 2_000_000)
    assert (code, said) == (0, "")
    assert memory < 700 * MEBIBYTE


@pytest.mark.slow
@pytest.mark.parametrize("size", [120 * MEBIBYTE, 300 * MEBIBYTE])
def test_a_line_of_many_bytes(tmp_path, size):
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINE % (b"x" * size))
    code, said, memory = run(path, "--dry-run")
    assert code == (0 if size < 128 * MEBIBYTE else 2), said
    assert memory < 700 * MEBIBYTE


@pytest.mark.slow
def test_a_hundred_thousand_columns(tmp_path):
    names = [*(f"c{i}" for i in range(10**5 - 2)), "group_id", "reward"]
    pq.write_table(pa.table([[1]] * 10**5, names), tmp_path / "in.parquet")
    code, said, memory = run(tmp_path / "in.parquet", "-o", tmp_path / "out.parquet")
    assert (code, said) == (0, "")
    assert pq.ParquetFile(tmp_path / "out.parquet").schema_arrow.names == names
    # About 16 KiB a column: its page, its buffers, and those of the batch that is read ahead.
    assert memory < 1800 * MEBIBYTE


def weak():
    """What starts a command that may not read everything, where this one may."""
    if os.getuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root reads everything")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_what_may_not_be_read_or_written(tmp_path):
    start, source = weak(), write(tmp_path / "in.parquet", rows())
    secret = write(tmp_path / "secret.jsonl", rows())
    shut = tmp_path / "shut"
    shut.mkdir()
    secret.chmod(0)
    shut.chmod(0)
    before = sorted(tmp_path.iterdir())
    try:
        for words, message in (
            ([secret, "--dry-run"], f"{secret} cannot be read: Permission denied"),
            ([shut, "--dry-run"], f"{shut} cannot be read: Permission denied"),
            ([shut / "a.jsonl", "--dry-run"], "a.jsonl cannot be read: Permission denied"),
            ([shut / "*.jsonl", "--dry-run"], "cannot be read: Permission denied"),
            ([source, "-o", shut / "out.parquet"], "out.parquet cannot be written: Permission denied"),
        ):
            done = subprocess.run([*start, *COMMAND, *map(str, words)], capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            assert message in done.stderr
            assert done.stderr.count("\n") == 1
    finally:
        shut.chmod(0o700)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no/out.jsonl", "there is no directory"),
        ("taken", "it is a directory"),
        ("in.jsonl/out", "there is no directory"),
        ("x" * 300, "File name too long"),
        ("/dev/full", "it is a device or a pipe, which cannot be replaced"),
        ("link", "exists already"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, target, words):
    path = write(tmp_path / "in.jsonl", rows())
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to(path.with_name("other"))
    (tmp_path / "other").write_text("kept")
    before = sorted(tmp_path.iterdir())
    more = ["--overwrite"] if target == "/dev/full" else []
    code, said, _ = run(path, "-o", tmp_path / target, *more)
    assert (code, words in said, said.count("\n")) == (2, True, 1), said
    assert sorted(tmp_path.iterdir()) == before


def test_a_name_of_the_longest_kind(tmp_path):
    path, target = write(tmp_path / "in.jsonl", rows()), tmp_path / ("é" * 127)
    assert run(path, "-o", target)[0] == 0
    assert target.read_bytes() == path.read_bytes()


def test_the_kind_of_the_error(monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        full.write("x")
        with pytest.raises(gk.FileError) as caught, standard_output():
            pass
    assert caught.value.kind == "output_unwritable"


@pytest.mark.parametrize("more", [["-o", "-"], ["--dry-run"], ["--dry-run", "--json"]])
def test_a_full_device_forstandard_output(tmp_path, more):
    path = write(tmp_path / "in.jsonl", rows())
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, str(path), *more], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "grpokit: standard output cannot be written: No space left on device. What is there is cut.\n"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("change", ["gone", "cut"])
def test_a_file_that_changes_between_the_readings(tmp_path, suffix, change):
    """It is read to decide, and again to copy."""
    path, target = write(tmp_path / f"in{suffix}", rows()), tmp_path / f"out{suffix}"

    def meddle(what, _rows):
        if change == "gone":
            path.unlink(missing_ok=True)
        else:
            os.truncate(path, 200)

    if (suffix, change) == (".parquet", "gone"):
        # What is open stays until it is closed.
        expected = pq.read_table(path)
        filter_files(path, target, gk.recipe("rloo"), progress=meddle)
        assert pq.read_table(target).equals(expected)
        return
    with pytest.raises(gk.GrpokitError, match=str(path)) as caught:
        filter_files(path, target, gk.recipe("rloo"), progress=meddle)
    assert caught.value.kind in ("file_unreadable", "file_changed")
    assert [file.name for file in tmp_path.iterdir()] == ([path.name] if change == "cut" else [])


def test_streams_that_are_closed(tmp_path):
    path = write(tmp_path / "in.jsonl", rows())
    command = " ".join([*COMMAND, str(path), "--dry-run"])
    assert subprocess.run(f"{command} >&- 2>&- <&-", shell=True).returncode == 0
    done = subprocess.run(f"{' '.join(COMMAND)} - --dry-run <&-", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "grpokit: standard input cannot be read: it is closed.\n")


def test_a_pipe_is_refused_at_once(tmp_path):
    """Nobody writes to it, and it is not waited for."""
    os.mkfifo(tmp_path / "in.jsonl")
    code, said, _ = run(tmp_path / "in.jsonl", "--dry-run", timeout=60)
    assert (code, "give - and send it to standard input" in said) == (2, True)
