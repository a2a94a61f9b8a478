"""Run by two processes: every registered world model under FSDP2 against the same model whole.

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.models.sharded [cuda]

With `cuda` each process has a card, and they speak by NCCL; otherwise they are on a CPU, and speak by gloo.
"""

import gc
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from hwm.types import Batch
from tests.models.test_registry import FAMILIES, build, clip


def losses(model, parameters, part: Batch, whole: bool) -> list[float]:
    """Losses of three updates, averaged over the processes; a whole model averages its gradients by hand."""
    optimizer, out = torch.optim.SGD(parameters, lr=0.05), []
    for step in range(3):
        torch.manual_seed(100 * step + dist.get_rank())  # the masks of this process
        loss, _ = model(part)
        optimizer.zero_grad()
        loss.backward()
        if whole:
            for p in model.parameters():
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        out.append(float(mean) / dist.get_world_size())
    return out


def compare(name: str, mesh: DeviceMesh, bound: float) -> None:
    torch.manual_seed(0)
    plain, sharded = (build(name).to(mesh.device_type) for _ in range(2))
    sharded.load_state_dict(plain.state_dict())
    for unit in sharded.units():
        fully_shard(unit, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    batch, rank = clip(plain).to(mesh.device_type), dist.get_rank()
    part = Batch(batch.latents[rank : rank + 1], batch.actions[rank : rank + 1], batch.embodiment)
    one, two = losses(plain, plain.parameters(), part, True), losses(sharded, sharded.parameters(), part, False)
    assert one[0] != one[2], "the weights must move for this to say anything"
    difference = max(abs(a - b) for a, b in zip(one, two, strict=True))
    assert difference < bound, (name, one, two)
    if rank == 0:
        print(f"{name}: sharded like whole, {len(list(sharded.units()))} units, difference {difference:.1e}")


def main(kind: str = "cpu") -> None:
    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for name in FAMILIES:
        compare(name, mesh, 1e-5 if kind == "cpu" else 1e-3)
    gc.collect()  # modules that outlive their process group may end the process with an abort
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
