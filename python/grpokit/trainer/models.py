"""Which model a run trains: the tiny built-in, or any causal language model of `transformers`, whole or by LoRA.

In: a configuration. Out: a `Policy`. What would part the sampler from the loss is switched off or refused here:
dropout, a tokenizer without an end, a context that is too short.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from grpokit.errors import error

from .policy import Policy, without_progress_bars

if TYPE_CHECKING:
    from .config import TrainConfig
    from .config_tables import LoRA

_DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout")


def load(config: TrainConfig, seed: int) -> Policy:
    """The policy of a run.

    Parameters
    ----------
    config : TrainConfig
        Its `model`, `tiny`, `precision`, `lora`, `gradient_checkpointing` and `layout`.
    seed : int
        Of weights that are random: all of the tiny model's, LoRA's A.

    Raises
    ------
    InputError
        `bad_model`: there is none of that name, or it cannot be sampled from; `missing_extra`: LoRA without peft.
    """
    policy = Policy.tiny(config.tiny, seed) if not config.model else _pretrained(config)
    model = policy.model
    _no_dropout(model)
    if config.gradient_checkpointing:
        # Its name changed within transformers 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        # transformers checkpoints in training mode only, which without dropout is what the sampler does as well.
        model.train()
    if config.lora.rank:
        model = _adapted(model, config.lora, seed)
    if config.precision == "bf16":
        # What is trained stays in fp32: in bf16 most of AdamW's steps would round to nothing.
        for weight in model.parameters():
            weight.data = weight.data.to(torch.float32 if weight.requires_grad else torch.bfloat16)
    return Policy(model, policy.tokenizer, layout=config.layout, autocast=config.precision == "bf16")


def load_checkpoint(config: TrainConfig, directory: Path, seed: int) -> Policy:
    """The policy of a checkpoint that a run has written.

    Parameters
    ----------
    config : TrainConfig
        The run's.
    directory : Path
        A model with its tokenizer as `Policy.save` writes them; of LoRA the low-rank weights alone.
    seed : int
        The run's seed of the weights, since of LoRA the others are the run's first ones.

    Raises
    ------
    InputError
        `bad_model`, `missing_extra`.
    """
    if not config.lora.rank:
        return load(dataclasses.replace(config, model=str(directory)), seed)
    policy = load(config, seed)
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        weights = load_peft_weights(str(directory), device="cpu")
    except (OSError, ValueError) as problem:
        raise _not_there(str(directory), problem) from None
    set_peft_model_state_dict(policy.model, weights)
    return policy


def memory(config: TrainConfig) -> dict[str, int]:
    """What a run holds at the least, in bytes, by what it is; activations and rollouts come on top.

    Raises
    ------
    InputError
        `bad_model`.
    """
    if config.model:
        try:
            about = AutoConfig.from_pretrained(config.model)
        except (OSError, ValueError) as problem:
            raise _not_there(config.model, problem) from None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(about)  # type: ignore[no-untyped-call]
    else:
        model = Policy.tiny(config.tiny, 0).model
    if config.lora.rank:
        model = _adapted(model, config.lora, 0)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters()) - trained
    weights = 4 * trained + (2 if config.precision == "bf16" else 4) * frozen
    of = {"the weights": weights, "their gradients": 4 * trained, "the optimizer": 8 * trained}
    if config.make_recipe().reads("ref_logps"):
        of["the reference policy"] = weights
    if config.async_level:
        of["the rollout process"] = weights
    return of


def _pretrained(config: TrainConfig) -> Policy:
    name = config.model
    try:
        with without_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as problem:
        raise _not_there(name, problem) from None
    if tokenizer.eos_token_id is None:
        remedy = "Set tokenizer.eos_token and save it with the model."
        raise error("bad_model", name=name, why="its tokenizer has no end token", remedy=remedy)
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any token does.
        tokenizer.pad_token = tokenizer.eos_token
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and context <= config.max_completion_length:
        why = f"its context of {context} tokens has no room for max_completion_length={config.max_completion_length}"
        raise error("bad_model", name=name, why=why, remedy="Shorten max_completion_length.")
    return Policy(model, tokenizer)


_REMEDY = (
    "Give the path of a directory that save_pretrained wrote, or the name of a model on a hub that can be reached."
)


def _not_there(name: str, problem: Exception) -> Exception:
    where = f"{name!r} is no directory here" if not Path(name).exists() else f"what is in {name!r} does not load"
    return error("bad_model", name=name, why=f"{where}: {str(problem).strip().splitlines()[0][:200]}", remedy=_REMEDY)


def _no_dropout(model: Any) -> None:
    for name in _DROPOUTS:
        if getattr(model.config, name, 0):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif getattr(module, "attention_dropout", 0):
            module.attention_dropout = 0.0


def _adapted(model: Any, lora: LoRA, seed: int) -> Any:
    """The model with low-rank weights beside its linear layers, and those alone to be trained."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise error("missing_extra", what="lora.rank", package="peft", extra="lora") from None
    targets = list(lora.targets) or "all-linear"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for a name that it is about to drop.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        made = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
        )
        return get_peft_model(model, made)
