"""Stage 6, objective: the papers' formulas per token and their derivatives by hand, in float64.

Those in which a sequence's tokens depend on each other are in `sequence_objective`.

Each objective is a value and a gradient over one sequence's tokens:

    value(x, frozen, s, **parameters) -> [value_t]
    gradient(x, s, k, **parameters)   -> {column: [∂(Σ_t k_t value_t)/∂column_t]}

`x` is the current policy, {"logps": l, "entropies": H}; `frozen` the same at the point where the derivative is taken,
which is what a stop-gradient reads; `s` the sequence's constants: "advantages" (A), "base_logps" (l_0, the policy of
the ratio), "ref_logps", ...; `k` what each value is multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Column = Sequence[float]
Columns = Mapping[str, Column]

LIMIT = 20.0


def ratio(d: float, limit: float = LIMIT) -> float:
    """R = e^d, constant beyond e^±limit."""
    return math.exp(min(max(d, -limit), limit))


def log_ratios(x: Columns, s: Columns) -> list[float]:
    """D = l − l_0."""
    return [l - l_0 for l, l_0 in zip(x["logps"], s["base_logps"], strict=True)]


def clip_value(
    x: Columns,
    _frozen: Columns,
    s: Columns,
    *,
    low: float | None = None,
    high: float | None = None,
    dual: float | None = None,
    limit: float = LIMIT,
) -> list[float]:
    """−min(r A, clip(r, 1 − low, 1 + high) A), and at most −dual A where A < 0 (1707.06347 eq. 7, 1912.09729 eq. 5)."""
    values = []
    for d, A in zip(log_ratios(x, s), s["advantages"], strict=True):
        r = ratio(d, limit)
        clipped = r if low is None else max(r, 1 - low)
        clipped = clipped if high is None else min(clipped, 1 + high)
        value = -min(r * A, clipped * A)
        values.append(min(value, -dual * A) if dual is not None and A < 0 else value)
    return values


def clip_gradient(
    x: Columns,
    s: Columns,
    k: Column,
    *,
    low: float | None = None,
    high: float | None = None,
    dual: float | None = None,
    limit: float = LIMIT,
) -> dict[str, list[float]]:
    """−A r inside the gate, else 0. A > 0: r <= 1 + high. A < 0: 1 − low <= r <= dual. Bounds in log r, inclusive."""
    least = -math.inf if low is None else math.log1p(-low)
    most = math.inf if high is None else math.log1p(high)
    dual_most = math.inf if dual is None else math.log(dual)
    g = []
    for k_t, d, A in zip(k, log_ratios(x, s), s["advantages"], strict=True):
        inside = least <= d <= dual_most if A < 0 else d <= most
        g.append(k_t * -A * ratio(d, limit) if inside and abs(d) <= limit else 0.0)
    return {"logps": g}


def clipped_weight_value(
    x: Columns, frozen: Columns, s: Columns, *, high: float | None, low: float | None = None
) -> list[float]:
    """−sg(clip(r, 1 − low, 1 + high)) A l (2506.13585, eqs. 4, 5)."""
    weights = [_clipped(d, low, high) for d in log_ratios(frozen, s)]
    return [-w * A * l for w, A, l in zip(weights, s["advantages"], x["logps"], strict=True)]


def clipped_weight_gradient(
    x: Columns, s: Columns, k: Column, *, high: float | None, low: float | None = None
) -> dict[str, list[float]]:
    """−A clip(r)."""
    weights = [_clipped(d, low, high) for d in log_ratios(x, s)]
    return {"logps": [-k_t * A * w for k_t, A, w in zip(k, s["advantages"], weights, strict=True)]}


def _clipped(d: float, low: float | None, high: float | None) -> float:
    r = ratio(d) if low is None else max(ratio(d), 1 - low)
    return r if high is None else min(r, 1 + high)


def soft_gate_value(x: Columns, _frozen: Columns, s: Columns, *, positive: float, negative: float) -> list[float]:
    """−A (4/τ) σ(τ (r − 1)) (2511.20347)."""
    values = []
    for d, A in zip(log_ratios(x, s), s["advantages"], strict=True):
        tau = positive if A > 0 else negative
        values.append(-A * 4 / tau / (1 + math.exp(-min(tau * (ratio(d) - 1), 700.0))))
    return values


def soft_gate_gradient(
    x: Columns, s: Columns, k: Column, *, positive: float, negative: float
) -> dict[str, list[float]]:
    """−A r sech²(τ (r − 1) / 2)."""
    g = []
    for k_t, d, A in zip(k, log_ratios(x, s), s["advantages"], strict=True):
        tau = positive if A > 0 else negative
        half = min(tau * (ratio(d) - 1) / 2, 350.0)
        g.append(k_t * -A * ratio(d) / math.cosh(half) ** 2 if abs(d) <= LIMIT else 0.0)
    return {"logps": g}


def _gaussian(d: float, A: float, l_0: float, p: Mapping[str, float]) -> float:
    """W of MASPO: b = σ / π_old^α within [σ, σ_high]; σ_A = b (1 + β A), or b / (1 − β A) where A < 0."""
    base = min(p["sigma"] * math.exp(min(max(-p["alpha"] * l_0, 0.0), LIMIT)), p["sigma_high"])
    risk = 1 + p["beta"] * A if A >= 0 else 1 / (1 - p["beta"] * A)
    width = base * min(max(risk, p["adv_low"]), p["adv_high"])
    r = ratio(d)
    return math.exp(-((r - 1) ** 2) / (2 * width**2)) if (r - 1) * A > 0 else 1.0


def gaussian_gate_value(x: Columns, frozen: Columns, s: Columns, **parameters: float) -> list[float]:
    """−A sg(w) r (2602.17550, the authors' code)."""
    old = s.get("old_logps", frozen["logps"])
    rows = zip(log_ratios(x, s), log_ratios(frozen, s), s["advantages"], old, strict=True)
    return [-A * _gaussian(d_0, A, l_0, parameters) * ratio(d) for d, d_0, A, l_0 in rows]


def gaussian_gate_gradient(x: Columns, s: Columns, k: Column, **parameters: float) -> dict[str, list[float]]:
    """−A w r."""
    rows = zip(k, log_ratios(x, s), s["advantages"], s.get("old_logps", x["logps"]), strict=True)
    return {
        "logps": [
            -k_t * A * _gaussian(d, A, l_0, parameters) * ratio(d) if abs(d) <= LIMIT else 0.0
            for k_t, d, A, l_0 in rows
        ]
    }


def quadratic_penalty_value(x: Columns, _frozen: Columns, s: Columns, *, epsilon: float) -> list[float]:
    """−[r A − |A| (r − 1)² / (2 ε)] (2401.16025)."""
    rows = zip(map(ratio, log_ratios(x, s)), s["advantages"], strict=True)
    return [-(r * A - abs(A) * (r - 1) ** 2 / (2 * epsilon)) for r, A in rows]


def quadratic_penalty_gradient(x: Columns, s: Columns, k: Column, *, epsilon: float) -> dict[str, list[float]]:
    """−r (A − |A| (r − 1) / ε)."""
    rows = zip(k, log_ratios(x, s), s["advantages"], strict=True)
    slopes = ((k_t, d, ratio(d) * (A - abs(A) * (ratio(d) - 1) / epsilon)) for k_t, d, A in rows)
    return {"logps": [-k_t * slope if abs(d) <= LIMIT else 0.0 for k_t, d, slope in slopes]}


def mixed_policy_value(
    x: Columns, frozen: Columns, s: Columns, *, gamma: float, low: float | None, high: float | None
) -> list[float]:
    """−A π / (π + γ) where off-policy, else PPO's (2504.14945)."""
    own = clip_value(x, frozen, s, low=low, high=high)
    rows = zip(own, x["logps"], s["advantages"], s["off_policy"], strict=True)
    return [-A * math.exp(l) / (math.exp(l) + gamma) if off else value for value, l, A, off in rows]


def mixed_policy_gradient(
    x: Columns, s: Columns, k: Column, *, gamma: float, low: float | None, high: float | None
) -> dict[str, list[float]]:
    """−A γ π / (π + γ)² where off-policy, else −A r inside the clip."""
    own = clip_gradient(x, s, k, low=low, high=high)["logps"]
    rows = zip(own, k, x["logps"], s["advantages"], s["off_policy"], strict=True)
    return {
        "logps": [
            -k_t * A * gamma * math.exp(l) / (math.exp(l) + gamma) ** 2 if off else g for g, k_t, l, A, off in rows
        ]
    }


def reinforce_value(x: Columns, _frozen: Columns, s: Columns) -> list[float]:
    """−A l."""
    return [-A * l for A, l in zip(s["advantages"], x["logps"], strict=True)]


def reinforce_gradient(_x: Columns, s: Columns, k: Column) -> dict[str, list[float]]:
    """−A."""
    return {"logps": [k_t * -A for k_t, A in zip(k, s["advantages"], strict=True)]}


def kl_value(x: Columns, frozen: Columns, s: Columns, *, kind: str, to: str, corrected: bool) -> list[float]:
    """k1 = y, k2 = y²/2, k3 = e^−y + y − 1 or |y|, with y = l − l_to; corrected, times r."""
    out = []
    for l, l_to, d in zip(x["logps"], s.get(f"{to}_logps", frozen["logps"]), log_ratios(x, s), strict=True):
        y = l - l_to
        k = {"k1": y, "k2": y**2 / 2, "k3": math.exp(-y) + y - 1, "abs": abs(y)}[kind]
        out.append(ratio(d) * k if corrected else k)
    return out


def kl_gradient(x: Columns, s: Columns, k: Column, *, kind: str, to: str, corrected: bool) -> dict[str, list[float]]:
    """1, y, 1 − e^−y, sign(y); corrected, r times the sum of slope and value (the slope alone beyond e^±20)."""
    g = []
    for k_t, l, l_to, d in zip(k, x["logps"], s.get(f"{to}_logps", x["logps"]), log_ratios(x, s), strict=True):
        y = l - l_to
        sign = float((y > 0) - (y < 0))
        slope = {"k1": 1.0, "k2": y, "k3": 1 - math.exp(-y), "abs": sign}[kind]
        if corrected:
            through = {"k1": 1 + y, "k2": y + y**2 / 2, "k3": y, "abs": sign + abs(y)}[kind]
            slope = ratio(d) * (through if abs(d) <= LIMIT else slope)
        g.append(k_t * slope)
    return {"logps": g}


def entropy_value(x: Columns, _frozen: Columns, _s: Columns) -> list[float]:
    """H."""
    return list(x["entropies"])


def entropy_gradient(_x: Columns, _s: Columns, k: Column) -> dict[str, list[float]]:
    """1, by H."""
    return {"entropies": list(k)}


VALUES: dict[str, Callable[..., list[float]]] = {
    "Clip": clip_value,
    "ClippedWeight": clipped_weight_value,
    "SoftGate": soft_gate_value,
    "GaussianGate": gaussian_gate_value,
    "QuadraticPenalty": quadratic_penalty_value,
    "MixedPolicy": mixed_policy_value,
    "Reinforce": reinforce_value,
    "KL": kl_value,
    "Entropy": entropy_value,
}
GRADIENTS: dict[str, Callable[..., dict[str, list[float]]]] = {
    "Clip": clip_gradient,
    "ClippedWeight": clipped_weight_gradient,
    "SoftGate": soft_gate_gradient,
    "GaussianGate": gaussian_gate_gradient,
    "QuadraticPenalty": quadratic_penalty_gradient,
    "MixedPolicy": mixed_policy_gradient,
    "Reinforce": reinforce_gradient,
    "KL": kl_gradient,
    "Entropy": entropy_gradient,
}
