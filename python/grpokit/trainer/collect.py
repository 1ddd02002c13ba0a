"""A step's rollouts: sample groups, score them, let the recipe keep what it wants, and sample again for the rest.

In: the policy, the task, the recipe. Out: everything that was sampled, with `grpokit.process`'s verdict on each row.
Dynamic sampling (DAPO, arXiv:2503.14476, §3.2) is nothing but this loop around a recipe that drops groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import grpokit as gk

from . import rewards
from .rollout import generate
from .tasks import Item, Task, draw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from numpy.typing import NDArray
    from torch import Generator

    from .config import TrainConfig
    from .policy import Completion, Policy


@dataclass(frozen=True)
class Sampled:
    """All rows that a step sampled, N of them, in groups of `num_generations`.

    Parameters
    ----------
    items : list of Item, (N,)
        What was asked; a group's rows share theirs.
    completions : list of Completion, (N,)
        What was answered.
    rewards : list of float or None, (N,)
        What it is worth; None where that could not be said.
    group_id : (N,) int64
        Counted from 0.
    processed : Processed
        The recipe's verdict.
    rounds : int
        How often the step sampled.
    """

    items: list[Item]
    completions: list[Completion]
    rewards: list[float | None]
    group_id: NDArray[np.int64]
    processed: Any
    rounds: int

    def metrics(self) -> dict[str, float]:
        """What the step sampled, by TRL's names where TRL has one."""
        found = self.processed.metrics()
        names = ("reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio")
        return {name: found[name] for name in names} | {
            "sampling/rounds": self.rounds,
            "sampling/completions": found["rows"],
            "sampling/used": float(self.processed.counts["kept"]),
            "sampling/kept_share": found["kept_share"],
            **{f"sampling/{name}": value for name, value in found.items() if name.startswith("dropped/")},
        }

    def records(self, step: int, version: int, groups: int) -> Iterator[dict[str, Any]]:
        """The rows of the first `groups` groups under grpokit's column names, for ``rollouts.jsonl``."""
        for row in np.flatnonzero(self.group_id < groups).tolist():
            item, completion = self.items[row], self.completions[row]
            answer = {"answer": item["answer"]} if "answer" in item else {}
            yield {
                "step": step,
                "group_id": int(self.group_id[row]),
                "prompt": item["prompt"],
                "text": completion.text,
                **answer,
                "reward": self.rewards[row],
                "prompt_len": len(completion.prompt_ids),
                "response_len": len(completion.token_ids),
                "finish": completion.finish,
                "version_min": version,
                "version_max": version,
                "keep": bool(self.processed.keep[row]),
                "advantage": float(self.processed.advantages[row]),
                "shaped_reward": float(self.processed.shaped_rewards[row]),
            }


def collect(
    policy: Policy,
    *,
    task: Task,
    reward: rewards.Reward | None,
    recipe: gk.Recipe,
    config: TrainConfig,
    rng: Random,
    generator: Generator,
) -> Sampled:
    """Samples until `prompts_per_step` groups have a row that the recipe keeps, in `max_rounds` rounds at most.

    Each round asks as many new prompts as groups are missing, so nothing that is kept is thrown away, and the recipe
    always sees the step's rows together.
    """
    size = config.num_generations
    items: list[Item] = []
    completions: list[Completion] = []
    values: list[float | None] = []
    missing, rounds = config.prompts_per_step, 0
    while True:
        rounds += 1
        asked = [item for item in draw(task, rng, missing, held_out=False) for _ in range(size)]
        answered = generate(
            policy,
            [item["prompt"] for item in asked],
            max_completion_length=config.max_completion_length,
            temperature=config.temperature,
            generator=generator,
        )
        texts = [c.text for c in answered]
        values += rewards.call(reward, asked, texts) if reward else rewards.score(task, asked, texts)
        items, completions = items + asked, completions + answered
        group_id = np.arange(len(items)) // size
        columns = {
            "group_id": group_id,
            "reward": values,
            "response_len": np.array([len(c.token_ids) for c in completions]),
            "finish": [c.finish for c in completions],
        }
        processed = gk.process(columns, recipe, need=config.prompts_per_step)
        missing = processed.missing or 0
        if not missing or rounds == config.max_rounds:
            return Sampled(items, completions, values, group_id, processed, rounds)
