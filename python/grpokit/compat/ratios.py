"""Objectives of the papers with another library's idea of the ratio: no limit of log r, another level, less care.

In and out as in `grpokit.objective`. There |log r| is limited to 20 in the ratio; TRL 1.16.0 never limits it, verl
0.9.1 limits it in some losses and in others not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grpokit.objective import Clip, GeometricClip, SequenceClip, SoftGate
from grpokit.objective.columns import ratio, where
from grpokit.parameters import check_choice
from grpokit.stages import register

if TYPE_CHECKING:
    from torch import Tensor

    from grpokit.stages import Scope
    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class UnlimitedClip(Clip):
    """`Clip` without a limit of log r: TRL 1.16.0, and verl's `clip_cov` and `kl_cov`. It overflows in fp32 at 88."""

    limit: ClassVar[float] = math.inf
    where: ClassVar[str] = "log r is not limited"


@register("objective")
@dataclass(frozen=True)
class UnlimitedSequenceClip(SequenceClip):
    """`SequenceClip` without a limit of log s: TRL 1.16.0's `importance_sampling_level='sequence'`."""

    limit: ClassVar[float] = math.inf
    where: ClassVar[str] = "s = exp(1/|o| Σ_t log r_t), which is not limited"


@register("objective")
@dataclass(frozen=True)
class UnlimitedGeometricClip(GeometricClip):
    """`GeometricClip` without a limit of log S: verl 0.9.1's `geo_mean`."""

    limit: ClassVar[float] = math.inf


@register("objective")
@dataclass(frozen=True)
class PlainSoftGate(SoftGate):
    """`SoftGate` in the arithmetic of TRL 1.16.0 and verl 0.9.1, of the token's ratio or the sequence's.

    Parameters
    ----------
    positive, negative : float
        The temperatures τ_pos and τ_neg; more than 0.
    level : {"token", "sequence"}
        r of the token, or the geometric mean s of its sequence's.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    The slope is σ (1 − σ), whose digits are gone in fp32 where σ is nearly 1: beyond r = 1 + 17/τ it is 0, and before
    that off by up to 4e-6 |A|. `SoftGate` keeps them.
    """

    level: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "level", ("token", "sequence"))

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """The token's or its sequence's."""
        return self.level

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of either level."""
        return f"−A (4/τ) σ(τ ({'r' if self.level == 'token' else 's'} − 1))"

    @property
    def where(self) -> str:  # type: ignore[override]
        """What τ and s are."""
        s = "" if self.level == "token" else "s = exp(1/|o| Σ_t log r_t), "
        return f"{s}τ = positive if A > 0, else negative"

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Of either level."""
        if self.level == "token":
            return "g = −A r sech²(τ (r − 1) / 2)"
        return "g_j = −(Σ_t A_t) s sech²(τ (s − 1) / 2) / |o|"

    def value(self, tokens: Tokens) -> Tensor:
        import torch

        d, A = tokens.log_ratio if self.level == "token" else tokens.mean(tokens.log_ratio), tokens.advantages
        tau = where(A > 0, self.positive, self.negative).to(d.dtype)
        return -A * 4 / tau * torch.sigmoid(tau * (ratio(d) - 1))
