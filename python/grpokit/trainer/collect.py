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
        rewards_N = np.array([np.nan if r is None else r for r in self.rewards])
        scored = rewards_N[~np.isnan(rewards_N)]
        groups = [g[~np.isnan(g)] for g in np.split(rewards_N, np.flatnonzero(np.diff(self.group_id)) + 1)]
        spreads = [g.std(ddof=1) for g in groups if len(g) > 1]
        keep = self.processed.keep
        counts = self.processed.counts
        dropped = {f"sampling/dropped/{name}": n for name, n in counts.items() if name not in ("in", "kept")}
        return {
            "reward": _mean(scored),
            "reward_std": _mean(spreads),
            "frac_reward_zero_std": 1.0 - _mean(self.processed.groups.signal),
            "completions/mean_length": _mean([len(c.token_ids) for c in self.completions]),
            "completions/clipped_ratio": _mean([c.finish == "length" for c in self.completions]),
            "sampling/rounds": self.rounds,
            "sampling/completions": counts["in"],
            "sampling/used": counts["kept"],
            "sampling/kept_share": _mean(keep),
            **dropped,
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
        processed = gk.process(columns, recipe)
        missing = config.prompts_per_step - len(np.unique(group_id[processed.keep]))
        if not missing or rounds == config.max_rounds:
            return Sampled(items, completions, values, group_id, processed, rounds)


def _mean(values: Any) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")
