"""Bad files are errors that say what is wrong, and nothing is written; what only looks bad is read."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpokit.cli import main
from grpokit.io import jsonl

from .malformed import JSON_LINES, PLACES
from .malformed_parquet import PARQUET


def listing(directory):
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in directory.rglob("*"))


def arguments(made, *more):
    return ["filter", *map(str, made if isinstance(made, list) else [made]), "--recipe", "rloo", *more]


def check(case, directory, run):
    place = directory / "in"
    place.mkdir()
    made, target = case.make(place), directory / "out"
    before = listing(directory)
    code, said = run(arguments(made, "-o", str(target)))
    assert "Traceback" not in said
    if case.kept is None:
        assert code == 2, said
        assert said.startswith("grpokit: ")
        assert said.count("\n") == 1, said
        assert all(word in said for word in case.words), said
        assert listing(directory) == before
    else:
        assert code == (0 if case.kept else 1), said
        if made.suffix == ".parquet":
            expected = pq.ParquetFile(made).read()
            assert pq.ParquetFile(target).read().equals(expected if case.kept else expected.slice(0, 0))
            assert case.kept in (0, len(expected))
        else:
            with pa.input_stream(str(made), compression=jsonl.codec_of(made.read_bytes())) as stream:
                content = stream.read().removeprefix(jsonl.BOM)
            lines = [line + b"\n" for line in content.split(b"\n") if line.strip()]
            assert target.read_bytes() == b"".join(lines)
            assert case.kept == len(lines)


@pytest.mark.parametrize("name", [*JSON_LINES, *PLACES])
def test_json_lines(name, tmp_path, capsys):
    check((JSON_LINES | PLACES)[name], tmp_path, lambda words: (main(words), capsys.readouterr().err))


# Runs the command in one process after another, as the shell does, without importing everything each time.
SHELL = """
import json, os, sys
import grpokit.io
from grpokit.cli import main
for line in sys.stdin:
    words, said = json.loads(line)
    if (command := os.fork()) == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv[1:] = words
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def shell():
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", SHELL], text=True, **pipes) as running:
        yield running


@pytest.mark.parametrize("name", PARQUET)
def test_parquet(name, tmp_path, tmp_path_factory, shell):
    """In a process of its own, since the decoder may crash."""
    said = tmp_path_factory.mktemp("said") / "said"

    def run(words):
        print(json.dumps([words, str(said)]), file=shell.stdin, flush=True)
        return int(shell.stdout.readline()), said.read_text()

    check(PARQUET[name], tmp_path, run)
