"""Stage 5, correct: masks for the difference between the sampler and the trainer: 1 keeps a token, 0 drops it.

In and out as in `mismatch`, whose ratios these compare and do not multiply by: a mask goes with any weight and with any
objective. What is dropped leaves the denominator or not as the aggregate's `over` says. Masks that know the
advantage, or the whole batch, are in `drift`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .mismatch import RATIO, Mismatch, Policy, at_level, check_bounds, outside, within
from .objective.columns import LIMIT, clip, where
from .parameters import check_choice, check_number
from .stages import Bounds, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .stages import Level
    from .tokens import Tokens

MOST = {"token": "", "mean": "mean_t ", "sum": "Σ_t ", "worst": "max_t "}


def kept(dropped: Tensor, *seen: Tensor) -> Tensor:
    """1 where nothing says drop, 0 where it does; NaN where what was looked at is NaN, which must not pass as a 1."""
    shown = sum((0.0 * where(x.isfinite() | x.isnan(), x, 0.0) for x in seen), seen[0].new_ones(()))
    return where(dropped, 0.0, shown)


def any_of(there: Tensor, tokens: Tokens, like: Tensor) -> Tensor:
    """(T,) bool: whether it holds for some token of the sequence."""
    return tokens.total(there.to(like.dtype)) > 0


class RatioMask(Mismatch):
    """What the rules share that compare a sequence's ratio, or each of its tokens', with two bounds."""

    level: Level
    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "low", "high", needed=True)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """With what is there of bounds."""
        rho = self.symbol
        compared = {"sequence": f"Π_t {rho}_t", "geometric": f"(Π_t {rho}_t)^(1/T)", "worst": rho}[self.level]
        every = " at every token" * (self.level == "worst")
        return f"w = 1 where {within(self.low, self.high, compared)}{every}, else 0, {RATIO[self.policy]}"

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.level, self.low, self.high)

    def weight(self, tokens: Tokens) -> Tensor:
        d = self.log_ratio(tokens)
        if self.level == "worst":
            return kept(any_of(outside(d, self.low, self.high), tokens, d), d)
        d = at_level(d, tokens, self.level)
        return kept(outside(d, self.low, self.high), d)


@register("correct")
@dataclass(frozen=True)
class SequenceMask(RatioMask):
    """Drops the sequences whose ratio, the product over their tokens, is out of bounds.

    Parameters
    ----------
    high, low : float or None
        Of Π_t ρ_t, more than 0; None is no bound.
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
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.0, 0.0]), "rollout_logps": torch.tensor([-1.0, -3.0, 0.0])}
    >>> SequenceMask(high=2.0, low=0.5).weight(Tokens(columns, torch.tensor([2, 1])))
    tensor([0., 0., 1.])
    """

    high: float | None
    low: float | None
    policy: Policy = field(default="old", kw_only=True)
    level = "sequence"
    example: ClassVar[Mapping[str, Any]] = {"high": 2.0, "low": 0.5}
    sources: ClassVar[Mapping[str, str]] = {
        "high": "given: no source states a number for this form",
        "low": "given, likewise",
        "policy": "verl's `seq_sum_k1`, decoupled mode",
    }


@register("correct")
@dataclass(frozen=True)
class GeometricMask(RatioMask):
    """Drops the sequences whose geometric mean of the token ratios is out of bounds.

    Liu, Li et al., "When Speed Kills Stability", 2025.

    Parameters
    ----------
    low, high : float or None
        Of (Π_t ρ_t)^(1/T), more than 0; None is no bound. Bounds this narrow exist in fp32 only.
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
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.2, 0.0]), "rollout_logps": torch.tensor([-1.0, -1.0, 0.0])}
    >>> GeometricMask().weight(Tokens(columns, torch.tensor([2, 1])))
    tensor([0., 0., 1.])
    """

    low: float | None = 0.999
    high: float | None = 1.001
    policy: Policy = field(default="old", kw_only=True)
    level = "geometric"
    sources: ClassVar[Mapping[str, str]] = {
        "low": "verl's preset and NeMo-RL: 0.999 (slime: 0.9999, SkyRL: 0.99)",
        "high": "verl's preset: 1.001 (NeMo-RL: 1.002, slime: 1.0001, SkyRL: 1.01)",
        "policy": "verl's decoupled mode",
    }


@register("correct")
@dataclass(frozen=True)
class Veto(RatioMask):
    """Drops a sequence if any of its tokens has a ratio below a bound: one impossible token vetoes it.

    Parameters
    ----------
    low : float
        The least ρ, more than 0.
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
    >>> columns = {"old_logps": torch.tensor([-1.0, -11.0, 0.0]), "rollout_logps": torch.tensor([-1.0, -1.0, 0.0])}
    >>> Veto().weight(Tokens(columns, torch.tensor([2, 1])))
    tensor([0., 0., 1.])
    """

    low: float = 1e-4
    policy: Policy = field(default="old", kw_only=True)
    high = None
    level = "worst"
    sources: ClassVar[Mapping[str, str]] = {
        "low": "slime's `rs_veto_threshold`, and verl's until it had seq_max_k2: 1e-4",
        "policy": "likewise",
    }

    def __post_init__(self) -> None:
        check_number(self, "low", more_than=0)
        super().__post_init__()


@register("correct")
@dataclass(frozen=True)
class WTRS(RatioMask):
    """Worst-token reject sampling: drops a sequence if any of its tokens has a ratio out of bounds.

    `Veto` on both sides. The mechanism is in several libraries; the name's own source was not found.

    Parameters
    ----------
    low, high : float or None
        Of ρ, more than 0; None is no bound.
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
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.0, 0.0]), "rollout_logps": torch.tensor([-1.0, -6.0, 0.0])}
    >>> WTRS().weight(Tokens(columns, torch.tensor([2, 1])))
    tensor([0., 0., 1.])
    """

    low: float | None = 1e-4
    high: float | None = 100.0
    policy: Policy = field(default="old", kw_only=True)
    level = "worst"
    sources: ClassVar[Mapping[str, str]] = {
        "low": "SkyRL's `outlier_token_is_threshold_low`: 1e-4",
        "high": "SkyRL's `outlier_token_is_threshold_high`: 100",
        "policy": "likewise",
    }


@register("correct")
@dataclass(frozen=True)
class TrustRegionMask(Mismatch):
    """Drops what is further from the sampler than δ, by an estimator of the KL divergence (after arXiv:2512.23075).

    The paper masks a sequence whose largest KL of a token, over the whole vocabulary, is above δ: level "worst" does so
    with the estimator on the sampled token, as verl's `seq_max_k3` does.

    Parameters
    ----------
    delta : float
        δ in nats, more than 0.
    kind : {"k2", "k3"}
        ½ log² ρ, or ρ − 1 − log ρ.
    level : {"worst", "mean", "sum", "token"}
        What is compared with δ: the sequence's largest, its mean or its sum, which drop the sequence; or the token's
        own, which drops the token.
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
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.0, 0.0]), "rollout_logps": torch.tensor([-1.0, -2.0, 0.0])}
    >>> TrustRegionMask(delta=0.5).weight(Tokens(columns, torch.tensor([2, 1])))
    tensor([0., 0., 1.])
    """

    delta: float
    kind: Literal["k2", "k3"] = "k3"
    level: Literal["worst", "mean", "sum", "token"] = "worst"
    policy: Policy = field(default="old", kw_only=True)
    example: ClassVar[Mapping[str, Any]] = {"delta": 0.05}
    sources: ClassVar[Mapping[str, str]] = {
        "delta": "given: the paper's was not read (verl's preset for the mean of k3: 0.01)",
        "kind": "verl's `seq_max_k3`",
        "level": "the paper",
        "policy": "verl's decoupled mode",
    }
    leaves_out: ClassVar[str] = "the KL over the whole vocabulary, which needs the sampler's distribution."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "delta", more_than=0)
        check_choice(self, "kind", ("k2", "k3"))
        check_choice(self, "level", ("worst", "mean", "sum", "token"))

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of the estimator and the level."""
        rho = self.symbol
        k = f"½ log² {rho}" if self.kind == "k2" else f"({rho} − 1 − log {rho})"
        return f"w = 1 where {MOST[self.level]}{k} ≤ δ, else 0, {RATIO[self.policy]}"

    def weight(self, tokens: Tokens) -> Tensor:
        d = self.log_ratio(tokens)
        # e^d − 1 with the digits that the difference would lose. k3 grows with d: what is beyond 20 counts as 20.
        most = clip(d, None, LIMIT)
        k = d * d / 2 if self.kind == "k2" else most.expm1() - most
        if self.level in ("mean", "sum"):
            k = (tokens.mean if self.level == "mean" else tokens.total)(k)
        far = k > self.delta
        return kept(any_of(far, tokens, d) if self.level == "worst" else far, k)
