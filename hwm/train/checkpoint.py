"""Checkpoints: safetensors beside JSON, written so that a half-written one is never taken for whole.

    hwm.json            public class name, config, data spec (action statistics, tokenizer identity), version
    model.safetensors   the weights to use (the moving average where there is one)
    state/              only in a training run's step folders: raw weights, optimizer, and where the run stood
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hwm.config import Trainable, config_from_json, from_json, to_json
from hwm.types import DataSpec, HwmError

FORMAT = "hwm-checkpoint/1"


class CheckpointError(HwmError):
    """A checkpoint that is missing, damaged, or of something else."""


def save_model(path: str | Path, module: Trainable, weights: dict[str, Tensor] | None = None, **notes: Any) -> None:
    """Write `hwm.json` and `model.safetensors` into a folder; `notes` are kept beside the config for people."""
    from hwm import __version__

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = module.state_dict() if weights is None else weights
    save_tensors(folder / "model.safetensors", tensors)
    meta = {
        "format": FORMAT,
        "version": __version__,
        "config": to_json(module.config),
        "spec": to_json(module.spec),
        "notes": to_json(notes),
    }
    (folder / "hwm.json").write_text(json.dumps(meta, indent=1))


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Trainable:
    """The module that a checkpoint folder (or a run's newest checkpoint) holds, in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, or weights that do not fit the recorded config.
    """
    folder = find(path)
    meta = read_meta(folder)
    config, spec = config_from_json(meta["config"]), from_json(DataSpec, meta["spec"])
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
    module = config.build(spec).to(device)
    module.load_state_dict({k: v.to(built[k].dtype) for k, v in weights.items()})
    return module.eval()


def read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((folder / "hwm.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} has no readable hwm.json: {error}") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {meta.get('format')!r}, this program reads {FORMAT!r}")
    return meta


def find(path: str | Path) -> Path:
    """The folder of a checkpoint: the path itself, or the newest complete step of a run."""
    folder = Path(path)
    if (folder / "hwm.json").is_file():
        return folder
    steps = step_folders(folder)
    if not steps:
        raise CheckpointError(f"there is no checkpoint at {folder} (neither hwm.json nor step folders)")
    return steps[-1]


def step_folders(run: Path) -> list[Path]:
    """Complete step checkpoints of a run, oldest first. Unfinished ones have another name until they are whole."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / "hwm.json").is_file())


def save_step(
    run: Path, step: int, module: Trainable, average: dict[str, Tensor] | None,
    optimizers: list[torch.optim.Optimizer], progress: dict[str, Any], keep: int,
) -> Path:
    """Write the checkpoint of a step, atomically, then remove all but the newest `keep`.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = run / "checkpoints" / f"step_{step:08d}"
    work = run / "checkpoints" / f".step_{step:08d}.{os.getpid()}"
    try:
        shutil.rmtree(work, ignore_errors=True)
        (work / "state").mkdir(parents=True)
        save_model(work, module, average, step=step)
        save_tensors(work / "state" / "raw.safetensors", module.state_dict())
        names = {p: n for n, p in module.named_parameters()}
        for i, optimizer in enumerate(optimizers):
            save_tensors(work / "state" / f"optimizer_{i}.safetensors", _optimizer_tensors(optimizer, names))
        (work / "state" / "progress.json").write_text(json.dumps({"step": step, **progress}))
        for file in work.rglob("*"):
            if file.is_file():
                with file.open("rb") as f:
                    os.fsync(f.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(work, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(work, ignore_errors=True)
        last = step_folders(run)
        left = f"the last good one is {last[-1]}" if last else "there is none before it"
        raise CheckpointError(f"the checkpoint of step {step} could not be written ({error}); {left}") from error
    for old in step_folders(run)[:-keep] if keep > 0 else []:
        shutil.rmtree(old)
    return final


def load_step(folder: Path, module: Trainable, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Restore weights and optimizers from a step checkpoint; returns its progress.

    Raises:
        CheckpointError: it was written by another model or optimizer.
    """
    meta = read_meta(folder)
    if meta["config"] != json.loads(json.dumps(to_json(module.config))):
        raise CheckpointError(f"{folder} holds another model configuration than this run's; choose another run folder")
    device = next(module.parameters()).device
    module.load_state_dict(load_tensors(folder / "state" / "raw.safetensors", device))
    params = dict(module.named_parameters())
    for i, optimizer in enumerate(optimizers):
        tensors = load_tensors(folder / "state" / f"optimizer_{i}.safetensors", device)
        mine = {p for g in optimizer.param_groups for p in g["params"]}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            if name not in params or params[name] not in mine:
                raise CheckpointError(f"{folder}: optimizer state of {name!r}, which this run does not train that way")
            # AdamW keeps its step counter on the CPU
            optimizer.state[params[name]][field] = value.cpu() if field == "step" else value
    progress: dict[str, Any] = json.loads((folder / "state" / "progress.json").read_text())
    return progress


def _optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    return {
        f"{names[p]}/{field}": value if isinstance(value, Tensor) else torch.tensor(value)
        for p, state in optimizer.state.items()
        for field, value in state.items()
    }


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, str(path))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return load_file(str(path), device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the weights {path}: {error}") from error
