"""Recipes as policy losses of verl: micro-batches and ranks add up to `grpokit.loss` on the whole optimizer step."""

import numpy as np
import pytest
import torch

import grpokit as gk

pytest.importorskip("verl")

from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig

from grpokit.adapters import verl as adapter

from .verl_step import ACTOR, EXAMPLES_OF, WIDTH, Step, actor, overrides


def assert_close(found, expected, bound=2e-6):
    assert float((found - expected).norm()) <= bound * max(float(expected.norm()), 1e-3)
    assert float(expected.norm()) > 0


TOKENS = ["ppo_clip", "dr_grpo", "nord", "dapo", "rloo", "opo", "gpg", "spo", "gspo", "gspo_token", "luspo", "gmpo"]
TOKENS += ["cispo", "sapo", "maspo", "vespo", "lad", "reinforce_pp", "remax"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", TOKENS)
def test_micro_batches_and_ranks_add_up_to_the_recipe(name, ranks):
    step = Step(empty=True)
    recipe = gk.recipe(name, **EXAMPLES_OF[name])
    found, gradient, metrics = step.verl(actor(*overrides(name)), ranks)
    out, expected = step.expected(recipe)
    assert_close(gradient, expected)
    assert found == pytest.approx(out.loss.item(), rel=1e-5, abs=1e-6)
    assert {"actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_loss"} <= set(metrics[0])


def test_all_recipes_are_tested_or_refused():
    assert set(TOKENS) | {"grpo", "reinforce_pp_baseline", "kl_cov"} | set(REFUSED) | {"oapl", "dppo"} == set(
        EXAMPLES_OF
    )


@pytest.mark.parametrize(("name", "mode"), [("grpo", "seq-mean-token-mean"), ("reinforce_pp_baseline", "token-mean")])
def test_verl_adds_the_penalty_to_the_reference(name, mode):
    """The recipe's KL term is verl's own where verl's options say the same, and an error elsewhere."""
    step, recipe = Step(), gk.recipe(name, **EXAMPLES_OF[name])
    (term,) = recipe.extra
    kind = {"k3": "low_var_kl", "k2": "mse", "k1": "kl"}[term.objective.kind]
    asked = [f"{ACTOR}.use_kl_loss=True", f"{ACTOR}.kl_loss_coef={term.scale}", f"{ACTOR}.kl_loss_type={kind}"]
    asked += [f"{ACTOR}.loss_agg_mode={mode}"]
    found, gradient, _ = step.verl(actor(*overrides(name, *asked)))
    out, expected = step.expected(recipe)
    assert_close(gradient, expected)
    assert found == pytest.approx(out.loss.item(), rel=1e-5, abs=1e-6)
    for left_out in {"grpo": (0, 1, 3), "reinforce_pp_baseline": (0, 2)}[name]:
        some = [x for i, x in enumerate(asked) if i != left_out]
        with pytest.raises(gk.InputError) as caught:
            step.verl(actor(*overrides(name, *some)))
        assert caught.value.kind == "not_handed_over"
        assert "use_kl_loss=True" in str(caught.value)


def test_verl_adds_the_entropy_bonus():
    step = Step()
    recipe = gk.recipe("gpg").replace(extra=(gk.Term(gk.Entropy(), -0.01),), name="gpg_entropy")
    adapter.register("gpg_entropy", recipe)
    mode = f"{ACTOR}.policy_loss.loss_mode=gpg_entropy"
    found, gradient, _ = step.verl(actor(mode, f"{ACTOR}.entropy_coeff=0.01"))
    out, expected = step.expected(recipe)
    assert_close(gradient, expected)
    assert found == pytest.approx(out.loss.item(), rel=1e-5)
    with pytest.raises(gk.InputError, match="Entropy reads 'entropies'.*actor.entropy_coeff=0.01"):
        step.verl(actor(mode))
    with pytest.raises(gk.InputError, match="registered already, by verl"):
        adapter.register("gpg_entropy", recipe)
    with pytest.raises(gk.InputError, match="registered already, by verl"):
        adapter.register("gspo", recipe)


def test_a_penalty_to_the_old_policy_is_ours():
    step = Step()
    recipe = gk.recipe("gpg").replace(extra=(gk.Term(gk.KL("k3", to="old"), 0.1),), name="gpg_old")
    adapter.register("gpg_old", recipe)
    _, gradient, _ = step.verl(actor(f"{ACTOR}.policy_loss.loss_mode=gpg_old"))
    assert_close(gradient, step.expected(recipe)[1])


@pytest.mark.parametrize("name", ["dapo", "gspo_token", "cispo"])
def test_verls_own_weights_weigh_the_policy_term(name):
    """Of its rollout correction; a weight of 0 leaves the log-prob in its sequence's ratio, as in verl."""
    from grpokit.adapters.verl_options import RolloutWeights

    step, recipe = Step(), gk.recipe(name, **EXAMPLES_OF[name])
    weights = torch.rand(8, WIDTH, generator=torch.Generator().manual_seed(1)) * 2
    weights[0, 1] = 0
    _, gradient, _ = step.verl(actor(*overrides(name)), weights=weights)
    weighed = recipe.replace(correct=(RolloutWeights(),), dropped="in_ratio")
    assert_close(gradient, step.expected(weighed, rollout_is_weights=weights)[1])
    own = get_policy_loss_fn("gspo")
    if name == "gspo_token":
        # verl's own GSPO, whose gradient is each token's, differs in nothing but the bound of its ratio.
        config = ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=3e-4, clip_ratio_high=4e-4
        )
        config.global_batch_info.update(dp_size=1, batch_num_tokens=100, global_batch_size=8, loss_scale_factor=None)
        step.clear()
        lp, mask = step.padded([step.logps(i) for i in range(8)]), step.padded(step.mask, False)
        arguments = {"old_log_prob": step.padded(step.old), "log_prob": lp, "response_mask": mask}
        arguments |= {"advantages": step.advantages[:, None] * mask, "rollout_is_weights": weights}
        loss, _ = own(**arguments, loss_agg_mode="seq-mean-token-mean", config=config)
        loss.backward()
        assert_close(step.grads(), gradient, bound=1e-5)
    with pytest.raises(gk.InputError, match="whether rollout_is_weights are of tokens or of sequences"):
        step.verl(actor(*overrides("vespo")), weights=weights)


def test_bypass_mode_gives_the_samplers_log_probs():
    """verl then takes them for the old ones, and the recipe's ratio is against the sampler."""
    bypass = f"+{ACTOR}.policy_loss.rollout_correction.bypass_mode=True"
    for name in ("dppo", "oapl"):
        step, recipe = Step(), gk.recipe(name, **EXAMPLES_OF[name])
        _, gradient, _ = step.verl(actor(*overrides(name, bypass)))
        sampled = step.padded(step.old)
        assert_close(gradient, step.expected(recipe, rollout_logps=sampled)[1])
        with pytest.raises(gk.InputError, match="bypass_mode=True"):
            step.verl(actor(*overrides(name)))


REFUSED = {
    "decoupled_ppo": "rollout_is=token",
    "icepop": "rollout_is=token",
    "vcpo": "'rollout_logps'",
    "luffy": "'off_policy'",
    "m2po_clip": "the whole step's tokens",
    "m2po_mask": "the whole step's tokens",
    "clip_cov": "the whole step's tokens",
    "stapo": "the whole step's tokens",
    "high_entropy": "the whole step's tokens",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_verl_does_not_hand_over_is_refused(name):
    with pytest.raises(gk.InputError) as caught:
        Step().verl(actor(*overrides(name)))
    assert caught.value.kind == "not_handed_over"
    assert REFUSED[name] in str(caught.value)


@pytest.mark.parametrize(
    "option",
    ["clip_ratio_low=0.1", "clip_ratio_high=0.28", "clip_ratio_c=5.0", "tau_pos=2.0", "loss_agg_mode=token-sum"]
    + ["loss_scale_factor=7", "policy_loss.ppo_kl_coef=0.5"],
)
def test_options_that_the_recipe_states_are_refused(option):
    with pytest.raises(gk.InputError) as caught:
        Step().verl(actor(*overrides("gspo", f"{ACTOR}.{option}")))
    assert caught.value.kind == "refused_option"
    assert option.split("=")[0] in str(caught.value)


def test_the_recipes_own_mode_and_constant_may_be_said():
    asked = [f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm", f"{ACTOR}.loss_scale_factor=3000"]
    step = Step()
    _, gradient, _ = step.verl(actor(*overrides("dr_grpo", *asked)))
    assert_close(gradient, step.expected(gk.recipe("dr_grpo", max_len=3000))[1])


def test_parameters_that_are_missing_are_asked_for():
    with pytest.raises(
        gk.InputError, match=r"grpokit/cispo \(policy loss\) needs high.*_target_=grpokit.*grpokit.high"
    ):
        Step().verl(actor(f"{ACTOR}.policy_loss.loss_mode=grpokit/cispo"))


def test_counts():
    """Without verl's counts a micro-batch has its own, as in verl; with some of them it is an error."""
    step, config = Step(), actor(*overrides("rloo"))
    mask = step.padded(step.mask, False)
    columns = {"old_log_prob": step.padded(step.old), "advantages": step.advantages[:, None] * mask}
    call = lambda: get_policy_loss_fn("grpokit/rloo")(
        log_prob=step.padded([step.logps(i) for i in range(8)]), response_mask=mask, config=config, **columns
    )[0]
    assert call().item() == pytest.approx(step.expected(gk.recipe("rloo"))[0].loss.item(), rel=1e-5)
    config.global_batch_info.update(dp_size=2)
    with pytest.raises(gk.InputError, match="'batch_num_tokens'"):
        call()
    live = gk.recipe("rloo").replace(aggregate=gk.SequenceSum(), name="live_rows")
    adapter.register("live_rows", live)
    config = actor(f"{ACTOR}.policy_loss.loss_mode=live_rows")
    Step().verl(config)
    with pytest.raises(gk.InputError, match="how many rows of the whole step have tokens"):
        Step(empty=True).verl(config)
    with pytest.raises(gk.InputError, match="ActorConfig"):
        get_policy_loss_fn("grpokit/rloo")(log_prob=mask.float(), response_mask=mask, config=None, **columns)


def test_everything_masked_is_nothing():
    step, config = Step(), actor(*overrides("gspo"))
    config.global_batch_info.update(dp_size=1, batch_num_tokens=10, global_batch_size=8)
    lp = step.padded([step.logps(i).detach() for i in range(8)]).requires_grad_()
    mask = torch.zeros(lp.shape, dtype=torch.bool)
    columns = {"old_log_prob": step.padded(step.old), "advantages": torch.ones(lp.shape)}
    loss, metrics = get_policy_loss_fn("grpokit/gspo")(log_prob=lp, response_mask=mask, config=config, **columns)
    loss.backward()
    assert loss.item() == 0
    assert (lp.grad == 0).all()
    assert all(np.isfinite(x) for x in metrics.values())
