"""How good a tokenizer is on some video: its reconstruction beside the camera's pictures, and its codebook usage.

Shape suffixes: F frames, T latent step, C channels, H W picture or grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwm.data.sources.videos import videos_in
from hwm.devices import device_of
from hwm.encode.files import take_every
from hwm.errors import HwmError
from hwm.evaluate import metrics
from hwm.networks.efficientnet import SMALLEST, installed, load_efficientnet
from hwm.pictures.canvas import INK
from hwm.pictures.sheet import Block, Row, draw_sheet
from hwm.pictures.video import read_video, to_uint8, to_video
from hwm.types import Tokenizer, split_digits

Judge = Callable[[Tensor, Tensor], Tensor]
"""Pictures and the truth, (F, 3, H, W) in [0, 1] -> a value for each, (F,)."""


@dataclass(frozen=True, kw_only=True)
class CodebookUsage:
    """How much of the codebook is used.

    Attributes:
        cells: of which ids were counted.
        different: ids that occur.
        vocab: ids that there are.
        usage: share of the codebook that occurs; at most `cells` / `vocab`.
        perplexity: exp of the entropy of their frequencies; at most the smaller of `cells` and `vocab`.
        levels: of each digit, the share of its values that occur.
    """

    cells: int
    different: int
    vocab: int
    usage: float
    perplexity: float
    levels: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures of one tokenizer and of one video or several.

    Attributes:
        tokenizer: its identity.
        source: the video, or their folder.
        videos: how many.
        frames: that were compared, of all videos.
        size: (height, width) at which they were.
        psnr, ssim: means over frames, of pictures in [0, 1] (`hwm.evaluate.metrics`).
        psnr_worst: of the worst frame.
        psnr_copy: of the true frame before each latent step, repeated in its place: what is known of a step without its
            latents. None where there is but one step.
        perceptual, perceptual_copy: the same by a perceptual distance (`hwm.networks.efficientnet`), lower is better;
            None where its weights are not installed or pictures are too small for it.
        codes: codebook usage; None for continuous latents.
    """

    tokenizer: str
    source: str
    videos: int
    frames: int
    size: tuple[int, int]
    psnr: float
    psnr_worst: float
    psnr_copy: float | None
    ssim: float
    perceptual: float | None
    perceptual_copy: float | None
    codes: CodebookUsage | None


def compare(source: Path, tokenizer: Tokenizer, frames: int, fps: float = 0.0) -> tuple[Report, Tensor, Tensor]:
    """The report of the first frames of a video file, or of each in a folder; truth and reconstruction of the first
    video, (F, 3, H, W).

    Pictures are resized to the tokenizer's size. Of `frames`, those are taken that fill whole latent steps.

    Args:
        fps: frames a second to take, of which the videos' rates must be multiples; 0 takes all.

    Raises:
        HwmError: a video is missing or damaged, or has no frames; or its frames do not lie evenly.
    """
    sources = videos_in(source) if source.is_dir() else [source]
    if not sources:
        raise HwmError(f"{source} holds no videos")
    judges: dict[str, Judge] = {"psnr": metrics.psnr, "ssim": metrics.ssim}
    if installed() and min(tokenizer.size) >= SMALLEST:
        judges["perceptual"] = load_efficientnet()
    made_by, copies = ({name: list[Tensor]() for name in judges} for _ in range(2))
    ids: list[Tensor] = []
    shown: list[Tensor] = []
    for path in sources:
        truth, made, latents = _through(path, tokenizer, frames, fps)
        ids.append(latents.flatten())
        stride = tokenizer.latent.stride
        before = truth[: len(truth) - 1 : stride].repeat_interleave(stride, 0)
        for name, judge in judges.items():
            made_by[name].append(judge(made, truth))
            copies[name] += [judge(before, truth[1:])] if len(before) else []
        shown = shown or [truth, made]
    psnr = torch.cat(made_by["psnr"])
    report = Report(
        tokenizer=tokenizer.id, source=source.name, videos=len(sources), frames=len(psnr), size=tokenizer.size,
        psnr=psnr.mean().item(), psnr_worst=psnr.min().item(), psnr_copy=_mean(copies["psnr"]),
        ssim=torch.cat(made_by["ssim"]).mean().item(), perceptual=_mean(made_by.get("perceptual", [])),
        perceptual_copy=_mean(copies.get("perceptual", [])),
        codes=codebook_usage(torch.cat(ids), tokenizer) if tokenizer.latent.vocab else None,
    )  # fmt: skip
    return report, shown[0], shown[1]


def _mean(values: list[Tensor]) -> float | None:
    return torch.cat(values).mean().item() if values else None


def _through(path: Path, tokenizer: Tokenizer, frames: int, fps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Truth and reconstruction (F, 3, H, W) of a video's first frames, and the latents between."""
    pictures = list(islice(read_video(path, take_every(path, fps)[1]), max(1, frames)))
    if not pictures:
        raise HwmError(f"{path} shows no frames")
    whole = tokenizer.latent.frames(tokenizer.latent.steps(len(pictures)))
    truth = to_video(pictures[:whole], tokenizer.size)
    with torch.inference_mode():
        latents = tokenizer.encode(truth[None].to(device_of(tokenizer, truth.device)))
        made = tokenizer.decode(latents)[0].float().cpu()
    return truth, made, latents.cpu()


def codebook_usage(ids: Tensor, tokenizer: Tokenizer) -> CodebookUsage:
    """How much of the codebook these ids use: integers of any shape, in 0..vocab-1."""
    spec = tokenizer.latent
    assert spec.vocab is not None
    flat = ids.flatten().cpu()
    share = flat.unique(return_counts=True)[1].double() / flat.numel()
    digits = split_digits(flat, spec.levels).unbind(-1) if spec.levels else ()
    used = tuple(len(digit.unique()) / level for digit, level in zip(digits, spec.levels, strict=True))
    perplexity = torch.exp(-(share * share.log()).sum()).item()
    return CodebookUsage(
        cells=flat.numel(), different=len(share), vocab=spec.vocab, usage=len(share) / spec.vocab,
        perplexity=perplexity, levels=used,
    )  # fmt: skip


def picture(truth_FCHW: Tensor, made_FCHW: Tensor, columns: int = 4) -> np.ndarray:
    """Some frames, evenly from the first to the last: truth, reconstruction, and four times their difference below each
    other; (H, W, 3) uint8."""
    at = np.linspace(0, len(truth_FCHW) - 1, min(columns, len(truth_FCHW))).round().astype(int)
    truth, made = truth_FCHW[at], made_FCHW[at]
    named = {"camera": truth, "decoded": made, "difference x4": (made - truth).abs() * 4}
    scores = [f"{s:.1f} dB" for s in metrics.psnr(made, truth).tolist()]
    rows = [Row(name=k, pictures=to_uint8(v), notes=scores if k == "decoded" else ()) for k, v in named.items()]
    return draw_sheet([Block(heads=[(f"frame {i}", INK) for i in at], rows=rows)])
