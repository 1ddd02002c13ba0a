"""The loss from hidden states is the one from logits, with anything in between, and says what it cannot take."""

import pytest
import torch

import grpokit as gk
from grpokit import loss as losses
from grpokit.errors import KINDS
from grpokit.objective import Reinforce
from tests.heads import H, chain, headed, laid_out, run_hidden
from tests.losses import LATE_WEIGHTS, RECIPES, TEMPERATURE, WEIGHED, V, padded, recipe, run, same
from tests.test_loss import BATCH_SCOPE, Partition

LATE = {f"live_{name}": recipe(Reinforce() if w.importance else gk.Clip(), (w,)) for name, w in LATE_WEIGHTS.items()}
ALL = RECIPES | WEIGHED | BATCH_SCOPE | LATE
TOKEN, SEQUENCE, BATCH = RECIPES["dual_constant"], RECIPES["gspo_icepop"], BATCH_SCOPE["median_kept"]


@pytest.mark.parametrize("name", ALL)
def test_is_the_loss_from_logits(name):
    """Padded and packed, whole and in parts, in workspaces from one row to all of them."""
    r, (d, weight) = ALL[name], headed(1)
    for layout, cases in {"padded": ((1, None), (3, 20), (10, None)), "packed": ((8, 12), (999, None))}.items():
        flat, batch = laid_out(d, layout)
        loss, gradient, metrics = run(batch, r, flat)
        expected = loss, *chain(flat, weight, gradient), metrics
        for rows, split in cases:
            same(run_hidden(laid_out(d, layout)[1], r, flat, weight, rows, split), expected)


@pytest.mark.parametrize("name", ALL)
def test_on_policy(name):
    r, (d, weight) = ALL[name], headed(2)
    loss, gradient, metrics = run(padded(d, old_logps=None), r, d)
    for rows in (2, 9):
        found = run_hidden(padded(d, old_logps=None), r, d, weight, rows)
        same(found, (loss, *chain(d, weight, gradient), metrics))


@pytest.mark.parametrize("requires", [(True, False), (False, True), (False, False)])
def test_a_frozen_head_and_a_frozen_body(requires):
    d, weight = headed(3)
    x, w = (t.clone().requires_grad_(on) for t, on in zip((d["hidden"], weight), requires, strict=True))
    out = losses.from_hidden(x, w, padded(d), SEQUENCE, workspace_bytes=4 * V * 8)
    loss, gradient, metrics = run(padded(d), SEQUENCE, d)
    same([out.loss.detach(), {k: m for k, m in out.metrics.items() if k != "kernel"}], [loss, metrics])
    assert out.loss.requires_grad == any(requires)
    if out.loss.requires_grad:
        out.loss.backward()
    for t, g, on in zip((x, w), chain(d, weight, gradient), requires, strict=True):
        assert (t.grad is not None) == on
        if on:
            same([t.grad], [g])


def test_fp32_is_near_fp64():
    d, weight = headed(6)
    single = {k: x.float() if x.is_floating_point() else x for k, x in d.items()}
    for r in (TOKEN, SEQUENCE, BATCH):
        loss, gradient, _ = run(padded(d), r, d)
        found = run_hidden(padded(single), r, single, weight.float(), 4)
        assert all(t.dtype == torch.float32 for t in found[:3])
        # That of `test_fp32_is_near_fp64_and_the_same_bits_every_time`, and a dot product of 6 before it.
        same([t.double() for t in found[:3]], [loss, *chain(d, weight, gradient)], 3e-5)
        again = run_hidden(padded(single), r, single, weight.float(), 4)
        assert all(torch.equal(a, b) for a, b in zip(found[:3], again[:3], strict=True))


def test_columns_that_carry_a_gradient():
    (d, weight), r = headed(9), recipe(Partition(), aggregate=gk.SequenceMean())
    z0 = torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = []
    for rows in (None, 4):
        z, x, w = (t.clone().requires_grad_() for t in (z0, d["hidden"].nan_to_num(), weight))
        for part in padded(d).split(20):
            if rows is None:
                out = losses.from_logits(x[part.span] @ w.T, part, r, log_z=z[part.rows])
            else:
                size = {"workspace_bytes": rows * V * 8}
                out = losses.from_hidden(x[part.span], w, part, r, log_z=z[part.rows], **size)
            out.loss.backward()
        ends.append([z.grad, x.grad, w.grad])
    same(*ends)


def test_softcap_and_strides():
    d, weight = headed(10)
    wide = torch.cat([d["hidden"], d["hidden"][:, :1]], 1).nan_to_num()
    ends = []
    for head in (False, True):
        x, w = wide.clone().requires_grad_(), weight.clone().requires_grad_()
        if head:
            out = losses.from_hidden(x[:, :-1], w, padded(d), TOKEN, softcap=2.0, workspace_bytes=5 * V * 8)
        else:
            out = losses.from_logits(x[:, :-1] @ w.T, padded(d), TOKEN, softcap=2.0)
        out.loss.backward()
        ends.append([out.loss.detach(), x.grad, w.grad])
    same(*ends)


def test_autocast_is_that_of_a_linear_layer():
    d, weight = headed(7, exact=True)
    ends = []
    for head in (False, True):
        x, w = (t.float().requires_grad_() for t in (d["hidden"].nan_to_num(), weight))
        with torch.autocast("cpu", torch.bfloat16):
            if head:
                out = losses.from_hidden(x, w, padded(d), TOKEN)
            else:
                out = losses.from_logits(torch.nn.functional.linear(x, w), padded(d), TOKEN)
            out.loss.backward()
        assert x.grad.dtype == w.grad.dtype == torch.float32
        ends.append([out.loss.detach(), x.grad, w.grad])
    same(*ends, 2**-7)


@pytest.mark.parametrize("r", [TOKEN, SEQUENCE, BATCH])
def test_nothing_alive(r):
    d, weight = headed(11)
    d["mask"] = torch.zeros_like(d["mask"])
    loss, x, w, _ = run_hidden(padded(d), r, d, weight, 4)
    assert loss == 0
    assert not x.any()
    assert not w.any()
    empty = gk.TokenBatch(torch.zeros(0, 0, dtype=torch.int64), advantages=torch.zeros(0))
    assert losses.from_hidden(torch.zeros(0, 0, H), torch.zeros(V, H), empty, RECIPES["clip"]).loss == 0


def plain(hidden, weight, targets, temperature):
    logp = (hidden @ weight.T / temperature).log_softmax(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(1)


@pytest.mark.parametrize("name", ["dual_constant", "gspo_icepop", "entropy_alone"])
def test_a_provider(name):
    """It sees live rows alone, and our coefficients come to it from above; narrow columns are widened."""
    r, (d, weight) = ALL[name], headed(12)
    loss, gradient, metrics = run(padded(d), r, d)
    same(run_hidden(padded(d), r, d, weight, 1, 20, provider=plain), (loss, *chain(d, weight, gradient), metrics))

    def checked(hidden, weight, targets, temperature):
        assert hidden.isfinite().all()
        assert temperature == TEMPERATURE
        return plain(hidden, weight, targets, temperature)

    out = losses.from_hidden(d["hidden"], weight, padded(d), r, provider=checked)
    assert out.metrics["kernel"] == "provider"
    assert out.log_weights is not None
    narrow = losses.from_hidden(
        d["hidden"], weight, padded(d), r, provider=lambda *a: [x.bfloat16() for x in plain(*a)]
    )
    assert narrow.loss.dtype == torch.float32


def test_a_provider_without_entropies_and_in_the_first_pass():
    d, weight = headed(12)

    def bare(*arguments):
        return plain(*arguments)[0], None

    loss, gradient, metrics = run(padded(d), SEQUENCE, d)
    found = run_hidden(padded(d), SEQUENCE, d, weight, 1, provider=bare)
    same(found, (loss, *chain(d, weight, gradient), {k: m for k, m in metrics.items() if k != "entropy"}))
    with pytest.raises(gk.InputError, match="Entropy reads 'entropies'"):
        losses.from_hidden(d["hidden"], weight, padded(d), TOKEN, provider=bare)
    loss, gradient, metrics = run(padded(d), BATCH, d)
    found = run_hidden(padded(d), BATCH, d, weight, 1, 20, provider=bare)
    same(found[:3], (loss, *chain(d, weight, gradient)))


class Shard(torch.Tensor):
    """What looks like a DTensor."""

    def full_tensor(self):
        raise AssertionError


X, W = torch.zeros(2, 3, H), torch.zeros(8, H)
ONES = gk.TokenBatch(torch.tensor([[5, 6, 7], [1, 2, 3]]), advantages=torch.ones(2))


def call(x=X, w=W, r=None, batch=ONES, **more):
    return losses.from_hidden(x, w, batch, r or recipe(), **more)


@pytest.mark.parametrize(
    ("attempt", "kind", "words"),
    [
        (lambda: call(X[:1]), "token_shape", "(2, 3, 'H')"),
        (lambda: call(X[0]), "token_shape", "hidden"),
        (lambda: call(X.long()), "token_type", "floats"),
        (lambda: call(None), "token_type", "hidden"),
        (lambda: call(X.to("meta")), "token_type", "on meta"),
        (lambda: call(w=W[:, :2]), "token_shape", "as wide as hidden"),
        (lambda: call(w=W[0]), "token_shape", "weight"),
        (lambda: call(w=W.double()), "token_type", "float32, like hidden"),
        (lambda: call(w=W.to("meta")), "token_type", "on meta"),
        (lambda: call(w=None), "token_type", "weight"),
        (lambda: call(w=W.as_subclass(Shard)), "sharded_tensor", "lm_head.unshard()"),
        (lambda: call(X.as_subclass(Shard)), "sharded_tensor", "hidden is a DTensor"),
        (lambda: call(w=W[:7]), "target_range", "from 0 to 6"),
        (lambda: call(workspace_bytes=0), "bad_parameter", "workspace_bytes=0"),
        (lambda: call(workspace_bytes=31), "bad_parameter", "at least 32: a row of 8 logits"),
        (lambda: call(workspace_bytes=1e9), "bad_parameter", "an int"),
        (lambda: call(softcap=-1.0), "bad_parameter", "softcap=-1.0"),
        (lambda: call(kernel="fast"), "bad_parameter", "kernel='fast'"),
        (lambda: call(kernel="two_kernel"), "no_kernel", "cpu"),
        (lambda: call(kernel="one_kernel"), "no_kernel", "cpu"),
        (lambda: call(r="dapo"), "bad_parameter", "a grpokit.Recipe"),
        (lambda: call(entropies=X[..., 0]), "reserved_column", "entropies"),
        (lambda: call(logps=X[..., 0]), "reserved_column", "logps"),
        (lambda: call(advantages=X[..., 0]), "column_twice", "advantages"),
        (lambda: call(r=recipe(gk.KL())), "missing_token_column", "'ref_logps'"),
        (lambda: call(provider=plain, softcap=2.0), "bad_parameter", "softcap=2.0"),
        (lambda: call(X[:1], provider=plain), "token_shape", "hidden"),
        (lambda: call(provider=lambda *a: plain(*a)[0]), "stage_result", "a pair"),
        (lambda: call(provider=lambda *a: (plain(*a)[0][:2], None)), "stage_result", "of shape (2,)"),
        (lambda: call(provider=lambda *a: (plain(*a)[0].long(), None)), "stage_result", "torch.int64"),
        (lambda: call(provider=lambda *a: (plain(*a)[0], 3.0)), "stage_result", "class 'float'"),
        (
            lambda: call(
                X.clone().requires_grad_(),
                r=recipe(extra=(gk.Term(gk.Entropy(), -0.1),)),
                provider=lambda *a: (plain(*a)[0], plain(*a)[1].detach()),
            ),
            "stage_result",
            "entropies without gradient",
        ),
        (
            lambda: call(w=W.clone().requires_grad_(), provider=lambda *a: (plain(*a)[0].detach(), None)),
            "stage_result",
            "without gradient",
        ),
    ],
)
def test_what_is_refused(attempt, kind, words):
    with pytest.raises(KINDS[kind].cls) as caught:
        attempt()
    assert caught.value.kind == kind
    assert words in str(caught.value)


def test_what_is_refused_in_the_first_pass():
    d, weight = headed(3)
    part = padded(d).split(20)[0]
    with pytest.raises(gk.InputError, match="as wide as hidden"):
        losses.observe(d["hidden"][part.span], part, BATCH, weight=weight[:, :2])
    with pytest.raises(gk.InputError, match="workspace_bytes=1;"):
        losses.observe(d["hidden"][part.span], part, BATCH, weight=weight, workspace_bytes=1)
    with pytest.raises(gk.InputError, match="give the whole weight"):
        losses.observe(d["hidden"][part.span], part, BATCH, weight=weight, shard=losses.VocabularyShard(0, V))
