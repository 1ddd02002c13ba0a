"""What objectives and corrections are written with: `stop`, `clip`, `lesser`, `ratio`, `where`, `log_bounds`.

In and out: columns (T,) of live tokens. torch is imported when a formula runs, so that a recipe can be read, edited
and written without it.

`torch.clamp`, `maximum` and `minimum` are not used in formulas: their derivative at the bound changed between torch
2.13 and 2.14 (1 before and 0 after for a scalar upper bound, 1/2 for tensors), and `minimum` hides which side a tie
takes. What is here is made of `where`: bounds are inclusive, the gradient is on at the bound and off beyond it, and
NaN is shown.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 20.0


def detach(x: Tensor) -> Tensor:
    """What `stop` does; one name, so that a test can replace it everywhere at once."""
    return x.detach()


def stop(x: Tensor) -> Tensor:
    """Stop-gradient, sg(x). Objectives call this and never `.detach()`: a test freezes what it returned.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> (stop(x) * x).backward()
    >>> x.grad
    tensor(3.)
    """
    return detach(x)


def where(condition: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """`a` where the condition holds, else `b`; gradients follow the choice. Two numbers give float64.

    Examples
    --------
    >>> import torch
    >>> where(torch.tensor([True, False]), 1.0, 1.05)
    tensor([1.0000, 1.0500], dtype=torch.float64)
    """
    import torch

    if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        # torch would round both to fp32.
        a, b = torch.tensor([a, b], dtype=torch.float64, device=condition.device)
    return torch.where(condition, a, b)


def clip(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """`x` within [low, high]; None is no bound. The gradient is on at a bound and 0 beyond it.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([0.5, 1.0, 2.0, torch.nan], requires_grad=True)
    >>> clip(x, 1.0, None)
    tensor([1., 1., 2., nan], grad_fn=<WhereBackward0>)
    """
    if high is not None:
        x = where(x > high, high, x)
    return x if low is None else where(x < low, low, x)


def lesser(a: Tensor, b: Tensor) -> Tensor:
    """The smaller of two. A tie is `a`'s with its gradient, and so is NaN (`where(a <= b, a, b)` would hide it)."""
    return where(b < a, b, a)


def ratio(log_ratio: Tensor, limit: float = LIMIT) -> Tensor:
    """R = exp(d), constant where abs(d) > limit: the largest ratio is e^20, in fp32 as in fp64.

    d itself is never changed, so bounds that are compared with it see what it is; how many tokens are beyond the
    limit is the metric ``ratio/limited``.
    """
    return clip(log_ratio, -limit, limit).exp()


def log_bounds(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """The bounds 1 − low and 1 + high of a ratio as bounds of its logarithm.

    Bounds are compared with d = log π − log π_old, one subtraction whose bits every back end shares, and never with
    a rounded exponential.

    Examples
    --------
    >>> log_bounds(None, 0.0)
    (None, 0.0)
    """
    return None if low is None else math.log1p(-low), None if high is None else math.log1p(high)
