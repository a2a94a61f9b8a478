"""A model that trains on its own rollouts; `python -m tests.train.own_rollouts STORE RUN OPTIONS` trains it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from hwm.data.clips import Clips
from hwm.data.mixture import Mixture
from hwm.data.store import Store
from hwm.models.next_block import NextBlock
from hwm.train import trainer
from hwm.train.config import TrainConfig
from hwm.train.distributed import building
from hwm.train.trainer import Trainer


def make_trainer(stores: list[Path], run: Path, model: Any = None, **train: Any) -> Trainer:
    """A trainer of which about half of the updates look back on up to four own steps; nothing else is left to chance in
    the model that it has of itself."""
    fields: dict[str, Any] = {
        "steps": 6, "batch_size": 4, "log_every": 1, "val_every": 3, "val_batches": 2, "save_every": 2, "warmup": 1,
        "lr": 1e-2, "dtype": "float32", "own_rollouts": 0.5, "rollout_steps": 4,
    }  # fmt: skip
    config = TrainConfig(**{**fields, **train})
    torch.manual_seed(config.seed)
    model = model or NextBlock.Config(dim=16, depth=2, heads=2, past=2, horizon=1)
    data = Mixture([Clips(Store(each), model.past + model.horizon) for each in stores])
    with building(config.shard):
        module = model.build(data.spec)
    return Trainer(config, module, data, data, run)


def main(store: str, run: str, options: str) -> None:
    torch.set_num_threads(1)
    trainer.peak_flops = lambda device, dtype: 1e9  # type: ignore[assignment]  no time to measure it
    make_trainer([Path(store)], Path(run), **json.loads(options)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
