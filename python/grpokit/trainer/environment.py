"""What a run begins with, beside its configuration: who would reproduce it asks for this."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import grpokit

PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "safetensors", "peft", "pyarrow", "triton")


def environment() -> dict[str, Any]:
    """The command, the versions and the machine, ready for JSON."""
    versions = {"grpokit": grpokit.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    return {
        "schema_version": 1,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}",
        "versions": versions,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None,
    }
