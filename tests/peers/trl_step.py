"""Real optimizer steps of `RecipeTrainer` on a tiny model, and what they should have been, computed apart."""

import numpy as np
import torch
from transformers import LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig

import grpokit as gk
from grpokit.adapters.trl import RecipeTrainer

from . import tiny

N = 8


class Recorder(TrainerCallback):
    """What an optimizer step had: weights, gradients, micro-batches, and the rows that were sampled."""

    def __init__(self):
        self.steps, self.trainer = [], None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        size = args.gradient_accumulation_steps
        first = (trainer._step - size) % args.steps_per_generation
        parameters = dict(trainer.model.named_parameters())
        self.steps.append(
            {
                "weights": {name: p.detach().clone() for name, p in parameters.items()},
                "grads": {name: p.grad.clone() for name, p in parameters.items()},
                "micros": trainer._buffered_inputs[first : first + size],
                "rewards": list(trainer.sampled),
                "start": trainer.start,
                "processed": trainer.processed,
            }
        )


class Watched(RecipeTrainer):
    """Remembers with which weights it sampled."""

    sampled, start = (), None

    def _generate_and_score_completions(self, inputs):
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        return super()._generate_and_score_completions(inputs)


def trained(
    directory, recipe, tmp_path, *, reward=tiny.reward, trainer=Watched, rollout_func=None, data=None, **config
):
    """A trainer after two steps of eight rows, and what each step had."""
    settings = {"per_device_train_batch_size": N, "num_generations": tiny.GROUP, "max_completion_length": 6}
    settings |= {"max_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False}
    settings |= {"save_strategy": "no", "max_grad_norm": 0.0, "learning_rate": 0.05, "gradient_checkpointing": False}
    recorder = Recorder()

    def watched(**given):
        found = reward(**given)
        recorder.trainer.sampled = found
        return found

    made = trainer(
        model=LlamaForCausalLM.from_pretrained(directory),
        processing_class=tiny.tokenizer(directory),
        reward_funcs=watched,
        args=GRPOConfig(output_dir=str(tmp_path), **(settings | config)),
        train_dataset=data or tiny.dataset(),
        callbacks=[recorder],
        rollout_func=rollout_func,
        recipe=recipe,
    )
    recorder.trainer = made
    made.train()
    return made, recorder.steps


def joined(step, name):
    return torch.cat([micro[name] for micro in step["micros"]])


def forward(directory, weights, step):
    """Logits that predict the completions' tokens."""
    model = LlamaForCausalLM.from_pretrained(directory)
    model.load_state_dict(weights)
    ids = torch.cat([joined(step, "prompt_ids"), joined(step, "completion_ids")], 1)
    mask = torch.cat([joined(step, "prompt_mask"), joined(step, "completion_mask")], 1)
    width = joined(step, "completion_ids").shape[1]
    return model, model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]


def logps(directory, weights, step):
    with torch.no_grad():
        _, logits = forward(directory, weights, step)
        return logits.log_softmax(-1).gather(-1, joined(step, "completion_ids")[..., None])[..., 0]


def expected(directory, recipe, step, out, **constants):
    """The gradient of the whole step in one batch of the rows that are kept."""
    model, logits = forward(directory, step["weights"], step)
    ids = joined(step, "rollout_ids")
    kept = torch.from_numpy(out.keep)[ids]
    advantages = torch.from_numpy(out.advantages)[ids]
    mask = joined(step, "completion_mask")
    given = {"mask": mask, "advantages": advantages, "rollout_ids": ids, **constants}
    batch = gk.TokenBatch(
        targets=joined(step, "completion_ids")[kept], step=0, **{name: x[kept] for name, x in given.items()}
    )
    loss = gk.loss.from_logits(logits[kept], batch, recipe).loss
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}


def table(rewards, lengths):
    return {"group_id": np.arange(len(rewards)) // tiny.GROUP, "reward": rewards, "response_len": lengths}


def assert_same(one, other, bound=2e-5):
    size = max(float(g.norm()) for g in other.values())
    for name, g in other.items():
        assert float((one[name] - g).norm()) <= bound * size, name
    assert size > 0
