"""What the benchmarks share: one JSON shape, and the machine they ran on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

import torch

from hwm.devices import find_device, name_of, synchronize


def device_name() -> str:
    if (device := find_device()).type != "cpu":
        return name_of(device)
    return (
        f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"
    )


def clock(device: torch.device) -> float:
    """Seconds: of the processor where one thread does all the work, which others on the machine lengthen less; else of
    the wall."""
    synchronize(device)
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def parser(description: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--quick", action="store_true", help="a model too small to say anything: does it run?")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    return p


def report(as_json: bool, *, ours: float, baseline: float, unit: str, **more: Any) -> None:
    """Print ours, the baseline and their ratio (baseline / ours: above 1 means ours needs less)."""
    result = {
        "ours": ours, "baseline": baseline, "ratio": baseline / ours, "unit": unit, "device": device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}, **more,
    }  # fmt: skip
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        print(f"{key:>28}  {value:,.4g}" if isinstance(value, float) else f"{key:>28}  {value}")


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a part of a benchmark in a process of its own, so that its peak memory is its own; it prints JSON."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    out: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return out
