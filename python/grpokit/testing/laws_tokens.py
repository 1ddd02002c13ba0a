"""The laws of what works on tokens: losses, KL estimators, aggregations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from grpokit.objective.columns import log_bounds

from . import arrays, mistaken_tokens, oracle, strategies
from .subject import LOGPS, Departure
from .trial import Law, Trial, repeated, same, unchanged, within

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray

    from .cases import Batch, TokenValues
    from .subject import Got

NAMES = {"logps": ("g", "gradient by logps"), "entropies": ("h", "gradient by entropies")}
# What training computes in. Float64 arrays are given so that rounding hides nothing else, not to be computed in.
PRECISION = arrays.FLOATS["float32"]


def _full(draw: Any) -> Any:
    return np.ones((draw(st.integers(1, 3)), draw(st.integers(1, 4))), bool)


def batches(trial: Trial, *, exact: bool = True, masks: Any = None) -> SearchStrategy[Batch]:
    """Batches around the recipe's bounds, in the form that the function takes, with a live token.

    What becomes of a batch without one is a law of its own, and is not told by all of them.
    """
    target = trial.target
    if trial.no_mask and masks is None:
        masks = st.composite(_full)()
    drawn = strategies.batches(
        target.bounds,
        target.weights,
        exact=exact,
        per_row=True if trial.subject.per_row else None,
        distinct=target.batch_scope,
        masks=masks,
    )
    return drawn.map(lambda case: case.replace(_with_a_token(case.mask)))


def _with_a_token(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if mask.any():
        return mask
    mask = mask.copy()
    mask.flat[0] = True
    return mask


def _beside(trial: Trial) -> SearchStrategy[Batch]:
    """Batches that stand beside the bounds: on them torch.min and torch.clamp have slopes of their own (`bound`)."""
    return batches(trial, exact=False)


def _expected(trial: Trial, case: Batch, unit: float) -> oracle.Expected:
    return oracle.loss(case, trial.target.spec, unit, on_policy=trial.target.on_policy)


def _agree(trial: Trial, case: Batch, got: Got, dtype: str = "float64", *, parts: str = "value g h") -> None:
    expected = _expected(trial, case, max(got.unit, arrays.FLOATS[dtype], PRECISION))
    if "value" in parts:
        within("value", got.value, expected.value, "loss")
    for name, (part, what) in NAMES.items():
        if part in parts.split() and name in got.gradients:
            g = got.gradients[name]
            if g is None and trial.subject.form.library == "numpy":
                continue
            within(part, np.zeros(case.mask.shape) if g is None else g, expected.gradients[name], what)


def _value(trial: Trial, case: Batch) -> None:
    _agree(trial, case, trial.subject.loss(case), parts="value")


def _gradient(trial: Trial, case: Batch) -> None:
    _agree(trial, case, trial.subject.loss(case), parts="g")


def _entropy_gradient(trial: Trial, case: Batch) -> None:
    _agree(trial, case, trial.subject.loss(case), parts="h")


def log_bounds_of(trial: Trial) -> list[float]:
    """The bounds of log r, to the last bit those that a comparison of logarithms has."""
    found: list[float] = []
    for term in trial.target.recipe.terms:
        objective: Any = term.objective
        low, high, dual = (getattr(objective, name, None) for name in ("low", "high", "dual"))
        geometric = type(objective).__name__ == "GeometricClip"
        sides = (None if low is None else -low, high) if geometric else log_bounds(low, high)
        found += [d for d in (*sides, dual and math.log(dual)) if d]
    return found


@st.composite
def _on_bounds(draw: st.DrawFn, trial: Trial) -> Batch:
    """An answer of one token whose ratio stands exactly on a bound."""
    case: Batch = draw(batches(trial, masks=st.just(np.ones((1, 1), bool))))
    return _at(case, draw(st.sampled_from(log_bounds_of(trial))))


def _at(case: Batch, d: float) -> Batch:
    """The same with the log-ratio `d` to every policy, to the last bit."""
    new, old = np.full(case.mask.shape, min(d, 0.0)), np.full(case.mask.shape, min(-d, 0.0))
    return case.replace(logps=new, old_logps=old, rollout_logps=old, ref_logps=new)


def _bound(trial: Trial, case: Batch) -> None:
    expected = mistaken_tokens.computed(case, trial.target.spec, trial.target.on_policy)[1]
    if not expected.any():
        return
    d = float((case["logps"] - case["old_logps"])[0, 0])
    # The bound is a number of the ratio to some and of its logarithm to others: two neighbours in floating point.
    found = []
    for there in (strategies.on_bound(round(math.exp(d), 12)), d):
        g = trial.subject.loss(_at(case, there)).gradients["logps"]
        found.append(0.0 if g is None else float(g[0, 0]))
    right = float(expected[0, 0])
    if not any(abs(g - right) <= 1e-6 * abs(right) for g in found):
        raise Departure("g", f"its gradient on the bound e^{d:.6g} is off", right, found[-1])


def _no_bound(trial: Trial) -> str:
    if trial.no_gradient:
        return trial.no_gradient
    if trial.target.on_policy:
        return "the function is on-policy: its ratio is 1"
    return "" if log_bounds_of(trial) else "the recipe has no bound of the ratio"


def _changed(case: Batch, fill: float) -> Batch:
    """The same with something else behind the mask."""
    names = ("logps", "old_logps", "rollout_logps", "ref_logps", "entropies")
    return case.replace(**{k: np.where(case.mask, case[k], fill) for k in names})


def _masked(trial: Trial, case: Batch) -> None:
    tolerance = 64 * max(trial.subject.loss(case).unit, PRECISION)
    one, other = trial.subject.loss(_changed(case, -0.5)), trial.subject.loss(_changed(case, -7.0))
    same("mask", "what is behind the mask changes the loss", one.value, other.value, tolerance)
    g = other.gradients.get("logps")
    if g is not None and np.any(g[~case.mask] != 0):
        raise Departure("mask", "there is a gradient behind the mask", 0.0, g[~case.mask].tolist())


def _masked_nan(trial: Trial, case: Batch) -> None:
    got = trial.subject.loss(_changed(case, math.nan))
    parts = [x for x in got.gradients.values() if x is not None]
    if not math.isfinite(got.value) or not all(np.isfinite(x).all() for x in parts):
        what = "loss" if not math.isfinite(got.value) else "gradient"
        raise Departure("mask", f"a NaN behind the mask arrives in the {what}", "a number", "NaN")
    _agree(trial, case, got)


def _all_masked(trial: Trial, case: Batch) -> None:
    got = trial.subject.loss(case.replace(np.zeros_like(case.mask)))
    if got.value != 0:
        raise Departure("denominator", "with everything masked its loss is not 0", 0.0, got.value)
    for name, g in got.gradients.items():
        if g is not None and np.any(g != 0):
            raise Departure("denominator", f"with everything masked there is a gradient by {name}", 0.0, g.tolist())


def _padding(trial: Trial, case: Batch) -> None:
    narrow, got = trial.subject.loss(case), trial.subject.loss(case.widened(3))
    same("denominator", "masked places at the end of each row change the loss", narrow.value, got.value, 64 * PRECISION)
    g, wide = narrow.gradients.get("logps"), got.gradients.get("logps")
    if g is not None and wide is not None:
        cut = wide[:, : case.mask.shape[1]]
        same("denominator", "masked places at the end of each row change the gradient", g, cut, 64 * PRECISION)


def _order(trial: Trial, case: Batch) -> None:
    S = len(case.mask)
    order = np.arange(S)[::-1]
    one, other = trial.subject.loss(case), trial.subject.loss(case.rows(order))
    same("value", "the order of the answers changes the loss", one.value, other.value, 256 * PRECISION)
    g, moved = one.gradients.get("logps"), other.gradients.get("logps")
    if g is not None and moved is not None:
        same("g", "the order of the answers changes the gradient", g, moved[order], 256 * PRECISION)


def _split(trial: Trial, case: Batch) -> None:
    if len(case.mask) < 2:
        return
    unit, value, g = 0.0, 0.0, np.zeros(case.mask.shape)
    for i in range(len(case.mask)):
        got = trial.subject.loss(case.rows([i]), whole=case)
        value, unit = value + got.value, got.unit
        found = got.gradients.get("logps")
        g[i] = 0.0 if found is None else found[0]
    expected = _expected(trial, case, max(unit, PRECISION))
    within("denominator", value, expected.value, "loss, added up over micro-batches of the same step,")
    if not trial.no_gradient:
        within("denominator", g, expected.gradients["logps"], "gradient, added up over micro-batches of the same step,")


def _no_split(trial: Trial) -> str:
    counts = {"num_tokens", "num_sequences"} & trial.subject.sources
    return "" if counts else "the function is not told the whole step's counts (num_tokens, num_sequences)"


def _fp32(trial: Trial, case: Batch) -> None:
    _agree(trial, case, trial.subject.loss(case, "float32"), "float32")


def _bf16(trial: Trial, case: Batch) -> None:
    case = case.replace(**{k: arrays.read(arrays.make("torch", case[k], "bfloat16")) for k in LOGPS})
    got = trial.subject.loss(case, "bfloat16")
    if got.unit > PRECISION:
        raise Departure("dtype", "of bf16 log-probs it makes a bf16 loss", "float32", "bfloat16")
    _agree(trial, case, got, "float32", parts="value")


def _no_bf16(trial: Trial) -> str:
    library = trial.subject.form.library
    return "" if library == "torch" else f"{library} arrays have no bf16"


@st.composite
def _far_cases(draw: st.DrawFn, trial: Trial) -> Batch:
    case: Batch = draw(batches(trial, exact=False))
    shape = case.mask.shape
    at = draw(st.integers(0, case.mask.size - 1))
    row, place = divmod(at, shape[1])
    up = draw(st.booleans())
    logps, old, A = case["logps"].copy(), case["old_logps"].copy(), case["advantages"].copy()
    logps[row, place], old[row, place] = (-1.0, -101.0) if up else (-101.0, -1.0)
    A[row] = 1.0 if up else -1.0
    return case.replace(logps=logps, old_logps=old, advantages=A, ref_logps=logps, rollout_logps=old)


def _far(trial: Trial, case: Batch) -> None:
    got = trial.subject.loss(case, "float32")
    expected = _expected(trial, case, arrays.FLOATS["float32"])
    g = got.gradients.get("logps")
    closed = case.mask & (expected.gradients["logps"][1] == 0)
    # e^-100 is as good as 0, where the gate is soft.
    if g is not None and not np.all(np.abs(g[closed]) <= 1e-12):
        raise Departure("g", "a token far outside the clip has a gradient that is not 0", 0.0, g[closed].tolist())
    if abs(expected.value[1]) < 1e6 and not math.isfinite(got.value):
        raise Departure("value", "a ratio of e^±100 makes the loss infinite or NaN", expected.value[1], got.value)


def _no_ratio(trial: Trial) -> str:
    if trial.target.on_policy or "log_ratio" not in trial.target.recipe.objective.reads:
        return "the recipe, or the function, has no ratio"
    return ""


def _bits(got: Got) -> list[Any]:
    return [got.value, *(x for x in got.gradients.values() if x is not None)]


def _no_entropies(trial: Trial) -> str:
    if trial.no_gradient:
        return trial.no_gradient
    if not any(type(t.objective).__name__ == "Entropy" for t in trial.target.recipe.terms):
        return "the recipe has no entropy term, or the function no argument for entropies"
    return ""


LOSS = (
    Law("value", "the loss is the equation's", _value, batches),
    Law("gradient", "∂LOSS/∂logps is the equation's, stop-gradients included", _gradient, _beside,
        lambda t: t.no_gradient),
    Law("entropy_gradient", "∂LOSS/∂entropies is the equation's", _entropy_gradient, batches, _no_entropies),
    Law("bound", "on a bound, where there are two slopes, the gradient is the inner one", _bound, _on_bounds,
        _no_bound),
    Law("masked", "what is behind the mask does not matter", _masked, _beside, lambda t: t.no_mask),
    Law("masked_nan", "NaN behind the mask does not arrive", _masked_nan, _beside, lambda t: t.no_mask),
    Law("all_masked", "of a batch that is masked altogether loss and gradient are 0", _all_masked, batches,
        lambda t: t.no_mask),
    Law("padding", "places that are masked change no denominator", _padding, _beside, lambda t: t.no_mask),
    Law("order", "the order of the answers does not matter", _order, _beside),
    Law("split", "micro-batches add up to the step", _split, _beside, _no_split),
    Law("fp32", "float32 is as near as its rounding allows", _fp32, _beside),
    Law("bf16", "bf16 log-probs are made float32 before they are subtracted", _bf16, _beside, _no_bf16),
    Law("far", "a ratio of e^±100 beyond a clip has no gradient, and makes no NaN", _far, _far_cases, _no_ratio),
    Law("repeatable", "the same bits every time, without random numbers",
        lambda t, case: repeated(lambda: _bits(t.subject.loss(case))), batches),
    Law("inputs", "the arguments are left as they were", unchanged, batches),
)  # fmt: skip


def _kl_value(trial: Trial, case: Batch) -> None:
    got = trial.subject.kl(case)
    within(
        "value",
        got.tokens,
        oracle.kl(case, trial.target.spec, max(got.unit, PRECISION)).gradients["tokens"],
        "estimate",
    )


def _kl_gradient(trial: Trial, case: Batch) -> None:
    got = trial.subject.kl(case)
    expected = oracle.kl(case, trial.target.spec, max(got.unit, PRECISION)).gradients["logps"]
    g = got.gradients["logps"]
    within("g", np.zeros(case.mask.shape) if g is None else g, expected, "gradient by logps")


def _kl_zero(trial: Trial, case: Batch) -> None:
    got = trial.subject.kl(case.replace(ref_logps=case["logps"], old_logps=case["logps"]))
    if np.any(got.tokens != 0):
        raise Departure("value", "for two equal policies it is not 0", 0.0, np.asarray(got.tokens).tolist())


def _kl_sign(trial: Trial, case: Batch) -> None:
    got = trial.subject.kl(case, "float32")
    least = float(np.min(np.asarray(got.tokens), initial=0.0))
    if least < -4 * arrays.FLOATS["float32"]:
        raise Departure("value", "it is negative beyond rounding", "0 or more", least)


def _kl_fp32(trial: Trial, case: Batch) -> None:
    got = trial.subject.kl(case, "float32")
    unit = max(got.unit, arrays.FLOATS["float32"])
    within("value", got.tokens, oracle.kl(case, trial.target.spec, unit).gradients["tokens"], "estimate in float32")


KL = (
    Law("value", "the estimate is the equation's", _kl_value, batches),
    Law("gradient", "its gradient by logps is the equation's", _kl_gradient, batches, lambda t: t.no_gradient),
    Law("zero", "for two equal policies it is exactly 0", _kl_zero, batches),
    Law("sign", "it is not negative", _kl_sign, batches,
        lambda t: "k1 has either sign" if t.target.spec["kind"] == "k1" else ""),
    Law("fp32", "float32 is as near as its rounding allows", _kl_fp32, _beside),
    Law("repeatable", "the same bits every time, without random numbers",
        lambda t, case: repeated(lambda: [t.subject.kl(case).tokens]), batches),
    Law("inputs", "the arguments are left as they were", unchanged, batches),
)  # fmt: skip


def _sum_value(trial: Trial, case: TokenValues) -> None:
    got = trial.subject.aggregate(case)
    within("value", got.value, oracle.aggregate(case, trial.target.spec, max(got.unit, PRECISION)).value, "result")


def _sum_gradient(trial: Trial, case: TokenValues) -> None:
    got = trial.subject.aggregate(case)
    expected = oracle.aggregate(case, trial.target.spec, max(got.unit, PRECISION)).gradients["values"]
    g = got.gradients["values"]
    within("denominator", np.zeros(case.mask.shape) if g is None else g, expected, "share of a token")


def _refilled(case: TokenValues, fill: float) -> TokenValues:
    return type(case)(np.where(case.mask, case.values, fill), case.mask)


def _sum_masked(trial: Trial, case: TokenValues) -> None:
    one, other = trial.subject.aggregate(_refilled(case, 1.0)), trial.subject.aggregate(_refilled(case, -30.0))
    same("mask", "what is behind the mask changes the result", one.value, other.value, 64 * PRECISION)


def _sum_masked_nan(trial: Trial, case: TokenValues) -> None:
    got = trial.subject.aggregate(_refilled(case, math.nan))
    if not math.isfinite(got.value):
        raise Departure("mask", "a NaN behind the mask arrives in the result", "a number", "NaN")


def _sum_all_masked(trial: Trial, case: TokenValues) -> None:
    got = trial.subject.aggregate(type(case)(case.values, np.zeros_like(case.mask)))
    if got.value != 0:
        raise Departure("denominator", "with everything masked it is not 0", 0.0, got.value)


def _sum_padding(trial: Trial, case: TokenValues) -> None:
    wide = [np.concatenate([x, np.zeros((len(x), 3), x.dtype)], 1) for x in (case.values, case.mask)]
    one, other = trial.subject.aggregate(case), trial.subject.aggregate(type(case)(wide[0], wide[1].astype(bool)))
    same(
        "denominator", "masked places at the end of each row change the result", one.value, other.value, 64 * PRECISION
    )


def _sum_order(trial: Trial, case: TokenValues) -> None:
    one = trial.subject.aggregate(case)
    other = trial.subject.aggregate(type(case)(case.values[::-1].copy(), case.mask[::-1].copy()))
    size = float(np.abs(case.values).max(initial=0.0))
    if not abs(one.value - other.value) <= 64 * PRECISION * (1 + size * case.mask.size):
        raise Departure("value", "the order of the answers changes the result", one.value, other.value)


def _values(_trial: Trial) -> SearchStrategy[TokenValues]:
    """With a live token, as `batches`."""
    return strategies.token_values().map(lambda case: type(case)(case.values, _with_a_token(case.mask)))


AGGREGATE = (
    Law("value", "the result is the sum over the equation's denominator", _sum_value, _values),
    Law("gradient", "each token's share is one over the denominator", _sum_gradient, _values, lambda t: t.no_gradient),
    Law("masked", "what is behind the mask does not matter", _sum_masked, _values, lambda t: t.no_mask),
    Law("masked_nan", "NaN behind the mask does not arrive", _sum_masked_nan, _values, lambda t: t.no_mask),
    Law("all_masked", "of a batch that is masked altogether the result is 0", _sum_all_masked, _values,
        lambda t: t.no_mask),
    Law("padding", "places that are masked change no denominator", _sum_padding, _values, lambda t: t.no_mask),
    Law("order", "the order of the answers does not matter", _sum_order, _values),
    Law("repeatable", "the same bits every time, without random numbers",
        lambda t, case: repeated(lambda: [t.subject.aggregate(case).value]), _values),
    Law("inputs", "the arguments are left as they were", unchanged, _values),
)  # fmt: skip
