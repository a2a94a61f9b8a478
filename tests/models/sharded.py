"""Run by two processes: every registered world model under FSDP2 against the same model whole.

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.models.sharded [cuda]

With `cuda` each process has a card, and they speak by NCCL; otherwise they are on a CPU, and speak by gloo.
"""

import gc
import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from hwm.config import registered
from hwm.train.distributed import World
from hwm.train.sharding import divide
from hwm.types import Batch
from tests.models.test_registry import FAMILIES, build, clip


def own_steps(model, part: Batch) -> Batch:
    """The same clip, of which the model makes as many steps as there are of a group, beginning before it."""
    longer = replace(
        part,
        latents=torch.cat([part.latents[:, : model.group], part.latents], 1),
        actions=torch.cat([part.actions[:, : model.group], part.actions], 1),
    )
    return model.with_own_steps(longer, model.group)


def losses(model, parameters, part: Batch, whole: bool) -> list[float]:
    """Losses of three updates, averaged over the processes; a whole model averages its gradients by hand.

    The second looks back on own steps in place of its first ones.
    """
    optimizer, out = torch.optim.SGD(parameters, lr=0.05), []
    for step in range(3):
        torch.manual_seed(100 * step + dist.get_rank())  # the masks of this process
        loss, _ = model(own_steps(model, part) if step == 1 else part)
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
    register_fsdp_forward_method(sharded, "with_own_steps")
    batch, rank = clip(plain).to(mesh.device_type), dist.get_rank()
    part = Batch(batch.latents[rank : rank + 1], batch.actions[rank : rank + 1], batch.embodiment)
    one, two = losses(plain, plain.parameters(), part, True), losses(sharded, sharded.parameters(), part, False)
    assert one[0] != one[2], "the weights must move for this to say anything"
    difference = max(abs(a - b) for a, b in zip(one, two, strict=True))
    assert difference < bound, (name, one, two)
    if rank == 0:
        print(f"{name}: sharded like whole, {len(list(sharded.units()))} units, difference {difference:.1e}")


def roll_out_in_halves(name: str, world: World, **changes) -> None:
    """Own steps of a model that is trained in bfloat16, whose weights come in that format from the processes."""
    config = registered(name).tiny()
    model = replace(config, **changes).build(build(name).spec)
    part = clip(model).to(world.device)
    divide(model, world, world.size, torch.bfloat16)
    for _ in range(2):
        with torch.autocast(world.device.type, torch.bfloat16):
            own = own_steps(model, part)
            loss, _ = model(own)
        loss.backward()
        assert loss.isfinite()
    assert model.training
    assert torch.equal(own.latents[:, -1], part.latents[:, -1])
    assert not torch.equal(own.latents, part.latents)
    if world.leads:
        print(f"{name}: own steps in halves")


def main(kind: str = "cpu") -> None:
    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for name in FAMILIES:
        compare(name, mesh, 1e-5 if kind == "cpu" else 1e-3)
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
    world = World(dist.get_rank(), dist.get_world_size(), device)
    for name in FAMILIES:
        roll_out_in_halves(name, world)
    roll_out_in_halves("cosmos_ar", world, context_dim=8)
    gc.collect()  # modules that outlive their process group may end the process with an abort
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
