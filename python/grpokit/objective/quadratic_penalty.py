"""SPO (Xie et al., Simple Policy Optimization, arXiv:2401.16025): a quadratic penalty in place of PPO's clip.

LOSS_t = −[r A − |A| (r − 1)² / (2 ε)], r = π / π_old: as a function of r largest at 1 ± ε on the side of A's sign, and
never flat, so that a ratio beyond the bound is drawn back where the clip lets it go.

Left out: the value and entropy terms of the paper's actor-critic runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpokit.parameters import check_number
from grpokit.stages import Objective, register

from .columns import ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class QuadraticPenalty(Objective):
    """−[r A − |A| (r − 1)² / (2 ε)]; `epsilon` is more than 0.

    Notes
    -----
    ∂LOSS_t/∂log π = −r (A − |A| (r − 1) / ε): 0 at r = 1 + ε (A > 0) and at r = 1 − ε (A < 0).
    """

    epsilon: float = 0.2
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})
    equation: ClassVar[str] = "−[r A − |A| (r − 1)² / (2 ε)]"
    gradient: ClassVar[str] = "g = −r (A − |A| (r − 1) / ε)"

    def __post_init__(self) -> None:
        check_number(self, "epsilon", more_than=0)

    @property
    def breaks(self) -> Mapping[str, str]:
        return {"bounded": "the further from 1, the harder the pull back: it grows with r²"}

    def value(self, tokens: Tokens) -> Tensor:
        r, A = ratio(tokens.log_ratio), tokens.advantages
        return -(r * A - A.abs() * (r - 1) ** 2 / (2 * self.epsilon))
