"""The size of each answer's gradient, ‖∇ log π(o)‖²: what a baseline of least variance weighs rewards by.

One forward and one backward pass an answer, as nothing smaller says what a whole model's gradient is: a step of B
answers takes B small passes where learning takes a few large ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .policy import Completion, Policy


def score_norms(policy: Policy, completions: Sequence[Completion], temperature: float) -> list[float]:
    """‖∇ Σ_t log π(o_t)‖² over all weights that learn, of each completion's own tokens, at that temperature."""
    weights = [w for w in policy.model.parameters() if w.requires_grad]
    found = []
    for completion in completions:
        batch = policy.pad([completion])
        logps = (policy.logits(batch.inputs, batch.targets.shape[1]).float() / temperature).log_softmax(-1)
        score = logps.gather(-1, batch.targets[..., None])[..., 0][batch.mask].sum()
        gradients = torch.autograd.grad(score, weights, allow_unused=True)
        found.append(sum(float(g.double().square().sum()) for g in gradients if g is not None))
    return found
