"""Writes python/grpokit/__init__.pyi from the names that __init__.py loads: `python tools/stubs.py`, `make format`."""

from pathlib import Path

import grpokit

HERE = Path(grpokit.__file__).parent


def stub() -> str:
    """The text of the stub."""
    modules = [f"from . import {module} as {module}" for module in grpokit._MODULES]
    names = [f"from .{module} import {name} as {name}" for module, held in grpokit._HOME.items() for name in held]
    listed = "".join(f'    "{name}",\n' for name in sorted(grpokit.__all__))
    return "\n".join([*modules, *names]) + f"\n\n__all__ = [\n{listed}]\n\ndef __dir__() -> list[str]: ...\n"


if __name__ == "__main__":
    (HERE / "__init__.pyi").write_text(stub(), encoding="utf-8")
