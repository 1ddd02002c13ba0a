"""Which kernel reads the logits, what is refused, and the op that does it in eager torch."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import grpokit as gk
from grpokit import kernel_choice
from grpokit import loss as losses
from grpokit.door import sequence_log_weights
from grpokit.kernel_choice import backend
from grpokit.tokens import sum_segments
from tests.losses import RECIPES, cast, padded, run, same, table

LOGITS = torch.zeros(2, 3, 8)
# torch's own, of what it traces.
TRACED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
BATCH = gk.TokenBatch(torch.tensor([[5, 6, 7], [1, 2, 3]]), advantages=torch.ones(2))


class Shard(torch.Tensor):
    """What looks like a DTensor."""

    def full_tensor(self):
        raise AssertionError


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
    gpu.setattr(kernel_choice, "HAS_TRITON", False)
    assert backend("auto", on_cuda()) == "eager"
    with pytest.raises(gk.InputError, match="Triton is not installed"):
        backend("one_kernel", on_cuda())


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({"kernel": "fast"}, "bad_parameter", "kernel='fast'; expected one of"),
        ({"softcap": "3"}, "bad_parameter", "softcap='3'"),
        ({"shard": (0, 8)}, "bad_parameter", "a VocabularyShard, or None"),
        ({"shard": losses.VocabularyShard(1, 8)}, "bad_parameter", "first=1; expected from 0 to 0"),
        ({"shard": losses.VocabularyShard(-1, 9)}, "bad_parameter", "first=-1; expected from 0 to 1"),
        ({"logits": LOGITS.to(torch.float8_e4m3fn)}, "token_type", "of 16 bits or more"),
        ({"logits": LOGITS.as_subclass(Shard)}, "sharded_tensor", "logits is a DTensor, .* logits.to_local()"),
        (
            {"logits": LOGITS[:1, :1].expand(2, 3, 8), "inplace": True},
            "bad_parameter",
            "inplace=True; expected False: some",
        ),
        (
            {"logits": torch.zeros(60).as_strided((2, 3, 8), (15, 5, 1)), "inplace": True},
            "bad_parameter",
            "some of these logits share their memory",
        ),
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


def test_what_is_in_place_of_the_logits_is_not_read_as_logits():
    x = torch.randn(2, 3, 8, requires_grad=True) * 1
    losses.from_logits(x, BATCH, gk.recipe("rloo"), inplace=True).loss.backward()
    with pytest.raises(gk.StateError, match="these logits are a gradient already") as caught:
        losses.from_logits(x, BATCH, gk.recipe("rloo"))
    assert caught.value.kind == "overwritten_logits"
    # Other logits in the same memory.
    with torch.no_grad():
        x.copy_(torch.randn(2, 3, 8))
    losses.from_logits(x, BATCH, gk.recipe("rloo"))


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
@TRACED
def test_nothing_is_overwritten_where_torch_cannot_tell(backend):
    """Whoever else needs the logits in a checkpoint, or in a compiled graph, still finds them."""
    leaf, r, found = torch.randn(2, 3, 8), gk.recipe("rloo"), []

    def total(x, inplace):
        logits = x * 1.5
        return (logits * logits).sum() / 9 + losses.from_logits(logits, BATCH, r, inplace=inplace).loss

    for inplace in (False, True):
        x = leaf.clone().requires_grad_()
        if backend is None or not inplace:
            loss = checkpoint(total, x, inplace, use_reentrant=False)
        else:
            loss = torch.compile(total, backend=backend)(x, inplace)
        loss.backward()
        found.append((loss.detach(), x.grad))
    same(*found, 1e-6)


@pytest.mark.parametrize("kernel", ["eager", "auto"])
def test_no_columns_and_nothing_alive(kernel):
    batch = gk.TokenBatch(torch.zeros(2, 3, dtype=torch.int64), mask=torch.zeros(2, 3), advantages=torch.ones(2))
    leaf = torch.zeros(2, 3, 0, requires_grad=True)
    out = losses.from_logits(leaf, batch, gk.recipe("rloo"), kernel=kernel)
    out.loss.backward()
    assert (out.loss, leaf.grad.shape) == (0, leaf.shape)


def test_sequences_that_are_empty_have_no_log_weight():
    """And the host, which knows which these are, does not ask the device."""
    d = cast(table(3), torch.float32)
    batch, lengths = padded(d), d["mask"].sum(1)
    seen = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            if function is torch.ops.aten.index.Tensor:
                assert all(i is None or i.dtype != torch.bool for i in arguments[1])
            seen.add(function.overloadpacket.__name__)
            return function(*arguments, **(kwargs or {}))

    for part in (batch, *batch.split(20)):
        logps = part.column("logps", d["logps"][part.span])
        with Seen():
            found = sequence_log_weights(part, logps)
        live = lengths[part.rows]
        expected = sum_segments(logps.double() - part.columns["rollout_logps"], live)
        assert torch.equal(found, expected[live > 0])
    assert seen.isdisjoint({"nonzero", "_local_scalar_dense", "item"})
