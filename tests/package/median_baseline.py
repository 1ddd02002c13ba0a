"""Another package's stages: an estimator, a selection, and the recipe that uses them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import grpokit as gk


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


@gk.register("recipe")
def median(*, at_least: float = 0.5):
    """Median baseline, no paper."""
    base = gk.recipe("rloo")
    return base.replace(name="median", advantage=MedianBaseline(), select=(Judged(at_least), gk.HasSignal()))
