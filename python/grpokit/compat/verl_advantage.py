"""verl 0.9.1's advantage estimators of one reward an answer, in fp32 and in the order in which verl adds.

In: rewards, groups and, where tokens are counted, `response_len`: the tokens inside the response mask. Out: (N,)
float64 that fp32 holds exactly. Nothing of theirs is smoothed: a constant group whose mean is rounded has an
advantage, and a group of one has its reward, where verl's has. torch is imported when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from grpokit.errors import error
from grpokit.parameters import check_choice, check_count, check_flag
from grpokit.stages import Advantage, as_numpy, register

from .trl_advantage import in_batches, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from grpokit._native import Groups, Rows
    from grpokit.stages import Columns

EPS = 1e-6
EQUATIONS = {
    "grpo": "(R − mean) / (std + 1e-6)",
    "grpo_vectorized": "(R − mean) / (std + 1e-6), summed one after another",
    "rloo": "n R / (n − 1) − n mean / (n − 1)",
    "rloo_vectorized": "(n R − Σ R) / max(n − 1, 1), 0 for n = 1",
    "opo": "R − Σ_j |o_j| R_j / Σ_j |o_j|",
    "gpg": "α (R − mean), α = N / max(rows with R ≠ 0, 1)",
    "grpo_passk": "(R_best − R_second) / (std + 1e-6) for the best, else 0",
    "remax": "R − R_greedy",
    "reinforce_plus_plus": "(R − mean) / √(var + 1e-8), over the batch's tokens",
    "reinforce_plus_plus_baseline": "(x − mean) / √(var + 1e-8), over the batch's tokens, x = R − the group's mean",
}
WHITENED = ("reinforce_plus_plus", "reinforce_plus_plus_baseline")
Estimator = Literal[
    "grpo",
    "grpo_vectorized",
    "rloo",
    "rloo_vectorized",
    "opo",
    "gpg",
    "grpo_passk",
    "remax",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
]


class _InSteps(Advantage):
    """An estimator that is run on one training batch after another, on the rows that count."""

    def run(self, rows: Rows, groups: Groups, columns: Columns) -> NDArray[np.float64]:
        """The advantages of all rows, 0 where one is dropped."""
        import numpy as np

        counted = rows.live() & rows.kept_groups()[groups.codes]
        given, out = as_numpy(self, columns), np.zeros(rows.n)
        for batch in in_batches(rows.n, columns):
            at = batch[counted[batch]]
            if len(at):
                mine = {name: _part(x, at) for name, x in given.items()}
                out[at] = self.of_batch(rows.shaped()[at].astype(np.float32), groups.codes[at], mine).numpy()
        out[~rows.keep()] = 0.0
        return rows.weigh(out)

    def of_batch(self, rewards: NDArray[np.float32], codes: NDArray[Any], columns: Mapping[str, Any]) -> Tensor:
        """The advantages of a batch's rows."""
        raise NotImplementedError


@register("advantage")
@dataclass(frozen=True)
class VerlAdvantage(_InSteps):
    """The advantage that verl 0.9.1 calls by that name, in fp32; `VerlGDPO` has the one of several rewards.

    Parameters
    ----------
    estimator : str
        verl's `adv_estimator`.
    norm_adv_by_std_in_grpo : bool
        Whether the group's std divides; "grpo" and "grpo_passk" read it.
    response_length : int or None
        The width that verl pads responses to, for what is normalised over tokens: the sums of rounded numbers that it
        takes run over the padding as well. None is the longest of the batch.

    Raises
    ------
    InputError
        `bad_parameter`; when run, `too_few_attempts` for a group of one with "grpo_passk".

    Notes
    -----
    A group of one has mean 0 and std 1, so its reward is its advantage; with "rloo" as well, and 0 with
    "rloo_vectorized". "reinforce_plus_plus" is the one with γ = 1 and the reward at the last token.
    """

    estimator: Estimator = "grpo"
    norm_adv_by_std_in_grpo: bool = True
    response_length: int | None = None

    def __post_init__(self) -> None:
        check_choice(self, "estimator", tuple(EQUATIONS))
        check_flag(self, "norm_adv_by_std_in_grpo")
        if not self.norm_adv_by_std_in_grpo and self.estimator not in ("grpo", "grpo_passk"):
            expected = "True: verl reads it with 'grpo' and 'grpo_passk' alone"
            raise error(
                "bad_parameter", owner="VerlAdvantage", name="norm_adv_by_std_in_grpo", given=False, expected=expected
            )
        if self.response_length is not None:
            check_count(self, "response_length", at_least=1)

    @property
    def signal(self) -> Literal["group", "batch", "none"]:  # type: ignore[override]
        """A group of one is ordinary with most."""
        return "batch" if self.estimator in (*WHITENED, "gpg") else "none"

    @property
    def scope(self) -> Literal["row", "group", "batch"]:  # type: ignore[override]
        """What it must be shown together."""
        return "row" if self.estimator == "remax" else "batch" if self.signal == "batch" else "group"

    @property
    def equation(self) -> str:  # type: ignore[override]
        """Of the estimator."""
        A = EQUATIONS[self.estimator]
        return f"A = {A if self.norm_adv_by_std_in_grpo else A.replace(' / (std + 1e-6)', '')}, in fp32"

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """Lengths where tokens count, the greedy answer's reward for "remax"."""
        if self.estimator == "remax":
            return frozenset({"baseline_reward"})
        return frozenset({"response_len"} if self.estimator in (*WHITENED, "opo") else ())

    def of_batch(self, rewards: NDArray[np.float32], codes: NDArray[Any], columns: Mapping[str, Any]) -> Tensor:
        import numpy as np
        import torch

        R = torch.from_numpy(rewards)
        lengths = torch.from_numpy(np.array(columns.get("response_len", np.ones(len(R))), np.int64))
        if self.estimator == "remax":
            return R - torch.from_numpy(np.array(columns["baseline_reward"], np.float32))
        if self.estimator == "grpo_vectorized":
            return _vectorized(R, codes)
        if self.estimator == "rloo_vectorized":
            return _leave_one_out(R, codes)
        if self.estimator == "reinforce_plus_plus":
            return whiten(R, lengths, self.response_length)
        if self.estimator == "grpo_passk":
            _check_pairs(codes)
        of_group = {
            "grpo": lambda r, _: _normalised(r, norm=self.norm_adv_by_std_in_grpo),
            "grpo_passk": lambda r, _: _lead(r, norm=self.norm_adv_by_std_in_grpo),
            "rloo": lambda r, _: r if len(r) == 1 else r * len(r) / (len(r) - 1) - r.mean() * len(r) / (len(r) - 1),
            "opo": lambda r, n: r if len(r) == 1 else r - (n * r).sum() / n.sum(),
        }.get(self.estimator, lambda r, _: r if len(r) == 1 else r - r.mean())
        A = by_groups(of_group, R, lengths, codes)
        if self.estimator == "gpg":
            return len(R) / torch.count_nonzero(R).clamp(min=1) * A
        return whiten(A, lengths, self.response_length) if self.estimator in WHITENED else A


@register("advantage")
@dataclass(frozen=True)
class VerlGDPO(_InSteps):
    """verl 0.9.1's `gdpo`: its grpo of each part, their sum whitened over the batch's tokens, in fp32.

    Parameters
    ----------
    gdpo_reward_keys : tuple of str
        The parts, by their name in `reward_parts`.
    gdpo_reward_weights : tuple of float or None
        One a part; None is 1 each.
    response_length : int or None
        As `VerlAdvantage`.

    Raises
    ------
    InputError
        `bad_parameter`; when run, for a part that is not there.

    Notes
    -----
    `norm_adv_by_std_in_grpo` does not reach it in verl: the std always divides. A part that is null in a row is an
    error; in verl it is NaN in its group, and in the whole batch.
    """

    gdpo_reward_keys: tuple[str, ...]
    gdpo_reward_weights: tuple[float, ...] | None = None
    response_length: int | None = None
    reads: ClassVar[frozenset[str]] = frozenset({"reward_parts", "response_len"})
    signal: ClassVar[Literal["batch"]] = "batch"
    scope: ClassVar[Literal["batch"]] = "batch"
    example: ClassVar[Mapping[str, Any]] = {"gdpo_reward_keys": ("format", "answer")}
    equation: ClassVar[str] = (
        "A = (x − mean) / √(var + 1e-8) over the batch's tokens, x = Σ_k w_k (R_k − mean_k) / (std_k + 1e-6) over the "
        "group, in fp32"
    )

    def __post_init__(self) -> None:
        keys: Any = self.gdpo_reward_keys
        if not isinstance(keys, tuple | list) or not keys or not all(isinstance(key, str) for key in keys):
            expected = "the names of one part or more"
            raise error("bad_parameter", owner="VerlGDPO", name="gdpo_reward_keys", given=keys, expected=expected)
        object.__setattr__(self, "gdpo_reward_keys", tuple(keys))
        object.__setattr__(self, "gdpo_reward_weights", weights_of(self, "gdpo_reward_weights"))
        weights = self.gdpo_reward_weights
        if weights is not None and len(weights) != len(keys):
            expected = f"{len(keys)} numbers, one a key"
            raise error("bad_parameter", owner="VerlGDPO", name="gdpo_reward_weights", given=weights, expected=expected)
        if self.response_length is not None:
            check_count(self, "response_length", at_least=1)

    def of_batch(self, rewards: NDArray[np.float32], codes: NDArray[Any], columns: Mapping[str, Any]) -> Tensor:
        import numpy as np
        import torch

        lengths = torch.from_numpy(np.array(columns["response_len"], np.int64))
        weights = torch.tensor(self.gdpo_reward_weights or (1.0,) * len(self.gdpo_reward_keys), dtype=torch.float32)
        x: Any = 0.0
        for key, weight in zip(self.gdpo_reward_keys, weights, strict=True):
            if key not in columns["reward_parts"]:
                expected = "names of parts that are there: " + ", ".join(columns["reward_parts"])
                raise error("bad_parameter", owner="VerlGDPO", name="gdpo_reward_keys", given=key, expected=expected)
            part = torch.from_numpy(np.asarray(columns["reward_parts"][key], np.float32))
            x = x + weight * by_groups(lambda r, _: _normalised(r, norm=True), part, lengths, codes)
        whitened: Tensor = whiten(x, lengths, self.response_length)
        return whitened


def by_groups(of_group: Callable[[Tensor, Tensor], Tensor], R: Tensor, lengths: Tensor, codes: NDArray[Any]) -> Tensor:
    """A function of a group's rewards and lengths, of each group."""
    import numpy as np
    import torch

    out, order = torch.zeros_like(R), np.argsort(codes, kind="stable")
    for at in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        rows = torch.from_numpy(at)
        out[rows] = of_group(R[rows], lengths[rows])
    return out


def _normalised(r: Tensor, *, norm: bool) -> Tensor:
    """`compute_grpo_outcome_advantage` of a group."""
    import torch

    mean, std = (torch.mean(r), torch.std(r)) if len(r) > 1 else (torch.tensor(0.0), torch.tensor(1.0))
    return (r - mean) / (std + EPS) if norm else r - mean


def _lead(r: Tensor, *, norm: bool) -> Tensor:
    """`compute_grpo_passk_outcome_advantage` of a group."""
    import torch

    best, at = torch.topk(r, 2)
    lead = best[0] - best[1]
    out = torch.zeros_like(r)
    out[at[0]] = lead / (torch.std(r) + EPS) if norm else lead
    return out


def _check_pairs(codes: NDArray[Any]) -> None:
    """Refuses a group of one, as verl does."""
    import numpy as np

    _, first, sizes = np.unique(codes, return_index=True, return_counts=True)
    if (sizes < 2).any():
        row = int(first[sizes < 2].min())
        raise error(
            "too_few_attempts", group=int(np.argsort(np.argsort(first))[first == row][0]), row=row, attempts=1, k=2
        )


def _sums(x: Tensor, codes: Tensor, n: int) -> Tensor:
    return x.new_zeros(n).index_add_(0, codes, x)


def _vectorized(R: Tensor, of_row: NDArray[Any]) -> Tensor:
    """`group_mean_std` with eps = 0, which adds a group's rewards in the order of the rows."""
    import numpy as np
    import torch

    codes = torch.from_numpy(np.unique(of_row, return_inverse=True)[1])
    n = int(codes.max()) + 1
    count = _sums(torch.ones_like(R), codes, n)
    mean = _sums(R, codes, n) / count
    var = _sums((R - mean[codes]) ** 2, codes, n) / (count - 1).clamp_min(1.0)
    alone = count <= 1
    mean, std = torch.where(alone, 0.0, mean), torch.where(alone, 1.0, torch.sqrt(var))
    return (R - mean[codes]) / (std[codes] + EPS)


def _leave_one_out(R: Tensor, of_row: NDArray[Any]) -> Tensor:
    """`compute_rloo_vectorized_outcome_advantage`."""
    import numpy as np
    import torch

    codes = torch.from_numpy(np.unique(of_row, return_inverse=True)[1])
    c = torch.bincount(codes)[codes].to(R.dtype)
    total = torch.bincount(codes, weights=R)[codes]
    return ((c * R - total) / (c - 1).clamp_min(1)) * (c > 1)


def whiten(x: Tensor, lengths: Tensor, width: int | None) -> Tensor:
    """The `masked_whiten` of each row's number at each of its tokens, over the padded (N, width)."""
    import torch

    widest = max(int(lengths.max()), 1)
    if width is not None and width < widest:
        expected = f"{widest} or more, the batch's longest response"
        raise error("bad_parameter", owner="the stage", name="response_length", given=width, expected=expected)
    mask = torch.arange(width or widest) < lengths[:, None]
    count = mask.sum()
    if count < 2:
        expected = "two tokens or more in the batch, since verl's variance divides by one less"
        raise error("bad_parameter", owner="masked_whiten", name="response_len", given=int(count), expected=expected)
    at = torch.where(mask, x[:, None], 0.0)
    mean = at.sum() / (count + 1e-8)
    var = torch.where(mask, (at - mean) ** 2, 0.0).sum() / (count + 1e-8) * (count / (count - 1))
    return (x - mean) * torch.rsqrt(var + 1e-8)


def _part(column: Any, at: NDArray[np.int64]) -> Any:
    """A column's, or each part's, values in some rows."""
    return {name: x[at] for name, x in column.items()} if isinstance(column, dict) else column[at]
