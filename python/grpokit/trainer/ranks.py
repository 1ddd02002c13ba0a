"""Several processes that train one policy: who one is, which part of the work is one's own, and all parts together.

`torchrun` starts them and tells each by its environment who it is. All draw the same prompts and seeds; each samples,
scores and learns from a share of whole groups, and what came out is gathered on all, so that all decide alike. A rank
that fails tells the others, and one that does not come is named with the phase that it was last seen in.
"""

from __future__ import annotations

import atexit
import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate, groupby, pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from grpokit.errors import GrpokitError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
# What torch.distributed says where another process is late or gone; its classes do not tell.
_BROKEN = ("gloo", "monitoredBarrier", "NCCL", "Connection closed", "Connection reset", "Broken pipe")


@dataclass(frozen=True)
class _Failed:
    """What a rank sends in the place of a result."""

    problem: Exception


class Ranks:
    """One of the processes of a run. The only one, `ALONE`, does all of the work, and nothing here costs it anything.

    Parameters
    ----------
    rank, world : int
        Which one this is, from 0, of how many.
    timeout : float
        Seconds that one waits for another.
    group : ProcessGroup, optional
        Of gloo, for what is no tensor of the model.
    store : Store, optional
        Where each says which phase it is in.
    device : str
        Where its model is.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        *,
        timeout: float = 0.0,
        group: Any = None,
        store: Any = None,
        device: str = "cpu",
    ) -> None:
        self.rank, self.world, self.timeout, self.device = rank, world, timeout, device
        self._group, self._store, self._met = group, store, 0
        self._phases: list[str] = []

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def shares(self, sizes: Sequence[int]) -> list[slice]:
        """Each rank's rows of groups of these sizes: groups that follow one another, whole, and as many as another's.

        Examples
        --------
        >>> Ranks(0, 2).shares([2, 2, 3])
        [slice(0, 2, None), slice(2, 7, None)]
        """
        bounds = [0, *accumulate(sizes)]
        cuts = [bounds[len(sizes) * rank // self.world] for rank in range(self.world + 1)]
        return [slice(a, b) for a, b in pairwise(cuts)]

    def spread(self, phase: str, sizes: Sequence[int], work: Callable[[slice], T]) -> list[T]:
        """What `work` makes of each rank's rows, in the order of the rows.

        Parameters
        ----------
        phase : str
            What this is, for the error where a rank does not come.
        sizes : sequence of int
            Rows of each group; the same on all ranks.
        work : callable
            Called with one's own rows; no rows where there are fewer groups than ranks.

        Returns
        -------
        list, (world,)
            The same on each rank.

        Raises
        ------
        StateError
            `ranks_timed_out`, `rank_lost`; `rank_failed` where `work` raised something unforeseen on another rank. An
            error of grpokit is raised on all ranks as it is.
        """
        with self.phase(phase):
            return self.together(lambda: work(self.shares(sizes)[self.rank]))

    def together(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives on each rank; where it raises on one, all raise. It may gather by itself."""
        if self.world == 1:
            return [work()]
        try:
            own = work()
        except Exception as problem:
            if not getattr(problem, "told", False):
                self._tell(problem)
            raise
        return self.gather(own)

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, which alone does it."""
        return self.together(work if self.first else _nothing)[0]  # type: ignore[return-value]

    def gather(self, own: T) -> list[T]:
        """What each rank has, in their order, once all are here."""
        found = [own] if self.world == 1 else self._exchange(own)
        for one in found:
            if isinstance(one, _Failed):
                raise _marked(one.problem)
        return found

    def meet(self) -> None:
        """Waits until all are here."""
        self.gather(None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, what breaks since a rank is late or gone says so, and in which phase."""
        if self.world == 1:
            yield
            return
        self._phases.append(name)
        start = perf_counter()
        try:
            self._show()
            yield
        except RuntimeError as problem:
            broken = any(word in str(problem) for word in _BROKEN)
            if isinstance(problem, GrpokitError) or not broken:
                raise
            raise self._broken(problem, perf_counter() - start) from problem
        finally:
            self._phases.pop()

    @property
    def _now(self) -> str:
        return ", ".join(self._phases) or "start"

    def _show(self) -> None:
        """Tells the others where one is, and how often one has come to meet them."""
        self._store.set(f"rank {self.rank}", json.dumps([self._met, self._now]))

    def _exchange(self, own: Any) -> list[Any]:
        import torch.distributed as dist

        self._met += 1
        found: list[Any] = [None] * self.world
        start = perf_counter()
        try:
            self._show()
            limit = timedelta(seconds=self.timeout)
            dist.monitored_barrier(self._group, timeout=limit, wait_all_ranks=True)
            dist.all_gather_object(found, own, group=self._group)
        except RuntimeError as problem:
            raise self._broken(problem, perf_counter() - start) from problem
        return found

    def _tell(self, problem: Exception) -> None:
        """Sends what went wrong to the others, who wait for a result."""
        told: Exception = problem
        if not isinstance(problem, GrpokitError):
            reason = f"{type(problem).__name__}: {problem}"
            told = error("rank_failed", rank=self.rank, phase=self._now, reason=reason)
        _marked(problem)
        # Where they do not come either, what went wrong here is still the reason.
        with suppress(GrpokitError):
            self._exchange(_Failed(told))

    def _broken(self, problem: Exception, waited: float) -> Exception:
        """The error where another rank is late, or gone: which one, and what it did when it was last seen."""
        seen = {rank: self._last_seen(rank) for rank in range(self.world) if rank != self.rank}
        late = {rank: phase for rank, (met, phase) in seen.items() if met < self._met} or {
            rank: phase for rank, (_, phase) in seen.items()
        }
        ranks = ("rank " if len(late) == 1 else "ranks ") + ", ".join(map(str, late))
        where = "; ".join(f"rank {rank} was last seen in {phase!r}" for rank, phase in late.items())
        timed_out = waited >= 0.9 * self.timeout or "imed out" in str(problem)
        found = error(
            "ranks_timed_out" if timed_out else "rank_lost",
            rank=self.rank,
            ranks=ranks,
            phase=self._now,
            seen=where,
            **({"seconds": self.timeout} if timed_out else {}),
        )
        return _marked(found)

    def _last_seen(self, rank: int) -> tuple[int, str]:
        try:
            if self._store.check([f"rank {rank}"]):
                met, phase = json.loads(self._store.get(f"rank {rank}"))
                return met, phase
        except RuntimeError:
            # Whoever kept the store is gone with it.
            return -1, "an unknown place"
        return -1, "start"


ALONE = Ranks()


def join(timeout: float) -> Ranks:
    """The process that one is among those that `torchrun` has started with it, or alone.

    Parameters
    ----------
    timeout : float
        Seconds that one rank waits for another.
    """
    told = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")]
    if None in told or told[1] == "1":
        return ALONE
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    limit, device = timedelta(seconds=timeout), "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=limit)
        atexit.register(_leave)
    store = PrefixStore("grpokit", _get_default_store())
    group = dist.new_group(backend="gloo", timeout=limit)
    return Ranks(dist.get_rank(), dist.get_world_size(), timeout=timeout, group=group, store=store, device=device)


def groups_of(rows: Sequence[Any]) -> list[int]:
    """How many rows each group has: those that follow one another with one item, the same object, or one id."""
    return [len(list(group)) for _, group in groupby(rows, key=lambda row: row if isinstance(row, int) else id(row))]


def _marked(problem: Exception) -> Exception:
    """One that all ranks know of."""
    problem.told = True  # type: ignore[attr-defined]
    return problem


def _nothing() -> None:
    pass


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
