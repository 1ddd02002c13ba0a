"""Arrays of the three libraries that implementations are written with: NumPy, torch, jax.

In: NumPy. Out: the library's own, its results as NumPy, and the gradient of a scalar where the library has gradients.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

LIBRARIES = ("torch", "jax", "numpy")
HALVES = ("bfloat16", "float16")
FLOATS = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-11}


def likely(function: Callable[..., Any]) -> list[str]:
    """The libraries that are there, those that the function's module names first."""
    there = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    named = {getattr(x, "__name__", "").split(".")[0] for x in _globals(function).values() if _is_module(x)}
    modules = {(getattr(x, "__module__", None) or "").split(".")[0] for x in _globals(function).values()}
    return sorted(there, key=lambda name: (name not in named, name not in modules, name != "numpy"))


def _globals(function: Any) -> Mapping[str, Any]:
    inner = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    inner = inner if hasattr(inner, "__globals__") else inspect.getattr_static(type(inner), "__call__", inner)
    found: Mapping[str, Any] = getattr(inner, "__globals__", {})
    return found


def _is_module(x: Any) -> bool:
    return type(x) is type(sys)


def make(library: str, x: NDArray[Any], dtype: str = "float64") -> Any:
    """An array of the library; floats in a number format, the rest as it is."""
    floating = x.dtype.kind == "f"
    if library == "torch":
        import torch

        made = torch.from_numpy(np.array(x, order="C"))
        return made.to(getattr(torch, dtype)) if floating else made
    if library == "jax":
        jnp: Any = importlib.import_module("jax.numpy")
        return jnp.asarray(x, dtype=dtype if floating else None)
    return x.astype(dtype) if floating else x.copy()


def read(x: Any) -> NDArray[Any]:
    """A result as NumPy; half formats as float64."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.double() if format_of(x) in HALVES else x
    found = np.asarray(x)
    return found if found.dtype.kind in "fiubcOSU" else found.astype(np.float64)


def format_of(x: Any) -> str:
    """The name of a result's number format; that of Python's numbers is float64."""
    return str(getattr(x, "dtype", "float64")).replace("torch.", "")


def double_precision(library: str) -> contextlib.AbstractContextManager[Any]:
    """Jax computes in float64 only where it is told to."""
    if library != "jax":
        return contextlib.nullcontext()
    made: contextlib.AbstractContextManager[Any] = importlib.import_module("jax").enable_x64(True)
    return made


def slopes(
    library: str,
    compute: Callable[[dict[str, Any]], Any],
    by: Mapping[str, Any],
    watched: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> tuple[Any, dict[str, NDArray[Any] | None]]:
    """A scalar and its gradient by each of some arrays; None where it does not depend on it, or none are to be had."""
    if library == "torch":
        import torch

        leaves = {name: x.detach().clone().requires_grad_() for name, x in by.items()}
        # A function that writes into its arguments may do so here: a leaf would refuse it.
        value = compute({name: x.clone() for name, x in leaves.items()})
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            return value, dict.fromkeys(by)
        with watched():
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        return value, {name: None if g is None else read(g) for name, g in zip(leaves, found, strict=True)}
    if library == "jax":
        value = compute(dict(by))
        with watched():
            gradient = importlib.import_module("jax").grad(compute)(dict(by))
        return value, {name: read(g) for name, g in gradient.items()}
    return compute(dict(by)), dict.fromkeys(by)


def written(x: Any) -> str:
    """An array as code."""
    if isinstance(x, np.ndarray):
        return f"np.array({_listed(x)}, dtype={'object' if x.dtype == object else f'np.{x.dtype}'})"
    if hasattr(x, "detach"):
        return f"torch.tensor({_listed(read(x))}, dtype={x.dtype})"
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"jnp.array({_listed(np.asarray(x))}, dtype=jnp.{x.dtype})"
    return repr(x)


def _listed(x: NDArray[Any]) -> str:
    return repr(x.tolist()).replace("nan", "float('nan')").replace("inf", "float('inf')")


def random_states() -> list[Any]:
    """The states of the global random generators of what is imported, to be compared."""
    import random

    _, words, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is meant
    states: list[Any] = [random.getstate(), np.asarray(words).tobytes(), position]
    if "torch" in sys.modules:
        states.append(sys.modules["torch"].get_rng_state().numpy().tobytes())
    return states
