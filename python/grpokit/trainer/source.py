"""Where a step's rollouts come from, as the loop sees it: sampled now with the current weights, or ahead (`ahead`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .shards import whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .clock import Clock
    from .collect import Collector, Sampled
    from .learn import Learner


class Source(Protocol):
    """What the loop asks of one."""

    def next(self, learner: Learner, done: int) -> Sampled:
        """The rollouts of the step after the `done` first ones."""
        ...

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, ready for JSON; ``"collector"`` is that of the `Collector`."""
        ...

    def files(self) -> list[Path]:
        """What belongs to the state beside it."""
        ...

    def restore(self, state: Mapping[str, Any], files: Path) -> None:
        """Goes on from what `state` gave, with the files in that directory."""
        ...

    def counts(self) -> dict[str, int] | None:
        """What the staleness ledger has counted, where there is one."""
        ...

    def close(self) -> None:
        """Nothing is asked any more."""
        ...


class Now:
    """Samples when it is asked, with the learner's weights.

    Parameters
    ----------
    collector : Collector
        Samples, with the engine that it has.
    clock : Clock
        Counts what that takes.
    """

    def __init__(self, collector: Collector, clock: Clock) -> None:
        self.collector = collector
        collector.clock = clock

    def next(self, learner: Learner, done: int) -> Sampled:
        """As `Source` has it."""
        self.collector.reference = learner.reference
        read = learner.reference if learner.recipe.rows_read("logp_ref") else None
        with whole(learner.policy, read):
            self.collector.engine.load(learner.policy, learner.updates)
            gathered = self.collector.collect(learner.recipe)
        gathered.measured["staleness/steps"] = 0.0
        return gathered.sampled(learner.recipe)

    def state(self) -> dict[str, Any]:
        """The collector's."""
        return {"collector": self.collector.state()}

    def files(self) -> list[Path]:
        """None."""
        return []

    def restore(self, state: Mapping[str, Any], files: Path) -> None:
        """As `Source` has it."""
        self.collector.restore(state["collector"])

    def counts(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Closes the engine."""
        self.collector.engine.close()
