"""A run's start on several ranks: what it cannot do there, who speaks and who writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpokit.errors import error

from .console import Console, Silent, console_for
from .run import RunDirectory, default_name

if TYPE_CHECKING:
    import os

    import grpokit as gk

    from .config import TrainConfig
    from .ranks import Ranks


def check(config: TrainConfig, recipe: gk.Recipe, ranks: Ranks) -> None:
    """Refuses what several ranks cannot do.

    Raises
    ------
    InputError
        `bad_parameter`: rollouts are sampled ahead, or by a server; `not_across_ranks`: an objective reads the whole
        step.
    """
    if ranks.world == 1:
        return
    if config.async_level:
        name, given = "async_level", config.async_level
        expected = f"0 on {ranks.world} ranks: one process alone samples ahead"
        raise error("bad_parameter", owner="TrainConfig", name=name, given=given, expected=expected)
    if config.engine.url:
        expected = f"empty on {ranks.world} ranks: each samples a share in its own process"
        raise error("bad_parameter", owner="EngineConfig", name="url", given=config.engine.url, expected=expected)
    for term in recipe.terms:
        if term.objective.scope == "batch":
            raise error("not_across_ranks", recipe=recipe.name, stage=type(term.objective).__name__)


def console_of(ranks: Ranks, given: Console | None) -> Console:
    """The first rank's, and a silent one for the others."""
    if not ranks.first:
        return Silent()
    return console_for(sys.stderr) if given is None else given


def directory_of(ranks: Ranks, config: TrainConfig, given: str | os.PathLike[str] | None) -> RunDirectory:
    """The run's directory, the same for all; the first rank alone writes there."""
    path = ranks.agree(lambda: Path(given or Path("runs") / default_name(config)))
    return RunDirectory(path) if ranks.first else Onlooker(path)


class Onlooker(RunDirectory):
    """A run's directory as another rank than the first has it: it reads, and does not write."""

    def create(self, *_: Any, **__: Any) -> None:
        """The first rank does it; likewise below."""

    def configure(self, *_: Any) -> None: ...

    def snapshot(self, *_: Any, **__: Any) -> None: ...

    def write(self, *_: Any) -> None: ...

    def cut(self, *_: Any) -> None: ...

    def metrics(self, *_: Any) -> None: ...

    def alerts(self, *_: Any) -> None: ...

    def rollouts(self, *_: Any) -> None: ...

    def completions(self, *_: Any) -> None: ...

    def checkpoint(self, *_: Any) -> None: ...

    def summary(self, *_: Any) -> None: ...
