"""Stage 5, correct: a weight per token for the difference between sampler and trainer, in float64.

ρ = π_old / π_rollout; every weight is a constant for the gradient, and 0 drops the token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .objective import Column, ratio

if TYPE_CHECKING:
    from collections.abc import Callable


def tis(old_logps: Column, rollout_logps: Column, cap: float) -> list[float]:
    """min(ρ, C): truncated importance sampling (Yao et al. 2025)."""
    return [min(ratio(old - rollout), cap) for old, rollout in zip(old_logps, rollout_logps, strict=True)]


def icepop(old_logps: Column, rollout_logps: Column, low: float, high: float) -> list[float]:
    """ρ where α <= ρ <= β, else 0 (2510.18855, eqs. 1-3); the bounds inclusive, in log ρ."""
    gaps = [old - rollout for old, rollout in zip(old_logps, rollout_logps, strict=True)]
    return [ratio(d) if math.log(low) <= d <= math.log(high) else 0.0 for d in gaps]


WEIGHTS: dict[str, Callable[..., list[float]]] = {"TIS": tis, "IcePop": icepop}
