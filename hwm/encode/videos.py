"""Video files into a store, for training on video that has no actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hwm.data.store import Header, Store
from hwm.data.writer import Writer
from hwm.devices import format_of
from hwm.encode.files import latents_of, take_every
from hwm.errors import HwmError
from hwm.tokenizers.pixels import Pixels
from hwm.types import Tokenizer

NO_ACTION = "none"
"""The name of the one action, which is zero: a store has at least one."""


def write_store(
    sources: Sequence[Path], tokenizer: Tokenizer, out: Path, *, fps: float = 0.0, resize: bool = False
) -> Store:
    """Encode video files into a store, an episode each; the same call goes on after a kill.

    Frames that do not fill a last latent step are left out.

    Args:
        sources: of one rate, and of different names.
        fps, resize: as of `latents_of`.

    Raises:
        HwmError: no videos, videos of different rates, one that is damaged or of another size, or `out` was begun from
            others.
    """
    if not sources:
        raise HwmError("there are no videos to make a store of")
    names = [source.stem for source in sources]
    if double := {name for name in names if names.count(name) > 1}:
        raise HwmError(f"several videos are called {min(double)}: rename one")
    rates = {source: rate / every for source in sources for rate, every in [take_every(source, fps)]}
    slow, fast = min(rates, key=lambda s: rates[s]), max(rates, key=lambda s: rates[s])
    if rates[fast] - rates[slow] > 0.01 * rates[fast]:
        raise HwmError(
            f"{slow} has {rates[slow]:g} frames a second and {fast} {rates[fast]:g}: say how many to take (--fps), or "
            "make a store of each"
        )
    spec, pixels = tokenizer.latent, isinstance(tokenizer, Pixels)
    header = Header(
        embodiment="video", action_names=(NO_ACTION,), actions_per_step=1, fps=rates[slow] / spec.stride, latent=spec,
        dtype="uint8" if pixels else "", tokenizer=tokenizer.id, source="video files",
    )  # fmt: skip
    writer = Writer(out, header, {"dtype": format_of(tokenizer), "resize": resize})
    done = writer.done_of(names)
    for source in sources:
        if source.stem in done:
            continue
        latents, about, _ = latents_of(source, tokenizer, fps=fps, resize=resize)
        whole = latents[: spec.steps(about.frames)]
        values = (whole.float() * 255).round().to(torch.uint8) if pixels else whole
        writer.add(source.stem, np.zeros((len(whole), 1, 1)), values.numpy())
    return writer.finish()
