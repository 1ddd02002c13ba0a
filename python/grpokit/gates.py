"""A recipe's coefficients and metrics by closed forms: one Triton kernel in place of eager torch and autograd.

In: a recipe, a `TokenBatch` and the current columns, in fp32 on a GPU. Out: what `equation.coefficients` and
`metrics.measure` make of them, to fp32 rounding. `lower` says whether a recipe has a closed form here, and `run`
launches it: once a part, and nothing waits for the device. What does not change with the policy, weights of constants
and denominators, is settled in eager torch once a step, as it always is.

What stays in eager torch altogether:

- objectives that are not in `GATES`: `Divergence`, those of `grpokit.compat` and of other packages; extra terms that
  are neither `KL` nor `Entropy`;
- weights of the current policy that are not in `RULES` (`KPop`, `TrustRegionMask`, `DPPOMask` by KL, other packages'),
  those of batch scope (`ClipCov`, `TopCovariance`, `M2POClip`, `S2TMask`, `TopEntropy`, `TIS` normalised), all with
  ``over="kept"``, and in extra terms. Weights that read constants alone are settled, whatever they are;
- `OPSM`, whose weight differs within a sequence by the sign of A, under a gate on whole sequences: a third sweep;
- current columns that are not fp32, or others than log-probs and entropies, and two corrections of one name.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .drift import OPSM, DPPOMask
from .equation import settle
from .mismatch import MIS, TIS, IcePop
from .objective import (
    KL,
    Clip,
    ClippedWeight,
    Entropy,
    GammaWeight,
    GaussianGate,
    GeometricClip,
    MixedPolicy,
    QuadraticPenalty,
    Regression,
    Reinforce,
    SequenceClip,
    SequenceClipToken,
    SoftGate,
)
from .objective.columns import log_bounds
from .rejection import WTRS, GeometricMask, SequenceMask, Veto

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from ._recipe import Recipe, Term
    from .batch import TokenBatch
    from .stages import Correct

# Tokens that a program works on at a time, and what works on them: four a thread, so that nothing spills.
BLOCK, WARPS = 1024, 8


def _bounds(low: float | None, high: float | None) -> tuple[float, float]:
    """None as the kernel has it."""
    return -math.inf if low is None else low, math.inf if high is None else high


def _logs(low: float | None, high: float | None) -> tuple[float, float]:
    """Bounds of a ratio as those of its logarithm."""
    return _bounds(*(None if x is None else math.log(x) for x in (low, high)))


def _clip(o: Clip) -> tuple[float, ...]:
    return *_bounds(*log_bounds(o.low, o.high)), _logs(None, o.dual)[1]


# An objective's numbers, in the order in which `kernels.gates` reads them.
GATES: dict[type, Callable[[Any], tuple[float, ...]]] = {
    Reinforce: lambda _: (),
    Clip: _clip,
    ClippedWeight: lambda o: _bounds(*log_bounds(o.low, o.high)),
    SoftGate: lambda o: (o.positive, o.negative),
    GaussianGate: lambda o: (o.sigma, o.alpha, o.beta, math.log(o.sigma_high / o.sigma), o.adv_low, o.adv_high),
    QuadraticPenalty: lambda o: (o.epsilon,),
    MixedPolicy: lambda o: (*_bounds(*log_bounds(o.low, o.high)), math.log(o.gamma)),
    SequenceClip: _clip,
    SequenceClipToken: _clip,
    GeometricClip: lambda o: _bounds(None if o.low is None else -o.low, o.high),
    GammaWeight: lambda o: (o.k_pos, o.lambda_pos, o.k_neg, o.lambda_neg),
    Regression: lambda o: (o.beta,),
}
ON_SEQUENCES = (SequenceClip, SequenceClipToken, GeometricClip, GammaWeight, Regression)
# A correction's rule, what it looks at, whose policy the current one is compared with; and its two numbers.
Rule = tuple[str, str, str]
RULES: dict[type, Callable[[Any], tuple[Rule, tuple[float, float]] | None]] = {
    TIS: lambda c: (("truncate", c.level, "rollout"), _bounds(c.low, c.cap)),
    IcePop: lambda c: (("bound", "token", "rollout"), _logs(c.low, c.high)),
    MIS: lambda c: (("bound", c.level, "rollout"), _logs(c.low, c.high)),
    **dict.fromkeys(
        (SequenceMask, GeometricMask, Veto, WTRS),
        lambda c: (("mask", c.level, "rollout"), _logs(c.low, c.high)),
    ),
    OPSM: lambda c: (("OPSM", "drift", c.against), (-math.inf, c.delta)),
    DPPOMask: lambda c: (("DPPOMask", "token", c.against), (c.low, c.high)) if c.kind == "tv" else None,
}


@dataclass(frozen=True)
class Plan:
    """What the kernel computes, for one recipe and the columns that there are.

    Attributes
    ----------
    numbers, limits, scales : tuple of float
        Of the objective, of the rules, two each, and of the extra terms: arguments.
    columns : tuple of (str or None)
        The constants that are read: log π_old, log π_rollout, A, `off_policy`, log π_ref.
    metrics : tuple of str
        Their names, in the kernel's order.
    formulas : dict
        What is constexpr; of rules and extra terms three words each, one after another: Triton 3.6 nests no words.
    """

    numbers: tuple[float, ...]
    limits: tuple[float, ...]
    scales: tuple[float, ...]
    columns: tuple[str | None, ...]
    metrics: tuple[str, ...]
    formulas: Mapping[str, Any]


def lower(batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor]) -> Plan | str:
    """The plan, or why the recipe stays in eager torch: a reason to print, or an error that eager torch will tell.

    Parameters
    ----------
    batch : TokenBatch
        The batch, or a part of it.
    recipe : Recipe
        Its stages 5 to 7.
    current : dict of (T,) tensors
        As in `equation.coefficients`.

    Returns
    -------
    Plan or str

    Examples
    --------
    >>> import grpokit as gk
    >>> batch = gk.TokenBatch(targets=torch.tensor([[4, 2]]), advantages=torch.tensor([1.0]))
    >>> current = {"logps": torch.tensor([-1.0, -2.0])}
    >>> lower(batch, gk.recipe("cispo", high=4.0), current).metrics
    ('ratio/mean', 'ratio/limited', 'clip_ratio/low_mean', 'clip_ratio/high_mean', 'clip_ratio/region_mean')
    >>> lower(batch, gk.recipe("lad", f="js", eta=1.0), current)
    'Divergence has no closed form here'
    """
    for name, x in current.items():
        if name not in ("logps", "entropies"):
            return f"the column {name!r} has a gradient"
        if x.dtype != torch.float32:
            return f"{name} are {x.dtype}"
    return _lower(recipe, frozenset(batch.columns), "entropies" in current)


@functools.lru_cache
def _lower(recipe: Recipe, constants: frozenset[str], entropies: bool) -> Plan | str:
    objective, policy = recipe.objective, recipe.terms[0]
    if type(objective) not in GATES:
        return f"{type(objective).__name__} has no closed form here"
    known = constants | {"logps", "old_logps", "weight"} | ({"entropies"} if entropies else set())
    for stage in (stage for term in recipe.terms for stage in (term.objective, *term.weigh)):
        base = {"log_ratio": f"{recipe.ratio}_logps"}
        missing = {base.get(column, column) for column in stage.reads} - known
        if missing:
            return f"{type(stage).__name__} reads {', '.join(sorted(missing))}"

    sequence = isinstance(objective, ON_SEQUENCES)
    late = [stage for stage in policy.weigh if stage.reads - constants]
    rules = [_rule(stage) for stage in late]
    for stage, rule in zip(late, rules, strict=True):
        if rule is None:
            return f"{type(stage).__name__} of the current policy has no closed form here"
        if policy.aggregate.over == "kept":
            return f"the denominator counts what {type(stage).__name__} keeps of the current policy"
        if sequence and rule[0][1] == "drift":
            return f"{type(stage).__name__} parts the tokens of a sequence that {type(objective).__name__} is of"
    early = [stage for stage in policy.weigh if stage not in late]
    names = [type(stage).__name__ for stage in (*early, *late)]
    if len(set(names)) < len(names):
        return "two corrections of one name"

    extra = [_extra(term, constants) for term in recipe.extra]
    for term, found in zip(recipe.extra, extra, strict=True):
        if found is None:
            return f"the extra term {type(term.objective).__name__} has no closed form here"

    ref = "ref_logps" if recipe.reads("ref_logps") else None
    off = "off_policy" if "off_policy" in objective.reads else None
    columns = tuple(x if x in constants else None for x in ("old_logps", "rollout_logps", "advantages", off, ref))
    metrics = _metrics(recipe, names, entropies=entropies, rollout=columns[1] is not None)
    formulas = {
        "GATE": type(objective).__name__,
        "BASE": recipe.ratio,
        "WEIGHED": bool(policy.weigh),
        "IN_RATIO": policy.dropped == "in_ratio",
        "RULES": tuple(word for rule in rules if rule for word in rule[0]),
        "TERMS": tuple(word for found in extra if found for word in found),
        "SEQUENCE": sequence,
        "TWICE": sequence or any(rule[0][1] != "token" for rule in rules if rule),
        "METRICS": len(metrics),
    }
    limits = tuple(float(x) for rule in rules if rule for x in rule[1])
    numbers = tuple(map(float, GATES[type(objective)](objective)))
    return Plan(numbers, limits, tuple(float(term.scale) for term in recipe.extra), columns, metrics, formulas)


def _rule(stage: Correct) -> tuple[Rule, tuple[float, float]] | None:
    return None if stage.scope == "batch" or type(stage) not in RULES else RULES[type(stage)](stage)


def _extra(term: Term, constants: frozenset[str]) -> tuple[str, str, bool] | None:
    o = term.objective
    if any(stage.reads - constants for stage in term.weigh):
        return None
    if type(o) is KL:
        return o.kind, o.to, o.corrected
    return ("Entropy", "", False) if type(o) is Entropy else None


def _metrics(recipe: Recipe, corrections: list[str], *, entropies: bool, rollout: bool) -> tuple[str, ...]:
    """The names that `metrics.measure` would give, in its order."""
    names = []
    if "log_ratio" in recipe.objective.reads:
        names += ["ratio/mean", "ratio/limited"]
        names += ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"]
    names += ["entropy"] * entropies + ["kl"] * recipe.reads("ref_logps")
    names += ["sampling/sampling_logp_difference/mean"] * rollout
    if corrections:
        names += ["mismatch/weight_mean", "mismatch/dropped", *(f"mismatch/dropped/{name}" for name in corrections)]
    return tuple(names)


def run(
    plan: Plan, batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Each token's loss, its derivatives by the current columns, and the metrics.

    Parameters
    ----------
    plan : Plan
        What `lower` made of the rest.
    batch, recipe, current
        As in `equation.coefficients`; on a GPU, or anywhere in Triton's interpreter.

    Returns
    -------
    loss : (T,)
        Each token's contribution to LOSS.
    gradients : dict of (T,)
        ∂LOSS/∂column for each current column.
    metrics : dict of 0-d tensors
        Those of `metrics.measure`.

    Raises
    ------
    StateError
        `not_synchronized`.
    """
    from .kernels.coefficients import coefficients

    arguments, loss, gradients, partials = launch(plan, batch, recipe, current)
    if len(partials):
        with torch.cuda.device_of(loss):  # type: ignore[no-untyped-call]
            coefficients[(len(partials),)](*arguments, **plan.formulas, BLOCK=BLOCK, num_warps=WARPS)
    means = partials.sum(0) / max(batch.whole.live_tokens, 1)
    return loss, gradients, dict(zip(plan.metrics, means.unbind(), strict=True))


def launch(
    plan: Plan, batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor]
) -> tuple[tuple[Any, ...], Tensor, dict[str, Tensor], Tensor]:
    """The kernel's arguments, and what it writes: loss, gradients, and the metrics' sums per sequence."""
    whole, policy = batch.whole, settle(batch.whole, recipe.terms[0])
    constants, ref, weights, shares, scales, extra_weights, numbers = step_arguments(plan, batch, recipe)
    now = {name: x.contiguous() for name, x in current.items()}
    loss, gradients = torch.empty_like(now["logps"]), {name: torch.empty_like(x) for name, x in now.items()}
    partials = loss.new_empty(batch.rows.stop - batch.rows.start, len(plan.metrics))
    arguments = (
        now["logps"],
        now.get("entropies"),
        constants,
        ref,
        weights,
        tuple(policy.dropped.values()),
        shares,
        scales,
        extra_weights,
        whole.live.offsets[batch.rows.start : batch.rows.stop + 1],
        numbers,
        plan.limits,
        loss,
        gradients["logps"],
        gradients.get("entropies"),
        partials,
    )
    return arguments, loss, gradients, partials


def step_arguments(plan: Plan, batch: TokenBatch, recipe: Recipe) -> tuple[Any, ...]:
    """What the kernels are given of the whole step: constants, log π_ref, weights, shares, scales, weights, numbers."""
    whole = batch.whole
    policy, *extra = [settle(whole, term) for term in recipe.terms]
    *constants, ref = [whole.columns[name].contiguous() if name else None for name in plan.columns]
    return (
        tuple(constants),
        ref,
        policy.weights if policy.dropped else None,
        (policy.share, *(found.share for found in extra)),
        plan.scales,
        tuple(found.weights if found.dropped else None for found in extra),
        plan.numbers,
    )
