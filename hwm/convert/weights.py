"""What all converters share: weights out of files of others, without running anything of theirs or a second copy."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwm.config import Config, from_json
from hwm.data.files import write_atomically
from hwm.train.checkpoint import CheckpointError, load_tensors, save_tensors
from hwm.types import DataSpec, HwmError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a PyTorch file (its "state_dict" or "model", if it has one), by name.

    Both are mapped into memory: a tensor that nobody reads costs nothing. Of a PyTorch file, which is a pickle, only
    tensors and plain values are read, and nothing that it names is called.

    Raises:
        CheckpointError: it is missing, damaged, or a pickle of more than that.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights, and reading that could run whatever it says{_wants(path)}; it is not "
            "read. If you trust it, load it where it came from and save its state dict as safetensors"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path} is not a whole PyTorch file (of torch 1.6 or later): {reason[0] if reason else 'it ends early'}; "
            "fetch it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name, neither at its top nor under 'state_dict' or 'model'")
    return tensors


def _wants(path: Path) -> str:
    """What a pickle names besides tensors, in brackets."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of a file that is broken in yet another way; the error at hand says enough
        return ""
    return f" ({', '.join(sorted(names)[:3])})" if names else ""


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


def with_weights(config: Config, spec: DataSpec, weights: Mapping[str, Tensor], source: Path | str) -> Any:
    """The module of a config, whose parameters are these tensors themselves; in evaluation mode.

    It is built without memory of its own, so weights that are mapped from a file stay so, and are read from it when
    they are first used. A module with buffers that are not saved cannot be built so, and is refused.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or of a type other than floating point.
    """
    with torch.device("meta"):
        module = config.build(spec)
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - weights.keys())]
    problems += [f"{name} is not known" for name in sorted(weights.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & weights.keys()):
        there, here = weights[name], wanted[name]
        if there.shape != here.shape:
            problems.append(f"{name} is {tuple(there.shape)} instead of {tuple(here.shape)}")
        elif not there.is_floating_point():
            problems.append(f"{name} is of type {there.dtype}")
    if problems:
        more = f", and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"the weights in {source} do not fit a {config.owner.name!r}: {', '.join(problems[:4])}{more}"
        )
    module.load_state_dict({k: v.to(wanted[k].dtype) for k, v in weights.items()}, assign=True)
    left = [name for name, tensor in module.named_buffers() if tensor.is_meta]
    if left:
        raise TypeError(f"{config.owner.__name__} has buffers that no file holds: {left[:3]}")
    return module.eval()
