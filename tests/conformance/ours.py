"""Our own losses, estimators, filters, KL estimators and aggregations, as somebody would hand them to the kit."""

import torch

import grpokit as gk
from grpokit import loss as losses
from grpokit.tokens import Tokens


def loss_of(recipe):
    def loss(logps, old_logps, advantages, mask, ref_logps, rollout_logps, entropies, off_policy, rollout_ids):
        batch = gk.TokenBatch(
            torch.zeros(logps.shape, dtype=torch.int64),
            mask=mask,
            advantages=advantages,
            old_logps=old_logps,
            ref_logps=ref_logps,
            rollout_logps=rollout_logps,
            off_policy=off_policy,
            rollout_ids=rollout_ids,
        )
        return losses.from_logps(logps, batch, recipe, entropies=entropies).loss

    return loss


def kl_of(stage):
    def kl(logps, ref_logps, old_logps):
        columns = {"logps": logps, "ref_logps": ref_logps, "old_logps": old_logps, "log_ratio": logps - old_logps}
        flat = {name: x.flatten() for name, x in columns.items()}
        return stage.value(Tokens(flat, torch.tensor([logps.numel()]))).reshape(logps.shape)

    return kl


def aggregate_of(stage):
    recipe = gk.recipe("rloo").replace(aggregate=stage)

    def aggregate(values, mask):
        batch = gk.TokenBatch(
            torch.zeros(values.shape, dtype=torch.int64), mask=mask, advantages=-torch.ones_like(values)
        )
        return losses.from_logps(values, batch, recipe).loss

    return aggregate


def advantage_of(stage):
    def advantage(rewards, group_ids, lengths, baselines):
        columns = {"response_len": lengths, "baseline_reward": baselines}
        return gk.advantages(rewards, group_ids, stage, **{k: x for k, x in columns.items() if k in stage.reads})

    return advantage


def filter_of(*stages):
    recipe = gk.recipe("rloo").replace(select=stages)
    return lambda rewards, group_ids: gk.process({"group_id": group_ids, "reward": rewards}, recipe).keep
