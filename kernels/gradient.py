"""∂LOSS/∂logits from a token's two coefficients, in place or not: one read and one write, 4 bytes an element.

With g = ∂LOSS/∂log π, h = ∂LOSS/∂H and p = softmax(z / τ),
∂LOSS/∂z_v = (g (1[v = target] − p_v) − h p_v (log p_v + H)) / τ. Of an algorithm the kernel knows these two numbers a
row. A row whose coefficients are 0, and a place that is not trained on, is only written.
"""

import math

import torch
import triton
import triton.language as tl

from .softmax import LN2, capped, exponents, row_of
from .stats import aligned, rows
from .table import Config, choose

# As in stats.py.
NUMBERS = ["length", "stride_b", "stride_t", "out_length", "out_stride_b", "out_stride_t", "first"]
ADDRESSES = ["X", "OUT", "SLOTS", "TARGETS", "STATE", "ENTROPIES", "G", "H"]


@triton.jit
def pulled(z, M, c, cap, a, b, HAS_ENTROPY: tl.constexpr, HAS_CAP: tl.constexpr):
    """What the softmax has of the gradient of some columns: 2^u (a + b u), u = z c − M; and ∂capped z/∂z."""
    z = capped(z, cap, HAS_CAP)
    u = exponents(z, c, M, HAS_ENTROPY)
    pull = a
    if HAS_ENTROPY:
        pull = tl.fma(u, tl.zeros_like(u) + b, tl.zeros_like(u) + a)
    slope = 1.0
    if HAS_CAP:
        y = z * (1.0 / cap)
        slope = 1.0 - y * y
    return tl.exp2(u) * pull, slope


@triton.jit
def edge(
    row,
    out,
    start,
    V,
    target,
    M,
    c,
    cap,
    g,
    a,
    b,
    BLOCK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """A block that may hold the target, or end after the row does."""
    column = start + tl.arange(0, BLOCK)
    mask = column < V
    z = tl.load(row + column, mask=mask, other=float("-inf")).to(tl.float32)
    dz, slope = pulled(z, M, c, cap, a, b, HAS_ENTROPY, HAS_CAP)
    dz = tl.where(column == target, dz + g, dz) * slope
    tl.store(out + column, dz.to(out.dtype.element_ty), mask=mask)


@triton.jit
def blocks(
    row, out, start, end, M, c, cap, a, b, BLOCK: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_CAP: tl.constexpr
):
    """Full blocks without the target: looking for it would cost two instructions for each element."""
    column = tl.arange(0, BLOCK)
    for at in range(start, end, BLOCK):
        z = tl.load(row + at + column).to(tl.float32)
        dz, slope = pulled(z, M, c, cap, a, b, HAS_ENTROPY, HAS_CAP)
        tl.store(out + at + column, (dz * slope).to(out.dtype.element_ty))


@triton.jit
def coefficients(g, h, H, log_sum, HAS_ENTROPY: tl.constexpr):
    """a and b of `pulled`: p (−g − h (log p + H)) = 2^u (a + b u), as log p = (u − log2 Σ 2^u) ln 2."""
    share = tl.exp2(-log_sum)
    a = -g * share
    b = 0.0 * share
    if HAS_ENTROPY:
        b = -h * LN2 * share
        a = a - h * (H - log_sum * LN2) * share
    return a, b


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=ADDRESSES)
def gradient_kernel(
    X,
    OUT,
    SLOTS,
    TARGETS,
    STATE,
    ENTROPIES,
    G,
    H,
    length,
    stride_b: tl.int64,
    stride_t: tl.int64,
    out_length,
    out_stride_b: tl.int64,
    out_stride_t: tl.int64,
    V,
    first,
    c,
    cap,
    inverse,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """A program a place; SLOTS says which row of the columns it is, or −1."""
    place = tl.program_id(0).to(tl.int64)
    row = row_of(X, place, length, stride_b, stride_t, ALIGNED)
    out = row_of(OUT, place, out_length, out_stride_b, out_stride_t, ALIGNED)
    i = tl.load(SLOTS + place)
    there = i >= 0
    g = tl.load(G + i, mask=there, other=0.0) * inverse
    h = 0.0
    live = g != 0.0
    if HAS_ENTROPY:
        h = tl.load(H + i, mask=there, other=0.0) * inverse
        live = live | (h != 0.0)
    whole = (V // BLOCK) * BLOCK
    if live:
        target = (tl.load(TARGETS + i) - first).to(tl.int32)
        M = tl.load(STATE + 2 * i)
        entropy = 0.0
        if HAS_ENTROPY:
            entropy = tl.load(ENTROPIES + i)
        a, b = coefficients(g, h, entropy, tl.load(STATE + 2 * i + 1), HAS_ENTROPY)
        # The block of the target is none of these where a shard does not have it, or the tail does.
        here = whole
        if (target >= 0) & (target < whole):
            here = target // BLOCK * BLOCK
        blocks(row, out, 0, here, M, c, cap, a, b, BLOCK, HAS_ENTROPY, HAS_CAP)
        if here < whole:
            edge(row, out, here, V, target, M, c, cap, g, a, b, BLOCK, HAS_ENTROPY, HAS_CAP)
        blocks(row, out, here + BLOCK, whole, M, c, cap, a, b, BLOCK, HAS_ENTROPY, HAS_CAP)
        if whole < V:
            edge(row, out, whole, V, target, M, c, cap, g, a, b, BLOCK, HAS_ENTROPY, HAS_CAP)
    else:
        column = tl.arange(0, BLOCK)
        zeros = tl.zeros((BLOCK,), OUT.dtype.element_ty)
        for start in range(0, whole, BLOCK):
            tl.store(out + start + column, zeros)
        if whole < V:
            tl.store(out + whole + column, zeros, mask=whole + column < V)


def gradient(
    logits: torch.Tensor,
    out: torch.Tensor,
    places: torch.Tensor,
    targets: torch.Tensor,
    state: torch.Tensor,
    entropies: torch.Tensor,
    g: torch.Tensor,
    h: torch.Tensor | None,
    temperature: float,
    softcap: float | None = None,
    *,
    first: int = 0,
    config: Config | None = None,
) -> None:
    """Writes the gradient of every row of `out`, which may be the logits themselves.

    Parameters
    ----------
    logits, places, targets, temperature, softcap, first
        As in `grpokit.kernels.stats.stats`; rows that are not among the places become 0.
    out : like logits
        bf16, fp16 or fp32, of any row strides.
    state, entropies : (N, 2) and (N,) fp32
        What `stats` returned.
    g, h : (N,) fp32
        ∂LOSS/∂log π and ∂LOSS/∂H; None is 0 everywhere.
    config : Config, optional
        Instead of the table's.
    """
    total = logits.shape[:-1].numel()
    if not len(places):
        out.zero_()
        return
    config = config or choose("gradient", logits.device)
    with torch.cuda.device_of(logits):
        gradient_kernel[(total,)](
            logits,
            out,
            slots_of(places, logits),
            targets,
            state,
            entropies,
            g,
            g if h is None else h,
            *rows(logits),
            *rows(out),
            logits.shape[-1],
            first,
            math.log2(math.e) / temperature,
            float(softcap or 1.0),
            1.0 / temperature,
            BLOCK=config.block,
            ALIGNED=aligned(logits) and aligned(out),
            HAS_ENTROPY=h is not None,
            HAS_CAP=softcap is not None,
            num_warps=config.warps,
        )


def slots_of(places: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """For every place of the layout which of the ascending `places` it is, or −1."""
    total = logits.shape[:-1].numel()
    if len(places) == total:
        return places
    slots = torch.full((total,), -1, dtype=torch.int64, device=logits.device)
    return slots.index_copy_(0, places, torch.arange(len(places), device=logits.device))
