"""grpokit's losses by the name of their recipe (`losses.gspo`), its estimators, filters, KL estimators, aggregations."""

from types import SimpleNamespace

import torch

import grpokit as gk
from grpokit import loss as losses_of
from grpokit.settings import read_stage
from grpokit.stages import EXAMPLES
from grpokit.tokens import Tokens

from .ours_names import ADVANTAGES, AGGREGATES, FILTERS, KLS, RECIPES


def _loss(recipe):
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
        return losses_of.from_logps(logps, batch, recipe, entropies=entropies).loss

    return loss


losses = SimpleNamespace(**{name: _loss(gk.recipe(name, **EXAMPLES.get(name, {}))) for name in RECIPES})


def _advantages(text):
    stage = read_stage("advantage", text)

    def advantages(rewards, group_ids, lengths, baselines):
        columns = {"response_len": lengths, "baseline_reward": baselines}
        return gk.advantages(rewards, group_ids, stage, **{k: x for k, x in columns.items() if k in stage.reads})

    return advantages


def _filter(text):
    recipe = gk.recipe("rloo").replace(select=(read_stage("select", text),))

    def keep(rewards, group_ids):
        return gk.process({"group_id": group_ids, "reward": rewards}, recipe).keep

    return keep


def _kl(kind):
    stage = gk.KL(kind)

    def kl(logps, ref_logps, old_logps):
        columns = {"logps": logps, "ref_logps": ref_logps, "old_logps": old_logps, "log_ratio": logps - old_logps}
        flat = {name: x.flatten() for name, x in columns.items()}
        return stage.value(Tokens(flat, torch.tensor([logps.numel()]))).reshape(logps.shape)

    return kl


def _aggregate(text):
    recipe = gk.recipe("rloo").replace(aggregate=read_stage("aggregate", text))

    def aggregate(values, mask):
        zeros = torch.zeros(values.shape, dtype=torch.int64)
        return losses_of.from_logps(
            values, gk.TokenBatch(zeros, mask=mask, advantages=-torch.ones_like(values)), recipe
        ).loss

    return aggregate


advantages = SimpleNamespace(**{name: _advantages(text) for name, text in ADVANTAGES.items()})
filters = SimpleNamespace(**{name: _filter(text) for name, text in FILTERS.items()})
kls = SimpleNamespace(**{name: _kl(name) for name in KLS})
aggregates = SimpleNamespace(**{name: _aggregate(text) for name, text in AGGREGATES.items()})
