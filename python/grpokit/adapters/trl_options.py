"""What of a `GRPOConfig` a recipe leaves to TRL, and what it says itself.

In: a configuration and a recipe. Out: the configuration that `GRPOTrainer` gets. Whatever the recipe states must stay
at TRL's default, so that nobody reads a number in the configuration that the run does not have.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from grpokit.controllers import kl_coefficient
from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from grpokit._recipe import Recipe

_CLIP = "Give the recipe its bounds, as in recipe=grpokit.recipe('grpo', low=0.2, high=0.28)"
_ADVANTAGE = "Choose a recipe with the advantage that you want, or recipe.replace(advantage=...)"
_ENTROPY = "Add a term to the recipe: recipe.replace(extra=(*recipe.extra, Term(Entropy(), -0.01)))"
_MASK = "Add a correction to the recipe: recipe.replace(correct=(*recipe.correct, {}))"
_OBJECTIVE = "Choose the recipe of that name: recipe=grpokit.recipe({!r})"

# Option of TRL -> what to do in its place.
REFUSED = {
    "epsilon": _CLIP,
    "epsilon_high": _CLIP,
    "delta": "Take the dual clip: recipe.replace(objective=Clip(low, high, dual=...))",
    "loss_type": "The recipe is the loss; leave this option alone",
    "importance_sampling_level": _OBJECTIVE.format("gspo"),
    "sapo_temperature_pos": _OBJECTIVE.format("sapo"),
    "sapo_temperature_neg": _OBJECTIVE.format("sapo"),
    "vespo_k_pos": _OBJECTIVE.format("vespo"),
    "vespo_lambda_pos": _OBJECTIVE.format("vespo"),
    "vespo_k_neg": _OBJECTIVE.format("vespo"),
    "vespo_lambda_neg": _OBJECTIVE.format("vespo"),
    "scale_rewards": _ADVANTAGE,
    "multi_objective_aggregation": "Take recipe.replace(advantage=GDPO('sequences')), which reads each function",
    "mask_truncated_completions": "Add a selection to the recipe: recipe.replace(select=(*recipe.select, "
    "NotTruncated()))",
    "top_entropy_quantile": _MASK.format("TopEntropy(...)"),
    "off_policy_mask_threshold": _MASK.format("OPSM(...)"),
    "entropy_coef": _ENTROPY,
    "use_adaptive_entropy": "The coefficient of a recipe is constant here; leave it out",
    "entropy_coef_min": _ENTROPY,
    "entropy_coef_max": _ENTROPY,
    "entropy_coef_delta": _ENTROPY,
    "entropy_target": _ENTROPY,
    "use_bias_correction_kl": "The recipe's own KL term says whether it is weighed",
    "vllm_importance_sampling_mode": _MASK.format("TIS(2.0)"),
    "vllm_importance_sampling_clip_max": _MASK.format("TIS(2.0)"),
    "vllm_importance_sampling_clip_min": _MASK.format("IcePop(0.5, 2.0)"),
    "vllm_importance_sampling_cap": _MASK.format("TIS(2.0)"),
}

# Columns that the adapter makes; a row stage may read others of the dataset.
ROWS = frozenset(
    {
        *("response_len", "finish", "token_ids", "text", "prompt", "reward_parts"),
        *("logp_old", "logp_ref", "logp_rollout"),
    }
)
TOKENS = frozenset({"logps", "entropies", "log_ratio", "advantages", "weight", "old_logps", "ref_logps"})


def settled(config: Any, recipe: Recipe) -> Any:
    """The configuration that TRL gets: `beta` is the recipe's, so that TRL makes the reference's log-probs.

    Raises
    ------
    InputError
        `refused_option`; `bad_parameter` where an optimizer step would have rows of two generations.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(type(config))}
    for name, remedy in REFUSED.items():
        given = getattr(config, name, defaults.get(name))
        if name in defaults and given != defaults[name]:
            raise _refused(name, given, recipe, remedy)
    if recipe.rows_read("reward_parts") and config.reward_weights is not None:
        remedy = "Give the weights to the stage that reads the functions one by one, as in GDPO(..., weights=...)"
        raise _refused("reward_weights", config.reward_weights, recipe, remedy)
    beta = kl_coefficient(recipe) if needs_reference(recipe) else 0.0
    beta = 1.0 if beta is None else beta
    if config.beta not in (0.0, beta):
        raise _refused("beta", config.beta, recipe, f"Leave it at 0; the recipe's own coefficient is {beta:g}")
    if config.use_vllm and config.vllm_importance_sampling_correction and not needs_sampler(recipe):
        remedy = "The recipe corrects nothing: set it to False, or " + _MASK.format("TIS(2.0)")
        raise _refused("vllm_importance_sampling_correction", True, recipe, remedy)
    if config.steps_per_generation % config.gradient_accumulation_steps:
        # The denominators are those of the whole optimizer step, which must be there before its first micro-batch.
        expected = f"a multiple of gradient_accumulation_steps={config.gradient_accumulation_steps}"
        given = config.steps_per_generation
        raise error("bad_parameter", owner="GRPOConfig", name="steps_per_generation", given=given, expected=expected)
    # A copy, since the caller's configuration is the caller's.
    config = copy.copy(config)
    config.beta = beta
    return config


def check_columns(recipe: Recipe, *, samples: bool, given: Iterable[str] | None) -> None:
    """Refuses a recipe that reads what is not there.

    Parameters
    ----------
    recipe : Recipe
    samples : bool
        Whether the rollouts come with the sampler's log-probs.
    given : names of the dataset's columns, optional
        None where they are not known before rows are read.

    Raises
    ------
    InputError
        `not_handed_over`.
    """
    if needs_sampler(recipe) and not samples:
        remedy = "Set use_vllm=True, or give a rollout_func that returns logprobs"
        readers = [s for t in recipe.terms for s in t.weigh if "rollout_logps" in s.reads]
        raise _missing(recipe, type(readers[0]).__name__ if readers else "its ratio", "the sampler's log-probs", remedy)
    for term in recipe.terms:
        for stage in (term.objective, *term.weigh):
            unknown = sorted(stage.reads - TOKENS - {"rollout_logps"})
            if unknown:
                remedy = "Train with grpokit.trainer, or with a loop of your own around grpokit.loss"
                raise _missing(recipe, type(stage).__name__, repr(unknown[0]), remedy)
    for name in ("shape", "select", "advantage"):
        for stage in recipe.stages(name):
            unknown = sorted(stage.reads - ROWS - set(given or ()))
            if unknown and given is not None:
                remedy = f"Add a column {unknown[0]!r} to the dataset, or take another stage"
                raise _missing(recipe, type(stage).__name__, repr(unknown[0]), remedy)


def needs_reference(recipe: Recipe) -> bool:
    """Whether it reads the log-probs of the reference policy."""
    return recipe.reads("ref_logps") or recipe.rows_read("logp_ref")


def needs_sampler(recipe: Recipe) -> bool:
    """Whether it reads the log-probs of the sampler."""
    inside = recipe.ratio == "rollout" and recipe.reads("log_ratio")
    return inside or recipe.reads("rollout_logps") or recipe.rows_read("logp_rollout")


def _refused(option: str, given: object, recipe: Recipe, remedy: str) -> Exception:
    return error(
        "refused_option",
        owner="GRPOConfig",
        option=option,
        given=given,
        framework="TRL",
        recipe=recipe.name,
        remedy=f"{remedy}.",
    )


def _missing(recipe: Recipe, reader: str, what: str, remedy: str) -> Exception:
    return error("not_handed_over", recipe=recipe.name, reader=reader, what=what, framework="TRL", remedy=f"{remedy}.")
