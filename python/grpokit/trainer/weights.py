"""A policy's weights by name: what learns, what is there, and the way back into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .shards import spread_like

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .policy import Policy


def learned(policy: Policy) -> dict[str, torch.Tensor]:
    """The weights that learn."""
    return {name: w.detach().contiguous() for name, w in policy.model.named_parameters() if w.requires_grad}


def every(policy: Policy) -> dict[str, torch.Tensor]:
    """All weights."""
    return {name: w.detach().contiguous() for name, w in policy.model.named_parameters()}


def put(policy: Policy, weights: Mapping[str, torch.Tensor]) -> None:
    """Writes these weights over the policy's own.

    Raises
    ------
    KeyError
        The policy has none of that name.
    """
    own = dict(policy.model.named_parameters())
    if not weights.keys() <= own.keys():
        raise KeyError(next(iter(weights.keys() - own.keys())))
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(spread_like(weight, own[name]))
