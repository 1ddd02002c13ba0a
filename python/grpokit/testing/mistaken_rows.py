"""What known mistakes in an advantage estimator or a filter give: each is the definition with that mistake in it.

A mistake is a function of (case, spec) that yields the mistaken advantages, or which rows are kept, once for each way
in which it is made, with a word on that way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import oracle_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from .cases import Rollouts

    Spec = Mapping[str, Any]
    Outcomes = Iterator[tuple[str, NDArray[Any]]]
    Mistaken = Callable[[Rollouts, Spec], Outcomes]


def _each(case: Rollouts, formula: Callable[[NDArray[np.float64]], Any]) -> NDArray[np.float64]:
    """A formula of each group's rewards."""
    out = np.zeros(len(case.rewards))
    with np.errstate(all="ignore"):
        for rows in case.groups:
            out[rows] = formula(case.rewards[rows])
    return out


def _std(R: NDArray[np.float64], ddof: int) -> float:
    return float(np.sqrt(((R - R.mean()) ** 2).sum() / (len(R) - ddof))) if len(R) > ddof else 0.0


def _stds(case: Rollouts, ddof: int) -> NDArray[np.float64]:
    return _each(case, lambda R: _std(R, ddof))


def sign(case: Rollouts, spec: Spec) -> Outcomes:
    """The sign is wrong."""
    yield "", -oracle_rows.advantages(case, spec)


def ddof(case: Rollouts, spec: Spec) -> Outcomes:
    """The variance has another ddof."""
    if "ddof" in spec:
        yield f"ddof is {1 - spec['ddof']}", oracle_rows.advantages(case, {**spec, "ddof": 1 - spec["ddof"]})


def eps(case: Rollouts, spec: Spec) -> Outcomes:
    """The eps beside the std is another."""
    for other in (0.0, 1e-9, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3):
        if "eps" in spec and other != spec["eps"]:
            yield f"eps is {other:g}", oracle_rows.advantages(case, {**spec, "eps": other})


def eps_in_root(case: Rollouts, spec: Spec) -> Outcomes:
    """Eps is added to the variance, inside the square root."""
    if spec["stage"] == "GroupNorm":
        for inside in (spec["eps"], 1e-8, 1e-6, 1e-5, 1e-4):
            yield f"{inside:g} is added to the variance", _in_root(case, spec["ddof"], inside)


def _in_root(case: Rollouts, ddof: int, eps: float) -> NDArray[np.float64]:
    return _each(case, lambda R: (R - R.mean()) / np.sqrt(_std(R, ddof) ** 2 + eps))


def std_missing(case: Rollouts, spec: Spec) -> Outcomes:
    """It is not divided by the std."""
    if spec["stage"] == "GroupNorm":
        yield "", _each(case, lambda R: R - R.mean())


def std_added(case: Rollouts, spec: Spec) -> Outcomes:
    """It is divided by a std that the equation does not have."""
    if spec["stage"] in ("MeanBaseline", "LeaveOneOut", "RescaledMean", "LengthBaseline"):
        right = oracle_rows.advantages(case, spec)
        for n in (0, 1):
            for e in (1e-4, 1e-6, 1e-8):
                yield f"ddof {n}, eps {e:g}", right / (_stds(case, n) + e)


def variance(case: Rollouts, spec: Spec) -> Outcomes:
    """What it is divided by is no std."""
    if spec["stage"] == "GroupNorm":
        e, n = spec["eps"], spec["ddof"]
        yield "it divides by the variance", _each(case, lambda R: (R - R.mean()) / (_std(R, n) ** 2 + e))
        yield (
            "it divides by the mean absolute deviation",
            _each(case, lambda R: (R - R.mean()) / (np.abs(R - R.mean()).mean() + e)),
        )
        yield "it divides by the range", _each(case, lambda R: (R - R.mean()) / (np.ptp(R) + e))


def whole_batch(case: Rollouts, spec: Spec) -> Outcomes:
    """Statistics are the batch's and not the group's."""
    R = case.rewards
    if spec["stage"] == "GroupNorm":
        n, e = spec["ddof"], spec["eps"]
        centred = _each(case, lambda R: R - R.mean())
        yield "the std is the batch's", centred / (_std(R, n) + e)
        yield "the std is that of the batch's centred rewards", centred / (_std(centred, n) + e)
        yield "mean and std are the batch's", (R - R.mean()) / (_std(R, n) + e)
    elif spec["stage"] in ("MeanBaseline", "LeaveOneOut"):
        yield "the mean is the batch's", R - R.mean()


def baseline(case: Rollouts, spec: Spec) -> Outcomes:
    """The baseline is another."""
    stage = spec["stage"]
    if stage not in ("GroupNorm", "MeanBaseline", "LeaveOneOut", "LengthBaseline", "SoftValue", "GreedyBaseline"):
        return
    scale = _stds(case, spec["ddof"]) + spec["eps"] if stage == "GroupNorm" else 1.0
    ways: dict[str, Callable[[Any], Any]] = {
        "the group's mean, the row itself in it": lambda R: R.mean(),
        "the mean of the others": lambda R: (R.sum() - R) / max(len(R) - 1, 1),
        "the group's median": np.median,
        "nothing": lambda _: 0.0,
        "the best of the group": lambda R: R.max(),
        "the sum of the others over n": lambda R: (R.sum() - R) / len(R),
    }
    for way, b in ways.items():
        yield f"the baseline is {way}", (case.rewards - _each(case, b)) / scale


def rescaled(case: Rollouts, spec: Spec) -> Outcomes:
    """A factor of the group's size is missing, or one too many."""
    A = oracle_rows.advantages(case, spec)
    n = _each(case, len)
    for way, factor in (
        ("n / (n − 1)", n / np.maximum(n - 1, 1)),
        ("(n − 1) / n", (n - 1) / n),
        ("n", n),
        ("1 / n", 1 / n),
    ):
        yield f"it is {way} times what it should be, n the size of the group", A * factor


def by_position(case: Rollouts, spec: Spec) -> Outcomes:
    """Groups are told by the position of the rows and not by their ids."""
    N = len(case.rewards)
    for n in range(2, N):
        if N % n == 0:
            renamed = case.replace(group_ids=np.arange(N) // n)
            yield f"each {n} rows in a row are taken for a group", oracle_rows.advantages(renamed, spec)
    yield "rows that are neighbours and of one group are taken for a group", oracle_rows.advantages(_runs(case), spec)


def _runs(case: Rollouts) -> Rollouts:
    edges = np.concatenate([[0], np.cumsum(np.diff(case.group_ids) != 0)])
    return case.replace(group_ids=edges)


def reordered(case: Rollouts, spec: Spec) -> Outcomes:
    """The results are not in the order of the rows."""
    A = oracle_rows.advantages(case, spec)
    order = np.argsort(case.group_ids, kind="stable")
    first = np.concatenate(case.groups)
    yield "the results are in the order of the ids", A[order]
    yield "the results are in the order of the groups", A[first]


def clipped(case: Rollouts, spec: Spec) -> Outcomes:
    """The advantages are cut off."""
    A = oracle_rows.advantages(case, spec)
    for most in (1.0, 2.0, 3.0, 5.0, 10.0):
        yield f"it is cut at ±{most:g}", np.clip(A, -most, most)


def lengths(case: Rollouts, spec: Spec) -> Outcomes:
    """Lengths are counted otherwise."""
    if spec["stage"] == "GlobalNorm":
        other = "sequences" if spec["over"] == "tokens" else "tokens"
        yield f"{other} are counted", oracle_rows.advantages(case, {**spec, "over": other})
    if spec["stage"] == "LengthBaseline":
        yield "the mean is not weighed by length", _each(case, lambda R: R - R.mean())


def mode(case: Rollouts, spec: Spec) -> Outcomes:
    """The baseline before the global normalisation is another."""
    if spec["stage"] == "GlobalNorm":
        other = "group" if spec["baseline"] == "none" else "none"
        yield f"the baseline is {other}", oracle_rows.advantages(case, {**spec, "baseline": other})


ADVANTAGE: dict[str, Mistaken] = {
    "sign": sign,
    "ddof": ddof,
    "eps": eps,
    "eps_in_root": eps_in_root,
    "std_missing": std_missing,
    "std_added": std_added,
    "std_kind": variance,
    "batch_statistics": whole_batch,
    "baseline": baseline,
    "scale_by_group_size": rescaled,
    "groups_by_position": by_position,
    "results_reordered": reordered,
    "advantages_cut": clipped,
    "lengths": lengths,
    "global_baseline": mode,
}


def inverted(case: Rollouts, spec: Spec) -> Outcomes:
    """What should be dropped is kept."""
    yield "", ~spec["right"](case)


def mean_range(case: Rollouts, spec: Spec) -> Outcomes:
    """The group's mean is tested, and not whether its rewards differ."""
    if spec["stage"] == "HasSignal":
        ways: dict[str, Callable[[Any], Any]] = {
            "its mean is between 0 and 1": lambda R: 0 < R.mean() < 1,
            "its mean is not 0": lambda R: R.mean() != 0,
            "its mean is below 1": lambda R: R.mean() < 1,
            "any reward is above 0": lambda R: (R > 0).any(),
            "not all rewards are 1": lambda R: not (R == 1).all(),
            "not all rewards are 0": lambda R: not (R == 0).all(),
        }
        for way, keeps in ways.items():
            yield f"a group is kept where {way}", _each(case, keeps).astype(bool)


def thresholds(case: Rollouts, spec: Spec) -> Outcomes:
    """A group must have more than some spread."""
    if spec["stage"] == "HasSignal":
        spreads = {
            "std": _stds(case, 0),
            "std with ddof 1": _stds(case, 1),
            "range": _each(case, np.ptp),
        }
        for least in (1e-3, 0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5):
            for name, spread in spreads.items():
                yield f"its {name} must be more than {least:g}", spread > least


def edges(case: Rollouts, spec: Spec) -> Outcomes:
    """The band's ends are others."""
    if spec["stage"] != "PassRate":
        return
    low, high = spec["low"], spec["high"]
    p = np.round(_each(case, lambda R: R.mean()), 12)
    yield "both ends are excluded", (low < p) & (p < high)
    yield "the upper end is excluded", (low <= p) & (p < high)
    yield "the lower end is excluded", (low < p) & (p <= high)
    yield "there is no upper end", p >= low
    yield "there is no lower end", p <= high
    median = _each(case, np.median)
    yield "the median is in the band, not the mean", (low <= median) & (median <= high)


def rows_alone(case: Rollouts, spec: Spec) -> Outcomes:
    """Rows are dropped where groups should be."""
    right = spec["right"](case)
    yield "in a group that is kept, rows of reward 0 are dropped", right & (case.rewards != 0)
    yield "in a group that is kept, rows above the mean are", right & (case.rewards > _each(case, lambda R: R.mean()))
    first = np.zeros(len(right), bool)
    first[[rows[0] for rows in case.groups]] = True
    yield "only the first row of a group is told", right & first


def shaped(case: Rollouts, spec: Spec) -> Outcomes:
    """The shaped reward is looked at, and not the outcome: a punishment for length makes a signal of its own."""
    yield "", spec["right"](case.replace(rewards=case.shaped))


def filtered_by_position(case: Rollouts, spec: Spec) -> Outcomes:
    """Groups are told by the position of the rows and not by their ids."""
    yield "rows that are neighbours and of one group are taken for a group", spec["right"](_runs(case))
    N = len(case.rewards)
    for n in range(2, N):
        if N % n == 0:
            yield (
                f"each {n} rows in a row are taken for a group",
                spec["right"](case.replace(group_ids=np.arange(N) // n)),
            )
    yield "the whole batch is taken for a group", spec["right"](case.replace(group_ids=np.zeros(N, np.int64)))


FILTER: dict[str, Mistaken] = {
    "inverted": inverted,
    "mean_range": mean_range,
    "threshold": thresholds,
    "band_ends": edges,
    "rows_not_groups": rows_alone,
    "shaped_reward": shaped,
    "groups_by_position": filtered_by_position,
}
