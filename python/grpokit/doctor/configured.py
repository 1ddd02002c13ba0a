"""What a record's configuration says: the recipe, and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpokit.errors import GrpokitError

if TYPE_CHECKING:
    from grpokit import Recipe
    from grpokit.record import Record

# Their advantage is no comparison within a group: one answer a prompt is what they are for.
WITHOUT_GROUPS = ("Given", "GreedyBaseline")


def recipe_of(record: Record) -> Recipe | None:
    """The recipe of a run of ours; None where there is no configuration, or it names none that is known."""
    from grpokit import recipe

    config = record.config or {}
    name, parameters = config.get("recipe"), config.get("recipe_parameters") or {}
    if not isinstance(name, str):
        return None
    length = config.get("max_completion_length")
    # `max_len` is the run's own length unless it is given.
    for more in ({}, {"max_len": length}):
        try:
            return recipe(name, **more | parameters)
        except (GrpokitError, TypeError):
            continue
    return None


def whole(record: Record, name: str) -> int | None:
    """A whole number of the configuration, or None."""
    value: Any = (record.config or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def compares_groups(record: Record) -> bool | None:
    """Whether the recipe's advantage compares a group's answers; None where the recipe is not known."""
    recipe = recipe_of(record)
    if recipe is None:
        return None
    advantage = recipe.advantage
    if type(advantage).__name__ == "GlobalNorm":
        return getattr(advantage, "baseline", None) == "group"
    return type(advantage).__name__ not in WITHOUT_GROUPS


def is_stale(record: Record) -> bool:
    """Whether rows are sampled with older weights than those that learn, on purpose."""
    if record.config is not None and record.config.get("async_level"):
        return True
    return record.metrics is not None and bool((record.metrics.there("staleness/steps")[1] > 0).any())
