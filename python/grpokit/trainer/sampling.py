"""How completions are sampled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Parameters
    ----------
    max_completion_length : int
        Tokens, the end token included.
    temperature : float
        What the logits are divided by; 0 takes the likeliest token.
    top_p : float
        Only the likeliest tokens that together have at least this probability are sampled; 1 for all.
    top_k : int
        Only so many of the likeliest are sampled; 0 for all.
    stop : tuple of str
        A completion ends where its text has one of these; the text ends before it, the tokens with it.
    """

    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether some tokens are never sampled."""
        return self.top_p < 1 or self.top_k > 0

    @property
    def least_mass(self) -> float:
        """What the tokens that may be sampled have at the least of all probability."""
        return 0.0 if self.top_k else self.top_p
