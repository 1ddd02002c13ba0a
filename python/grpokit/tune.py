"""`grpokit tune`: which block sizes and warps are fastest on this device, as a table for ``GRPOKIT_KERNEL_TABLE``.

In: how many rows and columns of logits to time. Out: a configuration for each kernel of `grpokit.kernels`, the fastest
of the candidates by the median of interleaved rounds. The static table of `grpokit.kernels.table` stays what is used
where no file is named, so that two machines of a kind give the same bits.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from .errors import error
from .kernel_choice import why_no_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from .kernels.table import Config

ROUNDS = 7


def tune(
    rows: int = 4096, vocabulary: int = 151_936, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
) -> dict[str, Any]:
    """Times the kernels' candidates on random logits.

    Parameters
    ----------
    rows, vocabulary : int
        The size of the logits; 1.2 GB for the default.
    dtype : torch.dtype
        bf16, fp16 or fp32.
    device : str
        Where. "cpu" is Triton's interpreter, whose times say nothing of a GPU.

    Returns
    -------
    dict
        ``table``, as `grpokit.kernels.table` reads it; ``times``: seconds, by kernel and candidate.

    Raises
    ------
    InputError
        `bad_parameter`, `no_kernel`.
    """
    for name, value in (("rows", rows), ("vocabulary", vocabulary)):
        if value < 1:
            raise error("bad_parameter", owner="tune", name=name, given=value, expected="an int, at least 1")
    if device == "cuda" and not torch.cuda.is_available():
        raise error("no_kernel", what="tune", why="there is no CUDA device", remedy="")
    logits = torch.empty(rows, vocabulary, dtype=dtype, device=device)
    why = why_no_kernel(logits)
    if why:
        raise error("no_kernel", what="tune", why=why, remedy="")
    from .kernels.table import architecture

    table, times = {}, {}
    for name, launch in _launches(logits.normal_()):
        times[name] = _time(launch, list(_candidates(name)), logits.device)
        best = min(times[name], key=lambda config: times[name][config])
        table[name] = asdict(best)
    of = {name: [asdict(c) | {"seconds": s} for c, s in found.items()] for name, found in times.items()}
    return {"table": {architecture(logits.device): table}, "times": of}


def _candidates(kernel: str) -> Iterator[Config]:
    from .kernels.table import Config

    stages = (1, 2, 3) if kernel == "stats" else (1,)
    for block, warps, stage in itertools.product((1024, 2048, 4096, 8192), (1, 2, 4, 8, 16), stages):
        # From 8 to 64 elements a thread.
        if 8 <= block // (32 * warps) <= 64:
            yield Config(block, warps, stage)


def _launches(logits: Tensor) -> Iterator[tuple[str, Callable[[Config], object]]]:
    """Each kernel on these logits, by a configuration."""
    from .kernels.gradient import gradient
    from .kernels.one_pass import one_pass
    from .kernels.stats import stats

    n, device = len(logits), logits.device
    places, targets = torch.arange(n, device=device), torch.randint(logits.shape[1], (n,), device=device)
    g, h = torch.randn(2, n, device=device)
    out = torch.empty_like(logits)
    _, entropies, state = stats(logits, places, targets, 1.0)
    yield "stats", lambda config: stats(logits, places, targets, 1.0, config=config)
    given = logits, out, places, targets, state, entropies, g, h, 1.0
    yield "gradient", lambda config: gradient(*given, config=config)
    arguments = (g, h), (None,) * 4, None, None, (), (), (), ()
    formulas = {"GATE": None, "BASE": "old", "TERMS": ()}
    how: dict[str, Any] = {"formulas": formulas, "arguments": arguments, "origin": 0, "entropy": True, "hold": False}
    yield "sweep", lambda config: one_pass(out, places, targets, 1.0, None, **how, config=config)


def _time(launch: Callable[[Config], object], candidates: list[Config], device: torch.device) -> dict[Config, float]:
    """The median seconds of each candidate, all of them once a round, after a round that compiles."""
    found: dict[Config, list[float]] = {config: [] for config in candidates}
    for number in range(ROUNDS + 1):
        for config in candidates:
            _wait(device)
            start = time.perf_counter()
            launch(config)
            _wait(device)
            if number:
                found[config].append(time.perf_counter() - start)
    return {config: median(seconds) for config, seconds in found.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
