"""Work out sums, differences and products of whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .tasks import Numbered

if TYPE_CHECKING:
    from random import Random

    from .tasks import Item


@dataclass(frozen=True)
class Arithmetic(Numbered):
    """Work out an expression: ``"47+38="`` is answered by ``"85"``; products bind closer than sums.

    Its demonstrator errs: in a share of the demonstrations one place of the answer is off by one.

    Parameters
    ----------
    terms : int
        Numbers in an expression.
    largest : int
        The largest of them; the smallest is 0.
    operators : str
        Of ``"+-*"``.
    error_rate : float
        The share of demonstrations that are wrong.

    Examples
    --------
    >>> task = Arithmetic(terms=3, operators="+-*")
    >>> task.item(4)
    {'prompt': '35+81*19=', 'answer': '1574'}
    >>> task.score("1574", task.item(4)), task.score("157", task.item(4))
    (1.0, 0.0)
    """

    terms: int = 2
    largest: int = 99
    operators: str = "+-"
    error_rate: float = 0.5

    def make(self, rng: Random) -> Item:
        sums = [rng.randint(0, self.largest)]
        text = str(sums[0])
        for _ in range(self.terms - 1):
            operator, number = rng.choice(self.operators), rng.randint(0, self.largest)
            if operator == "*":
                sums[-1] *= number
            else:
                sums.append(number if operator == "+" else -number)
            text += f"{operator}{number}"
        return {"prompt": f"{text}=", "answer": str(sum(sums))}

    def score(self, completion: str, item: Item) -> float:
        return float(self.answer(completion) == item["answer"])

    def answer(self, completion: str) -> str:
        return completion.strip()

    def demonstrate(self, rng: Random, item: Item) -> str:
        answer: str = item["answer"]
        if rng.random() >= self.error_rate:
            return answer
        place = rng.randrange(len(answer.lstrip("-")))
        return str(int(answer) + rng.choice([-1, 1]) * 10**place)
