"""A step's rollouts: sample groups, score them, let the recipe keep what it wants, and sample again for the rest.

In: the policy, the task, the recipe. Out: everything that was sampled, with `grpokit.process`'s verdict on each row.
Dynamic sampling (DAPO, arXiv:2503.14476, §3.2) is nothing but this loop around a recipe that drops groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import grpokit as gk

from .chat import rendered
from .clock import Clock
from .rollout import generate
from .score_norms import score_norms
from .tasks import Item, Task, draw
from .warmstart import demonstrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from numpy.typing import NDArray
    from torch import Generator

    from .config import TrainConfig
    from .policy import Completion, Policy
    from .rewards import Rewards, Scored


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
    measured : dict
        What the rewards say about the step: each function's mean, how many calls failed.
    parts : list of dict, optional
        What each reward function said of each row, where there are functions.
    kl : float
        The mean of log π_old − log π_ref over the kept rows' tokens, where the recipe has KL in the reward; else NaN.
    read : dict, optional
        What else the recipe's stages read of each row, by grpokit's names.
    """

    items: list[Item]
    completions: list[Completion]
    rewards: list[float | None]
    group_id: NDArray[np.int64]
    processed: Any
    rounds: int
    measured: dict[str, float]
    parts: list[dict[str, float | None]] | None = None
    kl: float = float("nan")
    read: dict[str, list[Any]] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """What the step sampled, by TRL's names where TRL has one."""
        found = self.processed.metrics()
        names = ("reward", "reward_std", "frac_reward_zero_std")
        lengths = {name: value for name, value in found.items() if name.startswith("completions/")}
        ended = [len(c.token_ids) for c in self.completions if c.finish == "stop"] or [0]
        return {name: found[name] for name in names} | {
            **lengths,
            "completions/mean_terminated_length": float(np.mean(ended)),
            "completions/min_terminated_length": float(min(ended)),
            "completions/max_terminated_length": float(max(ended)),
            "sampling/rounds": self.rounds,
            "sampling/completions": found["rows"],
            "sampling/used": float(self.processed.counts["kept"]),
            "sampling/kept_share": found["kept_share"],
            **self.measured,
            **({} if np.isnan(self.kl) else {"kl": self.kl}),
            **{f"sampling/{name}": value for name, value in found.items() if name.startswith("dropped/")},
        }

    def rows(self, step: int, version: int) -> Iterator[dict[str, Any]]:
        """All records, with what the recipe's stages read besides: `grpokit filter` decides on them as the run did."""
        for row, record in enumerate(self.records(step, version)):
            yield record | {name: values[row] for name, values in self.read.items()}

    def records(self, step: int, version: int, groups: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows of the first `groups` groups, or all, under grpokit's column names.

        An advantage is a list where it is one a token.
        """
        per_token, shown = self.processed.token_advantages, any(c.off_policy for c in self.completions)
        rows = self.group_id >= 0 if groups is None else self.group_id < groups
        for row in np.flatnonzero(rows).tolist():
            item, completion = self.items[row], self.completions[row]
            shaped = float(self.processed.shaped_rewards[row])
            answer = {"answer": item["answer"]} if "answer" in item else {}
            yield {
                "step": step,
                "group_id": int(self.group_id[row]),
                "prompt": item["prompt"],
                "text": completion.text,
                **answer,
                "reward": self.rewards[row],
                **({} if self.parts is None else {"reward_parts": self.parts[row]}),
                "prompt_len": len(completion.prompt_ids),
                "response_len": len(completion.token_ids),
                "finish": completion.finish,
                "version_min": version,
                "version_max": version,
                "keep": bool(self.processed.keep[row]),
                "advantage": (self.processed.advantages if per_token is None else per_token)[row].tolist(),
                "shaped_reward": None if np.isnan(shaped) else shaped,  # of a row without a reward
                **({"off_policy": completion.off_policy} if shown else {}),
            }


def collect(
    policy: Policy,
    *,
    reference: Policy | None = None,
    task: Task,
    rewards: Rewards,
    recipe: gk.Recipe,
    config: TrainConfig,
    rng: Random,
    generator: Generator,
    clock: Clock | None = None,
) -> Sampled:
    """Samples until `prompts_per_step` groups have a row that the recipe keeps, in `max_rounds` rounds at most.

    Each round asks as many new prompts as groups are missing, so nothing that is kept is thrown away, and the recipe
    always sees the step's rows together. What the recipe reads beyond rewards is made here: a greedy answer to each
    prompt, log-probs, and where the loss tells demonstrations apart one of the task's as the last row of each group.
    """
    size, shows, clock = config.num_generations, recipe.reads("off_policy"), clock or Clock()
    items: list[Item] = []
    completions: list[Completion] = []
    worth: list[Scored] = []
    more: dict[str, list[Any]] = {}
    missing, rounds = config.prompts_per_step, 0
    rewards.begin()

    def answer(asked: list[Item], temperature: float) -> tuple[list[Completion], list[Scored]]:
        prompts, longest = rendered(policy.tokenizer, asked), config.max_completion_length
        with clock("generate"):
            answered = generate(
                policy, prompts, max_completion_length=longest, temperature=temperature, generator=generator
            )
        with clock("reward"):
            return answered, rewards(asked, [c.text for c in answered])

    while True:
        rounds += 1
        drawn = draw(task, rng, missing, held_out=False)
        asked = [item for item in drawn for _ in range(size)]
        answered, scores = answer(asked, config.temperature)
        if shows:
            last = slice(size - 1, None, size)
            answered[last] = demonstrations(policy, task, drawn, rng)
            with clock("reward"):
                scores[last] = rewards(drawn, [c.text for c in answered[last]])
        if recipe.rows_read("baseline_reward"):
            more.setdefault("baseline_reward", []).extend(s.reward for s in answer(drawn, 0.0)[1] for _ in range(size))
        for name, who in (("logp_old", policy), ("logp_ref", reference)):
            if recipe.rows_read(name):
                with clock("logps"):
                    more.setdefault(name, []).extend(_logps(who or policy, answered, config))
        if recipe.rows_read("logp_rollout"):
            more.setdefault("logp_rollout", []).extend(c.logps for c in answered)
        if recipe.rows_read("score_norm"):
            with clock("logps"):
                more.setdefault("score_norm", []).extend(score_norms(policy, answered, config.temperature))
        if recipe.rows_read("reward_parts"):
            more.setdefault("reward_parts", []).extend(s.parts for s in scores)
        items, completions, worth = items + asked, completions + answered, worth + scores
        group_id, values = np.arange(len(items)) // size, [s.reward for s in worth]
        columns = {
            "group_id": group_id,
            "reward": values,
            "response_len": np.array([len(c.token_ids) for c in completions]),
            "finish": [c.finish for c in completions],
            **more,
        }
        processed = gk.process(columns, recipe, need=config.prompts_per_step)
        missing = processed.missing or 0
        if not missing or rounds == config.max_rounds:
            kl = float("nan")
            if "logp_ref" in more:
                pairs = zip(more["logp_old"], more["logp_ref"], processed.keep, strict=True)
                gaps = [np.subtract(old, ref) for old, ref, kept in pairs if kept]
                kl = float(np.concatenate(gaps).mean()) if gaps else kl
            parts, measured = [s.parts for s in worth] if rewards.functions else None, rewards.metrics(worth)
            return Sampled(items, completions, values, group_id, processed, rounds, measured, parts, kl, more)


def _logps(policy: Policy, completions: list[Completion], config: TrainConfig) -> list[list[float]]:
    """Each completion's log-probs, a list of its length."""
    logps, _ = policy.logps(policy.pad(completions), config.temperature, config.microbatch_tokens)
    return [row[: len(c.token_ids)] for row, c in zip(logps.tolist(), completions, strict=True)]
