"""One pass over the logits is the two kernels: token-level recipes, and any recipe that was observed."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from grpokit import KL, Entropy, InputError, StateError, Term, vocabulary
from grpokit import loss as losses
from grpokit.kernels import table as configurations
from grpokit.kernels.one_pass import cluster, tiles, why_not_held
from tests.losses import RECIPES, WEIGHED, cast, padded, same, table

TOKENS = ("clip_sequence_mean", "luffy", "icepop_kept", "dual_constant")
WHOLE = ("gspo_icepop", "vespo_folds_icepop", "weight_s2t", "kl_cov")
KINDS = RECIPES | WEIGHED
CPU = torch.device("cpu")


def few():
    return cast(table(13, lengths=(4, 0, 3, 2)), torch.float32)


def losses_of(d, r, kernel, upstream=1.0, *, observe=False, softcap=None, dtype=torch.bfloat16):
    """The loss, the logits' gradient and the metrics, in two parts."""
    leaf = d["logits"].to(dtype).requires_grad_()
    total, metrics, parts = 0, {}, padded(d).split(8)
    for part in parts if observe else ():
        losses.observe(leaf[part.span], part, r, softcap=softcap, kernel=kernel)
    for part in parts:
        out = losses.from_logits(leaf[part.span] * 1, part, r, softcap=softcap, inplace=True, kernel=kernel)
        assert out.metrics.pop("kernel") == kernel
        (out.loss * upstream).backward()
        total = total + out.loss.detach()
        metrics = {name: metrics.get(name, 0) + x for name, x in out.metrics.items()}
    return total, leaf.grad, metrics


@pytest.mark.parametrize("kernel", ["one_kernel", "one_kernel_l2"])
@pytest.mark.parametrize(
    ("name", "softcap"), [*((name, None) for name in TOKENS + WHOLE), ("dual_constant", 9.0), ("gspo_icepop", 9.0)]
)
def test_one_pass_is_two_kernels(name, kernel, softcap):
    d, observe = few(), name in WHOLE
    for upstream in (1.0, -2.5):
        found = losses_of(d, KINDS[name], kernel, upstream, observe=observe, softcap=softcap)
        expected = losses_of(d, KINDS[name], "two_kernel", upstream, observe=observe, softcap=softcap)
        same([found[0]], [expected[0]], 1e-6)
        # bf16 is rounded once more where the upstream gradient is not 1.
        same([found[1].float()], [expected[1].float()], 2**-7)
        assert found[2].keys() >= expected[2].keys() - {"entropy"}
        same([found[2][name] for name in found[2]], [expected[2][name] for name in found[2]], 1e-5)


def test_fp32_is_swept_twice():
    d = few()
    found, expected = (
        losses_of(d, RECIPES["dual_constant"], kernel, dtype=torch.float32)
        for kernel in ("one_kernel_l2", "two_kernel")
    )
    same(found[:2], expected[:2], 1e-6)


def test_a_sequence_that_is_dropped_whole_is_no_part_of_the_mean():
    """Its denominator is 0."""
    d = few()
    d["rollout_logps"] = d["rollout_logps"] - 5 * (torch.arange(4) == 2)[:, None]
    r = KINDS["icepop_kept"]
    r = r.replace(extra=tuple(Term(o, 0.1, r.correct, r.aggregate) for o in (KL(), Entropy())))
    found, expected = (losses_of(d, r, kernel) for kernel in ("one_kernel", "two_kernel"))
    same([found[0], found[1].float()], [expected[0], expected[1].float()], 2**-7)


def test_overwritten_logits_are_not_used_again():
    d = few()
    leaf = d["logits"].bfloat16().requires_grad_()
    x = leaf * 1
    other = (x * x).sum()
    out = losses.from_logits(x, padded(d), RECIPES["clip"], inplace=True, kernel="one_kernel")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


def test_another_loss_of_overwritten_logits_is_refused():
    """They are a gradient before the backward pass."""
    d = few()
    x = d["logits"].bfloat16().requires_grad_() * 1
    losses.from_logits(x, padded(d), RECIPES["clip"], inplace=True, kernel="one_kernel")
    for kernel in ("eager", "two_kernel", "one_kernel_l2"):
        with pytest.raises(StateError, match="these logits are a gradient already"):
            losses.from_logits(x, padded(d), RECIPES["clip"], inplace=True, kernel=kernel)


def test_a_checkpoint_hides_who_needs_the_logits():
    d = few()
    x = d["logits"].bfloat16().requires_grad_()

    def loss(x):
        return losses.from_logits(x * 1, padded(d), RECIPES["clip"], inplace=True, kernel="one_kernel").loss

    with pytest.raises(InputError, match="checkpoint"):
        checkpoint(loss, x, use_reentrant=False)
    loss(x).backward()
    once, x.grad = x.grad, None
    checkpoint(loss, x, use_reentrant=True).backward()
    assert torch.equal(x.grad, once)


def test_without_a_gradient_the_logits_are_only_read():
    d = few()
    x = d["logits"].bfloat16()
    before = x.clone()
    out = losses.from_logits(x, padded(d), RECIPES["clip"], inplace=True, kernel="one_kernel")
    assert out.metrics["kernel"] == "two_kernel"
    assert torch.equal(x.nan_to_num(0), before.nan_to_num(0))


def test_auto_takes_it_where_the_table_says_so(monkeypatch):
    """The table, or the environment; both give way where a call does not allow it."""
    d = few()

    def took(name="clip", dtype=torch.bfloat16, **how):
        x = d["logits"].to(dtype).requires_grad_() * 1
        return losses.from_logits(x, padded(d), RECIPES[name], **({"inplace": True} | how)).metrics["kernel"]

    assert took() == "eager"
    monkeypatch.setenv("GRPOKIT_KERNEL", "two_kernel")
    assert took() == "two_kernel"
    monkeypatch.setenv("GRPOKIT_KERNEL", "one_kernel")
    assert took() == "one_kernel"
    assert took(inplace=False) == took("gspo_icepop") == took(dtype=torch.float32) == "two_kernel"
    monkeypatch.setenv("GRPOKIT_KERNEL", "one_kernel_l2")
    assert took(dtype=torch.float32) == "one_kernel_l2"
    monkeypatch.setattr(configurations, "ONE_PASS", frozenset({configurations.DEFAULT}))
    monkeypatch.setenv("GRPOKIT_KERNEL", "two_kernel")
    assert took() == "two_kernel"
    # As "auto" is on a GPU.
    monkeypatch.delenv("GRPOKIT_KERNEL")
    monkeypatch.setattr(vocabulary, "backend", lambda *_: "two_kernel")
    assert (took(), took(dtype=torch.float32), took("gspo_icepop")) == ("one_kernel", "one_kernel_l2", "two_kernel")
    assert took(dtype=torch.float16) == took(kernel="two_kernel") == took(inplace=False) == "two_kernel"


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("clip", {"inplace": False}, "inplace=True"),
        ("clip", {"dtype": torch.float32}, "registers: it reads bf16"),
        ("clip", {"dtype": torch.float16}, "underflow"),
        ("clip", {"values": torch.zeros(4, 4)}, "'values' has a gradient"),
        ("gspo_icepop", {}, "observe"),
        ("alone_Divergence", {}, "no closed form"),
    ],
)
def test_what_one_pass_cannot_do(name, how, words):
    d = few()
    x = d["logits"].to(how.pop("dtype", torch.bfloat16)).requires_grad_()
    with pytest.raises(InputError, match=words) as caught:
        losses.from_logits(x, padded(d), KINDS[name], kernel="one_kernel", **({"inplace": True} | how))
    assert caught.value.kind == "no_kernel"


def test_rows_in_tiles():
    for V in (1, 2, 3, 1000, 4097, 32_000, 50_257, 128_256, 151_936, 163_840):
        a, b = tiles(V)
        assert V <= a + b <= 2 * V
        assert all(n == 0 or n & (n - 1) == 0 for n in (a, b))
        assert not why_not_held(V, CPU, entropy=False)
    # Rows of any size: Triton takes powers of two only, and the compiler spills beyond so many a thread.
    for elements in {sum(tiles(V)) for V in range(1, 163_841)}:
        blocks, warps = cluster(elements)
        assert {blocks, warps} <= {1, 2, 4, 8, 16}
        assert blocks <= 8
        assert elements / (blocks * warps * 32) <= (32 if elements <= 131_072 else 40)
    assert "163841 columns do not fit" in why_not_held(163_841, CPU, entropy=False)
    assert "columns do not fit" in why_not_held(131_073, CPU, entropy=True)


def test_a_gpu_without_clusters(monkeypatch):
    """An A100, as Triton would say in an error of its own."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    gpu = torch.device("cuda:0")
    assert why_not_held(1000, gpu, entropy=True) == "A100 has no clusters of thread blocks: Hopper and newer have"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert not why_not_held(1000, gpu, entropy=True)
