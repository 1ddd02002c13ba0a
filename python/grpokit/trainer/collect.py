"""A step's rollouts: sample groups, score them, let the recipe keep what it wants, and sample again for the rest.

In: the policy, the task, the recipe. Out: everything that was sampled, with `grpokit.process`'s verdict on each row.
Dynamic sampling (DAPO, arXiv:2503.14476, §3.2) is nothing but this loop around a recipe that drops groups.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

import grpokit as gk

from .clock import Clock
from .config import TrainConfig, stream
from .policy import Completion
from .ranks import groups_of
from .rewards import Scored
from .score_norms import score_norms
from .tasks import Item, Remembers, Task, draw, progress
from .turns import answers
from .warmstart import demonstrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from .engine import Engine
    from .policy import Policy
    from .rewards import Rewards


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
    measured : dict
        What sampling and rewards say about the step: rounds, each function's mean, how many calls failed.
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
    measured: dict[str, float]
    parts: list[dict[str, float | None]] | None = None
    kl: float = float("nan")
    read: dict[str, list[Any]] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """What the step sampled, by TRL's names where TRL has one."""
        found = self.processed.metrics()
        names = ("reward", "reward_std", "frac_reward_zero_std")
        lengths = {name: value for name, value in found.items() if name.startswith("completions/")}
        ended = [c.written for c in self.completions if c.finish == "stop"] or [0]
        return {name: found[name] for name in names} | {
            **lengths,
            "completions/mean_terminated_length": float(np.mean(ended)),
            "completions/min_terminated_length": float(min(ended)),
            "completions/max_terminated_length": float(max(ended)),
            "sampling/completions": found["rows"],
            "sampling/used": float(self.processed.counts["kept"]),
            "sampling/kept_share": found["kept_share"],
            **self.measured,
            **({} if np.isnan(self.kl) else {"kl": self.kl}),
            **{f"sampling/{name}": value for name, value in found.items() if name.startswith("dropped/")},
        }

    def rows(self, step: int) -> Iterator[dict[str, Any]]:
        """All records, with what the recipe's stages read besides: `grpokit filter` decides on them as the run did."""
        for row, record in enumerate(self.records(step)):
            yield record | {name: values[row] for name, values in self.read.items()}

    def records(self, step: int, groups: int | None = None) -> Iterator[dict[str, Any]]:
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
                "response_len": completion.written,
                "finish": completion.finish,
                "version_min": completion.version,
                "version_max": completion.version,
                "keep": bool(self.processed.keep[row]),
                "advantage": (self.processed.advantages if per_token is None else per_token)[row].tolist(),
                "shaped_reward": None if np.isnan(shaped) else shaped,  # of a row without a reward
                **({"off_policy": completion.off_policy} if shown else {}),
            }


@dataclass(frozen=True)
class Row:
    """A completion with what is known of it.

    Parameters
    ----------
    item : Item
        What was asked; the rows of a group share theirs.
    completion : Completion
        What was answered.
    scored : Scored
        What it is worth.
    more : dict
        What the recipe reads beyond that, by the name of its column.
    """

    item: Item
    completion: Completion
    scored: Scored
    more: dict[str, Any]


@dataclass
class Gathered:
    """A step's groups before the recipe's verdict: what one process may send to another.

    Parameters
    ----------
    groups : list of list of Row
        Whole groups, the oldest first.
    version : int
        How many updates the weights had seen that the last of them were sampled with.
    need : int
        How many groups make a step.
    measured : dict
        What sampling and rewards say about the step.
    scored_by_functions : bool
        Whether the rewards are made of parts.
    """

    groups: list[list[Row]]
    version: int
    need: int
    measured: dict[str, float] = field(default_factory=dict)
    scored_by_functions: bool = False

    @property
    def rows(self) -> list[Row]:
        """(N,) the rows of all groups."""
        return [row for group in self.groups for row in group]

    @property
    def group_id(self) -> NDArray[np.int64]:
        """(N,) int64: counted from 0."""
        return np.repeat(np.arange(len(self.groups)), list(map(len, self.groups)))

    def process(self, recipe: gk.Recipe) -> Any:
        """What the recipe says of them."""
        rows = self.rows
        columns = {
            "group_id": self.group_id,
            "reward": [row.scored.reward for row in rows],
            "response_len": np.array([row.completion.written for row in rows]),
            "finish": [row.completion.finish for row in rows],
            "version_min": np.array([row.completion.version for row in rows]),
            **{name: [row.more[name] for row in rows] for name in rows[0].more},
        }
        return gk.process(columns, recipe, need=self.need, order="index", version=self.version)

    def sampled(self, recipe: gk.Recipe) -> Sampled:
        """With the recipe's verdict."""
        rows, processed = self.rows, self.process(recipe)
        return Sampled(
            items=[row.item for row in rows],
            completions=[row.completion for row in rows],
            rewards=[row.scored.reward for row in rows],
            group_id=self.group_id,
            processed=processed,
            measured=self.measured,
            parts=[row.scored.parts for row in rows] if self.scored_by_functions else None,
            kl=_kl(rows, processed.keep),
            read={name: [row.more[name] for row in rows] for name in rows[0].more},
        )


class Collector:
    """Where a run's rollouts come from: its prompts in their order, and good groups that wait for the next step.

    Parameters
    ----------
    policy : Policy
        Reads what the recipe wants to know of completions beyond their rewards.
    engine : Engine
        Samples.
    task : Task
        Where the prompts come from.
    rewards : Rewards
        What completions are worth.
    config : TrainConfig
        Sizes, sampling and seed.
    reference : Policy, optional
        The reference policy, where the recipe has KL in the reward.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        task: Task,
        rewards: Rewards,
        config: TrainConfig,
        *,
        reference: Policy | None = None,
    ) -> None:
        self.policy, self.engine, self.task, self.rewards, self.config = policy, engine, task, rewards, config
        self.reference = reference
        self.rng, self.seeds = stream(config, "prompts"), stream(config, "sampling")
        self.waiting: list[list[Row]] = []
        self.clock = Clock()

    def collect(self, recipe: gk.Recipe) -> Gathered:
        """Samples until `prompts_per_step` groups have a row that the recipe keeps, in `max_rounds` rounds at most.

        A round asks `oversampling` times as many new prompts as groups are missing, and the recipe always sees the
        step's rows together. Good groups that the step has no room for wait for the next one, `carry_over` updates at
        most; those that waited longer are dropped and counted.
        """
        config, version = self.config, self.engine.version
        fresh = [g for g in self.waiting if version - g[0].completion.version <= config.carry_over]
        expired, carried, rounds = len(self.waiting) - len(fresh), len(fresh), 0
        self.rewards.begin()
        found = Gathered(fresh, version, config.prompts_per_step)
        processed = found.process(recipe) if fresh else None
        while rounds < config.max_rounds and (processed is None or processed.missing):
            missing = config.prompts_per_step if processed is None else processed.missing or 0
            found.groups += self._round(math.ceil(missing * config.oversampling), recipe)
            processed = found.process(recipe)
            rounds += 1
        assert processed is not None
        surplus = set(found.group_id[processed.surplus].tolist())
        self.waiting = [group for at, group in enumerate(found.groups) if at in surplus]
        found.groups = [group for at, group in enumerate(found.groups) if at not in surplus]
        found.measured = {"sampling/rounds": rounds} | self.rewards.metrics([row.scored for row in found.rows])
        found.measured |= progress(self.task, self.rng)
        if config.oversampling > 1:
            waits = {"carried": carried, "waiting": len(self.waiting), "expired": expired}
            found.measured |= {f"sampling/{name}": float(count) for name, count in waits.items()}
        found.scored_by_functions = bool(self.rewards.functions)
        return found

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, ready for JSON."""
        return {
            "prompts": self.rng.getstate(),
            "seeds": self.seeds.getstate(),
            "waiting": [[_plain(row) for row in group] for group in self.waiting],
            "task": self.task.state(self.rng) if isinstance(self.task, Remembers) else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.rng.setstate(generator_state(state["prompts"]))
        self.seeds.setstate(generator_state(state["seeds"]))
        if isinstance(self.task, Remembers):
            self.task.restore(self.rng, state["task"])
        self.waiting = []
        for group in state["waiting"]:
            # The rows of a group are known by sharing their item.
            item = group[0]["item"]
            self.waiting.append(
                [Row(item, Completion(**row["completion"]), Scored(*row["scored"]), row["more"]) for row in group]
            )

    def _round(self, prompts: int, recipe: gk.Recipe) -> list[list[Row]]:
        """Groups of new prompts, with what the recipe reads: a greedy answer to each, log-probs, demonstrations."""
        config, size = self.config, self.config.num_generations
        drawn = draw(self.task, self.rng, prompts, held_out=False)
        asked = [item for item in drawn for _ in range(size)]
        answered, scores = self._answer(asked, config.temperature)
        if recipe.reads("off_policy"):
            last = slice(size - 1, None, size)
            answered[last] = demonstrations(self.policy, self.task, drawn, self.rng)
            with self.clock("reward"):
                scores[last] = self.rewards(drawn, [c.text for c in answered[last]])
        more: dict[str, list[Any]] = {}
        if recipe.rows_read("baseline_reward"):
            more["baseline_reward"] = [s.reward for s in self._answer(drawn, 0.0)[1] for _ in range(size)]

        def read(values: Callable[[list[Completion]], list[Any]]) -> list[Any]:
            def own(rows: slice) -> list[Any]:
                return values(answered[rows]) if answered[rows] else []

            return list(chain(*self.policy.ranks.spread("sampling", groups_of(asked), own)))

        for name, who in (("logp_old", self.policy), ("logp_ref", self.reference)):
            if recipe.rows_read(name):
                with self.clock("logps"):
                    more[name] = read(partial(_logps, who or self.policy, config))
        if recipe.rows_read("logp_rollout"):
            more["logp_rollout"] = [c.of_policy(c.logps) for c in answered]
        if recipe.rows_read("score_norm"):
            with self.clock("logps"):
                more["score_norm"] = read(partial(score_norms, self.policy, temperature=config.temperature))
        if recipe.rows_read("reward_parts"):
            more["reward_parts"] = [s.parts for s in scores]
        rows = [
            Row(asked[at], answered[at], scores[at], {name: column[at] for name, column in more.items()})
            for at in range(len(asked))
        ]
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _answer(self, asked: list[Item], temperature: float) -> tuple[list[Completion], list[Scored]]:
        how, turns = self.config.how(temperature), self.config.max_turns
        with self.clock("generate"):
            answered = answers(
                self.engine, self.policy, self.task, asked, sampling=how, max_turns=turns, seeds=self.seeds
            )
        with self.clock("reward"):
            return answered, self.rewards(asked, [c.text for c in answered])


def _plain(row: Row) -> Any:
    """Ready for JSON; what else an item has, a date or a number of NumPy, as the logged rows have it: as its text."""
    return json.loads(json.dumps(dataclasses.asdict(row), default=str))


def generator_state(state: Any) -> Any:
    """What `Random.getstate` gave, after JSON made lists of its tuples."""
    version, internal, gauss = state
    return version, tuple(internal), gauss


def _kl(rows: list[Row], keep: NDArray[np.bool_]) -> float:
    """The mean of log π_old − log π_ref over the kept rows' tokens; NaN where the recipe does not read them."""
    if "logp_ref" not in rows[0].more:
        return float("nan")
    gaps = [np.subtract(r.more["logp_old"], r.more["logp_ref"]) for r, kept in zip(rows, keep, strict=True) if kept]
    return float(np.concatenate(gaps).mean()) if gaps else float("nan")


def _logps(policy: Policy, config: TrainConfig, completions: list[Completion]) -> list[list[float]]:
    """Each completion's log-probs, of the tokens that the policy wrote."""
    logps, _ = policy.logps(policy.pad(completions), config.temperature, config.microbatch_tokens)
    return [c.of_policy(row) for row, c in zip(logps.tolist(), completions, strict=True)]
