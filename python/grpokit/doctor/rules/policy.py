"""The policy itself: it stops exploring, is held by its clip, or leaves its reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.configured import recipe_of
from grpokit.doctor.rule import Bounds, Seen, rule
from grpokit.doctor.series import ends, rising

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.record import Record


@rule(
    "D006",
    "entropy-collapse",
    "The policy has stopped exploring before it has learned",
    severity="warning",
    cause="Nearly all probability is on one answer a prompt, so a group's answers are alike, and what is wrong is not "
    "tried otherwise. A symmetric clip, a high learning rate and many updates a step hasten it.",
    fix="`recipe=dapo` (clip-higher: `recipe.high=0.28`), `recipe=clip_cov` or `kl_cov`, "
    "`entropy_control.target=...`, a lower `learning_rate`; begin again from before it fell.",
    source="arXiv:2503.14476, §3.1; arXiv:2505.22617 (R = −a e^H + b: the reward ends where the entropy does)",
    reads="the metrics entropy and reward",
    bounds={
        "entropy": (0.1, "nats a token; e^0.1 = 1.1 choices"),
        "fall": (0.2, "of what it was: a policy that began so sure has not collapsed"),
        "solved": (0.9, "of a reward of 1 at most: a policy that is right may be sure"),
    },
    online=True,
)
def entropy_collapse(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Low, far below what it was, and neither solved nor still learning."""
    found = ends(record.metrics, "entropy")
    if found is None or record.metrics is None:
        return
    early, late = float(np.median(found.early)), float(np.median(found.late))
    if late > bound["entropy"] or late > bound["fall"] * early:
        return
    rewards = record.metrics.trained().there("reward")[1]
    numbers = {"early": early, "late": late}
    message = f"The entropy fell from {early:.3g} to {late:.3g} nats a token"
    if len(rewards) >= 10:
        reward = float(rewards[-len(found.late) :].mean())
        if reward >= bound["solved"] or rising(rewards[-max(10, len(rewards) // 3) :]) > 2:
            return
        numbers["reward"] = reward
        message += f", and the reward stays at {reward:.3g}"
    yield Seen(message + ".", numbers, found.steps)


@rule(
    "D007",
    "held-at-the-upper-clip",
    "A symmetric clip holds tokens down that are to become likelier",
    severity="warning",
    cause="Below the upper clip a token's probability grows by 1 + ε an update at most: tenfold takes ln 10 / ln 1.2 = "
    "12.6 updates, and 9.3 at 1.28. No token above 1 / (1 + ε) = 0.83 can meet it: those that are held are the "
    "unlikely ones, which exploration lives from.",
    fix="`recipe=dapo`, or `recipe.high=0.28` with `recipe.low=0.2`.",
    source="arXiv:2503.14476, §3.1 (clip-higher)",
    reads="low and high of the recipe, the metrics clip_ratio/high_mean and entropy. Which tokens are clipped is not "
    "measured: that they are unlikely ones follows from the bound",
    bounds={
        "clipped": (0.005, "of all tokens, the median of the steps in which the entropy fell by half"),
        "steps": (5, "in which it fell, at least"),
        "fall": (0.5, "the entropy ends below half of what it was: exploration ends"),
    },
    online=True,
)
def held_at_the_clip(record: Record, bound: Bounds) -> Iterator[Seen]:
    """The clip is symmetric, it binds above, and the entropy falls."""
    recipe = recipe_of(record)
    low, high = getattr(recipe and recipe.objective, "low", None), getattr(recipe and recipe.objective, "high", None)
    entropy = ends(record.metrics, "entropy")
    if low is None or low != high or not high or record.metrics is None or entropy is None:
        return
    early, late = float(np.median(entropy.early)), float(np.median(entropy.late))
    steps, values = record.metrics.trained().there("entropy")
    below = steps[values < bound["fall"] * early]
    if late > bound["fall"] * early or not len(below):
        return
    at, clipped = record.metrics.trained().there("clip_ratio/high_mean")
    clipped = clipped[at <= max(below[0], steps[int(bound["steps"]) - 1])]
    if len(clipped) < bound["steps"] or np.median(clipped) < bound["clipped"]:
        return
    share = float(np.median(clipped))
    tenfold = math.log(10) / math.log1p(high)
    message = (
        f"{share:.2%} of the tokens are held at the upper clip of {high:g}, and the entropy fell from {early:.3g} to "
        f"{late:.3g}; tenfold takes {tenfold:.1f} updates."
    )
    numbers = {"clipped": share, "high": high, "early": early, "late": late, "updates to tenfold": tenfold}
    yield Seen(message, numbers, (int(steps[0]), int(below[0])))


@rule(
    "D013",
    "kl-runaway",
    "The policy runs away from its reference",
    severity="warning",
    cause="The penalty is too weak for the learning rate, or the reward pays for leaving: answers that no one would "
    "write, that the scorer likes.",
    fix="A larger `recipe.beta`, or `kl_control.target=0.05` which steers it; a lower `learning_rate`; read the best "
    "completions for what the scorer is paid for.",
    source="arXiv:1909.08593 (adaptive KL); the k3 estimate is e^−x + x − 1 of the log-ratio x",
    reads="the metric kl",
    bounds={
        "kl": (1, "nats a token, median of the last steps; it begins at 0, and at 1 tokens are 3 to 6 times as likely"),
    },
    online=True,
)
def kl_runaway(record: Record, bound: Bounds) -> Iterator[Seen]:
    """Large at the end."""
    found = ends(record.metrics, "kl")
    if found is None:
        return
    early, late = float(np.median(found.early)), float(np.median(found.late))
    if late >= bound["kl"]:
        message = f"The KL to the reference is {late:.3g} nats a token, and was {early:.3g} at the beginning."
        yield Seen(message, {"early": early, "late": late}, found.steps)
