"""What known mistakes in a KL estimator or an aggregation give: each is the reference with that mistake in it.

A mistake is a function of (case, spec, on_policy) that yields what the mistaken computation gives, (value, gradient by
logps), once for each way in which it is made, with a word on that way; nothing where it cannot be made.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.reference import aggregate as aggregates
from grpokit.reference import loss as losses

from . import oracle
from .cases import Batch, TokenValues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    Spec = Mapping[str, Any]
    Outcome = tuple[float, NDArray[np.float64]]
    Outcomes = Iterator[tuple[str, Outcome]]
    Mistaken = Callable[[Any, Spec, bool], Outcomes]

KL_KINDS = ("k1", "k2", "k3", "abs")
AGGREGATES = ("TokenMean", "SequenceMean", "SequenceSum", "Constant")
WIDTH = 1e-5


def computed(case: Batch, spec: Spec, on_policy: bool) -> Outcome:
    """The loss and its gradient by the reference, of a changed case or a changed recipe."""
    rows, now = oracle.rows_of(case, on_policy=on_policy)
    value = math.fsum(v for row in losses.loss(rows, spec, now, now) for v in row)
    return value, oracle.padded(case, losses.gradient(rows, spec, now))["logps"]


def differences(case: Batch, loss: Callable[[Batch], float]) -> Outcome:
    """A loss and its slope by every log-prob, by central differences."""
    g = np.zeros(case.mask.shape)
    for at in zip(*np.nonzero(case.mask), strict=True):
        ends = []
        for side in (WIDTH, -WIDTH):
            moved = case["logps"].copy()
            moved[at] += side
            ends.append(loss(case.replace(logps=moved)))
        g[at] = (ends[0] - ends[1]) / (2 * WIDTH)
    return loss(case), g


def denominators(aggregate: Spec, width: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """All other denominators, in words and as the reference reads them."""
    words = {
        "TokenMean": "the tokens of the batch are counted",
        "SequenceMean": "each answer's tokens are counted, then the answers",
        "SequenceSum": "the answers are counted",
        "Constant": "answers times a constant are counted",
    }
    overs = {"live": "that have tokens", "kept": "that the weights leave", "rows": "empty ones too"}
    for stage in AGGREGATES:
        for over, which in overs.items():
            for length in {float(width), aggregate.get("length", float(width))} if stage == "Constant" else {None}:
                entry = {"stage": stage, "over": over} | ({} if length is None else {"length": length})
                if entry != aggregate:
                    detail = f" ({length:g})" if length is not None else ""
                    yield f"{words[stage]}{detail}, {which}", entry


def scaled(value: float, g: NDArray[np.float64], factor: float) -> Outcome:
    """An outcome times a factor."""
    return value * factor, g * factor


def kl_computed(case: Batch, spec: Spec) -> Outcome:
    """A KL estimator's numbers (as an array in the place of the value's) and slopes, summed up."""
    found = oracle.kl(case, spec)
    return found.value[1], found.gradients["logps"][1]


def _kl_estimators(case: Batch, spec: Spec, _on_policy: bool) -> Outcomes:
    """The KL estimator is another."""
    for kind in KL_KINDS:
        if kind != spec["kind"]:
            yield f"it is {kind}", kl_computed(case, {**spec, "kind": kind})
    yield (
        "it is multiplied by the ratio" if not spec["corrected"] else "the ratio before it is missing",
        kl_computed(case, {**spec, "corrected": not spec["corrected"]}),
    )


def _kl_direction(case: Batch, spec: Spec, _on_policy: bool) -> Outcomes:
    """The KL divergence is taken the other way round."""

    def loss(moved: Batch) -> float:
        name = f"{spec['to']}_logps"
        return kl_computed(moved.replace(**{name: 2 * moved["logps"] - moved[name]}), spec)[0]

    yield "", differences(case, loss)


def _kl_factor(case: Batch, spec: Spec, _on_policy: bool) -> Outcomes:
    """The KL term has another coefficient."""
    value, g = kl_computed(case, spec)
    for way, factor in (("twice", 2.0), ("half", 0.5), ("minus", -1.0)):
        yield f"{way} what it should be", scaled(value, g, factor)


def _kl_constant(case: Batch, spec: Spec, _on_policy: bool) -> Outcomes:
    """The KL estimate is off by 1: k3 is e^−y + y − 1."""
    value, g = kl_computed(case, spec)
    yield "", (value + float(case.mask.sum()), g)
    yield "", (value - float(case.mask.sum()), g)


def _kl_detached(case: Batch, spec: Spec, _on_policy: bool) -> Outcomes:
    """A part of the loss has no gradient."""
    yield "", (kl_computed(case, spec)[0], np.zeros_like(case["logps"]))


def _kl_straight_through(case: Batch, spec: Spec, _on_policy: bool) -> Outcomes:
    """Value and gradient are those of two estimators."""
    value, _ = kl_computed(case, spec)
    for kind in KL_KINDS:
        if kind != spec["kind"]:
            yield (
                f"the value is {spec['kind']}'s, the gradient {kind}'s",
                (value, kl_computed(case, {**spec, "kind": kind})[1]),
            )


KL: dict[str, Mistaken] = {
    "kl_estimator": _kl_estimators,
    "kl_direction": _kl_direction,
    "kl_coefficient": _kl_factor,
    "kl_constant": _kl_constant,
    "ratio_not_differentiated": _kl_detached,
    "kl_straight_through": _kl_straight_through,
}


def sum_computed(case: TokenValues, spec: Spec) -> Outcome:
    """An aggregation and each token's share."""
    found = oracle.aggregate(case, spec)
    return found.value[1], found.gradients["values"][1]


def _sum_denominator(case: TokenValues, spec: Spec, _on_policy: bool) -> Outcomes:
    """The denominator is another."""
    for way, entry in denominators(spec, case.mask.shape[1]):
        yield way, sum_computed(case, entry)


def _sum_masked_counted(case: TokenValues, spec: Spec, _on_policy: bool) -> Outcomes:
    """The denominator counts masked tokens."""
    S, T = case.mask.shape
    kept = int(case.mask.sum())
    if kept in (0, S * T):
        return
    if spec["stage"] == "TokenMean":
        value, g = sum_computed(case, spec)
        yield "", scaled(value, g, kept / (S * T))
    if spec["stage"] == "SequenceMean":
        yield "", sum_computed(case, {"stage": "Constant", "length": float(T), "over": spec["over"]})


def _sum_undivided(case: TokenValues, _spec: Spec, _on_policy: bool) -> Outcomes:
    """The sum is not divided at all."""
    yield "", (float(case.values[case.mask].sum()), case.mask.astype(float))


def _sum_mask_ignored(case: TokenValues, spec: Spec, _on_policy: bool) -> Outcomes:
    """The mask is not applied, or not everywhere."""
    if case.mask.all():
        return
    value, g = sum_computed(TokenValues(case.values, np.ones_like(case.mask)), spec)
    yield "masked tokens count as any other", (value, g)
    tokens, N, lengths = aggregates.counts([[1.0] * int(n) for n in case.mask.sum(1)], spec["over"])
    parameters = {k: v for k, v in spec.items() if k not in ("stage", "over")}
    if tokens and (all(lengths) or spec["stage"] != "SequenceMean"):
        share = np.array([[1 / aggregates.DENOMINATORS[spec["stage"]](tokens, N, n, **parameters)] for n in lengths])
        share = share + 0 * case.values
        yield "masked tokens are in the sum, not in the count", (float((case.values * share).sum()), share)


AGGREGATE: dict[str, Mistaken] = {
    "masked_tokens_counted": _sum_masked_counted,
    "denominator": _sum_denominator,
    "denominator_missing": _sum_undivided,
    "mask_ignored": _sum_mask_ignored,
    "sign": lambda case, spec, _: iter([("", scaled(*sum_computed(case, spec), -1.0))]),
}
