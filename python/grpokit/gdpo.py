"""Stage 4, advantage: several rewards, each normalised in its group before they are added up (GDPO, arXiv:2601.05242).

In: `reward_parts`, the parts of each reward. Out: (N,) float64. Where rewards of different spread are added up first,
the widest decides alone; normalised one by one, each counts by its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .columns import check_values
from .errors import error
from .parameters import LARGEST, check_choice, check_number
from .ranking import batches
from .stages import Advantage, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from ._native import Groups, Rows
    from .stages import Columns


@register("advantage")
@dataclass(frozen=True)
class GDPO(Advantage):
    """Each reward normalised in its group, their weighted sum over the batch: GDPO (arXiv:2601.05242).

    A = (x − mean) / (std + eps) over the batch, x = Σ_k w_k (R_k − mean_k) / (std_k + eps) over the group.

    Parameters
    ----------
    over : {"sequences", "tokens"}
        What the batch's statistics count: each row once, as the authors' fork of TRL does, or by its tokens
        (`response_len`), as their fork of verl does. Required, since the two differ.
    weights : tuple of (str, float)
        w_k by the part's name; a part that is not named counts with 1, and one that is not there is an error.
    ddof : float
        What is taken off the counts in both variances; both forks use 1.
    eps : float
        Added to both standard deviations; 1e-4 in the fork of TRL.

    Raises
    ------
    InputError
        `bad_parameter`; when run, `missing_column` without `reward_parts`.

    Notes
    -----
    Reads the parts and not the reward, which the selections still read; shaping has no say. A part that is constant in
    its group, or null in a row, adds exactly 0; the batch's mean then moves such rows off 0.

    The authors' forks differ from each other, and from this: both leave a single reward as it is; TRL's counts a
    missing part as 0 in the group's mean; verl's adds two rewards without weights, with verl's eps. In the bundled
    trainer the parts are what each reward function said.
    """

    over: Literal["sequences", "tokens"]
    weights: tuple[tuple[str, float], ...] = ()
    ddof: float = 1.0
    eps: float = 1e-4
    signal: ClassVar[Literal["batch"]] = "batch"
    scope: ClassVar[Literal["batch"]] = "batch"
    equation: ClassVar[str] = "A = (x − mean) / (std + eps) over the batch, x = Σ_k w_k (R_k − mean_k) / (std_k + eps)"
    sources: ClassVar[Mapping[str, str]] = {
        "weights": "1 each",
        "ddof": "both of the authors' forks",
        "eps": "the authors' fork of TRL",
    }
    leaves_out: ClassVar[str] = "that a single reward is left as it is, unwhitened"
    example: ClassVar[Mapping[str, Any]] = {"over": "sequences"}

    def __post_init__(self) -> None:
        check_choice(self, "over", ("sequences", "tokens"))
        check_number(self, "ddof", at_least=0)
        check_number(self, "eps", at_least=0)
        given: Any = self.weights
        pairs = (
            list(given.items()) if isinstance(given, dict) else list(given) if isinstance(given, tuple | list) else None
        )
        if pairs is None or not all(map(_is_weight, pairs)) or len({name for name, _ in pairs}) < len(pairs):
            expected = "pairs of a part's name and its weight, at most 1e9 in size; each part once"
            raise error("bad_parameter", owner="GDPO", name="weights", given=given, expected=expected)
        object.__setattr__(self, "weights", tuple((name, float(weight)) for name, weight in pairs))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """`reward_parts`, and `response_len` where tokens are counted."""
        return frozenset({"reward_parts"} | ({"response_len"} if self.over == "tokens" else set()))

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows."""
        import numpy as np

        from ._native import Rows as Fresh

        parts, weights = columns["reward_parts"], dict(self.weights)
        for name in weights:
            if name not in parts:
                expected = "names of parts that are there: " + ", ".join(parts)
                raise error("bad_parameter", owner="GDPO", name="weights", given=name, expected=expected)
        live, x = rows.live() & rows.kept_groups()[groups.codes], np.zeros(rows.n)
        for name, values in parts.items():
            known = live & ~np.isnan(values)
            check_values(name, values, known)
            part = Fresh(groups, (np.where(known, values, 0.0), known))
            x += weights.get(name, 1.0) * part.advantages("group_norm", self.ddof, self.eps)
        whole = Fresh(groups, (x, rows.keep()))
        lengths = columns["response_len"] if self.over == "tokens" else None
        return rows.weigh(
            whole.advantages("global_norm", self.ddof, self.eps, weights=lengths, batches=batches(columns))
        )


def _is_weight(pair: Any) -> bool:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return False
    name, weight = pair
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    return isinstance(name, str) and number and abs(weight) <= LARGEST
