"""The one equation: LOSS = Σ_k scale_k · Σ_t c_kt · w_kt · value_kt, over the live tokens t.

In: a `TokenBatch`, a recipe and the current policy's columns. Out: the `Coefficients`, each token's loss and
∂LOSS/∂column, which is all that the model ever sees of an algorithm.

value_kt is an objective's, the only thing with a gradient; w_kt is the product of the term's weights, and 0 drops the
token from the term; c_kt is one over an aggregate's denominator, which belongs to the whole optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import error
from .ranks import Declared, Ranks
from .tokens import ALWAYS, Normalizer, Segments, Tokens, missing, sum_segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ._recipe import Recipe, Term
    from .batch import TokenBatch
    from .stages import Correct, Stage


@dataclass(frozen=True)
class Coefficients:
    """What a recipe makes of the current policy, of T live tokens.

    Attributes
    ----------
    loss : (T,)
        Each token's contribution to LOSS.
    gradients : dict of (T,)
        ∂LOSS/∂column for each current column: g for ``logps``, h for ``entropies``.
    policy : (T,)
        The policy term's own share of g; 0 where its gate is closed.
    weights : (T,)
        The policy term's weights.
    dropped : dict of (T,) bool
        By the name of each of its corrections: the tokens that it gives the weight 0.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    policy: Tensor
    weights: Tensor
    dropped: dict[str, Tensor]

    def part(self, at: slice) -> Coefficients:
        """Those of some of the tokens."""
        gradients = {name: x[at] for name, x in self.gradients.items()}
        dropped = {name: x[at] for name, x in self.dropped.items()}
        return Coefficients(self.loss[at], gradients, self.policy[at], self.weights[at], dropped)

    @classmethod
    def joined(cls, parts: Sequence[Coefficients]) -> Coefficients:
        """Those of several parts, one after the other."""
        first = parts[0]
        return cls(
            torch.cat([x.loss for x in parts]),
            {name: torch.cat([x.gradients[name] for x in parts]) for name in first.gradients},
            torch.cat([x.policy for x in parts]),
            torch.cat([x.weights for x in parts]),
            {name: torch.cat([x.dropped[name] for x in parts]) for name in first.dropped},
        )


def coefficients(batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor]) -> Coefficients:
    """Each token's loss and its derivative by each current column.

    Parameters
    ----------
    batch : TokenBatch
        The constants; a part is enough unless it `needs_first_pass`.
    recipe : Recipe
        Its stages 5 to 7.
    current : dict of (T,) float tensors
        The current policy on the live tokens: ``logps``, and ``entropies``, ... where the recipe reads them.

    Returns
    -------
    Coefficients

    Raises
    ------
    InputError
        `missing_token_column`, `undeclared_column`, `stage_result`.
    StateError
        `not_observed`: the recipe needs the whole batch, and this is a part of it.

    Examples
    --------
    >>> import grpokit as gk
    >>> batch = gk.TokenBatch(targets=torch.tensor([[4, 2]]), advantages=torch.tensor([1.0]))
    >>> coefficients(batch, gk.recipe("rloo"), {"logps": torch.tensor([-1.0, -2.0])}).gradients["logps"]
    tensor([-1., -1.])
    """
    if needs_first_pass(batch, recipe):
        raise error("not_observed", recipe=f"recipe {recipe.name!r}")
    _check_reads(batch, recipe, current)
    with torch.enable_grad():
        leaves = {name: x.detach().requires_grad_() for name, x in current.items()}
        # The policy term reads through views of the leaves: one backward pass then yields its own share as well.
        views = {name: x.view_as(x) for name, x in leaves.items()}
        policy, *extra = recipe.terms
        loss, settled = _contribution(batch, policy, batch.tokens(recipe, views))
        tokens = batch.tokens(recipe, leaves)
        for term in extra:
            loss = loss + _contribution(batch, term, tokens)[0]
        wanted = [*leaves.values(), views["logps"]]
        *gradients, share = torch.autograd.grad(loss.sum(), wanted, materialize_grads=True)
    weights = settled.weights.to(loss.dtype)
    return Coefficients(loss.detach(), dict(zip(leaves, gradients, strict=True)), share, weights, settled.dropped)


def needs_first_pass(batch: TokenBatch, recipe: Recipe) -> bool:
    """Whether this is a part, and the recipe needs the current policy on the whole batch."""
    return batch.rows != batch.whole.rows and batch.needs_whole(recipe)


@dataclass(frozen=True)
class _Settled:
    """A term's weights, who dropped what, one over its denominators, and what is left (None: all); of any scale."""

    weights: Tensor
    dropped: dict[str, Tensor]
    share: Tensor
    kept: Segments | None

    def part(self, batch: TokenBatch) -> _Settled:
        """What a part of the batch has of it."""
        dropped = {name: x[batch.at] for name, x in self.dropped.items()}
        kept = self.kept
        if kept is not None:
            kept = kept.part(batch.rows.start, batch.rows.stop, batch.at.start)
        return _Settled(self.weights[batch.at], dropped, self.share[batch.at], kept)


def _contribution(batch: TokenBatch, term: Term, tokens: Tokens) -> tuple[Tensor, _Settled]:
    """Each token's contribution of one term, as a graph over the current columns, and what the term settled."""
    with torch.no_grad():
        settled = _settle_part(batch, term, tokens)
        dtype = tokens.logps.dtype
        weights, share = settled.weights.to(dtype), (term.scale * settled.share).to(dtype)
        factor = share if term.objective.folds or not term.weigh else share * weights
        if term.dropped == "in_ratio" and settled.kept is not None:
            # Its own share is 0, while its log-prob stays in the sums over its sequence.
            factor = torch.where(weights == 0, 0.0, factor)
            settled = replace(settled, kept=None)
    left = tokens.only(settled.kept, weight=weights, factor=factor)
    value = term.objective.value(left.shown_to(term.objective))
    _check_result(term.objective, value, left.factor)
    if not value.requires_grad:
        expected = "one that depends on the current policy's columns"
        raise error(
            "stage_result", stage=type(term.objective).__name__, given="a value without gradient", expected=expected
        )
    contribution = left.factor * value
    if settled.kept is not None:
        contribution = contribution.new_zeros(len(weights)).index_copy(0, settled.kept.index, contribution)
    return contribution, settled


def settle(whole: TokenBatch, term: Term) -> _Settled:
    """What of a term does not change with the policy: the whole batch's, made once."""
    key = _key(term)
    if key not in whole.settled:
        if whole.ranks is not None:
            raise error("not_synchronized", objective=type(term.objective).__name__, aggregate=term.aggregate)
        whole.settled[key] = _early(whole, term)
    found: _Settled = whole.settled[key]
    return found


def _settle_part(batch: TokenBatch, term: Term, tokens: Tokens) -> _Settled:
    """What does not change with the policy is settled; the rest is made of `tokens`."""
    whole, late = batch.whole, batch.late(term)
    found = settle(whole, term)
    if batch is not whole:
        found = found.part(batch)
    if not late:
        return found
    weights, dropped = _weigh(found.weights, found.dropped, late, tokens, whole.ranks)
    if term.aggregate.over == "kept":
        return _shared(term, weights, dropped, tokens, whole.ranks)
    return _Settled(weights, dropped, found.share, _left(term, weights, tokens))


def synchronize(batch: TokenBatch, recipe: Recipe, group: Any, *, average: bool) -> None:
    """Settles the recipe's denominators over the ranks of a process group; see `TokenBatch.synchronize`."""
    whole = batch.whole
    for term in recipe.terms:
        if term.objective.scope == "batch":
            raise error("not_across_ranks", recipe=recipe.name, stage=type(term.objective).__name__)
    for stage in (stage for term in recipe.terms for stage in term.weigh):
        if stage.draws and not whole.has_rollout_ids:
            raise missing("rollout_ids", type(stage).__name__, [name for name in whole.columns if name not in ALWAYS])
    whole.ranks = Ranks(group, average)
    # What was observed before knew the denominators of this rank alone.
    whole.observed.clear()
    whole.ready.clear()
    for term in recipe.terms:
        whole.settled[_key(term)] = _early(whole, term)


def declare(batch: TokenBatch, recipe: Recipe, counts: Normalizer, ranks: int) -> None:
    """Settles the recipe's denominators by counts that the caller knows: the rest of the step is elsewhere.

    The recipe may look at nothing of the whole step but these counts, so no weight of it has batch scope and no
    denominator is over what is kept.
    """
    whole = batch.whole
    whole.ranks = Declared(None, average=True, counts=counts, ranks=ranks)
    for term in recipe.terms:
        whole.settled[_key(term)] = _early(whole, term)


def _early(whole: TokenBatch, term: Term) -> _Settled:
    """The weights of the stages that read constants alone, over the whole batch."""
    constants = Tokens(whole.columns, whole.live.lengths)
    ones, late = torch.ones_like(whole.columns["length"], dtype=torch.float64), whole.late(term)
    stages = [stage for stage in term.weigh if stage not in late]
    return _shared(term, *_weigh(ones, {}, stages, constants, whole.ranks), constants, whole.ranks)


def _weigh(
    weights: Tensor, dropped: dict[str, Tensor], stages: Iterable[Correct], tokens: Tokens, ranks: Ranks | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weights so far times those of the stages, and who dropped what."""
    dropped = dict(dropped)
    for stage in stages:
        if ranks is not None and stage.scope == "batch":
            # A rank is one more part: each computes the whole batch's weights, and takes its own.
            everywhere, own = ranks.gather(tokens, stage)
            weight = stage.weight(everywhere.shown_to(stage))
            _check_result(stage, weight, everywhere.length)
            weight = weight[own]
        else:
            weight = stage.weight(tokens.shown_to(stage))
            _check_result(stage, weight, weights)
        name = type(stage).__name__
        dropped[name] = dropped[name] | (weight == 0) if name in dropped else weight == 0
        weights = weights * weight
    return weights, dropped


def _shared(term: Term, weights: Tensor, dropped: dict[str, Tensor], tokens: Tokens, ranks: Ranks | None) -> _Settled:
    """The denominators that these weights leave, over all ranks."""
    over, lengths = term.aggregate.over, tokens.length
    counts, factor = Normalizer.of(weights, tokens.lengths, over), 1
    if ranks is not None:
        counts, factor = ranks.add(counts), ranks.factor
    if over == "kept":
        kept_S = sum_segments(weights != 0, tokens.lengths)
        lengths = kept_S.repeat_interleave(tokens.lengths, output_size=len(weights))
    # A denominator is 0 only for tokens that are not kept, and nothing reads those.
    share = factor / term.aggregate.denominator(counts, lengths.double())
    return _Settled(weights, dropped, share, _left(term, weights, tokens))


def _left(term: Term, weights: Tensor, tokens: Tokens) -> Segments | None:
    """The tokens that the weights leave; None is all, which is not asked of the device where there is no weight."""
    there = weights != 0
    return None if not term.weigh or bool(there.all()) else Segments.of(there, tokens.lengths)


def _key(term: Term) -> Any:
    """What a term settles by: its scale may change from step to step, and its objective has no part in it."""
    return term.weigh, term.aggregate


def _check_reads(batch: TokenBatch, recipe: Recipe, current: Mapping[str, Tensor]) -> None:
    base = f"{recipe.ratio}_logps"
    known = {*batch.columns, *current, "old_logps", "weight"}
    for term in recipe.terms:
        for stage in (term.objective, *term.weigh):
            needed = {base if column == "log_ratio" else column for column in stage.reads}
            for column in sorted(needed - known):
                raise missing(column, type(stage).__name__, [*batch.columns, *current])


def _check_result(stage: Stage, result: object, like: Tensor) -> None:
    if not isinstance(result, Tensor) or result.shape != like.shape or result.device != like.device:
        given = f"shape {tuple(result.shape)} on {result.device}" if isinstance(result, Tensor) else type(result)
        expected = f"a tensor of shape {tuple(like.shape)} on {like.device}, one value per token"
        raise error("stage_result", stage=type(stage).__name__, given=given, expected=expected)
