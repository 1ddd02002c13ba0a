"""One read of the logits: log π of the target, the entropy, and the state of the row's softmax. 2 bytes an element.

In: logits (T, V) or (B, T, V) of any row strides, bf16, fp16 or fp32; the places that count, and their targets. Out:
one fp32 column each. One program owns a row; nothing depends on how many rows there are.
"""

import math

import torch
import triton
import triton.language as tl

from .softmax import LN2, capped, first_sweep, row_of
from .table import Config, choose

# A launch has a variant for whether its rows are aligned, and for V; these numbers and addresses make no further ones.
NUMBERS = ["length", "stride_b", "stride_t", "first"]
ADDRESSES = ["X", "PLACES", "TARGETS", "LOGPS", "ENTROPIES", "STATE"]


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=ADDRESSES)
def stats_kernel(
    X,
    PLACES,
    TARGETS,
    LOGPS,
    ENTROPIES,
    STATE,
    length,
    stride_b: tl.int64,
    stride_t: tl.int64,
    V,
    first,
    c,
    cap,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """log π = (z c − M − log2 Σ 2^u) ln 2 and H = (log2 Σ 2^u − Σ u 2^u / Σ 2^u) ln 2."""
    i = tl.program_id(0).to(tl.int64)
    row = row_of(X, tl.load(PLACES + i), length, stride_b, stride_t, VEC > 1)
    most, log_sum, mean = first_sweep(row, V, c, cap, BLOCK, VEC, LANES, STAGES, "", HAS_ENTROPY, HAS_CAP)
    target = tl.load(TARGETS + i) - first
    inside = (target >= 0) & (target < V)
    z = capped(tl.load(row + target, mask=inside, other=0.0).to(tl.float32), cap, HAS_CAP)
    logp = (tl.fma(z, c, -most) - log_sum) * LN2
    tl.store(LOGPS + i, tl.where(inside, logp, float("-inf")))
    tl.store(STATE + 2 * i, most)
    tl.store(STATE + 2 * i + 1, log_sum)
    if HAS_ENTROPY:
        tl.store(ENTROPIES + i, (log_sum - mean) * LN2)


def stats(
    logits: torch.Tensor,
    places: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    softcap: float | None = None,
    *,
    first: int = 0,
    entropy: bool = True,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs, entropies and the softmax's state of some rows.

    Parameters
    ----------
    logits : (T, V) or (B, T, V)
        bf16, fp16 or fp32, neighbours in the last dimension.
    places : (N,) int64
        The rows that count, numbered through.
    targets : (N,) int64
        Token ids; what lies outside of these V columns has log π = −∞.
    temperature : float
        What the logits are divided by.
    softcap : float, optional
        z becomes softcap · tanh(z / softcap) before that.
    first : int
        The token id of the first column, in a shard of a vocabulary.
    entropy : bool
        Without it the entropies are not written.
    config : Config, optional
        Instead of the table's.

    Returns
    -------
    logps, entropies : (N,) fp32
        In nats.
    state : (N, 2) fp32
        M and log2 Σ 2^(z c − M), of z c = z log2(e) / temperature.
    """
    n = len(places)
    logps = torch.empty(n, dtype=torch.float32, device=logits.device)
    entropies = torch.empty_like(logps)
    state = torch.empty((n, 2), dtype=torch.float32, device=logits.device)
    if n:
        length, stride_b, stride_t = rows(logits)
        config = config or choose("stats", logits.device)
        # Where a row may start anywhere its logits are loaded one by one, and a thread's are no neighbours.
        vec = 16 // logits.element_size() if aligned(logits) else 1
        with torch.cuda.device_of(logits):
            stats_kernel[(n,)](
                logits,
                places,
                targets,
                logps,
                entropies,
                state,
                length,
                stride_b,
                stride_t,
                logits.shape[-1],
                first,
                math.log2(math.e) / temperature,
                float(softcap or 1.0),
                BLOCK=config.block,
                VEC=vec,
                LANES=min(32 * config.warps, config.block // vec),
                STAGES=config.stages,
                HAS_ENTROPY=entropy,
                HAS_CAP=softcap is not None,
                num_warps=config.warps,
            )
    return logps, entropies, state


def rows(logits: torch.Tensor) -> tuple[int, int, int]:
    """How `row_of` finds a row: the length of the inner dimension and the two strides."""
    if logits.dim() == 2:
        return 1, logits.stride(0), 0
    return logits.shape[1], logits.stride(0), logits.stride(1)


def aligned(logits: torch.Tensor) -> bool:
    """Whether every row starts at a multiple of 16 bytes, as loading that many at a time needs."""
    starts = logits.data_ptr(), *(logits.element_size() * stride for stride in logits.stride()[:-1])
    return not any(start % 16 for start in starts)
