"""Runs laws on an implementation in this process: hypothesis draws and shrinks, a verdict says what came of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings

from . import laws_rows, laws_tokens, oracle, oracle_rows
from .arguments import guessed_kind, mapped
from .subject import Departure, Subject, adapted
from .target import target
from .trial import EXAMPLES, Law, Trial, Verdict, check_law

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LAWS: dict[str, tuple[Law, ...]] = {
    "loss": laws_tokens.LOSS,
    "kl": laws_tokens.KL,
    "aggregate": laws_tokens.AGGREGATE,
    "advantage": laws_rows.ADVANTAGE,
    "filter": laws_rows.FILTER,
}


def trial(
    function: Callable[..., Any],
    recipe: str,
    kind: str | None = None,
    *,
    name: str = "",
    said: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    before: Callable[[Any], None] = lambda _: None,
    after: Callable[[], None] = lambda: None,
) -> Trial:
    """An implementation made ready: its arguments mapped, its form found, the recipe cut to what it reaches.

    Parameters
    ----------
    function : callable
        Yours.
    recipe : str
        What it is held against; see `target`.
    kind : str, optional
        One of `arguments.KINDS`; guessed by the parameters where not given.
    name : str
        What it is called in messages.
    said : dict
        Parameters to sources or values.
    settings : dict
        The recipe's parameters.
    before, after : callable
        Called around every call of the function.
    """
    kind = kind or guessed_kind(function)
    whole = target(kind, recipe, **(settings or {}))
    if kind == "advantage":
        oracle_rows.check_estimator(whole.stages[0])
    if kind == "filter":
        oracle_rows.check_selection(whole.stages)
    arguments = mapped(function, kind, whole.numbers, said or {}, whole.unread)
    subject = Subject(function, kind, arguments, name=name, before=before, after=after)
    held = whole.within(subject.sources)
    subject = adapted(subject, lambda tried: _plainly_right(Trial(tried, held)), _rows_apart)
    differentiable = True
    if kind in ("loss", "kl", "aggregate") and subject.form.library == "numpy":
        with contextlib.suppress(Departure):
            got: Any = getattr(subject, kind)(_plain(kind))
            differentiable = any(g is not None for g in got.gradients.values())
    single = kind == "advantage" and _single(subject, held)
    return Trial(subject, held, differentiable, single)


def _single(subject: Subject, held: Any) -> bool:
    """Whether an estimator is right on a plain case to float32 and no further."""
    case = _plain("advantage")
    with contextlib.suppress(Departure):
        found = subject.rows(case)
        fits = [
            bool(((low <= found) & (found <= high)).all())
            for low, _, high in (oracle_rows.interval(case, held.spec, unit) for unit in (2.0**-53, 2.0**-24))
        ]
        return fits == [False, True]
    return False


def _plain(kind: str) -> Any:
    """A case without any edge, with S ≠ T."""
    import numpy as np

    from .cases import Batch, Rollouts, TokenValues

    rng = np.random.default_rng(11)
    mask = np.arange(5) < np.array([[5], [3], [4]])
    l = -np.round((0.2 + rng.random((3, 5))) * 64) / 64
    if kind == "aggregate":
        return TokenValues(rng.normal(size=(3, 5)), mask)
    if kind in ("advantage", "filter"):
        ids, R = np.repeat([4, 9], 3), np.array([0.0, 1.0, 0.5, 2.0, -1.0, 0.25])
        return Rollouts(ids, R, np.array([2, 5, 1, 3, 4, 2]), np.array([0.5, 0.25, 0.5, 0.0, 1.0, 0.5]))
    near = {
        name: l + np.round(rng.normal(0, 0.1, (3, 5)) * 64) / 64 for name in ("old_logps", "rollout_logps", "ref_logps")
    }
    A = np.repeat([[1.0], [-0.5], [0.75]], 5, 1)
    columns = {"logps": l, **near, "entropies": 1 + rng.random((3, 5)), "advantages": A, "off_policy": l > 0}
    columns["rollout_ids"] = np.repeat(np.arange(3)[:, None], 5, 1)
    return Batch(mask, columns)


def _plainly_right(tried: Trial) -> bool:
    """Whether it gives what is right on a plain case, or nearly."""
    subject, held, case = tried.subject, tried.target, _plain(tried.target.kind)
    if held.kind == "loss":
        if tried.no_mask:
            case = case.replace(case.mask | True)
        got = subject.loss(case)
        right = oracle.loss(case, held.spec, on_policy=held.on_policy).value[1]
        return bool(abs(got.value - right) <= 1e-3 * abs(right))
    if held.kind == "kl":
        return bool(abs(subject.kl(case).value - oracle.kl(case, held.spec).value[1]) <= 1e-3)
    if held.kind == "aggregate":
        return bool(abs(subject.aggregate(case).value - oracle.aggregate(case, held.spec).value[1]) <= 1e-3)
    found = subject.rows(case)
    if held.kind == "filter":
        return bool((found == oracle_rows.kept(case, held.stages)).all())
    return bool((abs(found - oracle_rows.advantages(case, held.spec)) <= 1e-3).all())


def _rows_apart(subject: Subject) -> bool:
    """Whether an answer's advantage stays with that answer; where it is broadcast over others the form is wrong."""
    if subject.kind != "loss" or "advantages" not in subject.sources:
        return True
    case = _plain("loss")
    first, moved = case["advantages"].copy(), case["logps"].copy()
    first[1:], moved[1:] = 0.0, moved[1:] - 0.25
    changes = []
    try:
        for A in (first, 0 * first):
            losses = [subject.loss(case.replace(advantages=A, logps=logps)).value for logps in (case["logps"], moved)]
            changes.append(losses[1] - losses[0])
    except Departure:
        return False
    return abs(changes[0] - changes[1]) <= 1e-6 * (1 + abs(changes[1]))


def chosen(kind: str, names: list[str] | None = None) -> tuple[Law, ...]:
    """The laws of a kind, or some of them."""
    laws = LAWS[kind]
    for name in names or []:
        check_law(name, kind, [law.name for law in laws])
    return tuple(law for law in laws if not names or law.name in names)


def run(
    law: Law, tried: Trial, *, examples: int = EXAMPLES, derandomize: bool = False, seed: int | None = None
) -> Verdict:
    """One law on one implementation.

    Parameters
    ----------
    law : Law
    tried : Trial
    examples : int
        How many cases are drawn.
    derandomize : bool
        The same cases every time.
    seed : int, optional
        Of the draws.
    """
    reason = law.skip(tried)
    if reason:
        return Verdict(law.name, law.says, "skip", reason=reason)
    seen: dict[str, Any] = {"n": 0}

    def check(case: Any) -> None:
        seen["n"] += 1
        try:
            law.check(tried, case)
        except Departure as problem:
            seen["failed"] = problem, case, tried.subject.snippet(tried.subject.last)
            raise

    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    test = quiet(hypothesis.given(law.cases(tried))(check))
    test = test if seed is None or derandomize else hypothesis.seed(seed)(test)
    try:
        test()
    except (Departure, hypothesis.errors.Flaky, ExceptionGroup):
        if "failed" not in seen:
            raise
    else:
        return Verdict(law.name, law.says, "pass", seen["n"])
    return failure(law, tried, seen["failed"], seen["n"])


def failure(law: Law, tried: Trial, seen: tuple[Departure, Any, str], examples: int) -> Verdict:
    """What a law says of a departure, with the smallest call that shows it and the mistake that explains it."""
    from .mistakes import guess

    problem, case, snippet = seen
    name, says = guess(law, tried, problem, case)
    return Verdict(
        law.name,
        law.says,
        "fail",
        examples,
        part=problem.part,
        problem=problem.says,
        expected=_short(problem.expected),
        got=_short(problem.got),
        snippet=snippet,
        guess=name,
        guess_says=says,
    )


def _short(x: Any) -> str:
    if isinstance(x, float):
        return f"{x:.10g}"
    if isinstance(x, list):
        return "[" + ", ".join(map(_short, x)) + "]"
    return str(x)
