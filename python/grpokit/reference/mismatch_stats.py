"""What the log ratios between trainer and sampler amount to: one function an equation, in float64.

d = log π_old − log π_rollout of a token, ρ = e^d with d limited to ±20; S = Σ d of a sequence, w = e^S. A sequence is
the list of its live tokens' d. A d that is NaN or infinite is left out of what is per token, its sequence of what is
per sequence. What is a mean of nothing is NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .objective import ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

Sequences = list[list[float]]


def log_ratios(old_logps: Sequences, rollout_logps: Sequences, mask: Sequence[Sequence[bool]]) -> Sequences:
    """D of the live tokens of each sequence.

    Examples
    --------
    >>> log_ratios([[-1.0, -2.0]], [[-1.5, 0.0]], [[True, False]])
    [[0.5]]
    """
    rows = zip(old_logps, rollout_logps, mask, strict=True)
    return [[o - r for o, r, live in zip(*row, strict=True) if live] for row in rows]


def tokens(d: Sequences) -> list[float]:
    """All d that are finite."""
    return [x for sequence in d for x in sequence if math.isfinite(x)]


def sequences(d: Sequences) -> Sequences:
    """The sequences with a live token and none whose d is not finite."""
    return [sequence for sequence in d if sequence and all(math.isfinite(x) for x in sequence)]


def not_finite(d: Sequences) -> tuple[int, int]:
    """How many d are not finite, and how many sequences have one."""
    counts = [sum(not math.isfinite(x) for x in sequence) for sequence in d]
    return sum(counts), sum(count > 0 for count in counts)


def mean(x: Sequence[float]) -> float:
    """(1/n) Σ x."""
    return math.fsum(x) / len(x) if x else math.nan


def mean_ratio(d: Sequences) -> float:
    """(1/T) Σ ρ."""
    return mean([ratio(x) for x in tokens(d)])


def ess_token(d: Sequences) -> float:
    """(Σ ρ)² / (T Σ ρ²)."""
    rho = [ratio(x) for x in tokens(d)]
    return math.fsum(rho) ** 2 / (len(rho) * math.fsum(r * r for r in rho)) if rho else math.nan


def log_sum_exp(x: Sequence[float]) -> float:
    """Log Σ e^x, which is shifted by the largest."""
    return max(x) + math.log(math.fsum(math.exp(y - max(x)) for y in x))


def ess_sequence(d: Sequences) -> float:
    """(Σ w)² / (B Σ w²): log ESS = 2 LSE(S) − LSE(2S) − log B.

    Examples
    --------
    >>> round(ess_sequence([[1e4], [1e4]]), 9)
    1.0
    """
    S = [math.fsum(sequence) for sequence in sequences(d)]
    return math.exp(2 * log_sum_exp(S) - log_sum_exp([2 * s for s in S]) - math.log(len(S))) if S else math.nan


def kl_k1(d: Sequences) -> float:
    """(1/T) Σ −d, an estimate of KL(π_rollout ‖ π_old)."""
    return mean([-x for x in tokens(d)])


def kl_k3(d: Sequences) -> float:
    """(1/T) Σ (ρ − 1 − d), an estimate of KL(π_rollout ‖ π_old)."""
    return mean([math.expm1(limited(x)) - x for x in tokens(d)])


def kl_gap(d: Sequences) -> float:
    """k3 − k1 = (1/T) Σ (ρ − 1)."""
    return mean([math.expm1(limited(x)) for x in tokens(d)])


def limited(x: float) -> float:
    """D within ±20."""
    return min(max(x, -20.0), 20.0)


def chi2_token(d: Sequences) -> float:
    """(1/T) Σ ρ² − 1."""
    return mean([ratio(x) ** 2 for x in tokens(d)]) - 1


def log_chi2_sequence(d: Sequences) -> float:
    """Log ((1/B) Σ w²), the logarithm of χ² + 1."""
    S = [math.fsum(sequence) for sequence in sequences(d)]
    return log_sum_exp([2 * s for s in S]) - math.log(len(S)) if S else math.nan


def quantile(x: Sequence[float], q: float) -> float:
    """The value at rank ⌊q·(n − 1)⌋."""
    return sorted(x)[math.floor(q * (len(x) - 1))] if x else math.nan


def geometric(d: Sequences) -> list[float]:
    """S/T of each sequence."""
    return [math.fsum(sequence) / len(sequence) for sequence in sequences(d)]


def outside(d: Sequences, level: str, low: float | None, high: float | None) -> tuple[int, int]:
    """The tokens and the sequences outside a rule's bounds, which are ratios, inclusive, compared in log space.

    A rule on tokens counts those outside, and the sequences that these are in; one on sequences counts these, and all
    of their tokens.
    """
    lowest = -math.inf if low is None else math.log(low)
    highest = math.inf if high is None else math.log(high)

    def beyond(x: float) -> bool:
        return x < lowest or x > highest

    out_tokens = out_sequences = 0
    for sequence in d:
        live = [x for x in sequence if math.isfinite(x)]
        whole = bool(live) and len(live) == len(sequence)
        if level in ("token", "worst"):
            out = any(map(beyond, live))
        elif level == "sequence":
            out = whole and beyond(math.fsum(live))
        else:
            out = whole and beyond(math.fsum(live) / len(live))
        out_tokens += sum(map(beyond, live)) if level == "token" else len(live) * out
        out_sequences += out and whole
    return out_tokens, out_sequences
