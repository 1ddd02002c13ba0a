"""What is right of a case, by the float64 reference, and how far rounding may be from it.

The reference is asked at the log-probs that were given and at both ends of what rounding makes of them; what it says
there is an interval, wide only where the quantity is ill-conditioned or a token stands on a bound. Beside it a result
may be off by as many roundings as the sum has steps.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from grpokit.reference import aggregate as aggregates
from grpokit.reference import loss as losses
from grpokit.reference import objective as objectives

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from grpokit import Recipe
    from grpokit.stages import Stage

    from .cases import Batch, TokenValues

ROUNDINGS = 64  # of one token's number: differences, exp, products, the sums of a sequence, the quotient
DOUBLE = 2.0**-53


def described(recipe: Recipe) -> dict[str, Any]:
    """The token stages of a recipe as the reference reads them."""
    return {
        "objective": plain(recipe.objective),
        "correct": [plain(s) for s in recipe.correct],
        "aggregate": plain(recipe.aggregate),
        "ratio": recipe.ratio,
        "dropped": recipe.dropped,
        "extra": [
            {
                "objective": plain(t.objective),
                "scale": t.scale,
                "weigh": [plain(s) for s in t.weigh],
                "aggregate": plain(t.aggregate),
                "dropped": t.dropped,
            }
            for t in recipe.extra
        ],
    }


def plain(stage: Stage) -> dict[str, Any]:
    """A stage's name and parameters."""
    fields: Any = stage
    return {"stage": type(stage).__name__} | {f.name: getattr(stage, f.name) for f in dataclasses.fields(fields)}


def numbers(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a described recipe that functions are given by name."""
    found = {k: v for k, v in spec["objective"].items() if k != "stage"}
    found |= {k: v for entry in spec["correct"] for k, v in entry.items() if k == "cap"}
    found |= {k: v for k, v in spec["aggregate"].items() if k == "length"}
    kl = [entry["scale"] for entry in spec["extra"] if entry["objective"]["stage"] == "KL"]
    return found | ({"scale": kl[0]} if kl else {})


@dataclass(frozen=True, eq=False)
class Expected:
    """An interval for each number.

    Attributes
    ----------
    value : tuple of float
        Lowest, exact, highest.
    gradients : dict of tuples of (S, T) arrays
        The same of ∂LOSS/∂logps and ∂LOSS/∂entropies; 0 behind the mask.
    """

    value: tuple[float, float, float]
    gradients: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]


def rows_of(case: Batch, *, on_policy: bool = False) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The constants and the current policy of each sequence's live tokens, as the reference reads them."""
    constants, current = [], []
    for i, live in enumerate(case.mask):
        row: dict[str, Any] = {k: x[i][live].tolist() for k, x in case.columns.items()}
        now = {name: row.pop(name) for name in ("logps", "entropies")}
        if on_policy:
            del row["old_logps"]
        n = len(now["logps"])
        constants.append(row | {"step": [0] * n, "position": list(range(n))})
        current.append(now)
    return constants, current


def loss(case: Batch, spec: Mapping[str, Any], unit: float = DOUBLE, *, on_policy: bool = False) -> Expected:
    """The loss of a described recipe, computed by somebody to a relative precision of `unit`."""
    rows, now = rows_of(case, on_policy=on_policy)
    sizes = _sizes(case, spec, rows, now)
    l = case["logps"][case.mask]
    roundings = unit * (ROUNDINGS + 2 * case.mask.sum())
    width = 8 * unit * (1 + (float(np.abs(l).max()) if l.size else 0.0))
    values, gradients = [], []
    for moved in (0.0, width, -width):
        x = [row | {"logps": [v + moved for v in row["logps"]]} for row in now]
        parts = losses.loss(rows, spec, x, x)
        values.append(math.fsum(v for row in parts for v in row))
        gradients.append(padded(case, losses.gradient(rows, spec, x)))
        if not moved:
            slack = roundings * math.fsum(abs(v) for row in parts for v in row) + roundings * float(
                (sizes * (1 + np.abs(case["logps"])))[case.mask].sum()
            )
    found = {}
    for name in ("logps", "entropies"):
        all_ = np.stack([g[name] for g in gradients])
        room = roundings * (sizes + np.abs(all_[0]))
        found[name] = all_.min(0) - room, all_[0], all_.max(0) + room
    return Expected((min(values) - slack, values[0], max(values) + slack), found)


def _sizes(case: Batch, spec: Mapping[str, Any], rows: Any, now: Any) -> NDArray[np.float64]:
    """(S, T): Σ_terms |scale c w| (1 + |A|), what a rounding of one ratio is worth."""
    sizes = np.zeros(case.mask.shape)
    for term in losses.terms(spec):
        for i, (_, k, kept) in enumerate(losses.sequences(rows, spec, term, now)):
            at = np.flatnonzero(case.mask[i])[kept]
            sizes[i, at] += np.abs(k)
    # In a sequence's ratio each token's share is as large as any other's.
    share = sizes.max(1, keepdims=True, initial=0.0)
    sizes[:] = share * (1 + np.abs(case["advantages"]).max(1, keepdims=True, initial=0.0))
    return sizes


def padded(case: Batch, ragged: list[dict[str, list[float]]]) -> dict[str, NDArray[np.float64]]:
    """Ragged columns in the places of the mask, 0 behind it."""
    found = {name: np.zeros(case.mask.shape) for name in ("logps", "entropies")}
    for i, row in enumerate(ragged):
        for name, column in row.items():
            found[name][i, case.mask[i]] = column
    return found


def kl(case: Batch, spec: Mapping[str, Any], unit: float = DOUBLE) -> Expected:
    """A KL estimator per token: `value` is the sum; the tokens' own are in `gradients["tokens"]`."""
    rows, now = rows_of(case)
    name, parameters = losses.stage(spec)
    # The columns of the ratio are those of the old policy.
    rows = [row | {"base_logps": row["old_logps"]} for row in rows]
    l = case["logps"][case.mask]
    width = 8 * unit * (1 + (float(np.abs(l).max()) if l.size else 0.0))
    tokens, gradients = [], []
    for moved in (0.0, width, -width):
        x = [row | {"logps": [v + moved for v in row["logps"]]} for row in now]
        tokens.append(np.zeros(case.mask.shape))
        for i, (row, column) in enumerate(zip(rows, x, strict=True)):
            tokens[-1][i, case.mask[i]] = objectives.VALUES[name](column, column, row, **parameters)
        ones = [[1.0] * len(row["logps"]) for row in now]
        slopes = [objectives.GRADIENTS[name](c, r, k, **parameters) for c, r, k in zip(x, rows, ones, strict=True)]
        gradients.append(padded(case, slopes)["logps"])
    ratio = np.exp(np.minimum(np.abs(case["logps"] - case["old_logps"]), objectives.LIMIT)) if _corrected(spec) else 1
    far = np.exp(np.minimum(np.maximum(case[f"{spec['to']}_logps"] - case["logps"], 0), 30.0))
    room = unit * ROUNDINGS * ratio * (1 + far + np.abs(tokens[0])) * case.mask
    intervals = {}
    for key, several in (("tokens", tokens), ("logps", gradients)):
        all_ = np.stack(several)
        intervals[key] = all_.min(0) - room, all_[0], all_.max(0) + room
    total = float(tokens[0].sum())
    return Expected((total - room.sum(), total, total + room.sum()), intervals)


def _corrected(spec: Mapping[str, Any]) -> bool:
    return bool(spec.get("corrected"))


def aggregate(case: TokenValues, spec: Mapping[str, Any], unit: float = DOUBLE) -> Expected:
    """Σ_t value_t / denominator, and its slope by each value."""
    name, parameters = losses.stage(spec)
    weights = [[1.0] * int(n) for n in case.mask.sum(1)]
    tokens, N, lengths = aggregates.counts(weights, parameters.pop("over"))
    share = np.zeros(case.mask.shape)
    for i, n in enumerate(lengths):
        if n:
            share[i, case.mask[i]] = 1 / aggregates.DENOMINATORS[name](tokens, N, n, **parameters)
    parts = np.where(case.mask, case.values, 0.0) * share
    room = unit * (ROUNDINGS + 2 * case.mask.size)
    slack = room * float(np.abs(parts).sum())
    total = math.fsum(parts.ravel())
    return Expected((total - slack, total, total + slack), {"values": (share * (1 - room), share, share * (1 + room))})
