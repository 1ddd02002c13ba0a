"""One rank's steps of `RecipeTrainer`, for test_trl_ranks: writes what the optimizer was given, a file a case."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig

import grpokit as gk
from grpokit.adapters.trl import RecipeTrainer
from tests.peers import tiny

ANSWERS = [[3, 4, 5], [6, 7], [8, 9, 10, 11, 12], [5], [7, 7, 7], [9, 3], [4, 5, 6, 7, 8, 3], [11]]
MIXED, ONE_RANK = [1.0, 0.0, 2.0, None, 3.0, 1.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 1.0, 1.0]
CASES = {
    "dapo": (gk.recipe("dapo", max_len=6, cache=0), MIXED),
    "gspo": (gk.recipe("gspo").replace(select=(gk.HasSignal(),)), MIXED),
    "dapo_one_rank": (gk.recipe("dapo", max_len=6, cache=0), ONE_RANK),
    "top_one_rank": (gk.recipe("high_entropy", max_len=6, cache=0), ONE_RANK),
}
ONCE = {"max_steps": 1, "logging_steps": 1, "max_grad_norm": 0.0, "save_strategy": "no", "shuffle_dataset": False}
HERE = {"use_cpu": True, "bf16": False, "report_to": "none", "num_generations": tiny.GROUP, "max_completion_length": 6}


class Gradient(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        module = getattr(model, "module", model)
        self.found = {name: p.grad.clone() for name, p in module.named_parameters()}


def rollouts(prompts, trainer):
    first = trainer.accelerator.process_index * len(prompts)
    answers = ANSWERS[first : first + len(prompts)]
    prompt_ids = [trainer._tokenizer(prompt)["input_ids"] for prompt in prompts]
    return {"prompt_ids": prompt_ids, "completion_ids": answers, "logprobs": [[-1.0] * len(a) for a in answers]}


def main(directory, out, rows, accumulate):
    for name, (recipe, rewards) in CASES.items():
        gradient = Gradient()
        sizes = {"per_device_train_batch_size": int(rows), "gradient_accumulation_steps": int(accumulate)}

        def reward(completion_ids, rewards=rewards, **columns):
            return [rewards[ANSWERS.index(list(ids))] for ids in completion_ids]

        trainer = RecipeTrainer(
            model=LlamaForCausalLM.from_pretrained(directory),
            processing_class=tiny.tokenizer(directory),
            reward_funcs=reward,
            args=GRPOConfig(output_dir=out, **ONCE, **HERE, **sizes),
            train_dataset=tiny.dataset(),
            callbacks=[gradient],
            rollout_func=rollouts,
            recipe=recipe,
        )
        trainer.train()
        if trainer.accelerator.is_main_process:
            found = {"grads": gradient.found, "log": trainer.state.log_history[0]}
            torch.save(found | {"ranks": trainer.accelerator.num_processes}, Path(out) / f"{name}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()  # or its threads are ended at exit, at times with an abort


if __name__ == "__main__":
    main(*sys.argv[1:])
