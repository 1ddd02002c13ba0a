"""The policy's entropy at each token, H = −Σ_v π_v log π_v, as a term of the loss.

An entropy bonus is a term with a negative scale (Mnih et al., arXiv:1602.01783, §4). H is over the whole vocabulary
and at the temperature of the rollouts.

Left out: a coefficient that adapts during training, which is no part of a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpokit.stages import Objective, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class Entropy(Objective):
    """H; ∂LOSS_t/∂H = 1.

    `grpokit.loss.from_logits` computes the column ``entropies``; with `from_logps` it goes with the call.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"entropies"})
    equation: ClassVar[str] = "H"
    gradient: ClassVar[str] = "h = 1, ∂H/∂z_v = −p_v (log p_v + H) for the logits z"

    @property
    def breaks(self) -> Mapping[str, str]:
        return dict.fromkeys(
            ("zero_advantage", "homogeneous", "on_policy"), "it has no advantage: it spreads the policy"
        )

    def value(self, tokens: Tokens) -> Tensor:
        return tokens.entropies
