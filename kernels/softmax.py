"""What the vocabulary kernels share: where a row starts, soft-capping, and the sums of a softmax, block by block.

Everything is in base 2: with c = log2(e) / temperature, u = z c − M is one fused multiply-add and 2^u one instruction.
M, the largest z c, is rounded once and the same M is subtracted everywhere, so that its rounding cancels: logits around
±300 lose nothing. Lanes, one a thread, carry sums of their own: of what it loads, `VEC` neighbours at a time. They
meet once a row, not twice a block.
"""

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# Stands for −∞: what a maximum starts from, and what a product with 0 may see.
LEAST = tl.constexpr(-1e30)


@triton.jit
def row_of(X, place, length, stride_b, stride_t, ALIGNED: tl.constexpr = False):
    """Where the row of a place starts, in (B, length, V) of any row strides; length is 1 in (T, V)."""
    row = X + (place // length) * stride_b + (place % length) * stride_t
    if ALIGNED:
        row = tl.multiple_of(row, 16)
    return row


@triton.jit
def capped(z, cap, HAS_CAP: tl.constexpr):
    """cap · tanh(z / cap), which stays NaN where z is; otherwise z."""
    if HAS_CAP:
        z = cap - 2.0 * cap / (tl.exp2(z * (2.0 * LOG2E / cap)) + 1.0)
    return z


@triton.jit
def within(z, there, cap, HAS_CAP: tl.constexpr):
    """Logits in fp32, capped; −∞ where none is: what is capped is finite, and must not count as −cap."""
    z = z.to(tl.float32)
    if HAS_CAP:
        z = tl.where(there, capped(z, cap, HAS_CAP), float("-inf"))
    return z


@triton.jit
def exponents(z, c, M, HAS_ENTROPY: tl.constexpr):
    """u = z c − M, M a scalar or like z; where u 2^u is computed −∞ is made finite, since 0 · −∞ must be 0."""
    u = tl.fma(z, tl.zeros_like(z) + c, tl.zeros_like(z) - M)
    if HAS_ENTROPY:
        u = tl.maximum(u, LEAST, propagate_nan=tl.PropagateNan.ALL)
    return u


@triton.jit
def absorb(z, M, s, t, c, cap, VEC: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_CAP: tl.constexpr):
    """One block into the lanes' M, s = Σ 2^u and t = Σ u 2^u, u = z c − M."""
    z = tl.reshape(capped(z, cap, HAS_CAP), (z.shape[0] // (M.shape[0] * VEC), M.shape[0], VEC))
    most = tl.maximum(M, tl.max(tl.max(z, 2), 0) * c)
    u = exponents(z, c, most[None, :, None], HAS_ENTROPY)
    e = tl.exp2(u)
    lower = M - most
    scale = tl.exp2(lower)
    if HAS_ENTROPY:
        t = scale * (t + lower * s) + tl.sum(tl.sum(e * u, 2), 0)
    return most, scale * s + tl.sum(tl.sum(e, 2), 0), t


@triton.jit
def merge(M, s, t):
    """The lanes' sums as the row's M, log2 Σ 2^u and Σ u 2^u / Σ 2^u."""
    most = tl.max(M, 0)
    lower = M - most
    scale = tl.exp2(lower)
    total = tl.sum(scale * s, 0)
    return most, tl.log2(total), tl.sum(scale * (t + lower * s), 0) / total


@triton.jit
def first_sweep(
    row,
    V,
    c,
    cap,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
    POLICY: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """A row's M, log2 Σ 2^u and Σ u 2^u / Σ 2^u; POLICY is what the caches are told of its blocks."""
    column = tl.arange(0, BLOCK)
    M = tl.full((LANES,), LEAST, tl.float32)
    s = tl.zeros((LANES,), tl.float32)
    t = tl.zeros((LANES,), tl.float32)
    # Full blocks have no mask: it would cost an instruction for each element.
    whole = (V // BLOCK) * BLOCK
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        z = tl.load(row + start + column, eviction_policy=POLICY).to(tl.float32)
        M, s, t = absorb(z, M, s, t, c, cap, VEC, HAS_ENTROPY, HAS_CAP)
    if whole < V:
        there = whole + column < V
        z = within(tl.load(row + whole + column, mask=there, other=float("-inf")), there, cap, HAS_CAP)
        M, s, t = absorb(z, M, s, t, c, cap, VEC, HAS_ENTROPY, False)
    return merge(M, s, t)
