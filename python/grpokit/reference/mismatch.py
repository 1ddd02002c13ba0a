"""Stage 5, correct: a weight per token, in float64; every weight is a constant for the gradient, and 0 drops the token.

Each is a function of the whole batch: `rows`, one {"logps": [...], "old_logps": [...], "rollout_logps": [...], ...} a
sequence. ρ = π_old / π_rollout and u = π / π_rollout; `policy` says which.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .objective import LIMIT, Column, Columns, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Rows = Sequence[Columns]


def log_ratios(row: Columns, policy: str) -> list[float]:
    """Log ρ or log u."""
    upper = row["old_logps"] if policy == "old" else row["logps"]
    return [a - b for a, b in zip(upper, row["rollout_logps"], strict=True)]


def at_level(d: Column, level: str) -> list[float]:
    """Of each token: its own log-ratio, its sequence's sum or its sequence's mean."""
    if level == "token":
        return list(d)
    total = math.fsum(d)
    return [total if level == "sequence" else total / max(len(d), 1)] * len(d)


def inside(d: float, low: float | None, high: float | None) -> bool:
    """Low <= e^d <= high, compared in d."""
    return (low is None or math.log(low) <= d) and (high is None or d <= math.log(high))


def tis(
    rows: Rows, *, cap: float | None, low: float | None, level: str, normalize: bool, policy: str
) -> list[list[float]]:
    """min(ρ, C), and at least `low` (Yao et al. 2025; 2110.00641 without a cap); over its mean where that is said."""
    out = []
    for row in rows:
        weights = [ratio(d) for d in at_level(log_ratios(row, policy), level)]
        weights = weights if cap is None else [min(w, cap) for w in weights]
        out.append(weights if low is None else [max(w, low) for w in weights])
    if not normalize:
        return out
    counted = [w for row in out for w in row] if level == "token" else [row[0] for row in out if row]
    mean = math.fsum(counted) / max(len(counted), 1)
    return [[w / mean for w in row] for row in out]


def icepop(rows: Rows, low: float, high: float, policy: str) -> list[list[float]]:
    """ρ where α <= ρ <= β, else 0 (2510.18855, eqs. 1-3)."""
    return [[ratio(d) if inside(d, low, high) else 0.0 for d in log_ratios(row, policy)] for row in rows]


def mis(rows: Rows, high: float, low: float | None, level: str, policy: str) -> list[list[float]]:
    """Π_t ρ_t where it is within the bounds, else 0 (Liu, Li et al. 2025)."""
    levels = [at_level(log_ratios(row, policy), level) for row in rows]
    return [[ratio(d) if inside(d, low, high) else 0.0 for d in row] for row in levels]


def binary_kl(log_p: float, log_q: float) -> float:
    """P log(p / q) + (1 − p) log((1 − p) / (1 − q)), p and q within [1e-6, 1 − 1e-6]."""
    p, q = (min(max(math.exp(x), 1e-6), 1 - 1e-6) for x in (log_p, log_q))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def kpop(rows: Rows, phi: float, policy: str) -> list[list[float]]:
    """ρ where D(p ‖ q) <= φ and D(q ‖ p) <= φ, else 0 (2606.15079)."""
    out = []
    for row in rows:
        pairs = zip(row["old_logps"] if policy == "old" else row["logps"], row["rollout_logps"], strict=True)
        out.append([ratio(p - q) if binary_kl(p, q) <= phi and binary_kl(q, p) <= phi else 0.0 for p, q in pairs])
    return out


def sequence_mask(rows: Rows, high: float | None, low: float | None, policy: str) -> list[list[float]]:
    """1 where low <= Π_t ρ_t <= high."""
    levels = [at_level(log_ratios(row, policy), "sequence") for row in rows]
    return [[float(inside(d, low, high)) for d in row] for row in levels]


def geometric_mask(rows: Rows, low: float | None, high: float | None, policy: str) -> list[list[float]]:
    """1 where low <= (Π_t ρ_t)^(1/T) <= high."""
    levels = [at_level(log_ratios(row, policy), "geometric") for row in rows]
    return [[float(inside(d, low, high)) for d in row] for row in levels]


def wtrs(rows: Rows, low: float | None, policy: str, high: float | None = None) -> list[list[float]]:
    """1 where low <= ρ_t <= high for every t of the sequence."""
    return [[float(all(inside(d, low, high) for d in log_ratios(row, policy)))] * len(row["logps"]) for row in rows]


def trust_region_mask(rows: Rows, delta: float, kind: str, level: str, policy: str) -> list[list[float]]:
    """1 where k2 or k3 of ρ, its maximum, mean or sum over the sequence, is at most δ (after 2512.23075)."""
    out = []
    for row in rows:
        k = [d * d / 2 if kind == "k2" else ratio(d) - 1 - min(d, LIMIT) for d in log_ratios(row, policy)]
        if k and level != "token":
            k = [{"worst": max(k), "mean": math.fsum(k) / len(k), "sum": math.fsum(k)}[level]] * len(k)
        out.append([float(k_t <= delta) for k_t in k])
    return out


def opsm(rows: Rows, delta: float, against: str) -> list[list[float]]:
    """0 where A < 0 and mean_t log(π_rollout / π) > δ (2512.02556, eq. 9)."""
    out = []
    for row in rows:
        drift = [m - l for m, l in zip(row[f"{against}_logps"], row["logps"], strict=True)]
        far = math.fsum(drift) / max(len(drift), 1) > delta
        out.append([float(not (far and A < 0)) for A in row["advantages"]])
    return out


def dppo_mask(rows: Rows, low: float, high: float, kind: str, against: str) -> list[list[float]]:
    """0 where A pushes p further from q than δ allows (2602.04879, eqs. 12, 14)."""
    out = []
    for row in rows:
        weights = []
        for A, p, q in zip(row["advantages"], row["logps"], row[f"{against}_logps"], strict=True):
            far = abs(math.exp(p) - math.exp(q)) if kind == "tv" else binary_kl(q, p)
            dropped = (A > 0 and p > q and far > high) or (A < 0 and p < q and far > low)
            weights.append(float(not dropped))
        out.append(weights)
    return out


def m2po_mask(rows: Rows, tau: float, policy: str) -> list[list[float]]:
    """1 where log² ρ is at most the largest v with mean(log² ρ up to v) < τ; the least in any case (2510.01161)."""
    all_v = [d * d for row in rows for d in log_ratios(row, policy)]
    means = {v: math.fsum(x for x in all_v if x <= v) / sum(x <= v for x in all_v) for v in all_v}
    most = max((v for v, mean in means.items() if mean < tau), default=min(all_v, default=0.0))
    return [[float(d * d <= most) for d in log_ratios(row, policy)] for row in rows]


def _mean(x: Column) -> float:
    return math.fsum(x) / len(x)


def covariances(rows: Rows) -> list[list[float]]:
    """(l − mean)(A − mean) over the batch (2505.22617)."""
    l, A = ([x for row in rows for x in row[name]] for name in ("logps", "advantages"))
    if not l:
        return [[] for _ in rows]
    l_mean, A_mean = _mean(l), _mean(A)
    return [[(a - l_mean) * (b - A_mean) for a, b in zip(row["logps"], row["advantages"], strict=True)] for row in rows]


def _mixed(x: int) -> int:
    """The finaliser of SplitMix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def lot(seed: int, step: int, rollout_id: int, position: int) -> int:
    """What a token draws: a signed number of 64 bits."""
    x = seed
    for part in (step, rollout_id, position):
        x = _mixed((x * 0x9E3779B97F4A7C15 + part) % 2**64)
    return x - 2**64 if x >= 2**63 else x


def clip_cov(
    rows: Rows, *, share: float, cov_low: float, cov_high: float, low: float | None, high: float | None, seed: int
) -> list[list[float]]:
    """0 for the ⌊share · T⌋ candidates, at least one, with the lowest lots (2505.22617)."""
    candidates = []
    for i, (row, covs) in enumerate(zip(rows, covariances(rows), strict=True)):
        for t, cov in enumerate(covs):
            d, A = row["logps"][t] - row["base_logps"][t], row["advantages"][t]
            least, most = -math.inf if low is None else math.log1p(-low), math.inf if high is None else math.log1p(high)
            if cov_low < cov < cov_high and not (A < 0 and d < least) and not (A > 0 and d > most):
                candidates.append((lot(seed, int(row["step"][t]), int(row["rollout_ids"][t]), t), i, t))
    n = max(1, int(share * sum(len(row["logps"]) for row in rows)))
    dropped = {(i, t) for _, i, t in sorted(candidates)[:n]}
    return [[float((i, t) not in dropped) for t in range(len(row["logps"]))] for i, row in enumerate(rows)]


def top_covariance(rows: Rows, share: float) -> list[list[float]]:
    """1 for the ⌊share · T⌋ tokens, at least one, of the largest covariance, and all equal ones (2505.22617)."""
    covs = covariances(rows)
    ordered = sorted((cov for row in covs for cov in row), reverse=True)
    least = ordered[max(1, int(share * len(ordered))) - 1] if ordered else 0.0
    return [[float(cov >= least) for cov in row] for row in covs]


def m2po_clip(rows: Rows, tau: float, low: float, high: float) -> list[list[float]]:
    """0 where A pushes on and |log r| is beyond t and the floors (the authors' code of 2510.01161)."""

    def harmful(d: float, A: float) -> bool:
        return (A > 0 and d > 0) or (A < 0 and d < 0)

    gaps = [[l - l_0 for l, l_0 in zip(row["logps"], row["base_logps"], strict=True)] for row in rows]
    tokens = [
        (d, A) for d_row, row in zip(gaps, rows, strict=True) for d, A in zip(d_row, row["advantages"], strict=True)
    ]
    v = [d * d for d, A in tokens if harmful(d, A)]
    if not v or math.fsum(v) <= tau * len(v):
        return [[1.0] * len(row["logps"]) for row in rows]
    most = max((v_j for v_j in v if math.fsum(min(x, v_j) for x in v) < tau * len(v)), default=0.0)

    def closed(d: float, A: float) -> bool:
        floor = math.log1p(-low) ** 2 if d < 0 else math.log1p(high) ** 2
        return harmful(d, A) and d * d > most and d * d > floor

    return [
        [float(not closed(d, A)) for d, A in zip(g, row["advantages"], strict=True)]
        for g, row in zip(gaps, rows, strict=True)
    ]


def quantile(x: Sequence[float], q: float) -> float:
    """Linear between the two values around rank q (n − 1); NaN of nothing."""
    if not x:
        return math.nan
    ordered, at = sorted(x), q * (len(x) - 1)
    low = math.floor(at)
    return ordered[low] + (ordered[min(low + 1, len(x) - 1)] - ordered[low]) * (at - low)


def s2t_mask(rows: Rows, tau_p: float, q: float, population: str) -> list[list[float]]:
    """0 where A > 0, π < τ_p and H < τ_h, the q-quantile of H over the candidates or over all (2602.15620)."""

    def candidates(row: Columns) -> list[bool]:
        return [A > 0 and l < math.log(tau_p) for A, l in zip(row["advantages"], row["logps"], strict=True)]

    seen = [
        H for row in rows for H, c in zip(row["entropies"], candidates(row), strict=True) if c or population == "tokens"
    ]
    tau_h = quantile(seen, q)
    return [
        [float(not (c and tau_h > H)) for H, c in zip(row["entropies"], candidates(row), strict=True)] for row in rows
    ]


def top_entropy(rows: Rows, rho: float) -> list[list[float]]:
    """1 where H is at least the (1 − ρ)-quantile over the batch (2506.01939)."""
    tau = quantile([H for row in rows for H in row["entropies"]], 1 - rho)
    return [[float(tau <= H) for H in row["entropies"]] for row in rows]


WEIGHTS: dict[str, Callable[..., list[list[float]]]] = {
    "TIS": tis,
    "IcePop": icepop,
    "MIS": mis,
    "KPop": kpop,
    "SequenceMask": sequence_mask,
    "GeometricMask": geometric_mask,
    "Veto": wtrs,
    "WTRS": wtrs,
    "TrustRegionMask": trust_region_mask,
    "OPSM": opsm,
    "DPPOMask": dppo_mask,
    "M2POMask": m2po_mask,
    "ClipCov": clip_cov,
    "TopCovariance": top_covariance,
    "M2POClip": m2po_clip,
    "S2TMask": s2t_mask,
    "TopEntropy": top_entropy,
}
