"""Which kernel reads the logits, what is refused, and the op that does it in eager torch."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import grpokit as gk
from grpokit import loss as losses
from grpokit import vocabulary
from grpokit.vocabulary import backend
from tests.losses import RECIPES, padded, run, same, table

LOGITS = torch.zeros(2, 3, 8)
# torch's own, of what it traces.
TRACED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
BATCH = gk.TokenBatch(torch.tensor([[5, 6, 7], [1, 2, 3]]), advantages=torch.ones(2))


def on_cuda(shape=(4, 8), dtype=torch.bfloat16, strides=None):
    """What says that it is on a GPU; nothing is there."""
    with FakeTensorMode():
        return torch.empty_strided(shape, strides or (shape[1], 1), dtype=dtype, device="cuda")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.delenv("GRPOKIT_KERNEL", raising=False)
    return monkeypatch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_takes_the_kernels(gpu, dtype):
    assert backend("auto", on_cuda(dtype=dtype)) == "two_kernel"
    assert backend("eager", on_cuda(dtype=dtype)) == "eager"
    gpu.setenv("GRPOKIT_KERNEL", "eager")
    assert backend("auto", on_cuda()) == "eager"
    assert backend("two_kernel", on_cuda()) == "two_kernel"
    gpu.setenv("GRPOKIT_KERNEL", "fastest")
    with pytest.raises(gk.InputError, match="GRPOKIT_KERNEL='fastest'; expected one of"):
        backend("auto", on_cuda())


def test_a_cpu_takes_eager_torch(monkeypatch):
    monkeypatch.delenv("GRPOKIT_KERNEL", raising=False)
    assert backend("auto", LOGITS) == "eager"
    assert losses.from_logits(LOGITS, BATCH, gk.recipe("rloo")).metrics["kernel"] == "eager"


@pytest.mark.parametrize(
    ("logits", "why"),
    [
        ({"dtype": torch.float64}, "torch.float64, and the kernels read bf16, fp16 and fp32"),
        ({"strides": (1, 4)}, r"last dimension has stride 4: call .contiguous\(\)"),
    ],
)
def test_what_the_kernels_do_not_read_is_eager_or_refused(gpu, logits, why):
    assert backend("auto", on_cuda(**logits)) == "eager"
    with pytest.raises(gk.InputError, match=why) as caught:
        backend("two_kernel", on_cuda(**logits))
    assert caught.value.kind == "no_kernel"


def test_without_triton_or_on_an_old_gpu(gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    gpu.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert backend("auto", on_cuda()) == "eager"
    with pytest.raises(gk.InputError, match="kernel='two_kernel' cannot run: Tesla T4 is older than Ampere. Take"):
        backend("two_kernel", on_cuda())
    gpu.setattr(vocabulary, "_has_triton", lambda: False)
    assert backend("auto", on_cuda()) == "eager"
    with pytest.raises(gk.InputError, match="Triton is not installed"):
        backend("one_kernel", on_cuda())


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({"kernel": "fast"}, "bad_parameter", "kernel='fast'; expected one of"),
        ({"softcap": 0.0}, "bad_parameter", "softcap=0.0"),
        ({"softcap": float("nan")}, "bad_parameter", "softcap=nan"),
        ({"logits": torch.zeros(2, 3, 7)}, "target_range", "a live target is 7, the logits have 7 entries"),
        ({"logits": torch.zeros(2, 4, 8)}, "token_shape", "a row for every place"),
        ({"logits": torch.zeros(2, 3, 8, dtype=torch.int64)}, "token_type", "a tensor of floats"),
        ({"logits": torch.zeros(2, 3, 8, device="meta")}, "token_type", "on meta; expected on cpu"),
    ],
)
def test_what_is_refused(how, kind, words):
    how = {"logits": LOGITS} | how
    with pytest.raises((gk.InputError, gk.InputTypeError), match=words) as caught:
        losses.from_logits(how.pop("logits"), BATCH, gk.recipe("rloo"), **how)
    assert caught.value.kind == kind


@TRACED
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_op_is_one_that_torch_knows(softcap):
    logits = torch.randn(2, 3, 8, requires_grad=True)
    how = torch.tensor([0, 2, 5]), torch.tensor([7, 0, 3]), 0.7, softcap, 0, "eager"
    torch.library.opcheck(torch.ops.grpokit.token_stats, (logits, *how))

    def total(logits):
        logps, entropies, _ = torch.ops.grpokit.token_stats(logits, *how)
        return (logps * torch.tensor([1.0, -2.0, 0.5]) + 0.3 * entropies).sum()

    (expected,) = torch.autograd.grad(total(logits), logits)
    (compiled,) = torch.autograd.grad(torch.compile(total, fullgraph=True, backend="aot_eager")(logits), logits)
    same([compiled], [expected], 1e-6)


@TRACED
def test_a_loss_under_compile():
    d, r = table(5), RECIPES["dual_constant"]
    batch, leaf = padded(d), d["logits"].clone().requires_grad_()
    loss = torch.compile(lambda x: losses.from_logits(x * 1, batch, r).loss, backend="aot_eager")(leaf)
    loss.backward()
    same((loss.detach(), leaf.grad), run(batch, r, d)[:2])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("name", ["clip", "dual_constant"])
def test_in_place_is_the_same(name, softcap):
    d, r = table(5), RECIPES[name]
    found = []
    for inplace in (False, True):
        leaf = d["logits"].clone().requires_grad_()
        # A view of wider rows: what is beside it stays.
        wide = torch.cat([leaf, leaf[:, :1].detach() * 0 + 7], 1)
        out = losses.from_logits(wide[:, :-1], padded(d), r, inplace=inplace, softcap=softcap)
        out.loss.backward()
        found.append((out.loss.detach(), leaf.grad))
        assert (wide[:, -1] == 7).all() or wide.isnan().any()
    same(*found, 0)


def test_a_soft_cap_is_that_of_the_model():
    d, r = table(5), RECIPES["dual_constant"]
    leaf = d["logits"].clone().requires_grad_()
    losses.from_logits(5 * torch.tanh(leaf / 5), padded(d), r).loss.backward()
    inside = d["logits"].clone().requires_grad_()
    losses.from_logits(inside, padded(d), r, softcap=5.0).loss.backward()
    same([inside.grad], [leaf.grad.nan_to_num(0)], 1e-12)
