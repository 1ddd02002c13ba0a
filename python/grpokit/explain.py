"""What a recipe is, as a text: its stages, its equation and gradient, every number's source, and what they amount to.

In: a `Recipe`. Out: lines for a terminal; `docs/algorithms.md` is made of the same parts.
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING

from ._recipe import ORDER
from .stages import Correct, Objective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._recipe import Recipe, Term
    from .stages import Stage


def explain(recipe: Recipe) -> str:
    """The whole text; see `Recipe.explain`."""
    lines = [f"{recipe.name}: {'; '.join(recipe.papers) or 'no paper given'}", ""]
    if recipe.experimental:
        lines[1:] = [*_prose("Experimental", [recipe.experimental]), ""]
    for label, stage, known in labelled(recipe):
        lines.append(f"  {label:<10} {type(stage).__name__:<14} {stage.equation}")
        if isinstance(stage, Objective) and stage.gradient:
            lines.append(f"  {'':<10} {'':<14} {stage.gradient}")
        if isinstance(stage, Correct):
            lines.append(f"  {'':<10} {'':<14} made {made(stage)}")
        lines += [f"  {'':<10}   {f'{name} = {value}':<20} {where}" for name, value, where in known]
    lines += ["", f"  {equation(recipe)}", *(f"  {line}" for line in symbols(recipe))]
    if recipe.dropped == "in_ratio":
        lines.append("  a token with the weight 0 has no share of its own and stays in the ratio of its sequence")
    lines.append(
        f"  r = π / π_{recipe.ratio}, A constant, over the live tokens t; the denominators are the whole batch's"
    )
    lines += _prose("What the numbers amount to", facts(recipe))
    lines += _prose("Elsewhere", [f"{library}: {what}" for library, what in recipe.elsewhere])
    lines += _prose("Left out", [recipe.leaves_out] if recipe.leaves_out else [])
    return "\n".join(lines)


def _prose(head: str, sentences: list[str]) -> list[str]:
    """Sentences under a head, wrapped for a terminal."""
    if not sentences:
        return []
    wrap = textwrap.TextWrapper(110, initial_indent="    ", subsequent_indent="      ", break_long_words=False)
    return ["", f"  {head}:", *(line for sentence in sentences for line in wrap.wrap(sentence))]


CONSTANTS = frozenset({"old_logps", "rollout_logps", "ref_logps", "advantages", "off_policy"})


def made(stage: Correct) -> str:
    """When a weight is made, which follows from what it reads and its scope."""
    if stage.reads <= CONSTANTS:
        return "once a step, before its first update"
    if stage.scope == "batch":
        return "in a first pass over the whole step (grpokit.loss.observe)"
    return "in each forward pass"


Numbers = list[tuple[str, str, str]]


def labelled(recipe: Recipe) -> Iterator[tuple[str, Stage, Numbers]]:
    """Every stage with the name of its field and its numbers, in the order in which the data flows; then further terms.

    A number is its name, its value, and where the value is from.
    """
    for label in ORDER:
        yield from ((label, stage, _numbers(recipe, label, stage)) for stage in recipe.stages(label))
    for term in recipe.extra:
        scale = ("scale", repr(term.scale), dict(recipe.sources).get("extra.scale", "given"))
        yield "extra", term.objective, [*_numbers(recipe, "extra", term.objective), scale]
        yield from (("weigh", weight, _numbers(recipe, "weigh", weight)) for weight in term.weigh)
        yield "over", term.aggregate, _numbers(recipe, "over", term.aggregate)


def _numbers(recipe: Recipe, label: str, stage: Stage) -> Numbers:
    sources, found = dict(recipe.sources), []
    for field in dataclasses.fields(stage):  # type: ignore[arg-type]
        value = getattr(stage, field.name)
        own = stage.sources.get(field.name, "given") if value == field.default else "given"
        found.append(
            (field.name, repr(value), sources.get(f"{label}.{field.name}", "not used" if value is None else own))
        )
    return found


def facts(recipe: Recipe) -> list[str]:
    """What the stages say of their numbers, each sentence once.

    What an advantage says is about the plain policy gradient, and is left out where the objective is another.
    """
    other = recipe.objective.breaks.keys() & {"homogeneous", "on_policy"}
    shown = [stage for label, stage, _ in labelled(recipe) if label != "advantage" or not other]
    return list(dict.fromkeys(fact for stage in shown for fact in stage.facts))


def equation(recipe: Recipe) -> str:
    """LOSS in one line."""
    return "LOSS = " + " + ".join(_term(term) for term in recipe.terms)


def symbols(recipe: Recipe) -> list[str]:
    """What the symbols of `equation` stand for, beyond r and A."""
    found = [term.objective.where for term in recipe.terms if term.objective.where]
    if any(term.aggregate.over == "kept" for term in recipe.terms):
        found.append("kept: the tokens whose weight is not 0, and the answers that have any")
    return list(dict.fromkeys(found))


def _term(term: Term) -> str:
    scale = "" if term.scale == 1 else f"{term.scale:g} · "
    weights = "" if term.objective.folds else "".join(f"{type(w).__name__}_t · " for w in term.weigh)
    return f"{scale}Σ_t {weights}[{term.objective.equation}] / ({term.aggregate.equation})"
