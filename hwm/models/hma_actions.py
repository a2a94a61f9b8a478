"""Actions that an HMA model is not given: it can be trained to do without them, and to predict them.

An action that is not known is NaN in a batch. Whatever a stem would have made of it is replaced by a learned vector
before anything reads it, tokens and modulation alike: no way is left by which it could be seen.

Sources: HMA (arXiv 2502.04296). Its released code masks the tokens of an action that is to be predicted and still
modulates every block by it, so that its head reads what it should guess; here it cannot.

Shape suffixes: B batch, T latent step, H missing step, K actions a step, A action dimension, E = K * A, D width,
N actions in a list, X tokens of a step: cells, then action tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.hma_trunk import Trunk
from hwm.models.masked_causal import CausalModel
from hwm.nn.actions import module_key
from hwm.objectives.cells import Cells
from hwm.types import Batch, Generator, sent


class ActionModel(CausalModel):
    """The part of a model that is about its actions. A model says how its heads guess (`action_error`, `guess`), and
    what the states of a window are whose last steps are masked whole (`expectation`)."""

    trunk: Trunk
    action_mask: nn.Parameter | None
    action_heads: nn.ModuleDict

    def make_action_parts(self, head: Callable[[int], nn.Module]) -> None:
        """What stands for actions that are not known and, where wanted, a head a robot, made of how much it gives."""
        c = self.config
        heads = c.action_heads or c.action_loss > 0
        self.action_mask = nn.Parameter(torch.zeros(self.trunk.steps, c.dim)) if heads or c.action_drop > 0 else None
        if heads:
            self.action_heads = nn.ModuleDict(
                {module_key(e): head(a.per_step * a.dim) for e, a in self.spec.actions.items()}
            )

    def actions_of(self, batch: Batch) -> Tensor:
        """The actions that a window's steps are conditioned on, (B, T', K, A); a model that is given those that
        follow needs one step more: where they are not known, those of the last step are given once more."""
        return batch.actions_ahead if self.config.following_actions else batch.actions

    def condition(self, actions_BTKA: Tensor, embodiment: str, steps: int) -> Tensor:
        """What the steps of a window are conditioned on, (steps, B, D); NaN stands for an action that is not known."""
        return self.trunk.read(actions_BTKA, embodiment, steps, self.action_mask)

    @abstractmethod
    def action_error(self, head: nn.Module, state_ND: Tensor, action_NE: Tensor) -> Tensor:
        """How wrong a head is about normalised actions, (N,)."""

    @abstractmethod
    def guess(self, head: nn.Module, state_D: Tensor, sampler: Any, generator: Generator) -> Tensor:
        """Normalised actions (..., E) out of the states that tell of them (..., D)."""

    @abstractmethod
    def expectation(self, batch: Batch) -> Tensor:
        """States of all tokens (T, B, X, D) of a window whose missing steps are masked whole."""

    # ------------------------------------------------------------------ training
    def forget(self, batch: Batch) -> tuple[Batch, Tensor]:
        """A training clip as it is shown: (B, T) of its actions are made unknown, as is drawn on the host.

        All of a clip with probability `action_drop`. Where actions are predicted, each other clip has a share of its
        own, U(0, 1), and each of its actions but the first, or those of the prompt, is unknown with that probability.
        """
        c, (B, T), device = self.config, batch.latents.shape[:2], batch.latents.device
        batch = batch.window(0, T, T)
        nothing_B1 = torch.rand(B, 1) < c.action_drop
        hidden_BT, following = nothing_B1.expand(B, T), batch.following
        if c.action_loss:
            some_BT = torch.rand(B, T) < torch.rand(B, 1)
            some_BT[:, : max(1, batch.prompt)] = False
            hidden_BT = hidden_BT | some_BT
        actions = batch.actions.masked_fill(sent(hidden_BT, device)[..., None, None], torch.nan)
        if following is not None:
            following = following.masked_fill(sent(nothing_B1, device)[..., None], torch.nan)
        return replace(batch, actions=actions, following=following), hidden_BT

    def validation_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """That of video, conditioned on all actions; the error of guessed actions comes beside it, as a metric."""
        loss, metrics = super().validation_loss(batch)  # type: ignore[misc]
        if self.config.action_loss:
            with self.configured(replace(self.config.for_validation(), action_loss=1.0)):  # type: ignore[attr-defined]
                metrics["action_error"] = self.loss(batch)[1]["action_error"]  # type: ignore[attr-defined]
        return loss, metrics

    def loss_of_actions(self, x_TBXD: Tensor, batch: Batch, hidden_BT: Tensor) -> Tensor:
        """Mean error of the actions that were hidden, but for those that lead to the first step, or to the prompt.

        Args:
            x_TBXD: states of all steps of the clip, made without the hidden actions.
            batch: the clip with all of its actions.
            hidden_BT: on the host.
        """
        true_BTE = self.trunk.stem(batch.embodiment).normalised(batch.actions[:, : len(x_TBXD)]).flatten(2)
        first = max(1, batch.prompt)
        which = Cells(hidden_BT[:, first:], x_TBXD.device)
        states_ND = which.of(self.action_states(x_TBXD)[:, first - 1 :])
        head = self.action_heads[module_key(batch.embodiment)]
        error_N = self.action_error(head, states_ND, which.of(true_BTE[:, first:]))
        return error_N.sum() / max(1, len(error_N))

    def action_states(self, x_TBXD: Tensor) -> Tensor:
        """What tells of the actions that lead to each step but the first, (B, T - 1, D): the mean over the action
        tokens of the step that is conditioned on them."""
        x_BTD = x_TBXD[:, :, self.trunk.cells :].mean(2).transpose(0, 1)
        return x_BTD[:, :-1] if self.config.following_actions else x_BTD[:, 1:]

    # ------------------------------------------------------------------ prediction
    @torch.no_grad()
    def predict_actions(self, batch: Batch, *, sampler: Any = None, generator: Generator = None) -> Tensor:
        """What the robot would do: the actions that lead to the missing steps.

        Told to `predict` in their place, they make the model imagine what it would do and see.

        Args:
            batch: as for `predict`; the actions of the missing steps, and those that follow, count for nothing.
            sampler: the model's, where its head draws.

        Returns:
            actions (B, H, K, A), in the units of the robot.

        Raises:
            HwmError: a model that was not trained to predict actions, or a window that it does not fit.
        """
        c, past, missing = self.config, batch.latents.shape[1], batch.missing
        if not c.action_loss:
            raise HwmError("this model was not trained to predict actions: train with --model.action-loss 0.5")
        self.check_window(past, missing)
        known = batch.actions[:, :past]
        unknown = torch.full_like(batch.actions[:, past:], torch.nan)
        x_TBXD = self.expectation(replace(batch, actions=torch.cat([known, unknown], 1), following=None))
        head, spec = self.action_heads[module_key(batch.embodiment)], self.spec.actions[batch.embodiment]
        states_BHD = self.action_states(x_TBXD)[:, -missing:]
        x_BHE = self.guess(head, states_BHD, sampler or c.sampler, generator)
        return self.trunk.stem(batch.embodiment).in_units(x_BHE.unflatten(-1, (spec.per_step, spec.dim)))
