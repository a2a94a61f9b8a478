"""A small world model trained by low-rank updates: `python -m tests.train.low_rank STORE RUN OPTIONS ...` does it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from hwm.models.next_block import NextBlock
from hwm.train import trainer
from hwm.train.config import TrainConfig
from hwm.train.distributed import building
from hwm.train.trainer import Trainer
from tests.train.toy import mixture


def make_trainer(store: Path, run: Path, *, drop: float = 0.0, dim: int = 16, **train: Any) -> Trainer:
    """A trainer, begun or resumed, validating on the training clips."""
    fields: dict[str, Any] = {
        "batch_size": 4, "log_every": 1, "val_every": 2, "val_batches": 2, "save_every": 2, "warmup": 0, "ema": 0.5,
        "lr": 2e-3, "dtype": "float32", "floor": 1.0, "lora": 2, "only": ("head.*",),
    }  # fmt: skip
    config = TrainConfig(**{**fields, **train})
    torch.manual_seed(config.seed)
    data = mixture(store)
    with building(config.shard):
        module = NextBlock.Config(past=2, horizon=1, dim=dim, depth=2, heads=2, mlp_drop=drop).build(data.spec)
    return Trainer(config, module, data, mixture(store), run)


def main(store: str, *runs: str) -> None:
    torch.set_num_threads(1)
    trainer.peak_flops = lambda device, dtype: 1e9  # type: ignore[assignment]  no time to measure it
    for run, options in zip(runs[::2], runs[1::2], strict=True):
        make_trainer(Path(store), Path(run), **json.loads(options)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
