"""The meaning of every stage: float64 NumPy and plain loops, one function an equation, in the papers' symbols.

Nothing here is fast, and nothing here imports the rest of grpokit: the native core, the torch objectives and anyone
else's code are tested against it. Modules mirror the stages: `shaping`, `selection`, `ranking`, `advantage` on rows,
`mismatch`, `objective`, `sequence_objective`, `aggregate` and `loss` on tokens, `compat` what other libraries have
in place of those; beside them `packing`, `attempts`,
`mismatch_stats`, the ledger, `staleness`, and a mixture of experts' gate, `routing`.
"""

from . import (
    advantage,
    aggregate,
    attempts,
    compat,
    loss,
    mismatch,
    mismatch_stats,
    objective,
    packing,
    ranking,
    routing,
    selection,
    sequence_objective,
    shaping,
    staleness,
)

__all__ = [
    "advantage",
    "aggregate",
    "attempts",
    "compat",
    "loss",
    "mismatch",
    "mismatch_stats",
    "objective",
    "packing",
    "ranking",
    "routing",
    "selection",
    "sequence_objective",
    "shaping",
    "staleness",
]
