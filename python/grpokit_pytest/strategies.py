"""What hypothesis calls when it is imported: `from_type` then knows grpokit's types, if grpokit is there already."""

from __future__ import annotations

import sys


def register() -> None:
    """Registers the strategies where their types are loaded; otherwise `grpokit.testing.cases` does when it is."""
    cases = sys.modules.get("grpokit.testing.cases")
    if cases is not None and hasattr(cases, "register"):
        cases.register()
