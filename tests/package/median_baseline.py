"""Another package's stages: an estimator, a selection, an objective, and the recipes that use them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import grpokit as gk
from grpokit.objective.columns import ratio


@gk.register("advantage")
@dataclass(frozen=True)
class MedianBaseline(gk.Advantage):
    """A = R − median of the group."""

    equation: ClassVar[str] = "A = R − median"

    def __call__(self, rewards_N, groups, columns):
        return rewards_N - np.array([np.median(rewards_N[groups.codes == g]) for g in range(len(groups))])[groups.codes]


@gk.register("select")
@dataclass(frozen=True)
class Judged(gk.Select):
    """Keeps what the judge trusts, on either side."""

    at_least: float = 0.5
    reads: ClassVar[frozenset[str]] = frozenset({"judge"})

    def __call__(self, outcomes_N, groups, columns):
        return columns["judge"] >= self.at_least


@gk.register("objective")
@dataclass(frozen=True)
class SoftClip(gk.Objective):
    """−A (1 + width · atan((r − 1) / width)): a ratio that levels off on both sides."""

    width: float = 0.3
    equation: ClassVar[str] = "−A (1 + width atan((r − 1) / width))"
    gradient: ClassVar[str] = "g = −A r / (1 + ((r − 1) / width)²)"
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})

    @property
    def facts(self):
        return (f"the ratio counts as {1 + 1.5708 * self.width:.2f} at most",)

    def value(self, tokens):
        r = ratio(tokens.log_ratio)
        return -tokens.advantages * (1 + self.width * ((r - 1) / self.width).atan())


@gk.register("recipe")
def median_soft(*, width: float = 0.3):
    """Median baseline with a soft clip, no paper."""
    return gk.Recipe(name="median_soft", advantage=MedianBaseline(), objective=SoftClip(width))


@gk.register("recipe")
def median(*, at_least: float = 0.5):
    """Median baseline, no paper."""
    base = gk.recipe("rloo")
    return base.replace(name="median", advantage=MedianBaseline(), select=(Judged(at_least), gk.HasSignal()))
