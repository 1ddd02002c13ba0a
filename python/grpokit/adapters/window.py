"""One optimizer step of a trainer that hands over its micro-batches one by one.

In: all the micro-batches of the step, padded alike. Out: each one's loss, over denominators of the whole step, and the
step's metrics. Rows that the recipe dropped are not there, for the denominators either.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import grpokit as gk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpokit._recipe import Recipe

CONSTANTS = ("advantages", "old_logps", "rollout_logps", "ref_logps", "rollout_ids")


class Window:
    """The micro-batches of one optimizer step.

    Parameters
    ----------
    columns : list of dict
        Of each micro-batch: ``targets`` and ``mask`` (B, T), ``keep`` (B,) bool, ``advantages`` (B,) or (B, T),
        ``rollout_ids`` (B,), and where they are known ``old_logps``, ``rollout_logps``, ``ref_logps`` (B, T).
    recipe : Recipe
    step : int
        For stages that draw by lot.
    ranks : int
        How many ranks share the step; their gradients are averaged.
    """

    def __init__(self, columns: Sequence[dict[str, Tensor]], recipe: Recipe, *, step: int, ranks: int) -> None:
        self.recipe, self.ranks = recipe, ranks
        self.rows = [micro["keep"].nonzero().squeeze(1) for micro in columns]

        def joined(name: str) -> Tensor:
            return torch.cat([micro[name][rows] for micro, rows in zip(columns, self.rows, strict=True)])

        constants: dict[str, Any] = {name: joined(name) for name in CONSTANTS if columns[0].get(name) is not None}
        self.whole = gk.TokenBatch(targets=joined("targets"), mask=joined("mask"), step=step, **constants)
        if ranks > 1:
            self.whole.synchronize(recipe, reduction="mean")
        ends = [0, *accumulate(map(len, self.rows))]
        self.parts = [self.whole._part(first, last) for first, last in pairwise(ends)]
        self.metrics: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def needs_first_pass(self) -> bool:
        """Whether each micro-batch must be shown to `observe` before the first loss."""
        return len(self) > 1 and self.whole.needs_whole(self.recipe)

    def observe(self, at: int, logps: Tensor, entropies: Tensor) -> None:
        """The first pass over a micro-batch; log-probs and entropies (B, T) of all its rows."""
        rows = self.rows[at]
        if len(rows):
            gk.loss.observe(logps[rows], self.parts[at], self.recipe, entropies=entropies[rows])

    def loss(self, at: int, logps: Tensor, entropies: Tensor) -> Tensor:
        """A micro-batch's share of the step's loss: those of all of them add up to it.

        Parameters
        ----------
        at : int
            Which one.
        logps, entropies : (B, T) float
            Of all its rows, those that were dropped included.
        """
        rows = self.rows[at]
        alone = self.ranks > 1 and not len(self.whole.live.lengths) and at == 0
        if not len(rows) and not alone:
            # Nothing of it counts, while a data parallel wrapper waits for its gradient.
            return logps[:0].sum()
        entropies = entropies[rows] if self.recipe.reads("entropies") else entropies[rows].detach()
        # A rank without rows takes part in what the ranks share, once a step as the others do.
        out = gk.loss.from_logps(logps[rows], self.parts[at], self.recipe, entropies=entropies)
        for name, value in out.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value.item()
        return out.loss


def averaged(found: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """The means over all ranks' tokens, from each rank's number of tokens and its own means."""
    names = sorted({name for _, metrics in found for name in metrics})
    shares: dict[str, Any] = {name: [(n, metrics[name]) for n, metrics in found if name in metrics] for name in names}
    return {name: sum(n * x for n, x in of) / max(sum(n for n, _ in of), 1) for name, of in shares.items()}
