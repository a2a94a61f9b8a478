"""Fetching published tokenizers from the Hugging Face hub, resumably, with sizes checked.

Nothing is fetched unless asked for. A token, where the hub wants one, is taken from the environment (HF_TOKEN) and from
nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hwm.convert.cosmos_tokenizer import HALVES
from hwm.errors import HwmError, unknown
from hwm.hub import Hub, HuggingFace, fetch_all
from hwm.tokenizers.sd_vae import WEIGHTS

LICENCE = "NVIDIA Open Model License (nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license)"
FIRST = ("DV4x8x8", "DV8x8x8", "DV8x16x16", "CV4x8x8", "CV8x8x8", "CV8x16x16", "DI8x8", "DI16x16", "CI8x8", "CI16x16")
SECOND = ("DV8x16x16-720p", "CV8x8x8-720p", "DV4x8x8-360p", "CV4x8x8-360p", "DI8x8-360p", "DI16x16-360p",
          "CI8x8-360p", "CI16x16-360p")  # fmt: skip
REPOSITORIES = {f"cosmos-{v.lower()}": f"nvidia/Cosmos-0.1-Tokenizer-{v}" for v in FIRST} | {
    f"cosmos-{v.lower()}": f"nvidia/Cosmos-Tokenize1-{v}" for v in SECOND
}
"""Name -> repository: those of the first release, and of the one made for Predict1, whose weights are others."""
VAE = ("config.json", WEIGHTS[0])


@dataclass(frozen=True)
class Published:
    """A tokenizer on the hub.

    Attributes:
        repo: owner and name.
        files: that are needed.
        licence: as its card states it.
        folder: of the repository that they lie in.
    """

    repo: str
    files: tuple[str, ...]
    licence: str
    folder: str = ""


PUBLISHED = {name: Published(repo, HALVES, LICENCE) for name, repo in REPOSITORIES.items()} | {
    "sd-vae-ft-mse": Published("stabilityai/sd-vae-ft-mse", VAE, "MIT"),
    "sd-vae-ft-ema": Published("stabilityai/sd-vae-ft-ema", VAE, "MIT"),
    "svd-vae": Published(
        "stabilityai/stable-video-diffusion-img2vid",
        VAE,
        "Stability AI Community License (stability.ai/license)",
        "vae",
    ),
}


def download(name: str, out: str | Path, hub: Hub | None = None, say: Callable[[str], None] = print) -> Path:
    """Fetch a tokenizer into out/REPOSITORY; returns the folder that its files lie in.

    Args:
        name: of `PUBLISHED`, or a repository OWNER/NAME with a VAE in diffusers' layout.

    Raises:
        HwmError: no such tokenizer; too little space; a connection that fails; a file of another size than the hub
            says.
    """
    if name not in PUBLISHED and name.count("/") != 1:
        raise unknown("tokenizer to download", name, PUBLISHED)
    wanted = PUBLISHED.get(name, Published(name, VAE, "see its card"))
    path = Path(out) / wanted.repo.rpartition("/")[2]
    hub = hub or HuggingFace(kind="model", token=os.environ.get("HF_TOKEN") or False)
    say(f"{name}: {wanted.repo} on the Hugging Face hub. Licence: {wanted.licence}")
    paths = [f"{wanted.folder}/{file}".lstrip("/") for file in wanted.files]
    try:
        files = [f for f in hub.files(wanted.repo, wanted.folder) if f.path in paths]
    except OSError as error:
        raise HwmError(
            f"{wanted.repo} cannot be listed: {error}. Where it asks for a token, accept its licence there and set "
            "HF_TOKEN"
        ) from error
    if missing := sorted(set(paths) - {f.path for f in files}):
        raise HwmError(f"{wanted.repo} has no {' and no '.join(missing)}: it has been moved or renamed")
    fetch_all(hub, wanted.repo, files, path, path, "make room for it", say)
    return path / wanted.folder
