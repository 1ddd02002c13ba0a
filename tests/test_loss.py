"""The two doors: splits, layouts, masks, number formats, the first pass, metrics, refusals."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grpokit as gk
from grpokit import loss as losses
from grpokit import vocabulary
from grpokit.objective.columns import where
from grpokit.stages import Correct, Objective
from tests.losses import (
    BATCH_WEIGHTS,
    BONUSES,
    RECIPES,
    TEMPERATURE,
    WEIGHED,
    V,
    cast,
    pack,
    packed,
    padded,
    permute,
    recipe,
    run,
    same,
    table,
)


@dataclass(frozen=True)
class DropRareHalf(Correct):
    """Batch scope, of the current policy: drops the tokens whose log π is below the batch's median."""

    scope: ClassVar[str] = "batch"
    reads: ClassVar[frozenset[str]] = frozenset({"logps"})

    def weight(self, tokens):
        logps = tokens.logps
        return where(logps < logps.median(), 0.0, 1.0) if len(logps) else logps


@dataclass(frozen=True)
class DropByLot(Correct):
    """Batch scope, of constants alone: drops what a hash of (step, rollout, position) says."""

    scope: ClassVar[str] = "batch"
    reads: ClassVar[frozenset[str]] = frozenset()

    def weight(self, tokens):
        lot = (tokens.rollout_ids * 7919 + tokens.position * 104_729 + tokens.step * 31) % 1009
        return where(lot.double() >= lot.double().mean(), 1.0, 0.0) if len(lot) else lot.double()


@dataclass(frozen=True)
class DropRare(Correct):
    """Token scope, of the current policy: drops the tokens below a log π."""

    below: float
    reads: ClassVar[frozenset[str]] = frozenset({"logps"})

    def weight(self, tokens):
        return where(tokens.logps < self.below, 0.0, 1.0)


@dataclass(frozen=True)
class Marked(Correct):
    """The weights that the batch brings along."""

    reads: ClassVar[frozenset[str]] = frozenset({"marks"})

    def weight(self, tokens):
        return tokens.marks


BATCH_SCOPE = {
    "rare_kept": recipe(correct=(gk.TIS(1.1), DropRare(-3.0)), aggregate=gk.SequenceMean(over="kept")),
    "rare_live": recipe(correct=(gk.TIS(1.1), DropRare(-3.0)), aggregate=gk.SequenceMean()),
    "median_live": recipe(correct=(DropRareHalf(),), extra=BONUSES),
    "median_kept": recipe(correct=(gk.TIS(1.1), DropRareHalf()), aggregate=gk.SequenceMean(over="kept")),
    "lot_kept": recipe(correct=(DropByLot(),), aggregate=gk.TokenMean(over="kept")),
}
NEED_WHOLE = {"kl_cov", *(f"weight_{name}" for name in BATCH_WEIGHTS), "weight_opsm", "weight_dppo_kl"}
ALL = RECIPES | BATCH_SCOPE | {name: WEIGHED[name] for name in sorted(NEED_WHOLE | {"weight_wtrs", "weight_mis"})}
IDS = 100 + torch.arange(7)


@pytest.mark.parametrize("name", ALL)
def test_any_split_and_any_order_is_the_whole(name):
    d, r = table(2), ALL[name]
    whole = run(padded(d, rollout_ids=IDS), r, d)
    for size in (1, 20, 30, 10_000):
        same(run(padded(d, rollout_ids=IDS), r, d, split=size), whole)
        same(run(padded(d, rollout_ids=IDS), r, d, split=size, reverse=True), whole)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    e = permute(d, order)
    loss, x, metrics = run(padded(e, rollout_ids=IDS[order]), r, e, split=25)
    same((loss, x[order.argsort()], metrics), whole)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(ALL)),
    st.lists(st.integers(0, 5), min_size=1, max_size=5),
    st.integers(0, 99),
    st.integers(1, 30),
    st.booleans(),
)
def test_any_batch_splits(name, lengths, seed, size, per_token):
    d = table(seed, lengths, per_token=per_token)
    same(run(padded(d), ALL[name], d, split=size), run(padded(d), ALL[name], d))


@pytest.mark.parametrize("name", ALL)
def test_padded_is_packed(name):
    d, r = table(3), ALL[name]
    loss, x, metrics = run(padded(d), r, d)
    places = pack(d)[2]
    for split in (None, 10):
        for door in ("logits", "logps"):
            flat, batch = packed(d)
            got = run(batch, r, flat, split, door)
            expected = x if door == "logits" else run(padded(d), r, d, door="logps")[1]
            same(got, (loss, expected[places], metrics))
    assert not x[~d["mask"]].any()


@pytest.mark.parametrize("name", ALL)
def test_what_is_masked_does_not_matter(name):
    d, r = table(4), ALL[name]
    clean = {k: torch.nan_to_num(x) if x.is_floating_point() else x for k, x in d.items()}
    for door in ("logits", "logps"):
        same(run(padded(d), r, d, door=door), run(padded(clean), r, clean, door=door), 0)
    d["mask"] = torch.zeros_like(d["mask"])
    for split in (None, 20):
        loss, x, metrics = run(padded(d), r, d, split)
        assert loss == 0
        assert not x.any()
        assert not any(metrics.values())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("chunk", [2**20, 5 * V])
def test_logits_are_autograds_own_log_softmax(name, chunk, monkeypatch):
    """from_logits is from_logps through torch's log-softmax and entropy, however few rows it takes at a time."""
    monkeypatch.setattr(vocabulary, "CHUNK", chunk)
    d, r = table(5), ALL[name]
    batch, x = padded(d), d["logits"].clone().requires_grad_()
    logp = (x[d["mask"]] / TEMPERATURE).log_softmax(-1)
    logps, entropies = torch.zeros(7, 9, dtype=torch.float64), torch.zeros(7, 9, dtype=torch.float64)
    logps = logps.masked_scatter(d["mask"], logp.gather(1, d["targets"][d["mask"]][:, None]))
    entropies = entropies.masked_scatter(d["mask"], -(logp.exp() * logp).sum(1))
    out = losses.from_logps(logps, batch, r, entropies=entropies)
    out.loss.backward()
    same(run(batch, r, d), (out.loss.detach(), x.grad, out.metrics))


def test_logits_of_minus_infinity():
    """Entries outside the sampler's support are out of softmax and entropy, and get no gradient."""
    d, r = table(5), RECIPES["dual_constant"]
    outside = torch.zeros_like(d["logits"], dtype=torch.bool).index_fill(-1, torch.tensor([0, 5]), value=True)
    outside &= torch.nn.functional.one_hot(d["targets"], V) == 0
    e = d | {"logits": d["logits"].masked_fill(outside & d["mask"][..., None], -torch.inf)}
    low = d | {"logits": d["logits"].masked_fill(outside & d["mask"][..., None], -1e4)}
    got = run(padded(d), r, e)
    same(got, run(padded(d), r, low))
    assert not got[1][outside].any()


def test_logits_with_strides():
    """The usual logits[:, :-1] is no contiguous tensor."""
    d, r = table(5), RECIPES["tis"]
    wide = torch.cat([d["logits"], d["logits"][:, :1]], 1).requires_grad_()
    out = losses.from_logits(wide[:, :-1], padded(d), r)
    out.loss.backward()
    same((out.loss.detach(), wide.grad[:, :-1]), run(padded(d), r, d)[:2], 0)


@pytest.mark.parametrize("name", ALL)
def test_bf16_logits_are_their_fp32_values(name):
    d, r = table(5), ALL[name]
    half = d | {"logits": d["logits"].bfloat16()}
    a, b = run(padded(d), r, half), run(padded(d), r, half | {"logits": half["logits"].float()})
    assert a[1].dtype == torch.bfloat16
    assert a[0].dtype == torch.float32
    same((a[0], a[2]), (b[0], b[2]), 0)
    assert torch.equal(a[1], b[1].bfloat16())


@pytest.mark.parametrize("name", ALL)
def test_fp32_is_near_fp64_and_the_same_bits_every_time(name):
    d, r = table(13), ALL[name]
    single = cast(d, torch.float32)
    a, again = (run(padded(single), r, single, 20) for _ in range(2))
    assert a[0].dtype == a[1].dtype == torch.float32
    assert torch.equal(a[0], again[0])
    assert torch.equal(a[1], again[1])
    assert all(torch.equal(a[2][k], again[2][k]) for k in a[2])
    # A log-softmax of 13 entries and a ratio in fp32: some ten roundings of 2^-24, times log-probs of about 10.
    same([a[0].double(), a[1].double()], run(padded(d), r, d)[:2], 2e-5)


def test_wider_constants_do_not_widen_the_loss():
    d = table(13)
    single = d | {"logits": d["logits"].float()}
    loss, x, metrics = run(padded(d), RECIPES["tis"], single)
    assert loss.dtype == x.dtype == metrics["ratio/mean"].dtype == torch.float32


@pytest.mark.parametrize("name", ["clip", "reinforce_plain", "tis", "dual_constant"])
def test_on_policy_is_the_default(name):
    """old_logps left out: r = 1, the gradient REINFORCE's, in parts as well."""
    r = recipe(gk.Reinforce()) if name == "reinforce_plain" else RECIPES[name]
    d = table(12)
    expected = run(padded(d | {"old_logps": d["logps"]}), r, d)
    for split in (None, 20):
        same(run(padded(d, old_logps=None), r, d, split), expected)


@pytest.mark.parametrize("name", RECIPES)
def test_nan_of_a_live_token_is_seen(name):
    d = table(17)
    d["logps"][0, 0] = d["entropies"][0, 0] = torch.nan
    assert d["mask"][0, 0]
    keep = padded(d, rollout_logps=d["old_logps"])  # so that no correction drops it
    assert losses.from_logps(d["logps"], keep, RECIPES[name], entropies=d["entropies"]).loss.isnan()


def test_by_hand():
    """Dual clip, TIS, k3, entropy over a constant: the padded formula as a user would write it, in plain torch."""
    d = {k: torch.nan_to_num(x) if x.is_floating_point() else x for k, x in table(8).items()}
    r = recipe(gk.Clip(0.2, 0.28, 3.0), (gk.TIS(1.1),), gk.Constant(50.0, over="rows"), BONUSES)
    x, m, A = d["logits"].clone().requires_grad_(), d["mask"].double(), d["advantages"][:, None]
    logp = (x / TEMPERATURE).log_softmax(-1)
    l, H = logp.gather(-1, d["targets"][..., None]).squeeze(-1), -(logp.exp() * logp).sum(-1)
    ratio, w = (l - d["old_logps"]).exp(), (d["old_logps"] - d["rollout_logps"]).exp().clamp(max=1.1)
    pg = torch.maximum(-A * ratio, -A * ratio.clamp(0.8, 1.28))
    pg = torch.where(A < 0, torch.minimum(pg, -A * 3.0), pg) * w
    y = l - d["ref_logps"]
    bonus = (0.01 * H * m / m.sum(1, keepdim=True).clamp(min=1)).sum() / (m.sum(1) > 0).sum()
    loss = (pg * m).sum() / (7 * 50) + (0.04 * (torch.exp(-y) + y - 1) * m).sum() / m.sum() - bonus
    loss.backward()
    same(run(padded(d), r, d)[:2], (loss.detach(), x.grad))


def test_backward_scales_with_what_comes_from_above():
    d = table(5)
    x = d["logits"].clone().requires_grad_()
    (3 * losses.from_logits(x, padded(d), RECIPES["tis"]).loss).backward()
    same([x.grad], [3 * run(padded(d), RECIPES["tis"], d)[1]])


@dataclass(frozen=True)
class Partition(Objective):
    """A learned log Z per sequence, as FlowRL's: (log Z + mean log π − A)²."""

    reads: ClassVar[frozenset[str]] = frozenset({"logps", "log_z", "advantages"})
    scope: ClassVar[str] = "sequence"

    def value(self, tokens):
        return (tokens.log_z + tokens.mean(tokens.logps) - tokens.advantages) ** 2


@pytest.mark.parametrize("per_sequence", [True, False])
def test_a_column_that_carries_a_gradient(per_sequence):
    """One value a sequence, or one for all; padded and packed, whole and in parts."""
    d, r = table(15), recipe(Partition(), aggregate=gk.SequenceMean())
    z0 = torch.randn(7 if per_sequence else (), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    n = d["mask"].sum(1)
    mean = torch.where(d["mask"], d["logps"], 0).sum(1) / n
    expected = torch.where(n > 0, 2 * (z0 + mean - d["advantages"]) / (n > 0).sum(), 0)
    for split in (None, 20):
        z = z0.clone().requires_grad_()
        batch = padded(d)
        for part in batch.split(split) if split else [batch]:
            losses.from_logps(d["logps"][part.span], part, r, log_z=z[part.rows] if per_sequence else z).loss.backward()
        same([z.grad], [expected if per_sequence else expected.sum()])


def test_gradients_carry_on_to_the_model():
    """A linear model's gradient through the loss is the chain rule's, by central differences of the loss itself."""
    d, r = table(5, lengths=(3, 2), near=0.05), RECIPES["dual_constant"]
    hidden, weight = d["logits"].nan_to_num(), torch.eye(V, dtype=torch.float64).requires_grad_()
    losses.from_logits(hidden @ weight, padded(d), r).loss.backward()
    for i, j in ((0, 0), (3, 7), (12, 1)):
        ends = []
        for e in (1e-6, -1e-6):
            moved = weight.detach().clone()
            moved[i, j] += e
            ends.append(float(losses.from_logits(hidden @ moved, padded(d), r).loss))
        assert abs((ends[0] - ends[1]) / 2e-6 - weight.grad[i, j]) < 1e-8


def test_two_passes():
    """Batch scope of the current policy asks for a first pass, and for a new one after each use."""
    d = table(11)
    needs = {name for name, r in ALL.items() if padded(d).needs_whole(r)}
    assert needs == {"rare_kept", "median_live", "median_kept"} | NEED_WHOLE
    r = ALL["median_kept"]
    parts = padded(d).split(20)

    def step(part):
        return losses.from_logits(d["logits"][part.span], part, r).loss

    def refused(part):
        with pytest.raises(gk.StateError) as caught:
            step(part)
        return caught.value.kind == "not_observed"

    assert refused(parts[0])
    for part in parts[1:]:
        losses.observe(d["logits"][part.span], part, r)
    assert refused(parts[1])
    losses.observe(d["logits"][parts[0].span], parts[0], r)
    same([sum(step(part) for part in parts)], [losses.from_logits(d["logits"], padded(d), r).loss])
    assert refused(parts[0])
    losses.observe(d["logits"][parts[0].span], parts[0], r)
    assert refused(parts[0])


@pytest.mark.parametrize("over", ["live", "kept", "rows"])
def test_a_weight_of_the_current_policy_is_a_weight(over):
    """What drops tokens late drops them as a constant does that says the same, denominators included."""
    d = table(11)
    marks = (d["logps"] >= -3.0).double()
    assert 0 < marks[d["mask"]].mean() < 1
    for aggregate in (gk.TokenMean(over=over), gk.SequenceMean(over=over)):
        late, early = (
            recipe(correct=(gk.TIS(1.1), stage), aggregate=aggregate) for stage in (DropRare(-3.0), Marked())
        )
        same(run(padded(d), late, d, split=20)[:2], run(padded(d, marks=marks), early, d)[:2])


@dataclass(frozen=True)
class Folded(Objective):
    """Uses the correction inside its own formula."""

    reads: ClassVar[frozenset[str]] = frozenset({"weight", "logps", "advantages"})
    folds: ClassVar[bool] = True

    def value(self, tokens):
        return -tokens.weight * tokens.advantages * tokens.logps


def test_an_objective_that_folds_the_weight_has_it_once():
    d, correct = table(11), (gk.IcePop(0.8, 1.3), gk.WTRS(0.5, 2.0))
    folded, plain = (run(padded(d), recipe(o, correct), d) for o in (Folded(), gk.Reinforce()))
    same(folded, plain)


def test_a_first_pass_may_begin_anew_with_another_split():
    """What is left of one that broke off, for want of memory say, does not stand in the way."""
    d, r = table(11), ALL["median_kept"]
    batch = padded(d)
    first = batch.split(10)[1]
    losses.observe(d["logits"][first.span], first, r)
    parts = batch.split(20)
    for part in parts:
        losses.observe(d["logits"][part.span], part, r)
    total = sum(losses.from_logits(d["logits"][part.span], part, r).loss for part in parts)
    same([total], [losses.from_logits(d["logits"], padded(d), r).loss])


def test_what_is_no_recipe_or_no_tensor():
    d = table(11)
    batch = padded(d)
    part = batch.split(20)[0]
    calls = {
        "a grpokit.Recipe": (
            lambda: batch.needs_whole("stapo"),
            lambda: batch.synchronize("stapo"),
            lambda: losses.observe(d["logps"][part.span], part, "stapo"),
        ),
        "the same of all parts": (lambda: _observed_unevenly(batch, d),),
    }
    for says, attempts in calls.items():
        for attempt in attempts:
            with pytest.raises(gk.InputError, match=says):
                attempt()
    with pytest.raises(gk.InputTypeError, match="logits or log-probs"):
        losses.observe(None, part, ALL["median_kept"])


def _observed_unevenly(batch, d):
    for i, part in enumerate(batch.split(20)):
        more = {"values": d["old_logps"][part.span]} if i else {}
        losses.observe(d["logps"][part.span], part, ALL["median_kept"], **more)


def test_rollout_ids_may_be_hashes():
    ids = torch.tensor([2**63 + 5, 7, 9, 11, 13, 15, 2**64 - 1], dtype=torch.uint64)
    d = table(11)
    assert run(padded(d, rollout_ids=ids), WEIGHED["weight_clip_cov"], d)[0].isfinite()


def test_a_first_pass_is_for_its_recipe():
    d, (a, b) = table(11), (ALL["median_kept"], ALL["median_live"])
    parts = padded(d).split(20)
    for part in parts:
        losses.observe(d["logits"][part.span], part, a)
        losses.observe(d["logps"][part.span], part, b, entropies=d["entropies"][part.span])
    for r in (a, b):
        total = sum(losses.from_logits(d["logits"][part.span], part, r).loss for part in parts)
        same([total], [losses.from_logits(d["logits"], padded(d), r).loss])


def test_observing_where_nothing_needs_it_is_free():
    d = table(11)
    for part in padded(d).split(20):
        losses.observe(torch.zeros(0), part, RECIPES["tis"])


def test_nothing_waits_for_the_device():
    """Without weights that may drop, no number is read back between the model's output and the loss."""
    d, r = table(5), RECIPES["dual_constant"]
    part = padded(d).split(20)[1]
    losses.from_logits(d["logits"][part.span], part, r)  # denominators settle once a batch

    class Reads(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            blocking = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "_to_copy")
            name = function.overloadpacket.__name__
            assert name not in blocking or "dtype" in (kwargs or {}), name
            return function(*arguments, **(kwargs or {}))

    with Reads():
        x = d["logits"][part.span].clone().requires_grad_()
        losses.from_logits(x, part, r).loss.backward()


LOGPS = torch.zeros(2, 3)
LOGITS = torch.zeros(2, 3, 8)
BATCH = gk.TokenBatch(torch.tensor([[5, 6, 7], [1, 2, 3]]), advantages=torch.ones(2), returns=torch.ones(2))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: losses.from_logps(LOGPS[:1], BATCH, recipe()), "token_shape", "(2, 3), one per place"),
        (lambda: losses.from_logps(LOGITS, BATCH, recipe()), "token_shape", "logps"),
        (lambda: losses.from_logps(LOGPS.long(), BATCH, recipe()), "token_type", "floats"),
        (lambda: losses.from_logps(LOGPS.numpy(), BATCH, recipe()), "token_type", "logps"),
        (lambda: losses.from_logps(LOGPS.to("meta"), BATCH, recipe()), "token_type", "on meta"),
        (lambda: losses.from_logps(LOGPS, BATCH, recipe(gk.Entropy())), "missing_token_column", "Entropy"),
        (lambda: losses.from_logps(LOGPS, BATCH, recipe(gk.KL())), "missing_token_column", "'ref_logps'"),
        (lambda: losses.from_logps(LOGPS, BATCH, recipe(ratio="rollout")), "missing_token_column", "'rollout_logps'"),
        (
            lambda: losses.from_logps(LOGPS, BATCH, recipe(gk.Entropy()), entropy=LOGPS),
            "missing_token_column",
            "Did you mean 'entropy'?",
        ),
        (lambda: losses.from_logps(LOGPS, BATCH, recipe(), returns=LOGPS), "column_twice", "returns"),
        (lambda: losses.from_logps(LOGPS, BATCH, recipe(), log_ratio=LOGPS), "reserved_column", "log_ratio"),
        (lambda: losses.from_logps(LOGPS, BATCH, recipe(), values=LOGPS[0]), "token_shape", "values"),
        (lambda: losses.from_logps(LOGPS, BATCH, recipe(), entropies=LOGPS[:, 0]), "token_shape", "entropies"),
        (lambda: losses.from_logits(LOGPS, BATCH, recipe()), "token_shape", "(2, 3, 'V')"),
        (lambda: losses.from_logits(LOGITS[:, :2], BATCH, recipe()), "token_shape", "logits"),
        (lambda: losses.from_logits(LOGITS[..., :7], BATCH, recipe()), "target_range", "from 0 to 6"),
        (lambda: losses.from_logits(LOGITS, BATCH, recipe(), entropies=LOGPS), "reserved_column", "entropies"),
        (lambda: losses.from_logits(LOGITS, BATCH, recipe(), logps=LOGPS), "reserved_column", "logps"),
        (
            lambda: losses.from_logits(LOGITS[:1], gk.TokenBatch(torch.tensor([[1, -100, 2]])), recipe(gk.Reinforce())),
            "target_range",
            "a live target is -100",
        ),
    ],
)
def test_what_is_refused(call, kind, words):
    with pytest.raises(gk.GrpokitError) as caught:
        call()
    assert caught.value.kind == kind
    assert words in str(caught.value)


def test_masked_targets_may_be_anything():
    batch = gk.TokenBatch(torch.tensor([[1, -100]]), mask=torch.tensor([[1, 0]]), advantages=torch.ones(1))
    assert losses.from_logits(torch.zeros(1, 2, 3), batch, recipe()).loss == -1


@dataclass(frozen=True)
class Short(Correct):
    reads: ClassVar[frozenset[str]] = frozenset({"advantages"})

    def weight(self, tokens):
        return tokens.advantages[:1]


def test_a_weight_of_the_wrong_shape_is_told():
    with pytest.raises(gk.InputError) as caught:
        losses.from_logps(LOGPS, BATCH, recipe(correct=(Short(),)))
    assert caught.value.kind == "stage_result"
    assert "Short" in str(caught.value)


def test_a_recipe_is_asked_for_and_not_its_name():
    d = table(0)
    with pytest.raises(gk.InputError, match=r"recipe='dapo'; expected a grpokit.Recipe"):
        losses.from_logps(d["logps"], padded(d), "dapo")
