"""The policy: a causal language model of `transformers`, its tokenizer, and the log-probs that both sides agree on.

Prompts are padded on the left and completions on the right, so a batch is one (B, P + T) tensor whose last T columns
are completions. Positions count the live tokens: padding changes nothing.
"""

from __future__ import annotations

import copy
import string
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

import grpokit as gk
from grpokit.errors import error
from grpokit.hidden_states import WORKSPACE_BYTES, read_columns
from grpokit.vocabulary import Reader

from .ranks import ALONE
from .shards import shard, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from grpokit.door import LossOutput

    from .config_tables import TinyModel

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
    version : int
        How many updates the weights had seen that sampled it; the least, where it took several turns.
    own : list of bool, optional
        Which of `token_ids` the policy wrote, where an environment wrote the others; their log-probs are 0.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    logps: list[float]
    finish: str
    text: str
    off_policy: bool = False
    version: int = 0
    own: list[bool] | None = None

    @property
    def written(self) -> int:
        """How many of `token_ids` the policy wrote."""
        return len(self.token_ids) if self.own is None else sum(self.own)

    def of_policy(self, values: Iterable[float]) -> list[float]:
        """Of numbers that begin with one for each of `token_ids`, those of the tokens that the policy wrote."""
        return list(compress(values, self.own or [True] * len(self.token_ids)))


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
        (B, T) bool, the tokens that the policy wrote.
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
    layout : {"auto", "packed", "padded"}
        How sequences go through the model for the loss; see `hidden`.
    autocast : bool
        Forward passes compute in bf16.

    Attributes
    ----------
    ranks : Ranks
        The processes that share it; see `shards.shard`.
    plain : PreTrainedModel or None
        What `model` is inside `shards.whole`, where there are several.
    """

    def __init__(self, model: Any, tokenizer: Any, *, layout: str = "auto", autocast: bool = False) -> None:
        self.model, self.tokenizer, self.layout, self.autocast = model, tokenizer, layout, autocast
        self.ranks = ALONE
        self.plain: Any = None

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
        with whole(self):
            model = copy.deepcopy(self.model).requires_grad_(False)
        return shard(Policy(model, self.tokenizer, layout=self.layout, autocast=self.autocast), self.ranks)

    @property
    def sharded(self) -> bool:
        """Whether the model is spread over ranks, and is not whole for a while."""
        return self.plain is not None and self.model is not self.plain

    def trained(self) -> list[Tensor]:
        """The weights that learn."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def save(self, directory: Path) -> None:
        """Writes what ``AutoModelForCausalLM`` and ``AutoTokenizer`` load."""
        with without_progress_bars():
            self.model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens.

        Raises
        ------
        InputError
            A text is empty, or has a character that the tokenizer does not know.
        """
        once = list(dict.fromkeys(texts))  # a group repeats its prompt
        ids: list[list[int]] = self.tokenizer(once, add_special_tokens=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        for text, row in zip(once, ids, strict=True):
            if not row or unknown in row:
                raise error("untokenizable", text=text, known=CHARACTERS.strip())
        found = dict(zip(once, ids, strict=True))
        return [list(found[text]) for text in texts]

    def pad(self, completions: Sequence[Completion]) -> Padded:
        """The completions as tensors on the model's device."""
        device, pad = self.model.device, self.tokenizer.pad_token_id
        P = max(len(c.prompt_ids) for c in completions)
        T = max(len(c.token_ids) for c in completions)
        ids, live, own, logps = [], [], [], []
        for c in completions:
            before, after = P - len(c.prompt_ids), T - len(c.token_ids)
            ids.append([pad] * before + c.prompt_ids + c.token_ids + [pad] * after)
            live.append([0] * before + [1] * (P - before + T - after) + [0] * after)
            own.append((c.own or [True] * len(c.token_ids)) + [False] * after)
            logps.append(c.logps + [0.0] * after)
        input_ids, attention_mask = torch.tensor(ids, device=device), torch.tensor(live, device=device)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        rollout_logps = torch.tensor(logps, dtype=torch.float32, device=device)
        return Padded(inputs, input_ids[:, P:], torch.tensor(own, device=device), rollout_logps)

    def logits(self, inputs: dict[str, Tensor], width: int) -> Tensor:
        """What predicts the last `width` tokens: (B, T, V), shifted, so that logits[t] belongs to targets[t]."""
        with self.precision():
            output = self.model(**inputs, position_ids=_positions(inputs), logits_to_keep=width + 1, use_cache=False)
        logits: Tensor = output.logits[:, :-1]
        return logits

    def hidden(self, inputs: dict[str, Tensor], width: int) -> Tensor:
        """The last hidden states that predict the last `width` tokens: (B, T, H), shifted likewise.

        Packed, the live tokens of all rows are one row, in which each sees its own sequence alone: no work goes into
        padding. The states behind padding are 0 then.
        """
        return self._hidden(inputs, width, packed=self._how.packed)

    def _hidden(self, inputs: dict[str, Tensor], width: int, *, packed: bool) -> Tensor:
        ids, positions, live = inputs["input_ids"], _positions(inputs), inputs["attention_mask"].bool()
        with self.precision():
            if not packed:
                output = self._decoder(**inputs, position_ids=positions, use_cache=False)
                padded: Tensor = output.last_hidden_state[:, -width - 1 : -1]
                return padded
            output = self._decoder(input_ids=ids[live][None], position_ids=positions[live][None], use_cache=False)
        states = output.last_hidden_state[0]
        places = live.flatten().nonzero().squeeze(1)
        padded = states.new_zeros(live.numel(), states.shape[-1]).index_copy(0, places, states)
        return padded.view(*live.shape, -1)[:, -width - 1 : -1]

    def loss(self, part: gk.TokenBatch, recipe: gk.Recipe) -> LossOutput:
        """The loss of a part of a step, whose `inputs` are those of `Padded`."""
        head = self._how.head
        if head is None:
            return gk.loss.from_logits(self.logits(part.inputs, part.shape[1]), part, recipe)

        def of_hidden() -> tuple[Tensor, LossOutput]:
            hidden = self.hidden(part.inputs, part.shape[1])
            with self.precision():
                out = gk.loss.from_hidden(hidden, self._weight, part, recipe, **head)
            # FSDP looks for the tensors that a pass back begins with.
            return out.loss, out

        return self.model.inside(of_hidden)[1] if self.sharded else of_hidden()[1]

    def no_loss(self, inputs: dict[str, Tensor], width: int) -> Tensor:
        """The logits of no row, (0, width, V), by a pass like any other: for a rank that the others wait for."""
        return self.logits({name: x[:1] for name, x in inputs.items()}, width)[:0]

    @torch.no_grad()
    def observe(self, part: gk.TokenBatch, recipe: gk.Recipe) -> None:
        """The first of two passes, for a recipe that must see the whole step."""
        if self._how.head is None:
            gk.loss.observe(self.logits(part.inputs, part.shape[1]), part, recipe)
        else:
            hidden = self.hidden(part.inputs, part.shape[1])
            with self.precision():
                gk.loss.observe(hidden, part, recipe, weight=self._weight, **self._how.head)

    @torch.no_grad()
    def logps(self, batch: Padded, temperature: float, max_tokens: int) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the completions' tokens, each (B, T) float32, `max_tokens` places at a time.

        0 where there is no token.
        """
        logps, entropies = (torch.zeros(batch.mask.shape, device=batch.mask.device) for _ in range(2))
        rows = max(1, max_tokens // batch.targets.shape[1])
        for start in range(0, len(batch.targets), rows):
            at = slice(start, start + rows)
            part = batch[at]
            tokens = gk.TokenBatch(part.targets, mask=part.mask, temperature=temperature)
            if self._how.head is None:
                logits = self.logits(part.inputs, part.targets.shape[1])
                read: tuple[Tensor, ...] = Reader(logits, tokens).read(logits)
            else:
                how = self._how.head | {"workspace_bytes": WORKSPACE_BYTES, "provider": None, "kernel": "auto"}
                hidden = self.hidden(part.inputs, part.targets.shape[1])
                with self.precision():
                    read = read_columns(hidden, self._weight, tokens, **how)
            logps[at][part.mask], entropies[at][part.mask] = (x.float() for x in read)
        return logps, entropies

    def precision(self) -> Any:
        """What forward passes compute in."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def probe(self) -> None:
        """Finds out how its model goes together, while the weights are whole."""
        assert self._how

    @property
    def watched(self) -> bool:
        """Whether somebody looks at what goes into the decoder."""
        return bool(self._decoder._forward_pre_hooks)

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def _decoder(self) -> Any:
        return self._base.get_decoder()

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self._base.get_output_embeddings().weight
        return weight

    @cached_property
    def _how(self) -> _How:
        """What of the model is as most are, by trying: two short sequences, both ways."""
        ids = torch.arange(12, device=self.model.device).view(2, 6) % self.model.config.vocab_size
        live = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6], device=ids.device)
        inputs = {"input_ids": ids, "attention_mask": live}
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        with torch.no_grad():
            logits = self.logits(inputs, 5)
            padded = self._hidden(inputs, 5, packed=False)
            with self.precision():
                made = torch.nn.functional.linear(padded, self._weight).float()
            made = made if cap is None else cap * torch.tanh(made / cap)
            # What predicts a token from a live place.
            seen = live[:, :-1].bool()
            tolerance = 1e-2 if self.autocast else 1e-4
            head = {"softcap": cap} if _near(made[seen], logits.float()[seen], tolerance) else None
            packed = self.layout == "packed"
            # Other kinds of attention would look at all pairs of tokens, and mask what is not one sequence.
            varlen = str(self.model.config._attn_implementation).startswith(("flash", "flex"))
            if self.layout == "auto" and varlen:
                packed = _near(self._hidden(inputs, 5, packed=True)[seen], padded[seen], tolerance)
        return _How(head, packed)


@dataclass(frozen=True)
class _How:
    """What `Policy` found of its model: how its logits follow from hidden states, if they do; whether it packs."""

    head: dict[str, Any] | None
    packed: bool


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def _positions(inputs: dict[str, Tensor]) -> Tensor:
    return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Inside, transformers says nothing of what it loads and saves."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


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
