"""Tasks: where prompts come from and what a completion is worth.

A task is anything with `prompts` and `score`. Which prompts are held out is a hash of their text, so training and
evaluation share none, whatever the task and the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from grpokit.errors import error

if TYPE_CHECKING:
    from random import Random

Item = Mapping[str, Any]

_DRAWS = 200


class Task(Protocol):
    """What the trainer asks of a task."""

    def prompts(self, rng: Random, n: int) -> Sequence[Item]:
        """`n` items: mappings with a text under ``"prompt"`` and whatever else `score` and the rewards read."""
        ...

    def score(self, completion: str, item: Item) -> float | None:
        """What the completion is worth, 1 where it is right; None where that cannot be said."""
        ...


@runtime_checkable
class Demonstrates(Protocol):
    """A task that can show how it is done, for the warm start."""

    def demonstrate(self, rng: Random, item: Item) -> str:
        """A completion of the item's prompt, perhaps a wrong one."""
        ...


@dataclass(frozen=True)
class Sorting:
    """Put letters in order: ``"dcab>"`` is answered by ``"abcd"``.

    Its demonstrator errs: in a share of the demonstrations one or two pairs of letters have changed places. So the
    warm start learns the rule and the errors, and reinforcement learning has the errors to remove.

    Parameters
    ----------
    min_letters, max_letters : int
        How many letters a prompt has.
    error_rate : float
        The share of demonstrations that the demonstrator spoils (a swap of equal letters does no harm).

    Examples
    --------
    >>> Sorting().score("abcd", {"prompt": "dcab>", "answer": "abcd"})
    1.0
    """

    min_letters: int = 5
    max_letters: int = 8
    error_rate: float = 0.65

    def prompts(self, rng: Random, n: int) -> list[Item]:
        items: list[Item] = []
        for _ in range(n):
            letters = rng.choices(ascii_lowercase, k=rng.randint(self.min_letters, self.max_letters))
            items.append({"prompt": "".join(letters) + ">", "answer": "".join(sorted(letters))})
        return items

    def score(self, completion: str, item: Item) -> float:
        return float(completion == item["answer"])

    def demonstrate(self, rng: Random, item: Item) -> str:
        letters = list(item["answer"])
        if rng.random() < self.error_rate:
            for _ in range(rng.choice([1, 2])):
                i, j = rng.randrange(len(letters)), rng.randrange(len(letters))
                letters[i], letters[j] = letters[j], letters[i]
        return "".join(letters)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to evaluation: one in eight, by a hash of its text.

    Examples
    --------
    >>> [prompt for prompt in ("ba>", "cab>", "zyx>", "qwerty>", "hello>") if is_held_out(prompt)]
    ['qwerty>']
    """
    return hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] < 32


def draw(task: Task, rng: Random, n: int, *, held_out: bool) -> list[Item]:
    """`n` items of one side of the split, in the order in which the task gives them.

    Raises
    ------
    InputError
        The task gave something else than items, or hardly any prompts of this side.
    """
    items: list[Item] = []
    for _ in range(_DRAWS):
        if len(items) >= n:
            break
        found = task.prompts(rng, n)
        for item in found:
            if not isinstance(item, Mapping) or not isinstance(item.get("prompt"), str):
                expected = "mappings with a text under 'prompt'"
                raise error("stage_result", stage="the task's prompts()", given=repr(item), expected=expected)
        items += [item for item in found if is_held_out(item["prompt"]) == held_out]
    if len(items) < n:
        raise error("too_few_prompts", found=len(items), needed=n, side="held-out" if held_out else "training")
    return items[:n]
