"""What is vocabulary-sized: log π of the targets and entropies from logits, and the gradient back, each in one pass.

In: logits of any layout, the places that count and their targets. Out: a column each. Two back ends do the same: eager
torch, some rows at a time, in fp32 or wider; and the Triton kernels of `grpokit.kernels`. `token_stats` is a custom op
with a derivative, so that a loss on its columns carries on to the logits; `TokenStats` is the same where the gradient
may overwrite them, or where they are a shard of the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .door import check_floats
from .errors import error
from .kernel_choice import backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .batch import TokenBatch

# Of the logarithms in the state that a back end keeps of a row.
BASE = {"eager": math.e, "two_kernel": 2.0}
# What a tensor is marked with when it is overwritten: its version then.
OVERWRITTEN = "_grpokit_overwritten"
# Entries of the logits that eager torch works on at a time, in fp32 or wider: what a CPU's cache holds. A GPU takes 64
# times as many, so that starting kernels costs nothing.
CHUNK = 2**20


@dataclass(frozen=True)
class VocabularyShard:
    """The columns of the vocabulary that this rank has, where the logits are split over the ranks of a group.

    Parameters
    ----------
    first : int
        The token id of this rank's first column.
    vocabulary : int
        How many columns all ranks have together.
    group : torch.distributed.ProcessGroup, optional
        Those ranks; all of them when not given. Each has the same batch, and gets the same loss.
    """

    first: int
    vocabulary: int
    group: Any = None

    def combine(self, logps: Tensor, entropies: Tensor, state: Tensor, base: float) -> tuple[Tensor, Tensor, Tensor]:
        """The whole vocabulary's columns from those of each shard: one all-gather of four numbers a token.

        With q_r the share of shard r, log π = log π_r + log q_r on the shard that has the target, and
        H = Σ_r q_r (H_r − log q_r). `base` is that of the state's logarithms.
        """
        import torch.distributed as dist

        mine = torch.stack([logps, entropies, *state.unbind(1)])
        found = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(found, mine, group=self.group)
        logp, H, shift, log_sum = torch.stack(found, 1)
        most = shift.amax(0)
        log_share = (shift - most + log_sum) * math.log(base)
        total = log_share.logsumexp(0)
        log_q = log_share - total
        # A shard of −∞ alone takes no part; NaN passes.
        empty = log_q == -torch.inf
        entropies = torch.where(empty, 0.0, log_q.exp() * (H - log_q)).sum(0)
        logps = torch.where(empty, -torch.inf, logp + log_q).amax(0)
        return logps, entropies, torch.stack([most, total / math.log(base)], 1)


class Reader:
    """Reads a batch's live tokens from logits.

    Parameters
    ----------
    logits : (*batch.shape, V) float
        What will be read, or one like it.
    batch : TokenBatch
        Its targets, its layout and its temperature.
    softcap, shard, inplace, kernel
        As in `grpokit.loss.from_logits`.

    Raises
    ------
    InputError
        `token_shape`, `target_range`, `bad_parameter`, `no_kernel`.
    InputTypeError
        `token_type`, `sharded_tensor`.
    StateError
        `overwritten_logits`.
    """

    def __init__(
        self,
        logits: Tensor,
        batch: TokenBatch,
        *,
        softcap: float | None = None,
        shard: VocabularyShard | None = None,
        inplace: bool = False,
        kernel: str = "auto",
    ) -> None:
        check_floats("logits", logits, batch)
        if logits.dim() != len(batch.shape) + 1 or logits.shape[:-1] != batch.shape:
            expected = f"{(*batch.shape, 'V')}, a row for every place of the batch"
            raise error("token_shape", name="logits", given=tuple(logits.shape), expected=expected)
        if hasattr(logits, "full_tensor"):
            remedy = "Give logits.to_local() and shard=VocabularyShard(...), or logits.full_tensor()."
            raise error("sharded_tensor", name="logits", remedy=remedy)
        version = getattr(logits, OVERWRITTEN, None)
        if version is not None and version == logits._version:
            raise error("overwritten_logits")
        if inplace and shares_memory(logits):
            expected = "False: some of these logits share their memory, as expanded ones do"
            raise error("bad_parameter", owner="the loss", name="inplace", given=inplace, expected=expected)
        if shard is not None:
            _check_shard(shard, logits.shape[-1])
        check_numbers(batch, logits.shape[-1] if shard is None else shard.vocabulary, softcap)
        self.batch, self.softcap, self.shard, self.kernel = batch, softcap, shard, backend(kernel, logits)
        self.inplace = inplace

    def read(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the live tokens, with a way back to the logits."""
        first = 0 if self.shard is None else self.shard.first
        how = self.batch.temperature, self.softcap, first, "eager" if self.kernel == "eager" else "two_kernel"
        inputs = logits, self.batch.live.index, self.batch.columns["targets"], *how
        inplace = self.inplace and not why_not_in_place()
        if inplace or self.shard is not None:
            logps, entropies, _ = TokenStats.apply(inplace, self.shard, *inputs)
        else:
            logps, entropies, _ = torch.ops.grpokit.token_stats(*inputs)
        return logps, entropies


def why_not_in_place() -> str:
    """Why nothing may be overwritten here; empty if it may.

    Autograd tells whoever needs overwritten logits by their version, which it looks at neither where hooks keep what is
    saved nor between compiled graphs: their reader would take the gradient for them.
    """
    if torch.compiler.is_compiling():
        return "torch.compile traces it"
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(""):
            return ""
    except RuntimeError:
        return "hooks keep what autograd saves, as under checkpoint(use_reentrant=False)"


def overwritten(logits: Tensor) -> None:
    """Tells autograd, and `Reader`, that the gradient is where the logits were."""
    torch.autograd.graph.increment_version(logits)
    setattr(logits, OVERWRITTEN, logits._version)


def shares_memory(x: Tensor) -> bool:
    """Whether several entries may lie in one place."""
    reach = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and x.numel():
            if stride < reach:
                return True
            reach += stride * (size - 1)
    return False


def check_numbers(batch: TokenBatch, vocabulary: int, softcap: float | None) -> None:
    """Refuses targets beyond the vocabulary, and a soft cap that is none."""
    for value in batch.target_range:
        if not 0 <= value < vocabulary and batch.whole.live_tokens:
            raise error("target_range", value=value, vocabulary=vocabulary, last=vocabulary - 1)
    if softcap is not None and not (isinstance(softcap, int | float) and 0 < softcap < math.inf):
        expected = "a number more than 0, or None"
        raise error("bad_parameter", owner="the loss", name="softcap", given=softcap, expected=expected)


def _check_shard(shard: object, columns: int) -> None:
    """Refuses what is no shard of so many columns."""
    if not isinstance(shard, VocabularyShard):
        expected = "a VocabularyShard, or None"
        raise error("bad_parameter", owner="the loss", name="shard", given=shard, expected=expected)
    if not 0 <= shard.first <= shard.vocabulary - columns:
        expected = f"from 0 to {shard.vocabulary - columns}, for {columns} columns of {shard.vocabulary}"
        raise error("bad_parameter", owner="VocabularyShard", name="first", given=shard.first, expected=expected)


@torch.library.custom_op("grpokit::token_stats", mutates_args=())
def token_stats(
    logits: Tensor,
    places: Tensor,
    targets: Tensor,
    temperature: float,
    softcap: float | None = None,
    first: int = 0,
    kernel: str = "eager",
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and entropies of some rows of the logits.

    Parameters
    ----------
    logits : (..., V) float
        Before the temperature.
    places : (N,) int64, ascending
        The rows that count, numbered through.
    targets : (N,) int64
        Token ids; outside of first ... first + V − 1 log π is −∞.
    temperature : float
        τ.
    softcap : float, optional
        z becomes softcap · tanh(z / softcap) before that.
    first : int
        The token id of the first column.
    kernel : {"eager", "two_kernel"}
        What computes it; see `backend`.

    Returns
    -------
    logps, entropies : (N,) fp32 or wider
        In nats, differentiable.
    state : (N, 2)
        The largest logit and the logarithm of the sum of exponentials under it, in the back end's own base.
    """
    if kernel == "two_kernel":
        from .kernels.stats import stats

        return stats(logits, places, targets, temperature, softcap, first=first)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logps = torch.empty(len(places), dtype=dtype, device=logits.device)
    entropies = torch.empty_like(logps)
    state = torch.empty((len(places), 2), dtype=dtype, device=logits.device)
    for at, z, _ in _chunks(logits, places, temperature, softcap):
        # Finite, so that a row of −∞ has a sum of 0, as a shard of padding has; alone it makes log π NaN.
        most = z.amax(1)
        most = torch.where(most == -torch.inf, torch.finfo(z.dtype).min, most)
        u = z.sub_(most[:, None])
        e = u.exp()
        total = e.sum(1)
        log_sum = total.log()
        entropies[at] = log_sum - e.mul_(torch.where(u > -torch.inf, u, 0.0)).sum(1) / total
        target, inside = _columns(targets[at], first, logits.shape[-1])
        logps[at] = torch.where(inside, u.gather(1, target[:, None]).squeeze(1) - log_sum, -torch.inf)
        state[at] = torch.stack([most, log_sum], 1)
    return logps, entropies, state


@token_stats.register_fake
def _(logits: Tensor, places: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    n = places.shape[0]
    return tuple(logits.new_empty(shape, dtype=dtype) for shape in ((n,), (n,), (n, 2)))  # type: ignore[return-value]


@torch.library.custom_op("grpokit::logits_gradient", mutates_args=())
def logits_gradient(
    logits: Tensor,
    places: Tensor,
    targets: Tensor,
    state: Tensor,
    entropies: Tensor,
    g: Tensor,
    h: Tensor | None,
    temperature: float,
    softcap: float | None = None,
    first: int = 0,
    kernel: str = "eager",
) -> Tensor:
    """∂LOSS/∂logits, contiguous: rows that are not among the places are 0.

    Parameters
    ----------
    logits, places, targets, temperature, softcap, first, kernel
        As in `token_stats`.
    state, entropies
        What that returned.
    g, h : (N,)
        ∂LOSS/∂log π and ∂LOSS/∂H; None is 0.
    """
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    write_gradient(out, logits, places, targets, state, entropies, g, h, temperature, softcap, first, kernel)
    return out


@logits_gradient.register_fake
def _(logits: Tensor, *rest: Any, **more: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def write_gradient(
    out: Tensor,
    logits: Tensor,
    places: Tensor,
    targets: Tensor,
    state: Tensor,
    entropies: Tensor,
    g: Tensor,
    h: Tensor | None,
    temperature: float,
    softcap: float | None,
    first: int,
    kernel: str,
) -> None:
    """The gradient into `out`, which may be the logits."""
    if kernel == "two_kernel":
        from .kernels.gradient import gradient

        gradient(logits, out, places, targets, state, entropies, g, h, temperature, softcap, first=first)
        return
    total = out.shape[:-1].numel()
    if len(places) < total:
        live = torch.zeros(total, dtype=torch.bool, device=out.device).index_fill_(0, places, True)
        out.masked_fill_(~live.view(*out.shape[:-1], 1), 0)
    for at, z, slope in _chunks(logits, places, temperature, softcap):
        log_p = z.sub_(state[at, :1]).sub_(state[at, 1:])
        pull = -g[at, None]
        if h is not None:
            pull = pull - h[at, None] * (torch.where(log_p > -torch.inf, log_p, 0.0) + entropies[at, None])
        dz = log_p.exp_().mul_(pull)
        target, inside = _columns(targets[at], first, logits.shape[-1])
        dz.scatter_add_(1, target[:, None], torch.where(inside, g[at], 0.0)[:, None])
        out[rows_at(places[at], out)] = dz.mul_(slope).to(out.dtype)


def _chunks(
    logits: Tensor, places: Tensor, temperature: float, softcap: float | None
) -> Iterator[tuple[slice, Tensor, Tensor | float]]:
    """Some rows at a time: where they are, the logits as the softmax takes them, and their slope by the given ones."""
    rows = at_a_time(logits)
    for start in range(0, len(places), rows):
        at = slice(start, start + rows)
        z = logits[rows_at(places[at], logits)]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        slope: Tensor | float = 1 / temperature
        if softcap is not None:
            y = z.div_(softcap).tanh_()
            slope, z = (1 - y * y) / temperature, y * softcap
        yield at, z.div_(temperature), slope


def at_a_time(logits: Tensor) -> int:
    """How many rows eager torch works on at a time."""
    return max(1, CHUNK * (64 if logits.is_cuda else 1) // max(1, logits.shape[-1]))


def rows_at(places: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
    """The index of some rows. By (row, column): logits[:, :-1] is no copy of the logits, and must not become one."""
    return (places,) if logits.dim() == 2 else (places // logits.shape[1], places % logits.shape[1])


def _columns(targets: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """The targets' columns, any column for those that are not here, and which are."""
    column = targets - first
    inside = (column >= 0) & (column < size)
    return torch.where(inside, column, 0), inside


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, places, targets, *ctx.how = inputs
    _, entropies, state = output
    ctx.mark_non_differentiable(state)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, places, targets, state, entropies)


def _kept(ctx: Any, g: Tensor | None, h: Tensor | None) -> tuple[Any, ...]:
    """What the gradient is written from: what `_keep` kept, and the two coefficients."""
    *saved, entropies = ctx.saved_tensors
    g = torch.zeros_like(entropies) if g is None else g.contiguous()
    return *saved, entropies, g, None if h is None else h.contiguous(), *ctx.how


def _backward(ctx: Any, g: Tensor | None, h: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if g is None and h is None:
        return (None,) * 7
    return torch.ops.grpokit.logits_gradient(*_kept(ctx, g, h)), *(None,) * 6


token_stats.register_autograd(_backward, setup_context=_keep)


class TokenStats(torch.autograd.Function):
    """`token_stats` of a whole vocabulary of which the logits may be a shard, and whose gradient may overwrite them."""

    @staticmethod
    def forward(ctx: Any, inplace: bool, shard: VocabularyShard | None, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output: tuple[Tensor, Tensor, Tensor] = torch.ops.grpokit.token_stats(*inputs)
        if shard is not None:
            output = shard.combine(*output, BASE[inputs[-1]])
        _keep(ctx, inputs, output)
        ctx.inplace = inplace
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor | None, h: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if not ctx.inplace:
            return None, None, *_backward(ctx, g, h, None)
        # Reading them again after they were overwritten is torch's own error: their version says so.
        logits, *kept = _kept(ctx, g, h)
        out = logits.detach()
        write_gradient(out, out, *kept)
        overwritten(logits)
        return None, None, out, *(None,) * 6
