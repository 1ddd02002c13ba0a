"""A step's learning: the rows that the recipe kept go in, the weights move, what was measured comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import grpokit as gk
from grpokit.errors import error

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .collect import Sampled
    from .config import TrainConfig
    from .policy import Padded, Policy


class Learner:
    """The optimizer with what a recipe's loss reads.

    Parameters
    ----------
    policy : Policy
        Changed in place. As it is now, it is the reference policy of a recipe that has one.
    recipe : Recipe
        The loss.
    config : TrainConfig
        Learning rate, updates a step, micro-batches.

    Attributes
    ----------
    updates : int
        Optimizer updates so far: the policy's version.
    """

    def __init__(self, policy: Policy, recipe: gk.Recipe, config: TrainConfig) -> None:
        self.policy, self.recipe, self.config, self.updates = policy, recipe, config, 0
        self.reference = policy.frozen() if recipe.reads("ref_logps") else None
        # foreach: one call changes all weights, so that an interrupt finds them as they were before it or after it.
        self.optimizer = torch.optim.AdamW(
            policy.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
        )

    def learn(self, sampled: Sampled) -> dict[str, float]:
        """The updates of one step, and the mean over them of what each measured.

        Raises
        ------
        InputError
            A gradient is not finite; the weights are left as they were.
        """
        config, kept = self.config, np.flatnonzero(sampled.processed.keep)
        if not len(kept):
            return {"updates": 0}
        batch = self.policy.pad([sampled.completions[row] for row in kept])
        advantages = torch.from_numpy(sampled.processed.advantages[kept]).to(batch.targets.device)
        old_logps, entropies = self.policy.logps(batch, config.temperature, config.microbatch_tokens)
        gap = (old_logps - batch.rollout_logps).abs()[batch.mask]
        dealt = self._deal(sampled.group_id[kept])
        measured = [self._update(batch[rows], advantages[rows], old_logps[rows]) for rows in dealt]
        return {
            **{name: float(np.mean([each[name] for each in measured])) for name in measured[0]},
            "entropy": entropies[batch.mask].mean().item(),
            "sampling/sampling_logp_difference/mean": gap.mean().item(),
            "sampling/sampling_logp_difference/max": gap.max().item(),
            "learning_rate": config.learning_rate,
            "updates": len(measured),
        }

    def _deal(self, group_id: NDArray[np.int64]) -> list[Tensor]:
        """The rows of each update: whole groups, dealt evenly."""
        groups = np.unique(group_id)
        hands = np.array_split(groups, min(self.config.updates_per_step, len(groups)))
        return [torch.from_numpy(np.flatnonzero(np.isin(group_id, hand))) for hand in hands]

    def _update(self, rows: Padded, advantages: Tensor, old_logps: Tensor) -> dict[str, float]:
        config, width, ref_logps = self.config, rows.targets.shape[1], None
        if self.reference is not None:
            ref_logps, _ = self.reference.logps(rows, config.temperature, config.microbatch_tokens)
        batch = gk.TokenBatch(
            targets=rows.targets,
            mask=rows.mask,
            advantages=advantages,
            old_logps=old_logps,
            rollout_logps=rows.rollout_logps,
            ref_logps=ref_logps,
            inputs=rows.inputs,
            temperature=config.temperature,
        )
        parts = batch.split(max_tokens=config.microbatch_tokens)
        if batch.needs_whole(self.recipe):
            with torch.no_grad():
                for part in parts:
                    gk.loss.observe(self.policy.logits(part.inputs, width), part, recipe=self.recipe)
        self.optimizer.zero_grad()
        metrics: dict[str, float] = {}
        for part in parts:
            out = gk.loss.from_logits(self.policy.logits(part.inputs, width), part, recipe=self.recipe)
            out.loss.backward()  # type: ignore[no-untyped-call]
            for name, value in ({"loss": out.loss} | out.metrics).items():
                metrics[name] = metrics.get(name, 0.0) + value.item()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), config.max_grad_norm)
        if not norm.isfinite():
            raise error("diverged", what="the gradient's norm")
        self.optimizer.step()
        self.updates += 1
        return metrics | {"grad_norm": norm.item()}
