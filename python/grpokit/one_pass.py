"""The loss from logits in one read and one write, where a row's own log π and entropy settle its coefficients.

That is: a recipe whose gate and terms are of single tokens and whose weights are constants of the batch; and any recipe
once every part was observed, since its coefficients are known then. The gradient is written over the logits in the
forward pass, as if the upstream gradient were 1; the backward pass multiplies by what it is, unless it is 1.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import gates
from .door import LossOutput, of_policy, part_key, sequence_log_weights, take_ready
from .errors import error
from .kernel_choice import ONE_PASS, VARIABLE
from .metrics import measure
from .vocabulary import overwritten, why_not_in_place

if TYPE_CHECKING:
    from ._recipe import Recipe
    from .batch import TokenBatch
    from .vocabulary import Reader


def choose(reader: Reader, logits: Tensor, recipe: Recipe, *, named: bool, columns: tuple[str, ...]) -> str:
    """The kernel that is taken: the one that was named, or for "auto" one pass where the call allows it.

    The environment may ask for one pass; the table says where it is right and faster.

    Raises
    ------
    InputError
        `no_kernel`: what was named cannot do it.
    """
    kernel = reader.kernel
    if kernel in ONE_PASS:
        why = _why_not(kernel, reader, logits, recipe, columns)
        if why and named:
            remedy = " Take kernel='two_kernel', or 'auto', which takes what there is."
            raise error("no_kernel", what=f"kernel={kernel!r}", why=why, remedy=remedy)
        kernel = "two_kernel" if why else kernel
    elif kernel == "two_kernel" and reader.inplace and not named and os.environ.get(VARIABLE, "auto") == "auto":
        from .kernels import table

        if table.architecture(logits.device) in table.ONE_PASS:
            can = (name for name in ONE_PASS if not _why_not(name, reader, logits, recipe, columns))
            kernel = next(can, kernel)
    if kernel in ONE_PASS and not (torch.is_grad_enabled() and logits.requires_grad):
        return "two_kernel"
    return kernel


def _why_not(kernel: str, reader: Reader, logits: Tensor, recipe: Recipe, columns: tuple[str, ...]) -> str:
    """Why one pass cannot do it; empty if it can."""
    from .kernels.one_pass import why_not_held

    if not reader.inplace:
        return "it writes the gradient over the logits, so it needs inplace=True"
    hidden = why_not_in_place()
    if hidden:
        return f"it writes the gradient over the logits: {hidden}"
    if reader.shard is not None:
        return "a row is not whole in a shard of the vocabulary"
    if columns:
        return f"the column {columns[0]!r} has a gradient of its own"
    if logits.dtype == torch.float16:
        return "an fp16 gradient that is written before a gradient scaler's factor is known would underflow"
    if kernel == "one_kernel":
        if logits.element_size() > 2:
            return f"rows of {logits.dtype} do not fit in registers: it reads bf16"
        why = why_not_held(logits.shape[-1], logits.device, entropy=recipe.reads("entropies"))
        if why:
            return why
    return why_not(reader.batch, recipe)


def why_not(batch: TokenBatch, recipe: Recipe) -> str:
    """Why a row does not settle its own coefficients; empty if it does."""
    if part_key(batch, recipe) in batch.whole.ready:
        return ""
    plan = gates.lower(batch, recipe, _like(recipe, torch.empty(0)))
    if isinstance(plan, str):
        return plan
    if plan.formulas["SEQUENCE"] or plan.formulas["RULES"]:
        return f"{recipe.name} has a gate of whole sequences or a weight of the current policy: call observe() first"
    return ""


def _like(recipe: Recipe, logps: Tensor, entropies: Tensor | None = None) -> dict[str, Tensor]:
    """The current columns that the kernel gives: entropies where the recipe has a use for them."""
    entropies = logps if entropies is None else entropies
    return {"logps": logps} | ({"entropies": entropies} if recipe.reads("entropies") else {})


def loss(logits: Tensor, batch: TokenBatch, recipe: Recipe, *, softcap: float | None = None, hold: bool) -> LossOutput:
    """The loss, with its gradient in the logits' place.

    Parameters
    ----------
    logits, batch, recipe, softcap
        As in `grpokit.loss.from_logits`, and as `choose` allows; the logits require a gradient and are overwritten.
    hold : bool
        Whether a row is kept in registers, or read twice.
    """
    from .kernels.one_pass import one_pass

    entropy = recipe.reads("entropies")
    with torch.no_grad():
        ready = take_ready(batch, recipe)
        plan = gates.lower(batch, recipe, _like(recipe, torch.empty(0)))
        if ready is not None:
            g = ready.gradients["logps"].float()
            known = g, ready.gradients["entropies"].float() if entropy else g
            arguments: tuple[Any, ...] = known, (None,) * 4, None, None, (), (), (), ()
            formulas = {"GATE": None, "BASE": recipe.ratio, "TERMS": ()}
        elif isinstance(plan, gates.Plan):
            arguments = (), *gates.step_arguments(plan, batch, recipe)
            formulas = {name: plan.formulas[name] for name in ("GATE", "BASE", "TERMS")}
        logps, entropies = one_pass(
            logits.detach(),
            batch.live.index,
            batch.columns["targets"],
            batch.temperature,
            softcap,
            formulas=formulas,
            arguments=arguments,
            origin=batch.at.start,
            entropy=entropy,
            hold=hold,
        )
        overwritten(logits)
        current = _like(recipe, logps, entropies)
        if ready is not None:
            loss_T, metrics = ready.loss, measure(batch, recipe, current, ready)
        elif isinstance(plan, gates.Plan):
            loss_T, _, metrics = gates.run(plan, batch, recipe, current)
        total = loss_T.sum().float()
    loss: Tensor = _Written.apply(logits, total, batch.live.index)
    return LossOutput(loss, metrics, sequence_log_weights(batch, logps), of_policy(current))


class _Written(torch.autograd.Function):
    """A loss whose gradient is in the logits' place already."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, total: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(logits, places)
        return total.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        from .kernels.one_pass import scale

        logits, places = ctx.saved_tensors
        scale(logits.detach(), places, upstream)
        overwritten(logits)
        return logits.detach(), None, None
