"""`gk.recipe("verl")` has the advantages, the loss and the gradients of verl's `compute_advantage` and `ppo_loss`."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils.tensordict_utils import assign_non_tensor
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.utils import losses

import grpokit as gk

from .draws import Step, gradient, of_sums, ours, same

POLICY = ("loss_mode", "clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta")
ROLLOUT = ("rollout_is", "rollout_is_threshold", "rollout_is_batch_normalize")


@pytest.fixture(autouse=True)
def _padded(monkeypatch):
    """The log-probs here are padded already."""
    monkeypatch.setattr(losses, "no_padding_2_padding", lambda x, _: x)


def loss(step, options, **whole):
    """Value and gradients of verl's `ppo_loss`: a registered policy loss, entropy and KL terms."""
    policy = PolicyLossConfig(**{name: x for name, x in options.items() if name in POLICY})
    rest = {name: x for name, x in options.items() if name not in (*POLICY, *ROLLOUT)}
    config = ActorConfig(strategy="fsdp", rollout_n=3, ppo_micro_batch_size_per_gpu=1, policy_loss=policy, **rest)
    logps, entropies = (x.clone().requires_grad_() for x in (step.logps, step.entropies))
    columns = {"old_log_probs": step.old, "ref_log_prob": step.ref, "response_mask": step.mask}
    columns["advantages"] = step.advantages[:, None] * step.mask
    if options.get("rollout_is"):
        given = {name: options[name] for name in ROLLOUT if name in options}
        columns["rollout_is_weights"] = compute_rollout_correction_weights(step.old - step.rollout, step.mask, **given)[
            0
        ]
    data = TensorDict(columns, batch_size=len(step.mask))
    counts = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None} | whole
    assign_non_tensor(data, **counts)
    value, _ = losses.ppo_loss(config, {"log_probs": logps, "entropy": entropies}, data)
    value.backward()
    return value.detach(), gradient(logps), gradient(entropies)


LOSSES = {
    "default": {},
    "vanilla_wide": {"clip_ratio_low": 0.1, "clip_ratio_high": 0.28, "clip_ratio_c": 10.0},
    "vanilla_dual_inside": {"clip_ratio_high": 0.9, "clip_ratio_c": 1.5},
    "vanilla_clip_ratio": {"clip_ratio": 0.3, "clip_ratio_low": None, "clip_ratio_high": None},
    "no_lower_bound": {"clip_ratio_low": 1.0},
    "gspo": {"loss_mode": "gspo", "loss_agg_mode": "seq-mean-token-mean"},
    "gspo_paper": {"loss_mode": "gspo", "clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4},
    "sapo": {"loss_mode": "sapo"},
    "sapo_sharp": {"loss_mode": "sapo", "tau_pos": 2.0, "tau_neg": 4.0},
    "sapo_terms": {"loss_mode": "sapo", "use_kl_loss": True, "kl_loss_coef": 0.1, "loss_agg_mode": "token-sum"},
    "gpg": {"loss_mode": "gpg"},
    "clip_cov": {"loss_mode": "clip_cov", "clip_cov_ratio": 0.9, "clip_cov_lb": 0.1},
    "clip_cov_wide": {"loss_mode": "clip_cov", "clip_cov_ratio": 1.0, "clip_cov_lb": -0.5, "clip_cov_ub": 0.5,
                      "clip_ratio_high": 1.0},
    "kl_cov": {"loss_mode": "kl_cov"},
    "kl_cov_many": {"loss_mode": "kl_cov", "kl_cov_ratio": 0.3, "ppo_kl_coef": 1.0},
    "geo_mean": {"loss_mode": "geo_mean"},
    "geo_mean_paper": {"loss_mode": "geo_mean", "clip_ratio_low": 0.4, "clip_ratio_high": 0.4, "entropy_coeff": 0.1,
                       "loss_agg_mode": "seq-mean-token-sum"},
    "cispo": {"loss_mode": "cispo"},
    "cispo_open": {"loss_mode": "cispo", "clip_ratio_low": 1.0, "clip_ratio_high": 4.0},
    "dppo_tv": {"loss_mode": "dppo_tv"},
    "dppo_tv_20": {"loss_mode": "dppo_tv", "clip_ratio_c": 20.0, "clip_ratio_low": 0.05, "clip_ratio_high": 0.1},
    "dppo_kl": {"loss_mode": "dppo_kl"},
    "dppo_kl_20": {"loss_mode": "dppo_kl", "clip_ratio_c": 20.0, "clip_ratio_low": 0.01, "clip_ratio_high": 0.02},
    "dro": {"loss_mode": "dro", "dro_beta": 0.3},
    **{f"agg_{i}": {"loss_agg_mode": mode, "entropy_coeff": 0.01} for i, mode in enumerate(
        ("token-sum", "seq-mean-token-sum", "seq-mean-token-mean"))},
    "agg_norm": {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 100, "use_kl_loss": True},
    **{f"kl_{kind}": {"use_kl_loss": True, "kl_loss_type": kind, "kl_loss_coef": 0.2} for kind in (
        "kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "kl+", "k1+", "abs+", "mse+", "k2+", "low_var_kl+", "k3+")},
    **{f"is_{i}": {"rollout_is": level, "rollout_is_threshold": bounds} for i, (level, bounds) in enumerate(
        (level, bounds) for level in ("token", "sequence") for bounds in (2.0, "1.2", "0.7_1.4"))},
    **{f"is_normalized_{level}": {"rollout_is": level, "rollout_is_threshold": 1.1, "rollout_is_batch_normalize": True}
       for level in ("token", "sequence")},
    "is_dro": {"loss_mode": "dro", "dro_beta": 0.3, "rollout_is": "token"},
    "is_kl_cov": {"loss_mode": "kl_cov", "kl_cov_ratio": 0.3, "rollout_is": "token", "use_kl_loss": True},
    "is_gspo": {"loss_mode": "gspo", "rollout_is": "sequence", "rollout_is_threshold": "0.8_1.3"},
}  # fmt: skip
SIZES = {
    "near": {"near": 0.1},
    "wide": {"near": 1.0},
    "far": {"near": 3.0},
    "spikes": {"near": 0.3, "spike": 24.0},
    "full": {"near": 0.3, "holes": False, "empty": False},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss(name, size):
    options = LOSSES[name]
    recipe = gk.recipe("verl", **options)
    for seed in range(8):
        step = Step.draw(seed, **SIZES[size])
        step.ref = step.logps + 3 * (step.ref - step.logps)
        slack = of_sums(step, "mean") if options.get("loss_mode") in ("gspo", "geo_mean") else 1.0
        if options.get("rollout_is") and not coefficients_of(recipe, step).weights.any():
            # What measures the weights' effective sample size divides by 0 in verl where all are 0.
            with pytest.raises(ZeroDivisionError):
                loss(step, options)
            continue
        if options.get("rollout_is") == "sequence":
            slack = max(slack, of_sums(Step(**vars(step) | {"logps": step.rollout}), 1.0))
        same(ours(recipe, step, rollout_logps=step.rollout), loss(step, options), slack)


def coefficients_of(recipe, step):
    batch = step.batch(rollout_logps=step.rollout)
    now = {name: batch.column(name, getattr(step, name)) for name in ("logps", "entropies")}
    return gk.loss.coefficients(batch, recipe, now)


def test_the_width_that_verl_falls_back_to():
    """Without `loss_scale_factor` verl divides by the padded width; given, grpokit does."""
    step = Step.draw(1)
    mode = {"loss_agg_mode": "seq-mean-token-sum-norm"}
    recipe = gk.recipe("verl", **mode, loss_scale_factor=step.mask.shape[1])
    same(ours(recipe, step), loss(step, mode))


AGGREGATES = {
    "token-mean": {},
    "token-sum": {},
    "seq-mean-token-sum": {},
    "seq-mean-token-mean": {},
    "seq-mean-token-sum-norm": {"loss_scale_factor": 64},
}


@pytest.mark.parametrize("mode", AGGREGATES)
def test_micro_batches(mode):
    """They add up to grpokit's whole step where verl is told of the whole, and not where it counts its own."""
    options = {"loss_agg_mode": mode, "use_kl_loss": True, **AGGREGATES[mode]}
    step = Step.draw(5, near=0.3, empty=False, holes=False)
    counts = {"batch_num_tokens": int(step.mask.sum()), "global_batch_size": len(step.mask)}
    whole = ours(gk.recipe("verl", **options), step)
    for told in (counts, {}):
        parts = []
        for a in (0, 1, 4):
            rows = slice(a, {0: 1, 1: 4, 4: 6}[a])
            parts.append(loss(Step(**{name: x[rows] for name, x in vars(step).items()}), options, **told))
        found = sum(p[0] for p in parts), torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])
        if told or mode == "token-sum":
            same(whole, found)
        else:
            with pytest.raises(AssertionError):
                same(whole, found)


def test_what_is_drawn_by_lot():
    """With more candidates than `clip_cov` drops, as many are dropped, and others: verl has torch's generator draw."""
    options = {"loss_mode": "clip_cov", "clip_cov_ratio": 0.1, "clip_cov_lb": -9.0, "clip_cov_ub": 9.0}
    step = Step.draw(2, near=0.01, empty=False, holes=False)
    step.advantages = step.advantages.abs() + 0.1
    expected, found = loss(step, options)[1], ours(gk.recipe("verl", **options), step)[2]
    dropped = [int(((g == 0) & step.mask).sum()) for g in (expected, found)]
    assert dropped == [max(int(0.1 * int(step.mask.sum())), 1)] * 2


def test_nothing_lives():
    """verl's mean of nothing is NaN; grpokit's is 0."""
    step = Step.draw(0)
    step.mask[:] = False
    assert loss(step, {})[0].isnan()
    assert ours(gk.recipe("verl"), step)[0] == 0


def advantages(R, groups, lengths, options, *, width=None, parts=None, baselines=None):
    """verl's own `compute_advantage`, one number a row."""
    N, T = len(R), width or max(lengths)
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).long()
    rewards = torch.zeros(N, T)
    rewards[torch.arange(N), torch.tensor(lengths) - 1] = torch.tensor(R, dtype=torch.float32)
    tensors = {"token_level_rewards": rewards, "response_mask": mask}
    others = {"uid": np.array([f"prompt {g}" for g in groups], dtype=object)}
    if parts is not None:
        tensors |= {"prompts": torch.zeros(N, 1), "attention_mask": torch.cat([torch.ones(N, 1), mask], 1).long()}
        others |= {name: np.array(values, dtype=object) for name, values in parts.items()}
    if baselines is not None:
        tensors["reward_baselines"] = torch.tensor(baselines, dtype=torch.float32)
    data = DataProto.from_dict(tensors=tensors, non_tensors=others)
    algorithm = {"gamma": 1.0, "norm_adv_by_std_in_grpo": True} | options
    out = compute_advantage(
        data,
        options["adv_estimator"],
        norm_adv_by_std_in_grpo=algorithm["norm_adv_by_std_in_grpo"],
        config=OmegaConf.create(algorithm),
    )
    found = out.batch["advantages"]
    assert torch.equal(found.nan_to_num(9.0), (found[:, :1] * mask).nan_to_num(9.0))
    return found[:, 0].double().numpy()


REWARDS = {
    "binary": lambda g, N: g.integers(0, 2, N).astype(float),
    "graded": lambda g, N: g.normal(size=N),
    "constant": lambda g, N: np.full(N, g.choice([0.98, 0.92, 0.1, 0.3, 0.7, 1 / 3])),
    "tenths": lambda g, N: g.integers(0, 3, N) / 10 + 0.7,
    "far_from_zero": lambda g, N: 1e6 + g.integers(0, 2, N),
    "nearly_equal": lambda g, N: 0.5 + 1e-6 * g.normal(size=N),
}
ESTIMATORS = {
    **{name: {"adv_estimator": name} for name in ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg",
        "grpo_passk", "remax", "reinforce_plus_plus", "reinforce_plus_plus_baseline")},
    "dr_grpo": {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False},
    "passk_plain": {"adv_estimator": "grpo_passk", "norm_adv_by_std_in_grpo": False},
}  # fmt: skip


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_advantages(name, rewards):
    """To the bit: ragged groups, in any order, groups of one among them."""
    options = ESTIMATORS[name]
    recipe = gk.recipe("verl", **options)
    least = 2 if "passk" in name else 1
    for seed in range(12):
        g = np.random.default_rng(seed)
        groups = np.repeat(np.arange(6), g.integers(least, 16, 6))
        groups = g.permutation(groups) if seed % 2 else groups
        N = len(groups)
        R, lengths, greedy = REWARDS[rewards](g, N), g.integers(1, 20, N).tolist(), REWARDS[rewards](g, N)
        expected = advantages(R, groups, lengths, options, baselines=greedy if name == "remax" else None)
        table = {"group_id": groups, "reward": R, "response_len": lengths, "baseline_reward": greedy}
        found = gk.process(table, recipe).advantages
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("weights", [None, (1.0, 0.25)])
@pytest.mark.parametrize("rewards", REWARDS)
def test_gdpo(rewards, weights):
    options = {"adv_estimator": "gdpo", "gdpo_reward_keys": ("format", "answer"), "gdpo_reward_weights": weights}
    recipe = gk.recipe("verl", **options)
    for seed in range(12):
        g = np.random.default_rng(seed)
        groups = np.repeat(np.arange(6), g.integers(1, 16, 6))
        N = len(groups)
        lengths, parts = g.integers(1, 20, N).tolist(), {}
        for key in ("other", "answer", "format"):
            parts[key] = REWARDS[rewards](g, N)
        R = sum(parts.values())
        expected = advantages(R, groups, lengths, options, parts=parts)
        rows = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
        table = {"group_id": groups, "reward": R, "response_len": lengths, "reward_parts": rows}
        found = gk.process(table, recipe).advantages
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_what_is_whitened_over_a_padded_batch(name):
    """verl pads to `response_length`, and its fp32 sums run over that: to the bit where it is given."""
    for seed in range(12):
        g = np.random.default_rng(seed)
        groups, R, lengths = np.repeat(np.arange(4), 8), g.normal(size=32), g.integers(1, 50, 32).tolist()
        table = {"group_id": groups, "reward": R, "response_len": lengths}
        expected = advantages(R, groups, lengths, {"adv_estimator": name}, width=128)
        padded = gk.process(table, gk.recipe("verl", adv_estimator=name, response_length=128)).advantages
        np.testing.assert_array_equal(padded, expected)
        bare = gk.process(table, gk.recipe("verl", adv_estimator=name)).advantages
        np.testing.assert_allclose(bare, expected, rtol=1e-6, atol=1e-6)


def test_the_options_that_do_not_reach():
    """What the recipe refuses has no effect in verl."""
    R, groups, lengths = [1.0, 0.0, 0.5, 3.0], [0, 0, 1, 1], [1, 2, 3, 4]
    for name in ("grpo_vectorized", "rloo", "opo", "gpg"):
        plain, flagged = (
            advantages(R, groups, lengths, {"adv_estimator": name, "norm_adv_by_std_in_grpo": flag})
            for flag in (True, False)
        )
        np.testing.assert_array_equal(plain, flagged)
    step = Step.draw(0, near=0.5)
    for options in ({"clip_ratio": 0.01}, {"loss_mode": "dppo_tv", "clip_ratio": 0.01}):
        mode = {name: x for name, x in options.items() if name == "loss_mode"}
        assert torch.equal(loss(step, options)[1], loss(step, mode)[1])
    for mode in ("sapo", "geo_mean"):
        by_mode = [loss(step, {"loss_mode": mode, "loss_agg_mode": agg})[1] for agg in ("token-mean", "token-sum")]
        assert torch.equal(*by_mode)


def test_what_caps_dppo():
    """3, the default of `clip_ratio_c`, and not the 20 of its code."""
    step = Step.draw(0, near=0.5)
    step.old = step.logps - 2.5
    step.advantages = -step.advantages.abs() - 0.1
    g = loss(step, {"loss_mode": "dppo_tv"})[1]
    torch.testing.assert_close(g, -3.0 * step.advantages[:, None] * step.mask / step.mask.sum())


def test_a_reward_that_is_no_number():
    """NaN in its group; where tokens of the batch are whitened, in all of it. Here it is an error."""
    R, groups, lengths = [np.nan, 0.0, 0.5, 3.0], [0, 0, 1, 1], [1, 2, 3, 4]
    assert np.isnan(advantages(R, groups, lengths, {"adv_estimator": "rloo"})).tolist() == [True, True, False, False]
    assert np.isnan(advantages(R, groups, lengths, {"adv_estimator": "reinforce_plus_plus_baseline"})).all()
    with pytest.raises(gk.InputError):
        gk.process({"group_id": groups, "reward": R}, gk.recipe("verl", adv_estimator="rloo"))
