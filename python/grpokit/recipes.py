"""The table of named recipes: one function an algorithm, with its paper.

The keyword arguments are the paper's symbols. What a paper does not state, or what belongs to a run, is required;
where the whole field shares a convention that a paper is silent about (ddof, eps, PPO's clip), the convention is the
default and `explain()` says whose it is. The recipes whose loss is a function of whole sequences, or of something else
than PPO's ratio, are in `recipes_beyond_clip`.
"""

from __future__ import annotations

from ._recipe import Recipe, Term
from .advantage import (
    Given,
    GlobalNorm,
    GreedyBaseline,
    GroupNorm,
    LeaveOneOut,
    LengthBaseline,
    MeanBaseline,
    RescaledMean,
)
from .aggregate import Constant, SequenceMean, SequenceSum, TokenMean
from .objective import KL, Clip, QuadraticPenalty, Reinforce
from .selection import HasSignal
from .shaping import KLPenalty, Overlong
from .stages import register

NORM = (
    ("advantage.ddof", "the convention of TRL 1.16 and verl 0.9.1; the paper does not say"),
    ("advantage.eps", "TRL 1.16 (verl 0.9.1: 1e-6); the paper does not say"),
)
PPO_CLIP = (
    ("objective.low", "PPO's 0.2 (arXiv:1707.06347), the default of TRL and verl; the paper does not say"),
    ("objective.high", "as low"),
)
BATCH = ("aggregate.over", "over the whole optimizer step; micro-batches and ranks do not change it")


@register("recipe")
def ppo_clip(*, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Recipe:
    """PPO's clipped surrogate, arXiv:1707.06347; with dual clip, arXiv:1912.09729.

    The advantages are given: of a critic, as the column of rewards, or per token to the loss.
    """
    return Recipe(
        name="ppo_clip",
        papers=("Proximal Policy Optimization, arXiv:1707.06347", "Dual-clip PPO, arXiv:1912.09729"),
        advantage=Given(),
        objective=Clip(low, high, dual),
        aggregate=TokenMean(),
        sources=(
            ("objective.low", "arXiv:1707.06347, §6.1: ε = 0.2 is best"),
            ("objective.high", "as low"),
            ("objective.dual", "off, as in PPO; arXiv:1912.09729 has 3" if dual is None else "given"),
            ("aggregate.over", "the mean over time steps"),
        ),
        elsewhere=(
            ("TRL 1.16", "`delta`, the largest ratio, is the dual clip where it is above 1 + high"),
            (
                "verl 0.9.1",
                "`vanilla` has the dual clip at 3 unless `clip_ratio_c` says otherwise, and limits log r to 20",
            ),
        ),
        leaves_out="the value function, its loss and GAE; the entropy bonus (add a Term(Entropy(), -c)).",
    )


@register("recipe")
def grpo(*, beta: float = 0.04, low: float = 0.2, high: float = 0.2, ddof: int = 1, eps: float = 1e-4) -> Recipe:
    """GRPO (DeepSeekMath), arXiv:2402.03300.

    Group-normalised advantages, PPO's clip, a k3 penalty to the reference policy, and the mean over answers of the
    mean over their tokens (eq. 3).
    """
    return Recipe(
        name="grpo",
        papers=("DeepSeekMath, arXiv:2402.03300",),
        advantage=GroupNorm(ddof, eps),
        objective=Clip(low, high),
        aggregate=SequenceMean(over="rows"),
        extra=() if beta == 0 else (Term(KL("k3"), beta, (), SequenceMean(over="rows")),),
        sources=(
            *NORM,
            *PPO_CLIP,
            ("aggregate.over", "eq. 3: 1/G over all answers"),
            ("extra.kind", "eq. 4"),
            ("extra.scale", "§4.2: the KL coefficient is 0.04"),
        ),
        leaves_out="process supervision (§4.1.3) and the iterative renewal of the reward model (§4.1.4).",
        parent="ppo_clip",
        elsewhere=(
            (
                "TRL 1.16",
                "GRPOTrainer's default loss is DAPO's token mean, and beta is 0: `loss_type='grpo', beta=0.04`",
            ),
            (
                "TRL 1.16",
                "a constant group in fp32 can have std > 0 and so an advantage; a group of one cannot be asked for",
            ),
            ("verl 0.9.1", "token-mean unless `loss_agg_mode='seq-mean-token-mean'`; no KL term unless `use_kl_loss`"),
            (
                "verl 0.9.1",
                "a group of one gets its raw reward as advantage; k3 is cut at ±10, where it has no gradient",
            ),
        ),
    )


@register("recipe", example={"max_len": 3_000})
def dr_grpo(*, max_len: int, low: float = 0.2, high: float = 0.2) -> Recipe:
    """Dr.GRPO (Understanding R1-Zero-like training), arXiv:2503.20783.

    GRPO without the two biases: no standard deviation, and a constant length in the denominator.
    """
    return Recipe(
        name="dr_grpo",
        papers=("Understanding R1-Zero-like training, arXiv:2503.20783",),
        advantage=MeanBaseline(),
        objective=Clip(low, high),
        aggregate=Constant(max_len, over="rows"),
        sources=(
            *PPO_CLIP,
            ("aggregate.length", "given: the generation budget, as in the authors' code (3,000 there)"),
            ("aggregate.over", "the authors' code: all answers of the batch"),
        ),
        leaves_out="nothing of the objective; the paper trains without a KL term.",
        parent="grpo",
        elsewhere=(
            ("TRL 1.16", "`loss_type='dr_grpo'` alone keeps the std: it takes `scale_rewards='none'` as well"),
            ("verl 0.9.1", "`norm_adv_by_std_in_grpo=False` with `loss_agg_mode='seq-mean-token-sum-norm'`"),
            ("verl 0.9.1", "without `loss_scale_factor` the constant is the micro-batch's padded width, which varies"),
        ),
    )


@register("recipe", example={"low": 0.2, "high": 0.28})
def nord(*, low: float, high: float) -> Recipe:
    """NoRD, arXiv:2602.21172.

    Dr.GRPO's advantage with two clip bounds and no length in the denominator, for driving policies.
    """
    return Recipe(
        name="nord",
        papers=("NoRD, arXiv:2602.21172",),
        advantage=MeanBaseline(),
        objective=Clip(low, high),
        aggregate=SequenceSum(over="rows"),
        sources=(
            ("objective.low", "given: the paper does not disclose it"),
            ("objective.high", "given: the paper does not disclose it"),
            ("aggregate.over", "§4.2 prints the sum over an answer's tokens; 1/N is our scale, the paper has none"),
        ),
        leaves_out="the reward for driving (PDM or RFS, with length and format parts).",
        parent="dr_grpo",
        experimental="its paper discloses neither clip bound, and prints the objective without any scale.",
        elsewhere=(
            ("TRL 1.16", "no such name: Dr.GRPO's settings with `epsilon_high`, divided by the budget"),
            ("verl 0.9.1", "no such name: Dr.GRPO's settings with `clip_ratio_high`, `seq-mean-token-sum`"),
        ),
    )


@register("recipe", example={"max_len": 20_480})
def dapo(*, max_len: int, cache: int | None = None, low: float = 0.2, high: float = 0.28) -> Recipe:
    """DAPO, arXiv:2503.14476.

    Clip-higher, dynamic sampling, the token-level mean and the soft overlong punishment (eqs. 8 to 13); no KL term.
    `cache` is by default a fifth of `max_len`, rounded down: the paper's 4,096 of 20,480.
    """
    return Recipe(
        name="dapo",
        papers=("DAPO, arXiv:2503.14476",),
        shape=(Overlong(max_len, Overlong(max_len, 0).max_len // 5 if cache is None else cache),),
        select=(HasSignal(),),
        advantage=GroupNorm(),
        objective=Clip(low, high),
        aggregate=TokenMean(),
        sources=(
            *NORM,
            ("shape.max_len", "given (the paper's: 20,480)"),
            ("shape.cache", "§4.1: 4,096 of 20,480, a fifth" if cache is None else "given"),
            ("select.tolerance", "eq. 11: 0 < correct answers < G, that is max > min"),
            ("objective.low", "§4.1"),
            ("objective.high", "§4.1"),
            ("aggregate.over", "eq. 8: Σ_i |o_i|, over the whole optimizer step"),
        ),
        leaves_out="the refilling of the batch after dynamic sampling, which is the trainer's; overlong filtering, an "
        "alternative to the punishment (add NotTruncated() to select).",
        parent="grpo",
        elsewhere=(
            ("TRL 1.16", "`loss_type='dapo'`, the default, is the token mean alone: `epsilon_high` stays 0.2"),
            ("TRL 1.16", "no dynamic sampling"),
            ("verl 0.9.1", "the punishment goes on falling below −1 beyond max_len"),
            ("verl 0.9.1", "dynamic sampling tests np.std > 0, by default of the shaped reward"),
        ),
    )


@register("recipe")
def rloo(*, beta: float = 0.0) -> Recipe:
    """RLOO (Back to basics), arXiv:2402.14740.

    REINFORCE on whole answers, each with the mean of the others as its baseline; with `beta` KL in the reward.
    """
    return Recipe(
        name="rloo",
        papers=("Back to Basics: Revisiting REINFORCE-Style Optimization, arXiv:2402.14740",),
        shape=() if beta == 0 else (KLPenalty(beta, "k1"),),
        advantage=LeaveOneOut(),
        objective=Reinforce(),
        aggregate=SequenceSum(over="rows"),
        sources=(
            ("shape.beta", "given"),
            ("shape.kind", "eq. 1: log(π / π_ref) of the answer"),
            ("aggregate.over", "an answer is one action: its tokens' log-probabilities add up"),
        )[0 if beta else 2 :],
        leaves_out="nothing of the objective; the paper's KL coefficient belongs to the task and is off by default.",
        elsewhere=(
            ("TRL 1.16", "RLOOTrainer clips PPO's ratio of whole answers; beta is 0.05 and the KL in the reward"),
            (
                "verl 0.9.1",
                "`rloo` gives a group of one its raw reward, `rloo_vectorized` 0; the loss is PPO's token mean",
            ),
        ),
    )


@register("recipe", example={"ddof": 1, "eps": 1e-8})
def reinforce_pp(*, ddof: int, eps: float, beta: float = 1e-3, low: float = 0.2, high: float = 0.2) -> Recipe:
    """REINFORCE++, arXiv:2501.03262.

    One answer a prompt and no baseline: R less the KL penalty of the tokens to come (k1), normalised over all tokens of
    the global batch; PPO's clip.
    """
    return Recipe(
        name="reinforce_pp",
        papers=("REINFORCE++, arXiv:2501.03262",),
        advantage=GlobalNorm(ddof, eps, beta=beta),
        objective=Clip(low, high),
        aggregate=TokenMean(),
        sources=(
            ("advantage.ddof", "given: the paper does not say (verl 0.9.1: 1, OpenRLHF: 0)"),
            ("advantage.eps", "given: the paper does not say (verl 0.9.1: 1e-8, inside the root)"),
            ("advantage.baseline", "none: one answer a prompt"),
            ("advantage.over", "all tokens of the global batch"),
            ("advantage.beta", "the paper's experiments: 1e-3"),
            ("objective.low", "the paper's experiments: 0.2"),
            ("objective.high", "as low"),
            BATCH,
        ),
        leaves_out="nothing of the objective.",
        parent="ppo_clip",
        elsewhere=(
            ("verl 0.9.1", "the same with KL in the reward switched on; a return runs on over masked spans"),
            ("TRL 1.16", "not there; `scale_rewards='batch'` divides by the batch's std after the group's mean"),
        ),
    )


@register("recipe", example={"ddof": 1, "eps": 1e-8})
def reinforce_pp_baseline(*, ddof: int, eps: float, beta: float = 1e-3, low: float = 0.2, high: float = 0.2) -> Recipe:
    """REINFORCE++ with a baseline, arXiv:2501.03262.

    R less the group's mean, normalised over all tokens of the global batch (the mean is taken off once more); PPO's
    clip and a k2 penalty in the loss.
    """
    return Recipe(
        name="reinforce_pp_baseline",
        papers=("REINFORCE++, arXiv:2501.03262",),
        advantage=GlobalNorm(ddof, eps, baseline="group"),
        objective=Clip(low, high),
        aggregate=TokenMean(),
        extra=() if beta == 0 else (Term(KL("k2"), beta),),
        sources=(
            ("advantage.ddof", "given: the paper does not say (verl 0.9.1: 1)"),
            ("advantage.eps", "given: the paper does not say (verl 0.9.1: 1e-8, inside the root)"),
            ("advantage.baseline", "the group's mean"),
            ("advantage.over", "all tokens of the global batch"),
            ("advantage.beta", "0: the penalty is in the loss"),
            ("objective.low", "the paper's experiments: 0.2"),
            ("objective.high", "as low"),
            BATCH,
            ("extra.kind", "k2, the paper's replacement of GRPO's k3"),
            ("extra.scale", "the paper's experiments: 1e-3"),
        ),
        leaves_out="nothing of the objective; that the penalty is a term of the loss is read from the text.",
        parent="reinforce_pp",
        elsewhere=(
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "a group of one has baseline 0; the loss's KL is k3 unless `kl_loss_type='k2'`"),
        ),
    )


@register("recipe")
def remax() -> Recipe:
    """ReMax, arXiv:2310.10505.

    REINFORCE with the reward of the greedy answer as the baseline: one more answer a prompt, and no group.
    """
    return Recipe(
        name="remax",
        papers=("ReMax, arXiv:2310.10505",),
        advantage=GreedyBaseline(),
        objective=Reinforce(),
        aggregate=SequenceSum(over="rows"),
        sources=(("aggregate.over", "an answer is one action: its tokens' log-probabilities add up"),),
        leaves_out="the KL penalty in the reward (add KLPenalty(β) to shape).",
        parent="rloo",
        elsewhere=(
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "`remax`, with PPO's clip and token mean in place of REINFORCE"),
        ),
    )


@register("recipe")
def opo() -> Recipe:
    """OPO (On-Policy RL with Optimal Reward Baseline), arXiv:2505.23585.

    Exactly on-policy REINFORCE with the length-weighted mean of the group's rewards as its baseline; no clip, no KL.
    """
    return Recipe(
        name="opo",
        papers=("On-Policy RL with Optimal Reward Baseline, arXiv:2505.23585",),
        advantage=LengthBaseline(),
        objective=Reinforce(),
        aggregate=SequenceSum(over="rows"),
        sources=(("aggregate.over", "the gradient of whole answers: their tokens' log-probabilities add up"),),
        leaves_out="nothing; it asks for one update a batch, which is the trainer's (updates_per_step=1).",
        parent="rloo",
        elsewhere=(
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "`opo` gives a group of one its raw reward; the loss is PPO's token mean"),
        ),
    )


@register("recipe")
def gpg() -> Recipe:
    """GPG (Group Policy Gradient), arXiv:2504.02546.

    REINFORCE on R less the group's mean, rescaled for the groups that have no signal; no clip, no KL, no reference.
    """
    return Recipe(
        name="gpg",
        papers=("GPG, arXiv:2504.02546",),
        advantage=RescaledMean(),
        objective=Reinforce(),
        aggregate=TokenMean(),
        sources=(("aggregate.over", "eq. 5: 1 / Σ_i |o_i|"),),
        leaves_out="the resampling of a batch with too few groups with signal (§2.2), which is the trainer's; F_norm, "
        "which is 1 by default.",
        parent="rloo",
        elsewhere=(
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "α is rows over non-zero rewards, not groups over groups with signal: 1 for rewards of ±1"),
        ),
    )


@register("recipe")
def spo(*, epsilon: float = 0.2) -> Recipe:
    """SPO (Simple Policy Optimization), arXiv:2401.16025.

    A quadratic penalty on the ratio in place of PPO's clip: never flat, so a ratio beyond the bound is drawn back.
    """
    return Recipe(
        name="spo",
        papers=("Simple Policy Optimization, arXiv:2401.16025",),
        advantage=GroupNorm(),
        objective=QuadraticPenalty(epsilon),
        aggregate=TokenMean(),
        sources=(
            ("advantage.ddof", "GRPO's estimator in place of the paper's critic; ddof as TRL 1.16 and verl 0.9.1"),
            ("advantage.eps", "as in TRL 1.16"),
            ("objective.epsilon", "the authors' code: 0.2, as PPO's"),
            BATCH,
        ),
        leaves_out="the critic: the paper's runs are actor-critic, here the advantage is the group's.",
        parent="ppo_clip",
        elsewhere=(("TRL 1.16", "not there (turned down as a loss type)"), ("verl 0.9.1", "not there")),
    )
