"""Stage 5, correct: weights for the difference between the sampler and the trainer.

In: log π_old, recomputed by the trainer, and log π_rollout, returned by the sampler. Out: a weight per token, made of
ρ = π_old / π_rollout, without gradient; a weight of 0 drops the token. Without `old_logps` the rollouts are taken as
on-policy, and π_old is the current policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .errors import error
from .objective.columns import clip, ratio, where
from .parameters import check_number
from .stages import Correct, register

if TYPE_CHECKING:
    from torch import Tensor

    from .tokens import Tokens

_READS = frozenset({"old_logps", "rollout_logps"})


@register("correct")
@dataclass(frozen=True)
class TIS(Correct):
    """Truncated importance sampling, w = min(ρ, C).

    Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025.

    Parameters
    ----------
    cap : float
        C, more than 0. The authors' runs have 2 (0.5B model) and 8 (32B).

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.0]), "rollout_logps": torch.tensor([-1.0, -3.0])}
    >>> TIS(cap=2.0).weight(Tokens(columns, torch.tensor([2])))
    tensor([1., 2.])
    """

    cap: float = 2.0
    reads: ClassVar[frozenset[str]] = _READS
    equation: ClassVar[str] = "w = min(ρ, cap), ρ = π_old / π_rollout"

    def __post_init__(self) -> None:
        check_number(self, "cap", more_than=0)

    def weight(self, tokens: Tokens) -> Tensor:
        return clip(ratio(tokens.old_logps - tokens.rollout_logps), None, self.cap)


@register("correct")
@dataclass(frozen=True)
class IcePop(Correct):
    """w = ρ where low <= ρ <= high, else the token is dropped (Ring-1T, arXiv:2510.18855, eqs. 1-3).

    Parameters
    ----------
    low, high : float
        The paper's α and β, 0 < low < high; inclusive, compared with log ρ.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    Whether dropped tokens leave the denominator is the aggregate's `over`: "live" counts them, "kept" does not.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.0]), "rollout_logps": torch.tensor([-1.0, -3.0])}
    >>> IcePop().weight(Tokens(columns, torch.tensor([2])))
    tensor([1., 0.])
    """

    low: float = 0.5
    high: float = 5.0
    reads: ClassVar[frozenset[str]] = _READS
    equation: ClassVar[str] = "w = ρ where low ≤ ρ ≤ high, else 0, ρ = π_old / π_rollout"

    def __post_init__(self) -> None:
        check_number(self, "low", more_than=0)
        check_number(self, "high", more_than=0)
        if not self.low < self.high:
            raise error(
                "bad_parameter", owner="IcePop", name="high", given=self.high, expected=f"more than low={self.low}"
            )

    def weight(self, tokens: Tokens) -> Tensor:
        d = tokens.old_logps - tokens.rollout_logps
        # Written so that a NaN is outside neither bound and stays: it must be seen, not dropped.
        return where((d < math.log(self.low)) | (d > math.log(self.high)), 0.0, ratio(d))
