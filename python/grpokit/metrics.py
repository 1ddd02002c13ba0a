"""What a loss tells about its tokens: 0-d tensors on the device, which nothing here waits for.

Each is a sum over the tokens of a part over the live tokens of the whole batch, like the loss itself: those of the
parts of a split add up to the whole batch's mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .objective import Clip
from .objective.columns import LIMIT, ratio, where

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ._recipe import Recipe
    from .batch import TokenBatch
    from .equation import Coefficients


def measure(
    batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor], coefficients: Coefficients
) -> dict[str, Tensor]:
    """The metrics of a part, by TRL's names where TRL has one.

    Parameters
    ----------
    batch : TokenBatch
        The part.
    recipe : Recipe
        What its loss is made of.
    current : dict of (T,) tensors
        The current policy's columns.
    coefficients : Coefficients
        What the recipe made of them.

    Returns
    -------
    dict of 0-d tensors
        - ``clip_ratio/low_mean``, ``clip_ratio/high_mean``, ``clip_ratio/region_mean``: the share of tokens whose
          gate is closed, since the ratio (the sequence's, where that is clipped) is below or above 1, and both. Read
          from the policy term's own gradient: 0 although advantage and weight are not. A dual clip and the limit of
          `ratio` count.
        - ``ratio/mean``: of the recipe's ratio, π / π_old or with ``ratio="rollout"`` π / π_rollout.
          ``ratio/limited``: the share beyond e^±20.
        - ``entropy``: where it is known.
        - ``kl``: k3 to the reference policy, where the recipe reads it.
        - ``sampling/sampling_logp_difference/mean``: of abs(log π_old − log π_rollout), where the batch has both.
        - ``mismatch/weight_mean``, ``mismatch/dropped``: the weights of the recipe's corrections, and the share of
          tokens that they drop; ``mismatch/dropped/IcePop``, ...: that each drops.
    """
    tokens = batch.tokens(recipe, current)
    live = max(batch.whole.live_tokens, 1)
    out: dict[str, Tensor] = {}
    if "log_ratio" in recipe.objective.reads:
        d = tokens.log_ratio
        if "off_policy" in recipe.objective.reads:
            # A demonstrated token has no ratio; it counts as 1.
            d = where(tokens.off_policy != 0, 0.0, d)
        out["ratio/mean"] = ratio(d)
        out["ratio/limited"] = d.abs() > LIMIT
        if "advantages" in recipe.objective.reads:
            closed = (coefficients.policy == 0) & (tokens.advantages != 0) & (coefficients.weights != 0)
            side = recipe.objective.level(tokens) if isinstance(recipe.objective, Clip) else d
            out["clip_ratio/low_mean"], out["clip_ratio/high_mean"] = closed & (side < 0), closed & (side > 0)
            out["clip_ratio/region_mean"] = closed
    if "entropies" in current:
        out["entropy"] = tokens.entropies
    if recipe.reads("ref_logps"):
        x = tokens.logps - tokens.ref_logps
        out["kl"] = (-x).expm1() + x
    if "rollout_logps" in tokens:
        out["sampling/sampling_logp_difference/mean"] = (tokens.old_logps - tokens.rollout_logps).abs()
    if recipe.correct:
        out["mismatch/weight_mean"] = coefficients.weights
        out["mismatch/dropped"] = coefficients.weights == 0
        out |= {f"mismatch/dropped/{name}": gone for name, gone in coefficients.dropped.items()}
    return {name: x.to(tokens.logps.dtype).sum() / live for name, x in out.items()}
