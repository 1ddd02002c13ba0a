"""The one-kernel path where Triton is too old to compile it: a cubin that was compiled elsewhere, launched with CuPy.

`carry.py` records the launch that `grpokit.loss.from_logits` makes, compiles it for sm_90 with a newer Triton and
writes beside the cubin what its arguments are: tuples in pieces, and what is constexpr with its value. Here the same
call is made, and where it would start `row_kernel` the arguments are packed by that list.
"""

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import torch

from .providers import Call, Unavailable, from_logits

FOLDER = "cubins"
NUMBERS = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
# Triton's kernels end with a pointer to global and one to profiling scratch memory; ours have neither.
SCRATCH = 2


def leaves(name, at, kind):
    """The entries of one parameter of a signature: a tuple's are parameters of their own."""
    if isinstance(kind, (tuple, list)):
        for i, inner in enumerate(kind):
            yield from leaves(f"{name}[{i}]", (*at, i), inner)
    else:
        yield name, at, kind


def parameters_of(ptx):
    """The types of a kernel's parameters, in order: u64, u32, f32, ..."""
    entry = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    return re.findall(r"\.param\s+\.(\w+)", entry[1])


def width(kind):
    """The type in PTX of an argument."""
    return "u64" if kind.startswith("*") else {"i32": "u32", "i64": "u64", "fp32": "f32"}[kind]


class Cubin:
    """Stands in for `row_kernel`: ``cubin[(rows,)](*arguments, **constants)`` launches the machine code.

    Parameters
    ----------
    path : Path
        NAME.json, beside NAME.cubin.
    """

    def __init__(self, path):
        self.about = json.loads(path.read_text(encoding="utf-8"))
        self.path = path.with_suffix(".cubin")
        self._function = None

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.start(grid, self.pack(arguments, named))

    def pack(self, arguments, named):
        """The arguments as numbers of the right width, the two null pointers with them.

        Raises
        ------
        Unavailable
            Where the cubin is for other constants, types or alignments.
        """
        for name in ("num_warps", "num_ctas"):
            self._same(name, named.get(name), self.about[name])
        packed = []
        for entry in self.about["parameters"]:
            index, *inner = entry["at"]
            value = named[entry["name"]] if index >= len(arguments) else arguments[index]
            for i in inner:
                value = value[i]
            if entry["type"] == "constexpr":
                self._same(entry["name"], value, entry["value"])
            else:
                packed.append(self._number(entry, value))
        return packed + [np.uint64(0)] * SCRATCH

    def _number(self, entry, value):
        kind, aligned = entry["type"], entry["aligned"]
        if kind.startswith("*"):
            self._same(entry["name"], POINTERS.get(getattr(value, "dtype", None)), kind)
            number = np.uint64(value.data_ptr())
        else:
            if kind == "i32" and not -(2**31) <= value < 2**31:
                raise Unavailable(f"the cubin has {entry['name']} in 32 bits, given {value}")
            number = NUMBERS[kind](value)
        if aligned and int(number) % 16:
            raise Unavailable(f"the cubin has {entry['name']} as a multiple of 16, given {value!r}")
        return number

    def _same(self, name, given, compiled):
        plain = list(given) if isinstance(given, tuple) else given
        if plain != compiled:
            raise Unavailable(f"the cubin is for {name}={compiled!r}, given {given!r}")

    def start(self, grid, packed):
        """Launches a cluster a row on torch's stream; the cluster's size is in the machine code."""
        import cupy

        if self._function is None:
            self._function = cupy.RawModule(path=str(self.path)).get_function(self.about["name"])
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        blocks, threads = grid[0] * self.about["num_ctas"], 32 * self.about["num_warps"]
        with stream:
            self._function((blocks,), (threads,), tuple(packed), shared_mem=self.about["shared"])


@contextlib.contextmanager
def instead_of_row_kernel(cubin):
    """`one_pass` launches the cubin meanwhile, whatever the installed Triton is."""
    from grpokit.kernels import one_pass

    before = one_pass.row_kernel, one_pass.why_not_held
    one_pass.row_kernel, one_pass.why_not_held = cubin, lambda *_, **__: ""
    try:
        yield
    finally:
        one_pass.row_kernel, one_pass.why_not_held = before


def one_kernel(data, cubin):
    """`from_logits` with one kernel, which is the cubin; everything else is as it always is."""
    call = from_logits(data, "token", "one_kernel", inplace=True)

    def forward():
        with instead_of_row_kernel(cubin):
            return call.forward()

    return Call(forward, call.backward)


def carried(data, folder):
    """`one_kernel` with the cubin for the vocabulary, from the carried folder."""
    if data.device.type != "cuda":
        raise Unavailable("no CUDA device to launch the cubin on")
    major, minor = torch.cuda.get_device_capability(data.device)
    name = f"row_kernel_{data.case.vocabulary}_sm_{major}{minor}.json"
    path = Path(folder or "") / FOLDER / name
    if folder is None or not path.exists():
        raise Unavailable(f"no {name} was carried: python benches/gpu/carry.py")
    return one_kernel(data, Cubin(path))
