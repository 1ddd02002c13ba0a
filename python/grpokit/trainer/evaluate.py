"""Evaluation: pass@k and maj@k on held-out prompts, sampled and greedy, with their standard errors over prompts.

In: a policy, items, and what judges completions. Out: the estimates, and every completion that they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Generator

import grpokit as gk
from grpokit.errors import error

from .chat import rendered
from .rollout import generate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .config_tables import Evaluation
    from .policy import Completion, Policy
    from .rewards import Rewards
    from .tasks import Item


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
                "response_len": len(completion.token_ids),
                "finish": completion.finish,
            }


def evaluate(
    policy: Policy,
    rewards: Rewards,
    items: Sequence[Item],
    config: Evaluation,
    *,
    max_completion_length: int,
    seed: int,
    step: int = 0,
) -> Evaluated:
    """Samples `config.samples` completions for each item, and the likeliest one if asked for, and judges them.

    A completion passes whose score is 1 or more. One that cannot be scored does not pass: an evaluation must not get
    better by refusing to judge.

    Parameters
    ----------
    policy : Policy
        Who answers.
    rewards : Rewards
        Who judges.
    items : sequence of Item, (G,)
        What is asked.
    config : Evaluation
        How often, at which temperature, and which estimates.
    max_completion_length : int
        Tokens.
    seed : int
        Of the sampling.
    step : int
        What the result says of its step.
    """
    generator = Generator(policy.model.device).manual_seed(seed)

    def answered(asked: Sequence[Item], temperature: float) -> list[Completion]:
        return generate(
            policy,
            rendered(policy.tokenizer, asked),
            max_completion_length=max_completion_length,
            temperature=temperature,
            generator=generator,
        )

    k = config.samples
    rows = [item for item in items for _ in range(k)]
    completions = answered(rows, config.temperature)
    if config.greedy:
        rows, completions = [*rows, *items], completions + answered(items, 0.0)
    scores = rewards.judge(rows, [c.text for c in completions])
    passes = np.array([score is not None and score >= 1 for score in scores], float)
    sampled, greedy = passes[: len(items) * k], passes[len(items) * k :]
    groups = gk.group(np.repeat(np.arange(len(items)), k))
    found = {f"pass@{n}": gk.pass_at_k(sampled, groups, n) for n in config.drawn()}
    if k > 2:
        # Of two different answers the first one counts: up to two tries a majority says what one says.
        answers = gk.group([_answer(rewards, c.text) for c in completions[: len(sampled)]])
        found |= {f"maj@{n}": gk.majority_at_k(sampled, groups, n, answers=answers) for n in config.drawn() if n > 2}
    if config.greedy:
        found["greedy"] = gk.pass_at_k(greedy, np.arange(len(items)), 1)
    estimates = {name: Estimate(at_k.mean, at_k.standard_error) for name, at_k in found.items()}
    return Evaluated(Passed(step, k, estimates), rows, completions, scores)


def _answer(rewards: Rewards, text: str) -> str:
    """What a completion answers, by which a majority is counted."""
    answer = rewards.answer(text)
    if not isinstance(answer, str):
        raise error("stage_result", stage="the task's answer()", given=repr(answer), expected="a text")
    return answer
