"""Rows that arrive in any order, put together to whole groups.

In: one row at a time, with the key of its group. Out: each group once, when it has all of its rows, in the order in
which they came; and what is left over, what came late, and an error before memory runs out.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from dataclasses import dataclass
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
        The most rows kept at a time, those that wait and the late ones together.
    remember : int
        For so many groups, those handed out last, a row that comes late is known to be late. For older ones it begins
        a new group of the same key, which waits until it is closed; so let keys be unique, as (step, group_id) is.

    Raises
    ------
    InputError
        `bad_parameter`: a size or a bound that is not a whole number, 1 or more.

    Notes
    -----
    Rows in = rows handed out + rows that wait + late rows, always. Calls from several threads are safe.

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
        self.size = size if isinstance(size, str) else number
        self.max_rows = max_rows
        self.remember = remember
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
            Its group's: a str, an int, a tuple such as (step, group_id). Not None.
        row : object
            Whatever a row is; it is kept as it is.

        Returns
        -------
        list of CollectedGroup
            The group that this row completes; empty where it completes none.

        Raises
        ------
        InputError
            `bad_parameter`: a key that is None or cannot be hashed. `collector_size`: the row does not say its group's
            size, or another one than the rows before.
        StateError
            `collector_full`: `max_rows` are kept already, and this row completes no group.

        Notes
        -----
        A row that is refused is not taken; all others are unaffected.
        """
        if not _is_key(key):
            expected = "a value that can be hashed and is equal to itself, not None: every row has a group"
            raise error("bad_parameter", owner="GroupCollector.add", name="key", given=key, expected=expected)
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
        """Hands out groups as they are: those of these keys that wait, or without a key all of them.

        Returns
        -------
        list of CollectedGroup
            In the order of the keys, or of the groups' first rows. Rows that come for them later are late.
        """
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

    def _size_of(self, key: Hashable, row: Any) -> int | None:
        if not isinstance(self.size, str):
            return self.size
        try:
            given = row[self.size]
        except (KeyError, TypeError, IndexError, ValueError):
            given = "nothing"
        size = _count(given)
        if size is None:
            expected = "a whole number, 1 or more"
            raise error("collector_size", key=key, given=repr(given), field=self.size, expected=expected)
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


def _is_key(given: Any) -> bool:
    try:
        hash(given)
    except TypeError:
        return False
    return given is not None and bool(given == given)  # noqa: PLR0124


def _count(given: Any) -> int | None:
    """A whole number from 1 on, or None for anything else."""
    if isinstance(given, bool):
        return None
    try:
        number = operator.index(given)
    except TypeError:
        return None
    return number if number >= 1 else None
