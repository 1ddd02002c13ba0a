"""TRL's own GRPOTrainer on a tiny model, asked for its loss and its advantages on chosen numbers.

`_compute_loss` and `_generate_and_score_completions` are TRL's. Only what makes numbers is replaced, on the instance:
the model's log-probs and entropies, and the sampling of answers. An optimizer step is as many micro-batches of as many
rows as `num_sequences` says, and the trainer is told of it as it tells itself: `num_items_in_batch` and the number of
micro-batches.
"""

import functools
import tempfile
import warnings

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer


@functools.cache
def _parts():
    words = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(29))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, padding_side="left", **names)
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1, **ids))
    model.config._name_or_path = "tiny"
    return tokenizer, model, Dataset.from_dict({"prompt": ["w1 w2", "w3"] * 8})


def _reward(chosen, **_):
    return chosen


@functools.cache
def trainer(n=2, **options):
    """A trainer with these options, `n` answers a prompt."""
    tokenizer, model, data = _parts()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        sizes = {"num_generations": n, "per_device_train_batch_size": n, "gradient_accumulation_steps": 1}
        quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
        config = GRPOConfig(output_dir=folder, gradient_checkpointing=False, **sizes, **quiet, **options)
        made = GRPOTrainer(
            model=model, reward_funcs=[_reward], args=config, train_dataset=data, processing_class=tokenizer
        )
    made.model.train()
    return made


def _value(options, beta, logps, old_logps, ref_logps, advantages, mask, num_tokens, num_sequences):
    made = trainer(**options)
    made._metrics["train"].clear()
    # No reference model is loaded; its log-probs are given.
    made.beta = beta
    made.current_gradient_accumulation_steps = made.args.steps_per_generation = num_sequences // len(logps)
    made._get_per_token_logps_and_entropies = lambda *_, **__: (logps, torch.zeros_like(logps), None)
    inputs = {
        "prompt_ids": torch.ones(len(logps), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(logps), 1, dtype=torch.int64),
        "completion_ids": torch.ones(logps.shape, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(num_tokens),
        "old_per_token_logps": old_logps,
        "ref_per_token_logps": ref_logps,
    }
    return made._compute_loss(made.model, inputs)


def _loss(**options):
    def loss(logps, old_per_token_logps, row_advantages, completion_mask, num_items_in_batch, num_sequences):
        given = logps, old_per_token_logps, None, row_advantages, completion_mask, num_items_in_batch, num_sequences
        return _value(options, 0.0, *given)

    return loss


def _penalised(beta, **options):
    def loss(
        logps,
        old_per_token_logps,
        ref_per_token_logps,
        row_advantages,
        completion_mask,
        num_items_in_batch,
        num_sequences,
    ):
        given = logps, old_per_token_logps, ref_per_token_logps, row_advantages, completion_mask
        return _value(options, beta, *given, num_items_in_batch, num_sequences)

    return loss


SEQUENCE = {"importance_sampling_level": "sequence"}
dapo = _loss(loss_type="dapo", epsilon_high=0.28)
grpo = _penalised(0.04, loss_type="grpo", use_bias_correction_kl=False)
grpo_default_kl = _penalised(0.04, loss_type="grpo")
dr_grpo = _loss(loss_type="dr_grpo", max_completion_length=256)
bnpo = _loss(loss_type="bnpo")
delta = _loss(loss_type="dapo", delta=3.0)
cispo = _loss(loss_type="cispo", epsilon_high=5.0)
cispo_default = _loss(loss_type="cispo")
sapo = _loss(loss_type="sapo")
vespo = _loss(loss_type="vespo")
gspo = _loss(loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4, **SEQUENCE)
luspo = _loss(loss_type="luspo", epsilon=2e-3, epsilon_high=2.5e-3, **SEQUENCE)


def _scored(rewards, n, **options):
    """What the trainer makes of rewards, one answer of two tokens each."""
    made, N = trainer(n, **options), len(rewards)
    made._metrics["train"].clear()
    made._generate = lambda _: ([[3]] * N, [[5, 1]] * N, None, ["w1"] * N, None, {}, None, None)
    out = made._generate_and_score_completions([{"prompt": "w1", "chosen": r} for r in _listed(rewards)])
    return out["advantages"], made._metrics["train"]


def _listed(rewards):
    return rewards.tolist() if hasattr(rewards, "tolist") else list(rewards)


def _advantages(**options):
    def advantages(rewards, num_generations):
        return _scored(rewards, num_generations, **options)[0]

    return advantages


scale_rewards_group = _advantages(scale_rewards="group")
scale_rewards_none = _advantages(scale_rewards="none")


def frac_reward_zero_std(rewards, num_generations):
    """The metric of that name, a group a call: whether it takes the group for one with signal."""
    groups = np.array(_listed(rewards)).reshape(-1, num_generations)
    kept = [_scored(group, num_generations)[1]["frac_reward_zero_std"][-1] == 0 for group in groups]
    return np.repeat(kept, num_generations)
