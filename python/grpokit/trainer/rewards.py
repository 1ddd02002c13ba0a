"""From completions to rewards: a number each, None for what could not be scored, and never a 0 for an exception."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING

from grpokit.errors import error

if TYPE_CHECKING:
    from .tasks import Item, Task

Reward = Callable[..., Sequence[float | None]]
"""A reward function as TRL calls it: ``f(prompts, completions, **columns)``, one number or None a completion."""


def score(task: Task, items: Sequence[Item], completions: Sequence[str]) -> list[float | None]:
    """The task's own scores, one completion after the other.

    Raises
    ------
    InputError
        `Task.score` raised, or returned something else than a number or None.
    """
    rewards = []
    for row, (item, completion) in enumerate(zip(items, completions, strict=True)):
        try:
            rewards.append(task.score(completion, item))
        except Exception as problem:
            raise error("reward_failed", given=repr(problem), where=f"completion {row}, {completion!r}") from problem
    return _numbers("the task's score()", rewards, len(items))


def call(reward: Reward, items: Sequence[Item], completions: Sequence[str]) -> list[float | None]:
    """What a reward function says of a batch; the items' further fields go to it as columns.

    Raises
    ------
    InputError
        The function raised, or returned something else than one number or None a completion; or an item lacks a
        field that the first one has.
    """
    names = [name for name in items[0] if name != "prompt"] if items else []
    for row, item in enumerate(items):
        for name in names:
            if name not in item:
                raise error("record_fields", row=row, field=name)
    columns = {name: [item[name] for item in items] for name in names}
    try:
        rewards = reward([item["prompt"] for item in items], list(completions), **columns)
    except Exception as problem:
        where = f"a batch of {len(items)} completions, the first {next(iter(completions), '')!r}"
        raise error("reward_failed", given=repr(problem), where=where) from problem
    return _numbers("the reward function", rewards, len(items))


def _numbers(source: str, rewards: object, n: int) -> list[float | None]:
    expected = f"a list of {n} finite numbers or None"
    if isinstance(rewards, str) or not hasattr(rewards, "__len__") or not hasattr(rewards, "__iter__"):
        raise error("stage_result", stage=source, given=repr(rewards), expected=expected)
    if len(rewards) != n:
        raise error("stage_result", stage=source, given=f"{len(rewards)} values", expected=expected)
    for row, value in enumerate(rewards):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise error("stage_result", stage=source, given=f"{value!r} for completion {row}", expected=expected)
    return [None if value is None else float(value) for value in rewards]
