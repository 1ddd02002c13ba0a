"""Door 1: a table of rollouts through stages 1 to 4, in one call.

In: any table of rollouts and a recipe. Out: for every row, in the input's order, whether it is kept and why not, and
its advantage; for every group its statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ._native import ArrowColumn, Groups, Rows
from ._recipe import Recipe
from ._recipe import recipe as named
from .columns import Names, Source, floats, integers, keys, take
from .errors import error
from .selection import Reason
from .stages import Advantage

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class GroupStats:
    """One row a group, in order of first appearance.

    Attributes
    ----------
    n : (G,) int64
        Rows that count: those with a reward that no stage took out of the statistics.
    mean, std, min, max : (G,) float64
        Of these rows, NaN where there is none (std 0); std with the ddof that was asked for, 0 for a group without
        signal.
    signal : (G,) bool
        max > min.
    """

    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    signal: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class GroupTable(GroupStats):
    """The groups of a table, their outcomes' statistics (ddof 1) after selection, and their ids.

    Attributes
    ----------
    id : list
        The group's id, as the table has it; a tuple for a composite key.
    first : (G,) int64
        The group's first row.
    """

    id: list[Any]
    first: NDArray[np.int64]


class Processed:
    """What `process` found, for every row in the order of the input.

    Attributes
    ----------
    keep : (N,) bool
        Whether the row is worth training on.
    advantages : (N,) float64
        Exactly 0 where dropped.
    """

    def __init__(
        self, rows: Rows, groups: Groups, ids: list[Any], advantages: NDArray[np.float64], staleness: Any
    ) -> None:
        # Nothing here refers to the caller's arrays and lists, which may be written to before all of this is read.
        self._rows, self._groups, self._ids = rows, groups, ids
        self.keep: NDArray[np.bool_] = rows.keep()
        self.advantages: NDArray[np.float64] = advantages
        self.staleness: NDArray[np.int64] | None = staleness

    def __len__(self) -> int:
        return len(self.keep)

    @cached_property
    def reasons(self) -> NDArray[np.uint32]:
        """(N,) uint32: every `Reason` that applies, 0 when kept."""
        return self._rows.reasons()

    @cached_property
    def first_reason(self) -> NDArray[np.uint32]:
        """(N,) uint32: the one `Reason` that counts, that of the stage that came first; 0 when kept."""
        return self._rows.first_reasons()

    @cached_property
    def shaped_rewards(self) -> NDArray[np.float64]:
        """(N,) float64: what the advantage read; NaN where the row has no reward."""
        shaped = self._rows.shaped()
        shaped[(self.reasons & Reason.UNSCORED) != 0] = np.nan
        return shaped

    @cached_property
    def groups(self) -> GroupTable:
        """One row a group: id, n, mean, std, min, max, signal."""
        first = self._groups.first
        taken = [take(ids, first) if isinstance(ids, ArrowColumn) else ids for ids in self._ids]
        columns = [ids if isinstance(ids, list) else ids.tolist() for ids in taken]
        ids = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        n, mean, std, low, high, signal = _statistics(self._rows, 1.0)
        return GroupTable(n=n, mean=mean, std=std, min=low, max=high, signal=signal, id=ids, first=first)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them: "in", "kept", and each reason that came first, by its name in lower case.

        in = kept + Σ dropped, always.
        """
        values, counts = np.unique(self.first_reason, return_counts=True)
        found = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
        kept = found.pop(0, 0)
        dropped = {name_of(value): count for value, count in found.items()}
        if kept != int(self.keep.sum()) or kept + sum(dropped.values()) != len(self):
            raise AssertionError(f"{len(self)} rows in, {kept} kept, {dropped} dropped: a bug in grpokit")
        return {"in": len(self), "kept": kept} | dropped

    def __str__(self) -> str:
        counts, groups = self.counts, self.groups
        dropped = {name: count for name, count in counts.items() if name not in ("in", "kept")}
        lines = [f"{counts['in']:,} rows in {len(groups.n):,} groups"]
        for name, count in ({"kept": counts["kept"]} | dropped).items():
            lines.append(f"  {name:<12} {count:>12,}  {count / max(len(self), 1):7.2%}")
        if len(groups.n):
            sizes, without = self._groups.sizes, int((~groups.signal).sum())
            lines.append(f"groups of {sizes.min():,} to {sizes.max():,} rows, {without:,} without signal")
            if (sizes == 1).any() and sizes.max() > 1:
                lines.append(f"lint: {int((sizes == 1).sum()):,} groups have one row; are their ids right?")
            elif len(groups.n) > 1 and sizes.max() == 1:
                lines.append("lint: every group has one row; is group_id the id of the prompt?")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Processed({self.counts})"


def _statistics(rows: Rows, ddof: float) -> tuple[Any, ...]:
    n, mean, std, low, high = rows.statistics(ddof)
    for column in (mean, low, high):
        column[n == 0] = np.nan
    return n, mean, std, low, high, rows.signal(0.0)


def name_of(reason: int) -> str:
    """A reason's name, as the counts have it."""
    return str(Reason(reason).name).lower()


def process(
    rollouts: Any,
    recipe: Recipe | str,
    *,
    version: int | None = None,
    columns: Names | None = None,
    threads: int | None = None,
    **parameters: Any,
) -> Processed:
    """Which rollouts are worth training on, why the others are not, and everyone's advantage.

    Parameters
    ----------
    rollouts : table
        Anything with `__arrow_c_stream__` (pyarrow, polars, pandas 3, duckdb), a dict of NumPy arrays or lists, or
        a list of dicts; a pandas NaN is a null. Required columns: `group_id` (integers or strings) and `reward`
        (numbers; null: the answer could not be scored). Read where a stage needs them or where they are there:
        `gate` (the outcome to select on, when it is not the reward), `step` (part of the key, and the batch),
        `response_len` (tokens), `finish`.
    recipe : Recipe or str
        A recipe, or the name of one with its parameters as keyword arguments.
    version : int, optional
        The trainer's policy version; `version_min` must then be a column, and `staleness` is their difference.
    columns : dict, optional
        The table's own names by grpokit's, as in ``{"group_id": "uid"}``; a list of names makes a composite key.
    threads : int, optional
        Threads to use; by default `GRPOKIT_NUM_THREADS`, else the cores that the process may use. The result does
        not depend on it.

    Returns
    -------
    Processed
        `keep`, `reasons`, `advantages`, `shaped_rewards`, `groups`, `counts`; `print` shows a table.

    Raises
    ------
    InputError, InputTypeError
        A column that is missing, of a wrong length or type, or null where it must not be; a reward that is NaN or
        infinite (unless the recipe drops these); a negative length; an unknown recipe or parameter.

    Examples
    --------
    >>> import grpokit as gk
    >>> rollouts = {"group_id": ["a", "a", "b", "b"], "reward": [1.0, 0.0, 1.0, 1.0], "response_len": [9, 12, 7, 30]}
    >>> out = gk.process(rollouts, "dapo", max_len=20)
    >>> out.keep.tolist()
    [True, True, False, False]
    >>> out.advantages.round(3).tolist()
    [0.707, -0.707, 0.0, 0.0]
    >>> print(out)
    4 rows in 2 groups
      kept                    2   50.00%
      no_signal               2   50.00%
    groups of 2 to 2 rows, 1 without signal
    """
    if isinstance(recipe, str):
        recipe = named(recipe, **parameters)
    elif parameters:
        given = next(iter(parameters))
        expected = "no parameters beside a Recipe; give them to grpokit.recipe(...), or use recipe.replace(...)"
        raise error("bad_parameter", owner="process", name=given, given=parameters[given], expected=expected)
    if not isinstance(recipe, Recipe):
        raise error(
            "bad_parameter", owner="process", name="recipe", given=recipe, expected="a grpokit.Recipe or a name"
        )

    stages = (*recipe.shape, *recipe.select, recipe.advantage)
    reads = dict.fromkeys(name for stage in stages for name in sorted(stage.reads))
    source = Source(rollouts, columns, list(reads))
    ids = {"group_id": source.several("group_id", "process")}
    reward = floats("reward", source.get("reward", "process"))
    gate = floats("gate", source.get("gate", "process")) if "gate" in source else None
    read: dict[str, Any] = {}
    if "step" in source:
        read["step"] = integers("step", source.get("step", "process"))
        ids = {"step": [read["step"]]} | ids
    for stage in stages:
        for name in stage.reads - read.keys():
            column = source.get(name, type(stage).__name__)
            read[name] = integers(name, column) if name == "response_len" else column
    staleness = None
    if version is not None:
        if isinstance(version, bool) or not isinstance(version, int):
            raise error("bad_parameter", owner="process", name="version", given=version, expected="a whole number")
        staleness = version - integers("version_min", source.get("version_min", "process(version=...)")).astype(
            np.int64
        )

    names = [name for name, columns in ids.items() for _ in columns]
    data = [column for columns in ids.values() for column in columns]
    groups = Groups([keys(n, c) for n, c in zip(names, data, strict=True)], names, _threads(threads))
    rows = Rows(groups, reward, gate, recipe.not_finite == "drop")
    for shape in recipe.shape:
        shape.run(rows, groups, read)
    for select in recipe.select:
        select.run(rows, groups, read)
    # An Arrow column cannot change, and making Python objects of its ids takes longer than all the rest.
    found = [column if isinstance(column, ArrowColumn) else take(column, groups.first) for column in data]
    return Processed(rows, groups, found, recipe.advantage.run(rows, groups, read), staleness)


def _threads(given: Any) -> int | None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise error("bad_threads", source="threads", given=given)
    return given


def group(*ids: Any, threads: int | None = None) -> Groups:
    """Which rows belong together.

    Parameters
    ----------
    *ids : (N,) int, str or bytes
        A column of ids: a NumPy array, a list, or an object with `__arrow_c_stream__`; several make a composite key.
    threads : int, optional
        As in `process`.

    Returns
    -------
    Groups
        `codes` (N,) uint32 in order of first appearance, `sizes` (G,), `first` (G,) the first row of each group,
        `order` (N,) the rows sorted by group, `len()` the number of groups.

    Raises
    ------
    InputError, InputTypeError
        Ids that are neither integers nor strings, null, or of different lengths.

    Examples
    --------
    >>> import grpokit as gk
    >>> groups = gk.group(["b", "a", "b"])
    >>> groups.codes.tolist(), groups.sizes.tolist()
    ([0, 1, 0], [2, 1])
    """
    source = Source({f"ids {i}": column for i, column in enumerate(ids)})
    columns = [keys(name, source.get(name, "group")) for name in source.known]
    return Groups(columns, source.known, _threads(threads))


def group_stats(rewards: Any, groups: Any, *, ddof: float = 1) -> GroupStats:
    """Exact statistics of every group: two passes in float64.

    Parameters
    ----------
    rewards : (N,) float, any scale
        None where there is none.
    groups : Groups, or a column of ids
        From `group`.
    ddof : float
        What is taken off the count in the variance.

    Returns
    -------
    GroupStats
        n, mean, std, min, max, signal: (G,) each.

    Raises
    ------
    InputError
        Rewards of another length, NaN or infinite.

    Examples
    --------
    >>> import grpokit as gk
    >>> stats = gk.group_stats([0.1, 0.1, 0.1, 1.0, 0.0], gk.group([7, 7, 7, 8, 8]))
    >>> stats.std.round(3).tolist(), stats.signal.tolist()
    ([0.0, 0.707], [False, True])
    """
    if isinstance(ddof, bool) or not isinstance(ddof, int | float) or not 0 <= ddof < np.inf:
        raise error("bad_parameter", owner="group_stats", name="ddof", given=ddof, expected="a number, 0 or more")
    return GroupStats(*_statistics(Rows(_grouped(groups), floats("reward", rewards)), ddof))


def advantages(
    rewards: Any, groups: Any, estimator: Advantage, *, response_len: Any = None, step: Any = None
) -> NDArray[np.float64]:
    """The advantage of every row.

    Parameters
    ----------
    rewards : (N,) float, any scale
        None where there is none; such rows get 0 and do not count.
    groups : Groups, or a column of ids
        From `group`.
    estimator : Advantage
        `GroupNorm()`, `MeanBaseline()`, `LeaveOneOut()`, `GlobalNorm(...)`, or your own.
    response_len : (N,) int, tokens, optional
        Read by `GlobalNorm(over="tokens")`.
    step : (N,) int, optional
        The batch of each row, read by `GlobalNorm`.

    Returns
    -------
    (N,) float64

    Raises
    ------
    InputError
        A column that the estimator reads and that is not given, or of another length; a reward that is NaN or infinite.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.advantages([1.0, 0.0, 0.0], gk.group([5, 5, 5]), gk.LeaveOneOut()).tolist()
    [1.0, -0.5, -0.5]
    """
    if not isinstance(cast("object", estimator), Advantage):
        expected = "a grpokit.Advantage, such as GroupNorm()"
        raise error("bad_parameter", owner="advantages", name="estimator", given=estimator, expected=expected)
    groups = _grouped(groups)
    given = {"reward": rewards, "response_len": response_len, "step": step}
    source = Source({name: column for name, column in given.items() if column is not None})
    rows = Rows(groups, floats("reward", source.get("reward", "advantages")))
    wanted = estimator.reads | ({"step"} if step is not None else set())
    read = {name: integers(name, source.get(name, type(estimator).__name__)) for name in wanted}
    return estimator.run(rows, groups, read)


def _grouped(groups: Any) -> Groups:
    return groups if isinstance(groups, Groups) else group(groups)
