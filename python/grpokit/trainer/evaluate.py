"""Evaluation: pass@k and maj@k on held-out prompts, sampled and greedy, with their standard errors over prompts.

In: a policy, items, and what judges completions. Out: the estimates, and every completion that they come from.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import grpokit as gk
from grpokit.errors import error

from .config import stream
from .turns import answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .config import TrainConfig
    from .config_tables import Evaluation
    from .engine import Engine
    from .policy import Completion, Policy
    from .rewards import Rewards
    from .tasks import Item, Task


class Estimate(NamedTuple):
    """A mean over prompts.

    Parameters
    ----------
    mean : float
        Each prompt has the same weight.
    stderr : float
        Its standard error over prompts: prompts are the sample, completions of one prompt are not independent.
    """

    mean: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.stderr:.3f}"


@dataclass(frozen=True)
class Passed:
    """What an evaluation found.

    Parameters
    ----------
    step : int
        Steps of reinforcement learning before it.
    k : int
        Completions a prompt.
    estimates : dict of str to Estimate
        ``"pass@1"``, ``"pass@8"``, ``"maj@8"``, ``"greedy"`` and so on; ``"pass@1"`` and that of `k` are always there.
    """

    step: int
    k: int
    estimates: dict[str, Estimate]

    @property
    def pass_1(self) -> float:
        """The share of sampled completions that pass, averaged over prompts."""
        return self.estimates["pass@1"].mean

    @property
    def stderr(self) -> float:
        """The standard error of `pass_1`."""
        return self.estimates["pass@1"].stderr

    @property
    def pass_k(self) -> float:
        """The share of prompts that at least one of the k completions passes."""
        return self.estimates[f"pass@{self.k}"].mean

    def metrics(self) -> dict[str, float]:
        """The same under the names that go into ``metrics.jsonl``."""
        found: dict[str, float] = {}
        for name, estimate in self.estimates.items():
            found |= {f"eval/{name}": estimate.mean, f"eval/{name}_stderr": estimate.stderr}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` reads it back."""
        named = {"step": self.step, "pass_1": self.pass_1, "stderr": self.stderr, "pass_k": self.pass_k, "k": self.k}
        return named | {"estimates": {name: estimate._asdict() for name, estimate in self.estimates.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Passed:
        """What `to_dict` gave."""
        estimates = {name: Estimate(**estimate) for name, estimate in data["estimates"].items()}
        return cls(data["step"], data["k"], estimates)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with its completions: G prompts with k sampled completions each, then G greedy ones if asked for.

    Parameters
    ----------
    passed : Passed
        The estimates.
    items : list of Item, (N,)
        What was asked.
    completions : list of Completion, (N,)
        What was answered.
    scores : list of float or None, (N,)
        What it was judged to be; it passed where that is 1 or more. None: it could not be judged.
    """

    passed: Passed
    items: list[Item]
    completions: list[Completion]
    scores: list[float | None]

    @property
    def prompts(self) -> int:
        """How many were asked."""
        return len(self.items) // (self.passed.k + ("greedy" in self.passed.estimates))

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows under grpokit's column names. A greedy completion is the only row of its group."""
        k, prompts = self.passed.k, self.prompts
        for row, (item, completion, score) in enumerate(zip(self.items, self.completions, self.scores, strict=True)):
            sampled = row < prompts * k
            yield {
                "group_id": row // k if sampled else row - prompts * (k - 1),
                "source": "sampled" if sampled else "greedy",
                "prompt": item["prompt"],
                "text": completion.text,
                **({"answer": item["answer"]} if "answer" in item else {}),
                "reward": score,
                "prompt_len": len(completion.prompt_ids),
                "response_len": completion.written,
                "finish": completion.finish,
            }


def evaluate(
    engine: Engine,
    policy: Policy,
    rewards: Rewards,
    *,
    task: Task,
    items: Sequence[Item],
    config: TrainConfig,
    evaluation: Evaluation | None = None,
    step: int = 0,
) -> Evaluated:
    """Samples `evaluation.samples` completions for each item, and the likeliest one if asked for, and judges them.

    A completion passes whose score is 1 or more. One that cannot be scored does not pass: an evaluation must not get
    better by refusing to judge.

    Parameters
    ----------
    engine : Engine
        Samples.
    policy : Policy
        Whose tokens they are.
    rewards : Rewards
        Who judges.
    task : Task
        Answers the policy, if it converses.
    items : sequence of Item, (G,)
        What is asked.
    config : TrainConfig
        The run's: lengths, stop strings and the seed. No token is kept from being sampled.
    evaluation : Evaluation, optional
        How often, at which temperature, and which estimates; the run's when not given.
    step : int
        What the result says of its step.
    """
    chosen, seeds = evaluation or config.evaluation, Random(stream(config, "evaluation").getrandbits(63))

    def answered(asked: Sequence[Item], temperature: float) -> list[Completion]:
        how = dataclasses.replace(config.how(temperature), top_p=1.0, top_k=0)
        return answers(engine, policy, task, asked, sampling=how, max_turns=config.max_turns, seeds=seeds)

    k = chosen.samples
    rows = [item for item in items for _ in range(k)]
    completions = answered(rows, chosen.temperature)
    if chosen.greedy:
        rows, completions = [*rows, *items], completions + answered(items, 0.0)
    scores = rewards.judge(rows, [c.text for c in completions])
    passes = np.array([score is not None and score >= 1 for score in scores], float)
    sampled, greedy = passes[: len(items) * k], passes[len(items) * k :]
    groups = gk.group(np.repeat(np.arange(len(items)), k))
    found = {f"pass@{n}": gk.pass_at_k(sampled, groups, n) for n in chosen.drawn()}
    if k > 2:
        # Of two different answers the first one counts: up to two tries a majority says what one says.
        said = gk.group([_answer(rewards, c.text) for c in completions[: len(sampled)]])
        found |= {f"maj@{n}": gk.majority_at_k(sampled, groups, n, answers=said) for n in chosen.drawn() if n > 2}
    if chosen.greedy:
        found["greedy"] = gk.pass_at_k(greedy, np.arange(len(items)), 1)
    estimates = {name: Estimate(at_k.mean, at_k.standard_error) for name, at_k in found.items()}
    return Evaluated(Passed(step, k, estimates), rows, completions, scores)


def _answer(rewards: Rewards, text: str) -> str:
    """What a completion answers, by which a majority is counted."""
    answer = rewards.answer(text)
    if not isinstance(answer, str):
        raise error("stage_result", stage="the task's answer()", given=repr(answer), expected="a text")
    return answer
