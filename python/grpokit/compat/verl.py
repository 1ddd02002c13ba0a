"""The recipe `verl`: verl 0.9.1's advantage estimators and policy losses, by its own option names.

In: options of `algorithm` and of `actor_rollout_ref.actor`. Out: a recipe whose advantages, loss and gradient are those
of `verl.trainer.ppo.core_algos` in fp32, for one rank and one micro-batch an optimizer step. docs/compat.md says what
each option changes, and what is left out.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from grpokit._recipe import Recipe, Term
from grpokit.aggregate import Constant, SequenceMean, SequenceSum, TokenMean
from grpokit.drift import DPPOMask
from grpokit.errors import error
from grpokit.mismatch import MIS, TIS
from grpokit.objective import KL, Clip, ClippedWeight, Entropy, Reinforce, SequenceClipToken
from grpokit.stages import Advantage, Aggregate, Correct, Objective, register
from grpokit.token_selection import ClipCov, TopCovariance

from .kl import LimitedKL
from .masks import BinaryKLMask, TokenSum
from .options import choose, positive, refuse_unread
from .ratios import PlainSoftGate, UnlimitedClip, UnlimitedGeometricClip
from .verl_advantage import EQUATIONS, WHITENED, VerlAdvantage, VerlGDPO

OWNER = "recipe('verl')"
LOSS_MODES = (
    *("vanilla", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "cispo", "dppo_tv", "dppo_kl", "dro"),
)
AGG_MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
KL_TYPES = {"kl": "k1", "k1": "k1", "abs": "abs", "mse": "k2", "k2": "k2", "low_var_kl": "k3", "k3": "k3"}
CLIPPED = ("vanilla", "gspo", "clip_cov", "geo_mean", "cispo", "dppo_tv", "dppo_kl")
DEFAULTS: dict[str, Any] = {
    "norm_adv_by_std_in_grpo": True,
    "gdpo_reward_keys": None,
    "gdpo_reward_weights": None,
    "response_length": None,
    "loss_agg_mode": "token-mean",
    "loss_scale_factor": None,
    "clip_ratio": 0.2,
    "clip_ratio_low": 0.2,
    "clip_ratio_high": 0.2,
    "clip_ratio_c": 3.0,
    "tau_pos": 1.0,
    "tau_neg": 1.05,
    "clip_cov_ratio": 2e-4,
    "clip_cov_lb": 1.0,
    "clip_cov_ub": 5.0,
    "kl_cov_ratio": 2e-4,
    "ppo_kl_coef": 0.1,
    "dro_beta": None,
    "kl_loss_coef": 1e-3,
    "kl_loss_type": "low_var_kl",
    "rollout_is_threshold": 2.0,
    "rollout_is_batch_normalize": False,
}
DECIDES = dict.fromkeys(DEFAULTS, "loss_mode") | {
    **dict.fromkeys(
        ("norm_adv_by_std_in_grpo", "gdpo_reward_keys", "gdpo_reward_weights", "response_length"), "adv_estimator"
    ),
    "loss_scale_factor": "loss_agg_mode",
    **dict.fromkeys(("kl_loss_coef", "kl_loss_type"), "use_kl_loss"),
    **dict.fromkeys(("rollout_is_threshold", "rollout_is_batch_normalize"), "rollout_is"),
}


@register("recipe")
def verl(
    *,
    adv_estimator: Literal[
        "grpo",
        "grpo_vectorized",
        "rloo",
        "rloo_vectorized",
        "opo",
        "remax",
        "gpg",
        "grpo_passk",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "gdpo",
    ] = "grpo",
    norm_adv_by_std_in_grpo: bool = True,
    gdpo_reward_keys: tuple[str, ...] | None = None,
    gdpo_reward_weights: tuple[float, ...] | None = None,
    response_length: int | None = None,
    loss_mode: Literal[
        "vanilla", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "cispo", "dppo_tv", "dppo_kl", "dro"
    ] = "vanilla",
    loss_agg_mode: Literal[
        "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"
    ] = "token-mean",
    loss_scale_factor: float | None = None,
    clip_ratio: float = 0.2,
    clip_ratio_low: float | None = 0.2,
    clip_ratio_high: float | None = 0.2,
    clip_ratio_c: float = 3.0,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    clip_cov_ratio: float = 2e-4,
    clip_cov_lb: float = 1.0,
    clip_cov_ub: float = 5.0,
    kl_cov_ratio: float = 2e-4,
    ppo_kl_coef: float = 0.1,
    dro_beta: float | None = None,
    entropy_coeff: float = 0.0,
    use_kl_loss: bool = False,
    kl_loss_coef: float = 1e-3,
    kl_loss_type: str = "low_var_kl",
    rollout_is: Literal["token", "sequence"] | None = None,
    rollout_is_threshold: float | str = 2.0,
    rollout_is_batch_normalize: bool = False,
) -> Recipe:
    """The policy losses and advantage estimators of verl 0.9.1, replayed.

    Numbers as in verl, quirks included; docs/compat.md lists them. `loss_scale_factor` is required with
    "seq-mean-token-sum-norm", where verl's fallback is the padded width of the micro-batch. An option that verl does
    not read in the setting that the others make is refused, and so is a value that is not covered.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.process({"group_id": [1], "reward": [0.7]}, gk.recipe("verl", adv_estimator="rloo")).advantages.round(6)
    array([0.7])
    """
    given = dict(locals())
    estimators = (*EQUATIONS, "gdpo")
    more = " (not covered: 'gae', 'optimal_token_baseline' and 'tir_optimal_token_baseline', which are per token)"
    choose(OWNER, "adv_estimator", adv_estimator, estimators, not_covered=more)
    choose(OWNER, "loss_mode", loss_mode, LOSS_MODES, not_covered=" (not covered: 'bypass_mode')")
    choose(OWNER, "loss_agg_mode", loss_agg_mode, AGG_MODES)
    choose(OWNER, "kl_loss_type", kl_loss_type, (*KL_TYPES, *(f"{name}+" for name in KL_TYPES)))
    choose(OWNER, "rollout_is", rollout_is, (None, "token", "sequence"))
    for name in ("norm_adv_by_std_in_grpo", "use_kl_loss", "rollout_is_batch_normalize"):
        choose(OWNER, name, given[name], (True, False))
    for name in ("clip_ratio", "entropy_coeff", "kl_loss_coef", "ppo_kl_coef"):
        positive(OWNER, name, given[name])
    for name in ("clip_ratio_low", "clip_ratio_high"):
        positive(OWNER, name, given[name], optional=True)
    positive(OWNER, "clip_ratio_c", clip_ratio_c, least=1.0, inclusive=False)
    positive(OWNER, "loss_scale_factor", loss_scale_factor, inclusive=False, optional=True)
    positive(OWNER, "dro_beta", dro_beta, inclusive=False, optional=loss_mode != "dro")
    if loss_agg_mode == "seq-mean-token-sum-norm" and loss_scale_factor is None:
        expected = f"the constant, or the padded width T that verl falls back to, with {loss_agg_mode!r}"
        raise error("bad_parameter", owner=OWNER, name="loss_scale_factor", given=None, expected=expected)
    refuse_unread(OWNER, given, DEFAULTS, _read(given), DECIDES)

    policy = _aggregate(given, of_policy=True)
    aggregate, sampler = _aggregate(given), _sampler(given)
    extra = [*_parts(given, policy, sampler)]
    if entropy_coeff:
        extra.append(Term(Entropy(), -entropy_coeff, (), aggregate))
    if use_kl_loss and kl_loss_coef:
        kind: Any = KL_TYPES[kl_loss_type.removesuffix("+")]
        straight = kl_loss_type.endswith("+")
        kl = LimitedKL(kind, straight) if straight or kind == "k3" else KL(kind)
        extra.append(Term(kl, kl_loss_coef, (), aggregate))
    objective, masks = _objective(given)
    return Recipe(
        name="verl",
        papers=("verl 0.9.1, verl/trainer/ppo/core_algos.py",),
        advantage=_advantage(given),
        correct=(*masks, *sampler),
        dropped="in_ratio",
        objective=objective,
        aggregate=policy,
        extra=tuple(extra),
        sources=tuple(_sources(given, objective, masks)),
        leaves_out="what is not the loss of one micro-batch on one rank, the critic, and bypass mode; docs/compat.md "
        "has the list.",
    )


def _read(given: dict[str, Any]) -> set[str]:
    """Which of the options verl reads in this setting."""
    mode, estimator = given["loss_mode"], given["adv_estimator"]
    read = set()
    if estimator in ("grpo", "grpo_passk"):
        read.add("norm_adv_by_std_in_grpo")
    if estimator == "gdpo":
        read |= {"gdpo_reward_keys", "gdpo_reward_weights"}
    if estimator in (*WHITENED, "gdpo"):
        read.add("response_length")
    terms = given["entropy_coeff"] or given["use_kl_loss"]
    if mode not in ("sapo", "geo_mean") or terms:
        read.add("loss_agg_mode")
    if given["loss_agg_mode"] == "seq-mean-token-sum-norm":
        read.add("loss_scale_factor")
    if mode in CLIPPED:
        read |= {"clip_ratio_low", "clip_ratio_high"}
        read |= {"clip_ratio"} if None in (given["clip_ratio_low"], given["clip_ratio_high"]) else set()
    if mode in ("vanilla", "dppo_tv", "dppo_kl"):
        read.add("clip_ratio_c")
    own = {
        "sapo": {"tau_pos", "tau_neg"},
        "clip_cov": {"clip_cov_ratio", "clip_cov_lb", "clip_cov_ub"},
        "kl_cov": {"kl_cov_ratio", "ppo_kl_coef"},
        "dro": {"dro_beta"},
    }
    read |= own.get(mode, set())
    if given["use_kl_loss"]:
        read |= {"kl_loss_coef", "kl_loss_type"}
    if given["rollout_is"] is not None:
        read |= {"rollout_is_threshold", "rollout_is_batch_normalize"}
    return read


def _advantage(given: dict[str, Any]) -> Advantage:
    estimator, width = given["adv_estimator"], given["response_length"]
    if estimator == "gdpo":
        return VerlGDPO(given["gdpo_reward_keys"], given["gdpo_reward_weights"], width)
    return VerlAdvantage(estimator, given["norm_adv_by_std_in_grpo"], width)


def _bounds(given: dict[str, Any]) -> tuple[float, float]:
    low, high = (given[name] for name in ("clip_ratio_low", "clip_ratio_high"))
    return given["clip_ratio"] if low is None else low, given["clip_ratio"] if high is None else high


def _objective(given: dict[str, Any]) -> tuple[Objective, tuple[Correct, ...]]:
    """The policy term, and the masks that are a part of it."""
    mode, (below, high) = given["loss_mode"], _bounds(given)
    low = below if below < 1 else None
    if mode == "clip_cov":
        drawn = ClipCov(given["clip_cov_ratio"], given["clip_cov_lb"], given["clip_cov_ub"], low, high)
        return UnlimitedClip(low, high), (drawn,)
    if mode in ("dppo_tv", "dppo_kl"):
        mask = DPPOMask(below, high, "tv", "old") if mode == "dppo_tv" else BinaryKLMask(below, high)
        return ClippedWeight(given["clip_ratio_c"] - 1), (mask,)
    found: dict[str, Objective] = {
        "vanilla": Clip(low, high, given["clip_ratio_c"]),
        # log s at most 10, with no gradient beyond: a dual clip there, since A > 0 is clipped before.
        "gspo": SequenceClipToken(low, high, math.exp(10)),
        "sapo": PlainSoftGate(given["tau_pos"], given["tau_neg"]),
        "kl_cov": UnlimitedClip(None, None),
        "geo_mean": UnlimitedGeometricClip(below, high),
        "cispo": ClippedWeight(high, low),
    }
    return found.get(mode, Reinforce()), ()


def _parts(given: dict[str, Any], policy: Aggregate, sampler: tuple[Correct, ...]) -> list[Term]:
    """What a policy loss adds per token, as terms."""
    if given["loss_mode"] == "kl_cov" and given["ppo_kl_coef"]:
        chosen = (TopCovariance(given["kl_cov_ratio"]), *sampler)
        return [Term(KL("abs", to="old"), given["ppo_kl_coef"], chosen, policy)]
    if given["loss_mode"] == "dro":
        return [Term(KL("k2", to="old"), given["dro_beta"], sampler, policy)]
    return []


def _aggregate(given: dict[str, Any], *, of_policy: bool = False) -> Aggregate:
    if of_policy and given["loss_mode"] == "sapo":
        return SequenceMean()
    if of_policy and given["loss_mode"] == "geo_mean":
        return SequenceMean(over="rows")
    mode = given["loss_agg_mode"]
    if mode == "seq-mean-token-sum-norm":
        return Constant(given["loss_scale_factor"])
    found = {"token-mean": TokenMean(), "token-sum": TokenSum(), "seq-mean-token-sum": SequenceSum()}
    return found.get(mode, SequenceMean())


def _sampler(given: dict[str, Any]) -> tuple[Correct, ...]:
    """The weight for the sampler's log-probs."""
    level: Any = given["rollout_is"]
    if level is None:
        return ()
    if given["loss_mode"] == "geo_mean":
        expected = "None with loss_mode='geo_mean', whose geometric mean of the weights is not covered"
        raise error("bad_parameter", owner=OWNER, name="rollout_is", given=level, expected=expected)
    low, high = _threshold(given["rollout_is_threshold"])
    if low is None:
        return (TIS(high, None, level, normalize=given["rollout_is_batch_normalize"]),)
    if given["rollout_is_batch_normalize"]:
        expected = "False with two bounds, of which the mean is not covered"
        raise error("bad_parameter", owner=OWNER, name="rollout_is_batch_normalize", given=True, expected=expected)
    return (MIS(high, low, level),)


def _threshold(given: Any) -> tuple[float | None, float]:
    """Both bounds of "lo_hi", or an upper one alone."""
    words = given.split("_") if isinstance(given, str) else [given]
    try:
        bounds = [float(word) for word in words]
    except (TypeError, ValueError):
        bounds = []
    if len(bounds) not in (1, 2) or isinstance(given, bool) or not all(0 < bound < 1e9 for bound in bounds):
        expected = "a number more than 0, or two as 'low_high', such as '0.5_5.0'"
        raise error("bad_parameter", owner=OWNER, name="rollout_is_threshold", given=given, expected=expected)
    return (None, bounds[0]) if len(bounds) == 1 else (bounds[0], bounds[1])


def _sources(given: dict[str, Any], objective: Objective, masks: tuple[Correct, ...]) -> list[tuple[str, str]]:
    """Each number's option."""
    mode = given["loss_mode"]
    low, high = (
        f"`clip_ratio_{end}`" if given[f"clip_ratio_{end}"] is not None else "`clip_ratio`" for end in ("low", "high")
    )
    names: dict[str, dict[str, str]] = {
        "Clip": {"low": low, "high": high, "dual": "`clip_ratio_c`"},
        "UnlimitedClip": {"low": low, "high": high, "dual": f"none in {mode}"},
        "SequenceClipToken": {"low": low, "high": high, "dual": "e^10: log s is limited to 10"},
        "PlainSoftGate": {"positive": "`tau_pos`", "negative": "`tau_neg`", "level": "per token"},
        "UnlimitedGeometricClip": {"low": low, "high": high},
        "ClippedWeight": {"low": low, "high": high},
    }
    if mode == "kl_cov":
        names["UnlimitedClip"] = dict.fromkeys(("low", "high", "dual"), "no clip in kl_cov")
    if masks and mode != "clip_cov":
        names["ClippedWeight"] = {"high": "`clip_ratio_c`, less 1", "low": "none"}
    found = [(f"objective.{name}", where) for name, where in names.get(type(objective).__name__, {}).items()]
    if mode in ("dppo_tv", "dppo_kl"):
        found += [("correct.low", low), ("correct.high", high)]
    if mode == "clip_cov":
        found += [("correct.share", "`clip_cov_ratio`"), ("correct.cov_low", "`clip_cov_lb`")]
        found += [("correct.cov_high", "`clip_cov_ub`"), ("correct.low", low), ("correct.high", high)]
    always = {"sapo": "sapo reads no `loss_agg_mode`", "geo_mean": "geo_mean reads no `loss_agg_mode`"}
    found += [("aggregate.over", always.get(mode, f"`loss_agg_mode={given['loss_agg_mode']!r}`"))]
    if isinstance(_aggregate(given, of_policy=True), Constant):
        found += [("aggregate.length", "`loss_scale_factor`")]
    if given["adv_estimator"] != "gdpo":
        found += [("advantage.estimator", "`adv_estimator`")]
    advantage = ["norm_adv_by_std_in_grpo", "response_length"]
    if given["adv_estimator"] == "gdpo":
        advantage = ["gdpo_reward_keys", "gdpo_reward_weights", "response_length"]
    return [*found, *((f"advantage.{name}", f"`{name}`") for name in advantage)]
