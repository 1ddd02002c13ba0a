"""What the ranks of a process group share of one optimizer step: counts, and columns of the whole batch.

In: a rank's own counts or columns. Out: those of all ranks together, the same on each. Every rank makes the same calls
in the same order, since all run the same recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .tokens import ALWAYS, Normalizer, Tokens

if TYPE_CHECKING:
    from .stages import Stage


@dataclass(frozen=True)
class Ranks:
    """The ranks that share an optimizer step.

    Attributes
    ----------
    group : torch.distributed.ProcessGroup or None
        None is the default group.
    average : bool
        Whether the ranks' gradients are averaged afterwards, and not added up.
    """

    group: Any
    average: bool

    @property
    def factor(self) -> int:
        """What a rank's loss is multiplied by, so that what becomes of the gradients is that of the whole step."""
        import torch.distributed as dist

        return dist.get_world_size(self.group) if self.average else 1

    def add(self, counts: Normalizer) -> Normalizer:
        """The counts of all ranks."""
        import torch.distributed as dist

        both = torch.stack([counts.tokens, counts.sequences])
        dist.all_reduce(both, group=self.group)
        return Normalizer(both[0], both[1])

    def gather(self, tokens: Tokens, reader: Stage) -> tuple[Tokens, slice]:
        """The columns that a stage reads, of all ranks in their order, and where one's own are."""
        import torch.distributed as dist

        own = dist.get_rank(self.group)
        names = sorted(name for name in reader.reads | ALWAYS if name in tokens)
        one = tokens.lengths.new_full((1,), len(tokens.lengths))
        rows = self._gather(one, [1] * dist.get_world_size(self.group))
        lengths = self._gather(tokens.lengths, [int(n) for n in rows])
        sizes = [int(of_rank.sum()) for of_rank in lengths]
        columns = {name: torch.cat(self._gather(getattr(tokens, name), sizes)) for name in names}
        start = sum(sizes[:own])
        return Tokens(columns, torch.cat(lengths)), slice(start, start + sizes[own])

    def _gather(self, x: Tensor, sizes: list[int]) -> list[Tensor]:
        """Each rank's column, of these lengths."""
        import torch.distributed as dist

        dtype = torch.uint8 if x.dtype == torch.bool else x.dtype
        padded = torch.zeros(max(sizes), dtype=dtype, device=x.device)
        padded[: len(x)] = x
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=self.group)
        return [part[:n].to(x.dtype) for part, n in zip(found, sizes, strict=True)]


@dataclass(frozen=True)
class Declared(Ranks):
    """A step of which a framework shows one part after another, and says how much it is in all.

    Attributes
    ----------
    counts : Normalizer
        Of the whole step, on all ranks.
    ranks : int
        How many ranks share it; their gradients are averaged.
    """

    counts: Normalizer
    ranks: int

    @property
    def factor(self) -> int:
        return self.ranks

    def add(self, counts: Normalizer) -> Normalizer:
        return self.counts
