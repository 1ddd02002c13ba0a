"""Estimators of KL(π ‖ π_ref) per token (Schulman, "Approximating KL divergence", 2020), as a term of the loss.

With x = log π − log π_ref: k1 = x, k2 = x²/2, k3 = e^−x + x − 1. k3 is GRPO's (arXiv:2402.03300, eq. 4).

As a loss they are not what their names promise: on rollouts of π, k1's gradient has mean 0, k2's is the gradient of
KL(π ‖ π_ref), and k3's is that of KL(π_ref ‖ π) (arXiv:2510.01555).

Left out: KL in the reward, and weighing the estimator by the ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grpokit.parameters import check_choice
from grpokit.stages import Objective, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens


@register("objective")
@dataclass(frozen=True)
class KL(Objective):
    """k1 = x, k2 = x²/2 or k3 = e^−x + x − 1, with x = log π − log π_to.

    Parameters
    ----------
    kind : {"k1", "k2", "k3"}
        The estimator.
    to : {"ref", "old", "rollout"}
        The policy that π is held to.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    The derivatives by log π are 1, x and 1 − e^−x. k3 has no limit: it grows as e^−x where π is far below π_ref, and
    overflows in fp32 at x < −88, which shows.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> tokens = Tokens({"logps": torch.tensor([-1.0]), "ref_logps": torch.tensor([-2.0])}, torch.tensor([1]))
    >>> [round(float(KL(kind).value(tokens)), 4) for kind in ("k1", "k2", "k3")]
    [1.0, 0.5, 0.3679]
    """

    kind: Literal["k1", "k2", "k3"] = "k3"
    to: Literal["ref", "old", "rollout"] = "ref"
    equation: ClassVar[str] = "k(x), x = log π − log π_to: k1 = x, k2 = x²/2, k3 = e^−x + x − 1"

    def __post_init__(self) -> None:
        check_choice(self, "kind", ("k1", "k2", "k3"))
        check_choice(self, "to", ("ref", "old", "rollout"))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"logps", f"{self.to}_logps"})

    @property
    def breaks(self) -> Mapping[str, str]:
        reason = "it has no advantage: it pulls towards another policy"
        unbounded = {} if self.kind == "k1" else {"bounded": "the further from the other policy, the harder the pull"}
        return dict.fromkeys(("zero_advantage", "homogeneous", "on_policy"), reason) | unbounded

    def value(self, tokens: Tokens) -> Tensor:
        other: Tensor = getattr(tokens, f"{self.to}_logps")
        x = tokens.logps - other
        if self.kind == "k1":
            return x
        if self.kind == "k2":
            return x * x / 2
        # expm1, since exp(−x) − 1 + x loses what is left of x²/2 near 0.
        return (-x).expm1() + x
