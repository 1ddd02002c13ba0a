"""Where a step's time goes: seconds by what they were spent on."""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = ("generate", "reward", "logps", "backward", "optimizer")


class Clock:
    """A stop watch: ``with clock("generate"): ...``. Inside a part no other is told apart: its time is counted once.

    A GPU works on after it was told what to do, so a part begins and ends when it is idle.

    Examples
    --------
    >>> clock = Clock()
    >>> with clock("evaluation"), clock("generate"):
    ...     pass
    >>> list(clock.seconds)
    ['evaluation']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = False
        self._began = perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Counts the time of the block as that part's."""
        if self._inside:
            yield
            return
        self._inside, began = True, _now()
        try:
            yield
        finally:
            self._inside = False
            self.seconds[part] = self.seconds.get(part, 0.0) + _now() - began

    def begin(self) -> None:
        """A step begins: what was counted is forgotten."""
        self.seconds, self._began = {}, _now()

    def metrics(self, tokens: int) -> dict[str, float]:
        """The step so far, in seconds: ``step_time``, and its parts as ``time/...``, which add up to it.

        Parameters
        ----------
        tokens : int
            What the step sampled, prompts included, for ``tokens_per_second``.
        """
        whole = _now() - self._began
        parts = {part: self.seconds.get(part, 0.0) for part in PARTS}
        parts["other"] = whole - sum(parts.values())
        named = {f"time/{part}": seconds for part, seconds in parts.items()}
        return {"step_time": whole, **named, "tokens_per_second": tokens / whole}


def _now() -> float:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return perf_counter()
