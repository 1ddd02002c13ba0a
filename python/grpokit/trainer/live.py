"""The console of a terminal: a table of the last step and one line that moves, under the notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console as Terminal
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from .console import cells, time_split

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from .console import Sample

_PAIRS = 4  # names with numbers, side by side: 80 columns hold them


class Live:
    """What moves is at the bottom, what was noted scrolls above it; at the end the notes stay."""

    def __init__(self, stream: TextIO) -> None:
        self.bar = _Display(
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
        self.evaluated: dict[str, float] = {}

    def note(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def alert(self, text: str, severity: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False, style="red" if severity == "error" else "yellow")

    def progress(self, phase: str, done: int, total: int, text: str) -> None:
        self.bar.start()
        if phase not in self.phases:
            for former in self.phases.values():
                self.bar.update(former, visible=False)
            self.phases[phase] = self.bar.add_task(phase, total=total, text="")
        self.bar.update(self.phases[phase], completed=done, text=text)

    def table(self, metrics: Mapping[str, float]) -> None:
        # An evaluation's numbers stay until the next one.
        self.evaluated |= {name: value for name, value in metrics.items() if name.startswith("eval/")}
        grid, row = Table.grid(padding=(0, 2), expand=True), list[Text]()
        for number, (name, text) in enumerate(cells({**self.evaluated, **metrics}).items(), 1):
            row.append(Text.assemble((f"{name} ", "dim"), text, no_wrap=True, overflow="ellipsis"))
            if number % _PAIRS == 0:
                grid.add_row(*row)
                row = []
        split = Text.assemble(("time ", "dim"), time_split(metrics), no_wrap=True, overflow="ellipsis")
        self.bar.table = Group(grid, split)

    def samples(self, rows: Sequence[Sample]) -> None:
        table = Table("prompt", "completion", "reward", "", "advantage", box=None, header_style="dim")
        for row in rows:
            table.add_row(*map(Text, row))
        self.bar.console.print(table)

    def close(self) -> None:
        self.bar.stop()


class _Display(Progress):
    """The bars, with a table above them."""

    table: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.table is not None:
            yield self.table
        yield from super().get_renderables()
