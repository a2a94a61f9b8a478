"""The nouns that every part of the toolkit shares: what latents, actions, batches and predictions are.

Shape suffixes used throughout the project: B batch, T latent step, H W latent grid, S = H*W cells, D width,
K actions a step, A action dimension, F frames, C channels, V vocabulary, N rows of a store.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.errors import HwmError

UNSAID = {"unsaid": True}
"""Metadata of a field that is written only where it has another value than its default."""
# Of random numbers: one for a whole batch, or one for each of its rows, whose draws then do not depend on the others.
Generator = torch.Generator | Sequence[torch.Generator] | None


def check_views(names: Sequence[str]) -> None:
    """Raise `HwmError` unless these can name the cameras of a step, of which files and metrics are named too."""
    if len(names) == 1 or len(set(names)) < len(names):
        raise HwmError(f"views {', '.join(names)}: several cameras of different names, or none for a single camera")
    if wrong := [name for name in names if not name or name.startswith(".") or set(name) & set("/\\\0")]:
        raise HwmError(f"{wrong[0]!r} cannot name a view: names begin with no dot and hold no slashes")


@dataclass(frozen=True)
class LatentSpec:
    """What a tokenizer emits: all that a model must know of its data.

    Attributes:
        grid: (H, W) cells of one latent step.
        vocab: number of token ids (discrete latents), else None.
        channels: number of channels (continuous latents), else None.
        stride: frames that a step holds after the first; the first holds one frame (Cosmos: 1, 8, 8).
        levels: how an id splits into digits, least significant first (FSQ levels, or 2 x 512 factors);
            empty when ids have no parts. The product of the levels is `vocab`.
        views: names of the cameras whose cells lie one below the other in the grid, from the top; empty for one camera.
    """

    grid: tuple[int, int]
    vocab: int | None = None
    channels: int | None = None
    stride: int = 1
    levels: tuple[int, ...] = ()
    views: tuple[str, ...] = field(default=(), metadata=UNSAID)

    def __post_init__(self) -> None:
        check_views(self.views)
        if self.views and self.grid[0] % len(self.views):
            raise HwmError(f"{self.grid[0]} rows of cells cannot be shared out among the views {', '.join(self.views)}")
        if (self.vocab is None) == (self.channels is None):
            raise HwmError(f"a latent spec is either discrete (vocab) or continuous (channels), got {self}")
        if self.levels and math.prod(self.levels) != self.vocab:
            raise HwmError(
                f"levels {self.levels} multiply to {math.prod(self.levels)}, not to the vocabulary {self.vocab}"
            )

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def view_grid(self) -> tuple[int, int]:
        """(H, W) cells of each view; of one camera the whole grid."""
        return self.grid[0] // max(1, len(self.views)), self.grid[1]

    def steps(self, frames: int) -> int:
        """Latent steps that `frames` frames fill."""
        return 1 + (frames - 1) // self.stride

    def frames(self, steps: int) -> int:
        """Frames that `steps` latent steps show."""
        return 1 + (steps - 1) * self.stride


@dataclass(frozen=True)
class ActionSpec:
    """Actions of one embodiment: how many a step, their names, and the statistics that normalise them.

    Attributes:
        per_step: K, actions between one latent step and the next.
        names: one name a dimension.
        mean, std: per dimension, over the training data; a std of 0 stands for a constant dimension.
    """

    per_step: int
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.mean) == len(self.std):
            raise HwmError(
                f"{len(self.names)} action names, {len(self.mean)} means and {len(self.std)} standard deviations: "
                "the statistics must have one entry a dimension"
            )

    @property
    def dim(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class DataSpec:
    """What a model is built for: its latents and, by embodiment, its actions. Saved in every checkpoint.

    Attributes:
        latent: what the tokenizer emits.
        actions: embodiment -> ActionSpec.
        tokenizer: identity of the tokenizer that made the latents (name, and fingerprint of its weights).
        fps: latent steps a second (after the first), for showing video at its true speed.
        latent_mean, latent_std: of each channel of continuous latents, over the training data; empty where they are not
            known, and for discrete latents.
    """

    latent: LatentSpec
    actions: dict[str, ActionSpec]
    tokenizer: str = ""
    fps: float = 30.0
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()


@dataclass
class Batch:
    """Clips of one embodiment.

    Attributes:
        latents: (B, T, H, W) int64, or (B, T, C, H, W) float.
        actions: (B, T', K, A) float, in the units of the robot; actions[:, t] lead from step t-1 to step t, and
            T' >= T: the surplus steps are those that `WorldModel.predict` fills in.
        embodiment: whose actions these are; one embodiment a batch.
        following: (B, K, A), the actions that lead from the last step of `actions` to the one after it, for models that
            condition a step on what follows it. NaN in clips whose recording ends there; None where all do, and where
            nothing is recorded, as in play.
        prompt: how many steps at the start of a training clip are only looked back on, shown as they are in
            prediction: a loss learns nothing from what they hold, which may be of the model's own making. 0 leaves it
            to the model what it learns from.
    """

    latents: Tensor
    actions: Tensor
    embodiment: str
    following: Tensor | None = None
    prompt: int = 0

    @property
    def missing(self) -> int:
        """How many steps have actions and no latents yet."""
        return self.actions.shape[1] - self.latents.shape[1]

    @property
    def actions_ahead(self) -> Tensor:
        """(B, T' + 1, K, A): `actions`, and behind them those that follow, or the last again where none are known."""
        last = self.actions[:, -1]
        known = last if self.following is None else torch.where(self.following.isnan(), last, self.following)
        return torch.cat([self.actions, known[:, None]], 1)

    def window(self, start: int, latents_to: int, actions_to: int) -> Batch:
        """Latents start..latents_to and actions start..actions_to; those of step `actions_to` follow them."""
        ends = actions_to >= self.actions.shape[1]
        return replace(
            self,
            latents=self.latents[:, start:latents_to],
            actions=self.actions[:, start:actions_to],
            following=self.following if ends else self.actions[:, actions_to],
            prompt=max(0, self.prompt - start),
        )

    def to(self, device: torch.device | str) -> Batch:
        return self._each(lambda x: sent(x, device))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory: a copy from there to a GPU is not waited for."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        following = None if self.following is None else change(self.following)
        return replace(self, latents=change(self.latents), actions=change(self.actions), following=following)


@dataclass
class Prediction:
    """The steps that a batch was missing.

    Attributes:
        latents: (B, missing, H, W) int64 or (B, missing, C, H, W) float.
        logits: (B, missing, H, W, V) where the model has token probabilities and was asked for them; with a
            factorised vocabulary the logits of the digits side by side, (..., sum(levels)).
        levels: the digits' sizes when `logits` are factorised.
        cache: what the model may reuse at the next step while the window's start stays; opaque to the caller.
    """

    latents: Tensor
    logits: Tensor | None = None
    levels: tuple[int, ...] = ()
    cache: object | None = None

    def cross_entropy(self, target_BTHW: Tensor) -> Tensor | None:
        """Mean negative log-likelihood of `target` in nats a token, per step: (T,); None without logits."""
        if self.logits is None:
            return None
        parts = self.logits.float().split(self.levels, -1) if self.levels else (self.logits.float(),)
        digits = split_digits(target_BTHW, self.levels).unbind(-1) if self.levels else (target_BTHW,)
        nll = sum(F.cross_entropy(p.movedim(-1, 1), d, reduction="none") for p, d in zip(parts, digits, strict=True))
        return nll.mean((0, 2, 3))  # type: ignore[union-attr]


class Tokenizer(ABC):
    """Video in [0, 1], (B, F, 3, height, width) <-> latents (B, T, ...) as `latent` describes them.

    Attributes:
        latent: the spec of what `encode` returns.
        id: name and fingerprint of the weights; stores and checkpoints record it.
        size: (height, width) of the pictures.
        published: the name by which published data sets know their tokenizer, if this is one of those: they record no
            fingerprint.
        stored: numpy's name of the type that stores keep its latents in; empty for the smallest that holds them.
        lookback: how many earlier steps `decode` needs to see to show a step as it shows it within a whole clip.
    """

    lookback = 0
    published = ""
    stored = ""
    latent: LatentSpec
    id: str
    size: tuple[int, int]

    @abstractmethod
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        """Latents of a video in [0, 1] of this tokenizer's `size`; F frames give `latent.steps(F)` steps."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Video in [0, 1], `latent.frames(T)` frames."""

    def encode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents of a video that comes piece by piece: the first of 1 + n * stride frames, others of n * stride.

        Joined, they are what `encode` gives of the whole; so tokenizers that join frames in time override this.
        """
        return map(self.encode, pieces)

    def decode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Video of latents that come piece by piece, any number of steps each; joined, what `decode` gives."""
        return map(self.decode, pieces)

    def answers_to(self, name: str) -> bool:
        """Whether latents whose tokenizer is recorded as `name` are this one's: the same weights, wherever they lie."""
        _, at, fingerprint = name.rpartition("@")
        return bool(name) and (name in (self.id, self.published) or (bool(at) and self.id.endswith(f"@{fingerprint}")))

    def of_size(self, size: tuple[int, int]) -> Tokenizer:
        """The same weights for pictures of another (height, width).

        Raises:
            HwmError: this tokenizer cannot take that size.
        """
        raise HwmError(
            f"{self.id} takes pictures of {self.size[0]} x {self.size[1]} only, not of {size[0]} x {size[1]}"
        )

    def shift(self, latents: Tensor, keep: int) -> Tensor:
        """The last `keep` steps as the beginning of a new clip.

        A slice where steps do not depend on earlier ones; tokenizers that are causal over a clip decode the last
        frames and encode them again.
        """
        return latents[:, max(0, latents.shape[1] - keep) :]


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on a device, for which the host does not wait where the device is a card: pinned memory is
    copied to it in its turn. A tensor that is on the device, or on another, moves as `Tensor.to` moves it."""
    to_card = torch.device(device).type == "cuda" and x.device.type == "cpu"
    return x.pin_memory().to(device, non_blocking=True) if to_card else x.to(device)


def check_ids(ids: Tensor, vocab: int) -> None:
    """Raise `HwmError` for token ids outside 0..vocab-1: their digits would be those of other ids.

    What comes from files and callers is on the host. To look at ids that a device holds, the host would have to wait
    for it: an NVIDIA card stops at those that are none of the vocabulary, by itself; elsewhere they are not looked at.
    """
    if not ids.numel():
        return
    if ids.device.type == "cuda":
        torch._assert_async(((ids >= 0) & (ids < vocab)).all(), f"token ids must be in 0..{vocab - 1}")
    elif ids.device.type == "cpu":
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= vocab:
            raise HwmError(f"token ids must be in 0..{vocab - 1}, these reach from {low} to {high}")


def split_digits(ids: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Token ids (...) -> digits (..., len(levels)), least significant first."""
    base, size = _digit_sizes(levels, ids.device)
    return ids[..., None] // base % size


def join_digits(digits: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Digits (..., len(levels)), least significant first -> token ids (...)."""
    return (digits * _digit_sizes(levels, digits.device)[0]).sum(-1)


@lru_cache(maxsize=64)
def _digit_sizes(levels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What one counts in each digit, and how many values it has; made outside inference mode, as all that is kept."""
    with torch.inference_mode(False):
        base = tuple(accumulate(levels[:-1], operator.mul, initial=1))
        return torch.tensor(base, device=device), torch.tensor(levels, device=device)
