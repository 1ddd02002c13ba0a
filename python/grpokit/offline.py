"""What transformers must not do here: fetch, report, and draw progress bars. Set before it is imported."""

from __future__ import annotations

import os
from pathlib import Path

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def quieten(model: str = "") -> None:
    """Sets the environment, where it does not say otherwise.

    Parameters
    ----------
    model : str
        What is to be loaded. A name on a hub, and no directory here, may be fetched.
    """
    told = "HF_HUB_OFFLINE" in os.environ
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    if model and not Path(model).exists() and not told:
        del os.environ["HF_HUB_OFFLINE"]
