"""Several rows of one rollout: turns, or the segments that a long rollout was cut into.

In: rows with a `rollout_id`. Out: one row a rollout, on which the stages work, and the way back. A rollout is one
answer: its reward counts once, its lengths add up, and what becomes of it becomes of all its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._native import Groups, numbers
from .columns import WHOLE, as_numpy, content_keys, integers, words
from .errors import error
from .selection import FINISH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .columns import Column


class FanOut:
    """The rollouts of a table, M of them: the rows that share group and `rollout_id`.

    Attributes
    ----------
    codes : (N,) uint32
        The rollout of each row, in order of first appearance.
    first, sizes : (M,) int64
        The first row of each rollout, and its number of rows.
    """

    def __init__(self, ids: Column, groups: Groups, threads: int | None) -> None:
        rollouts = Groups([groups.codes.astype(np.int64), ids], ["group_id", "rollout_id"], threads)
        self.codes, self.first, self.sizes = rollouts.codes, rollouts.first, rollouts.sizes
        self._order = rollouts.order
        self._starts = np.cumsum(self.sizes) - self.sizes

    def __len__(self) -> int:
        return len(self.first)

    def groups(self, groups: Groups, threads: int | None) -> Groups:
        """The groups of the rollouts."""
        return Groups([groups.codes[self.first].astype(np.int64)], ["group_id"], threads)

    def scores(self, name: str, data: Column, *, finite: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The reward or gate of each rollout, and whether it has one: (M,) float64, (M,) bool.

        Raises
        ------
        InputError
            Rows of a rollout that disagree, or (where they must be `finite`) a number that is not.
        """
        values_N, scored_N = numbers(name, data)
        self._check_length(name, len(values_N))
        bad = np.flatnonzero(scored_N & ~np.isfinite(values_N))
        if finite and len(bad):
            raise error("not_finite", column=name, count=len(bad), rows=bad[:5].tolist())
        listed = np.where(scored_N, values_N, np.nan)
        first = listed[self.first][self.codes]
        self._check_same(name, listed, (listed == first) | (np.isnan(listed) & np.isnan(first)))
        return values_N[self.first], scored_N[self.first]

    def reduce(self, name: str, data: Column) -> Any:
        """One value a rollout.

        `response_len` is summed; `version_min` and `version_max` are the span of all rows; `finish` is "length" where
        one row has it, else the last row's; text and token ids are those of all rows, one after another. Other columns
        must agree.
        """
        if name in ("text", "token_ids"):
            codes_N = Groups([content_keys(name, data)], [name]).codes
            listed = np.split(codes_N[self._order], self._starts[1:])
            return [part.tobytes() for part in listed] if len(self) else []
        if name == "finish":
            words_N = words(name, data, FINISH)[self._order]
            length = FINISH.index("length")
            cut_M = np.logical_or.reduceat(words_N == length, self._starts)
            last_M = words_N[self._starts + self.sizes - 1]
            return np.array(FINISH)[np.where(cut_M, length, last_M)]
        if name in WHOLE:
            values_N = integers(name, data)
            self._check_length(name, len(values_N))
            if name == "response_len":
                if (values_N < 0).any():
                    row = int((values_N < 0).argmax())
                    raise error("negative_length", column=name, row=row, value=int(values_N[row]))
                return np.add.reduceat(values_N[self._order].astype(np.int64), self._starts)
            if name in ("version_min", "version_max"):
                ufunc = np.minimum if name == "version_min" else np.maximum
                return ufunc.reduceat(values_N[self._order], self._starts)
            data = values_N
        array = as_numpy(data)
        self._check_same(name, array, array == array[self.first][self.codes])
        return array[self.first]

    def expand(self, values_M: NDArray[Any]) -> NDArray[Any]:
        """What was found about each rollout, for each of its rows."""
        return values_M[self.codes]

    def _check_length(self, name: str, length: int) -> None:
        if length != len(self.codes):
            raise error("column_length", column=name, length=length, other="rollout_id", expected=len(self.codes))

    def _check_same(self, name: str, values_N: NDArray[Any], same: Any) -> None:
        if not np.all(same):
            row = int(np.flatnonzero(~np.asarray(same))[0])
            first = int(self.first[self.codes[row]])
            other, value = values_N[[first, row]].tolist()
            # The rewards that are null have come here as NaN.
            other, value = (None if x != x else x for x in (other, value))  # noqa: PLR0124
            raise error("rollout_differs", column=name, first=first, other=other, row=row, value=value)
