"""Compiles the kernels ahead of time and measures what came out: registers, local memory, widths, the hot loop.

The hot loop is the backward branch that loads most from memory, and what lies between it and its target; a kernel
without one counts as a whole. How many elements it does follows from the bytes that it loads, so that unrolling does
not matter. An instruction is what a warp issues: an element's share is what a thread issues for each of its own.
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.compiler import ASTSource

from .launches import recorded, target

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS = 65_536
LOADS = ("LDG", "LDGSTS")
# Warps and blocks that an SM holds, and its shared memory in KiB, of which each block costs 1 more than it asks for.
SM = {"sm_80": (64, 32, 164), "sm_90": (64, 32, 228), "sm_100": (64, 32, 228), "sm_120": (48, 24, 100)}
WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


def compiled(case, arch):
    """The one kernel that a case launches."""
    with recorded(arch) as launches:
        case.launch()
    (launch,) = launches
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    return triton.compile(source, target=target(arch), options=launch.options)


def measured(case, arch):
    """What is known of a compiled case, plain enough for JSON."""
    kernel = compiled(case, arch)
    if not arch.startswith("sm_"):
        return amd(kernel.asm["amdgcn"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _dump("--dump-resource-usage", file.name)
        code = instructions(_dump("--dump-sass", file.name))
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    shared = kernel.metadata.shared
    body = hot(code)
    operations = [operation for _, operation, _ in body]
    read, written = list(widths(operations, LOADS)), list(widths(operations, ("STG",)))
    # Without a loop, the loads of 16 bytes are those of the row, and the others of columns.
    elements = sum(width for width in read if body is not code or width == 16) / case.read
    everything = Counter(operation.split(".")[0] for _, operation, _ in code)
    warps = kernel.metadata.num_warps
    blocks = blocks_an_sm(arch, registers, warps, shared)
    return {
        "warps": warps,
        "registers": registers,
        "stack": stack,
        "local": local,
        "spills": everything["LDL"] + everything["STL"],
        "atomics": sum(everything[name] for name in ("ATOM", "ATOMG", "ATOMS", "RED", "REDG")),
        "shared": shared,
        "loads": _text(read),
        "stores": _text(written),
        "instructions": round(len(operations) / elements, 2),
        "exponentials": round(sum(x.startswith("MUFU") for x in operations) / elements, 2),
        "blocks": blocks,
        "occupancy": round(blocks * warps / SM[arch][0], 2),
    }


def amd(text):
    """Registers and spills, as the assembler's own notes have them."""
    found = {
        name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    }
    return {
        "registers": found["vgpr_count"],
        "stack": found["private_segment_fixed_size"],
        "spills": found["vgpr_spill_count"] + found["sgpr_spill_count"],
    }


def instructions(text):
    """(address, operation, operands) of each instruction, without its predicate and without padding."""
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);"
    found = [(int(at, 16), operation, rest) for at, operation, rest in re.findall(pattern, text)]
    return [each for each in found if each[1] != "NOP"]


def hot(code):
    """The instructions of the loop that loads most, or all of them."""
    loops = []
    for at, operation, rest in code:
        to = re.search(r"0x([0-9a-f]+)", rest) if operation.startswith("BRA") else None
        # The last instruction is a branch to itself.
        if to and int(to[1], 16) < at:
            loops.append([each for each in code if int(to[1], 16) <= each[0] <= at])
    loads = [sum(widths([each[1] for each in loop], LOADS)) for loop in loops]
    most = max(loads, default=0)
    # Of loops that load as much: the longest, since what is promised holds for all.
    return max((loop for loop, load in zip(loops, loads, strict=True) if load == most), key=len) if most else code


def widths(operations, names):
    """Bytes of each operation of some names."""
    for operation in operations:
        name, *suffixes = operation.split(".")
        if name in names:
            yield next((WIDTHS[x] for x in suffixes if x in WIDTHS), 4)


def blocks_an_sm(arch, registers, warps, shared):
    """How many blocks an SM holds: registers are given to warps by 256, 8 a thread."""
    most_warps, most_blocks, kib = SM[arch]
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // warps
    by_shared = kib * 1024 // (shared + 1024)
    return min(most_blocks, most_warps // warps, by_registers, by_shared)


def _text(widths_):
    """``4 × 16``: how many, and of how many bytes."""
    return ", ".join(f"{n} × {width}" for width, n in sorted(Counter(widths_).items(), reverse=True))


def _dump(option, file):
    done = subprocess.run([TOOLS / "cuobjdump", option, file], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
