"""TRL's own GRPOTrainer on a tiny model, asked for its loss and its advantages on chosen numbers.

Only what makes numbers is replaced, on the instance: the model's log-probs and entropies, and the sampling of answers.
"""

import functools
import tempfile
import warnings

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from .draws import gradient


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


@functools.cache
def trainer(rewards=1, n=2, rows=None, **options):
    """A trainer with these options; one process, one micro-batch an optimizer step."""
    options = {name: list(x) if isinstance(x, tuple) else x for name, x in options.items()}
    sampler, beta = options.pop("use_vllm", False), options.pop("beta", 0.0)
    tokenizer, model, data = _parts()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        sizes = {"num_generations": n, "per_device_train_batch_size": rows or n, "gradient_accumulation_steps": 1}
        quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
        config = GRPOConfig(output_dir=folder, gradient_checkpointing=False, **sizes, **quiet, **options)
        # Distinct names: TRL keeps metrics by them.
        functions = [_reward(i) for i in range(rewards)]
        made = GRPOTrainer(
            model=model, reward_funcs=functions, args=config, train_dataset=data, processing_class=tokenizer
        )
    made.current_gradient_accumulation_steps = 1
    # Neither vLLM nor a reference model is there, only their log-probs: what is read of the options comes afterwards.
    made.use_vllm, made.penalty = sampler, beta
    made.model.train()
    return made


def _reward(i):
    def reward(completions, chosen, **_):
        return [values[i] for values in chosen]

    reward.__name__ = f"reward_{i}"
    return reward


def scored(made, rewards, *, completions=None, sampled=None, old=None):
    """What `_generate_and_score_completions` returns for rewards, one list a row, of one number a function."""
    N = len(rewards)
    completions = completions or [[5, 1]] * N
    logps = sampled or None
    made._generate = lambda prompts: ([[3]] * N, completions, None, ["w1"] * N, logps, {}, None, None)
    if old is not None:
        made._get_per_token_logps_and_entropies = lambda *_, **__: (old, None, None)
    return made._generate_and_score_completions([{"prompt": "w1", "chosen": values} for values in rewards])


def loss(made, step, **given):
    """Value and gradients of `_compute_loss` on a step's numbers."""
    leaves = [x.clone().requires_grad_() for x in (step.logps, step.entropies)]
    made._get_per_token_logps_and_entropies = lambda *_, **__: (*leaves, None)
    B, T = step.mask.shape
    mask = step.mask.long()
    inputs = {
        "prompt_ids": torch.ones(B, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(B, 1, dtype=torch.int64),
        "completion_ids": torch.ones(B, T, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": step.advantages,
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": step.old,
        "ref_per_token_logps": step.ref,
    } | given
    made.beta = made.penalty
    value = made._compute_loss(made.model, {name: x for name, x in inputs.items() if x is not None})
    made.beta = 0.0
    value.backward()
    return value.detach(), gradient(leaves[0]), gradient(leaves[1])
