"""How a run trains: the options of `hwm train --train.*`. Imports no PyTorch, as options are shown without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hwm.computing import Computing, Format
from hwm.errors import HwmError


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Computing):
    """How a run trains.

    Attributes:
        steps: optimizer updates.
        batch_size: clips an update and process, before accumulation.
        accumulate: forward passes an update; each sees `batch_size` clips.
        fit: do an update's clips, `batch_size` x `accumulate`, in as few passes as the free memory of an NVIDIA card
            allows (`hwm.train.memory`); a resumed run keeps to those that it began with. `--train.batch-size auto`.
        optimizer: AdamW for all, or Muon for the hidden matrices and AdamW for the rest, or, with next to no memory of
            its own, Adafactor for matrices and AdamW for the rest.
        lr: peak learning rate.
        floor: learning rate at the end, as a share of the peak.
        warmup: updates of linear warm-up.
        weight_decay: on matrices only.
        betas: of AdamW.
        clip: largest global norm of the gradients; 0 does not clip.
        ema: decay of the moving average of the weights that is saved and validated; 0 keeps none.
        dtype: number format of the forward pass; weights and optimizer stay float32. auto is decided when a run begins,
            and kept: a resumed run goes on in its own.
        compile: torch.compile the repeated blocks of the model, or all of it where it has none. auto does on an NVIDIA
            card, the blocks of models of ten million weights and more (`hwm.train.blocks.worth_compiling`).
        shard: processes that share one copy of weights, gradients and optimizer state (FSDP2): 1 gives each process a
            copy (DDP), 0 divides one among all, n below their number keeps a copy in every group of n.
        activation_checkpoint: what the backward pass computes again instead of finding it kept: `full` all of a block
            but what goes into it, a third more time for a fraction of the memory; `selective` what is cheap, that is
            all but matrix products, convolutions and attention.
        seed: of data order, masks and initial weights.
        val_every, val_batches: validation on fixed held-out clips and fixed masks, in updates and batches.
        save_every, keep: checkpoints, in updates and how many of them; keep = 0 keeps all.
        async_save: write checkpoints beside the training, from copies of weights and optimizer in ordinary memory.
        log_every: updates between lines. This, `val_every` and `save_every` also happen at the end; 0: only there.
        minutes: stop (resumably) after so long; 0 never.
        track: further loggers, of tensorboard and wandb.
        only: train the parameters of these names alone and leave the others as they are: shell patterns such as
            `trunk.stems.*`, or `fresh` for all that a model has for each robot by itself. Empty trains all.
        lora: rank of low-rank updates that are trained beside the hidden matrices, which stay as they are (LoRA, arXiv
            2106.09685; `hwm.train.lora`), like all else that `only` does not name; 0 trains the weights themselves.
        own_rollouts: share of the updates in which the context ends in steps that the model made itself, as in play
            (`hwm.train.own`); what is learned from is true. 0 trains on true context alone.
        rollout_steps: the most of such steps; each of these updates makes 1 to so many.
        rollout_sampler: words `NAME=VALUE` that change the model's own sampler for them.
    """

    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    fit: bool = False
    optimizer: Literal["adamw", "muon", "adafactor"] = "adamw"
    lr: float = 3e-4
    floor: float = 0.0
    warmup: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema: float = 0.0
    dtype: Format = "auto"
    compile: bool | Literal["auto"] = "auto"
    shard: int = 1
    activation_checkpoint: Literal["none", "selective", "full"] = "none"
    seed: int = 0
    val_every: int = 250
    val_batches: int = 8
    save_every: int = 500
    keep: int = 2
    async_save: bool = False
    log_every: int = 10
    minutes: float = 0.0
    track: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    lora: int = 0
    own_rollouts: float = 0.0
    rollout_steps: int = 8
    rollout_sampler: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "val_batches", "rollout_steps"):
            if getattr(self, name) < 1:
                raise HwmError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "seed",
            "warmup",
            "val_every",
            "save_every",
            "keep",
            "log_every",
            "lr",
            "clip",
            "minutes",
            "threads",
            "shard",
            "lora",
        ):
            if getattr(self, name) < 0:
                raise HwmError(f"train.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.own_rollouts <= 1:
            raise HwmError(f"train.own_rollouts is a share of the updates, 0 to 1, got {self.own_rollouts}")
        if not 0 <= self.ema < 1:
            raise HwmError(f"train.ema is a decay between 0 and 1, got {self.ema}")
