"""The bundled trainer: one readable loop over `grpokit.process` and `grpokit.loss`, a tiny offline run by default.

    from grpokit.trainer import Trainer, TrainConfig
    Trainer(TrainConfig(recipe="dapo"), task=task, reward=my_reward).train()

The configuration is read without torch; torch and transformers are imported with the first use of `Trainer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpokit.errors import error

from .config import TrainConfig

if TYPE_CHECKING:
    from .loop import Trainer

__all__ = ["TrainConfig", "Trainer"]

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "rich")


def __getattr__(name: str) -> Any:
    if name != "Trainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .loop import Trainer
    except ModuleNotFoundError as missing:
        if missing.name not in _PACKAGES:
            raise
        raise error("missing_extra", what="the trainer", package=missing.name, extra="train") from None
    return Trainer
