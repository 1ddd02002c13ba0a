"""grpokit's own losses, estimators, filters, KL estimators and aggregations, as anyone's are handed to the kit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from grpokit import TokenBatch, advantages, process, recipe
from grpokit import loss as losses
from grpokit.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from grpokit import Advantage, Aggregate, Objective, Recipe, Select


def loss_of(made: Recipe) -> Callable[..., Tensor]:
    """The loss of a recipe, of padded columns."""

    def loss(
        *,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        ref_logps: Tensor,
        rollout_logps: Tensor,
        entropies: Tensor,
        off_policy: Tensor,
        rollout_ids: Tensor,
    ) -> Tensor:
        constants: dict[str, Any] = {"old_logps": old_logps, "ref_logps": ref_logps, "rollout_logps": rollout_logps}
        constants |= {"off_policy": off_policy, "rollout_ids": rollout_ids}
        batch = TokenBatch(_targets(logps), mask=mask, advantages=advantages, **constants)
        return losses.from_logps(logps, batch, made, entropies=entropies).loss

    return loss


def kl_of(stage: Objective) -> Callable[..., Tensor]:
    """A KL estimator's numbers."""

    def kl(logps: Tensor, ref_logps: Tensor, old_logps: Tensor) -> Tensor:
        columns = {"logps": logps, "ref_logps": ref_logps, "old_logps": old_logps, "log_ratio": logps - old_logps}
        flat = {name: x.flatten() for name, x in columns.items()}
        return stage.value(Tokens(flat, torch.tensor([logps.numel()]))).reshape(logps.shape)

    return kl


def aggregate_of(stage: Aggregate) -> Callable[..., Tensor]:
    """A sum over an aggregation's denominator: of REINFORCE's loss at A = −1, whose value is log π."""
    made = recipe("rloo").replace(aggregate=stage)

    def aggregate(values: Tensor, mask: Tensor) -> Tensor:
        batch = TokenBatch(_targets(values), mask=mask, advantages=-torch.ones_like(values))
        return losses.from_logps(values, batch, made).loss

    return aggregate


def advantage_of(stage: Advantage) -> Callable[..., Any]:
    """An estimator's advantages."""

    def advantage(rewards: Any, group_ids: Any, lengths: Any, baselines: Any) -> Any:
        columns = {"response_len": lengths, "baseline_reward": baselines}
        return advantages(rewards, group_ids, stage, **{k: x for k, x in columns.items() if k in stage.reads})

    return advantage


def filter_of(*stages: Select) -> Callable[..., Any]:
    """Which rows selections keep."""
    made = recipe("rloo").replace(select=stages)

    def keep(rewards: Any, group_ids: Any) -> Any:
        return process({"group_id": group_ids, "reward": rewards}, made).keep

    return keep


def _targets(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.int64)
