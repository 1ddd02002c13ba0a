"""`gk.recipe("trl")` has the advantages, the loss and the gradients of TRL's own GRPOTrainer."""

import numpy as np
import pytest
import torch

import grpokit as gk

from .draws import Step, of_sums, ours, same
from .trl_trainer import loss, scored, trainer

LOSSES = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "max_completion_length": 300},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "default": {},
    "luspo": {"loss_type": "luspo"},
    "luspo_paper": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 2e-3},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "dapo_sequence": {"importance_sampling_level": "sequence"},
    "delta": {"loss_type": "grpo", "delta": 3.0},
    "delta_below": {"loss_type": "bnpo", "epsilon_high": 0.5, "delta": 1.2},
    "delta_at_the_bound": {"epsilon_high": 0.25, "delta": 1.25},
    "delta_sequence": {"importance_sampling_level": "sequence", "delta": 1.3, "epsilon_high": 0.1},
    "no_lower_bound": {"epsilon": 1.5},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "cispo_default": {"loss_type": "cispo"},
    "cispo_sequence": {"loss_type": "cispo", "epsilon_high": 1.1, "importance_sampling_level": "sequence"},
    "sapo": {"loss_type": "sapo"},
    "sapo_sharp": {"loss_type": "sapo", "sapo_temperature_pos": 3.0, "sapo_temperature_neg": 0.5},
    "sapo_sequence": {"loss_type": "sapo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
    "vespo_other": {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 1.5, "vespo_lambda_neg": 0.0,
                    "vespo_k_neg": 0.5},
    "kl": {"beta": 0.04},
    "kl_grpo": {"loss_type": "grpo", "beta": 0.3},
    "kl_luspo": {"loss_type": "luspo", "beta": 0.3},
    "kl_plain": {"loss_type": "dr_grpo", "beta": 0.1, "use_bias_correction_kl": False},
    "kl_sequence": {"loss_type": "grpo", "beta": 0.3, "importance_sampling_level": "sequence"},
    "kl_vespo_sequence": {"loss_type": "vespo", "beta": 0.3, "importance_sampling_level": "sequence"},
    "kl_delta": {"beta": 0.1, "delta": 2.0},
    "entropy": {"entropy_coef": 0.01},
    "entropy_grpo": {"loss_type": "grpo", "entropy_coef": 0.01},
    "forks": {"top_entropy_quantile": 0.2},
    "forks_at_whole_ranks": {"top_entropy_quantile": 0.45},
    "forks_entropy": {"loss_type": "grpo", "top_entropy_quantile": 0.5, "entropy_coef": 0.02, "beta": 0.1},
    "forks_gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "top_entropy_quantile": 0.4},
    "opsm": {"off_policy_mask_threshold": 0.05},
    "opsm_gspo_kl": {"loss_type": "grpo", "importance_sampling_level": "sequence", "off_policy_mask_threshold": 0.05,
                     "beta": 0.1},
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
    made, recipe = trainer(**options), gk.recipe("trl", **options)
    for seed in range(8):
        step = Step.draw(seed, **SIZES[size])
        same(ours(recipe, step), loss(made, step), slack(options, step))


def slack(options, step):
    """Where TRL adds log-ratios up."""
    if options.get("loss_type") == "vespo":
        return of_sums(step, max(options.get("vespo_k_pos", 2.0), options.get("vespo_k_neg", 3.0)))
    return of_sums(step, "mean") if options.get("importance_sampling_level") == "sequence" else 1.0


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy(name):
    """Without `old_per_token_logps` both take the current log-probs as constants."""
    options = LOSSES[name]
    step = Step.draw(3)
    found = ours(gk.recipe("trl", **options), step, old_logps=None)
    same(found, loss(trainer(**options), step, old_per_token_logps=None))


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_lives(name):
    options = LOSSES[name]
    step = Step.draw(0)
    step.mask[:] = False
    value, _, *gradients = ours(gk.recipe("trl", **options), step)
    for a, b in zip((value, *gradients), loss(trainer(**options), step), strict=True):
        assert torch.equal(a, b)
        assert not a.any()


def test_micro_batches():
    """One optimizer step of TRL in three micro-batches of as many rows: grpokit's whole step, but for `bnpo`."""
    for loss_type in ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "bnpo"):
        recipe, made = gk.recipe("trl", loss_type=loss_type), trainer(loss_type=loss_type)
        step = Step.draw(5, near=0.3)
        whole, total = ours(recipe, step), step.mask.sum()
        parts = []
        made.current_gradient_accumulation_steps, made.args.steps_per_generation = 3, 3
        for a in (0, 2, 4):
            part = Step(**{name: x[a : a + 2] for name, x in vars(step).items()})
            parts.append(loss(made, part, num_items_in_batch=total))
        made.current_gradient_accumulation_steps, made.args.steps_per_generation = 1, 1
        found = sum(p[0] for p in parts), torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])
        if loss_type == "bnpo":
            with pytest.raises(AssertionError):
                same(whole, found)
        else:
            same(whole, found)


IS = [
    {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": high,
     "vllm_importance_sampling_clip_min": low}
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    for high, low in ((3.0, None), (1.3, 0.8))
]  # fmt: skip


@pytest.mark.parametrize("mode", [*IS, {}, {"vllm_importance_sampling_mode": "token_mask",
                                           "vllm_importance_sampling_clip_max": None}], ids=str)  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [{}, {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1},
     {"loss_type": "cispo", "epsilon_high": 2.0, "off_policy_mask_threshold": 0.1}, {"loss_type": "vespo"}],
    ids=str,
)  # fmt: skip
def test_the_samplers_log_probs(options, mode):
    """The ratios are TRL's own, of a generation with vLLM's log-probs."""
    if options.get("loss_type") == "vespo" and not mode.get("vllm_importance_sampling_mode", "").startswith("token_"):
        return
    given = options | mode | {"use_vllm": True}
    made, recipe = trainer(rows=6, **given), gk.recipe("trl", **given)
    for seed in range(6):
        step = Step.draw(seed, near=0.3, holes=False, empty=False)
        lengths = step.mask.sum(1).tolist()
        width = max(lengths)
        step = Step(**{name: x[:, :width] if x.dim() > 1 else x for name, x in vars(step).items()})
        # The trainer recomputes π_old; its log-probs are replaced, the ratio is its own.
        out = scored(
            made,
            [[0.0]] * 6,
            completions=[[5] * n for n in lengths],
            sampled=[row[:n].tolist() for row, n in zip(step.rollout, lengths, strict=True)],
            old=step.old,
        )
        names = ("importance_sampling_ratio", "sampling_per_token_logps")
        theirs = loss(made, step, **{name: out[name] for name in names})
        same(ours(recipe, step, rollout_logps=step.rollout), theirs)


REWARDS = {
    "binary": lambda g, N: g.integers(0, 2, N).astype(float),
    "graded": lambda g, N: g.normal(size=N),
    "constant_groups": lambda g, N: np.full(N, g.choice([0.98, 0.1, 0.3, 0.7, 1 / 3])),
    "tenths": lambda g, N: g.integers(0, 3, N) / 10 + 0.7,
    "far_from_zero": lambda g, N: 1e6 + g.integers(0, 2, N),
    "nearly_equal": lambda g, N: 0.5 + 1e-6 * g.normal(size=N),
}


def groups_of(n, groups):
    return np.repeat(np.arange(groups), n)


@pytest.mark.parametrize("unscored", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("n", [2, 7, 8, 15])
@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_advantages(scale, rewards, n, unscored):
    """To the bit, rewards that are None (a row that could not be scored) among them."""
    made, recipe = trainer(n=n, rows=4 * n, scale_rewards=scale), gk.recipe("trl", scale_rewards=scale)
    for seed in range(6):
        g = np.random.default_rng(seed)
        R = [None if g.random() < unscored else float(r) for r in REWARDS[rewards](g, 4 * n)]
        out = gk.process({"group_id": groups_of(n, 4), "reward": R}, recipe)
        expected = scored(made, [[r] for r in R])["advantages"]
        assert torch.equal(torch.from_numpy(out.advantages).float(), expected)
        nan = [np.nan if r is None else r for r in R]
        again = gk.process({"group_id": groups_of(n, 4), "reward": nan}, recipe)
        np.testing.assert_array_equal(again.advantages, out.advantages)


@pytest.mark.parametrize("weights", [None, (1.0, 0.25, -2.0)])
@pytest.mark.parametrize("rewards", REWARDS)
def test_several_rewards(rewards, weights):
    """`normalize_then_sum`, to the bit; a part, or all of a row, may be missing."""
    options = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": weights}
    made, recipe = trainer(rewards=3, n=4, rows=16, **options), gk.recipe("trl", **options)
    for seed in range(6):
        g = np.random.default_rng(seed)
        parts = np.stack([REWARDS[rewards](g, 16) for _ in range(3)], axis=1)
        parts[g.random(parts.shape) < 0.2] = np.nan
        parts[int(g.integers(16))] = np.nan
        listed = [[None if np.isnan(x) else float(x) for x in row] for row in parts]
        unscorable = np.isnan(parts).all(1)
        table = {"group_id": groups_of(4, 4), "reward": np.where(unscorable, np.nan, np.nansum(parts, 1))}
        table["reward_parts"] = [dict(zip("abc", row, strict=True)) for row in listed]
        expected = scored(made, listed)["advantages"]
        assert torch.equal(torch.from_numpy(gk.process(table, recipe).advantages).float(), expected)


def test_what_a_constant_group_gets():
    """The quirk that the docs tell of: 0.98 fifteen times has an advantage of 2.4e-3."""
    out = gk.process({"group_id": [0] * 15, "reward": [0.98] * 15}, gk.recipe("trl"))
    assert 2e-3 < abs(out.advantages).max() < 3e-3
    assert not gk.process({"group_id": [0] * 15, "reward": [0.98] * 15}, "grpo").advantages.any()


@pytest.mark.parametrize(("scale", "expected"), [("group", 0.0), ("batch", 0.0), ("none", -3.4e38)])
def test_an_infinite_reward(scale, expected):
    """Not replayed, as the docs say: here the row has no reward."""
    R = [[float("inf")], [0.0], [1.0], [0.0]]
    theirs = scored(trainer(n=2, rows=4, scale_rewards=scale), R)["advantages"]
    assert theirs[0] == 0
    assert float(theirs[1]) == pytest.approx(expected, rel=0.01)
    assert (theirs[2] == 0) == (scale == "batch")
    ours = gk.process({"group_id": [0, 0, 1, 1], "reward": [r[0] for r in R]}, gk.recipe("trl", scale_rewards=scale))
    assert ours.advantages[:2].tolist() == [0.0, 0.0]


def test_a_mask_hides_no_nan_there():
    step = Step.draw(1)
    step.logps[~step.mask] = torch.nan
    assert loss(trainer(), step)[0].isnan()
    assert ours(gk.recipe("trl"), step)[0].isfinite()


def test_what_cispo_does_when_left_alone():
    """On-policy, every gradient is 0.2 of the plain one."""
    step = Step.draw(2, empty=False, holes=False)
    step.mask[:] = True
    g = loss(trainer(loss_type="cispo"), step, old_per_token_logps=None)[1]
    torch.testing.assert_close(g, -0.2 * step.advantages[:, None].expand_as(g) / step.mask.sum())
