"""TRL's GRPOTrainer with its loss replaced: GSPO, from the hidden states, without the logits of the whole batch.

TRL samples, scores and steps; `_compute_loss` is ours. (`grpokit.adapters.trl.RecipeTrainer` replaces advantages and
row filters as well.) Beside grpokit: pip install trl==1.16.0
"""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import grpokit as gk

RECIPE = gk.recipe("gspo")


class Trainer(GRPOTrainer):
    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        hidden = model.model(input_ids=ids, attention_mask=there).last_hidden_state
        batch = gk.TokenBatch(
            targets=inputs["completion_ids"],
            mask=inputs["completion_mask"],
            advantages=inputs["advantages"],
            old_logps=inputs.get("old_per_token_logps"),
            temperature=self.temperature,
        )
        width = batch.shape[1]
        out = gk.loss.from_hidden(hidden[:, -width - 1 : -1], model.lm_head.weight, batch, RECIPE)
        self._metrics["train"]["entropy"].append(out.metrics["entropy"].item())
        print(f"loss {out.loss.item():+.4f} by {out.metrics['kernel']}")
        # A step's gradient is the sum of its micro-batches', and each has the mean over its own sequences.
        return out.loss / self.current_gradient_accumulation_steps


def even(completions, **_):
    """The share of even numbers among the words of each answer."""
    words = [[int(word[1:]) for word in text.split() if word[1:].isdigit()] for text in completions]
    return [sum(n % 2 == 0 for n in each) / max(len(each), 1) for each in words]


torch.manual_seed(0)
vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(29))])}
words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
config.update({"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1})
options = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
sizes = {"num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 2}
trainer = Trainer(
    model=LlamaForCausalLM(config),
    reward_funcs=even,
    args=GRPOConfig("trl_loss", max_completion_length=12, learning_rate=1e-3, logging_steps=1, **options, **sizes),
    train_dataset=Dataset.from_dict({"prompt": ["w1 w2", "w3"] * 8}),
    processing_class=tokenizer,
)
trainer.train()
