"""Rollout engines: who samples. Token ids in, token ids with the log-prob of each out, and which weights did it.

An engine in this process samples here, with the model's own cache; `server.Server` asks a server. Each completion has a
seed of its own, so that it is the same in any batch and on any rank, but for the rounding of the logits.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache

from grpokit.errors import error

from .policy import Completion, Policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from .sampling import Sampling

_ROWS = 512  # the widest batch that a two-core machine still gains from
_LEFT = 0.75
_TAIL = 8  # tokens that a stop string may be longer in than in bytes: those that say nothing


class Engine(Protocol):
    """What the trainer asks of one.

    Attributes
    ----------
    version : int
        How many updates the weights have seen that it samples with.
    """

    version: int

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Completion]:
        """One completion of each prompt; repeat a prompt to have a group.

        Parameters
        ----------
        prompts : sequence of list of int, (N,)
            Token ids.
        seeds : sequence of int, (N,)
            Of each completion, below 2⁶³.
        sampling : Sampling
            How.

        Returns
        -------
        list of Completion, (N,)
            `logps` are of the distribution that was sampled from: at the temperature, among the tokens that `top_p`
            and `top_k` leave. π / μ is then a true importance ratio, the mass that they left at every token of a
            policy that has not moved.
        """
        ...

    def load(self, policy: Policy, version: int) -> None:
        """Samples with the policy's weights from here on."""
        ...

    def close(self) -> None:
        """Nothing is asked any more."""
        ...


class InProcess:
    """The policy itself samples.

    Parameters
    ----------
    policy : Policy
        Who samples.
    version : int
        How many updates it has seen.
    """

    def __init__(self, policy: Policy, version: int = 0) -> None:
        self.policy, self.version = policy, version

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Completion]:
        """As `Engine` has it.

        Raises
        ------
        InputError
            `diverged`: the policy's logits are no longer finite.
        """
        completions: list[Completion] = []
        for start in range(0, len(prompts), _ROWS):
            part = list(prompts[start : start + _ROWS])
            with _evaluating(self.policy.model):
                tokens, logps, lengths = self._sample(part, seeds[start : start + _ROWS], sampling)
            for prompt, *row, length in zip(part, tokens.tolist(), logps.tolist(), lengths.tolist(), strict=True):
                ids, values = (x[:length] for x in row)
                completions.append(
                    completion(self.policy, prompt, ids, values, sampling=sampling, version=self.version)
                )
        return completions

    def load(self, policy: Policy, version: int) -> None:
        """The weights are the policy's own, or become so."""
        if policy is not self.policy:
            with torch.no_grad():
                for own, weight in zip(self.policy.model.parameters(), policy.model.parameters(), strict=True):
                    own.copy_(weight)
        self.version = version

    def close(self) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def _sample(
        self, prompts: list[list[int]], seeds: Sequence[int], sampling: Sampling
    ) -> tuple[Tensor, Tensor, Tensor]:
        policy, longest = self.policy, sampling.max_completion_length
        device, pad, end = policy.model.device, policy.tokenizer.pad_token_id, policy.tokenizer.eos_token_id
        N, width = len(prompts), max(map(len, prompts))
        places = torch.from_numpy(_uniforms(seeds, longest)).to(device)
        # A group's prompt goes through the model once. Who watches its passes, as `record_routing` does, knows rows by
        # their places, so these stay then.
        watched = policy.watched
        once = prompts if watched else [list(p) for p in dict.fromkeys(map(tuple, prompts))]
        groups = {tuple(prompt): at for at, prompt in enumerate(once)}
        members = torch.arange(N) if watched else torch.tensor([groups[tuple(p)] for p in prompts])
        members = members.to(device)
        tokens = torch.tensor([[pad] * (width - len(p)) + p for p in once], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in once], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache: Any = DynamicCache(config=policy.model.config)
        going = torch.arange(N, device=device)  # the rows that are in the batch
        lengths = torch.full((N,), longest, device=device)
        sampled = torch.full((N, longest), pad, device=device)
        logps = torch.zeros((N, longest), device=device)
        for step in range(longest):
            with policy.precision():
                output = policy.model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    logits_to_keep=1,
                )
            all_logps = (output.logits[:, -1].float() / (sampling.temperature or 1.0)).log_softmax(-1)
            if not all_logps.isfinite().all():
                raise error("diverged", what="a logit of the policy")
            if step == 0 and not watched:
                all_logps, mask, positions = all_logps[members], mask[members], positions[members]
                cache.reorder_cache(members)
            if sampling.truncated:
                all_logps = _truncate(all_logps, sampling)
            tokens = (
                _drawn(all_logps, places[going, step]) if sampling.temperature else all_logps.argmax(-1, keepdim=True)
            )
            logps[going, step] = all_logps.gather(1, tokens)[:, 0]
            sampled[going, step] = tokens[:, 0]
            ends = tokens[:, 0] == end
            if sampling.stop:
                ends |= self._stopped(sampled[going, : step + 1], sampling.stop)
            lengths[going[ends]] = lengths[going[ends]].clamp(max=step + 1)
            left = lengths[going] > step + 1
            if not left.any():
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            positions = positions[:, -1:] + 1
            # Rows that have ended go where they are a fourth of the batch: the cache is copied for it.
            if not watched and left.sum() <= _LEFT * len(left):
                stay = left.nonzero()[:, 0]
                going, tokens, mask, positions = going[stay], tokens[stay], mask[stay], positions[stay]
                cache.reorder_cache(stay)
        return sampled, logps, lengths

    def _stopped(self, sampled: Tensor, stop: tuple[str, ...]) -> Tensor:
        tail = sampled[:, -max(len(s.encode()) for s in stop) - _TAIL :]
        texts = self.policy.tokenizer.batch_decode(tail)
        return torch.tensor([any(s in text for s in stop) for text in texts], device=tail.device)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Inside, nothing is checkpointed: where activations are computed again there is no cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def completion(
    policy: Policy, prompt: list[int], ids: list[int], logps: list[float], *, sampling: Sampling, version: int
) -> Completion:
    """What the sampled ids are: their text without the end token, or up to a stop string, and how it ended."""
    ended = ids[-1:] == [policy.tokenizer.eos_token_id]
    text = policy.tokenizer.decode(ids[: len(ids) - ended])
    at = min((place for s in sampling.stop if (place := text.find(s)) >= 0), default=None)
    finish = "stop" if ended or at is not None or len(ids) < sampling.max_completion_length else "length"
    return Completion(prompt, ids, logps, finish, text[:at], version=version)


def _uniforms(seeds: Sequence[int], longest: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Numbers in [0, 1), a row a seed."""
    found = np.empty((len(seeds), longest))
    bits = np.random.Philox(key=0)
    numbers, begun = np.random.Generator(bits), bits.state
    for row, seed in zip(found, seeds, strict=True):
        # As Philox(key=seed), which would ask the system for entropy that it does not use.
        begun["state"]["key"][:] = seed % 2**64, seed >> 64
        bits.state = begun
        numbers.random(out=row)
    return found


def _drawn(all_logps: Tensor, places: Tensor) -> Tensor:
    """The token at each place of its row's cumulative distribution: (B, 1)."""
    heaped = all_logps.double().exp().cumsum(-1)
    total = heaped[:, -1:]
    # Rounding must not lead behind the last token that has any probability.
    at = torch.minimum(places[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(heaped, at, right=True)


def _truncate(all_logps: Tensor, sampling: Sampling) -> Tensor:
    """The distribution among the tokens that top-k and then top-p leave; −∞ elsewhere. Ties go by token id."""
    ordered, order = all_logps.sort(dim=-1, descending=True, stable=True)
    out = torch.zeros_like(ordered, dtype=torch.bool)
    if sampling.top_k:
        out[:, sampling.top_k :] = True
    if sampling.top_p < 1:
        mass = ordered.masked_fill(out, -torch.inf).double().softmax(-1)
        # A token stays while those before it have less than top_p.
        out |= mass.cumsum(-1) - mass >= sampling.top_p
    kept = ordered.masked_fill(out, -torch.inf).log_softmax(-1)
    return torch.empty_like(kept).scatter(1, order, kept)
