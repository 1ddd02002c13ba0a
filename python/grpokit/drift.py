"""Stage 5, correct: masks against drift that read the advantage with the ratio, or rank the ratios of a whole batch.

In and out as in `rejection`: 1 keeps a token, 0 drops it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .mismatch import RATIO, Mismatch, Policy, binary_kl
from .objective.columns import where
from .parameters import check_choice, check_number
from .rejection import kept
from .stages import Correct, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .stages import Scope
    from .tokens import Tokens

Against = Literal["rollout", "old"]


class Drift(Correct):
    """A mask that reads the advantage with how far the current policy is from another one.

    Attributes
    ----------
    against : {"rollout", "old"}
        The other one.
    """

    against: Against

    def __post_init__(self) -> None:
        check_choice(self, "against", ("rollout", "old"))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The current policy, so that it is made anew in each forward pass."""
        return frozenset({"advantages", "logps", f"{self.against}_logps"})

    def other(self, tokens: Tokens) -> Tensor:
        """(T,): the other's log-probs."""
        found: Tensor = getattr(tokens, f"{self.against}_logps")
        return found


@register("correct")
@dataclass(frozen=True)
class OPSM(Drift):
    """Off-policy sequence mask: drops what is pushed down and has drifted (DeepSeek-V3.2, arXiv:2512.02556, eq. 9).

    Parameters
    ----------
    delta : float
        δ, the largest mean of log π_rollout − log π over a sequence with A < 0, in nats per token, more than 0.
    against : {"rollout", "old"}
        The sampler's log-probs, or π_old in their place.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    With advantages per token, those tokens of such a sequence are dropped that have A < 0.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"logps": torch.tensor([-3.0, -3.0]), "rollout_logps": torch.tensor([-1.0, -1.0])}
    >>> columns["advantages"] = torch.tensor([-1.0, 1.0])
    >>> OPSM(delta=0.5).weight(Tokens(columns, torch.tensor([1, 1])))
    tensor([0., 1.])
    """

    delta: float
    against: Against = "rollout"
    scope: ClassVar[Scope] = "sequence"
    example: ClassVar[Mapping[str, Any]] = {"delta": 0.1}
    sources: ClassVar[Mapping[str, str]] = {
        "delta": "given: the paper does not say (slime: 1e-4; TRL suggests 0.5: three orders apart)",
        "against": "eq. 9, and TRL (slime takes π_old)",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "delta", more_than=0)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of the sampler or of π_old."""
        return f"w = 0 where A < 0 and mean_t log(π_{self.against} / π) > δ, else 1"

    def weight(self, tokens: Tokens) -> Tensor:
        drift = tokens.mean(self.other(tokens) - tokens.logps)
        return kept((tokens.advantages < 0) & (drift > self.delta), drift)


@register("correct")
@dataclass(frozen=True)
class DPPOMask(Drift):
    """Drops a token that A pushes further away from the sampler than δ allows (DPPO, arXiv:2602.04879, eqs. 12, 14).

    With p = π(token) and q = π_rollout(token): kind "tv" compares |p − q|, "kl" the binary KL
    q log(q / p) + (1 − q) log((1 − q) / (1 − p)).

    Parameters
    ----------
    low, high : float
        δ where p < q and A < 0, and where p > q and A > 0; more than 0.
    kind : {"tv", "kl"}
        The divergence.
    against : {"rollout", "old"}
        Whose q.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"logps": torch.tensor([-0.1, -0.1]), "rollout_logps": torch.tensor([-1.0, -1.0])}
    >>> columns["advantages"] = torch.tensor([-1.0, 1.0])
    >>> DPPOMask(low=0.2, high=0.2).weight(Tokens(columns, torch.tensor([1, 1])))
    tensor([1., 0.])
    """

    low: float
    high: float
    kind: Literal["tv", "kl"] = "tv"
    against: Against = "rollout"
    example: ClassVar[Mapping[str, Any]] = {"low": 0.2, "high": 0.2}
    sources: ClassVar[Mapping[str, str]] = {
        "low": "given: the paper's was not read (prime-rl, tv: 0.2)",
        "high": "given, likewise",
        "kind": "prime-rl's default loss",
        "against": "prime-rl (verl takes π_old)",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "low", more_than=0)
        check_number(self, "high", more_than=0)
        check_choice(self, "kind", ("tv", "kl"))

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of the divergence."""
        q = f"π_{self.against}"
        D = f"|π − {q}|" if self.kind == "tv" else f"D({q} ‖ π)"
        kl = "" if self.kind == "tv" else ", D the token's binary KL"
        return f"w = 0 where {D} > high, A > 0, π > {q}, or {D} > low, A < 0, π < {q}; else 1{kl}"

    def weight(self, tokens: Tokens) -> Tensor:
        A, p, q = tokens.advantages, tokens.logps, self.other(tokens)
        far = (p.exp() - q.exp()).abs() if self.kind == "tv" else binary_kl(q, p)
        dropped = ((A > 0) & (p > q) & (far > self.high)) | ((A < 0) & (p < q) & (far > self.low))
        return kept(dropped, far)


@register("correct")
@dataclass(frozen=True)
class M2POMask(Mismatch):
    """Drops the tokens with the largest log² ρ until the mean of the others is below τ (M2PO, arXiv:2510.01161).

    The form of the paper's text and of AReaL; the authors' code clips instead: `M2POClip`. Equal values are kept or
    dropped together; the smallest are kept in any case.

    Parameters
    ----------
    tau : float
        τ, more than 0.
    policy : {"old", "current"}
        ρ = π_old / π_rollout, or u = π / π_rollout.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.1, -2.0]), "rollout_logps": torch.tensor([-1.0, -1.0, -1.0])}
    >>> M2POMask().weight(Tokens(columns, torch.tensor([2, 1])))
    tensor([1., 1., 0.], dtype=torch.float64)
    """

    tau: float = 0.04
    policy: Policy = field(default="old", kw_only=True)
    sources: ClassVar[Mapping[str, str]] = {
        "tau": "the authors' page: 0.04 everywhere, insensitive",
        "policy": "AReaL's port (the paper's text: current)",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "tau", more_than=0)

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """The threshold is the batch's."""
        return "batch"

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of ρ or of u."""
        v = f"log² {self.symbol}"
        most = f"v* the largest with mean({v} ≤ v*) < τ, over the batch"
        return f"w = 1 where {v} ≤ v*, else 0, {most}, {RATIO[self.policy]}"

    def weight(self, tokens: Tokens) -> Tensor:
        import torch

        d = self.log_ratio(tokens).double()
        if not len(d):
            return d
        v = (d * d).sort().values
        mean = v.cumsum(0) / torch.arange(1, len(v) + 1, device=v.device)
        last = torch.cat([v[1:] != v[:-1], v.new_ones(1).bool()])  # of equal values
        most = where(last & (mean < self.tau), v, v[0]).max()
        return kept(d * d > most, d)
