"""Door 1: a table of rollouts through stages 1 to 4, in one call.

In: any table of rollouts and a recipe. Out: for every row, in the table's order, whether it is kept and why not, and
its advantage; for every group its statistics.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ._native import ArrowColumn, Groups, Rows
from ._recipe import Recipe
from ._recipe import recipe as named
from .columns import RAGGED, WHOLE, WORDS, Names, Source, floats, integers, keys, numeric_parts, owned, ragged, take
from .errors import GroupWarning, error, nearest
from .fan_out import FanOut
from .lint import CODES, every_group_is_one
from .parameters import whole
from .processed import GroupStats, Processed, statistics
from .stages import Advantage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .columns import Column
    from .stages import Select, Stage

_HELD = ("source", "prompt", "text", "token_ids", "turn_idx", "finish", "response_len")


def process(
    rollouts: Any,
    recipe: Recipe | str,
    *,
    version: int | None = None,
    need: int | None = None,
    order: Literal["arrival", "index"] = "arrival",
    columns: Names | None = None,
    strict: bool | Collection[str] = False,
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
        `rollout_id` (rows that share it are one answer, whose reward counts once) and `turn_idx`, `source`,
        `response_len` (tokens), `finish`, `version_min`, `version_max`, `text`, `token_ids`, `prompt`,
        `reward_parts`, `baseline_reward`, `logp_old` and `logp_ref` (lists, one number a token).
    recipe : Recipe or str
        A recipe, or the name of one with its parameters as keyword arguments.
    version : int, optional
        The trainer's policy version; `version_min` must then be a column, and `staleness` is their difference.
    need : int, optional
        How many groups make a full batch, whatever their steps. Further good ones are dropped as `surplus`, to be
        carried over.
    order : {"arrival", "index"}
        Which groups a full batch takes: those whose last row comes first, or those of the smallest `group_id`.
    columns : dict, optional
        The table's own names by grpokit's, as in ``{"group_id": "uid"}``; a list of names makes a composite key, or
        several `reward_parts`.
    strict : bool or collection of str
        Raise where the lint finds something: anything, or one of these codes.
    threads : int, optional
        Threads to use; by default `GRPOKIT_NUM_THREADS`, else the cores that the process may use. The result does
        not depend on it.

    Returns
    -------
    Processed
        `keep`, `reasons`, `advantages`, `shaped_rewards`, `groups`, `counts`, `lint`, `explain(row)`, `metrics()`;
        `print` shows a table.

    Raises
    ------
    InputError, InputTypeError
        A column that is missing, of a wrong length or type, or null where it must not be; a reward that is NaN or
        infinite (unless the recipe drops these); a negative length; rows of one rollout that disagree; an answer
        newer than `version`; an unknown recipe or parameter; a finding, where `strict`.

    Warns
    -----
    GroupWarning
        Every group has one row, and the estimator is relative to the group.

    Notes
    -----
    Refilling a batch as DAPO does needs nothing but this call: while ``out.missing`` the kept rows wait for more, and
    the `surplus` of a full batch begins the next one. Taking the groups that are complete first favours prompts with
    short answers, and whatever is taken of a stream of accepted groups weighs prompts by how often they have signal:
    ``order="index"`` removes the first bias, nothing removes the second.

    Examples
    --------
    >>> import grpokit as gk
    >>> rollouts = {"group_id": ["a", "a", "b", "b"], "reward": [1.0, 0.0, 1.0, 1.0], "response_len": [9, 12, 7, 18]}
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
    >>> out.explain(3)
    "Row 3 (group 'b', outcome 1) is dropped, no_signal: all 2 outcomes of its group are equal (1)."
    """
    recipe = _resolved(recipe, parameters)
    if version is not None:
        version = whole("process", "version", version, at_least=-(2**53), at_most=2**53)
    if need is not None:
        need = whole("process", "need", need, at_least=1, at_most=2**32)
    if order not in ("arrival", "index"):
        raise error("bad_parameter", owner="process", name="order", given=order, expected="'arrival' or 'index'")

    reads = _reads(recipe)
    source = Source(rollouts, columns, [name for name in reads if name != "version"])
    names, key = _key(source)
    row_groups = Groups([keys(n, c) for n, c in zip(names, key, strict=True)], names, _threads(threads))
    fan_out = None
    if "rollout_id" in source:
        turns = source.optional("turn_idx", "process")
        turns = None if turns is None else integers("turn_idx", turns)
        fan_out = FanOut(keys("rollout_id", source.get("rollout_id", "process")), turns, row_groups, threads)
        # One row a rollout is the ordinary case, and needs no detour.
        fan_out = None if len(fan_out) == len(row_groups.codes) else fan_out
    groups = row_groups if fan_out is None else fan_out.groups(row_groups, threads)

    rows = Rows(groups, *_scores(source, fan_out, recipe), recipe.not_finite == "drop")
    read = _columns(source, fan_out, reads, version)
    if "step" in source:
        steps: Any = key[0]
        read["step"] = steps if fan_out is None else steps[fan_out.first]
    held = {name: owned(column) for name in _HELD if (column := source.optional(name, "process")) is not None}
    if "step" in read and "prompt" in held:
        held["step"] = owned(key[0])
    staleness = None
    if version is not None and ("version_min" in source or "version_max" not in reads):
        staleness = _staleness(source, fan_out, version)

    for shape in recipe.shape:
        shape.run(rows, groups, read)
    made: list[Select | None] = [None] * rows.stages
    for select in recipe.select:
        select.run(rows, groups, read)
        made += [select] * (rows.stages - len(made))
    missing = None
    if need is not None:
        ranks = _ranks(key, row_groups) if order == "index" else _arrivals(row_groups)
        missing = need - rows.drop_surplus(need, ranks)
        made.append(None)
    advantages = recipe.advantage.run(rows, groups, read)
    # An Arrow column cannot change, and making Python objects of its ids takes longer than all the rest.
    first = row_groups.first
    out = Processed(
        recipe=recipe,
        rows=rows,
        groups=groups,
        row_groups=row_groups,
        fan_out=fan_out,
        ids=[column if isinstance(column, ArrowColumn) else take(column, first) for column in key],
        held=held,
        sources=_sources(held, fan_out),
        parts=_parts(source, fan_out),
        table=source.table if source.table is not rollouts else None,
        stages=made,
        advantages=advantages,
        staleness=staleness,
        missing=missing,
    )
    _report(out, recipe, strict)
    return out


def _resolved(recipe: Any, parameters: dict[str, Any]) -> Recipe:
    if isinstance(recipe, str):
        return named(recipe, **parameters)
    if parameters:
        given = next(iter(parameters))
        expected = "no parameters beside a Recipe; give them to grpokit.recipe(...), or use recipe.replace(...)"
        raise error("bad_parameter", owner="process", name=given, given=parameters[given], expected=expected)
    if not isinstance(recipe, Recipe):
        expected = "a grpokit.Recipe or a name"
        raise error("bad_parameter", owner="process", name="recipe", given=recipe, expected=expected)
    return recipe


def _key(source: Source) -> tuple[list[str], list[Column]]:
    """The columns of the group's key: the step where there is one, and the id's."""
    ids = source.several("group_id", "process")
    names = ["group_id"] * len(ids)
    if "step" not in source:
        return names, ids
    return ["step", *names], [integers("step", source.get("step", "process")), *ids]


def _scores(source: Source, fan_out: FanOut | None, recipe: Recipe) -> tuple[Any, Any]:
    """The reward and the gate of each rollout."""
    found: list[Any] = [None, None]
    for at, name in enumerate(("reward", "gate")):
        if name == "reward" or name in source:
            column = floats(name, source.get(name, "process"))
            finite = recipe.not_finite == "error"
            found[at] = column if fan_out is None else fan_out.scores(name, column, finite=finite)
    return found[0], found[1]


def _columns(source: Source, fan_out: FanOut | None, reads: dict[str, Stage], version: int | None) -> dict[str, Any]:
    """What the stages read, one value a rollout."""
    if "version" in reads and version is None:
        raise error("needs_version", reader=type(reads["version"]).__name__)
    read: dict[str, Any] = {"version": version}
    for name in [name for name in reads if name != "version"]:
        column = source.several(name, type(reads[name]).__name__)[0]
        if name == "reward_parts":
            read[name] = _parts(source, fan_out)
            continue
        if name in WHOLE:
            column = integers(name, column)
        if name in ("version_min", "version_max") and version is not None:
            _check_versions(name, column, version)
        column = column if fan_out is None else fan_out.reduce(name, column)
        read[name] = ragged(name, column) if name in RAGGED else column
    return read


def _parts(source: Source, fan_out: FanOut | None) -> dict[str, NDArray[np.float64]]:
    """The parts of each rollout's reward."""
    parts = numeric_parts(source)
    if fan_out is None:
        return parts
    return {name: fan_out.scores(name, values_N, finite=False)[0] for name, values_N in parts.items()}


def _sources(held: dict[str, Column], fan_out: FanOut | None) -> tuple[Groups, list[Any]] | None:
    """The source of each rollout, and their names."""
    if "source" not in held:
        return None
    data = held["source"] if fan_out is None else fan_out.reduce("source", held["source"])
    sources = Groups([keys("source", data)], ["source"])
    names = list(take(data, sources.first))
    if any(isinstance(name, list) for name in names):
        raise error("bad_keys", column="source", given="lists")
    return sources, names


def _reads(recipe: Recipe) -> dict[str, Stage]:
    """The columns that the stages read, each with the first stage that does."""
    stages = (*recipe.shape, *recipe.select, recipe.advantage)
    for stage in stages:
        given: Any = stage.reads
        if isinstance(given, str):
            expected = "a set of names, such as frozenset({'response_len'})"
            raise error("bad_parameter", owner=type(stage).__name__, name="reads", given=given, expected=expected)
    return {name: stage for stage in reversed(stages) for name in sorted(stage.reads, reverse=True)}


def _staleness(source: Source, fan_out: FanOut | None, version: int) -> NDArray[np.int64]:
    """How old each row's answer is."""
    oldest = integers("version_min", source.get("version_min", "process(version=...)"))
    _check_versions("version_min", oldest, version)
    oldest = oldest if fan_out is None else fan_out.expand(fan_out.reduce("version_min", oldest))
    return version - oldest.astype(np.int64)


def _check_versions(name: str, versions_N: Any, version: int) -> None:
    newer = versions_N > version
    if newer.any():
        row = int(newer.argmax())
        raise error("future_version", column=name, row=row, value=int(versions_N[row]), version=version)


def _arrivals(groups: Groups) -> NDArray[np.int64]:
    """The last row of each group, at which it is complete: (G,) int64."""
    last_G = np.zeros(len(groups), np.int64)
    last_G[groups.codes] = np.arange(len(groups.codes))
    return last_G


def _ranks(key: list[Column], groups: Groups) -> NDArray[np.int64]:
    """The place of each group when they are sorted by their ids: (G,) int64."""
    columns = [take(column, groups.first) for column in key]
    listed = [column if isinstance(column, list) else column.tolist() for column in columns]
    ids = list(zip(*listed, strict=True))
    ranks_G = np.empty(len(groups), np.int64)
    ranks_G[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return ranks_G


def _report(out: Processed, recipe: Recipe, strict: bool | Collection[str]) -> None:
    """Warns of what no number survives, and raises what the caller wants raised."""
    finding = every_group_is_one(out._rows.n, len(out._groups), recipe.advantage.signal)
    if not isinstance(strict, bool):
        codes = [strict] if isinstance(strict, str) else strict if isinstance(strict, Collection) else [strict]
        for code in codes:
            if code not in CODES:
                expected = "True, False, or some of " + ", ".join(CODES)
                raise error("bad_parameter", owner="process", name="strict", given=code, expected=expected)
    if strict:
        found = [str(finding) for finding in out.lint if strict is True or finding.code in codes]
        if found:
            raise error("lint", count=len(found), findings="\n".join(found))
    if finding:
        warnings.warn(str(finding), GroupWarning, stacklevel=3)


def _threads(given: Any) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not hasattr(given, "__index__") or operator.index(given) < 1:
        raise error("bad_threads", source="threads", given=given)
    return min(operator.index(given), 2**16)


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
    return GroupStats(*statistics(Rows(_grouped(groups), floats("reward", rewards)), ddof))


def advantages(rewards: Any, groups: Any, estimator: Advantage, **columns: Any) -> NDArray[np.float64]:
    """The advantage of every row.

    Parameters
    ----------
    rewards : (N,) float, any scale
        None where there is none; such rows get 0 and do not count.
    groups : Groups, or a column of ids
        From `group`.
    estimator : Advantage
        `GroupNorm()`, `MeanBaseline()`, `LeaveOneOut()`, `GlobalNorm(...)`, ..., or your own.
    **columns : (N,) each
        What else the estimator reads, by grpokit's names: `response_len`, `baseline_reward`, ... (`reward_parts` may be
        a dict of columns); and `step`, the batch of each row, for estimators that look at a whole batch.

    Returns
    -------
    (N,) float64, or Ragged where the estimator gives one number a token

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
    known = [*WORDS, *sorted(estimator.reads)]
    for name in columns:
        if name not in known:
            near = nearest(name, known)
            raise error("unknown_parameter", owner="advantages", given=name, nearest=near, known=", ".join(known))
    groups = _grouped(groups)
    given = {name: column for name, column in columns.items() if column is not None}
    parts, names = given.get("reward_parts"), None
    if isinstance(parts, Mapping):
        # Under names that no other column has.
        del given["reward_parts"]
        names = {"reward_parts": [f"part {name}" for name in parts]}
        given |= {f"part {name}": column for name, column in parts.items()}
    source = Source({"reward": rewards, **given}, names, known)
    rows = Rows(groups, floats("reward", source.get("reward", "advantages")))
    read = _columns(source, None, dict.fromkeys(estimator.reads, estimator), None)
    if isinstance(parts, Mapping) and "reward_parts" in read:
        read["reward_parts"] = dict(zip(parts, read["reward_parts"].values(), strict=True))
    if "step" in given:
        read["step"] = integers("step", source.get("step", "advantages"))
    return cast("NDArray[np.float64]", estimator.run(rows, groups, read))


def _grouped(groups: Any) -> Groups:
    return groups if isinstance(groups, Groups) else group(groups)
