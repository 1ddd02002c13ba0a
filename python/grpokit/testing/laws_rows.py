"""The laws of what works on rows: advantage estimators and filters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import arrays, oracle_rows, strategies
from .subject import Departure
from .trial import Law, Trial, repeated, same, unchanged, within

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray

    from .cases import Rollouts


def _rollouts(trial: Trial, *, signal: bool | None = None, rows: int = 0) -> SearchStrategy[Rollouts]:
    drawn = strategies.rollouts(signal=signal, equal=trial.subject.equal_groups)
    return drawn.filter(lambda case: len(case.rewards) > rows)


def _paired(trial: Trial, *, signal: bool | None = None) -> SearchStrategy[Rollouts]:
    """Groups of two rows or more."""
    return _rollouts(trial, signal=signal).map(_without_singletons).filter(lambda case: len(case.rewards) > 1)


def _without_singletons(case: Rollouts) -> Rollouts:
    ids, counts = np.unique(case.group_ids, return_counts=True)
    return case.take(np.isin(case.group_ids, ids[counts > 1]))


def _spec(trial: Trial) -> Any:
    return trial.target.spec


def _signal(trial: Trial) -> str:
    return str(trial.target.stages[0].signal)  # type: ignore[attr-defined]


def _value(trial: Trial, case: Rollouts) -> None:
    found = trial.subject.rows(case)
    within("value", found, oracle_rows.interval(case, _spec(trial), _unit(trial, found)), "advantage")


def _unit(trial: Trial, found: NDArray[np.float64]) -> float:
    """The precision that results show: float32 where all are float32 numbers, or no plain case is nearer than that."""
    single = np.any(found) and np.array_equal(found.astype(np.float32).astype(np.float64), found, equal_nan=True)
    return arrays.FLOATS["float32" if single or trial.single else "float64"]


def _fp32(trial: Trial, case: Rollouts) -> None:
    case = case.replace(
        rewards=case.rewards.astype(np.float32).astype(np.float64),
        baselines=case.baselines.astype(np.float32).astype(np.float64),
    )
    found = trial.subject.rows(case, "float32")
    within("value", found, oracle_rows.interval(case, _spec(trial), arrays.FLOATS["float32"]), "advantage in float32")


def _constant(dtype: str) -> Callable[[Trial, Rollouts], None]:
    def check(trial: Trial, case: Rollouts) -> None:
        found = trial.subject.rows(case, dtype)
        if np.any(found != 0):
            says = f"rewards that are all equal have an advantage, up to {np.nanmax(np.abs(found)):.3g}"
            raise Departure("value", says, 0.0, found.tolist())

    return check


def _no_constant(trial: Trial) -> str:
    signal = _signal(trial)
    return "" if signal == "group" else f"the estimator is not relative to its group (its signal is {signal!r})"


def _singleton(trial: Trial, case: Rollouts) -> None:
    try:
        found = trial.subject.rows(case)
    except Departure as problem:
        if problem.part == "raises":
            return  # it says that there is nothing to compare with
        raise
    if not np.all(found == 0):
        raise Departure("value", "the only answer to a prompt has an advantage", 0.0, found.tolist())


def _singletons(trial: Trial) -> SearchStrategy[Rollouts]:
    def alone(case: Rollouts) -> Rollouts:
        return case.replace(group_ids=np.arange(len(case.rewards)) * 3 - 1)

    return _rollouts(trial).map(alone)


def _no_singleton(trial: Trial) -> str:
    if trial.subject.equal_groups:
        return "the function takes groups of one size, two or more"
    return _no_constant(trial)


def _order(trial: Trial, case: Rollouts) -> None:
    one = trial.subject.rows(case)
    order = np.argsort(np.arange(len(one)) * 7919 % (len(one) + 1), kind="stable")
    other = trial.subject.rows(case.take(order))
    low, exact, high = oracle_rows.interval(case, _spec(trial), _unit(trial, one))
    off = np.abs(other - one[order]) > 2 * (high - exact)[order] + 2 * (exact - low)[order]
    if np.any(off) or np.isnan(other).any() != np.isnan(one).any():
        says = "rows in another order have other advantages: groups are told by position"
        raise Departure("value", says, one[order].tolist(), other.tolist())


def _labels(trial: Trial, case: Rollouts) -> None:
    one = trial.subject.rows(case)
    names = {g: 100 - 7 * i for i, g in enumerate(dict.fromkeys(case.group_ids.tolist()))}
    renamed = np.array([names[g] for g in case.group_ids.tolist()], np.int64)
    other = trial.subject.rows(case.replace(group_ids=renamed))
    same("value", "other names of the groups give other results", one, other, 1e-3)


def _no_ids(trial: Trial) -> str:
    return "" if "group_ids" in trial.subject.sources else "the function has no argument for group ids"


def _interleaved(trial: Trial) -> str:
    return "the function takes whole groups, one after another" if trial.subject.equal_groups else ""


def _apart(trial: Trial, case: Rollouts) -> None:
    one = trial.subject.rows(case)
    g = case.group_ids[0]
    other = trial.subject.rows(
        case.replace(rewards=np.where(case.group_ids == g, case.rewards * 2 + 1.25, case.rewards))
    )
    rest = case.group_ids != g
    low, exact, high = oracle_rows.interval(case, _spec(trial), _unit(trial, one))
    if np.any(np.abs(one - other)[rest] > (2 * (high - low) + np.abs(exact) * 1e-12)[rest]):
        raise Departure(
            "value", "a group's rewards change another's advantages", one[rest].tolist(), other[rest].tolist()
        )


def _no_apart(trial: Trial) -> str:
    scope = trial.target.stages[0].scope
    if scope == "batch":
        return "the estimator is over the whole batch"
    return ""


def _spoilt(trial: Trial) -> SearchStrategy[Rollouts]:
    """One reward that is NaN or infinite, in a group of two or more."""
    drawn = strategies.rollouts(signal=True, equal=trial.subject.equal_groups, finite=False).map(_without_singletons)
    return drawn.filter(lambda case: not np.isfinite(case.rewards).all())


def _not_finite(trial: Trial, case: Rollouts) -> None:
    at = int(np.flatnonzero(~np.isfinite(case.rewards))[0])
    bad = case.rewards[at]
    rest = case.group_ids != case.group_ids[at]
    # Before the call that a failure shows.
    sound = trial.subject.rows(case.replace(rewards=np.where(rest, case.rewards, 0.5))) if np.any(rest) else None
    try:
        found = trial.subject.rows(case)
    except Departure as problem:
        if problem.part == "raises":
            return  # the best thing to do
        raise
    if np.isfinite(found[at]) and found[at] != 0:
        raise Departure(
            "value", f"a reward of {bad} has the advantage {found[at]:g}", "an error, or none", found.tolist()
        )
    if sound is not None and not np.allclose(found[rest], sound[rest], rtol=1e-5, atol=1e-5, equal_nan=True):
        says = f"a reward of {bad} changes the advantages of other groups"
        raise Departure("value", says, sound[rest].tolist(), found[rest].tolist())
    if np.isfinite(bad):
        return
    own = ~rest & (np.arange(len(rest)) != at)
    huge = own & np.isfinite(found) & (np.abs(found) > 1e30)
    if np.any(huge):
        says = f"a reward of {bad} gives another answer of its group the advantage {found[huge][0]:.3g}"
        raise Departure("value", says, "an error, or NaN", found.tolist())
    if np.any(own) and np.isinf(bad) and found[at] == 0 and np.all(found[own] == 0):
        says = f"a reward of {bad} makes every advantage of its group 0, and nobody is told"
        raise Departure("value", says, "an error, or NaN", found.tolist())


ADVANTAGE = (
    Law("value", "the advantage is the equation's", _value, lambda t: _paired(t, signal=True)),
    Law("constant", "rewards that are all equal have the advantage 0, exactly", _constant("float64"),
        lambda t: _paired(t, signal=False), _no_constant),
    Law("constant_fp32", "in float32 as well", _constant("float32"), lambda t: _paired(t, signal=False), _no_constant),
    Law("singleton", "the only answer to a prompt has the advantage 0, or is an error", _singleton, _singletons,
        _no_singleton),
    Law("order", "the order of the rows does not matter, nor whether a group's are neighbours", _order,
        lambda t: _paired(t, signal=True), _interleaved),
    Law("labels", "the names of the groups do not matter", _labels, lambda t: _paired(t, signal=True), _no_ids),
    Law("apart", "a group's rewards do not change another's advantages", _apart,
        lambda t: _paired(t, signal=True), _no_apart),
    Law("not_finite", "a reward that is NaN or infinite is an error, or stays in its row", _not_finite, _spoilt),
    Law("fp32", "float32 is as near as its rounding allows", _fp32, lambda t: _paired(t, signal=True)),
    Law("repeatable", "the same bits every time, without random numbers",
        lambda t, case: repeated(lambda: [t.subject.rows(case)]), lambda t: _paired(t, signal=True)),
    Law("inputs", "the arguments are left as they were", unchanged, lambda t: _paired(t, signal=True)),
)  # fmt: skip


def _keeps(trial: Trial, case: Rollouts) -> None:
    found, right = trial.subject.rows(case), oracle_rows.kept(case, trial.target.stages)
    _told(found, right, case)


def _told(found: NDArray[np.bool_], right: NDArray[np.bool_], case: Rollouts) -> None:
    if np.array_equal(found, right):
        return
    at = int(np.flatnonzero(found != right)[0])
    rewards = case.rewards[case.group_ids == case.group_ids[at]].tolist()
    verb = "keeps" if found[at] else "drops"
    raise Departure("mask", f"it {verb} a group with the rewards {rewards}", right.tolist(), found.tolist())


def _keeps_constant(dtype: str) -> Callable[[Trial, Rollouts], None]:
    def check(trial: Trial, case: Rollouts) -> None:
        _told(trial.subject.rows(case, dtype), oracle_rows.kept(case, trial.target.stages), case)

    return check


def _filter_order(trial: Trial, case: Rollouts) -> None:
    one = trial.subject.rows(case)
    order = np.argsort(np.arange(len(one)) * 7919 % (len(one) + 1), kind="stable")
    other = trial.subject.rows(case.take(order))
    if not np.array_equal(other, one[order]):
        says = "rows in another order are kept and dropped otherwise: groups are told by position"
        raise Departure("mask", says, one[order].tolist(), other.tolist())


def _filter_not_finite(trial: Trial, case: Rollouts) -> None:
    at = int(np.flatnonzero(~np.isfinite(case.rewards))[0])
    try:
        found = trial.subject.rows(case)
    except Departure as problem:
        if problem.part == "raises":
            return
        raise
    if found[at]:
        says = f"it keeps a row with the reward {case.rewards[at]}"
        raise Departure("mask", says, "an error, or dropped", found.tolist())


FILTER = (
    Law("value", "what is kept is what the selection keeps", _keeps, lambda t: _paired(t, signal=True)),
    Law("constant", "a group whose rewards are all equal is judged as such, whatever they are",
        _keeps_constant("float64"), lambda t: _paired(t, signal=False)),
    Law("constant_fp32", "in float32 as well", _keeps_constant("float32"), lambda t: _paired(t, signal=False)),
    Law("singleton", "so is the only answer to a prompt", _keeps, _singletons,
        lambda t: "the function takes groups of one size, two or more" if t.subject.equal_groups else ""),
    Law("order", "the order of the rows does not matter, nor whether a group's are neighbours", _filter_order,
        _rollouts, _interleaved),
    Law("not_finite", "a row whose reward is NaN or infinite is an error, or dropped", _filter_not_finite, _spoilt),
    Law("repeatable", "the same bits every time, without random numbers",
        lambda t, case: repeated(lambda: [t.subject.rows(case)]), _rollouts),
    Law("inputs", "the arguments are left as they were", unchanged, lambda t: _rollouts(t, rows=1)),
)  # fmt: skip
