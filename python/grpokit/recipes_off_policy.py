"""The table of named recipes, continued: against mismatch and staleness, and what looks at the whole batch first.

A correction goes with any recipe: ``gk.recipe("gspo").replace(correct=(gk.IcePop(),))``. Bypass, which takes the
ratio against the sampler itself and saves π_old's forward pass, is ``replace(ratio="rollout")``. Those that a paper
names as a whole are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._recipe import Recipe, Term
from .advantage import GroupNorm, MeanBaseline
from .aggregate import SequenceMean, TokenMean
from .drift import DPPOMask, M2POMask
from .errors import error
from .minimum_variance import MinimumVarianceBaseline
from .mismatch import TIS, IcePop
from .objective import KL, Clip, ClippedWeight, Reinforce
from .recipes import BATCH, NORM
from .selection import HasSignal
from .shaping import Overlong
from .stages import register
from .token_selection import ClipCov, M2POClip, S2TMask, TopCovariance, TopEntropy

if TYPE_CHECKING:
    from typing import Literal

_STEP = ("aggregate.over", "as the authors' code; over the whole optimizer step here, over a micro-batch there")


@register("recipe")
def decoupled_ppo(*, low: float = 0.2, high: float = 0.2, cap: float | None = None) -> Recipe:
    """Decoupled PPO (AReaL), arXiv:2505.24298.

    PPO's ratio and clip against the trainer's own policy before the update, weighed by ρ to the sampler (eq. 5).
    """
    return Recipe(
        name="decoupled_ppo",
        papers=("Batch size-invariance for policy optimization, arXiv:2110.00641", "AReaL, arXiv:2505.24298"),
        advantage=MeanBaseline(),
        correct=(TIS(cap),),
        objective=Clip(low, high),
        aggregate=TokenMean(),
        sources=(
            (
                "correct.cap",
                "eq. 5 writes the weight without one (AReaL's code drops tokens above 5)" if cap is None else "given",
            ),
            ("correct.low", "none in eq. 5"),
            ("correct.level", "eq. 5: per token"),
            ("correct.normalize", "not in eq. 5"),
            ("correct.policy", "eq. 5: the parameters before the update, recomputed"),
            ("objective.low", "AReaL, table 3: 0.2"),
            ("objective.high", "AReaL, table 3: 0.2"),
            ("objective.dual", "none in eq. 5"),
            BATCH,
        ),
        leaves_out="AReaL's advantage, the return normalised over the batch (take GlobalNorm); the bound on staleness, "
        "which is `gk.StalenessLedger`'s.",
        parent="ppo_clip",
        elsewhere=(
            ("AReaL", "multiplies by the weight only if `rejection_sampling` is set"),
            ("TRL 1.16", "masks sequences above 3 by default (`vllm_importance_sampling_mode`)"),
            ("verl 0.9.1", "`rollout_is='token'`, off unless asked for; bypass is `bypass_mode`"),
        ),
    )


@register("recipe", example={"low": 0.2, "high": 0.2})
def icepop(*, low: float, high: float, alpha: float = 0.5, beta: float = 5.0) -> Recipe:
    """IcePop (Ring-1T), arXiv:2510.18855.

    GRPO's loss without its KL term, weighed by ρ where α <= ρ <= β; tokens beyond are dropped, for mixture-of-experts
    whose sampler and trainer disagree.
    """
    return Recipe(
        name="icepop",
        papers=("Every Step Evolves: Ring-1T, arXiv:2510.18855",),
        advantage=GroupNorm(),
        correct=(IcePop(alpha, beta),),
        objective=Clip(low, high),
        aggregate=SequenceMean(over="rows"),
        sources=(
            *NORM,
            ("correct.low", "the paper's α = 0.5"),
            ("correct.high", "the paper's β = 5, both ends inclusive"),
            ("correct.policy", "eq. 2: the trainer's before the update over the sampler's"),
            ("objective.low", "given: the paper's ε was not found"),
            ("objective.high", "given: the paper's ε was not found"),
            ("objective.dual", "none in eq. 1"),
            ("aggregate.over", "eq. 1: 1/G over all answers, dropped tokens included in 1/|y_i|"),
        ),
        leaves_out="the KL term, whose coefficient is 0 in the paper's run.",
        parent="grpo",
        experimental="its paper's clip was not found.",
        elsewhere=(
            ("TRL 1.16", "`token_mask` with `clip_min` and `clip_max`"),
            ("verl 0.9.1", "a threshold written as '0.5_5.0' is IcePop; the dropped tokens stay in the denominator"),
            ("INTELLECT-3", "u = π / π_rollout in one: `Reinforce()` with `IcePop(policy='current')`"),
        ),
    )


@register("recipe", example={"low": 0.2, "high": 0.2})
def dppo(*, low: float, high: float, kind: Literal["tv", "kl"] = "tv") -> Recipe:
    """DPPO (Rethinking the Trust Region in LLM RL), arXiv:2602.04879.

    No clip of the ratio to the sampler: a token is dropped where A pushes its probability, and not its ratio, too far.
    """
    return Recipe(
        name="dppo",
        papers=("Rethinking the Trust Region in LLM Reinforcement Learning, arXiv:2602.04879",),
        advantage=MeanBaseline(),
        ratio="rollout",
        correct=(DPPOMask(low, high, kind),),
        objective=ClippedWeight(19.0),
        aggregate=TokenMean(),
        sources=(
            ("correct.low", "given: the paper's was not read (prime-rl, tv: 0.2)"),
            ("correct.high", "given: the paper's was not read (prime-rl, tv: 0.2)"),
            ("correct.kind", "prime-rl's default" if kind == "tv" else "given"),
            ("correct.against", "prime-rl"),
            ("objective.high", "the fallback in verl's code: at most 20 (prime-rl: none)"),
            ("objective.low", "none"),
            ("aggregate.over", "all tokens, dropped ones included"),
        ),
        leaves_out="prime-rl's pull towards the sampler, 1e-3 log² u on all tokens: "
        "add Term(KL('k2', to='rollout'), 2e-3).",
        parent="cispo",
        experimental="its thresholds were not read in the paper.",
        elsewhere=(
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "`dppo_tv`, `dppo_kl`, against π_old; the thresholds are the clip's 0.2 unless told"),
            ("verl 0.9.1", "the weight is at most `clip_ratio_c`, 3 by default: the 20 in its code is never read"),
        ),
    )


@register("recipe")
def m2po_clip(*, tau: float = 0.04, low: float = 0.3, high: float = 0.5) -> Recipe:
    """M2PO (the authors' code), arXiv:2510.01161.

    A clip whose bounds follow the batch: as wide as the second moment of the harmful tokens' log-ratio to the sampler
    allows, for data that is hundreds of updates old.
    """
    return Recipe(
        name="m2po_clip",
        papers=("Prosperity before Collapse (M2PO), arXiv:2510.01161",),
        advantage=GroupNorm(),
        ratio="rollout",
        correct=(M2POClip(tau, low, high),),
        objective=Clip(None, None),
        aggregate=TokenMean(),
        sources=(
            *NORM,
            ("correct.tau", "the authors' code: 0.04"),
            ("correct.low", "the authors' code: floored at 0.3"),
            ("correct.high", "the authors' code: floored at 0.5"),
            ("objective.low", "the weight closes the gate"),
            ("objective.high", "the weight closes the gate"),
            ("objective.dual", "none in the authors' code"),
            _STEP,
        ),
        leaves_out="nothing of the gradient; the value of a token beyond the bounds, a constant, is 0 here.",
        parent="grpo",
        elsewhere=(
            ("the authors' code", "takes the sign of A from the first token, and the threshold of each micro-batch"),
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "not there; the authors' fork has it"),
        ),
    )


@register("recipe")
def m2po_mask(*, tau: float = 0.04, low: float = 0.2, high: float = 0.2) -> Recipe:
    """M2PO (the paper's text), arXiv:2510.01161.

    The tokens with the largest log-ratios to the sampler are dropped until the second moment of the others is below τ.
    """
    return Recipe(
        name="m2po_mask",
        papers=("Prosperity before Collapse (M2PO), arXiv:2510.01161",),
        advantage=GroupNorm(),
        correct=(M2POMask(tau),),
        objective=Clip(low, high),
        aggregate=TokenMean(),
        sources=(
            *NORM,
            ("correct.tau", "the authors' page: 0.04 everywhere"),
            ("correct.policy", "AReaL's port: π_old against the sampler"),
            ("objective.low", "AReaL's: 0.2"),
            ("objective.high", "AReaL's: 0.2"),
            ("objective.dual", "off"),
            ("aggregate.over", "AReaL's: the original tokens, not those that are kept"),
        ),
        leaves_out="AReaL's weight for the kept tokens: its decoupled loss multiplies by ρ (a TIS goes with the mask).",
        parent="m2po_clip",
        elsewhere=(("TRL 1.16", "not there"), ("verl 0.9.1", "not there")),
    )


@register("recipe")
def clip_cov(
    *,
    share: float = 2e-4,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    low: float | None = None,
    high: float = 1.0,
    seed: int = 0,
) -> Recipe:
    """Clip-Cov (The Entropy Mechanism), arXiv:2505.22617.

    A few tokens of high covariance between log-probability and advantage, drawn by lot, get no gradient, which keeps
    the entropy from collapsing.
    """
    return Recipe(
        name="clip_cov",
        papers=("The Entropy Mechanism of RL for Reasoning Language Models, arXiv:2505.22617",),
        advantage=GroupNorm(),
        correct=(ClipCov(share, cov_low, cov_high, low, high, seed),),
        objective=Clip(low, high),
        aggregate=TokenMean(),
        sources=(
            *NORM,
            ("correct.share", "the authors' code: 2e-4"),
            ("correct.cov_low", "the authors' code: 1"),
            ("correct.cov_high", "the authors' code: 5"),
            ("correct.low", "that of the objective"),
            ("correct.high", "that of the objective"),
            ("correct.seed", "ours"),
            ("objective.low", "the authors' scripts: 1, no bound" if low is None else "given"),
            ("objective.high", "the authors' scripts: 1, r <= 2"),
            ("objective.dual", "off"),
            _STEP,
        ),
        leaves_out="nothing of the objective.",
        parent="grpo",
        elsewhere=(
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "means and lots of each micro-batch, from torch's generator; the clip is 0.2 unless told"),
        ),
    )


@register("recipe")
def kl_cov(*, share: float = 2e-3, beta: float = 1.0) -> Recipe:
    """KL-Cov (The Entropy Mechanism), arXiv:2505.22617.

    The tokens of the highest covariance between log-probability and advantage pay β |log r|; nothing is clipped.
    """
    return Recipe(
        name="kl_cov",
        papers=("The Entropy Mechanism of RL for Reasoning Language Models, arXiv:2505.22617",),
        advantage=GroupNorm(),
        objective=Clip(None, None),
        aggregate=TokenMean(),
        extra=() if beta == 0 else (Term(KL("abs", to="old"), beta, (TopCovariance(share),)),),
        sources=(
            *NORM,
            ("objective.low", "the authors' code: no clip"),
            ("objective.high", "the authors' code: no clip"),
            ("objective.dual", "the authors' code: no clip"),
            _STEP,
            ("weigh.share", "the authors' script for 7B: 0.2% (32B: 0.02%)"),
            ("over.over", "that of the policy term"),
            ("extra.kind", "the authors' code: |log r|"),
            ("extra.to", "the authors' code: π_old"),
            ("extra.corrected", "no"),
            ("extra.scale", "the authors' scripts: 1 (verl's YAML: 0.1)"),
        ),
        leaves_out="nothing of the objective. Where log r is exactly 0 the penalty has no gradient, and a rounding of "
        "log π against log π_old is enough for all of it (give no old_logps for a first update).",
        parent="clip_cov",
        elsewhere=(
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "means and ranks of each micro-batch; `kl_cov_ratio` is 2e-4 unless told"),
        ),
    )


@register("recipe")
def stapo(
    *,
    tau_p: float = 0.002,
    q: float = 0.75,
    population: Literal["candidates", "tokens"] = "candidates",
    low: float = 0.2,
    high: float = 0.28,
) -> Recipe:
    """STAPO (Silencing Spurious Tokens), arXiv:2602.15620.

    Rewarded tokens that are improbable and of low entropy are silenced, and leave the denominator. The late version of
    the paper; `population="tokens", q=0.8` is how versions 1 and 2 read.
    """
    return Recipe(
        name="stapo",
        papers=("STAPO, arXiv:2602.15620",),
        advantage=GroupNorm(),
        correct=(S2TMask(tau_p, q, population),),
        objective=Clip(low, high),
        aggregate=TokenMean(over="kept"),
        sources=(
            *NORM,
            ("correct.tau_p", "all versions: 0.002"),
            ("correct.q", "the late version: 75%" if q == 0.75 else "given"),
            ("correct.population", "the late version" if population == "candidates" else "versions 1 and 2"),
            ("objective.low", "the paper: [0.8, 1.28]"),
            ("objective.high", "the paper: [0.8, 1.28]"),
            ("objective.dual", "off"),
            ("aggregate.over", "1 / Σ_it I_it: silenced tokens do not count"),
        ),
        leaves_out="nothing of the objective; dynamic sampling and KL are off in the paper as well.",
        parent="dapo",
        elsewhere=(("TRL 1.16", "not there"), ("verl 0.9.1", "not there; no code of the authors was found")),
    )


@register("recipe", example={"max_len": 20_480})
def high_entropy(
    *, max_len: int, cache: int | None = None, rho: float = 0.2, low: float = 0.2, high: float = 0.28
) -> Recipe:
    """High-entropy minority tokens (Beyond the 80/20 Rule), arXiv:2506.01939.

    DAPO on the fifth of the batch's tokens that has the highest entropy: where an answer forks.
    """
    length = Overlong(max_len, 0).max_len
    return Recipe(
        name="high_entropy",
        papers=("Beyond the 80/20 Rule, arXiv:2506.01939",),
        shape=(Overlong(max_len, length // 5 if cache is None else cache),),
        select=(HasSignal(),),
        advantage=GroupNorm(),
        correct=(TopEntropy(rho),),
        objective=Clip(low, high),
        aggregate=TokenMean(),
        sources=(
            *NORM,
            ("shape.max_len", "given (the paper's: 20,480)"),
            ("shape.cache", "DAPO's: 4,096 of 20,480, a fifth" if cache is None else "given"),
            ("select.tolerance", "DAPO's dynamic sampling"),
            ("correct.rho", "the paper: 20% of the tokens"),
            ("objective.low", "DAPO's"),
            ("objective.high", "DAPO's"),
            ("objective.dual", "off"),
            ("aggregate.over", "DAPO's 1 / Σ_i |o_i|, as TRL has it; the paper's equation was not read"),
        ),
        leaves_out="nothing known.",
        parent="dapo",
        elsewhere=(
            ("TRL 1.16", "`top_entropy_quantile`: the quantile of a micro-batch, gathered over the processes"),
            ("verl 0.9.1", "not there"),
        ),
    )


@register("recipe")
def vcpo(*, cap: float = 8.0, baseline: Literal["mean", "minimum_variance"] = "mean") -> Recipe:
    """VCPO (Stable Asynchrony), arXiv:2602.17616.

    REINFORCE with the truncated weight of whole answers for asynchronous data. The learning rate follows the effective
    sample size (`gk.ESSLearningRate`; `--set lr_control.base=1` in the trainer); the paper's baseline of least variance
    wants every answer's gradient norm, and is `baseline="minimum_variance"`.
    """
    if baseline not in ("mean", "minimum_variance"):
        expected = "'mean' or 'minimum_variance'"
        raise error("bad_parameter", owner="recipe('vcpo')", name="baseline", given=baseline, expected=expected)
    mean = baseline == "mean"
    return Recipe(
        name="vcpo",
        papers=("Stable Asynchrony: Variance-Controlled Off-Policy RL for LLMs, arXiv:2602.17616",),
        advantage=GroupNorm(ddof=0) if mean else MinimumVarianceBaseline(),
        correct=(TIS(cap, level="sequence", policy="current"),),
        objective=Reinforce(),
        aggregate=SequenceMean(over="rows"),
        sources=(
            *(
                (("advantage.ddof", "the authors' code: the group's standard deviation, ddof 0, `norm_by_std` on"),)
                if mean
                else ()
            ),
            ("advantage.eps", "TRL 1.16; the authors' was not read"),
            ("correct.cap", "the authors' scripts: 8"),
            ("correct.low", "none"),
            ("correct.level", "the authors' scripts: sequence"),
            ("correct.normalize", "no"),
            ("correct.policy", "the weight of the paper is π / π_rollout of the whole answer"),
            ("aggregate.over", "the authors' scripts: seq-mean-token-mean"),
        ),
        leaves_out="the scaling of the learning rate, which is the trainer's"
        + (
            "; the baseline of least variance (baseline='minimum_variance')."
            if mean
            else "; the paper's option of 1/T² in W."
        ),
        parent="rloo",
        elsewhere=(
            ("the authors' code", "its baseline weighs by w⁴ ‖s‖² below the cap, where the paper has w² ‖s‖²"),
            ("the authors' code", "an overflowing weight makes ESS NaN, and the learning rate its full size"),
            ("TRL 1.16", "not there"),
            ("verl 0.9.1", "not there; the authors' fork has it"),
        ),
    )
