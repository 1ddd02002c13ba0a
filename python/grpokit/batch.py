"""One optimizer step's constants for the loss: targets, masks, advantages, the log-probs of other policies.

In: the caller's layout, padded (B, T) or packed (T,). Out: columns of live tokens, and `split` into micro-batches
that keep the whole in reach, so that a denominator or a batch-wide statistic never depends on how the step is cut.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._recipe import check_recipe
from .errors import error
from .objective.columns import stop
from .parameters import check_number
from .tokens import Segments, Tokens

if TYPE_CHECKING:
    from ._recipe import Recipe, Term
    from .ranks import Ranks
    from .stages import Correct

LOGPS = ("old_logps", "rollout_logps", "ref_logps")
PER_PLACE = ("targets", "logps", "entropies", *LOGPS)
RESERVED = ("logps", "entropies", "log_ratio", "weight", "length", "lengths", "position")


class TokenBatch:
    """One optimizer step's constants, padded (B, T) or packed (T,); S is the number of sequences.

    Parameters
    ----------
    targets : (B, T) or (T,) int
        Token ids. ``logits[t]`` predicts ``targets[t]``: the caller has shifted them.
    mask : same shape, bool or 0/1, optional
        The live tokens, those that are trained on. None: all.
    cu_seqlens : (S + 1,) int, optional
        Packed only: where each sequence starts, and the end.
    advantages : (S,) or per place, float, optional
        A.
    old_logps : per place, float, optional
        log π_old, recomputed by the trainer before the first update. None: on-policy, the current ones as constants.
    rollout_logps, ref_logps : per place, float, optional
        log π of the sampler and of the reference policy.
    temperature : float
        What the logits are divided by; that of the rollouts.
    step : int
        The training step, for stages that make random choices.
    rollout_ids : (S,) int, optional
        A number for each rollout that no order of rows changes. Default: the row's number.
    inputs : tensor or dict of tensors, optional
        The model's inputs, cut along the first dimension like the rest: `part.inputs`.
    **constants
        Further columns that the recipe reads: per place, per sequence, or one number.

    Attributes
    ----------
    shape : torch.Size
        Of the layout: (B, T) or (T,).
    live : Segments
        The live tokens in it.
    columns : dict of (T,) tensors
        The constants of the live tokens, fp32 or wider where they are floats.
    rows, span : slice
        The sequences, and the part of the layout's first dimension, that this is of the whole.
    whole : TokenBatch
        What this is a part of; itself if it is none.

    Raises
    ------
    InputError
        `token_shape`, `ambiguous_column`, `bad_cu_seqlens`, `bad_parameter`, `reserved_column`.
    InputTypeError
        `token_type`.

    Notes
    -----
    Denominators count this process's batch. With several ranks `synchronize` makes them those of all; without it each
    rank's batch weighs the same, whatever it holds.

    Examples
    --------
    >>> batch = TokenBatch(
    ...     targets=torch.tensor([[3, 1, 0], [2, 2, 2]]),
    ...     mask=torch.tensor([[1, 1, 0], [1, 1, 1]]),
    ...     advantages=torch.tensor([0.5, -0.5]),
    ... )
    >>> batch.columns["advantages"]
    tensor([ 0.5000,  0.5000, -0.5000, -0.5000, -0.5000])
    >>> [part.live.lengths.tolist() for part in batch.split(max_tokens=3)]
    [[2], [3]]
    """

    def __init__(
        self,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        advantages: Any = None,
        old_logps: Any = None,
        rollout_logps: Any = None,
        ref_logps: Any = None,
        temperature: float = 1.0,
        step: int = 0,
        rollout_ids: Any = None,
        inputs: Tensor | Mapping[str, Tensor] | None = None,
        **constants: Any,
    ) -> None:
        self.shape, self.device = _layout(targets, cu_seqlens), targets.device
        self.temperature = temperature
        check_number(self, "temperature", more_than=0)
        places = _place_lengths(targets, cu_seqlens)
        self._bounds = [0, *places.cumsum(0).tolist()]
        self.live = Segments.of(_mask(targets, mask), places)
        self.rows, self.span, self.whole = slice(0, len(places)), slice(0, self.shape[0]), self
        self._inputs = _inputs(inputs, self.shape[0])
        self.columns = {"targets": self.column("targets", targets).long()}
        self.target_range = tuple(map(int, self.columns["targets"].aminmax())) if self.live_tokens else (0, 0)
        constants |= {"advantages": advantages, "old_logps": old_logps, "rollout_logps": rollout_logps}
        constants |= {"ref_logps": ref_logps, "rollout_ids": rollout_ids, "step": step}
        for name, x in constants.items():
            if reserved(name):
                raise error("reserved_column", column=name, where="to a TokenBatch")
            if x is not None:
                self.columns[name] = self.column(name, _constant(name, x, self.device))
        starts = self.live.lengths.cumsum(0) - self.live.lengths
        self.columns["length"] = self._repeat(self.live.lengths)
        self.columns["position"] = torch.arange(self.live_tokens, device=self.device) - self._repeat(starts)
        self.has_rollout_ids = "rollout_ids" in self.columns
        self.columns.setdefault("rollout_ids", self._repeat(torch.arange(len(places), device=self.device)))
        # What the loss remembers of the whole: settled weights and denominators, and a first pass.
        self.settled: dict[Any, Any] = {}
        self.ranks: Ranks | None = None
        self.observed: dict[Any, Any] = {}
        self.ready: dict[Any, Any] = {}

    def __repr__(self) -> str:
        layout = "x".join(map(str, self.shape))
        sizes = f"{len(self.live.lengths)} sequences, {self.live_tokens} live tokens"
        return f"TokenBatch({layout}, {sizes}, {sorted(self.columns)})"

    @property
    def live_tokens(self) -> int:
        """T, the number of live tokens."""
        return len(self.live.index)

    @property
    def inputs(self) -> Any:
        """What `inputs` was, of these sequences."""
        if isinstance(self._inputs, dict):
            return {name: x[self.span] for name, x in self._inputs.items()}
        return None if self._inputs is None else self._inputs[self.span]

    @property
    def at(self) -> slice:
        """The live tokens that this is of the whole's."""
        starts = self.whole.live.starts
        return slice(starts[self.rows.start], starts[self.rows.stop])

    def column(self, name: str, x: Tensor) -> Tensor:
        """The live tokens of a column.

        Parameters
        ----------
        name : str
            For the message of an error.
        x : tensor
            Per place, of shape `shape`; per sequence, (S,); or one number.

        Returns
        -------
        (T,) tensor
            fp32 or wider if it is a float.

        Raises
        ------
        InputError
            `token_shape`, or `ambiguous_column` where the shape does not tell place from sequence.
        """
        sequences = len(self.live.lengths)
        if x.shape == self.shape:
            if self.shape == (sequences,) and name not in PER_PLACE and self._has_empty():
                raise error("ambiguous_column", column=name, shape=tuple(x.shape))
            x = x.reshape(-1).index_select(0, self.live.index)
        elif name in PER_PLACE:
            raise error("token_shape", name=name, given=tuple(x.shape), expected=f"{tuple(self.shape)}, one per place")
        elif x.shape == (sequences,):
            x = self._repeat(x)
        elif x.dim() == 0:
            x = x.expand(self.live_tokens)
        else:
            expected = f"{tuple(self.shape)} (per place), ({sequences},) (per sequence) or a single number"
            raise error("token_shape", name=name, given=tuple(x.shape), expected=expected)
        return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x

    def split(self, max_tokens: int) -> list[TokenBatch]:
        """Parts of consecutive sequences; no sequence is cut.

        Parameters
        ----------
        max_tokens : int
            The places, padding included, that a part may have; a longer sequence is a part of its own.

        Returns
        -------
        list of TokenBatch
            At least one. Losses and gradients of the parts add up to the whole's.

        Raises
        ------
        InputError
            `bad_parameter`.
        """
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise error(
                "bad_parameter", owner="split", name="max_tokens", given=max_tokens, expected="an int, at least 1"
            )
        bounds, cuts = self.whole._bounds, [self.rows.start]
        for row in range(self.rows.start + 1, self.rows.stop):
            if bounds[row + 1] - bounds[cuts[-1]] > max_tokens:
                cuts.append(row)
        return [self.whole._part(a, b) for a, b in zip(cuts, [*cuts[1:], self.rows.stop], strict=True)]

    def synchronize(self, recipe: Recipe, group: Any = None, *, reduction: str = "mean") -> None:
        """Makes the recipe's denominators, and what is said of the whole batch, those of all ranks together.

        One all-reduce of two numbers a term. A weight of batch scope gathers the columns that it reads of all ranks,
        each time that it is made: at most once a step. Random choices take rollout ids that no two ranks share.

        Parameters
        ----------
        recipe : Recipe
            The one that the loss will be given; its coefficients may still change.
        group : torch.distributed.ProcessGroup, optional
            The ranks that share the optimizer step; all of them when not given. Each calls this once a step.
        reduction : {"mean", "sum"}
            What becomes of the ranks' gradients: averaged, as data parallel wrappers do, or added up. Either way the
            result is the gradient of the whole step in one process.

        Raises
        ------
        InputError
            `bad_parameter`; `not_across_ranks` where an objective, and not a weight, reads the whole batch;
            `missing_token_column` where a weight draws by lot and the batch has no `rollout_ids` of its own.
        """
        from .equation import synchronize

        check_recipe(recipe)
        if reduction not in ("mean", "sum"):
            expected = "'mean' or 'sum'"
            raise error("bad_parameter", owner="synchronize", name="reduction", given=reduction, expected=expected)
        synchronize(self, recipe, group, average=reduction == "mean")

    def tokens(self, recipe: Recipe, current: Mapping[str, Tensor]) -> Tokens:
        """The columns that the recipe's stages see, in the dtype of the current log-probs.

        Parameters
        ----------
        recipe : Recipe
            Its `ratio` says which policy `log_ratio` is taken against.
        current : dict of (T,) tensors
            Columns of the current policy, of live tokens: ``logps``, and ``entropies``, ... where they are known.
        """
        logps = current["logps"]
        columns = {name: x.to(logps.dtype) if x.is_floating_point() else x for name, x in self.columns.items()}
        columns = {"old_logps": stop(logps), **columns, **current}
        if f"{recipe.ratio}_logps" in columns:
            columns["log_ratio"] = logps - columns[f"{recipe.ratio}_logps"]
        return Tokens(columns, self.live.lengths)

    def late(self, term: Term) -> list[Correct]:
        """The term's weights that change with the policy: they read what is no constant of the batch."""
        return [stage for stage in term.weigh if stage.reads - self.columns.keys()]

    def needs_whole(self, recipe: Recipe) -> bool:
        """Whether the recipe must see the current policy on the whole batch before any gradient.

        Then `grpokit.loss.observe` is called on every part first.
        """
        check_recipe(recipe)
        return any(
            term.objective.scope == "batch"
            or any(stage.scope == "batch" or term.aggregate.over == "kept" for stage in self.late(term))
            for term in recipe.terms
        )

    def _part(self, first: int, last: int) -> TokenBatch:
        part, origin, end = copy.copy(self), self._bounds[first], self._bounds[last]
        part.rows = slice(first, last)
        part.span = slice(origin, end) if len(self.shape) == 1 else slice(first, last)
        part.shape = torch.Size((part.span.stop - part.span.start, *self.shape[1:]))
        part.live = self.live.part(first, last, origin)
        part.columns = {name: x[part.at] for name, x in self.columns.items()}
        return part

    def _repeat(self, x_S: Tensor) -> Tensor:
        return x_S.repeat_interleave(self.live.lengths, output_size=self.live_tokens)

    def _has_empty(self) -> bool:
        bounds = self.whole._bounds[self.rows.start : self.rows.stop + 1]
        return any(a == b for a, b in itertools.pairwise(bounds))


def reserved(name: str) -> bool:
    """Whether a column cannot be called that, since the library makes it or `Tokens` has a method of that name."""
    return name in RESERVED or name.startswith("_") or hasattr(Tokens, name)


def _layout(targets: Tensor, cu_seqlens: Any) -> torch.Size:
    if not isinstance(targets, Tensor) or targets.dtype not in (torch.int64, torch.int32):
        given = targets.dtype if isinstance(targets, Tensor) else type(targets)
        raise error("token_type", name="targets", given=given, expected="a tensor of token ids, int64 or int32")
    if targets.dim() != (2 if cu_seqlens is None else 1):
        expected = "(B, T); packed targets, (T,), need cu_seqlens" if cu_seqlens is None else "(T,), with cu_seqlens"
        raise error("token_shape", name="targets", given=tuple(targets.shape), expected=expected)
    return targets.shape


def _place_lengths(targets: Tensor, cu_seqlens: Any) -> Tensor:
    if cu_seqlens is None:
        return torch.full((len(targets),), targets.shape[1], device=targets.device)
    offsets = _tensor("cu_seqlens", cu_seqlens, targets.device)
    if offsets.dim() == 1 and len(offsets) and offsets.dtype in (torch.int64, torch.int32):
        lengths = offsets.long().diff()
        if offsets[0] == 0 and offsets[-1] == len(targets) and not (lengths < 0).any():
            return lengths
    given = f"{offsets.dtype} of shape {tuple(offsets.shape)}: {offsets.flatten()[:8].tolist()} ..."
    raise error("bad_cu_seqlens", given=given, places=len(targets))


def _mask(targets: Tensor, mask: Any) -> Tensor:
    if mask is None:
        return torch.ones(targets.numel(), dtype=torch.bool, device=targets.device)
    there = _tensor("mask", mask, targets.device)
    if there.shape != targets.shape:
        expected = f"{tuple(targets.shape)}, that of targets"
        raise error("token_shape", name="mask", given=tuple(there.shape), expected=expected)
    return there.reshape(-1) != 0


def _constant(name: str, given: Any, device: torch.device) -> Tensor:
    x = _tensor(name, given, device)
    if x.requires_grad:
        expected = "a constant: detach it, or hand it over with the call of the loss"
        raise error("token_type", name=name, given="a tensor that requires grad", expected=expected)
    if name in LOGPS and not x.is_floating_point():
        raise error("token_type", name=name, given=x.dtype, expected="floats")
    if name in ("rollout_ids", "step") and (x.is_floating_point() or x.dtype == torch.bool):
        raise error("token_type", name=name, given=x.dtype, expected="whole numbers")
    if name == "rollout_ids" and x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        # Hashes, often: torch computes with none of these. The bits are what matters.
        x = x.view(torch.int64) if x.dtype == torch.uint64 else x.long()
    return x


def _tensor(name: str, given: Any, device: torch.device) -> Tensor:
    """A tensor where the batch is; arrays, lists and numbers are brought there, a tensor must be."""
    try:
        x = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given)).to(device)
    except (TypeError, ValueError):
        raise error("token_type", name=name, given=type(given), expected="a tensor, an array or a number") from None
    if x.device != device:
        raise error("token_type", name=name, given=f"on {x.device}", expected=f"on {device}, like targets")
    if x.is_complex():
        raise error("token_type", name=name, given=x.dtype, expected="real numbers")
    return x


def _inputs(inputs: Any, size: int) -> Any:
    given = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs} if inputs is not None else {}
    for key, x in given.items():
        name = f"inputs[{key!r}]" if key else "inputs"
        if not isinstance(x, Tensor):
            raise error("token_type", name=name, given=type(x), expected="a tensor, or a dict of tensors")
        if x.dim() == 0 or len(x) != size:
            expected = f"{size} in its first dimension, like targets"
            raise error("token_shape", name=name, given=tuple(x.shape), expected=expected)
    return given if isinstance(inputs, Mapping) else inputs
