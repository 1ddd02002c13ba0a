"""Estimators of KL(π ‖ π_ref) per token (Schulman, "Approximating KL divergence", 2020), as a term of the loss.

With x = log π − log π_ref: k1 = x, k2 = x²/2, k3 = e^−x + x − 1. k3 is GRPO's (arXiv:2402.03300, eq. 4).

Which is unbiased, on rollouts of π (`tests/objective/test_kl.py` proves each line by enumeration):

======= =============== ========================================== ==============================================
        value           gradient of the loss term                  as a penalty of the reward (`KLPenalty`)
======= =============== ========================================== ==============================================
k1      KL(π ‖ π_ref)   0: no regularisation at all                ∇KL(π ‖ π_ref)
k2      not the KL      ∇KL(π ‖ π_ref) in the token's own state    ∇E[Σ x²/2], less what the loss term has
k3      KL(π ‖ π_ref)   ∇KL(π_ref ‖ π) in the token's own state    ∇KL(π ‖ π_ref), less what the loss term has
======= =============== ========================================== ==============================================

A loss term sees each token's state as given: what a token does to the states behind it is only in the reward's return.
On rollouts of π_old, `corrected` weighs the estimator by the ratio r, which is not a constant: then k1 and k3 have both
value and gradient of KL(π ‖ π_ref) in the token's state (arXiv:2512.02556, and arXiv:2510.01555 on k3's bias).

Left out: a bound on the estimators; verl's keep k3 within ±10, where its gradient is then 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from grpokit.parameters import check_choice, check_flag
from grpokit.stages import Objective, register

from .columns import ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


REASON = "it has no advantage: it pulls towards another policy, whatever the reward"
BREAKS = dict.fromkeys(("zero_advantage", "homogeneous", "on_policy", "bounded"), REASON)


@register("objective")
@dataclass(frozen=True)
class KL(Objective):
    """k1 = x, k2 = x²/2, k3 = e^−x + x − 1 or |x|, with x = log π − log π_to.

    Parameters
    ----------
    kind : {"k1", "k2", "k3", "abs"}
        The estimator; |x| estimates no KL and is what KL-Cov penalises.
    to : {"ref", "old", "rollout"}
        The policy that π is held to.
    corrected : bool
        Weighs the estimator by r = π / π_old, through which the gradient goes as well.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    The derivatives by log π are 1, x, 1 − e^−x and sign(x), which is 0 at 0; corrected, r times the sum of derivative
    and value. k3 has no limit: it
    grows as e^−x where π is far below π_ref, and overflows in fp32 at x < −88, which shows.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> tokens = Tokens({"logps": torch.tensor([-1.0]), "ref_logps": torch.tensor([-2.0])}, torch.tensor([1]))
    >>> [round(float(KL(kind).value(tokens)), 4) for kind in ("k1", "k2", "k3")]
    [1.0, 0.5, 0.3679]
    """

    kind: Literal["k1", "k2", "k3", "abs"] = "k3"
    to: Literal["ref", "old", "rollout"] = "ref"
    corrected: bool = False

    def __post_init__(self) -> None:
        check_choice(self, "kind", ("k1", "k2", "k3", "abs"))
        check_choice(self, "to", ("ref", "old", "rollout"))
        check_flag(self, "corrected")

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The estimator."""
        k = {"k1": "x", "k2": "x²/2", "k3": "(e^−x + x − 1)", "abs": "|x|"}[self.kind]
        return f"r {k}" if self.corrected else k

    @property
    def where(self) -> str:  # type: ignore[override]
        """What x is."""
        return f"x = log π − log π_{self.to}"

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Its derivative."""
        plain, corrected = {
            "k1": ("1", "1 + x"),
            "k2": ("x", "x + x²/2"),
            "k3": ("1 − e^−x", "x"),
            "abs": ("sign(x)", "sign(x) + |x|"),
        }[self.kind]
        return f"g = r ({corrected})" if self.corrected else f"g = {plain}"

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"logps", f"{self.to}_logps"} | ({"log_ratio"} if self.corrected else set()))

    @property
    def breaks(self) -> Mapping[str, str]:
        return BREAKS

    def value(self, tokens: Tokens) -> Tensor:
        other: Tensor = getattr(tokens, f"{self.to}_logps")
        k = estimate(self.kind, tokens.logps - other)
        return ratio(tokens.log_ratio) * k if self.corrected else k


def estimate(kind: str, x: Tensor) -> Tensor:
    """The estimator of that name at x = log π − log π_to."""
    if kind == "k1":
        return x
    if kind == "k2":
        return x * x / 2
    if kind == "abs":
        return x.abs()
    # expm1, since exp(−x) − 1 + x loses what is left of x²/2 near 0.
    return (-x).expm1() + x
