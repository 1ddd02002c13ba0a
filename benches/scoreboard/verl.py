"""verl's registered policy losses, advantage estimators, KL estimators and aggregations, and its group filter.

The losses are told of the whole step as verl's trainer tells them: `batch_num_tokens` and `global_batch_size`. The
filter is the method of the replay buffer; the storage behind it, a service of its own, is replaced by a list.
"""

import importlib
import sys
import types

import numpy as np
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import agg_loss, get_adv_estimator_fn, get_policy_loss_fn, kl_penalty
from verl.workers.config import ActorConfig


def _loss(loss_mode, loss_agg_mode="token-mean", **options):
    """A registered loss with advantages of tokens."""
    config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **options)
    function = get_policy_loss_fn(loss_mode)

    def loss(old_log_prob, log_prob, advantages, response_mask, num_tokens, num_sequences):
        config.global_batch_info.update(dp_size=1, batch_num_tokens=num_tokens, global_batch_size=num_sequences)
        given = {"old_log_prob": old_log_prob, "log_prob": log_prob, "response_mask": response_mask}
        return function(**given, advantages=advantages, loss_agg_mode=loss_agg_mode, config=config)[0]

    return loss


def _sequence_loss(loss_mode, loss_agg_mode="token-mean", **options):
    """A registered loss with one advantage an answer, given to each of its tokens as verl's estimators do."""
    inner = _loss(loss_mode, loss_agg_mode, **options)

    def loss(old_log_prob, log_prob, row_advantages, response_mask, num_tokens, num_sequences):
        advantages = row_advantages.unsqueeze(-1) * response_mask
        return inner(old_log_prob, log_prob, advantages, response_mask, num_tokens, num_sequences)

    return loss


vanilla = _loss("vanilla", clip_ratio_high=0.28)
gspo = _sequence_loss("gspo", "seq-mean-token-mean")
gspo_token = _loss("gspo", "seq-mean-token-mean")
sapo = _loss("sapo", "seq-mean-token-mean")
gpg = _loss("gpg")
cispo = _loss("cispo")
geo_mean = _sequence_loss("geo_mean", clip_ratio_low=0.4, clip_ratio_high=0.4)


def _prompts(group_ids):
    """Prompts by texts in an array of objects, as verl's trainer has them."""
    return np.array([f"prompt {g}" for g in _listed(group_ids)], dtype=object)


def _estimator(name, **options):
    function = get_adv_estimator_fn(name)

    def advantages(token_level_rewards, response_mask, group_ids):
        given = {"token_level_rewards": token_level_rewards, "response_mask": response_mask}
        return function(**given, index=_prompts(group_ids), **options)

    return advantages


grpo = _estimator("grpo")
grpo_without_std = _estimator("grpo", norm_adv_by_std_in_grpo=False)
grpo_vectorized = _estimator("grpo_vectorized")
rloo = _estimator("rloo")
rloo_vectorized = _estimator("rloo_vectorized")
opo = _estimator("opo")
gpg_advantages = _estimator("gpg")
reinforce_plus_plus_baseline = _estimator("reinforce_plus_plus_baseline")
reinforce_plus_plus = _estimator("reinforce_plus_plus", config=OmegaConf.create({"gamma": 1.0}))


def remax(token_level_rewards, response_mask, group_ids, reward_baselines):
    given = {"token_level_rewards": token_level_rewards, "response_mask": response_mask}
    estimator = get_adv_estimator_fn("remax")
    return estimator(**given, index=_prompts(group_ids), reward_baselines=reward_baselines)


def _kl(kind):
    def estimate(logps, ref_logps):
        return kl_penalty(logps, ref_logps, kind)

    return estimate


k1, k2, k3, absolute, k1_plus, k3_plus = map(_kl, ("k1", "k2", "k3", "abs", "k1+", "k3+"))


def _aggregate(mode, **options):
    def aggregate(loss_mat, loss_mask):
        return agg_loss(loss_mat, loss_mask, mode, **options)

    return aggregate


token_mean = _aggregate("token-mean")
seq_mean_token_mean = _aggregate("seq-mean-token-mean")
seq_mean_token_sum = _aggregate("seq-mean-token-sum")
seq_mean_token_sum_norm = _aggregate("seq-mean-token-sum-norm", loss_scale_factor=7)


def _replay_buffer():
    stored = types.ModuleType("transfer_queue")
    stored.KVBatchMeta = object
    sys.modules.setdefault("transfer_queue", stored)
    # Not through the package, whose other modules want engines.
    place = importlib.util.find_spec("verl").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("replay_buffer", f"{place}/trainer/ppo/v1/replay_buffer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUFFER = _replay_buffer()


def _kept(metric, values, group_ids):
    """Whether the buffer keeps the group of each row."""
    names = {g: f"g{i}" for i, g in enumerate(dict.fromkeys(group_ids))}
    keys = [f"{names[g]}_0_{i}" for i, g in enumerate(group_ids)]
    field = "rm_scores" if metric == "reward" else "extra_fields"
    BUFFER.tq.kv_batch_get = lambda **_: {field: values}
    buffer = types.SimpleNamespace(
        filter_groups_metric=metric,
        finished_keys={"train": set(names.values())},
        partitions={"train": keys},
        _dapo_classification_cache={"train": {}},
    )
    dropped, _ = BUFFER.ReplayBuffer._dapo_filtered_keys(buffer, "train")
    return np.array([names[g] not in dropped for g in group_ids], bool)


def filter_groups_reward(rewards, group_ids):
    """`filter_groups.metric=reward`: the scores are fp32, as verl stores them."""
    return _kept("reward", list(torch.as_tensor(rewards).float().unsqueeze(-1)), _listed(group_ids))


def filter_groups_acc(rewards, group_ids):
    """`filter_groups.metric=acc`: a number of Python in the answer's record."""
    records = [{"reward_extra_info": {"acc": float(r)}} for r in rewards]
    return _kept("acc", records, _listed(group_ids))


def _listed(group_ids):
    return group_ids.tolist() if hasattr(group_ids, "tolist") else list(group_ids)
