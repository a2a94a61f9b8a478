"""Actions: normalised with the statistics of their data, embedded one by one, pooled to latent steps.

Shape suffixes: B batch, T latent step, K actions a step, A action dimension, F actions of a window that are real,
D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.nn.layers import Mlp, constant
from hwm.types import ActionSpec, DataSpec

CLAMP = 5.0
# A change since the action before is measured in standard deviations of the action itself, of which a movement that
# takes a second covers about a fifth in each thirtieth: this brings it back to the order of one.
CHANGE_GAIN = 5.0


def standardised(actions: Tensor, spec: ActionSpec) -> tuple[Tensor, Tensor]:
    """Actions in standard deviations from their mean, clamped, and the scale: a constant dimension has scale 1."""
    scale = tuple(s if s > 0 else 1.0 for s in spec.std)
    mean, std = constant(spec.mean, actions.device), constant(scale, actions.device)
    return ((actions.float() - mean) / std).clamp(-CLAMP, CLAMP), std


class ActionEncoder(nn.Module):
    """(B, T, K, A) actions in the units of the robot -> (T, B, D), one vector a latent step, time first.

    As released: Linear, GELU, an MLP and a LayerNorm for every action, a learned position for every action of the
    window, and the mean over the actions of a latent step. The first step of a tokenizer with stride s > 1 holds one
    frame, so only the last K/s of its K rows are real (Cosmos: 1, 8, 8).

    Args:
        positions: steps whose actions have learned positions of their own; with 1, all steps share those of K slots;
            with 0 there are none.
        ordered: add the positions before the MLP. After it, as released, the mean over a step's actions forgets which
            came first.
        changes: also read each action's change since the one before; a Linear beside the first.
        deep: the released encoder above; else Linear, GELU, Linear (the shared-parameter model).
        group: latent steps that make up one step of the result.
    """

    def __init__(
        self,
        spec: DataSpec,
        dim: int,
        *,
        positions: int,
        ratio: float = 4.0,
        ordered: bool = False,
        changes: bool = False,
        deep: bool = True,
        group: int = 1,
    ) -> None:
        super().__init__()
        self.group, self.ordered = group, ordered
        self.specs, self.stride = spec.actions, spec.latent.stride
        self.read = nn.ModuleDict({module_key(e): nn.Linear(a.dim, dim) for e, a in spec.actions.items()})
        change = {module_key(e): nn.Linear(a.dim, dim, bias=False) for e, a in spec.actions.items() if changes}
        self.read_change = nn.ModuleDict(change) if changes else None
        self.act = nn.GELU()
        self.mix = nn.Sequential(Mlp(dim, ratio), nn.LayerNorm(dim)) if deep else nn.Linear(dim, dim)
        specs = spec.actions.values()
        slots = max(a.per_step if positions == 1 else self.real(a) + (positions - 1) * a.per_step for a in specs)
        self.position = nn.Parameter(torch.zeros(slots, dim)) if positions else None
        self.positions = positions

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: what a module cast to bfloat16 takes."""
        return next(self.parameters()).dtype

    def real(self, spec: ActionSpec) -> int:
        """How many of the K rows of a window's first step are real."""
        return max(1, spec.per_step // self.stride)

    def normalise(self, actions: Tensor, spec: ActionSpec) -> tuple[Tensor, Tensor]:
        """See `standardised`."""
        return standardised(actions, spec)

    def forward(self, actions_BTKA: Tensor, embodiment: str) -> Tensor:
        spec, key = self.specs[embodiment], module_key(embodiment)
        B, T, K, A = actions_BTKA.shape
        absent = K - self.real(spec)
        rows_BFA = actions_BTKA.reshape(B, T * K, A)[:, absent:]
        x_BFA, std = self.normalise(rows_BFA, spec)
        dtype = self.dtype
        x_BFD = self.read[key](x_BFA.to(dtype))
        if self.read_change is not None:
            change_BFA = F.pad(rows_BFA[:, 1:] - rows_BFA[:, :-1], (0, 0, 1, 0)).float() / std * CHANGE_GAIN
            x_BFD = x_BFD + self.read_change[key](change_BFA.clamp(-CLAMP, CLAMP).to(dtype))
        place_FD: Tensor | float = 0.0
        if self.position is not None:
            shared = self.positions == 1
            place_FD = self.position[:K].repeat(T, 1)[absent:] if shared else self.position[: T * K - absent]
        x_BFD = self.mix(self.act(x_BFD + place_FD)) if self.ordered else self.mix(self.act(x_BFD)) + place_FD
        rows = K * self.group
        first_B1D = x_BFD[:, : rows - absent].mean(1, keepdim=True)
        rest_BTD = x_BFD[:, rows - absent :].unflatten(1, (T // self.group - 1, rows)).mean(2)
        return torch.cat([first_B1D, rest_BTD], 1).transpose(0, 1)


def module_key(embodiment: str) -> str:
    """Module names hold no dots."""
    return embodiment.replace(".", "_")
