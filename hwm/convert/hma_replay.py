"""What was recorded of the released HMA, computed by models of ours from the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from hwm.convert.cases import Case
from hwm.convert.family import Outputs
from hwm.convert.replay import ReleasedSampler
from hwm.models.hma_continuous import HMAContinuous, MARSampler
from hwm.models.hma_discrete import HMADiscrete
from hwm.nn.causal import CausalCache, CausalWindow
from hwm.objectives.diffusion import denoising_loss
from hwm.types import ActionSpec, Generator


class Recorded:
    """What was recorded of the released discrete model, computed by a model of ours from the same inputs.

    Shape suffixes: B batch, T step, P prompt step, S cells, D width, V logits.
    """

    def __init__(self, model: HMADiscrete, case: Case) -> None:
        self.model, self.given = model, case.given
        self.prompt = int(case.config["num_prompt_frames"])

    def by_step(self, name: str) -> Tensor:
        """Recorded ids (B, T*S) as (B, T, S)."""
        return self.given[name].unflatten(1, (-1, self.model.spec.latent.cells))

    def actions(self, name: str) -> Tensor:
        """Recorded actions as ours: those that lead to the first step, at which nobody looks, and T steps."""
        return to_steps(self.given[f"actions.{name}"], self.model.spec.actions[name])

    def look(self, ids_BTS: Tensor, masked_BTS: Tensor, name: str) -> Tensor:
        """States that the head reads, of all steps in one pass; told nothing where no robot is named."""
        told = self.model.trunk.read(self.actions(name), name, ids_BTS.shape[1]) if name else None
        return self.model.look(CausalWindow(CausalCache(), told, name), ids_BTS, masked_BTS)

    def logits(self, name: str) -> Tensor:
        """Of a clip that is shown whole: (B, V, T, H, W)."""
        ids_BTS = self.by_step("tokens")
        logits_BTSV = self.model.head(self.look(ids_BTS, torch.zeros_like(ids_BTS, dtype=torch.bool), name))
        found: Tensor = logits_BTSV.movedim(-1, 1).unflatten(-1, self.model.spec.latent.grid)
        return found

    def training(self, which: int, name: str) -> Tensor:
        """Loss (0) or accuracy (1) of a clip that was corrupted and masked; masks are ids out of the vocabulary."""
        ids_BTS, labels_BTS = self.by_step("masked_ids"), self.by_step("labels")
        masked_BTS = ids_BTS == self.model.vocab
        hidden_BTSD = self.look(ids_BTS.masked_fill(masked_BTS, 0), masked_BTS, name)
        smoothing = self.model.config.label_smoothing
        found: Tensor = self.model.head.loss(hidden_BTSD[:, 1:], labels_BTS[:, 1:], masked_BTS[:, 1:], smoothing)[which]
        return found

    def generated(self, name: str) -> Tensor:
        """Steps after the prompt, one by one, each told the recorded actions that follow it: (B, T - P, H, W)."""
        ids_BTS, actions = self.by_step("tokens")[:, : self.prompt], self.actions(name)
        for t in range(self.prompt, actions.shape[1] - 1):
            sampler = ReleasedSampler(steps=2, order="confidence")
            new_B1S, _, _ = self.model.fill_in(ids_BTS, actions[:, : t + 2], name, 1, sampler)
            ids_BTS = torch.cat([ids_BTS, new_B1S], 1)
        return self.model.latents(ids_BTS[:, self.prompt :])


def to_steps(actions_BTE: Tensor, spec: ActionSpec) -> Tensor:
    """Actions that follow T steps, all numbers of a step together -> ours (B, T + 1, K, A), which lead to steps."""
    actions_BTKA = actions_BTE.unflatten(-1, (spec.per_step, spec.dim))
    return torch.cat([torch.zeros_like(actions_BTKA[:, :1]), actions_BTKA], 1)


def discrete_outputs(model: HMADiscrete, case: Case) -> Outputs:
    """For each robot: logits of a clip, loss and accuracy of training, generation; and logits without actions."""
    r = Recorded(model, case)
    made: dict[str, Callable[[], Tensor]] = {"logits_noaction": partial(r.logits, "")}
    for name in model.spec.actions:
        made |= {
            f"logits.{name}": partial(r.logits, name),
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
        self.model, self.given, self.prompt = model, case.given, int(case.config["num_prompt_frames"])
        self.losses = cache(self._losses)

    def by_step(self) -> Tensor:
        """Recorded latents (B, T*H*W, C) as patches (B, T, S, E)."""
        x_BTCHW = self.given["latents"].unflatten(1, (-1, *self.model.spec.latent.grid)).movedim(-1, 2)
        return self.model.tokens(x_BTCHW)

    def actions(self, name: str) -> Tensor:
        return to_steps(self.given[f"actions.{name}"], self.model.spec.actions[name])

    def masked(self) -> Tensor:
        """What was masked, cell by cell, as (B, T, S, E) bool."""
        grid = self.given["masked_tokens_indicator"][:, :, None]
        return self.model.tokens(grid.expand(-1, -1, len(self.model.mask_cell), -1, -1)).bool()

    def told(self, x_BTSE: Tensor, name: str) -> Tensor:
        """What the head is told of each patch (B, T, S, D)."""
        told = self.model.trunk.read(self.actions(name), name, x_BTSE.shape[1]) if name else None
        return self.model.run(CausalWindow(CausalCache(), told, name), x_BTSE)[0]

    def as_recorded(self, told_BTSD: Tensor) -> Tensor:
        return told_BTSD.movedim(-1, 1).unflatten(-1, self.model.side)

    def patches(self) -> Tensor:
        return self.by_step().unflatten(2, self.model.side)

    def z(self, name: str) -> Tensor:
        """Of the masked clip, or, where no robot is named, of the clip as it is."""
        x_BTSE = self.by_step()
        return self.as_recorded(self.told(self.model.hidden(x_BTSE, self.masked()) if name else x_BTSE, name))

    def _losses(self, name: str) -> tuple[Tensor, Tensor]:
        """Both parts of the loss of every patch."""
        x_BTSE = self.by_step()
        told_ND = self.told(self.model.hidden(x_BTSE, self.masked()), name).flatten(0, 2)
        head = partial(self.model.head, condition_C=told_ND)
        return denoising_loss(x_BTSE.flatten(0, 2), self.given["loss_t"], self.given["loss_noise"], head)

    def loss_rows(self, which: int, name: str) -> Tensor:
        return self.losses(name)[which]

    def loss(self, name: str) -> Tensor:
        """The mean over patches of which any cell is masked."""
        masked_N = self.masked().any(-1).flatten()
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
        """The step after the first, in one look, told the recorded actions that follow it: (B, H, W, C)."""
        name = next(iter(self.model.spec.actions))
        x_B1SE, _ = self.model.fill_in(self.by_step()[:, :1], self.actions(name)[:, :3], name, 1, self.sampler("frame"))
        return self.model.latents(x_B1SE)[:, 0].movedim(1, -1)


def continuous_outputs(model: HMAContinuous, case: Case) -> Outputs:
    """For each robot: what the head is told, and the loss; the head alone; a step."""
    r = RecordedContinuous(model, case)
    made: dict[str, Callable[[], Tensor]] = {"patches": r.patches, "z_noaction": partial(r.z, "")}
    for name in model.spec.actions:
        made |= {
            f"z.{name}": partial(r.z, name),
            f"diff_loss.{name}": partial(r.loss, name),
            f"diff_mse_rows.{name}": partial(r.loss_rows, 0, name),
            f"diff_vb_rows.{name}": partial(r.loss_rows, 1, name),
        }
    return made | {
        "denoised": r.denoised,
        "sample": r.sample,
        "sample_temperature07": partial(r.sample, 0.7),
        "sample_unclipped": partial(r.sample, 1.0, 0.0),
        "frame_K1": r.frame,
    }
