"""Texts that others wrote, shown as what they are: no character acts, none is hidden, none is too long."""

from __future__ import annotations

import unicodedata
from typing import Any

JOINERS = "\u200c\u200d"  # Persian and emoji are wrong without them


def visible(text: str) -> str:
    r"""The text with control, bidi and other unseen characters as signs.

    Examples
    --------
    >>> visible("a\x1b[31m\u202eb")
    'a␛[31m⟨U+202E⟩b'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_sign, text.replace("\r\n", "\n")))


def line(text: str, most: int = 200) -> str:
    """The same on one line, cut."""
    shown = visible(text[: most + 1]).replace("\n", "␊").replace("\t", "␉")
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def excerpt(text: str, head: int, tail: int) -> dict[str, Any]:
    """Beginning and end of a text.

    Parameters
    ----------
    text : str
        Of any length.
    head, tail : int
        Characters that are shown of its beginning and its end.

    Returns
    -------
    dict
        ``characters``, ``text``, ``left_out`` (characters between the two) and ``tail``.
    """
    if len(text) <= head + tail:
        shown = visible(text)
        if len(shown) <= head + tail:
            return {"characters": len(text), "text": shown, "left_out": 0, "tail": ""}
    return {
        "characters": len(text),
        "text": visible(text[:head])[:head],
        "left_out": max(len(text) - head - tail, 1),
        "tail": visible(text[-tail:])[-tail:] if tail else "",
    }


def _sign(letter: str) -> str:
    code = ord(letter)
    if letter in "\n\t" or letter in JOINERS:
        return letter
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "␡"
    if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return letter
