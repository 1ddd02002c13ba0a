"""What `RecipeTrainer` refuses of a `GRPOConfig` and of a recipe, and what it says."""

import pytest

import grpokit as gk

pytest.importorskip("trl")

from trl import GRPOConfig, GRPOTrainer

from grpokit.adapters.trl import RecipeTrainer

from . import tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("tiny"))


REFUSED = [
    ({"epsilon": 0.1}, "rloo", "epsilon=0.1"),
    ({"loss_type": "grpo"}, "rloo", "loss_type='grpo'"),
    ({"scale_rewards": "none"}, "rloo", "scale_rewards='none'"),
    ({"beta": 0.1}, "rloo", "beta=0.1"),
    ({"beta": 0.1}, "grpo", "0.04"),
    ({"top_entropy_quantile": 0.2}, "rloo", "TopEntropy"),
    ({"mask_truncated_completions": True}, "rloo", "NotTruncated"),
    ({"importance_sampling_level": "sequence"}, "rloo", "gspo"),
    ({"entropy_coef": 0.1}, "rloo", "Entropy"),
    ({"vllm_importance_sampling_clip_max": 2.0}, "rloo", "TIS"),
    ({"use_vllm": True}, "rloo", "vllm_importance_sampling_correction=True"),
]


def refused(recipe, directory, tmp_path, **config):
    return RecipeTrainer(
        directory,
        tiny.reward,
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **config),
        tiny.dataset(),
        recipe=recipe,
    )


@pytest.mark.parametrize(("config", "recipe", "words"), REFUSED)
def test_options_that_the_recipe_states_are_refused(config, recipe, words, directory, tmp_path):
    with pytest.raises(gk.InputError) as caught:
        refused(recipe, directory, tmp_path, **config)
    assert caught.value.kind == "refused_option"
    assert words in str(caught.value)


def test_weights_of_reward_functions_have_one_place(directory, tmp_path):
    recipe = gk.recipe("rloo").replace(advantage=gk.GDPO("sequences"))
    with pytest.raises(gk.InputError, match="reward_weights=.2.0. is TRL's own say"):
        refused(recipe, directory, tmp_path, reward_weights=[2.0])


def test_what_is_not_there_is_said(directory, tmp_path):
    for recipe, words in [
        (gk.recipe("icepop", low=0.2, high=0.2), "rollout_func"),
        (gk.recipe("m2po_clip"), "the sampler's log-probs"),
        (gk.recipe("remax"), "'baseline_reward'"),
        (gk.recipe("luffy"), "'off_policy'"),
    ]:
        with pytest.raises(gk.InputError) as caught:
            refused(recipe, directory, tmp_path)
        assert caught.value.kind == "not_handed_over"
        assert words in str(caught.value)
    with pytest.raises(gk.InputError, match="steps_per_generation=2; expected a multiple of gradient_acc"):
        refused("rloo", directory, tmp_path, steps_per_generation=2, gradient_accumulation_steps=4)
    with pytest.raises(gk.InputError, match="max_len"):
        refused("dapo", directory, tmp_path)


def test_every_refused_option_is_one_of_trls():
    from grpokit.adapters.trl_options import REFUSED

    assert set(REFUSED) <= set(GRPOConfig.__dataclass_fields__)


def test_another_trl_is_refused(directory, tmp_path, monkeypatch):
    monkeypatch.delattr(GRPOTrainer, "_compute_loss")
    with pytest.raises(gk.StateError) as caught:
        refused("rloo", directory, tmp_path)
    assert caught.value.kind == "other_framework"
    assert "1.16.0 has no _compute_loss" in str(caught.value)


def test_the_configuration_stays_the_callers(directory, tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    trainer = RecipeTrainer(directory, tiny.reward, args, tiny.dataset(), recipe="grpo")
    assert (args.beta, trainer.args.beta, trainer.recipe.name) == (0.0, 0.04, "grpo")
    assert trainer.ref_model is not None
