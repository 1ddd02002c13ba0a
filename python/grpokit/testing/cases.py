"""What an implementation is tried on: one optimizer step of tokens, or one table of scored answers.

Plain NumPy, in the forms that implementations take: padded (S, T) with a mask, rows with group ids. Strategies draw
them (`grpokit.testing.strategies`), the reference says what is right of them, and a failure prints them.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


PER_ROW = ("advantages", "rollout_ids")


@dataclass(frozen=True, eq=False)
class Batch:
    """One optimizer step, padded.

    Attributes
    ----------
    mask : (S, T) bool
        The tokens that count.
    columns : dict of (S, T) arrays
        ``logps``, ``old_logps``, ``rollout_logps``, ``ref_logps``: log-probs of four policies, float64, at most 0;
        ``entropies`` and ``advantages``: float64; ``off_policy``: bool; ``rollout_ids``: int64, the same along a row.
        Finite, behind the mask too.
    per_row : bool
        Whether the advantage of a sequence is the same at each of its places.
    """

    mask: NDArray[np.bool_]
    columns: Mapping[str, NDArray[Any]]
    per_row: bool = True

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def replace(self, mask: NDArray[np.bool_] | None = None, **columns: NDArray[Any]) -> Batch:
        """The same with other columns, or another mask."""
        return Batch(self.mask if mask is None else mask, {**self.columns, **columns}, self.per_row)

    def rows(self, order: Any) -> Batch:
        """The sequences in another order, or some of them."""
        return Batch(self.mask[order], {k: x[order] for k, x in self.columns.items()}, self.per_row)

    def widened(self, places: int, fill: float = -1.0) -> Batch:
        """The same with masked places behind each sequence."""
        S = len(self.mask)

        def wide(x: NDArray[Any]) -> NDArray[Any]:
            more = np.full((S, places), fill).astype(x.dtype)
            return np.concatenate([x, more], 1)

        # What belongs to the sequence goes on.
        along = {k: np.concatenate([self[k], np.repeat(self[k][:, -1:], places, 1)], 1) for k in PER_ROW}
        mask = np.concatenate([self.mask, np.zeros((S, places), bool)], 1)
        return Batch(mask, {k: wide(x) for k, x in self.columns.items()} | along, self.per_row)


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Scored answers to some prompts.

    Attributes
    ----------
    group_ids : (N,) int64
        The prompt of each row; the rows of a group need not be neighbours.
    rewards : (N,) float64
    lengths : (N,) int64
        Tokens of each answer, 1 or more.
    baselines : (N,) float64
        The reward of the greedy answer to the same prompt.
    """

    group_ids: NDArray[np.int64]
    rewards: NDArray[np.float64]
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    baselines: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def replace(self, **columns: NDArray[Any]) -> Rollouts:
        """The same with other columns."""
        return dataclasses.replace(self, **columns)

    @property
    def groups(self) -> list[NDArray[np.intp]]:
        """The rows of each group, in the order in which the groups appear."""
        return [np.flatnonzero(self.group_ids == g) for g in dict.fromkeys(self.group_ids.tolist())]

    @property
    def shaped(self) -> NDArray[np.float64]:
        """(N,): the rewards less a punishment for length, a quarter for each token beyond the third."""
        return self.rewards - 0.25 * np.maximum(self.lengths - 3, 0)

    def take(self, rows: Any) -> Rollouts:
        """Some rows, in another order if so."""
        return Rollouts(self.group_ids[rows], self.rewards[rows], self.lengths[rows], self.baselines[rows])


@dataclass(frozen=True, eq=False)
class TokenValues:
    """A value per token, to be aggregated.

    Attributes
    ----------
    values : (S, T) float64
    mask : (S, T) bool
    """

    values: NDArray[np.float64]
    mask: NDArray[np.bool_]


def register() -> None:
    """Lets `hypothesis.strategies.from_type` draw what is here; called where this module and hypothesis meet."""
    from hypothesis import strategies as st

    from grpokit import StalenessLedger

    def register_as(kind: type, name: str) -> None:
        def strategy(_: type) -> Any:
            from . import strategies

            return getattr(strategies, name)()

        st.register_type_strategy(kind, strategy)

    for kind, name in ((Batch, "batches"), (Rollouts, "rollouts"), (TokenValues, "token_values")):
        register_as(kind, name)
    register_as(StalenessLedger, "ledgers")


if "hypothesis" in sys.modules:  # otherwise its plugin does it, when it is imported
    register()
