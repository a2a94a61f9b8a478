"""Published folders of config.json and model.safetensors, in and out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from hwm.config import from_json
from hwm.errors import CheckpointError, HwmError
from hwm.files import write_atomically
from hwm.weights import read_weights, save_tensors


def read_folder(folder: Path, kind: type[Any], assembled: Callable[..., Any], what: str) -> Any:
    """The model of a published folder of config.json and model.safetensors.

    Args:
        kind: the dataclass of the config's fields.
        assembled: makes a model of (config, weights, where they are from).
        what: whose folders are like that, for errors.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not of the config.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}, which a published {what} folder has: {error}") from error
    try:
        published = from_json(kind, fields)
        return assembled(published, read_weights(folder / "model.safetensors"), folder)
    except CheckpointError:
        raise
    except HwmError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_folder(folder: Path, published: Any, weights: dict[str, Tensor]) -> None:
    """Write a published config, a dataclass, and weights by their published names as such a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", weights)
    write_atomically(folder / "config.json", json.dumps(asdict(published), indent=2, sort_keys=True).encode())
