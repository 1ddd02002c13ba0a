from collections.abc import Sequence
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

__all__ = [
    "ArrowColumn",
    "Groups",
    "LagStatistics",
    "Rows",
    "Seen",
    "Sketch",
    "StalenessLedger",
    "Table",
    "TakenBatch",
    "VersionSpan",
    "balance",
    "best_at_k",
    "majority_at_k",
    "mismatch",
    "mismatch_bins",
    "numbers",
    "pack",
    "pass_at_k",
    "pass_of_counts",
    "read_lines",
    "select_lines",
]

__version__: str

_Statistics = tuple[
    NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]
]

def numbers(column: str, data: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]: ...

_Field = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64], bytes, NDArray[np.int64]]

def read_lines(block: bytes, fields: list[str], threads: int | None = None) -> tuple[int, list[_Field], bool]: ...
def select_lines(block: bytes, keep: NDArray[np.bool_]) -> tuple[bytes, int]: ...

@final
class Table:
    """A table read from an object with `__arrow_c_stream__`."""

    names: list[str]
    def __new__(cls, data: Any) -> Table: ...
    def __len__(self) -> int: ...
    def column(self, name: str) -> ArrowColumn | None: ...

@final
class ArrowColumn:
    """One column of a table, in the chunks in which it came."""

    dtype: str
    def __new__(cls, data: Any) -> ArrowColumn: ...
    def __len__(self) -> int: ...
    def field(self, name: str) -> ArrowColumn | None: ...
    def fields(self) -> list[str]: ...
    def integers(self, column: str) -> NDArray[np.int64]: ...
    def nulls(self) -> tuple[list[int], int]: ...
    def take(self, rows: list[int]) -> list[Any]: ...
    def to_list(self) -> list[Any]: ...

@final
class Groups:
    """Which rows belong together: dense codes in order of first appearance."""

    codes: NDArray[np.uint32]
    first: NDArray[np.int64]
    order: NDArray[np.int64]
    sizes: NDArray[np.int64]
    def __new__(cls, keys: list[Any], names: list[str], threads: int | None = None) -> Groups: ...
    def __len__(self) -> int: ...
    def take(self, keep: NDArray[np.bool_]) -> Groups: ...

@final
class Rows:
    """A batch of rollouts on its way through shaping, selection and advantages."""

    n: int
    stages: int
    def __new__(cls, groups: Groups, reward: Any, gate: Any | None = None, drop_not_finite: bool = False) -> Rows: ...
    def add(self, amounts: NDArray[np.float64]) -> None: ...
    def advantages(
        self,
        estimator: str,
        ddof: float | None = None,
        eps: float = 0.0,
        *,
        k: int = 1,
        beta: float = 1.0,
        weights: Any | None = None,
        batches: Groups | None = None,
    ) -> NDArray[np.float64]: ...
    def counts(self, sources: Groups | None = None, weights: NDArray[np.int64] | None = None) -> list[list[int]]: ...
    def drop(self, marked: NDArray[np.bool_], reason: int, keep_in_statistics: bool) -> None: ...
    def drop_duplicates(self, contents: Groups, keep_in_statistics: bool) -> None: ...
    def drop_outside_pass_rate(self, low: float, high: float) -> None: ...
    def drop_small_groups(self, at_least: int) -> None: ...
    def drop_surplus(self, need: int, ranks: NDArray[np.int64]) -> int: ...
    def drop_without_signal(self, tolerance: float) -> None: ...
    def first_reasons(self) -> NDArray[np.uint32]: ...
    def first_stage(self, row: int) -> int: ...
    def keep(self) -> NDArray[np.bool_]: ...
    def keep_highest_groups(
        self,
        learnability: bool,
        share: float | None = None,
        count: int | None = None,
        batches: Groups | None = None,
    ) -> None: ...
    def keep_max_variance(self, most: int, keep_in_statistics: bool) -> None: ...
    def live(self) -> NDArray[np.bool_]: ...
    def kept_groups(self) -> NDArray[np.bool_]: ...
    def limit_sources(
        self, most: int, sources: Groups, only: int | None = None, batches: Groups | None = None
    ) -> None: ...
    def outcomes(self) -> NDArray[np.float64]: ...
    def overlong(self, response_len: Any, max_len: int, cache: int) -> None: ...
    def read_at(self, stage: int, group: int) -> tuple[int, float, float, float] | None: ...
    def reason(self, stage: int) -> int: ...
    def reasons(self) -> NDArray[np.uint32]: ...
    def scores(self) -> NDArray[np.float64]: ...
    def shaped(self) -> NDArray[np.float64]: ...
    def signal(self, tolerance: float) -> NDArray[np.bool_]: ...
    def statistics(self, ddof: float) -> _Statistics: ...
    def weigh(self, advantages: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def weigh_duplicates(self, contents: Groups) -> None: ...

@final
class Seen:
    """Which groups a stream has had, by a 64-bit hash of each."""

    def __new__(cls) -> Seen: ...
    def __len__(self) -> int: ...
    def add(self, hashes: NDArray[np.int64]) -> int | None: ...

@final
class VersionSpan:
    """The policy versions of one rollout's tokens."""

    oldest: int
    newest: int
    mean: float
    tokens: int | None

@final
class LagStatistics:
    """Lags of some rollouts, in versions between the oldest token and the trainer."""

    rollouts: int
    unknown: int
    min: int | None
    max: int | None
    mean: float | None
    tokens: int
    token_mean: float | None
    histogram: dict[int, int]

@final
class TakenBatch:
    """A batch for training: rollouts in order of admission."""

    version: int
    tickets: list[int]
    minibatches: list[list[int]]
    staleness: list[int | None]
    spans: list[VersionSpan | None]
    lags: LagStatistics
    def __len__(self) -> int: ...

@final
class StalenessLedger:
    """The books of an asynchronous trainer: which rollouts run, wait and were used, and how old their tokens are."""

    version: int
    batch_size: int
    max_staleness: int
    max_running: int | None
    capacity: int
    counts: dict[str, int]
    abort_reasons: dict[str, int]
    def __new__(
        cls,
        batch_size: int,
        max_staleness: int,
        max_running: int | None = None,
        *,
        version: int = 0,
        sources: Sequence[str] | None = None,
    ) -> StalenessLedger: ...
    @staticmethod
    def restore(
        snapshot: Buffer, *, running: Literal["lost", "keep"] = "lost", ready: Literal["lost", "keep"] = "keep"
    ) -> StalenessLedger: ...
    def abort(
        self,
        ticket: int,
        reason: Literal["error", "timeout", "cancelled", "rejected", "stale", "lost"] = "error",
    ) -> None: ...
    def admit(self, source: str | None = None) -> int | None: ...
    def advance(self, version: int | None = None) -> int: ...
    def complete(
        self,
        ticket: int,
        *,
        versions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
        unknown: bool = False,
    ) -> None: ...
    def evict(self, max_lag: int | None = None, *, unknown: bool = False) -> list[int]: ...
    def lag(self, ticket: int) -> int | None: ...
    def lags(self) -> LagStatistics: ...
    def ready(self) -> list[int]: ...
    def requeue(self, ticket: int) -> None: ...
    def running(self) -> list[int]: ...
    def snapshot(self) -> bytes: ...
    def span(self, ticket: int) -> VersionSpan | None: ...
    def starvation(self) -> dict[str, dict[str, float]]: ...
    def state(self, ticket: int) -> str: ...
    def take(self, n: int | None = None, steps: int = 1) -> TakenBatch | None: ...

@final
class Sketch:
    """Counts of values in buckets whose width is proportional to their place."""

    count: int
    max: float
    mean: float
    min: float
    relative_error: float
    def __new__(cls, relative_error: float) -> Sketch: ...
    def add(self, values: Any) -> None: ...
    @staticmethod
    def from_bytes(data: bytes) -> Sketch: ...
    def merge(self, other: Sketch) -> None: ...
    def quantiles(self, shares: list[float]) -> list[float]: ...
    def to_bytes(self) -> bytes: ...

_Mismatch = tuple[
    list[int],
    tuple[int, int] | None,
    list[float],
    list[float],
    list[list[int]],
    NDArray[np.uint64],
    NDArray[np.uint64],
    list[float],
    list[list[tuple[int, int, float]]],
]

def mismatch(
    old: NDArray[Any],
    rollout: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    starts: NDArray[np.int64],
    rules: Sequence[tuple[str, float, float]],
    groupings: Sequence[tuple[NDArray[np.uint32], int]],
    threads: int | None = None,
) -> list[_Mismatch]: ...
def mismatch_bins() -> NDArray[np.float64]: ...
def pack(lengths: Any, max_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def balance(
    lengths: Any, ranks: int, equal_counts: bool, linear: float, quadratic: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]: ...
def pass_at_k(outcomes: Any, groups: Groups, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def pass_of_counts(
    attempts: NDArray[np.int64], passed: NDArray[np.int64], k: NDArray[np.int64]
) -> NDArray[np.float64]: ...
def best_at_k(values: Any, groups: Groups, k: int, worst: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def majority_at_k(
    values: Any, groups: Groups, answers: Groups, k: int, draws: int, seed: int, threads: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
