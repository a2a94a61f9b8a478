"""One process or many: what torchrun says, behind four values. Models stay single-device code."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


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

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process, so that all act alike."""
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def start(device: str = "auto") -> World:
    """Join the group that torchrun started, if it did; one process otherwise."""
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    local = int(os.environ.get("LOCAL_RANK", 0))
    where = torch.device("cuda", local) if cuda else torch.device("cpu" if device == "auto" else device)
    if cuda:
        torch.cuda.set_device(where)
    if "RANK" not in os.environ:
        return World(0, 1, where)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), where)
