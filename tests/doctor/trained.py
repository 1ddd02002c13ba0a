"""Runs of the tiny model that have a fault, made by training with it: from one warm start, in a few seconds each."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

from grpokit.record import read_record
from grpokit.trainer import TrainConfig, Trainer
from grpokit.trainer.console import Silent
from grpokit.trainer.engine import InProcess
from grpokit.trainer.task_sorting import Sorting

BASE = [
    "recipe=grpo", "recipe.beta=0", "steps=20", "prompts_per_step=8", "max_rounds=1", "evaluation.prompts=32",
    "evaluation.samples=4", "evaluation.every=0", "evaluation.greedy=false", "snapshots.every=0",
    "logging.samples=0",
]  # fmt: skip


def config_of(warm, *settings):
    """The short run that all of these are, with some settings."""
    start = [f"model={warm}"] if warm else ["warm_start.steps=600"]
    return TrainConfig().with_settings([*start, *BASE, *settings])


def warm_start(place):
    """A checkpoint of the tiny model after its supervised steps, which all runs begin with."""
    config = config_of(None, "steps=1", "evaluation.prompts=2", "evaluation.samples=1", "logging.completions=0")
    Trainer(config, directory=place, console=Silent()).train()
    return place / "checkpoint"


def trained(place, warm, *settings, trainer=Trainer, **given):
    """What can be read of a run with these settings."""
    trainer(config_of(warm, *settings), directory=place, console=Silent(), **given).train()
    return read_record(place)


@dataclass(frozen=True)
class Scored(Sorting):
    """Sorting with another score."""

    by: Any = None

    def score(self, completion, item):
        return self.by(completion, item)


class Forgetful(Trainer):
    """Its sampler keeps the weights that it began with."""

    def make_engine(self):
        class Deaf(InProcess):
            def load(self, policy, version):
                self.version = version

        return Deaf(copy.deepcopy(self.policy))


def right(completion, item):
    return float(completion == item["answer"])


def length(completion, item):
    return len(completion) / 12


def half_a(completion, item):
    """Half of the reward at most, for the letter a: the policy comes to say nothing else, and is not right."""
    return completion.count("a") / 24


def letters(completion, item):
    """The share of letters in their place."""
    return sum(a == b for a, b in zip(completion, item["answer"], strict=False)) / len(item["answer"])


def forgets_some(completion, item):
    return None if completion[:1] in "ab" and len(completion) > 7 else right(completion, item)


def hard(completion, item):
    return right(completion, item) if item["prompt"][0] in "ab" else 0.0


class Explodes:
    """A score that is a thousand times too large in one step, the 15th; 128 completions were evaluated before."""

    calls = 0

    def __call__(self, completion, item):
        self.calls += 1
        step = 1 + (self.calls - 129) // 64
        return letters(completion, item) * (1000 if step == 15 else 1)


def here(score):
    """The same as a reward function, which stays in this process."""

    def items(columns, count):
        return [{name: values[at] for name, values in columns.items()} for at in range(count)]

    return lambda completions, **columns: list(map(score, completions, items(columns, len(completions))))


def zero(completion, item):
    return 0.0


def few_prompts(place):
    """Settings: three prompts, again and again."""
    place.mkdir(parents=True)
    others = [f"{a}{b}dc" for a in "efghij" for b in "klmnop"]
    for name, prompts in (("few", ["dcba", "acbd", "hgfe"]), ("others", others)):
        rows = [{"prompt": text + ">", "answer": "".join(sorted(text))} for text in prompts]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"task.file={place / 'few.jsonl'}", f"task.evaluation_file={place / 'others.jsonl'}"]
