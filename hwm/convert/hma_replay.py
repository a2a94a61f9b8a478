"""What was recorded of the released HMA, computed by models of ours from the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from hwm.convert.family import Outputs
from hwm.convert.public import Inner
from hwm.convert.recorded import Case
from hwm.convert.replay import ReleasedSampler, training
from hwm.models.hma_continuous import HMAContinuous, MARSampler
from hwm.models.hma_discrete import HMADiscrete
from hwm.nn.causal import CausalCache, CausalWindow
from hwm.objectives.diffusion import denoising_loss
from hwm.types import ActionSpec, Batch, Generator


class Recorded:
    """What was recorded of the released discrete model, computed by a model of ours from the same inputs.

    Shape suffixes: B batch, T step, P prompt step, S cells, D width, V logits.
    """

    def __init__(self, model: HMADiscrete, case: Case) -> None:
        self.model, self.given, self.prompt = model, case.given, model.config.prompt

    def by_step(self, name: str) -> Tensor:
        """Recorded ids (B, T*S) as (B, T, S)."""
        return self.given[name].unflatten(1, (-1, self.model.spec.latent.cells))

    def actions(self, name: str) -> Tensor:
        """Recorded actions as ours: those that lead to the first step, at which nobody looks, and T steps."""
        return to_steps(self.given[f"actions.{name}"], self.model.spec.actions[name])

    def decoding_step(self, ids_BTS: Tensor, masked_BTS: Tensor, name: str) -> Tensor:
        """States that the head reads, of all steps in one pass; unconditional where no robot is named."""
        condition = self.model.trunk.read(self.actions(name), name, ids_BTS.shape[1]) if name else None
        return self.model.decoding_step(CausalWindow(CausalCache(), condition, name), ids_BTS, masked_BTS)

    def logits(self, name: str) -> Tensor:
        """Of a clip that is shown whole: (B, V, T, H, W)."""
        ids_BTS = self.by_step("tokens")
        logits_BTSV = self.model.head(self.decoding_step(ids_BTS, torch.zeros_like(ids_BTS, dtype=torch.bool), name))
        found: Tensor = logits_BTSV.movedim(-1, 1).unflatten(-1, self.model.spec.latent.grid)
        return found

    def clip(self, ids: str, name: str) -> Batch:
        """Recorded ids of all steps, the actions that lead to them, and those that follow the last."""
        ids_BTHW = self.model.latents(self.by_step(ids))
        return Batch(ids_BTHW, self.actions(name), name).window(0, ids_BTHW.shape[1], ids_BTHW.shape[1])

    def training(self, which: int, name: str) -> Tensor:
        """Loss (0) or accuracy (1) of a clip that was corrupted and masked."""
        return training(self.model, self.clip("labels", name), self.by_step("masked_ids"))[which]

    def generated(self, name: str) -> Tensor:
        """A rollout from the prompt, each step given the recorded actions that follow it: (B, T - P, H, W)."""
        clip, sampler = self.clip("tokens", name), ReleasedSampler(steps=2, order="confidence")
        return self.model.rollout(clip.window(0, self.prompt, clip.latents.shape[1]), sampler=sampler).latents


def to_steps(actions_BTE: Tensor, spec: ActionSpec) -> Tensor:
    """Actions that follow T steps, all numbers of a step together -> ours (B, T + 1, K, A), which lead to steps."""
    actions_BTKA = actions_BTE.unflatten(-1, (spec.per_step, spec.dim))
    return torch.cat([torch.zeros_like(actions_BTKA[:, :1]), actions_BTKA], 1)


def discrete_outputs(model: HMADiscrete, case: Case) -> Outputs:
    """For each robot: logits of a clip, loss and accuracy of training, generation; and logits without actions."""
    r = Recorded(model, case)
    whole = "logits of a clip shown whole"
    made: dict[str, Callable[[], Tensor]] = {"logits_noaction": Inner(whole, partial(r.logits, ""))}
    for name in model.spec.actions:
        made |= {
            f"logits.{name}": Inner(whole, partial(r.logits, name)),
            f"loss.{name}": partial(r.training, 0, name),
            f"acc.{name}": partial(r.training, 1, name),
            f"maskgit_K2.{name}": partial(r.generated, name),
        }
    return made


@dataclass(frozen=True)
class RecordedSampler(MARSampler):
    """With noise as it was recorded, in the order in which it was drawn.

    Attributes:
        draws: rows (N, E), N of all leading axes of what is drawn.
    """

    draws: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    def normal(self, shape: tuple[int, ...], device: torch.device, generator: Generator = None) -> Tensor:
        return next(self.draws).reshape(shape)


class RecordedContinuous:
    """What was recorded of the released continuous model.

    Shape suffixes: B batch, T step, S patches, E numbers of a patch, N patches in a list, C channels, D width.
    """

    def __init__(self, model: HMAContinuous, case: Case) -> None:
        self.model, self.given, self.prompt = model, case.given, model.config.prompt
        self.repeats = int(case.config.get("diffusion_batch_mul", 1))
        self.losses = cache(self._losses)

    def latents(self) -> Tensor:
        """Recorded latents (B, T*H*W, C) as ours (B, T, C, H, W)."""
        return self.given["latents"].unflatten(1, (-1, *self.model.spec.latent.grid)).movedim(-1, 2)

    def by_step(self) -> Tensor:
        """The same as patches (B, T, S, E)."""
        return self.model.tokens(self.latents())

    def actions(self, name: str) -> Tensor:
        return to_steps(self.given[f"actions.{name}"], self.model.spec.actions[name])

    def masked(self) -> Tensor:
        """What was masked, cell by cell, as (B, T, S, E) bool."""
        grid = self.given["masked_tokens_indicator"][:, :, None]
        return self.model.tokens(grid.expand(-1, -1, len(self.model.mask_cell), -1, -1)).bool()

    def condition(self, x_BTSE: Tensor, name: str) -> Tensor:
        """What the head is conditioned on for each patch (B, T, S, D)."""
        condition = self.model.trunk.read(self.actions(name), name, x_BTSE.shape[1]) if name else None
        return self.model.run(CausalWindow(CausalCache(), condition, name), x_BTSE)[0]

    def as_recorded(self, condition_BTSD: Tensor) -> Tensor:
        return condition_BTSD.movedim(-1, 1).unflatten(-1, self.model.side)

    def patches(self) -> Tensor:
        return self.by_step().unflatten(2, self.model.side)

    def z(self, name: str) -> Tensor:
        """Of the masked clip, or, where no robot is named, of the clip as it is."""
        x_BTSE = self.by_step()
        return self.as_recorded(self.condition(self.model.hidden(x_BTSE, self.masked()) if name else x_BTSE, name))

    def repeated(self, x_BTS: Tensor) -> Tensor:
        """What is of each patch (B, T, S, ...) as rows: all patches, as often as the head is trained on each."""
        return torch.cat([x_BTS.flatten(0, 2)] * self.repeats)

    def _losses(self, name: str) -> tuple[Tensor, Tensor]:
        """Both parts of the loss of every row."""
        x_BTSE = self.by_step()
        condition_ND = self.repeated(self.condition(self.model.hidden(x_BTSE, self.masked()), name))
        head = partial(self.model.head, condition_C=condition_ND)
        return denoising_loss(self.repeated(x_BTSE), self.given["loss_t"], self.given["loss_noise"], head)

    def loss_rows(self, which: int, name: str) -> Tensor:
        return self.losses(name)[which]

    def loss(self, name: str) -> Tensor:
        """The mean over rows of patches of which any cell is masked."""
        masked_N = self.repeated(self.masked().any(-1))
        error_N, bound_N = self.losses(name)
        return (error_N + bound_N)[masked_N].mean()

    def denoised(self) -> Tensor:
        found: Tensor = self.model.head(*(self.given[f"head_{x}"] for x in ("x_t", "t", "z")))
        return found

    def sampler(self, kind: str, temperature: float = 1.0, clamp: float = 10.0) -> RecordedSampler:
        more = self.given[f"{kind}_step_noise"]
        draws = iter((self.given[f"{kind}_init_noise"], *more))
        return RecordedSampler(1, len(more), temperature, clamp, draws)

    def sample(self, temperature: float = 1.0, clamp: float = 10.0) -> Tensor:
        sampler = self.sampler("sampler", temperature, clamp)
        return self.model.draw(self.given["head_z"], self.given["head_x_t"].shape[-1], sampler)

    def frame(self) -> Tensor:
        """The step after the prompt, in one decoding step, given the recorded actions that follow it: (B, H, W, C)."""
        name = next(iter(self.model.spec.actions))
        clip = Batch(self.latents(), self.actions(name), name).window(0, self.prompt, self.prompt + 1)
        return self.model.predict(clip, sampler=self.sampler("frame")).latents[:, 0].movedim(1, -1)


def continuous_outputs(model: HMAContinuous, case: Case) -> Outputs:
    """For each robot: what the head is conditioned on, and the loss; the head alone; a step."""
    r = RecordedContinuous(model, case)
    condition, loss = "what the head is conditioned on", "the head's loss of every patch, masked cell by cell"
    made: dict[str, Callable[[], Tensor]] = {
        "patches": Inner("patches of latents", r.patches),
        "z_noaction": Inner(condition, partial(r.z, "")),
    }
    for name in model.spec.actions:
        made |= {
            f"z.{name}": Inner(condition, partial(r.z, name)),
            f"diff_loss.{name}": Inner(loss, partial(r.loss, name)),
            f"diff_mse_rows.{name}": Inner(loss, partial(r.loss_rows, 0, name)),
            f"diff_vb_rows.{name}": Inner(loss, partial(r.loss_rows, 1, name)),
        }
    return made | {
        "denoised": Inner("the head alone", r.denoised),
        "sample": Inner("the head's sampling alone", r.sample),
        "sample_temperature07": Inner("the head's sampling alone", partial(r.sample, 0.7)),
        "sample_unclipped": Inner("the head's sampling alone", partial(r.sample, 1.0, 0.0)),
        "frame_K1": r.frame,
    }
