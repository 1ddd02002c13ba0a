"""The staleness ledger: what its rule bounds, recovery, what it remembers, and threads."""

import doctest
import mmap
import subprocess
import sys
import threading
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk
from grpokit import _native

SEED = st.integers(0, 2**32)


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


MANY = """
import grpokit as gk
many = 2**20
ledger = gk.StalenessLedger(many, 0)
for _ in range(many + 1):
    if (ticket := ledger.admit()) is not None:
        ledger.complete(ticket)
ledger.advance()
states = set()
for ticket in ledger.evict(0):
    states.add(ledger.state(ticket))
    ledger.requeue(ticket)
again = gk.StalenessLedger.restore(ledger.snapshot())
print(states, ledger.state(0), again.state(0), again.starvation()["all"]["requeued"])
ledger.abort(ledger.admit())
print(ledger.state(0), ledger.state(1))
"""


def test_a_million_finished_tickets_are_found_at_once():
    """Looking through all of them for each would take many minutes: what the guard is for."""
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["{'evicted'} requeued requeued 1048576", "forgotten requeued"], done.stderr


def test_snapshots_in_any_buffer(tmp_path):
    ledger = gk.StalenessLedger(4, 2)
    ledger.complete(ledger.admit(), spans=[(0, 9)])
    snapshot = ledger.snapshot()
    path = tmp_path / "ledger"
    path.write_bytes(snapshot)
    twice = bytes(byte for byte in snapshot for _ in range(2))
    numbers = np.frombuffer(snapshot, np.uint8)
    for same in (
        bytearray(snapshot),
        memoryview(snapshot),
        memoryview(twice)[::2],
        memoryview(snapshot).cast("c"),
        numbers,
    ):
        assert gk.StalenessLedger.restore(same).snapshot() == snapshot
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert gk.StalenessLedger.restore(mapped).snapshot() == snapshot


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
    assert ledger.evict(np.int8(0), unknown=np.False_) == [0]
    ledger.complete(ledger.admit(), unknown=np.True_)
    assert ledger.evict(9, unknown=np.True_) == [1]


def test_examples_of_the_native_class():
    (test,) = doctest.DocTestFinder(recurse=False).find(gk.StalenessLedger, module=_native)
    assert doctest.DocTestRunner().run(test) == (0, len(test.examples))
    assert len(test.examples) > 5
