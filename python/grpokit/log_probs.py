"""Log-probs in the caller's layout, measured: how far the trainer's policy is from the sampler's.

In: log π_old, recomputed by the trainer, and log π_rollout, returned by the sampler, padded or packed, in NumPy or
torch. Out: `MismatchStats`, in one pass over both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _native
from .columns import as_column, integers, keys, take
from .errors import error
from .mismatch_statistics import MismatchStats
from .rollouts import _threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEVELS = ("token", "sequence", "geometric", "worst")
_MOST_GROUPS = 4096


class _Layout(NamedTuple):
    """Columns one place after another, and where sequences start."""

    old: NDArray[Any]
    rollout: NDArray[Any]
    mask: NDArray[np.bool_] | None
    starts: NDArray[np.int64]


def mismatch_stats(
    old_logps: Any,
    rollout_logps: Any,
    mask: Any = None,
    *,
    cu_seqlens: Any = None,
    rules: Any = (),
    source: Any = None,
    lag: Any = None,
    threads: int | None = None,
) -> MismatchStats:
    """What the log ratios d = log π_old − log π_rollout amount to, per token and per sequence.

    Parameters
    ----------
    old_logps, rollout_logps : (B, T), or packed (T,), float, nats
        NumPy arrays or CPU tensors. float32 is read in place where it is C-contiguous; other strides and narrower
        floats are copied, these to float32 before the subtraction; float64 is subtracted in float64 and the difference
        rounded to float32.
    mask : same shape, bool or 0/1, optional
        The live tokens; what is behind it may be NaN. None: all.
    cu_seqlens : (B + 1,) int, optional
        Packed only: where each sequence starts, and the end.
    rules : sequence of stages
        Corrections with `bounds`, such as ``TIS(cap=2.0)``: a level and the ratio's lowest and highest value, None for
        no bound. Per "token" d, per "sequence" S = Σ d, per "geometric" S/T are compared with the bounds' logarithms,
        inclusive; "worst" takes a sequence as outside if one of its tokens is. Bounds of tokens are rounded to
        float32, as torch does.
    source : (B,) int or str, optional
        Where each sequence is from: `by_source`. At most 4,096 different ones.
    lag : (B,) int, versions, optional
        How old the policy was that sampled each sequence: `by_lag`. At most 4,096 different ones.
    threads : int, optional
        As in `process`; the result's bits do not depend on it.

    Returns
    -------
    MismatchStats
        ESS, KL, χ², quantiles, extremes, shares outside of rules; `merge`, `metrics()`, and `print` for a table.

    Raises
    ------
    InputError
        `token_shape`, `bad_cu_seqlens`, `column_length`; `bad_parameter` for a mask of other values, or for a rule
        without bounds, such as one that looks at the current policy: what that drops is in the loss's metrics.
    InputTypeError
        `token_type`: no floats, or a tensor that is not on the CPU.

    Notes
    -----
    Sums are taken in float32 over blocks of 1,024 live tokens and in float64 over blocks and sequences, Σ d in float64
    throughout. Padded and packed batches give the same bits; another order of the sequences gives the same counts,
    histograms and log ratios of extremes, and sums that differ by rounding in float64. An empty batch and one that is
    masked altogether have counts of 0 and NaN for what is a mean of nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import grpokit as gk
    >>> old = np.array([[-1.0, -2.0, -0.5], [-1.0, -1.0, 0.0]], np.float32)
    >>> rollout = np.array([[-1.0, -2.5, -0.5], [-1.0, -1.25, np.nan]], np.float32)
    >>> mask = np.array([[1, 1, 1], [1, 1, 0]])
    >>> stats = gk.mismatch_stats(old, rollout, mask, source=["math", "code"])
    >>> stats
    MismatchStats(5 tokens, 2 sequences)
    >>> round(stats.ess_sequence, 4), round(stats.by_source["math"].kl_k1, 4), stats.highest[0]
    (0.9848, -0.1667, Extreme(batch=0, sequence=0, position=1, log_ratio=0.5))
    >>> print(stats)
    5 tokens in 2 sequences
    KL(rollout ‖ old) per token  k1 -0.15, k3 0.0365
    per token     mean ratio 1.18655, ESS 95.55%, χ² 0.473
    per sequence  ESS 98.48%, χ² 1.18
    ratio         min 1, p1 1, p50 1, p99 1.294, max 1.649
    geometric     min 1.133, p1 1.133, p50 1.133, p99 1.133, max 1.181
    lowest        d 0, sequence 0 at 0
    highest       d 0.5, sequence 0 at 1
    source math: 3 tokens, k3 0.0496, ESS 94.05% per token, 100.00% per sequence
    source code: 2 tokens, k3 0.017, ESS 98.48% per token, 100.00% per sequence
    """
    layout = _layout(old_logps, rollout_logps, mask, cu_seqlens)
    sequences = len(layout.starts) - 1
    names, bounds = [repr(rule) for rule in _several(rules)], [_bounds(i, rule) for i, rule in enumerate(rules)]
    groupings, values = [], []
    for name, column in (("source", source), ("lag", lag)):
        if column is not None:
            codes, found = _groups(name, column, sequences)
            groupings.append((codes, len(found)))
            values.append((name, found))
    whole, *parts = (
        MismatchStats(found, names) for found in _native.mismatch(*layout, bounds, groupings, _threads(threads))
    )
    for name, found in values:
        of = dict(zip(found, parts, strict=False))
        parts = parts[len(found) :]
        if name == "source":
            whole.by_source = of
        else:
            whole.by_lag = dict(sorted(of.items()))
    return whole


def _layout(old_logps: Any, rollout_logps: Any, mask: Any, cu_seqlens: Any) -> _Layout:
    old, rollout = _floats("old_logps", old_logps), _floats("rollout_logps", rollout_logps)
    if old.ndim != (2 if cu_seqlens is None else 1):
        packed = "(T,), with cu_seqlens"
        expected = packed if cu_seqlens is not None else "(B, T); packed log-probs, (T,), need cu_seqlens"
        raise error("token_shape", name="old_logps", given=old.shape, expected=expected)
    if rollout.shape != old.shape:
        raise error(
            "token_shape", name="rollout_logps", given=rollout.shape, expected=f"{old.shape}, that of old_logps"
        )
    kind = np.promote_types(old.dtype, rollout.dtype)
    live = None if mask is None else _mask(mask, old.shape)
    starts = np.arange(len(old) + 1) * old.shape[1] if cu_seqlens is None else _starts(cu_seqlens, len(old))
    return _Layout(_flat(old, kind), _flat(rollout, kind), live, starts)


def _flat(array: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, kind).reshape(-1)


def _array(name: str, given: Any) -> NDArray[Any]:
    """An array of what has one, a tensor on the CPU among these; torch is not imported for that."""
    if not hasattr(given, "__array__"):
        raise error("token_type", name=name, given=type(given), expected="a NumPy array or a CPU tensor")
    if isinstance(given, np.ma.MaskedArray):
        expected = "a plain array: what is masked in it goes to mask="
        raise error("token_type", name=name, given="a masked array", expected=expected)
    if type(given).__module__.partition(".")[0] == "torch":
        if given.device.type != "cpu":
            expected = "a tensor on the CPU: call .cpu() first"
            raise error("token_type", name=name, given=f"a tensor on {given.device}", expected=expected)
        given = given.detach()
        if str(given.dtype) == "torch.bfloat16":  # which NumPy does not have
            given = given.float()
    return np.asarray(given)


def _floats(name: str, given: Any) -> NDArray[Any]:
    array = _array(name, given)
    if array.dtype.name in ("float32", "float64"):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.name in ("float16", "bfloat16"):
        return array.astype(np.float32)
    expected = "an array of float32 or float64 (float16 and bfloat16 are converted)"
    raise error("token_type", name=name, given=f"an array of {array.dtype}", expected=expected)


def _mask(given: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    array = _array("mask", given)
    if array.shape != shape:
        raise error("token_shape", name="mask", given=array.shape, expected=f"{shape}, that of old_logps")
    if array.dtype.kind not in "biuf":
        raise error("token_type", name="mask", given=f"an array of {array.dtype}", expected="bool, or 0 and 1")
    live = array if array.dtype == np.bool_ else array != 0
    if array.dtype != np.bool_ and array.size and (array.min() < 0 or array.max() > 1 or (array != live).any()):
        wrong = array[array != live][0]
        raise error("bad_parameter", owner="mismatch_stats", name="mask", given=wrong.item(), expected="0 or 1")
    return np.ascontiguousarray(live).reshape(-1)


def _starts(given: Any, places: int) -> NDArray[np.int64]:
    array = np.asarray(given)
    if array.ndim == 1 and len(array) and array.dtype.kind in "iu":
        starts = np.ascontiguousarray(array, np.int64)
        if starts[0] == 0 and starts[-1] == places and (np.diff(starts) >= 0).all():
            return starts
    given = f"{array.dtype} of shape {array.shape}: {array.reshape(-1)[:8].tolist()} ..."
    raise error("bad_cu_seqlens", given=given, places=places)


def _several(rules: Any) -> Any:
    if not isinstance(rules, list | tuple):
        expected = "a list or tuple of stages"
        raise error("bad_parameter", owner="mismatch_stats", name="rules", given=rules, expected=expected)
    return rules


def _bounds(i: int, rule: Any) -> tuple[str, float, float]:
    """A rule's level, and its bounds in log space."""
    bounds = getattr(rule, "bounds", None)
    if bounds is None or "logps" in getattr(rule, "reads", ()):
        expected = "a stage that has `bounds`; what this one drops is counted in the loss's metrics"
        raise error("bad_parameter", owner="mismatch_stats", name=f"rules[{i}]", given=rule, expected=expected)
    if isinstance(bounds, tuple) and len(bounds) == 3 and bounds[0] in _LEVELS:
        level, low, high = bounds
        if all(x is None or (isinstance(x, int | float) and 0 < x < math.inf) for x in (low, high)):
            return level, -math.inf if low is None else math.log(low), math.inf if high is None else math.log(high)
    expected = f"a level ({', '.join(_LEVELS)}) and two ratios above 0, or None for no bound"
    raise error("bad_parameter", owner="mismatch_stats", name=f"rules[{i}].bounds", given=bounds, expected=expected)


def _groups(name: str, column: Any, sequences: int) -> tuple[NDArray[np.uint32], list[Any]]:
    """A code for each sequence, and the value that each code stands for."""
    data = integers(name, column).astype(np.int64) if name == "lag" else keys(name, as_column(name, column))
    if len(data) != sequences:
        raise error("column_length", column=name, length=len(data), other="old_logps", expected=sequences)
    groups = _native.Groups([data], [name])
    if len(groups) > _MOST_GROUPS:
        expected = f"at most {_MOST_GROUPS:,}: 16 KiB are kept for each"
        context = {"owner": "mismatch_stats", "name": f"different values of {name}"}
        raise error("bad_parameter", **context, given=len(groups), expected=expected)
    return groups.codes, [value.item() if hasattr(value, "item") else value for value in take(data, groups.first)]
