"""Weights, gradients and optimizer state divided among processes: PyTorch's FSDP2 and distributed checkpoints.

A shard is a `DTensor`. Nothing here knows a model: what is divided by itself are the module's `units`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from hwm.config import Trainable
from hwm.errors import HwmError
from hwm.train.aside import Aside
from hwm.train.distributed import World, whole


def divide(module: Trainable, world: World, ways: int, dtype: torch.dtype) -> None:
    """Divide a module's parameters, in place, into `ways` shards; groups of so many processes hold a copy each.

    The leading process has the weights, which the others are sent: theirs may be on the meta device. No process ever
    holds all of them on its own device.

    Args:
        ways: processes that share one copy; all of them, or a divisor of their number (hybrid sharding).
        dtype: in which weights are gathered for a forward pass; shards and sums of gradients stay float32.

    Raises:
        HwmError: processes cannot be divided so, or the module has what no checkpoint would restore.
    """
    if world.size % ways:
        raise HwmError(f"{world.size} processes cannot be divided into groups of {ways}: train.shard must divide them")
    state, kept = (
        ({k: v.cpu().contiguous() for k, v in module.state_dict().items()} if world.leads else {}),
        module.state_dict(),
    )
    if lost := [name for name, _ in module.named_buffers() if name not in kept]:
        raise HwmError(f"{module.name} cannot be divided: its {lost[0]} is in no checkpoint")
    # (a tensor that is not contiguous would be sent as it lies in memory, and arrive as another)
    mesh, policy = _mesh(world, ways), MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    module.to("meta")
    for p in module.parameters():  # other memory formats cannot be divided
        p.data = p.data.contiguous()
    for unit in module.units():
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    for method in ("validation_loss", "with_own_steps"):
        if hasattr(module, method):
            register_fsdp_forward_method(module, method)
    module.to_empty(device=world.device)
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def _mesh(world: World, ways: int) -> DeviceMesh:
    kind = world.device.type
    if ways == world.size:
        return init_device_mesh(kind, (ways,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (world.size // ways, ways), mesh_dim_names=("replicate", "shard"))


def share_buffers(module: nn.Module) -> None:
    """Give all processes the leading one's buffers. Each makes its own of the batches that it sees, and a checkpoint
    holds one process's, whichever wrote them."""
    for buffer in module.buffers():
        dist.broadcast(buffer, 0)


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole tensors, in the leading process's ordinary memory; nothing in the others. All processes must call it."""
    out = {}
    for name, tensor in tensors.items():
        joined = whole(tensor)
        if world.leads:
            out[name] = joined.detach().cpu()
    return out


def save_shards(folder: Path, tensors: Mapping[str, Tensor], aside: Aside | None = None) -> Callable[[], None]:
    """Write tensors as safetensors files, each process its own shards. All processes must call it.

    Args:
        aside: writes go on beside what the caller does next, which may change the tensors.

    Returns:
        What waits for the writes of all processes, and raises HwmError where one could not write.
    """
    state, writer = dict(tensors), HuggingFaceStorageWriter(str(folder), save_distributed=True)
    pending: Any = dcp.async_save(state, storage_writer=writer, process_group=aside.group) if aside else None

    def wait() -> None:
        try:
            pending.result() if pending else dcp.save(state, storage_writer=writer)
        except CheckpointException as error:
            raise HwmError(f"{folder} could not be written: {_why(error)}") from error

    return wait


def load_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, divided or whole, from the safetensors files of a folder, however those were divided.

    Raises:
        HwmError: a tensor is missing, or has another shape.
    """
    try:
        with warnings.catch_warnings():  # that one process loads by itself is meant
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise HwmError(f"{folder} cannot be read: {_why(error)}") from error


def shapes(folder: Path) -> dict[str, torch.Size]:
    """Names and whole shapes of the tensors in a folder of safetensors files."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: meta.size for name, meta in found.items() if isinstance(meta, TensorStorageMetadata)}


def _why(error: CheckpointException) -> str:
    return "; ".join(sorted({str(wrapped[0]) for wrapped in error.failures.values()}))
