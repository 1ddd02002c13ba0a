"""The recipes `trl` and `verl` without the libraries: what they build, what they refuse, numbers that were compared."""

import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import grpokit as gk
from grpokit.compat import masks, ratios, trl_advantage, verl_advantage, weights
from grpokit.explain import labelled
from grpokit.stages import REGISTRY, load, of_papers
from tests.losses import padded, run, same, table

PAGE = (Path(__file__).parent.parent / "docs" / "compat.md").read_text(encoding="utf-8")
load()

# For each option another value, and the setting in which it is read.
TRL = {
    "loss_type": ("grpo", {}),
    "scale_rewards": ("none", {}),
    "multi_objective_aggregation": ("normalize_then_sum", {}),
    "reward_weights": ((1.0, 0.5), {"multi_objective_aggregation": "normalize_then_sum"}),
    "beta": (0.1, {}),
    "use_bias_correction_kl": (False, {"beta": 0.1}),
    "epsilon": (0.3, {}),
    "epsilon_high": (5.0, {"loss_type": "cispo"}),
    "delta": (4.0, {"loss_type": "bnpo"}),
    "importance_sampling_level": ("sequence", {"loss_type": "sapo"}),
    "max_completion_length": (256, {"loss_type": "dr_grpo"}),
    "sapo_temperature_pos": (2.0, {"loss_type": "sapo"}),
    "sapo_temperature_neg": (2.0, {"loss_type": "sapo"}),
    **{f"vespo_{name}": (1.5, {"loss_type": "vespo"}) for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")},
    "top_entropy_quantile": (0.2, {}),
    "off_policy_mask_threshold": (0.5, {"loss_type": "luspo"}),
    "entropy_coef": (0.01, {}),
    "use_vllm": (True, {}),
    "vllm_importance_sampling_correction": (False, {"use_vllm": True}),
    "vllm_importance_sampling_mode": ("token_truncate", {"use_vllm": True}),
    "vllm_importance_sampling_clip_max": (2.0, {"use_vllm": True}),
    "vllm_importance_sampling_clip_min": (0.5, {"use_vllm": True}),
}
VERL = {
    "adv_estimator": ("rloo", {}),
    "norm_adv_by_std_in_grpo": (False, {}),
    "gdpo_reward_keys": (("a", "b"), {"adv_estimator": "gdpo", "gdpo_reward_keys": ("a",)}),
    "gdpo_reward_weights": ((2.0,), {"adv_estimator": "gdpo", "gdpo_reward_keys": ("a",)}),
    "response_length": (64, {"adv_estimator": "reinforce_plus_plus"}),
    "loss_mode": ("cispo", {}),
    "loss_agg_mode": ("token-sum", {}),
    "loss_scale_factor": (64, {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 32}),
    "clip_ratio": (0.3, {"clip_ratio_low": None}),
    "clip_ratio_low": (0.1, {"loss_mode": "dppo_tv"}),
    "clip_ratio_high": (0.1, {"loss_mode": "geo_mean"}),
    "clip_ratio_c": (10.0, {"loss_mode": "dppo_kl"}),
    "tau_pos": (2.0, {"loss_mode": "sapo"}),
    "tau_neg": (2.0, {"loss_mode": "sapo"}),
    "clip_cov_ratio": (0.1, {"loss_mode": "clip_cov"}),
    "clip_cov_lb": (0.5, {"loss_mode": "clip_cov"}),
    "clip_cov_ub": (9.0, {"loss_mode": "clip_cov"}),
    "kl_cov_ratio": (0.1, {"loss_mode": "kl_cov"}),
    "ppo_kl_coef": (1.0, {"loss_mode": "kl_cov"}),
    "dro_beta": (0.2, {"loss_mode": "dro", "dro_beta": 0.1}),
    "entropy_coeff": (0.01, {}),
    "use_kl_loss": (True, {}),
    "kl_loss_coef": (0.1, {"use_kl_loss": True}),
    "kl_loss_type": ("k1+", {"use_kl_loss": True}),
    "rollout_is": ("token", {}),
    "rollout_is_threshold": ("0.5_5.0", {"rollout_is": "sequence"}),
    "rollout_is_batch_normalize": (True, {"rollout_is": "token"}),
}
CHANGES = [("trl", *entry) for entry in TRL.items()] + [("verl", *entry) for entry in VERL.items()]


def test_every_option_is_in_these_tests():
    for name, options in (("trl", TRL), ("verl", VERL)):
        assert set(inspect.signature(REGISTRY["recipe"][name]).parameters) == set(options)


@pytest.mark.parametrize(("name", "option", "change"), CHANGES)
def test_every_option_changes_the_recipe(name, option, change):
    value, setting = change
    plain, other = gk.recipe(name, **setting), gk.recipe(name, **setting | {option: value})
    assert plain != other
    for recipe in (plain, other):
        assert gk.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        text = recipe.explain()
        for label, stage, numbers in labelled(recipe):
            assert stage.equation
            assert type(stage).__name__ in text
            if label in ("advantage", "objective", "aggregate"):
                assert all(where != "given" for _, _, where in numbers), (stage, numbers)
        known = {f"{label}.{number}" for label, _, numbers in labelled(recipe) for number, _, _ in numbers}
        assert set(dict(recipe.sources)) <= known


LOSSES = [("trl", {"loss_type": one}) for one in (
    "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")]  # fmt: skip
LOSSES += [("trl", {"top_entropy_quantile": 0.4, "entropy_coef": 0.1, "beta": 0.1, "use_vllm": True})]
LOSSES += [("verl", {"loss_mode": one, **({"dro_beta": 0.1} if one == "dro" else {})}) for one in (
    "vanilla", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "cispo",
    "dppo_tv", "dppo_kl", "dro")]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_micro_batches_add_up(name, options):
    """The whole step's numbers, however it is split: the libraries' own follow their micro-batches in places."""
    recipe = gk.recipe(name, **options)
    d = table(1, near=0.4)
    d["old_logps"] = d["old_logps"].clip(max=-1e-3)
    same(run(padded(d), recipe, d, split=9), run(padded(d), recipe, d), 1e-11)


REFUSED = [
    ("trl", {"loss_type": "dappo"}, "loss_type='dappo'; expected one of 'grpo', .*Did you mean 'dapo'"),
    ("trl", {"losstype": "dapo"}, "no parameter 'losstype'. Did you mean 'loss_type'"),
    ("trl", {"scale_rewards": "std"}, "scale_rewards='std'; expected one of 'group', 'batch', 'none'"),
    ("trl", {"delta": 1.0}, "delta=1.0; expected a finite number, more than 1, or None"),
    ("trl", {"epsilon": -0.1}, "epsilon=-0.1; expected a finite number, at least 0"),
    ("trl", {"epsilon": "0.2"}, "epsilon='0.2'; expected a finite number"),
    ("trl", {"beta": math.inf}, "beta=inf"),
    ("trl", {"use_vllm": 1}, "use_vllm=1; expected one of True, False"),
    ("trl", {"delta": 3.0, "loss_type": "sapo"}, "delta=3.0; expected None: with loss_type='sapo' it has no effect"),
    ("trl", {"use_bias_correction_kl": False}, "expected True: with beta=0.0 it has no effect"),
    ("trl", {"max_completion_length": 9}, "expected 512: with loss_type='dapo' it has no effect"),
    ("trl", {"reward_weights": (1.0,)}, "with multi_objective_aggregation='sum_then_normalize' it has no effect"),
    ("trl", {"vllm_importance_sampling_clip_max": 2.0}, "with use_vllm=False it has no effect"),
    ("trl", {"loss_type": "vespo", "use_vllm": True}, "or 'token_mask' with loss_type='vespo'"),
    ("trl", {"use_vllm": True, "vllm_importance_sampling_clip_max": None, "vllm_importance_sampling_clip_min": 0.5},
     "clip_max=None; expected a number with .*'sequence_mask' and a lower bound"),
    ("trl", {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": ("a",)},
     "reward_weights=\\('a',\\)"),
    ("trl", {"off_policy_mask_threshold": 0.0}, "off_policy_mask_threshold=0.0; expected a finite number, more than 0"),
    ("verl", {"adv_estimator": "gae"}, "adv_estimator='gae'; expected one of .*not covered: 'gae'"),
    ("verl", {"adv_estimator": "rlo"}, "Did you mean 'rloo'"),
    ("verl", {"loss_mode": "bypass_mode"}, "expected one of 'vanilla', .*not covered: 'bypass_mode'"),
    ("verl", {"loss_mode": "vanila"}, "Did you mean 'vanilla'"),
    ("verl", {"kl_loss_type": "full", "use_kl_loss": True}, "kl_loss_type='full'; expected one of 'kl', 'k1'"),
    ("verl", {"loss_agg_mode": "seq-mean-token-sum-norm"}, "loss_scale_factor=None; expected the constant"),
    ("verl", {"loss_mode": "dro"}, "dro_beta=None; expected a finite number, more than 0"),
    ("verl", {"clip_ratio_c": 1.0}, "clip_ratio_c=1.0; expected a finite number, more than 1"),
    ("verl", {"clip_ratio": 0.3}, "clip_ratio=0.3; expected 0.2: with loss_mode='vanilla' it has no effect"),
    ("verl", {"adv_estimator": "grpo_vectorized", "norm_adv_by_std_in_grpo": False}, "grpo_vectorized' it"),
    ("verl", {"loss_mode": "sapo", "loss_agg_mode": "token-sum"}, "with loss_mode='sapo' it has no effect"),
    ("verl", {"rollout_is": "token", "loss_mode": "geo_mean"}, "expected None with loss_mode='geo_mean'"),
    ("verl", {"rollout_is": "token", "rollout_is_threshold": "0.5-5"}, "expected a number more than 0, or two as"),
    ("verl", {"rollout_is": "token", "rollout_is_threshold": "0.5_5", "rollout_is_batch_normalize": True}, "two bo"),
    ("verl", {"adv_estimator": "gdpo"}, "gdpo_reward_keys=None; expected the names of one part or more"),
    ("verl", {"adv_estimator": "gdpo", "gdpo_reward_keys": ("a",), "gdpo_reward_weights": (1.0, 2.0)}, "1 numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_is_refused(name, options, message):
    with pytest.raises(gk.InputError, match=message) as caught:
        gk.recipe(name, **options)
    assert caught.value.kind in ("bad_parameter", "unknown_parameter")


def test_stages_refuse_what_they_cannot_take():
    for make, message in (
        (lambda: verl_advantage.VerlAdvantage("rloo", norm_adv_by_std_in_grpo=False), "'grpo' and 'grpo_passk' alone"),
        (lambda: trl_advantage.TRLAdvantage("std"), "scale_rewards='std'"),
        (lambda: weights.CappedWeight(0.0), "cap=0.0"),
        (lambda: masks.BinaryKLMask(-1.0, 0.2), "low=-1.0"),
        (lambda: ratios.PlainSoftGate(level="row"), "level='row'"),
    ):
        with pytest.raises(gk.InputError, match=message):
            make()


def A(name, R, group=None, **options):
    """Advantages of a recipe's estimator."""
    columns = {k: options.pop(k) for k in ("response_len", "reward_parts", "baseline_reward", "step") if k in options}
    table = {"group_id": [0] * len(R) if group is None else group, "reward": R} | columns
    return gk.process(table, gk.recipe(name, **options)).advantages


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_numbers_of_trl():
    """By hand, and what rounding leaves as the installed package gave it."""
    near(A("trl", [1.0, 0.0, 0.0, 1.0]), np.array([1, -1, -1, 1]) * 0.5 / (math.sqrt(1 / 3) + 1e-4))
    near(A("trl", [1.0, None, 0.0, 0.0]), np.array([2, 0, -1, -1]) / 3 / (math.sqrt(1 / 3) + 1e-4))
    near(A("trl", [1.0, None, None, None]), 0.0)
    near(A("trl", [1.0, 0.0, 5.0, 4.0], [0, 0, 1, 1], scale_rewards=False), [0.5, -0.5, 0.5, -0.5])
    spread = np.std([1.0, 0.0, 5.0, 4.0], ddof=1) + 1e-4
    near(A("trl", [1.0, 0.0, 5.0, 4.0], [0, 0, 1, 1], scale_rewards="batch"), np.array([1, -1, 1, -1]) * 0.5 / spread)
    assert abs(A("trl", [0.98] * 15)).max() == pytest.approx(0.0023783165961503983, rel=1e-6)
    parts = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 9.0}, {"a": 1.0, "b": None}]
    gdpo = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": (1.0, 0.5)}
    found = A("trl", [1.0, 0.0, 9.0, 1.0], reward_parts=parts, **gdpo)
    near(found.mean(), 0.0)
    assert found.argsort().tolist()[0] == 1


def test_a_batch_is_a_step():
    R, groups, steps = [1.0, 0.0, 5.0, 3.0], [0, 0, 0, 0], [0, 0, 1, 1]
    found = A("trl", R, groups, step=steps, scale_rewards="batch")
    near(found[:2], A("trl", R[:2], scale_rewards="batch"))
    near(found[2:], A("trl", R[2:], scale_rewards="batch"))
    found = A("verl", R, groups, step=steps, adv_estimator="reinforce_plus_plus", response_len=[1, 2, 3, 4])
    near(found[2:], A("verl", R[2:], adv_estimator="reinforce_plus_plus", response_len=[3, 4]))


def test_numbers_of_verl():
    """By hand, and what rounding leaves as the installed package gave it."""
    std = math.sqrt(0.5) + 1e-6
    near(A("verl", [1.0, 0.0, 0.7], [0, 0, 1]), [0.5 / std, -0.5 / std, 0.7 / (1 + 1e-6)])
    near(A("verl", [1.0, 0.0, 0.7], [0, 0, 1], norm_adv_by_std_in_grpo=False), [0.5, -0.5, 0.7])
    near(A("verl", [1.0, 0.0, 0.7], [0, 0, 1], adv_estimator="rloo"), [1.0, -1.0, 0.7])
    near(A("verl", [1.0, 0.0, 0.7], [0, 0, 1], adv_estimator="rloo_vectorized"), [1.0, -1.0, 0.0])
    near(A("verl", [1.0, 0.0, 0.7], [0, 0, 1], adv_estimator="gpg"), np.array([0.5, -0.5, 0.7]) * 1.5)
    near(A("verl", [1.0, 0.0, 0.7], [0, 0, 1], adv_estimator="opo", response_len=[3, 1, 2]), [0.25, -0.75, 0.7])
    near(A("verl", [1.0, 0.5, 0.5], adv_estimator="remax", baseline_reward=[0.5, 1.0, 0.5]), [0.5, -0.5, 0.0])
    near(A("verl", [3.0, 1.0, 0.0], adv_estimator="grpo_passk", norm_adv_by_std_in_grpo=False), [2.0, 0.0, 0.0])
    assert abs(A("verl", [0.98] * 15)).max() == pytest.approx(0.19122643768787384, rel=1e-6)
    many = A("verl", [0.92] * 64, adv_estimator="grpo_vectorized")
    assert abs(many).max() == pytest.approx(0.45325207710266113, rel=1e-6)
    lengths = [1, 3]
    whitened = A("verl", [1.0, 0.0], [0, 1], adv_estimator="reinforce_plus_plus", response_len=lengths)
    near(whitened, np.array([0.75, -0.25]) / math.sqrt(0.25))
    rows = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}]
    gdpo = A(
        "verl", [1.0, 0.0], adv_estimator="gdpo", gdpo_reward_keys=("a", "b"), reward_parts=rows, response_len=lengths
    )
    near(gdpo, np.array([1.5, -0.5]) / math.sqrt(1.0))


def test_what_an_estimator_needs():
    with pytest.raises(gk.InputError, match="has 1 attempts; pass@2 draws 2") as caught:
        A("verl", [1.0, 0.0, 0.7], [0, 0, 1], adv_estimator="grpo_passk")
    assert caught.value.kind == "too_few_attempts"
    with pytest.raises(gk.InputError, match="response_length=2; expected 3 or more"):
        A("verl", [1.0, 0.0], adv_estimator="reinforce_plus_plus", response_len=[3, 1], response_length=2)
    with pytest.raises(gk.InputError, match="two tokens or more in the batch"):
        A("verl", [1.0], adv_estimator="reinforce_plus_plus", response_len=[1])
    with pytest.raises(gk.InputError, match="gdpo_reward_keys='c'; expected names of parts that are there: a, b"):
        parts = [{"a": 1.0, "b": 0.0}] * 2
        A("verl", [1.0, 0.0], adv_estimator="gdpo", gdpo_reward_keys=("c",), reward_parts=parts, response_len=[1, 1])
    with pytest.raises(gk.InputError, match="a number for each of the 2 parts: a, b"):
        gdpo = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": (1.0,)}
        A("trl", [1.0, 0.0], reward_parts=parts, **gdpo)


def test_they_are_the_papers_where_nothing_differs():
    """Within a ratio of e^20, and but for what is listed."""
    d = table(2, near=0.3)
    pairs = [
        (gk.recipe("trl", epsilon_high=0.28), gk.recipe("dapo", max_len=99)),
        (gk.recipe("trl", loss_type="grpo", beta=0.04, use_bias_correction_kl=False), gk.recipe("grpo")),
        (gk.recipe("trl", loss_type="dr_grpo", max_completion_length=99), gk.recipe("dr_grpo", max_len=99)),
        (gk.recipe("trl", loss_type="cispo", epsilon_high=5.0), gk.recipe("cispo", high=4.0)),
        (gk.recipe("trl", loss_type="sapo"), gk.recipe("sapo")),
        (gk.recipe("trl", loss_type="vespo"), gk.recipe("vespo")),
        (gk.recipe("verl"), gk.recipe("ppo_clip", dual=3.0)),
        (gk.recipe("verl", loss_mode="gpg"), gk.recipe("gpg")),
    ]
    for theirs, papers in pairs:
        same(run(padded(d), theirs, d, door="logps")[:2], run(padded(d), papers, d, door="logps")[:2])


def test_the_page():
    """Every option and stage, and its code runs."""
    for name in (*TRL, *VERL):
        assert f"`{name}`" in PAGE, name
    for kind in ("objective", "correct", "advantage", "aggregate"):
        for name in set(REGISTRY[kind]) - set(of_papers(kind)):
            if REGISTRY[kind][name].__module__.startswith("grpokit."):
                assert f"`{name}`" in PAGE, name
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found = {}
    exec(code, found)  # noqa: S102
    assert found["out"].advantages.dtype == np.float64
    assert (torch.from_numpy(found["out"].advantages).float().double().numpy() == found["out"].advantages).all()
