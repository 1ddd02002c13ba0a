"""The corrections' weights in a loss: constants of the gradient, and 0 is not there."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grpokit as gk
from grpokit.loss import coefficients, from_logps
from grpokit.reference import loss as losses
from grpokit.reference import mismatch as reference
from grpokit.stages import EXAMPLES, REGISTRY, load
from grpokit.tokens import Tokens
from tests.losses import ALL_WEIGHTS, BONUSES, RECIPES, WEIGHED, current, padded, recipe, run, same, table


def reads_sampler(weight):
    return "rollout_logps" in weight.reads


logps = st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), max_size=6)


@settings(deadline=None)
@given(logps)
def test_weights_are_the_references(pairs):
    old, rollout = [a for a, _ in pairs], [b for _, b in pairs]
    columns = {"old_logps": torch.tensor(old).double(), "rollout_logps": torch.tensor(rollout).double()}
    tokens = gk.TokenBatch(torch.zeros(1, len(old), dtype=torch.int64)).tokens(
        recipe(), {"logps": torch.zeros(len(old))}
    )
    tokens = tokens.only(None, **columns)
    tis, icepop = gk.TIS(2.0).weight(tokens), gk.IcePop(0.5, 5.0).weight(tokens)
    rows = [{name: x.tolist() for name, x in columns.items()}]
    assert tis.tolist() == pytest.approx(
        reference.tis(rows, cap=2.0, low=None, level="token", normalize=False, policy="old")[0], rel=1e-14
    )
    assert icepop.tolist() == pytest.approx(reference.icepop(rows, 0.5, 5.0, "old")[0], rel=1e-14)


@pytest.mark.parametrize(
    ("q", "low", "high"),
    [
        (1e-4, None, 225),
        (1e-3, None, 37),
        (0.1, 0.166, 2.57),
        (0.5, 0.574, 1.43),
        (0.9, 0.826, 1.093),
    ],
)
def test_kpop_is_wide_for_rare_tokens_and_tight_for_sure_ones(q, low, high):
    """p / q that φ = 0.1 keeps, in fp32; a rare token may get as rare as it wants."""
    least = low or 1e-4
    ratios = torch.tensor([least * 0.99, least * 1.01, 1.0, 1 + (high - 1) * 0.98, 1 + (high - 1) * 1.03])
    columns = {"old_logps": (q * ratios).log(), "rollout_logps": torch.full((5,), math.log(q))}
    w = gk.KPop(0.1).weight(Tokens(columns, torch.tensor([5])))
    assert (w != 0).tolist() == [low is None, True, True, True, False]


def test_m2po_clips_within_its_budget():
    """The mean of min(d², t²) over what A pushes on stays below τ where the floors are 0, and is not far from it."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        d, A = torch.randn(2, 64, generator=generator, dtype=torch.float64) * torch.tensor([[0.4], [1.0]])
        w = gk.M2POClip(0.04, 0.0, 0.0).weight(Tokens({"log_ratio": d, "advantages": A}, torch.tensor([64])))
        harmful = A * d > 0
        assert (w[~harmful] == 1).all()
        most = (d[harmful & (w == 1)] ** 2).max()
        capped = torch.where(d**2 < most, d**2, most)[harmful].mean()
        assert capped < 0.04 < (d[harmful] ** 2).mean()
        floored = gk.M2POClip().weight(Tokens({"log_ratio": d, "advantages": A}, torch.tensor([64])))
        assert (floored >= w).all()
        assert (floored[(d > math.log(0.7)) & (d < math.log(1.5))] == 1).all()


def test_m2po_at_its_budget_closes_nothing():
    """mean = τ is within it; the largest value alone would not be."""
    tokens = Tokens({"log_ratio": torch.tensor([0.75, 0.25]), "advantages": torch.ones(2)}, torch.tensor([2]))
    assert gk.M2POClip((0.75**2 + 0.25**2) / 2, 0.0, 0.0).weight(tokens).tolist() == [1, 1]
    assert gk.M2POClip((0.75**2 + 0.25**2) / 2 - 1e-9, 0.0, 0.0).weight(tokens).tolist() == [0, 1]


def test_dppos_kl_is_from_the_sampler_to_the_policy():
    """D(q ‖ p) of q = 0.5, p = 0.9 is 0.511, and D(p ‖ q) is 0.368."""
    columns = {
        "logps": torch.tensor([0.9]).log(),
        "rollout_logps": torch.tensor([0.5]).log(),
        "advantages": torch.ones(1),
    }
    kept = [gk.DPPOMask(1.0, high, "kl").weight(Tokens(columns, torch.tensor([1]))).item() for high in (0.5, 0.52)]
    assert kept == [0, 1]


def test_m2po_masks_down_to_its_budget():
    """The mean of the kept is below τ, one more value would be too much, and a wider τ keeps more."""
    for seed in range(20):
        d = 0.4 * torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        tokens = Tokens({"old_logps": d, "rollout_logps": 0 * d}, torch.tensor([64]))
        kept = gk.M2POMask(0.04).weight(tokens) == 1
        assert (d[kept] ** 2).mean() < 0.04
        one_more = torch.cat([d[kept] ** 2, (d[~kept] ** 2).min()[None]])
        assert one_more.mean() >= 0.04
        assert kept[gk.M2POMask(0.01).weight(tokens) == 1].all()
    ties = Tokens({"old_logps": torch.tensor([1.0, 1.0, 0.1]), "rollout_logps": torch.zeros(3)}, torch.tensor([3]))
    assert gk.M2POMask(0.6).weight(ties).tolist() == [0, 0, 1]


def test_lots_are_of_the_place_alone():
    """The same draw wherever the token stands; another step, seed or rollout id draws anew."""
    from grpokit.token_selection import lots

    batch = gk.TokenBatch(torch.zeros(2, 50, dtype=torch.int64), rollout_ids=torch.tensor([7, 9]), step=3)
    tokens = batch.tokens(recipe(), {"logps": torch.zeros(100)})
    drawn = lots(tokens, 5)
    expected = [reference.lot(5, 3, rollout, t) for rollout in (7, 9) for t in range(50)]
    assert drawn.tolist() == expected
    assert len(set(expected)) == 100
    assert (drawn > 0).double().mean() == pytest.approx(0.5, abs=0.15)
    assert not set(lots(tokens, 6).tolist()) & set(expected)


def test_quantiles_are_torchs():
    from grpokit.token_selection import quantile

    x = torch.randn(41, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = x > -0.3
    for q in (0.0, 0.2, 0.5, 0.75, 1.0):
        torch.testing.assert_close(quantile(x, there, q), x[there].quantile(q))
    assert quantile(x, x > 9, 0.5).isnan()


def test_what_reads_entropies_says_so_where_only_log_probs_are_given():
    d = table(3)
    for name in ("stapo", "high_entropy"):
        with pytest.raises(gk.InputError) as caught:
            from_logps(d["logps"], padded(d), gk.recipe(name, **EXAMPLES[name]))
        assert caught.value.kind == "missing_token_column"
        assert "reads 'entropies'" in str(caught.value)


def test_a_dropped_token_gets_no_gradient_from_its_term_even_if_it_is_nan():
    d = table(9)
    batch, r = padded(d), RECIPES["icepop_kept"]
    weights = coefficients(batch, r, current(batch, d)).weights
    dropped = batch.live.index[weights == 0]
    assert len(dropped)
    assert len(dropped) < batch.live_tokens
    poisoned = d | {"logps": d["logps"].flatten().index_fill(0, dropped, torch.nan).view_as(d["logps"])}
    loss, x, _ = run(padded(poisoned), r, poisoned, door="logps")
    assert not x.flatten()[dropped].any()
    expected = run(batch, r, d, door="logps")
    same((loss, x), expected[:2], 0)


@pytest.mark.parametrize("name", ALL_WEIGHTS)
def test_each_does_something_to_some_tokens(name):
    d = table(2)
    w = coefficients(padded(d), WEIGHED[f"weight_{name}"], current(padded(d), d)).weights
    assert 0 < int((w == 0).sum()) < len(w) or name.startswith(("tis", "floored"))
    assert (w >= 0).all()


def test_a_term_drops_for_itself_alone():
    d = table(9)
    batch = padded(d)
    r = recipe(correct=(gk.IcePop(0.8, 1.3),), extra=BONUSES)
    result = coefficients(batch, r, current(batch, d))
    alone = coefficients(batch, recipe(gk.KL(), extra=BONUSES[1:]), current(batch, d))
    dropped = result.weights == 0
    assert dropped.any()
    torch.testing.assert_close(result.gradients["logps"][dropped], 0.04 * alone.gradients["logps"][dropped])
    torch.testing.assert_close(result.gradients["entropies"], alone.gradients["entropies"])


@pytest.mark.parametrize(
    "stage", [gk.TIS(), gk.IcePop(), *(w for w in ALL_WEIGHTS.values() if reads_sampler(w))], ids=repr
)
def test_nan_of_the_sampler_is_seen(stage):
    d = table(3)
    for places in (torch.ones_like(d["mask"]), d["mask"].cumsum(1) == 1):
        batch = padded(d, rollout_logps=d["rollout_logps"].masked_fill(places, torch.nan))
        assert from_logps(d["logps"], batch, recipe(gk.Reinforce(), correct=(stage,))).loss.isnan()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: recipe(correct=(gk.TIS(), gk.IcePop())), "TIS and IcePop both multiply"),
        (lambda: recipe(correct=(gk.TIS(),), ratio="rollout"), "ratio='rollout' has the sampler in the ratio of Clip"),
        (lambda: recipe(correct=(gk.KPop(0.1, policy="current"),)), "policy='current' has r in the weight"),
        (lambda: gk.recipe("oapl").replace(correct=(gk.MIS(2.0),)), "in the ratio of Regression"),
        (lambda: gk.recipe("vespo").replace(correct=(gk.MIS(2.0),)), "that of a sequence is at each of them"),
        (lambda: gk.recipe("vespo").replace(correct=(gk.TIS(),), ratio="rollout"), "in the ratio of GammaWeight"),
        (
            lambda: recipe(extra=(gk.Term(gk.KL(corrected=True), 0.1, (gk.TIS(policy="current"),)),)),
            "policy='current' has r in the weight, and KL",
        ),
    ],
)
def test_no_ratio_is_counted_twice(make, says):
    with pytest.raises(gk.InputError) as caught:
        make()
    assert caught.value.kind == "counted_twice"
    assert says in str(caught.value)


def test_bypass_is_decoupled_with_a_trainer_that_is_the_sampler():
    """ratio="rollout" is what ratio="old" gives where π_old is the sampler, whose weight is then 1."""
    d = table(5)
    bypass = run(padded(d), recipe(gk.SequenceClip(0.05, 0.1), ratio="rollout", extra=BONUSES), d)
    same_policy = d | {"old_logps": d["rollout_logps"]}
    decoupled = run(padded(same_policy), recipe(gk.SequenceClip(0.05, 0.1), (gk.TIS(),), extra=BONUSES), same_policy)
    same(decoupled[:2], bypass[:2], 0)


def test_a_dropped_token_may_stay_in_the_ratio_of_its_sequence():
    """As in TRL and verl: s of all tokens, whose shares of the kept ones pull on all."""
    d = table(5)
    batch, (r, plain) = (
        padded(d),
        (
            recipe(gk.SequenceClip(None, None), correct, gk.TokenMean(), dropped="in_ratio")
            for correct in ((gk.WTRS(0.45, 2.0), gk.IcePop(0.7, 1.4)), ())
        ),
    )
    now = current(batch, d)
    found, full = coefficients(batch, r, now), coefficients(batch, plain, now)
    s = -full.gradients["logps"] / batch.columns["advantages"]  # s / Σ|o_i|, of each token's sequence
    tokens = batch.tokens(r, now)
    share = tokens.mean(found.weights)
    assert 0 < int((found.weights == 0).sum()) < batch.live_tokens
    torch.testing.assert_close(found.gradients["logps"], -batch.columns["advantages"] * s * share)


def test_a_recipe_that_folds_its_weight_uses_it_there_and_nowhere_else():
    """VESPO with the sampler's weight is VESPO of the ratio to the sampler: W = Π r ρ = Π u."""
    d = table(5)
    folded = run(padded(d), gk.recipe("vespo").replace(correct=(gk.TIS(None),)), d)
    same(folded[:2], run(padded(d), gk.recipe("vespo").replace(ratio="rollout"), d)[:2])


@pytest.mark.parametrize("level", ["worst", "mean", "sum", "token"])
@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_what_the_sampler_held_for_impossible_is_far(kind, level):
    for bad in (torch.inf, -torch.inf):
        columns = {
            "old_logps": torch.tensor([-1.0, -1.0, -1.0]),
            "rollout_logps": torch.tensor([-1.0, -1.0 - bad, -1.0]),
        }
        w = gk.TrustRegionMask(0.5, kind, level).weight(Tokens(columns, torch.tensor([2, 1])))
        assert w.tolist() == [1, 0, 1] if level == "token" else [0, 0, 1]


def test_everything_dropped():
    d = table(3)
    for over in ("live", "kept", "rows"):
        r = recipe(correct=(gk.IcePop(1e6, 1e7),), aggregate=gk.SequenceMean(over=over))
        loss, x, metrics = run(padded(d), r, d)
        assert loss == 0
        assert not x.any()
        assert metrics["mismatch/dropped"] == 1


def test_the_sampler_is_the_trainer():
    """ρ = 1: the corrections change nothing."""
    d = table(3)
    d["rollout_logps"] = d["old_logps"]
    plain = run(padded(d), recipe(extra=BONUSES), d)
    masks = (gk.SequenceMask(1.1, 0.9), gk.GeometricMask(), gk.WTRS(), gk.TrustRegionMask(1e-6), gk.M2POMask())
    for weight in (gk.TIS(), gk.IcePop(), gk.MIS(1.5), gk.KPop(1e-3)):
        corrected = run(padded(d), recipe(correct=(weight, *masks), extra=BONUSES), d)
        same(corrected[:2], plain[:2], 0)


def test_who_reads_what_is_not_there():
    d = table(3)
    with pytest.raises(gk.InputError) as caught:
        from_logps(d["logps"], padded(d, rollout_logps=None), recipe(correct=(gk.TIS(),)))
    assert caught.value.kind == "missing_token_column"
    assert "TIS reads 'rollout_logps'" in str(caught.value)


def test_every_correction_is_in_these_tests():
    load()
    ours = {name for name, cls in REGISTRY["correct"].items() if cls.__module__.startswith("grpokit.")}
    assert ours - {"IcePop"} == {type(weight).__name__ for weight in ALL_WEIGHTS.values()} - {"IcePop"}
    assert ours == set(losses.WEIGHTS)


@pytest.mark.parametrize("name", ALL_WEIGHTS)
def test_when_it_is_made_is_what_explain_says(name):
    """It follows from what the weight reads and its scope."""
    batch, weight = padded(table(3)), ALL_WEIGHTS[name]
    r = recipe(gk.Reinforce(), (weight,))
    if batch.needs_whole(r):
        expected = "in a first pass over the whole step"
    else:
        expected = "in each forward pass" if batch.late(r.terms[0]) else "once a step"
    assert f"made {expected}" in r.explain()
