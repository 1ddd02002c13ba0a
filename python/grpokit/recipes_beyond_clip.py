"""The table of named recipes, continued: ratios of whole answers, soft gates, weights, regressions, mixed policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._recipe import Recipe
from .advantage import GroupNorm, MeanBaseline, SoftValue
from .aggregate import SequenceMean, SequenceSum, TokenMean
from .objective import (
    ClippedWeight,
    Divergence,
    GammaWeight,
    GaussianGate,
    GeometricClip,
    MixedPolicy,
    Regression,
    SequenceClip,
    SequenceClipToken,
    SoftGate,
)
from .recipes import NORM
from .stages import register

if TYPE_CHECKING:
    from typing import Literal

_SEQUENCES = ("aggregate.over", "1/G over all answers")


@register("recipe")
def gspo(*, low: float = 3e-4, high: float = 4e-4) -> Recipe:
    """GSPO (Group Sequence Policy Optimization), arXiv:2507.18071.

    The ratio of the whole answer, its geometric mean over tokens, is clipped; group-normalised advantages, no KL.
    """
    return Recipe(
        name="gspo",
        papers=("Group Sequence Policy Optimization, arXiv:2507.18071",),
        advantage=GroupNorm(),
        objective=SequenceClip(low, high),
        aggregate=SequenceMean(over="rows"),
        sources=(
            *NORM,
            ("objective.low", "§5.1: 3e-4"),
            ("objective.high", "§5.1: 4e-4"),
            ("objective.dual", "not in the paper"),
            _SEQUENCES,
        ),
        leaves_out="nothing of the objective.",
        parent="grpo",
        elsewhere=(
            (
                "TRL 1.16",
                "`importance_sampling_level='sequence'` with `loss_type='grpo'`; other loss types weigh by length",
            ),
            (
                "verl 0.9.1",
                "is GSPO-token, takes `loss_agg_mode` as it is given, and keeps the clip at 0.2 unless told",
            ),
        ),
    )


@register("recipe")
def gspo_token(*, low: float = 3e-4, high: float = 4e-4) -> Recipe:
    """GSPO-token, arXiv:2507.18071, §4.3.

    GSPO's value with each token's own gradient, so that advantages may differ inside an answer.
    """
    return Recipe(
        name="gspo_token",
        papers=("Group Sequence Policy Optimization, arXiv:2507.18071",),
        advantage=GroupNorm(),
        objective=SequenceClipToken(low, high),
        aggregate=SequenceMean(over="rows"),
        sources=(
            *NORM,
            ("objective.low", "§5.1: 3e-4, GSPO's"),
            ("objective.high", "§5.1: 4e-4, GSPO's"),
            ("objective.dual", "not in the paper"),
            _SEQUENCES,
        ),
        leaves_out="how advantages per token are made: give them to the loss.",
        parent="gspo",
        elsewhere=(("TRL 1.16", "not in the package"), ("verl 0.9.1", "`gspo`")),
    )


@register("recipe")
def luspo(*, low: float = 2e-3, high: float = 2.5e-3) -> Recipe:
    """LUSPO (Length-Unbiased Sequence Policy Optimization), arXiv:2602.05261.

    GSPO with every answer's loss times its length, which ends the preference for short right answers.
    """
    return Recipe(
        name="luspo",
        papers=("Length-Unbiased Sequence Policy Optimization, arXiv:2602.05261",),
        advantage=GroupNorm(),
        objective=SequenceClip(low, high),
        aggregate=SequenceSum(over="rows"),
        sources=(
            *NORM,
            ("objective.low", "2e-3, as TRL's page of papers quotes the paper"),
            ("objective.high", "2.5e-3, likewise"),
            ("objective.dual", "not in the paper"),
            ("aggregate.over", "the mean over answers of |o_i| times their loss: the sum over tokens of a constant"),
        ),
        leaves_out="nothing of the objective.",
        parent="gspo",
        elsewhere=(
            ("TRL 1.16", "`loss_type='luspo'` with `importance_sampling_level='sequence'`"),
            ("verl 0.9.1", "not there"),
        ),
    )


@register("recipe")
def gmpo(*, low: float = 0.4, high: float = 0.4) -> Recipe:
    """GMPO (Geometric-Mean Policy Optimization), arXiv:2507.20673.

    The geometric mean of ratios that are clipped token by token, on the side that the advantage pushes towards.
    """
    return Recipe(
        name="gmpo",
        papers=("Geometric-Mean Policy Optimization, arXiv:2507.20673",),
        advantage=GroupNorm(),
        objective=GeometricClip(low, high),
        aggregate=SequenceMean(over="rows"),
        sources=(
            *NORM,
            ("objective.low", "the paper's range (e^−0.4, e^0.4): 0.4, in the log-ratio"),
            ("objective.high", "as low"),
            _SEQUENCES,
        ),
        leaves_out="nothing of the objective.",
        parent="gspo",
        elsewhere=(
            ("TRL 1.16", "experimental, the same, with an optional mask of high-entropy tokens inside the mean"),
            (
                "verl 0.9.1",
                "`geo_mean` averages over the micro-batch whatever is configured, and clips at 0.2 unless told",
            ),
        ),
    )


@register("recipe", example={"high": 4.0})
def cispo(*, high: float, low: float | None = None) -> Recipe:
    """CISPO (MiniMax-M1), arXiv:2506.13585.

    REINFORCE whose importance weight is clipped; every token keeps its gradient. The weight is at most 1 + `high`.
    """
    return Recipe(
        name="cispo",
        papers=("MiniMax-M1, arXiv:2506.13585",),
        advantage=GroupNorm(),
        objective=ClippedWeight(high, low),
        aggregate=TokenMean(),
        sources=(
            *NORM,
            ("objective.high", "given: the paper names no number (ScaleRL, arXiv:2510.13786: a cap of 5, high = 4)"),
            ("objective.low", "the paper makes the lower bound inactive" if low is None else "given"),
            ("aggregate.over", "eq. 4: 1 / Σ_i |o_i|"),
        ),
        leaves_out="dynamic sampling and the length penalty, which the paper takes from DAPO; the token mask of its "
        "general form.",
        parent="grpo",
        experimental="its paper discloses no bound.",
        elsewhere=(
            ("TRL 1.16", "`epsilon_high` is the cap itself, not 1 + it; left alone it is 0.2: no weight is above that"),
            ("verl 0.9.1", "clips to [1 − low, 1 + high], by default [0.8, 1.2]"),
        ),
    )


@register("recipe")
def sapo(*, positive: float = 1.0, negative: float = 1.05) -> Recipe:
    """SAPO (Soft Adaptive Policy Optimization), arXiv:2511.20347.

    A sigmoid gate on the ratio in place of the clip, a little sharper where the advantage is negative.
    """
    return Recipe(
        name="sapo",
        papers=("Soft Adaptive Policy Optimization, arXiv:2511.20347",),
        advantage=GroupNorm(),
        objective=SoftGate(positive, negative),
        aggregate=SequenceMean(over="rows"),
        sources=(
            *NORM,
            ("objective.positive", "the paper's controlled run: 1.0"),
            ("objective.negative", "the paper's controlled run: 1.05"),
            _SEQUENCES,
        ),
        leaves_out="nothing of the objective.",
        parent="grpo",
        elsewhere=(
            ("TRL 1.16", "`loss_type='sapo'`, the same"),
            ("verl 0.9.1", "the same, whatever `loss_agg_mode` says; answers without live tokens do not count"),
        ),
    )


@register("recipe")
def maspo(*, sigma: float = 1.0, alpha: float = 0.3, beta: float = 0.03) -> Recipe:
    """MASPO, arXiv:2602.17550.

    A Gaussian gate on the side that the advantage pushes towards, wider for rare tokens and sure advantages.
    """
    return Recipe(
        name="maspo",
        papers=("MASPO, arXiv:2602.17550",),
        advantage=GroupNorm(),
        objective=GaussianGate(sigma, alpha, beta),
        aggregate=TokenMean(),
        sources=(
            *NORM,
            ("objective.sigma", "the authors' code: 1 (their README recommends 1, 2, 3)"),
            ("objective.alpha", "the authors' code: 0.3 (0.5 for the 1.5B model)"),
            ("objective.beta", "the authors' code: 0.03 on both sides"),
            ("objective.sigma_high", "the authors' code, not in the formula"),
            ("objective.adv_low", "the authors' code, not in the formula"),
            ("objective.adv_high", "the authors' code, not in the formula"),
            ("aggregate.over", "the authors' code: token-mean"),
        ),
        leaves_out="nothing of the authors' code; the paper's own text was not read.",
        parent="dapo",
        elsewhere=(("TRL 1.16", "not there"), ("verl 0.9.1", "not there; the authors' fork of verl has it")),
    )


@register("recipe")
def vespo(*, k_pos: float = 2.0, lambda_pos: float = 3.0, k_neg: float = 3.0, lambda_neg: float = 2.0) -> Recipe:
    """VESPO (Variational Sequence-Level Soft Policy Optimization), arXiv:2602.10693.

    REINFORCE weighed by a Gamma-shaped function of the whole answer's ratio, for stale data.
    """
    return Recipe(
        name="vespo",
        papers=("VESPO, arXiv:2602.10693",),
        advantage=GroupNorm(),
        objective=GammaWeight(k_pos, lambda_pos, k_neg, lambda_neg),
        aggregate=TokenMean(),
        sources=(
            (
                "advantage.ddof",
                "the authors' code, GRPO's estimator (the paper writes a mean baseline); as TRL and verl",
            ),
            ("advantage.eps", "TRL 1.16"),
            ("objective.k_pos", "§4.1: 2"),
            ("objective.lambda_pos", "§4.1: 3"),
            ("objective.k_neg", "§4.1: 3"),
            ("objective.lambda_neg", "§4.1: 2"),
            ("aggregate.over", "the authors' code: token-mean; over the whole step here, over a micro-batch there"),
        ),
        leaves_out="nothing of the objective; corrections for the sampler are folded into W when they are added.",
        parent="cispo",
        elsewhere=(
            (
                "TRL 1.16",
                "`loss_type='vespo'`; with `token_mask` a dropped token enters W as 1e-8, and the answer is lost",
            ),
            ("verl 0.9.1", "not there"),
        ),
    )


@register("recipe")
def oapl(*, beta_value: float = 1.0, beta: float = 1e-3) -> Recipe:
    """OAPL, arXiv:2602.19362.

    The answer's log-ratio to the lagged sampler is regressed on its advantage over a soft value: off-policy without
    importance weights.
    """
    return Recipe(
        name="oapl",
        papers=("OAPL, arXiv:2602.19362",),
        advantage=SoftValue(beta_value),
        ratio="rollout",
        objective=Regression(beta),
        aggregate=SequenceMean(over="rows"),
        sources=(
            ("advantage.beta", "the paper's β_1 = 1, as two independent ports and a digest quote it"),
            ("objective.beta", "the paper's β_2 = 1e-3, likewise; it goes with a gradient clip of 1e-3"),
            ("aggregate.over", "eq. 3: the mean over answers"),
        ),
        leaves_out="the renewal of the sampler every L steps with a cleared buffer, which is the trainer's.",
        elsewhere=(("TRL 1.16", "not there"), ("verl 0.9.1", "not there")),
    )


@register("recipe", example={"f": "js", "eta": 1.0})
def lad(*, f: Literal["js", "hellinger", "tv", "kl", "reverse_kl", "jeffreys"], eta: float) -> Recipe:
    """LAD (Learning Advantage Distributions), arXiv:2602.20132.

    An f-divergence to the distribution that the advantages induce, in place of an expected advantage.
    """
    return Recipe(
        name="lad",
        papers=("LAD, arXiv:2602.20132",),
        advantage=GroupNorm(),
        objective=Divergence(f, eta),
        aggregate=SequenceMean(over="rows"),
        sources=(
            ("advantage.ddof", "GRPO's estimator, the paper's baseline; which one it uses was not found"),
            ("advantage.eps", "as in TRL 1.16"),
            ("objective.f", "given: no default is stated; the strict ones (tv, hellinger, js) win the ablation"),
            ("objective.eta", "given: 0.5 to 16 are reported to differ little"),
            ("aggregate.over", "an expectation over answers"),
        ),
        leaves_out="the normalised form with its constants (Lemma 3.1).",
        experimental="neither f, nor η, nor whether the authors' code takes the ratio per token was found.",
        elsewhere=(("TRL 1.16", "not there"), ("verl 0.9.1", "not there")),
    )


@register("recipe")
def luffy(*, gamma: float = 0.1, low: float | None = None, high: float | None = None) -> Recipe:
    """LUFFY, arXiv:2504.14945.

    Demonstrations of a stronger model in every group, with a shaped likelihood in place of the ratio; the batch says
    which tokens they are: `off_policy`.
    """
    return Recipe(
        name="luffy",
        papers=("Learning to Reason under Off-Policy Guidance, arXiv:2504.14945",),
        advantage=MeanBaseline(),
        objective=MixedPolicy(gamma, low, high),
        aggregate=TokenMean(),
        sources=(
            ("objective.gamma", "the authors' script: p_div_p_0.1 (a digest of the paper: of 0.01, 0.1, 0.2)"),
            ("objective.low", "off, as in the authors' script; the equation has a clip" if low is None else "given"),
            ("objective.high", "as low" if high is None else "given"),
            ("aggregate.over", "the paper's 1/Z, Z the tokens of all answers"),
        ),
        leaves_out="the choice of prompts and demonstrations; the released runs have one in every group of 8, and "
        "divide by no std, as here.",
        parent="dr_grpo",
        elsewhere=(
            ("the authors' code", "divides the sum by the padded length alone: the scale follows the batch"),
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "not there; the authors' fork has it"),
        ),
    )
