"""One rank of an optimizer step in verl's FSDP engine, for test_verl_engine: writes the loss and the gradients."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.peers import verl_cpu  # noqa: F401 before verl's engine asks for an accelerator

# isort: split
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, HFModelConfig
from verl.workers.config.optimizer import FSDPOptimizerConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

import grpokit.adapters.verl  # noqa: F401 it registers the recipes
from tests.peers.verl_step import PROMPT, Step, actor, overrides


def nested(columns):
    return torch.nested.as_nested_tensor(columns, layout=torch.jagged)


def main(directory, out, *names):
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    step = Step(empty=True)
    if rank == 0:
        step.model.save_pretrained(directory)
    dist.barrier()
    whole = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = FSDPEngineWithLMHead(
        HFModelConfig(
            path=directory,
            load_tokenizer=False,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "eager"},
        ),
        FSDPEngineConfig(strategy="fsdp2", mixed_precision=whole, use_torch_compile=False),
        FSDPOptimizerConfig(lr=0.0, total_training_steps=1),
        CheckpointConfig(),
    )
    engine.initialize()
    at = range(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    data = {
        "input_ids": nested([step.ids[i] for i in at]),
        "position_ids": nested([torch.arange(len(step.ids[i])) for i in at]),
        "prompts": nested([step.ids[i][:PROMPT] for i in at]),
        "responses": nested([step.ids[i][PROMPT:] for i in at]),
        "response_mask": nested([step.mask[i].long() for i in at]),
        "loss_mask": nested([step.mask[i].long() for i in at]),
        "old_log_probs": nested([step.old[i] for i in at]),
        "advantages": nested([step.advantages[i] * step.mask[i] for i in at]),
    }
    told = {"use_remove_padding": False, "temperature": 1.0, "micro_batch_size_per_gpu": 2, "use_dynamic_bsz": False}
    for name in names:
        batch = tu.get_tensordict(dict(data), {})
        tu.assign_non_tensor(batch, global_batch_size=8, calculate_entropy=False, **told)
        with engine.train_mode():
            engine.optimizer_zero_grad()
            found = engine.forward_backward_batch(batch, partial(ppo_loss, actor(*overrides(name))))
            grads = {}
            for key, p in engine.module.named_parameters():
                g = p.grad
                grads[key] = (g.full_tensor() if isinstance(g, DTensor) else g).clone()
        if rank == 0:
            torch.save({"grads": grads, "loss": found["loss"], "ranks": ranks}, Path(out) / f"{name}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
