"""What record_routing and replay_routing refuse, each in its words."""

import copy

import numpy as np
import pytest
import torch
import transformers as tr
from torch import nn

import grpokit as gk
from grpokit.errors import KINDS

from .mixtures import SIZES, Alone, build, hooks, inputs, record_of


class Twice(nn.Module):
    """Chooses by two topk: none of the known ones does."""

    top_k, num_experts = 2, 4

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 8))

    def forward(self, x):
        s = x @ self.weight.T
        return s, s.topk(2).values, s.topk(2).indices


def record_and_replay(record, **options):
    def run(model, batch):
        with gk.replay_routing(model, record(model, batch), **options):
            model(**batch)

    return run


def nested(entry):
    def run(model, batch):
        record, _ = record_of(model, batch)
        with entry(model, record), entry(model, record):
            pass

    return run


def recording(model, record):
    return gk.record_routing(model)


def own(model, batch):
    return record_of(model, batch)[0]


def nothing_recorded(model, batch):
    with gk.record_routing(model) as recorder:
        pass
    return recorder.record


def replay_into_a_cache(model, batch):
    record, cache = own(model, batch), tr.DynamicCache(config=model.config)
    model(**batch, past_key_values=cache)
    with gk.replay_routing(model, record):
        model(batch["input_ids"], past_key_values=cache)


def record_the_middle(model, batch):
    cache = tr.DynamicCache(config=model.config)
    model(**batch, past_key_values=cache)
    with gk.record_routing(model):
        model(batch["input_ids"][:, :1], past_key_values=cache)


def record_a_cut_cache(model, batch):
    cache = tr.DynamicCache(config=model.config)
    with gk.record_routing(model):
        model(**batch, past_key_values=cache)
        cache.crop(-5)
        model(batch["input_ids"][:, :1], past_key_values=cache)


def call_a_part(model, batch):
    record = own(model, batch)
    with gk.replay_routing(model, record):
        model.model.layers[0].mlp(torch.zeros(1, 2, 32))


def by_pass(entry):
    """A layer that no longer asks its router, from the second pass on."""

    def run(model, batch):
        record, model = own(model, batch), copy.deepcopy(model)
        with entry(model, record):
            model(**batch)
            model.model.layers[1].mlp.forward = lambda x: x
            model(**batch)

    return run


def two_topk(model, batch):
    router = type("MixtralTopKRouter", (Twice,), {})()
    record = gk.RoutingRecord(np.array([[[0, 1]]] * 5), 4)
    alone = Alone(router, torch.ones(5, 8))
    with gk.replay_routing(alone, record):
        alone(torch.zeros(1, 5))


def uneven_layers(model, batch):
    model = copy.deepcopy(model)
    model.model.layers[1].mlp.gate.top_k = 3
    gk.record_routing(model).__enter__()


def compiled_part(model, batch):
    model = copy.deepcopy(model)
    model.model.layers[0].compile()
    gk.record_routing(model).__enter__()


BAD = {
    "no_router": [
        (lambda m, b: gk.record_routing(tr.Qwen3ForCausalLM(tr.Qwen3Config(**SIZES, head_dim=16))).__enter__(),
         ["Qwen3ForCausalLM has no router", "MixtralTopKRouter"]),
        (lambda m, b: gk.record_routing("model").__enter__(), ["str is no torch.nn.Module"]),
        (lambda m, b: gk.record_routing(torch.compile(m)).__enter__(), ["compiled", "torch.compile"]),
        (uneven_layers, ["different (k, experts)", "(2, 8), (3, 8)"]),
        (compiled_part, ["compiled", "before torch.compile"]),
        (lambda m, b: gk.record_routing(nn.ModuleList([m, type("LateRouter", (nn.Linear,), {})(1, 1)])).__enter__(),
         ["1 (LateRouter)", "cannot be replayed"]),
        (lambda m, b: gk.record_routing(m.model.layers[0].mlp).__enter__(), ["takes input_ids"]),
        (lambda m, b: gk.record_routing(nn.ModuleList([m, copy.deepcopy(m)])).__enter__(), ["several decoders"]),
        (two_topk, ["MixtralTopKRouter does not choose by one topk"]),
    ],
    "routing_pass": [
        (nested(recording), ["record_routing", "already"]),
        (nested(gk.replay_routing), ["replay_routing", "already"]),
        (nothing_recorded, ["no forward pass"]),
        (nested(lambda m, r: gk.replay_routing(copy.deepcopy(m), r)), ["no forward pass", "torch.compile"]),
        (replay_into_a_cache, ["replay_routing", "cache has tokens"]),
        (record_the_middle, ["3 rows and 9 places", "0 rows"]),
        (record_a_cut_cache, ["3 rows and 4 places", "3 rows and 9 places"]),
        (call_a_part, ["layers.0.mlp.gate", "2 tokens", "27"]),
        (by_pass(recording), ["record_routing", "layers.1.mlp.gate"]),
        (by_pass(gk.replay_routing), ["replay_routing", "layers.1.mlp.gate"]),
    ],
    "token_shape": [
        (record_and_replay(lambda m, b: own(m, b)[:2]), ["(2, 9)", "(3, 9), the model's input"]),
        (record_and_replay(lambda m, b: own(m, b).split(np.ones((3, 9)))[0]), ["(1, 9)", "(3, 9)"]),
    ],
    "bad_parameter": [
        (record_and_replay(lambda m, b: 3), ["record=3", "RoutingRecord"]),
        (record_and_replay(lambda m, b: gk.RoutingRecord(own(m, b).experts, 9)), ["3 layers, 2 of 8"]),
        (record_and_replay(lambda m, b: gk.RoutingRecord(own(m, b).experts[..., :1], 8)), ["1 of 8", "2 of 8"]),
        (record_and_replay(lambda m, b: gk.RoutingRecord(own(m, b).experts[:, :, 1:], 8)), ["2 layers", "3 layers"]),
        (record_and_replay(lambda m, b: gk.RoutingRecord(own(m, b).experts, 8, None, "abc")), ["('abc',)"]),
        (record_and_replay(own, weights=True), ["with weights", "weights=True"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_meant_is_refused(kind):
    model, batch = build("mixtral"), inputs()
    for provoke, words in BAD[kind]:
        with pytest.raises(KINDS[kind].cls) as caught:
            provoke(model, batch)
        assert caught.value.kind == kind, caught.value
        for word in words:
            assert word in str(caught.value), (word, str(caught.value))
        assert hooks(model) == 0
