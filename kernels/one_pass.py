"""Log-probs, entropies and the gradient over the logits in one kernel: one read and one write, 4 bytes an element.

For coefficients that a row's own log π and entropy settle, by the token-level formulas of `gates`, or that are known
already, since an observing pass has seen the whole step. Two kernels do the same:

- `row_kernel` keeps a row in the registers of a cluster of thread blocks, as two tiles A + B of a power of two each. It
  needs a Triton whose reductions cross the blocks of a cluster: 3.9 does, 3.6 does not.
- `sweep_kernel` reads the row twice, the second time backwards, when the caches should still hold some of it. Any
  Triton.

The upstream gradient is not known yet. The gradient is written for 1, and `scale_kernel` multiplies it later, or reads
that one number and is done.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from .gates import estimate, token_gate
from .gradient import coefficients, edge, pulled, slots_of
from .softmax import LEAST, LN2, capped, exponents, first_sweep, row_of, within
from .stats import aligned, rows
from .table import Config, choose

# As in stats.py.
NUMBERS = ["length", "stride_b", "stride_t", "origin"]
ADDRESSES = ["X", "PLACES", "TARGETS", "LOGPS", "ENTROPIES"]


@triton.jit
def of_token(i, column):
    """One token's entry of a column, in fp32."""
    return tl.load(column + i).to(tl.float32)


@triton.jit
def factor(n, share, weights):
    """What a token's value is multiplied by. A denominator may be 0 for a token that its weight drops."""
    k = of_token(n, share)
    if weights is not None:
        w = of_token(n, weights)
        k = tl.where(w == 0, 0.0, k) * w
    return k


@triton.jit
def settle(
    i,
    n,
    logp,
    known,
    constants,
    ref_logps,
    weights,
    shares,
    scales,
    extra_weights,
    P,
    GATE: tl.constexpr,
    BASE: tl.constexpr,
    TERMS: tl.constexpr,
):
    """g and h of live token i of the part, which is token n of the whole step."""
    if GATE is None:
        return of_token(i, known[0]), of_token(i, known[1])
    else:
        old_logps, rollout_logps, advantages, off_policy = constants
        old, rollout, A, off = logp, logp, 0.0 * logp, logp != logp
        if old_logps is not None:
            old = of_token(n, old_logps)
        if rollout_logps is not None:
            rollout = of_token(n, rollout_logps)
        if advantages is not None:
            A = of_token(n, advantages)
        if off_policy is not None:
            off = tl.load(off_policy + n) != 0
        d = logp - rollout if BASE == "rollout" else logp - old
        _, slope = token_gate(d, logp, old, A, off, P, GATE)
        k = factor(n, shares[0], weights)
        g = tl.where(k == 0, 0.0, k * slope)
        h = 0.0 * logp
        for j in tl.static_range(len(TERMS) // 3):
            k = factor(n, shares[j + 1], extra_weights[j]) * scales[j]
            if TERMS[3 * j] == "Entropy":
                h += k
            else:
                if TERMS[3 * j + 1] == "ref":
                    other = of_token(n, ref_logps)
                elif TERMS[3 * j + 1] == "old":
                    other = old
                else:
                    other = rollout
                _, slope = estimate(logp - other, d, tl.constexpr(TERMS[3 * j]), tl.constexpr(TERMS[3 * j + 2]))
                g += tl.where(k == 0, 0.0, k * slope)
        return g, h


@triton.jit
def tile(row, START: tl.constexpr, SIZE: tl.constexpr, V):
    """A part of a row and its columns; −∞ beyond the row."""
    column = START + tl.arange(0, SIZE)
    return column, tl.load(row + column, mask=column < V, other=float("-inf"))


@triton.jit
def sums(z, column, V, M, c, cap, HAS_ENTROPY: tl.constexpr, HAS_CAP: tl.constexpr):
    """Σ 2^u of a tile and, where entropies are asked for, Σ u 2^u."""
    u = exponents(within(z, column < V, cap, HAS_CAP), c, M, HAS_ENTROPY)
    e = tl.exp2(u)
    t = 0.0
    if HAS_ENTROPY:
        t = tl.sum(e * u, 0)
    return tl.sum(e, 0), t


@triton.jit
def write(row, z, column, V, target, M, c, cap, g, a, b, HAS_ENTROPY: tl.constexpr, HAS_CAP: tl.constexpr):
    """The gradient over a tile, which is not read again."""
    dz, slope = pulled(z.to(tl.float32), M, c, cap, a, b, HAS_ENTROPY, HAS_CAP)
    dz = tl.where(column == target, dz + g, dz) * slope
    tl.store(row + column, dz.to(row.dtype.element_ty), mask=column < V)


@triton.jit
def largest(z, column, V, cap, HAS_CAP: tl.constexpr):
    """The largest logit of a tile."""
    return tl.max(within(z, column < V, cap, HAS_CAP), 0)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=ADDRESSES)
def row_kernel(
    X,
    PLACES,
    TARGETS,
    LOGPS,
    ENTROPIES,
    length,
    stride_b: tl.int64,
    stride_t: tl.int64,
    V,
    origin,
    c,
    cap,
    inverse,
    known,
    constants,
    ref_logps,
    weights,
    shares,
    scales,
    extra_weights,
    P,
    A: tl.constexpr,
    B: tl.constexpr,
    ALIGNED: tl.constexpr,
    GATE: tl.constexpr,
    BASE: tl.constexpr,
    TERMS: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """A cluster a live row. HAS_ENTROPY: entropies are asked for, and h may be other than 0."""
    i = tl.program_id(0).to(tl.int64)
    row = row_of(X, tl.load(PLACES + i), length, stride_b, stride_t, ALIGNED)
    target = tl.load(TARGETS + i)
    # Before anything is reduced: no block of the cluster has written yet.
    hit = tl.load(row + target).to(tl.float32)
    target = target.to(tl.int32)
    columns_a, a = tile(row, 0, A, V)
    most = largest(a, columns_a, V, cap, HAS_CAP)
    if B > 0:
        columns_b, b = tile(row, A, B, V)
        most = tl.maximum(most, largest(b, columns_b, V, cap, HAS_CAP), propagate_nan=tl.PropagateNan.ALL)
    M = tl.maximum(most * c, LEAST, propagate_nan=tl.PropagateNan.ALL)
    s, t = sums(a, columns_a, V, M, c, cap, HAS_ENTROPY, HAS_CAP)
    if B > 0:
        s_b, t_b = sums(b, columns_b, V, M, c, cap, HAS_ENTROPY, HAS_CAP)
        s += s_b
        t += t_b
    log_sum = tl.log2(s)
    logp = (tl.fma(capped(hit, cap, HAS_CAP), c, -M) - log_sum) * LN2
    H = 0.0 * logp
    tl.store(LOGPS + i, logp)
    if HAS_ENTROPY:
        H = (log_sum - t / s) * LN2
        tl.store(ENTROPIES + i, H)
    g, h = settle(
        i,
        origin + i,
        logp,
        known,
        constants,
        ref_logps,
        weights,
        shares,
        scales,
        extra_weights,
        P,
        GATE,
        BASE,
        TERMS,
    )
    g *= inverse
    # Exponents of another shift, so that the compiler makes them anew and does not keep those of a whole row.
    M += log_sum
    first, second = coefficients(g, h * inverse, H, 0.0 * H, HAS_ENTROPY)
    write(row, a, columns_a, V, target, M, c, cap, g, first, second, HAS_ENTROPY, HAS_CAP)
    if B > 0:
        write(row, b, columns_b, V, target, M, c, cap, g, first, second, HAS_ENTROPY, HAS_CAP)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=ADDRESSES)
def sweep_kernel(
    X,
    PLACES,
    TARGETS,
    LOGPS,
    ENTROPIES,
    length,
    stride_b: tl.int64,
    stride_t: tl.int64,
    V,
    origin,
    c,
    cap,
    inverse,
    known,
    constants,
    ref_logps,
    weights,
    shares,
    scales,
    extra_weights,
    P,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    GATE: tl.constexpr,
    BASE: tl.constexpr,
    TERMS: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """A program a live row, in two sweeps: what the first one read last is what the second one reads first."""
    i = tl.program_id(0).to(tl.int64)
    row = row_of(X, tl.load(PLACES + i), length, stride_b, stride_t, VEC > 1)
    target = tl.load(TARGETS + i)
    hit = tl.load(row + target).to(tl.float32)
    target = target.to(tl.int32)
    column = tl.arange(0, BLOCK)
    whole = (V // BLOCK) * BLOCK
    most, log_sum, mean = first_sweep(row, V, c, cap, BLOCK, VEC, LANES, 1, "evict_last", HAS_ENTROPY, HAS_CAP)
    logp = (tl.fma(capped(hit, cap, HAS_CAP), c, -most) - log_sum) * LN2
    H = 0.0 * logp
    tl.store(LOGPS + i, logp)
    if HAS_ENTROPY:
        H = (log_sum - mean) * LN2
        tl.store(ENTROPIES + i, H)
    g, h = settle(
        i,
        origin + i,
        logp,
        known,
        constants,
        ref_logps,
        weights,
        shares,
        scales,
        extra_weights,
        P,
        GATE,
        BASE,
        TERMS,
    )
    g *= inverse
    first, second = coefficients(g, h * inverse, H, log_sum, HAS_ENTROPY)
    # Every warp has read the target's logit before any writes.
    tl.debug_barrier()
    if whole < V:
        edge(row, row, whole, V, target, most, c, cap, g, first, second, BLOCK, HAS_ENTROPY, HAS_CAP)
    for back in range(0, whole, BLOCK):
        start = whole - BLOCK - back
        z = tl.load(row + start + column, eviction_policy="evict_first").to(tl.float32)
        dz, slope = pulled(z, most, c, cap, first, second, HAS_ENTROPY, HAS_CAP)
        if target // BLOCK * BLOCK == start:
            dz = tl.where(start + column == target, dz + g, dz)
        tl.store(row + start + column, (dz * slope).to(X.dtype.element_ty), eviction_policy="evict_first")


@triton.jit(do_not_specialize=NUMBERS[:3], do_not_specialize_on_alignment=["X", "SLOTS", "UPSTREAM"])
def scale_kernel(
    X,
    SLOTS,
    UPSTREAM,
    length,
    stride_b: tl.int64,
    stride_t: tl.int64,
    V,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program a place: live rows times the upstream gradient, unless that is 1."""
    place = tl.program_id(0).to(tl.int64)
    upstream = tl.load(UPSTREAM).to(tl.float32)
    if (upstream != 1.0) & (tl.load(SLOTS + place) >= 0):
        row = row_of(X, place, length, stride_b, stride_t, ALIGNED)
        for start in range(0, V, BLOCK):
            column = start + tl.arange(0, BLOCK)
            z = tl.load(row + column, mask=column < V, other=0.0).to(tl.float32)
            tl.store(row + column, (z * upstream).to(X.dtype.element_ty), mask=column < V)


@triton.jit(do_not_specialize=NUMBERS[:3], do_not_specialize_on_alignment=["X", "SLOTS"])
def zero_kernel(
    X, SLOTS, length, stride_b: tl.int64, stride_t: tl.int64, V, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """A program a place: 0 where nothing lives."""
    place = tl.program_id(0).to(tl.int64)
    if tl.load(SLOTS + place) < 0:
        row = row_of(X, place, length, stride_b, stride_t, ALIGNED)
        for start in range(0, V, BLOCK):
            column = start + tl.arange(0, BLOCK)
            tl.store(row + column, tl.zeros((BLOCK,), X.dtype.element_ty), mask=column < V)


def tiles(V: int) -> tuple[int, int]:
    """A and B, powers of two, that hold a row with the least beyond it; B may be 0."""
    one = triton.next_power_of_2(V)
    a = one // 2
    b = triton.next_power_of_2(V - a) if a < V else 0
    return (a, b) if 0 < b < a else (one, 0)


def why_not_held(V: int, device: torch.device, *, entropy: bool) -> str:
    """Why `row_kernel` cannot take rows of V columns there; empty if it can."""
    if device.type == "cuda" and (torch.version.cuda is None or torch.cuda.get_device_capability(device) < (9, 0)):
        return f"{torch.cuda.get_device_name(device)} has no clusters of thread blocks: Hopper and newer have"
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        return f"Triton {triton.__version__} has no reductions across the blocks of a cluster: 3.9 has"
    # 32 elements a thread, or 40 without entropies: with more of them the compiler spills.
    most = 131_072 if entropy else 163_840
    return f"{V} columns do not fit in the registers of a cluster" if sum(tiles(V)) > most else ""


def cluster(elements: int) -> tuple[int, int]:
    """Blocks in a cluster and warps in a block, both powers of two, for rows of so many elements: 32 for a thread.

    8 blocks are the most that is portable.
    """
    blocks = triton.next_power_of_2(triton.cdiv(elements, 16_384))
    return min(8, blocks), min(16, triton.next_power_of_2(triton.cdiv(elements, 1024)))


def one_pass(
    logits: torch.Tensor,
    places: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    softcap: float | None,
    *,
    formulas: dict[str, Any],
    arguments: tuple[Any, ...],
    origin: int,
    entropy: bool,
    hold: bool,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies, with the logits overwritten by the gradient for an upstream gradient of 1.

    Parameters
    ----------
    logits, places, targets, temperature, softcap
        As in `grpokit.kernels.stats.stats`; rows that are not among the places become 0.
    formulas : dict
        ``GATE``, ``BASE`` and ``TERMS`` as of `grpokit.kernels.coefficients`; a ``GATE`` of None takes `known`.
    arguments : tuple
        (known, constants, ref_logps, weights, shares, scales, extra_weights, P): `known` are g and h of the places,
        the others the whole step's columns and the recipe's numbers.
    origin : int
        Which of the step's live tokens the first place is.
    entropy : bool
        Without it entropies are not written, and h is taken for 0.
    hold : bool
        `row_kernel` or `sweep_kernel`.
    config : Config, optional
        Of `sweep_kernel`, instead of the table's.

    Returns
    -------
    logps, entropies : (N,) fp32
    """
    n, V = len(places), logits.shape[-1]
    logps = torch.empty(n, dtype=torch.float32, device=logits.device)
    entropies = torch.empty_like(logps)
    where, is_aligned = rows(logits), aligned(logits)
    slots = slots_of(places, logits)
    known, *step = arguments
    # What is in a tuple is specialized by its alignment, which a part's columns may not have: no variant for each.
    known = tuple(x if x.data_ptr() % 16 == 0 else x.clone() for x in known)
    with torch.cuda.device_of(logits):
        if n < len(slots):
            zero_kernel[(len(slots),)](logits, slots, *where, V, ALIGNED=is_aligned, BLOCK=4096, num_warps=8)
        if n:
            numbers = math.log2(math.e) / temperature, float(softcap or 1.0), 1.0 / temperature
            given = logits, places, targets, logps, entropies, *where, V, origin, *numbers, known, *step
            how = {**formulas, "HAS_ENTROPY": entropy, "HAS_CAP": softcap is not None}
            if hold:
                a, b = tiles(V)
                blocks, warps = cluster(a + b)
                row_kernel[(n,)](*given, A=a, B=b, ALIGNED=is_aligned, **how, num_warps=warps, num_ctas=blocks)
            else:
                config = config or choose("sweep", logits.device)
                vec = 16 // logits.element_size() if is_aligned else 1
                lanes = min(32 * config.warps, config.block // vec)
                how |= {"BLOCK": config.block, "VEC": vec, "LANES": lanes, "num_warps": config.warps}
                sweep_kernel[(n,)](*given, **how)
    return logps, entropies


def scale(logits: torch.Tensor, places: torch.Tensor, upstream: torch.Tensor) -> None:
    """The gradient times the upstream one, a 0-d tensor that stays on the device."""
    if len(places):
        slots, V = slots_of(places, logits), logits.shape[-1]
        how = {"ALIGNED": aligned(logits), "BLOCK": 4096, "num_warps": 8}
        with torch.cuda.device_of(logits):
            scale_kernel[(len(slots),)](logits, slots, upstream, *rows(logits), V, **how)
