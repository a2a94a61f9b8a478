"""A small model with all that a trainer may trip over; `python -m tests.train.toy STORE RUN OPTIONS` trains it."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.config import REGISTRY, Config, Trainable
from hwm.data.clips import Clips
from hwm.data.mixture import Mixture
from hwm.data.store import Store
from hwm.train import trainer
from hwm.train.config import TrainConfig
from hwm.train.distributed import building
from hwm.train.trainer import Trainer
from hwm.types import Batch, DataSpec


class Toy(Trainable, name="test_toy"):
    """Guesses the next step's ids: with noise, a convolution in channels-last format, buffers, and unused weights."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        dim: int = 8
        noise: float = 0.5

    adamw_only = ("embed", "head")

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        d, action = config.dim, next(iter(spec.actions.values()))
        self.embed = nn.Embedding(spec.latent.vocab or 1, d)
        self.conv = nn.Conv2d(d, d, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.act = nn.Linear(action.per_step * action.dim, d)
        self.hidden = nn.Linear(d, d, bias=False)
        self.norm = nn.BatchNorm2d(d, affine=False)
        self.head = nn.Linear(d, spec.latent.vocab or 1)
        self.unused = nn.Linear(3, 3)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        past, future = batch.latents[:, :-1].flatten(0, 1), batch.latents[:, 1:].flatten(0, 1)
        x = self.embed(past)
        if self.config.noise:
            x = x + self.config.noise * torch.randn_like(x)
        x = self.conv(x.movedim(-1, 1).contiguous(memory_format=torch.channels_last))
        if self.config.noise:  # statistics of a batch differ between one process and two
            x = self.norm(x)
        x = x.movedim(1, -1) + self.act(batch.actions[:, 1:].flatten(0, 1).flatten(1))[:, None, None]
        logits = self.head(F.gelu(self.hidden(x)))
        loss = F.cross_entropy(logits.flatten(0, -2).float(), future.flatten())
        return loss, {"accuracy": (logits.argmax(-1) == future).float().mean()}


REGISTRY.pop("test_toy")  # only tests that ask for it see it, by `monkeypatch.setitem(REGISTRY, Toy.name, Toy)`


def mixture(store: Path, workers: int = 0) -> Mixture:
    return Mixture([Clips(Store(store), 3)], workers=workers)


def make_trainer(
    store: Path, run: Path, *, model: dict[str, Any] | None = None, workers: int = 0, **train: Any
) -> Trainer:
    """A trainer of the toy, begun or resumed, validating on the training clips."""
    fields: dict[str, Any] = {
        "batch_size": 4, "log_every": 1, "val_every": 2, "val_batches": 2, "save_every": 2, "warmup": 2, "ema": 0.9,
        "lr": 1e-2, "dtype": "float32",
    }  # fmt: skip
    config = TrainConfig(**{**fields, **train})
    torch.manual_seed(config.seed)
    data = mixture(store, workers)
    with building(config.shard):
        module = Toy.Config(**(model or {})).build(data.spec)
    return Trainer(config, module, data, mixture(store), run)


def main(store: str, run: str, options: str) -> None:
    REGISTRY[Toy.name] = Toy
    torch.set_num_threads(1)
    trainer.peak_flops = lambda device, dtype: 1e9  # type: ignore[assignment]  no time to measure it
    given = json.loads(options)
    slow, small, spoilt = given.pop("slow", 0), given.pop("small", {}), given.pop("spoilt", [])
    made = make_trainer(Path(store), Path(run), **given)
    real, loss = made.update, made.module.loss

    def spoil(batch: Batch) -> Any:
        value, metrics = loss(batch)
        bad = made.module.training and [made.world.rank, made.step] in spoilt
        return value + (math.inf if bad else 0), metrics  # with the gradient that it had

    made.module.loss = spoil  # type: ignore[method-assign]

    def update(batches: Any) -> Any:
        time.sleep(slow)
        if str(made.step) in small:  # from this update on no file may be larger: as if the disk were full
            if made.aside:
                made.aside.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (small[str(made.step)],) * 2)
        return real(batches)

    made.update = update  # type: ignore[method-assign]
    print("begun", flush=True)
    made.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
