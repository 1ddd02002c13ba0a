"""GSPO's clipped surrogate on the sequence's ratio (Zheng et al., arXiv:2507.18071, eqs. 5 to 7), and GSPO-token.

s = exp(1/|o| Σ_t d_t), d = log π − log π_old: the geometric mean of the tokens' ratios. LOSS is the mean over sequences
of −min(s A, clip(s, 1 − low, 1 + high) A). GSPO-token (eqs. 13, 14) has the same value, and each token's gradient goes
through its own log π: s_t = sg(s) · π_t / sg(π_t), so advantages may differ between the tokens of a sequence.

Left out: nothing of the objective. The paper's window, 3e-4 and 4e-4, is below the resolution of bf16: log-probs are
fp32 or wider here, and the bounds are compared with log s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grpokit import arithmetic
from grpokit.stages import register

from .clip import Clip
from .columns import stop

if TYPE_CHECKING:
    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class SequenceClip(Clip):
    """−min(s A, clip(s, 1 − low, 1 + high) A), s = exp(mean_t d): `Clip` on the sequence's geometric mean ratio.

    Notes
    -----
    ∂LOSS/∂log π_j = −(Σ_t k_t A_t) s / |o| inside the gate, k_t what token t's value is multiplied by: the same for
    every token of the sequence.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> d = torch.tensor([0.5, -0.5], requires_grad=True)
    >>> tokens = Tokens({"log_ratio": d, "advantages": torch.tensor([1.0, 1.0])}, torch.tensor([2]))
    >>> SequenceClip().value(tokens)
    tensor([-1., -1.], grad_fn=<MulBackward0>)
    """

    low: float | None = 3e-4
    high: float | None = 4e-4
    scope: ClassVar[Literal["sequence"]] = "sequence"
    symbol: ClassVar[str] = "s"
    where: ClassVar[str] = "s = exp(1/|o| Σ_t log r_t)"

    @property
    def facts(self) -> tuple[str, ...]:
        return arithmetic.sequence_clip(self.low, self.high)

    def level(self, tokens: Tokens) -> Tensor:
        return tokens.mean(tokens.log_ratio)


@register("objective")
@dataclass(frozen=True)
class SequenceClipToken(SequenceClip):
    """GSPO-token: the value of `SequenceClip`, the gradient through each token's own log π, −A_t s inside the gate."""

    where: ClassVar[str] = "s = sg(exp(1/|o| Σ_t log r_t)) · π_t / sg(π_t)"

    def level(self, tokens: Tokens) -> Tensor:
        d = tokens.log_ratio
        return stop(tokens.mean(d)) + (d - stop(d))
