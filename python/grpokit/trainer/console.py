"""What a run says while it runs, to stderr: a live table on a terminal (`live`), plain lines elsewhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO

from .reward_functions import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .evaluate import Passed
    from .run import Summary

_LINES, _CUT = 5, 50
_CELLS = {
    "reward": "reward",
    "pass@1": "eval/pass@1",
    "zero variance": "frac_reward_zero_std",
    "kept": "sampling/kept_share",
    "entropy": "entropy",
    "clipped": "clip_ratio/region_mean",
    "KL": "kl",
    "mismatch": "mismatch/kl_k3",
    "staleness": "staleness/mean",
    "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "tokens/s": "tokens_per_second",
}


class Console(Protocol):
    """Where a run talks to."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        ...

    def alert(self, text: str, severity: str) -> None:
        """Something that is wrong, "error" or "warning"."""
        ...

    def progress(self, phase: str, done: int, total: int, text: str) -> None:
        """How far a phase is."""
        ...

    def table(self, metrics: Mapping[str, float]) -> None:
        """The numbers of a step."""
        ...

    def samples(self, rows: Sequence[Sample]) -> None:
        """Some completions of a step."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class Silent:
    """Says nothing."""

    def note(self, text: str) -> None:
        pass

    def alert(self, text: str, severity: str) -> None:
        self.note(text)

    def progress(self, phase: str, done: int, total: int, text: str) -> None:
        pass

    def table(self, metrics: Mapping[str, float]) -> None:
        pass

    def samples(self, rows: Sequence[Sample]) -> None:
        pass

    def close(self) -> None:
        pass


class Plain:
    """A line for each note, and about five for a phase: for files, pipes and logs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def alert(self, text: str, severity: str) -> None:
        self.note(text)

    def progress(self, phase: str, done: int, total: int, text: str) -> None:
        if done == total or done % max(1, total // _LINES) == 0:
            self.note(f"{phase:<10}  {done:>4}/{total}  {text}")

    def table(self, metrics: Mapping[str, float]) -> None:
        pass

    def samples(self, rows: Sequence[Sample]) -> None:
        for row in rows:
            self.note(f"  {row.prompt} {row.completion}  reward {row.reward}  {row.kept}  advantage {row.advantage}")

    def close(self) -> None:
        pass


class Sample(NamedTuple):
    """A completion as it is shown: texts are cut and their control characters escaped, so that no terminal obeys them.

    Parameters
    ----------
    prompt, completion, reward, kept, advantage : str
        In words. An advantage that is one a token is their mean.
    """

    prompt: str
    completion: str
    reward: str
    kept: str
    advantage: str


def samples(records: Iterable[Mapping[str, Any]], count: int) -> list[Sample]:
    """The first row of each of the first `count` groups.

    Parameters
    ----------
    records : iterable of mappings
        Rows of a step, as `Sampled.records` gives them.
    count : int
        Groups.
    """
    found: dict[int, Sample] = {}
    for record in records:
        if record["group_id"] in found:
            continue
        if len(found) == count:
            break
        advantage, reward = record["advantage"], record["reward"]
        if isinstance(advantage, list):
            advantage = sum(advantage) / max(1, len(advantage))
        found[record["group_id"]] = Sample(
            repr(shortened(record["prompt"], _CUT)),
            repr(shortened(record["text"], _CUT)),
            "none" if reward is None else f"{reward:.2f}",
            "kept" if record["keep"] else "dropped",
            f"{advantage:+.2f}",
        )
    return list(found.values())


def console_for(stream: TextIO) -> Console:
    """The one that fits the stream."""
    if not stream.isatty():
        return Plain(stream)
    from .live import Live

    return Live(stream)


def line(metrics: Mapping[str, float]) -> str:
    """A step in one line: what was sampled, what was used, how the policy moves."""
    shown = {
        "reward": metrics["reward"],
        "used": metrics["sampling/kept_share"],
        "entropy": metrics.get("entropy"),
        "no signal": metrics["frac_reward_zero_std"],
        "clipped": metrics.get("clip_ratio/region_mean"),
        "length": metrics["completions/mean_length"],
    }
    return "  ".join(f"{name} {value:.2f}" for name, value in shown.items() if value is not None)


def cells(metrics: Mapping[str, float]) -> dict[str, str]:
    """A step as names and texts, for a table; what the step did not measure is a dash."""
    return {name: _short(metrics.get(metric)) for name, metric in _CELLS.items()}


def time_split(metrics: Mapping[str, float]) -> str:
    """Where a step's time went, in per cent."""
    spent = {name.removeprefix("time/"): value for name, value in metrics.items() if name.startswith("time/")}
    whole = sum(spent.values())
    return "  ".join(f"{name} {value / whole:.0%}" for name, value in spent.items()) if whole > 0 else ""


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def show(summary: Summary, stream: TextIO) -> None:
    """The result as a table, and what may be said of it."""
    evaluations = [(f"before {summary.recipe}", summary.before), (f"after {summary.recipe}", summary.after)]
    done = [(name, passed) for name, passed in evaluations if passed is not None]
    shown = _columns(done[0][1]) if done else ["pass@1"]
    heads = ("", "step", *(name.replace("pass@1", "held-out pass@1") for name in shown))
    rows = [(name, str(e.step), *(str(e.estimates[column]) for column in shown)) for name, e in done]
    if stream.isatty():
        from rich.console import Console as Terminal
        from rich.table import Table
        from rich.text import Text

        # Numbers stay whole where it is narrow, and heads are broken.
        table = Table(*heads, box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(row[0], *(Text(cell, no_wrap=True) for cell in row[1:]))
        Terminal(file=stream).print(table)
    else:
        for row in (heads, *rows):
            print(f"{row[0]:<22}{row[1]:>6}" + "".join(f"{cell:>18}" for cell in row[2:]), file=stream)
    print(_words(summary), file=stream)


def _columns(passed: Passed) -> list[str]:
    """What a summary shows of an evaluation; `grpokit eval` shows all of it."""
    wanted = ("pass@1", f"pass@{passed.k}", f"maj@{passed.k}", "greedy")
    return [name for name in dict.fromkeys(wanted) if name in passed.estimates]


def _words(summary: Summary) -> str:
    lines = []
    if summary.before and summary.after and summary.lift is not None:
        lines.append(
            f"{summary.recipe} moved held-out pass@1 by {summary.lift:+.3f} with {summary.used} of "
            f"{summary.completions} sampled completions, {summary.total_seconds:.0f} s in all."
        )
        # What a lift well beyond its noise may be called, and no more.
        noise = summary.before.stderr + summary.after.stderr
        shows = "This shows that the trainer works, not that it teaches a new skill."
        if summary.lift < -3 * noise:
            shows = f"Here it lost it: `grpokit doctor {summary.directory}` says why."
        elif summary.lift <= 3 * noise:
            shows = "A change of that size is within its noise: it shows nothing yet."
        lines.append(
            f"Before it, {summary.before.pass_k:.0%} of the prompts had a right answer among {summary.before.k} tries: "
            f"reinforcement learning sharpens\nwhat the policy knew from its warm start. {shows}"
        )
    where = f"{summary.directory} holds config.toml, metrics.jsonl, rollouts.jsonl and checkpoint/"
    if summary.status != "finished":
        where = f"{summary.status} at step {summary.steps}; {where}"
        where += f"\ngrpokit train --resume {summary.directory} goes on from its last snapshot"
    lines.append(where)
    return "\n".join(lines)
