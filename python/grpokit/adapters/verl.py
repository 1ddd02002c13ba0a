"""Every recipe as an advantage estimator and a policy loss of verl: ``grpokit/rloo``, ``grpokit/gspo``, ...

verl loads this module itself, through the entry-point group ``verl.plugins``, in every process that imports it::

    algorithm.adv_estimator=grpokit/rloo
    actor_rollout_ref.actor.policy_loss.loss_mode=grpokit/rloo

In: verl's padded tensors. Out: advantages, and a loss whose micro-batches and ranks add up as those of verl's own do,
by the counts of the whole step that verl hands over. A recipe's parameters are the key ``grpokit`` beside each of the
two names; what verl does not hand over is an error that says what to set. Written for verl 0.9.1.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from grpokit._recipe import Recipe, recipe
from grpokit.errors import InputError, error
from grpokit.stages import REGISTRY, load

if find_spec("verl") is None:
    raise error("missing_engine", what="grpokit.adapters.verl", package="verl", install="verl==0.9.1")

from verl.trainer.ppo import core_algos
from verl.workers import config as workers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

PREFIX = "grpokit/"
KEY = "grpokit"
KNOWN = "0.9.1"
NEEDED = ("register_adv_est", "register_policy_loss", "ADV_ESTIMATOR_REGISTRY", "POLICY_LOSS_REGISTRY")
ACTOR = "actor_rollout_ref.actor.policy_loss"
for _name in NEEDED:
    if not hasattr(core_algos, _name):
        context = {"package": "verl", "version": version("verl"), "known": KNOWN, "adapter": "grpokit.adapters.verl"}
        raise error("other_framework", missing=_name, **context)


@dataclass
class PolicyLossConfig(workers.PolicyLossConfig):  # type: ignore[misc]
    """verl's `PolicyLossConfig` with a place for a recipe's parameters.

    Parameters
    ----------
    grpokit : dict
        Of the recipe that `loss_mode` names.

    Examples
    --------
    On the command line of verl::

        actor_rollout_ref.actor.policy_loss._target_=grpokit.adapters.verl.PolicyLossConfig
        actor_rollout_ref.actor.policy_loss.loss_mode=grpokit/cispo
        +actor_rollout_ref.actor.policy_loss.grpokit.high=4.0
    """

    grpokit: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Named:
    """A recipe by its name, with the parameters of a configuration."""

    name: str

    def recipe(self, config: Any, owner: str, key: str) -> Recipe:
        """The recipe; `owner` and `key` say where its parameters belong, for an error."""
        given = None if config is None else config.get(KEY)
        try:
            return recipe(self.name, **dict(given or {}))
        except InputError as problem:
            if problem.kind != "missing_parameter":
                raise
            missing = str(problem.context["missing"])
            owner, example = f"{PREFIX}{self.name} ({owner})", f"{key}.{missing.partition(',')[0]}=..."
            raise error("missing_parameter", owner=owner, missing=missing, example=example) from None


@dataclass(frozen=True)
class Fixed:
    """A recipe with all its parameters."""

    made: Recipe

    def recipe(self, config: Any, owner: str, key: str) -> Recipe:
        """The recipe, whatever the configuration."""
        return self.made


def register(name: str, made: Recipe) -> None:
    """Makes a recipe of yours known to verl as an estimator and a policy loss.

    Call it in a module that every process of verl imports: name the module in ``VERL_USE_EXTERNAL_MODULES``.

    Parameters
    ----------
    name : str
        For `algorithm.adv_estimator` and `policy_loss.loss_mode`.
    made : Recipe

    Raises
    ------
    InputError
        `registered_twice`: verl has another one of that name.

    Examples
    --------
    ``register("my_dapo", grpokit.recipe("dapo", max_len=20_480))``
    """
    for kind, known in (
        ("adv_estimator", core_algos.ADV_ESTIMATOR_REGISTRY),
        ("policy loss", core_algos.POLICY_LOSS_REGISTRY),
    ):
        if name in known:
            raise error("registered_twice", kind=kind, name=name, owner="verl, or an earlier call")

    core_algos.register_adv_est(name)(partial(estimate, Fixed(made)))
    core_algos.register_policy_loss(name)(partial(policy_loss, Fixed(made)))


def estimate(
    source: Named | Fixed,
    *,
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any = None,
    config: Any = None,
    reward_baselines: Any = None,
    **rest: Any,  # noqa: ARG001 what verl hands to estimators of its own
) -> tuple[Tensor, Tensor]:
    """A recipe's advantages as verl asks for them.

    Parameters
    ----------
    source : Named or Fixed
        Where the recipe is from.
    token_level_rewards, response_mask : (B, T)
        The rewards' sum over a row is its reward.
    index : (B,) array of objects
        The prompts' uids: the groups.
    config : mapping, optional
        verl's ``algorithm``.
    reward_baselines : (B,), optional
        Rewards of greedy answers, where verl's trainer makes them.

    Returns
    -------
    advantages, returns : (B, T) float
        Twice the same: a row's advantage at its live tokens, 0 where the recipe drops the row.
    """
    import numpy as np
    import torch

    from grpokit.rollouts import process

    made = source.recipe(config, "algorithm", f"+algorithm.{KEY}")
    _check_rows(made, config, index, reward_baselines)
    rewards_N = token_level_rewards.detach().double().sum(-1).cpu().numpy()
    table = {
        "group_id": np.asarray(index).astype(str),
        "reward": rewards_N,
        "response_len": response_mask.sum(-1).long().cpu().numpy(),
    }
    if reward_baselines is not None:
        table["baseline_reward"] = reward_baselines.detach().double().cpu().numpy()
    out = process(table, made)
    dropped = [name for name in out.counts if name not in ("in", "kept")]
    if dropped:
        warnings.warn(
            f"recipe {made.name!r} drops rows ({', '.join(dropped)}), which verl cannot leave out: their advantage is "
            "0, and its denominators count their tokens. algorithm.filter_groups samples others in their place.",
            stacklevel=2,
        )
    advantages_N = torch.from_numpy(out.advantages).to(token_level_rewards)
    advantages = advantages_N[:, None] * response_mask
    return advantages, advantages


def policy_loss(
    source: Named | Fixed,
    *,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """A recipe's policy loss as verl asks for it.

    Parameters
    ----------
    source : Named or Fixed
        Where the recipe is from.
    old_log_prob, log_prob, advantages, response_mask : (B, T)
    loss_agg_mode : str
        verl's, for the terms that it adds itself; the recipe has its own denominator.
    config : verl.workers.config.ActorConfig
        Its ``global_batch_info`` counts the whole step.
    rollout_is_weights : (B, T), optional
        Of verl's rollout correction: they weigh the policy term.

    Returns
    -------
    loss : 0-d tensor
    metrics : dict of float
    """
    import torch

    from grpokit import loss as losses
    from grpokit.batch import TokenBatch

    from .verl_options import WEIGHTS, fitted

    if not isinstance(config, workers.ActorConfig):
        expected = "verl's ActorConfig, which says how the actor is trained"
        raise error("bad_parameter", owner="policy_loss", name="config", given=config, expected=expected)
    how = f"{ACTOR}._target_=grpokit.adapters.verl.PolicyLossConfig +{ACTOR}.{KEY}"
    whole = source.recipe(config.policy_loss, "policy loss", how)
    made = fitted(whole, config, loss_agg_mode, weighted=rollout_is_weights is not None)
    constants: dict[str, Any] = {} if rollout_is_weights is None else {WEIGHTS: rollout_is_weights}
    if made.ratio == "rollout" or made.reads("rollout_logps"):
        constants["rollout_logps"] = old_log_prob  # verl's bypass mode
    batch = TokenBatch(
        targets=torch.zeros_like(response_mask, dtype=torch.long),
        mask=response_mask,
        advantages=advantages,
        old_logps=old_log_prob,
        **constants,
    )
    _count(batch, made, config.global_batch_info)
    out = losses.from_logps(log_prob, batch, made)
    with torch.no_grad():
        live = response_mask.bool()
        kl = (old_log_prob - log_prob)[live].sum() / live.sum().clamp(min=1)
    found = {name: float(value) for name, value in out.metrics.items()}
    told = {"actor/pg_clipfrac": found.pop("clip_ratio/region_mean", 0.0), "actor/ppo_kl": float(kl)}
    return out.loss, told | {"actor/pg_clipfrac_lower": 0.0} | {f"actor/{name}": x for name, x in found.items()}


def _count(batch: Any, made: Recipe, info: Mapping[str, Any]) -> None:
    """The denominators of the whole step, by verl's counts; those of the micro-batch where it gives none, as verl."""
    import torch

    from grpokit.equation import declare
    from grpokit.tokens import Normalizer

    ranks = int(info.get("dp_size") or 1)
    found: dict[str, Any] = {name: info.get(name) for name in ("batch_num_tokens", "global_batch_size")}
    absent = [name for name, value in found.items() if value is None]
    if len(absent) == len(found) and ranks == 1:
        return
    if absent:
        remedy = "Take the counts from verl.workers.utils.losses.ppo_loss"
        raise _missing(made, "its denominator", repr(absent[0]), remedy)
    empty = bool((batch.live.lengths == 0).any())
    if empty and any(term.aggregate.over == "live" and _counts_rows(term.aggregate) for term in made.terms):
        remedy = "Take over='rows', which counts the empty ones as verl does"
        raise _missing(made, "its denominator", "how many rows of the whole step have tokens", remedy)
    tokens, rows = (torch.tensor(float(value), dtype=torch.float64, device=batch.device) for value in found.values())
    declare(batch, made, Normalizer(tokens, rows), ranks)


def _counts_rows(aggregate: Any) -> bool:
    from grpokit.aggregate import TokenMean

    return not isinstance(aggregate, TokenMean)


def _check_rows(made: Recipe, config: Any, index: Any, baselines: Any) -> None:
    """Refuses a recipe whose row stages read what verl's estimators do not get."""
    from grpokit.advantage import Given

    if index is None:
        raise _missing(made, "its advantage", "the prompts' uids (index)", "Give each prompt a uid")
    if isinstance(made.advantage, Given):
        remedy = "They are a critic's: set algorithm.adv_estimator=gae, and keep the policy loss"
        raise _missing(made, "Given", "advantages", remedy)
    handed = {"response_len"} | ({"baseline_reward"} if baselines is not None else set())
    for name in ("shape", "select", "advantage"):
        for stage in made.stages(name):
            for column in sorted(stage.reads - handed):
                remedy = "Take another stage, or run grpokit.process on the rollouts before verl's trainer sees them"
                raise _missing(made, type(stage).__name__, repr(column), remedy)
    if config is not None and config.get("norm_adv_by_std_in_grpo", True) is False:
        remedy = "Choose a recipe without the standard deviation, such as grpokit/dr_grpo"
        context = {"option": "norm_adv_by_std_in_grpo", "given": False, "framework": "verl", "recipe": made.name}
        raise error("refused_option", owner="verl's algorithm", remedy=f"{remedy}.", **context)


def _missing(made: Recipe, reader: str, what: str, remedy: str) -> Exception:
    return error("not_handed_over", recipe=made.name, reader=reader, what=what, framework="verl", remedy=f"{remedy}.")


def _offer() -> None:
    """Registers all recipes, once; what other packages register for `grpokit.stages` as well.

    Those of `grpokit.compat` replay what verl has itself.
    """
    load()
    for name in [
        name for name, make in REGISTRY["recipe"].items() if not make.__module__.startswith("grpokit.compat.")
    ]:
        if PREFIX + name not in core_algos.ADV_ESTIMATOR_REGISTRY:
            core_algos.register_adv_est(PREFIX + name)(partial(estimate, Named(name)))
        if PREFIX + name not in core_algos.POLICY_LOSS_REGISTRY:
            core_algos.register_policy_loss(PREFIX + name)(partial(policy_loss, Named(name)))


_offer()
