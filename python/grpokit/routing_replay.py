"""Routing replay: a mixture of experts of `transformers` records what its routers choose, or chooses what a record has.

A top-k choice jumps where a number moves a little: a sampler in another precision, weights an update later. R2
(arXiv:2507.18071, so named in arXiv:2512.01374) replays the trainer's choice under π_old for π_θ; R3
(arXiv:2510.11370) the sampler's, for both. In: a model and a `RoutingRecord`. Out: the same forward with
g_i = I_i e^{s_i} / Σ_j I_j e^{s_j}, I the record's experts and s the router's own logits, which have the gradient.

Experts go by position and are the same however often a layer runs, so activations may be recomputed. A router is
run by its own code with its `topk` answered from the record: whatever it makes of its choice stays its own.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import error
from .routers import Mixture, no_router
from .routing import NOT_RECORDED, RoutingRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

_recording: WeakSet[nn.Module] = WeakSet()
_replaying: WeakSet[nn.Module] = WeakSet()


class RoutingRecorder:
    """What `record_routing` has seen."""

    def __init__(self, model: Mixture, *, weights: bool) -> None:
        self._model, self._weights = model, weights
        self._passes: list[list[tuple[Tensor, Tensor | None]]] = []
        self._seen: dict[str, tuple[Tensor, Tensor | None]] | None = None  # None outside of a forward pass
        self._live: Tensor | None = None

    @property
    def records(self) -> list[RoutingRecord]:
        """One record for each batch, (B, P, L, k): a full forward pass, or a prompt and what was decoded after it.

        Where the model was given a 2-dimensional ``attention_mask``, what it masks is not recorded.
        """
        return [self._record(parts) for parts in self._passes]

    @property
    def record(self) -> RoutingRecord:
        """All batches as one record, as far as they have one width.

        Raises
        ------
        StateError
            `routing_pass`: there was no forward pass.
        InputError
            `token_shape`: batches of several widths, which are in `records`.
        """
        if not self._passes:
            raise error(
                "routing_pass",
                what="record_routing",
                problem="the model has made no forward pass",
                remedy="Call the model inside the `with`; code that torch.compile made of it earlier passes it by.",
            )
        return RoutingRecord.concatenate(self.records)

    def _record(self, parts: list[tuple[Tensor, Tensor | None]]) -> RoutingRecord:
        experts = torch.cat([experts for experts, _ in parts], 1).cpu().numpy()
        found = [weights for _, weights in parts if weights is not None]
        weights = torch.cat(found, 1).cpu().numpy() if found else None
        return RoutingRecord(experts, self._model.num_experts, weights, self._model.layers)

    def _begin(self, shape: tuple[int, int], past: int, live: Tensor | None) -> None:
        last = self._passes[-1] if past and self._passes else []
        recorded = (len(last[0][0]), sum(experts.shape[1] for experts, _ in last)) if last else (0, 0)
        if past and recorded != (shape[0], past):
            given = (
                f"a cache of {shape[0]} rows and {past} places follows on {recorded[0]} rows and {recorded[1]} places"
            )
            remedy = "Record from the first token on, with a cache that is neither cut nor reordered in between."
            raise error("routing_pass", what="record_routing", problem=given, remedy=remedy)
        self._seen, self._live, self._past, self._shape = {}, live, past, shape

    def _see(self, name: str, output: tuple[Tensor, Tensor, Tensor]) -> None:
        if self._seen is not None:  # else activations are recomputed in a backward pass: seen before
            small = torch.int8 if self._model.num_experts <= 2**7 else torch.int16
            _, weights, experts = output
            self._seen[name] = experts.detach().to(small), weights.detach().float() if self._weights else None

    def _end(self) -> None:
        seen, self._seen = self._seen or {}, None
        self._model.check_called("record_routing", seen.keys())
        found = [seen[name] for name in self._model.layers]
        experts = self._stack([experts for experts, _ in found])
        if self._live is not None:
            experts = experts.masked_fill(~self._live.to(experts.device)[:, :, None, None], NOT_RECORDED)
        weights = [weights for _, weights in found if weights is not None]
        if not self._past:
            self._passes.append([])
        self._passes[-1].append((experts, self._stack(weights) if weights else None))

    def _stack(self, of_layers: list[Tensor]) -> Tensor:
        """(B, P, L, k), where the first layer is."""
        return torch.stack([x.view(*self._shape, -1).to(of_layers[0].device) for x in of_layers], 2)


@contextmanager
def record_routing(model: Any, *, weights: bool = False) -> Iterator[RoutingRecorder]:
    """Records the experts that a model's routers choose in the forward passes inside the `with`.

    Parameters
    ----------
    model : torch.nn.Module
        A mixture of experts of `transformers` with routers among `grpokit.routers.ROUTERS`, or what wraps one.
    weights : bool
        Records what the experts' outputs are multiplied by as well.

    Yields
    ------
    RoutingRecorder
        Its `record` and `records` hold what was chosen, also after the `with`.

    Raises
    ------
    InputError
        `no_router`: the model has no router that is known, has others beside, or is compiled.
    StateError
        `routing_pass`: the model is recorded already; a forward pass went round a router, or goes on from tokens
        that were not recorded.

    Notes
    -----
    A pass without cache, or with an empty one, begins a batch; one with a filled cache goes on where the last ended.
    What recomputation of activations runs again is not recorded again. Rows must keep their places in the cache: beam
    search moves them, which cannot be seen here.

    Examples
    --------
    >>> import torch
    >>> from transformers import MixtralConfig, MixtralForCausalLM
    >>> import grpokit as gk
    >>> model = MixtralForCausalLM(MixtralConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2))
    >>> ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    >>> with gk.record_routing(model) as recorder:
    ...     logits = model(ids).logits
    >>> recorder.record
    RoutingRecord(2x3, 2 layers, 2 of 4 experts)
    >>> with gk.replay_routing(model, recorder.record):
    ...     bool((model(ids).logits == logits).all())
    True
    """
    mixture = Mixture(model)
    recorder = RoutingRecorder(mixture, weights=weights)

    def before(decoder: nn.Module, args: Any, kwargs: Any) -> None:
        given = _arguments(decoder, args, kwargs)
        shape, past, mask = _shape(given), _past(given), given.get("attention_mask")
        live = None
        if isinstance(mask, Tensor) and mask.dim() == 2:
            live = mask[:, past : past + shape[1]] != 0
        recorder._begin(shape, past, live)

    with ExitStack() as stack:
        mixture.claim(stack, _recording, "record_routing")
        stack.callback(mixture.decoder.register_forward_pre_hook(before, with_kwargs=True).remove)
        for name, router in mixture.routers.items():
            hook = router.register_forward_hook(lambda _, __, output, name=name: recorder._see(name, output))
            stack.callback(hook.remove)
        stack.callback(mixture.decoder.register_forward_hook(lambda *_: recorder._end()).remove)
        yield recorder


@contextmanager
def replay_routing(model: Any, record: RoutingRecord, *, weights: bool = False) -> Iterator[None]:
    """Makes a model's routers choose the record's experts where it has them, and their own elsewhere.

    Parameters
    ----------
    model : torch.nn.Module
        As for `record_routing`.
    record : RoutingRecord
        (B, P): of the rows and places of the model's input, prompts included, as they change what follows; padding
        may be unknown. A packed record, (T,), is for an input of (1, T).
    weights : bool
        Replays the record's combine weights too. Then no gradient reaches the routers where it has experts.

    Raises
    ------
    InputError
        `no_router`; `bad_parameter`: a record of another number of layers, experts, k or other modules, or one
        without weights; `token_shape`: an input of another shape than the record.
    StateError
        `routing_pass`: the model replays already; a forward pass went round a router or has a filled cache; no pass
        was made; or activations are recomputed and the backward pass is still to come.

    Notes
    -----
    Per token and layer, with s the logits of the router as it is now and I the record's experts (arXiv:2510.11370):

        g_i = I_i e^{s_i} / Σ_j I_j e^{s_j}

    A router that does not renormalise its top k has g_i = I_i e^{s_i} / Σ_j e^{s_j}, one of sigmoids those of I; the
    gradient goes to s through g. Run the backward pass inside the `with`: gradient checkpointing routes again in it.

    A load balancing loss that transformers makes of ``router_logits`` counts the routers' own choice, not the record's.
    Models that torch.compile has seen, expert and tensor parallelism, and routers of other kinds are not supported.

    Examples
    --------
    For micro-batches, with `policy` and `batch` as in `grpokit.trainer`::

        for part in batch.split(max_tokens=4096):
            with gk.replay_routing(model, record[part.span]):
                gk.loss.from_logits(logits_of(part), part, recipe=recipe).loss.backward()
    """
    mixture = Mixture(model)
    mixture.check_record(record, weights=weights)
    shape = record.layout if len(record.layout) == 2 else (1, *record.layout)
    experts = torch.tensor(record.experts).flatten(0, -3)
    combine = torch.tensor(record.weights).flatten(0, -3) if weights else None
    passes = _Passes(mixture)

    def before(decoder: nn.Module, args: Any, kwargs: Any) -> None:
        given = _arguments(decoder, args, kwargs)
        if _past(given):
            problem, remedy = "the cache has tokens already", "Give the whole sequences, without a cache."
            raise error("routing_pass", what="replay_routing", problem=problem, remedy=remedy)
        if _shape(given) != shape:
            raise error("token_shape", name="the record", given=shape, expected=f"{_shape(given)}, the model's input")
        passes.called.clear()

    def choose(router: nn.Module, args: Any, kwargs: Any, output: Any, layer: int) -> Any:
        nonlocal experts, combine
        experts = experts.to(output[2].device)  # once, where the model is on one device
        chosen_Tk = experts[:, layer].long()
        if len(chosen_Tk) != len(output[2]):
            problem = (
                f"{mixture.layers[layer]} was called with {len(output[2])} tokens, the record has {len(chosen_Tk)}"
            )
            remedy = "Call the model that was given, not a part of it."
            raise error("routing_pass", what="replay_routing", problem=problem, remedy=remedy)
        passes.called.add(mixture.layers[layer])
        there_T1 = chosen_Tk[:, :1] != NOT_RECORDED
        chosen_Tk = torch.where(there_T1, chosen_Tk, output[2])
        with _Choice(chosen_Tk, mixture.num_experts) as choice:
            logits, scores, routed = router.forward(*args, **kwargs)
        if routed is not choice.chosen_Tk or choice.times != 1:
            raise no_router(router, "does not choose by one topk")
        if combine is not None:
            combine = combine.to(scores.device)
            scores = torch.where(there_T1, combine[:, layer].to(scores.dtype), scores)
        return logits, scores, routed

    with ExitStack() as stack:
        mixture.claim(stack, _replaying, "replay_routing")
        stack.callback(mixture.decoder.register_forward_pre_hook(before, with_kwargs=True).remove)
        for layer, router in enumerate(mixture.routers.values()):

            def hook(router: nn.Module, args: Any, kwargs: Any, output: Any, layer: int = layer) -> Any:
                return choose(router, args, kwargs, output, layer)

            # Before all other hooks: a recorder shall see what is replayed.
            stack.callback(router.register_forward_hook(hook, with_kwargs=True, prepend=True).remove)
        stack.callback(mixture.decoder.register_forward_hook(passes.end).remove)
        yield
        passes.close()


class _Choice(TorchFunctionMode):
    """Answers the `topk` over all experts with those that are given."""

    def __init__(self, chosen_Tk: Tensor, num_experts: int) -> None:
        super().__init__()
        self.chosen_Tk, self.shape, self.times = chosen_Tk, (len(chosen_Tk), num_experts), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.topk, Tensor.topk):
            x, k = args[0], args[1] if len(args) > 1 else kwargs["k"]
            if x.shape == self.shape and k == self.chosen_Tk.shape[1]:
                self.times += 1
                return torch.return_types.topk((x.gather(-1, self.chosen_Tk), self.chosen_Tk))
        return func(*args, **kwargs)


class _Passes:
    """The forward passes of a `with`: whether each went through the routers, and whether its gradient was taken."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture, self.called, self.ended, self.waiting = mixture, set[str](), 0, set[int]()

    def end(self, decoder: nn.Module, args: Any, output: Any) -> None:
        self.mixture.check_called("replay_routing", self.called)
        self.ended += 1
        hidden = output[0]
        recomputed = any(getattr(m, "gradient_checkpointing", False) and m.training for m in decoder.modules())
        if recomputed and hidden.requires_grad:
            number = self.ended
            self.waiting.add(number)
            hidden.register_hook(lambda _: self.waiting.discard(number))

    def close(self) -> None:
        if not self.ended:
            problem = "the model has made no forward pass"
            remedy = "Call the model inside the `with`; code that torch.compile made of it earlier passes it by."
        elif self.waiting:
            problem = f"{len(self.waiting)} forward passes recompute their activations, and had no backward pass yet"
            remedy = "Call backward() inside the `with`, where it finds the record, or use torch.no_grad()."
        else:
            return
        raise error("routing_pass", what="replay_routing", problem=problem, remedy=remedy)


def _arguments(decoder: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    return dict(inspect.signature(decoder.forward).bind_partial(*args, **kwargs).arguments)


def _shape(given: dict[str, Any]) -> tuple[int, int]:
    embedded = given.get("inputs_embeds")
    rows, places = given["input_ids"].shape if embedded is None else embedded.shape[:2]
    return rows, places


def _past(given: dict[str, Any]) -> int:
    cache = given.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())
