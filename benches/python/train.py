"""Our trainer and TRL's GRPOTrainer on the same thing: model, task, prompts a step, loss, learning rate, evaluations.

Three seeds of the built-in task: a warm start each, then 100 steps by either, which take turns; held-out pass@1 by the
same function every 20 steps, whose time is not counted. Then ten steps of a model with 5 M weights. Steps a second are
those of the whole step as each trainer takes it, its logging of every step included.

    make bench-train            # about 10 minutes
    make bench-train ARGS=5m    # the larger model only
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
from datasets import Dataset
from timing import RESULTS, machine
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from grpokit.trainer import TrainConfig, Trainer
from grpokit.trainer.built_in import make_task
from grpokit.trainer.config import TaskConfig, stream
from grpokit.trainer.console import Silent
from grpokit.trainer.engine import InProcess
from grpokit.trainer.evaluate import evaluate
from grpokit.trainer.models import load
from grpokit.trainer.policy import Policy
from grpokit.trainer.rewards import Rewards
from grpokit.trainer.tasks import draw

SEEDS, STEPS, EVERY = (0, 1, 2), 100, 20
LARGE = ["tiny.hidden_size=256", "tiny.intermediate_size=768", "tiny.layers=6"]
# TRL's loss_type="dapo" in both: our recipe of that name replays it, quirks included.
SAME = ["recipe=trl", "recipe.epsilon_high=0.28", "updates_per_step=1", "max_rounds=1", "snapshots.every=0"]


class Timed(Trainer):
    """Ours, with the time of its steps but for what evaluations take."""

    spent = evaluating = 0.0

    def _step(self, step):
        start, before = time.perf_counter(), self.evaluating
        super()._step(step)
        self.spent += time.perf_counter() - start - (self.evaluating - before)

    def _evaluate(self, step):
        start = time.perf_counter()
        found = super()._evaluate(step)
        self.evaluating += time.perf_counter() - start
        return found


def ours(config, checkpoint, steps, every):
    """A run from the checkpoint: seconds, held-out pass@1 by step, and the lines of metrics.jsonl."""
    settings = [*SAME, f"model={checkpoint}", "warm_start.steps=0", f"steps={steps}", f"evaluation.every={every}"]
    with tempfile.TemporaryDirectory() as place:
        trainer = Timed(config.with_settings(settings), directory=f"{place}/run", console=Silent())
        trainer.train()
        lines = [json.loads(line) for line in Path(f"{place}/run/metrics.jsonl").read_text().splitlines()]
    return trainer.spent, {e.step: e.pass_1 for e in trainer.evaluations}, lines[1:]


class Watched(TrainerCallback):
    """What our evaluation says of TRL's policy, and what it takes."""

    def __init__(self, judge, every):
        self.judge, self.every, self.evaluating, self.found = judge, every, 0.0, {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.evaluate(0, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.every and state.global_step % self.every == 0:
            self.evaluate(state.global_step, model)

    def evaluate(self, step, model):
        start = time.perf_counter()
        self.found[step] = self.judge(model)
        self.evaluating += time.perf_counter() - start


def trl(config, checkpoint, steps, every):
    """The same by TRL: seconds, and held-out pass@1 by step."""
    policy = load(config.with_settings([f"model={checkpoint}"]), 0)
    task = make_task(TaskConfig().resolve(), rewarded=False)
    items = draw(task, stream(config, "prompts"), config.prompts_per_step * steps, held_out=False)
    data = Dataset.from_list([{"prompt": item["prompt"], "number": at} for at, item in enumerate(items)])

    def reward(completions, number, **_):
        return [task.score(text, items[at]) for text, at in zip(completions, number, strict=True)]

    held_out = draw(task, stream(config, "held out"), config.evaluation.prompts, held_out=True)

    def judge(model):
        judged = Policy(model, policy.tokenizer)
        given = {"task": task, "items": held_out, "config": config}
        return evaluate(InProcess(judged), judged, Rewards(task), **given).passed.pass_1

    watched = Watched(judge, every)
    with tempfile.TemporaryDirectory() as place:
        arguments = GRPOConfig(
            output_dir=place, per_device_train_batch_size=config.prompts_per_step * config.num_generations,
            num_generations=config.num_generations, max_completion_length=config.max_completion_length,
            learning_rate=config.learning_rate, lr_scheduler_type="constant", max_steps=steps, logging_steps=1,
            beta=0.0, loss_type="dapo", epsilon=0.2, epsilon_high=0.28, temperature=1.0, use_cpu=True, bf16=False,
            report_to="none", save_strategy="no", adam_beta2=0.99, max_grad_norm=1.0, seed=config.seed,
            gradient_checkpointing=False, disable_tqdm=True, shuffle_dataset=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=policy.model, reward_funcs=reward, args=arguments, train_dataset=data,
            processing_class=policy.tokenizer, callbacks=[watched],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        spent = time.perf_counter() - start - watched.evaluating
    return spent, watched.found


def compared(name, settings, seeds, steps, every):
    """Both from a warm start of each seed, in turns."""
    rows = []
    for at, seed in enumerate(seeds):
        config = TrainConfig(seed=seed).with_settings(settings)
        with tempfile.TemporaryDirectory() as place:
            Trainer(config.with_settings(["steps=0"]), directory=f"{place}/warm", console=Silent()).train()
            checkpoint, found = f"{place}/warm/checkpoint", {}
            for who in (ours, trl) if at % 2 == 0 else (trl, ours):
                found[who.__name__] = who(config, checkpoint, steps, every)
        (mine, passed, lines), (theirs, their_passed) = found["ours"], found["trl"]
        rows.append({
            "seed": seed, "ours": steps / mine, "trl": steps / theirs, "ratio": theirs / mine,
            "ours_pass@1": passed, "trl_pass@1": their_passed, "split": split(lines),
        })  # fmt: skip
        print(name, json.dumps(rows[-1]), flush=True)
    return rows


def split(lines):
    """The share of a step's time in each phase."""
    total = sum(line["step_time"] for line in lines)
    names = sorted({name for line in lines for name in line if name.startswith("time/")} - {"time/evaluation"})
    return {name.removeprefix("time/"): sum(line.get(name, 0.0) for line in lines) / total for name in names}


def page(about, tiny, large):
    """The results as Markdown."""
    lines = ["# The trainer beside TRL's", "", f"`make bench-train`: {about}.", "", __doc__.partition("\n\n")[2].partition("    make")[0].strip(), ""]  # fmt: skip # noqa: E501
    for title, rows in (("The built-in model, 100 steps", tiny), ("A model with 5 M weights, 10 steps", large)):
        if not rows:
            continue
        lines += [f"## {title}", "", "| seed | ours, steps/s | TRL, steps/s | ratio | pass@1, ours | pass@1, TRL |", "|---|---:|---:|---:|---:|---:|"]  # fmt: skip # noqa: E501
        for row in rows:
            last = [list(row[f"{who}_pass@1"].values()) for who in ("ours", "trl")]
            ends = [f"{values[0]:.3f} → {values[-1]:.3f}" if len(values) > 1 else "" for values in last]
            lines.append(f"| {row['seed']} | {row['ours']:.2f} | {row['trl']:.2f} | {row['ratio']:.2f} | {ends[0]} | {ends[1]} |")  # fmt: skip # noqa: E501
        ratio = statistics.fmean(row["ratio"] for row in rows)
        shares = {name: statistics.fmean(row["split"].get(name, 0.0) for row in rows) for name in rows[0]["split"]}
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        lines += ["", f"The ratios' mean is {ratio:.2f}. Of our step: {told}.", ""]
    return "\n".join(lines)


def main():
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    asked = sys.argv[1:] or ["tiny", "5m"]
    tiny = compared("tiny", [], SEEDS, STEPS, EVERY) if "tiny" in asked else []
    large = compared("5m", [*LARGE, "warm_start.steps=0"], SEEDS, 10, 0) if "5m" in asked else []
    about = machine("make bench-train", ("torch", "transformers", "trl"))
    (RESULTS / "train.json").write_text(json.dumps(about | {"tiny": tiny, "5m": large}, indent=1) + "\n")
    words = f"{about['cpu']}, {about['cores']} cores, commit {about['commit']}"
    (RESULTS / "train.md").write_text(page(words, tiny, large))
    print(page(words, tiny, large))


if __name__ == "__main__":
    main()
