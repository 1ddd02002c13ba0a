"""What the ledger refuses: wrong events, which change nothing, and snapshots that are not what was written."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk

SOURCES = ("math", "code", "chat")


def filled(seed=0):
    """A ledger with rollouts in every state."""
    ledger = gk.StalenessLedger(4, 2, max_running=7, version=5, sources=SOURCES)
    tickets = [ledger.admit(SOURCES[(i + seed) % 3]) for i in range(7)]
    ledger.complete(tickets[0], versions=[3, 4, 5])
    ledger.complete(tickets[1], unknown=True)
    ledger.complete(tickets[3])
    ledger.abort(tickets[2], "timeout")
    ledger.take(1)
    ledger.advance()
    ledger.complete(tickets[5], spans=[(1, 7), (6, 2)])
    ledger.evict(3)
    ledger.requeue(tickets[5])
    return ledger


def test_every_state_is_in_what_is_corrupted():
    assert filled().counts == {"admitted": 7, "running": 2, "ready": 2, "consumed": 1, "evicted": 1, "aborted": 1}


@given(st.integers(0, 2), st.data())
def test_a_changed_snapshot_is_refused(seed, data):
    snapshot = filled(seed).snapshot()
    place = data.draw(st.integers(0, len(snapshot) - 1))
    change = data.draw(st.integers(1, 255))
    length = data.draw(st.integers(0, len(snapshot) - 1))
    changed = snapshot[:place] + bytes([snapshot[place] ^ change]) + snapshot[place + 1 :]
    for wrong in (changed, snapshot[:length], snapshot + b"\0", b"", data.draw(st.binary(max_size=300))):
        with pytest.raises(gk.InputError) as caught:
            gk.StalenessLedger.restore(wrong)
        assert caught.value.kind == "ledger_snapshot"


def test_a_snapshot_of_another_schema_says_so():
    snapshot = bytearray(filled().snapshot())
    snapshot[8] += 1
    with pytest.raises(gk.InputError, match="a snapshot of schema 2, expected 1"):
        gk.StalenessLedger.restore(bytes(snapshot))


REENTRANT = """
import sys
import grpokit as gk
ledger = gk.StalenessLedger(1, 0)
seen = []
sys.setprofile(lambda *_: seen.append(ledger.counts["admitted"]))
for call in (lambda: ledger.complete(7), lambda: ledger.take(1, 2), lambda: ledger.lag(0), ledger.starvation):
    try:
        call()
    except gk.GrpokitError:
        seen.append("refused")
sys.setprofile(None)
print(seen.count("refused"), len(seen) > 9)
"""


def test_errors_are_made_when_the_books_are_free():
    """A signal handler that runs while an error is made may save a snapshot; it must not wait for itself."""
    done = subprocess.run([sys.executable, "-c", REENTRANT], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3", "True"], done.stderr


def busy():
    ledger = gk.StalenessLedger(2, 1, sources=["math", "code"])
    for _ in range(4):
        ledger.admit("math")
    ledger.complete(0)
    ledger.complete(1)
    ledger.take(1)
    return ledger


L = gk.StalenessLedger
WRONG = {
    "ledger_ticket": [
        (lambda: busy().complete(9), ["ticket 9", "4 were given out"]),
        (lambda: busy().abort("x"), ["ticket 'x'", "no whole number"]),
        (lambda: busy().requeue(-1), ["ticket -1"]),
        (lambda: busy().lag(None), ["ticket None", "admit()"]),
        (lambda: busy().span(True), ["ticket True"]),
        (lambda: busy().state(2**70), ["no whole number"]),
    ],
    "ledger_state": [
        (lambda: busy().complete(1), ["ticket 1 is ready", "complete() needs one that is running"]),
        (lambda: busy().complete(0), ["ticket 0 is consumed"]),
        (lambda: busy().abort(1), ["ticket 1 is ready", "abort() needs one that is running"]),
        (lambda: busy().requeue(2), ["ticket 2 is running", "evicted or aborted"]),
        (lambda: busy().requeue(0), ["ticket 0 is consumed"]),
        (lambda: busy().span(2), ["ticket 2 is running", "span() needs one that is ready"]),
        (lambda: busy().lag(0), ["ticket 0 is consumed", "running or ready"]),
    ],
    "ledger_version": [
        (lambda: busy().complete(2, versions=[0, 1]), ["newest token", "is 1", "at version 0", "advance()"]),
        (lambda: L(1, 1, version=4).advance(3), ["new version is 3", "version 4", "never fall"]),
    ],
    "bad_parameter": [
        (lambda: L(0, 1), ["batch_size=0", "1 or more"]),
        (lambda: L(1, -1), ["max_staleness=-1", "0 or more"]),
        (lambda: L(1.5, 1), ["batch_size=1.5"]),
        (lambda: L(True, 1), ["batch_size=True"]),
        (lambda: L(1, 1, 0), ["max_running=0"]),
        (lambda: L(1, 1, version=2**53), ["version=9007199254740992", "below 2**53"]),
        (lambda: L(1, 1, sources=[]), ["sources=[]"]),
        (lambda: L(1, 1, sources=["a", "a"]), ["different"]),
        (lambda: L(1, 1, sources="math"), ["sources='math'"]),
        (lambda: busy().admit(), ["source=None", "'math', 'code'"]),
        (lambda: busy().admit("chat"), ["source='chat'", "'math', 'code'"]),
        (lambda: busy().admit(0), ["source=0"]),
        (lambda: busy().complete(2, versions=[]), ["versions=[]", "unknown=True"]),
        (lambda: busy().complete(2, spans=[]), ["spans=[]", "one token"]),
        (lambda: busy().complete(2, spans=[(0, 0)]), ["spans=[(0, 0)]"]),
        (lambda: busy().complete(2, versions=[-1, 0]), ["version -1 at place 0"]),
        (lambda: busy().complete(2, versions=[0.5]), ["versions=[0.5]"]),
        (lambda: busy().complete(2, spans=[(0, 3), (0, -2)]), ["-2 tokens at place 1"]),
        (lambda: busy().complete(2, spans=[(0, 2**62), (0, 2**62)]), ["at place 0", "2**53"]),
        (lambda: busy().complete(2, spans=[0]), ["spans=[0]", "pairs"]),
        (lambda: busy().complete(2, versions=[0], spans=[(0, 1)]), ["only one of"]),
        (lambda: busy().complete(2, versions=[0], unknown=True), ["only one of"]),
        (lambda: busy().abort(2, "bored"), ["reason='bored'", "'timeout'"]),
        (lambda: busy().abort(2, 7), ["reason=7", "'cancelled'"]),
        (lambda: busy().advance("1"), ["version='1'"]),
        (lambda: L(1, 1, version=2**53 - 1).advance(), ["version=9007199254740992"]),
        (lambda: busy().evict(-1), ["max_lag=-1"]),
        (lambda: busy().evict(1, unknown=3), ["unknown=3", "True or False"]),
        (lambda: busy().evict(unknown=None), ["unknown=None"]),
        (lambda: busy().complete(2, unknown=1), ["unknown=1", "True or False"]),
        (lambda: busy().complete(2, unknown="yes"), ["unknown='yes'"]),
        (lambda: busy().take(0), ["n=0"]),
        (lambda: busy().take(1, steps=2), ["steps=2", "from 1 to the 1"]),
        (lambda: busy().take(1, steps=0), ["steps=0"]),
        (lambda: L.restore(busy().snapshot(), running="gone"), ["running='gone'", "'keep'"]),
        (lambda: L.restore(busy().snapshot(), ready="gone"), ["ready='gone'"]),
    ],
    "parameter_type": [
        (
            lambda: L.restore("x"),
            ["StalenessLedger.restore: snapshot is of type str", "bytes that snapshot() returned"],
        ),
        (lambda: L.restore(list(busy().snapshot())), ["of type list;"]),
        (lambda: L.restore(None), ["of type NoneType"]),
    ],
    "ledger_snapshot": [(lambda: L.restore(b"x"), ["1 bytes that are no snapshot", "StalenessLedger(version="])],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_refused(kind):
    for provoke, words in WRONG[kind]:
        with pytest.raises(gk.GrpokitError) as caught:
            provoke()
        assert caught.value.kind == kind, caught.value
        for word in words:
            assert word in str(caught.value), (word, str(caught.value))
        assert len(str(caught.value)) < 300


def test_a_refused_call_changes_nothing():
    ledger = busy()
    before = ledger.snapshot()
    calls = (
        lambda: ledger.complete(2, versions=[5]),
        lambda: ledger.complete(1),
        lambda: ledger.abort(0),
        lambda: ledger.requeue(3),
        lambda: ledger.take(2, steps=3),
        lambda: ledger.admit("chat"),
    )
    for call in calls:
        with pytest.raises(gk.GrpokitError):
            call()
    assert ledger.take() is None
    assert ledger.snapshot() == before


def test_what_a_person_reads():
    ledger = busy()
    assert repr(ledger) == (
        "<StalenessLedger version=0 capacity=0 admitted=4 running=2 ready=1 consumed=1 evicted=0 aborted=0>"
    )
    assert repr(ledger.span(1)) == "VersionSpan(oldest=0, newest=0, mean=0.0, tokens=None)"
    assert repr(ledger.lags()) == (
        "LagStatistics(rollouts=1, unknown=0, min=0, max=0, mean=0.0, tokens=0, token_mean=None, histogram={0: 1})"
    )
    assert repr(ledger.take(1)) == "<TakenBatch version=0 rollouts=1 minibatches=1>"
