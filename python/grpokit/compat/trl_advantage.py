"""TRL 1.16.0's advantages, in fp32 as its GRPOTrainer computes them inline in `_generate_and_score_completions`.

In: rewards and groups. Out: (N,) float64 that fp32 holds exactly. A group is laid out as a row of a matrix, NaN where a
row has no reward, and torch's own sums run over it: so what rounding leaves of a constant group is TRL's too.
A table with `step` has a generation batch a step. torch is imported when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from grpokit.errors import error
from grpokit.parameters import check_choice
from grpokit.ranking import batches
from grpokit.stages import Advantage, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from grpokit._native import Groups, Rows
    from grpokit.stages import Columns

EPS = 1e-4


class _InBatches(Advantage):
    """An estimator that is run on one generation batch after another."""

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows, 0 where one is dropped or has no reward."""
        import numpy as np

        out = np.zeros(rows.n)
        values = self.values(rows, columns)
        for at in in_batches(rows.n, columns):
            out[at] = self.of_batch(values[at], groups.codes[at])
        out[~rows.keep()] = 0.0
        return rows.weigh(out)

    def values(self, rows: Rows, columns: Columns) -> NDArray[np.float32]:
        """(N,) or (N, K): what is normalised, NaN where a row has none."""
        raise NotImplementedError

    def of_batch(self, values: NDArray[np.float32], codes: NDArray[Any]) -> NDArray[np.float64]:
        """The advantages of a batch's rows."""
        raise NotImplementedError


@register("advantage")
@dataclass(frozen=True)
class TRLAdvantage(_InBatches):
    """A = (R − mean) / (std + 1e-4) in fp32, the mean of the group, the std of the group, of the batch, or none.

    Parameters
    ----------
    scale_rewards : {"group", "batch", "none"}
        Whose standard deviation divides, TRL's `scale_rewards`.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    Bessel's correction. A constant group whose mean is rounded has an advantage: up to 2.4e-3 with 0.98 fifteen times.
    A row without a reward is left out of both statistics and gets 0; so does a group with a single reward, and with
    "batch" everything where the batch has one.
    """

    scale_rewards: Literal["group", "batch", "none"] = "group"

    def __post_init__(self) -> None:
        check_choice(self, "scale_rewards", ("group", "batch", "none"))

    @property
    def scope(self) -> Literal["group", "batch"]:  # type: ignore[override]
        """Whose statistics it reads."""
        return "batch" if self.scale_rewards == "batch" else "group"

    @property
    def signal(self) -> Literal["group", "batch"]:  # type: ignore[override]
        """Likewise."""
        return self.scope

    @property
    def equation(self) -> str:  # type: ignore[override]
        """With the standard deviation that divides."""
        if self.scale_rewards == "none":
            return "A = R − mean, over the group, in fp32"
        over = "" if self.scale_rewards == "group" else " of the batch"
        return f"A = (R − mean) / (std{over} + 1e-4), over the group, in fp32"

    def values(self, rows: Rows, columns: Columns) -> NDArray[np.float32]:
        import numpy as np

        return np.where(rows.live(), rows.shaped(), np.nan).astype(np.float32)

    def of_batch(self, values: NDArray[np.float32], codes: NDArray[Any]) -> NDArray[np.float64]:
        import torch

        matrix, back = by_group(values, codes)
        A = matrix - torch.nanmean(matrix, dim=1, keepdim=True)
        if self.scale_rewards == "group":
            A = A / (_nanstd(matrix, 1) + EPS)
        elif self.scale_rewards == "batch":
            A = A / (_nanstd(torch.from_numpy(values), None) + EPS)
        found: NDArray[np.float64] = back(torch.nan_to_num(A, nan=0.0))
        return found


@register("advantage")
@dataclass(frozen=True)
class TRLDecoupled(_InBatches):
    """Each reward normalised in its group, their sum over the batch, in fp32: TRL's `normalize_then_sum` (GDPO).

    Parameters
    ----------
    reward_weights : tuple of float or None
        One a part, in the order of `reward_parts`; None is 1 each.

    Raises
    ------
    InputError
        `bad_parameter`, when made or, for their number, when run.

    Notes
    -----
    Reads the parts and not the reward. A part that is null in a row is left out of its group's statistics and of the
    row's sum; a row without any part gets 0. One part is normalised twice.
    """

    reward_weights: tuple[float, ...] | None = None
    reads: ClassVar[frozenset[str]] = frozenset({"reward_parts"})
    signal: ClassVar[Literal["batch"]] = "batch"
    scope: ClassVar[Literal["batch"]] = "batch"
    example: ClassVar[Mapping[str, Any]] = {}
    equation: ClassVar[str] = (
        "A = (x − mean) / (std + 1e-4) over the batch, x = Σ_k w_k (R_k − mean_k) / (std_k + 1e-4) over the group, "
        "in fp32"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward_weights", weights_of(self, "reward_weights"))

    def values(self, rows: Rows, columns: Columns) -> NDArray[np.float32]:
        import numpy as np

        parts = columns["reward_parts"]
        if self.reward_weights is not None and len(self.reward_weights) != len(parts):
            expected = f"a number for each of the {len(parts)} parts: {', '.join(parts)}"
            given = self.reward_weights
            raise error("bad_parameter", owner="TRLDecoupled", name="reward_weights", given=given, expected=expected)
        values = np.stack([np.asarray(x, np.float64) for x in parts.values()], axis=1).astype(np.float32)
        values[~rows.live()] = np.nan
        return values

    def of_batch(self, values: NDArray[np.float32], codes: NDArray[Any]) -> NDArray[np.float64]:
        import torch

        cube, back = by_group(values, codes)
        mean, std = torch.nanmean(cube, dim=1, keepdim=True), _nanstd(cube, 1)
        flat = ((cube - mean) / (std + EPS)).view(-1, cube.shape[2])
        weights = torch.tensor(self.reward_weights or (1.0,) * cube.shape[2], dtype=torch.float32)
        x = (flat * weights).nansum(dim=1)
        x[torch.isnan(cube.view(-1, cube.shape[2])).all(dim=1)] = torch.nan
        std = _nanstd(x, None) if x.numel() > 1 else torch.zeros_like(x)
        A = torch.nan_to_num((x - torch.nanmean(x)) / (std + EPS), nan=0.0)
        found: NDArray[np.float64] = back(A.view(cube.shape[:2]))
        return found


def in_batches(n: int, columns: Columns) -> Iterator[NDArray[np.int64]]:
    """The rows of each batch: of a step where the table says so, of all of it otherwise."""
    import numpy as np

    steps = batches(columns)
    if steps is None:
        yield np.arange(n)
        return
    for code in range(len(steps)):
        yield np.flatnonzero(steps.codes == code)


def by_group(values: NDArray[np.float32], codes: NDArray[Any]) -> tuple[Tensor, Any]:
    """(G, n) or (G, n, K): a group a row, in the order of the table, NaN beyond its end; and the way back to (N,)."""
    import numpy as np
    import torch

    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    # Groups in the order in which they come: a sum over the whole batch then runs as TRL's does.
    codes = np.argsort(np.argsort(first))[codes]
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    matrix = np.full((len(sizes), sizes.max(initial=0), *values.shape[1:]), np.nan, np.float32)
    matrix[codes[order], place] = values[order]

    def back(A: Tensor) -> NDArray[np.float64]:
        out = np.zeros(len(codes))
        out[order] = A.numpy()[codes[order], place]
        return out

    return torch.from_numpy(matrix), back


def _nanstd(x: Tensor, dim: int | None) -> Tensor:
    """`trl.trainer.utils.nanstd` with its dimensions kept; NaN of a single number, and 0 where one is all there is."""
    import torch

    if x.shape[1 if dim else 0] == 1:
        return torch.zeros_like(x)
    variance = torch.nanmean((x - torch.nanmean(x, dim=dim, keepdim=True)) ** 2, dim=dim, keepdim=True)
    count = torch.sum(~torch.isnan(x), dim=dim, keepdim=True)
    correction = count / (count - 1)
    correction = torch.where(count > 1, correction, torch.full_like(correction, float("nan")))
    return torch.sqrt(variance * correction)


def weights_of(stage: Any, name: str) -> tuple[float, ...] | None:
    """A tuple of numbers from any list of them, or None.

    Raises
    ------
    InputError
        `bad_parameter`.
    """
    given = getattr(stage, name)
    if given is None:
        return None
    listed = isinstance(given, tuple | list) and len(given) > 0
    if not listed or not all(isinstance(w, int | float) and not isinstance(w, bool) and abs(w) < 1e9 for w in given):
        expected = "numbers, one a reward, or None for 1 each"
        raise error("bad_parameter", owner=type(stage).__name__, name=name, given=given, expected=expected)
    return tuple(map(float, given))
