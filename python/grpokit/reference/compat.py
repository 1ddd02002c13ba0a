"""Stages 5 to 7 as TRL 1.16.0 and verl 0.9.1 have them where that is not the papers'; as `objective` and `mismatch`.

What differs is the limit of a ratio, the level that it is taken at, a bound of an estimator, or the arithmetic of a
divergence.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from .mismatch import inside, top_entropy
from .mismatch import log_ratios as ratios_to_sampler
from .objective import LIMIT, clip_gradient, clip_value, log_ratios, ratio
from .sequence_objective import (
    geometric_clip_gradient,
    geometric_clip_value,
    sequence_clip_gradient,
    sequence_clip_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .objective import Column, Columns


def _at_level(x: Columns, s: Columns, level: str) -> list[float]:
    """Log r of each token, or their mean over the sequence."""
    d = log_ratios(x, s)
    return d if level == "token" else [math.fsum(d) / max(len(d), 1)] * len(d)


def capped_weight_value(x: Columns, frozen: Columns, s: Columns, *, cap: float, level: str) -> list[float]:
    """−sg(min(r, cap)) A l (TRL, cispo)."""
    weights = [math.exp(min(d, math.log(cap))) for d in _at_level(frozen, s, level)]
    return [-w * A * l for w, A, l in zip(weights, s["advantages"], x["logps"], strict=True)]


def capped_weight_gradient(x: Columns, s: Columns, k: Column, *, cap: float, level: str) -> dict[str, list[float]]:
    """−A min(r, cap)."""
    rows = zip(k, s["advantages"], _at_level(x, s, level), strict=True)
    return {"logps": [-k_t * A * math.exp(min(d, math.log(cap))) for k_t, A, d in rows]}


def plain_soft_gate_value(
    x: Columns, _frozen: Columns, s: Columns, *, positive: float, negative: float, level: str
) -> list[float]:
    """−A (4/τ) σ(τ (r − 1)) (TRL and verl, sapo)."""
    values = []
    for d, A in zip(_at_level(x, s, level), s["advantages"], strict=True):
        tau = positive if A > 0 else negative
        values.append(-A * 4 / tau / (1 + math.exp(-min(tau * (ratio(d) - 1), 700.0))))
    return values


def plain_soft_gate_gradient(
    x: Columns, s: Columns, k: Column, *, positive: float, negative: float, level: str
) -> dict[str, list[float]]:
    """−A r sech²(τ (r − 1) / 2); at the level of sequences Σ_t k_t of that over T."""
    slopes = []
    for k_t, d, A in zip(k, _at_level(x, s, level), s["advantages"], strict=True):
        half = min((positive if A > 0 else negative) * (ratio(d) - 1) / 2, 350.0)
        slopes.append(k_t * -A * ratio(d) / math.cosh(half) ** 2 if abs(d) <= LIMIT else 0.0)
    return {"logps": slopes if level == "token" else [math.fsum(slopes) / len(k) for _ in k]}


def _limited_phi(x: Columns, s: Columns, A: float, p: dict[str, float]) -> float:
    """φ(W), each factor of W limited (TRL, vespo)."""
    logs = [
        min(max(d, -LIMIT), LIMIT) + min(max(math.log(w) if w else -math.inf, math.log(1e-8)), LIMIT)
        for d, w in zip(log_ratios(x, s), s["weights"], strict=True)
    ]
    log_W = min(max(math.fsum(logs), math.log(1e-8)), LIMIT)
    k, lam = (p["k_neg"], p["lambda_neg"]) if A < 0 else (p["k_pos"], p["lambda_pos"])
    return math.exp(k * log_W + lam * (1 - math.exp(log_W)))


def limited_gamma_weight_value(x: Columns, frozen: Columns, s: Columns, **parameters: float) -> list[float]:
    """−sg(φ(W)) A l."""
    rows = zip(s["advantages"], x["logps"], strict=True)
    return [-_limited_phi(frozen, s, A, parameters) * A * l for A, l in rows]


def limited_gamma_weight_gradient(x: Columns, s: Columns, k: Column, **parameters: float) -> dict[str, list[float]]:
    """−A φ(W)."""
    rows = zip(k, s["advantages"], strict=True)
    return {"logps": [-k_t * A * _limited_phi(x, s, A, parameters) for k_t, A in rows]}


def _k3(y: float) -> float:
    return math.exp(-y) + y - 1


def _gaps(x: Columns, s: Columns) -> list[float]:
    """Y = l − l_ref."""
    return [l - l_ref for l, l_ref in zip(x["logps"], s["ref_logps"], strict=True)]


def corrected_kl_value(x: Columns, _frozen: Columns, s: Columns, *, level: str) -> list[float]:
    """R k3(y), r of the token or the sequence's geometric mean (TRL, use_bias_correction_kl)."""
    return [math.exp(d) * _k3(y) for d, y in zip(_at_level(x, s, level), _gaps(x, s), strict=True)]


def corrected_kl_gradient(x: Columns, s: Columns, k: Column, *, level: str) -> dict[str, list[float]]:
    """R y; at the level of sequences k_j s (1 − e^−y_j) + Σ_t k_t s k3(y_t) / T."""
    rows = list(zip(k, _at_level(x, s, level), _gaps(x, s), strict=True))
    if level == "token":
        return {"logps": [k_t * math.exp(d) * y for k_t, d, y in rows]}
    through = math.fsum(k_t * math.exp(d) * _k3(y) for k_t, d, y in rows) / max(len(rows), 1)
    return {"logps": [k_t * math.exp(d) * (1 - math.exp(-y)) + through for k_t, d, y in rows]}


def limited_kl_value(x: Columns, frozen: Columns, s: Columns, *, kind: str, straight: bool) -> list[float]:
    """k1 = y, k2 = y²/2, k3 = e^−y + y − 1 up to 10, |y|; or sg of one with the gradient of k2 (verl, kl_penalty)."""

    def own(y: float) -> float:
        far = min(max(y, -LIMIT), LIMIT)
        return {"k1": y, "k2": y * y / 2, "k3": min(_k3(far), 10.0), "abs": abs(y)}[kind]

    if not straight:
        return [own(y) for y in _gaps(x, s)]
    pairs = zip(_gaps(x, s), _gaps(frozen, s), strict=True)
    return [y * y / 2 - y_0 * y_0 / 2 + own(y_0) for y, y_0 in pairs]


def limited_kl_gradient(x: Columns, s: Columns, k: Column, *, kind: str, straight: bool) -> dict[str, list[float]]:
    """1, y, 1 − e^−y while k3 <= 10, sign(y); straight, y."""
    g = []
    for k_t, y in zip(k, _gaps(x, s), strict=True):
        inside = abs(y) <= LIMIT and _k3(y) <= 10.0
        k3 = 1 - math.exp(-y) if inside else 0.0
        slope = {"k1": 1.0, "k2": y, "k3": k3, "abs": float((y > 0) - (y < 0))}[kind]
        g.append(k_t * (y if straight else slope))
    return {"logps": g}


def binary_kl_mask(rows: Sequence[Columns], low: float, high: float) -> list[list[float]]:
    """0 where A > 0, p > q and D > high, or A <= 0, p < q and D > low (verl, dppo_kl)."""
    out = []
    for row in rows:
        weights = []
        for A, l, l_q in zip(row["advantages"], row["logps"], row["old_logps"], strict=True):
            p, q = math.exp(l), math.exp(l_q)
            odds = (1 - q + 1e-8) / (1 - p + 1e-8)
            # No probability is above 1: what is rounded to be is far.
            D = q * (l_q - l) + (1 - q) * math.log(odds) if odds > 0 else math.inf
            weights.append(float(not (high < D and p > q if A > 0 else low < D and p < q)))
        out.append(weights)
    return out


def fp32_top_entropy(rows: Sequence[Columns], top_entropy_quantile: float) -> list[list[float]]:
    """1 where H is at least the (1 − ρ)-quantile over the batch (TRL, get_high_entropy_mask)."""
    return top_entropy(rows, top_entropy_quantile)


def floored_mask(rows: Sequence[Columns], high: float | None, low: float | None, policy: str) -> list[list[float]]:
    """ρ where low <= ρ <= high, else 1e-8 (TRL, token_mask in vespo)."""
    return [[ratio(d) if inside(d, low, high) else 1e-8 for d in ratios_to_sampler(row, policy)] for row in rows]


def token_sum(_tokens: int, _N: int, _o_i: int) -> float:
    """1."""
    return 1


_NO_LIMIT: dict[str, Any] = {"limit": math.inf}
VALUES: dict[str, Callable[..., list[float]]] = {
    "UnlimitedClip": functools.partial(clip_value, **_NO_LIMIT),
    "UnlimitedSequenceClip": functools.partial(sequence_clip_value, **_NO_LIMIT),
    "UnlimitedGeometricClip": functools.partial(geometric_clip_value, **_NO_LIMIT),
    "CappedWeight": capped_weight_value,
    "PlainSoftGate": plain_soft_gate_value,
    "LimitedGammaWeight": limited_gamma_weight_value,
    "CorrectedKL": corrected_kl_value,
    "LimitedKL": limited_kl_value,
}
GRADIENTS: dict[str, Callable[..., dict[str, list[float]]]] = {
    "UnlimitedClip": functools.partial(clip_gradient, **_NO_LIMIT),
    "UnlimitedSequenceClip": functools.partial(sequence_clip_gradient, **_NO_LIMIT),
    "UnlimitedGeometricClip": functools.partial(geometric_clip_gradient, **_NO_LIMIT),
    "CappedWeight": capped_weight_gradient,
    "PlainSoftGate": plain_soft_gate_gradient,
    "LimitedGammaWeight": limited_gamma_weight_gradient,
    "CorrectedKL": corrected_kl_gradient,
    "LimitedKL": limited_kl_gradient,
}
WEIGHTS: dict[str, Callable[..., list[list[float]]]] = {
    "BinaryKLMask": binary_kl_mask,
    "FP32TopEntropy": fp32_top_entropy,
    "FlooredMask": floored_mask,
}
DENOMINATORS: dict[str, Callable[..., float]] = {"TokenSum": token_sum}
FOLDS = frozenset({"LimitedGammaWeight"})
