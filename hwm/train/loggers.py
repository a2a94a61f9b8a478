"""Where figures go: a JSONL file always, TensorBoard and Weights & Biases when asked for."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from hwm.errors import HwmError, unknown
from hwm.files import write_atomically


class Logger:
    """Appends one JSON object a line to `log.jsonl`; lines after `resume_step` of an earlier run are dropped."""

    def __init__(self, run: Path, extra: tuple[str, ...], config: dict[str, Any], resume_step: int) -> None:
        self.path = run / "log.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= resume_step]
            write_atomically(self.path, ("".join(line + "\n" for line in kept) if resume_step else "").encode())
        self.file = self.path.open("a", buffering=1, encoding="utf-8")
        self.others = [_open(name, run, config) for name in extra]

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write figures; those that are not finite, as a loss of float16 can be, are left out: JSON has none."""
        values = {k: v for k, v in values.items() if math.isfinite(v)}
        line = {"step": step, "time": round(time.time(), 3), **{k: float(f"{v:.6g}") for k, v in values.items()}}
        self.file.write(json.dumps(line) + "\n")
        for other in self.others:
            other(step, values)

    def close(self) -> None:
        self.file.close()


def read_log(run: str | Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    path = Path(run) / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):  # a line cut short by a kill
        return 1 << 62


def _open(name: str, run: Path, config: dict[str, Any]) -> Any:
    if name == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise HwmError("TensorBoard is not installed: pip install humanoid-world-models[track]") from error
        writer = SummaryWriter(str(run / "tensorboard"))

        def add(step: int, values: dict[str, float]) -> None:
            for k, v in values.items():
                writer.add_scalar(k, v, step)

        return add
    if name == "wandb":
        try:
            import wandb
        except ImportError as error:
            raise HwmError("Weights & Biases is not installed: pip install humanoid-world-models[track]") from error
        tracker = wandb.init(
            project="humanoid-world-models", name=run.name, dir=str(run), config=config, resume="allow"
        )
        return lambda step, values: tracker.log(values, step=step)
    raise unknown("logger", name, ["tensorboard", "wandb"])
