"""Estimators of KL(π ‖ π_ref) as TRL 1.16.0 and verl 0.9.1 have them in the loss.

In and out as in `grpokit.objective.kl`, whose names for the estimators these share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from grpokit.objective.columns import LIMIT, clip, stop
from grpokit.objective.kl import BREAKS, estimate
from grpokit.parameters import check_choice, check_flag
from grpokit.stages import Objective, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.stages import Scope
    from grpokit.tokens import Tokens

MOST = 10.0


@register("objective")
@dataclass(frozen=True)
class CorrectedKL(Objective):
    """k3 times the ratio, which is not limited: TRL 1.16.0's KL term with `use_bias_correction_kl`, its default.

    Parameters
    ----------
    level : {"token", "sequence"}
        r of the token, or the geometric mean s of its sequence's, as `importance_sampling_level` says.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂LOSS_t/∂log π = r x of the token; at level "sequence" s (1 − e^−x_j) plus the mean of s k3 over the sequence.
    """

    level: Literal["token", "sequence"] = "token"
    reads: ClassVar[frozenset[str]] = frozenset({"logps", "ref_logps", "log_ratio"})

    def __post_init__(self) -> None:
        check_choice(self, "level", ("token", "sequence"))

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """The token's or its sequence's."""
        return self.level

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of either level."""
        return f"{'r' if self.level == 'token' else 's'} (e^−x + x − 1)"

    @property
    def where(self) -> str:  # type: ignore[override]
        """What x and s are."""
        return "x = log π − log π_ref" + ("" if self.level == "token" else ", s = exp(1/|o| Σ_t log r_t)")

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Of either level."""
        return "g = r x" if self.level == "token" else "g_j = s (1 − e^−x_j) + s (Σ_t (e^−x_t + x_t − 1)) / |o|"

    @property
    def breaks(self) -> Mapping[str, str]:
        return BREAKS

    def value(self, tokens: Tokens) -> Tensor:
        d = tokens.log_ratio if self.level == "token" else tokens.mean(tokens.log_ratio)
        return plain_k3(tokens.logps - tokens.ref_logps) * d.exp()


@register("objective")
@dataclass(frozen=True)
class LimitedKL(Objective):
    """verl 0.9.1's `kl_loss_type`: k3 up to 10, where it has no gradient; or any of them with the gradient of k2.

    Parameters
    ----------
    kind : {"k1", "k2", "k3", "abs"}
        The estimator, of x = log π − log π_ref; |x| counts as 20 at most in k3.
    straight : bool
        The value of the estimator and the gradient of k2 = x²/2: verl's names that end in "+".

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    k3 reaches 10 at x = −2.57, and at x = 11.
    """

    kind: Literal["k1", "k2", "k3", "abs"] = "k3"
    straight: bool = False
    reads: ClassVar[frozenset[str]] = frozenset({"logps", "ref_logps"})
    example: ClassVar[Mapping[str, Any]] = {"kind": "k3"}
    where: ClassVar[str] = "x = log π − log π_ref"

    def __post_init__(self) -> None:
        check_choice(self, "kind", ("k1", "k2", "k3", "abs"))
        check_flag(self, "straight")

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The estimator."""
        k = {"k1": "x", "k2": "x²/2", "k3": "min(e^−x + x − 1, 10)", "abs": "|x|"}[self.kind]
        return f"sg({k}) + x²/2 − sg(x²/2)" if self.straight else k

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Its own, or that of k2."""
        own = {"k1": "1", "k2": "x", "k3": "1 − e^−x up to 10, else 0", "abs": "sign(x)"}[self.kind]
        return "g = x" if self.straight else f"g = {own}"

    @property
    def breaks(self) -> Mapping[str, str]:
        return BREAKS

    def value(self, tokens: Tokens) -> Tensor:
        x = tokens.logps - tokens.ref_logps
        k = clip(plain_k3(clip(x, -LIMIT, LIMIT)), None, MOST) if self.kind == "k3" else estimate(self.kind, x)
        if not self.straight:
            return k
        through = x * x / 2
        return through - stop(through) + stop(k)


def plain_k3(x: Tensor) -> Tensor:
    """e^−x + x − 1 as both libraries write it: what the difference loses near 0 it loses here, and it is multiplied."""
    return (-x).exp() + x - 1
