"""What is right of a table of scored answers, by the float64 reference: advantages, and which rows are kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.errors import error
from grpokit.reference import advantage as reference
from grpokit.reference.selection import Selection

from . import oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from grpokit.stages import Stage

    from .cases import Rollouts

# Of one group: its rewards and the columns of its rows.
_GROUPS: dict[str, Callable[..., list[float]]] = {
    "GroupNorm": lambda R, _c, ddof, eps: reference.group_norm(R, ddof, eps),
    "MeanBaseline": lambda R, _c: reference.mean_baseline(R),
    "LeaveOneOut": lambda R, _c: reference.leave_one_out(R),
    "LengthBaseline": lambda R, c: reference.length_baseline(R, c["lengths"]),
    "SoftValue": lambda R, _c, beta: reference.soft_value(R, beta),
    "GreedyBaseline": lambda R, c: reference.greedy_baseline(R, c["baselines"]),
    "Given": lambda R, _c: list(R),
    "PKPO": lambda R, _c, k, baseline: reference.pkpo(R, k, baseline),
}
ESTIMATORS = (*_GROUPS, "RescaledMean", "GlobalNorm")
_RULES = {"HasSignal": "has_signal", "PassRate": "pass_rate", "MinGroupSize": "min_group_size"}
SELECTIONS = tuple(_RULES)


def check_estimator(stage: Stage) -> None:
    """Refuses an estimator whose columns are not drawn."""
    name = type(stage).__name__
    per_token = name == "GlobalNorm" and getattr(stage, "beta", 0.0) != 0
    if name not in ESTIMATORS or per_token:
        _refuse("advantage", stage, ESTIMATORS)


def check_selection(stages: Sequence[Stage]) -> None:
    """Refuses a selection whose columns are not drawn."""
    for stage in stages:
        if type(stage).__name__ not in SELECTIONS:
            _refuse("filter", stage, SELECTIONS)


def _refuse(kind: str, stage: Stage, known: Sequence[str]) -> None:
    expected = "one that reads rewards, groups and lengths alone: " + ", ".join(known)
    raise error("bad_parameter", owner=f"conform --kind {kind}", name="stage", given=stage, expected=expected)


def advantages(case: Rollouts, spec: Mapping[str, Any]) -> NDArray[np.float64]:
    """(N,): the advantages by the reference."""
    name = spec["stage"]
    parameters = {k: v for k, v in spec.items() if k != "stage"}
    N = len(case.rewards)
    if name == "GlobalNorm":
        x = case.rewards
        if parameters["baseline"] == "group":
            x = _by_group(case, lambda R, _c: reference.mean_baseline(R))
        weights = case.lengths.astype(float) if parameters["over"] == "tokens" else np.ones(N)
        steps, keep = [0] * N, [True] * N
        return reference.by_batch(steps, x.tolist(), weights.tolist(), keep, parameters["ddof"], parameters["eps"])
    if name == "RescaledMean":
        groups = case.groups
        found = reference.rescaled_mean([case.rewards[rows].tolist() for rows in groups])
        A = np.zeros(N)
        for rows, values in zip(groups, found, strict=True):
            A[rows] = values
        return A
    return _by_group(case, lambda R, c: _GROUPS[name](R, c, **parameters))


def _by_group(case: Rollouts, estimator: Callable[..., list[float]]) -> NDArray[np.float64]:
    A = np.zeros(len(case.rewards))
    for rows in case.groups:
        columns = {"lengths": case.lengths[rows].tolist(), "baselines": case.baselines[rows].tolist()}
        A[rows] = estimator(case.rewards[rows].tolist(), columns)
    return A


def interval(
    case: Rollouts, spec: Mapping[str, Any], unit: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The advantages and what rounding rewards and sums to a relative precision may make of them."""
    A, room = advantages(case, spec), np.zeros(len(case.rewards))
    batch = spec["stage"] in ("GlobalNorm", "RescaledMean")
    for rows in [np.arange(len(A))] if batch else case.groups:
        R, a = case.rewards[rows], A[rows]
        if not len(R):
            continue
        spread = float(np.ptp(R))
        slope = max(1.0, float(np.ptp(a)) / spread if spread else 1.0)
        most = float(np.abs(R).max()) + float(np.abs(case.baselines[rows]).max(initial=0.0))
        steps = unit * (oracle.ROUNDINGS + 4 * len(R))
        # The spread itself is as uncertain as the rewards are.
        room[rows] = steps * (most * slope * (1 + np.abs(a)) + np.abs(a) + math.ulp(0.0))
    return A - room, A, A + room


def kept(case: Rollouts, stages: Sequence[Stage]) -> NDArray[np.bool_]:
    """(N,) bool: the rows that the selections keep."""
    selection = Selection(case.group_ids.tolist(), case.rewards.tolist())
    for stage in stages:
        spec = oracle.plain(stage)
        name = spec.pop("stage")
        getattr(selection, _RULES[name])(**spec)
    return np.array(selection.keep(), bool)
