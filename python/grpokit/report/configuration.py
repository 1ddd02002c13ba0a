"""What a run was configured with: what differs from the default, and from another run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpokit.errors import GrpokitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A configuration has about eighty; more are no configuration of ours.
MOST = 300


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """By ``table.key``.

    Examples
    --------
    >>> flat({"seed": 1, "task": {"name": "sorting"}})
    {'seed': 1, 'task.name': 'sorting'}
    """
    return dict(_walk("", config))


def settings(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each value with its default and whether they differ; ``default`` is None where there is no such option here."""
    defaults = _defaults(config)
    rows = []
    for name, value in list(flat(config).items())[:MOST]:
        default = defaults.get(name)
        rows.append({"name": name, "value": value, "default": default, "changed": bool(defaults) and value != default})
    return rows


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where two configurations differ: a name, the first's value and the second's, None where one has none."""
    a, b = flat(first), flat(second)
    names = [name for name in a | b if a.get(name) != b.get(name)]
    return [{"name": name, "first": a.get(name), "second": b.get(name)} for name in names[:MOST]]


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the trainer; the recipe's parameters are those of the run's recipe."""
    from grpokit.trainer.config import TrainConfig

    defaults = TrainConfig().resolve().to_dict()
    try:
        own = TrainConfig.from_dict({name: config[name] for name in ("recipe", "max_completion_length")}).resolve()
        defaults["recipe_parameters"] = own.recipe_parameters
    except (GrpokitError, KeyError, TypeError):
        pass  # a recipe without defaults, or of another version: its parameters have none
    if config.get("model"):
        defaults["warm_start"]["steps"] = 0
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat(defaults).items()}


def _walk(table: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _walk(f"{table}{name}.", value)
        else:
            yield f"{table}{name}", value
