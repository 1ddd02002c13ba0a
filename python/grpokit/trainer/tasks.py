"""Tasks: where prompts come from and what a completion is worth.

A task is anything with `prompts` and `score`. Which prompts are held out is a hash of their text, so training and
evaluation share none, whatever the task and the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Protocol, runtime_checkable

from grpokit.errors import error

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


@runtime_checkable
class Converses(Protocol):
    """A task whose prompts begin a conversation: an environment with several turns."""

    def reply(self, messages: Sequence[Mapping[str, Any]], item: Item) -> str | None:
        """What the environment says to the last message; None where the conversation is over.

        `messages` have a ``"role"``, "user" for the prompt and what `reply` said and "assistant" for the policy, and
        a ``"content"``. `score` is asked for the text of all that followed the prompt.
        """
        ...


class Answers(Protocol):
    """A task that can tell a completion's answer from the rest of it: what a majority is counted by."""

    def answer(self, completion: str) -> str:
        """What the completion answers, the same text wherever it means the same."""
        ...


@runtime_checkable
class Splits(Protocol):
    """A task with so many prompts and no more, which draws from each side of its split itself."""

    def draw(self, rng: Random, n: int, *, held_out: bool) -> Sequence[Item]:
        """`n` items of one side."""
        ...

    def epoch(self, rng: Random) -> float:
        """How often the training prompts were passed in the order that this generator gave."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A task whose prompts depend on those that it gave before, and not on the generator alone."""

    def state(self, rng: Random) -> dict[str, Any]:
        """How far this generator's order is, ready for JSON."""
        ...

    def restore(self, rng: Random, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        ...


class Numbered:
    """A task without end whose items have numbers: a hash of name and number makes an item, the same on any machine."""

    def make(self, rng: Random) -> Item:
        """An item from a generator of its own."""
        raise NotImplementedError

    def item(self, number: int) -> Item:
        """The item of that number."""
        # Python hashes the text with SHA-512 to seed the generator.
        return self.make(Random(f"{type(self).__name__} {number}"))

    def prompts(self, rng: Random, n: int) -> list[Item]:
        """The items of `n` numbers drawn from the run's generator, which the run's seed decides."""
        return [self.item(rng.getrandbits(64)) for _ in range(n)]


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
    if isinstance(task, Splits):
        return list(task.draw(rng, n, held_out=held_out))
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
        raise too_few(len(items), n, held_out=held_out)
    return items[:n]


def too_few(found: int, needed: int, *, held_out: bool) -> Exception:
    """The error that says so."""
    return error("too_few_prompts", found=found, needed=needed, side="held-out" if held_out else "training")


def progress(task: Task, rng: Random) -> dict[str, float]:
    """How far training is with the prompts, where the task has an end of them."""
    return {"epoch": task.epoch(rng)} if isinstance(task, Splits) else {}
