"""An update's micro-batches on several ranks: as many passes on each, and what was measured put together.

FSDP's passes communicate, so a rank that has fewer micro-batches, or no rows at all, makes passes of nothing. The loss
of each rank is over all ranks' tokens or sequences already (`TokenBatch.synchronize`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import grpokit as gk

from .shards import whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.door import LossOutput

    from .config import TrainConfig
    from .policy import Padded, Policy
    from .ranks import Ranks


def micro_batches(
    parts: list[gk.TokenBatch], ranks: Ranks, sizes: list[int], max_tokens: int
) -> Iterator[gk.TokenBatch | None]:
    """One's own parts, and then None as often as another rank still has one.

    Parameters
    ----------
    parts : list of TokenBatch
        One's own, of a padded batch that was split by `max_tokens`; one without rows where one has none.
    ranks : Ranks
        Who shares the update.
    sizes : list of int
        Rows of each of the update's groups.
    max_tokens : int
        Places of a part.
    """
    rows = max(1, max_tokens // parts[0].shape[1])
    most = max(-(-(share.stop - share.start) // rows) for share in ranks.shares(sizes))
    yield from parts
    yield from [None] * (most - len(parts))


def observe(policy: Policy, rows: Padded, parts: list[gk.TokenBatch], recipe: gk.Recipe, config: TrainConfig) -> None:
    """The first of two passes, for a recipe that must see the whole step; over ranks, while each has the whole model.

    Ranks meet where a weight looks at the whole step. So it is settled here on each of them, before passes that
    communicate, even where one's own rows are one part and would be seen whole in their loss.
    """
    if policy.ranks.world == 1:
        for part in parts:
            policy.observe(part, recipe)
        return
    with whole(policy):
        logps, entropies = policy.logps(rows, config.temperature, config.microbatch_tokens)
        for part in parts:
            # Any of the kernels that pass once: it asks for a first pass of each part, and log-probs need none.
            at = part.span
            gk.loss.observe(logps[at], part, recipe, kernel="one_kernel", entropies=entropies[at])


class Measured:
    """What the losses of an update say of it.

    Parameters
    ----------
    live : int
        The live tokens of one's own batch, which its metrics are means over.

    Attributes
    ----------
    metrics : dict
        Their sums over parts.
    log_weights : list of Tensor
        log w of each sequence, in the order of the rows.
    columns : list of dict of Tensor
        `LossOutput.columns` of the live tokens, likewise.
    """

    def __init__(self, live: int) -> None:
        self.live = live
        self.metrics: dict[str, float] = {}
        self.log_weights: list[Tensor] = []
        self.columns: list[dict[str, Tensor]] = []

    def add(self, out: LossOutput) -> None:
        """Passes back through a part's loss, and adds what it measured."""
        out.loss.backward()  # type: ignore[no-untyped-call]
        self.log_weights += [] if out.log_weights is None else [out.log_weights.cpu()]
        self.columns.append({name: x.cpu() for name, x in out.columns.items()})
        del out.metrics["kernel"]
        for name, value in ({"loss": out.loss} | out.metrics).items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value.item()

    def places(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of all rows, of the mask's shape and on its device: float32, 0 where none is."""
        logps, entropies = (torch.zeros(mask.shape, device=mask.device) for _ in range(2))
        for name, to in (("logps", logps), ("entropies", entropies)):
            to[mask] = torch.cat([x[name] for x in self.columns]).to(to)
        return logps, entropies

    def of_all(self, ranks: Ranks) -> Measured:
        """Of all ranks."""
        found = ranks.gather(self)
        if ranks.world == 1:
            return self
        all_of = Measured(max(1, sum(one.live for one in found)))
        for one in found:
            all_of.log_weights += one.log_weights
            all_of.columns += one.columns
            for name, value in one.metrics.items():
                # A rank's loss is multiplied by their number, since its gradient is averaged.
                share = 1 / ranks.world if name == "loss" else one.live / all_of.live
                all_of.metrics[name] = all_of.metrics.get(name, 0.0) + share * value
        return all_of
