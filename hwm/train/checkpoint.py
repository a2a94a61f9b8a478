"""Checkpoints: safetensors beside JSON, written so that a half-written one is never taken for whole.

hwm.json            public class name, config, data spec (action statistics, tokenizer identity), version; the module of
                    a class that is not this package's, which is told where it is not known, and never imported for it
model.safetensors   the weights to use (the moving average where there is one)
state/              only in a training run's step folders: raw weights, optimizer, and where the run stood; the first
                    two in state/shards/, a file a process, where the run divided them; the moving average in
                    state/average/, where it has low-rank updates, which the weights to use have in them
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from hwm.config import REGISTRY, Trainable, config_from_json, from_json, to_json
from hwm.errors import CheckpointError, HwmError
from hwm.files import write_atomically
from hwm.train.aside import Aside
from hwm.train.distributed import World, is_divided
from hwm.train.lora import merged, rank_of
from hwm.types import DataSpec
from hwm.weights import load_tensors, save_tensors

FORMAT = "hwm-checkpoint/1"
SHARDS = "shards"
"""Below `state/`, where the run divided its weights among processes: each process's part of weights and optimizer."""
AVERAGE = "average"
"""Below `state/`, where the average has low-rank updates: `model.safetensors` of it with these apart."""


def save_model(path: str | Path, module: Trainable, weights: dict[str, Tensor] | None = None, **notes: Any) -> None:
    """Write `hwm.json` and `model.safetensors` into a folder; `notes` are kept beside the config for people.

    Low-rank updates are added to their matrices: the checkpoint is that of a module without them.

    `hwm.json` says that the folder is complete: an old one goes first, and the new one comes last.
    """
    from hwm.version import __version__

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hwm.json").unlink(missing_ok=True)
    tensors = module.state_dict() if weights is None else weights
    save_tensors(folder / "model.safetensors", merged(tensors))
    meta = {
        "format": FORMAT,
        "version": __version__,
        **home_of(type(module)),
        "config": to_json(module.config),
        "spec": to_json(module.spec),
        "notes": to_json(notes),
    }
    write_atomically(folder / "hwm.json", json.dumps(meta, indent=1).encode())


def note_sampler(path: str | Path, sampler: Any) -> None:
    """Change the sampler in the config of a checkpoint (`find`), and nothing else."""
    folder = find(path)
    meta = read_meta(folder)
    meta["config"]["sampler"] = to_json(sampler)
    write_atomically(folder / "hwm.json", json.dumps(meta, indent=1).encode())


def home_of(kind: type[Trainable]) -> dict[str, str]:
    """What `hwm.json` says of a class of another package: its module, for people to know where it comes from."""
    module = kind.__module__
    return {} if module.partition(".")[0] in ("hwm", "__main__") else {"module": module}


def known_by(meta: dict[str, Any]) -> str:
    """How to make the class of a checkpoint known that is not. Nothing is imported because a checkpoint says so."""
    module, name = meta.get("module"), meta["config"].get("class")
    if not isinstance(module, str) or name in REGISTRY.names():
        return ""
    return (
        f". This checkpoint says that {name!r} is of the module {module!r}: if you trust that, install the package it "
        f"is of, give --import {module}, or import it in Python"
    )


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Trainable:
    """The module that a checkpoint folder (or a run's newest checkpoint) holds, in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, or weights that do not fit the recorded config.
    """
    folder = find(path)
    meta = read_meta(folder)
    try:
        config, spec = config_from_json(meta["config"]), from_json(DataSpec, meta["spec"])
    except HwmError as error:
        raise CheckpointError(f"{folder / 'hwm.json'}: {error}{known_by(meta)}") from error
    with torch.device("meta"):
        module: Trainable = config.build(spec)
    weights = load_tensors(folder / "model.safetensors", device)
    # a shipped checkpoint may be stored in half precision; buffers and parameters keep the type they were built with
    built = module.state_dict()
    mismatch = [k for k in built if k in weights and weights[k].shape != built[k].shape]
    if weights.keys() != built.keys() or mismatch:
        missing, extra = sorted(built.keys() - weights.keys()), sorted(weights.keys() - built.keys())
        raise CheckpointError(
            f"the weights in {folder} do not fit their config: missing {missing[:3]}, unexpected {extra[:3]}, "
            f"of other shape {mismatch[:3]}"
        )
    if any(name not in built for name, _ in module.named_buffers()):  # in no file: only building makes them
        module = config.build(spec).to(device)
    # The tensors of the file become the parameters, which so take no second copy, nor the time to draw random ones.
    module.load_state_dict({k: v.to(built[k].dtype) for k, v in weights.items()}, assign=True)
    return module.eval()


def read_meta(folder: Path) -> dict[str, Any]:
    """What `hwm.json` of a checkpoint says.

    Raises:
        CheckpointError: it is missing, damaged or of another format.
    """
    try:
        meta = json.loads((folder / "hwm.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable hwm.json: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise CheckpointError(f"{folder} has format {found!r}, this program reads {FORMAT!r}")
    if not isinstance(meta.get("config"), dict) or not isinstance(meta.get("spec"), dict):
        raise CheckpointError(f"{folder / 'hwm.json'} is damaged: it lacks its config or its spec")
    return meta


def find(path: str | Path) -> Path:
    """The folder of a checkpoint: the path itself, or the newest complete step of a run.

    A finished run that goes on has both: then whichever is of the later update.
    """
    folder = Path(path)
    steps = step_folders(folder)
    if (folder / "hwm.json").is_file():
        final = read_meta(folder).get("notes", {}).get("step")
        newer = steps and final is not None and steps[-1].name > step_name(final)
        return steps[-1] if newer else folder
    if not steps:
        raise CheckpointError(f"there is no checkpoint at {folder} (neither hwm.json nor step folders)")
    return steps[-1]


def is_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint at a path, or a run that has one."""
    return (path / "hwm.json").is_file() or bool(step_folders(path))


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def step_folders(run: Path) -> list[Path]:
    """Complete step checkpoints of a run, oldest first. Unfinished ones have another name until they are whole."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / "hwm.json").is_file())


def save_step(
    run: Path,
    step: int,
    module: Trainable,
    average: dict[str, Tensor] | None,
    optimizers: list[torch.optim.Optimizer],
    progress: dict[str, Any],
    keep: int,
    world: World | None = None,
    aside: Aside | None = None,
) -> Path:
    """Write the checkpoint of a step, atomically, then remove all but the newest `keep`.

    Args:
        module: where it is divided among processes, all of them call this, and each writes its shards.
        aside: only take copies now, and write them there.

    Raises:
        CheckpointError: the disk is full or not writable, now or, with `aside`, at the last call; what was there stays.
    """
    final = run / "checkpoints" / step_name(step)
    work, leads = final.with_name(f".{final.name}.new"), world is None or world.leads
    files: dict[str, dict[str, Tensor]] = {}
    written: Callable[[], Any] | None = None
    if aside:
        aside.wait()
    with _told(run, step, work, leads):
        if leads:
            _make_room(work)
        use = average or module.state_dict()
        if world and is_divided(module):
            use, written = _save_shards(work / "state" / SHARDS, module, use, optimizers, world, aside)
            progress = {**progress, "optimizers": len(optimizers)}
        else:
            files["raw"] = module.state_dict()
            files |= {f"optimizer_{i}": _optimizer_tensors(module, o) for i, o in enumerate(optimizers)}
        if aside:
            use, files = _copied(use), {name: _copied(tensors) for name, tensors in files.items()}
        if average and rank_of(average):
            files[f"{AVERAGE}/model"] = use

    def finish() -> None:
        with _told(run, step, work, leads):
            if written:
                written()
            if leads:
                save_model(work, module, use, step=step)
                _save_state(work / "state", files, {"step": step, **progress})
                _settle(work, final)
            if world and not aside:
                world.wait()
        if leads:
            _remove_old(run, keep)

    if aside:
        aside.begin(finish)
    else:
        finish()
    return final


def _make_room(work: Path) -> None:
    """An empty folder for a checkpoint; what kills left of others is removed, which would fill the disk."""
    for stale in work.parent.glob(".step_*"):
        shutil.rmtree(stale, ignore_errors=True)
    (work / "state").mkdir(parents=True)


def _save_state(folder: Path, files: dict[str, dict[str, Tensor]], progress: dict[str, Any]) -> None:
    """A file of tensors for each name, which may have folders in it, and how far training is."""
    for name, tensors in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        save_tensors(folder / f"{name}.safetensors", tensors)
    (folder / "progress.json").write_text(json.dumps(progress), encoding="utf-8")


def _save_shards(
    folder: Path,
    module: Trainable,
    use: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
    world: World,
    aside: Aside | None,
) -> tuple[dict[str, Tensor], Callable[[], Any]]:
    """Write the shards of this process, or begin to: the weights to use, whole, and what waits until all are there."""
    from hwm.train import sharding

    world.wait()
    sharding.share_buffers(module)
    use = sharding.gathered(use, world)
    return use, sharding.save_shards(folder, _state(module, optimizers), aside)


def _remove_old(run: Path, keep: int) -> None:
    """Leave the newest `keep` checkpoints; all, where it is 0."""
    for old in step_folders(run)[:-keep] if keep > 0 else []:
        os.replace(old, _old(old))  # of one that is half removed, the next save removes the rest
    for old in (run / "checkpoints").glob(_old(Path("step_*")).name):
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _told(run: Path, step: int, work: Path, leads: bool) -> Iterator[None]:
    """Make of what goes wrong an error that says what is left, and leave nothing half written."""
    try:
        yield
    except (OSError, SafetensorError, HwmError) as error:
        if leads:
            shutil.rmtree(work, ignore_errors=True)
        last = step_folders(run) if run.is_dir() else []
        left = f"the last good one is {last[-1]}" if last else "there is none before it"
        raise CheckpointError(f"the checkpoint of step {step} could not be written ({error}); {left}") from error


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in ordinary memory, which updates leave as they are."""
    return {k: v.detach().to("cpu", copy=True) for k, v in tensors.items()}


def _old(folder: Path) -> Path:
    """The name of a checkpoint that is about to be removed."""
    return folder.with_name(f".{folder.name}.old")


def _settle(work: Path, final: Path) -> None:
    """Make sure that a folder is on the disk, and give it its name."""
    for file in work.rglob("*"):
        if file.is_file():
            with file.open("rb") as f:
                os.fsync(f.fileno())
    if final.exists():
        os.replace(final, _old(final))
    os.replace(work, final)


def read_progress(folder: Path) -> dict[str, Any]:
    """What a step checkpoint says of its run: `step`, `seed`, and its options, `train`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        progress: dict[str, Any] = json.loads((folder / "state" / "progress.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be resumed, its progress.json is not readable: {error}") from error
    return progress


def load_step(folder: Path, module: Trainable, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Restore weights and optimizers from a step checkpoint; returns its progress.

    Raises:
        CheckpointError: it was written by another model or optimizer, for other data, or it is damaged.
    """
    meta = read_meta(folder)
    if meta["config"] != json.loads(json.dumps(to_json(module.config))):
        raise CheckpointError(f"{folder} holds another model configuration than this run's; choose another run folder")
    if _kind(from_json(DataSpec, meta["spec"])) != _kind(module.spec):
        raise CheckpointError(
            f"{folder} was trained on other latents or actions than this run's; choose another run folder"
        )
    progress = read_progress(folder)
    saved_rank, rank = progress.get("train", {}).get("lora", 0), rank_of(module.state_dict())
    if saved_rank != rank:
        raise CheckpointError(
            f"{folder} was trained with --train.lora {saved_rank} and this run has {rank}: give the same, or choose "
            "another run folder"
        )
    shards, here = folder / "state" / SHARDS, list((folder / "state").glob("optimizer_*.safetensors"))
    if (saved := progress.pop("optimizers", len(here))) != len(optimizers):
        raise CheckpointError(
            f"{folder} was trained with {saved} optimizers and this run has {len(optimizers)}: keep the optimizer, or "
            "choose another run folder"
        )
    if shards.is_dir() or is_divided(module):
        _load_shards(shards if shards.is_dir() else folder / "state", module, optimizers)
        return progress
    device = next(module.parameters()).device
    weights = load_tensors(folder / "state" / "raw.safetensors", device)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {folder} do not fit this run's model: {error}") from error
    for i, optimizer in enumerate(optimizers):
        tensors = load_tensors(folder / "state" / f"optimizer_{i}.safetensors", device)
        for param, field, key in _fields(folder, tensors, module, [optimizer]):
            value = tensors[key]
            if field == "step":
                value = value.to(_counter_device(optimizer, device))
            elif value.shape == param.shape:  # in the memory format of the weights, as the optimizer made it
                value = torch.empty_like(param, dtype=value.dtype).copy_(value)
            optimizer.state[param][field] = value
    return progress


def load_average(folder: Path, weights: dict[str, Tensor]) -> None:
    """Fill tensors with the weights to use of a checkpoint. They are copied into place, so that memory formats stay.

    Where the tensors have low-rank updates, these are read from the checkpoint's average; without one, nothing is.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    if rank_of(weights):
        folder = folder / "state" / AVERAGE
        if not folder.is_dir():
            return
    if any(hasattr(v, "to_local") for v in weights.values()):
        from hwm.train import sharding

        sharding.load_shards(folder, weights)
        return
    for name, value in load_tensors(folder / "model.safetensors").items():
        weights[name].copy_(value)


def _load_shards(folder: Path, module: Trainable, optimizers: list[torch.optim.Optimizer]) -> None:
    """Fill a module and its optimizers, divided or not, from files that were divided in any way, or not at all."""
    from hwm.train import sharding

    device = next(module.parameters()).device
    try:
        found = sharding.shapes(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the weights {folder}: {error}") from error
    target = dict(module.state_dict())
    owners = {p: o for o in optimizers for g in o.param_groups for p in g["params"]}
    for param, field, key in _fields(folder, [k for k in found if k not in target], module, optimizers):
        optimizer, whole = owners[param], found[key] == param.shape and field != "step"
        where = _counter_device(optimizer, device) if field == "step" else device
        value = torch.empty_like(param) if whole else torch.empty(found[key], device=where)
        optimizer.state[param][field] = target[key] = value.detach()
    try:
        sharding.load_shards(folder, target)
    except HwmError as error:
        raise CheckpointError(f"the weights in {folder} do not fit this run's model: {error}") from error


def _fields(
    folder: Path, keys: Iterable[str], module: Trainable, optimizers: list[torch.optim.Optimizer]
) -> Iterator[tuple[Tensor, str, str]]:
    """What keys of optimizer state are of: (parameter, name of the field, key)."""
    params = dict(module.named_parameters())
    mine = {p for o in optimizers for g in o.param_groups for p in g["params"]}
    for key in keys:
        name, _, field = key.rpartition("/")
        if name not in params or params[name] not in mine:
            raise CheckpointError(f"{folder}: optimizer state of {name!r}, which this run does not train that way")
        yield params[name], field, key


def _counter_device(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.device:
    """Where an optimizer itself would put its counter of steps: fused kernels want it beside the weights."""
    beside = any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    return device if beside else torch.device("cpu")


def _kind(spec: DataSpec) -> Any:
    """What of a data spec a run may not change; more data may change its statistics."""
    return spec.latent, spec.tokenizer, {name: (a.per_step, a.names) for name, a in spec.actions.items()}


def _optimizer_tensors(module: Trainable, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: n for n, p in module.named_parameters()}
    return {
        f"{names[p]}/{field}": value if isinstance(value, Tensor) else torch.tensor(value)
        for p, state in optimizer.state.items()
        for field, value in state.items()
    }


def _state(module: Trainable, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Raw weights and optimizer state by one name each: a parameter is of one optimizer."""
    state: dict[str, Tensor] = dict(module.state_dict())
    for optimizer in optimizers:
        state |= _optimizer_tensors(module, optimizer)
    return state
