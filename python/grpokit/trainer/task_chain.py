"""Carry a total through several steps: a task that is solved by showing one's work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .tasks import Numbered

if TYPE_CHECKING:
    from random import Random

    from .tasks import Item

_LARGEST = 99


@dataclass(frozen=True)
class Chain(Numbered):
    """Carry a total from number to number: ``"7+5-3:"`` is answered by ``"12,9"``, or by ``"9"`` at once.

    What is behind the last comma counts. The demonstrator shows each total, or, in a share of the demonstrations,
    guesses the last one at once and is wrong: reinforcement learning has to find that showing one's work pays.

    Parameters
    ----------
    min_numbers, max_numbers : int
        Numbers of a prompt, each from 1 to 9; no total is below 0 or above 99.
    guess_rate : float
        The share of demonstrations that guess.

    Examples
    --------
    >>> task = Chain()
    >>> item = task.item(1)
    >>> item
    {'prompt': '7+8+7:', 'answer': '22', 'steps': '15,22'}
    >>> [task.score(text, item) for text in ("15,22", "22", "15,21", "")]
    [1.0, 1.0, 0.0, 0.0]
    """

    min_numbers: int = 3
    max_numbers: int = 4
    guess_rate: float = 0.5

    def make(self, rng: Random) -> Item:
        total = rng.randint(1, 9)
        text, totals = str(total), []
        for _ in range(rng.randint(self.min_numbers, self.max_numbers) - 1):
            number, sign = rng.randint(1, 9), rng.choice([-1, 1])
            if not 0 <= total + sign * number <= _LARGEST:
                sign = -sign
            total += sign * number
            text += f"{'+' if sign > 0 else '-'}{number}"
            totals.append(total)
        return {"prompt": f"{text}:", "answer": str(total), "steps": ",".join(map(str, totals))}

    def score(self, completion: str, item: Item) -> float:
        return float(self.answer(completion) == item["answer"])

    def answer(self, completion: str) -> str:
        return completion.rpartition(",")[2].strip()

    def demonstrate(self, rng: Random, item: Item) -> str:
        if rng.random() >= self.guess_rate:
            steps: str = item["steps"]
            return steps
        answer = int(item["answer"])
        return str(rng.choice([total for total in range(max(0, answer - 9), answer + 10) if total != answer]))
