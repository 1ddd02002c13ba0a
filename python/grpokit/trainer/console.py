"""What a run says while it runs, to stderr: a live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.progress import TaskID

    from .run import Summary

_LINES = 5


class Console(Protocol):
    """Where a run talks to."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        ...

    def progress(self, phase: str, done: int, total: int, text: str) -> None:
        """How far a phase is."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class Plain:
    """A line for each note, and about five for a phase: for files, pipes and logs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def progress(self, phase: str, done: int, total: int, text: str) -> None:
        if done == total or done % max(1, total // _LINES) == 0:
            self.note(f"{phase:<10}  {done:>4}/{total}  {text}")

    def close(self) -> None:
        pass


class Live:
    """One line that moves, under the notes: for terminals."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self.bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            # The numbers take the room that is left; a narrow terminal cuts the last of them.
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=Terminal(file=stream),
            transient=True,
            expand=True,
        )
        self.phases: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def progress(self, phase: str, done: int, total: int, text: str) -> None:
        self.bar.start()
        if phase not in self.phases:
            for former in self.phases.values():
                self.bar.update(former, visible=False)
            self.phases[phase] = self.bar.add_task(phase, total=total, text="")
        self.bar.update(self.phases[phase], completed=done, text=text)

    def close(self) -> None:
        self.bar.stop()


def console_for(stream: TextIO) -> Console:
    """The one that fits the stream."""
    return Live(stream) if stream.isatty() else Plain(stream)


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


def show(summary: Summary, stream: TextIO) -> None:
    """The result as a table, and what may be said of it."""
    evaluations = [(f"before {summary.recipe}", summary.before), (f"after {summary.recipe}", summary.after)]
    heads = ("", "step", "held-out pass@1", "pass@k")
    rows = [
        (name, str(e.step), f"{e.pass_1:.3f} ± {e.stderr:.3f}", f"{e.pass_k:.3f} (k={e.k})")
        for name, e in evaluations
        if e is not None
    ]
    if stream.isatty():
        from rich.console import Console as Terminal
        from rich.table import Table

        table = Table(*heads)
        for row in rows:
            table.add_row(*row)
        Terminal(file=stream).print(table)
    else:
        for row in (heads, *rows):
            print(f"{row[0]:<22}{row[1]:>6}{row[2]:>19}{row[3]:>15}", file=stream)
    print(_words(summary), file=stream)


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
        if summary.lift <= 3 * noise:
            shows = "A change of that size is within its noise: it shows nothing yet."
        lines.append(
            f"Before it, {summary.before.pass_k:.0%} of the prompts had a right answer among {summary.before.k} tries: "
            f"reinforcement learning sharpens\nwhat the policy knew from its warm start. {shows}"
        )
    where = f"{summary.directory} holds config.toml, metrics.jsonl, rollouts.jsonl and checkpoint/"
    lines.append(where if summary.status == "finished" else f"{summary.status} at step {summary.steps}; {where}")
    return "\n".join(lines)
