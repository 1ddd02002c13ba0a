"""LOSS = Σ_k scale_k · Σ_t c_kt · w_kt · value_kt over ragged sequences, and its gradient, in float64.

A row is one sequence's live tokens: {"advantages": [...], "old_logps": [...], ...}, lists of one length, with
"old_logps" left out where the rollouts are on-policy. `x` and `frozen` hold the current policy in the same form, one
{"logps": [...], "entropies": [...]} a row; stop-gradients read `frozen`. A recipe is what `Recipe.to_dict` writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import aggregate, compat, mismatch, objective, sequence_objective
from .aggregate import counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .objective import Column, Columns

VALUES = objective.VALUES | sequence_objective.VALUES | compat.VALUES
GRADIENTS = objective.GRADIENTS | sequence_objective.GRADIENTS | compat.GRADIENTS
WEIGHTS = mismatch.WEIGHTS | compat.WEIGHTS
DENOMINATORS = aggregate.DENOMINATORS | compat.DENOMINATORS
FOLDS = sequence_objective.FOLDS | compat.FOLDS


def loss(
    rows: Sequence[Columns], recipe: Mapping[str, Any], x: Sequence[Columns], frozen: Sequence[Columns]
) -> list[list[float]]:
    """Each token's contribution to LOSS, a list a row."""
    out = [[0.0] * len(current["logps"]) for current in x]
    for term in terms(recipe):
        name, parameters = stage(term["objective"])
        for i, (s, k, kept) in enumerate(sequences(rows, recipe, term, frozen)):
            values = VALUES[name](_take(x[i], kept), _take(frozen[i], kept), s, **parameters)
            for t, k_t, value in zip(kept, k, values, strict=True):
                out[i][t] += k_t * value
    return out


def gradient(rows: Sequence[Columns], recipe: Mapping[str, Any], x: Sequence[Columns]) -> list[dict[str, list[float]]]:
    """∂LOSS/∂l and ∂LOSS/∂H by the closed forms, one {"logps": g, "entropies": h} a row."""
    out = [{name: [0.0] * len(column) for name, column in current.items()} for current in x]
    for term in terms(recipe):
        name, parameters = stage(term["objective"])
        for i, (s, k, kept) in enumerate(sequences(rows, recipe, term, x)):
            for column, slopes in GRADIENTS[name](_take(x[i], kept), s, k, **parameters).items():
                for t, slope in zip(kept, slopes, strict=True):
                    out[i][column][t] += slope
    return out


def terms(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The policy term and the extra ones."""
    policy = {"objective": recipe["objective"], "weigh": recipe.get("correct", []), "aggregate": recipe["aggregate"]}
    policy |= {"dropped": recipe.get("dropped", "removed")}
    return [policy, *recipe.get("extra", [])]


def stage(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A stage's name and its parameters."""
    return entry["stage"], {name: value for name, value in entry.items() if name != "stage"}


def weights(
    rows: Sequence[Columns], recipe: Mapping[str, Any], term: Mapping[str, Any], frozen: Sequence[Columns]
) -> list[list[float]]:
    """w, the product of the term's weights, each of the whole batch."""
    whole = [{"old_logps": now["logps"], **row, **now} for row, now in zip(rows, frozen, strict=True)]
    whole = [{**row, "base_logps": row[f"{recipe.get('ratio', 'old')}_logps"]} for row in whole]
    out = [[1.0] * len(current["logps"]) for current in frozen]
    for entry in term.get("weigh", []):
        name, parameters = stage(entry)
        found = WEIGHTS[name](whole, **parameters)
        out = [[a * b for a, b in zip(*both, strict=True)] for both in zip(out, found, strict=True)]
    return out


def sequences(
    rows: Sequence[Columns], recipe: Mapping[str, Any], term: Mapping[str, Any], frozen: Sequence[Columns]
) -> list[tuple[dict[str, Column], list[float], list[int]]]:
    """Of each row: the constants of the tokens that the weights leave, scale · c · w of each, and which they are.

    A token with the weight 0 is not there; or, in the ratio of its sequence, it is there with a share of 0.
    """
    w = weights(rows, recipe, term, frozen)
    name, parameters = stage(term["aggregate"])
    tokens, N, lengths = counts(w, parameters.pop("over"))
    out = []
    for i, row in enumerate(rows):
        kept = [t for t, w_t in enumerate(w[i]) if w_t != 0 or term.get("dropped") == "in_ratio"]
        base = row.get(f"{recipe.get('ratio', 'old')}_logps", frozen[i]["logps"])
        s = _take({**row, "base_logps": base, "weights": w[i]}, kept)
        c = [1 / DENOMINATORS[name](tokens, N, lengths[i], **parameters) if w[i][t] != 0 else 0.0 for t in kept]
        folds = term["objective"]["stage"] in FOLDS
        k = [term.get("scale", 1.0) * c_t * (1.0 if folds else w[i][t]) for c_t, t in zip(c, kept, strict=True)]
        out.append((s, k, kept))
    return out


def _take(columns: Columns, kept: list[int]) -> dict[str, Column]:
    return {name: [column[t] for t in kept] for name, column in columns.items()}
