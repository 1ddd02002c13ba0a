"""The columns that stages 5 to 7 see: one value per live token, sequence after sequence, and sums over sequences.

A mask, the caller's or a weight's, is compaction: what is dropped is not there. There are no neutral values, and a
NaN behind a mask cannot arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import error, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .stages import Stage

# What every batch has and every stage may read without saying so.
ALWAYS = frozenset({"length", "position", "rollout_ids", "step", "targets"})


def sum_segments(x_T: Tensor, lengths_S: Tensor) -> Tensor:
    """(S,): the sum over each sequence, accumulated in float64, in a fixed order."""
    return torch.segment_reduce(x_T.double(), "sum", lengths=lengths_S, unsafe=True)


@dataclass(frozen=True)
class Segments:
    """Which of some places are there, sequence after sequence.

    Attributes
    ----------
    index : (T,) int64
        The places that are there, in order.
    lengths : (S,) int64
        How many of them each sequence has.
    """

    index: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, there: Tensor, lengths: Tensor) -> Segments:
        """From a mask over places, bool, of which sequence i has `lengths[i]`."""
        return cls(there.nonzero().squeeze(1), sum_segments(there, lengths).long())

    @cached_property
    def starts(self) -> list[int]:
        """(S + 1,): where each sequence starts, and the end; on the host."""
        return [0, *self.lengths.cumsum(0).tolist()]

    @cached_property
    def offsets(self) -> Tensor:
        """(S + 1,) int64: the same on the device."""
        return torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])

    def part(self, first: int, last: int, origin: int) -> Segments:
        """Sequences first to last - 1, their places counted from `origin`."""
        return Segments(self.index[self.starts[first] : self.starts[last]] - origin, self.lengths[first:last])


class Tokens:
    """What a stage sees: its columns as attributes, (T,) each, and `total` and `mean` over sequences.

    Parameters
    ----------
    columns : dict of (T,) tensors
        By name: ``logps``, ``old_logps``, ``log_ratio``, ``advantages``, ...
    lengths : (S,) int64
        Tokens a sequence.
    index : (K,) int64, optional
        The tokens that are left; columns are gathered when they are read.
    reader : Stage, optional
        Who reads: touching a column that it does not declare is an error.

    Examples
    --------
    >>> tokens = Tokens({"logps": torch.tensor([1.0, 2.0, 5.0])}, torch.tensor([2, 1]))
    >>> tokens.mean(tokens.logps)
    tensor([1.5000, 1.5000, 5.0000])
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        lengths: Tensor,
        *,
        index: Tensor | None = None,
        reader: Stage | None = None,
    ) -> None:
        self._columns, self._index, self._reader, self.lengths = columns, index, reader, lengths

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        reader = type(self._reader).__name__ if self._reader is not None else "a stage"
        if name not in self._columns:
            raise missing(name, reader, self._columns)
        if self._reader is not None and name not in self._reader.reads | ALWAYS:
            raise error("undeclared_column", reader=reader, column=name)
        column = self._columns[name]
        if self._index is not None:
            column = column.index_select(0, self._index)
        self.__dict__[name] = column
        return column

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def total(self, x_T: Tensor) -> Tensor:
        """(T,): the sum over the token's sequence, at every token; the gradient of each is the sequence's sum."""
        total: Tensor = _Total.apply(x_T, self.lengths)
        return total

    def mean(self, x_T: Tensor) -> Tensor:
        """(T,): the mean over the token's sequence, at every token."""
        return self.total(x_T) / self.lengths.repeat_interleave(self.lengths, output_size=len(x_T))

    def shown_to(self, reader: Stage) -> Tokens:
        """The same, for a stage that may touch only what it declares."""
        return Tokens(self._columns, self.lengths, index=self._index, reader=reader)

    def only(self, kept: Segments | None, **more: Tensor) -> Tokens:
        """The same with columns added and only the kept tokens left; None keeps all."""
        columns = {**self._columns, **more}
        return Tokens(columns, self.lengths) if kept is None else Tokens(columns, kept.lengths, index=kept.index)


@dataclass(frozen=True)
class Normalizer:
    """What a term's denominators count, over the whole optimizer step.

    Attributes
    ----------
    tokens, sequences : 0-d float64
        The tokens, and the sequences that have any (with ``over="rows"``: all sequences).
    """

    tokens: Tensor
    sequences: Tensor

    @classmethod
    def of(cls, weights_T: Tensor, lengths_S: Tensor, over: str) -> Normalizer:
        """Counts "live" tokens, those that the weights "kept", or all "rows"."""
        counted_T = weights_T != 0 if over == "kept" else torch.ones_like(weights_T, dtype=torch.bool)
        counted_S = sum_segments(counted_T, lengths_S) > 0 if over != "rows" else torch.ones_like(lengths_S)
        return cls(counted_T.sum().double(), counted_S.sum().double())


def missing(column: str, reader: str, given: Iterable[str]) -> Exception:
    """The error for a column that a stage reads and nobody gave."""
    known = sorted(given)
    return error(
        "missing_token_column", column=column, reader=reader, given=", ".join(known), nearest=nearest(column, known)
    )


class _Total(torch.autograd.Function):
    """Sum over the token's sequence, at every token: a symmetric matrix, hence its own backward. No atomics."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, lengths_S: Tensor) -> Tensor:
        ctx.save_for_backward(lengths_S)
        return sum_segments(x_T, lengths_S).to(x_T.dtype).repeat_interleave(lengths_S, output_size=len(x_T))

    @staticmethod
    def backward(ctx: Any, upstream_T: Tensor) -> tuple[Tensor, None]:
        (lengths_S,) = ctx.saved_tensors
        total: Tensor = _Total.apply(upstream_T.contiguous(), lengths_S)
        return total, None
