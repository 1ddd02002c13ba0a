"""Stage 6, objective, where a sequence's tokens depend on each other; as `objective`, one sequence at a time.

A sequence's value stands at each of its tokens, with that token's advantage. The gradient at token j is then the sum
over the tokens t of k_t ∂value_t/∂l_j.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .objective import LIMIT, Column, Columns, log_ratios, ratio

if TYPE_CHECKING:
    from collections.abc import Callable


def _mean(x: Column) -> float:
    return math.fsum(x) / len(x) if x else 0.0


def _bounds(low: float | None, high: float | None, dual: float | None) -> tuple[float, float, float]:
    """Of log s: the least and the most where A < 0, the most where A >= 0."""
    least = -math.inf if low is None else math.log1p(-low)
    most = math.inf if high is None else math.log1p(high)
    return least, math.inf if dual is None else math.log(dual), most


def _clip(
    log_s: float, A: Column, low: float | None, high: float | None, dual: float | None, *, limit: float = LIMIT
) -> tuple[list[float], list[bool]]:
    """−min(s A, clip(s) A) and whether the gate is open, for each token's A."""
    least, dual_most, most = _bounds(low, high, dual)
    values, inside = [], []
    for a in A:
        bounded = min(max(log_s, least), dual_most) if a < 0 else min(log_s, most)
        values.append(-a * ratio(bounded, limit))
        inside.append(bounded == log_s and abs(log_s) <= limit)
    return values, inside


def sequence_clip_value(
    x: Columns,
    _frozen: Columns,
    s: Columns,
    *,
    low: float | None,
    high: float | None,
    dual: float | None,
    limit: float = LIMIT,
) -> list[float]:
    """−min(s A, clip(s, 1 − low, 1 + high) A), s = exp(mean_t d) (2507.18071, eqs. 5 to 7)."""
    return _clip(_mean(log_ratios(x, s)), s["advantages"], low, high, dual, limit=limit)[0]


def sequence_clip_gradient(
    x: Columns,
    s: Columns,
    k: Column,
    *,
    low: float | None,
    high: float | None,
    dual: float | None,
    limit: float = LIMIT,
) -> dict[str, list[float]]:
    """Σ_t k_t (−A_t s) / T where the gate is open."""
    log_s = _mean(log_ratios(x, s))
    inside = _clip(log_s, s["advantages"], low, high, dual, limit=limit)[1]
    each = zip(k, s["advantages"], inside, strict=True)
    total = math.fsum(-k_t * A * ratio(log_s, limit) for k_t, A, open_ in each if open_)
    return {"logps": [total / len(k) for _ in k]}


def sequence_clip_token_value(
    x: Columns, frozen: Columns, s: Columns, *, low: float | None, high: float | None, dual: float | None
) -> list[float]:
    """The same with s_t = sg(s) π_t / sg(π_t) (eqs. 13, 14)."""
    log_s = _mean(log_ratios(frozen, s))
    rows = zip(x["logps"], frozen["logps"], s["advantages"], strict=True)
    return [_clip(log_s + (l - l_sg), [A], low, high, dual)[0][0] for l, l_sg, A in rows]


def sequence_clip_token_gradient(
    x: Columns, s: Columns, k: Column, *, low: float | None, high: float | None, dual: float | None
) -> dict[str, list[float]]:
    """−k_t A_t s where the gate is open."""
    log_s = _mean(log_ratios(x, s))
    inside = _clip(log_s, s["advantages"], low, high, dual)[1]
    each = zip(k, s["advantages"], inside, strict=True)
    return {"logps": [-k_t * A * ratio(log_s) if open_ else 0.0 for k_t, A, open_ in each]}


def _one_sided(x: Columns, s: Columns, low: float | None, high: float | None) -> list[float]:
    """d̃: at most high where A >= 0, at least −low where A < 0."""
    least, most = -math.inf if low is None else -low, math.inf if high is None else high
    return [max(d, least) if A < 0 else min(d, most) for d, A in zip(log_ratios(x, s), s["advantages"], strict=True)]


def geometric_clip_value(
    x: Columns, _frozen: Columns, s: Columns, *, low: float | None, high: float | None, limit: float = LIMIT
) -> list[float]:
    """−A exp(mean_t d̃) (2507.20673, eq. 4)."""
    S = ratio(_mean(_one_sided(x, s, low, high)), limit)
    return [-A * S for A in s["advantages"]]


def geometric_clip_gradient(
    x: Columns, s: Columns, k: Column, *, low: float | None, high: float | None, limit: float = LIMIT
) -> dict[str, list[float]]:
    """Σ_t k_t (−A_t S) / T where d is not clipped."""
    clipped = _one_sided(x, s, low, high)
    mean = _mean(clipped)
    total = math.fsum(-k_t * A for k_t, A in zip(k, s["advantages"], strict=True)) * ratio(mean, limit)
    inside = [a == b and abs(mean) <= limit for a, b in zip(clipped, log_ratios(x, s), strict=True)]
    return {"logps": [total / len(k) if open_ else 0.0 for open_ in inside]}


def _phi(x: Columns, s: Columns, A: float, p: dict[str, float]) -> float:
    """φ(W) = W^k e^{λ (1 − W)}, W = Π_t r_t w_t within [1e-8, e^20]."""
    pairs = zip(log_ratios(x, s), s["weights"], strict=True)
    log_W = math.fsum(d + (math.log(w) if w else -math.inf) for d, w in pairs)
    log_W = min(max(log_W, math.log(1e-8)), LIMIT)
    k, lam = (p["k_neg"], p["lambda_neg"]) if A < 0 else (p["k_pos"], p["lambda_pos"])
    return math.exp(k * log_W + lam * (1 - math.exp(log_W)))


def gamma_weight_value(x: Columns, frozen: Columns, s: Columns, **parameters: float) -> list[float]:
    """−sg(φ(W)) A l (2602.10693)."""
    rows = zip(s["advantages"], x["logps"], strict=True)
    return [-_phi(frozen, s, A, parameters) * A * l for A, l in rows]


def gamma_weight_gradient(x: Columns, s: Columns, k: Column, **parameters: float) -> dict[str, list[float]]:
    """−A φ(W)."""
    return {"logps": [-k_t * A * _phi(x, s, A, parameters) for k_t, A in zip(k, s["advantages"], strict=True)]}


def regression_value(x: Columns, _frozen: Columns, s: Columns, *, beta: float) -> list[float]:
    """(β D − A)², D = Σ_t d (2602.19362, eq. 3)."""
    D = math.fsum(log_ratios(x, s))
    return [(beta * D - A) ** 2 for A in s["advantages"]]


def regression_gradient(x: Columns, s: Columns, k: Column, *, beta: float) -> dict[str, list[float]]:
    """Σ_t k_t 2 β (β D − A_t)."""
    D = math.fsum(log_ratios(x, s))
    total = math.fsum(k_t * 2 * beta * (beta * D - A) for k_t, A in zip(k, s["advantages"], strict=True))
    return {"logps": [total for _ in k]}


F: dict[str, Callable[[float], float]] = {
    "js": lambda x: (x * math.log(x) - (x + 1) * math.log((x + 1) / 2)) / 2,
    "hellinger": lambda x: (math.sqrt(x) - 1) ** 2,
    "tv": lambda x: abs(x - 1) / 2,
    "kl": lambda x: x * math.log(x),
    "reverse_kl": lambda x: -math.log(x),
    "jeffreys": lambda x: (x - 1) * math.log(x),
}
SLOPE: dict[str, Callable[[float], float]] = {
    "js": lambda x: math.log(2 * x / (1 + x)) / 2,
    "hellinger": lambda x: 1 - 1 / math.sqrt(x),
    "tv": lambda x: ((x > 1) - (x < 1)) / 2,
    "kl": lambda x: math.log(x) + 1,
    "reverse_kl": lambda x: -1 / x,
    "jeffreys": lambda x: math.log(x) + 1 - 1 / x,
}


def divergence_value(x: Columns, _frozen: Columns, s: Columns, *, f: str, eta: float) -> list[float]:
    """e^{A/η} f(R e^{−A/η}), R = Π_t r_t (2602.20132)."""
    R = ratio(math.fsum(log_ratios(x, s)))
    return [ratio(A / eta) * F[f](R / ratio(A / eta)) for A in s["advantages"]]


def divergence_gradient(x: Columns, s: Columns, k: Column, *, f: str, eta: float) -> dict[str, list[float]]:
    """Σ_t k_t R f'(R e^{−A_t/η})."""
    D = math.fsum(log_ratios(x, s))
    R, inside = ratio(D), abs(D) <= LIMIT
    total = math.fsum(k_t * R * SLOPE[f](R / ratio(A / eta)) for k_t, A in zip(k, s["advantages"], strict=True))
    return {"logps": [total if inside else 0.0 for _ in k]}


VALUES: dict[str, Callable[..., list[float]]] = {
    "SequenceClip": sequence_clip_value,
    "SequenceClipToken": sequence_clip_token_value,
    "GeometricClip": geometric_clip_value,
    "GammaWeight": gamma_weight_value,
    "Regression": regression_value,
    "Divergence": divergence_value,
}
GRADIENTS: dict[str, Callable[..., dict[str, list[float]]]] = {
    "SequenceClip": sequence_clip_gradient,
    "SequenceClipToken": sequence_clip_token_gradient,
    "GeometricClip": geometric_clip_gradient,
    "GammaWeight": gamma_weight_gradient,
    "Regression": regression_gradient,
    "Divergence": divergence_gradient,
}
# Objectives that use the weights inside their own formula.
FOLDS = frozenset({"GammaWeight"})
