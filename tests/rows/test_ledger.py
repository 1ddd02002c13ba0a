"""The staleness ledger against the reference on random schedules, from several threads, and through crashes."""

import doctest
import math
import threading
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import grpokit as gk
from grpokit import _native
from grpokit.reference import staleness as ref

SOURCES = ("math", "code", "chat")
REASONS = ("error", "timeout", "cancelled", "rejected", "stale", "lost")
NUMBER = SEED = st.integers(0, 2**32)


class Schedule(RuleBasedStateMachine):
    """Any order of events, right and wrong ones, crashes among them; after each, all that can be asked agrees."""

    @initialize(
        batch_size=st.sampled_from((3, 1, 2, 4)),
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


def test_recovery_without_the_rollouts_is_that_of_areal():
    """accepted := version·B, where every version consumed B."""
    ledger = gk.StalenessLedger(3, 2)
    for _ in range(4):
        while (ticket := ledger.admit()) is not None:
            ledger.complete(ticket)
        ledger.take()
        ledger.advance()
    ledger.admit()
    after = gk.StalenessLedger.restore(ledger.snapshot(), running="lost", ready="lost")
    assert after.capacity == gk.StalenessLedger(3, 2, version=4).capacity == 9
    assert after.starvation()["all"]["evicted"] == 6
    assert after.abort_reasons["lost"] == 1
    assert [after.state(ticket) for ticket in (0, 12, 18)] == ["consumed", "evicted", "aborted"]
    after.requeue(18)
    kept = gk.StalenessLedger.restore(ledger.snapshot(), running="keep")
    assert (kept.running(), len(kept.ready()), kept.capacity) == ([18], 6, 2)


@given(st.integers(1, 4), st.integers(0, 3), SEED, st.integers(1, 3))
def test_what_the_rule_bounds(batch_size, max_staleness, seed, steps):
    """Every version consumes B: what then holds, in whatever order rollouts become ready, fail or are thrown away."""
    random, steps = Random(seed), min(steps, max_staleness + 1)
    ledger = gk.StalenessLedger(batch_size, max_staleness)
    running, ready_at, consumed, lags = [], {}, 0, 0
    for _ in range(12):
        while True:
            while (ticket := ledger.admit()) is not None:
                running.append(ticket)
            if (batch := ledger.take(steps=steps)) is not None:
                break
            ticket = running.pop(random.randrange(len(running)))
            if random.random() < 0.2:
                ledger.abort(ticket)
                continue
            ledger.complete(ticket)
            ready_at[ticket] = ledger.version
            if random.random() < 0.1:
                ledger.evict(random.randrange(max_staleness + 1))
        for step, minibatch in enumerate(batch.minibatches):
            for ticket in minibatch:
                assert ledger.version + step - ready_at[ticket] <= max_staleness
        consumed += len(batch)
        lags += sum(batch.staleness)
        assert lags <= max_staleness * consumed
        for _ in range(steps):
            ledger.advance()
            counts = ledger.counts
            assert counts["running"] + counts["ready"] <= (max_staleness + 1) * batch_size


@given(st.integers(1, 4), st.integers(0, 3), SEED)
def test_in_order_of_admission_every_lag_is_bounded(batch_size, max_staleness, seed):
    ledger = gk.StalenessLedger(batch_size, max_staleness)
    random, running = Random(seed), []
    for _ in range(10):
        while True:
            while (ticket := ledger.admit()) is not None:
                running.append(ticket)
            for _ in range(random.randint(1, 4)):
                if running and random.random() < 0.2:
                    ledger.abort(running.pop(random.randrange(len(running))))
                if running:
                    ledger.complete(running.pop(0))
            if (batch := ledger.take()) is not None:
                break
        assert max(batch.staleness) <= max_staleness
        ledger.advance()


def test_a_slow_rollout_lags_more_than_the_rule_says():
    """What evict is for, and what the rule's bound is not."""
    ledger = gk.StalenessLedger(1, 1)
    slow = ledger.admit()
    for _ in range(6):
        ledger.complete(ledger.admit())
        assert ledger.take().staleness[0] <= 1
        ledger.advance()
    ledger.complete(slow)
    assert ledger.lag(slow) == 6
    assert ledger.evict() == [slow]


def test_synchronous_training():
    ledger = gk.StalenessLedger(batch_size=2, max_staleness=0)
    first = [ledger.admit() for _ in range(3)]
    assert first == [0, 1, None]
    ledger.complete(0)
    ledger.complete(1)
    assert ledger.capacity == 0
    assert ledger.take().staleness == [0, 0]
    assert ledger.admit() is None  # the weights are being trained
    ledger.advance()
    assert ledger.capacity == 2


def test_evicted_rollouts_give_their_place_back():
    ledger = gk.StalenessLedger(batch_size=1, max_staleness=1)
    for ticket in (ledger.admit(), ledger.admit()):
        ledger.complete(ticket, versions=[0])
    ledger.take()
    ledger.advance(3)
    assert (ledger.capacity, ledger.evict(), ledger.capacity) == (3, [1], 4)


def test_a_version_that_takes_less_leaves_more_room():
    """AReaL's total drifts where a version does not consume B; the documentation says so."""
    ledger = gk.StalenessLedger(batch_size=4, max_staleness=0)
    ledger.advance()
    assert ledger.capacity == 8
    begun = gk.StalenessLedger(batch_size=4, max_staleness=0, version=1)
    assert begun.capacity == 4


def test_finished_tickets_are_forgotten_after_4096():
    ledger = gk.StalenessLedger(batch_size=1, max_staleness=0)
    for _ in range(5000):
        ledger.abort(ledger.admit())
    assert [ledger.state(ticket) for ticket in (903, 904, 4999, 5000)] == [
        "forgotten",
        "aborted",
        "aborted",
        "never issued",
    ]
    with pytest.raises(gk.InputError, match="last 4096 finished") as caught:
        ledger.requeue(903)
    assert caught.value.kind == "ledger_ticket"
    ledger.requeue(904)
    again = gk.StalenessLedger.restore(ledger.snapshot())
    assert [again.state(ticket) for ticket in (903, 904)] == ["forgotten", "requeued"]
    # As many as may be under way, so that all of one eviction can be requeued.
    large = gk.StalenessLedger(batch_size=5000, max_staleness=0)
    for _ in range(5000):
        large.complete(large.admit())
    large.advance()
    for ticket in large.evict(0):
        large.requeue(ticket)
    assert large.starvation()["all"]["requeued"] == 5000


@pytest.mark.parametrize("threads", [2, 5])
def test_threads(threads):
    """Each thread drives rollouts of its own; the books add up whenever they are looked at."""
    rounds, batch_size = 300, 8
    ledger = gk.StalenessLedger(batch_size, 2, sources=[f"thread {i}" for i in range(threads)])
    done, results, wrong = threading.Event(), [{} for _ in range(threads)], []

    def work(me):
        mine = results[me] = {"admitted": set(), "completed": set(), "aborted": 0}
        while len(mine["admitted"]) < rounds and not done.is_set():
            ticket = ledger.admit(f"thread {me}")
            if ticket is None:
                continue
            mine["admitted"].add(ticket)
            if ticket % 3:
                ledger.complete(ticket, spans=[(0, 1 + ticket % 5)])
                mine["completed"].add(ticket)
            else:
                ledger.abort(ticket, "cancelled")
                mine["aborted"] += 1

    def train(taken):
        while not done.is_set():
            if (batch := ledger.take()) is not None:
                taken.extend(batch.tickets)
                ledger.advance()

    def look():
        while not done.is_set():
            counts = ledger.counts
            if counts["admitted"] != sum(counts.values()) - counts["admitted"]:
                wrong.append(counts)
            again = gk.StalenessLedger.restore(ledger.snapshot(), running="keep").counts
            if again["admitted"] != sum(again.values()) - again["admitted"]:
                wrong.append(again)

    taken = []
    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    others = [threading.Thread(target=train, args=(taken,)), threading.Thread(target=look)]
    for thread in (*workers, *others):
        thread.start()
    for thread in workers:
        thread.join(timeout=120)
    done.set()
    for thread in others:
        thread.join(timeout=120)
    assert not wrong
    assert all(len(mine["admitted"]) == rounds for mine in results)
    assert set().union(*(mine["admitted"] for mine in results)) == set(range(threads * rounds))
    completed = set().union(*(mine["completed"] for mine in results))
    assert len(taken) == len(set(taken))
    assert set(taken) | set(ledger.ready()) == completed
    for me, books in enumerate(ledger.starvation().values()):
        assert books["admitted"] == rounds
        assert books["aborted"] == results[me]["aborted"]
        assert books["consumed"] + books["ready"] == len(results[me]["completed"])
        assert books["running"] == 0


def test_tickets_and_numbers_of_numpy():
    ledger = gk.StalenessLedger(np.int64(2), np.int32(0), version=np.uint8(3))
    ledger.admit()
    ledger.complete(np.int64(0), spans=[(np.int64(3), np.int32(7))])
    assert ledger.span(np.uint64(0)).tokens == 7
    assert ledger.advance(np.int64(5)) == 5


def test_examples_of_the_native_class():
    (test,) = doctest.DocTestFinder(recurse=False).find(gk.StalenessLedger, module=_native)
    assert doctest.DocTestRunner().run(test) == (0, len(test.examples))
    assert len(test.examples) > 5
