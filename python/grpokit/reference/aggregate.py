"""Stage 7, aggregate: what each token's contribution is divided by.

The counts are those of the whole optimizer step. `over` says what is counted: "live" tokens and the sequences that
have any, those that the weights "kept", or all "rows", the empty ones too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .objective import Column


def counts(weights: Sequence[Column], over: str) -> tuple[int, int, list[int]]:
    """Tokens, sequences N, and the length |o_i| of each sequence."""
    lengths = [sum(w != 0 for w in row) if over == "kept" else len(row) for row in weights]
    return sum(lengths), len(lengths) if over == "rows" else sum(n > 0 for n in lengths), lengths


def token_mean(tokens: int, _N: int, _o_i: int) -> float:
    """Σ_i |o_i| (2503.14476, eq. 8)."""
    return tokens


def sequence_mean(_tokens: int, N: int, o_i: int) -> float:
    """N |o_i| (2402.03300, eq. 3)."""
    return N * o_i


def sequence_sum(_tokens: int, N: int, _o_i: int) -> float:
    """N."""
    return N


def constant(_tokens: int, N: int, _o_i: int, *, length: float) -> float:
    """N L (2503.20783, §3.2)."""
    return N * length


DENOMINATORS: dict[str, Callable[..., float]] = {
    "TokenMean": token_mean,
    "SequenceMean": sequence_mean,
    "SequenceSum": sequence_sum,
    "Constant": constant,
}
