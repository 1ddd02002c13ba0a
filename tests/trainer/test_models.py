"""Real models of transformers: by path, whole or by LoRA, in bf16, packed or padded, and what is refused."""

import dataclasses

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import grpokit as gk
from grpokit.trainer import Trainer
from grpokit.trainer.config import LoRA, TrainConfig
from grpokit.trainer.models import load, memory
from grpokit.trainer.policy import Completion, character_tokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = SMALL | {"intermediate_size": 48, "num_key_value_heads": 1, "max_position_embeddings": 64}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, SIZES | {"attention_dropout": 0.5}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        SIZES | {"head_dim": 16, "final_logit_softcapping": 3.0, "sliding_window": 4},
    ),
    # Its logits are scaled after the head.
    "granite": (GraniteForCausalLM, GraniteConfig, SIZES | {"logits_scaling": 3.0}),
    # Absolute positions, and dropout everywhere by default.
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
}
ROWS = [Completion([5, 6], [7, 8, 9], [0.0] * 3, "stop", ""), Completion([4] * 5, [3] * 6, [0.0] * 6, "length", "")]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each kind, saved with the character tokenizer."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = character_tokenizer()
    for name, (model, config, sizes) in KINDS.items():
        torch.manual_seed(3)
        ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
        made = model(config(vocab_size=len(tokenizer), **ids, **sizes))
        # Not the tiny weights of a fresh start, whose logits are all alike.
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        made.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


def policy_of(config, saved, name, **changes):
    return load(dataclasses.replace(config, model=str(saved / name), **changes), seed=1)


def step(policy, recipe=None):
    """A loss on two rows, and the gradients of what learns."""
    rows = policy.pad(ROWS)
    batch = gk.TokenBatch(rows.targets, mask=rows.mask, advantages=torch.tensor([1.0, -0.5]), inputs=rows.inputs)
    out = policy.loss(batch, recipe or gk.recipe("rloo"))
    for weight in policy.trained():
        weight.grad = None
    out.loss.backward()
    return out.loss.detach(), [weight.grad.clone() for weight in policy.trained() if weight.grad is not None]


def test_packed_is_padded_and_both_are_the_models_own_logits(config, saved, kind):
    found = {layout: step(policy_of(config, saved, kind, layout=layout)) for layout in ("padded", "packed")}
    plain = policy_of(config, saved, kind)
    plain.__dict__["_how"] = dataclasses.replace(plain._how, head=None)
    loss, gradients = step(plain)
    for other, others in found.values():
        torch.testing.assert_close(other, loss, rtol=2e-5, atol=1e-6)
        largest = max(g.abs().max() for g in gradients)
        for a, b in zip(others, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * largest.item())


def test_what_is_found_out_by_trying(config, saved):
    how = {name: policy_of(config, saved, name)._how for name in KINDS}
    assert {name: found.head for name, found in how.items()} == {
        "llama": {"softcap": None},
        "gemma2": {"softcap": 3.0},
        "granite": None,
        "gpt2": {"softcap": None},
    }
    # All of them could pack; but attention that is not of the flash or flex kind would look at all pairs of tokens.
    assert not any(found.packed for found in how.values())
    assert all(policy_of(config, saved, name, layout="packed")._how.packed for name in KINDS)


def test_the_sampler_and_the_loss_agree_without_dropout(config, saved, kind):
    """GPT-2 drops a tenth of everything by default, and checkpointing needs training mode."""
    policy = policy_of(config, saved, kind, gradient_checkpointing=True)
    assert policy.model.training
    a, b = step(policy), step(policy)
    assert torch.equal(a[0], b[0])
    plain = step(policy_of(config, saved, kind))
    torch.testing.assert_close(a[0], plain[0], rtol=1e-5, atol=1e-6)
    for x, y in zip(a[1], plain[1], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_bf16_keeps_what_learns_in_fp32(config, saved, kind):
    exact, half = policy_of(config, saved, kind), policy_of(config, saved, kind, precision="bf16")
    assert {weight.dtype for weight in half.trained()} == {torch.float32}
    loss, gradients = step(half)
    expected, _ = step(exact)
    assert {g.dtype for g in gradients} == {torch.float32}
    torch.testing.assert_close(loss, expected, rtol=3e-2, atol=3e-2)
    assert loss != expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_learns_alone(config, saved, precision):
    policy = policy_of(config, saved, "llama", lora=LoRA(rank=4), precision=precision)
    names = {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    frozen = {weight.dtype for weight in policy.model.parameters() if not weight.requires_grad}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {weight.dtype for weight in policy.trained()} == {torch.float32}
    assert not policy._how.packed
    # B starts at 0, so A has no gradient yet.
    assert any(g.any() for g in step(policy)[1])


@pytest.mark.parametrize("changes", [{}, {"lora": LoRA(rank=4), "precision": "bf16", "gradient_checkpointing": True}])
def test_a_run_on_a_checkpoint(config, saved, tmp_path, task, changes):
    config = dataclasses.replace(config, model=str(saved / "llama"), recipe="grpo", **changes)
    summary = Trainer(config, task=task, directory=tmp_path / "run").train()
    assert (summary.status, summary.steps) == ("finished", config.steps)
    if not changes:
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")
        assert isinstance(again, LlamaForCausalLM)
    else:
        assert (tmp_path / "run" / "checkpoint" / "adapter_model.safetensors").is_file()


def test_what_a_run_holds(config, saved):
    """Counted on a model without weights: what `load` then has."""
    for changes in ({}, {"lora": LoRA(rank=4), "precision": "bf16"}):
        config_of = dataclasses.replace(config, model=str(saved / "llama"), recipe="grpo", **changes)
        held, policy = memory(config_of), load(config_of, seed=1)
        assert held["the weights"] == sum(w.numel() * w.element_size() for w in policy.model.parameters())
        assert held["the reference policy"] == held["the weights"]
        assert "the rollout process" not in held
        assert memory(dataclasses.replace(config_of, async_level=1))["the rollout process"] == held["the weights"]
        trained = sum(w.numel() for w in policy.trained())
        assert (held["their gradients"], held["the optimizer"]) == (4 * trained, 8 * trained)


def test_only_random_weights_are_warmed_up():
    assert TrainConfig().resolve().warm_start.steps == 600
    assert TrainConfig(model="somewhere").resolve().warm_start.steps == 0
    assert TrainConfig(model="somewhere").with_settings(["warm_start.steps=5"]).resolve().warm_start.steps == 5


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: None, "is no directory here"),
        (lambda path: path.mkdir(), "does not load"),
    ],
)
def test_what_is_no_model(config, tmp_path, break_it, words):
    path = tmp_path / "model"
    break_it(path)
    with pytest.raises(gk.InputError, match=words) as caught:
        load(dataclasses.replace(config, model=str(path)), seed=0)
    assert caught.value.kind == "bad_model"
    assert "save_pretrained wrote" in str(caught.value)


def test_a_name_on_a_hub_that_cannot_be_reached(config):
    with pytest.raises(gk.InputError, match="'Qwen/Qwen3-0.6B' is no directory here: .*Give the path"):
        load(dataclasses.replace(config, model="Qwen/Qwen3-0.6B"), seed=0)


def test_a_context_that_is_too_short(config, saved):
    with pytest.raises(gk.InputError, match="64 tokens has no room for max_completion_length=64"):
        policy_of(config, saved, "llama", max_completion_length=64)


def test_a_tokenizer_without_an_end(config, saved, tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    AutoModelForCausalLM.from_pretrained(saved / "llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(gk.InputError, match="its tokenizer has no end token"):
        load(dataclasses.replace(config, model=str(tmp_path)), seed=0)


def test_a_tokenizer_without_padding_pads_with_the_end(config, saved, tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.pad_token = None
    AutoModelForCausalLM.from_pretrained(saved / "llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load(dataclasses.replace(config, model=str(tmp_path)), seed=0)
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id
    same = step(policy)[0]
    torch.testing.assert_close(same, step(policy_of(config, saved, "llama"))[0])
