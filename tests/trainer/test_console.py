import contextlib
import dataclasses
import io
import os
import re

import pytest

from grpokit.trainer.console import Plain, cells, console_for, line, samples, show, time_split
from grpokit.trainer.evaluate import Estimate, Passed
from grpokit.trainer.live import Live
from grpokit.trainer.run import Summary


def passed(step, *means):
    names = ("pass@1", "pass@4", "pass@8", "maj@8", "greedy")
    return Passed(step, 8, {name: Estimate(*mean) for name, mean in zip(names, means, strict=True)})


SUMMARY = Summary(
    status="finished",
    directory="runs/a",
    recipe="dapo",
    seed=0,
    steps=100,
    before=passed(0, (0.3, 0.01), (0.7, 0.02), (0.9, 0.03), (0.4, 0.04), (0.5, 0.05)),
    after=passed(100, (0.8, 0.02), (0.9, 0.02), (0.99, 0.01), (0.85, 0.01), (0.84, 0.01)),
    ledger=None,
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


METRICS = {
    "reward": 0.5, "eval/pass@1": 0.25, "frac_reward_zero_std": 0.125, "sampling/kept_share": 0.875, "entropy": 1.5,
    "clip_ratio/region_mean": 0.01, "kl": 0.002, "mismatch/kl_k3": 3.2e-11, "staleness/mean": 0.5,
    "completions/mean_length": 7.75, "completions/clipped_ratio": 0.0625, "tokens_per_second": 12345.6,
    "time/generate": 3.0, "time/backward": 1.0,
}  # fmt: skip


def test_a_terminal_gets_a_table_of_the_last_step(terminal):
    stream, written = terminal
    console = console_for(stream)
    console.bar.console.width = 100  # a pseudo-terminal has no size of its own
    console.table(METRICS)
    console.progress("dapo", 1, 2, "reward 0.5")
    # What is evaluated now and then stays; what a step has not measured does not.
    console.table({"reward": 0.75, "kl": float("nan"), "time/generate": 1.0})
    console.bar.refresh()
    console.close()
    first, last = written().split("reward 0.500", 1)[1].split("reward 0.750", 1)
    for text in (
        "pass@1 0.250", "zero variance 0.125", "kept 0.875", "entropy 1.500", "clipped 0.010", "KL 0.002",
        "mismatch 3e-11", "staleness 0.500", "length 7.750", "truncated 0.062", "tokens/s 12,346",
        "time generate 75%  backward 25%",
    ):  # fmt: skip
        assert text in first
    for text in ("pass@1 0.250", "KL -", "kept -", "time generate 100%"):
        assert text in last


def test_a_step_as_cells():
    assert cells({"reward": -0.0001, "tokens_per_second": float("inf")})["reward"] == "-1e-04"
    assert set(cells({}).values()) == {"-"}
    assert time_split({}) == time_split({"time/generate": 0.0}) == ""


def record(group, prompt, text, **changes):
    return {"group_id": group, "prompt": prompt, "text": text, "reward": 1.0, "keep": True, "advantage": 0.5} | changes


SAMPLED = [
    record(0, "a>", "x\x1b[31m\ty\n\u202e"),
    record(0, "a>", "second of its group"),
    record(1, "p" * 80, "[bold]b[/bold]", reward=None, keep=False, advantage=0.0),
    record(2, "c>", "d", advantage=[1.0, -3.0]),
    record(3, "too many", ""),
]


def test_samples_are_one_a_group_and_no_terminal_obeys_them():
    first, second, third = samples(SAMPLED, 3)
    assert first == ("'a>'", r"'x\x1b[31m\ty\n\u202e'", "1.00", "kept", "+0.50")
    assert second == (repr("p" * 50 + "…"), "'[bold]b[/bold]'", "none", "dropped", "+0.00")
    assert third.advantage == "-1.00"  # the mean of a number a token
    assert samples(SAMPLED, 0) == []


def test_samples_in_a_file_are_lines():
    stream = io.StringIO()
    console_for(stream).samples(samples(SAMPLED, 2))
    first, second = stream.getvalue().splitlines()
    assert first == r"  'a>' 'x\x1b[31m\ty\n\u202e'  reward 1.00  kept  advantage +0.50"
    assert second.endswith("'[bold]b[/bold]'  reward none  dropped  advantage +0.00")


def test_samples_on_a_terminal_are_a_table(terminal):
    stream, written = terminal
    console = console_for(stream)
    console.bar.console.width = 120
    console.samples(samples(SAMPLED, 2))
    console.close()
    text = written()
    assert "\x1b" not in text
    assert r"x\x1b[31m\ty\n\u202e" in text
    assert "[bold]b[/bold]" in text
    assert "advantage" in text.splitlines()[0]


def test_the_result_is_a_table_and_an_honest_word():
    stream = io.StringIO()
    show(SUMMARY, stream)
    text = stream.getvalue()
    rows = [row.split("  ") for row in text.splitlines()[:3]]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["step", "held-out pass@1", "pass@8", "maj@8", "greedy"],
        ["before dapo", "0", "0.300 ± 0.010", "0.900 ± 0.030", "0.400 ± 0.040", "0.500 ± 0.050"],
        ["after dapo", "100", "0.800 ± 0.020", "0.990 ± 0.010", "0.850 ± 0.010", "0.840 ± 0.010"],
    ]
    assert "moved held-out pass@1 by +0.500 with 700 of 1000 sampled completions" in text
    assert "90% of the prompts had a right answer among 8 tries" in text
    assert "not that it teaches a new skill" in text


@pytest.mark.parametrize(("mean", "told"), [(0.35, "it shows nothing yet"), (0.1, "`grpokit doctor runs/a` says why")])
def test_what_is_noise_and_what_is_lost_is_said(mean, told):
    stream = io.StringIO()
    after = passed(100, (mean, 0.02), (0.9, 0.02), (0.99, 0.01), (0.85, 0.01), (0.84, 0.01))
    show(dataclasses.replace(SUMMARY, after=after), stream)
    assert told in stream.getvalue()


def test_the_table_on_a_terminal(terminal):
    stream, written = terminal
    show(SUMMARY, stream)
    text = written()
    for number in ("0.800 ± 0.020", "0.990 ± 0.010", "0.850 ± 0.010", "0.840 ± 0.010"):
        assert number in text


def test_a_step_without_updates_has_a_line_too():
    metrics = {"reward": 0.5, "frac_reward_zero_std": 1.0, "sampling/kept_share": 0.0, "completions/mean_length": 3.0}
    assert line(metrics) == "reward 0.50  used 0.00  no signal 1.00  length 3.00"
