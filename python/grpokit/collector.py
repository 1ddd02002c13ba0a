"""Rows that arrive in any order, put together to whole groups.

In: one row at a time, with the key of its group. Out: each group once, when it has all of its rows, in the order in
which they came; and what is left over, what came late, and an error before memory runs out.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from .errors import error

if TYPE_CHECKING:
    from collections.abc import Hashable

Row = TypeVar("Row")


@dataclass(frozen=True)
class CollectedGroup(Generic[Row]):
    """A group that a `GroupCollector` hands out.

    Attributes
    ----------
    key : hashable
        What the rows were added under.
    rows : list
        In order of arrival.
    expected : int or None
        How many there should be; None where only the caller knows.
    """

    key: Any
    rows: list[Row]
    expected: int | None

    @property
    def complete(self) -> bool:
        """Whether it has all of its rows; None expected: yes, since the caller closed it."""
        return self.expected is None or len(self.rows) == self.expected


class Leftover(NamedTuple):
    """A group that waits for rows."""

    key: Any
    have: int
    expected: int | None


class Late(NamedTuple):
    """A row that came after its group was handed out."""

    key: Any
    row: Any


class GroupCollector(Generic[Row]):
    """Collects rows until their groups are complete.

    Parameters
    ----------
    size : int, str or None
        Rows of a group: a number; the name of a field of the row, `row[size]`, that says it; or None, where a group is
        complete when `close` says so.
    max_rows : int
        The most rows kept at a time, those that wait and the late ones together; `size` − 1 or more, since the last row
        of a group is never kept.
    remember : int
        For so many groups, those handed out last, a row that comes late is known to be late. For older ones it begins
        a new group of the same key, which waits until it is closed; so let keys be unique, as (step, group_id) is.

    Raises
    ------
    InputError
        `bad_parameter`: a size or a bound that is not a whole number, 1 or more, or a size that `max_rows` forbids.

    Notes
    -----
    Rows in = rows handed out + rows that wait + late rows, always. Calls from several threads are safe.

    A collector can be pickled, so that what waits is saved beside the ledger's snapshot, and copied; the copy goes on
    from that moment on its own.

    Examples
    --------
    >>> collector = GroupCollector(size=2)
    >>> for key, row in [("a", 1), ("b", 2), ("a", 3), ("a", 4)]:
    ...     for group in collector.add(key, row):
    ...         print(group.key, group.rows)
    a [1, 3]
    >>> collector.leftovers, collector.take_late()
    ([Leftover(key='b', have=1, expected=2)], [Late(key='a', row=4)])
    >>> [group.complete for group in collector.close()]
    [False]
    >>> collector.counts
    {'added': 4, 'handed_out': 3, 'waiting': 0, 'late': 1}
    """

    def __init__(self, size: int | str | None, *, max_rows: int = 100_000, remember: int = 100_000) -> None:
        number = None if size is None or isinstance(size, str) else _count(size)
        if not isinstance(size, str | None) and number is None:
            expected = "a whole number, 1 or more, the name of a field, or None"
            raise error("bad_parameter", owner="GroupCollector", name="size", given=size, expected=expected)
        for name, given in (("max_rows", max_rows), ("remember", remember)):
            if _count(given) is None:
                expected = "a whole number, 1 or more"
                raise error("bad_parameter", owner="GroupCollector", name=name, given=given, expected=expected)
        if number is not None and number - 1 > max_rows:
            expected = f"{number - 1} or more, or no group of {number} rows could ever be complete"
            raise error("bad_parameter", owner="GroupCollector", name="max_rows", given=max_rows, expected=expected)
        self.size = size if isinstance(size, str) else number
        self.max_rows = int(max_rows)
        self.remember = int(remember)
        self._lock = Lock()
        self._waiting: dict[Hashable, CollectedGroup[Row]] = {}
        self._handed_out: OrderedDict[Hashable, None] = OrderedDict()
        self._late: list[Late] = []
        self._counts = {"added": 0, "handed_out": 0, "waiting": 0, "late": 0}

    def add(self, key: Hashable, row: Row) -> list[CollectedGroup[Row]]:
        """Takes a row.

        Parameters
        ----------
        key : hashable
            Its group's: a str, an int, a tuple such as (step, group_id). Not None, and without NaN or NA, which
            are equal to nothing.
        row : object
            Whatever a row is; it is kept as it is.

        Returns
        -------
        list of CollectedGroup
            The group that this row completes; empty where it completes none.

        Raises
        ------
        InputError
            `bad_parameter`: a key that cannot name a group. `collector_size`: the row does not say its group's size,
            or one that cannot be, or another one than the rows before.
        StateError
            `collector_full`: `max_rows` are kept already, and this row completes no group.

        Notes
        -----
        A row that is refused is not taken; all others are unaffected.
        """
        _check_key("add", key)
        size = self._size_of(key, row)
        with self._lock:
            if key in self._handed_out:
                self._make_room(key)
                self._late.append(Late(key, row))
                self._count(added=1, late=1)
                return []
            group = self._waiting.get(key)
            if group is None:
                group = CollectedGroup(key, [], size)
            elif group.expected != size:
                expected = f"{group.expected}, as its rows before said"
                raise error("collector_size", key=key, given=size, field=self.size, expected=expected)
            if size == len(group.rows) + 1:
                group.rows.append(row)
                self._count(added=1, waiting=1)
                return [self._hand_out(group)]
            self._make_room(key)
            group.rows.append(row)
            self._waiting[key] = group
            self._count(added=1, waiting=1)
            return []

    def close(self, *keys: Hashable) -> list[CollectedGroup[Row]]:
        """Hands out groups as they are: those of these keys, or without a key all of them.

        Parameters
        ----------
        *keys : hashable
            A key that does not wait (no row came for it, or its group was handed out) is passed over, and nothing is
            remembered of it.

        Returns
        -------
        list of CollectedGroup
            In the order of the keys, or of the groups' first rows. Rows that come for them later are late.

        Raises
        ------
        InputError
            `bad_parameter`: a key that cannot name a group; then nothing is handed out.
        """
        for key in keys:
            _check_key("close", key)
        with self._lock:
            wanted = keys or tuple(self._waiting)
            return [self._hand_out(self._waiting[key]) for key in wanted if key in self._waiting]

    def take_late(self) -> list[Late]:
        """Hands out the rows that came after their groups, in order of arrival, and keeps them no longer."""
        with self._lock:
            late, self._late = self._late, []
            return late

    @property
    def leftovers(self) -> list[Leftover]:
        """The groups that wait, in the order of their first rows."""
        with self._lock:
            return [Leftover(group.key, len(group.rows), group.expected) for group in self._waiting.values()]

    @property
    def counts(self) -> dict[str, int]:
        """Rows "added", "handed_out", "waiting" and "late", taken or not; the first is the sum of the others."""
        with self._lock:
            return dict(self._counts)

    def __repr__(self) -> str:
        counts = " ".join(f"{name}={count}" for name, count in self.counts.items())
        return f"<GroupCollector size={self.size!r} {counts}>"

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = dict(self.__dict__)
            # What goes on changing is copied: the state is written down when the lock is free again.
            for name in ("_handed_out", "_late", "_counts"):
                state[name] = state[name].copy()
            state["_waiting"] = {key: replace(group, rows=list(group.rows)) for key, group in self._waiting.items()}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def _size_of(self, key: Hashable, row: Any) -> int | None:
        if not isinstance(self.size, str):
            return self.size
        cause = None
        try:
            given = row[self.size]
        except Exception as failure:  # noqa: BLE001 (a row may be anything, and so may what it raises)
            given, cause = "nothing", failure
        size = _count(given)
        if size is None or size > self.max_rows + 1:
            expected = f"a whole number from 1 to {self.max_rows + 1}, one more than max_rows"
            raise error("collector_size", key=key, given=repr(given), field=self.size, expected=expected) from cause
        return size

    def _make_room(self, key: Hashable) -> None:
        if self._counts["waiting"] + len(self._late) < self.max_rows:
            return
        largest = max(self._waiting.values(), key=lambda group: len(group.rows), default=None)
        raise error(
            "collector_full",
            waiting=self._counts["waiting"],
            groups=len(self._waiting),
            late=len(self._late),
            max_rows=self.max_rows,
            key=key,
            largest=None if largest is None else largest.key,
            have=len(largest.rows) if largest else 0,
            expected="unknown" if largest is None or largest.expected is None else largest.expected,
        )

    def _hand_out(self, group: CollectedGroup[Row]) -> CollectedGroup[Row]:
        self._waiting.pop(group.key, None)
        self._handed_out[group.key] = None
        if len(self._handed_out) > self.remember:
            self._handed_out.popitem(last=False)
        self._count(handed_out=len(group.rows), waiting=-len(group.rows))
        return group

    def _count(self, **changes: int) -> None:
        for name, change in changes.items():
            self._counts[name] += change


def _check_key(method: str, given: Any) -> None:
    cause = None
    try:
        hash(given)
        fine = given is not None and _is_itself(given)
    except Exception as failure:  # noqa: BLE001 (a key may be anything, and so may what it raises)
        fine, cause = False, failure
    if not fine:
        expected = "a value that can be hashed and is equal to itself, not None: every row has a group"
        raise error(
            "bad_parameter", owner=f"GroupCollector.{method}", name="key", given=given, expected=expected
        ) from cause


def _is_itself(given: Any) -> bool:
    """Whether it is equal to itself, and all that it is made of; a tuple with one NaN object in it says that it is."""
    if isinstance(given, (tuple, frozenset)):
        return all(map(_is_itself, given))
    return bool(given == given)  # noqa: PLR0124


def _count(given: Any) -> int | None:
    """A whole number from 1 on, or None for anything else."""
    if isinstance(given, bool):
        return None
    try:
        number = operator.index(given)
    except TypeError:
        return None
    return number if number >= 1 else None
