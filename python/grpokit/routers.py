"""The routers of `transformers` whose choice can be recorded and replayed, and where a model has them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from .errors import error
from .routing import RoutingRecord

if TYPE_CHECKING:
    from contextlib import ExitStack
    from weakref import WeakSet

    from .errors import GrpokitError

# Routers that return (logits, weights, experts) and choose by one topk over all experts, after which the weights
# depend on the choice alone. A test holds each against its formula.
ROUTERS = (
    "DeepseekV3TopkRouter",
    "DeepseekV32TopkRouter",
    "Dots1TopkRouter",
    "FlexOlmoTopKRouter",
    "Glm4MoeTopkRouter",
    "GptOssTopKRouter",
    "GraniteMoeTopKRouter",
    "MiniMaxTopKRouter",
    "MixtralTopKRouter",
    "OlmoeTopKRouter",
    "Qwen2MoeTopKRouter",
    "Qwen3MoeTopKRouter",
    "Qwen3NextTopKRouter",
    "Qwen3VLMoeTextTopKRouter",
    "Qwen3_5MoeTopKRouter",
)


class Mixture:
    """A model's routers, in the order of its layers, and the module whose forward pass they are in.

    Raises
    ------
    InputError
        `no_router`.
    """

    def __init__(self, model: Any) -> None:
        if not isinstance(model, nn.Module):
            raise no_router(model, "is no torch.nn.Module")
        compiled = [m for m in model.modules() if hasattr(m, "_orig_mod") or m._compiled_call_impl is not None]
        if compiled:
            problem = (
                f"has a compiled {type(compiled[0]).__name__}, which passes hooks by; give it before torch.compile"
            )
            raise no_router(model, problem)
        paths = {name: m for name, m in model.named_modules() if type(m).__name__ in ROUTERS}
        others = [f"{name} ({type(m).__name__})" for name, m in model.named_modules() if _routes(m)]
        if others or not paths:
            problem = f"routes in {others[0]}, which cannot be replayed" if others else "has no router that is known"
            raise no_router(model, problem)
        self.decoder, prefix = _decoder(model, next(iter(paths)))
        if not all(name.startswith(prefix) for name in paths):
            problem = "has routers in several decoders; give one of them"
            raise no_router(model, problem)
        self.routers = {name.removeprefix(prefix): m for name, m in paths.items()}
        self.layers = tuple(self.routers)
        kinds = {(m.top_k, m.num_experts) for m in paths.values()}
        if len(kinds) > 1:
            problem = f"has layers of different (k, experts), {sorted(kinds)}"
            raise no_router(model, problem)
        ((self.k, self.num_experts),) = kinds

    def claim(self, stack: ExitStack, active: WeakSet[nn.Module], what: str) -> None:
        """Marks the model until the stack ends."""
        if self.decoder in active:
            problem, remedy = "this model is in a `with` of the same kind already", "Leave the outer one first."
            raise error("routing_pass", what=what, problem=problem, remedy=remedy)
        active.add(self.decoder)
        stack.callback(active.discard, self.decoder)

    def check_called(self, what: str, called: Any) -> None:
        """Refuses a forward pass that went round a router."""
        missing = [name for name in self.layers if name not in called]
        if missing:
            problem = f"the forward pass did not call {missing[0]} (nor {len(missing) - 1} others)"
            remedy = "Use the model's own layers: kernels that replace them and compiled code pass the routers by."
            raise error("routing_pass", what=what, problem=problem, remedy=remedy)

    def check_record(self, record: Any, *, weights: bool) -> None:
        """Refuses a record that cannot be of this model."""

        def refuse(given: Any, expected: str) -> None:
            raise error("bad_parameter", owner="replay_routing", name="record", given=given, expected=expected)

        if not isinstance(record, RoutingRecord):
            refuse(record, "a RoutingRecord")
        given = (*record.experts.shape[-2:], record.num_experts)
        if given != (len(self.layers), self.k, self.num_experts):
            refuse(record, f"{len(self.layers)} layers, {self.k} of {self.num_experts} experts, as the model has")
        if record.layers and record.layers != self.layers:
            refuse(record.layers, f"the model's routers, {self.layers}")
        if weights and record.weights is None:
            refuse(record, "one with weights: record_routing(model, weights=True), or weights=False here")


def _routes(module: nn.Module) -> bool:
    """Whether a module looks as if it chose experts, and is not one of `ROUTERS`."""
    name = type(module).__name__
    likely = name.endswith("Router") or (name.endswith("Gate") and hasattr(module, "top_k"))
    return likely and name not in ROUTERS


def _decoder(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The innermost module around a router that takes ``input_ids``, and what its name adds to those of its parts."""
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if not isinstance(module, nn.ModuleList) and "input_ids" in inspect.signature(module.forward).parameters:
            return module, f"{path}." if path else ""
    problem = "has no part around the routers that takes input_ids"
    raise no_router(model, problem)


def no_router(model: Any, problem: str) -> GrpokitError:
    """The error for what cannot be recorded or replayed."""
    return error("no_router", model=type(model).__name__, problem=problem, known=", ".join(ROUTERS))
