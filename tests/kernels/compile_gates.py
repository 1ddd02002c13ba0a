"""Compiles the kernel of coefficients for a GPU that is not there, and prints what came of it: a child process.

`test_gates_compiled` starts it, since in a process where Triton interprets nothing can be compiled.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

import grpokit as gk
from grpokit import gates
from grpokit.kernels.coefficients import coefficients
from tests.kernels.recipes import LOWER, plan
from tests.losses import BONUSES, cast, padded, recipe, table

HOPPER = GPUTarget("cuda", 90, 32)
LARGEST = recipe(
    gk.SequenceClip(0.05, 0.1),
    (gk.IcePop(), gk.SequenceMask(1.6, 0.6, policy="current")),
    extra=(*BONUSES, gk.Term(gk.KL("k3", to="old", corrected=True), 0.1)),
)
FORMULAS = ("late_vespo", "late_gmpo", "late_after_early", "late_opsm", "extra_weighed", "luffy_corrected")
PLANS = {"largest": LARGEST} | {name: LOWER[name] for name in FORMULAS}
# And one a gate.
PLANS |= {type(r.objective).__name__: r for r in LOWER.values() if not r.correct and not r.extra}


def launch(r, d, split=None):
    """What the last part's kernel is launched with, and how Triton sees it: the same is compiled once."""
    d = cast(d, torch.float32)
    batch = padded(d)
    part = batch.split(split)[-1] if split else batch
    now = {name: part.column(name, d[name][part.span]) for name in ("logps", "entropies")}
    made = plan(part, r, now)
    arguments, *_ = gates.launch(made, part, r, now)
    bind = create_function_from_signature(coefficients.signature, coefficients.params, make_backend(HOPPER))
    return bind(*arguments, **made.formulas, BLOCK=gates.BLOCK)


def resources(r, place):
    """Registers, bytes of stack and of local memory, a thread; and how many atomics."""
    options = {"num_warps": gates.WARPS, "debug": False}
    bound, specialization, _ = launch(r, table(3))
    packed = coefficients._pack_args(make_backend(HOPPER), options, bound, specialization, options)
    parsed, *source = packed
    made = triton.compile(ASTSource(coefficients, *source), target=HOPPER, options=parsed.__dict__)
    cubin = place / "kernel.cubin"
    cubin.write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    out = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = {name: int(x) for name, x in re.findall(r"(REG|STACK|LOCAL):(\d+)", out)}
    return found | {"atomics": len(re.findall(r"\b(?:atom|red)\.", made.asm["ptx"]))}


def signatures():
    """How many times the kernel is compiled for other lengths, parts, numbers, and for another gate."""

    def other(**bounds):
        return LARGEST.replace(
            objective=gk.SequenceClip(**bounds),
            correct=(gk.IcePop(0.1, 1.0), gk.SequenceMask(1.0, None, policy="current")),
            aggregate=gk.Constant(16.0),
            extra=tuple(gk.Term(term.objective, 1.0) for term in LARGEST.extra),
        )

    same = [
        launch(LARGEST, table(3)),
        launch(LARGEST, table(4, lengths=(1, 16, 0, 32))),
        launch(LARGEST, table(3), split=20),
        launch(other(low=0.0, high=1.0, dual=16.0), table(3)),
        launch(other(low=None, high=None), table(3)),
    ]
    another = launch(LARGEST.replace(objective=gk.SequenceClipToken()), table(3))
    return [len({str(specialization) for _, specialization, _ in x}) for x in (same, [*same, another])]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps({"plans": {name: resources(r, place) for name, r in PLANS.items()}, "signatures": signatures()}))
