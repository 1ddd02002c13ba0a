"""The recipe `trl`: TRL 1.16.0's GRPOTrainer, by its own option names.

In: options of `GRPOConfig`. Out: a recipe whose advantages, loss and gradient are those of `GRPOTrainer` in fp32, for
one process and one micro-batch an optimizer step. docs/compat.md says what each option changes, and what is left out.
"""

from __future__ import annotations

from typing import Any, Literal

from grpokit._recipe import Recipe, Term
from grpokit.aggregate import Constant, SequenceMean, SequenceSum, TokenMean
from grpokit.drift import OPSM
from grpokit.errors import error
from grpokit.mismatch import MIS, TIS
from grpokit.objective import KL, Entropy
from grpokit.stages import Advantage, Aggregate, Correct, Objective, fields_of, register

from .kl import CorrectedKL
from .masks import FlooredMask, FP32TopEntropy
from .options import choose, positive, refuse_unread
from .ratios import PlainSoftGate, UnlimitedClip, UnlimitedSequenceClip
from .trl_advantage import TRLAdvantage, TRLDecoupled
from .weights import CappedWeight, LimitedGammaWeight

OWNER = "recipe('trl')"
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "vespo")
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
SAPO = ("sapo_temperature_pos", "sapo_temperature_neg")
VESPO = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
DEFAULTS: dict[str, Any] = {
    "scale_rewards": "group",
    "reward_weights": None,
    "use_bias_correction_kl": True,
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "importance_sampling_level": "token",
    "max_completion_length": 512,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None,
}
DECIDES = {
    "scale_rewards": "multi_objective_aggregation",
    "reward_weights": "multi_objective_aggregation",
    "use_bias_correction_kl": "beta",
    **dict.fromkeys((name for name in DEFAULTS if name.startswith("vllm_")), "use_vllm"),
}


@register("recipe")
def trl(
    *,
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = "dapo",
    scale_rewards: Literal["group", "batch", "none"] | bool = "group",
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize",
    reward_weights: tuple[float, ...] | None = None,
    beta: float = 0.0,
    use_bias_correction_kl: bool = True,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    importance_sampling_level: Literal["token", "sequence"] = "token",
    max_completion_length: int = 512,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    top_entropy_quantile: float = 1.0,
    off_policy_mask_threshold: float | None = None,
    entropy_coef: float = 0.0,
    use_vllm: bool = False,
    vllm_importance_sampling_correction: bool = True,
    vllm_importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "sequence_mask",
    vllm_importance_sampling_clip_max: float | None = 3.0,
    vllm_importance_sampling_clip_min: float | None = None,
) -> Recipe:
    """TRL 1.16.0's GRPOTrainer, replayed: `loss_type`, `scale_rewards` and its other options.

    Numbers as in TRL, quirks included; docs/compat.md lists them. An option that TRL does not read in the setting that
    the others make is refused, and so is a value that is not covered.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.recipe("trl", loss_type="cispo").objective  # epsilon_high is the cap, and epsilon where it is None
    CappedWeight(cap=0.2, level='token')
    """
    given = dict(locals())
    words: dict[Any, Any] = {True: "group", False: "none"}
    given["scale_rewards"] = scale_rewards = words.get(scale_rewards, scale_rewards)
    choose(OWNER, "loss_type", loss_type, LOSS_TYPES)
    choose(OWNER, "scale_rewards", scale_rewards, ("group", "batch", "none"))
    aggregations = ("sum_then_normalize", "normalize_then_sum")
    choose(OWNER, "multi_objective_aggregation", multi_objective_aggregation, aggregations)
    choose(OWNER, "importance_sampling_level", importance_sampling_level, ("token", "sequence"))
    choose(OWNER, "vllm_importance_sampling_mode", vllm_importance_sampling_mode, MODES)
    for name in ("use_bias_correction_kl", "use_vllm", "vllm_importance_sampling_correction"):
        choose(OWNER, name, given[name], (True, False))
    for name in ("epsilon", "beta", "entropy_coef"):
        positive(OWNER, name, given[name])
    positive(OWNER, "epsilon_high", epsilon_high, inclusive=loss_type != "cispo", optional=True)
    positive(OWNER, "delta", delta, least=1.0, inclusive=False, optional=True)
    positive(OWNER, "max_completion_length", max_completion_length, inclusive=False)
    positive(OWNER, "top_entropy_quantile", top_entropy_quantile, inclusive=False)
    refuse_unread(OWNER, given, DEFAULTS, _read(given), dict.fromkeys(DEFAULTS, "loss_type") | DECIDES)

    objective = _objective(given)
    aggregate = _aggregate(given)
    entropy = (FP32TopEntropy(top_entropy_quantile),) if top_entropy_quantile < 1 else ()
    extra: tuple[Term, ...] = ()
    if beta:
        kl = CorrectedKL(importance_sampling_level) if use_bias_correction_kl else KL("k3")
        extra = (Term(kl, beta, (), aggregate),)
    if entropy_coef:
        # Over the tokens that it acts on, whatever the loss type divides by.
        over = TokenMean(over="kept") if entropy else TokenMean()
        extra = (*extra, Term(Entropy(), -entropy_coef, entropy, over))
    advantage: Advantage = TRLAdvantage(words.get(scale_rewards, scale_rewards))
    if multi_objective_aggregation == "normalize_then_sum":
        advantage = TRLDecoupled(reward_weights)
    return Recipe(
        name="trl",
        papers=("TRL 1.16.0, trl/trainer/grpo_trainer.py",),
        advantage=advantage,
        correct=(*_masks(given), *entropy, *_sampler(given)),
        dropped="in_ratio",
        objective=objective,
        aggregate=aggregate,
        extra=extra,
        not_finite="drop",
        sources=_sources(given, objective),
        leaves_out="what is not the loss of one micro-batch in one process: the adaptive entropy coefficient, the "
        "router's auxiliary loss; docs/compat.md has the list.",
    )


def _read(given: dict[str, Any]) -> set[str]:
    """Which of the options TRL reads in this setting."""
    loss_type, beta = given["loss_type"], given["beta"]
    read = set()
    if given["multi_objective_aggregation"] == "sum_then_normalize":
        read.add("scale_rewards")
    else:
        read.add("reward_weights")
    if beta:
        read.add("use_bias_correction_kl")
    if loss_type in CLIPPED:
        read |= {"epsilon", "epsilon_high", "delta"}
    if loss_type == "cispo":
        read |= {"epsilon_high"} | ({"epsilon"} if given["epsilon_high"] is None else set())
    if loss_type != "vespo" or (beta and given["use_bias_correction_kl"]):
        read.add("importance_sampling_level")
    if loss_type == "dr_grpo":
        read.add("max_completion_length")
    read |= {*SAPO} if loss_type == "sapo" else {*VESPO} if loss_type == "vespo" else set()
    if given["use_vllm"]:
        read.add("vllm_importance_sampling_correction")
        if given["vllm_importance_sampling_correction"]:
            read |= {name for name in DEFAULTS if name.startswith("vllm_importance_sampling_")}
    return read


def _objective(given: dict[str, Any]) -> Objective:
    loss_type, level = given["loss_type"], given["importance_sampling_level"]
    high = given["epsilon"] if given["epsilon_high"] is None else given["epsilon_high"]
    if loss_type == "cispo":
        # The cap itself, and epsilon in its place where it is not given.
        return CappedWeight(high, level)
    if loss_type == "sapo":
        return PlainSoftGate(given["sapo_temperature_pos"], given["sapo_temperature_neg"], level)
    if loss_type == "vespo":
        k_pos, lambda_pos, k_neg, lambda_neg = (given[name] for name in VESPO)
        return LimitedGammaWeight(k_pos, max(lambda_pos, 1e-4), k_neg, max(lambda_neg, 1e-4))
    delta, low = given["delta"], given["epsilon"] if given["epsilon"] < 1 else None
    dual = delta
    if delta is not None and delta <= 1 + high:
        # min(min(r, δ) A, clip(r) A): below the upper bound, δ takes its place where A > 0, and it δ's where A < 0.
        high, dual = delta - 1, 1 + high
    return (UnlimitedClip if level == "token" else UnlimitedSequenceClip)(low, high, dual)


def _aggregate(given: dict[str, Any]) -> Aggregate:
    loss_type = given["loss_type"]
    if loss_type in ("grpo", "sapo"):
        return SequenceMean(over="rows")
    if loss_type == "dr_grpo":
        return Constant(given["max_completion_length"], over="rows")
    return SequenceSum(over="rows") if loss_type == "luspo" else TokenMean()


def _masks(given: dict[str, Any]) -> tuple[Correct, ...]:
    threshold = given["off_policy_mask_threshold"]
    if threshold is None:
        return ()
    positive(OWNER, "off_policy_mask_threshold", threshold, inclusive=False)
    return (OPSM(threshold, "rollout" if given["use_vllm"] else "old"),)


def _sampler(given: dict[str, Any]) -> tuple[Correct, ...]:
    """The weight for vLLM's log-probs."""
    if not given["use_vllm"] or not given["vllm_importance_sampling_correction"]:
        return ()
    name = "vllm_importance_sampling_mode"
    mode, vespo = given[name], given["loss_type"] == "vespo"
    low, high = (given[f"vllm_importance_sampling_clip_{end}"] for end in ("min", "max"))
    if vespo and not mode.startswith("token_"):
        expected = "'token_truncate' or 'token_mask' with loss_type='vespo', as in TRL"
        raise error("bad_parameter", owner=OWNER, name=name, given=mode, expected=expected)
    level: Any = mode.split("_")[0]
    if mode.endswith("truncate") or (low is None and high is None):
        return (TIS(high, low, level),)
    if vespo:
        return (FlooredMask(high, low),)
    if high is None:
        expected = f"a number with {name}={mode!r} and a lower bound (TRL has None too, which is not covered)"
        raise error(
            "bad_parameter", owner=OWNER, name="vllm_importance_sampling_clip_max", given=None, expected=expected
        )
    return (MIS(high, low, level),)


def _sources(given: dict[str, Any], objective: Objective) -> tuple[tuple[str, str], ...]:
    """Each number's option."""
    names = {
        "low": "`epsilon`",
        "high": "`epsilon_high`, or `epsilon` where it is None",
        "dual": "`delta`",
        "cap": "`epsilon_high`, or `epsilon` where it is None: the cap itself",
        "level": "`importance_sampling_level`",
        "positive": "`sapo_temperature_pos`",
        "negative": "`sapo_temperature_neg`",
        **{name.removeprefix("vespo_"): f"`{name}`" for name in VESPO},
    }
    if given["delta"] is not None and getattr(objective, "dual", None) != given["delta"]:
        names |= {"high": "`delta`, which is below 1 + `epsilon_high`", "dual": "1 + `epsilon_high`, above `delta`"}
    found = [(f"objective.{name}", names[name]) for name in fields_of(objective)]
    found += [("aggregate.over", f"`loss_type={given['loss_type']!r}`")]
    if given["loss_type"] == "dr_grpo":
        found += [("aggregate.length", "`max_completion_length`")]
    if given["multi_objective_aggregation"] == "normalize_then_sum":
        found += [("advantage.reward_weights", "`reward_weights`")]
    else:
        found += [("advantage.scale_rewards", "`scale_rewards`")]
    return tuple(found)
