"""The staleness ledger against the reference on random schedules: of one thread, of several at once, with crashes."""

import math
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import grpokit as gk
from grpokit.reference import staleness as ref

SOURCES = ("math", "code", "chat")
REASONS = ("error", "timeout", "cancelled", "rejected", "stale", "lost")
NUMBER = st.integers(0, 2**32)
EVENTS = st.sampled_from(("admit", "admit", "complete", "complete", "abort", "requeue", "evict", "take"))


@dataclass
class Call:
    """An event of one thread: on which ticket, whether that was in the right state before, and what it gave."""

    name: str
    number: int
    ticket: int
    fits: bool
    result: Any = None

    def to(self, ledger):
        """The call itself; the number says the rest."""
        n = self.number
        how = ({}, {"unknown": True}, {"spans": self.spans(ledger.version)})[n % 3]
        calls = {
            "admit": lambda: ledger.admit(SOURCES[n % 3]),
            "complete": lambda: ledger.complete(self.ticket, **how),
            "abort": lambda: ledger.abort(self.ticket, REASONS[n % 6]),
            "requeue": lambda: ledger.requeue(self.ticket),
            "evict": lambda: ledger.evict(n % 3, unknown=n % 2 == 0),
            "take": lambda: ledger.take(1 + n % 4),
        }
        try:
            self.result = calls[self.name]()
        except (gk.StateError, gk.InputError) as refusal:
            self.result = refusal
        return self.result

    def spans(self, version):
        return [(self.number % (version + 1), 1), (version, 1)]

    @property
    def refused(self):
        return isinstance(self.result, Exception)


def drive(ledger, events, fitting, issued):
    """One thread's calls, on tickets that all threads want and on those that it got itself."""
    fitting = {name: list(tickets) for name, tickets in fitting.items()}
    calls = []
    for name, number in events:
        fits = bool(fitting.get(name)) and number % 5 < 4
        tickets = fitting[name] if fits else range(issued + 1)
        call = Call(name, number, tickets[number // 5 % len(tickets)], fits)
        calls.append(call)
        result = call.to(ledger)
        if name == "admit" and result is not None:
            fitting["complete"].append(result)
            fitting["abort"].append(result)
        elif name == "evict":
            fitting["requeue"] += result
        elif name == "abort" and not call.refused:
            fitting["requeue"].append(call.ticket)
    return calls


def at_once(works):
    """What each of them returns, all of them begun together, each in its thread."""
    start, awake, results, failures = threading.Barrier(len(works)), [], [None] * len(works), []

    def run(me):
        try:
            start.wait(timeout=60)
            awake.append(me)
            while len(awake) < len(works):
                pass  # the first would be done before the last wakes up
            results[me] = works[me]()
        except Exception as failure:  # noqa: BLE001 (raised again where the test sees it)
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(me,)) for me in range(len(works))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    finally:
        sys.setswitchinterval(interval)
    if failures:
        raise failures[0]
    return results


class Schedule(RuleBasedStateMachine):
    """Any order of events, right and wrong ones, crashes among them; after each, all that can be asked agrees."""

    @initialize(
        batch_size=st.sampled_from((3, 1, 2, 4, 16)),
        max_staleness=st.sampled_from((2, 0, 1, 3)),
        max_running=st.sampled_from((None, 1, 3, 6)),
        version=st.integers(0, 3),
    )
    def begin(self, **limits):
        self.ledger = gk.StalenessLedger(**limits, sources=SOURCES)
        self.model = ref.Ledger(**limits)
        self.since = dict.fromkeys(SOURCES, 0)

    def some_ticket(self, number, *states):
        """Mostly a ticket that the event is for, sometimes any other, or one that was never given out."""
        fitting = self.model.tickets(*states)
        tickets = fitting if number % 5 < 4 and fitting else range(len(self.model.history) + 1)
        return tickets[(number // 5) % len(tickets)]

    def both(self, ours, theirs, ticket=None):
        """Both refuse, ours by a named error, or neither does."""
        try:
            theirs()
        except ref.RefusedError:
            with pytest.raises((gk.StateError, gk.InputError)) as caught:
                ours()
            kinds = {"ledger_ticket"} if ticket == len(self.model.history) else {"ledger_state", "ledger_version"}
            assert caught.value.kind in kinds
        else:
            ours()

    @rule(source=st.sampled_from(SOURCES), times=st.integers(1, 8))
    def admit(self, source, times):
        for _ in range(times):
            assert self.ledger.admit(source) == self.model.admit(source)

    @rule(sources=st.lists(st.sampled_from(SOURCES), min_size=1, max_size=4), keep=st.integers(0, 2))
    def train(self, sources, keep):
        """Steps in which nothing goes wrong."""
        for source in sources:
            self.admit(source, self.model.capacity() + 1)
            for ticket in self.model.tickets("running")[keep:]:
                self.ledger.complete(ticket)
                self.model.complete(ticket, [self.model.history[ticket]["admitted"]], counted=False)
            self.take(None, 1)
            self.advance(1)

    @rule(numbers=st.lists(NUMBER, min_size=1, max_size=8))
    def complete(self, numbers):
        for number in numbers:
            self.complete_one(number)

    def complete_one(self, number):
        ticket = self.some_ticket(number, "running")
        admitted = self.model.history[ticket]["admitted"] if ticket < len(self.model.history) else 0
        self.both(
            lambda: self.ledger.complete(ticket),
            lambda: self.model.complete(ticket, [admitted], counted=False),
            ticket,
        )

    @rule(number=NUMBER, versions=st.lists(st.integers(0, 6), min_size=1, max_size=5), how=st.integers(0, 3))
    def complete_with_versions(self, number, versions, how):
        ticket = self.some_ticket(number, "running")
        # The trainer's version bounds them, mostly.
        versions = [min(version, self.model.version) for version in versions] if number % 8 else versions
        spans = [(version, versions.count(version)) for version in sorted(set(versions))] + [(self.model.version, 0)]
        given = [
            {"versions": versions},
            {"versions": np.array(versions, np.int32 if number % 2 else np.int64)},
            {"spans": spans},
            {"spans": tuple(spans[::-1])},
        ][how]
        self.both(lambda: self.ledger.complete(ticket, **given), lambda: self.model.complete(ticket, versions), ticket)

    @rule(number=NUMBER)
    def complete_without_knowing(self, number):
        ticket = self.some_ticket(number, "running")
        self.both(lambda: self.ledger.complete(ticket, unknown=True), lambda: self.model.complete(ticket, None), ticket)

    @rule(number=NUMBER, reason=st.sampled_from(REASONS))
    def abort(self, number, reason):
        ticket = self.some_ticket(number, "running")
        self.both(lambda: self.ledger.abort(ticket, reason), lambda: self.model.abort(ticket, reason), ticket)

    @rule(jump=st.integers(-1, 3))
    def advance(self, jump):
        if jump == 1:
            assert self.ledger.advance() == self.model.version + 1
            self.model.advance(self.model.version + 1)
        elif self.model.version + jump >= 0:
            version = self.model.version + jump
            self.both(lambda: self.ledger.advance(version), lambda: self.model.advance(version))

    @rule(max_lag=st.sampled_from((0, 1, None, 2)), unknown=st.booleans())
    def evict(self, max_lag, unknown):
        bound = self.model.max_staleness if max_lag is None else max_lag
        gone = self.model.evict(bound, unknown=unknown)
        assert self.ledger.evict(max_lag, unknown=unknown) == gone
        for ticket in gone:
            self.since[self.model.history[ticket]["source"]] += 1

    @rule(n=st.none() | st.integers(1, 6), steps=st.integers(1, 3))
    def take(self, n, steps):
        if n is not None and n < steps:
            with pytest.raises(gk.InputError, match="from 1 to the"):
                self.ledger.take(n, steps)
            return
        spans = {ticket: self.ledger.span(ticket) for ticket in self.ledger.ready()}
        batch = self.ledger.take(n, steps)
        expected = self.model.take(self.model.batch_size * steps if n is None else n, steps)
        if expected is None:
            assert batch is None
            return
        minibatches, lags = expected
        assert batch.minibatches == minibatches
        assert batch.tickets == [ticket for minibatch in minibatches for ticket in minibatch]
        assert len(batch) == len(batch.tickets)
        assert batch.staleness == lags
        assert batch.spans == [spans[ticket] for ticket in batch.tickets]
        assert batch.version == self.model.version
        known = [lag for lag in lags if lag is not None]
        assert (batch.lags.rollouts, batch.lags.unknown) == (len(lags), len(lags) - len(known))
        assert (batch.lags.min, batch.lags.max) == (min(known, default=None), max(known, default=None))
        assert batch.lags.histogram == {lag: known.count(lag) for lag in sorted(set(known))}
        for ticket in batch.tickets:
            self.since[self.model.history[ticket]["source"]] = 0

    @rule(number=NUMBER)
    def requeue(self, number):
        ticket = self.some_ticket(number, "evicted", "aborted")
        self.both(lambda: self.ledger.requeue(ticket), lambda: self.model.requeue(ticket), ticket)

    @rule(
        threads=st.lists(st.lists(st.tuples(EVENTS, NUMBER), min_size=1, max_size=12), min_size=2, max_size=4),
        before=st.integers(0, 4),
    )
    def several_threads(self, threads, before):
        """Whatever the order was, what they were told adds up, no ticket went twice, and the books agree afterwards."""
        for source in SOURCES:
            self.admit(source, before)
        for ticket in self.model.tickets("running")[before:]:
            self.ledger.complete(ticket)
            self.model.complete(ticket, [self.model.history[ticket]["admitted"]], counted=False)
        model, room, ready = self.model, self.model.capacity(), self.model.tickets("ready")
        issued, running = len(model.history), model.tickets("running")
        gone = [ticket for ticket in model.tickets("evicted", "aborted") if not model.history[ticket]["requeued"]]
        fitting = {"complete": running, "abort": running, "requeue": gone}
        # A thread's turn takes some 50 µs at least, which is more than a short list does.
        threads = [[(name, number + 7 * again) for again in range(8) for name, number in events] for events in threads]
        of_threads = at_once([lambda events=events: drive(self.ledger, events, fitting, issued) for events in threads])
        calls = [call for calls in of_threads for call in calls]
        self.replay(calls, issued)
        self.check_threads(calls, issued, room, ready)
        for calls in of_threads:
            own = [call.result for call in calls if call.name == "admit" and call.result is not None]
            assert own == sorted(own)

    def replay(self, calls, issued):
        """Tells the model, in an order that is always possible; it refuses what happened twice."""
        model, done = self.model, {name: [] for name in ("admit", "complete", "abort", "evict", "take", "requeue")}
        for call in calls:
            if not call.refused:
                done[call.name].append(call)
        admitted = {call.result: SOURCES[call.number % 3] for call in done["admit"] if call.result is not None}
        assert len(admitted) == sum(call.result is not None for call in done["admit"])
        assert sorted(admitted) == list(range(issued, issued + len(admitted)))
        for _, source in sorted(admitted.items()):
            model.history.append({"state": "running", "source": source, "admitted": model.version, "requeued": False})
        for call in done["complete"]:
            spans = [[model.history[call.ticket]["admitted"]], None, [v for v, _ in call.spans(model.version)]]
            model.complete(call.ticket, spans[call.number % 3], counted=call.number % 3 == 2)
        for call in done["abort"]:
            model.abort(call.ticket, REASONS[call.number % 6])
        evicted = [ticket for call in done["evict"] for ticket in call.result]
        consumed = [ticket for call in done["take"] if call.result for ticket in call.result.tickets]
        for state, tickets in (("evicted", evicted), ("consumed", consumed)):
            for ticket in tickets:
                model._move(ticket, "ready", state)
        for call in done["requeue"]:
            model.requeue(call.ticket)
        for source, books in self.ledger.starvation().items():
            thrown, used = (
                [model.history[t]["source"] for t in tickets].count(source) for tickets in (evicted, consumed)
            )
            since = books["evicted_since_consumed"]
            # Only they know which of them came last.
            assert (0 if used else self.since[source] + thrown) <= since <= (0 if used else self.since[source]) + thrown
            self.since[source] = since

    def check_threads(self, calls, issued, room, ready):
        model, gone = self.model, 0
        for call in calls:
            if call.refused:
                self.check_refusal(call, issued)
            elif call.name == "evict":
                gone += len(call.result)
                assert call.result == sorted(call.result)
                assert all(self.too_old(call, ticket) for ticket in call.result)
                assert not any(self.too_old(call, ticket) for ticket in ready if ticket in model.tickets("ready"))
            elif call.name == "take" and call.result is not None:
                tickets = call.result.tickets
                gone += len(tickets)
                assert tickets == sorted(tickets)
                assert len(tickets) == 1 + call.number % 4
                assert call.result.staleness == [model.lag(ticket) for ticket in tickets]
                assert not any(ticket in model.tickets("ready") for ticket in ready if ticket < tickets[-1])
        for call in calls:
            # What was ready before and nobody got was there for it.
            assert call.name != "take" or call.result is not None or len(ready) - gone < 1 + call.number % 4
        admits = [call.result is not None for call in calls if call.name == "admit"]
        assert sum(admits) >= min(len(admits), room)
        versions = model.max_staleness + model.version - model.first_version + 1
        assert len(model.tickets("running", "ready", "consumed")) <= versions * model.batch_size
        assert model.max_running is None or len(model.tickets("running")) <= model.max_running

    def check_refusal(self, call, issued):
        """Right when it was said: a ticket that could be had went to another call."""
        if call.result.kind == "ledger_ticket":
            assert call.ticket >= issued
            return
        assert call.result.kind == "ledger_state"
        rollout = self.model.history[call.ticket]
        assert not call.fits or (rollout["requeued"] if call.name == "requeue" else rollout["state"] != "running")

    def too_old(self, call, ticket):
        lag = self.model.lag(ticket)
        return call.number % 2 == 0 if lag is None else lag > call.number % 3

    @rule(crash=st.sampled_from((False, False, False, True)))
    def save_and_restore(self, crash):
        snapshot = self.ledger.snapshot()
        self.ledger = gk.StalenessLedger.restore(snapshot, running="keep")
        assert self.ledger.snapshot() == snapshot
        if crash:
            self.ledger = gk.StalenessLedger.restore(snapshot)
            self.model.crash()

    @invariant()
    def all_agree(self):
        if not hasattr(self, "ledger"):
            return
        ledger, model = self.ledger, self.model
        counts = ledger.counts
        assert counts == model.counts()
        assert counts["admitted"] == sum(counts.values()) - counts["admitted"]
        assert (ledger.capacity, ledger.version) == (model.capacity(), model.version)
        assert (ledger.running(), ledger.ready()) == (model.tickets("running"), model.tickets("ready"))
        for ticket, rollout in enumerate(model.history):
            state = "requeued" if rollout["requeued"] else rollout["state"]
            assert ledger.state(ticket) == state
            if state in ("running", "ready"):
                assert ledger.lag(ticket) == model.lag(ticket)
            if state == "ready":
                self.check_span(ledger.span(ticket), rollout)
        expected = model.lags()
        given = ledger.lags()
        for name, value in expected.items():
            assert getattr(given, name) == value or math.isclose(getattr(given, name), value, rel_tol=1e-15), name
        assert list(given.histogram) == list(expected["histogram"])
        self.check_sources()

    def check_span(self, span, rollout):
        versions = rollout["versions"]
        if versions is None:
            assert span is None
            return
        assert (span.oldest, span.newest) == (min(versions), max(versions))
        assert span.tokens == (len(versions) if rollout["counted"] else None)
        assert math.isclose(span.mean, sum(versions) / len(versions), rel_tol=1e-15)

    def check_sources(self):
        total = self.model.counts()
        for source, books in self.ledger.starvation().items():
            expected = self.model.counts(source)
            assert {name: books[name] for name in expected} == expected
            assert books["requeued"] == self.model.requeued(source)
            assert books["evicted_since_consumed"] == self.since[source]
            for name in ("admitted", "consumed"):
                assert books[f"share_{name}"] == (expected[name] / total[name] if total[name] else 0.0)
        reasons = [rollout["reason"] for rollout in self.model.history if rollout["state"] == "aborted"]
        assert self.ledger.abort_reasons == {reason: reasons.count(reason) for reason in REASONS}


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(stateful_step_count=40)
