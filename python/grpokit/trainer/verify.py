"""Mathematical answers compared by what they mean: the reward function ``math_verify``, from ``grpokit[verify]``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def math_verify() -> Callable[..., list[float | None]]:
    r"""The function: 1 where the last mathematical answer in a completion equals `answer`, else 0.

    None where nothing can be read from `answer`. It is a number, an expression or LaTeX (``0.5``, ``\frac{1}{2}``), or
    a text with one between dollars or in ``\boxed``.

    Raises
    ------
    InputError
        `missing_extra`.
    """
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError as missing:
        if missing.name != "math_verify":
            raise
        what, package = "the reward function 'math_verify'", "math-verify"
        raise error("missing_extra", what=what, package=package, extra="verify") from None

    # It warns that its own time limits are off: a process of its own has another, and one that cannot be swallowed.
    for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)

    def parsed(text: str) -> Any:
        return parse(text, parsing_timeout=None)

    def same(completion: Any, gold: str) -> float | None:
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        # Without dollars 2\pi would be read as 2.
        right = parsed(gold if "$" in gold or "\\boxed" in gold else f"${gold}$")
        return float(verify(right, parsed(text), timeout_seconds=None, raise_on_error=True)) if right else None

    def math_verify(completions: Sequence[Any], answer: Sequence[Any]) -> list[float | None]:
        return [same(completion, str(gold)) for completion, gold in zip(completions, answer, strict=True)]

    return math_verify
