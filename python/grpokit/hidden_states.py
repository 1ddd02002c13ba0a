"""The loss from hidden states and the LM head's weight: the logits of all tokens are never there together.

In: the last hidden states in the batch's layout, the weight (V, H), a recipe. Out: a loss whose gradients are known
when it is returned. The logits of some live tokens at a time lie in one workspace, whose size the caller bounds.

Three GEMMs are enough where the coefficients of the rows in the workspace follow from these rows. A recipe whose stages
have token scope takes any rows; so does every recipe where nothing moves that it reads of a sequence, as on-policy
without `old_logps`, where r = 1; so do coefficients that `observe` made ready. Sequence scope takes whole sequences,
batch scope the whole batch, and what does not fit is multiplied twice: a first sweep for the log-probs, a second for
the gradient, which finds the last rows of the first still there. Four GEMMs, less these rows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .door import LossOutput, columns_door, of_policy, run, sequence_log_weights, take_ready
from .equation import Coefficients, coefficients, needs_first_pass
from .errors import error
from .kernel_choice import backend
from .linear_head import Head, check_hidden
from .metrics import measure
from .vocabulary import rows_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._recipe import Recipe
    from .batch import TokenBatch

    Provider = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor | None]]

# 7,067 rows of 151,936 bf16 logits. The fp32 sum of the weight's gradient is read and written once a workspace: 8 bytes
# an entry beside 6 FLOP an entry and row, 245 / rows of the GEMMs' time at 4.3 TB/s and 790 TFLOP/s, 3.5 % here.
WORKSPACE_BYTES = 2**31


def from_hidden(
    hidden: Tensor,
    weight: Tensor,
    batch: TokenBatch,
    recipe: Recipe,
    *,
    softcap: float | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
    provider: Provider | None = None,
    kernel: str = "auto",
    **columns: Tensor,
) -> LossOutput:
    """The loss from the last hidden states, which the LM head would make logits of: hidden @ weight.T.

    Parameters
    ----------
    hidden : (*batch.shape, H), float
        ``hidden[t]`` predicts ``targets[t]``. Rows may have any strides. fp64, fp32 or bf16; of fp16 the gradients are
        computed before a gradient scaler scales them.
    weight : (V, H), like hidden
        The LM head's, without bias. Without ``requires_grad`` its gradient is not computed.
    batch, recipe, softcap, kernel, **columns
        As in `from_logits`; the kernels of one pass are not among them.
    workspace_bytes : int
        What the logits that are there at a time may take. The less, the more often the sum of the weight's gradient is
        read and written; see also the notes. Beside them there are the gradients, and that of the weight in fp32 while
        it is summed over several workspaces.
    provider : callable, optional
        ``(hidden (N, H), weight, targets (N,), temperature) -> (logps (N,), entropies (N,))`` of the live tokens,
        differentiable by autograd: another fused linear layer, in place of all that is here. It is given the weight as
        it is; its entropies may be None where the recipe does not read them.

    Returns
    -------
    LossOutput
        ``metrics["kernel"]`` says what read the logits, or "provider".

    Raises
    ------
    InputError
        `bad_parameter`: the workspace has no room for one row, a soft cap with a provider; `stage_result`: what the
        provider returned; and those of `from_logits`.
    InputTypeError
        `sharded_tensor`, and those of `from_logits`.
    StateError
        `not_observed`.

    Notes
    -----
    The gradients are computed here, and `backward` multiplies them by what comes from above, on the device. With
    W = weight, x = hidden and δ = ∂LOSS/∂logits as in `from_logits`: ∂LOSS/∂x = δ W, ∂LOSS/∂W = Σ_t δ_tᵀ x_t. The host
    waits for the device once a workspace, to learn how many rows have a gradient.

    Under autocast both are cast, as a linear layer does it.

    Examples
    --------
    >>> import grpokit as gk
    >>> batch = gk.TokenBatch(targets=torch.tensor([[4, 2]]), advantages=torch.tensor([1.0]))
    >>> hidden, weight = torch.ones(1, 2, 3, requires_grad=True), torch.zeros(5, 3, requires_grad=True)
    >>> gk.loss.from_hidden(hidden, weight, batch, gk.recipe("rloo")).loss.backward()
    >>> weight.grad[:, 0]
    tensor([ 0.4000,  0.4000, -0.6000,  0.4000, -0.6000])
    """
    names, given = tuple(columns), tuple(columns.values())
    if provider is not None:
        made = _provided(provider, hidden, weight, batch, softcap)
        door = columns_door(batch, len(made), names, recipe)
        for term in recipe.terms:
            if "entropies" in term.objective.reads and made[0].requires_grad and not made[-1].requires_grad:
                expected = f"what autograd can differentiate: {type(term.objective).__name__} is a term of them"
                raise error("stage_result", stage="the provider", given="entropies without gradient", expected=expected)
        out = run(door, *made, *given, fused=backend("auto", made[0]) != "eager")
        out.metrics["kernel"] = "provider"
        return out
    door = columns_door(batch, 0, names, recipe)
    hidden, weight = (_as_autocast(x, batch.device.type) for x in (hidden, weight))
    to_hidden, to_weight = (torch.is_grad_enabled() and getattr(x, "requires_grad", False) for x in (hidden, weight))
    how: dict[str, Any] = {"softcap": softcap, "workspace_bytes": workspace_bytes, "kernel": kernel}
    head = Head(hidden, weight, batch, **how, to_hidden=to_hidden, to_weight=to_weight)
    with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
        current = head.columns | door.read(given)
        result = _run(head, recipe, current)
        metrics = measure(batch, recipe, current, result) | {"kernel": head.kernel}
        log_weights = sequence_log_weights(batch, current["logps"])
        gradients = [*head.gradients(), *door.write(result.gradients, given)]
    loss: Tensor = _Known.apply(result.loss, gradients, hidden, weight, *given)
    return LossOutput(loss, metrics, log_weights, of_policy(current))


@torch.no_grad()
def read_columns(
    hidden: Tensor,
    weight: Tensor,
    batch: TokenBatch,
    *,
    softcap: float | None,
    workspace_bytes: int,
    provider: Provider | None,
    kernel: str,
) -> tuple[Tensor, ...]:
    """Log-probs of the live tokens and, where they are known, entropies; without gradients."""
    if provider is not None:
        return _provided(provider, hidden, weight, batch, softcap)
    hidden, weight = (_as_autocast(x, batch.device.type) for x in (hidden, weight))
    head = Head(hidden, weight, batch, softcap=softcap, workspace_bytes=workspace_bytes, kernel=kernel)
    with torch.autocast(batch.device.type, enabled=False):
        for at in head.cut(slice(0, batch.live_tokens)):
            head.read(at)
    return tuple(head.columns.values())


class _Known(torch.autograd.Function):
    """A loss whose gradients are known: the backward pass scales them."""

    @staticmethod
    def forward(ctx: Any, loss_T: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss_T.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * upstream for g in ctx.saved_tensors)


def _run(head: Head, recipe: Recipe, current: Mapping[str, Tensor]) -> Coefficients:
    """The coefficients of all live tokens; the head's columns, which are among the current ones, and its gradients."""
    batch = head.batch
    ready = take_ready(batch, recipe)
    if ready is None and needs_first_pass(batch, recipe):
        raise error("not_observed", recipe=f"recipe {recipe.name!r}")
    all_rows = slice(0, batch.live_tokens)
    if not head.backward or not batch.live_tokens:
        spans = [all_rows]
    elif ready is not None or _by_token(batch, recipe, current):
        spans = head.cut(all_rows)
    else:
        spans = [all_rows] if batch.needs_whole(recipe) else _sequences(batch, head.rows)
    found = []
    for span in spans:
        chunks = head.cut(span)
        for at in chunks:
            head.read(at)
        made = _of_rows(batch, recipe, current, span) if ready is None else ready.part(span)
        found.append(made)
        if head.backward:
            for at in reversed(chunks):
                if at is not chunks[-1]:
                    head.project(at)
                own = made.part(slice(at.start - span.start, at.stop - span.start)).gradients
                head.carry_back(at, own["logps"], own["entropies"] if recipe.reads("entropies") else None)
    return Coefficients.joined(found)


def _sequences(batch: TokenBatch, rows: int) -> list[slice]:
    """Whole sequences, as many at a time as have so many live rows, and one at least."""
    starts, cuts = _starts(batch), [0]
    for start, stop in pairwise(starts):
        if stop - cuts[-1] > rows and start > cuts[-1]:
            cuts.append(start)
    return [slice(a, b) for a, b in pairwise([*cuts, starts[-1]])]


def _of_rows(batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor], at: slice) -> Coefficients:
    """The coefficients of some live rows, from the sequences that they are of.

    What is not known yet of these sequences' other rows is 0, and `_by_token` says that nothing follows from it.
    """
    if at == slice(0, batch.live_tokens):
        return coefficients(batch, recipe, current)
    starts = _starts(batch)
    first, last = bisect_right(starts, at.start) - 1, bisect_left(starts, at.stop)
    part = batch.whole._part(batch.rows.start + first, batch.rows.start + last)
    result = coefficients(part, recipe, {name: x[starts[first] : starts[last]] for name, x in current.items()})
    return result.part(slice(at.start - starts[first], at.stop - starts[first]))


def _starts(batch: TokenBatch) -> list[int]:
    """Where the live tokens of each sequence start, and the end."""
    starts = batch.whole.live.starts[batch.rows.start : batch.rows.stop + 1]
    return [start - starts[0] for start in starts]


def _by_token(batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor]) -> bool:
    """Whether a token's coefficients follow from that token: of nothing that moves is a sequence looked at."""
    if batch.needs_whole(recipe):
        return False
    moves, on_policy = set(current), "old_logps" not in batch.columns
    if on_policy:
        moves.add("old_logps")
    if not on_policy or recipe.ratio != "old":
        moves.add("log_ratio")
    for term in recipe.terms:
        moving = [stage for stage in batch.late(term) if stage.reads & moves]
        if any(stage.scope != "token" for stage in moving):
            return False
        if term.objective.scope != "token" and (moving or term.objective.reads & moves):
            return False
    return True


def _provided(
    provider: Provider, hidden: Tensor, weight: Tensor, batch: TokenBatch, softcap: float | None
) -> tuple[Tensor, ...]:
    """What the provider makes of the live rows, in fp32 or wider."""
    check_hidden(hidden, batch)
    if softcap is not None:
        expected = "None: a provider does what its model needs by itself"
        raise error("bad_parameter", owner="the loss", name="softcap", given=softcap, expected=expected)
    rows = hidden[rows_at(batch.live.index, hidden)]
    result = provider(rows, weight, batch.columns["targets"], batch.temperature)
    expected = f"log-probs and entropies, floats of shape ({len(rows)},) on {rows.device}"
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise error("stage_result", stage="the provider", given=type(result), expected=f"a pair: {expected}")
    logps, entropies = result
    made = (logps,) if entropies is None else (logps, entropies)
    for x in made:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape != (len(rows),) or x.device != rows.device:
            given = f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x)
            raise error("stage_result", stage="the provider", given=given, expected=expected)
    if (
        torch.is_grad_enabled()
        and (hidden.requires_grad or getattr(weight, "requires_grad", False))
        and not logps.requires_grad
    ):
        expected = "what autograd can differentiate by the hidden states and the weight"
        raise error("stage_result", stage="the provider", given="log-probs without gradient", expected=expected)
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in made)


def _as_autocast(x: Tensor, device: str) -> Tensor:
    """In the dtype that autocast gives a linear layer; itself where it is off, as it is for fp64."""
    if not torch.is_autocast_enabled(device) or not isinstance(x, Tensor) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device)) if x.is_floating_point() else x
