"""Humanoid World Models: train, evaluate, play with and plan in action-conditioned video world models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwm.version import __version__ as __version__

if TYPE_CHECKING:
    from hwm.errors import HwmError
    from hwm.interact.session import Session
    from hwm.loading import load, load_tokenizer
    from hwm.models.base import WorldModel
    from hwm.recipes import Recipe
    from hwm.types import Batch, DataSpec, LatentSpec, Prediction, Tokenizer

__all__ = [
    "Batch", "DataSpec", "HwmError", "LatentSpec", "Prediction", "Recipe", "Session", "Tokenizer", "WorldModel",
    "load", "load_tokenizer",
]  # fmt: skip

_HOMES = {
    "Batch": "hwm.types", "DataSpec": "hwm.types", "HwmError": "hwm.errors", "LatentSpec": "hwm.types",
    "Prediction": "hwm.types", "Recipe": "hwm.recipes", "Session": "hwm.interact.session",
    "Tokenizer": "hwm.types", "WorldModel": "hwm.models.base", "load": "hwm.loading",
    "load_tokenizer": "hwm.loading",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import hwm` and `hwm --help` are quick."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hwm' has no attribute {name!r}")
