"""What a recipe needs of verl's policy loss, and what verl adds itself.

In: a recipe and verl's configuration of the actor. Out: the recipe of the policy loss alone, without the terms that
verl adds outside of it; or an error that says what to set.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from grpokit.aggregate import Constant, SequenceMean, SequenceSum, TokenMean
from grpokit.errors import error
from grpokit.objective import KL, Entropy
from grpokit.stages import Correct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit._recipe import Recipe, Term
    from grpokit.stages import Aggregate, Stage
    from grpokit.tokens import Tokens

HANDED = frozenset({"logps", "log_ratio", "advantages", "old_logps", "weight"})
WEIGHTS = "rollout_is_weights"
KINDS = {"k1": ("kl", "k1"), "k2": ("mse", "k2"), "k3": ("low_var_kl", "k3"), "abs": ("abs",)}
# Option of the actor -> what to do in its place. They must stay at verl's defaults.
REFUSED = {
    **dict.fromkeys(("clip_ratio", "clip_ratio_low", "clip_ratio_high"), "Give the recipe its bounds"),
    "clip_ratio_c": "Give the recipe its dual clip",
    **dict.fromkeys(("tau_pos", "tau_neg"), "Give the recipe grpokit/sapo its temperatures"),
}
REFUSED_OF_LOSS = ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta")


@dataclass(frozen=True)
class RolloutWeights(Correct):
    """The weights of verl's own rollout correction, as they are handed over."""

    reads: ClassVar[frozenset[str]] = frozenset({WEIGHTS})
    importance: ClassVar[bool] = True
    equation: ClassVar[str] = "w"

    def weight(self, tokens: Tokens) -> Tensor:
        return tokens.rollout_is_weights


def fitted(recipe: Recipe, config: Any, loss_agg_mode: str, *, weighted: bool) -> Recipe:
    """The recipe of the policy loss: without terms that verl adds, and with the weights that verl hands over.

    Parameters
    ----------
    recipe : Recipe
    config : verl.workers.config.ActorConfig
    loss_agg_mode : str
        verl's, which is used for the terms that verl adds.
    weighted : bool
        Whether verl hands over weights of its rollout correction.

    Raises
    ------
    InputError
        `refused_option`, `not_handed_over`; `counted_twice` where recipe and verl both weigh by a ratio.
    """
    _check_options(recipe, config, loss_agg_mode)
    _check_step(recipe)
    bypass = bool(_get(config.policy_loss.rollout_correction, "bypass_mode"))
    handed = HANDED | ({"rollout_logps"} if bypass else set())
    if recipe.ratio == "rollout" and not bypass and recipe.reads("log_ratio"):
        remedy = "Have verl take them for the old ones, and say so to the loss as well: "
        both = "algorithm.rollout_correction.bypass_mode=True and actor.policy_loss.rollout_correction.bypass_mode=True"
        raise _missing(recipe, "its ratio", "the sampler's log-probs", remedy + both)
    for stage in (recipe.objective, *recipe.correct):
        _check_reads(recipe, stage, handed)
    kept = tuple(term for term in recipe.extra if not _is_verls(recipe, term, config, loss_agg_mode, handed))
    changes: dict[str, Any] = {"extra": kept} if kept != recipe.extra else {}
    if weighted:
        if recipe.objective.folds:
            remedy = "Set algorithm.rollout_correction.rollout_is=null, or take another recipe"
            reader = f"{type(recipe.objective).__name__}, which multiplies the weights of a sequence's tokens,"
            raise _missing(recipe, reader, "whether rollout_is_weights are of tokens or of sequences", remedy)
        # As in verl: a token with the weight 0 has no share of its own, and stays in its sequence's ratio.
        changes |= {"correct": (*recipe.correct, RolloutWeights()), "dropped": "in_ratio"}
    return recipe.replace(**changes) if changes else recipe


def mode_of(aggregate: Aggregate) -> tuple[str, float | None] | None:
    """The `loss_agg_mode` and `loss_scale_factor` of verl for a denominator; None where it has no such."""
    kind, over = type(aggregate), aggregate.over
    if kind is TokenMean and over != "kept":
        return "token-mean", None
    if over == "rows" and kind in (SequenceMean, SequenceSum):
        return ("seq-mean-token-mean" if kind is SequenceMean else "seq-mean-token-sum"), None
    if over == "rows" and isinstance(aggregate, Constant):
        return "seq-mean-token-sum-norm", aggregate.length
    return None


def _check_options(recipe: Recipe, config: Any, loss_agg_mode: str) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name, remedy in REFUSED.items():
        if getattr(config, name) != defaults[name]:
            raise _refused(recipe, name, getattr(config, name), remedy)
    defaults = {f.name: f.default for f in dataclasses.fields(config.policy_loss)}
    for name in REFUSED_OF_LOSS:
        if getattr(config.policy_loss, name) != defaults[name]:
            remedy = "It belongs to another loss_mode; leave it alone"
            raise _refused(recipe, f"policy_loss.{name}", getattr(config.policy_loss, name), remedy)
    own = [found for term in recipe.terms if (found := mode_of(term.aggregate)) is not None]
    if loss_agg_mode != "token-mean" and loss_agg_mode not in [mode for mode, _ in own]:
        raise _refused(recipe, "loss_agg_mode", loss_agg_mode, f"Its own is {own[0][0] if own else 'not in verl'}")
    if config.loss_scale_factor is not None and config.loss_scale_factor not in [scale for _, scale in own]:
        raise _refused(recipe, "loss_scale_factor", config.loss_scale_factor, "Give the recipe its constant")


def _check_step(recipe: Recipe) -> None:
    """Refuses what reads the whole step, of which verl shows one micro-batch after another."""
    own = "Train with grpokit.trainer or grpokit.adapters.trl, where the whole step is in reach"
    for term in recipe.terms:
        for stage in (term.objective, *term.weigh):
            if stage.scope == "batch":
                raise _missing(recipe, type(stage).__name__, "the whole step's tokens", own)
            if isinstance(stage, Correct) and stage.draws:
                raise _missing(recipe, type(stage).__name__, "the step and the rollouts' ids", own)
        if term.aggregate.over == "kept" and term.weigh:
            raise _missing(recipe, type(term.aggregate).__name__, "how many of the whole step's tokens are kept", own)
    if "zero_advantage" in recipe.objective.breaks and recipe.select:
        remedy = "Select before verl sees the rollouts, and use recipe.replace(select=())"
        raise _missing(recipe, type(recipe.objective).__name__, "which rows are dropped", remedy)


def _check_reads(recipe: Recipe, stage: Stage, handed: frozenset[str]) -> None:
    for column in sorted(stage.reads - handed):
        remedy = "Take a recipe that does not read it"
        if column == "rollout_logps":
            remedy = (
                "Have verl weigh, with algorithm.rollout_correction.rollout_is=token and rollout_is_threshold=2.0, and "
                "take the recipe without it: grpokit.adapters.verl.register(name, recipe.replace(correct=()))"
            )
        raise _missing(recipe, type(stage).__name__, repr(column), remedy)


def _is_verls(recipe: Recipe, term: Term, config: Any, loss_agg_mode: str, handed: frozenset[str]) -> bool:
    """Whether verl adds this term itself, outside of the policy loss; an error where it must and does not."""
    stages = (term.objective, *term.weigh)
    if all(stage.reads <= handed for stage in stages):
        return False
    settings: dict[str, tuple[Any, ...]] = {}
    if isinstance(term.objective, KL) and term.objective.to == "ref" and not term.objective.corrected:
        kinds = KINDS[term.objective.kind]
        settings = {"use_kl_loss": (True,), "kl_loss_coef": (term.scale,), "kl_loss_type": kinds}
    elif isinstance(term.objective, Entropy):
        settings = {"entropy_coeff": (-term.scale,)}
    mode = mode_of(term.aggregate)
    if not settings or term.weigh or mode is None:
        for stage in stages:
            _check_reads(recipe, stage, handed)
    elif loss_agg_mode != mode[0] or any(getattr(config, name) not in ok for name, ok in settings.items()):
        wanted = {name: ok[0] for name, ok in settings.items()} | {"loss_agg_mode": mode[0]}
        wanted |= {"loss_scale_factor": mode[1]} if mode[1] is not None else {}
        said = " ".join(f"actor.{name}={value}" for name, value in wanted.items())
        column = min(term.objective.reads - handed)
        remedy = f"verl adds this term itself: set {said}, or take the recipe without it"
        raise _missing(recipe, type(term.objective).__name__, repr(column), remedy)
    return True


def _get(config: Mapping[str, Any] | None, name: str) -> Any:
    return None if config is None else config.get(name)


def _refused(recipe: Recipe, option: str, given: object, remedy: str) -> Exception:
    return error(
        "refused_option",
        owner="verl's actor",
        option=option,
        given=given,
        framework="verl",
        recipe=recipe.name,
        remedy=f"{remedy}.",
    )


def _missing(recipe: Recipe, reader: str, what: str, remedy: str) -> Exception:
    return error("not_handed_over", recipe=recipe.name, reader=reader, what=what, framework="verl", remedy=f"{remedy}.")
