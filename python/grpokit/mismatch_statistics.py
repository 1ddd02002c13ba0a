"""What the log ratios between trainer and sampler amount to, in a form that merges.

In: what the native core found of some sequences. Out: ESS, KL, χ², quantiles, extremes and the reach of rules, of
these sequences and of whatever is merged with them.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from ._native import mismatch_bins
from .errors import error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

EXTREMES = 5
_LARGEST = 709.0  # beyond it e^x is no float64
_Level = Literal["token", "geometric"]
_LEVELS: tuple[_Level, _Level] = ("token", "geometric")


class Place(NamedTuple):
    """Where a token is.

    Attributes
    ----------
    batch : int
        The batch, in order of merging: 0 for the first.
    sequence : int
        The row, or the number of the packed sequence.
    position : int
        The place in it, masked ones counted: the column of a padded batch, in a packed one counted from
        ``cu_seqlens[sequence]``.
    """

    batch: int
    sequence: int
    position: int


class Extreme(NamedTuple):
    """A log ratio and where it is.

    Attributes
    ----------
    batch, sequence, position : int
        As in `Place`; `position` is 0 where the log ratio is a sequence's.
    log_ratio : float, nats
        d of a token, or S of a sequence.
    """

    batch: int
    sequence: int
    position: int
    log_ratio: float


class Outside(NamedTuple):
    """How much of a batch is outside a rule's bounds.

    Attributes
    ----------
    tokens, sequences : float
        Shares, from 0 to 1; NaN where there is nothing to share.
    """

    tokens: float
    sequences: float


class MismatchStats:
    """What `mismatch_stats` found.

    With d = log π_old − log π_rollout of a token, ρ = e^d with d limited to ±20, T tokens, and S = Σ d of each of B
    sequences. A NaN stands for what does not exist: every mean of nothing.

    Attributes
    ----------
    tokens : int
        T: live tokens whose d is finite.
    sequences : int
        B: sequences with a live token, and none whose d is not finite.
    not_finite, sequences_not_finite : int
        Live tokens whose d is NaN or infinite, and the sequences that these are in. Such a token is left out of all
        that is per token, its whole sequence of all that is per sequence.
    first_not_finite : Place or None
        The first of these tokens.
    batches : int
        How many batches were merged, this one included.
    mean_ratio : float
        (1/T) Σ ρ: 1 in expectation where the sampler's log-probs are those it sampled with.
    ess_token : float
        (Σ ρ)² / (T Σ ρ²), from 1/T to 1, which it is where all ρ are equal.
    ess_sequence : float
        (Σ w)² / (B Σ w²) with w = e^S, from 1/B to 1; computed from logs, so that no S is too large.
    kl_k1, kl_k3 : float, nats per token
        Two estimates of KL(π_rollout ‖ π_old): (1/T) Σ −d, and (1/T) Σ (ρ − 1 − d), which has no negative term.
    kl_gap : float, nats per token
        k3 − k1 = (1/T) Σ (ρ − 1): 0 in expectation.
    chi2_token : float
        (1/T) Σ ρ² − 1, of χ²(π_old ‖ π_rollout) per token; to about 1e-7.
    chi2_sequence : float
        (1/B) Σ w² − 1; inf where that is beyond float64.
    lowest, highest : list of Extreme
        The five tokens with the smallest and with the largest d, the most extreme first.
    lowest_sequences, highest_sequences : list of Extreme
        The five sequences with the smallest and with the largest S.
    outside : dict of str to Outside
        Each rule, as its `repr`, and the shares of tokens and sequences outside its bounds. For a rule per token a
        sequence is outside if one of its tokens is; for one per sequence all tokens of such a sequence are.
    by_source, by_lag : dict to MismatchStats
        The same for the sequences of each source and of each lag; empty where these were not given.

    Notes
    -----
    Merging adds counts and histograms exactly and sums to rounding, in whatever order; sources and lags are those of
    the batches that had them. Kept are 16 KiB of histograms for the whole, for each source and for each lag.
    """

    batches: int

    def __init__(self, found: Any, rules: Sequence[str]) -> None:
        counts, first, sums, logs, outside, token_bins, sequence_bins, means, extremes = found
        self.batches = 1
        self.by_source: dict[int | str, MismatchStats] = {}
        self.by_lag: dict[int, MismatchStats] = {}
        self.first_not_finite = None if first is None else Place(0, *first)
        self._rules = tuple(rules)
        self._counts = np.array(counts, np.int64)
        self._sums = np.array(sums)
        self._logs = np.array(logs)
        self._outside = np.array(outside, np.int64).reshape(-1, 2)
        self._bins: dict[str, NDArray[np.uint64]] = {"token": token_bins, "geometric": sequence_bins}
        self._means: tuple[float, float] = tuple(means)
        self._extremes = [[Extreme(0, *record) for record in records] for records in extremes]

    @property
    def tokens(self) -> int:
        """T, live tokens whose d is finite."""
        return int(self._counts[0])

    @property
    def sequences(self) -> int:
        """B, sequences with a live token, and none whose d is not finite."""
        return int(self._counts[1])

    @property
    def not_finite(self) -> int:
        """Live tokens whose d is NaN or infinite."""
        return int(self._counts[2])

    @property
    def sequences_not_finite(self) -> int:
        """Sequences with such a token."""
        return int(self._counts[3])

    @property
    def mean_ratio(self) -> float:
        """The mean of ρ."""
        return _share(self._sums[2], self.tokens)

    @property
    def ess_token(self) -> float:
        """(Σ ρ)² / (T Σ ρ²)."""
        return _within(_share(self._sums[2] ** 2, self.tokens * self._sums[3]), self.tokens)

    @property
    def ess_sequence(self) -> float:
        """(Σ w)² / (B Σ w²), w = e^S: log ESS = 2 LSE(S) − LSE(2S) − log B."""
        if not self.sequences:
            return math.nan
        return _within(_exp(2 * self._logs[0] - self._logs[1] - math.log(self.sequences)), self.sequences)

    @property
    def kl_k1(self) -> float:
        """The mean of −d."""
        return _share(-self._sums[0], self.tokens)

    @property
    def kl_k3(self) -> float:
        """The mean of ρ − 1 − d."""
        return _share(self._sums[4] + (self._sums[1] - self._sums[0]), self.tokens)

    @property
    def kl_gap(self) -> float:
        """k3 − k1, the mean of ρ − 1."""
        return _share(self._sums[4] + self._sums[1], self.tokens)

    @property
    def chi2_token(self) -> float:
        """The mean of ρ², less 1."""
        return _share(self._sums[3], self.tokens) - 1

    @property
    def chi2_sequence(self) -> float:
        """The mean of w², less 1; inf beyond float64."""
        if not self.sequences:
            return math.nan
        log_mean = self._logs[1] - math.log(self.sequences)
        return math.expm1(log_mean) if log_mean < _LARGEST else math.inf

    @property
    def lowest(self) -> list[Extreme]:
        """The tokens with the smallest d."""
        return list(self._extremes[0])

    @property
    def highest(self) -> list[Extreme]:
        """The tokens with the largest d."""
        return list(self._extremes[1])

    @property
    def lowest_sequences(self) -> list[Extreme]:
        """The sequences with the smallest S."""
        return list(self._extremes[2])

    @property
    def highest_sequences(self) -> list[Extreme]:
        """The sequences with the largest S."""
        return list(self._extremes[3])

    @property
    def outside(self) -> dict[str, Outside]:
        """Each rule's shares of tokens and sequences outside."""
        pairs = zip(self._rules, self._outside.tolist(), strict=True)
        return {rule: Outside(_share(t, self.tokens), _share(s, self.sequences)) for rule, (t, s) in pairs}

    def quantile(self, q: float, level: _Level = "token") -> float:
        """A ratio before any truncation.

        Parameters
        ----------
        q : float
            From 0, the smallest, to 1, the largest; both are exact. Else the ratio at rank ⌊q·(n − 1)⌋.
        level : {"token", "geometric"}
            e^d of tokens, or e^(S/T) of sequences, the geometric mean of their tokens' ratios.

        Returns
        -------
        float
            NaN where there is nothing, inf beyond float64.

        Raises
        ------
        InputError
            A q that is not from 0 to 1, or another level.

        Notes
        -----
        From a histogram of log ratios, whose bins are a 16th of a power of two wide: the log ratio is at most 1/33 of
        itself away from the exact one. One below 2^−27 (7e-9) in size counts as 0, one beyond 31 nats as 31.
        """
        return _exp(self._log_quantile(q, level))

    def _log_quantile(self, q: float, level: str) -> float:
        owner = "MismatchStats.quantile"
        if level not in _LEVELS:
            raise error("bad_parameter", owner=owner, name="level", given=level, expected="'token' or 'geometric'")
        if not isinstance(q, int | float) or not 0 <= q <= 1:
            raise error("bad_parameter", owner=owner, name="q", given=q, expected="a number from 0 to 1")
        counts = self._bins[level]
        n = int(counts.sum())
        if not n:
            return math.nan
        low, high = self._means if level == "geometric" else (records[0].log_ratio for records in self._extremes[:2])
        rank = math.floor(q * (n - 1))
        if rank in (0, n - 1):
            return low if rank == 0 else high
        value = mismatch_bins()[np.searchsorted(np.cumsum(counts), rank, "right")]
        return float(min(max(value, low), high))

    def merge(self, other: MismatchStats) -> None:
        """Adds another batch, or another rank's or step's batches, which stay as they are.

        Parameters
        ----------
        other : MismatchStats
            Of the same rules. Its batches are numbered behind those that are here.

        Raises
        ------
        InputError
            Statistics with other rules.
        """
        if not isinstance(cast("object", other), MismatchStats):
            expected = "a MismatchStats"
            raise error("bad_parameter", owner="MismatchStats.merge", name="other", given=other, expected=expected)
        if other._rules != self._rules:
            expected = f"statistics with the same rules, ({', '.join(self._rules)})"
            given = f"statistics with ({', '.join(other._rules)})"
            raise error("bad_parameter", owner="MismatchStats.merge", name="other", given=given, expected=expected)
        self._add(copy.deepcopy(other), self.batches)
        self.by_lag = dict(sorted(self.by_lag.items()))

    def _add(self, other: MismatchStats, before: int) -> None:
        other._renumber(before)
        self.batches = other.batches
        self._counts = self._counts + other._counts
        self._sums = self._sums + other._sums
        self._logs = np.logaddexp(self._logs, other._logs)
        self._outside = self._outside + other._outside
        self._bins = {level: self._bins[level] + other._bins[level] for level in _LEVELS}
        self._means = min(self._means[0], other._means[0]), max(self._means[1], other._means[1])
        self.first_not_finite = self.first_not_finite or other.first_not_finite
        for i, sign in enumerate((1, -1, 1, -1)):
            records = self._extremes[i] + other._extremes[i]
            self._extremes[i] = sorted(records, key=lambda one: (sign * one.log_ratio, *one))[:EXTREMES]
        _union(self.by_source, other.by_source, self.batches)
        _union(self.by_lag, other.by_lag, self.batches)

    def _renumber(self, before: int) -> None:
        """Numbers the batches behind so many others."""
        self.batches += before
        self._extremes = [[x._replace(batch=x.batch + before) for x in records] for records in self._extremes]
        if self.first_not_finite is not None:
            self.first_not_finite = self.first_not_finite._replace(batch=self.first_not_finite.batch + before)
        for group in (*self.by_source.values(), *self.by_lag.values()):
            group._renumber(before)

    def metrics(self, prefix: str = "mismatch/") -> dict[str, float]:
        """The numbers for a logger, without those of sources and lags.

        Parameters
        ----------
        prefix : str
            What the names begin with.

        Returns
        -------
        dict of str to float
            Counts, means, ESS, KL, χ²; ``ratio_p1``, ``ratio_p50``, ... and ``geometric_ratio_p1``, ...; for each rule
            ``outside/RULE/tokens`` and ``outside/RULE/sequences``.
        """
        numbers: dict[str, float] = {name: float(getattr(self, name)) for name in (*_COUNTS, *_MEANS)}
        for level, name in zip(_LEVELS, ("ratio", "geometric_ratio"), strict=True):
            numbers |= {f"{name}_{label}": self.quantile(q, level) for label, q in _QUANTILES.items()}
        for rule, shares in self.outside.items():
            numbers |= {f"outside/{rule}/{name}": share for name, share in shares._asdict().items()}
        return {prefix + name: number for name, number in numbers.items()}

    def __repr__(self) -> str:
        return f"MismatchStats({self.tokens:,} tokens, {self.sequences:,} sequences)"

    def __str__(self) -> str:
        return "\n".join(_lines(self))


_COUNTS = ("tokens", "sequences", "not_finite", "sequences_not_finite")
_MEANS = ("mean_ratio", "ess_token", "ess_sequence", "kl_k1", "kl_k3", "kl_gap", "chi2_token", "chi2_sequence")
_QUANTILES = {"min": 0.0, "p1": 0.01, "p50": 0.5, "p99": 0.99, "max": 1.0}


def _lines(stats: MismatchStats) -> list[str]:
    """The table that a person reads."""
    lines = [f"{stats.tokens:,} tokens in {stats.sequences:,} sequences"]
    if stats.first_not_finite is not None:
        places = f"{stats.not_finite:,} tokens of {stats.sequences_not_finite:,} sequences"
        lines.append(f"not finite, left out: {places}, the first in {_where(stats, stats.first_not_finite)}")
    lines += [
        f"KL(rollout ‖ old) per token  k1 {stats.kl_k1:.3g}, k3 {stats.kl_k3:.3g}",
        f"per token     mean ratio {stats.mean_ratio:.6g}, ESS {stats.ess_token:.2%}, χ² {stats.chi2_token:.3g}",
        f"per sequence  ESS {stats.ess_sequence:.2%}, χ² {stats.chi2_sequence:.3g}",
    ]
    for level, name in zip(_LEVELS, ("ratio", "geometric"), strict=True):
        values = (f"{label} {stats.quantile(q, level):.4g}" for label, q in _QUANTILES.items())
        lines.append(f"{name:<13} {', '.join(values)}")
    for name, records in (("lowest", stats.lowest[:1]), ("highest", stats.highest[:1])):
        lines += [f"{name:<13} d {x.log_ratio:.4g}, {_where(stats, x)}" for x in records]
    lines += [
        f"outside {rule}: {shares.tokens:.3%} of tokens, {shares.sequences:.2%} of sequences"
        for rule, shares in stats.outside.items()
    ]
    for name, groups in (("source", stats.by_source), ("lag", stats.by_lag)):
        lines += [
            f"{name} {value}: {group.tokens:,} tokens, k3 {group.kl_k3:.3g}, "
            f"ESS {group.ess_token:.2%} per token, {group.ess_sequence:.2%} per sequence"
            for value, group in groups.items()
        ]
    return lines


def _where(stats: MismatchStats, record: Place | Extreme) -> str:
    return f"batch {record.batch}, " * (stats.batches > 1) + f"sequence {record.sequence} at {record.position}"


def _union(mine: dict[Any, MismatchStats], theirs: dict[Any, MismatchStats], batches: int) -> None:
    for value, group in theirs.items():
        if value in mine:
            mine[value]._add(group, 0)
        else:
            mine[value] = group
    for group in mine.values():
        group.batches = batches


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _within(ess: float, n: int) -> float:
    """An effective sample size in its bounds, which rounding may have left."""
    return min(max(ess, 1 / n), 1.0) if n else math.nan


def _exp(x: float) -> float:
    return math.exp(x) if not x > _LARGEST else math.inf
