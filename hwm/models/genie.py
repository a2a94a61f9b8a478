"""GENIE, the baseline of the 1X World Model Challenge: a spatio-temporal masked transformer over tokens of frames.

Sources: github.com/1x-technologies/1xgpt (Apache-2.0), the published checkpoints GENIE_35M and GENIE_138M, and
Genie (arXiv 2402.15391), after which it is named. muP: arXiv 2203.03466.

Shape suffixes: B batch, T latent step of this pass, M steps remembered, P past step, H missing step, S cells, L digits
of an id, K actions a step, A action dimension, D width, h heads, d = D/h head width. Inside the blocks time comes
first (TBSD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.masked import MaskedModel
from hwm.nn.actions import ActionEncoder
from hwm.nn.attention import attend
from hwm.nn.layers import added, in_parts, init_weights, plainly, recomputed
from hwm.objectives.maskgit import MaskGITSampler, cosine_mask
from hwm.types import Batch, DataSpec, join_digits, split_digits

# The width at which muP changes nothing but the attention scale: that of the smallest published model.
BASE_WIDTH = 256

# Of attention over time in one block: keys, and then values, each (1, B, S, h, d), a tensor a step. Caches of one
# rollout share those of the steps that they have in common.
Memory = tuple[Tensor, ...]


class Cache(NamedTuple):
    """What is remembered of the first `steps` steps of a window, a block each; empty when there are none."""

    memory: tuple[Memory, ...]
    steps: int


class Window(NamedTuple):
    """The past as remembered, and, in a model with actions, their embeddings (H, B, D) for the steps asked for."""

    cache: Cache
    actions: Tensor | None


def noise(
    batch: int,
    steps: int,
    *,
    max_corrupt: float = 0.2,
    non_mlm: float = 0.5,
    prompt: int = 8,
    fully_masked: float = 0.0,
    least_kept: float = 0.25,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """How strongly each step of a training clip is corrupted and masked, as documented for the released training code.

    1. Every digit of every token, of the first step too, is replaced with probability u, u ~ U(0, max_corrupt).
    2. With probability `non_mlm` a clip is "closer to autoregressive": the first masked step f is uniform on
       prompt..T-1, and from f on every digit is also replaced with probability 1 - c, where c starts at
       U(least_kept, 1) and is multiplied by a U(0.9, 1) at f and at every step after it. Else f = 1.
    3. Each step from f on has its own mask ratio cos(pi/2 U(0, 1)).

    The release draws u and f once a batch; here each clip draws its own. Both replacements of a digit are uniform, so
    they are made as one, with probability 1 - (1 - u) c.

    Args:
        fully_masked: share of the masked steps that are masked whole. 0 in the release.

    Returns:
        rate (B, T): the probability that a digit is replaced. ratio (B, T): that a token is masked; 0 before f.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, device=device, generator=generator)

    step_T, prompt = torch.arange(steps, device=device), max(1, min(prompt, steps - 1))
    keep_B1 = 1 - uniform(batch, 1, high=max_corrupt)
    autoregressive_B1 = uniform(batch, 1) < non_mlm
    drawn_B1 = (prompt + (uniform(batch, 1) * (steps - prompt)).long()).clamp(max=steps - 1)
    late_BT = step_T >= torch.where(autoregressive_B1, drawn_B1, 1)
    shrink_BT = torch.where(late_BT, uniform(batch, steps, low=0.9), 1.0).cumprod(1)
    drift_BT = torch.where(autoregressive_B1 & late_BT, uniform(batch, 1, low=least_kept) * shrink_BT, 1.0)
    ratio_BT = torch.cos(math.pi / 2 * uniform(batch, steps))
    ratio_BT = torch.where(uniform(batch, steps) < fully_masked, 1.0, ratio_BT)
    return 1 - keep_B1 * drift_BT, torch.where(late_BT, ratio_BT, 0.0)


def corrupt_digits(
    ids_BTS: Tensor, rate_BT: Tensor, levels: tuple[int, ...], generator: torch.Generator | None = None
) -> Tensor:
    """Replace each digit of each token by itself, with a step's probability, by a uniform one."""
    digits = split_digits(ids_BTS, levels)
    drawn = [torch.randint(n, ids_BTS.shape, device=ids_BTS.device, generator=generator) for n in levels]
    hit = torch.rand(digits.shape, device=ids_BTS.device, generator=generator) < rate_BT[..., None, None]
    return join_digits(torch.where(hit, torch.stack(drawn, -1), digits), levels)


class SelfAttention(nn.Module):
    """The weights of self-attention: one projection laid out (3, h, d), an optional norm, and one projection out.

    With `qk_norm` one affine LayerNorm(d) serves queries and keys. Logits are scaled by 1 / sqrt(d), under muP by 8 / d
    (the same at d = 64).
    """

    def __init__(self, dim: int, heads: int, *, qk_norm: bool, qkv_bias: bool, proj_bias: bool, mup: bool) -> None:
        super().__init__()
        if dim % heads:
            raise HwmError(f"a width of {dim} does not split into {heads} heads")
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, qkv_bias), nn.Linear(dim, dim, proj_bias)
        self.norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.scale = 8 / self.head_dim if mup else self.head_dim**-0.5

    def split(self, qkv_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `qkv` puts out, (..., 3D), as queries, keys and values, each (..., h, d)."""
        q, k, v = qkv_E.unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        return self.norm(q).to(v.dtype), self.norm(k).to(v.dtype), v


class Block(nn.Module):
    """Attention among the cells of each step, causal attention over the steps of each cell, and an MLP; residual.

    LayerNorms precede the first and the last part; there is none before attention over time. With `qk_norm` there are
    none at all but those of queries and keys.

    Attributes:
        recompute: of a training pass keep what goes into the block, and attention among cells, and compute the rest
            again in the backward pass. Of a token that is 5 D numbers instead of 16 D, for a sixth more arithmetic. If
            not, only what costs next to nothing is computed again, norms and the GELU; all together are 23 D.
    """

    recompute = True

    def __init__(self, config: Genie.Config) -> None:
        super().__init__()
        c, dim = config, config.dim
        self.norm1, self.norm2 = (nn.Identity() if c.qk_norm else nn.LayerNorm(dim) for _ in range(2))
        self.space, self.time = (
            SelfAttention(dim, c.heads, qk_norm=c.qk_norm, qkv_bias=c.qkv_bias, proj_bias=c.proj_bias, mup=c.mup)
            for _ in range(2)
        )
        hidden = int(dim * c.mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(dim, hidden, c.mlp_bias), nn.Linear(hidden, dim, c.mlp_bias)
        self.drop = nn.Dropout(c.mlp_drop)

    def forward(
        self,
        x_TBSD: Tensor,
        memory: Memory = (),
        first: int = 0,
        keep: int = 0,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Memory]:
        """Run T steps through the block.

        Args:
            memory: of the M steps before, which every step of this pass sees.
            first: from which step on anyone reads the states that come out.
            keep: how many of the steps are to be remembered.
            between: what becomes of the states (T, B, S, D) between attention among cells and attention over time; it
                keeps cells apart.

        Returns:
            the states (T - first, B, S, D), and the memory of the M + keep steps, or nothing if none are kept.
        """
        o_TBSD = self.over_cells(recomputed(self.project_cells, x_TBSD))
        if keep:
            x_TBSD, *new = self.over_time(x_TBSD, o_TBSD, *memory, first=first, between=between)
            old = memory[: len(memory) // 2], memory[len(memory) // 2 :]
            return x_TBSD, tuple(chain(*((*o, *n[:keep].clone().split(1)) for o, n in zip(old, new, strict=True))))

        def rest(*given: Tensor) -> Tensor:
            return self.over_time(*given, first=first, between=between)[0]

        return in_parts(partial(recomputed, rest) if self.recompute else rest, 2, x_TBSD, o_TBSD, *memory), ()

    def project_cells(self, x_TBSD: Tensor) -> Tensor:
        """Queries, keys and values of attention among cells, (T, B, S, 3D)."""
        qkv_TBSE: Tensor = self.space.qkv(self.norm1(x_TBSD))
        return qkv_TBSE

    def over_cells(self, qkv_TBSE: Tensor) -> Tensor:
        """What each cell reads from those of its step (T, B, S, D), not yet projected."""
        q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in self.space.split(qkv_TBSE))
        return attend(q, k, v, scale=self.space.scale).transpose(1, 2).reshape(*qkv_TBSE.shape[:3], -1)

    def over_time(
        self,
        x_TBSD: Tensor,
        o_TBSD: Tensor,
        *memory: Tensor,
        first: int,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rest of the block, in which each cell is by itself: states of the steps from `first` on, and keys and
        values (T, B, S, h, d) of all."""
        x_TBSD = added(x_TBSD, self.space.proj(o_TBSD))
        if between is not None:
            x_TBSD = between(x_TBSD)
        q, k, v = self.time.split(self.time.qkv(x_TBSD))
        x_TBSD, q = x_TBSD[first:], q[first:]
        L, half = x_TBSD.shape[0], len(memory) // 2
        if L:
            k_M, v_M = (torch.cat([*old, x]) if old else x for old, x in ((memory[:half], k), (memory[half:], v)))
            M = k_M.shape[0]
            mask = None if L == 1 else torch.ones(L, M, dtype=torch.bool, device=x_TBSD.device).tril(M - L)
            q_NhLd, k_NhMd, v_NhMd = (x.flatten(1, 2).permute(1, 2, 0, 3) for x in (q, k_M, v_M))
            o_NhLd = attend(q_NhLd, k_NhMd, v_NhMd, mask, self.time.scale)
            x_TBSD = added(x_TBSD, self.time.proj(o_NhLd.permute(2, 0, 1, 3).reshape(x_TBSD.shape)))
            x_TBSD = self.mlp(x_TBSD)
        return x_TBSD, k, v

    def mlp(self, x_D: Tensor) -> Tensor:
        run = plainly if self.recompute else recomputed  # what is recomputed as a whole need not be in parts
        hidden_E = run(lambda x: self.fc1(self.norm2(x)), x_D)
        return added(x_D, run(lambda x: self.drop(self.fc2(self.drop(F.gelu(x)))), hidden_E))


class Genie(MaskedModel, name="genie"):
    """Each step is guessed from the steps before it and from its own tokens that are not masked.

    Cells of a step see one another, and a cell sees itself at earlier steps; so no step depends on later ones, the past
    is run through the blocks once, and it is kept from step to step while the window stands. In training all steps but
    the first are partly masked and guessed at once, and see the masked ones before them.

    There is no norm after the last block. Under muP the head reads the states divided by dim / 256.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskedModel.Config):
        """The defaults are those of the published GENIE_35M, but for `hop`, which nothing published has.

        Attributes:
            past, horizon: of the past + horizon steps of a window each has its learned positions.
            hop: 8 goes on from the last 8 to 15 steps once the window of 16 is full.
            prompt: in the training mode closer to autoregressive, steps at the start of a clip that are never masked.
            mup: attention scale 8 / d, smaller initial weights and learning rates of hidden matrices, and a head that
                reads states divided by dim / 256: what the learning rate of a small model needs to suit a wide one.
            qk_norm: LayerNorm on queries and keys, and no other norm.
            qkv_bias, proj_bias, mlp_bias: which Linear layers of a block have biases.
            actions: add to all tokens of a step an embedding of the actions that lead to it. No published model has it.
        """

        dim: int = 256
        depth: int = 32
        heads: int = 8
        past: int = 15
        horizon: int = 1
        hop: int = 8
        prompt: int = 8
        factorized: bool = True
        mup: bool = True
        qk_norm: bool = False
        qkv_bias: bool = False
        proj_bias: bool = True
        mlp_bias: bool = True
        actions: bool = False
        sampler: MaskGITSampler = field(default_factory=lambda: MaskGITSampler(steps=2, order="random"))

    adamw_only = ("embed", "head", "actions")  # type: ignore[assignment]
    fresh = ("actions",)

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2, past=4, hop=2, prompt=2, actions=True)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c = config
        if c.own_past:
            raise HwmError("own_past needs the parallel layout of Masked-HWM, which GENIE does not have; leave it at 0")
        if not 1 <= c.hop <= c.past:
            raise HwmError(f"hop={c.hop} must be between 1 and past={c.past}: a window keeps at least one step")
        self.levels = spec.latent.levels if c.factorized else (self.vocab,)
        self.mup_width = c.dim / BASE_WIDTH if c.mup else 1.0
        self.position = nn.Parameter(torch.zeros(c.past + c.horizon, spec.latent.cells, c.dim))
        self.actions = ActionEncoder(spec, c.dim, positions=1, ordered=True, deep=False) if c.actions else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        init_weights(self)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.mul_(self.mup_width**-0.5)

    def check_actions(self, batch: Batch) -> None:
        """A model that takes no actions takes those of any robot."""
        if self.actions is not None:
            super().check_actions(batch)

    def split(self, ids_BTS: Tensor) -> tuple[Tensor, Tensor]:
        """All steps of a training clip but the first are guessed."""
        if not 2 <= ids_BTS.shape[1] <= len(self.position):
            raise HwmError(
                f"GENIE trains on clips of 2 to past + horizon = {len(self.position)} steps, not {ids_BTS.shape[1]}"
            )
        return ids_BTS[:, :1], ids_BTS[:, 1:]

    def corrupt_and_mask(
        self, ids_BTS: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        c, (batch, steps) = self.config, ids_BTS.shape[:2]
        rate_BT, ratio_BT = noise(
            batch, steps, max_corrupt=c.max_corrupt, non_mlm=c.non_mlm, prompt=c.prompt, fully_masked=c.fully_masked,
            device=ids_BTS.device, generator=generator,
        )  # fmt: skip
        past_BPS, shown_BHS = self.split(corrupt_digits(ids_BTS, rate_BT, self.levels, generator))
        ratio_BH = ratio_BT[:, 1:]
        masked_BHS = cosine_mask(ratio_BH, ids_BTS.shape[2], generator) & (ratio_BH > 0)[..., None]
        return past_BPS, shown_BHS, masked_BHS

    def cache_of(self, window: Window) -> Cache:
        return window.cache

    def run(
        self, ids_BTS: Tensor, masked_BTS: Tensor | None, actions_TBD: Tensor | None, cache: Cache, *, keep: int = 0,
        first: int = 0,
    ) -> tuple[Tensor, Cache]:  # fmt: skip
        """The steps after those of a cache through all blocks.

        Args:
            actions_TBD: embeddings of the actions that lead to these steps.
            keep: how many of these steps are to be remembered; their keys and values are of no use otherwise.
            first: from which step on anyone reads the states that come out.

        Returns:
            states (T - first, B, S, D), and, if any are kept, a cache of the steps so far.
        """
        start, stop = cache.steps, cache.steps + ids_BTS.shape[1]
        x_TBSD = self.embed(ids_BTS.transpose(0, 1), None if masked_BTS is None else masked_BTS.transpose(0, 1))
        x_TBSD = x_TBSD + self.position[start:stop, None]
        if actions_TBD is not None:
            x_TBSD = x_TBSD + actions_TBD[:, :, None]
        memory, last = [], len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            old = cache.memory[i] if cache.memory else ()
            x_TBSD, so_far = block(x_TBSD, old, first if i == last else 0, keep)
            memory.append(so_far)
        return x_TBSD, Cache(tuple(memory), start + keep) if keep else cache

    def embed_actions(self, actions_BTKA: Tensor, embodiment: str) -> Tensor | None:
        """Embeddings (T, B, D) of the actions of a window, in a model that has actions."""
        if actions_BTKA.shape[1] > len(self.position):
            raise HwmError(
                f"only past + horizon = {len(self.position)} steps have positions, not {actions_BTKA.shape[1]}"
            )
        return None if self.actions is None else self.actions(actions_BTKA, embodiment)

    def observe(
        self, ids_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, missing: int, cache: Cache | None = None
    ) -> Window:
        actions_TBD, past = self.embed_actions(actions_BTKA, embodiment), ids_BPS.shape[1]
        cache = cache or Cache((), 0)
        new = past - cache.steps
        if new:
            asked = None if actions_TBD is None else actions_TBD[cache.steps : past]
            _, cache = self.run(ids_BPS[:, cache.steps :], None, asked, cache, keep=new, first=new)
        return Window(cache, None if actions_TBD is None else actions_TBD[past:])

    def look(self, window: Window, ids_BHS: Tensor, masked_BHS: Tensor) -> Tensor:
        return self.out(self.run(ids_BHS, masked_BHS, window.actions, window.cache)[0])

    def out(self, x_HBSD: Tensor) -> Tensor:
        """The states that the head reads (B, H, S, D)."""
        return (x_HBSD / self.mup_width).transpose(0, 1)

    def first_look(
        self,
        ids_BPS: Tensor,
        actions_BTKA: Tensor,
        embodiment: str,
        ids_BHS: Tensor,
        masked_BHS: Tensor,
        cache: Cache | None = None,
        *,
        keep: bool = True,
    ) -> tuple[Window, Tensor]:
        """The steps that are not remembered yet and those asked for go through the blocks together.

        Args:
            keep: whether there will be more looks.
        """
        actions_TBD, past = self.embed_actions(actions_BTKA, embodiment), ids_BPS.shape[1]
        cache = cache or Cache((), 0)
        new = past - cache.steps
        ids_BTS = torch.cat([ids_BPS[:, cache.steps :], ids_BHS], 1)
        masked_BTS = F.pad(masked_BHS, (0, 0, new, 0))  # none of the past
        actions = None if actions_TBD is None else actions_TBD[cache.steps :]
        x_HBSD, cache = self.run(ids_BTS, masked_BTS, actions, cache, keep=new if keep else 0, first=new)
        return Window(cache, None if actions_TBD is None else actions_TBD[past:]), self.out(x_HBSD)

    def look_at_clip(
        self, past_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, shown_BHS: Tensor, masked_BHS: Tensor
    ) -> Tensor:
        return self.first_look(past_BPS, actions_BTKA, embodiment, shown_BHS, masked_BHS, keep=False)[1]
