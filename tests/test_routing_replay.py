"""Routing replay on real models of transformers: exact, and by position."""

import copy

import numpy as np
import pytest
import torch
import transformers as tr
from torch import nn

import grpokit as gk
from grpokit.trainer.policy import Policy

from .mixtures import (
    MODELS,
    TOKENIZER,
    build,
    cut,
    gradients,
    hooks,
    inputs,
    logps,
    recompute,
    record_of,
    routers,
    same_bits,
    sampled,
    shuffled,
)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def qwen():
    return build("qwen3")


def test_own_record_changes_no_bit(model):
    batch = inputs()
    record, logits = record_of(model, batch)
    own, own_gradients = gradients(model, batch)
    replayed, replayed_gradients = gradients(model, batch, record)
    assert torch.equal(logits, own)
    assert torch.equal(own, replayed)
    same_bits(own_gradients, replayed_gradients)
    assert sum(name.endswith((".gate.weight", ".router.weight")) for name in own_gradients) == len(record.layers)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "deepseek_v3"])  # it chooses within groups
def test_record_is_what_the_router_says(name):
    """Against the top k of the logits that transformers hands out."""
    model, batch = build(name), inputs()
    record, _ = record_of(model, batch)
    with torch.no_grad():
        logits = model(**batch, output_router_logits=True).router_logits
    live = batch["attention_mask"].bool()
    assert (record.recorded == live[..., None].numpy()).all()
    for layer, of_layer in enumerate(logits):
        top = of_layer.view(*live.shape, -1).topk(record.experts.shape[-1]).indices
        for place in live.nonzero().tolist():
            assert set(top[tuple(place)].tolist()) == set(record.experts[(*place, layer)].tolist())


def test_other_experts_are_taken_and_leave_no_trace(model):
    batch = inputs()
    record, logits = record_of(model, batch)
    other = shuffled(record)
    with torch.no_grad(), gk.replay_routing(model, other), gk.record_routing(model) as recorder:
        moved = model(**batch, use_cache=False).logits
    assert recorder.record.agreement(other).sets == 1.0
    assert record.agreement(other).sets < 0.5
    assert (moved - logits).abs().max() > 0.01
    after, untouched = record_of(model, batch)
    assert torch.equal(untouched, logits)
    assert after.agreement(record).sets == 1.0


@pytest.mark.parametrize("way", ["cache", "generate"])
def test_decoding_is_put_together_by_position(model, way):
    """A prompt and then token by token, against one full pass; in float64, so that nothing is close to a tie."""
    exact = copy.deepcopy(model).double()
    exact.set_experts_implementation("eager")  # the others know no float64
    if "GptOss" not in type(model).__name__:  # its attention has sinks, which only the eager one knows
        exact.set_attn_implementation("sdpa")  # the eager one masks by a float64 that is infinite in its softmax
    batch = inputs(width=12)
    ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
    with torch.no_grad(), gk.record_routing(exact, weights=True) as recorder:
        if way == "cache":
            cache = tr.DynamicCache(config=exact.config)
            for a, b in ((0, 5), *((i, i + 1) for i in range(5, 11))):
                exact(
                    input_ids=ids[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b],
                    past_key_values=cache,
                )  # fmt: skip
        else:
            ids = exact.generate(
                ids[:, :5], attention_mask=mask[:, :5], max_new_tokens=7, min_new_tokens=7, do_sample=False
            )
    assert recorder.record.layout == (3, 11)  # the last token is never an input
    full, _ = record_of(exact, batch | {"input_ids": ids}, weights=True)
    found = recorder.record.agreement(cut(full, 11))
    assert found.sets == 1.0
    assert found.tokens.tolist() == [int(mask[:, :11].sum())] * len(full.layers)
    live = mask[:, :11].bool().numpy()
    np.testing.assert_allclose(recorder.record.weights[live], full.weights[:, :11][live], rtol=2**-20)


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_to_run_experts(experts):
    """The experts' own code is left alone, whichever it is."""
    model, batch = build("mixtral"), inputs()
    model.set_experts_implementation(experts)
    record, logits = record_of(model, batch)
    own, own_gradients = gradients(model, batch)
    replayed, replayed_gradients = gradients(model, batch, record)
    assert torch.equal(own, logits)
    assert torch.equal(own, replayed)
    if experts == "eager":
        same_bits(own_gradients, replayed_gradients)
    else:
        # Their backward passes add up by threads, in an order that is not fixed: a few roundings of the largest entry.
        assert own_gradients.keys() == replayed_gradients.keys()
        for name, g in own_gradients.items():
            torch.testing.assert_close(replayed_gradients[name], g, rtol=0, atol=2**-18 * float(g.abs().max()))


def test_batches_are_records(qwen):
    a, b = inputs(), inputs(seed=1)
    with torch.no_grad(), gk.record_routing(qwen) as recorder:
        for batch in (a, b):
            qwen(**batch)  # with a cache of its own, which begins empty
    assert len(recorder.records) == 2
    joined = gk.RoutingRecord.concatenate([record_of(qwen, batch)[0] for batch in (a, b)])
    np.testing.assert_array_equal(recorder.record.experts, joined.experts)


def test_a_bf16_sampler_chooses_otherwise_and_r3_follows_it(qwen):
    batch, record = sampled(qwen)
    policy = Policy(qwen, TOKENIZER)
    with torch.no_grad():
        with gk.record_routing(qwen) as own:
            alone = logps(policy, batch)
        with gk.replay_routing(qwen, record), gk.record_routing(qwen) as followed:
            replayed = logps(policy, batch)
    live = batch.inputs["attention_mask"]
    before, after = (r.record.agreement(record, live) for r in (own, followed))
    assert 0.3 < before.sets < 1.0
    assert before.sets < before.overlap < 1.0
    assert after.sets == after.overlap == 1.0
    assert (after.tokens == before.tokens).all()
    assert not torch.equal(alone, replayed)


def test_answers_alone_are_not_enough(qwen):
    """Prompts' experts move the answers' logits: replayed at the answers alone, these are not the sampler's policy."""
    batch, record = sampled(qwen)
    record = shuffled(record)  # other experts everywhere, so that nothing hangs on which ones flip
    policy, width = Policy(qwen, TOKENIZER), batch.targets.shape[1]
    experts = record.experts.copy()
    experts[:, :-width] = -1
    answers = gk.RoutingRecord(experts, record.num_experts)
    found = []
    for replayed in (record, answers):
        with torch.no_grad(), gk.replay_routing(qwen, replayed), gk.record_routing(qwen) as recorder:
            found.append((logps(policy, batch), recorder.record))
    (whole, of_whole), (part, of_part) = found
    assert cut(of_whole, 1).agreement(cut(of_part, 1)).sets < 1
    assert gk.RoutingRecord(of_part.experts[:, -width:], record.num_experts).agreement(
        gk.RoutingRecord(of_whole.experts[:, -width:], record.num_experts)
    ).sets == 1.0  # fmt: skip
    assert (whole - part).abs().max() > 0.01


def test_own_choice_where_nothing_is_recorded(qwen):
    batch = inputs()
    record, logits = record_of(qwen, batch)
    nothing = gk.RoutingRecord(np.full_like(record.experts, -1), record.num_experts)
    with torch.no_grad(), gk.replay_routing(qwen, nothing):
        assert torch.equal(qwen(**batch, use_cache=False).logits, logits)


def test_r2_holds_the_experts_while_weights_move():
    model = build("qwen3", seed=1)
    policy = Policy(model, TOKENIZER)
    batch, _ = sampled(model)
    with torch.no_grad(), gk.record_routing(model) as recorder:
        old = logps(policy, batch)
    record, live = recorder.record, batch.inputs["attention_mask"]
    with gk.replay_routing(model, record):
        first = logps(policy, batch)
        assert torch.equal(first.detach(), old)  # the first ratio is exactly 1
        first.sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    with torch.no_grad():
        with gk.record_routing(model) as own:
            free = logps(policy, batch) - old
        with gk.replay_routing(model, record), gk.record_routing(model) as held:
            replayed = logps(policy, batch) - old
    assert own.record.agreement(record, live).sets < 1.0
    assert held.record.agreement(record, live).sets == 1.0
    assert not torch.equal(free, replayed)
    assert replayed.abs().max() > 0


def test_micro_batches_take_their_rows(qwen):
    batch, record = sampled(qwen)
    width = batch.targets.shape[1]
    whole = gk.TokenBatch(targets=batch.targets, mask=batch.mask, inputs=batch.inputs, advantages=torch.ones(8))

    def run(max_tokens):
        qwen.zero_grad()
        for part in whole.split(max_tokens=max_tokens):
            with gk.replay_routing(qwen, record[part.span]):
                logits = Policy(qwen, TOKENIZER).logits(part.inputs, width)
                gk.loss.from_logits(logits, part, recipe=gk.recipe("gspo")).loss.backward()
        return {name: p.grad.clone() for name, p in qwen.named_parameters()}

    parts, at_once = run(3 * width), run(10**6)
    for name, g in parts.items():
        torch.testing.assert_close(g, at_once[name], rtol=1e-4, atol=1e-5 * at_once[name].abs().max().item())


def test_packed_records(qwen):
    """One row of several sequences, as packed training has it: position ids begin anew."""
    batch = inputs()
    mask = batch["attention_mask"].bool()
    record = shuffled(record_of(qwen, batch)[0])
    packed = gk.RoutingRecord.concatenate(record.split(mask))
    ids = batch["input_ids"][mask][None]
    with torch.no_grad(), gk.replay_routing(qwen, packed), gk.record_routing(qwen) as recorder:
        qwen(input_ids=ids, position_ids=batch["position_ids"][mask][None], use_cache=False)
    np.testing.assert_array_equal(recorder.record.experts[0], packed.experts)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "gpt_oss"])
def test_recomputed_activations_get_the_same_experts(name, reentrant):
    model, batch = build(name), inputs()
    record = shuffled(record_of(model, batch)[0])
    with torch.no_grad(), gk.replay_routing(model, record):
        model(**batch, use_cache=False)
    plain, expected = gradients(model, batch, record)
    model.train()  # these have no dropout
    recompute(model, use_reentrant=reentrant)
    if reentrant:
        model.enable_input_require_grads()
    calls = []
    first = next(iter(routers(model).values()))
    handle = first.register_forward_hook(lambda *_: calls.append(1))
    with gk.record_routing(model) as recorder:
        logits, found = gradients(model, batch, record)
    handle.remove()
    assert len(calls) == 2  # forward and once more
    assert torch.equal(logits, plain)
    same_bits(found, expected)
    assert len(recorder.records) == 1
    assert recorder.record.agreement(record).sets == 1.0


def test_recomputation_outside_of_the_with_is_an_error():
    model, batch = build("mixtral").train(), inputs()
    record, _ = record_of(model, batch)
    recompute(model)
    said = r"no backward pass yet. Call backward\(\) inside"
    with pytest.raises(gk.StateError, match=said), gk.replay_routing(model, record):
        model(**batch)
    with torch.no_grad(), gk.replay_routing(model, record):
        model(**batch)
    model.eval()
    with gk.replay_routing(model, record):
        loss = model(**batch, use_cache=False).logits.sum()
    loss.backward()  # nothing is recomputed


def test_an_exception_leaves_nothing_behind():
    model, batch = build("mixtral"), inputs()
    record, logits = record_of(model, batch)
    for entry in (lambda: gk.record_routing(model), lambda: gk.replay_routing(model, shuffled(record))):
        with pytest.raises(KeyError), entry():
            raise KeyError
        broken = nn.Module.register_forward_pre_hook(model.lm_head, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), entry():
            model(**batch)
        broken.remove()
        inside = next(iter(routers(model).values())).register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), entry():
            model(**batch)
        inside.remove()
        assert hooks(model) == 0
        with torch.no_grad():
            assert torch.equal(model(**batch, use_cache=False).logits, logits)


def test_wrapped_models_have_the_same_names():
    """A module around the model, as data parallel training has it, changes neither records nor replay."""

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    model, batch = build("mixtral"), inputs()
    record, logits = record_of(model, batch)
    assert record.layers == ("layers.0.mlp.gate", "layers.1.mlp.gate", "layers.2.mlp.gate")
    for other in (Wrapper(model), model.model):
        again, _ = record_of(Wrapper(model), batch)
        np.testing.assert_array_equal(again.experts, record.experts)
        with torch.no_grad(), gk.replay_routing(other, record):
            assert torch.equal(model(**batch, use_cache=False).logits, logits)
