"""The one training loop. `Trainer.run` is the loop, `Trainer.update` one optimizer update.

Everything random in update n (which clips, which masks, which noise) is a function of (seed, n), so a run that was
killed and resumed equals one that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwm.config import Trainable, to_json
from hwm.data.mixture import Mixture, loader
from hwm.devices import Runtime, choose_format, peak_flops
from hwm.errors import HwmError
from hwm.files import write_atomically
from hwm.train import checkpoint, distributed
from hwm.train.allocator import keep_freed_memory
from hwm.train.aside import Aside
from hwm.train.blocks import arithmetic, compile_blocks, recompute, worth_compiling
from hwm.train.config import TrainConfig
from hwm.train.distributed import whole
from hwm.train.finite import LossScale, Verdict
from hwm.train.flops import count_flops
from hwm.train.halves import Halves
from hwm.train.loggers import Logger
from hwm.train.lora import choose
from hwm.train.onednn import use_onednn
from hwm.train.optim import MovingAverage, gradient_norm, heeds, learning_rate, optimizers
from hwm.train.own import OwnRollouts
from hwm.train.parallel import Parallel, never_trained
from hwm.train.progress import Meter
from hwm.types import Batch, DataSpec


class Trainer:
    """Trains any `Trainable` on any `Mixture`; resumes whatever its run folder holds.

    Args:
        on_validate: called as (step, module with the weights to use, run folder) after each validation, in the
            leading process: for samples and pictures.

    Raises:
        HwmError: held-out data of another kind than the training data, or a run folder of another run.
    """

    def __init__(
        self,
        config: TrainConfig,
        module: Trainable,
        data: Mixture,
        held_out: Mixture | None,
        run: str | Path,
        on_validate: Callable[[int, Trainable, Path], None] | None = None,
    ) -> None:
        self.config, self.data, self.held_out, self.run_folder = config, data, held_out, Path(run)
        self.on_validate = on_validate
        if held_out:
            same_kind(data.spec, held_out.spec)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.world = distributed.start(config.device)
        self.runtime = Runtime(self.world.device, self._format())
        self.module = module
        compiled = worth_compiling(module, self.world.device) if config.compile == "auto" else config.compile
        self.config = config = replace(config, dtype=self.runtime.format, compile=compiled)  # type: ignore[arg-type]
        self.own = OwnRollouts(config, module, data) if config.own_rollouts else None
        choose(self.module, config.only, config.lora)
        self.divided = self.world.size > 1 and config.shard != 1
        if config.fit:
            self.config = config = self._fitted(config)
        recompute(self.module, config.activation_checkpoint)
        if self.divided:
            from hwm.train.sharding import divide

            divide(self.module, self.world, config.shard or self.world.size, self.runtime.dtype)
        else:
            self.module.to(self.world.device)
        self.flops = self._count_flops() if self.world.leads or self.divided else 0
        parallel = self.world.size > 1 and not self.divided
        never = self._never_trained() if parallel else None
        if config.compile:
            compile_blocks(self.module)
        if not self.divided:
            use_onednn(self.module, self.runtime)
        self.halves = Halves(self.module, self.runtime, config.activation_checkpoint, self.world.size)
        self.optimizers = optimizers(
            self.module, config.optimizer, config.lr, config.weight_decay, config.betas, self.runtime.dtype
        )
        self.aside = Aside(self.world) if config.async_save else None
        self.step = 0
        self.scale = LossScale(self.runtime.format == "float16")
        self.unread: Verdict | None = None
        # those that leave everything alone where a tensor on the device says so need not be waited for
        self.heedful = not self.scale.on and all(heeds(o, self.world.device) for o in self.optimizers)
        resumed = self._resume()
        self.average = MovingAverage(self.module, config.ema) if config.ema else None
        if resumed and self.average:
            checkpoint.load_average(resumed, self.average.weights)
        self.model: Any = Parallel(self.module, never) if parallel else self.module

    def _resume(self) -> Path | None:
        """The step folder that the run goes on from, if there is one."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        steps = checkpoint.step_folders(self.run_folder)
        if not steps:
            return None
        progress = checkpoint.load_step(steps[-1], self.module, self.optimizers)
        self.step = int(progress["step"])
        self.scale.restore(progress.get("loss_scale", self.scale.state()))
        if self.world.leads:
            print(f"resuming {self.run_folder} at update {self.step}")
        return steps[-1]

    def _format(self) -> str:
        """The number format: what is wanted, else that in which the run began, else what suits all its devices."""
        steps = checkpoint.step_folders(self.run_folder)
        if self.config.dtype == "auto" and steps:
            return str(checkpoint.read_progress(steps[-1])["train"]["dtype"])
        found = choose_format(self.config.dtype, self.world.device)
        float32, float16 = self.world.any(found == "float32", found == "float16")  # cards of a run may differ
        return "float32" if float32 else "float16" if float16 else found

    def _fitted(self, config: TrainConfig) -> TrainConfig:
        """An update's clips in the passes that the run began with, or as few as there is memory for."""
        from hwm.train.memory import GIB, fewest_passes, free_memory

        steps, clips = checkpoint.step_folders(self.run_folder), config.batch_size * config.accumulate
        began = checkpoint.read_progress(steps[-1])["train"] if steps else {"batch_size": 0, "accumulate": 0}
        if began["batch_size"] * began["accumulate"] == clips:
            return replace(config, batch_size=began["batch_size"], accumulate=began["accumulate"])
        free = free_memory(self.world.device)
        if free is None:
            return config
        free = -self.world.largest(torch.tensor(-free, dtype=torch.float64)).item()
        length = self.data.batch(config.seed, 0, 1).latents.shape[1]
        found = fewest_passes(self.module.config, self.data.spec, length, config, free, self.world.size)
        fitted = found.train if found else replace(config, batch_size=1, accumulate=clips)
        if self.world.leads:
            print(
                f"{fitted.batch_size} clips a pass, {fitted.accumulate} passes an update"
                + (f": {found.memory.total / GIB:.1f} of {free / GIB:.1f} GiB" if found else "")
            )
        return fitted

    def run(self) -> Trainable:
        """Train to `config.steps`; returns the module, with the averaged weights where there are any.

        Raises:
            HwmError: the loss is not finite (the batch is saved), or a checkpoint could not be written.
            KeyboardInterrupt: Ctrl-C, after a checkpoint.
        """
        c, began = self.config, time.monotonic()
        logger = Logger(self.run_folder, c.track, to_json(c), self.step) if self.world.leads else None
        meter = self._meter()
        batches = self._batches()
        if self.world.device.type == "cpu":
            keep_freed_memory()
        try:
            with self._signals() as interrupted:
                while self.step < c.steps:
                    values = self.update(batches)
                    self.step += 1
                    if c.compile and self.step == meter.start + 1:
                        meter.leave_out(self.step, "first update, with compilation")
                    if self._due(c.log_every):
                        self._log(logger, meter, values)
                    if self.held_out and self._due(c.val_every):
                        self._validate(logger, meter)
                    spent = c.minutes > 0 and time.monotonic() - began > c.minutes * 60
                    spent, halted = self.world.any(spent, bool(interrupted))
                    if spent or halted or self._due(c.save_every):
                        with meter.paused():
                            self.save()
                    if (spent or halted) and self.step < c.steps:
                        meter.note(f"stopped at update {self.step}; the same command goes on from there")
                        if halted:
                            self._leave()
                            raise KeyboardInterrupt
                        break
        finally:
            meter.close()
            if logger:
                logger.close()
            if self.aside:
                self.aside.wait()
        if self.average:
            self.module.load_state_dict(self.average.weights)
        if self.step == c.steps:
            weights = {k: whole(v) for k, v in self.module.state_dict().items()}
            if self.world.leads:
                checkpoint.save_model(self.run_folder, self.module, weights, step=self.step)
        self._leave()
        return self.module.eval()

    def _leave(self) -> None:
        """Leave the other processes. The wrapper goes first: should it hold the last reference to the group, then
        freeing it (PyTorch 2.13, gloo) waits, with the interpreter's lock, for a thread that waits for that lock."""
        if self.aside:
            self.aside.wait()
        self.model = self.module
        gc.collect()
        self.world.close()

    def update(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One optimizer update; returns detached scalars."""
        c = self.config
        self.model.train()
        torch.manual_seed(c.seed * 1_000_003 + self.step * 997 + self.world.rank)  # masks and noise of this update
        sums, losses = self._passes(batches)
        if self.own:
            sums = self.own.named(sums, self.step)
        self.scale.unscale(p.grad for p in self.module.parameters() if p.grad is not None)
        sums["gradient_norm"] = norm = gradient_norm(self.module, c.clip)
        rate = learning_rate(self.step, peak=c.lr, warmup=c.warmup, total=c.steps, floor=c.floor)
        if self._goes_on(Verdict(self.step, losses, norm, self.world)):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_share", 1.0)
                optimizer.step()
            if self.average:
                self.average.update(self.module, self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return {**sums, "lr": torch.tensor(rate)}

    def _passes(self, batches: Iterator[Batch]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The forward and backward passes of an update: means of what they put out, and the loss of each."""
        c, sums, losses = self.config, dict[str, Tensor](), list[Tensor]()
        with self.halves.used():
            for i in range(c.accumulate):
                batch = next(batches).to(self.world.device)
                if self.own:
                    with self._autocast():  # its own: no cast without gradient is left to the loss
                        batch = self.own.rolled_out(batch)
                with self._no_sync(i), self._autocast():
                    loss, metrics = self.model(batch)
                with self._no_sync(i):
                    (loss / (c.accumulate / self.scale.value)).backward()
                self.halves.collect()
                losses.append(loss.detach())
                for k, v in {"loss": loss, **metrics}.items():
                    sums[k] = sums.get(k, 0) + v.detach() / c.accumulate
        if isinstance(self.model, Parallel):
            self.model.check()
        return sums, losses

    def _goes_on(self, verdict: Verdict) -> bool:
        """Whether to change the weights by an update of which this is found: if so, then as far as it is finite.

        An update that is not finite would spoil every weight, and then the next checkpoint. Fused optimizers read on
        the device that it is not; then the verdict on it waits until the next one is under way. Others wait for it.
        """
        self._settle()
        self.unread = verdict
        if not self.heedful:
            return self._settle()
        for optimizer in self.optimizers:
            optimizer.found_inf = verdict.bad  # type: ignore[attr-defined]
        return True

    def _settle(self) -> bool:
        """Read what was found of the last update, unless that was done: whether it was finite, or is to be left out.

        Raises:
            HwmError: it was not, and may not be left out.
        """
        verdict, self.unread = self.unread, None
        finite = verdict is None or verdict.finite
        if verdict and not self.scale.heed(finite):
            raise self._not_finite(verdict)
        return finite

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean validation loss and metrics over the same held-out clips, with the same draws, every time."""
        assert self.held_out is not None
        kept = {k: v.clone() for k, v in self.module.state_dict().items()} if self.average else None
        if self.average:
            self.module.load_state_dict(self.average.weights)
        self.module.eval()
        found: dict[str, list[Tensor]] = {}
        state = torch.get_rng_state()
        for i, batch in enumerate(self.held_out.fixed(self.config.batch_size, self.config.val_batches)):
            torch.manual_seed(i)
            with self._autocast():
                loss, metrics = self.module.validation_loss(batch.to(self.world.device))
            for k, v in {"loss": loss, **metrics}.items():
                found.setdefault(k, []).append(v.detach())
        torch.set_rng_state(state)
        if self.on_validate and self.world.leads and not self.divided:  # a rollout needs all weights in one place
            self.on_validate(self.step, self.module, self.run_folder)
        if kept:
            self.module.load_state_dict(kept)
        read = {k: torch.stack([x.float() for x in v]).tolist() for k, v in found.items()}
        return {f"val_{k}": sum(v) / len(v) for k, v in read.items()}

    def save(self) -> None:
        """Write a checkpoint of this update."""
        self._settle()
        average = self.average.weights if self.average else None
        progress = {"seed": self.config.seed, "train": to_json(self.config), "loss_scale": self.scale.state()}
        if self.divided or self.world.leads:
            checkpoint.save_step(
                self.run_folder, self.step, self.module, average, self.optimizers, progress, self.config.keep,
                self.world if self.divided else None, self.aside,
            )  # fmt: skip

    def _log(self, logger: Logger | None, meter: Meter, values: dict[str, Tensor]) -> None:
        self._settle()
        means = self._mean(values)  # over all processes: each of them must come here
        if self.scale.on:
            means["loss_scale"] = self.scale.value
        if logger:
            logger.log(self.step, meter.line(self.step, means))

    def _validate(self, logger: Logger | None, meter: Meter) -> None:
        self._settle()
        with meter.paused():
            values = self.validate()
        if logger:
            logger.log(self.step, values)
            meter.note(f"update {self.step}: " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))

    def _batches(self) -> Iterator[Batch]:
        c = self.config
        return loader(
            self.own.clips if self.own else self.data,
            seed=c.seed,
            start=self.step * c.accumulate,
            size=c.batch_size * self.world.size,
            rank=self.world.rank,
            world=self.world.size,
            workers=self.data.workers,
            pinned=self.world.device.type == "cuda",
        )

    def _due(self, every: int) -> bool:
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    def _mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack([v.float().to(self.world.device) for v in values.values()])
        return dict(zip(values, self.world.mean(stacked).tolist(), strict=True))

    def _meter(self) -> Meter:
        c, device = self.config, self.world.device
        batch = self.data.batch(c.seed, 0, 1).to(device)
        clips = c.batch_size * c.accumulate  # of an update and process
        tokens = batch.latents.shape[1] * self.data.spec.latent.cells * clips * self.world.size
        peak = peak_flops(device, c.dtype) if self.world.leads else 0.0
        meter = Meter(c.steps, self.step, tokens, device, flops=self.flops * clips, peak=peak, show=self.world.leads)
        meter.note(f"on {self.runtime}")
        return meter

    def _count_flops(self) -> int:
        """Of a forward and backward pass of one clip, apart from training and from torch.compile, which gives up under
        the counter, and for good."""
        self.module.eval()  # training must not notice, and some layers count what they see
        batch = self.data.batch(self.config.seed, 0, 1).to(self.world.device)
        with count_flops() as flops, self._autocast():
            self.module(batch)[0].backward()
        self.module.zero_grad(set_to_none=True)
        return flops.get_total_flops()

    def _never_trained(self) -> set[str] | None:
        """Before torch.compile, which would do its work for batches of one clip."""
        clips = self.own.examples() if self.own else self.data.examples()
        return never_trained(self.module, (batch.to(self.world.device) for batch in clips), self._autocast)

    def _autocast(self) -> AbstractContextManager[Any]:
        return arithmetic(self.runtime, self.config.activation_checkpoint)

    def _no_sync(self, i: int) -> AbstractContextManager[Any]:
        last = i == self.config.accumulate - 1
        if self.divided:
            self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
        return self.model.no_sync() if isinstance(self.model, Parallel) and not last else nullcontext()

    def _not_finite(self, verdict: Verdict) -> HwmError:
        c, world = self.config, self.world
        i, what = verdict.culprit()
        batch = (self.own.clips if self.own else self.data).batch(
            c.seed, verdict.step * c.accumulate + i, c.batch_size * world.size, world.rank, world.size
        )
        rank = f"_rank{world.rank}" if world.size > 1 else ""
        path = self.run_folder / f"bad_batch_{verdict.step:08d}{rank}.safetensors"
        checkpoint.save_tensors(path, {"latents": batch.latents, "actions": batch.actions})
        return HwmError(
            f"the {what} at update {verdict.step}. The batch is in {path}; the last checkpoint is intact. "
            "Lower --train.lr, or look for outliers in that batch's actions"
        )

    def _signals(self) -> _Interrupts:
        return _Interrupts()


class _Interrupts:
    """Turns Ctrl-C, SIGTERM or Slurm's SIGUSR1 into a request to stop after the update at hand.

    A second one interrupts at once, unless it comes within `same` seconds: launchers such as torchrun pass on a Ctrl-C
    that the terminal has sent to every process already.
    """

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    same = 3.0

    def __enter__(self) -> list[int]:
        self.got: list[int] = []
        self.first = 0.0
        try:
            self.before = {s: signal.signal(s, self._note) for s in self.wanted}
        except ValueError:  # not the main thread: the caller handles signals
            self.before = {}
        return self.got

    def _note(self, number: int, frame: object) -> None:
        if not self.got:
            self.first = time.monotonic()
        elif time.monotonic() - self.first > self.same:
            raise KeyboardInterrupt
        self.got.append(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def same_kind(data: DataSpec, held_out: DataSpec) -> None:
    """Raise `HwmError` now, and not at the first validation, where a model of `data` cannot read `held_out`."""
    if (data.latent, data.tokenizer) != (held_out.latent, held_out.tokenizer):
        raise HwmError(f"training data is of tokenizer {data.tokenizer!r}, held-out data of {held_out.tokenizer!r}")
    for name, action in held_out.actions.items():
        known = data.actions.get(name)
        if known is None or (known.per_step, known.names) != (action.per_step, action.names):
            raise HwmError(f"held-out data has actions of {name!r} that the training data does not have")


def write_run(run: Path, recipe: Any) -> None:
    """Record the whole recipe of a run beside its checkpoints."""
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / "recipe.json", json.dumps(to_json(recipe), indent=1).encode())
