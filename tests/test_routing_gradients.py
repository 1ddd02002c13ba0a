"""What a replayed router makes of its experts, and its gradient, against float64 loops."""

import importlib
import types

import numpy as np
import pytest
import torch
import transformers as tr
from torch import nn

import grpokit as gk
from grpokit.reference import routing as reference
from grpokit.routers import ROUTERS, Mixture

from .mixtures import Alone, build, gradients, inputs, record_of, routers, shuffled


@pytest.mark.parametrize("name", ["qwen3", "qwen3_not_normalised", "mixtral"])
def test_router_gradient_is_that_of_the_masked_softmax(name):
    """dL/dW of every router, against float64 loops; the bound is of the roundings on the way, in fp32."""
    model, batch = build(name, seed=3), inputs()
    record, _ = record_of(model, batch)
    record, blocks, seen = shuffled(record), {}, []
    for path, router in routers(model).items():
        parent = Mixture(model).decoder.get_submodule(path.rpartition(".")[0])
        blocks[path] = router, parent

        def keep(module, args, output, path=path):
            output.retain_grad()
            seen.append((path, args[0].detach(), output))

        parent.register_forward_hook(keep)
    renormalize = name != "qwen3_not_normalised"
    gradients(model, batch, record)
    for layer, (path, x, y) in enumerate(seen):
        router, block = blocks[path]
        W, H = router.weight.detach().double().numpy(), x.shape[-1]
        expected, size = np.zeros_like(W), np.zeros_like(W)
        x_T, upstream_T = x.double().reshape(-1, H).numpy(), y.grad.double().reshape(-1, H).numpy()
        live = batch["attention_mask"].reshape(-1).numpy().nonzero()[0]
        for t in live:
            chosen = record.experts.reshape(-1, *record.experts.shape[2:])[t, layer].tolist()
            u = [float(upstream_T[t] @ expert(block, i)(x_T[t])) for i in chosen]
            s = (W @ x_T[t]).tolist()
            ds = reference.gate_gradient(s, chosen, u, renormalize=renormalize)
            expected += np.outer(ds, x_T[t])
            size += np.max(np.abs(u)) * np.abs(x_T[t])
        steps = 2 * H + block.experts.down_proj.shape[-1] + record.num_experts + len(live)
        np.testing.assert_array_less(np.abs(router.weight.grad.numpy() - expected), 2**-23 * steps * size)
        assert np.abs(expected).max() > 1e3 * 2**-23 * steps * size.max() / steps


def expert(block, i):
    """f_i: a gated layer, of the block's weights in float64."""
    up, down = (p[i].detach().double().numpy() for p in (block.experts.gate_up_proj, block.experts.down_proj))

    def f(x):
        a, b = np.split(up @ np.asarray(x), 2)
        return down @ (a / (1 + np.exp(-a)) * b)

    return f


@pytest.mark.parametrize("renormalize", [True, False])
def test_reference_by_central_differences(renormalize):
    """Of one layer of experts in the router's weights: f'(x) h has an error of h² f'''/6 + ε f/h, about 1e-9 here."""
    rng = np.random.default_rng(0)
    block, (E, H) = build("qwen3").model.layers[0].mlp, (32, 32)
    x, W, v = rng.normal(size=H), rng.normal(size=(E, H)) / 8, rng.normal(size=H)
    chosen, functions = [3, 17, 30, 5], [expert(block, i) for i in range(E)]

    def value(W):
        return v @ reference.layer(x, W.tolist(), chosen, functions, renormalize=renormalize)

    u = [float(v @ functions[i](x)) for i in chosen]
    ds = reference.gate_gradient((W @ x).tolist(), chosen, u, renormalize=renormalize)
    for j in (0, 3, 30):
        for d in (0, 7):
            step = np.zeros_like(W)
            step[j, d] = 1e-5
            slope = (value(W + step) - value(W - step)) / 2e-5
            assert abs(slope - ds[j] * x[d]) < 1e-8 * max(1, np.abs(u).max())
    assert (ds[0] == 0) is renormalize


NUMBERS = {
    "hidden_size": 8, "num_experts": 12, "num_local_experts": 12, "num_experts_per_tok": 3, "n_group": 4,
    "topk_group": 2, "routed_scaling_factor": 2.5,
}  # fmt: skip


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_against_its_formula(name, normalised):
    folder = [n for n in dir(tr.models) if name.lower().replace("_", "").startswith(n.replace("_", ""))]
    folder = max(folder, key=len)
    home = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    config = types.SimpleNamespace(**NUMBERS, norm_topk_prob=normalised)
    router = getattr(home, name)(config)
    torch.manual_seed(0)
    for parameter in router.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(7, 8)
    bias = getattr(router, "bias", None)
    s_TE = x.double() @ router.weight.double().T + (0 if bias is None else bias.double())
    record = shuffled(gk.RoutingRecord(np.tile(np.arange(3), (1, 7, 1, 1)), 12))
    model = Alone(router, x)
    with gk.replay_routing(model, record), gk.record_routing(model, weights=True) as recorder:
        _, weights, experts = model(torch.zeros(1, 7, dtype=torch.int64))
    assert experts.tolist() == record.experts[0, :, 0].tolist()
    expected = []
    for s, chosen in zip(s_TE.tolist(), experts.tolist(), strict=True):
        if "opkRouter" in name:  # DeepSeek's sigmoids
            g = [1 / (1 + np.exp(-s[i])) for i in chosen]
            g = [2.5 * a / (sum(g) if normalised else 1) for a in g]
        else:
            always = not hasattr(router, "norm_topk_prob")
            g = reference.gate(s, chosen, renormalize=normalised or always)
        expected.append(g)
    # s is a sum of 9 products of size |x||w|, whose error e moves g by a share of e at most; softmax adds its 12.
    error = 2**-23 * (9 * (x.abs().double() @ router.weight.abs().double().T).max().item() + 12 + 8)
    np.testing.assert_allclose(weights.detach().numpy(), expected, rtol=2 * error)
    np.testing.assert_array_equal(recorder.record.weights[0, :, 0], weights.detach().numpy())


def test_every_known_router_is_in_transformers():
    assert len(set(ROUTERS)) == len(ROUTERS)


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "gpt_oss"])
def test_replayed_weights_leave_the_router_alone(name):
    model, batch = build(name), inputs()
    record, logits = record_of(model, batch, weights=True)
    moved, found = gradients(model, batch, record, weights=True)
    assert torch.equal(moved, logits)
    live = [g for n, g in found.items() if "router" in n or n.endswith("gate.weight")]
    assert live
    assert all((g == 0).all() for g in live)  # padding is not recorded, and has no say in the loss
    doubled = gk.RoutingRecord(record.experts, record.num_experts, 2 * record.weights)
    with torch.no_grad(), gk.replay_routing(model, doubled, weights=True), gk.record_routing(model, weights=True) as r:
        model(**batch, use_cache=False)
    np.testing.assert_array_equal(r.record.weights[r.record.recorded], 2 * record.weights[record.recorded])
