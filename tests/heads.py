"""An LM head under the tables of `losses`, and what is multiplied while a loss is computed."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpokit import loss as losses
from tests.losses import TEMPERATURE, V, packed, padded, table

H = 6


def headed(seed=0, *, exact=False, **more):
    """A table whose logits are hidden @ weight.T; with `exact` of small multiples of 1/8, which bf16 holds."""
    d, generator = table(seed, **more), torch.Generator().manual_seed(100 + seed)
    if exact:
        hidden = torch.randint(-2, 3, (*d["mask"].shape, H), generator=generator) / 4
        weight = torch.randint(-2, 3, (V, H), generator=generator) / 2
    else:
        hidden = torch.randn(*d["mask"].shape, H, generator=generator, dtype=torch.float64)
        weight = 0.8 * torch.randn(V, H, generator=generator, dtype=torch.float64)
    hidden, weight = hidden.double(), weight.double()
    logp = (hidden @ weight.T / TEMPERATURE).log_softmax(-1)
    logps = logp.gather(-1, d["targets"][..., None]).squeeze(-1)
    for name in ("old_logps", "rollout_logps", "ref_logps"):
        d[name] = d[name] - d["logps"] + logps
    hole = ~d["mask"]
    d["logps"] = logps.masked_fill(hole, torch.nan)
    d["entropies"] = (-(logp.exp() * logp).sum(-1)).masked_fill(hole, torch.nan)
    d["logits"] = (hidden @ weight.T).masked_fill(hole[..., None], torch.nan)
    d["hidden"] = hidden.masked_fill(hole[..., None], torch.nan)
    return d, weight


def laid_out(d, layout, **more):
    """The table in a layout, and its batch."""
    if layout == "packed":
        return packed(d, **more)
    return d, padded(d, **more)


def chain(d, weight, gradient):
    """The gradients of hidden states and weight, from that of the logits."""
    live = d["mask"]
    return gradient @ weight, gradient[live].T @ d["hidden"][live]


def run_hidden(batch, r, d, weight, rows, split=None, **more):
    """Loss, gradients of hidden states and weight, and metrics, with a workspace of so many rows."""
    x, w = d["hidden"].clone().requires_grad_(), weight.clone().requires_grad_()
    parts = batch.split(split) if split else [batch]
    size = {"workspace_bytes": rows * len(w) * w.element_size()} | more
    if batch.needs_whole(r) and split:
        for part in parts:
            losses.observe(x[part.span], part, r, weight=w, **size)
    total, metrics = 0.0, {}
    for part in parts:
        out = losses.from_hidden(x[part.span], w, part, r, **size)
        out.loss.backward()
        total = total + out.loss.detach()
        metrics = {k: metrics.get(k, 0) + m for k, m in out.metrics.items() if k != "kernel"}
    return total, x.grad, w.grad, metrics


class Products(TorchDispatchMode):
    """The rows of each GEMM: of ``logits``, of ``hidden`` and ``weight`` gradients; and how often the host waits."""

    def __init__(self):
        super().__init__()
        self.logits, self.hidden, self.weight, self.calls = [], [], [], Counter()

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        name = str(function)
        self.calls[name] += 1
        if name == "aten.mm.out":
            self.logits.append(len(arguments[0]))
        elif name == "aten.mm.default":
            self.hidden.append(len(arguments[0]))
        elif name == "aten.addmm_.default":
            self.weight.append(len(arguments[2]))
        return function(*arguments, **(kwargs or {}))
