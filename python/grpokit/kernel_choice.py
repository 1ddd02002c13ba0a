"""Which kernel reads logits: what "auto" is on this machine, and why one that was named cannot run.

In: a name and the logits. Out: one of what there is. The environment variable ``GRPOKIT_KERNEL`` says what auto is.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from .errors import error

HAS_TRITON = importlib.util.find_spec("triton") is not None
ONE_PASS = ("one_kernel", "one_kernel_l2")
KERNELS = ("auto", "eager", "two_kernel", *ONE_PASS)
VARIABLE = "GRPOKIT_KERNEL"


def backend(kernel: str, logits: Tensor) -> str:
    """The back end that "auto" is on this machine, for these logits; one that was named is taken, or refused.

    Parameters
    ----------
    kernel : {"auto", "eager", "two_kernel", "one_kernel", "one_kernel_l2"}
        "auto" is the kernels on a CUDA device, where Triton is installed and the logits are bf16, fp16 or fp32.
    logits : tensor
        What it is for.

    Returns
    -------
    {"eager", "two_kernel", "one_kernel", "one_kernel_l2"}

    Raises
    ------
    InputError
        `bad_parameter`: no such kernel. `no_kernel`: it cannot run here, and why.
    """
    if kernel not in KERNELS:
        raise error("bad_parameter", owner="the loss", name="kernel", given=kernel, expected=f"one of {KERNELS}")
    if kernel == "auto":
        chosen = os.environ.get(VARIABLE, "auto")
        if chosen not in KERNELS:
            expected = f"one of {KERNELS}"
            raise error("bad_parameter", owner="the environment", name=VARIABLE, given=chosen, expected=expected)
        kernel = chosen
    why = why_no_kernel(logits)
    if kernel == "auto":
        return "eager" if why or not logits.is_cuda else "two_kernel"
    if kernel != "eager" and why:
        remedy = " Take kernel='eager', or 'auto', which takes what there is."
        raise error("no_kernel", what=f"kernel={kernel!r}", why=why, remedy=remedy)
    return kernel


def why_no_kernel(logits: Tensor) -> str:
    """Why the kernels cannot read these logits here; empty if they can."""
    if logits.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"the logits are {logits.dtype}, and the kernels read bf16, fp16 and fp32"
    if logits.dim() > 3:
        return f"the logits have {logits.dim()} dimensions"
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        return f"the logits' last dimension has stride {logits.stride(-1)}: call .contiguous()"
    if not HAS_TRITON:
        return "Triton is not installed"
    if logits.is_cuda and torch.version.cuda and torch.cuda.get_device_capability(logits.device) < (8, 0):
        return f"{torch.cuda.get_device_name(logits.device)} is older than Ampere"
    if not logits.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the logits are on {logits.device}, and TRITON_INTERPRET is not 1"
    return ""
