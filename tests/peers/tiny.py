"""A language model of a few thousand weights for TRL's trainer, in a directory that transformers loads."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = ["w1 w2 w3", "w4 w5", "w6", "w7 w8"]
GROUP = 4


def save(directory):
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(21))]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=model, padding_side="left", **special).save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), initializer_range=0.3, **sizes, **heads, **tokens)
    ).save_pretrained(directory)
    return str(directory)


def tokenizer(directory):
    return PreTrainedTokenizerFast.from_pretrained(directory, padding_side="left")


def dataset(**columns):
    return Dataset.from_dict({"prompt": PROMPTS} | columns)


def reward(completions, completion_ids, **columns):
    """A number from the tokens, so that most groups have signal."""
    return [float(sum(ids) % 5) for ids in completion_ids]
