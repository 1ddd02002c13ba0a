"""The launches that the package makes, recorded: what Triton's JIT would compile for them, and the kernels to compile.

A launcher is called with CPU tensors, and where it would start its kernel the arguments are specialized as the JIT
does it, for any architecture. So a kernel is compiled with the types, alignments and options of a real launch. A
further kernel is one more `Entry`.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import triton.compiler
from triton.backends.compiler import GPUTarget
from triton.runtime import jit

from grpokit.kernels import table
from grpokit.kernels.gradient import gradient
from grpokit.kernels.one_pass import one_pass
from grpokit.kernels.stats import stats

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def target(arch: str) -> GPUTarget:
    """``sm_90``, ``gfx942``."""
    return GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)


@contextlib.contextmanager
def recorded(arch: str):
    """The launches that are made meanwhile, on that architecture: a list that grows. Nothing is started.

    Each has the kernel, its `signature`, `constants`, `attributes` and `options`, and the `key` of what is compiled.
    """
    launches = []
    backend = triton.compiler.make_backend(target(arch))
    older = [name for name in table.TABLE if arch.startswith("sm_") and int(name[3:]) <= int(arch[3:])]
    row = max(older, key=lambda name: int(name[3:]), default=table.DEFAULT)

    def run(kernel, *args, **options):
        del options["grid"], options["warmup"]
        bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, options = bind(*args, **options, debug=False)
        parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
        key = jit.compute_cache_key({}, specialization, options)
        launches.append(
            SimpleNamespace(
                kernel=kernel,
                signature=signature,
                constants=constants,
                attributes=attributes,
                options=parsed.__dict__,
                key=key,
            )
        )

    before = jit.JITFunction.run, table.architecture
    jit.JITFunction.run = run
    table.architecture = lambda _: row
    try:
        yield launches
    finally:
        jit.JITFunction.run, table.architecture = before


@dataclass(frozen=True)
class Case:
    """A kernel as it is compiled for one kind of call.

    Attributes
    ----------
    name : str
        What the call has, for people.
    launch : callable
        Makes the one launch.
    read : int
        Bytes that are read from memory an element.
    most : float
        Instructions an element in the hot loop, at most; None where nothing is promised.
    wide : bool
        Every load and store of the hot loop is of 16 bytes.
    occupancy : float
        The share of an SM's warps that fit, at least.
    where : callable
        Of an architecture and a version of Triton: whether the kernel is for them.
    """

    name: str
    launch: Callable[[], Any]
    read: int
    most: float | None = None
    wide: bool = True
    occupancy: float = 0.5
    where: Callable[[str, str], bool] = lambda *_: True


@dataclass(frozen=True)
class Entry:
    """A kernel by its name in `grpokit.kernels.table`, and its cases; every `make test` compiles the first two."""

    name: str
    cases: tuple[Case, ...]


def _stats(dtype="bf16", V=151_936, softcap=None, entropy=True):
    logits = torch.zeros(3, V, dtype=DTYPES[dtype])
    ids = torch.zeros(2, dtype=torch.int64)
    stats(logits, ids, ids, 0.9, softcap, entropy=entropy)


def _gradient(dtype="bf16", V=151_936, softcap=None, entropy=True):
    logits = torch.zeros(3, V, dtype=DTYPES[dtype])
    ids = torch.zeros(2, dtype=torch.int64)
    column = torch.zeros(2)
    state = torch.zeros(2, 2)
    gradient(logits, logits, ids, ids, state, column, column, column if entropy else None, 0.9, softcap)


def _one_pass(dtype="bf16", V=128_256, softcap=None, entropy=True, hold=True):
    """A clip of ratios with a KL term, as most recipes of single tokens have it."""
    logits = torch.zeros(2, V, dtype=DTYPES[dtype])
    ids, column, share = torch.arange(2), torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    step = (column, None, column, None), column, None, (share, share), (0.5,), (None,), (-0.2, 0.2, float("inf"))
    formulas = {"GATE": "Clip", "BASE": "old", "TERMS": ("k3", "ref", False)}
    how = {"formulas": formulas, "arguments": ((), *step), "origin": 0, "entropy": entropy, "hold": hold}
    one_pass(logits, ids, ids, 0.9, softcap, **how)


def _clusters(arch, triton):
    """Where there are clusters of thread blocks, and a Triton that reduces across them."""
    return arch in ("sm_90", "sm_100") and tuple(map(int, triton.split(".")[:2])) >= (3, 9)


def _row(V, most, occupancy, *, entropy=True):
    """A case of the kernel that has no loop, counted as a whole, with what it loads of columns."""
    name, launch = f"bf16, {'entropy, ' * entropy}V = {V:,}", partial(_one_pass, V=V, entropy=entropy)
    return Case(name, launch, 2, most, wide=False, occupancy=occupancy, where=_clusters)


def _vocabulary_sized(launch, plain, entropy, occupancy=0.5):
    """The cases of a kernel that goes over logits; `plain` and `entropy` are instructions an element at most."""
    return (
        Case("bf16", partial(launch, entropy=False), 2, plain, occupancy=occupancy),
        Case("bf16, entropy", launch, 2, entropy, occupancy=occupancy),
        Case("bf16, cap", partial(launch, entropy=False, softcap=30.0), 2, occupancy=occupancy),
        Case("bf16, cap, entropy", partial(launch, softcap=30.0), 2, occupancy=occupancy),
        Case("fp16, entropy", partial(launch, "fp16"), 2, entropy, occupancy=occupancy),
        Case("fp32, entropy", partial(launch, "fp32"), 4, entropy, occupancy=occupancy),
        # GPT-2's vocabulary: rows start at odd places, and nothing can be loaded 16 bytes at a time.
        Case("bf16, entropy, V odd", partial(launch, V=50_257), 2, wide=False, occupancy=0),
    )


ENTRIES = (
    Entry("stats", _vocabulary_sized(_stats, 8, 10)),
    Entry("gradient", _vocabulary_sized(_gradient, 8, 10)),
    Entry("sweep", _vocabulary_sized(partial(_one_pass, hold=False), 11, 13, occupancy=0.25)),
    Entry(
        "row", (_row(128_256, 28, 0.5, entropy=False), _row(128_256, 34, 0.25), _row(151_936, 28, 0.25, entropy=False))
    ),
)
