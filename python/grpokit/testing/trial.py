"""One law on one implementation: what a law is, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from grpokit.errors import error, nearest

from . import arrays
from .subject import Departure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import SearchStrategy

    from .subject import Subject
    from .target import Target

EXAMPLES = 200  # cases a law, unless told otherwise
Status = Literal["pass", "fail", "skip", "error"]


@dataclass(frozen=True, eq=False)
class Trial:
    """An implementation and what it is held against.

    Attributes
    ----------
    subject : Subject
    target : Target
    differentiable : bool
        Whether gradients can be had.
    single : bool
        Whether an estimator computes in float32 what it is given in float64.
    """

    subject: Subject
    target: Target
    differentiable: bool = True
    single: bool = False

    @property
    def no_gradient(self) -> str:
        """Why gradients cannot be looked at, or nothing."""
        if self.differentiable:
            return ""
        return (
            f"the function works on {self.subject.form.library} arrays and gives no gradient: write it in torch or "
            "jax, or return (loss, gradient)"
        )

    @property
    def no_mask(self) -> str:
        """Why masks cannot be looked at, or nothing."""
        taken = {"mask", "cu_seqlens"} & self.subject.sources
        return "" if taken else "the function has no argument for a mask, nor cu_seqlens"


@dataclass(frozen=True, eq=False)
class Law:
    """Something that holds of every right implementation.

    Attributes
    ----------
    name, says : str
        What it is called, and what it says.
    check : function of (trial, case)
        Raises a `Departure` where it does not hold.
    cases : function of (trial)
        The strategy that draws its cases.
    skip : function of (trial)
        Why it cannot be looked at, or nothing.
    """

    name: str
    says: str
    check: Callable[[Trial, Any], None]
    cases: Callable[[Trial], SearchStrategy[Any]]
    skip: Callable[[Trial], str] = lambda _: ""


@dataclass(frozen=True)
class Verdict:
    """What came of a law.

    Attributes
    ----------
    law, says : str
        The law and what it says.
    status : {"pass", "fail", "skip", "error"}
        `error` where the implementation ended or hung.
    examples : int
        How many cases were tried.
    reason : str
        Of a skip.
    part, problem : str
        Of a failure: where it departs (value, g, h, mask, denominator, dtype, shape, raises, ...), and a sentence.
    expected, got : str
        What was right, and what came.
    snippet : str
        The smallest call that shows it, as code that runs.
    guess, guess_says : str
        The known mistake that gives the same numbers, if one does, by name and in words.
    """

    law: str
    says: str
    status: Status
    examples: int = 0
    reason: str = ""
    part: str = ""
    problem: str = ""
    expected: str = ""
    got: str = ""
    snippet: str = ""
    guess: str = ""
    guess_says: str = ""
    notes: tuple[str, ...] = field(default=())


def check_law(given: str, kind: str, names: Sequence[str]) -> None:
    """Refuses what is no law of a kind.

    Raises
    ------
    InputError
        `unknown_law`.
    """
    if given not in names:
        raise error("unknown_law", given=given, kind=kind, nearest=nearest(given, names), known=", ".join(names))


def within(part: str, got: Any, interval: tuple[Any, Any, Any], what: str) -> None:
    """Raises where a number is outside its interval, or is none."""
    low, exact, high = (np.asarray(x) for x in interval)
    found = np.asarray(got)
    ok = (low <= found) & (found <= high)
    if ok.all():
        return
    if found.ndim == 0:
        raise Departure(part, f"its {what} is off", float(exact), float(found))
    at = tuple(int(i) for i in np.argwhere(~ok)[0])
    place = ", ".join(map(str, at))
    raise Departure(
        part,
        f"its {what} is off at [{place}]: {found[at]:.10g} and not {exact[at]:.10g}",
        exact.tolist(),
        found.tolist(),
    )


def same(part: str, says: str, got: Any, other: Any, tolerance: float) -> None:
    """Raises where two results differ by more than a share of the largest."""
    a, b = np.asarray(got, dtype=float), np.asarray(other, dtype=float)
    size = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    if a.shape != b.shape or not (np.abs(a - b) <= tolerance * size).all():
        raise Departure(part, says, a.tolist(), b.tolist())


def unchanged(trial: Trial, case: Any) -> None:
    """The arguments are after a call what they were before."""
    given = trial.subject.given(case)
    before = {name: _bits(x) for name, x in given.items()}
    trial.subject._called(given)
    for name, x in given.items():
        if name in trial.subject.sources and not np.array_equal(before[name], _bits(x)):
            raise Departure("inputs", f"it changes its argument {name}", before[name].tolist(), _bits(x).tolist())


def repeated(run: Callable[[], list[Any]]) -> None:
    """The same bits twice, and no random numbers."""
    states = arrays.random_states()
    first = [np.asarray(x) for x in run()]
    drawn = states != arrays.random_states()
    second = [np.asarray(x) for x in run()]
    for a, b in zip(first, second, strict=True):
        if not np.array_equal(a, b, equal_nan=True):
            how = "it draws random numbers: " if drawn else ""
            raise Departure("random", f"{how}the same input gives other numbers", a.tolist(), b.tolist())
    if drawn:
        raise Departure("random", "it draws random numbers from a global generator", "none", "some")


def _bits(x: Any) -> Any:
    return np.array(arrays.read(x)) if hasattr(x, "shape") else np.array(x, dtype=object)
