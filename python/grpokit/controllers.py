"""What changes during training: the KL penalty's β, the entropy bonus's c, and the size of a stale step.

In: what a step measured. Out: the recipe with the coefficient of that moment, or a factor of the learning rate. A
recipe never changes by itself: the state is the controller's, and belongs into the trainer's checkpoint (`state_dict`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._recipe import Term
from .advantage import GlobalNorm
from .errors import error
from .objective import KL, Entropy
from .parameters import check_choice, check_number, whole
from .shaping import KLPenalty

if TYPE_CHECKING:
    from ._recipe import Recipe


class _Controller:
    """A coefficient and its state; NaN and infinity leave it as it was."""

    coefficient: float

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave.

        Raises
        ------
        InputError
            Something is missing, or is no finite number of 0 or more.
        """
        own = self.state_dict()
        for name in own:
            value = state.get(name) if isinstance(state, Mapping) else state
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                expected = f"a state_dict of {type(self).__name__}: finite numbers, 0 or more, for {', '.join(own)}"
                raise error("bad_parameter", owner=type(self).__name__, name=name, given=value, expected=expected)
        for name in own:
            setattr(self, name, float(state[name]))


class AdaptiveKL(_Controller):
    """β of the penalty towards the reference policy, steered to a target (after Ziegler et al., arXiv:1909.08593).

    β ← β (1 + clip(KL / target − 1, −0.2, 0.2) · min(n / horizon, 1)) after n rollouts, so β stays above 0. n / horizon
    is how the authors' code scales the step; the paper's §2.2 has a constant, 0.1.

    Parameters
    ----------
    beta : float
        Where it begins, more than 0.
    target : float
        The KL per token to hold, in nats, more than 0. (The paper's 6 nats are per answer.)
    horizon : float
        In rollouts: how slowly β moves; 10,000 in the authors' code.

    Examples
    --------
    >>> control = AdaptiveKL(0.1, target=0.05, horizon=100)
    >>> control.update(kl=0.5, rollouts=50)
    >>> round(control.coefficient, 4)
    0.11
    """

    def __init__(self, beta: float, target: float, horizon: float = 10_000.0) -> None:
        self.beta, self.target, self.horizon = beta, target, horizon
        for name in ("beta", "target", "horizon"):
            check_number(self, name, more_than=0)
        self.coefficient = self.beta

    def update(self, kl: float, rollouts: int) -> None:
        """Takes what a step measured: the mean KL per token, over that many rollouts (0 or more)."""
        whole("AdaptiveKL", "rollouts", rollouts, at_least=0, at_most=2**53)
        if math.isfinite(kl):
            wrong = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + wrong * min(rollouts / self.horizon, 1.0)

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with this β wherever π_ref holds the policy: in KL terms of the loss, or in the reward.

        Raises
        ------
        InputError
            `nothing_to_control`: it has no such penalty.
        """
        changes: dict[str, Any] = {}
        if any(map(_is_penalty, recipe.extra)):
            changes["extra"] = tuple(
                dataclasses.replace(term, scale=self.coefficient) if _is_penalty(term) else term
                for term in recipe.extra
            )
        if any(isinstance(stage, KLPenalty) for stage in recipe.shape):
            changes["shape"] = tuple(
                dataclasses.replace(stage, beta=self.coefficient) if isinstance(stage, KLPenalty) else stage
                for stage in recipe.shape
            )
        if isinstance(recipe.advantage, GlobalNorm) and recipe.advantage.beta:
            changes["advantage"] = dataclasses.replace(recipe.advantage, beta=self.coefficient)
        if not changes:
            raise error("nothing_to_control", recipe=recipe.name, what="KL penalty", example="Term(KL(), 0.04)")
        steered = {"extra": "extra.scale", "shape": "shape.beta", "advantage": "advantage.beta"}
        by = {steered[name]: "steered by AdaptiveKL" for name in changes}
        return dataclasses.replace(recipe, sources=tuple((dict(recipe.sources) | by).items()), **changes)


def _is_penalty(term: Term) -> bool:
    return isinstance(term.objective, KL) and term.objective.to == "ref"


def kl_coefficient(recipe: Recipe) -> float | None:
    """The coefficient of a recipe's penalty towards the reference policy, the first if there are several."""
    found = [term.scale for term in recipe.extra if _is_penalty(term)]
    found += [stage.beta for stage in recipe.shape if isinstance(stage, KLPenalty)]
    found += [recipe.advantage.beta] if isinstance(recipe.advantage, GlobalNorm) and recipe.advantage.beta else []
    return found[0] if found else None


class AdaptiveEntropy(_Controller):
    """c of the entropy bonus, raised while the entropy is below a target (Skywork-OR1, arXiv:2505.22312).

    c ← c + delta where H < target, c − delta where H > target, within [low, high]; the bonus counts only while
    H <= target.

    Parameters
    ----------
    target : float
        The entropy per token to hold, in nats, more than 0; the paper's and TRL's is 0.2.
    delta : float
        The step; 0.005 there.
    low, high : float
        The bounds of c; 0 and 1 in TRL.

    Examples
    --------
    >>> control = AdaptiveEntropy(0.2)
    >>> for entropy in (0.1, 0.1, 0.3):
    ...     control.update(entropy)
    ...     print(round(control.raised, 3), round(control.coefficient, 3))
    0.005 0.005
    0.01 0.01
    0.005 0.0
    """

    def __init__(self, target: float, delta: float = 0.005, low: float = 0.0, high: float = 1.0) -> None:
        self.target, self.delta, self.low, self.high = target, delta, low, high
        check_number(self, "target", more_than=0)
        for name in ("delta", "low"):
            check_number(self, name, at_least=0)
        check_number(self, "high", at_least=self.low)
        self.raised = self.coefficient = low

    def update(self, entropy: float) -> None:
        """Takes what a step measured: the mean entropy per token."""
        if math.isfinite(entropy):
            step = self.delta if entropy < self.target else -self.delta if entropy > self.target else 0.0
            self.raised = min(max(self.raised + step, self.low), self.high)
            self.coefficient = self.raised if entropy <= self.target else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"coefficient": self.coefficient, "raised": self.raised}

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with this bonus, in place of one that it has; its denominator is the policy term's."""
        others = tuple(term for term in recipe.extra if not isinstance(term.objective, Entropy))
        bonus = Term(Entropy(), -self.coefficient, (), recipe.aggregate)
        return dataclasses.replace(recipe, extra=(*others, bonus) if self.coefficient else others)


def effective_sample_size(log_weights: Any) -> float:
    """The share of samples that weighted ones are worth: (Σ w)² / (B Σ w²), between 1/B and 1.

    Parameters
    ----------
    log_weights : (B,) float
        log w, of any size; only differences matter. A weight that is +inf or no number counts as the only one.

    Returns
    -------
    float
        1 for no sample at all.

    Raises
    ------
    InputError, InputTypeError
        `token_shape`, `token_type`: no column of numbers, None among these, which the losses return where the batch has
        no `rollout_logps`.

    Notes
    -----
    2 LSE(log w) − LSE(2 log w) − log B, so that nothing overflows (arXiv:2602.17616, eq. 4).

    Examples
    --------
    >>> effective_sample_size([0.0, 0.0])
    1.0
    >>> [round(effective_sample_size([1000.0, 1000.0 + d]), 3) for d in (0.0, 1.0, 9.0)]
    [1.0, 0.824, 0.5]
    """
    import numpy as np

    try:
        x = np.asarray(log_weights.tolist() if hasattr(log_weights, "tolist") else log_weights)
    except ValueError:
        x = np.array("lists of different lengths")
    if x.dtype.kind not in "fiu" and x.size:
        expected = "numbers, one a sequence (None is what the losses return without rollout_logps)"
        raise error("token_type", name="log_weights", given=log_weights, expected=expected)
    if x.ndim != 1:
        raise error("token_shape", name="log_weights", given=x.shape, expected="(B,), one a sequence")
    if not len(x) or not (x > -math.inf).any():
        # No sample, or not one that weighs anything.
        return 1.0 if not len(x) else 1 / len(x)
    if not (x < math.inf).all():
        return 1 / len(x)
    w = np.exp(x - x.max())
    return float(w.sum() ** 2 / (len(x) * (w * w).sum()))


class ESSLearningRate(_Controller):
    """The learning rate of an update, scaled by what its minibatch is worth: VCPO (arXiv:2602.17616).

    η ← η √min(1, ESS / base), ESS of the weights π / π_rollout of whole answers in the minibatch; the scheduler's rate
    comes back after the update. A gradient that explodes by a few heavy answers meets the smallest step, and weights
    that overflow do: the released code's full step there, min(1, NaN) = 1, is not reproduced.

    Parameters
    ----------
    base : float
        The ESS, as a share of the minibatch, from which on the step is full; 1 in the paper. More than 0.
    scale : {"sqrt", "linear"}
        With or without the root; "sqrt" in the paper.

    Attributes
    ----------
    coefficient : float
        The factor of the last update: the metric ``lr_scale``.

    Examples
    --------
    >>> control = ESSLearningRate()
    >>> control.update([0.0, 0.0, 0.0, 0.0])
    1.0
    >>> control.update([0.0, 0.0, 0.0, 800.0])
    0.5
    """

    def __init__(self, base: float = 1.0, scale: str = "sqrt") -> None:
        self.base, self.scale = base, scale
        check_number(self, "base", more_than=0)
        check_choice(self, "scale", ("sqrt", "linear"))
        self.coefficient = 1.0

    def update(self, log_weights: Any) -> float:
        """Takes Σ_t log π / π_rollout of each answer of the minibatch, of all ranks; the factor of this update.

        Parameters
        ----------
        log_weights : (B,) float
            As `loss.from_logits` returns them: `out.log_weights`.
        """
        share = min(1.0, effective_sample_size(log_weights) / self.base)
        self.coefficient = math.sqrt(share) if self.scale == "sqrt" else share
        return self.coefficient
