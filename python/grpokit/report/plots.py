"""The panels of a report as SVG that takes its colours from the page, so that it is right in light and in dark.

matplotlib draws, without pyplot and so without any state, into placeholders for colours; what it writes is the same for
the same numbers. The SVG goes into the page itself: no script, no font and no file is asked for.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import TYPE_CHECKING, Any

from grpokit.errors import error

from .numbers import told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 380, 200  # points; the page scales them
# A colour that matplotlib writes, and the page's that stands for it.
INK, QUIET, GRID, PAPER = "#0000f0", "#0000f1", "#0000f2", "#0000f3"
NAMES = {INK: "ink", QUIET: "quiet", GRID: "grid", PAPER: "paper"}
SERIES = [f"#0000e{at}" for at in range(6)]
VARIABLES = {**NAMES, **{colour: f"s{at}" for at, colour in enumerate(SERIES)}}
DASHES = ("solid", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 1)))
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "grpokit",
    "text.parse_math": False,
    "font.size": 11,
    "axes.linewidth": 0.8,
    "path.simplify_threshold": 0.3,
}


def drawn(panel: dict[str, Any], title_id: str) -> str:
    """A panel as SVG, with its title and its sentence as a text alternative.

    Parameters
    ----------
    panel : dict
        As `panels` and `histograms` make it.
    title_id : str
        Distinct in the page.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise error("missing_extra", what="grpokit report", package=missing.name, extra="report") from None

    with rc_context(STYLE), warnings.catch_warnings():
        # A name may have letters that matplotlib's own font lacks; the reader's has them.
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        {"lines": _lines, "stack": _stack, "bars": _bars}[panel["kind"]](figure, panel)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue().decode(), panel, title_id)


def _lines(figure: Figure, panel: dict[str, Any]) -> None:
    series = panel["series"]
    compared = panel["compared"]
    labels = [_label(one, compared) for one in series]
    axes = _axes(figure, labels)
    own = [0, 0]
    ends = []
    for at, (one, label) in enumerate(zip(series, labels, strict=True)):
        colour = SERIES[one["run"]] if compared else SERIES[at % len(SERIES)]
        dash = DASHES[own[one["run"]] % len(DASHES)] if compared else "solid"
        own[one["run"]] += 1
        steps, values = one["steps"], [math.nan if value is None else value for value in one["values"]]
        dots = "o" if panel["points"] or len(steps) == 1 else ""
        if "low" in one and panel["points"]:
            axes.vlines(steps, one["low"], one["high"], color=colour, linewidth=1)
        elif "low" in one:
            axes.fill_between(steps, one["low"], one["high"], color=colour, alpha=0.16, linewidth=0)
        width = 1.5 if len(steps) < 150 else 0.9
        axes.plot(steps, values, color=colour, linewidth=width, linestyle=dash, marker=dots, markersize=3.5)
        ends.append((values[-1], label, colour))
    _limits(axes, panel, _numbers(series))
    _end_labels(axes, ends)


def _stack(figure: Figure, panel: dict[str, Any]) -> None:
    series = panel["series"]
    axes = _axes(figure, [one["label"] for one in series])
    base = [0.0] * len(series[0]["steps"])
    ends = []
    for at, one in enumerate(series):
        top = [low + (value or 0.0) for low, value in zip(base, one["values"], strict=True)]
        colour = SERIES[at % len(SERIES)]
        if len(top) == 1:
            axes.bar(one["steps"], one["values"], bottom=base, color=colour, width=0.6)
        else:
            axes.fill_between(one["steps"], base, top, color=colour, alpha=0.85, linewidth=0.3, edgecolor=PAPER)
        ends.append(((base[-1] + top[-1]) / 2, one["label"], colour))
        base = top
    _limits(axes, panel, [0.0, max(base)])
    _end_labels(axes, ends)


def _bars(figure: Figure, panel: dict[str, Any]) -> None:
    """A column of horizontal bars for each step; bins are rows, the highest at the top."""
    bins, series = panel["bins"], panel["series"]
    left = min(130, 14 + 6 * max(map(len, bins)))
    share = (WIDTH - left - 8) / len(series)
    colour = SERIES[series[0]["run"]]
    for at, one in enumerate(series):
        axes = figure.add_axes(
            ((left + at * share) / WIDTH, 0.04, (share - 10) / WIDTH, 0.80),
            xlim=(0, 1.28),
            ylim=(-0.6, len(bins) - 0.4),
        )
        axes.barh(range(len(bins)), one["shares"], height=0.72, color=colour, alpha=0.9)
        for place, value in enumerate(one["shares"]):
            if value:
                axes.text(value + 0.03, place, f"{value:.0%}", va="center", fontsize=9, color=QUIET)
        axes.set_xticks([])
        axes.set_yticks(range(len(bins)) if at == 0 else [], bins if at == 0 else [], color=QUIET)
        axes.tick_params(length=0, pad=4)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "left")
            spine.set_color(GRID)
        name = "all" if one["step"] is None else f"step {one['step']:,}"
        axes.text(0, len(bins) - 0.35, name, color=INK, fontsize=10.5, va="bottom")


def _axes(figure: Figure, labels: Sequence[str]) -> Axes:
    """Axes with room for the labels at the ends of curves."""
    right = 14 if not any(labels) else 12 + 5.8 * max(map(len, labels))
    left = 46
    box = (left / WIDTH, 26 / HEIGHT, (WIDTH - left - right) / WIDTH, (HEIGHT - 26 - 10) / HEIGHT)
    axes = figure.add_axes(box)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=QUIET, pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    return axes


def _limits(axes: Axes, panel: dict[str, Any], numbers: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if panel["log"] and low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))
        if high < 10 * low:
            axes.set_ylim(low / 3, high * 3)
    else:
        if panel["zero"]:
            low, high = min(low, 0.0), max(high, 0.0)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        top = high + room
        if panel["top"] is not None and high <= panel["top"]:
            top = min(top, panel["top"] * 1.02)
        axes.set_ylim(low - (0.0 if panel["zero"] and low == 0 else room), top)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(_ticks(axes)))
    # A few whole steps.
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _step(value)))
    start, end = axes.dataLim.intervalx
    margin = 0.02 * (end - start) or 0.5
    axes.set_xlim(start - margin, end + margin)


def _ticks(axes: Axes) -> Callable[[float, int], str]:
    """Tick labels with as many digits as the distance of ticks asks for; of 1 ± little what is beyond 1."""

    def tick(value: float, _: int) -> str:
        low, high = axes.get_ylim()
        span = high - low
        if abs(value) < 1e-9 * span:
            return "0"
        if low > 0 and span < 1e-3 * low and abs(low - 1) < 0.1:
            return (
                "1" if abs(value - 1) < 1e-3 * span else f"1{value - 1:+.0e}".replace("e-0", "e-").replace("-", "−", 1)
            )
        if span >= 1e6 or span < 1e-3:
            return told(value)
        digits = max(0, 1 - math.floor(math.log10(span)))
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text

    return tick


def _step(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k" if value % 1000 == 0 else f"{value / 1000:,.1f}k"
    return f"{value:,.0f}"


def _end_labels(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """A label beside the end of each curve, moved so far that none lies on another."""
    named = [(value, label, colour) for value, label, colour in ends if label and math.isfinite(value)]
    if not named:
        return
    height = 12.5 / (HEIGHT - 36)
    placed = sorted(
        (
            (axes.transAxes.inverted().transform(axes.transData.transform((0, value)))[1], label, colour)
            for value, label, colour in named
        ),
        key=lambda one: one[0],
    )
    heights = [min(max(float(one[0]), 0.02), 0.98) for one in placed]
    for at in range(1, len(heights)):
        heights[at] = max(heights[at], heights[at - 1] + height)
    over = heights[-1] - 0.99
    if over > 0:
        heights[-1] -= over
        for at in range(len(heights) - 2, -1, -1):
            heights[at] = min(heights[at], heights[at + 1] - height)
    for y, (_, label, colour) in zip(heights, placed, strict=True):
        axes.text(1.015, y, label, color=colour, transform=axes.transAxes, va="center", fontsize=10.5)


def _label(one: dict[str, Any], compared: bool) -> str:
    letter = "AB"[one["run"]]
    if not compared:
        return str(one["label"])
    return f"{letter} {one['label']}".strip()


def _numbers(series: Sequence[dict[str, Any]]) -> list[float]:
    names = ("values", "low", "high")
    return [value for one in series for name in names for value in one.get(name, ()) if value is not None]


def _inline(svg: str, panel: dict[str, Any], title_id: str) -> str:
    """For a page: no declaration, no style of its own, ids that no other figure has, colours by name, short numbers."""
    from html import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'(?<= id=")|(?<=url\(#)|(?<=href="#)', f"{title_id}-", body)
    body = re.sub(r"((?:fill|stroke|color): )(#0000[ef]\d)", lambda m: f"{m[1]}var(--{VARIABLES[m[2]]})", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"-?\d+\.\d{2,}", _short, tag[0]), body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    head = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{title_id} {title_id}-d">'
        f'<title id="{title_id}">{escape(panel["title"])}</title>'
        f'<desc id="{title_id}-d">{escape(panel["description"])}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, body, count=1)


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")
