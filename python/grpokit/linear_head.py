"""The LM head in one workspace: the logits of some rows at a time, and the gradient that is written over them.

In: hidden states x in a batch's layout, the weight W, (V, H). Out: log-probs and entropies of the live tokens, and from
their coefficients the gradients of x and W. Three GEMMs: the logits x Wᵀ; of δ = ∂LOSS/∂logits, which replaces them,
δ W for the hidden states and Σ_t δ_tᵀ x_t for the weight, summed in fp32 or wider. Masked rows are in none of them,
rows with g = h = 0 in the first alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .door import MADE, check_floats
from .errors import error
from .kernel_choice import ONE_PASS, backend
from .vocabulary import at_a_time, check_numbers, rows_at, write_gradient

if TYPE_CHECKING:
    from .batch import TokenBatch


class Head:
    """The live rows of the hidden states, and a workspace for the logits of some of them.

    Parameters
    ----------
    hidden : (*batch.shape, H) float
        Of any row strides.
    weight : (V, H), like hidden
        The LM head's.
    batch : TokenBatch
        Its targets, its layout and its temperature.
    softcap, workspace_bytes, kernel
        As in `grpokit.loss.from_hidden`.
    to_hidden, to_weight : bool
        Which gradients `carry_back` computes.

    Attributes
    ----------
    columns : dict of (T,) fp32 or wider
        ``logps`` and ``entropies`` of the live tokens; 0 where they were not read yet.
    workspace : (R, V), like weight
        The logits of R rows at most, or their gradient.
    kernel : str
        What reads and writes them.

    Raises
    ------
    InputError
        `token_shape`, `target_range`, `bad_parameter`, `no_kernel`.
    InputTypeError
        `token_type`, `sharded_tensor`.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        batch: TokenBatch,
        *,
        softcap: float | None,
        workspace_bytes: int,
        kernel: str,
        to_hidden: bool = False,
        to_weight: bool = False,
    ) -> None:
        check_hidden(hidden, batch)
        _check_weight(weight, hidden, batch)
        V, T = len(weight), batch.live_tokens
        check_numbers(batch, V, softcap)
        row = max(1, V * weight.element_size())
        if not isinstance(workspace_bytes, int) or workspace_bytes < row:
            expected = f"an int, at least {row}: a row of {V} logits"
            raise error(
                "bad_parameter", owner="the loss", name="workspace_bytes", given=workspace_bytes, expected=expected
            )
        self.batch, self.hidden, self.weight = batch, hidden.detach(), weight.detach()
        self.rows = workspace_bytes // row
        self.workspace = self.weight.new_empty(min(self.rows, T), V)
        self.kernel = backend(kernel, self.workspace)
        if kernel in ONE_PASS:
            why, remedy = (
                "the logits of a head are read and overwritten by two kernels",
                " Take 'two_kernel' or 'auto'.",
            )
            raise error("no_kernel", what=f"kernel={kernel!r}", why=why, remedy=remedy)
        if self.kernel in ONE_PASS:
            # The environment's, for other calls.
            self.kernel = "two_kernel"
        self.how = batch.temperature, softcap, 0, self.kernel
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.columns = {name: self.weight.new_zeros(T, dtype=wide) for name in MADE}
        self.state = self.weight.new_zeros((T, 2), dtype=wide)
        self.to_hidden = self.hidden.new_zeros(hidden.shape) if to_hidden else None
        # A single product is rounded once anyway: the sum of several is what needs more than the weight's own dtype.
        dtype = weight.dtype if self.rows >= T else wide
        self.to_weight = self.weight.new_empty(weight.shape, dtype=dtype) if to_weight else None
        self.products = 0

    def cut(self, rows: slice) -> list[slice]:
        """Live rows, as many at a time as the workspace has room for; what is left over comes first."""
        ends = range(rows.stop, rows.start, -self.rows)
        return [slice(max(rows.start, end - self.rows), end) for end in reversed(ends)]

    def project(self, at: slice) -> Tensor:
        """The logits of some live rows, in place of those that were in the workspace."""
        logits = self.workspace[: at.stop - at.start]
        return torch.mm(self._gather(self.batch.live.index[at]), self.weight.T, out=logits)

    def read(self, at: slice) -> None:
        """The logits of some live rows, and their columns."""
        logits = self.project(at)
        places = torch.arange(len(logits), device=logits.device)
        targets = self.batch.columns["targets"][at]
        found = torch.ops.grpokit.token_stats(logits, places, targets, *self.how)
        for column, x in zip((*self.columns.values(), self.state), found, strict=True):
            column[at] = x

    def carry_back(self, at: slice, g: Tensor, h: Tensor | None) -> None:
        """The gradients of the rows whose logits are in the workspace, which is overwritten.

        Parameters
        ----------
        at : slice
            The live rows.
        g, h : tensors of their number
            ∂LOSS/∂log π and ∂LOSS/∂H; None is 0.
        """
        # The host waits for the device here: a GEMM must be told how many rows it has.
        there = (g != 0 if h is None else (g != 0) | (h != 0)).cpu()
        kept = int(there.sum())
        if not kept:
            return
        # Of the rows to keep, those beyond the first `kept` places move to where a row is not kept; the rest stays.
        holes, movers = (~there[:kept]).nonzero().squeeze(1), kept + there[kept:].nonzero().squeeze(1)
        order = torch.arange(kept).index_copy_(0, holes, movers).to(g.device)
        holes, movers, step = holes.to(g.device), movers.to(g.device), at_a_time(self.workspace)
        for some in range(0, len(holes), step):
            moved = self.workspace.index_select(0, movers[some : some + step])
            self.workspace.index_copy_(0, holes[some : some + step], moved)
        dz, rows, places = self.workspace[:kept], at.start + order, torch.arange(kept, device=g.device)
        targets, entropies = self.batch.columns["targets"][rows], self.columns["entropies"][rows]
        h = None if h is None else h[order]
        write_gradient(dz, dz, places, targets, self.state[rows], entropies, g[order], h, *self.how)
        index = self.batch.live.index[rows]
        if self.to_hidden is not None:
            self.to_hidden.view(-1, self.hidden.shape[-1]).index_copy_(0, index, dz @ self.weight)
        if self.to_weight is not None:
            _add_product(self.to_weight, dz.T, self._gather(index), beta=min(self.products, 1))
        self.products += 1

    @property
    def backward(self) -> bool:
        """Whether any gradient is asked for."""
        return self.to_hidden is not None or self.to_weight is not None

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of hidden states and weight, when all rows were carried back; None where not asked for."""
        total = self.to_weight
        if total is not None:
            total = total.to(self.weight.dtype) if self.products else torch.zeros_like(self.weight)
        return self.to_hidden, total

    def _gather(self, places: Tensor) -> Tensor:
        return self.hidden[rows_at(places, self.hidden)]


def _add_product(total: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """Makes the total beta · total + a b, rounded to nothing narrower than its dtype on the way; 0 writes over NaN."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=beta)
    elif total.is_cuda and torch.version.cuda is not None:
        torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
    else:
        # No GEMM of other devices widens. Some rows at a time: a second tensor of the size of `a` is what must not be.
        for some in range(0, len(a), 1024):
            at = slice(some, some + 1024)
            total[at].addmm_(a[at].to(total.dtype), b.to(total.dtype), beta=beta)


def check_hidden(hidden: Tensor, batch: TokenBatch) -> None:
    """Refuses what are no hidden states of the batch."""
    if hasattr(hidden, "full_tensor"):
        raise error("sharded_tensor", name="hidden", remedy="Give all of its rows, as a plain tensor.")
    check_floats("hidden", hidden, batch)
    if hidden.dim() != len(batch.shape) + 1 or hidden.shape[:-1] != batch.shape:
        expected = f"{(*batch.shape, 'H')}, a row for every place of the batch"
        raise error("token_shape", name="hidden", given=tuple(hidden.shape), expected=expected)


def _check_weight(weight: Tensor, hidden: Tensor, batch: TokenBatch) -> None:
    if hasattr(weight, "full_tensor"):
        remedy = (
            "Call lm_head.unshard() before, or give weight.full_tensor(grad_placements=[Partial('avg')]): without "
            "grad_placements every rank keeps a gradient of its own."
        )
        raise error("sharded_tensor", name="weight", remedy=remedy)
    check_floats("weight", weight, batch)
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        expected = f"('V', {hidden.shape[-1]}): a row for every token id, as wide as hidden"
        raise error("token_shape", name="weight", given=tuple(weight.shape), expected=expected)
    if weight.dtype != hidden.dtype:
        raise error("token_type", name="weight", given=weight.dtype, expected=f"{hidden.dtype}, like hidden")
