"""OAPL's regression (Ritter et al., arXiv:2602.19362, eq. 3): the sequence's log-ratio is fitted to its advantage.

LOSS is the mean over sequences of (β Σ_t d_t − A)², d = log π − log π_sampler: the optimum of KL-regularised
reinforcement learning satisfies β log(π*/π_sampler) = R − V*. There is no importance weight and no clip, and the
policy of the ratio is the lagged sampler itself: a recipe says ratio="rollout".

Left out: the renewal of the sampler every L steps, which is the trainer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grpokit.parameters import check_number
from grpokit.stages import Objective, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class Regression(Objective):
    """(β D − A)², D = Σ_t log r_t over the sequence.

    Parameters
    ----------
    beta : float
        The paper's β_2, more than 0.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂LOSS/∂log π_j = Σ_t k_t 2 β (β D − A_t), the same for every token; −2 β A at D = 0. The optimum, D = A / β, is
    hundreds of nats away for the paper's β = 1e-3: in effect it is REINFORCE times 2 β.
    """

    beta: float = 1e-3
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})
    scope: ClassVar[Literal["sequence"]] = "sequence"
    equation: ClassVar[str] = "(β D − A)²"
    where: ClassVar[str] = "D = Σ_t log r_t"
    gradient: ClassVar[str] = "g = 2 β (β D − A), summed over the sequence's tokens"

    def __post_init__(self) -> None:
        check_number(self, "beta", more_than=0)

    @property
    def breaks(self) -> Mapping[str, str]:
        return {
            "zero_advantage": "A = 0 still pulls towards the sampler",
            "homogeneous": "the target scales with A, the log-ratio does not",
            "on_policy": "−2 β A instead of −A, and summed over the sequence's tokens",
            "bounded": "a squared residual",
        }

    def value(self, tokens: Tokens) -> Tensor:
        return (self.beta * tokens.total(tokens.log_ratio) - tokens.advantages) ** 2
