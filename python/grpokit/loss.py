"""The loss of a recipe, from log-probs, from logits or from hidden states.

In: the model's output in the batch's layout, a `TokenBatch` or a part of one, a recipe. Out: a loss to call
`backward` on, and metrics.

Over the parts of a split, losses, gradients and metrics add up to those of the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import one_pass
from ._recipe import check_recipe
from .door import Door, LossOutput, check_floats, columns_door, run
from .equation import Coefficients, coefficients, needs_first_pass
from .errors import error
from .hidden_states import WORKSPACE_BYTES, from_hidden, read_columns
from .kernel_choice import ONE_PASS, backend
from .vocabulary import Reader, VocabularyShard

if TYPE_CHECKING:
    from ._recipe import Recipe
    from .batch import TokenBatch
    from .hidden_states import Provider

__all__ = [
    "Coefficients",
    "LossOutput",
    "VocabularyShard",
    "coefficients",
    "from_hidden",
    "from_logits",
    "from_logps",
    "observe",
]


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
    door = Door(batch, ("logps", *columns), recipe)
    check_floats("logps", logps, batch)
    return run(door, logps, *columns.values(), fused=backend("auto", logps) != "eager")


def from_logits(
    logits: Tensor,
    batch: TokenBatch,
    recipe: Recipe,
    *,
    softcap: float | None = None,
    shard: VocabularyShard | None = None,
    inplace: bool = False,
    kernel: str = "auto",
    **columns: Tensor,
) -> LossOutput:
    """The loss from logits; log-probs and entropies are made in fp32 or wider, and nothing else of their size.

    Parameters
    ----------
    logits : (*batch.shape, V), float
        ``logits[t]`` predicts ``targets[t]``, before the temperature. Rows may have any strides.
    batch, recipe, **columns
        As in `from_logps`; ``entropies`` are computed here.
    softcap : float, optional
        The model's soft-capping, if it has not done it: z becomes softcap · tanh(z / softcap).
    shard : VocabularyShard, optional
        Which columns of the vocabulary these are, where V is split over ranks; the loss is the same on each.
    inplace : bool
        Writes the gradient over the logits in the backward pass, which saves a tensor of their size. Who has saved the
        logits for a backward pass of its own, or passes back a second time, gets torch's error for that; another loss
        of them, `overwritten_logits`. Where torch cannot tell, under torch.compile and with hooks on what autograd
        saves (checkpoint(use_reentrant=False), save_on_cpu), the gradient gets a tensor of its own all the same.
    kernel : {"auto", "eager", "two_kernel", "one_kernel", "one_kernel_l2"}
        What reads and writes the logits: eager torch, or the Triton kernels of `grpokit.kernels`; see docs/kernels.md.
        "auto" is the two kernels on a CUDA device where they can run; the environment variable ``GRPOKIT_KERNEL`` may
        say otherwise. The two ways of one kernel write the gradient in the forward pass already, need ``inplace`` and
        a recipe of single tokens or one that was observed; without a gradient they are the two kernels.

    Returns
    -------
    LossOutput
        ``metrics["kernel"]`` says which it was.

    Raises
    ------
    InputError
        `target_range`, `no_kernel`, and those of `from_logps`.
    InputTypeError, StateError
        Those of `from_logps`.

    Notes
    -----
    With p = softmax(z / τ) and the coefficients g and h,
    ∂LOSS/∂z_v = (g (1[v = target] − p_v) − h p_v (log p_v + H)) / τ.
    """
    reader = Reader(logits, batch, softcap=softcap, shard=shard, inplace=inplace, kernel=kernel)
    door = columns_door(batch, 2, tuple(columns), recipe)
    took = one_pass.choose(reader, logits, recipe, named=kernel != "auto", columns=tuple(columns))
    if took in ONE_PASS:
        out = one_pass.loss(logits, batch, recipe, softcap=softcap, hold=took == "one_kernel")
        out.metrics["kernel"] = took
        return out
    read = reader.read(logits)
    out = run(door, *read, *columns.values(), fused=took != "eager")
    out.metrics["kernel"] = took
    return out


@torch.no_grad()
def observe(
    output: Tensor,
    part: TokenBatch,
    recipe: Recipe,
    *,
    weight: Tensor | None = None,
    softcap: float | None = None,
    shard: VocabularyShard | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
    provider: Provider | None = None,
    kernel: str = "auto",
    **columns: Tensor,
) -> None:
    """First pass of two, for recipes that must see the current policy on the whole batch before any gradient.

    Once every part was observed, the whole batch's coefficients are known, and the loss of each part takes its own;
    they are good for one use. Does nothing where `part.needs_whole(recipe)` is false, unless `kernel` is one of those
    that pass over the logits once: these take any recipe whose coefficients are known.

    Parameters
    ----------
    output : tensor
        What the loss will be given: logits (*part.shape, V), log-probs, of shape `part.shape`, or with a weight hidden
        states (*part.shape, H).
    weight : (V, H), optional
        The LM head's, for hidden states.
    part, recipe, softcap, shard, workspace_bytes, provider, kernel, **columns
        As in `from_logps`, `from_logits` and `from_hidden`.

    Raises
    ------
    InputError, InputTypeError
        Those of `from_logps`, `from_logits` and `from_hidden`.
    """
    check_recipe(recipe)
    if not needs_first_pass(part, recipe) and kernel not in ONE_PASS:
        return
    if not isinstance(output, Tensor):
        raise error("token_type", name="output", given=type(output), expected="logits or log-probs, a tensor")
    if weight is not None:
        if shard is not None:
            expected = "None with hidden states: give the whole weight"
            raise error("bad_parameter", owner="observe", name="shard", given=shard, expected=expected)
        how: dict[str, Any] = {"softcap": softcap, "workspace_bytes": workspace_bytes, "kernel": kernel}
        read = read_columns(output, weight, part, provider=provider, **how)
        seen = columns_door(part, len(read), tuple(columns), recipe).read((*read, *columns.values()))
    elif output.shape == part.shape:
        seen = Door(part, ("logps", *columns), recipe).read((output, *columns.values()))
    else:
        read = Reader(output, part, softcap=softcap, shard=shard, kernel=kernel).read(output)
        seen = columns_door(part, 2, tuple(columns), recipe).read((*read, *columns.values()))
    observed = part.whole.observed.setdefault(recipe, {})
    rows = part.rows
    # Another split begins anew where it overlaps what was seen.
    for first, last in [span for span in observed if span[0] < rows.stop and rows.start < span[1]]:
        del observed[first, last]
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
