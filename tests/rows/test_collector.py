"""The collector: every row comes out once, whatever the order; and what it says when rows are missing or too many."""

import copy
import pickle
import threading
from collections import Counter
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk


@st.composite
def interleaved(draw, *, min_size=1):
    """Groups' sizes, and the rows of all of them in any order: (key, number within the group)."""
    sizes = draw(st.lists(st.integers(min_size, 5), max_size=8))
    rows = [(key, i) for key, size in enumerate(sizes) for i in range(size)]
    return sizes, draw(st.permutations(rows))


def adds_up(collector):
    counts = collector.counts
    waiting = sum(leftover.have for leftover in collector.leftovers)
    assert counts["added"] == counts["handed_out"] + counts["waiting"] + counts["late"]
    assert counts["waiting"] == waiting


@given(interleaved())
def test_every_row_comes_out_once_in_order_of_arrival(data):
    sizes, rows = data
    collector = gk.GroupCollector(size="n")
    groups = []
    for at, (key, i) in enumerate(rows):
        row = {"n": sizes[key], "i": i, "at": at}
        done = collector.add(key, row)
        assert len(done) <= 1
        # It is complete with this very row.
        assert all(group.rows[-1] is row for group in done)
        groups += done
        adds_up(collector)
    assert sorted(group.key for group in groups) == list(range(len(sizes)))
    for group in groups:
        assert group.complete
        assert group.expected == sizes[group.key] == len(group.rows)
        assert [row["at"] for row in group.rows] == sorted(row["at"] for row in group.rows)
        assert {row["i"] for row in group.rows} == set(range(sizes[group.key]))
    assert collector.leftovers == []
    assert collector.counts == {"added": len(rows), "handed_out": len(rows), "waiting": 0, "late": 0}


@given(interleaved(), st.integers(1, 4), st.sets(st.integers(0, 40)), st.integers(1, 6))
def test_rows_in_are_rows_out_waiting_or_late(data, size, closes, max_rows):
    """With surplus and missing rows, closing in between and little memory."""
    _, rows = data
    max_rows = max(max_rows, size - 1)
    collector = gk.GroupCollector(size=size, max_rows=max_rows)
    groups, late, refused = [], [], []
    for at, (key, i) in enumerate(rows):
        try:
            groups += collector.add(key, (key, i))
        except gk.StateError as full:
            assert full.kind == "collector_full"
            refused.append((key, i))
        if at in closes:
            groups += collector.close(rows[at // 2][0])
            late += collector.take_late()
            collector = copy.copy(collector) if at % 2 else pickle.loads(pickle.dumps(collector))
        adds_up(collector)
        assert collector.counts["waiting"] <= max_rows
    late += collector.take_late()
    assert collector.counts["late"] == len(late)
    groups += collector.close()
    out = [row for group in groups for row in group.rows] + [row for _, row in late] + refused
    assert Counter(out) == Counter(rows)
    keys = [group.key for group in groups]
    assert len(set(keys)) == len(keys)
    for group in groups:
        assert {key for key, _ in group.rows} == {group.key}
        assert len(group.rows) <= size
        assert group.complete == (len(group.rows) == size)
        where = [rows.index(row) for row in group.rows]
        assert where == sorted(where)
        assert all(rows.index(row) > where[0] for key, row in late if key == group.key)


def test_closing_says_when_a_group_is_complete():
    collector = gk.GroupCollector(size=None)
    for key, row in [("a", 1), ("b", 2), ("a", 3), ("c", 4)]:
        assert collector.add(key, row) == []
    assert collector.leftovers == [("a", 2, None), ("b", 1, None), ("c", 1, None)]
    (group,) = collector.close("a")
    assert (group.key, group.rows, group.expected, group.complete) == ("a", [1, 3], None, True)
    assert collector.close("a", "nobody") == []
    # Nothing is remembered of a key that did not wait.
    assert collector.add("nobody", 5) == collector.take_late() == []
    assert [group.rows for group in collector.close("nobody")] == [[5]]
    assert [group.key for group in collector.close("c", "b", "c")] == ["c", "b"]
    assert collector.close() == []


def test_late_rows_are_kept_apart():
    collector = gk.GroupCollector(size=2)
    collector.add(("step 1", 7), "x")
    assert [group.rows for group in collector.add(("step 1", 7), "y")] == [["x", "y"]]
    assert collector.add(("step 1", 7), "surplus") == []
    collector.add("b", "z")
    collector.close("b")
    collector.add("b", "late")
    assert collector.counts == {"added": 5, "handed_out": 3, "waiting": 0, "late": 2}
    assert collector.take_late() == [(("step 1", 7), "surplus"), ("b", "late")]
    assert collector.take_late() == []
    assert collector.counts["late"] == 2
    assert repr(collector) == "<GroupCollector size=2 added=5 handed_out=3 waiting=0 late=2>"


def test_the_bound_on_what_is_remembered():
    """A row that comes after its group is forgotten begins another one; that is seen as a leftover."""
    collector = gk.GroupCollector(size=1, remember=2)
    for key in "abc":
        assert len(collector.add(key, key)) == 1
    collector.add("c", "late")
    collector.add("b", "late")
    assert [late.key for late in collector.take_late()] == ["c", "b"]
    assert [group.rows for group in collector.add("a", "again")] == [["again"]]


def test_the_bound_on_rows():
    collector = gk.GroupCollector(size=3, max_rows=4)
    for key in "aabc":
        collector.add(key, key)
    before = collector.leftovers
    with pytest.raises(gk.StateError) as caught:
        collector.add("d", "d")
    for words in ("4 rows of 3 groups wait", "0 late", "max_rows=4", "'d' was not taken", "'a' with 2 rows", "close("):
        assert words in str(caught.value)
    assert caught.value.kind == "collector_full"
    assert collector.leftovers == before
    # The row that completes a group is taken, or nothing could go on.
    assert [group.rows for group in collector.add("a", "last")] == [["a", "a", "last"]]
    collector.add("a", "late")
    collector.add("a", "late")
    with pytest.raises(gk.StateError, match="2 late ones"):
        collector.add("a", "late")
    assert collector.counts == {"added": 7, "handed_out": 3, "waiting": 2, "late": 2}
    collector.take_late()
    collector.add("a", "late")
    # The last row of a group is never kept.
    tight = gk.GroupCollector(size=10, max_rows=9)
    assert [len(tight.add("a", i)) for i in range(10)] == [0] * 9 + [1]
    # Late rows alone may fill it, and then no group is the largest.
    alone = gk.GroupCollector(size=1, max_rows=1)
    alone.add("a", 1)
    alone.add("a", 2)
    with pytest.raises(gk.StateError, match="0 rows of 0 groups wait and 1 late"):
        alone.add("a", 3)


class Attributes:
    """Rows with attributes in the place of fields."""

    def __getitem__(self, name):
        return getattr(self, name)


def test_sizes_that_rows_say():
    collector = gk.GroupCollector(size="n")
    collector.add("a", {"n": np.int64(2)})
    for row, words in [
        ({"n": 3}, ["says 3", "expected 2, as its rows before said", "'n'"]),
        ({}, ["says 'nothing'", "whole number"]),
        ({"n": 0}, ["says 0"]),
        ({"n": True}, ["says True"]),
        ({"n": 2.0}, ["says 2.0"]),
        (7, ["says 'nothing'"]),
        (np.zeros(1, [("m", int)])[0], ["says 'nothing'"]),
        (Attributes(), ["says 'nothing'", "whole number"]),
        ({"n": 100_002}, ["says 100002", "from 1 to 100001"]),
    ]:
        with pytest.raises(gk.InputError) as caught:
            collector.add("a", row)
        assert caught.value.kind == "collector_size"
        assert (caught.value.__cause__ is not None) == ("says 'nothing'" in words)
        for word in [*words, "'a'", "was not taken"]:
            assert word in str(caught.value)
    assert collector.counts["added"] == 1
    assert [group.expected for group in collector.add("a", {"n": 2})] == [2]


class Silent:
    """Cannot be hashed, for a reason of its own."""

    def __hash__(self):
        raise RuntimeError("no")

    def __repr__(self):
        return "Silent()"  # the same name of its test in every process


NAN = float("nan")
KEYS = [
    None,
    [1],
    {},
    NAN,
    pd.NA,
    pd.NaT,
    (1, NAN),
    ("a", (2, pd.NA)),
    frozenset([NAN]),
    Decimal("NaN"),
    (1, [2]),
    Silent(),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_keys_that_name_no_group(key):
    collector = gk.GroupCollector(size=2)
    collector.add("a", "row")
    for call in (lambda: collector.add(key, "row"), lambda: collector.close("a", key)):
        with pytest.raises(gk.InputError, match="every row has a group") as caught:
            call()
        assert caught.value.kind == "bad_parameter"
    assert collector.counts == {"added": 1, "handed_out": 0, "waiting": 1, "late": 0}


def test_keys_that_name_a_group():
    collector = gk.GroupCollector(size=2)
    for key in ("", 0, (), (1, "a"), (1, (2.5, None)), frozenset([1]), b"a", np.int64(7), pd.Timestamp(0), Decimal(1)):
        assert collector.add(key, 1) == []
        assert [group.key for group in collector.add(key, 2)] == [key]


def saved(collector):
    """Everything that a collector holds."""
    return collector.size, collector.counts, collector.leftovers, collector._late, collector._handed_out


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda collector: pickle.loads(pickle.dumps(collector))])
def test_a_copy_goes_on_alone(again):
    collector = gk.GroupCollector(size="n", max_rows=9, remember=1)
    for key, n in [("a", 2), ("b", 1), ("c", 1), ("c", 1), ("a", 2), ("d", 2), ("a", 2)]:
        collector.add(key, {"n": n})
    other = again(collector)
    before = saved(copy.deepcopy(collector))
    assert saved(other) == saved(collector) == before
    (group,) = other.add("d", {"n": 2})
    assert [row["n"] for row in group.rows] == [2, 2]
    other.add("a", {"n": 2})
    assert other.counts == {"added": 9, "handed_out": 6, "waiting": 1, "late": 2}
    other.take_late()
    assert saved(collector) == before
    assert [group.key for group in collector.add("d", {"n": 2})] == ["d"]


def test_a_copy_while_rows_come():
    """What is written down is one moment of it: its rows add up."""
    collector, done, wrong = gk.GroupCollector(size=3, max_rows=10_000), threading.Event(), []

    def save():
        while not done.is_set():
            other = pickle.loads(pickle.dumps(collector))
            waiting, late = other.close(), other.take_late()
            counts = other.counts | {"late": len(late)}
            if counts["added"] != counts["handed_out"] + counts["late"] or any(
                len(group.rows) > 2 for group in waiting
            ):
                wrong.append(counts)

    def work(me):
        for i in range(3000):
            collector.add((me, i // 4), i)

    threads = [threading.Thread(target=save), *(threading.Thread(target=work, args=(me,)) for me in range(2))]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join(timeout=120)
    done.set()
    threads[0].join(timeout=120)
    assert not wrong
    assert collector.counts == {"added": 6000, "handed_out": 4500, "waiting": 0, "late": 1500}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": 0}, "size=0"),
        ({"size": 2.5}, "size=2.5"),
        ({"size": True}, "size=True"),
        ({"size": 2, "max_rows": 0}, "max_rows=0"),
        ({"size": 10, "max_rows": 5}, "max_rows=5; expected 9 or more, or no group of 10"),
        ({"size": 2, "remember": None}, "remember=None"),
    ],
)
def test_parameters_that_cannot_be_meant(given, words):
    with pytest.raises(gk.InputError, match=words) as caught:
        gk.GroupCollector(**given)
    assert caught.value.kind == "bad_parameter"


def test_threads():
    """Four threads add rows of the same groups; every group comes out of exactly one of them."""
    threads, groups, size = 4, 500, 8
    collector = gk.GroupCollector(size=size, max_rows=groups * size)
    out = [[] for _ in range(threads)]
    start = threading.Barrier(threads)

    def work(me):
        start.wait(timeout=60)
        for key in range(groups):
            for i in range(me, size, threads):
                out[me] += collector.add(key, (key, i))

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    everything = [group for groups in out for group in groups]
    assert sorted(group.key for group in everything) == list(range(groups))
    for group in everything:
        assert sorted(group.rows) == [(group.key, i) for i in range(size)]
    assert collector.counts == {"added": groups * size, "handed_out": groups * size, "waiting": 0, "late": 0}
