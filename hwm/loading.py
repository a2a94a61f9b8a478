"""Finding models and tokenizers: shipped ones by name, own ones by folder."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from hwm.assets import ROOT
from hwm.config import Trainable
from hwm.devices import Runtime, find_device
from hwm.errors import HwmError, unknown
from hwm.models.base import WorldModel
from hwm.nn.int8 import with_int8_weights
from hwm.plugins import ELSEWHERE
from hwm.tokenizers import TOKENIZERS
from hwm.tokenizers.pixels import Pixels
from hwm.tokenizers.sd_vae import is_diffusers, load_vae
from hwm.tokenizers.views import for_views
from hwm.train.checkpoint import load_model
from hwm.types import Tokenizer
from hwm.weights import misfits

MODELS = {"masked_hwm_mini": ROOT / "masked_hwm_mini"}
SHIPPED = {"tiny": ROOT / "tiny"}
"""Tokenizers with weights that come with the package."""


def load(
    name: str | Path = "masked_hwm_mini",
    device: torch.device | str = "cpu",
    *,
    int8: bool = False,
    text: Path | None = None,
) -> WorldModel:
    """A world model: a shipped one by name, a checkpoint folder, or a run (its newest checkpoint).

    Args:
        device: where to; `auto` is an NVIDIA card, Apple's GPU or else the CPU. Tensors that it is given must be there.
        int8, text: see `as_wanted`.

    Raises:
        HwmError: there is no such model or device.
    """
    device = find_device(device)
    module = load_model(_find("model", name, MODELS), "cpu" if int8 else device)
    if not isinstance(module, WorldModel):
        raise HwmError(f"{name} is a checkpoint of a {module.name!r}, not of a world model")
    return as_wanted(module, device, int8=int8, text=text)


def as_wanted(
    model: WorldModel, device: torch.device | str, *, int8: bool = False, text: Path | None = None
) -> WorldModel:
    """A model on a device.

    Args:
        int8: keep the weights of its linear layers as 8-bit integers (`with_int8_weights`), to predict only.
        text: a file with an encoded text that it reads from here on.

    Raises:
        HwmError: torchao is not installed, or the model reads no such text.
    """
    if text is not None:
        model.read_text(text)
    return with_int8_weights(model, device) if int8 else model.to(device)


def load_tokenizer(
    name: str | Path = "tiny", device: torch.device | str = "cpu", *, views: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer by name (or the identity a store recorded), of this or an installed package, a folder, or
    `pixels-HxW`.

    `stand-in-1.1` and `stand-in-2.0` show the small folders that `hwm data make-onex` writes.

    A folder of published TorchScript files is run as it is; `hwm convert` makes a checkpoint of it, which is better. A
    VAE in diffusers' layout is run by diffusers (extra `vae`).

    Args:
        device: as of `load`.
        views: cameras whose pictures lie one below the other (`LatentSpec.views`), each encoded by itself.
    """
    return for_views(_of_one_camera(name, device), views)


def _of_one_camera(name: str | Path, device: torch.device | str) -> Tokenizer:
    device, text = find_device(device), str(name)
    if text.startswith("pixels-"):
        try:
            height, width = (int(x) for x in text.removeprefix("pixels-").split("x"))
        except ValueError:
            raise HwmError(f"{text!r} is not a size of pictures; write for example pixels-128x128") from None
        return Pixels((height, width))
    if text.startswith("stand-in-"):
        from hwm.data.onex.stand_in import StandIn

        return StandIn(text.removeprefix("stand-in-"), load_tokenizer("tiny", device))
    base, _, fingerprint = text.rpartition("@") if "@" in text and not Path(text).exists() else (text, "", "")
    found = _named_tokenizer(base, device) or _tokenizer_at(base, device)
    if fingerprint and found.id != text:
        raise HwmError(
            f"{text} is wanted, but the weights at {base} are {found.id}: latents of one mean nothing to the other"
        )
    return found


def open_tokenizer(
    name: str | Path, runtime: Runtime, size: tuple[int, int] | None = None, *, views: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer on a device, with its weights in a number format.

    Args:
        size: height and width that it is taken for; by default those that its checkpoint says.
        views: as of `load_tokenizer`.

    Raises:
        HwmError: there is no such tokenizer, or it cannot take that size or format.
    """
    from hwm.encode.files import for_size

    found = load_tokenizer(name, runtime.device)
    found = for_views(for_size(found, size) if size else found, views)
    if runtime.format == "float32":
        return found
    if not isinstance(found, torch.nn.Module):
        raise HwmError(f"{found.id} computes in the type that it was made in: leave out --dtype {runtime.format}")
    return found.to(runtime.dtype)


def _named_tokenizer(name: str, device: torch.device | str) -> Tokenizer | None:
    """A tokenizer that needs no checkpoint, of this or another package; None where there is none of that name."""
    if name in SHIPPED or name not in TOKENIZERS.names():
        return None
    made = TOKENIZERS.find(name)
    if isinstance(made, type) and issubclass(made, Trainable):
        if Path(name).exists():
            return None
        raise HwmError(f"{name!r} is a kind of tokenizer with weights: give the folder of a checkpoint of one")
    tokenizer = made()
    if not isinstance(tokenizer, Tokenizer) or tokenizer.id.partition("@")[0] != name:
        raise HwmError(f"{made} makes no tokenizer whose id is {name!r}, by which stores would find it again")
    return tokenizer.to(device).eval() if isinstance(tokenizer, torch.nn.Module) else tokenizer


def _tokenizer_at(name: str, device: torch.device | str) -> Tokenizer:
    """The tokenizer of a folder, or a shipped one."""
    if not Path(name).exists() and name not in SHIPPED and name in downloadable():
        raise HwmError(
            f"there is no tokenizer called {name!r} here: hwm tokenizer download {name} fetches it; give its folder"
        )
    if not Path(name).exists() and name not in SHIPPED:
        raise HwmError(f"{unknown('tokenizer', name, [*SHIPPED, *TOKENIZERS.names()])}{ELSEWHERE}")
    found, weights = _tokenizer_in(_find("tokenizer", name, SHIPPED), device)
    if not isinstance(found, Tokenizer):
        raise HwmError(f"{name} is a checkpoint of a {found.name!r}, not of a tokenizer")
    if "@" not in found.id:  # others know themselves by the encoder that they share
        found.id = f"{name}@{weights_fingerprint(weights)}"
    return found


def _tokenizer_in(folder: Path, device: torch.device | str) -> tuple[Any, torch.nn.Module]:
    """What a folder holds, and the weights that it is known by."""
    if (folder / "encoder.jit").is_file():
        from hwm.convert.cosmos_tokenizer import load_torchscript

        graphs = load_torchscript(folder, device=str(device))
        return graphs, graphs.encoder
    module = load_vae(folder, device=device) if is_diffusers(folder) else load_model(folder, device)
    return module, module


def downloadable() -> Iterable[str]:
    """Names of tokenizers that `hwm tokenizer download` knows."""
    from hwm.convert.download import PUBLISHED

    return PUBLISHED


def copy_weights(name: str | Path, module: Trainable) -> None:
    """Give a module the weights of a shipped model or tokenizer, a folder or a run.

    Submodules that a module calls `fresh` keep their own weights where the source has none, or of another size. Of
    those that the module has, parts that the source alone has are left out.

    Raises:
        HwmError: there is nothing of that name, or its weights are of another size, or not those of which the module
            keeps some.
    """
    source = load_model(_find("model", name, MODELS | SHIPPED))
    fingerprint = (source.keeps or weights_fingerprint(source)).rpartition("@")[2]
    if module.keeps and module.keeps.rpartition("@")[2] != fingerprint:
        raise HwmError(f"{module.keeps} is to be kept, but the weights at {name} are {name}@{fingerprint}")
    own, theirs = module.state_dict(), source.state_dict()
    fresh = {k: v for k, v in own.items() if k.startswith(module.fresh)}
    partly = tuple(prefix for prefix in module.fresh if any(k.startswith(prefix) for k in own))
    other = {k for k in fresh if k in theirs and theirs[k].shape != fresh[k].shape}
    theirs = {k: v for k, v in theirs.items() if k not in other and (k in own or not k.startswith(partly))}
    if wrong := misfits(own, fresh | theirs):
        raise HwmError(f"the weights of {name} ({source.name!r}) do not fit this {module.name!r}: {wrong}")
    module.load_state_dict(fresh | theirs)


def weights_fingerprint(module: torch.nn.Module) -> str:
    """Eight hex digits that tell apart weights, at the half precision in which they may be stored."""
    value = 0
    for key, tensor in sorted(module.state_dict().items()):
        value = zlib.crc32(
            tensor.detach().cpu().to(torch.float16).contiguous().numpy().tobytes(), zlib.crc32(key.encode(), value)
        )
    return f"{value:08x}"


def find_model(name: str | Path) -> Path:
    """The folder of a world model: a shipped one by name, else a path."""
    return _find("model", name, MODELS)


def _find(kind: str, name: str | Path, shipped: dict[str, Path]) -> Path:
    if str(name) in shipped:
        return shipped[str(name)]
    path = Path(name)
    if not path.exists():
        raise unknown(kind, str(name), shipped)
    return path
