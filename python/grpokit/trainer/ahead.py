"""Rollouts ahead of learning: a process of its own samples up to `async_level` steps before they are learned from.

What step s learns from was sampled with the weights after step s − 1 − k, or the first ones, for the level k: never
older, and never newer, so that a run is the same each time and what was lost is sampled again to the bit. The staleness
ledger admits a step's rollouts, and keeps the books: each step is admitted, sampled, learned from once, or lost with
its process and admitted again. Weights are handed over by file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import shutil
from base64 import b64decode, b64encode
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

import grpokit as gk
from grpokit.errors import error

from .learn import steered
from .processes import Child
from .reward_functions import described
from .run import uninterrupted
from .weights import learned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .clock import Clock
    from .collect import Sampled
    from .config import TrainConfig
    from .learn import Learner
    from .rewards import RewardFunction
    from .run import RunDirectory
    from .tasks import Task

_DEATHS = 3


@dataclass(frozen=True)
class Order:
    """What the process is to sample.

    Parameters
    ----------
    step : int
        The step that it is for.
    trained : int
        After how many steps the weights are.
    version : int
        After how many updates.
    controllers : dict
        The states of the coefficients that are steered, then.
    """

    step: int
    trained: int
    version: int
    controllers: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Setup:
    """What the process needs to begin.

    Parameters
    ----------
    config : TrainConfig
        The run's.
    task : bytes or None
        The task, pickled, where it was given in Python.
    functions : list of RewardFunction
        Those that another process finds.
    weights, reference : Path
        Where the weights are handed over, and the reference policy's.
    state : dict or None
        The collector's, where it does not begin.
    """

    config: TrainConfig
    task: bytes | None
    functions: list[RewardFunction]
    weights: Path
    reference: Path
    state: Mapping[str, Any] | None


def sendable(task: Task | None, functions: Sequence[RewardFunction], level: int) -> bytes | None:
    """The task that was given in Python, for another process.

    Raises
    ------
    InputError
        `not_sendable`: another process cannot import it, or one of the reward functions.
    """
    for function in functions:
        if function.source is None:
            what, why = f"the reward function {function.named!r}", "another process cannot import it"
            raise error("not_sendable", what=what, why=why, level=level)
    if task is None:
        return None
    what = f"the task {type(task).__name__!r}"
    try:
        data = pickle.dumps(task)
    except Exception as problem:  # whatever it raises
        raise error("not_sendable", what=what, why=described(problem), level=level) from problem
    if b"__main__" in data:
        why = "it is defined in the script or notebook that runs"
        raise error("not_sendable", what=what, why=why, level=level)
    return data


def handed_over(weights: Path, trained: int) -> Path:
    """The file with the weights after so many steps."""
    return weights / f"step-{trained:08}.safetensors"


class Ahead:
    """A `Source` that samples in a process of its own.

    Parameters
    ----------
    config : TrainConfig
        Its `async_level` is k.
    task : bytes or None
        The task, pickled, where it was given in Python.
    functions : list of RewardFunction
        The reward functions.
    run : RunDirectory
        Where weights are handed over.
    clock : Clock
        Counts what the trainer waits, as what sampling takes.
    note : callable
        Where the process's words go.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: bytes | None,
        functions: list[RewardFunction],
        run: RunDirectory,
        *,
        clock: Clock,
        note: Callable[[str], None],
    ) -> None:
        self.run, self.clock, self.note, self.steps = run, clock, note, config.steps
        self.weights = run.path / "handover"
        self.setup = Setup(config, task, functions, self.weights, run.reference, None)
        self.ledger = gk.StalenessLedger(1, config.async_level)
        self.orders: deque[tuple[int, Order]] = deque()
        self.deaths = 0
        self.child = Child("grpokit.trainer.rollout_process")
        self.begun = False

    def next(self, learner: Learner, done: int) -> Sampled:
        """As `Source` has it.

        Raises
        ------
        StateError
            `rollout_process_died`: again and again. Whatever sampling raises is raised here.
        """
        with self.clock("generate"):
            self._begin()
            self._hand_over(learner, done)
            gathered, state = self._hear("sampled")
        ticket, order = self.orders.popleft()
        # The ledger refuses what is older than the level allows.
        self.ledger.complete(ticket, versions=[order.trained])
        batch = self.ledger.take(1)
        assert batch is not None
        self.setup = dataclasses.replace(self.setup, state=state)
        self._clear(min([order.trained for _, order in self.orders], default=done))
        gathered.measured["staleness/steps"] = float(done - order.trained)
        recipe, _ = steered(learner.config.make_recipe(), learner.config, order.controllers)
        sampled: Sampled = gathered.sampled(recipe)
        return sampled

    def state(self) -> dict[str, Any]:
        """As `Source` has it: the collector's state after the last step that came, and what is under way."""
        self._begin()
        if self.setup.state is None:
            self._hear("ready")
        return {
            "collector": self.setup.state,
            "ledger": b64encode(self.ledger.snapshot()).decode(),
            "orders": [dataclasses.asdict(order) for _, order in self.orders],
        }

    def files(self) -> list[Path]:
        """The weights of the orders that are under way."""
        return sorted({handed_over(self.weights, order.trained) for _, order in self.orders})

    def restore(self, state: Mapping[str, Any], files: Path) -> None:
        """As `Source` has it: what was under way is lost to the ledger, and ordered again."""
        self.weights.mkdir(exist_ok=True)
        for path in files.iterdir() if files.is_dir() else ():
            shutil.copyfile(path, self.weights / path.name)
        self.setup = dataclasses.replace(self.setup, state=state["collector"])
        self.ledger = gk.StalenessLedger.restore(b64decode(state["ledger"]), running="lost", ready="lost")
        self.orders = deque((-1, Order(**order)) for order in state["orders"])

    def counts(self) -> dict[str, int]:
        """The ledger's, of steps."""
        return self.ledger.counts

    def close(self) -> None:
        """Ends the process; the weights that were handed over are removed."""
        with uninterrupted():
            self.child.kill()
            shutil.rmtree(self.weights, ignore_errors=True)

    def _begin(self) -> None:
        if not self.begun:
            self._start()

    def _start(self) -> None:
        """Tells a new process what it is to do, and orders anew what is under way."""
        self.begun = True
        self.weights.mkdir(exist_ok=True)
        self._send(self.setup)
        orders, self.orders = [order for _, order in self.orders], deque()
        for order in orders:
            ticket = self.ledger.admit()
            assert ticket is not None, "as many are admitted as were lost"
            self._order(ticket, order)

    def _hand_over(self, learner: Learner, done: int) -> None:
        """The weights of now, to all steps that the ledger admits."""
        while self.ledger.version < done:
            self.ledger.advance()
        path = handed_over(self.weights, done)
        while done + len(self.orders) < self.steps and (ticket := self.ledger.admit()) is not None:
            if not path.exists():
                self.run.write(path, lambda to: save_file(learned(learner.policy), to))
            step = done + len(self.orders) + 1
            self._order(ticket, Order(step, done, learner.updates, learner.state()))

    def _order(self, ticket: int, order: Order) -> None:
        self.orders.append((ticket, order))
        self._send(order)

    def _send(self, message: Setup | Order) -> None:
        # Where it has ended, `_hear` finds that.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.child.connection.send(message)

    def _hear(self, awaited: str) -> tuple[Any, ...]:
        while True:
            try:
                kind, *told = self.child.connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace()
                continue
            if kind == "note":
                self.note(*told)
            elif kind == "failed":
                raise told[0]
            elif kind == "ready":
                self.setup = dataclasses.replace(self.setup, state=told[0])
            else:
                self.deaths = 0
            if kind == awaited:
                return tuple(told)

    def _replace(self) -> None:
        how = self.child.kill()
        self.deaths += 1
        if self.deaths > _DEATHS:
            raise error("rollout_process_died", how=how, times=self.deaths)
        self.note(f"the rollout process {how}: another one samples what it had under way again")
        for ticket, _ in self.orders:
            self.ledger.abort(ticket, "lost")
        self.child = Child("grpokit.trainer.rollout_process")
        self._start()

    def _clear(self, needed: int) -> None:
        for path in self.weights.glob("step-*.safetensors"):
            if path < handed_over(self.weights, needed):
                path.unlink()
