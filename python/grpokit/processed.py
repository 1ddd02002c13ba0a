"""What `grpokit.process` found: verdicts row by row, counts, findings, statistics, and why.

In: rows that went through a recipe's stages. Out: arrays in the order of the table. Whatever is not needed by everyone
is made when it is asked for, from what the caller cannot write to meanwhile: copies, and Arrow's buffers, which are
never written to (lists within lists are shared).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ._native import ArrowColumn, Groups, Rows
from .columns import Ragged, integers, take, words
from .errors import InputError, InputTypeError, error
from .lint import lint
from .parameters import whole
from .selection import FINISH, Reason
from .sketch import QuantileSketch
from .stages import Read, Select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from rich.table import Table

    from ._recipe import Recipe
    from .columns import Column
    from .fan_out import FanOut
    from .lint import Finding

MOST_SOURCES = 20


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
    """What `process` found, for every row in the order of the table.

    Attributes
    ----------
    keep : (N,) bool
        Whether the row is worth training on.
    token_advantages : Ragged or None
        Of an estimator that gives one number a token: the values and where each row's begin, exactly 0 where dropped.
    staleness : (N,) int64 or None
        The trainer's version minus the answer's oldest; None without `version=`.
    missing : int or None
        How many groups the batch still lacks, with `need=`.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        rows: Rows,
        groups: Groups,
        row_groups: Groups,
        fan_out: FanOut | None,
        ids: list[Any],
        held: dict[str, Column],
        sources: tuple[Groups, list[Any]] | None,
        parts: dict[str, NDArray[np.float64]],
        stages: Sequence[Select | None],
        advantages: NDArray[np.float64] | Ragged,
        staleness: NDArray[np.int64] | None,
        missing: int | None,
        table: Any = None,
    ) -> None:
        self._recipe, self._rows, self._groups, self._row_groups = recipe, rows, groups, row_groups
        self._fan_out, self._ids, self._held, self._parts, self._stages = fan_out, ids, held, parts, stages
        self._sources, self._alive = sources, table
        self.keep: NDArray[np.bool_] = self._expand(rows.keep())
        self.token_advantages = advantages if isinstance(advantages, Ragged) else None
        if self.token_advantages is not None and fan_out is not None:
            raise error("needs_one_row", stage=type(recipe.advantage).__name__)
        self._advantages = None if isinstance(advantages, Ragged) else self._expand(advantages)
        self.staleness = staleness
        self.missing = missing

    def __len__(self) -> int:
        return len(self.keep)

    @property
    def advantages(self) -> NDArray[np.float64]:
        """(N,) float64: exactly 0 where dropped.

        Raises
        ------
        InputError
            `per_token`: the recipe's estimator gives one number a token, see `token_advantages`.
        """
        if self._advantages is None:
            raise error("per_token", stage=type(self._recipe.advantage).__name__)
        return self._advantages

    def _expand(self, values_M: NDArray[Any]) -> NDArray[Any]:
        return values_M if self._fan_out is None else self._fan_out.expand(values_M)

    def _first_rows(self, rollouts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The table's rows at which these rollouts begin."""
        return rollouts if self._fan_out is None else self._fan_out.first[rollouts]

    @cached_property
    def _reasons(self) -> NDArray[np.uint32]:
        return self._rows.reasons()

    @cached_property
    def _outcomes(self) -> NDArray[np.float64]:
        return self._rows.outcomes()

    @cached_property
    def _lengths(self) -> NDArray[np.int64] | None:
        if "response_len" not in self._held:
            return None
        try:
            lengths = integers("response_len", self._held["response_len"])
            if (lengths < 0).any():
                return None
        except (InputError, InputTypeError):
            return None  # no stage reads them, or it would have said so; the lint does
        return lengths if self._fan_out is None else self._fan_out.reduce("response_len", lengths)

    def _sampled(self, values_M: NDArray[np.float64]) -> GroupStats:
        """The groups' statistics of everything that was scored, whatever was dropped."""
        scored = (self._reasons & (Reason.UNSCORED | Reason.NOT_FINITE)) == 0
        return GroupStats(*statistics(Rows(self._groups, (np.where(scored, values_M, 0.0), scored)), 1.0))

    @cached_property
    def reasons(self) -> NDArray[np.uint32]:
        """(N,) uint32: every `Reason` that applies, 0 when kept."""
        return self._expand(self._reasons)

    @cached_property
    def first_reason(self) -> NDArray[np.uint32]:
        """(N,) uint32: the one `Reason` that counts, that of the stage that came first; 0 when kept."""
        return self._expand(self._rows.first_reasons())

    @cached_property
    def surplus(self) -> NDArray[np.bool_]:
        """(N,) bool: good rows that a full batch (`need=`) has no room for; carry them over to the next call."""
        marked: NDArray[np.bool_] = self.first_reason == Reason.SURPLUS
        return marked

    @cached_property
    def shaped_rewards(self) -> NDArray[np.float64]:
        """(N,) float64: what the advantage read; NaN where the row has no reward."""
        shaped = self._rows.shaped()
        shaped[(self._reasons & Reason.UNSCORED) != 0] = np.nan
        return self._expand(shaped)

    @cached_property
    def groups(self) -> GroupTable:
        """One row a group: id, n, mean, std, min, max, signal."""
        first = self._first_rows(self._groups.first)
        taken = [take(ids, first) if isinstance(ids, ArrowColumn) else ids for ids in self._ids]
        columns = [ids if isinstance(ids, list) else ids.tolist() for ids in taken]
        ids = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        n, mean, std, low, high, signal = statistics(self._rows, 1.0)
        return GroupTable(n=n, mean=mean, std=std, min=low, max=high, signal=signal, id=ids, first=first)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them: "in", "kept", and each reason that came first, by its name in lower case.

        in = kept + Σ dropped, always.
        """
        return dict(self._counts)

    @cached_property
    def _counts(self) -> dict[str, int]:
        return self._counted(self._rows.counts(None, self._sizes)[0])

    @cached_property
    def counts_by_source(self) -> dict[Any, dict[str, int]]:
        """`counts` of each `source`; empty without that column."""
        if self._sources is None:
            return {}
        sources, names = self._sources
        counts = self._rows.counts(sources, self._sizes)
        return {name: self._counted(of) for name, of in zip(names, counts, strict=True)}

    @cached_property
    def lengths(self) -> QuantileSketch:
        """The answers' lengths, to 1%, to be merged with those of other tables; empty without `response_len`."""
        sketch = QuantileSketch(0.01)
        if self._lengths is not None:
            sketch.add(self._lengths)
        return sketch

    @property
    def _sizes(self) -> NDArray[np.int64] | None:
        return None if self._fan_out is None else self._fan_out.sizes

    def _name(self, stage: int) -> str:
        """The reason of a stage, counted from 1; stages of other packages are told apart."""
        reason = self._rows.reason(stage)
        own = f":{type(self._stages[stage - 1]).__name__}" if reason == Reason.OTHER else ""
        return name_of(reason) + own

    def _counted(self, counts: list[int]) -> dict[str, int]:
        rows, kept, *stages = counts
        by_reason = sorted((self._rows.reason(stage), stage, n) for stage, n in enumerate(stages, 1) if n)
        found: dict[str, int] = {}
        for _, stage, count in by_reason:
            found[self._name(stage)] = found.get(self._name(stage), 0) + count
        if kept + sum(found.values()) != rows:
            raise AssertionError(f"{rows} rows in, {kept} kept, {found} dropped: a bug in grpokit")
        return {"in": rows, "kept": kept} | found

    @cached_property
    def lint(self) -> tuple[Finding, ...]:
        """What the table says about the code that wrote it; see `grpokit.lint`."""
        return lint(self)

    def explain(self, row: int) -> str:
        """Why a row is kept or dropped, in a sentence or two.

        Raises
        ------
        InputError
            There is no such row.

        Examples
        --------
        >>> import grpokit as gk
        >>> recipe = gk.recipe("rloo").replace(select=(gk.HasSignal(),))
        >>> out = gk.process({"group_id": [7, 7, 8], "reward": [1.0, 0.0, 1.0]}, recipe)
        >>> print(out.explain(2))
        Row 2 (group 8, outcome 1) is dropped, no_signal: its group has no two outcomes that count.
        """
        row = whole("explain", "row", row, at_least=0, at_most=len(self) - 1)
        rollout = row if self._fan_out is None else int(self._fan_out.codes[row])
        group = int(self._groups.codes[rollout])
        reasons, stage = int(self._reasons[rollout]), self._rows.first_stage(rollout)
        outcome = "no outcome" if reasons & Reason.UNSCORED else f"outcome {self._outcomes[rollout]:g}"
        head = f"Row {row} (group {self.groups.id[group]!r}, {outcome}) is "
        if not stage:
            n, mean = self.groups.n[group], self.groups.mean[group]
            if self._advantages is not None:
                advantage = f"advantage {self._advantages[row]:+.3g}"
            else:
                tokens = np.zeros(0) if self.token_advantages is None else self.token_advantages[row]
                ends = "none" if not len(tokens) else f"{tokens[0]:+.3g} to {tokens[-1]:+.3g}"
                advantage = f"advantages of its {len(tokens)} tokens: {ends}"
            return f"{head}kept: {n} outcomes of its group count, mean {mean:.3g}; {advantage}."
        first = self._rows.reason(stage)
        selection = self._stages[stage - 1]
        read = self._rows.read_at(stage, group)
        if selection is not None:
            why = selection.because(None if read is None else Read(*read))
        else:
            why = {
                Reason.UNSCORED: "its reward (or gate) is null, so it could not be scored",
                Reason.NOT_FINITE: "its reward (or gate) is NaN or infinite",
                Reason.SURPLUS: "nothing is wrong with it, but the batch is full; carry it over",
            }[Reason(first)]
        others = [name_of(reason) for reason in Reason if reason & reasons & ~first]
        also = f" It would be dropped for {', '.join(others)} as well." if others else ""
        return f"{head}dropped, {self._name(stage)}: {why}.{also}"

    def metrics(self) -> dict[str, float]:
        """A page of numbers about the table as it was sampled, by TRL's names where TRL has one.

        Returns
        -------
        dict of str to float
            `reward` and `reward_std` (the groups' mean standard deviation), `outcome` (the gate where there is one) and
            `frac_reward_zero_std` (groups whose outcomes have no signal), over everything that was scored; `kept_share`
            and `dropped/...` (rows by first reason); with `response_len` `completions/mean_length`, ... (quantiles to
            1%); with `finish` `completions/clipped_ratio`; with `version=` `staleness/...`; with `reward_parts`
            `rewards/.../mean`. Several rows of one rollout count once.
        """
        outcomes, counts = self._sampled(self._outcomes), self.counts
        scored = (self._reasons & (Reason.UNSCORED | Reason.NOT_FINITE)) == 0
        rewards_M = self._rows.scores()
        found = {
            "rows": float(len(self)),
            "groups": float(len(outcomes.n)),
            "reward": _mean(rewards_M[scored]),
            "reward_std": _mean(self._sampled(rewards_M).std[outcomes.n > 1]),
            "outcome": _mean(self._outcomes[scored]),
            "frac_reward_zero_std": _mean(~outcomes.signal[outcomes.n > 0]),
            "kept_share": _mean(self.keep),
        }
        found |= {f"dropped/{name}": float(n) for name, n in counts.items() if name not in ("in", "kept")}
        if self._lengths is not None and len(self._lengths):
            lengths = self._lengths
            found |= {
                "completions/mean_length": _mean(lengths),
                "completions/min_length": float(lengths.min()),
                "completions/max_length": float(lengths.max()),
            }
            found |= {f"completions/length_p{q}": self.lengths.quantile(q / 100) for q in (50, 90, 99)}
        finish = self._held.get("finish")
        try:
            finish = (
                None if finish is None else finish if self._fan_out is None else self._fan_out.reduce("finish", finish)
            )
            if finish is not None:
                found["completions/clipped_ratio"] = _mean(words("finish", finish, FINISH) == FINISH.index("length"))
        except (InputError, InputTypeError):
            pass  # words that no stage reads, or it would have said so; the lint does
        if self.staleness is not None and len(self.staleness):
            lags = self.staleness if self._fan_out is None else self.staleness[self._fan_out.first]
            found |= {"staleness/mean": _mean(lags), "staleness/max": float(lags.max())}
        for part, values in self._parts.items():
            known = values[~np.isnan(values)]
            found |= {
                f"rewards/{part}/mean": _mean(known),
                f"rewards/{part}/std": float(known.std()) if len(known) else np.nan,
            }
        return found

    def pass_rates(self, bins: int = 10) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The histogram of the groups' mean outcomes as sampled: counts (bins,) and edges (bins + 1,), from 0 to 1.

        A mean outside 0 to 1 is counted in the nearest bin; groups in which nothing was scored are left out.
        """
        bins = whole("pass_rates", "bins", bins, at_least=1, at_most=10_000)
        stats = self._sampled(self._outcomes)
        return np.histogram(np.clip(stats.mean[stats.n > 0], 0, 1), bins=bins, range=(0.0, 1.0))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Column names and lines: one line a source and one for all."""
        names = list(self.counts)
        lines = [*self.counts_by_source.items()] if len(self.counts_by_source) > 1 else []
        if len(lines) > MOST_SOURCES:
            lines.sort(key=lambda line: -line[1]["in"])
            rest = {name: sum(of.get(name, 0) for _, of in lines[MOST_SOURCES:]) for name in names}
            lines = [*lines[:MOST_SOURCES], (f"{len(lines) - MOST_SOURCES:,} others", rest)]
        cells = []
        for label, counts in [*lines, ("all", self.counts)]:
            share = f"{counts['kept'] / max(counts['in'], 1):.1%}"
            shown = str(label) if str(label).isprintable() else repr(label)
            cells.append([shown, *(f"{counts.get(name, 0):,}" for name in names), share])
        return ["source", *names, "kept %"], cells

    def __str__(self) -> str:
        counts, groups = self.counts, self.groups
        dropped = {name: count for name, count in counts.items() if name not in ("in", "kept")}
        lines = [f"{counts['in']:,} rows in {len(groups.n):,} groups"]
        width = max(12, *map(len, counts))
        for name, count in ({"kept": counts["kept"]} | dropped).items():
            lines.append(f"  {name:<{width}} {count:>12,}  {count / max(len(self), 1):7.2%}")
        if len(self.counts_by_source) > 1:
            names, cells = self._table()
            widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
            line = "  " + "  ".join(f"{{:>{width}}}" for width in widths)
            lines += [line.format(*row) for row in (names, *cells)]
        if len(groups.n):
            sizes, without = self._groups.sizes, int((~groups.signal).sum())
            lines.append(f"groups of {sizes.min():,} to {sizes.max():,} rows, {without:,} without signal")
        if self.missing:
            lines.append(f"{self.missing:,} groups are missing to a full batch")
        return "\n".join([*lines, *(f"lint {finding}" for finding in self.lint)])

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        names, cells = self._table()
        caption = Text("\n".join(f"lint {finding}" for finding in self.lint)) if self.lint else None
        table = Table(title=f"{len(self):,} rows in {len(self._groups):,} groups", caption=caption)
        for name in names:
            table.add_column(name, justify="left" if name == "source" else "right")
        for line in cells:
            table.add_row(*map(Text, line))
        return table

    def __repr__(self) -> str:
        return f"Processed({self.counts})"


def statistics(rows: Rows, ddof: float) -> tuple[Any, ...]:
    """Count, mean, std, min, max and signal of each group's outcomes."""
    n, mean, std, low, high = rows.statistics(ddof)
    for column in (mean, low, high):
        column[n == 0] = np.nan
    return n, mean, std, low, high, rows.signal(0.0)


def name_of(reason: int) -> str:
    """A reason's name, as the counts have it."""
    return str(Reason(reason).name).lower()


def _mean(values: Any) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")
