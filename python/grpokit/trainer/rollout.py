"""The rollout engine: sampling in process, token by token, with the model's own cache and each token's log-prob."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from transformers import DynamicCache

from grpokit.errors import error

from .policy import Completion, Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROWS = 512  # the widest batch that a two-core machine still gains from


def generate(
    policy: Policy, prompts: Sequence[str], *, max_completion_length: int, temperature: float, generator: Generator
) -> list[Completion]:
    """One sampled completion for each prompt; repeat a prompt to have a group.

    Parameters
    ----------
    policy : Policy
        Who samples.
    prompts : sequence of str, (N,)
        What is to be completed.
    max_completion_length : int
        Tokens, the end token included.
    temperature : float
        What the logits are divided by; 0 takes the likeliest token.
    generator : torch.Generator
        Where the randomness comes from; the same state gives the same completions.

    Returns
    -------
    list of Completion, (N,)

    Raises
    ------
    InputError
        A prompt cannot be encoded, or the policy's logits are no longer finite.
    """
    ids = policy.encode(prompts)
    completions: list[Completion] = []
    for start in range(0, len(ids), _ROWS):
        part = ids[start : start + _ROWS]
        tokens, logps = _sample(policy, part, max_completion_length, temperature, generator)
        completions += _read(policy, part, tokens, logps)
    return completions


@torch.no_grad()
def _sample(
    policy: Policy, prompts: list[list[int]], longest: int, temperature: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    device, pad, end = policy.model.device, policy.tokenizer.pad_token_id, policy.tokenizer.eos_token_id
    width = max(map(len, prompts))
    tokens = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache = DynamicCache(config=policy.model.config)
    sampled, logps = [], []
    for _ in range(longest):
        with policy.precision():
            output = policy.model(
                input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
        all_logps = (output.logits[:, -1].float() / (temperature or 1.0)).log_softmax(-1)
        if not all_logps.isfinite().all():
            raise error("diverged", what="a logit of the policy")
        if temperature:
            tokens = torch.multinomial(all_logps.exp(), 1, generator=generator)
        else:
            tokens = all_logps.argmax(-1, keepdim=True)
        logps.append(all_logps.gather(1, tokens))
        sampled.append(tokens.masked_fill(done[:, None], pad))
        done = done | (tokens[:, 0] == end)
        if done.all():
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
    return torch.cat(sampled, 1), torch.cat(logps, 1)


def _read(policy: Policy, prompts: list[list[int]], tokens: Tensor, logps: Tensor) -> list[Completion]:
    end, completions = policy.tokenizer.eos_token_id, []
    for prompt, row, values in zip(prompts, tokens.tolist(), logps.tolist(), strict=True):
        stopped = end in row
        length = row.index(end) + 1 if stopped else len(row)
        text = policy.tokenizer.decode(row[: length - stopped])
        completions.append(Completion(prompt, row[:length], values[:length], "stop" if stopped else "length", text))
    return completions
