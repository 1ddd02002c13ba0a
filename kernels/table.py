"""Block sizes and warps of the kernels, by architecture: a static table, so that the same device gives the same bits.

``GRPOKIT_KERNEL_TABLE`` names a JSON file of the same form, as `grpokit tune` writes it, that is read instead:
``{"sm_90": {"stats": {"block": 4096, "warps": 4, "stages": 1}, ...}}``. What it does not have comes from here.
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Config:
    """How a kernel is launched.

    Attributes
    ----------
    block : int
        Columns at a time, a power of two.
    warps : int
        Of 32 threads, in a program.
    stages : int
        Loads under way; 1 is none ahead.
    """

    block: int
    warps: int
    stages: int = 1

    def __post_init__(self) -> None:
        for name, value, least, most in (("block", self.block, 64, 65_536), ("warps", self.warps, 1, 32)):
            if type(value) is not int or not least <= value <= most or value & (value - 1):
                raise ValueError(f"{name} is {value!r}, and must be a power of 2 from {least} to {most}")
        if type(self.stages) is not int or self.stages < 1:
            raise ValueError(f"stages is {self.stages!r}, and must be at least 1")


# Chosen by what the compiler gives (benches/results/sass.md), since nothing is measured on hardware yet: the fewest
# instructions an element with half of an SM's warps or more, and with 48 KiB of loads under way in an SM (29 is what
# 4.8 TB/s, 0.8 µs away, ask of 132 SMs). Stages would put the loads through shared memory, at half an instruction an
# element for each.
TABLE = {
    "sm_80": {"stats": Config(4096, 4), "gradient": Config(4096, 8), "sweep": Config(4096, 8)},
    "sm_90": {"stats": Config(4096, 4), "gradient": Config(4096, 8), "sweep": Config(4096, 8)},
    "sm_100": {"stats": Config(4096, 4), "gradient": Config(4096, 8), "sweep": Config(4096, 8)},
}
DEFAULT = "sm_90"
# Where "auto" takes one pass (`one_pass`) if the call allows it: where benches/gpu has found it right, and faster.
ONE_PASS: frozenset[str] = frozenset()


@functools.cache
def architecture(device: torch.device) -> str:
    """``sm_90``, ...: the newest in the table that is not newer than the device; the default where it is no CUDA."""
    if device.type != "cuda" or torch.version.cuda is None:
        return DEFAULT
    major = torch.cuda.get_device_capability(device)[0]
    known = [name for name in TABLE if int(name[3:]) <= 10 * major + 9]
    return max(known, key=lambda name: int(name[3:])) if known else min(TABLE)


def choose(kernel: str, device: torch.device) -> Config:
    """The configuration of a kernel on a device."""
    arch = architecture(device)
    found = _tuned(os.environ.get("GRPOKIT_KERNEL_TABLE", "")).get(arch, {}).get(kernel)
    return TABLE[arch][kernel] if found is None else found


@functools.cache
def _tuned(path: str) -> dict[str, dict[str, Config]]:
    if not path:
        return {}
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {(arch, name) for arch, row in TABLE.items() for name in row}
        unknown = {(arch, name) for arch, row in table.items() for name in row} - known
        if unknown:
            raise ValueError("no architecture {} with a kernel {}".format(*min(unknown)))
        return {arch: {name: Config(**config) for name, config in row.items()} for arch, row in table.items()}
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        expected = "expected a file that `grpokit tune -o FILE` wrote"
        raise ValueError(f"GRPOKIT_KERNEL_TABLE={path}: {problem}; {expected}") from None
