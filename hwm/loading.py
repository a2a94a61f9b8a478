"""Finding models and tokenizers: shipped ones by name, own ones by folder."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch

from hwm.assets import ROOT
from hwm.config import Trainable, unknown
from hwm.models.base import WorldModel
from hwm.tokenizers.base import Pixels, Tokenizer
from hwm.train.checkpoint import load_model
from hwm.types import HwmError

MODELS = {"masked_hwm_mini": ROOT / "masked_hwm_mini"}
TOKENIZERS = {"tiny": ROOT / "tiny"}


def load(name: str | Path = "masked_hwm_mini", device: torch.device | str = "cpu") -> WorldModel:
    """A world model: a shipped one by name, a checkpoint folder, or a run (its newest checkpoint)."""
    module = load_model(_find("model", name, MODELS), device)
    if not isinstance(module, WorldModel):
        raise HwmError(f"{name} is a checkpoint of a {module.name!r}, not of a world model")
    return module


def load_tokenizer(name: str | Path = "tiny", device: torch.device | str = "cpu") -> Tokenizer:
    """A tokenizer: a shipped one by name (or the identity a store recorded), a folder, or `pixels-HxW`.

    `stand-in-1.1` and `stand-in-2.0` show the small folders that `hwm data make-onex` writes.

    A folder of published TorchScript files is run as it is; `hwm convert` makes a checkpoint of it, which is better.
    """
    text = str(name)
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
    folder = _find("tokenizer", base, TOKENIZERS)
    if (folder / "encoder.jit").is_file():
        from hwm.convert.cosmos_tokenizer import load_torchscript

        return load_torchscript(folder, device=str(device))
    module = load_model(folder, device)
    if not isinstance(module, Tokenizer):
        raise HwmError(f"{name} is a checkpoint of a {module.name!r}, not of a tokenizer")
    module.id = f"{base}@{weights_fingerprint(module)}"
    if fingerprint and module.id != text:
        raise HwmError(
            f"{text} is wanted, but the weights at {folder} are {module.id}: latents of one mean nothing to the other"
        )
    return module


def copy_weights(name: str | Path, module: Trainable) -> None:
    """Give a module the weights of a shipped model or tokenizer, a folder or a run.

    Submodules that a module calls `fresh` keep their own weights where the source has none, or of another size. Of
    those that the module has, parts that the source alone has are left out.

    Raises:
        HwmError: there is nothing of that name, or its weights are of another size.
    """
    source = load_model(_find("model", name, MODELS | TOKENIZERS))
    try:
        own, theirs = module.state_dict(), source.state_dict()
        fresh = {k: v for k, v in own.items() if k.startswith(module.fresh)}
        partly = tuple(prefix for prefix in module.fresh if any(k.startswith(prefix) for k in own))
        other = {k for k in fresh if k in theirs and theirs[k].shape != fresh[k].shape}
        theirs = {k: v for k, v in theirs.items() if k not in other and (k in own or not k.startswith(partly))}
        module.load_state_dict(fresh | theirs)
    except RuntimeError as error:
        raise HwmError(f"the weights of {name} ({source.name!r}) do not fit this {module.name!r}: {error}") from error


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
