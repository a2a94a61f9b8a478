"""Masked-HWM (arXiv 2506.01182): a spatio-temporal masked transformer over four streams, in four variants.

Shape suffixes: B batch, T latent step of the window, P past step, H missing step, S cells, K actions a step, A action
dimension, D width. Inside the blocks time comes first (TBSD).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.masked import MaskedModel
from hwm.nn.actions import ActionEncoder
from hwm.nn.layers import constant, init_weights
from hwm.nn.rope import rope_1d, rope_2d
from hwm.nn.st import StreamMemory, View
from hwm.nn.streams import STREAM_ROWS, Stack, StreamBlock
from hwm.objectives import maskgit
from hwm.types import DataSpec

# variant -> rows of the first `unshared_layers` blocks and of the others
VARIANTS = {
    "base": ("base", "base"),
    "modality": ("base", "modality"),
    "full": ("base", "full"),
    "split": ("split", "split"),
}


class StreamCache(NamedTuple):
    """What is remembered of the first `steps` steps of a window.

    Attributes:
        memory: keys and values, a block each.
        steps: how many steps they cover.
        last: (1, B, S, D), embedding of each cell's token in the last of these steps (when the parallel layout
            trains, in all of them).
    """

    memory: tuple[StreamMemory, ...]
    steps: int
    last: Tensor


class StreamWindow(NamedTuple):
    """The past as remembered, and the actions (H, B, D) and times of the steps asked for."""

    cache: StreamCache
    actions: Tensor
    times: range


class MaskedHWM(MaskedModel, name="masked_hwm"):
    """Past video and past actions, future actions, and a partly masked future: the masked tokens' ids are guessed.

    A step sees video of its own time and of earlier times, and the actions up to and including the one that leads to
    it. Video, action, past and future lie on one axis of time, so that the past never depends on what comes later and
    is run through the blocks once, however many decoding steps follow.

    Where the released code departs from the paper this class follows the paper: there a causal mask over the order
    [video, actions] keeps all actions from all logits; action steps take their residual from the video; cross
    attention runs over heads.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskedModel.Config):
        """The defaults are the paper's.

        Attributes:
            variant: "base" has an MLP a stream; "modality" one for video and one for actions, "full" one for all four
                streams (both after `unshared_layers` blocks of "base"); "split" replaces joint attention over time by
                video to video, action to action, and video to action.
            qk_norm: LayerNorm on queries and keys of self-attention.
            final_norm: LayerNorm before the head; the paper's model has none.
            learned_steps: steps of the window with a learned absolute position of their own, past + horizon in the
                paper. 1: one position a cell, the same for every step (and one an action slot), so that rotary
                positions alone tell the time and windows of any length will do.
            parallel: train every step of the clip but the first as a target at once, each the one missing step of its
                own window, for two passes' worth of tokens. Needs horizon = 1, of which it is the exact equivalent.
            own_past: in training, up to this share of the past steps of every other clip is shown as the model itself
                would have predicted them (scheduled sampling, Bengio et al. 2015), which is what a rollout will feed
                it. Needs `parallel`, under which one more pass without gradient predicts them all.
            reach: how many earlier past steps' cells the spatial attention of a missing step reads too.
            copy_previous: add a Linear of the embedding of the same cell one step earlier to each missing step's input.
            action_deltas: actions are read together with their change since the action before.
            ordered_actions: give actions their learned positions before their MLP, so that the mean over a step's
                actions knows which came first; the paper's comes after it, and forgets.
            published_rope: spatial rotary frequencies of the released code; see `rope_2d`.
        """

        variant: Literal["base", "modality", "full", "split"] = "base"
        unshared_layers: int = 4
        qk_norm: bool = False
        final_norm: bool = False
        learned_steps: int = 3
        parallel: bool = False
        own_past: float = 0.0
        reach: int = 0
        copy_previous: bool = False
        action_deltas: bool = False
        ordered_actions: bool = False
        published_rope: bool = False

        in_validation: ClassVar[Mapping[str, Any]] = {"own_past": 0.0}

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2, unshared_layers=1)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c = config
        if c.learned_steps != 1 and c.learned_steps < c.past + c.horizon:
            raise HwmError(
                f"learned_steps={c.learned_steps} is too few for past + horizon = {c.past + c.horizon} steps; "
                "give each step a position, or share one among all with learned_steps=1"
            )
        if c.parallel and c.horizon != 1:
            raise HwmError(f"parallel=True trains windows with one missing step, so horizon must be 1, not {c.horizon}")
        if c.own_past and not c.parallel:
            raise HwmError("own_past needs parallel=True, in which one pass predicts every past step")
        self.parallel = c.parallel
        self.position = nn.Parameter(torch.zeros(1, c.learned_steps, spec.latent.cells, c.dim))
        self.actions = ActionEncoder(
            spec,
            c.dim,
            positions=c.learned_steps,
            ratio=c.mlp_ratio,
            ordered=c.ordered_actions,
            changes=c.action_deltas,
        )
        self.previous = nn.Linear(c.dim, c.dim) if c.copy_previous else None
        first, others = VARIANTS[c.variant]
        rows = [STREAM_ROWS[first if i < c.unshared_layers else others] for i in range(c.depth)]
        self.blocks = Stack(StreamBlock(row, c.dim, c.heads, c.mlp_ratio, c.mlp_drop, c.qk_norm) for row in rows)
        self.norm = nn.LayerNorm(c.dim) if c.final_norm else nn.Identity()
        init_weights(self)
        self.head.init()

    def split(self, ids_BTS: Tensor, prompt: int = 0) -> tuple[Tensor, Tensor]:
        """In the parallel layout all steps but the last are past, and all but the first are asked for."""
        return (ids_BTS[:, :-1], ids_BTS[:, max(1, prompt) :]) if self.parallel else super().split(ids_BTS)

    def as_learned_from(self, past_BPS: Tensor, actions_BTKA: Tensor, embodiment: str) -> Tensor:
        return self.with_own_guesses(past_BPS, actions_BTKA, embodiment) if self.config.own_past else past_BPS

    @torch.no_grad()
    def with_own_guesses(self, past_BPS: Tensor, actions_BTKA: Tensor, embodiment: str) -> Tensor:
        """The past with some of its steps replaced by the model's own predictions of them, of one decoding step."""
        steps, clips = past_BPS.shape[1], (past_BPS.shape[0] + 1) // 2  # half of the clips: half of the cost
        shown_BPS = past_BPS[:clips]
        window = self.observe(shown_BPS, actions_BTKA[:clips], embodiment, steps)
        hidden_BPSD = self.decoding_step(window, shown_BPS, torch.ones_like(shown_BPS, dtype=torch.bool))
        drawn = [maskgit.pick(part, self.config.sampler)[0] for part in self.head.draws(self.head(hidden_BPSD))]
        # step t is predicted at place t - 1; the first step has no past to be predicted from
        own_BPS = torch.cat([shown_BPS[:, :1], self.head.join(tuple(drawn))[:, :-1]], 1)
        share_B11 = self.config.own_past * torch.rand(clips, 1, 1, device=past_BPS.device)
        use_BP1 = torch.rand(clips, steps, 1, device=past_BPS.device) < share_B11
        return torch.cat([torch.where(use_BP1, own_BPS, shown_BPS), past_BPS[clips:]])

    def cache_of(self, window: StreamWindow) -> StreamCache:
        memory, steps, last = window.cache
        return StreamCache(tuple(m.owned() for m in memory), steps, last.clone())

    def view(self, past: range, future: range, remembered: int, asked: int, device: torch.device) -> View:
        """See `view`."""
        c = self.config
        return view(
            past, future, remembered, asked, device, grid=self.spec.latent.grid, head=c.dim // c.heads, reach=c.reach,
            alone=self.parallel, published=c.published_rope,
        )  # fmt: skip

    def placed(self, x_TBSD: Tensor, times: range) -> Tensor:
        """Token embeddings with the learned positions of their cells, and of their steps where steps have them."""
        if self.config.learned_steps == 1:
            return x_TBSD + self.position
        return x_TBSD + self.position[0, times.start : times.stop, None]

    def observe(
        self, ids_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, missing: int, cache: StreamCache | None = None
    ) -> StreamWindow:
        actions_TBD, asked = self.embed_actions(actions_BTKA, embodiment, missing)
        past, done = ids_BPS.shape[1], cache.steps if cache else 0
        if cache is None or done < past:
            e_TBSD = self.embed(ids_BPS[:, done:].transpose(0, 1))
            x_TBSD = self.placed(e_TBSD, range(done, past))
            view = self.view(range(done, past), range(0), done, asked.start, x_TBSD.device)
            memory = cache.memory if cache else None
            _, memory = self.blocks(x_TBSD, actions_TBD[done:past], view, memory, first=past - done)
            cache = StreamCache(memory, past, e_TBSD[asked.start - 1 - done :])
        return StreamWindow(cache, actions_TBD[asked.start :], asked)

    def decoding_step(self, window: StreamWindow, ids_BHS: Tensor, masked_BHS: Tensor) -> Tensor:
        cache, times = window.cache, window.times
        x_HBSD = self.embed_asked(ids_BHS, masked_BHS, cache.last, times)
        view = self.view(range(0), times, cache.steps, times.start, x_HBSD.device)
        x_HBSD, _ = self.blocks(x_HBSD, window.actions, view, cache.memory)
        return self.norm(x_HBSD).transpose(0, 1)

    def prefill(
        self,
        ids_BPS: Tensor,
        actions_BTKA: Tensor,
        embodiment: str,
        ids_BHS: Tensor,
        masked_BHS: Tensor,
        cache: StreamCache | None = None,
    ) -> tuple[StreamWindow, Tensor]:
        """The past that is not remembered yet and the steps asked for go through the blocks together: on a CPU what a
        step of a small model takes is as much the number of calls as the work in them."""
        past, done = ids_BPS.shape[1], cache.steps if cache else 0
        if done == past:
            return super().prefill(ids_BPS, actions_BTKA, embodiment, ids_BHS, masked_BHS, cache)
        actions_TBD, asked = self.embed_actions(actions_BTKA, embodiment, ids_BHS.shape[1])
        e_TBSD, times = self.embed(ids_BPS[:, done:].transpose(0, 1)), range(done, past)
        last = e_TBSD[-1:]
        x_TBSD = torch.cat([self.placed(e_TBSD, times), self.embed_asked(ids_BHS, masked_BHS, last, asked)])
        view = self.view(times, asked, done, past, x_TBSD.device)
        memory = cache.memory if cache else None
        x_HBSD, memory = self.blocks(x_TBSD, actions_TBD[done:], view, memory, first=len(times))
        cache = StreamCache(tuple(m.without_last(len(asked)) for m in memory), past, last)
        return StreamWindow(cache, actions_TBD[past:], asked), self.norm(x_HBSD).transpose(0, 1)

    def embed_actions(self, actions_BTKA: Tensor, embodiment: str, missing: int) -> tuple[Tensor, range]:
        """The embedded actions (T, B, D) of a window, and the times of the steps that are missing."""
        steps = actions_BTKA.shape[1]
        if 1 < self.config.learned_steps < steps:
            raise HwmError(f"only learned_steps={self.config.learned_steps} steps have a position, not {steps}")
        return self.actions(actions_BTKA, embodiment), range(steps - missing, steps)

    def embed_asked(self, ids_BHS: Tensor, masked_BHS: Tensor, last_1BSD: Tensor, times: range) -> Tensor:
        """The embedded steps (H, B, S, D) that are looked at."""
        x_HBSD = self.placed(self.embed(ids_BHS.transpose(0, 1), masked_BHS.transpose(0, 1)), times)
        return x_HBSD if self.previous is None else x_HBSD + self.previous(last_1BSD)


@lru_cache(maxsize=256)
def view(
    past: range,
    future: range,
    remembered: int,
    asked: int,
    device: torch.device,
    *,
    grid: tuple[int, int],
    head: int,
    reach: int,
    alone: bool,
    published: bool,
) -> View:
    """How a pass of past and future steps at these times sees the steps 0..remembered, and one another.

    Args:
        asked: the first step that is ever asked for: what comes `reach` steps before it, or later, is kept for it.
        alone: whether future steps do not see one another.
    """
    times, known = (*past, *future), past.stop if past else remembered
    cells, time = rope_2d(grid, head, device, published=published), rope_1d(times, head, device)

    def sees(t: int, s: int) -> bool:
        """Clean steps see those up to their own time. Others see only earlier clean ones, not their own clean copy."""
        if s in future:
            return s == t if alone else s <= t
        return s < t or (t in past and s == t)

    seen = tuple(tuple(m < t for m in range(remembered)) + tuple(sees(t, s) for s in times) for t in times)
    before = range(reach, 0, -1) if future else range(0)
    return View(
        roles=tuple((role, len(steps)) for role, steps in (("past", past), ("future", future)) if steps),
        cells=(cells[0][:, None], cells[1][:, None]),
        times=(time[0][:, None, None, None], time[1][:, None, None, None]),
        mask=None if all(map(all, seen)) else constant(seen, device, torch.bool),
        near=tuple(tuple(max(min(t, known) - j, 0) - remembered for t in future) for j in before),
        keep_cells=times[-1] + 1 - max(min(asked, known) - reach, 0) if past and reach else 0,
    )
