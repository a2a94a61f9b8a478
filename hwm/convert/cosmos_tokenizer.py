"""Cosmos tokenizers as published by NVIDIA, in and out: TorchScript files, or safetensors of the same names.

A release is a folder with `encoder.jit`, `decoder.jit` and `autoencoder.jit`. Of these files only the weights are read:
their graphs have types and devices written into them. Newer releases add `model.pt` with the same weights.

Which variant a file is of is told by names and shapes of its weights. An early module also held convolutions that it
never ran, under the names of those that other variants run. A graph tells which it reads; of other files with such
weights only their own name (or their folder's) tells the variant, and nothing whether the decoder is a legacy one.

Also what was recorded of the released code, computed by ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hwm.config import from_json, replace
from hwm.convert.family import Family, Outputs, register
from hwm.convert.public import Inner
from hwm.convert.recorded import Case
from hwm.convert.replay import unclamped
from hwm.encode.files import for_size
from hwm.errors import CheckpointError, HwmError
from hwm.tokenizers.cosmos import Cosmos, CosmosImage, CosmosVideo
from hwm.tokenizers.cosmos_jit import TorchScriptCosmos
from hwm.tokenizers.fsq import FSQ
from hwm.types import DataSpec, LatentSpec
from hwm.weights import read_weights, save_tensors, with_weights

FILE = "tokenizer.safetensors"
WHOLE, HALVES = ("autoencoder.jit", "model.pt", FILE), ("encoder.jit", "decoder.jit")
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# what follows from the config; whether it is stored depends on the release
BUFFERS = ("encoder.patcher", "decoder.unpatcher", "quantizer.", "inv_quant.")
LEVELS = (8, 8, 8, 5, 5, 5)
VARIANT = re.compile(r"(?P<kind>[CD])(?P<medium>[VI])(?:(?P<time>\d+)x)?(?P<side>\d+)x(?P=side)(?![\dx])", re.I)


def read(source: Path, size: tuple[int, int] = (256, 256), legacy: bool | None = None) -> Cosmos:
    """The tokenizer of a released folder, of one of its whole files, or of a safetensors file of the same names.

    Args:
        size: (height, width) of the pictures; the network takes any multiples of a cell.
        legacy: whether it has a legacy decoder (`CosmosVideo.Config.legacy`); None: as names of weights tell it.

    Raises:
        CheckpointError: a file is missing, damaged, half of a tokenizer, or of another variant than its name says; or
            its weights are of another decoder than `legacy` says, or leave it open and nothing is said.
    """
    weights = read_release(source)
    return of_size(config_of(weights, source, legacy), weights, size, source)


def read_release(source: Path) -> dict[str, Tensor]:
    """The weights of a released folder or file; in a folder the two halves, or else a whole file."""
    if not source.is_dir():
        return read_file(source)
    there = [source / name for name in HALVES if (source / name).is_file()]
    whole = [source / name for name in WHOLE if (source / name).is_file()]
    if len(there) == len(HALVES):
        return read_file(there[0]) | read_file(there[1])
    if whole:
        return read_file(whole[0])
    missing = [name for name in HALVES if source / name not in there]
    raise CheckpointError(
        f"{source} holds no whole tokenizer: {' and '.join(missing)} missing, and none of {', '.join(WHOLE)} there"
    )


def read_file(path: Path) -> dict[str, Tensor]:
    """The weights of a TorchScript, PyTorch or safetensors file."""
    return read_weights(path) if path.suffix != ".jit" else weights_of(load_script(path))


def weights_of(script: torch.jit.ScriptModule) -> dict[str, Tensor]:
    """The weights and buffers of a traced module; of convolutions that resample, those alone which its graph reads."""
    graph: Any = script.inlined_graph
    names = dict[str, str]()
    for node in graph.findAllNodes("prim::GetAttr"):  # each asks the module that an earlier one gave, or the whole
        outer = names.get(node.input().debugName(), "")
        names[node.output().debugName()] = f"{outer}.{node.s('name')}".removeprefix(".")
    found = set(names.values())
    return {k: v for k, v in script.state_dict().items() if "sample." not in k or k in found}


def load_script(path: Path, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """A TorchScript file.

    Raises:
        CheckpointError: it is missing, ends early, or is something else.
    """
    try:
        return torch.jit.load(str(path), map_location=device)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["it ends early"])[0]
        raise CheckpointError(f"{path} is not a whole TorchScript file: {reason}; fetch it again") from error


def of_size(config: Cosmos.Config, weights: Mapping[str, Tensor], size: tuple[int, int], source: Path | str) -> Cosmos:
    """The tokenizer of these weights, for pictures of (height, width)."""
    spec = DataSpec(LatentSpec(size, channels=3), {}, f"pixels-{size[0]}x{size[1]}")
    own = {k: v for k, v in weights.items() if not k.startswith(BUFFERS)}
    runs = resampling_of(config)
    unused = {k for k in own if "sample." in k and k.rpartition(".")[0] not in runs}
    if unused and not resamples_everywhere(own):
        raise CheckpointError(
            f"the weights in {source} are not of a {config.variant}: {min(unused)} and "
            f"{len(unused) - 1} more are of another variant ({found_variants(own)})"
        )
    try:
        module: Cosmos = with_weights(config, spec, {k: v for k, v in own.items() if k not in unused}, source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Expected: {config.variant}; found: {found_variants(own)}") from error
    return module


def config_of(weights: Mapping[str, Tensor], source: Path, legacy: bool | None = None) -> Cosmos.Config:
    """The config that weights are of: sizes by shapes, the variant by names of weights or by the file's name.

    Args:
        legacy: as of `read`.
    """
    if not any(name.startswith(PARTS) for name in weights):
        raise CheckpointError(f"{source} holds no Cosmos tokenizer: it has no weights named {', '.join(PARTS)}")
    named = variant_named(source)
    if named:
        discrete, kind, compression = named
        config: Cosmos.Config = replace(sizes(weights, source, kind), compression)
        if discrete != bool(config.levels):
            raise CheckpointError(
                f"{source} is named after a tokenizer of {'ids' if discrete else 'continuous latents'}, and holds one "
                f"with {config.codes} channels: {found_variants(weights)}"
            )
        fits = [c for c in fitting(weights, source) if c.variant == config.variant]
        if not fits:
            return config  # which the weights do not fit; that is said where they are loaded
    else:
        fits = fitting(weights, source)
    if not fits:
        raise CheckpointError(f"{source} is of no variant that is known: {found_variants(weights)}")
    if len({c.variant for c in fits}) > 1:
        raise CheckpointError(
            f"{source} may be any of {found_variants(weights)}, which its weights do not tell apart: "
            "name the file or its folder after the variant, for example Cosmos-Tokenizer-CV8x8x8"
        )
    return with_decoder(fits, source, legacy)


def with_decoder(fits: list[Cosmos.Config], source: Path, legacy: bool | None) -> Cosmos.Config:
    """That config of a variant whose decoder is a legacy one or not, as weights tell or as it is said.

    Raises:
        CheckpointError: they do not tell and nothing is said, or what is said is not so.
    """
    wanted = [c for c in fits if legacy is None or legacy == is_legacy(c)]
    if not wanted:
        raise CheckpointError(
            f"{source} has {'no' if legacy else 'a'} legacy decoder, as names and shapes of its weights tell: leave "
            "out --legacy"
        )
    if len(wanted) > 1:
        where = {is_legacy(c): [i for i, (_, time) in enumerate(c.up) if time]
                 for c in wanted if isinstance(c, CosmosVideo.Config)}  # fmt: skip
        raise CheckpointError(
            f"{source} holds convolutions for two decoders, and neither names nor shapes tell which of them are run: a "
            f"legacy one doubles time after decoder.up.{where[True]}, the other after decoder.up.{where[False]}. The "
            "wrong one decodes to wrong pictures without an error. Say --legacy no (legacy=False; so are the published "
            "configs) or --legacy yes; of a TorchScript file of the same release its graph tells"
        )
    return wanted[0]


def is_legacy(config: Cosmos.Config) -> bool:
    """Whether time doubles at the decoder's first levels."""
    return isinstance(config, CosmosVideo.Config) and config.legacy


def variant_named(source: Path) -> tuple[bool, type[Cosmos], dict[str, int]] | None:
    """Whether of ids, which network and which compression a path names, a file before its folder; None where it names
    none."""
    path = source.resolve()
    for name in (path.name,) if path.is_dir() else (path.name, path.parent.name):
        match = VARIANT.search(name)
        if match and (match["medium"] in "Vv") == (match["time"] is not None):
            time = {"time": int(match["time"])} if match["time"] else {}
            kind: type[Cosmos] = CosmosVideo if time else CosmosImage
            return match["kind"] in "Dd", kind, {"space": int(match["side"]), **time}
    return None


def sizes(weights: Mapping[str, Tensor], source: Path | str, kind: type[Cosmos] | None = None) -> Cosmos.Config:
    """The fields of a config that shapes tell; of the network of `kind`, or of that whose names the weights have."""
    video = "encoder.conv_in.0.conv3d.weight" in weights if kind is None else issubclass(kind, CosmosVideo)
    first, conv, dims = ("0.conv3d.", "conv3d.", 3) if video else ("", "", 2)
    try:
        shape = weights[f"encoder.conv_in.{first}weight"].shape
        blocks = 1 + max(int(k.split(".")[4]) for k in weights if k.startswith("encoder.down.0.block."))
        widths = [level_widths(weights, half, f"conv2.{first}weight") for half in ("encoder.down", "decoder.up")]
        codes, z = weights[f"quant_conv.{conv}weight"].shape[:2]
    except (KeyError, ValueError, IndexError) as error:
        what = "of video" if video else "of pictures"
        raise CheckpointError(f"{source} holds no whole Cosmos tokenizer {what}: {error} is missing") from error
    multipliers, decoder = (tuple(width // shape[0] for width in half) for half in widths)
    levels = next((v for k, v in weights.items() if k.endswith("quantizer._levels")), None)
    known = tuple(levels.flatten().tolist()) if levels is not None else LEVELS if codes == len(LEVELS) else ()
    return (CosmosVideo if video else CosmosImage).Config(
        patch=round((shape[1] / 3) ** (1 / dims)), levels=known, channels=16 if known else codes, z=z, base=shape[0],
        multipliers=multipliers, decoder_multipliers=() if decoder == multipliers else decoder, blocks=blocks,
    )  # fmt: skip


def level_widths(weights: Mapping[str, Tensor], half: str, layer: str) -> list[int]:
    """Channels of each level of `encoder.down` or `decoder.up`: those that a layer of its first block gives.

    Raises:
        KeyError: a level lacks its first block, or there are no levels; the message is the name.
    """
    count = 1 + max((int(k.split(".")[2]) for k in weights if k.startswith(f"{half}.")), default=0)
    return [weights[f"{half}.{i}.block.0.{layer}"].shape[0] for i in range(count)]


def fitting(weights: Mapping[str, Tensor], source: Path) -> list[Cosmos.Config]:
    """Every config with these sizes whose weights have these names: all of them, but where some are never run."""
    base, names = sizes(weights, source), resampling(weights)
    count, unused = len(base.multipliers), resamples_everywhere(weights)
    if isinstance(base, CosmosVideo.Config):
        configs = [replace(base, {"space": base.patch << s, "time": base.patch << t, "legacy": legacy})
                   for s in range(count) for t in range(s + 1) for legacy in (False, True)[: 1 + t]]  # fmt: skip
        configs = [c for c in configs if c.doubles_as_it_halves]
    else:
        configs = [replace(base, {"space": base.patch << s}) for s in range(count + 1)]
    return [c for c in configs if (resampling_of(c) <= names if unused else resampling_of(c) == names)]


def resampling_of(config: Cosmos.Config) -> set[str]:
    """The layers of a config that halve and double the resolution, by their published names."""
    names, count = set(), len(config.decoder_widths) - 1
    if isinstance(config, CosmosVideo.Config):
        for way, rows in (("encoder.down.{}.downsample", config.down), ("decoder.up.{}.upsample", config.up)):
            for i, (space, time) in enumerate(rows):
                first, second = (space, time) if way.startswith("encoder") else (time, space)
                runs = {1: first, 2: second, 3: first or second}
                names |= {f"{way.format(i)}.conv{n}.conv3d" for n, there in runs.items() if there}
        return names
    halvings = (config.space // config.patch).bit_length() - 1
    names |= {f"encoder.down.{i}.downsample.conv" for i in range(halvings)}
    return names | {f"decoder.up.{i}.upsample.conv" for i in range(count - halvings, count)}


def resampling(weights: Mapping[str, Tensor]) -> set[str]:
    """The layers that halve and double the resolution: what tells variants of the same sizes apart."""
    return {k.rpartition(".")[0] for k in weights if "sample." in k}


def resamples_everywhere(weights: Mapping[str, Tensor]) -> bool:
    """Whether there is every convolution that any variant runs: the mark of the early module."""
    found = resampling(weights)
    down, up = (
        len({k.split(".")[2] for k in weights if k.startswith(half)}) for half in ("encoder.down.", "decoder.up.")
    )
    both = {f"encoder.down.{i}.downsample" for i in range(down - 1)}
    both |= {f"decoder.up.{i}.upsample" for i in range(1, up)}
    return bool(both) and {f"{x}.conv{n}.conv3d" for x in both for n in (1, 2, 3)} <= found


def found_variants(weights: Mapping[str, Tensor]) -> str:
    """In words, what these weights are of."""
    try:
        fits = dict.fromkeys(c.variant for c in fitting(weights, Path()))
    except HwmError:
        fits = {}
    return " or ".join(fits) or "weights that are not those of any variant, or not all of them"


def write(module: Cosmos, folder: Path) -> None:
    """Save the weights under their published names as `tokenizer.safetensors`, without those of an adversary."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / FILE, {k: v for k, v in module.state_dict().items() if k.startswith(PARTS)})


def load_torchscript(folder: Path, size: tuple[int, int] = (256, 256), device: str = "cpu") -> TorchScriptCosmos:
    """The released graphs themselves as a tokenizer: a fallback, and what ours can be compared with.

    Raises:
        CheckpointError: as of `read`; or a file of the two is missing.
    """
    for name in HALVES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}: the graphs of both halves are needed to run them")
    encoder, decoder = (load_script(folder / name, device) for name in HALVES)
    weights = weights_of(encoder) | weights_of(decoder)
    config = config_of(weights, folder)
    of_size(config, weights, size, folder)  # refused here, and not by latents that mean nothing
    return TorchScriptCosmos(encoder, decoder, config, size)


@dataclass(frozen=True, kw_only=True)
class Published:
    """The fields of a released config that say which network it is, and its defaults.

    Attributes:
        name: DV, CV, DI or CI.
        embedding_dim, latent_channels: of ids and of continuous latents.
        resolution: by which the released code decides where there is attention; the network takes any.
        num_quantizers: of another quantiser than the published ones; of no effect.
    """

    name: str
    spatial_compression: int
    temporal_compression: int = 1
    patch_size: int = 4
    channels: int = 128
    channels_mult: tuple[int, ...] = (2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    latent_channels: int = 16
    embedding_dim: int = 6
    levels: tuple[int, ...] = LEVELS
    num_quantizers: int = 1
    legacy_mode: bool = False
    attn_resolutions: tuple[int, ...] = (32,)
    resolution: int = 1024
    in_channels: int = 3
    out_channels: int = 3
    z_factor: int = 1
    dropout: float = 0.0
    num_groups: int = 1
    patch_method: str = "haar"
    quantizer: str = "FSQ"
    formulation: str = "AE"
    encoder: str = "FACTORIZED"
    decoder: str = "FACTORIZED"

    def config(self) -> Cosmos.Config:
        """Ours.

        Raises:
            HwmError: a network that no release has.
        """
        kinds: dict[str, type[Cosmos]] = {"V": CosmosVideo, "I": CosmosImage}
        if len(self.name) != 2 or self.name[0] not in "CD" or self.name[1] not in kinds:
            raise HwmError(f"a Cosmos tokenizer is called DV, CV, DI or CI, not {self.name!r}")
        video = self.name[1] == "V"
        only = {"in_channels": 3, "out_channels": 3, "z_factor": 1, "patch_method": "haar", "quantizer": "FSQ",
                "formulation": "AE"}  # fmt: skip
        if video:
            only |= {"encoder": "FACTORIZED", "decoder": "FACTORIZED", "num_groups": 1}
        if wrong := [f"{k} is {getattr(self, k)!r} instead of {v!r}" for k, v in only.items() if getattr(self, k) != v]:
            raise HwmError(f"no published tokenizer has such a network: {', '.join(wrong)}")
        sides = {self.resolution // self.patch_size >> i for i in range(len(self.channels_mult))}
        if reached := sides & set(self.attn_resolutions):
            raise HwmError(f"attention at a resolution of {max(reached)} cells is in no published tokenizer")
        discrete = self.name[0] == "D"
        if discrete and self.embedding_dim != len(self.levels):
            raise HwmError(f"embedding_dim is {self.embedding_dim}, and there are {len(self.levels)} levels")
        time: dict[str, Any] = {"time": self.temporal_compression, "legacy": self.legacy_mode} if video else {}
        return kinds[self.name[1]].Config(
            space=self.spatial_compression, patch=self.patch_size, z=self.z_channels, base=self.channels,
            multipliers=self.channels_mult, blocks=self.num_res_blocks, levels=self.levels if discrete else (),
            channels=self.latent_channels, **time,
        )  # fmt: skip


def build(fields: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Cosmos:
    """The tokenizer of a released config's fields and of its weights, which tell the levels of the decoder.

    Raises:
        HwmError: a field is unknown, of another type or of no published network; or a tensor is missing, unknown or of
            another shape.
    """
    published = from_json(Published, dict(fields))
    config, source = published.config(), "the state dict"
    if any(name.startswith("decoder.up.") for name in weights):
        # the released module makes other levels than the field says where frames are joined by four
        decoder = sizes(weights, source).decoder_multipliers
        config = replace(config, {"decoder_multipliers": decoder})
    return of_size(config, weights, (published.resolution,) * 2, source)


def outputs(model: Cosmos, case: Case) -> Outputs:
    """Latents before quantisation, ids, codes and reconstruction of videos or pictures of any size in [-1, 1].

    Videos are (B, 3, F, H, W), named `video...`; pictures are (B, 3, H, W), named `image...`, and so is what is made of
    them. What comes after the ids is computed from our own: that they are the recorded ones is another output.
    """
    found: dict[str, Callable[[], Tensor]] = {}
    for name in case.given:
        found |= outputs_of(model, case.given[name], re.sub("^(video|image)", "", name))
    return found


def outputs_of(model: Cosmos, x: Tensor, name: str) -> Outputs:
    """The outputs for one video (B, 3, F, H, W) or for pictures (B, 3, H, W)."""
    video_BFCHW = x.transpose(1, 2) if x.ndim == 5 else x[:, None]

    def of_input(y: Tensor, time: int) -> Tensor:
        """What has the axes of a video, as the input has them."""
        return y if x.ndim == 5 else y.squeeze(time)

    @cache
    def sized() -> Cosmos:
        height, width = x.shape[-2:]
        return cast(Cosmos, for_size(model, (height, width)))

    def encoded() -> Tensor:
        """Ids (B, T, H, W) or continuous latents (B, T, C, H, W)."""
        return sized().encode((video_BFCHW + 1) / 2)

    def codes() -> Tensor:
        return model.quantizer.codes(encoded())

    def recon() -> Tensor:
        latents = encoded()
        made_BFCHW = model.synthesise(model.quantizer.codes(latents), None)
        return unclamped(sized().decode(latents), made_BFCHW).transpose(1, 2)

    found: dict[str, Callable[[], Tensor]] = {
        f"codes{name}": lambda: of_input(codes(), 2),
        f"indices{name}": lambda: of_input(encoded(), 1),
        f"recon{name}": Inner("beyond black and white the decoder", lambda: of_input(recon(), 2)),
    }
    if model.latent.vocab is None:  # what is not quantised is what `encode` gives
        return found | {f"latent{name}": found[f"codes{name}"]}
    before = Inner("what is quantised", lambda: of_input(model.analyse(video_BFCHW, None), 2))
    return found | {f"latent{name}": before}


def quantiser(fields: Mapping[str, Any], weights: Mapping[str, Tensor]) -> FSQ:
    """The quantiser alone, of its `levels`; its weights follow from them."""
    return FSQ(from_json(tuple[int, ...], fields.get("levels")))  # type: ignore[arg-type]


def quantised(model: FSQ, case: Case) -> Outputs:
    """Codes and ids of latents (N, C), and codes of ids (N,)."""
    made: dict[str, Callable[[], Tensor]] = {
        "bounded": lambda: model.bounded(case.given["z"]),
        "codes_of_z": lambda: model(case.given["z"]),
        "indices_of_z": lambda: model.ids(model(case.given["z"])),
        "codes_of_indices": lambda: model.codes(case.given["indices"]),
    }
    return {name: Inner("the quantiser alone", make) for name, make in made.items()}


MODELS = (CosmosVideo.name, CosmosImage.name)
register(
    "cosmos-tokenizer",
    Family(build=build, outputs=outputs, read=read, asks=("legacy",), write=write, models=MODELS),
)
register("fsq", Family(build=quantiser, outputs=quantised))
