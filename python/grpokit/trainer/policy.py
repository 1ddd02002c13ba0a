"""The policy: a causal language model of `transformers`, its tokenizer, and the log-probs that both sides agree on.

Prompts are padded on the left and completions on the right, so a batch is one (B, P + T) tensor whose last T columns
are completions. Positions count the live tokens: padding changes nothing.
"""

from __future__ import annotations

import copy
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .config import TinyModel

CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
_CONTEXT = 512


@dataclass(frozen=True)
class Completion:
    """One sampled answer.

    Parameters
    ----------
    prompt_ids, token_ids : list of int
        The tokens; the end token is part of `token_ids` where it was sampled.
    logps : list of float
        The sampler's log-prob of each of `token_ids`, at the temperature of sampling.
    finish : {"stop", "length"}
        Whether it ended by itself or at the limit.
    text : str
        What the tokens say, without the end token.
    off_policy : bool
        Whether it is a demonstration and not the policy's.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    logps: list[float]
    finish: str
    text: str
    off_policy: bool = False


@dataclass(frozen=True)
class Padded:
    """Completions as tensors: B rows, P columns of prompt, T of completion.

    Parameters
    ----------
    inputs : dict of Tensor
        ``input_ids`` and ``attention_mask``, (B, P + T) int64.
    targets : Tensor
        (B, T) int64, the completions.
    mask : Tensor
        (B, T) bool, their live tokens.
    rollout_logps : Tensor
        (B, T) float32, the sampler's.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    mask: Tensor
    rollout_logps: Tensor

    def __getitem__(self, rows: Any) -> Padded:
        inputs = {name: x[rows] for name, x in self.inputs.items()}
        return Padded(inputs, self.targets[rows], self.mask[rows], self.rollout_logps[rows])


class Policy:
    """A model with its tokenizer.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder that takes ``position_ids`` and ``logits_to_keep``.
    tokenizer : PreTrainedTokenizerFast
        With an end token and a padding token.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def tiny(cls, sizes: TinyModel, seed: int) -> Policy:
        """The built-in model with random weights; torch's own generator is left as it was."""
        tokenizer = character_tokenizer()
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads,
            head_dim=sizes.hidden_size // sizes.heads,
            max_position_embeddings=_CONTEXT,
            tie_word_embeddings=True,
            initializer_range=0.05,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(Qwen3ForCausalLM(config), tokenizer)

    def frozen(self) -> Policy:
        """A copy that learns no more: the reference policy of a KL term."""
        return Policy(copy.deepcopy(self.model).requires_grad_(False), self.tokenizer)

    def save(self, directory: Path) -> None:
        """Writes what ``AutoModelForCausalLM`` and ``AutoTokenizer`` load."""
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self.model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
        finally:
            if shown:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens.

        Raises
        ------
        InputError
            A text is empty, or has a character that the tokenizer does not know.
        """
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        for text, row in zip(texts, ids, strict=True):
            if not row or unknown in row:
                raise error("untokenizable", text=text, known=CHARACTERS.strip())
        return ids

    def pad(self, completions: Sequence[Completion]) -> Padded:
        """The completions as tensors on the model's device."""
        device, pad = self.model.device, self.tokenizer.pad_token_id
        P = max(len(c.prompt_ids) for c in completions)
        T = max(len(c.token_ids) for c in completions)
        ids, live, logps = [], [], []
        for c in completions:
            before, after = P - len(c.prompt_ids), T - len(c.token_ids)
            ids.append([pad] * before + c.prompt_ids + c.token_ids + [pad] * after)
            live.append([0] * before + [1] * (P - before + T - after) + [0] * after)
            logps.append(c.logps + [0.0] * after)
        input_ids, mask = torch.tensor(ids, device=device), torch.tensor(live, device=device)
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        rollout_logps = torch.tensor(logps, dtype=torch.float32, device=device)
        return Padded(inputs, input_ids[:, P:], mask[:, P:].bool(), rollout_logps)

    def logits(self, inputs: dict[str, Tensor], width: int) -> Tensor:
        """What predicts the last `width` tokens: (B, T, V), shifted, so that logits[t] belongs to targets[t]."""
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        output = self.model(**inputs, position_ids=positions, logits_to_keep=width + 1, use_cache=False)
        logits: Tensor = output.logits[:, :-1]
        return logits

    @torch.no_grad()
    def logps(self, batch: Padded, temperature: float, max_tokens: int) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the completions' tokens, each (B, T) float32, `max_tokens` places at a time."""
        logps, entropies = [], []
        rows = max(1, max_tokens // batch.targets.shape[1])
        for start in range(0, len(batch.targets), rows):
            part = batch[start : start + rows]
            all_logps = (self.logits(part.inputs, part.targets.shape[1]).float() / temperature).log_softmax(-1)
            logps.append(all_logps.gather(-1, part.targets[..., None]).squeeze(-1))
            entropies.append(-(all_logps.exp() * all_logps).sum(-1))
        return torch.cat(logps), torch.cat(entropies)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of printable ASCII; a fast tokenizer that any program loads from a checkpoint.

    Examples
    --------
    >>> tokenizer = character_tokenizer()
    >>> tokenizer.decode(tokenizer("a b, c?")["input_ids"])
    'a b, c?'
    """
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    vocabulary = {token: i for i, token in enumerate([*special.values(), *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False, **special
    )
