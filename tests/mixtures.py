"""Small mixtures of experts of transformers, their inputs, and what is recorded of them."""

import copy

import numpy as np
import torch
import transformers as tr
from torch import nn

import grpokit as gk
from grpokit.routers import ROUTERS, Mixture
from grpokit.trainer.engine import InProcess
from grpokit.trainer.policy import Policy, character_tokenizer
from grpokit.trainer.sampling import Sampling

TOKENIZER = character_tokenizer()
SIZES = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
QWEN = {"head_dim": 16, "intermediate_size": 32, "moe_intermediate_size": 16, "num_experts": 32}
MODELS = {
    "qwen3": (tr.Qwen3MoeConfig, QWEN | {"num_experts_per_tok": 4, "norm_topk_prob": True}),
    "qwen3_not_normalised": (tr.Qwen3MoeConfig, QWEN | {"num_experts_per_tok": 4, "norm_topk_prob": False}),
    "qwen2": (tr.Qwen2MoeConfig, QWEN | {"num_experts_per_tok": 4, "shared_expert_intermediate_size": 16}),
    "mixtral": (tr.MixtralConfig, {"intermediate_size": 16, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "olmoe": (tr.OlmoeConfig, {"intermediate_size": 16, "num_experts": 16, "num_experts_per_tok": 4}),
    "gpt_oss": (
        tr.GptOssConfig,
        {"intermediate_size": 16, "num_local_experts": 16, "num_experts_per_tok": 4, "head_dim": 16},
    ),
    # The first layer is dense; 2 of 4 groups of experts are looked at.
    "deepseek_v3": (
        tr.DeepseekV3Config,
        {
            "intermediate_size": 32, "moe_intermediate_size": 16, "n_routed_experts": 16, "num_experts_per_tok": 4,
            "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
        },
    ),
}  # fmt: skip


def build(name, seed=0, **more):
    config, sizes = MODELS[name]
    torch.manual_seed(seed)
    model = tr.AutoModelForCausalLM.from_config(config(**SIZES | sizes | more), attn_implementation="eager")
    for module in model.modules():  # some routers' parameters begin as zeros
        if type(module).__name__ in ROUTERS:
            nn.init.normal_(module.weight, std=0.2)
    return model.eval()


def inputs(rows=3, width=9, seed=0):
    """Left padded ids with their mask and positions; the first row has no padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, len(TOKENIZER), (rows, width), generator=generator)
    mask = torch.arange(width) >= torch.arange(rows)[:, None]
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}


def record_of(model, batch, **options):
    with torch.no_grad(), gk.record_routing(model, **options) as recorder:
        logits = model(**batch, use_cache=False).logits
    return recorder.record, logits


def shuffled(record, seed=0):
    """Other experts, at random."""
    rng = np.random.default_rng(seed)
    chosen = rng.random((*record.experts.shape[:-1], record.num_experts)).argsort(-1)[..., : record.experts.shape[-1]]
    return gk.RoutingRecord(chosen, record.num_experts, record.weights, record.layers)


def gradients(model, batch, record=None, **options):
    """Logits, and the gradient of every weight of a fixed function of them."""
    model.zero_grad()
    if record is None:
        logits = model(**batch, use_cache=False).logits
        logits[batch["attention_mask"] == 1].logsumexp(-1).sum().backward()
    else:
        with gk.replay_routing(model, record, **options):
            logits = model(**batch, use_cache=False).logits
            logits[batch["attention_mask"] == 1].logsumexp(-1).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def routers(model):
    return Mixture(model).routers


def cut(record, width):
    return gk.RoutingRecord(record.experts[:, :width], record.num_experts, layers=record.layers)


PROMPTS = ["dcab>", "zyx>", "qwertyu>", "bbaa>"] * 2


def sampled(model, seed=0, length=10):
    """What a bf16 copy of the model samples with its cache, and the experts that it chose, laid out for training."""
    policy = Policy(copy.deepcopy(model).to(torch.bfloat16), TOKENIZER)
    with gk.record_routing(policy.model) as recorder:
        completions = InProcess(policy).generate(
            policy.encode(PROMPTS), [seed << 32 | row for row in range(len(PROMPTS))], Sampling(length)
        )
    batch = Policy(model, TOKENIZER).pad(completions)
    mask = batch.inputs["attention_mask"]
    record = recorder.record
    rows = record.split(mask[:, : record.layout[1]] * torch.ones(record.layout).long())
    return batch, gk.RoutingRecord.padded(rows, mask)


def logps(policy, batch):
    logits = policy.logits(batch.inputs, batch.targets.shape[1]).log_softmax(-1)
    return logits.gather(-1, batch.targets[..., None]).squeeze(-1)[batch.mask]


def recompute(model, **options):
    """Gradient checkpointing, which has changed its name."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(options or None)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Alone(nn.Module):
    """A router that is a whole model."""

    def __init__(self, router, x):
        super().__init__()
        self.router, self.x = router, x

    def forward(self, input_ids):
        return self.router(self.x)
