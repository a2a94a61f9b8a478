"""One process or many: what torchrun says, behind four values. Models stay single-device code."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hwm.devices import find_device

GROUPS = count()
"""The numbers of the groups that this process joins, one after the other; the same in all that train together."""

PATIENCE = timedelta(hours=1)
"""How long processes wait for one: for the leading one above all, which draws pictures and writes checkpoints alone."""


@dataclass(frozen=True)
class World:
    """Where this process stands among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The largest of a value over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process, so that all act alike. Waits for no device."""
        return [x > 0 for x in self.largest(torch.tensor(flags, dtype=torch.int32)).tolist()]

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def group(self, backend: str) -> dist.ProcessGroup | None:
        """A further group of all processes, for what goes on beside; None where there is one process."""
        if self.size == 1:
            return None
        group = dist.new_group(backend=backend)
        assert isinstance(group, dist.ProcessGroup)  # all processes are of it
        return group

    def close(self) -> None:
        """Leave the group; what follows is one process's own."""
        if dist.is_initialized():
            dist.destroy_process_group()


def start(device: str = "auto") -> World:
    """Join the group that torchrun started, if it did; one process otherwise.

    Args:
        device: as `hwm.devices.find_device` takes it. Of several processes each takes the GPU of its number.

    Raises:
        HwmError: there is no such device.
    """
    where = find_device(device)
    cuda = where.type == "cuda"
    if cuda and (where.index is None or "LOCAL_RANK" in os.environ):
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if cuda:
        torch.cuda.set_device(where)
    if "RANK" not in os.environ:
        return World(0, 1, where)
    if not dist.is_initialized():
        _join(where)
    return World(dist.get_rank(), dist.get_world_size(), where)


def _join(device: torch.device) -> None:
    """Meet where no group of these processes has met before: what an earlier one left there would be taken for the
    addresses of this one's processes, which would wait for each other for ever.

    On GPUs tensors travel by NCCL, and what is in ordinary memory by gloo, which waits for no GPU.
    """
    cuda = device.type == "cuda"
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore(f"hwm/{next(GROUPS)}", store),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
        device_id=device if cuda else None,
    )


def building(shard: int) -> AbstractContextManager[Any]:
    """Where a process is to build a module: one that will be sent its part of the weights needs none of its own."""
    return torch.device("meta") if shard != 1 and not leading() else nullcontext()


def leading() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_divided(module: nn.Module) -> bool:
    """Whether a module's weights are divided among processes (`hwm.train.sharding`)."""
    return hasattr(module, "set_requires_gradient_sync")  # of FSDP2 alone, whose import takes seconds


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, where it is not divided."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]
    return part


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together of the parts that processes hold, if they do; then all of them must call it."""
    joined: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]
    return joined


def part_like(tensor: Tensor, divided: Tensor) -> Tensor:
    """This process's part of a tensor that all processes have whole, cut as another of its shape is."""
    if not hasattr(divided, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return own_part(distribute_tensor(tensor, divided.device_mesh, divided.placements, src_data_rank=None))  # type: ignore[attr-defined]
