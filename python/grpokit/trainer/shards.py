"""A policy whose weights are spread over ranks, and the same policy whole.

To learn, the model is FSDP2's: each rank holds a part of every weight, of its gradient and of the optimizer's state,
and passes communicate, so all ranks make as many. To sample, each rank has the whole model for a while, in which it may
make any number of passes by itself: an ordinary model, which knows nothing of ranks.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from .policy import Policy
    from .ranks import Ranks


def shard(policy: Policy, ranks: Ranks) -> Policy:
    """The policy, its weights spread over the ranks; as it is where there is one.

    Each decoder layer is gathered by itself, all else with the root. `policy.plain` is the skeleton of the whole one.
    """
    if ranks.world == 1:
        return policy
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    model = policy.model.to(ranks.device)
    policy.ranks = ranks
    policy.probe()
    policy.plain = _skeleton(model)
    mesh = init_device_mesh(torch.device(ranks.device).type, (ranks.world,))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in [module for module in model.modules() if type(module).__name__ in layers]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # What is read of the model beside its own forward pass, the loss from hidden states, is inside the root's as well.
    model.inside = MethodType(_inside, model)
    register_fsdp_forward_method(model, "inside")
    return policy


@contextmanager
def whole(*policies: Policy | None) -> Iterator[None]:
    """Inside, each rank has all weights of the policies, and passes communicate nothing; all ranks come here together.

    What would change the weights is done outside.
    """
    taken: list[Policy] = [policy for policy in policies if policy is not None and policy.sharded]
    models = [policy.model for policy in taken]
    try:
        for policy in taken:
            with policy.ranks.phase("gathering the weights"), torch.no_grad():
                policy.ranks.meet()
                for own, weight in zip(policy.plain.parameters(), policy.model.parameters(), strict=True):
                    own.data = weight.full_tensor()
            policy.plain.train(policy.model.training)
            policy.model = policy.plain
        yield
    finally:
        for policy, model in zip(taken, models, strict=True):
            policy.model = model
            _empty(policy.plain)


def spread_like(weight: Tensor, own: Tensor) -> Tensor:
    """A whole tensor as one that lies over the ranks like `own`, if that does."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or weight.dim() == 0:
        return weight
    return distribute_tensor(weight.to(own.device), own.device_mesh, own.placements)


def spread_state(optimizer: torch.optim.Optimizer) -> None:
    """What the optimizer remembers of whole weights, spread like these."""
    for weight, known in optimizer.state.items():
        known.update({name: spread_like(x, weight) for name, x in known.items()})


def full(norm: Tensor) -> Tensor:
    """A number that may still lie over the ranks."""
    whole_norm: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole_norm


def save_shards(policy: Policy, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """What learns and the optimizer's state, each rank its own part; all ranks come here together."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with _quiet():
        save(_tensors(policy, dict(optimizer.state)), checkpoint_id=directory)


def load_shards(policy: Policy, optimizer: torch.optim.Optimizer, directory: Path, *, begun: bool) -> None:
    """What `save_shards` wrote, on any number of ranks; `begun` says whether the optimizer had made a step."""
    from torch.distributed.checkpoint.state_dict_loader import load

    state = {}
    for weight in policy.trained() if begun else ():
        moments = {name: torch.zeros_like(weight.detach()) for name in ("exp_avg", "exp_avg_sq")}
        state[weight] = {"step": torch.zeros(()), **moments}
    with _quiet():
        load(_tensors(policy, state), checkpoint_id=directory)
    optimizer.state.update(state)


def _tensors(policy: Policy, state: dict[Tensor, dict[str, Tensor]]) -> dict[str, Any]:
    learned = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
    return {
        "model": {name: weight.detach() for name, weight in learned.items()},
        "optimizer": {name: state[weight] for name, weight in learned.items() if weight in state},
    }


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # That one process reads alone is meant.
        warnings.simplefilter("ignore")
        yield


def _inside(_model: Any, call: Callable[[], Any]) -> Any:
    return call()


def _skeleton(model: Any) -> Any:
    """A copy without weights, which are never there twice."""
    held = [weight.data for weight in model.parameters()]
    _empty(model)
    made = copy.deepcopy(model)
    for weight, data in zip(model.parameters(), held, strict=True):
        weight.data = data
    return made


def _empty(model: Any) -> None:
    for weight in model.parameters():
        weight.data = weight.data.new_empty(0)
