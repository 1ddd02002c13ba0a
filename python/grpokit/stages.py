"""What a stage is, and the register of all of them.

A stage is a small frozen dataclass whose fields are the paper's symbols. It says which columns it `reads` and in
what `scope`; when it runs follows from that. There are six kinds, in the order in which the data flows: `shape`,
`select`, `advantage` work on rows (NumPy in and out); `correct`, `objective`, `aggregate` on tokens (torch).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

from .errors import error, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ._native import Groups, Rows
    from .columns import Ragged
    from .tokens import Normalizer, Tokens

Scope = Literal["row", "group", "token", "sequence", "batch"]
Level = Literal["token", "sequence", "geometric", "worst"]
Columns = Mapping[str, Any]


class Stage:
    """The base of all stages.

    Attributes
    ----------
    reads : frozenset of str
        The columns that it touches.
    scope : str
        Which rows or tokens it must be shown together.
    equation : str
        One line, in the paper's symbols.
    sources : dict
        Where its own defaults are from, by parameter; a recipe's `sources` come first.
    leaves_out : str
        What of its paper it leaves out.
    example : dict
        Values for the parameters that no paper states and that are therefore required: what tests and pages use.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    scope: ClassVar[Scope] = "row"
    equation: ClassVar[str] = ""
    sources: ClassVar[Mapping[str, str]] = {}
    leaves_out: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {}

    @property
    def facts(self) -> tuple[str, ...]:
        """What its numbers amount to, a sentence each; `Recipe.explain` prints them."""
        return ()


class Shape(Stage):
    """Adds to the reward before the advantage is taken; filters and metrics never see it."""

    def __call__(self, rewards_N: NDArray[np.float64], groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The amount to add to each row's reward: (N,) float64, finite. `rewards_N` is NaN where a row has none."""
        raise _no_call(self)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Applies the stage; built-in stages call the native core here."""
        # What a row that is dropped already gets does not matter: it has no reward to work with.
        amounts = self(_counting(rows.shaped(), rows), groups, as_numpy(self, columns))
        rows.add(as_result(self, amounts, rows.n, "f", rows.keep()))


class Read(NamedTuple):
    """What a selection of groups read: a group's outcomes that counted at that moment."""

    n: int
    mean: float
    low: float
    high: float


class Select(Stage):
    """Marks rows to drop. `stats` says whether what it drops stays in its group's statistics."""

    stats: Literal["keep", "drop"] = "drop"

    def __call__(self, outcomes_N: NDArray[np.float64], groups: Groups, columns: Columns) -> NDArray[np.bool_]:
        """Which rows to keep: (N,) bool.

        `outcomes_N` is NaN for rows that do not count: those without a reward, and those that an earlier stage took out
        of the statistics. Rows that are dropped already may be answered either way.
        """
        raise _no_call(self)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> None:
        """Applies the stage; built-in stages call the native core here."""
        if self.stats not in ("keep", "drop"):
            expected = "'keep' or 'drop'"
            raise error("bad_parameter", owner=type(self).__name__, name="stats", given=self.stats, expected=expected)
        outcomes = _counting(rows.outcomes(), rows)
        keep = as_result(self, self(outcomes, groups, as_numpy(self, columns)), rows.n, "b")
        rows.drop(~keep, OTHER, self.stats == "keep")

    def because(self, read: Read | None) -> str:
        """Why a row that it dropped was dropped, for `out.explain`; `read` is there where whole groups are dropped."""
        return f"the stage {type(self).__name__} says so"


class Advantage(Stage):
    """An advantage per row.

    `signal` is "group" where it is relative to the row's group (no signal gives exactly 0), "batch" or "none"
    where it is not and a group of one is ordinary.
    """

    signal: ClassVar[Literal["group", "batch", "none"]] = "group"

    def __call__(self, rewards_N: NDArray[np.float64], groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of the rows that it is shown: (N,) float64, finite.

        These are the rows that count: those that are kept, and those that a stage with stats="keep" dropped, whose
        advantage is then set to 0.
        """
        raise _no_call(self)

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64] | Ragged:
        """The advantages of all rows, 0 where dropped; built-in stages call the native core here."""
        import numpy as np

        kept = rows.keep()
        shown = rows.live() & rows.kept_groups()[groups.codes]
        given = {name: _of_rows(column, shown) for name, column in as_numpy(self, columns).items()}
        values = self(rows.shaped()[shown], groups.take(shown), _Columns(self, given))
        advantages_N = np.zeros(rows.n)
        advantages_N[shown] = as_result(self, values, int(shown.sum()), "f", kept[shown])
        return rows.weigh(advantages_N)


class Bounds(NamedTuple):
    """What a correction compares: a ratio at some level, with inclusive bounds of it; None is no bound.

    Attributes
    ----------
    level : {"token", "sequence", "geometric", "worst"}
        The token's ratio, the product over its sequence, their geometric mean, or every single one in the sequence.
    low, high : float or None
        Of the ratio, not of its logarithm.
    """

    level: Level
    low: float | None
    high: float | None


class Correct(Stage):
    """A weight per token without gradient; 0 drops the token. Each sees all live tokens, so their order is free.

    Attributes
    ----------
    importance : bool
        Multiplies by a ratio of policies, so that a term may have one only; masks and selections do not.
    draws : bool
        Chooses at random, by a hash of (seed, `step`, `rollout_ids`, `position`).
    """

    scope: ClassVar[Scope] = "token"
    importance: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    @property
    def bounds(self) -> Bounds | None:
        """What it compares, where that is a ratio to the sampler and bounds; else None."""
        return None

    def weight(self, tokens: Tokens) -> Tensor:
        """(T,) float, 0 or more."""
        raise NotImplementedError(type(self))


class Objective(Stage):
    """A value per token whose gradient the model sees; a sequence's value is repeated at each of its tokens.

    Attributes
    ----------
    where : str
        What the symbols of the equation stand for, beyond r and A.
    gradient : str
        g = ∂LOSS_t/∂log π (and h = ∂LOSS_t/∂H), in closed form, one line.
    folds : bool
        Uses `tokens.weight` inside its own formula, so that the spine applies the drops only.
    breaks : dict of str
        The laws that do not hold, each with the reason; `grpokit.testing.laws` checks that they do break.
    """

    scope: ClassVar[Scope] = "token"
    where: ClassVar[str] = ""
    gradient: ClassVar[str] = ""
    folds: ClassVar[bool] = False

    @property
    def breaks(self) -> Mapping[str, str]:
        """Law -> why it does not hold, for these parameters."""
        return {}

    def value(self, tokens: Tokens) -> Tensor:
        """The paper's formula: columns (T,) in, one column (T,) out, gradients by autograd."""
        raise NotImplementedError(type(self))


class Aggregate(Stage):
    """The denominator 1/c of a term, which belongs to the whole optimizer step."""

    over: Literal["live", "kept", "rows"] = "live"

    def denominator(self, counts: Normalizer, lengths_T: Tensor) -> Tensor:
        """(T,) float64: what each token's contribution is divided by."""
        raise NotImplementedError(type(self))


OTHER = 1 << 31
KINDS: dict[str, type[Stage]] = {
    "shape": Shape,
    "select": Select,
    "advantage": Advantage,
    "correct": Correct,
    "objective": Objective,
    "aggregate": Aggregate,
}
REGISTRY: dict[str, dict[str, Any]] = {kind: {} for kind in (*KINDS, "recipe")}
_HOME = (
    "shaping",
    "selection",
    "ranking",
    "advantage",
    "passk",
    "gdpo",
    "minimum_variance",
    "mismatch",
    "rejection",
    "drift",
    "token_selection",
    "objective",
    "aggregate",
    "recipes",
    "recipes_beyond_clip",
    "recipes_off_policy",
    "compat.trl",
    "compat.verl",
)

T = TypeVar("T", bound=Callable[..., Any])


EXAMPLES: dict[str, Mapping[str, Any]] = {}


def register(kind: str, *, example: Mapping[str, Any] | None = None) -> Callable[[T], T]:
    """Makes a stage, or a recipe, known by its name.

    Parameters
    ----------
    kind : {"shape", "select", "advantage", "correct", "objective", "aggregate", "recipe"}
        A frozen dataclass derived from `grpokit.Shape`, `Select`, ... or, for a recipe, a function with keyword
        arguments that returns a `grpokit.Recipe`.
    example : dict, optional
        For a recipe: values for its required arguments, which tests and pages use. (A stage has an attribute of that
        name.)

    Raises
    ------
    InputTypeError
        What is decorated is not of that kind, or not a frozen dataclass.
    InputError
        The name is taken.

    Notes
    -----
    Other packages are found through the entry-point group ``grpokit.stages``: each entry names a module, whose
    import registers what it holds.
    """
    if kind not in REGISTRY:
        raise error("unknown_stage", kind="kind of", given=kind, nearest=nearest(kind, REGISTRY), known=list(REGISTRY))

    def add(thing: T) -> T:
        if kind == "recipe":
            fine = inspect.isfunction(thing)
            expected = "a function that returns a grpokit.Recipe"
        else:
            fine = isinstance(thing, type) and issubclass(thing, KINDS[kind]) and _is_frozen(thing)
            expected = f"a frozen dataclass derived from grpokit.{KINDS[kind].__name__}"
        if not fine:
            raise error("bad_registration", given=thing, kind=kind, expected=expected)
        known = REGISTRY[kind].get(thing.__name__)
        if known is not None and (known.__module__, known.__qualname__) != (thing.__module__, thing.__qualname__):
            raise error("registered_twice", kind=kind, name=thing.__name__, owner=known.__module__)
        REGISTRY[kind][thing.__name__] = thing
        if kind == "recipe":
            EXAMPLES[thing.__name__] = example or {}
        return thing

    return add


def lookup(kind: str, name: str) -> Any:
    """The registered stage class or recipe function of that name."""
    load()
    if not isinstance(name, str) or name not in REGISTRY[kind]:
        known, name = list(REGISTRY[kind]), str(name)
        if kind == "recipe":
            raise error("unknown_recipe", given=name, nearest=nearest(name, known), known=", ".join(known))
        raise error("unknown_stage", kind=kind, given=name, nearest=nearest(name, known), known=", ".join(known))
    return REGISTRY[kind][name]


def of_papers(kind: str) -> dict[str, Any]:
    """The built-in stages or recipes that are of papers: neither other packages', nor `grpokit.compat`'s.

    What replays another library's numbers has a page of its own, docs/compat.md.
    """
    load()
    home = {name: thing.__module__ for name, thing in REGISTRY[kind].items()}
    ours = [name for name, module in home.items() if module.startswith("grpokit.")]
    return {name: REGISTRY[kind][name] for name in ours if not home[name].startswith("grpokit.compat.")}


@functools.cache
def load() -> None:
    """Imports what registers stages: the built-in modules, then other packages' entry points."""
    for module in _HOME:
        import_module(f"grpokit.{module}")
    for entry in entry_points(group="grpokit.stages"):
        try:
            entry.load()
        except Exception as problem:  # noqa: BLE001
            # What somebody else has installed must not take the rest away.
            package = entry.dist.name if entry.dist else "a package"
            broken = error("broken_package", package=package, entry=entry.value, reason=repr(problem))
            warnings.warn(str(broken), stacklevel=2)


def _is_frozen(thing: type) -> bool:
    # `thing.__dict__`, since a class derived from a dataclass looks like one without being one.
    return "__dataclass_params__" in thing.__dict__ and thing.__dict__["__dataclass_params__"].frozen


def as_result(
    stage: Stage, result: Any, n: int, kind: Literal["f", "b"], matters: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """What a stage written in Python returned, checked: shape, type, finiteness."""
    import numpy as np

    name, expected = type(stage).__name__, f"a {'bool' if kind == 'b' else 'finite float'} array of shape ({n},)"
    try:
        array = np.asarray(result)
    except ValueError:
        raise error("stage_result", stage=name, given="lists of different lengths", expected=expected) from None
    if array.shape != (n,):
        raise error("stage_result", stage=name, given=f"shape {array.shape}", expected=expected)
    if array.dtype.kind not in ("b" if kind == "b" else "fiu"):
        raise error("stage_result", stage=name, given=f"dtype {array.dtype}", expected=expected)
    if kind == "b":
        return array
    array = array.astype(np.float64)
    if matters is not None:
        array[~matters] = 0.0
    # Beyond 1e150 the square is no number; NaN fails the comparison.
    wrong = ~(np.abs(array) <= 1e150)
    if wrong.any():
        row = int(wrong.argmax())
        raise error("stage_result", stage=name, given=f"{array[row]} in row {row}", expected=expected)
    return array


class _Columns(dict[str, Any]):
    """Columns for a stage written in Python; touching one that it does not declare is an error that says so."""

    def __init__(self, stage: Stage, columns: Mapping[str, Any]) -> None:
        super().__init__(columns)
        self._reader = type(stage).__name__

    def __missing__(self, column: str) -> Any:
        raise error("undeclared_column", reader=self._reader, column=column)


def as_numpy(stage: Stage, columns: Columns) -> _Columns:
    """The columns that a stage written in Python reads, as NumPy arrays that it cannot write to."""
    from .columns import Ragged, as_numpy

    given: dict[str, Any] = {}
    for name in stage.reads:
        column = columns[name]
        if isinstance(column, dict):
            given[name] = {part: _read_only(values) for part, values in column.items()}
        else:
            given[name] = column if name == "version" or isinstance(column, Ragged) else _read_only(as_numpy(column))
    return _Columns(stage, given)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _of_rows(column: Any, shown: NDArray[np.bool_]) -> Any:
    """A column's values in some rows."""
    from .columns import Ragged

    if isinstance(column, Ragged):
        return column.take(shown)
    if isinstance(column, dict):
        return {name: values[shown] for name, values in column.items()}
    return column[shown] if getattr(column, "ndim", 0) else column


def _counting(values_N: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
    """NaN where a row does not count."""
    values_N[~rows.live()] = float("nan")
    return values_N


def _no_call(stage: Stage) -> Exception:
    return NotImplementedError(
        f"{type(stage).__name__} needs a method __call__; grpokit.{type(stage).__mro__[1].__name__} says which"
    )


def fields_of(stage: Any) -> dict[str, Any]:
    """A stage's parameters by name."""
    return {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
