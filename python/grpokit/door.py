"""The autograd door of a loss: live columns in, a recipe's coefficients, and gradients back to what the caller gave.

In: what carries a gradient, in the batch's layout, per sequence or as live columns. Out: a `LossOutput`, whose loss is
one `torch.autograd.Function`. The coefficients are known before the backward pass; a door only carries them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import gates
from ._recipe import check_recipe
from .batch import reserved
from .equation import Coefficients, coefficients
from .errors import error
from .metrics import measure
from .tokens import sum_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._recipe import Recipe
    from .batch import TokenBatch

# What is made of logits.
MADE = ("logps", "entropies")


@dataclass(frozen=True)
class LossOutput:
    """What a loss function returns.

    Attributes
    ----------
    loss : 0-d tensor
        To call `backward` on.
    metrics : dict of 0-d tensors
        Detached, on the device; see `grpokit.metrics.measure`. Where logits were read, ``kernel`` says what read them:
        the one entry that is a str.
    log_weights : (S',) tensor or None
        log w = Σ_t log π / π_rollout of each sequence that has live tokens, detached: what `effective_sample_size` and
        `ESSLearningRate` read. None where the batch has no `rollout_logps`.
    columns : dict of (T,) tensors
        The policy's ``logps`` of the live tokens, in order, and ``entropies`` where they are known; detached.
    """

    loss: Tensor
    metrics: dict[str, Any]
    log_weights: Tensor | None
    columns: dict[str, Tensor]


def of_policy(current: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `LossOutput.columns` is."""
    return {name: current[name].detach() for name in MADE if name in current}


class Door:
    """Reads live columns from what the caller gave, and writes gradients back into its layout.

    Parameters
    ----------
    batch : TokenBatch
        The batch, or a part of one.
    names : tuple of str
        What the inputs are called.
    recipe : Recipe
        What they are for.
    live : int
        How many of the inputs, the first ones, are columns of live tokens already.
    """

    def __init__(self, batch: TokenBatch, names: tuple[str, ...], recipe: Recipe, live: int = 0) -> None:
        check_recipe(recipe)
        self.batch, self.names, self.recipe, self.live = batch, names, recipe, live
        for name in names:
            if name in batch.columns:
                raise error("column_twice", column=name)
            if reserved(name) and name not in MADE:
                raise error("reserved_column", column=name, where="with the call")

    def read(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The live columns, by name."""
        given = dict(zip(self.names, inputs, strict=True))
        for name, x in given.items():
            check_floats(name, x, self.batch)
        return {name: x if i < self.live else self.batch.column(name, x) for i, (name, x) in enumerate(given.items())}

    def write(self, gradients: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
        """The gradient of each input; None where the recipe does not look at it."""
        given = zip(self.names, inputs, strict=True)
        return [
            None
            if name == "entropies" and not self.recipe.reads(name)
            else self._scatter(gradients[name], x, i < self.live)
            for i, (name, x) in enumerate(given)
        ]

    def _scatter(self, g: Tensor, x: Tensor, live: bool) -> Tensor:
        if live:
            return g
        if x.shape != self.batch.shape:
            return (sum_segments(g, self.batch.live.lengths) if x.dim() else g.sum()).to(x.dtype)
        return g.new_zeros(x.numel()).index_copy_(0, self.batch.live.index, g).view(x.shape).to(x.dtype)


def columns_door(batch: TokenBatch, made: int, names: tuple[str, ...], recipe: Recipe) -> Door:
    """The door of the first `made` of log-probs and entropies, of live tokens, and of the caller's columns."""
    for name in MADE:
        if name in names:
            raise error("reserved_column", column=name, where="with logits")
    return Door(batch, (*MADE[:made], *names), recipe, live=made)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, door: Door, loss_T: Tensor, gradients: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        ctx.door, ctx.gradients = door, gradients
        ctx.save_for_backward(*inputs)
        return loss_T.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = {name: upstream * g for name, g in ctx.gradients.items()}
        return None, None, None, *ctx.door.write(gradients, ctx.saved_tensors)


def run(door: Door, *inputs: Tensor, fused: bool = False) -> LossOutput:
    """The loss of the columns that the door reads; with `fused` by the gate kernel, where the recipe has one."""
    batch, recipe = door.batch, door.recipe
    with torch.no_grad():
        current = door.read(inputs)
        known = part_key(batch, recipe) in batch.whole.ready
        plan = _untraced(gates.lower, batch, recipe, current) if fused and not known else "eager torch"
        if isinstance(plan, gates.Plan):
            loss_T, gradients, metrics = _untraced(gates.run, plan, batch, recipe, current)
        else:
            result = resolve(batch, recipe, current)
            loss_T, gradients, metrics = result.loss, result.gradients, measure(batch, recipe, current, result)
        log_weights = sequence_log_weights(batch, current["logps"])
    loss: Tensor = _Loss.apply(door, loss_T, gradients, *inputs)
    return LossOutput(loss, metrics, log_weights, of_policy(current))


def _untraced(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function, which starts a kernel of Triton itself: torch.compile leaves it as it is."""
    if torch.compiler.is_compiling():
        function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return function(*arguments)


def sequence_log_weights(batch: TokenBatch, logps: Tensor) -> Tensor | None:
    """What `LossOutput.log_weights` is."""
    if "rollout_logps" not in batch.columns:
        return None
    lengths = batch.live.lengths
    totals = sum_segments(logps.double() - batch.columns["rollout_logps"], lengths)
    # How many there are is known to the host, which a mask as an index would make wait for the device.
    ends = batch.whole.live.starts[batch.rows.start : batch.rows.stop + 1]
    there = sum(a < b for a, b in pairwise(ends))
    return totals if there == len(totals) else totals[(lengths == 0).byte().argsort(stable=True)[:there]]


def resolve(batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor]) -> Coefficients:
    """A part's coefficients: its own columns are enough, or they lie ready since the first pass, for one use."""
    ready = take_ready(batch, recipe)
    return coefficients(batch, recipe, current) if ready is None else ready


def take_ready(batch: TokenBatch, recipe: Recipe) -> Coefficients | None:
    """A part's coefficients since the first pass, if there was one."""
    ready: Coefficients | None = batch.whole.ready.pop(part_key(batch, recipe), None)
    return ready


def part_key(batch: TokenBatch, recipe: Recipe) -> tuple[tuple[int, int], Recipe]:
    """By which `TokenBatch.ready` has a part's coefficients."""
    return (batch.rows.start, batch.rows.stop), recipe


def check_floats(name: str, x: Tensor, batch: TokenBatch) -> None:
    """Refuses what is no tensor of floats where the batch is."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.element_size() < 2:
        expected = "a tensor of floats of 16 bits or more"
        raise error("token_type", name=name, given=getattr(x, "dtype", type(x)), expected=expected)
    if x.device != batch.device:
        raise error("token_type", name=name, given=f"on {x.device}", expected=f"on {batch.device}, like targets")
