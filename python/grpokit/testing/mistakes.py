"""The catalogue of known mistakes, and which of them explains what an implementation gives.

A mistake is named when the reference with that mistake in it gives the same numbers as the implementation on a panel
of cases where nothing is special, while the right reference does not. What shows in special cases alone (a NaN behind
the mask, equal rewards, a group of one) is named by the law that it breaks and by what came.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import mistaken_losses, mistaken_rows, mistaken_tokens, oracle, oracle_rows
from .cases import Batch, Rollouts, TokenValues
from .subject import Departure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trial import Law, Trial

# Laws that any mistake breaks: what explains plain cases explains these as well.
GENERAL = ("value", "gradient", "entropy_gradient", "padding", "masked", "order", "split", "fp32", "apart", "labels")
_UNLESS_PLAINLY_WRONG = ("bound", "bf16", "far", "masked_nan")
CATALOGUES: dict[str, dict[str, Any]] = {
    "loss": mistaken_losses.LOSS,
    "kl": mistaken_tokens.KL,
    "aggregate": mistaken_tokens.AGGREGATE,
    "advantage": mistaken_rows.ADVANTAGE,
    "filter": mistaken_rows.FILTER,
}
SAYS = {
    name: (mistaken.__doc__ or "").rstrip(".")
    for catalogue in CATALOGUES.values()
    for name, mistaken in catalogue.items()
} | {
    "scaled": "everything is a constant times what it should be: another denominator or coefficient",
    "half_precision": "it computes in bf16 or fp16",
    "gradient_at_bound": "on a bound the gradient is off, or half: another comparison, or torch.clamp's derivative",
    "nan_times_zero": "it multiplies by the mask instead of selecting: NaN · 0 is NaN",
    "empty_denominator": "it divides by a count of 0",
    "micro_batch_counts": "the denominator is the micro-batch's and not the optimizer step's",
    "padding_counted": "the denominator counts padded places",
    "subtracted_in_bf16": "bf16 log-probs are subtracted before they are made float32",
    "inf_times_zero": "an infinite ratio is multiplied by 0",
    "random": "it uses random numbers",
    "mutates": "it writes into what it was given",
    "std_of_equal_rewards": "equal rewards are told by their std, which rounding makes more than 0; compare max, min",
    "mean_of_equal_rewards": "the mean of equal rewards is rounded, and the rest is their advantage; compare max, min",
    "singleton_raw": "the only answer to a prompt keeps its raw reward",
    "singleton_nan": "the std of one reward with ddof 1 is 0 / 0",
    "nan_spreads": "a NaN or infinite reward goes through the group's statistics",
    "one_pass_variance": "the variance is E[R²] − E[R]², which cancels where the rewards are far from 0",
    "singleton_kept": "the only answer to a prompt is kept, though it has nothing to be compared with",
}


def guess(law: Law, tried: Trial, problem: Departure, case: Any) -> tuple[str, str]:
    """The mistake that explains a departure, and what it says; empty where none does.

    Parameters
    ----------
    law : Law
        That does not hold.
    tried : Trial
        The implementation.
    problem : Departure
        What happened.
    case : Batch, Rollouts or TokenValues
        The smallest case that shows it.
    """
    if problem.part in ("raises", "shape") or (problem.part == "dtype" and law.name != "bf16"):
        return "", ""
    name, way = _by_law(law, tried, problem, case), ""
    general = law.name in GENERAL or (tried.target.kind == "filter" and law.name.startswith("constant"))
    # The cases of the panel give numbers: a NaN is another matter.
    if not name or (general and not _no_number(problem.got)):
        found = _by_panel(tried)
        name, way = found if found[0] else (name, "")
    return name, f"{SAYS[name]}{f' ({way})' if way else ''}" if name else ""


@functools.lru_cache(maxsize=8)
def _by_panel(tried: Trial) -> tuple[str, str]:
    kind = tried.target.kind
    try:
        if kind in ("advantage", "filter"):
            return _rows(tried)
        return _tokens(tried)
    except Departure:
        return "", ""


def _tokens(tried: Trial) -> tuple[str, str]:
    spec, kind = tried.target.spec, tried.target.kind
    cases = panel(tried)
    got = [getattr(tried.subject, kind)(case) for case in cases]
    own = "values" if kind == "aggregate" else "logps"
    found = [(x.value, x.gradients.get(own)) for x in got]
    unit = max(x.unit for x in got)
    right: Any = {
        "loss": lambda c: mistaken_tokens.computed(c, spec, tried.target.on_policy),
        "kl": lambda c: mistaken_tokens.kl_computed(c, spec),
        "aggregate": lambda c: mistaken_tokens.sum_computed(c, spec),
    }[kind]
    truth = [right(case) for case in cases]
    tolerance = max(1e-6, 256 * unit)
    if all(_alike(a, b, tolerance, tried.no_gradient) for a, b in zip(found, truth, strict=True)):
        return "", ""
    for name, mistaken in CATALOGUES[kind].items():
        ways: set[str] | None = None
        for case, got_there in zip(cases, found, strict=True):
            outcomes = mistaken(case, spec, tried.target.on_policy)
            fits = {way for way, outcome in outcomes if _alike(got_there, outcome, tolerance, tried.no_gradient)}
            ways = fits if ways is None else ways & fits
            if not ways:
                break
        if ways:
            return name, min(ways)
    return _constant(found, truth, tried, tolerance) or _coarse(found, truth, tried)


def _alike(got: Any, other: Any, tolerance: float, no_gradient: str) -> bool:
    value, g = got
    if not abs(value - other[0]) <= tolerance * (abs(other[0]) + 1e-2):
        return False
    if no_gradient:
        return True
    g = np.zeros_like(other[1]) if g is None else g
    return bool((np.abs(g - other[1]) <= tolerance * (1e-2 + np.abs(other[1]).max(initial=0.0))).all())


def _constant(found: list[Any], truth: list[Any], tried: Trial, tolerance: float) -> tuple[str, str] | None:
    factor = found[0][0] / truth[0][0] if truth[0][0] else math.nan
    scaled = [(factor * value, factor * g) for value, g in truth]
    alike = [_alike(a, b, 10 * tolerance, tried.no_gradient) for a, b in zip(found, scaled, strict=True)]
    return ("scaled", f"{factor:.6g} times") if all(alike) else None


def _coarse(found: list[Any], truth: list[Any], tried: Trial) -> tuple[str, str]:
    pairs = list(zip(found, truth, strict=True))
    near = all(_alike(a, b, 0.02, tried.no_gradient) for a, b in pairs)
    # Rounding is everywhere, a rare branch is not.
    return (
        ("half_precision", "")
        if near and not any(_alike(a, b, 1e-6, tried.no_gradient) for a, b in pairs)
        else ("", "")
    )


def _rows(tried: Trial) -> tuple[str, str]:
    cases = panel(tried)
    found = [tried.subject.rows(case) for case in cases]
    keeps = tried.target.kind == "filter"
    if keeps:
        right: Any = functools.partial(oracle_rows.kept, stages=tried.target.stages)
        spec = {**oracle.plain(tried.target.stages[0]), "right": right}
    else:
        spec = dict(tried.target.spec)
        right = functools.partial(oracle_rows.advantages, spec=spec)
    if all(_equal(a, right(case)) for a, case in zip(found, cases, strict=True)):
        return "", ""
    for name, mistaken in CATALOGUES[tried.target.kind].items():
        for way in [way for way, A in mistaken(cases[0], spec) if _equal(found[0], A)]:
            rest = zip(cases[1:], found[1:], strict=True)
            if all(way in [w for w, A in mistaken(case, spec) if _equal(a, A)] for case, a in rest):
                return name, way
    if not keeps:
        ratios = [
            np.median(a[t != 0] / t[t != 0]) for a, t in ((a, right(c)) for a, c in zip(found, cases, strict=True))
        ]
        if all(_equal(a, ratios[0] * right(c)) for a, c in zip(found, cases, strict=True)):
            return "scaled", f"{ratios[0]:.6g} times"
    return "", ""


def _equal(got: NDArray[Any], other: NDArray[Any]) -> bool:
    if got.dtype == bool:
        return bool((got == other).all())
    return bool((np.abs(got - other) <= 2e-6 * (1e-2 + np.abs(other).max(initial=0.0))).all())


def _by_law(law: Law, tried: Trial, problem: Departure, case: Any) -> str:
    kind, got = tried.target.kind, problem.got
    nan = _no_number(got)
    if (
        law.name in _UNLESS_PLAINLY_WRONG
        and not nan
        and problem.part != "dtype"
        and not _plainly_right(law, tried, case)
    ):
        return ""
    if law.name in ("repeatable", "inputs"):
        return "random" if law.name == "repeatable" else "mutates"
    tokens = {
        "entropy_gradient": "" if _numeric(got) and np.any(np.asarray(got)) else "ratio_not_differentiated",
        "bound": "gradient_at_bound",
        "masked_nan": "nan_times_zero",
        "masked": "mask_ignored",
        "padding": "padding_counted",
        "split": "micro_batch_counts",
        "bf16": "subtracted_in_bf16",
        "far": "inf_times_zero",
        "all_masked": "empty_denominator" if nan else "",
    }
    if kind in ("loss", "kl", "aggregate"):
        if nan and law.name != "masked_nan" and isinstance(case, Batch | TokenValues) and not case.mask.any(1).all():
            return "empty_denominator" if _finite_unmasked(tried, case) else ""
        return tokens.get(law.name, "")
    if law.name.startswith("constant"):
        divides = kind == "filter" or type(tried.target.stages[0]).__name__ == "GroupNorm"
        return "std_of_equal_rewards" if divides else "mean_of_equal_rewards"
    if law.name == "singleton" and kind == "filter":
        return "singleton_kept"
    if law.name == "singleton":
        raw = isinstance(case, Rollouts) and _numeric(got) and np.allclose(got, case.rewards, rtol=1e-4, equal_nan=True)
        return "singleton_nan" if nan else "singleton_raw" if raw else ""
    if law.name == "not_finite":
        return "nan_spreads"
    if law.name == "order":
        return "groups_by_position"
    if law.name in ("value", "fp32", "apart") and isinstance(case, Rollouts):
        spread = np.ptp(case.rewards) or 1.0
        return "one_pass_variance" if np.abs(case.rewards).max() / spread > 1e3 else ""
    return ""


def _plainly_right(law: Law, tried: Trial, case: Any) -> bool:
    """Whether a case is right in float64, within the bounds: what is off is then what the law is about."""
    if not isinstance(case, Batch):
        return True
    if law.name == "bound":
        case = case.replace(
            **dict.fromkeys(("logps", "old_logps", "rollout_logps", "ref_logps"), -1 + 0 * case["logps"])
        )
    got, right = tried.subject.loss(case), mistaken_tokens.computed(case, tried.target.spec, tried.target.on_policy)
    return _alike((got.value, got.gradients.get("logps")), right, 1e-4, tried.no_gradient)


def _finite_unmasked(tried: Trial, case: Any) -> bool:
    whole = np.ones_like(case.mask)
    full = case.replace(whole) if isinstance(case, Batch) else TokenValues(case.values, whole)
    return math.isfinite(getattr(tried.subject, tried.target.kind)(full).value)


def _no_number(got: Any) -> bool:
    if _numeric(got):
        return bool(np.isnan(np.asarray(got, dtype=float)).any())
    return bool(isinstance(got, str) and got == "NaN")


def _numeric(x: Any) -> bool:
    return isinstance(x, int | float | list) and np.asarray(x).dtype.kind in "fiub"


def panel(tried: Trial) -> list[Any]:
    """Cases of a kind where nothing is special, so that two mistakes do not look alike."""
    kind = tried.target.kind
    if kind in ("advantage", "filter"):
        return _row_panel(tried)
    rng = np.random.default_rng(5)
    logs = np.array([math.log(b) for b in tried.target.bounds if b > 0])
    widths = (0.5 * float(np.abs(logs).min()), 0.15, 0.5)
    cases: list[Any] = []
    for i, width in enumerate([*widths, *widths]):
        S, T = (3, 5) if i % 2 else (4, 4)
        mask = np.arange(T) < rng.integers(1, T + 1, (S, 1))
        mask[0], mask[-1, 1:] = True, False
        mask[:, 2] &= i < 3  # holes
        mask[0, 0] = True
        if tried.no_mask:
            mask[:] = True
        if kind == "aggregate":
            if i >= 3:
                mask[1] = False
            cases.append(TokenValues(rng.normal(size=(S, T)), mask))
            continue
        if i >= 3 and not tried.no_mask:
            mask[1] = False
        l = -0.3 - 2 * rng.random((S, T))
        # From well inside each bound to well beyond it, but for the first width, at which nothing is clipped.
        d = width * rng.normal(size=(S, T)) + (
            0 if i % 3 == 0 else rng.choice(logs, (S, T)) * rng.uniform(0.3, 1.7, (S, T))
        )
        l -= np.maximum(-d, 0.0)
        near = {"old_logps": l - d, "ref_logps": l + 0.3 * rng.normal(size=(S, T))}
        A = np.repeat(rng.normal(size=(S, 1)), T, 1)
        A[0], A[-1] = np.abs(A[0]), -np.abs(A[-1])
        if i >= 4 and not tried.subject.per_row:
            A = rng.normal(size=(S, T))
        columns = {
            "logps": l,
            **near,
            "rollout_logps": near["old_logps"] + 0.5 * rng.normal(size=(S, T)),
            "entropies": 1 + rng.random((S, T)),
            "advantages": A,
            "off_policy": rng.random((S, T)) < 0.3,
            "rollout_ids": np.repeat(np.arange(S)[:, None], T, 1),
        }
        cases.append(Batch(mask, columns, per_row=i < 4 or tried.subject.per_row))
    return cases


def _row_panel(tried: Trial) -> list[Rollouts]:
    rng = np.random.default_rng(6)
    binary = np.array([0.0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1])
    tables = [
        binary,
        np.round(rng.normal(0.4, 0.5, 12), 2),
        rng.normal(-0.5, 0.02, 12),
        np.array([1.0, 1, 1, 1, 0, 0, 0, 0, 1, 0.5, 0.25, 0.75]),
    ]
    sizes = np.repeat([9, 2, 5], 4) if tried.subject.equal_groups else np.array([9, 2, 9, 5, 2, 5, 5, 9, 2, 5, 9, 5])
    if tried.target.kind == "filter":
        low, high = getattr(tried.target.stages[0], "low", 0.25), getattr(tried.target.stages[0], "high", 0.75)
        tables.append(
            np.array([low, low, high, high, low, low, high, high, low, low, high, high])[
                np.argsort(sizes, kind="stable").argsort()
            ]
        )
        tables.append(np.where(sizes == 9, 1.0, np.where(sizes == 2, 0.0, 0.3)))
    else:
        tables.append(np.tile([0.0, 1e-3, 0.0, 2e-3, 1e-3, 0.0], 2))
    lengths, baselines = 1 + np.arange(12) * 5 % 7, np.round(rng.normal(0, 0.5, 12), 2)
    return [Rollouts(sizes, R, lengths, baselines) for R in tables]
