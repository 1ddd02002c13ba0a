"""How many products the loss from hidden states takes, of which rows, how much memory, and what is rounded."""

import pytest
import torch

import grpokit as gk
from grpokit import loss as losses
from grpokit import vocabulary
from tests.heads import Products, chain, headed, run_hidden
from tests.losses import RECIPES, V, padded, recipe, run, same
from tests.test_loss import BATCH_SCOPE

TOKEN, SEQUENCE, BATCH = RECIPES["dual_constant"], RECIPES["gspo_icepop"], BATCH_SCOPE["median_kept"]


def products(r, d, weight, rows, *, requires=(True, True), **more):
    batch = padded(d, **more)
    x, w = (t.clone().requires_grad_(on) for t, on in zip((d["hidden"], weight), requires, strict=True))
    losses.from_logits(d["logits"], batch, r)  # what is settled once a batch
    with Products() as seen:
        losses.from_hidden(x, w, batch, r, workspace_bytes=rows * V * 8)
    return seen


def test_three_products_where_the_coefficients_are_known_at_once():
    d, weight = headed(3)
    T, longest = int(d["mask"].sum()), int(d["mask"].sum(1).max())
    assert 4 < longest < 10 < T
    # Token scope: any rows, as many as there is room for.
    assert products(TOKEN, d, weight, 10).logits == [T % 10] + [10] * (T // 10)
    # Sequence scope: whole sequences.
    assert sum(products(SEQUENCE, d, weight, 10).logits) == T
    # On-policy the ratio of a sequence is 1 without looking at it.
    for name in ("gspo", "luspo", "gmpo"):
        assert sum(products(gk.recipe(name), d, weight, 1, old_logps=None).logits) == T
    # Everything has room.
    assert products(BATCH, d, weight, T).logits == [T]


def test_what_does_not_fit_is_multiplied_twice_but_for_what_is_still_there():
    d, weight = headed(3)
    lengths = d["mask"].sum(1).tolist()
    again = sum(max(0, n - 4) for n in lengths)
    assert sum(products(SEQUENCE, d, weight, 4).logits) == sum(lengths) + again > sum(lengths)
    assert sum(products(BATCH, d, weight, 4).logits) == 2 * sum(lengths) - 4
    # On-policy, a ratio to the sampler is not known, and neither is which tokens of a sequence a mask leaves.
    for r in (RECIPES["oapl"], recipe(gk.SequenceClip(), (gk.IcePop(0.8, 1.3),))):
        assert sum(products(r, d, weight, 4, old_logps=None).logits) == sum(lengths) + again


def test_coefficients_that_are_ready_need_three_products():
    d, weight = headed(3)
    parts, size = padded(d).split(20), {"workspace_bytes": 2 * V * 8}
    w = weight.clone().requires_grad_()
    for part in parts:
        with Products() as seen:
            losses.observe(d["hidden"][part.span], part, BATCH, weight=w, **size)
        assert sum(seen.logits) == part.live_tokens
        assert not seen.hidden + seen.weight
    for part in parts:
        with Products() as seen:
            losses.from_hidden(d["hidden"][part.span], w, part, BATCH, **size)
        assert sum(seen.logits) == part.live_tokens
    with pytest.raises(gk.StateError) as caught:
        losses.from_hidden(d["hidden"][part.span], w, part, BATCH, **size)
    assert caught.value.kind == "not_observed"


def test_a_product_that_nobody_asked_for_is_not_computed():
    d, weight = headed(3)
    T = int(d["mask"].sum())
    seen = products(TOKEN, d, weight, 9, requires=(True, False))
    assert (sum(seen.logits), sum(seen.hidden), seen.weight) == (T, T, [])
    seen = products(TOKEN, d, weight, 9, requires=(False, True))
    assert (sum(seen.logits), seen.hidden, sum(seen.weight)) == (T, [], T)
    for r in (TOKEN, SEQUENCE, BATCH):
        with torch.no_grad():
            seen = products(r, d, weight, 4)
        assert (sum(seen.logits), seen.hidden, seen.weight) == (T, [], [])


@pytest.mark.parametrize("rows", [1, 7, 10, 999])
def test_rows_without_a_coefficient_do_not_enter_the_backward_products(rows):
    """Advantages of 0 and closed gates: what the two products cost falls with them, and the host waits once each."""
    d, weight = headed(4, near=0.5)
    d["advantages"] = torch.tensor([0.0, 1.0, 1.0, 0.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    r = RECIPES["clip"]
    current = {"logps": d["logps"][d["mask"]], "entropies": d["entropies"][d["mask"]]}
    g = losses.coefficients(padded(d), r, current).gradients["logps"]
    expected = int((g != 0).sum())
    assert 5 < expected < 0.7 * len(g)
    seen = products(r, d, weight, rows)
    assert sum(seen.logits) == len(g)
    assert sum(seen.hidden) == sum(seen.weight) == expected
    assert seen.calls["aten._local_scalar_dense.default"] == len(seen.logits)
    loss, gradient, metrics = run(padded(d), r, d)
    same(run_hidden(padded(d), r, d, weight, rows), (loss, *chain(d, weight, gradient), metrics))
    nothing = d | {"advantages": torch.zeros(7, dtype=torch.float64)}
    _, x, w, _ = run_hidden(padded(nothing), r, nothing, weight, rows)
    assert not x.any()
    assert not w.any()


def test_a_coefficient_that_is_nan_is_not_dropped():
    d, weight = headed(4)
    d["advantages"] = torch.tensor([0.0, torch.nan, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    loss, x, w, _ = run_hidden(padded(d), RECIPES["reinforce"], d, weight, 5)
    assert loss.isnan()
    assert w.isnan().any()
    assert (x.isnan().any(-1) == d["mask"] & (torch.arange(7) == 1)[:, None]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("r", [TOKEN, SEQUENCE, BATCH])
def test_one_workspace_is_all(r, dtype, monkeypatch):
    """No tensor is larger than the workspace, and no second one comes near it."""
    size, rows = 4096, 12
    monkeypatch.setattr(vocabulary, "CHUNK", 2 * size)
    d, _ = headed(5)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(size, 3, generator=generator).to(dtype).requires_grad_()
    x = torch.randn(*d["mask"].shape, 3, generator=generator).to(dtype).requires_grad_()
    batch, large = padded(d), {}

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            result = function(*arguments, **(kwargs or {}))
            for t in result if isinstance(result, tuple | list) else [result]:
                if isinstance(t, torch.Tensor) and t.untyped_storage().nbytes() > rows * size * dtype.itemsize // 2:
                    large[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return result

    with Sizes():
        out = losses.from_hidden(x, weight, batch, r, workspace_bytes=rows * size * dtype.itemsize)
        out.loss.backward()
    assert batch.live_tokens > 2 * rows
    assert weight.grad.isfinite().all()
    assert list(large.values()) == [rows * size * dtype.itemsize]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bf16_rounds_the_gradient_of_the_logits_and_the_results(dtype):
    """Logits that it holds: the loss is fp32's, and the sum over workspaces is not rounded on its way."""
    d, weight = headed(7, exact=True)
    half = d | {"hidden": d["hidden"].to(dtype)}
    ulp = torch.finfo(dtype).eps
    for r in (TOKEN, SEQUENCE, BATCH):
        d32 = {k: x.float() if x.is_floating_point() else x for k, x in d.items()}
        loss, _, metrics = run(padded(d), r, d32)
        gradient = run(padded(d), r, d)[1]
        grads = []
        for rows in (1, 999):
            found = run_hidden(padded(d), r, half, weight.to(dtype), rows)
            grads.append(found[2].float())
            same([found[0], found[3]], [loss, metrics], 1e-6)
            assert found[1].dtype == found[2].dtype == dtype
            # Half an ulp of each entry of the logits' gradient, half an ulp of the result; fp32's own beside them.
            sizes = chain(d | {"hidden": d["hidden"].abs()}, weight.abs(), gradient.abs())
            least = torch.finfo(dtype).smallest_normal * ulp * V
            for t, exact, size in zip(found[1:3], chain(d, weight, gradient), sizes, strict=True):
                bound = 0.5 * ulp * (size + exact.abs()) * (1 + ulp) + 2e-5 * size + least
                assert ((t.double() - exact).abs() <= bound).all()
        # The same sum of the same products, rounded once: neighbours at most.
        assert ((grads[0] - grads[1]).abs() <= ulp * grads[1].abs() + 1e-6 * sizes[1]).all()


def test_backward_scales_on_the_device_and_may_be_repeated():
    d, weight = headed(8)
    expected = run_hidden(padded(d), TOKEN, d, weight, 9)
    x, w = d["hidden"].clone().requires_grad_(), weight.clone().requires_grad_()
    factor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = losses.from_hidden(x, w, padded(d), TOKEN, workspace_bytes=9 * V * 8).loss
    with Products() as seen:
        (factor * loss).backward(retain_graph=True)
    assert not seen.calls.keys() & {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.mm.default"}
    same([x.grad, w.grad, factor.grad], [3 * expected[1], 3 * expected[2], expected[0]])
    (2 * loss).backward()
    same([x.grad, w.grad], [5 * expected[1], 5 * expected[2]])
