"""Files of tensors, in and out: written whole or not at all, read without running anything that they hold."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hwm.config import Config
from hwm.errors import CheckpointError
from hwm.types import DataSpec

ALIGNMENT = 64
"""Bytes of which the addresses of weights are multiples. Elsewhere products take other kernels, whose last bit differs
from what the model gave that was saved."""


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, str(new))
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of a safetensors file, each in memory of its own, at a multiple of `ALIGNMENT`.

    They are read, and not mapped: in the file they lie at any multiple of 8 bytes, and pages of a mapping that are
    copied from stay in memory beside the copy.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        with safe_open(str(path), "pt") as checked, path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            begin, tensors = file.tell(), {}
            for name in checked.offset_keys():
                tensor = torch.empty_like(checked.get_tensor(name))  # of which no byte has been read
                file.seek(begin + header[name]["data_offsets"][0])
                if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data) != tensor.nbytes:
                    raise OSError(f"it ends within {name}")
                tensors[name] = tensor.to(device)
            return tensors
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the weights {path}: {error}") from error


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself where it begins at a multiple of `ALIGNMENT`, as all that torch allocates does, else a copy."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a PyTorch file (its "state_dict" or "model", if it has one), by name.

    A PyTorch file is mapped into memory, and a tensor that nobody reads costs nothing. It is a pickle: only tensors and
    plain values are read, and nothing that it names is called.

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


def misfits(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """In words, the first few of the reasons why weights are not those of a module; empty where they are.

    Args:
        wanted: the module's state dict.
    """
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - weights.keys())]
    problems += [f"{name} is not known" for name in sorted(weights.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & weights.keys()):
        there, here = weights[name], wanted[name]
        if there.shape != here.shape:
            problems.append(f"{name} is {tuple(there.shape)} instead of {tuple(here.shape)}")
        elif here.is_floating_point() and not there.is_floating_point():
            problems.append(f"{name} is of type {there.dtype}")
    more = f", and {len(problems) - 4} more" if len(problems) > 4 else ""
    return f"{', '.join(problems[:4])}{more}"


def with_weights(config: Config, spec: DataSpec, weights: Mapping[str, Tensor], source: Path | str) -> Any:
    """The module of a config, whose parameters are these tensors themselves, or copies of those that are not `aligned`;
    in evaluation mode.

    It is built without memory of its own, so weights that are mapped from a file stay so, and are read from it when
    they are first used. A module with buffers that are not saved cannot be built so, and is refused.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or of a type other than floating point.
    """
    with torch.device("meta"):
        module = config.build(spec)
    wanted = module.state_dict()
    if wrong := misfits(wanted, weights):
        raise CheckpointError(f"the weights in {source} do not fit a {config.owner.name!r}: {wrong}")
    module.load_state_dict({k: aligned(v.to(wanted[k].dtype)) for k, v in weights.items()}, assign=True)
    left = [name for name, tensor in module.named_buffers() if tensor.is_meta]
    if left:
        raise TypeError(f"{config.owner.__name__} has buffers that no file holds: {left[:3]}")
    return module.eval()
