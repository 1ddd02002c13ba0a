"""Processes that call reward functions: a call that takes too long is killed, one that crashes is replaced.

Each process is a `Child`, which leads a process group, so that what a function starts ends with it.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.connection import wait
from time import monotonic
from typing import TYPE_CHECKING, Any

from grpokit.errors import GrpokitError, error

from .processes import Child
from .reward_functions import Failure, Outcome, Signature, described

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator, Sequence

_READY_SECONDS = 120.0  # for imports, which may be large


@dataclass(frozen=True)
class Call:
    """A function, by its number, and the rows that it is called with."""

    function: int
    rows: Sequence[int]


class RewardPool:
    """So many processes that hold the same functions.

    Parameters
    ----------
    sources : sequence of str or bytes
        What `reward_functions.find` finds the functions by.
    workers : int
        Processes.
    seconds : float
        The limit of one call.

    Attributes
    ----------
    signatures : list of Signature
        Of the functions, once it has started.
    """

    def __init__(self, sources: Sequence[str | bytes], workers: int, seconds: float) -> None:
        self.sources, self.count, self.seconds = list(sources), workers, seconds
        self.signatures: list[Signature] = []
        self.workers: list[_Worker] = []

    def start(self) -> None:
        """Starts the processes and waits until one has imported all functions.

        Raises
        ------
        InputError
            `reward_unloadable`, `missing_extra`: a function cannot be had.
        """
        try:
            self.workers = [_Worker(self.sources) for _ in range(self.count)]
            while not self.signatures:
                for _ in self._events():
                    pass
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kills the processes and what they have started; none is left when it returns."""
        while self.workers:
            self.workers.pop().kill()

    def run(self, todo: deque[Call], arguments: Callable[[Call], dict[str, Any]]) -> Iterator[tuple[Call, Outcome]]:
        """Makes the calls, and those that are added meanwhile; each as soon as it is done.

        Whoever leaves before the end must close this generator: calls that are under way are killed then.
        """
        if not self.workers:
            self.start()
        try:
            while True:
                for worker in self.workers:
                    if todo and worker.idle:
                        call = todo.popleft()
                        try:
                            worker.give(call, arguments(call), self.seconds)
                        except (BrokenPipeError, ConnectionResetError):  # it has ended between two calls
                            todo.appendleft(call)
                            self._replace(worker)
                            break
                else:
                    if not todo and not any(worker.call for worker in self.workers):
                        return
                    yield from self._events()
        finally:
            for worker in [worker for worker in self.workers if worker.call]:
                self._replace(worker)

    def _events(self) -> Iterator[tuple[Call, Outcome]]:
        """What has happened when something has: answers, ends, limits that have passed."""
        waiting: dict[Any, _Worker] = {worker.connection: worker for worker in self.workers if not worker.idle}
        limit = min(worker.deadline for worker in waiting.values()) - monotonic()
        for there in wait(list(waiting), max(0.0, limit)):
            worker = waiting.pop(there)
            call = worker.call
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                how = self._replace(worker, again=call is not None)
                if call is None:
                    reason = f"the process that imports it {how}"
                    raise error("reward_unloadable", given=self._names(), reason=reason) from None
                yield call, Failure("crash", f"{how}, and was replaced")
                continue
            if call is None:
                if isinstance(message, GrpokitError):
                    raise message
                self.signatures, worker.ready = message, True
            else:
                worker.call = None
                yield call, message
        for there, worker in waiting.items():
            # An answer that has come meanwhile counts.
            if worker in self.workers and not worker.idle and monotonic() >= worker.deadline and not there.poll():
                call = worker.call
                self._replace(worker, again=call is not None)
                if call is None:
                    reason = f"its import took more than {_READY_SECONDS:.0f} s"
                    raise error("reward_unloadable", given=self._names(), reason=reason)
                yield call, Failure("time-out", f"took more than {self.seconds:g} s and was killed")

    def _replace(self, worker: _Worker, *, again: bool = True) -> str:
        how = worker.kill()
        at = self.workers.index(worker)
        self.workers[at : at + 1] = [_Worker(self.sources)] if again else []
        return how

    def _names(self) -> str:
        return ", ".join(repr(source) if isinstance(source, str) else "that was given" for source in self.sources)


class _Worker(Child):
    """One process, seen from here."""

    def __init__(self, sources: Sequence[str | bytes]) -> None:
        super().__init__("grpokit.trainer.reward_worker")
        self.call: Call | None = None
        self.ready = False
        self.deadline = monotonic() + _READY_SECONDS
        self.connection.send(list(sources))

    @property
    def idle(self) -> bool:
        return self.ready and self.call is None

    def give(self, call: Call, arguments: dict[str, Any], seconds: float) -> None:
        try:
            data = pickle.dumps((call.function, arguments, len(call.rows)))
        except Exception as problem:  # whatever a column's values raise
            given = f"an item that cannot be sent to another process ({described(problem)})"
            expected = "plain data in what reward functions are given"
            raise error("stage_result", stage="the task's prompts()", given=given, expected=expected) from problem
        self.connection.send_bytes(data)
        self.call, self.deadline = call, monotonic() + seconds
