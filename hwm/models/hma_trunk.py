"""What both HMA models share: stems that read each robot's actions, and a transformer that is
conditioned on them.

Sources: HMA (arXiv 2502.04296), github.com/liruiw/HMA (Apache-2.0). The blocks are GENIE's; between attention among
cells and attention over time each is conditioned on the actions, in the ways that the config lists
(`hwm.nn.conditioning`).

Shape suffixes: B batch, T latent step of this pass, M step of the window up to the last of this pass, K actions a step,
A action dimension, S cells (and, in a pass, action tokens), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.nn.actions import CLAMP, module_key
from hwm.nn.causal import CausalBlock, CausalCache, CausalFields, CausalStack, TimeMemory
from hwm.nn.conditioning import WAYS
from hwm.nn.layers import constant
from hwm.types import ActionSpec, DataSpec

EPSILON = 1e-10  # added to standard deviations, as released


@dataclass(frozen=True, kw_only=True)
class HMAFields(CausalFields):
    """The part of the config that both models have. The defaults are those of the published models.

    Attributes:
        action_network: how blocks are conditioned on the actions, in this order: names of `hwm.nn.conditioning.WAYS`,
            and "concatenate", by which each step has `action_tokens` more tokens beside its cells, all made of its
            actions.
        action_tokens: how many; each has a learned position of its own.
        clamp_actions: to five standard deviations. Published models were trained without.
        following_actions: as published models have it, a step is conditioned on the actions that follow it, and knows
            those that lead to it from the step before. Those that follow the last step are given where they are
            recorded (`Batch.following`); in play nobody knows them, and those that lead to the last step are given
            once more. Else a step is conditioned on the actions that lead to it.
        action_drop: share of training clips that are shown no actions at all, from which the model learns to predict
            without. 0 in the published configs.
        action_loss: weight of predicting actions that are masked, besides video; 0 predicts none, as the published
            models. Where the original predicts them the weight is 0.5, of the continuous model 1.
        action_heads: hold what published models have for predicting actions, a read-out for each robot and a token for
            each step, without training or reading them: so a checkpoint can be written back.
    """

    action_network: tuple[str, ...] = ("concatenate", "modulate")
    action_tokens: int = 64
    clamp_actions: bool = True
    following_actions: bool = False
    action_drop: float = 0.0
    action_loss: float = 0.0
    action_heads: bool = False
    in_validation: ClassVar[Mapping[str, Any]] = {"action_drop": 0.0, "action_loss": 0.0}


class Stem(nn.Module):
    """(B, T, K, A) actions of one robot, in its units -> (T, B, D): all K of a step in their order, as one vector.

    Args:
        stride: frames of a latent step; the first step of a window holds one, and so only its last K/stride actions are
            real. The others count as average ones.
    """

    def __init__(self, spec: ActionSpec, dim: int, stride: int, clamp: bool) -> None:
        super().__init__()
        self.spec, self.clamp = spec, clamp
        self.absent = spec.per_step - max(1, spec.per_step // stride)
        width = spec.per_step * spec.dim
        self.mix = nn.Sequential(nn.Linear(width, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim))

    def normalised(self, actions_BTKA: Tensor) -> Tensor:
        """In standard deviations from the mean; a constant dimension keeps its unit."""
        mean, std = (constant(x, actions_BTKA.device) for x in (self.spec.mean, self.spec.std))
        x_BTKA = (actions_BTKA.float() - mean) / torch.where(std > 0, std + EPSILON, 1.0)
        if self.clamp:
            x_BTKA = x_BTKA.clamp(-CLAMP, CLAMP)
        return torch.cat([F.pad(x_BTKA[:, :1, self.absent :], (0, 0, self.absent, 0)), x_BTKA[:, 1:]], 1)

    def in_units(self, x_KA: Tensor) -> Tensor:
        """The inverse of `normalised`, (..., K, A): in the units of the robot."""
        mean, std = (constant(x, x_KA.device) for x in (self.spec.mean, self.spec.std))
        return x_KA.float() * torch.where(std > 0, std + EPSILON, 1.0) + mean

    def forward(self, actions_BTKA: Tensor, steps: int, following: bool, unknown_TD: Tensor | None = None) -> Tensor:
        """Of the first `steps` steps; with `following`, what stands at a step is of the step after it, and the actions
        are of one step more.

        Args:
            unknown_TD: what stands at a step whose actions are NaN.
        """
        x_BTE = self.normalised(actions_BTKA).flatten(2)
        x_BTE, dtype = x_BTE[:, following : steps + following], next(self.parameters()).dtype
        if unknown_TD is None:
            found: Tensor = self.mix(x_BTE.to(dtype))
            return found.transpose(0, 1)
        known_BT1 = ~x_BTE.isnan().any(-1, keepdim=True)
        # zeros in their place, and not NaN, whose gradient would be NaN even where nothing reads it
        condition_BTD = self.mix(torch.where(known_BT1, x_BTE, 0.0).to(dtype))
        return torch.where(known_BT1, condition_BTD, unknown_TD[:steps].to(condition_BTD.dtype)).transpose(0, 1)


class ConditionedBlock(CausalBlock):
    """A causal block that is conditioned on the actions before its attention over time."""

    def __init__(self, config: Any, embodiments: tuple[str, ...]) -> None:
        super().__init__(config)
        c = config
        ways = [WAYS[name] for name in c.action_network if name in WAYS]
        # checkpoints name it so: ways of being conditioned on actions
        self.told = nn.ModuleList(nn.ModuleDict({e: way(c.dim, c.heads) for e in embodiments}) for way in ways)

    def forward(  # type: ignore[override]
        self,
        x_TBSD: Tensor,
        memory: TimeMemory = (),
        first: int = 0,
        keep: int = 0,
        spare: bool = True,
        actions_MBD: Tensor | None = None,
        embodiment: str = "",
    ) -> tuple[Tensor, TimeMemory]:
        """As `CausalBlock.forward`.

        Args:
            actions_MBD: what the stem made of the actions of the window's steps; without it the block is unconditional.
            embodiment: whose they are, as a module name.
        """
        if actions_MBD is None:
            return super().forward(x_TBSD, memory, first, keep, spare)
        conditions = [way[embodiment](actions_MBD, x_TBSD.shape[0]) for way in self.told]  # type: ignore[index, operator]

        def between(x_TBSD: Tensor) -> Tensor:
            for condition in conditions:
                x_TBSD = condition(x_TBSD)
            return x_TBSD

        return super().forward(x_TBSD, memory, first, keep, spare, between)


class Trunk(nn.Module):
    """Steps of embedded cells and the actions of their window through all blocks.

    Args:
        config: with `HMAFields`, `past`, `horizon`, `dim`, `depth`, `heads`, `mlp_ratio` and `mlp_drop`.
        cells: of a step, as the blocks see it.
        rows: learned positions of a step; None is one for each cell and action token.
        norm: of what goes into the first block.
    """

    def __init__(
        self, config: Any, spec: DataSpec, cells: int, rows: int | None = None, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        c = config
        known = {"concatenate", *WAYS}
        if not c.action_network or not set(c.action_network) <= known:
            raise HwmError(f"action_network={c.action_network} must name at least one of {sorted(known)}, and no other")
        self.concatenates = "concatenate" in c.action_network
        if self.concatenates and c.action_tokens < 1:
            raise HwmError(f'action_network="concatenate" needs action_tokens of 1 or more, not {c.action_tokens}')
        if not 0 <= c.action_drop <= 1 or c.action_loss < 0:
            raise HwmError(
                f"action_drop={c.action_drop} is a share of 0 to 1, action_loss={c.action_loss} a weight from 0 on"
            )
        if c.action_loss and not self.concatenates:
            raise HwmError(
                f"actions are predicted from their tokens, which action_network={c.action_network} does not have: add "
                '"concatenate", or leave action_loss at 0'
            )
        self.config, self.cells = c, cells
        self.steps: int = c.past + c.horizon
        keys = tuple(module_key(e) for e in spec.actions)
        if len(set(keys)) < len(keys):
            raise HwmError(f"embodiments whose names differ in nothing but dots and underscores: {sorted(keys)}")
        stems = {module_key(e): Stem(a, c.dim, spec.latent.stride, c.clamp_actions) for e, a in spec.actions.items()}
        self.stems = nn.ModuleDict(stems)
        self.position = nn.Parameter(torch.zeros(self.steps, rows or cells + c.action_tokens, c.dim))
        self.norm = norm if norm is not None else nn.Identity()
        self.blocks = CausalStack(ConditionedBlock(c, keys) for _ in range(c.depth))

    def of_robots(self) -> tuple[str, ...]:
        """Prefixes of what each robot has of its own: a further robot's begin at random (`Trainable.fresh`)."""
        return "trunk.stems.", *(f"trunk.blocks.{i}.told." for i in range(len(self.blocks))), "action_"

    def wide(self) -> tuple[str, ...]:
        """Layers of the stems that read features of the model's width (`Trainable.mup_hidden`)."""
        return tuple(f"trunk.stems.{key}.mix.3" for key in self.stems)

    def read(self, actions_BTKA: Tensor, embodiment: str, steps: int, unknown_TD: Tensor | None = None) -> Tensor:
        """What the steps of a window are conditioned on, (steps, B, D).

        Args:
            unknown_TD: what stands for actions that are NaN.

        Raises:
            HwmError: there are no positions for so many steps, or actions of too few.
        """
        following = self.config.following_actions
        if steps > self.steps:
            raise HwmError(f"only past + horizon = {self.steps} steps have positions, not {steps}")
        if actions_BTKA.shape[1] < steps + following:
            raise HwmError(f"{steps} steps take the actions of {steps + following}, got {actions_BTKA.shape[1]}")
        found: Tensor = self.stem(embodiment)(actions_BTKA, steps, following, unknown_TD)
        return found

    def stem(self, embodiment: str) -> Stem:
        return cast(Stem, self.stems[module_key(embodiment)])

    def forward(
        self,
        x_TBSD: Tensor,
        actions_MBD: Tensor | None,
        embodiment: str,
        cache: CausalCache,
        *,
        keep: int = 0,
        first: int = 0,
    ) -> tuple[Tensor, CausalCache]:
        """The steps after those of a cache through all blocks.

        Args:
            x_TBSD: embedded cells, without their positions.
            actions_MBD: what all steps of the window up to these, or further, are conditioned on (`read`); None: on
                nothing.
            keep, first: as for `CausalStack`.

        Returns:
            states of the cells, and behind them of the action tokens, (T - first, B, S, D), and, if any steps are kept,
            a cache of the steps so far.
        """
        start, stop = cache.steps, cache.steps + x_TBSD.shape[0]
        if actions_MBD is not None:
            actions_MBD = actions_MBD[:stop]
            if self.concatenates:
                told_TB1D = actions_MBD[start:, :, None]
                x_TBSD = torch.cat([x_TBSD, told_TB1D.expand(-1, -1, self.config.action_tokens, -1)], 2)
        x_TBSD = self.norm(x_TBSD + self.position[start:stop, None, : x_TBSD.shape[2]])
        given = actions_MBD, module_key(embodiment)
        found: tuple[Tensor, CausalCache] = self.blocks(x_TBSD, cache, *given, keep=keep, first=first)
        return found
