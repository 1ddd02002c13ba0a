"""Admission and ageing of rollouts: the whole history in a list, and every number counted from it anew.

A rollout is a dict; its ticket is its place in the list. Nothing is ever forgotten here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

GONE = ("consumed", "evicted", "aborted")


class RefusedError(Exception):
    """An event that cannot happen to a rollout in that state; it changes nothing."""


@dataclass
class Ledger:
    """The books of an asynchronous trainer.

    Examples
    --------
    >>> ledger = Ledger(batch_size=2, max_staleness=1)
    >>> [ledger.admit("all") for _ in range(5)]
    [0, 1, 2, 3, None]
    >>> ledger.complete(1, [0, 0])
    >>> ledger.capacity()
    0
    """

    batch_size: int
    max_staleness: int
    max_running: int | None = None
    version: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first_version = self.version

    def tickets(self, *states: str) -> list[int]:
        """Tickets in one of these states, in order of admission."""
        return [ticket for ticket, rollout in enumerate(self.history) if rollout["state"] in states]

    def capacity(self) -> int:
        """AReaL (arXiv:2505.24298): min(max_running − running, (η + v + 1)·B − (accepted + running)), 0 at least.

        Accepted: ready, consumed, and B for each version before the first.
        """
        running = len(self.tickets("running"))
        accepted = len(self.tickets("ready", "consumed")) + self.first_version * self.batch_size
        room = (self.max_staleness + self.version + 1) * self.batch_size - (accepted + running)
        if self.max_running is not None:
            room = min(room, self.max_running - running)
        return max(room, 0)

    def admit(self, source: str) -> int | None:
        """A new rollout's ticket, or None."""
        if self.capacity() == 0:
            return None
        self.history.append({"state": "running", "source": source, "admitted": self.version, "requeued": False})
        return len(self.history) - 1

    def complete(self, ticket: int, versions: Sequence[int] | None, *, counted: bool = True) -> None:
        """Running → ready; the version of each token, or None where nobody knows them."""
        if versions is not None and max(versions) > self.version:
            raise RefusedError
        self._move(ticket, "running", "ready", versions=versions, counted=counted)

    def abort(self, ticket: int, reason: str) -> None:
        """Running → aborted."""
        self._move(ticket, "running", "aborted", reason=reason)

    def advance(self, version: int) -> None:
        """The trainer's version, which never falls."""
        if version < self.version:
            raise RefusedError
        self.version = version

    def evict(self, max_lag: int, *, unknown: bool) -> list[int]:
        """Ready → evicted where the oldest token is older than that."""
        gone = []
        for ticket in self.tickets("ready"):
            lag = self.lag(ticket)
            if unknown if lag is None else lag > max_lag:
                self._move(ticket, "ready", "evicted")
                gone.append(ticket)
        return gone

    def take(self, n: int, steps: int) -> tuple[list[list[int]], list[int | None]] | None:
        """Ready → consumed: the minibatches of the n oldest, and each rollout's lag at the step that trains it."""
        oldest = self.tickets("ready")[:n]
        if len(oldest) < n:
            return None
        minibatches: list[list[int]] = [[] for _ in range(steps)]
        lags = []
        for step, minibatch in enumerate(minibatches):
            size = n // steps + (1 if step < n % steps else 0)
            start = sum(len(earlier) for earlier in minibatches[:step])
            for ticket in oldest[start : start + size]:
                lag = self.lag(ticket)
                lags.append(None if lag is None else lag + step)
                self._move(ticket, "ready", "consumed")
                minibatch.append(ticket)
        return minibatches, lags

    def requeue(self, ticket: int) -> None:
        """Evicted or aborted, and to be sampled again; once."""
        if ticket not in self.tickets("evicted", "aborted") or self.history[ticket]["requeued"]:
            raise RefusedError
        self.history[ticket]["requeued"] = True

    def crash(self) -> None:
        """The process that ran the rollouts is gone."""
        for ticket in self.tickets("running"):
            self.abort(ticket, "lost")

    def lag(self, ticket: int) -> int | None:
        """The trainer's version minus the oldest token's, or None where that is not known."""
        rollout = self.history[ticket]
        versions = [rollout["admitted"]] if rollout["state"] == "running" else rollout["versions"]
        return None if versions is None else self.version - min(versions)

    def lags(self) -> dict[str, Any]:
        """Statistics of what is ready."""
        tickets = self.tickets("ready")
        known = [lag for ticket in tickets if (lag := self.lag(ticket)) is not None]
        counted = [self.history[ticket] for ticket in tickets]
        counted = [rollout for rollout in counted if rollout["counted"] and rollout["versions"] is not None]
        tokens = [self.version - version for rollout in counted for version in rollout["versions"]]
        return {
            "rollouts": len(tickets),
            "unknown": len(tickets) - len(known),
            "min": min(known, default=None),
            "max": max(known, default=None),
            "mean": sum(known) / len(known) if known else None,
            "tokens": len(tokens),
            "token_mean": sum(tokens) / len(tokens) if tokens else None,
            "histogram": {lag: known.count(lag) for lag in sorted(set(known))},
        }

    def counts(self, source: str | None = None) -> dict[str, int]:
        """Rollouts of a source, or all, by state."""
        rollouts = [rollout for rollout in self.history if source in (None, rollout["source"])]
        states = ("running", "ready", *GONE)
        by_state = {state: sum(rollout["state"] == state for rollout in rollouts) for state in states}
        return {"admitted": len(rollouts), **by_state}

    def requeued(self, source: str) -> int:
        """Rollouts of a source that are to be sampled again."""
        return sum(rollout["requeued"] for rollout in self.history if rollout["source"] == source)

    def _move(self, ticket: int, before: str, after: str, **more: object) -> None:
        if ticket not in self.tickets(before):
            raise RefusedError
        self.history[ticket] |= {"state": after, **more}
