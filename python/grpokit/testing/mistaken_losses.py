"""What known mistakes in a loss give: each is the reference with that mistake in it, as in `mistaken_tokens`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.reference import loss as losses

from . import oracle
from .mistaken_tokens import KL_KINDS, computed, denominators, differences, scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from .cases import Batch
    from .mistaken_tokens import Mistaken, Outcome, Outcomes, Spec

    # Of a sequence's log-ratios and advantages, and the padded width: the policy term's value at each token.
    Formula = Callable[[NDArray[Any], NDArray[Any], int], Any]


def _objective(spec: Spec, **changes: Any) -> dict[str, Any]:
    return {**spec, "objective": {**spec["objective"], **changes}}


def _kl_terms(spec: Spec) -> list[int]:
    return [i for i, term in enumerate(spec["extra"]) if term["objective"]["stage"] == "KL"]


def _extra(spec: Spec, i: int, **changes: Any) -> dict[str, Any]:
    terms = [dict(term) for term in spec["extra"]]
    terms[i] |= changes
    return {**spec, "extra": terms}


def sign(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The sign is wrong."""
    value, g = computed(case, spec, on_policy)
    yield "", (-value, -g)


def bounds(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The clip's bounds are others."""
    low, high = spec["objective"].get("low"), spec["objective"].get("high")
    if low is None and high is None:
        return
    ways = {
        "low and high are swapped": {"low": high, "high": low},
        "low is used on both sides": {"low": low, "high": low},
        "high is used on both sides": {"low": high, "high": high},
        "there is no clip": {"low": None, "high": None},
        "there is no lower bound": {"low": None, "high": high},
        "there is no upper bound": {"low": low, "high": None},
        "the bounds are ratios themselves and not distances from 1": {
            "low": None if low is None else 1 - low,
            "high": None if high is None else high - 1,
        },
    }
    for way, changes in ways.items():
        fits = all(x is None or x > -1 for x in changes.values()) and (changes["low"] is None or changes["low"] < 1)
        if fits and changes != {"low": low, "high": high}:
            yield way, computed(case, _objective(spec, **changes), on_policy)


def dual(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The dual clip is another."""
    if "dual" not in spec["objective"]:
        return
    if spec["objective"]["dual"] is None:
        yield "there is one at 3", computed(case, _objective(spec, dual=3.0), on_policy)
    else:
        yield "there is none", computed(case, _objective(spec, dual=None), on_policy)


def _policy(case: Batch, spec: Spec, formula: Formula, *, on_policy: bool) -> Outcome:
    """The loss with another formula for the policy term."""

    def loss(moved: Batch) -> float:
        rows, now = oracle.rows_of(moved, on_policy=on_policy)
        # The other terms; the policy term's −A l is taken off again below.
        plain = losses.loss(rows, {**spec, "objective": {"stage": "Reinforce"}}, now, now)
        term = losses.terms(spec)[0]
        total = math.fsum(v for row in plain for v in row)
        frozen = oracle.rows_of(case, on_policy=on_policy)[1]
        for i, (s, k, kept) in enumerate(losses.sequences(rows, spec, term, frozen)):
            l = np.array([now[i]["logps"][t] for t in kept])
            A = np.array(s["advantages"])
            if len(l):
                own = formula(l - np.array(s["base_logps"]), A, case.mask.shape[1])
                total += float((np.array(k) * (own + A * l)).sum())
        return total

    return differences(case, loss)


def _surrogate(r: Any, A: Any, spec: Spec, *, chosen: Callable[[Any, Any], Any] = np.minimum) -> Any:
    """−min(r A, clip(r) A), or with another choice between the two."""
    low, high = spec["objective"].get("low"), spec["objective"].get("high")
    clipped = np.clip(r, -np.inf if low is None else 1 - low, np.inf if high is None else 1 + high)
    return -chosen(r * A, clipped * A)


def _clips(spec: Spec) -> bool:
    return {"low", "high"} <= set(spec["objective"]) and (spec["objective"]["low"], spec["objective"]["high"]) != (
        None,
        None,
    )


def _sequence_mean(d: Any) -> Any:
    return d.mean() + 0 * d


def _own(d: Any) -> Any:
    return d


def _formulas(case: Batch, spec: Spec, on_policy: bool, ways: Mapping[str, Formula]) -> Outcomes:
    for way, formula in ways.items():
        yield way, _policy(case, spec, formula, on_policy=on_policy)


def side(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The clip does not depend on the sign of A as PPO's does."""
    stage = spec["objective"]["stage"]
    if stage not in ("Clip", "SequenceClip", "SequenceClipToken") or not _clips(spec):
        return
    mean = _sequence_mean if stage == "SequenceClip" else _own
    ways: dict[str, Formula] = {
        "the clipped ratio is used whatever the sign of A, without the minimum": lambda d, A, T: _surrogate(
            np.exp(mean(d)), A, spec, chosen=lambda _, clipped: clipped
        ),
        "the larger of the two is taken, not the smaller": lambda d, A, T: _surrogate(
            np.exp(mean(d)), A, spec, chosen=np.maximum
        ),
    }
    yield from _formulas(case, spec, on_policy, ways)


def reversed_ratio(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The ratio is upside down, π_old / π."""
    stage = spec["objective"]["stage"]
    if stage in ("Clip", "SequenceClip") and not on_policy:
        mean = _sequence_mean if stage == "SequenceClip" else _own
        yield from _formulas(case, spec, on_policy, {"": lambda d, A, T: _surrogate(np.exp(-mean(d)), A, spec)})


def log_for_ratio(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The ratio is not the exp of the difference of the log-probs."""
    if spec["objective"]["stage"] == "Clip":
        ways: dict[str, Formula] = {
            "it is the logarithm": lambda d, A, T: _surrogate(d, A, spec),
            "it is 1 + log r": lambda d, A, T: _surrogate(1 + d, A, spec),
        }
        yield from _formulas(case, spec, on_policy, ways)


def sequence_ratio(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The sequence's ratio is another mean."""
    stage = spec["objective"]["stage"]
    if stage not in ("SequenceClip", "SequenceClipToken"):
        return
    ways: dict[str, Formula] = {
        "the sum of the log-ratios stands where their mean should": lambda d, A, T: _surrogate(
            np.exp(np.minimum(d.sum(), 700.0)) + 0 * d, A, spec
        ),
        "the mean of the ratios stands where the exp of the mean log-ratio should": lambda d, A, T: _surrogate(
            np.exp(d).mean() + 0 * d, A, spec
        ),
        "the log-ratios' sum is divided by the padded width": lambda d, A, T: _surrogate(
            np.exp(d.sum() / T) + 0 * d, A, spec
        ),
    }
    yield from _formulas(case, spec, on_policy, ways)


def level(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The ratio is taken at another level."""
    stage = spec["objective"]["stage"]
    others = {
        "Clip": ("SequenceClip",),
        "SequenceClip": ("Clip", "SequenceClipToken"),
        "SequenceClipToken": ("Clip", "SequenceClip"),
        "GeometricClip": ("Clip", "SequenceClip"),
    }
    words = {
        "Clip": "each token has its own ratio",
        "SequenceClip": "the ratio is the sequence's, and so is its gradient",
        "SequenceClipToken": "the sequence's ratio has only the token's own gradient (GSPO-token)",
    }
    for other in others.get(stage, ()):
        keys = {k: spec["objective"].get(k) for k in ("low", "high", "dual")}
        yield words[other], computed(case, {**spec, "objective": {"stage": other, **keys}}, on_policy)


def geometric(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The geometric mean is another."""
    if spec["objective"]["stage"] != "GeometricClip":
        return
    low, high = spec["objective"]["low"], spec["objective"]["high"]

    def one_sided(d: Any, A: Any) -> Any:
        return np.where(A < 0, np.maximum(d, -low), np.minimum(d, high))

    least = math.log1p(-low) if low < 1 else -math.inf
    ways: dict[str, Formula] = {
        "the log-ratios are clipped on both sides, whatever the sign of A": lambda d, A, T: (
            -A * np.exp(np.clip(d, -low, high).mean())
        ),
        "nothing is clipped": lambda d, A, T: -A * np.exp(d.mean()),
        "the product is not brought to the power 1/|o|": lambda d, A, T: -A * np.exp(one_sided(d, A).sum()),
        "the mean is arithmetic": lambda d, A, T: -A * np.exp(one_sided(d, A)).mean(),
        "the bounds are those of the ratio and not of its logarithm": lambda d, A, T: (
            -A * np.exp(np.where(A < 0, np.maximum(d, least), np.minimum(d, math.log1p(high))).mean())
        ),
    }
    yield from _formulas(case, spec, on_policy, ways)


def not_differentiated(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """A part of the loss has no gradient."""
    value, _ = computed(case, spec, on_policy)
    silent = {**spec, "objective": {"stage": "Entropy"}}
    yield "the ratio is a constant to autograd", (value, computed(case, silent, on_policy)[1])
    for i in _kl_terms(spec):
        other = computed(case, _extra(spec, i, scale=0.0), on_policy)[1]
        yield "the KL term is a constant to autograd", (value, other)


def without_stop(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """A stop-gradient is missing: what the equation holds constant is differentiated."""

    def loss(moved: Batch) -> float:
        rows, now = oracle.rows_of(moved, on_policy=on_policy)
        return math.fsum(v for row in losses.loss(rows, spec, now, now) for v in row)

    yield "", differences(case, loss)


def temperatures(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The gate's temperatures are others."""
    if spec["objective"]["stage"] != "SoftGate":
        return
    positive, negative = spec["objective"]["positive"], spec["objective"]["negative"]
    yield (
        "those of positive and negative advantages are swapped",
        computed(case, _objective(spec, positive=negative, negative=positive), on_policy),
    )
    yield "one is used for both", computed(case, _objective(spec, negative=positive), on_policy)

    def gate(d: Any, A: Any) -> tuple[Any, Any]:
        tau = np.where(A > 0, positive, negative)
        return tau, -A / (1 + np.exp(-tau * (np.exp(d) - 1)))

    ways: dict[str, Formula] = {
        "the factor 4/τ is missing": lambda d, A, T: gate(d, A)[1],
        "the factor is 4, without 1/τ": lambda d, A, T: 4 * gate(d, A)[1],
    }
    yield from _formulas(case, spec, on_policy, ways)


def denominator(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The denominator is another."""
    for way, entry in denominators(spec["aggregate"], case.mask.shape[1]):
        changed = {**spec, "aggregate": entry}
        yield way, computed(case, changed, on_policy)
        if any(term["aggregate"] == spec["aggregate"] for term in spec["extra"]):
            terms = [{**t, "aggregate": entry} if t["aggregate"] == spec["aggregate"] else t for t in spec["extra"]]
            yield way, computed(case, {**changed, "extra": terms}, on_policy)
    for i in _kl_terms(spec):
        for way, entry in denominators(spec["extra"][i]["aggregate"], case.mask.shape[1]):
            yield f"of the KL term: {way}", computed(case, _extra(spec, i, aggregate=entry), on_policy)


def masked_counted(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The denominator counts masked tokens."""
    S, T = case.mask.shape
    kept = int(case.mask.sum())
    if kept == case.mask.size or not kept:
        return
    value, g = computed(case, spec, on_policy)
    stage = spec["aggregate"]["stage"]
    if stage == "TokenMean":
        yield "", scaled(value, g, kept / (S * T))
    if stage == "SequenceMean":
        entry = {"stage": "Constant", "length": float(T), "over": spec["aggregate"]["over"]}
        terms = [{**t, "aggregate": entry} for t in spec["extra"]]
        yield "", computed(case, {**spec, "aggregate": entry, "extra": terms}, on_policy)


def undivided(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The sum is not divided at all."""
    entry = {"stage": "Constant", "length": 1.0, "over": "rows"}
    terms = [{**t, "aggregate": entry} for t in spec["extra"]]
    value, g = computed(case, {**spec, "aggregate": entry, "extra": terms}, on_policy)
    yield "", scaled(value, g, float(len(case.mask)))


def mask_ignored(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The mask is not applied, or not everywhere."""
    if case.mask.all():
        return
    whole = case.replace(np.ones_like(case.mask))
    value, g = computed(whole, spec, on_policy)
    yield "masked tokens count as any other", (value, g)
    if spec["aggregate"]["stage"] == "TokenMean" and case.mask.any():
        yield "masked tokens are in the sum, not in the count", scaled(value, g, case.mask.size / case.mask.sum())


def mask_shifted(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The mask is shifted by one place."""
    for way, by in (("one place to the left", -1), ("one place to the right", 1)):
        mask = np.roll(case.mask, by, 1)
        mask[:, -1 if by < 0 else 0] = False
        yield way, computed(case.replace(mask), spec, on_policy)


def kl_estimator(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The KL estimator is another."""
    for i in _kl_terms(spec):
        own = spec["extra"][i]["objective"]
        for kind in KL_KINDS:
            if kind != own["kind"]:
                yield (
                    f"{kind} stands where {own['kind']} should",
                    computed(case, _extra(spec, i, objective={**own, "kind": kind}), on_policy),
                )
        yield (
            "it is multiplied by the ratio" if not own["corrected"] else "the ratio before it is missing",
            computed(case, _extra(spec, i, objective={**own, "corrected": not own["corrected"]}), on_policy),
        )


def kl_direction(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The KL divergence is taken the other way round."""
    for i in _kl_terms(spec):
        own = spec["extra"][i]
        # y → −y: the reference policy mirrored about the current one, which moves.
        name = f"{own['objective']['to']}_logps"
        base = computed(case, _extra(spec, i, scale=0.0), on_policy)

        def only(moved: Batch, i: int = i, name: str = name) -> float:
            mirrored = moved.replace(**{name: 2 * moved["logps"] - moved[name]})
            with_, _ = computed(mirrored, spec, on_policy)
            without, _ = computed(mirrored, _extra(spec, i, scale=0.0), on_policy)
            return with_ - without

        if name == "ref_logps":
            value, g = differences(case, only)
            yield "", (base[0] + value, base[1] + g)


def kl_coefficient(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The KL term has another coefficient."""
    for i in _kl_terms(spec):
        scale = spec["extra"][i]["scale"]
        for way, factor in (
            ("it is missing", 0.0),
            ("its sign is wrong", -1.0),
            ("it is twice as large", 2.0),
            ("it is half as large", 0.5),
        ):
            yield way, computed(case, _extra(spec, i, scale=factor * scale), on_policy)


def kl_target(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The KL term is to another policy."""
    for i in _kl_terms(spec):
        own = spec["extra"][i]["objective"]
        if not on_policy:
            other = "old" if own["to"] == "ref" else "ref"
            yield (
                f"it is to the {other} policy",
                computed(case, _extra(spec, i, objective={**own, "to": other}), on_policy),
            )


def entropy_term(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The entropy term is another."""
    for i, term in enumerate(spec["extra"]):
        if term["objective"]["stage"] == "Entropy":
            yield "it is missing", computed(case, _extra(spec, i, scale=0.0), on_policy)
            yield "its sign is wrong", computed(case, _extra(spec, i, scale=-term["scale"]), on_policy)


def correction(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The correction is another."""
    for i, own in enumerate(spec["correct"]):
        rest = [entry for j, entry in enumerate(spec["correct"]) if j != i]
        yield f"{own['stage']} is missing", computed(case, {**spec, "correct": rest}, on_policy)
        for way, entry in _corrections(own):
            yield way, computed(case, {**spec, "correct": [*rest, entry]}, on_policy)
    if spec["correct"] and spec["ratio"] == "old":
        turned = case.replace(rollout_logps=2 * case["old_logps"] - case["rollout_logps"])
        yield "its ratio is upside down, π_rollout / π_old", computed(turned, spec, on_policy)


def _corrections(own: Spec) -> Iterator[tuple[str, dict[str, Any]]]:
    if own["stage"] == "TIS":
        cap = own["cap"]
        yield "it is not truncated", {**own, "cap": None}
        if cap is not None:
            yield "what is above the cap is dropped, not truncated", {
                "stage": "IcePop", "low": own["low"] or 1e-9, "high": cap, "policy": own["policy"],
            }  # fmt: skip
        for other in ("token", "sequence", "geometric"):
            if other != own["level"]:
                yield f"it is of the {other} and not of the {own['level']}", {**own, "level": other}
        yield "it is divided by its mean" if not own["normalize"] else "it is not divided by its mean", {
            **own, "normalize": not own["normalize"],
        }  # fmt: skip
    if own["stage"] == "IcePop":
        yield "what is outside is truncated, not dropped", {
            "stage": "TIS", "cap": own["high"], "low": own["low"], "level": "token", "normalize": False,
            "policy": own["policy"],
        }  # fmt: skip
        yield (
            "what is inside is not weighed",
            {"stage": "WTRS", "low": own["low"], "high": own["high"], "policy": own["policy"]},
        )


def dropped(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """Tokens of weight 0 are, or are not, in the ratio of their sequence."""
    if spec["correct"]:
        other = "in_ratio" if spec["dropped"] == "removed" else "removed"
        yield "", computed(case, {**spec, "dropped": other}, on_policy)


def old_policy(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The ratio is to another policy."""
    if not on_policy:
        yield "it is to the current policy itself, and always 1", computed(case, spec, on_policy=True)
        other = "rollout" if spec["ratio"] == "old" else "old"
        yield f"it is to the {other} policy", computed(case, {**spec, "ratio": other}, on_policy)


def whitened(case: Batch, spec: Spec, on_policy: bool) -> Outcomes:
    """The advantages are normalised once more, over the batch's tokens."""
    A = case["advantages"][case.mask]
    for ddof in (0, 1):
        if len(A) > ddof and A.std() > 0:
            again = (case["advantages"] - A.mean()) / (A.std(ddof=ddof) + 1e-8)
            yield "", computed(case.replace(advantages=again), spec, on_policy)


LOSS: dict[str, Mistaken] = {
    "sign": sign,
    "ratio_not_differentiated": not_differentiated,
    "stop_gradient_missing": without_stop,
    "clip_side": side,
    "clip_bounds": bounds,
    "dual_clip": dual,
    "ratio_reversed": reversed_ratio,
    "log_for_ratio": log_for_ratio,
    "sequence_ratio": sequence_ratio,
    "ratio_level": level,
    "geometric_mean": geometric,
    "gate_temperature": temperatures,
    "masked_tokens_counted": masked_counted,
    "denominator": denominator,
    "denominator_missing": undivided,
    "mask_ignored": mask_ignored,
    "mask_shifted": mask_shifted,
    "kl_estimator": kl_estimator,
    "kl_direction": kl_direction,
    "kl_coefficient": kl_coefficient,
    "kl_target": kl_target,
    "entropy_term": entropy_term,
    "correction": correction,
    "dropped_tokens": dropped,
    "old_policy": old_policy,
    "advantages_whitened": whitened,
}
