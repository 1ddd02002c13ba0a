"""What a provider is, and ours: the doors of `grpokit.loss` with each kernel, in place or not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .cases import ENTROPY, HIGH, LOW

# Logits that are themselves rounded to bf16, 2^-9 of a number near 8, are in every probability.
LOGITS = 0.05
TOLERANCE = 0.01  # a bf16 gradient is rounded to 2^-9 of each entry, in Triton's interpreter cut off at 2^-8


class Unavailable(Exception):
    """A provider that cannot run here, and why."""


class Call(NamedTuple):
    """One forward and one backward pass: `forward()` is the loss, `backward(loss)` the gradients of the inputs."""

    forward: Callable[[], torch.Tensor]
    backward: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Provider:
    """Something that computes the loss and its gradient.

    Attributes
    ----------
    name : str
        Ours begin with "grpokit".
    make : callable
        Of a case's tensors: a `Call`. Raises `Unavailable`.
    level : {"token", "sequence"}
        Of the ratio.
    inplace : bool
        Whether the gradient overwrites the logits.
    entropy : bool
        Whether the loss has an entropy term.
    moved : tuple of 3 floats, or None
        Bytes an element of bf16 logits: of rows with a gradient, of live rows without one, of rows that are masked.
    counted : str
        How they were counted.
    tolerance : float
        Of `reference.check`.
    refuses : callable
        Of a case: why it cannot take it; empty if it can.
    apart : bool
        Whether it is first tried in a process of its own, since it may take the device down.
    """

    name: str
    make: Callable[[Any], Call]
    level: str = "token"
    inplace: bool = False
    entropy: bool = False
    moved: tuple[float, float, float] | None = None
    counted: str = "not counted"
    tolerance: float = TOLERANCE
    refuses: Callable[[Any], str] = lambda _: ""
    apart: bool = False


def differentiated(forward, *inputs):
    """A call whose gradients are taken, not accumulated: nothing is left to clear, and nothing is copied."""
    return Call(forward, lambda loss: torch.autograd.grad(loss, inputs))


def recipe(level, *, entropy=False):
    """DAPO's clip over the mean of tokens, or GSPO over the mean of sequences."""
    import grpokit as gk

    if level == "sequence":
        return gk.recipe("gspo", low=LOW, high=HIGH)
    found = gk.recipe("ppo_clip", low=LOW, high=HIGH)
    return found.replace(extra=(gk.Term(gk.Entropy(), -ENTROPY),)) if entropy else found


def batch_of(data, beyond=1):
    """A `TokenBatch` of the whole layout, whose last `beyond` places are masked."""
    import grpokit as gk

    def padded(x):
        return None if x is None else torch.nn.functional.pad(x, (0, beyond))

    return gk.TokenBatch(
        padded(data.targets),
        mask=padded(data.mask),
        advantages=data.advantages,
        old_logps=padded(data.old_logps),
        temperature=data.case.temperature,
    )


def from_logits(data, level, kernel, *, inplace, entropy=False, anew=False):
    """Through `grpokit.loss.from_logits`, the batch made before, as once a step, or `anew` in every call."""
    import grpokit as gk

    what = recipe(level, entropy=entropy)
    batch = batch_of(data)

    def forward():
        return gk.loss.from_logits(
            data.logits, batch_of(data) if anew else batch, what, kernel=kernel, inplace=inplace
        ).loss

    return differentiated(forward, data.logits)


def from_hidden(data, rows):
    """Through `grpokit.loss.from_hidden`, with a workspace of so many rows of logits."""
    import grpokit as gk

    if not hasattr(gk.loss, "from_hidden"):
        raise Unavailable("this grpokit has no loss.from_hidden")
    batch, what = batch_of(data, 0), recipe("token")
    workspace = rows * data.case.vocabulary * data.hidden.element_size()

    def forward():
        return gk.loss.from_hidden(data.hidden, data.weight, batch, what, workspace_bytes=workspace).loss

    return differentiated(forward, data.hidden, data.weight)


def linear_then_logits(data):
    """torch's own linear layer, whose logits are all there, and our loss over them."""
    import grpokit as gk

    batch, what = batch_of(data, 0), recipe("token")

    def forward():
        logits = torch.nn.functional.linear(data.hidden, data.weight)
        return gk.loss.from_logits(logits, batch, what, inplace=True).loss

    return differentiated(forward, data.hidden, data.weight)


TWO = "stats reads 2, the gradient reads 2 and writes 2; without a gradient it only writes, masked rows too"
ONE = "one read and one write; masked rows are written"
SWEEP = "asks for 2 + 2 and writes 2, and the caches should spare it some of the second read; masked rows are written"


def _ours(name, kernel, level="token", *, inplace=True, moved=(6, 4, 2), counted=TWO, entropy=False, anew=False):
    def make(data):
        return from_logits(data, level, kernel, inplace=inplace, entropy=entropy, anew=anew)

    where = ", in place" if inplace else ""
    also = ", entropy term" * entropy + ", TokenBatch anew" * anew
    how = {"inplace": inplace, "entropy": entropy, "moved": moved, "counted": counted}
    return Provider(f"grpokit {name}{where}{also}", make, level, **how)


def _token_gates(kernel, moved, counted):
    how = {"moved": moved, "counted": counted}
    yield _ours(kernel, kernel, **how)
    yield _ours(kernel, kernel, **how, entropy=True)


TOKEN = (
    _ours("two_kernel", "two_kernel"),
    _ours("two_kernel", "two_kernel", entropy=True),
    _ours("two_kernel", "two_kernel", inplace=False),
    _ours("two_kernel", "two_kernel", anew=True),
    *_token_gates("one_kernel", (4, 4, 2), ONE),
    *_token_gates("one_kernel_l2", (6, 6, 2), SWEEP),
    _ours("eager", "eager", inplace=False, moved=None, counted="not counted"),
)
SEQUENCE = (
    _ours("two_kernel, gspo", "two_kernel", "sequence"),
    _ours("two_kernel, gspo", "two_kernel", "sequence", inplace=False),
)


def one_kernel_from_cubin(folder):
    """The one-kernel path where Triton cannot compile it."""
    from .cubin import carried

    name = "grpokit one_kernel, in place, carried cubin"
    how = {"inplace": True, "moved": (4, 4, 2), "counted": ONE, "apart": True}
    return Provider(name, lambda data: carried(data, folder), **how)


def linear(rows_of_workspace):
    """From hidden states: ours, by rows of the workspace, and torch's linear layer before our loss."""
    for rows in rows_of_workspace:
        yield Provider(
            f"grpokit from_hidden, {rows} rows", lambda data, rows=rows: from_hidden(data, rows), tolerance=LOGITS
        )
    yield Provider("torch linear, then grpokit from_logits", linear_then_logits, tolerance=LOGITS)
