"""A mixture of experts' gate with given experts, and one layer of it, in float64 and plain loops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def gate(logits: Sequence[float], experts: Sequence[int], *, renormalize: bool = True) -> list[float]:
    """g_i of each of the experts: e^{s_i} / Σ_j e^{s_j}, j over them (2510.11370), or over all experts otherwise."""
    top = max(logits)
    over = experts if renormalize else range(len(logits))
    total = math.fsum(math.exp(logits[j] - top) for j in over)
    return [math.exp(logits[i] - top) / total for i in experts]


def gate_gradient(
    logits: Sequence[float], experts: Sequence[int], upstream: Sequence[float], *, renormalize: bool = True
) -> list[float]:
    """∂ Σ_i u_i g_i / ∂s_j = g_j (u_j − Σ_i u_i g_i); u is 0 outside of the experts, and so is g where renormalised."""
    g = dict(zip(experts, gate(logits, experts, renormalize=renormalize), strict=True))
    u = dict(zip(experts, upstream, strict=True))
    mean = math.fsum(u[i] * g[i] for i in experts)
    every = dict(enumerate(gate(logits, range(len(logits))))) if not renormalize else g
    return [every.get(j, 0.0) * (u.get(j, 0.0) - mean) for j in range(len(logits))]


def layer(
    x: Sequence[float],
    router: Sequence[Sequence[float]],
    experts: Sequence[int],
    functions: Sequence[Callable[[Sequence[float]], Sequence[float]]],
    *,
    renormalize: bool = True,
) -> list[float]:
    """Σ_i g_i f_i(x) over the experts, with s = router · x: one token through a layer of experts."""
    logits = [math.fsum(w * v for w, v in zip(row, x, strict=True)) for row in router]
    g = gate(logits, experts, renormalize=renormalize)
    outputs = [functions[i](x) for i in experts]
    return [math.fsum(g_i * f[d] for g_i, f in zip(g, outputs, strict=True)) for d in range(len(outputs[0]))]
