"""The closed forms of objectives, as Triton device functions: LOSS_t and its derivative by log π.

`token_gate`, `estimate` and what they are made of work on blocks and on scalars alike; `of_sequence` and
`sequence_gate` are for gates on a whole sequence, whose sums the kernel `coefficients` makes.

The formulas are those of `grpokit.objective` and `grpokit.reference`. Their conventions, too: bounds are inclusive and
compared with d = log r, a ratio is constant beyond e^±20, and NaN is shown: `tl.where` chooses, on comparisons that NaN
fails. P are an objective's numbers, in the order of `grpokit.gates`; an infinite bound is none.
"""

import triton
import triton.language as tl

LIMIT = tl.constexpr(20.0)
LEAST_PRODUCT = tl.constexpr(-18.420680743952367)  # log 1e-8


@triton.jit
def bounded(x, low, high):
    """`x` within [low, high]; an infinite bound is none."""
    x = tl.where(x > high, high, x)
    return tl.where(x < low, low, x)


@triton.jit
def ratio(d):
    """R = e^d, constant beyond e^±20."""
    return tl.exp(bounded(d, -LIMIT, LIMIT))


@triton.jit
def beyond(d):
    """Whether the ratio is constant there."""
    return (d > LIMIT) | (d < -LIMIT)


@triton.jit
def clipped(d, low, high):
    """The ratio within its bounds, which are those of d, and its derivative by d."""
    r = ratio(bounded(d, low, high))
    return r, tl.where((d > high) | (d < low) | beyond(d), 0.0, r)


@triton.jit
def one_sided(A, down, up):
    """The bounds of the side that A pushes towards: `down` where A < 0, else `up`."""
    return tl.where(A < 0, down, float("-inf")), tl.where(A < 0, float("inf"), up)


@triton.jit
def excess(y):
    """e^y − 1 − y, with the digits that the difference loses near 0."""
    series = y * (1 / 120 + y * (1 / 720 + y * (1 / 5040 + y * (1 / 40320))))
    series = y * y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + series)))
    return tl.where(tl.abs(y) < 0.5, series, tl.exp(y) - 1 - y)


@triton.jit
def expm1(y):
    """e^y − 1, likewise."""
    return tl.where(tl.abs(y) < 0.5, y + excess(y), tl.exp(y) - 1)


@triton.jit
def sigmoid(x):
    """σ(x) and its derivative, whose digits are in σ(−|x|)."""
    e = tl.exp(-tl.abs(x))
    small = e / (1 + e)
    return tl.where(x > 0, 1 - small, small), small * (1 - small)


@triton.jit
def clip(d, A, P):
    """−min(r A, clip(r) A), at most −dual A where A < 0; P = the bounds of d: low, high, dual."""
    low, high, dual = P
    r, slope = clipped(d, tl.where(A < 0, low, float("-inf")), tl.where(A < 0, dual, high))
    return -A * r, -A * slope


@triton.jit
def clipped_weight(d, logp, A, P):
    """−sg(clip(r)) A log π."""
    low, high = P
    w = ratio(bounded(d, low, high))
    return -w * A * logp, -w * A


@triton.jit
def soft_gate(d, A, P):
    """−A (4/τ) σ(τ (r − 1))."""
    positive, negative = P
    r = ratio(d)
    tau = tl.where(A > 0, positive, negative)
    s, slope = sigmoid(tau * (r - 1))
    return -A * 4 / tau * s, tl.where(beyond(d), 0.0, -A * 4 * slope * r)


@triton.jit
def gaussian_gate(d, old, A, P):
    """−A sg(w) r."""
    sigma, alpha, beta, widest, least, most = P
    r = ratio(d)
    size = 1 + beta * tl.abs(A)
    width = sigma * tl.exp(bounded(-alpha * old, 0.0, widest)) * bounded(tl.where(A < 0, 1 / size, size), least, most)
    x = (r - 1) / width
    value = -A * tl.where((r - 1) * A > 0, tl.exp(-x * x / 2), 1.0) * r
    return value, tl.where(beyond(d), 0.0, value)


@triton.jit
def quadratic_penalty(d, A, P):
    """−[r A − |A| (r − 1)² / (2 ε)]."""
    epsilon = P[0]
    r = ratio(d)
    value = -(r * A - tl.abs(A) * (r - 1) * (r - 1) / (2 * epsilon))
    return value, tl.where(beyond(d), 0.0, -r * (A - tl.abs(A) * (r - 1) / epsilon))


@triton.jit
def mixed_policy(d, logp, A, off, P):
    """−A π / (π + γ) where `off`, else the clip."""
    low, high, log_gamma = P
    low, high = one_sided(A, low, high)
    r, own = clipped(tl.where(off, 0.0, d), low, high)
    s, slope = sigmoid(logp - log_gamma)
    return -A * tl.where(off, s, r), -A * tl.where(off, slope, own)


@triton.jit
def token_gate(d, logp, old, A, off, P, GATE: tl.constexpr):
    """LOSS_t of a gate on tokens, and its derivative; GaussianGate alone reads `old`, MixedPolicy `off`."""
    if GATE == "Clip":
        return clip(d, A, P)
    elif GATE == "ClippedWeight":
        return clipped_weight(d, logp, A, P)
    elif GATE == "SoftGate":
        return soft_gate(d, A, P)
    elif GATE == "GaussianGate":
        return gaussian_gate(d, old, A, P)
    elif GATE == "QuadraticPenalty":
        return quadratic_penalty(d, A, P)
    elif GATE == "MixedPolicy":
        return mixed_policy(d, logp, A, off, P)
    else:
        tl.static_assert(GATE == "Reinforce")
        return -A * logp, -A


@triton.jit
def gamma_weight(log_W, logp, A, P):
    """−sg(φ(W)) A log π."""
    k_pos, lambda_pos, k_neg, lambda_neg = P
    log_W = bounded(log_W, LEAST_PRODUCT, LIMIT)
    phi = tl.exp(tl.where(A < 0, k_neg, k_pos) * log_W - tl.where(A < 0, lambda_neg, lambda_pos) * expm1(log_W))
    return -phi * A * logp, -phi * A


@triton.jit
def estimate(x, d, KIND: tl.constexpr, CORRECTED: tl.constexpr):
    """k1, k2, k3 or |x| and its derivative by log π; corrected, times the ratio r = e^d."""
    if KIND == "k1":
        k, slope = x, tl.where(x == x, 1.0, x)
    elif KIND == "k2":
        k, slope = x * x / 2, x
    elif KIND == "abs":
        k, slope = tl.abs(x), tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))
    else:
        tl.static_assert(KIND == "k3")
        k, slope = excess(-x), -expm1(-x)
    if CORRECTED:
        r = ratio(d)
        # The slopes of r and of k3 add up to x, whose digits their sum would lose.
        both = x if KIND == "k3" else slope + k
        k, slope = r * k, r * tl.where(beyond(d), slope, both)
    return k, slope


@triton.jit
def mean(total, n):
    """A float64 sum over n, rounded where torch rounds: the sum to fp32, then the quotient."""
    return (total.to(tl.float32).to(tl.float64) / tl.where(n > 0, n, 1.0)).to(tl.float32)


@triton.jit
def of_sequence(sums, P, GATE: tl.constexpr):
    """What a gate makes of its sequence's sums: the number that each token's value needs, and one gradient for all."""
    n, x, k, down, up = sums
    n = tl.where(n > 0, n, 1.0)
    level = mean(x, n)
    if GATE == "SequenceClip":
        low, high, dual = P
        _, falling = clipped(level, low, dual)
        _, rising = clipped(level, float("-inf"), high)
        return level, (falling * down - rising * up) / n
    elif GATE == "GeometricClip":
        level, slope = clipped(level, float("-inf"), float("inf"))
        return level, slope * (down - up) / n
    elif GATE == "GammaWeight":
        return x.to(tl.float32), x
    elif GATE == "Regression":
        beta = P[0]
        level = x.to(tl.float32) * beta
        return level, 2 * beta * (level * k + down - up)
    else:
        return level, x


@triton.jit
def sequence_gate(d, level, logp, A, k, pull, P, GATE: tl.constexpr):
    """LOSS_t over k, and the token's gradient, k included."""
    level = tl.zeros_like(d) + level
    pull = tl.zeros_like(d) + pull
    if GATE == "SequenceClip":
        value, _ = clip(level, A, P)
        return value, pull
    elif GATE == "GeometricClip":
        low, high = one_sided(A, P[0], P[1])
        return -A * level, tl.where((d > high) | (d < low), 0.0, pull)
    elif GATE == "Regression":
        return (level - A) * (level - A), pull
    elif GATE == "GammaWeight":
        value, slope = gamma_weight(level, logp, A, P)
        return value, k * slope
    else:
        tl.static_assert(GATE == "SequenceClipToken")
        value, slope = clip(level, A, P)
        return value, k * slope
