import contextlib
import io
import os
import re

import pytest

from grpokit.trainer.console import Live, Plain, console_for, line, show
from grpokit.trainer.evaluate import Passed
from grpokit.trainer.run import Summary

SUMMARY = Summary(
    status="finished",
    directory="runs/a",
    recipe="dapo",
    seed=0,
    steps=100,
    before=Passed(0, 0.3, 0.01, 0.9, 8),
    after=Passed(100, 0.8, 0.02, 0.99, 8),
    completions=1000,
    used=700,
    warm_start_seconds=1.0,
    total_seconds=3.0,
)


@pytest.fixture
def terminal():
    """A real pseudo-terminal: a stream to write to, and a function that closes it and says what was written."""
    reader, writer = os.openpty()
    stream = os.fdopen(writer, "w")

    def written():
        stream.close()
        chunks = []
        with contextlib.suppress(OSError):  # Linux answers with an error where the other end is closed
            while chunk := os.read(reader, 1 << 16):
                chunks.append(chunk)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(chunks).decode())

    yield stream, written
    stream.close()
    os.close(reader)


def test_a_file_gets_a_few_plain_lines():
    stream = io.StringIO()
    console = console_for(stream)
    assert isinstance(console, Plain)
    for step in range(1, 101):
        console.progress("dapo", step, 100, "reward 0.5")
    console.note("step  100  held-out pass@1 0.5 ± 0.0 [sic]")
    console.close()
    lines = stream.getvalue().splitlines()
    assert [int(text.split()[1].split("/")[0]) for text in lines[:-1]] == [20, 40, 60, 80, 100]
    assert lines[-1] == "step  100  held-out pass@1 0.5 ± 0.0 [sic]"


def test_a_terminal_gets_a_line_that_moves_and_the_notes_above_it(terminal):
    stream, written = terminal
    console = console_for(stream)
    assert isinstance(console, Live)
    console.progress("warm start", 1, 2, "loss 3.0")
    console.progress("dapo", 1, 2, "reward 0.5")
    console.note("held-out [pass@1] 0.5")
    console.progress("dapo", 2, 2, "reward 0.75")
    console.close()
    text = written()
    assert "reward 0.75" in text
    assert "2/2" in text
    assert "held-out [pass@1] 0.5" in text


def test_the_result_is_a_table_and_an_honest_word():
    stream = io.StringIO()
    show(SUMMARY, stream)
    text = stream.getvalue()
    assert "before dapo                0      0.300 ± 0.010    0.900 (k=8)" in text
    assert "after dapo               100      0.800 ± 0.020    0.990 (k=8)" in text
    assert "moved held-out pass@1 by +0.500 with 700 of 1000 sampled completions" in text
    assert "90% of the prompts had a right answer among 8 tries" in text
    assert "not that it teaches a new skill" in text


def test_the_table_on_a_terminal(terminal):
    stream, written = terminal
    show(SUMMARY, stream)
    assert "0.800 ± 0.020" in written()


def test_a_step_without_updates_has_a_line_too():
    metrics = {"reward": 0.5, "frac_reward_zero_std": 1.0, "sampling/kept_share": 0.0, "completions/mean_length": 3.0}
    assert line(metrics) == "reward 0.50  used 0.00  no signal 1.00  length 3.00"
