"""A recipe's coefficients and metrics in one kernel: each token's loss, g = ∂LOSS/∂log π, h = ∂LOSS/∂H.

In: columns of live tokens, sequence after sequence, and which formulas a recipe is made of. Out: columns of the same
kind, and sums of the metrics per sequence.

One program owns a sequence and reads it once, or twice where something is the whole sequence's: the ratio of a gate or
of a weight. Sums over a sequence are made in float64 and in a fixed order. A recipe's numbers are arguments and lengths
are data, so that no new one compiles anything; what is constexpr is which formulas and columns there are.
"""

import triton
import triton.language as tl

from .gates import beyond, bounded, estimate, excess, mean, of_sequence, one_sided, ratio, sequence_gate, token_gate


@triton.jit
def shown(gone, x):
    """1 where nothing says drop, 0 where it does; NaN where what was looked at is NaN."""
    return tl.where(gone, 0.0, tl.where(x == x, 1.0, x))


@triton.jit
def weigh(u, logp, other, A, seen, low, high, RULE: tl.constexpr, LEVEL: tl.constexpr):
    """A correction's weight, by u = log π / π_rollout of the token or by what was `seen` of its sequence."""
    n, total, least, most, drift = seen
    if RULE == "OPSM":
        x = tl.zeros_like(u) + mean(drift, n)
        return shown((A < 0) & (x > high), x)
    elif RULE == "DPPOMask":
        far = tl.abs(tl.exp(logp) - tl.exp(other))
        return shown(((A > 0) & (logp > other) & (far > high)) | ((A < 0) & (logp < other) & (far > low)), far)
    elif LEVEL == "worst":
        return shown((tl.zeros_like(u) + least < low) | (tl.zeros_like(u) + most > high), u)
    else:
        if LEVEL == "sequence":
            u = tl.zeros_like(u) + total.to(tl.float32)
        elif LEVEL == "geometric":
            u = tl.zeros_like(u) + mean(total, n)
        if RULE == "truncate":
            return bounded(ratio(u), low, high)
        elif RULE == "bound":
            return tl.where((u < low) | (u > high), 0.0, ratio(u))
        else:
            tl.static_assert(RULE == "mask")
            return shown((u < low) | (u > high), u)


@triton.jit
def load(column, i, there):
    """Some tokens of a column, in fp32."""
    return tl.load(column + i, mask=there, other=0).to(tl.float32)


@triton.jit
def read(logps, constants, i, here, there, BASE: tl.constexpr):
    """Some tokens' log π, log π_old, log π_rollout, A, `off_policy`, and log-ratios: d, the recipe's, and u."""
    old_logps, rollout_logps, advantages, off_policy = constants
    logp = load(logps, here, there)
    # Without π_old the rollouts are on-policy.
    old, rollout, A, off = logp, logp, tl.zeros_like(logp), here < 0
    if old_logps is not None:
        old = load(old_logps, i, there)
    if rollout_logps is not None:
        rollout = load(rollout_logps, i, there)
    if advantages is not None:
        A = load(advantages, i, there)
    if off_policy is not None:
        off = tl.load(off_policy + i, mask=there, other=0) != 0
    u = logp - rollout
    return logp, old, rollout, A, off, u if BASE == "rollout" else logp - old, u


@triton.jit
def first_weight(weights, i, there, u):
    """The product of the corrections that read constants alone."""
    if weights is not None:
        return load(weights, i, there)
    else:
        return tl.full(u.shape, 1.0, tl.float32)


@triton.jit
def add(sums, blocks, there):
    """Each sum with its block added, of the tokens that are there."""
    for j in tl.static_range(len(sums)):
        sums = sums[:j] + (sums[j] + tl.where(there, blocks[j].to(sums[j].dtype), 0.0),) + sums[j + 1 :]
    return sums


@triton.jit
def look(
    logps,
    constants,
    weights,
    share,
    P,
    limits,
    origin,
    start,
    end,
    GATE: tl.constexpr,
    BASE: tl.constexpr,
    WEIGHED: tl.constexpr,
    IN_RATIO: tl.constexpr,
    RULES: tl.constexpr,
    TWICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first sweep: what is the sequence's.

    Of all its tokens, for rules and metrics: their number, Σ u, the extremes of u, the drift; Σ d. Of those that the
    weights of single tokens leave, for the gate: their number, Σ of what it takes the mean or product of, Σ k, and
    Σ k |A| where A < 0 and elsewhere; k is what a value is multiplied by, without the weights of whole sequences.
    """
    n = (end - start).to(tl.float64)
    zero = tl.zeros((BLOCK,), tl.float64)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero)
    least = tl.full((BLOCK,), float("inf"), tl.float32)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    if TWICE:
        for at in range(start, end, BLOCK):
            i = at + tl.arange(0, BLOCK)
            there = i < end
            logp, old, rollout, A, _, d, u = read(logps, constants, i, i - origin, there, BASE)
            least = tl.where(there & (u < least), u, least)
            most = tl.where(there & (u > most), u, most)
            drift, x, k = tl.zeros_like(u), d, load(share, i, there)
            w = first_weight(weights, i, there, u)
            for j in tl.static_range(len(RULES) // 3):
                other = old if RULES[3 * j + 2] == "old" else rollout
                if RULES[3 * j + 1] == "token":
                    seen = (n, n, 0.0, 0.0, n)
                    w *= weigh(
                        u,
                        logp,
                        other,
                        A,
                        seen,
                        limits[2 * j],
                        limits[2 * j + 1],
                        tl.constexpr(RULES[3 * j]),
                        tl.constexpr(RULES[3 * j + 1]),
                    )
                elif RULES[3 * j + 1] == "drift":
                    drift = other - logp
            if GATE == "GeometricClip":
                low, high = one_sided(A, P[0], P[1])
                x = bounded(d, low, high)
            left = tl.full((BLOCK,), 1.0, tl.float32)
            if WEIGHED:
                k = tl.where(w == 0, 0.0, k)
                if GATE == "GammaWeight":
                    x += tl.where(w == 0, float("-inf"), tl.log(tl.where(w == 0, 1.0, w)))
                else:
                    k *= w
                if not IN_RATIO:
                    left, x = tl.where(w == 0, 0.0, left), tl.where(w == 0, 0.0, x)
            # In float64, since what remains of A of both signs may be little.
            kA = k.to(tl.float64) * A.to(tl.float64)
            down, up = tl.where(A < 0, -kA, 0.0), tl.where(A < 0, 0.0, kA)
            sums = add(sums, (u, drift, d, left, x, k, down, up), there)
    u, drift, d = tl.sum(sums[0], 0), tl.sum(sums[1], 0), tl.sum(sums[2], 0)
    left, x, k, down, up = (
        tl.sum(sums[3], 0),
        tl.sum(sums[4], 0),
        tl.sum(sums[5], 0),
        tl.sum(sums[6], 0),
        tl.sum(sums[7], 0),
    )
    return (n, u, tl.min(least, 0), tl.max(most, 0), drift), d, (left, x, k, down, up)


@triton.jit(do_not_specialize_on_alignment=["logps", "entropies", "offsets", "loss", "g", "h", "partials"])
def coefficients(
    logps,
    entropies,
    constants,
    ref_logps,
    weights,
    dropped,
    shares,
    scales,
    extra_weights,
    offsets,
    P,
    limits,
    loss,
    g,
    h,
    partials,
    GATE: tl.constexpr,
    BASE: tl.constexpr,
    WEIGHED: tl.constexpr,
    IN_RATIO: tl.constexpr,
    RULES: tl.constexpr,
    TERMS: tl.constexpr,
    SEQUENCE: tl.constexpr,
    TWICE: tl.constexpr,
    METRICS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One sequence of a part of the step; what a recipe or a batch lacks is None.

    `offsets` (S + 1,) int64 are the part's sequences among the whole step's tokens. Of the part: `logps`, `entropies`,
    `loss`, `g`, `h`, and `partials` (S, METRICS). Of the whole step: `constants` (log π_old, log π_rollout, A,
    `off_policy`), `ref_logps`; `weights` and `dropped` of the policy term's corrections that read constants alone;
    `shares`, one over each term's denominators. `RULES` are the corrections that read the current policy, with two
    numbers each in `limits`, `TERMS` the extra terms. `SEQUENCE`: the gate is; `TWICE`: it is, or a rule is.
    """
    q = tl.program_id(0).to(tl.int64)
    origin, start, end = tl.load(offsets), tl.load(offsets + q), tl.load(offsets + q + 1)
    seen, total_d, left = look(
        logps,
        constants,
        weights,
        shares[0],
        P,
        limits,
        origin,
        start,
        end,
        GATE,
        BASE,
        WEIGHED,
        IN_RATIO,
        RULES,
        TWICE,
        BLOCK,
    )
    level, pull = of_sequence(left, P, GATE)
    for j in tl.static_range(len(RULES) // 3):
        if SEQUENCE and RULES[3 * j + 1] != "token":
            pull *= weigh(
                level,
                level,
                level,
                level,
                seen,
                limits[2 * j],
                limits[2 * j + 1],
                tl.constexpr(RULES[3 * j]),
                tl.constexpr(RULES[3 * j + 1]),
            )
    pull = pull.to(tl.float32)

    told = (tl.zeros((BLOCK,), tl.float32),) * METRICS
    for at in range(start, end, BLOCK):
        i = at + tl.arange(0, BLOCK)
        here, there = i - origin, i < end
        logp, old, rollout, A, off, d, u = read(logps, constants, i, here, there, BASE)
        w = first_weight(weights, i, there, u)
        gone = ()
        for j in tl.static_range(len(dropped)):
            gone += (load(dropped[j], i, there),)
        for j in tl.static_range(len(RULES) // 3):
            other = old if RULES[3 * j + 2] == "old" else rollout
            w_j = weigh(
                u,
                logp,
                other,
                A,
                seen,
                limits[2 * j],
                limits[2 * j + 1],
                tl.constexpr(RULES[3 * j]),
                tl.constexpr(RULES[3 * j + 1]),
            )
            w *= w_j
            gone += (w_j == 0,)

        k = load(shares[0], i, there)
        if WEIGHED:
            k = tl.where(w == 0, 0.0, k)
            if GATE != "GammaWeight":
                k *= w
        if SEQUENCE:
            value, g_t = sequence_gate(d, level, logp, A, k, pull, P, GATE)
        else:
            value, slope = token_gate(d, logp, old, A, off, P, GATE)
            g_t = k * slope
        loss_t = k * value
        if WEIGHED and not IN_RATIO:
            loss_t, g_t = tl.where(w == 0, 0.0, loss_t), tl.where(w == 0, 0.0, g_t)

        blocks = ()
        if GATE != "Reinforce":
            side = tl.where(off, 0.0, d)
            blocks = (ratio(side), beyond(side))
            if GATE == "SequenceClip" or GATE == "SequenceClipToken":
                side = tl.zeros_like(d) + mean(total_d, seen[0])
            closed = (g_t == 0) & (A != 0) & (w != 0)
            blocks += (closed & (side < 0), closed & (side > 0), closed)

        h_t = tl.zeros_like(logp)
        H = h_t
        if entropies is not None:
            H = load(entropies, here, there)
            blocks += (H,)
        ref = logp
        if ref_logps is not None:
            ref = load(ref_logps, i, there)
            blocks += (excess(ref - logp),)
        if constants[1] is not None:
            blocks += (tl.abs(old - rollout),)
        if WEIGHED:
            blocks += (w, w == 0) + gone
        told = add(told, blocks, there)

        for j in tl.static_range(len(TERMS) // 3):
            w = first_weight(extra_weights[j], i, there, u)
            k = tl.where(w == 0, 0.0, load(shares[j + 1], i, there) * scales[j]) * w
            if TERMS[3 * j] == "Entropy":
                value = H
                h_t += k
            else:
                other = ref if TERMS[3 * j + 1] == "ref" else (old if TERMS[3 * j + 1] == "old" else rollout)
                value, slope = estimate(logp - other, d, tl.constexpr(TERMS[3 * j]), tl.constexpr(TERMS[3 * j + 2]))
                g_t += tl.where(w == 0, 0.0, k * slope)
            loss_t += tl.where(w == 0, 0.0, k * value)
        tl.store(loss + here, loss_t, mask=there)
        tl.store(g + here, g_t, mask=there)
        if entropies is not None:
            tl.store(h + here, h_t, mask=there)
    for j in tl.static_range(METRICS):
        tl.store(partials + q * METRICS + j, tl.sum(told[j], 0))
