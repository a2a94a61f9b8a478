"""How fast a recipe trains and predicts on this machine, against what its matrix products could reach."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hwm.data.clips import fake_batch
from hwm.devices import Runtime, choose_format, name_of, peak_flops, peak_memory, runtime_of, synchronize
from hwm.models.base import WorldModel
from hwm.train import distributed
from hwm.train.blocks import arithmetic, compile_blocks, recompute, worth_compiling
from hwm.train.flops import count_flops
from hwm.train.halves import Halves
from hwm.train.lora import choose
from hwm.train.onednn import use_onednn
from hwm.train.optim import gradient_norm, optimizers

LONG = 10.0
"""Seconds of a prediction that is not repeated: what happens only the first time is a small part of it."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Figures of one recipe on random clips.

    Attributes:
        recipe, device, dtype, batch_size: what was measured; clips of a forward and backward pass.
        parameters: of the model.
        seconds: of a training step: forward, backward, clipping, optimizer; median.
        tokens_per_second: latent cells of all clips that a second of training sees.
        flops: floating-point operations of a training step, those that are done again included.
        peak: operations a second of a large matrix product in this type, measured.
        utilisation: flops / seconds / peak.
        memory: bytes at the peak: of the GPU, or of the process.
        predict_seconds: of predicting `horizon` steps of one clip; None for a tokenizer.
    """

    recipe: str
    device: str
    dtype: str
    batch_size: int
    parameters: int
    seconds: float
    tokens_per_second: float
    flops: float
    peak: float
    utilisation: float
    memory: float
    predict_seconds: float | None

    def __str__(self) -> str:
        predict = "" if self.predict_seconds is None else f"\n  predicting: {self.predict_seconds:.3f} s a clip"
        return (
            f"{self.recipe}: {self.parameters:,} parameters, {self.device}, {self.dtype}, {self.batch_size} clips\n"
            f"  training: {self.seconds:.3f} s a step, {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.memory / 2**30:.1f} GiB\n"
            f"  {self.flops / 1e12:.2f} TFLOP a step: {self.utilisation:.0%} of the {self.peak / 1e12:.2f} TFLOP/s of "
            f"a large matrix product{predict}"
        )


def bench(name: str, recipe: Any, steps: int) -> Bench:
    """Take so many training steps on random clips after a first that does not count, and make a prediction."""
    c, spec = recipe.train, recipe.data.expects or recipe.data.open().spec
    world = distributed.start(c.device)
    device = world.device
    runtime = Runtime(device, choose_format(c.dtype, device))
    forward = partial(arithmetic, runtime, c.activation_checkpoint)
    torch.manual_seed(c.seed)
    with device:  # where there is room for it, and random numbers are fast
        module = recipe.model.build(spec)
    choose(module, c.only, c.lora)
    recompute(module, c.activation_checkpoint)
    batch = fake_batch(spec, c.batch_size, recipe.data.steps).to(device)

    with count_flops() as counter, forward():
        module(batch)[0].backward()
    module.zero_grad(set_to_none=True)
    if c.compile is True or (c.compile == "auto" and worth_compiling(module, device)):
        compile_blocks(module)
    use_onednn(module, runtime)
    halves = Halves(module, runtime, c.activation_checkpoint)
    made = optimizers(module, c.optimizer, c.lr, c.weight_decay, c.betas, runtime.dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(steps + 1):
        start = _now(device)
        with halves.used():
            with forward():
                loss, _ = module(batch)
            loss.backward()
            halves.collect()
        gradient_norm(module, c.clip)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(_now(device) - start)
    median, flops, peak = statistics.median(seconds[1:]), counter.get_total_flops(), peak_flops(device, runtime.format)
    return Bench(
        recipe=name,
        device=name_of(device),
        dtype=runtime.format,
        batch_size=c.batch_size,
        parameters=sum(p.numel() for p in module.parameters()),
        seconds=median,
        tokens_per_second=c.batch_size * recipe.data.steps * spec.latent.cells / median,
        flops=flops,
        peak=peak,
        utilisation=flops / median / peak,
        memory=peak_memory(device),
        predict_seconds=time_prediction(module, c.dtype) if isinstance(module, WorldModel) else None,
    )


def time_prediction(model: WorldModel, dtype: str = "auto") -> float:
    """Seconds of a prediction of one clip, the second of two; the first where that takes long.

    Args:
        dtype: as `hwm.devices.runtime_of`.
    """
    model.eval()
    runtime, c = runtime_of(model, dtype), model.config
    clip = fake_batch(model.spec, 1, c.past + c.horizon).to(runtime.device).window(0, c.past, c.past + c.horizon)
    took = 0.0
    for _ in range(2):
        start = _now(runtime.device)
        with torch.inference_mode(), runtime.autocast():
            model.predict(clip)
        took = _now(runtime.device) - start
        if took > LONG:
            break
    return took


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
