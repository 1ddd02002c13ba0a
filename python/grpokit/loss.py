"""The loss of a recipe, from log-probs or from logits: two doors to one `torch.autograd.Function`.

In: the model's output in the batch's layout, a `TokenBatch` or a part of one, a recipe. Out: a loss to call
`backward` on, and metrics. The coefficients are known before the backward pass; a door only carries them to what the
caller gave.

Over the parts of a split, losses, gradients and metrics add up to those of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._recipe import Recipe, check_recipe
from .batch import reserved
from .equation import Coefficients, coefficients, needs_first_pass
from .errors import error
from .metrics import measure
from .tokens import sum_segments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .batch import TokenBatch

__all__ = ["Coefficients", "LossOutput", "coefficients", "from_logits", "from_logps", "observe"]

# Entries of the logits that are worked on at a time, in fp32 or wider: what a CPU's cache holds. A GPU takes 64 times
# as many, so that starting kernels costs nothing.
CHUNK = 2**20


@dataclass(frozen=True)
class LossOutput:
    """What a loss function returns.

    Attributes
    ----------
    loss : 0-d tensor
        To call `backward` on.
    metrics : dict of 0-d tensors
        Detached, on the device; see `grpokit.metrics.measure`.
    log_weights : (S',) tensor or None
        log w = Σ_t log π / π_rollout of each sequence that has live tokens, detached: what `effective_sample_size` and
        `ESSLearningRate` read. None where the batch has no `rollout_logps`.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    log_weights: Tensor | None


def from_logps(logps: Tensor, batch: TokenBatch, recipe: Recipe, **columns: Tensor) -> LossOutput:
    """The loss from log-probs.

    Parameters
    ----------
    logps : batch.shape, float
        log π of the targets, fp32 or wider. What masked places hold does not matter.
    batch : TokenBatch
        The batch, or a part of its `split`.
    recipe : Recipe
        What to compute.
    **columns : tensors
        What else carries a gradient and the recipe reads: ``entropies=``, ``values=`` per place; others per place or
        per sequence.

    Returns
    -------
    LossOutput

    Raises
    ------
    InputError
        `token_shape`, `missing_token_column`, `column_twice`, `reserved_column`.
    InputTypeError
        `token_type`.
    StateError
        `not_observed`: the recipe needs a first pass over the whole batch.

    Examples
    --------
    >>> import grpokit as gk
    >>> batch = gk.TokenBatch(targets=torch.tensor([[4, 2]]), advantages=torch.tensor([1.0]))
    >>> logps = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    >>> from_logps(logps, batch, gk.recipe("rloo")).loss.backward()
    >>> logps.grad
    tensor([[-1., -1.]])
    """
    return _run(_FromColumns(batch, ("logps", *columns), recipe), logps, *columns.values())


def from_logits(logits: Tensor, batch: TokenBatch, recipe: Recipe, **columns: Tensor) -> LossOutput:
    """The loss from logits; log-probs and entropies are made in fp32 or wider, some rows at a time.

    Parameters
    ----------
    logits : (*batch.shape, V), float
        ``logits[t]`` predicts ``targets[t]``, before the temperature.
    batch, recipe, **columns
        As in `from_logps`; ``entropies`` are computed here.

    Returns
    -------
    LossOutput

    Raises
    ------
    InputError
        `target_range`, and those of `from_logps`.
    InputTypeError, StateError
        Those of `from_logps`.

    Notes
    -----
    With p = softmax(z / τ) and the coefficients g and h,
    ∂LOSS/∂z_v = (g (1[v = target] − p_v) − h p_v (log p_v + H)) / τ.
    """
    return _run(_FromLogits(batch, tuple(columns), recipe), logits, *columns.values())


@torch.no_grad()
def observe(output: Tensor, part: TokenBatch, recipe: Recipe, **columns: Tensor) -> None:
    """First pass of two, for recipes that must see the current policy on the whole batch before any gradient.

    Once every part was observed, the whole batch's coefficients are known, and the loss of each part takes its own;
    they are good for one use. Does nothing where `part.needs_whole(recipe)` is false.

    Parameters
    ----------
    output : tensor
        What the loss will be given: logits (*part.shape, V) or log-probs, of shape `part.shape`.
    part, recipe, **columns
        As in `from_logps`.

    Raises
    ------
    InputError, InputTypeError
        Those of `from_logps` and `from_logits`.
    """
    check_recipe(recipe)
    if not needs_first_pass(part, recipe):
        return
    if not isinstance(output, Tensor):
        raise error("token_type", name="output", given=type(output), expected="logits or log-probs, a tensor")
    if output.shape == part.shape:
        door = _FromColumns(part, ("logps", *columns), recipe)
    else:
        door = _FromLogits(part, tuple(columns), recipe)
    observed = part.whole.observed.setdefault(recipe, {})
    rows = part.rows
    # Another split begins anew where it overlaps what was seen.
    for first, last in [span for span in observed if span[0] < rows.stop and rows.start < span[1]]:
        del observed[first, last]
    seen = door.read((output, *columns.values()))
    for _, other in observed.values():
        if other.keys() != seen.keys():
            given = f"{sorted(seen)} of one part and {sorted(other)} of another"
            raise error("bad_parameter", owner="observe", name="columns", given=given, expected="the same of all parts")
    observed[rows.start, rows.stop] = part.at, seen
    spans = sorted(observed)
    if [*(first for first, _ in spans), part.whole.rows.stop] != [0, *(last for _, last in spans)]:
        return
    parts = [observed[span][1] for span in spans]
    result = coefficients(part.whole, recipe, {name: torch.cat([x[name] for x in parts]) for name in seen})
    for span in spans:
        part.whole.ready[span, recipe] = result.part(observed[span][0])
    del part.whole.observed[recipe]


class _FromColumns:
    """Reads live columns from what the caller gave, and writes gradients back into its layout."""

    def __init__(self, batch: TokenBatch, names: tuple[str, ...], recipe: Recipe) -> None:
        check_recipe(recipe)
        self.batch, self.names, self.recipe = batch, names, recipe
        for name in names:
            if name in batch.columns:
                raise error("column_twice", column=name)
            if reserved(name) and name not in ("logps", "entropies"):
                raise error("reserved_column", column=name, where="with the call")

    def read(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        for name, x in zip(self.names, inputs, strict=True):
            _check(name, x, self.batch)
        return {name: self.batch.column(name, x) for name, x in zip(self.names, inputs, strict=True)}

    def write(self, gradients: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return [self._scatter(gradients[name], x) for name, x in zip(self.names, inputs, strict=True)]

    def _scatter(self, g: Tensor, x: Tensor) -> Tensor:
        if x.shape != self.batch.shape:
            return (sum_segments(g, self.batch.live.lengths) if x.dim() else g.sum()).to(x.dtype)
        return g.new_zeros(x.numel()).index_copy_(0, self.batch.live.index, g).view(x.shape).to(x.dtype)


class _FromLogits(_FromColumns):
    """The first input is the logits; live rows only, some at a time."""

    entropies: Tensor

    def __init__(self, batch: TokenBatch, names: tuple[str, ...], recipe: Recipe) -> None:
        super().__init__(batch, names, recipe)
        for name in ("logps", "entropies"):
            if name in names:
                raise error("reserved_column", column=name, where="with logits")

    def read(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        logits, *rest = inputs
        self._check_logits(logits)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logps = torch.empty(self.batch.live_tokens, dtype=dtype, device=logits.device)
        self.entropies = torch.empty_like(logps)
        for at, log_p, finite, target in self._chunks(logits):
            logps[at] = log_p.gather(1, target).squeeze(1)
            self.entropies[at] = -log_p.exp_().mul_(finite).sum(1)
        return {"logps": logps, "entropies": self.entropies} | super().read(tuple(rest))

    def write(self, gradients: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
        logits, *rest = inputs
        out = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        flat, bonus = out.view(-1, logits.shape[-1]), self.recipe.reads("entropies")
        g, h = (gradients[name][:, None] / self.batch.temperature for name in ("logps", "entropies"))
        for at, log_p, finite, target in self._chunks(logits):
            pull = g[at] + h[at] * (finite + self.entropies[at, None]) if bonus else g[at]
            dz = log_p.exp_().mul_(-pull).scatter_add_(1, target, g[at])
            flat.index_copy_(0, self.batch.live.index[at], dz.to(out.dtype))
        return [out, *super().write(gradients, tuple(rest))]

    def _chunks(self, logits: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Some live rows at a time: where they are, log p, log p with 0 where p is 0, their targets."""
        rows = max(1, CHUNK * (64 if logits.is_cuda else 1) // max(1, logits.shape[-1]))
        for start in range(0, self.batch.live_tokens, rows):
            at = slice(start, start + rows)
            index = self.batch.live.index[at]
            # Indexed by (row, column): logits[:, :-1] is no copy of the logits, and must not become one.
            z = logits[index] if logits.dim() == 2 else logits[index // logits.shape[1], index % logits.shape[1]]
            z = z.to(torch.promote_types(z.dtype, torch.float32)).div_(self.batch.temperature)
            log_p = z.log_softmax(1)
            yield at, log_p, torch.where(log_p > -torch.inf, log_p, 0.0), self.batch.columns["targets"][at, None]

    def _check_logits(self, logits: Tensor) -> None:
        _check("logits", logits, self.batch)
        if logits.dim() != len(self.batch.shape) + 1 or logits.shape[:-1] != self.batch.shape:
            expected = f"{(*self.batch.shape, 'V')}, a row for every place of the batch"
            raise error("token_shape", name="logits", given=tuple(logits.shape), expected=expected)
        for value in self.batch.target_range:
            if not 0 <= value < logits.shape[-1] and self.batch.whole.live_tokens:
                raise error("target_range", value=value, vocabulary=logits.shape[-1], last=logits.shape[-1] - 1)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, door: _FromColumns, loss_T: Tensor, gradients: Mapping[str, Tensor], *inputs: Tensor
    ) -> Tensor:
        ctx.door, ctx.gradients = door, gradients
        ctx.save_for_backward(*inputs)
        return loss_T.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = {name: upstream * g for name, g in ctx.gradients.items()}
        return None, None, None, *ctx.door.write(gradients, ctx.saved_tensors)


def _run(door: _FromColumns, *inputs: Tensor) -> LossOutput:
    with torch.no_grad():
        current = door.read(inputs)
        result = _resolve(door.batch, door.recipe, current)
        metrics = measure(door.batch, door.recipe, current, result)
        log_weights = _log_weights(door.batch, current["logps"])
    loss: Tensor = _Loss.apply(door, result.loss, result.gradients, *inputs)
    return LossOutput(loss, metrics, log_weights)


def _log_weights(batch: TokenBatch, logps: Tensor) -> Tensor | None:
    if "rollout_logps" not in batch.columns:
        return None
    lengths = batch.live.lengths
    return sum_segments(logps.double() - batch.columns["rollout_logps"], lengths)[lengths > 0]


def _resolve(batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor]) -> Coefficients:
    """A part's coefficients: its own columns are enough, or they lie ready since the first pass, for one use."""
    key = (batch.rows.start, batch.rows.stop), recipe
    ready: Coefficients | None = batch.whole.ready.pop(key, None)
    return coefficients(batch, recipe, current) if ready is None else ready


def _check(name: str, x: Tensor, batch: TokenBatch) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise error("token_type", name=name, given=getattr(x, "dtype", type(x)), expected="a tensor of floats")
    if x.device != batch.device:
        raise error("token_type", name=name, given=f"on {x.device}", expected=f"on {batch.device}, like targets")
