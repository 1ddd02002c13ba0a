"""The identities between recipes: what becomes of one in the limit, or on special data. The first line of each test is
what docs/algorithms.md prints."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tests.losses import current, padded, recipe, table

import grpokit as gk
from grpokit.loss import coefficients

BIG = 1e6
ONE, ROWS = gk.TokenMean(), gk.SequenceMean(over="rows")


def gradient(objective, d, aggregate=ONE, correct=()):
    batch = padded(d)
    return coefficients(batch, recipe(objective, correct, aggregate), current(batch, d)).gradients["logps"]


def data(*, equal=False, **kwargs):
    """A step; with `equal` every token of a sequence has the same log-ratio."""
    d = table(11, **{"near": 0.4} | kwargs)
    if equal:
        # The old policy is 0, so that differences are exact.
        shift = torch.linspace(-0.7, 0.6, len(d["mask"]), dtype=torch.float64)[:, None]
        d["logps"], d["old_logps"] = shift.expand_as(d["logps"]).clone(), 0 * shift.expand_as(d["logps"])
    return d


def same(a, b, rtol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-14)
    assert a.abs().max() > 0


def test_gspo_at_length_one():
    """GSPO, and GSPO-token, of answers of one token is PPO's clip."""
    d = data(lengths=(1, 1, 1, 1, 1, 1, 1), per_token=True)
    for kind in (gk.SequenceClip, gk.SequenceClipToken):
        same(gradient(kind(0.2, 0.28, 3.0), d), gradient(gk.Clip(0.2, 0.28, 3.0), d))


def test_gspo_token_is_gspo():
    """GSPO-token is GSPO where the advantage is constant over the answer and answers are averaged token by token."""
    same(gradient(gk.SequenceClipToken(0.1, 0.1), data(), ROWS), gradient(gk.SequenceClip(0.1, 0.1), data(), ROWS))
    each, one = (
        gradient(kind(0.1, 0.1), data(per_token=True), ROWS) for kind in (gk.SequenceClipToken, gk.SequenceClip)
    )
    assert (each - one).abs().max() > 0.01


def test_luspo_is_gspo_times_length():
    """LUSPO is GSPO with each answer's loss times its length: with answers of one length, GSPO times that length."""
    d = data(lengths=(6, 6, 6))
    d["mask"] = d["mask"] | torch.ones_like(d["mask"])
    d = {k: torch.nan_to_num(x, 0.3) if x.is_floating_point() else x for k, x in d.items()}
    luspo = gradient(gk.SequenceClip(0.1, 0.1), d, gk.SequenceSum(over="rows"))
    same(luspo, 6 * gradient(gk.SequenceClip(0.1, 0.1), d, ROWS))


def test_dual_clip_to_infinity():
    """Dual clip with c → ∞ is PPO's clip."""
    same(gradient(gk.Clip(0.2, 0.2, BIG), data()), gradient(gk.Clip(0.2, 0.2), data()), 0)


def test_open_clips_are_the_ratio():
    """PPO's clip without bounds is −A r: the importance-weighted policy gradient."""
    d = data()
    batch = padded(d)
    r = (batch.column("logps", d["logps"]) - batch.columns["old_logps"]).exp()
    same(gradient(gk.Clip(None, None), d), -batch.columns["advantages"] * r / batch.live_tokens)


def test_gmpo_of_equal_tokens():
    """GMPO is GSPO with the bounds e^±ε where all tokens of an answer have the same ratio."""
    d = data(equal=True)
    low, high = 1 - math.exp(-0.4), math.exp(0.4) - 1
    same(gradient(gk.GeometricClip(0.4, 0.4), d, ROWS), gradient(gk.SequenceClip(low, high), d, ROWS))


def test_gmpo_without_bounds():
    """GMPO without bounds is GSPO without bounds."""
    same(gradient(gk.GeometricClip(None, None), data(), ROWS), gradient(gk.SequenceClip(None, None), data(), ROWS))


def test_cispo_cap_to_infinity():
    """CISPO with the cap → ∞ has the gradient of the unclipped ratio, −A r."""
    same(gradient(gk.ClippedWeight(None), data()), gradient(gk.Clip(None, None), data()))
    same(gradient(gk.ClippedWeight(BIG), data()), gradient(gk.Clip(None, None), data()))


def test_cispo_with_no_room_is_reinforce():
    """CISPO with both bounds at 1 is REINFORCE."""
    same(gradient(gk.ClippedWeight(0.0, 0.0), data()), gradient(gk.Reinforce(), data()))


@pytest.mark.parametrize("tau", [1e-3, 0.3, 1.0, 1.05, 40.0])
def test_sapo_at_one(tau):
    """SAPO's gradient at r = 1 is −A for every τ."""
    d = data()
    d["old_logps"] = d["logps"]
    same(gradient(gk.SoftGate(tau, tau), d), gradient(gk.Reinforce(), d))


def test_sapo_of_a_flat_gate():
    """SAPO with τ → 0 has the gradient of the unclipped ratio, −A r."""
    same(gradient(gk.SoftGate(1e-4, 1e-4), data()), gradient(gk.Clip(None, None), data()), 1e-7)


def test_maspo_of_a_wide_gate():
    """MASPO with σ → ∞ has the gradient of the unclipped ratio, −A r."""
    same(gradient(gk.GaussianGate(BIG, sigma_high=BIG), data()), gradient(gk.Clip(None, None), data()), 1e-9)


def test_spo_of_a_weak_penalty():
    """SPO with ε → ∞ has the gradient of the unclipped ratio, −A r; it is at rest at r = 1 ± ε on A's side."""
    same(gradient(gk.QuadraticPenalty(1e9), data()), gradient(gk.Clip(None, None), data()), 1e-8)
    for A, r in ((1.5, 1.2), (-1.5, 0.8)):
        one = {"advantages": torch.tensor([A]), "old_logps": torch.zeros(1, 1), "logps": torch.tensor([[math.log(r)]])}
        d = data(lengths=(1,)) | {k: x.double() for k, x in one.items()}
        assert gradient(gk.QuadraticPenalty(0.2), d).abs().max() < 1e-6


def test_vespo_of_no_exponents():
    """VESPO with all exponents 0 is REINFORCE."""
    same(gradient(gk.GammaWeight(0, 0, 0, 0), data()), gradient(gk.Reinforce(), data()))


def test_vespo_of_exponent_one():
    """VESPO with k = 1, λ = 0 is REINFORCE weighed by the answer's whole ratio."""
    d = data()
    batch = padded(d)
    gap = batch.column("logps", d["logps"]) - batch.columns["old_logps"]
    W = torch.stack([x.sum().exp() for x in gap.split(batch.live.lengths.tolist())])
    expected = -batch.columns["advantages"] * W.repeat_interleave(batch.live.lengths) / batch.live_tokens
    same(gradient(gk.GammaWeight(1, 0, 1, 0), d), expected)


def test_oapl_at_the_sampler():
    """OAPL's gradient at π = π_sampler is that of REINFORCE on whole answers, times 2 β."""
    d = data()
    d["old_logps"] = d["logps"]
    same(gradient(gk.Regression(1e-3), d, ROWS), 2e-3 * gradient(gk.Reinforce(), d, gk.SequenceSum(over="rows")))


@pytest.mark.parametrize("f", ["js", "hellinger", "tv", "jeffreys"])
def test_lad_is_at_rest_at_its_target(f):
    """LAD has no gradient at R = e^{A/η} where f'(1) = 0."""
    d = data(lengths=(1, 1, 1, 1))
    d["mask"] = torch.ones_like(d["mask"])
    d["old_logps"] = torch.zeros_like(d["logps"])
    d["logps"] = (d["advantages"] / 0.7)[:, None].expand_as(d["logps"]).clone()
    near = gradient(gk.Divergence(f, 0.7), d)
    assert near.abs().max() <= (0.5 if f == "tv" else 1e-14)
    moved = d | {"logps": d["logps"] + 0.1}
    assert (gradient(gk.Divergence(f, 0.7), moved) > 0).all()
    assert (gradient(gk.Divergence(f, 0.7), d | {"logps": d["logps"] - 0.1}) < 0).all()


def test_luffy_without_demonstrations():
    """LUFFY without off-policy tokens is PPO's clip."""
    d = data() | {"off_policy": torch.zeros(7, 9, dtype=torch.bool)}
    same(gradient(gk.MixedPolicy(0.1, 0.2, 0.28), d), gradient(gk.Clip(0.2, 0.28), d))


def test_luffy_of_a_large_gamma():
    """LUFFY's shaped likelihood times γ becomes the plain likelihood for γ → ∞: −A π."""
    d = data() | {"off_policy": torch.ones(7, 9, dtype=torch.bool)}
    batch = padded(d)
    pi = batch.column("logps", d["logps"]).exp()
    same(1e8 * gradient(gk.MixedPolicy(1e8), d), -batch.columns["advantages"] * pi / batch.live_tokens, 1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        gk.Clip(), gk.Clip(0.2, 0.2, 3.0), gk.SequenceClipToken(), gk.ClippedWeight(4.0), gk.SoftGate(),
        gk.GaussianGate(), gk.GammaWeight(),
    ],
)  # fmt: skip
def test_first_step(objective):
    """On-policy, at the first update of a batch, every clip, gate and weight has REINFORCE's gradient, −A."""
    d = data(per_token=True)
    same(gradient(objective, d | {"old_logps": d["logps"]}), gradient(gk.Reinforce(), d))


def test_equal_lengths():
    """The token mean, GRPO's mean of means and Dr.GRPO's constant are one where all answers have that length."""
    d = data(lengths=(5, 5, 5))
    d = {k: torch.nan_to_num(x, 0.3) if x.is_floating_point() else x for k, x in d.items()}
    d["mask"] = torch.ones_like(d["mask"])
    expected = gradient(gk.Clip(), d, gk.TokenMean())
    for aggregate in (gk.SequenceMean(), gk.SequenceMean(over="rows"), gk.Constant(5.0)):
        same(gradient(gk.Clip(), d, aggregate), expected)
    same(gradient(gk.Clip(), d, gk.SequenceSum()), 5 * expected)


# ---- advantages

RNG = np.random.default_rng(0)
IDS = np.repeat(np.arange(40), 8)
BINARY, REAL = RNG.integers(0, 2, 320).astype(float), RNG.normal(size=320)


def advantages(estimator, rewards=REAL, **columns):
    return gk.advantages(rewards, IDS, estimator, **columns)


def near(a, b, rtol=1e-10):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)
    assert np.abs(a).max() > 0


def test_rloo_is_dr_grpo():
    """RLOO's advantage is G / (G − 1) times Dr.GRPO's."""
    near(advantages(gk.LeaveOneOut()), 8 / 7 * advantages(gk.MeanBaseline()))


def test_group_norm_is_the_mean_baseline_over_std():
    """GRPO's advantage is Dr.GRPO's over the standard deviation; for 0/1 rewards that is √(p (1 − p)), ddof 0."""
    p = BINARY.reshape(40, 8).mean(1).repeat(8)
    mixed = (p > 0) & (p < 1)
    given = advantages(gk.GroupNorm(0, 0.0), BINARY)
    near(given[mixed], (advantages(gk.MeanBaseline(), BINARY) / np.sqrt(np.maximum(p * (1 - p), 1e-300)))[mixed])


def test_opo_of_equal_lengths():
    """OPO's baseline is the mean where all answers have one length."""
    near(advantages(gk.LengthBaseline(), response_len=np.full(320, 7)), advantages(gk.MeanBaseline()))


def test_gpg_without_dead_groups():
    """GPG's advantage is Dr.GRPO's where every group has signal."""
    near(advantages(gk.RescaledMean()), advantages(gk.MeanBaseline()))


def test_remax_with_the_mean_for_the_greedy_answer():
    """ReMax with the group's mean as the greedy answer's reward is Dr.GRPO."""
    mean = REAL.reshape(40, 8).mean(1).repeat(8)
    near(advantages(gk.GreedyBaseline(), baseline_reward=mean), advantages(gk.MeanBaseline()))


def test_soft_value_between_mean_and_best():
    """OAPL's soft value is the best reward for β → 0 and the mean for β → ∞."""
    best = REAL - REAL.reshape(40, 8).max(1).repeat(8)
    np.testing.assert_allclose(advantages(gk.SoftValue(1e-9)), best, atol=1e-7)
    np.testing.assert_allclose(advantages(gk.SoftValue(1e9)), advantages(gk.MeanBaseline()), atol=1e-8)


def test_pass_at_one():
    """Pass@k Training with k = 1 is GRPO's advantage with ddof 0."""
    near(advantages(gk.PassKTraining(1, 0.0), BINARY), advantages(gk.GroupNorm(0, 0.0), BINARY))


def test_pkpo_at_one():
    """PKPO with k = 1 is R / n; its leave-one-out baseline is then the mean of the others over n − 1."""
    near(advantages(gk.PKPO(1, "none")), REAL / 8)
    others = (REAL.reshape(40, 8).sum(1).repeat(8) - REAL) / 7
    near(advantages(gk.PKPO(1, "loo")), REAL / 8 - others / 7)


def test_pkpo_of_the_whole_group():
    """PKPO with k = n and "loo-1" is the lead of the best answer alone: PassKArgmax without the standard deviation."""
    near(advantages(gk.PKPO(8)), advantages(gk.PassKArgmax(False)))


def test_gdpo_of_one_reward():
    """GDPO of one reward is GRPO's advantage, whitened over the batch."""
    given = advantages(gk.GDPO("sequences", eps=0.0), reward_parts={"only": REAL})
    x = advantages(gk.GroupNorm(1, 0.0))
    near(given, (x - x.mean()) / x.std(ddof=1))


def test_reinforce_pp_without_kl():
    """REINFORCE++ without KL is a z-score over the batch, a row counting by its tokens."""
    lengths = np.arange(320) % 9 + 1
    z = np.repeat(REAL, lengths)
    near(advantages(gk.GlobalNorm(1, 0.0), response_len=lengths), (REAL - z.mean()) / z.std(ddof=1))


def test_recipes_that_are_one():
    """Dr.GRPO with the constant 1 is NoRD; OPO, RLOO and ReMax have one loss and differ in the baseline alone."""
    nord = gk.recipe("nord", low=0.2, high=0.2)
    dr = gk.recipe("dr_grpo", max_len=1)
    d = data()
    same(gradient(nord.objective, d, nord.aggregate), gradient(dr.objective, d, dr.aggregate))
    assert nord.advantage == dr.advantage
    losses = {dataclasses.astuple(gk.recipe(name))[7:11] for name in ("opo", "rloo", "remax")}
    assert len(losses) == 1


def through(r, d):
    """The gradient of a recipe's terms on a step."""
    batch = padded(d)
    return coefficients(batch, r, current(batch, d)).gradients["logps"]


def test_decoupled_is_ppo_where_sampler_and_trainer_agree():
    """Decoupled PPO is PPO, and IcePop GRPO without KL, where the sampler is the trainer: ρ = 1."""
    d = data()
    d["rollout_logps"] = d["old_logps"]
    same(through(gk.recipe("decoupled_ppo"), d), through(gk.recipe("ppo_clip"), d), 0)
    same(through(gk.recipe("icepop", low=0.2, high=0.2), d), through(gk.recipe("grpo", beta=0.0), d), 0)
    same(through(gk.recipe("m2po_mask"), d), gradient(gk.Clip(0.2, 0.2), d), 0)


def test_bypass_is_coupled_ppo():
    """With ratio="rollout" (bypass) the loss is the coupled one: PPO with π_old := the sampler."""
    d = data()
    coupled = d | {"old_logps": d["rollout_logps"]}
    same(through(gk.recipe("ppo_clip").replace(ratio="rollout"), d), through(gk.recipe("ppo_clip"), coupled), 0)


def test_the_whole_weight_is_both_ratios():
    """REINFORCE weighed by u = π / π_rollout is the unclipped ratio weighed by ρ = π_old / π_rollout: u = r ρ."""
    d = data()
    u = gradient(gk.Reinforce(), d, correct=(gk.TIS(None, policy="current"),))
    same(u, gradient(gk.Clip(None, None), d, correct=(gk.TIS(None),)))


def test_mis_at_token_level_is_icepop():
    """Masked importance sampling per token is IcePop, and a mask times the plain weight is either."""
    d = data()
    icepop = gradient(gk.Clip(), d, correct=(gk.IcePop(0.8, 1.3),))
    same(gradient(gk.Clip(), d, correct=(gk.MIS(1.3, 0.8, level="token"),)), icepop, 0)
    sequence = gradient(gk.Clip(), d, correct=(gk.MIS(1.6, 0.6),))
    same(gradient(gk.Clip(), d, correct=(gk.TIS(None, level="sequence"), gk.SequenceMask(1.6, 0.6))), sequence, 0)


def test_dppo_on_policy():
    """DPPO is the plain policy gradient on-policy, and without thresholds that bind CISPO with the cap 20."""
    d = data()
    free = through(gk.recipe("dppo", low=1.0, high=1.0), d)
    same(free, through(gk.recipe("cispo", high=19.0).replace(ratio="rollout"), d), 0)
    d["rollout_logps"] = d["logps"]
    same(through(gk.recipe("dppo", low=0.2, high=0.2), d), gradient(gk.Reinforce(), d))


def test_m2po_within_its_budget():
    """M2PO's clip is the unclipped ratio while the second moment of what A pushes on is within τ."""
    d = data(near=0.05)
    unclipped = gk.recipe("ppo_clip", low=0.0, high=1e9).replace(objective=gk.Clip(None, None), ratio="rollout")
    same(through(gk.recipe("m2po_clip"), d), through(unclipped, d), 0)


def test_selections_that_take_everything():
    """STAPO that silences nothing, and the high-entropy tokens with ρ = 1, are DAPO's loss; Clip-Cov without candidates
    and KL-Cov with β = 0 are their clips."""
    d = data()
    dapo = through(gk.recipe("dapo", max_len=99), d)
    same(through(gk.recipe("stapo", tau_p=1e-9), d), dapo, 0)
    same(through(gk.recipe("high_entropy", max_len=99, rho=1.0), d), dapo, 0)
    same(through(gk.recipe("clip_cov", cov_low=90.0, cov_high=91.0), d), gradient(gk.Clip(None, 1.0), d), 0)
    same(through(gk.recipe("kl_cov", beta=0.0), d), gradient(gk.Clip(None, None), d), 0)
