"""CISPO (MiniMax-M1, arXiv:2506.13585, eqs. 4, 5): REINFORCE whose importance weight is clipped, not the gradient.

LOSS_t = −sg(clip(r, 1 − low, 1 + high)) A log π, r = π / π_old. No token is ever dropped; the loss's value moves with
log π and says nothing.

Left out: the paper's general form (eqs. 6, 7) with a 0/1 mask of tokens, which is PPO's gate: that is `Clip`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from grpokit.parameters import check_number
from grpokit.stages import Objective, register

from .columns import clip, log_bounds, ratio, stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class ClippedWeight(Objective):
    """−sg(clip(r, 1 − low, 1 + high)) A log π.

    Parameters
    ----------
    high : float or None
        The weight is at most 1 + high, 0 or more; the paper gives no number. None is no bound.
    low : float or None
        The weight is at least 1 − low; 0 <= low < 1. None is no bound, which is what the paper runs.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂LOSS_t/∂log π = −A clip(r): not −A r clip(r), since r is a constant.
    """

    high: float | None
    low: float | None = None
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "logps", "advantages"})
    equation: ClassVar[str] = "−sg(clip(r, 1 − low, 1 + high)) A log π"
    gradient: ClassVar[str] = "g = −A clip(r, 1 − low, 1 + high)"
    example: ClassVar[Mapping[str, Any]] = {"high": 4.0}

    def __post_init__(self) -> None:
        check_number(self, "low", at_least=0, less_than=1, optional=True)
        check_number(self, "high", at_least=0, optional=True)

    @property
    def breaks(self) -> Mapping[str, str]:
        return {"bounded": "the weight is the ratio up to 1 + high"} if self.high is None or self.high > 4 else {}

    def value(self, tokens: Tokens) -> Tensor:
        weight = ratio(clip(tokens.log_ratio, *log_bounds(self.low, self.high)))
        return -stop(weight) * tokens.advantages * tokens.logps
