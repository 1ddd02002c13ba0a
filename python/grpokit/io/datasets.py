"""Hugging Face datasets: the rows that are worth training on, as a dataset of the same features.

In: a `Dataset`, whose deciding columns are read, or an `IterableDataset`, in which the rows of a group must lie
together. Out: the same kind of dataset. ``Dataset.map(f, batched=True)`` is not used, since it cuts groups: see
`grpokit.io.WholeGroups` for those who call it themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from grpokit.errors import GrpokitError, error
from grpokit.rollouts import _resolved, process

from .decide import (
    WORDS,
    Decider,
    NotContiguousError,
    columns_of,
    key_of,
    listed,
    shifted,
    together,
    whole_groups,
    words,
)

try:
    import datasets as hf
    from datasets.iterable_dataset import ArrowExamplesIterable
except ImportError:
    raise error("missing_engine", what="grpokit.io.datasets", package="datasets", install="datasets>=5.1") from None

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from grpokit._recipe import Recipe

D = TypeVar("D", hf.Dataset, hf.IterableDataset)
READ = 1 << 16
STREAMED = 1 << 10


def filter(  # noqa: A001 it is what the library calls it as well
    dataset: D,
    recipe: Recipe | str,
    *,
    columns: dict[str, Any] | None = None,
    version: int | None = None,
    advantages: bool = False,
    keep_dropped: bool = False,
    max_group_rows: int = 1_000_000,
    **parameters: Any,
) -> D:
    """The rows that a recipe keeps, in their order, with all their columns and features.

    Parameters
    ----------
    dataset : datasets.Dataset or datasets.IterableDataset
        With the columns that `grpokit.process` reads. Of a `Dataset` the columns that decide are held in memory, and
        the rows of a group may lie anywhere; of an `IterableDataset` they must lie together.
    recipe : Recipe or str
        Whose stages 1 to 4 decide; or the name of one with its parameters as keyword arguments.
    columns : dict, optional
        The dataset's names by grpokit's, as in `grpokit.process`.
    version : int, optional
        As in `grpokit.process`.
    advantages : bool
        Adds a column `advantage`, (N,) float64.
    keep_dropped : bool
        Keeps every row, and adds a column `reason`: why it would be dropped, null where it is kept.
    max_group_rows : int
        The most rows of one group in an `IterableDataset`.

    Returns
    -------
    datasets.Dataset or datasets.IterableDataset
        Of a `Dataset` what ``select`` gives: nothing is copied, and the fingerprint follows from what was kept. An
        `IterableDataset` has one shard, reads the given one when it is read, and raises then.

    Raises
    ------
    InputError, InputTypeError
        What `grpokit.process` raises; and of an `IterableDataset` a group that comes back after another has begun
        (`group_returns`), one that is too large, and a stage that looks at a whole batch without a `step` column
        (`needs_whole_batch`).

    Examples
    --------
    >>> import datasets
    >>> import grpokit.io.datasets
    >>> rollouts = datasets.Dataset.from_dict({"uid": ["a", "a", "b", "b"], "reward": [1.0, 0.0, 1.0, 1.0]})
    >>> recipe = grpokit.recipe("rloo").replace(select=(grpokit.HasSignal(),))
    >>> grpokit.io.datasets.filter(rollouts, recipe, columns={"group_id": "uid"}, advantages=True).to_dict()
    {'uid': ['a', 'a'], 'reward': [1.0, 0.0], 'advantage': [1.0, -1.0]}
    """
    if not isinstance(dataset, hf.Dataset | hf.IterableDataset):
        raise error(
            "parameter_type",
            owner="filter",
            name="dataset",
            given=type(dataset).__name__,
            expected="a datasets.Dataset or IterableDataset; filter the splits of a DatasetDict one by one",
        )
    plan = _Plan(_resolved(recipe, parameters), columns, version, advantages, keep_dropped)
    features = dataset.features
    if features is not None:
        plan.check(features)
        features = hf.Features(features | plan.added)
    if isinstance(dataset, hf.IterableDataset):
        # from_generator would make Python objects of the rows, which loses nanoseconds.
        parts = ArrowExamplesIterable(partial(_parts, dataset, plan, max_group_rows), {})
        return hf.IterableDataset(parts, hf.DatasetInfo(features=features), dataset.split)
    names = plan.names(dataset.column_names)
    read = list(dict.fromkeys(name for theirs in names.values() for name in listed(theirs)))
    tables = dataset.select_columns(read).with_format("arrow").iter(READ)
    verdicts = Decider(plan.recipe, key_of(names), names, advantages, version).anywhere(tables)
    for name, feature in plan.added.items():
        values = verdicts.advantages if name == "advantage" else WORDS[verdicts.codes]
        dataset = dataset.add_column(name, values, feature=feature)
    return dataset if keep_dropped else dataset.select(np.flatnonzero(verdicts.codes == 0))


@dataclass(frozen=True)
class _Plan:
    """What is to be done with the rows."""

    recipe: Recipe
    columns: dict[str, Any] | None
    version: int | None
    advantages: bool
    keep_dropped: bool

    @property
    def added(self) -> dict[str, Any]:
        """The features that are added."""
        added = {"advantage": hf.Value("float64")} if self.advantages else {}
        return added | ({"reason": hf.Value("string")} if self.keep_dropped else {})

    def check(self, features: Any) -> None:
        """Raises what `grpokit.process` raises about a table of such columns."""
        process(features.arrow_schema.empty_table(), self.recipe, version=self.version, columns=self.columns)
        for name in self.added:
            if name in features:
                raise error("column_exists", column=name, path="the dataset", remedy="Rename or drop it.")

    def names(self, fields: Iterable[str]) -> dict[str, Any]:
        """The dataset's names by grpokit's of the columns that decide."""
        return columns_of(fields, self.recipe, self.columns or {}, self.version)


def _parts(dataset: Any, plan: _Plan, max_group_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a stream, decided on as soon as their group has ended, and the number of the first row of each."""
    names = plan.names(dataset.column_names or next(iter(dataset), {}))
    tables, start = dataset.with_format("arrow").iter(STREAMED), 0
    try:
        for part in whole_groups(tables, together(plan.recipe, names), max_group_rows):
            try:
                out = process(part, plan.recipe, version=plan.version, columns=plan.columns)
            except GrpokitError as problem:
                raise shifted(problem, start) from None
            kept = part
            if plan.advantages:
                kept = kept.append_column("advantage", pa.array(out.advantages))
            if plan.keep_dropped:
                kept = kept.append_column("reason", pa.array(words(out.first_reason), pa.string()))
            else:
                kept = kept.filter(pa.array(out.keep))
            if len(kept):
                yield start, kept
            start += len(part)
    except NotContiguousError as problem:
        remedy = "Sort the rows, or load them as a Dataset: load_dataset(..., streaming=False)."
        raise error("group_returns", group=problem.group, remedy=remedy) from None
