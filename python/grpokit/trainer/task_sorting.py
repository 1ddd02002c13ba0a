"""Put letters in order: what the default run learns."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase
from typing import TYPE_CHECKING

from .tasks import Numbered

if TYPE_CHECKING:
    from random import Random

    from .tasks import Item


@dataclass(frozen=True)
class Sorting(Numbered):
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
    >>> Sorting().item(0)
    {'prompt': 'buyapshs>', 'answer': 'abhpssuy'}
    """

    min_letters: int = 5
    max_letters: int = 8
    error_rate: float = 0.65

    def make(self, rng: Random) -> Item:
        letters = rng.choices(ascii_lowercase, k=rng.randint(self.min_letters, self.max_letters))
        return {"prompt": "".join(letters) + ">", "answer": "".join(sorted(letters))}

    def prompts(self, rng: Random, n: int) -> list[Item]:
        # From the run's generator itself, without numbers, as it was before there were any: the same bits.
        return [self.make(rng) for _ in range(n)]

    def score(self, completion: str, item: Item) -> float:
        return float(completion == item["answer"])

    def demonstrate(self, rng: Random, item: Item) -> str:
        letters = list(item["answer"])
        if rng.random() < self.error_rate:
            for _ in range(rng.choice([1, 2])):
                i, j = rng.randrange(len(letters)), rng.randrange(len(letters))
                letters[i], letters[j] = letters[j], letters[i]
        return "".join(letters)
