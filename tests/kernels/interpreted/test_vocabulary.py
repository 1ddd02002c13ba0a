"""The vocabulary kernels against float64: log-probs, entropies and gradients of any layout, and what must be exact."""

import math

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from grpokit import loss as losses
from grpokit.kernels.gradient import gradient
from grpokit.kernels.stats import stats
from tests.losses import RECIPES, cast, packed, padded, run, same, table

BLOCK = 4096
UNIT = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-7}  # the interpreter cuts bf16 off


def exactly(z, targets, temperature, softcap=None, g=None, h=None):
    """log π, H and the gradient of rows, in float64."""
    z = z.double()
    y = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = (y / temperature).log_softmax(1)
    finite = torch.where(log_p > -math.inf, log_p, 0.0)
    p, H = log_p.exp(), -(log_p.exp() * finite).sum(1)
    logp = log_p.gather(1, targets[:, None]).squeeze(1)
    if g is None:
        return logp, H
    hit = torch.nn.functional.one_hot(targets, z.shape[1])
    dz = (g.double()[:, None] * (hit - p) - h.double()[:, None] * p * (finite + H[:, None])) / temperature
    return logp, H, dz if softcap is None else dz * (1 - torch.tanh(z / softcap) ** 2)


def rows(n, V, dtype, offset=0.0, seed=0):
    torch.manual_seed(seed)
    targets = torch.randint(0, V, (n,))
    targets[0], targets[-1] = 0, V - 1
    return (torch.randn(n, V) * 3 + offset).to(dtype), targets, torch.randn(n), torch.randn(n)


def check(z, targets, g, h, temperature=1.0, softcap=None):
    places = torch.arange(len(z))
    logp, H, dz = exactly(z, targets, temperature, softcap, g, h)
    logps, entropies, state = stats(z, places, targets, temperature, softcap)
    out = torch.full_like(z, math.nan)
    gradient(z, out, places, targets, state, entropies, g, h, temperature, softcap)
    # u = z c − M has one rounding, of a number no larger than the spread of the row; a soft cap has four.
    y = z.double().nan_to_num(neginf=0) / temperature
    spread = (y.amax(1) - y.amin(1)).max().item() + math.log(z.shape[1])
    bound = 2**-24 * (8 + 2 * spread + (0 if softcap is None else 8 * softcap / temperature))
    assert (logps - logp).abs().max() <= bound
    assert (entropies - H).abs().max() <= bound * (1 + spread)
    size = (g.abs() + h.abs() * (1 + spread)).max().item() / temperature
    assert (out.double() - dz).abs().max() <= (UNIT[z.dtype] + 2 * bound) * size
    return logps, entropies, state, out


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("offset", [0.0, 300.0, -300.0])
@pytest.mark.parametrize("V", [1, 7, 127, 1000, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_float64(dtype, V, offset, temperature):
    check(*rows(3, V, dtype, offset), temperature)


@pytest.mark.parametrize("softcap", [30.0, 5.0])
@pytest.mark.parametrize("V", [7, BLOCK, BLOCK + 1])
def test_a_soft_cap(V, softcap):
    check(*rows(3, V, torch.float32), 0.9, softcap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_vocabulary(dtype):
    check(*rows(2, 151_936, dtype), 0.9)


@pytest.mark.parametrize("V", [300, BLOCK + 300])
def test_columns_of_minus_infinity_are_not_there(V):
    z, targets, g, h = rows(4, V, torch.float32)
    out = torch.rand(V) < 0.5
    out[-200:] = True
    out[:8] = False
    targets = targets % 8
    *few, d = check(z[:, ~out].contiguous(), targets, g, h)
    z[:, out] = -math.inf
    *all_of_them, dz = check(z, targets, g, h)
    assert not dz[:, out].any()
    torch.testing.assert_close(all_of_them, few, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(dz[:, ~out], d, rtol=2e-6, atol=2e-6)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # NumPy's, of log2(0)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_row_without_a_finite_logit_is_nan():
    z, targets, *_ = rows(3, 50, torch.float32)
    z[1] = -math.inf
    logps, entropies, _ = stats(z, torch.arange(3), targets, 1.0)
    assert logps.isnan().tolist() == entropies.isnan().tolist() == [False, True, False]


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # NumPy's, of a maximum
@pytest.mark.parametrize("V", [50, BLOCK + 1])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_nan_is_seen(V, softcap):
    z, targets, g, h = rows(3, V, torch.float32)
    z[1, 7] = math.nan
    places = torch.arange(3)
    logps, entropies, state = stats(z, places, targets, 1.0, softcap)
    assert logps.isnan().tolist() == entropies.isnan().tolist() == [False, True, False]
    gradient(z, z, places, targets, state, entropies, g, h, 1.0, softcap)
    assert z.isnan().any(1).tolist() == [False, True, False]


def test_nan_coefficients_are_seen():
    z, targets, g, h = rows(3, 50, torch.float32)
    places = torch.arange(3)
    _, entropies, state = stats(z, places, targets, 1.0)
    g[0], h[1] = math.nan, math.nan
    out = torch.empty_like(z)
    gradient(z, out, places, targets, state, entropies, g, h, 1.0)
    assert out.isnan().all(1).tolist() == [True, True, False]


def test_what_is_not_trained_on_is_neither_read_nor_kept():
    z, targets, g, h = rows(6, BLOCK + 300, torch.bfloat16)
    places = torch.tensor([1, 2, 5])
    g[1] = h[1] = 0
    poisoned = z.clone()
    poisoned[[0, 3, 4]] = math.nan
    found = []
    for x in (z, poisoned):
        _, entropies, state = stats(x, places, targets[places], 1.0)
        gradient(x, x, places, targets[places], state, entropies, g[:3], h[:3], 1.0)
        found.append(x)
    assert torch.equal(*found)
    assert z.any(1).tolist() == [False, True, False, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_order_the_layout_or_the_run(dtype):
    z, targets, g, h = rows(6, 1000, dtype)
    places, order = torch.arange(6), torch.tensor([4, 0, 5, 2, 1, 3])
    logps, entropies, state, out = check(z, targets, g, h, 0.7)
    again = check(z[order], targets[order], g[order], h[order], 0.7)
    for a, b in zip((logps, entropies, state, out), again, strict=True):
        assert torch.equal(a[order], b)
    wide = torch.full((2, 5, 1024), math.nan, dtype=dtype)
    view = wide[:, 1:4, 8:1008]
    view.copy_(z.view(2, 3, 1000))
    of_view = stats(view, places, targets, 0.7)
    gradient(view, view, places, targets, of_view[2], of_view[1], g, h, 0.7)
    for a, b in zip((logps, entropies, state, out), (*of_view, view.reshape(6, 1000)), strict=True):
        assert torch.equal(a, b)
    assert wide.isnan().sum() == wide.numel() - 6 * 1000


def test_more_than_two_billion_elements():
    """Only the rows that are touched are there; the rest of the address space is never written."""
    z, targets, g, h = rows(3, 300, torch.bfloat16)
    stride = 2**30 + 16
    view = torch.empty(2 * stride + 300, dtype=torch.bfloat16).as_strided((3, 300), (stride, 1))
    view.copy_(z)
    _, entropies, state = stats(view, torch.arange(3), targets, 1.0)
    gradient(view, view, torch.arange(3), targets, state, entropies, g, h, 1.0)
    assert torch.equal(view, check(z, targets, g, h)[3])


@pytest.mark.parametrize(
    ("name", "inplace"), [*((name, False) for name in RECIPES), ("clip", True), ("dual_constant", True)]
)
def test_every_recipe(name, inplace):
    """The gradient of the scalar loss, padded: what catches a wrong scale, which a loss alone does not."""
    d, r = table(13, lengths=(4, 0, 3, 2)), RECIPES[name]
    loss, x, metrics = run(padded(d), r, d)
    single = cast(d, torch.float32)
    batch, leaf = padded(single), single["logits"].clone().requires_grad_()
    out = losses.from_logits(leaf * 1, batch, r, kernel="two_kernel", inplace=inplace)
    out.loss.backward()
    assert out.metrics.pop("kernel") == "two_kernel"
    # As in tests/test_loss.py: some ten roundings of 2^-24, times log-probs of about 10.
    same([out.loss.detach().double(), leaf.grad.double()], [loss, x], 2e-5)
    same([x.double() for x in out.metrics.values()], list(metrics.values()), 2e-5)


@pytest.mark.parametrize("name", ["clip", "gspo_icepop", "dual_constant"])
def test_padded_is_packed_and_parts_are_the_whole(name):
    d = cast(table(13), torch.float32)
    flat, dense = packed(d)
    found = []
    for batch, x in ((padded(d), d["logits"]), (dense, flat["logits"])):
        leaf = x.clone().requires_grad_()
        for part in batch.split(20):
            losses.from_logits(leaf[part.span], part, RECIPES[name], kernel="two_kernel").loss.backward()
        found.append(leaf.grad.reshape(-1, leaf.shape[-1])[batch.live.index])
    assert torch.equal(*found)


@pytest.mark.parametrize("kernel", ["two_kernel", "one_kernel_l2"])
def test_every_launch_is_on_the_device_of_the_tensors(monkeypatch, kernel):
    """Triton takes the current device, which is another one where a model is spread over several."""
    entered, outside = [], []

    class Device:
        def __init__(self, tensor):
            self.device = tensor.device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.pop()

    launch = InterpretedFunction.run
    monkeypatch.setattr(torch.cuda, "device_of", Device)
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda self, *a, **k: (outside.append(not entered), launch(self, *a, **k))[1]
    )
    d = cast(table(13, lengths=(4, 0, 3)), torch.float32)
    out = losses.from_logits(d["logits"].requires_grad_() * 1, padded(d), RECIPES["clip"], inplace=True, kernel=kernel)
    (out.loss * 2).backward()
    assert len(outside) >= 3
    assert not any(outside)


@pytest.mark.parametrize("name", ["clip", "gspo_icepop"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_under_compile(name):
    """Nothing of the launches is traced."""
    d, r = cast(table(13, lengths=(4, 0, 3)), torch.float32), RECIPES[name]
    batch, found = padded(d), []

    def total(x):
        return losses.from_logits(x * 1, batch, r, kernel="two_kernel", inplace=True).loss

    for call in (total, torch.compile(total, backend="aot_eager")):
        leaf = d["logits"].clone().requires_grad_()
        loss = call(leaf)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    same(*found, 0)
