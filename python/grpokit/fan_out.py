"""Several rows of one rollout: turns, or the segments that a long rollout was cut into.

In: rows with a `rollout_id`, and where there is one a `turn_idx`, which orders them. Out: one row a rollout, on which
the stages work, and the way back. A rollout is one answer: its reward counts once, its lengths add up, its text is that
of all rows, and what becomes of it becomes of all its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._native import ArrowColumn, Groups, numbers
from .columns import RAGGED, WHOLE, as_numpy, integers, words
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
        The row of the table at which each rollout appears, and its number of rows.
    opening : (M,) int64
        The row of each rollout's first turn.
    """

    def __init__(self, ids: Column, turns_N: NDArray[Any] | None, groups: Groups, threads: int | None) -> None:
        rollouts = Groups([groups.codes.astype(np.int64), ids], ["group_id", "rollout_id"], threads)
        self.codes, self.first, self.sizes = rollouts.codes, rollouts.first, rollouts.sizes
        self._order = rollouts.order
        if turns_N is not None:
            if len(turns_N) != len(self.codes):
                raise error(
                    "column_length",
                    column="turn_idx",
                    length=len(turns_N),
                    other="rollout_id",
                    expected=len(self.codes),
                )
            self._order = np.lexsort((turns_N, self.codes))
        self._starts = np.cumsum(self.sizes) - self.sizes
        self.opening = self._order[self._starts]

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
        listed = as_numpy([x if known else None for x, known in zip(values_N.tolist(), scored_N.tolist(), strict=True)])
        self._check_same(name, listed)
        return values_N[self.first], scored_N[self.first]

    def reduce(self, name: str, data: Column) -> Any:
        """One value a rollout.

        `response_len` is summed; `version_min` and `version_max` are the span of all rows; `finish` is "length" where
        one row has it, else the last row's; text, token ids and log-probs are those of all rows, in turn. Other columns
        must agree.
        """
        if name in ("text", "token_ids", *RAGGED):
            listed = data.to_list() if isinstance(data, ArrowColumn) else list(data)
            rows = [[listed[row] for row in part.tolist()] for part in np.split(self._order, self._starts[1:])]
            if name == "text":
                return ["".join(map(str, part)) for part in rows[: len(self)]]
            return [[token for ids in part for token in ids] for part in rows[: len(self)]]
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
        self._check_same(name, array)
        return array[self.first]

    def expand(self, values_M: NDArray[Any]) -> NDArray[Any]:
        """What was found about each rollout, for each of its rows."""
        return values_M[self.codes]

    def _check_length(self, name: str, length: int) -> None:
        if length != len(self.codes):
            raise error("column_length", column=name, length=length, other="rollout_id", expected=len(self.codes))

    def _check_same(self, name: str, values_N: NDArray[Any]) -> None:
        first_N = values_N[self.first][self.codes]
        if values_N.dtype.kind == "O":
            pairs = zip(values_N.tolist(), first_N.tolist(), strict=True)
            same = np.fromiter((a is b or repr(a) == repr(b) for a, b in pairs), bool, len(values_N))
        else:
            same = (values_N == first_N) | ((values_N != values_N) & (first_N != first_N))  # noqa: PLR0124
        if not same.all():
            row = int((~same).argmax())
            first = int(self.first[self.codes[row]])
            other, value = values_N[[first, row]].tolist()
            raise error("rollout_differs", column=name, first=first, other=other, row=row, value=value)
