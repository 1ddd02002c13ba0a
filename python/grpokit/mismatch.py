"""Stage 5, correct: importance weights for the difference between the sampler and the trainer.

In: log-probs of the sampler (π_rollout, returned with the rollouts), of the trainer before the first update (π_old) and
now (π). Out: a weight per token without gradient; a weight of 0 drops the token. Three ratios meet here, and each has
one name: r = π / π_old is the objective's, ρ = π_old / π_rollout is what a weight makes up for, and u = π / π_rollout
= r ρ is both at once. A weight is of ρ (``policy="old"``) or, for objectives without a ratio of their own, of u
(``policy="current"``); a recipe whose ratio is taken against the sampler has u in its objective and needs no weight.

Without `old_logps` the rollouts are taken as on-policy, and π_old is the current policy. Masks, which drop and do not
weigh, are in `rejection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .errors import error
from .objective.columns import clip, ratio, where
from .parameters import check_choice, check_flag, check_number
from .stages import Bounds, Correct, Level, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .stages import Scope
    from .tokens import Tokens

Policy = Literal["old", "current"]
RATIO = {"old": "ρ = π_old / π_rollout", "current": "u = π / π_rollout"}
LEVELS = {"token": "", "sequence": " of the sequence's product", "geometric": " of the sequence's geometric mean"}


class Mismatch(Correct):
    """A correction that reads the ratio of a policy of the trainer to the sampler.

    Attributes
    ----------
    policy : {"old", "current"}
        ρ = π_old / π_rollout, or u = π / π_rollout.
    """

    policy: Policy
    level: str = "token"

    def __post_init__(self) -> None:
        check_choice(self, "policy", ("old", "current"))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The log-probs of the two policies."""
        return frozenset({"old_logps" if self.policy == "old" else "logps", "rollout_logps"})

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """The token's, or its sequence's."""
        return "token" if self.level == "token" else "sequence"

    @property
    def symbol(self) -> str:
        """ρ or u."""
        return RATIO[self.policy][0]

    def log_ratio(self, tokens: Tokens) -> Tensor:
        """(T,): log ρ, or log u."""
        return (tokens.old_logps if self.policy == "old" else tokens.logps) - tokens.rollout_logps


def at_level(d: Tensor, tokens: Tokens, level: Level) -> Tensor:
    """(T,): the log-ratio of the token, of its sequence's product or of their geometric mean."""
    if level == "token":
        return d
    return tokens.total(d) if level == "sequence" else tokens.mean(d)


def outside(d: Tensor, low: float | None, high: float | None) -> Tensor:
    """Whether a log-ratio is beyond a bound of the ratio. NaN is beyond neither: it must be seen, not dropped."""
    least = -math.inf if low is None else math.log(low)
    return (d < least) | (d > (math.inf if high is None else math.log(high)))


def check_bounds(stage: Any, low: str, high: str, *, needed: bool = False) -> None:
    """Refuses two bounds of a ratio that are not in order; None is no bound, and with `needed` one must be there."""
    check_number(stage, low, more_than=0, optional=True)
    check_number(stage, high, more_than=0, optional=True)
    least, most = getattr(stage, low), getattr(stage, high)
    if needed and least is None and most is None:
        expected = f"a bound for {low} or {high}: without one nothing is ever dropped"
        raise error("bad_parameter", owner=type(stage).__name__, name=high, given=most, expected=expected)
    if least is not None and most is not None and not least < most:
        raise error(
            "bad_parameter", owner=type(stage).__name__, name=high, given=most, expected=f"more than {low}={least}"
        )


def within(low: float | None, high: float | None, symbol: str) -> str:
    """The bounds as a formula: low ≤ ρ ≤ high."""
    return f"{'low ≤ ' * (low is not None)}{symbol}{' ≤ high' * (high is not None)}"


@register("correct")
@dataclass(frozen=True)
class TIS(Mismatch):
    """Truncated importance sampling, w = min(ρ, C).

    Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025; with no cap the plain
    weight of decoupled PPO (Hilton et al., arXiv:2110.00641; AReaL, arXiv:2505.24298, eq. 5).

    Parameters
    ----------
    cap : float or None
        C, more than 0. None: no truncation but that of every ratio, e^20.
    low : float or None
        Weights are at least this; None is no bound.
    level : {"token", "sequence", "geometric"}
        ρ of the token; the product over its sequence (unbiased for whole answers, with heavy tails); or their geometric
        mean.
    normalize : bool
        Divides by the batch's mean weight, of tokens or of sequences, so that a correction is no change of the learning
        rate.
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
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.0]), "rollout_logps": torch.tensor([-1.0, -3.0])}
    >>> TIS(cap=2.0).weight(Tokens(columns, torch.tensor([2])))
    tensor([1., 2.])
    """

    cap: float | None = 2.0
    low: float | None = None
    level: Literal["token", "sequence", "geometric"] = "token"
    normalize: bool = False
    policy: Policy = field(default="old", kw_only=True)
    importance: ClassVar[bool] = True
    sources: ClassVar[Mapping[str, str]] = {
        "cap": "the authors' runs: 2 (0.5B) and 8 (32B); slime, open-instruct, verl: 2, TRL: 3, ROLL: 1.2",
        "low": "off (slime's second bound is 0 by default)",
        "level": "the authors' (verl's dataclass: sequence, its YAML: none)",
        "normalize": "off; verl's `rollout_is_batch_normalize`, slime's `tis_batch_normalize`",
        "policy": "the trainer's own before the update, as the authors have it; slime's first version took the current",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "low", "cap")
        check_choice(self, "level", ("token", "sequence", "geometric"))
        check_flag(self, "normalize")

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """The batch's where its mean is taken."""
        return "batch" if self.normalize else super().scope

    @property
    def equation(self) -> str:  # type: ignore[override]
        """With what is there of bounds and levels."""
        w = self.symbol if self.cap is None else f"min({self.symbol}, cap)"
        w = w if self.low is None else f"max({w}, low)"
        w = f"{w} / its mean over the batch" if self.normalize else w
        return f"w = {w}{LEVELS[self.level]}, {RATIO[self.policy]}"

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.level, self.low, self.cap)

    def weight(self, tokens: Tokens) -> Tensor:
        w = clip(ratio(at_level(self.log_ratio(tokens), tokens, self.level)), self.low, self.cap)
        if not self.normalize:
            return w
        if self.level == "token":
            return w / w.double().mean()
        return w * (tokens.lengths > 0).sum() / (w.double() / tokens.length).sum()


@register("correct")
@dataclass(frozen=True)
class IcePop(Mismatch):
    """w = ρ where low <= ρ <= high, else the token is dropped (Ring-1T, arXiv:2510.18855, eqs. 1-3).

    Parameters
    ----------
    low, high : float
        The paper's α and β, 0 < low < high; inclusive, compared with log ρ.
    policy : {"old", "current"}
        ρ = π_old / π_rollout, or u = π / π_rollout: INTELLECT-3's form (arXiv:2512.16144, eq. 1) with `Reinforce`.

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
    policy: Policy = field(default="old", kw_only=True)
    importance: ClassVar[bool] = True
    sources: ClassVar[Mapping[str, str]] = {
        "low": "the paper's α = 0.5, verl's preset, AReaL, OpenRLHF (prime-rl has tried 0.2)",
        "high": "the paper's β = 5, likewise",
        "policy": "the paper's eq. 2",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "low", more_than=0)
        check_number(self, "high", more_than=0)
        check_bounds(self, "low", "high")

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of ρ or of u."""
        return f"w = {self.symbol} where low ≤ {self.symbol} ≤ high, else 0, {RATIO[self.policy]}"

    @property
    def bounds(self) -> Bounds:
        return Bounds("token", self.low, self.high)

    def weight(self, tokens: Tokens) -> Tensor:
        d = self.log_ratio(tokens)
        return where(outside(d, self.low, self.high), 0.0, ratio(d))


@register("correct")
@dataclass(frozen=True)
class MIS(Mismatch):
    """Masked importance sampling: w = ρ of the sequence where it is within the bounds, else the sequence is dropped.

    Liu, Li et al., "When Speed Kills Stability", 2025. At level "token" with both bounds it is `IcePop`.

    Parameters
    ----------
    high : float
        The largest weight, more than 0.
    low : float or None
        The smallest; None is no bound.
    level : {"sequence", "token", "geometric"}
        As `TIS`.
    policy : {"old", "current"}
        As `TIS`.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"old_logps": torch.tensor([-1.0, -1.0, 0.0]), "rollout_logps": torch.tensor([-1.0, -3.0, 0.0])}
    >>> MIS(high=3.0).weight(Tokens(columns, torch.tensor([2, 1])))
    tensor([0., 0., 1.])
    """

    high: float
    low: float | None = None
    level: Literal["sequence", "token", "geometric"] = "sequence"
    policy: Policy = field(default="old", kw_only=True)
    importance: ClassVar[bool] = True
    example: ClassVar[Mapping[str, Any]] = {"high": 3.0}
    sources: ClassVar[Mapping[str, str]] = {
        "high": "given: the blog's own number was not read (TRL 1.16, which masks so by default: 3; verl: 2 to 10)",
        "low": "off",
        "level": "the blog's, and TRL's `sequence_mask`",
        "policy": "as `TIS`",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "high", more_than=0)
        check_bounds(self, "low", "high")
        check_choice(self, "level", ("sequence", "token", "geometric"))

    @property
    def equation(self) -> str:  # type: ignore[override]
        """With what is there of bounds and levels."""
        bounds = within(self.low, self.high, self.symbol)
        return f"w = {self.symbol} where {bounds}, else 0,{LEVELS[self.level]} {RATIO[self.policy]}"

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.level, self.low, self.high)

    def weight(self, tokens: Tokens) -> Tensor:
        d = at_level(self.log_ratio(tokens), tokens, self.level)
        return where(outside(d, self.low, self.high), 0.0, ratio(d))


@register("correct")
@dataclass(frozen=True)
class KPop(Mismatch):
    """w = ρ where the binary KL of the token is at most φ in both directions, else dropped (arXiv:2606.15079).

    With p = π_old(token), q = π_rollout(token): D(p ‖ q) = p log(p / q) + (1 − p) log((1 − p) / (1 − q)). Wider than
    `IcePop` for rare tokens, tighter for sure ones: φ = 0.1 keeps p / q up to 225 at q = 1e-4, however small it is, and
    from 0.83 to 1.09 at q = 0.9.

    Parameters
    ----------
    phi : float
        φ, more than 0.
    policy : {"old", "current"}
        As `TIS`.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"old_logps": torch.tensor([-0.1, -5.0]), "rollout_logps": torch.tensor([-1.0, -6.0])}
    >>> KPop(phi=0.1).weight(Tokens(columns, torch.tensor([2])))
    tensor([0.0000, 2.7183])
    """

    phi: float
    policy: Policy = field(default="old", kw_only=True)
    importance: ClassVar[bool] = True
    example: ClassVar[Mapping[str, Any]] = {"phi": 0.1}
    sources: ClassVar[Mapping[str, str]] = {
        "phi": "given: the report does not say (prime-rl: 0.1)",
        "policy": "the report's",
    }
    leaves_out: ClassVar[str] = "the report's variant with one direction only."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "phi", more_than=0)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of ρ or of u."""
        p = "π_old" if self.policy == "old" else "π"
        both = f"D({p} ‖ π_rollout), D(π_rollout ‖ {p}) ≤ φ"
        return f"w = {self.symbol} where {both}, else 0; D is the token's binary KL, {RATIO[self.policy]}"

    def weight(self, tokens: Tokens) -> Tensor:
        q = tokens.rollout_logps
        d = self.log_ratio(tokens)
        p = tokens.old_logps if self.policy == "old" else tokens.logps
        return where((binary_kl(p, q) > self.phi) | (binary_kl(q, p) > self.phi), 0.0, ratio(d))


RAREST = 1e-6


def binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """D(p ‖ q) = p log(p / q) + (1 − p) log((1 − p) / (1 − q)), of p and q within [1e-6, 1 − 1e-6].

    1 − p is −expm1(log p): in fp32 the difference 1 − e^{log p} of a sure token has no digit left.
    """
    log_p, log_q = (clip(x, math.log(RAREST), math.log1p(-RAREST)) for x in (log_p, log_q))
    not_p, not_q = -log_p.expm1(), -log_q.expm1()
    return log_p.exp() * (log_p - log_q) + not_p * (not_p.log() - not_q.log())
