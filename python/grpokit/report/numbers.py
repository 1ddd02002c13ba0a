"""Numbers as a reader wants them."""

from __future__ import annotations

import math


def told(value: float | None) -> str:
    """Three or four digits that count.

    Examples
    --------
    >>> told(0.78173), told(16104), told(2.1e-7), told(0.0), told(None)
    ('0.782', '16,104', '2.1e-7', '0', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        digits, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
        if "." in digits:
            digits = digits.rstrip("0").rstrip(".")
        return f"{digits}e{int(exponent)}"
    if size >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


def finite(value: float) -> float | None:
    """A float for JSON, nine digits that count; None where there is none."""
    return float(f"{float(value):.9g}") if math.isfinite(value) else None
