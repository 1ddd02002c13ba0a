"""The table of named recipes: one function an algorithm, with its paper.

The keyword arguments are the paper's symbols. What a paper does not state, or what belongs to a run, is required;
where the whole field shares a convention that a paper is silent about (ddof, eps, PPO's clip), the convention is the
default and `explain()` says whose it is.
"""

from __future__ import annotations

from ._recipe import Recipe, Term
from .advantage import GroupNorm, LeaveOneOut, MeanBaseline
from .aggregate import Constant, SequenceMean, SequenceSum, TokenMean
from .objective import KL, Clip, Reinforce
from .selection import HasSignal
from .shaping import Overlong
from .stages import register

_NORM = (
    ("advantage.ddof", "the convention of TRL 1.16 and verl 0.9.1; the paper does not say"),
    ("advantage.eps", "TRL 1.16 (verl 0.9.1: 1e-6); the paper does not say"),
)
_PPO_CLIP = (
    ("objective.low", "PPO's 0.2 (arXiv:1707.06347), the default of TRL and verl; the paper does not say"),
    ("objective.high", "as low"),
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
            *_NORM,
            *_PPO_CLIP,
            ("aggregate.over", "eq. 3: 1/G over all answers"),
            ("extra.kind", "eq. 4"),
            ("extra.scale", "§4.2: the KL coefficient is 0.04"),
        ),
        leaves_out="process supervision (§4.1.3) and the iterative renewal of the reward model (§4.1.4).",
    )


@register("recipe")
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
            *_PPO_CLIP,
            ("aggregate.length", "given: the generation budget, as in the authors' code (3,000 there)"),
            ("aggregate.over", "the authors' code: all answers of the batch"),
        ),
        leaves_out="nothing of the objective; the paper trains without a KL term.",
    )


@register("recipe")
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
            *_NORM,
            ("shape.max_len", "given (the paper's: 20,480)"),
            ("shape.cache", "§4.1: 4,096 of 20,480, a fifth" if cache is None else "given"),
            ("select.tolerance", "eq. 11: 0 < correct answers < G, that is max > min"),
            ("objective.low", "§4.1"),
            ("objective.high", "§4.1"),
            ("aggregate.over", "eq. 8: Σ_i |o_i|, over the whole optimizer step"),
        ),
        leaves_out="the refilling of the batch after dynamic sampling, which is the trainer's; overlong filtering, an "
        "alternative to the punishment (add NotTruncated() to select).",
    )


@register("recipe")
def rloo() -> Recipe:
    """RLOO (Back to basics), arXiv:2402.14740.

    REINFORCE on whole answers, each with the mean of the others as its baseline.
    """
    return Recipe(
        name="rloo",
        papers=("Back to Basics: Revisiting REINFORCE-Style Optimization, arXiv:2402.14740",),
        advantage=LeaveOneOut(),
        objective=Reinforce(),
        aggregate=SequenceSum(over="rows"),
        sources=(("aggregate.over", "an answer is one action: its tokens' log-probabilities add up"),),
        leaves_out="the KL penalty, which the paper takes off the reward: give rewards that hold it.",
    )
