"""Ray Data: the rows of a distributed dataset that are worth training on.

In: a `ray.data.Dataset` of rollouts, larger than one machine. Out: another one, as lazy, of the kept rows with all
their columns. The dataset is shuffled so that each group lies in one block, and each block is decided on by itself.

That a block is whole is checked, and never assumed. Each row gets a cell, a number between 0 and 64 times the number
of blocks that follows from the row's group alone, and the dataset is shuffled by cells. Before the shuffle the workers
tell an actor how many rows of each cell they send; a block that has fewer rows of a cell than were sent is an error,
and nothing is decided on it: Ray may split a large block, and it may hash a value differently on two machines.
The shuffle begins to give blocks when it has taken all rows, so the numbers are complete when they are read. (Who sets
``DataContext.max_errored_blocks`` loses the rows of such blocks, and gets no wrong ones.)

Tasks that are run again, since a worker was killed or an object was lost, change nothing: the rows that a task sends
are counted once, by the number of their first row, which is the same in each attempt; a block that is decided on again
is compared with the same numbers. Two executions of one dataset have different numbers of their own: Ray sends a
function to its workers once an execution, and what tells executions apart is drawn when that is done. Was it drawn
twice, or did the actor die, the execution fails.

The memory of a worker is a few times the size of its block: all columns of all rows of about 1 / `num_blocks` of the
groups. A group is never split over workers, so the largest must fit.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from grpokit._native import ArrowColumn, Groups
from grpokit.columns import take
from grpokit.errors import GrpokitError, error
from grpokit.parameters import whole
from grpokit.rollouts import _resolved, process

from .decide import columns_of, listed, together, words

try:
    import ray
    from ray.data.expressions import monotonically_increasing_id
except ImportError:
    raise error("missing_engine", what="grpokit.io.ray", package="ray", install="ray[data]>=2.60") from None

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grpokit._recipe import Recipe

ROW, CELL, RUN = "__grpokit_row", "__grpokit_cell", "__grpokit_run"
CELLS_PER_BLOCK = 64


def filter(  # noqa: A001 it is what Ray calls it as well
    dataset: ray.data.Dataset,
    recipe: Recipe | str,
    *,
    columns: dict[str, Any] | None = None,
    version: int | None = None,
    ordered: bool = False,
    advantages: bool = False,
    keep_dropped: bool = False,
    num_blocks: int | None = None,
    **parameters: Any,
) -> ray.data.Dataset:
    """The rows that a recipe keeps, with all their columns.

    Parameters
    ----------
    dataset : ray.data.Dataset
        With the columns that `grpokit.process` reads.
    recipe : Recipe or str
        Whose stages 1 to 4 decide; or the name of one with its parameters as keyword arguments.
    columns : dict, optional
        The dataset's names by grpokit's, as in `grpokit.process`.
    version : int, optional
        As in `grpokit.process`.
    ordered : bool
        Brings the rows back into the order in which they were read (a sort, which is a second shuffle); else blocks
        come in any order, and rows in any order within them. Steps before this one that Ray runs apart from the
        reading keep it only with Ray's ``execution_options.preserve_order``.
    advantages : bool
        Adds a column `advantage`, (N,) float64.
    keep_dropped : bool
        Keeps every row, and adds a column `reason`: why it would be dropped, null where it is kept.
    num_blocks : int, optional
        Into how many blocks the dataset is shuffled; by default Ray's ``default_hash_shuffle_parallelism``.

    Returns
    -------
    ray.data.Dataset
        Lazy: an error in the data is raised when it is executed, by Ray, with the sentence of ours in it.

    Raises
    ------
    InputError, InputTypeError
        At once, where Ray knows the schema, else in execution: a column that is missing; a stage that looks at a
        whole batch, without a `step` column (`needs_whole_batch`). In execution: null ids, rewards that are NaN or no
        numbers, and whatever else `grpokit.process` refuses.
    StateError
        In execution: a group that came in several blocks (`split_group`).

    Examples
    --------
    >>> import grpokit.io.ray
    >>> dataset = ray.data.read_parquet("dumps/")  # doctest: +SKIP
    >>> kept = grpokit.io.ray.filter(dataset, "dapo", max_len=20480, ordered=True)  # doctest: +SKIP
    >>> kept.write_parquet("kept/")  # doctest: +SKIP
    """
    if not isinstance(cast("object", dataset), ray.data.Dataset):
        expected = "a ray.data.Dataset"
        raise error("parameter_type", owner="filter", name="dataset", given=type(dataset).__name__, expected=expected)
    blocks = dataset.context.default_hash_shuffle_parallelism if num_blocks is None else num_blocks
    blocks = whole("filter", "num_blocks", blocks, at_least=1, at_most=2**20)
    cells = CELLS_PER_BLOCK * blocks
    plan = _Plan(
        recipe=_resolved(recipe, parameters),
        columns=columns,
        version=version,
        ordered=ordered,
        advantages=advantages,
        keep_dropped=keep_dropped,
        cells=cells,
        sent=_Sent.remote(cells),  # type: ignore[attr-defined]
    )
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None and isinstance(schema.base_schema, pa.Schema):
        plan.columns_of(schema.base_schema)
    numbered = dataset.with_column(ROW, monotonically_increasing_id())
    sent = numbered.map_batches(partial(_send, plan, _Run()), batch_format="pyarrow", batch_size=None)
    decided = _shuffled(sent, blocks).map_batches(partial(_decide, plan), batch_format="pyarrow", batch_size=None)
    return decided.sort(ROW).drop_columns([ROW]) if ordered else decided


def _shuffled(dataset: ray.data.Dataset, blocks: int) -> ray.data.Dataset:
    return dataset.repartition(blocks, keys=[CELL])


@dataclass(frozen=True)
class _Plan:
    """What the workers are told."""

    recipe: Recipe
    columns: dict[str, Any] | None
    version: int | None
    ordered: bool
    advantages: bool
    keep_dropped: bool
    cells: int
    sent: Any

    def columns_of(self, schema: pa.Schema) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The table's names by grpokit's, and the columns whose rows must stay together.

        Raises what `grpokit.process` raises about a table of such columns.
        """
        schema = pa.schema([field for field in schema if field.name not in (ROW, CELL, RUN)])
        process(schema.empty_table(), self.recipe, version=self.version, columns=self.columns)
        names = columns_of(schema.names, self.recipe, self.columns or {}, self.version)
        for field in self.added:
            if field.name in schema.names:
                raise error("column_exists", column=field.name, path="the dataset", remedy="Rename or drop it.")
        return names, together(self.recipe, names)

    @property
    def added(self) -> list[pa.Field]:
        """The columns that are added."""
        fields = [pa.field("advantage", pa.float64())] if self.advantages else []
        return [*fields, pa.field("reason", pa.string())] if self.keep_dropped else fields


class _Run:
    """A number that is drawn anew whenever Ray sends it to the workers: once an execution."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __reduce__(self) -> tuple[type[_Run], tuple[int]]:
        return _Run, (secrets.randbits(63),)


@ray.remote(num_cpus=0)
class _Sent:
    """How many rows of each cell were sent into the shuffle, in each of the last executions."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.runs: OrderedDict[int, tuple[set[int], NDArray[np.int64]]] = OrderedDict()

    def add(self, run: int, first: int, cells: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Counts some rows, of which the first has that number; those that were counted already change nothing."""
        known, total = self.runs.setdefault(run, (set(), np.zeros(self.cells, np.int64)))
        if first not in known:
            known.add(first)
            total[cells] += rows
        while len(self.runs) > 100:
            self.runs.popitem(last=False)

    def rows(self, run: int, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows of these cells were sent."""
        return self.runs[run][1][cells] if run in self.runs else np.zeros(len(cells), np.int64)


def _send(plan: _Plan, run: _Run, block: pa.Table) -> pa.Table:
    """Gives each row its cell, and tells how many there are of each."""
    _, key = plan.columns_of(block.schema)
    ids = [ArrowColumn(block[name]) for name in key]
    try:
        groups = Groups(ids, list(key), 1)
    except GrpokitError as problem:
        raise _in_block(problem, block, key) from None
    keys = zip(*(take(column, groups.first) for column in ids), strict=True)
    cells_N = np.fromiter((_hash(group) % plan.cells for group in keys), np.int64, len(groups))[groups.codes]
    if len(block):
        cells, rows = np.unique(cells_N, return_counts=True)
        ray.get(plan.sent.add.remote(run.number, block[ROW][0].as_py(), cells, rows))
    block = block.append_column(CELL, pa.array(cells_N))
    return block.append_column(RUN, pa.array(np.full(len(cells_N), run.number)))


def _hash(group: tuple[Any, ...]) -> int:
    """The same on every machine, and for an id in a column of any width."""
    return int.from_bytes(blake2b(repr(group).encode(), digest_size=8).digest(), "little")


def _decide(plan: _Plan, block: pa.Table) -> pa.Table:
    """The kept rows of a block of whole groups."""
    found = block.drop_columns([CELL, RUN] if plan.ordered else [ROW, CELL, RUN])
    names, key = plan.columns_of(block.schema)
    _check_whole(plan, block, key)
    # Stages see the rows in the order of the dataset, since the first of equal ones is kept.
    order_N = np.argsort(block[ROW].to_numpy())
    read = dict.fromkeys(name for theirs in names.values() for name in listed(theirs))
    table = block.select(list(read)).take(pa.array(order_N))
    try:
        out = process(table, plan.recipe, version=plan.version, columns=names, threads=1)
    except GrpokitError as problem:
        raise _in_block(problem, table, key) from None
    place_N = np.argsort(order_N)
    for field in plan.added:
        values = out.advantages if field.name == "advantage" else words(out.first_reason)
        found = found.append_column(field, pa.array(values[place_N], field.type))
    return found if plan.keep_dropped else found.filter(pa.array(out.keep[place_N]))


def _check_whole(plan: _Plan, block: pa.Table, key: tuple[str, ...]) -> None:
    """Raises where rows of a group of the block are elsewhere."""
    cells, first, rows = np.unique(block[CELL].to_numpy(), return_index=True, return_counts=True)
    runs = np.unique(block[RUN].to_numpy())
    sent = [ray.get(plan.sent.rows.remote(int(run), cells)) for run in runs]
    short = np.flatnonzero(sum(sent, np.zeros(len(cells), np.int64)) != rows)
    if len(runs) > 1 or len(short):
        row = int(first[short[0]]) if len(short) else 0
        at = short[0] if len(short) else 0
        raise error("split_group", group=_group(block, key, row), rows=int(rows[at]), expected=int(sent[0][at]))


def _group(table: pa.Table, key: tuple[str, ...], row: int) -> Any:
    ids = tuple(table[name][row].as_py() for name in key)
    return ids[0] if len(ids) == 1 else ids


def _in_block(problem: GrpokitError, table: pa.Table, key: tuple[str, ...]) -> GrpokitError:
    return error("in_block", problem=str(problem), rows=len(table), group=_group(table, key, 0))
