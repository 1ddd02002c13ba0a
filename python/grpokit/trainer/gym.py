"""The tasks of reasoning-gym (arXiv:2505.24760), each a generator of questions with a scorer of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpokit.errors import error, nearest

if TYPE_CHECKING:
    from random import Random

    from .tasks import Item


class ReasoningGym:
    """A task of reasoning-gym by its name there; a completion without the white space around it is the answer.

    Parameters
    ----------
    name : str
        "leg_counting", "chain_sum", ...

    Raises
    ------
    InputError
        `missing_extra`; `unknown_task`.
    """

    def __init__(self, name: str) -> None:
        try:
            from reasoning_gym import create_dataset
            from reasoning_gym.factory import DATASETS
        except ModuleNotFoundError as missing:
            if missing.name != "reasoning_gym":
                raise
            what, package = f"the task 'reasoning_gym:{name}'", "reasoning-gym"
            raise error("missing_extra", what=what, package=package, extra="gym") from None
        if name not in DATASETS:
            known = "in reasoning_gym.factory.DATASETS"
            raise error("unknown_task", given=f"reasoning_gym:{name}", nearest=nearest(name, DATASETS), known=known)
        self.name, self._make = name, create_dataset
        self._scorer: Any = create_dataset(name, seed=0, size=1)

    def prompts(self, rng: Random, n: int) -> list[Item]:
        # A data set of one for each number: some of them make all of their questions at once.
        return [self._item(rng.getrandbits(31)) for _ in range(n)]

    def _item(self, number: int) -> Item:
        entry = self._make(self.name, seed=number, size=1)[0]
        return {"prompt": entry["question"], "answer": entry["answer"], "metadata": entry["metadata"]}

    def score(self, completion: str, item: Item) -> float:
        entry = {"question": item["prompt"], "answer": item["answer"], "metadata": item["metadata"]}
        return float(self._scorer.score_answer(self.answer(completion), entry))

    def answer(self, completion: str) -> str:
        return completion.strip()
