"""REINFORCE (Williams 1992): the score-function estimator, LOSS_t = −A log π.

Left out: the baseline, which is the advantage's business. There is no ratio and no trust region: it is exact for
rollouts of the current policy, and off-policy only with a correction whose weight is the ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpokit.stages import Objective, register

if TYPE_CHECKING:
    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class Reinforce(Objective):
    """−A log π; ∂LOSS_t/∂log π = −A. The value itself says nothing: it moves with log π.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> tokens = Tokens({"logps": torch.tensor([-1.0]), "advantages": torch.tensor([2.0])}, torch.tensor([1]))
    >>> Reinforce().value(tokens)
    tensor([2.])
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logps", "advantages"})
    equation: ClassVar[str] = "−A log π"
    gradient: ClassVar[str] = "g = −A"

    def value(self, tokens: Tokens) -> Tensor:
        return -tokens.advantages * tokens.logps
