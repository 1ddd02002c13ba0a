"""Stage 5, correct: which tokens of the whole batch a term is about, said by covariance, entropy or probability.

In: the current policy's columns of the whole optimizer step, which therefore takes two passes
(`grpokit.loss.observe`). Out: 1 where a token is taken, 0 where not. Random choices are a hash of (seed, step, rollout
id, position) and ties are kept or dropped together, so that no order of rows, split or number of ranks changes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from .errors import error
from .objective.columns import log_bounds, where
from .parameters import check_choice, check_count, check_number
from .rejection import kept
from .stages import Correct, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .stages import Scope
    from .tokens import Tokens


def quantile(x: Tensor, there: Tensor, q: float) -> Tensor:
    """0-d float64: the q-quantile of the values that are there, linear between two; NaN if none is."""
    at = (there.sum().double() - 1) * q
    ordered = where(there, x.double(), math.inf).sort().values
    low, high = (ordered[index.long()] for index in (at.floor(), at.ceil()))
    found = where(low == high, low, low + (high - low) * (at - at.floor()))
    return where(there.any(), found, math.nan)


def lots(tokens: Tokens, seed: int) -> Tensor:
    """(T,) int64: a number drawn for each token, by its place alone (the finaliser of SplitMix64, chained)."""
    x = tokens.position.new_full((), seed)
    for part in (tokens.step, tokens.rollout_ids, tokens.position):
        x = _mixed(x * _GOLDEN + part)
    return x


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Without the sign that torch would shift in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


_GOLDEN = -0x61C8864680B583EB


def covariance(tokens: Tokens) -> Tensor:
    """(T,) float64: (log π − mean)(A − mean), over the batch (arXiv:2505.22617)."""
    l, A = tokens.logps.double(), tokens.advantages.double()
    return (l - l.mean()) * (A - A.mean())


@register("correct")
@dataclass(frozen=True)
class ClipCov(Correct):
    """Drops some tokens of high covariance, drawn by lot (Clip-Cov, arXiv:2505.22617).

    cov_t = (log π_t − mean)(A_t − mean) over the batch. The candidates have cov_low < cov_t < cov_high and an open PPO
    gate; max(1, ⌊share · T⌋) of them are dropped, or all if there are fewer.

    Parameters
    ----------
    share : float
        Of the batch's T tokens, between 0 and 1.
    cov_low, cov_high : float
        The paper's ω_low and ω_high.
    low, high : float or None
        The clip of the objective, as in `Clip`.
    seed : int
        Of the lots.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch, grpokit as gk
    >>> batch = gk.TokenBatch(torch.tensor([[1, 2, 3]]), advantages=torch.tensor([[4.0, -2.0, -2.0]]))
    >>> tokens = batch.tokens(gk.recipe("clip_cov"), {"logps": torch.tensor([-0.1, -2.0, -2.2])})
    >>> ClipCov().weight(tokens)
    tensor([1., 1., 0.], dtype=torch.float64)
    """

    share: float = 2e-4
    cov_low: float = 1.0
    cov_high: float = 5.0
    low: float | None = None
    high: float | None = 1.0
    seed: int = 0
    reads: ClassVar[frozenset[str]] = frozenset({"logps", "log_ratio", "advantages"})
    scope: ClassVar[Scope] = "batch"
    draws: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "w = 0 for max(1, ⌊share · T⌋) tokens by lot of those with cov_low < (log π − mean)(A − mean) < cov_high and "
        "an open gate, else 1"
    )
    sources: ClassVar[Mapping[str, str]] = {
        "share": "the authors' code and verl: 2e-4",
        "cov_low": "the authors' code and verl: 1",
        "cov_high": "the authors' code and verl: 5",
        "low": "that of the objective: the authors' scripts clip at [0, 2]",
        "high": "likewise",
        "seed": "ours: the authors' code draws from torch's generator, anew for each micro-batch",
    }

    def __post_init__(self) -> None:
        check_number(self, "share", more_than=0, at_most=1)
        check_number(self, "cov_low")
        check_number(self, "cov_high")
        if not self.cov_low < self.cov_high:
            expected = f"more than cov_low={self.cov_low}"
            raise error("bad_parameter", owner="ClipCov", name="cov_high", given=self.cov_high, expected=expected)
        check_number(self, "low", at_least=0, less_than=1, optional=True)
        check_number(self, "high", at_least=0, optional=True)
        check_count(self, "seed")

    def weight(self, tokens: Tokens) -> Tensor:
        import torch

        cov, d, A = covariance(tokens), tokens.log_ratio, tokens.advantages
        if not len(cov):
            return cov
        low, high = log_bounds(self.low, self.high)
        least, most = -math.inf if low is None else low, math.inf if high is None else high
        closed = ((A < 0) & (d < least)) | ((A > 0) & (d > most))
        candidates = (cov > self.cov_low) & (cov < self.cov_high) & ~closed
        drawn = torch.where(candidates, lots(tokens, self.seed), torch.iinfo(torch.int64).max)
        last = drawn.kthvalue(max(1, int(self.share * len(cov)))).values
        return kept(candidates & (drawn <= last), cov)


@register("correct")
@dataclass(frozen=True)
class TopCovariance(Correct):
    """Takes the tokens of the largest covariance: those that KL-Cov penalises (arXiv:2505.22617).

    cov_t = (log π_t − mean)(A_t − mean) over the batch; max(1, ⌊share · T⌋) tokens, and all that equal the last.

    Parameters
    ----------
    share : float
        Of the batch's T tokens, between 0 and 1.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"logps": torch.tensor([-0.1, -2.0, -2.2]), "advantages": torch.tensor([1.0, -0.5, -0.5])}
    >>> TopCovariance(share=0.3).weight(Tokens(columns, torch.tensor([2, 1])))
    tensor([1., 0., 0.], dtype=torch.float64)
    """

    share: float = 2e-3
    reads: ClassVar[frozenset[str]] = frozenset({"logps", "advantages"})
    scope: ClassVar[Scope] = "batch"
    equation: ClassVar[str] = (
        "w = 1 for the max(1, ⌊share · T⌋) tokens with the largest (log π − mean)(A − mean), else 0"
    )
    sources: ClassVar[Mapping[str, str]] = {
        "share": "the authors' script for 7B: 0.2%, written 0.2 there (32B: 0.02%; verl: 2e-4)"
    }

    def __post_init__(self) -> None:
        check_number(self, "share", more_than=0, at_most=1)

    def weight(self, tokens: Tokens) -> Tensor:
        cov = covariance(tokens)
        if not len(cov):
            return cov
        least = cov.topk(max(1, int(self.share * len(cov)))).values[-1]
        return kept(cov < least, cov)


@register("correct")
@dataclass(frozen=True)
class M2POClip(Correct):
    """Closes the gate of the tokens that strain the second moment most (M2PO's code, arXiv:2510.01161).

    Harmful tokens H have A > 0 and r > 1, or A < 0 and r < 1. If the mean of log² r over H is at most τ, all stay open;
    otherwise those with |log r| > t are closed, t the largest value in H with mean_H min(log² r, t²) < τ, and never
    less than the floors. A closed gate is a weight of 0: with `Clip(None, None)` and a mean over live tokens the
    gradient is that of −min(r A, clip(r) A) with these bounds.

    Parameters
    ----------
    tau : float
        τ, more than 0.
    low, high : float
        The floors: a ratio within [1 − low, 1 + high] is never closed. 0 <= low < 1, 0 <= high.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    The form of the paper's text, a mask of all tokens, is `M2POMask`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"log_ratio": torch.tensor([0.1, 0.9, 0.9]), "advantages": torch.tensor([1.0, 1.0, -1.0])}
    >>> M2POClip().weight(Tokens(columns, torch.tensor([3])))
    tensor([1., 0., 1.], dtype=torch.float64)
    """

    tau: float = 0.04
    low: float = 0.3
    high: float = 0.5
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})
    scope: ClassVar[Scope] = "batch"
    equation: ClassVar[str] = (
        "w = 0 where A pushes on and |log r| > t and r is beyond [1 − low, 1 + high], else 1; t the largest |log r| "
        "with mean min(log² r, t²) < τ over the tokens that A pushes on, in the batch"
    )
    sources: ClassVar[Mapping[str, str]] = {
        "tau": "the authors' code: 0.04",
        "low": "the authors' code: the bound is floored at 0.3",
        "high": "the authors' code: the bound is floored at 0.5",
    }

    def __post_init__(self) -> None:
        check_number(self, "tau", more_than=0)
        check_number(self, "low", at_least=0, less_than=1)
        check_number(self, "high", at_least=0)

    def weight(self, tokens: Tokens) -> Tensor:
        import torch

        d, A = tokens.log_ratio.double(), tokens.advantages
        if not len(d):
            return d
        harmful = ((A > 0) & (d > 0)) | ((A < 0) & (d < 0))
        budget, v = self.tau * harmful.sum().double(), where(harmful, d * d, 0.0)
        ordered = v.sort().values
        # Σ_H min(v, v_j): the tokens that are not in H come first, as zeros.
        after = torch.arange(len(v) - 1, -1, -1, device=v.device)
        most = where(ordered.cumsum(0) + ordered * after < budget, ordered, 0.0).max()
        low, high = (abs(bound or 0.0) for bound in log_bounds(self.low, self.high))
        beyond = (v > most) & (v > where(d < 0, low, high) ** 2)
        return kept(beyond & (v.sum() > budget), v)


@register("correct")
@dataclass(frozen=True)
class S2TMask(Correct):
    """Silences spurious tokens: rewarded, improbable and sure of themselves (STAPO, arXiv:2602.15620).

    w = 0 where A > 0, π < τ_p and H < τ_h, all strict; τ_h is the q-quantile of the entropy H over a population.

    Parameters
    ----------
    tau_p : float
        τ_p, a probability, between 0 and 1.
    q : float
        Between 0 and 1.
    population : {"candidates", "tokens"}
        Over the tokens with A > 0 and π < τ_p, the paper's late version; or over all of the batch, its first.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> columns = {"logps": torch.tensor([-7.0, -7.0, -1.0]), "entropies": torch.tensor([0.1, 3.0, 1.0])}
    >>> columns["advantages"] = torch.ones(3)
    >>> S2TMask().weight(Tokens(columns, torch.tensor([3])))
    tensor([0., 1., 1.])
    """

    tau_p: float = 0.002
    q: float = 0.75
    population: Literal["candidates", "tokens"] = "candidates"
    reads: ClassVar[frozenset[str]] = frozenset({"logps", "entropies", "advantages"})
    scope: ClassVar[Scope] = "batch"
    sources: ClassVar[Mapping[str, str]] = {
        "tau_p": "0.002 in all versions",
        "q": "the late version: 75% of the candidates (versions 1 and 2: 80%, of all tokens)",
        "population": "the late version; 'tokens' with q = 0.8 for versions 1 and 2, whose wording contradicts itself",
    }

    def __post_init__(self) -> None:
        check_number(self, "tau_p", more_than=0, at_most=1)
        check_number(self, "q", at_least=0, at_most=1)
        check_choice(self, "population", ("candidates", "tokens"))

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of either version."""
        over = "the tokens with A > 0 and π < τ_p" if self.population == "candidates" else "all tokens"
        return f"w = 0 where A > 0, π < τ_p and H < τ_h, else 1; τ_h the q-quantile of H over {over} of the batch"

    def weight(self, tokens: Tokens) -> Tensor:
        H = tokens.entropies
        if not len(H):
            return H
        candidates = (tokens.advantages > 0) & (tokens.logps < math.log(self.tau_p))
        over = candidates if self.population == "candidates" else candidates | ~candidates
        return kept(candidates & (quantile(H, over, self.q) > H), H)


@register("correct")
@dataclass(frozen=True)
class TopEntropy(Correct):
    """Takes the share of the batch's tokens with the highest entropy: the forks (arXiv:2506.01939).

    w = 1 where H ≥ τ_ρ, the (1 − ρ)-quantile of the current policy's entropy over the batch.

    Parameters
    ----------
    rho : float
        ρ, the share that is taken, between 0 and 1.

    Raises
    ------
    InputError
        `bad_parameter`.

    Examples
    --------
    >>> import torch
    >>> from grpokit.tokens import Tokens
    >>> TopEntropy(rho=0.5).weight(Tokens({"entropies": torch.tensor([0.1, 3.0, 1.0])}, torch.tensor([3])))
    tensor([0., 1., 1.])
    """

    rho: float = 0.2
    reads: ClassVar[frozenset[str]] = frozenset({"entropies"})
    scope: ClassVar[Scope] = "batch"
    equation: ClassVar[str] = "w = 1 where H ≥ the (1 − ρ)-quantile of H over the batch, else 0"
    sources: ClassVar[Mapping[str, str]] = {"rho": "the paper: 20% of the tokens"}

    def __post_init__(self) -> None:
        check_number(self, "rho", more_than=0, at_most=1)

    def weight(self, tokens: Tokens) -> Tensor:
        import torch

        H = tokens.entropies
        return kept(quantile(H, torch.ones_like(H, dtype=torch.bool), 1 - self.rho) > H, H) if len(H) else H
