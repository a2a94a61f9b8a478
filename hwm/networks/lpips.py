"""LPIPS: how far apart two pictures look, by the features of a network that recognises objects.

Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a perceptual metric" (CVPR
2018), version 0.1 on AlexNet (in the form of Krizhevsky 2014). After each of five convolutions the features of both
pictures are scaled to length one in each place; their squared differences are weighted by channel with learned weights,
averaged over the places, and summed over the five.

Nothing is needed but the weights: those of AlexNet as torchvision publishes them, and those of the channels from the
package `lpips`. Either file may be safetensors or PyTorch's own; one file with both will do as well.

Shape suffixes: N pictures, C channels, H W places.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.weights import load_tensors

AT_ONCE = 32
"""Pairs of pictures that go through the network together."""

SMALLEST = 31
"""Pixels a side below which the second pooling leaves nothing."""

PUBLISHED = {
    "alexnet-owt-7be5be79.pth": ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"),
    "lpips-alex-v0.1.pth": (
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
}
"""File -> where it is published, and how its SHA-256 begins. The network has 244 MB, the channel weights 6 kB."""


class LPIPS(nn.Module):
    """The metric as a function of two sets of pictures, as those in `metrics`; lower is more alike, 0 is the same.

    Made with random weights; `load_lpips` gives it those that the name stands for.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 11, stride=4, padding=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            ]
        )
        self.channels = nn.ParameterList(torch.rand(wide) for wide in (64, 192, 384, 256, 256))
        # of colours in [-1, 1]
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """Pictures in [0, 1] of at least 31 x 31, (..., 3, H, W) -> distances (...)."""
        if min(pictures.shape[-2:]) < SMALLEST:
            raise HwmError(
                f"LPIPS needs pictures of at least {SMALLEST} x {SMALLEST}, not {tuple(pictures.shape[-2:])}"
            )
        x, y = (p.flatten(0, -4).split(AT_ONCE) for p in (pictures, truth.expand_as(pictures)))
        return torch.cat([self.distance(a, b) for a, b in zip(x, y, strict=True)]).view(pictures.shape[:-3])

    def distance(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """Distances (N,)."""
        h, total = torch.cat([x_NCHW, y_NCHW]).to(self.mean), torch.zeros(len(x_NCHW)).to(self.mean)
        h = (2 * h.clamp(0, 1) - 1 - self.mean) / self.std
        for i, (conv, weight_C) in enumerate(zip(self.convs, self.channels, strict=True)):
            h = F.relu(conv(F.max_pool2d(h, 3, 2) if i in (1, 2) else h))
            x, y = (h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)).chunk(2)
            total = total + torch.einsum("nchw,c->n", (x - y).square(), weight_C) / (h.shape[-2] * h.shape[-1])
        return total


def load_lpips(files: Sequence[str | Path] = (), device: torch.device | str = "cpu") -> LPIPS:
    """The metric with published weights, in files of theirs; without files they are fetched once (`fetch`).

    Of the names in the files those of torchvision's AlexNet and of the package `lpips`, alone or in one, are known;
    others, such as a classifier's, are passed over.

    Raises:
        HwmError: a file cannot be read, or weights are missing or of another shape.
    """
    paths = [Path(f) for f in files] or fetch()
    found: dict[str, Tensor] = {}
    for file in paths:
        found |= {ours: w for theirs, w in _read(file).items() if (ours := _own_name(theirs))}
    model = LPIPS()
    wanted = model.state_dict()
    names = ", ".join(map(str, paths))
    if missing := [name for name in wanted if name not in found]:
        kind = "AlexNet" if missing[0].startswith("convs") else "the channels"
        raise HwmError(
            f"{names}: the weights of {kind} are missing. LPIPS needs torchvision's AlexNet (features.0.weight, ...) "
            "and the channel weights of the package lpips (lin0.model.1.weight, ...): --lpips-weights FILE FILE"
        )
    try:
        model.load_state_dict({k: w.reshape(-1) if k.startswith("channels") else w for k, w in found.items()})
    except RuntimeError as error:
        raise HwmError(f"{names}: these are not the weights of LPIPS on AlexNet: {error}") from error
    return model.requires_grad_(False).eval().to(device)


def fetch() -> list[Path]:
    """Where the published weights lie in torch.hub's folder, downloaded if they are not there yet.

    Raises:
        HwmError: they cannot be downloaded.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name, (url, digest) in PUBLISHED.items():
        if (folder / name).exists():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(folder / name), hash_prefix=digest, progress=True)
        except (URLError, OSError, RuntimeError) as error:
            raise HwmError(
                f"cannot fetch {url} ({error}). Fetch {' and '.join(u for u, _ in PUBLISHED.values())} elsewhere and "
                "name both files: --lpips-weights FILE FILE"
            ) from error
    return [folder / name for name in PUBLISHED]


def _own_name(theirs: str) -> str | None:
    """The name of a published weight here; None for one that has no part in the metric."""
    if conv := re.fullmatch(r"(?:features|net\.slice\d)\.(0|3|6|8|10)\.(weight|bias)", theirs):
        return f"convs.{(0, 3, 6, 8, 10).index(int(conv[1]))}.{conv[2]}"
    channel = re.fullmatch(r"lin([0-4])\.model\.[01]\.weight", theirs)
    return f"channels.{channel[1]}" if channel else None


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Of a pickle only tensors and plain values are read."""
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)  # the published files are too old to be mapped
        return {str(k): w for k, w in found.items() if isinstance(w, Tensor)}
    except (OSError, EOFError, RuntimeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise HwmError(f"{path} cannot be read as weights: {error}") from error
