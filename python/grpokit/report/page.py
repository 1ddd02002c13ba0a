"""The report as one HTML file: no script, nothing that is fetched, every text of others escaped and made visible."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from grpokit.errors import error

from .numbers import told
from .plots import drawn
from .visible import line, visible

# What the page may weigh.
LARGEST = 1_000_000
SHOWN = ("suspicious", "best", "worst")


def to_html(content: dict[str, Any]) -> str:
    """The page.

    Parameters
    ----------
    content : dict
        What `content` gave.

    Raises
    ------
    InputError
        `missing_extra`: matplotlib and jinja2 are not there.
    """
    try:
        from jinja2 import DictLoader, Environment, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as missing:
        raise error("missing_extra", what="grpokit report", package=missing.name, extra="report") from None

    place = files(__package__)
    sources = {name: place.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css")}
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(told=told, value=_value, line=line)
    # Of our own: titles and descriptions in it are escaped.
    figures = [Markup(drawn(panel, f"figure{at}")) for at, panel in enumerate(content["panels"])]  # noqa: S704
    template = environment.get_template("page.html")
    panels, style = list(zip(content["panels"], figures, strict=True)), Markup(sources["page.css"])  # noqa: S704
    while True:
        page = template.render(report=content, panels=panels, style=style).encode("utf-8", "replace")
        runs = content["runs"]
        if len(page) <= LARGEST or not any(
            run["groups"] and any(run["groups"][kind] for kind in SHOWN) for run in runs
        ):
            return page.decode()
        content = content | {"runs": [_fewer(run) for run in runs]}


def _fewer(run: dict[str, Any]) -> dict[str, Any]:
    """The same without the last group of each kind."""
    groups = run["groups"]
    return run | {"groups": groups and groups | {kind: groups[kind][:-1] for kind in SHOWN}}


def _value(value: Any) -> str:
    """A setting as TOML has it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return line(f'"{value}"' if isinstance(value, str) else str(value))
