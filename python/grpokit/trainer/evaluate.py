"""Evaluation: pass@1 on held-out prompts, sampled as in training, with its standard error."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from math import sqrt
from random import Random
from typing import TYPE_CHECKING

from .turns import answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .engine import Engine
    from .policy import Policy
    from .rewards import Rewards
    from .sampling import Sampling
    from .tasks import Item, Task


@dataclass(frozen=True)
class Passed:
    """What an evaluation found.

    Parameters
    ----------
    step : int
        Steps of reinforcement learning before it.
    pass_1 : float
        The share of completions that pass, averaged over prompts.
    stderr : float
        Its standard error over prompts: prompts are the sample, completions of one prompt are not independent.
    pass_k : float
        The share of prompts that at least one of the k completions passes.
    k : int
        Completions a prompt.
    """

    step: int
    pass_1: float
    stderr: float
    pass_k: float
    k: int

    def metrics(self) -> dict[str, float]:
        """The same under the names that go into ``metrics.jsonl``."""
        return {
            "eval/pass@1": self.pass_1,
            "eval/pass@1_stderr": self.stderr,
            f"eval/pass@{self.k}": self.pass_k,
        }


def evaluate(
    engine: Engine,
    policy: Policy,
    task: Task,
    rewards: Rewards,
    *,
    items: Sequence[Item],
    k: int,
    sampling: Sampling,
    max_turns: int,
    seed: int,
    step: int = 0,
) -> Passed:
    """Samples `k` completions for each item; one passes whose score is 1 or more.

    A completion that cannot be scored does not pass: an evaluation must not get better by refusing to judge.
    """
    repeated = [item for item in items for _ in range(k)]
    completions = answers(engine, policy, task, repeated, sampling=sampling, max_turns=max_turns, seeds=Random(seed))
    scores = rewards.judge(repeated, [c.text for c in completions])
    passed = [s is not None and s >= 1 for s in scores]
    shares = [sum(passed[i : i + k]) / k for i in range(0, len(passed), k)]
    stderr = statistics.stdev(shares) / sqrt(len(shares))
    return Passed(step, statistics.fmean(shares), stderr, statistics.fmean(share > 0 for share in shares), k)
