"""The tables ``[task]`` and ``[rewards]`` of a configuration: where prompts come from, what completions are worth."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from grpokit.errors import error
from grpokit.parameters import check_choice

from .fields import above, at_least, check

DIFFICULTIES = ("easy", "medium", "hard")
# What a configuration says of a task or a function that was given in Python, and cannot give again.
IN_PYTHON = "python:"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """Where the prompts come from: a built-in task, one of reasoning-gym, or a file.

    Parameters
    ----------
    name : str
        "sorting", "arithmetic", "chain", or "reasoning_gym:NAME". Empty is "sorting", unless there is a file.
    difficulty : {"easy", "medium", "hard"}
        Of a built-in task.
    file : str
        Prompts, as JSON lines or Parquet; every column goes to the reward functions.
    evaluation_file : str
        Held-out prompts. Empty: one in eight of the prompts in `file`, by a hash of their text.
    prompt, answer : str
        The columns of the files that are the prompt and the right answer.
    """

    name: str = ""
    difficulty: str = "easy"
    file: str = ""
    evaluation_file: str = ""
    prompt: str = "prompt"
    answer: str = "answer"

    def __post_init__(self) -> None:
        check(self)
        check_choice(self, "difficulty", DIFFICULTIES)
        if self.file and self.name:
            self._refuse("name", f"none beside file={self.file!r}: the prompts come from one of both")
        if self.evaluation_file and not self.file:
            self._refuse("evaluation_file", "none without file, the prompts to train on")

    def _refuse(self, name: str, expected: str) -> None:
        raise error("bad_parameter", owner="TaskConfig", name=name, given=getattr(self, name), expected=expected)

    def resolve(self) -> TaskConfig:
        """The same with the task's name written out.

        Raises
        ------
        InputError
            `unknown_task`.
        """
        from .built_in import check_name

        if self.file:
            return self
        resolved = dataclasses.replace(self, name=self.name or "sorting")
        if not resolved.name.startswith(IN_PYTHON):
            check_name(resolved.name)
        return resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Reward functions in the place of the task's score, called as TRL does, in processes with a time limit.

    Parameters
    ----------
    functions : tuple of str
        ``"package.module:function"``, ``"path/to/file.py:function"`` or ``"math_verify"``. Empty: the task's score.
    weights : tuple of float
        One a function; empty is 1 each.
    seconds : float
        How long one call may take, imports not counted.
    workers : int
        Processes. Their number changes no reward.
    groups_per_call : int
        The prompts of one call, each with all of its completions.
    max_failures : float
        The share of a step's completions that a function may fail on; beyond it the run stops.
    """

    functions: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    seconds: float = above(0, 10.0)
    workers: int = at_least(1, 2)
    groups_per_call: int = at_least(1, 1)
    max_failures: float = at_least(0, 0.1)

    def __post_init__(self) -> None:
        check(self)
        if self.weights and len(self.weights) != len(self.functions):
            self._refuse("weights", f"one for each of the {len(self.functions)} functions, or none")
        if not all(map(math.isfinite, self.weights)):
            self._refuse("weights", "finite numbers")
        if self.max_failures > 1:
            self._refuse("max_failures", "a share, from 0 to 1")

    def _refuse(self, name: str, expected: str) -> None:
        given: Any = getattr(self, name)
        raise error("bad_parameter", owner="RewardConfig", name=name, given=given, expected=expected)
