"""Encoding and decoding 17 frames of 256 x 256 with Cosmos DV 8x8x8: ours, and TorchScript of the same weights.

105.7 million parameters, random weights, float32. Ours is `CosmosVideo`: frames and cells as batches of convolutions in
two dimensions, with channels last. With --compile, ours is also run by torch.compile, its weights frozen. The baseline
is a traced graph of the plan that published files have: tensors of five dimensions with time before height and width,
padded copies and convolutions in three dimensions, attention as two matrix products. The run fails unless all give the
same pictures and the same ids, but for a few at a boundary. Times are medians of the repeats after the first, all in
turn: with one thread on a CPU the time that it was computing, which others on the machine hardly change.

With --long also: the most memory that processes take to encode video files of one minute and of ten, with a small
tokenizer of the same kind.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import in_fresh_process, parser, report
from torch import Tensor, nn

from hwm.devices import find_device
from hwm.encode.files import encode_file
from hwm.pictures.video import write_video
from hwm.tokenizers import cosmos_video as ours
from hwm.tokenizers.cosmos import CosmosVideo
from hwm.types import DataSpec, LatentSpec


def conv(layer: ours.Conv, x_BCTHW: Tensor) -> Tensor:
    """A convolution in three dimensions, of a copy that is padded."""
    time_size, side = layer.size[0], layer.size[1]
    in_time, in_space = (layer.stride, 1) if time_size > 1 else (1, layer.stride)
    if time_size > 1:
        x_BCTHW = torch.cat([x_BCTHW[:, :, :1].expand(-1, -1, time_size - 1, -1, -1), x_BCTHW], 2)
    if side > 1 and layer.stride == 1:
        x_BCTHW = F.pad(x_BCTHW, (side // 2,) * 4)
    return F.conv3d(x_BCTHW, layer.conv3d.weight, layer.conv3d.bias, (in_time, in_space, in_space))


def pair(layer: ours.ConvPair, x_BCTHW: Tensor) -> Tensor:
    return conv(layer[1], conv(layer[0], x_BCTHW))


def norm(layer: ours.Norm, x_BCTHW: Tensor) -> Tensor:
    frames_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
    return layer.norm(frames_NCHW).unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def residual(layer: ours.Residual, x: Tensor) -> Tensor:
    h = pair(layer.conv1, swish(norm(layer.norm1, x)))
    h = pair(layer.conv2, swish(norm(layer.norm2, h)))
    return (x if layer.nin_shortcut is None else conv(layer.nin_shortcut, x)) + h


def attend(layer: ours.Attend, x_BCTHW: Tensor, over_time: bool) -> Tensor:
    h = norm(layer.norm, x_BCTHW)
    order = (0, 3, 4, 2, 1) if over_time else (0, 2, 3, 4, 1)
    q, k, v = (conv(c, h).permute(order) for c in (layer.q, layer.k, layer.v))
    shape = q.shape
    if over_time:
        q, k, v = (x.flatten(0, 2) for x in (q, k, v))
    else:
        q, k, v = (x.flatten(0, 1).flatten(1, 2) for x in (q, k, v))
    logits = torch.bmm(q, k.transpose(1, 2)) * q.shape[-1] ** -0.5
    if over_time:
        later = torch.ones_like(logits[0]).triu(1).bool()
        logits = logits.masked_fill(later, float("-inf"))
    y = torch.bmm(logits.softmax(-1), v).view(shape)
    back = (0, 4, 3, 1, 2) if over_time else (0, 4, 1, 2, 3)
    return x_BCTHW + conv(layer.proj_out, y.permute(back))


def middle(layer: ours.Middle, x: Tensor) -> Tensor:
    x = residual(layer.block_1, x)
    for over_time, part in enumerate(layer.attn_1):
        x = attend(part, x, bool(over_time))
    return residual(layer.block_2, x)


def down(layer: ours.Down, x: Tensor) -> Tensor:
    if layer.conv1 is not None:
        x = F.pad(x, (0, 1, 0, 1))
        x = conv(layer.conv1, x) + F.avg_pool3d(x, (1, 2, 2))
    if layer.conv2 is not None:
        x = conv(layer.conv2, x) + F.avg_pool3d(torch.cat([x[:, :, :1], x], 2), (2, 1, 1))
    return conv(layer.conv3, x)


def up(layer: ours.Up, x: Tensor) -> Tensor:
    if layer.conv1 is not None:
        x = x.repeat_interleave(2, 2)[:, :, 1:]
        x = x + conv(layer.conv1, x)
    if layer.conv2 is not None:
        x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        x = x + conv(layer.conv2, x)
    return conv(layer.conv3, x)


def level(layer: ours.Level, x: Tensor) -> Tensor:
    for block in layer.block:
        x = residual(block, x)
    for name in layer.resample:
        x = {"downsample": down, "upsample": up}[name](getattr(layer, name), x)
    return x


def analyse(model: CosmosVideo, x_BCFHW: Tensor) -> Tensor:
    """Frames (B, 3, F, H, W) in [-1, 1] -> what is quantised, (B, C, T, h, w)."""
    e = model.encoder
    assert isinstance(e, ours.Encoder)
    x = torch.cat([x_BCFHW[:, :, :1].expand(-1, -1, e.patch - 1, -1, -1), x_BCFHW], 2)
    h = pair(e.conv_in, ours.patches(x.transpose(1, 2), e.patch).permute(0, 4, 1, 2, 3))
    for part in e.down:
        h = level(part, h)
    h = pair(e.conv_out, swish(norm(e.norm_out, middle(e.mid, h))))
    return conv(model.quant_conv, h)


def synthesise(model: CosmosVideo, codes_BCTHW: Tensor) -> Tensor:
    """Quantised codes -> frames (B, 3, F, H, W)."""
    d = model.decoder
    assert isinstance(d, ours.Decoder)
    h = middle(d.mid, pair(d.conv_in, conv(model.post_quant_conv, codes_BCTHW)))
    for part in reversed(list(d.up)):
        h = level(part, h)
    h = pair(d.conv_out, swish(norm(d.norm_out, h)))
    return ours.unpatched(h.permute(0, 2, 3, 4, 1), d.patch)[:, d.patch - 1 :].transpose(1, 2)


class Encoder(nn.Module):
    """The baseline's first half: frames (B, 3, F, H, W) in [-1, 1] -> ids."""

    def __init__(self, model: CosmosVideo) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        m = self.model
        return m.quantizer.ids(m.quantizer(analyse(m, x_BCFHW)))


class Decoder(nn.Module):
    """The baseline's other half: ids -> frames (B, 3, F, H, W)."""

    def __init__(self, model: CosmosVideo) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BTHW: Tensor) -> Tensor:
        return synthesise(self.model, self.model.quantizer.codes(ids_BTHW).to(self.model.home.dtype))


def traced(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():  # shapes that are taken for constants: they are the same here
        warnings.simplefilter("ignore")
        graph: Any = torch.jit.trace(module, example, check_trace=False)
    return graph


def compiled(model: CosmosVideo) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Ours from video to ids and back, the networks compiled; the first calls take minutes."""
    # weights become constants, laid out once as the kernels want them
    options: dict[str, str | int | bool | Callable[..., Any]] = {"freezing": True}
    analyse = torch.compile(lambda x: model.analyse(x, None), options=options)
    synthesise = torch.compile(lambda codes: model.synthesise(codes, None), options=options)

    def encode(video_BFCHW: Tensor) -> Tensor:
        return model.quantizer.ids(model.quantizer(analyse(video_BFCHW.to(model.home) * 2 - 1)))

    def decode(ids_BTHW: Tensor) -> Tensor:
        return ((synthesise(model.quantizer.codes(ids_BTHW).to(model.home)).float() + 1) / 2).clamp(0, 1)

    return encode, decode


def clock() -> float:
    """Seconds of this thread's work; on a GPU, which has works of its own, those that pass."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def medians(run: dict[str, Callable[[], Tensor]], repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Seconds and the last result of each, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in run}
    results = {}
    for _ in range(repeats + 1):
        for name, fn in run.items():
            start = clock()
            results[name] = fn()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}, results


def encode_long(seconds: int) -> None:
    """Encode a video file of so many seconds, 64 x 64 at 30 frames a second, and print what this process took."""

    def frames() -> Iterator[np.ndarray]:
        ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
        for i in range(30 * seconds):
            yield np.repeat((ramp + i % 256)[..., None], 3, 2)

    torch.set_num_threads(1)
    model = CosmosVideo.Config(base=16, blocks=1).build(DataSpec(LatentSpec((64, 64), channels=3), {})).eval()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "long.mp4"
        write_video(source, frames(), 30)
        encode_file(source, model, Path(folder) / "long.safetensors")
    # of Linux; what getrusage says begins with the memory of the process that started this one
    peak = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    print(json.dumps({"peak": int(peak.split()[1]) * 1024}))


def long_videos(quick: bool) -> dict[str, float]:
    """Peak memory in bytes for a video and for one ten times as long."""
    first = 2 if quick else 60
    return {
        f"peak_bytes_of_{seconds}_seconds_of_video": in_fresh_process(__file__, "--encode-long", str(seconds))["peak"]
        for seconds in (first, 10 * first)
    }


@torch.no_grad()
def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--frames", type=int, default=17)
    p.add_argument("--size", type=int, default=256)
    p.add_argument("--half", action="store_true", help="bfloat16 instead of float32; on CPUs the baseline has no such")
    p.add_argument("--compile", action="store_true", help="also ours by torch.compile: on CPUs it needs a C++ compiler")
    p.add_argument("--long", action="store_true", help="also the memory that videos of one and of ten minutes take")
    p.add_argument("--encode-long", type=int, default=0, help="used by --long: only encode so many seconds")
    a = p.parse_args()
    if a.encode_long:
        return encode_long(a.encode_long)
    if a.threads:
        torch.set_num_threads(a.threads)
    device = find_device()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    frames, size = (9, 32) if a.quick else (a.frames, a.size)
    torch.manual_seed(0)
    config = CosmosVideo.tiny() if a.quick else CosmosVideo.Config()
    model = config.build(DataSpec(LatentSpec((size, size), channels=3), {})).eval().to(device)
    nn.init.normal_(model.home, std=0.5)  # so that ids differ
    plain = deepcopy(model).to(memory_format=torch.contiguous_format)  # ours keeps its weights with channels last
    if a.half:
        model.to(torch.bfloat16)
        if device.type == "cuda":  # a mean of volumes has no kernel for bfloat16 on CPUs
            plain.to(torch.bfloat16)
    video = torch.rand(1, frames, 3, size, size, device=device)
    x = (video.to(plain.home.dtype) * 2 - 1).transpose(1, 2).contiguous()
    ids = model.encode(video)
    encoder, decoder = traced(Encoder(plain), x), traced(Decoder(plain), ids)
    encodes: dict[str, Callable[[], Tensor]] = {"ours": lambda: model.encode(video), "script": lambda: encoder(x)}
    decodes: dict[str, Callable[[], Tensor]] = {"ours": lambda: model.decode(ids), "script": lambda: decoder(ids)}
    if a.compile:
        encode, decode = compiled(model)
        encodes["compiled"], decodes["compiled"] = lambda: encode(video), lambda: decode(ids)
    with torch.jit.optimized_execution(False):
        encoding, found = medians(encodes, a.repeats)
        decoding, shown = medians(decodes, a.repeats)
    shown["script"] = ((shown["script"].transpose(1, 2).float() + 1) / 2).clamp(0, 1)
    others = [name for name in found if name != "ours"]
    equal = min((found["ours"] == found[name]).float().mean().item() for name in others)
    pictures = max((shown[name] - shown["ours"]).abs().max().item() for name in others)
    if not a.half and (equal < 0.99 or pictures > 1e-3):
        raise SystemExit(f"only {equal:.2%} of ids are equal, pictures differ by {pictures:.2g}: the baseline is wrong")
    both = {name: encoding[name] + decoding[name] for name in encoding}
    report(
        a.json,
        ours=both["ours"] / frames,
        baseline=both["script"] / frames,
        unit="seconds a frame, encoded and decoded",
        **{f"encode_frames_per_second_{name}": frames / seconds for name, seconds in encoding.items()},
        **{f"decode_frames_per_second_{name}": frames / seconds for name, seconds in decoding.items()},
        **({"ratio_compiled": both["script"] / both["compiled"]} if a.compile else {}),
        **(long_videos(a.quick) if a.long else {}),
        ids_equal=equal,
        pictures_differ_by=pictures,
        frames=frames,
        size=size,
        dtype=str(model.home.dtype),
    )


if __name__ == "__main__":
    sys.exit(main())
