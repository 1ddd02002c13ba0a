"""Somebody's function as the kit calls it: arguments by name, arrays of its library, results as NumPy.

How it wants its arguments (advantages per row or per token, masks as bool or numbers, ids as what) is found by trying;
of the forms that it takes, the one whose results are right on a plain case, so that the benefit of the doubt is its.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.errors import error

from . import arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from .arguments import Argument
    from .cases import Batch, Rollouts, TokenValues

LOGPS = ("logps", "old_logps", "rollout_logps", "ref_logps")


class Departure(Exception):  # noqa: N818 - no error of ours: what the kit looks for
    """The implementation departs from what is right.

    Parameters
    ----------
    part : str
        Where: value, g, h, mask, denominator, dtype, shape, raises, ...
    expected, got : object
        What was right, and what came.
    says : str
        What happened, a sentence without a subject.
    """

    def __init__(self, part: str, says: str, expected: Any = None, got: Any = None) -> None:
        super().__init__(says)
        self.part, self.says, self.expected, self.got = part, says, expected, got


@dataclass(frozen=True)
class Form:
    """How a function wants its arguments.

    Attributes
    ----------
    library : {"torch", "numpy", "jax"}
    advantages : {"token", "row"}
        (S, T) or (S,).
    mask : {"bool", "int64", "float"}
    ids : {"own", "objects", "list", "dense"}
        Group ids in the library's arrays, as a NumPy array of strings, as a list, or numbered from 0 in an array.
    rows : {"table", "group", "matrix"}
        All rows at once; one group a call; or groups of one size as (G, n).
    """

    library: str = "numpy"
    advantages: str = "token"
    mask: str = "bool"
    ids: str = "own"
    rows: str = "table"


@dataclass(frozen=True, eq=False)
class Got:
    """What a function gave.

    Attributes
    ----------
    value : float
        A loss, or the sum of what else it is.
    gradients : dict of arrays or None
        By ``logps`` and ``entropies`` of a loss, ``values`` of an aggregation; None where none is to be had.
    tokens : array, optional
        A KL estimator's numbers.
    unit : float
        Half the distance of 1 to the next number in the format of the result.
    """

    value: float
    gradients: Mapping[str, NDArray[np.float64] | None]
    tokens: NDArray[np.float64] | None = None
    unit: float = 2.0**-53


@dataclass
class Subject:
    """A function under test.

    Parameters
    ----------
    function : callable
    kind : str
        One of `arguments.KINDS`.
    arguments : tuple of Argument
    form : Form
    name : str
        What it is called in messages: ``module:attribute``.
    before, after : callable
        Called around every call; `before` with a function that writes the call down.
    last : dict
        The arguments of the last call, by source.
    """

    function: Callable[..., Any]
    kind: str
    arguments: tuple[Argument, ...]
    form: Form = field(default_factory=Form)
    name: str = ""
    before: Callable[[Callable[[], str]], None] = lambda _: None
    after: Callable[[], None] = lambda: None
    last: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def sources(self) -> frozenset[str]:
        """What it is given."""
        return frozenset(a.source for a in self.arguments if a.source)

    @property
    def per_row(self) -> bool:
        """Whether it takes one advantage an answer."""
        return self.form.advantages == "row" or "row_advantages" in self.sources

    @property
    def equal_groups(self) -> bool:
        """Whether only groups of one size can be given, one after another."""
        return self.form.rows == "matrix" or (self.form.rows == "table" and "group_ids" not in self.sources)

    def forms(self) -> Iterator[Form]:
        """The forms that are worth trying, the likeliest first."""
        sources = self.sources
        tokens = self.kind in ("loss", "kl", "aggregate")
        advantages = ("token", "row") if "advantages" in sources else ("token",)
        masks = ("bool", "int64", "float") if "mask" in sources else ("bool",)
        ids = ("own", "objects", "list", "dense") if "group_ids" in sources else ("own",)
        rows: tuple[str, ...] = ("table",)
        if not tokens and not sources & {"group_ids", "num_generations"}:
            rows = ("group", "matrix")
        for library in arrays.likely(self.function):
            yield from (Form(library, *rest) for rest in itertools.product(advantages, masks, ids, rows))

    def loss(self, case: Batch, dtype: str = "float64", whole: Batch | None = None) -> Got:
        """Value and gradients of a loss; of a part of a step with the counts of the whole."""
        given = self._token_columns(case, dtype)
        if whole is not None:
            given |= {"num_tokens": int(whole.mask.sum()), "num_sequences": len(whole.mask)}
        by: dict[str, Any] = {name: given[name] for name in ("logps", "entropies") if name in self.sources}
        return self._differentiated(given, by, lambda g: self._unpacked(case, g))

    def kl(self, case: Batch, dtype: str = "float64") -> Got:
        """A KL estimator's numbers and the slope of their sum by logps."""
        given, live = self._token_columns(case, dtype), self._live(case, dtype)
        kept: dict[str, Any] = {}

        def total(leaves: dict[str, Any]) -> Any:
            result = _first(self._called({**given, **leaves}))
            if tuple(getattr(result, "shape", ())) != tuple(given["logps"].shape):
                shapes = tuple(given["logps"].shape), tuple(getattr(result, "shape", ()))
                raise Departure("shape", "it gives no number per token", *shapes)
            _real(result, "estimate")
            kept.setdefault("tokens", result)
            return (result * live).sum()

        value, gradients = self._slopes(total, {"logps": given["logps"]})
        tokens = self._unpacked(case, arrays.read(kept["tokens"]).astype(np.float64))
        unit = arrays.FLOATS.get(arrays.format_of(kept["tokens"]), arrays.FLOATS["float64"])
        slopes = {k: None if g is None else self._unpacked(case, g) for k, g in gradients.items()}
        return Got(float(arrays.read(value)), slopes, np.where(case.mask, tokens, 0.0), unit)

    def aggregate(self, case: TokenValues, dtype: str = "float64") -> Got:
        """The sum and its slope by each value."""
        given = {"values": self._array(case.values, dtype), "mask": self._mask(case.mask, dtype)}
        return self._differentiated(given, {"values": given["values"]}, lambda g: g)

    def rows(self, case: Rollouts, dtype: str = "float64") -> NDArray[Any]:
        """(N,): advantages, or whether each row is kept."""
        if self.form.rows == "table":
            return self._table(case, dtype)
        out: NDArray[Any] = np.zeros(len(case.rewards), bool if self.kind == "filter" else np.float64)
        if self.form.rows == "matrix":
            together = np.stack(case.groups)
            out[together.ravel()] = self._result(self._called(self._row_columns(case, together, dtype)), together.shape)
            return out
        for rows in case.groups:
            result = _first(self._called(self._row_columns(case, rows, dtype)))
            found = arrays.read(result)
            out[rows] = found if found.ndim == 0 and self.kind == "filter" else self._result(result, rows.shape)
        return out

    def _table(self, case: Rollouts, dtype: str) -> NDArray[Any]:
        N = len(case.rewards)
        result = _first(self._called(self._row_columns(case, np.arange(N), dtype)))
        found = arrays.read(result)
        if "mask" not in self.sources or found.ndim != 2:
            return self._result(result, (N,))
        mask = _token_mask(case)
        if found.shape != mask.shape:
            raise Departure(
                "shape", "its result has the shape of neither the rows nor the mask", mask.shape, found.shape
            )
        last = found[np.arange(N), case.lengths - 1]
        # What is no number in the answer may be none behind it: 0 times infinity.
        found = np.where(mask | np.isfinite(last)[:, None], found, 0.0)
        if np.any(found[~mask] != 0):
            raise Departure("mask", "it has advantages behind the mask", 0.0, found[~mask].tolist())
        if N and not np.array_equal(np.where(mask, last[:, None], 0.0), found, equal_nan=True):
            raise Departure("shape", "its advantages differ within an answer", last[:, None].tolist(), found.tolist())
        return last

    def _result(self, result: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        found = arrays.read(_first(result))
        if self.kind == "filter":
            if found.shape != shape:
                raise Departure("shape", "it does not say of every row whether it is kept", shape, found.shape)
            if found.dtype != bool and not set(found.ravel().tolist()) <= {0, 1}:
                raise Departure("dtype", "its result is no mask", "bool", str(found.dtype))
            return found.astype(bool).ravel()
        if found.shape != shape:
            raise Departure("shape", "its result has another shape", shape, found.shape)
        if found.dtype.kind not in "fiu":
            raise Departure("dtype", "its result is no array of numbers", "floats", str(found.dtype))
        return found.astype(np.float64).ravel()

    def _differentiated(
        self, given: dict[str, Any], by: dict[str, Any], shaped: Callable[[Any], NDArray[np.float64]]
    ) -> Got:
        """A scalar result with its gradients."""
        kept: dict[str, Any] = {}

        def scalar(leaves: dict[str, Any]) -> Any:
            result = self._called({**given, **leaves})
            kept.setdefault("result", result)  # of the first call: jax's second is with tracers
            several = isinstance(result, tuple | list) and len(result) and not _named_loss(result)
            value = result[0] if several else _first(result)
            shape = tuple(getattr(value, "shape", ()))
            if shape not in ((), (1,)) or not hasattr(value, "__float__"):
                what = f"a dict of {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
                raise Departure("shape", "its loss is no scalar", (), shape or what)
            _real(value, "loss")
            return value if shape == () else value.reshape(())

        value, gradients = self._slopes(scalar, by)
        own = kept["result"]
        if self.form.library == "numpy" and isinstance(own, tuple) and len(own) > 1:
            # A NumPy function may give its own gradient.
            g = np.asarray(own[1])
            name = next(iter(by))
            gradients = gradients | ({name: g} if g.shape == by[name].shape and g.dtype.kind == "f" else {})
        found = {name: None if g is None else shaped(g) for name, g in gradients.items()}
        unit = arrays.FLOATS.get(arrays.format_of(value), arrays.FLOATS["float64"])
        return Got(float(arrays.read(value)), found, unit=unit)

    def _called(self, given: Mapping[str, Any]) -> Any:
        """The function on the arguments that it has names for."""
        if not any("Tracer" in type(x).__name__ for x in given.values()):
            self.last = given
        with self._watched("it raises"):
            return self.function(*self._positional(given), **self._named(given))

    @contextlib.contextmanager
    def _watched(self, verb: str) -> Iterator[None]:
        """Tells when code of the function's is entered and left, and what it raises."""
        given = self.last
        self.before(lambda: self.snippet(given))
        try:
            yield
        except Departure:
            raise
        except (Exception, SystemExit) as problem:
            name = type(problem).__name__
            raise Departure("raises", f"{verb} {name}: {problem}", "a result", name) from problem
        finally:
            self.after()

    def _slopes(self, compute: Callable[[dict[str, Any]], Any], by: dict[str, Any]) -> tuple[Any, Any]:
        with arrays.double_precision(self.form.library):
            return arrays.slopes(self.form.library, compute, by, lambda: self._watched("its gradient raises"))

    def _positional(self, given: Mapping[str, Any]) -> list[Any]:
        given_ = [given[a.source] if a.source else a.value for a in self.arguments if a.positional]
        # What stands at its default is the last of them.
        return [x for x in given_ if x is not inspect.Parameter.empty]

    def _named(self, given: Mapping[str, Any]) -> dict[str, Any]:
        named = {a.name: given[a.source] for a in self.arguments if a.source and not a.positional}
        numbers = {a.name: a.value for a in self.arguments if not a.source and not a.positional}
        return named | {name: value for name, value in numbers.items() if value is not inspect.Parameter.empty}

    def given(self, case: Any, dtype: str = "float64") -> dict[str, Any]:
        """The arguments of one call, by source."""
        if self.kind in ("loss", "kl"):
            return self._token_columns(case, dtype)
        if self.kind == "aggregate":
            return {"values": self._array(case.values, dtype), "mask": self._mask(case.mask, dtype)}
        if self.form.rows == "matrix":
            return self._row_columns(case, np.stack(case.groups), dtype)
        return self._row_columns(case, np.arange(len(case.rewards)), dtype)

    def snippet(self, given: Mapping[str, Any]) -> str:
        """A call as code that runs where the function can be imported."""
        module, _, attribute = self.name.partition(":")
        code = []
        for a in self.arguments:
            if a.source or a.value is not inspect.Parameter.empty:
                value = arrays.written(given[a.source]) if a.source else repr(a.value)
                code.append(f"    {value}," if a.positional else f"    {a.name}={value},")
        imports = {"torch": "import torch", "jax": "import jax.numpy as jnp", "numpy": ""}[self.form.library]
        root = attribute.split(".")[0]
        lines = [f"from {module} import {root}", "import numpy as np", imports, f"{attribute}(", *code, ")"]
        return "\n".join(line for line in lines if line)

    def _token_columns(self, case: Batch, dtype: str) -> dict[str, Any]:
        live, packed = case.mask, "cu_seqlens" in self.sources
        S, lengths = len(live), live.sum(1)

        def cut(x: NDArray[Any]) -> NDArray[Any]:
            return x[live] if packed else x

        columns = {k: cut(x) for k, x in case.columns.items()}
        columns |= {"rollout_ids": case["rollout_ids"][:, 0], "row_advantages": case["advantages"][:, 0]}
        columns |= {"lengths": lengths, "cu_seqlens": np.concatenate([[0], lengths.cumsum()])}
        if self.form.advantages == "row":
            columns["advantages"] = columns["row_advantages"]
        # Half formats are for log-probs, which is where they come from.
        rest = "float32" if dtype in arrays.HALVES else dtype
        formats = {k: dtype if k in LOGPS else rest for k in columns}
        found = {k: self._array(x, formats[k]) for k, x in columns.items() if k in self.sources}
        if "mask" in self.sources:
            found["mask"] = self._mask(cut(live), rest)
        return found | {"num_tokens": int(lengths.sum()), "num_sequences": S}

    def _row_columns(self, case: Rollouts, rows: NDArray[np.intp], dtype: str) -> dict[str, Any]:
        ids = case.group_ids[rows]
        lengths, mask = case.lengths[rows], _token_mask(case)[rows]
        at_end = np.zeros(mask.shape)
        np.put_along_axis(at_end, lengths[..., None] - 1, case.rewards[rows][..., None], -1)
        columns: dict[str, NDArray[Any]] = {
            "rewards": case.rewards[rows],
            "shaped_rewards": case.shaped[rows],
            "token_rewards": at_end,
        }
        columns |= {"lengths": lengths, "baselines": case.baselines[rows], "group_ids": ids}
        found = {k: self._array(x, dtype) for k, x in columns.items() if k in self.sources}
        if "mask" in self.sources:
            found["mask"] = self._mask(mask, dtype)
        if "num_generations" in self.sources:
            found["num_generations"] = int(np.unique(case.group_ids, return_counts=True)[1].max(initial=1))
        if self.form.ids == "dense":
            found["group_ids"] = self._array(np.unique(ids, return_inverse=True)[1].reshape(ids.shape), dtype)
        elif self.form.ids != "own":
            names = [f"g{g}" for g in ids.tolist()] if self.form.rows == "table" else ids.tolist()
            found["group_ids"] = np.array(names, dtype=object) if self.form.ids == "objects" else names
        return found

    def _array(self, x: NDArray[Any], dtype: str) -> Any:
        with arrays.double_precision(self.form.library):
            return arrays.make(self.form.library, x, dtype)

    def _mask(self, mask: NDArray[np.bool_], dtype: str) -> Any:
        kinds = {"bool": mask, "int64": mask.astype(np.int64), "float": mask.astype(np.float64)}
        return self._array(kinds[self.form.mask], dtype)

    def _live(self, case: Batch, dtype: str) -> Any:
        packed = "cu_seqlens" in self.sources
        return self._array((case.mask[case.mask] if packed else case.mask).astype(np.float64), dtype)

    def _unpacked(self, case: Batch, g: NDArray[Any]) -> NDArray[np.float64]:
        if g.shape == case.mask.shape:
            return g.astype(np.float64)
        out = np.zeros(case.mask.shape)
        out[case.mask] = g
        return out


def _token_mask(case: Rollouts) -> NDArray[np.bool_]:
    """(N, T): the tokens of each answer."""
    mask: NDArray[np.bool_] = np.arange(int(case.lengths.max(initial=1))) < case.lengths[:, None]
    return mask


def _first(result: Any) -> Any:
    """The loss of what a function returned: itself, the first of several, an entry or an attribute ``loss``."""
    if _named_loss(result):
        return result.loss
    numbers = isinstance(result, list) and all(getattr(x, "shape", ()) == () and not _holds(x) for x in result)
    if isinstance(result, tuple | list) and not numbers and any(not isinstance(x, int | float) for x in result):
        return result[0]
    if isinstance(result, dict) and "loss" in result:
        return result["loss"]
    return getattr(result, "loss", result)


def _named_loss(result: Any) -> bool:
    """Whether it is a tuple whose parts have names, and one of them is ``loss``, the first or not."""
    return isinstance(result, tuple) and "loss" in getattr(result, "_fields", ())


def _holds(x: Any) -> bool:
    return x is None or isinstance(x, tuple | list | dict | str)


def _real(value: Any, what: str) -> None:
    if arrays.format_of(value).startswith("complex"):
        raise Departure("dtype", f"its {what} is complex", "float", arrays.format_of(value))


def adapted(
    subject: Subject, right: Callable[[Subject], bool], likely: Callable[[Subject], bool] = lambda _: True
) -> Subject:
    """The subject with the form that it takes: the first that gives what is right, or else the first likely one.

    Raises
    ------
    InputError
        `uncallable_implementation`: it raised whatever it was given.
    """
    taken: list[Subject] = []
    problems: list[str] = []
    for form in subject.forms():
        tried = Subject(subject.function, subject.kind, subject.arguments, form, subject.name)
        tried.before, tried.after = subject.before, subject.after
        try:
            if right(tried):
                return tried
            taken.append(tried)
        except Departure as problem:
            if problem.part == "raises":
                problems.append(problem.says)
            else:
                taken.append(tried)
    if taken:
        return next(filter(likely, taken), taken[0])
    raise error("uncallable_implementation", name=subject.name, problem=_furthest(problems))


def _furthest(problems: Sequence[str]) -> str:
    """The problem of the form that came as far as a gradient, or of the likeliest."""
    order = sorted(problems, key=lambda says: not says.startswith("its gradient"))
    return order[0].removeprefix("it raises ").replace("raises ", "raised ", 1) if order else "nothing could be tried"
