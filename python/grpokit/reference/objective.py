"""Stage 6, objective: the papers' formulas per token and their derivatives by hand, in float64.

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


def ratio(d: float) -> float:
    """R = e^d, constant beyond e^±20."""
    return math.exp(min(max(d, -LIMIT), LIMIT))


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
) -> list[float]:
    """−min(r A, clip(r, 1 − low, 1 + high) A), and at most −dual A where A < 0 (1707.06347 eq. 7, 1912.09729 eq. 5)."""
    values = []
    for d, A in zip(log_ratios(x, s), s["advantages"], strict=True):
        r = ratio(d)
        clipped = r if low is None else max(r, 1 - low)
        clipped = clipped if high is None else min(clipped, 1 + high)
        value = -min(r * A, clipped * A)
        values.append(min(value, -dual * A) if dual is not None and A < 0 else value)
    return values


def clip_gradient(
    x: Columns, s: Columns, k: Column, *, low: float | None = None, high: float | None = None, dual: float | None = None
) -> dict[str, list[float]]:
    """−A r inside the gate, else 0. A > 0: r <= 1 + high. A < 0: 1 − low <= r <= dual. Bounds in log r, inclusive."""
    least = -math.inf if low is None else math.log1p(-low)
    most = math.inf if high is None else math.log1p(high)
    dual_most = math.inf if dual is None else math.log(dual)
    g = []
    for k_t, d, A in zip(k, log_ratios(x, s), s["advantages"], strict=True):
        inside = least <= d <= dual_most if A < 0 else d <= most
        g.append(k_t * -A * ratio(d) if inside and abs(d) <= LIMIT else 0.0)
    return {"logps": g}


def reinforce_value(x: Columns, _frozen: Columns, s: Columns) -> list[float]:
    """−A l."""
    return [-A * l for A, l in zip(s["advantages"], x["logps"], strict=True)]


def reinforce_gradient(_x: Columns, s: Columns, k: Column) -> dict[str, list[float]]:
    """−A."""
    return {"logps": [k_t * -A for k_t, A in zip(k, s["advantages"], strict=True)]}


def kl_value(x: Columns, frozen: Columns, s: Columns, *, kind: str, to: str) -> list[float]:
    """k1 = y, k2 = y²/2, k3 = e^−y + y − 1, with y = l − l_to."""
    out = []
    for l, l_to in zip(x["logps"], s.get(f"{to}_logps", frozen["logps"]), strict=True):
        y = l - l_to
        out.append({"k1": y, "k2": y**2 / 2, "k3": math.exp(-y) + y - 1}[kind])
    return out


def kl_gradient(x: Columns, s: Columns, k: Column, *, kind: str, to: str) -> dict[str, list[float]]:
    """1, y and 1 − e^−y."""
    g = []
    for k_t, l, l_to in zip(k, x["logps"], s.get(f"{to}_logps", x["logps"]), strict=True):
        y = l - l_to
        g.append(k_t * {"k1": 1.0, "k2": y, "k3": 1 - math.exp(-y)}[kind])
    return {"logps": g}


def entropy_value(x: Columns, _frozen: Columns, _s: Columns) -> list[float]:
    """H."""
    return list(x["entropies"])


def entropy_gradient(_x: Columns, _s: Columns, k: Column) -> dict[str, list[float]]:
    """1, by H."""
    return {"entropies": list(k)}


VALUES: dict[str, Callable[..., list[float]]] = {
    "Clip": clip_value,
    "Reinforce": reinforce_value,
    "KL": kl_value,
    "Entropy": entropy_value,
}
GRADIENTS: dict[str, Callable[..., dict[str, list[float]]]] = {
    "Clip": clip_gradient,
    "Reinforce": reinforce_gradient,
    "KL": kl_gradient,
    "Entropy": entropy_gradient,
}
