"""What `hwm encode`, `hwm decode` and `hwm tokenizer` do: data sets, video files and tokenizers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import tyro

from hwm.commands.stores import print_skipped
from hwm.computing import ExactComputing
from hwm.data.options import SourceOptions
from hwm.encode.options import EncodeConfig
from hwm.errors import HwmError, unknown
from hwm.far import address, is_far, is_file, located, remove
from hwm.files import listed

if TYPE_CHECKING:
    from hwm.data.store import Store
    from hwm.types import Tokenizer

LATENTS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(ExactComputing, EncodeConfig, SourceOptions):
    """Encode a recording, or data of another kind, into a store of latents (files of latents of videos by themselves:
    hwm tokenizer encode).

    Killed and given again, the command goes on; given otherwise, it is refused.

    Attributes:
        source: a recorded store, a LeRobot, RLDS or robomimic data set, or a folder of videos with actions; of videos
            without actions with --kind videos.
        tokenizer: a shipped tokenizer, a folder, or pixels-128x128.
        out: folder of the new store.
        statistics: take the action statistics of this store (for a held-out store: the training store).
        on: ray: spread the parts that --shards says over the machines of a Ray cluster, and merge them (extra `ray`).
    """

    source: tyro.conf.Positional[Path]
    tokenizer: str = "tiny"
    out: Path
    statistics: str | None = None
    on: Literal["here", "ray"] = "here"


OF_VIDEOS = ("--store", "--resize", "--size", "--strict")
"""Options that `hwm encode` had for files of video by themselves."""


def encode(args: list[str]) -> None:
    """`hwm encode SOURCE --tokenizer NAME --out DIR`."""
    args = todays_options(args)
    if old := [word for word in args if word.partition("=")[0] in OF_VIDEOS]:
        raise HwmError(
            f"{old[0]} is no option of hwm encode, which makes stores of data sets: files of latents of videos by "
            "themselves are made by hwm tokenizer encode, and a store of them by hwm encode SOURCE --kind videos, "
            "which resizes by itself"
        )
    o = tyro.cli(EncodeOptions, args=args, prog="hwm encode")
    from hwm.data.statistics import warning

    store = encode_on_ray(o) if o.on == "ray" else encode_here(o)
    print(
        f"{address(store.path)}: {len(store.episodes)} episodes, {store.steps:,} steps of {store.header.latent_shape}"
    )
    print_skipped(store)
    if text := warning(store, store.statistics):
        print(text, file=sys.stderr)


def encode_here(o: EncodeOptions) -> Store:
    from hwm.data.readers import open_store
    from hwm.data.sources import open_source
    from hwm.encode.episodes import encode as run
    from hwm.loading import open_tokenizer

    tokenizer = open_tokenizer(o.tokenizer, o.start())
    statistics = open_store(o.statistics) if o.statistics else None
    return run(open_source(o.source, o), tokenizer, o.out, o, statistics=statistics)


def encode_on_ray(o: EncodeOptions) -> Store:
    """Each part in a task of its own, and the store that they make together.

    Raises:
        HwmError: it is not said in how many parts, or a part cannot be encoded.
    """
    from hwm.commands.spread import on_ray
    from hwm.data.merge import merge
    from hwm.data.sources import open_source

    if o.shards < 2 or o.shard:
        raise HwmError("--on ray spreads parts: say how many with --shards, and leave out --shard")
    out = o.out if is_far(located(o.out)) else o.out.absolute()
    named = {name: _anywhere(getattr(o, name)) for name in ("source", "tokenizer", "statistics")}
    whole = replace(o, on="here", shards=1, out=out, **named)
    if is_file(located(whole.out) / "meta.json"):
        return encode_here(whole)  # which compares it with what is asked for
    count = min(o.shards, len(open_source(whole.source, o)))
    outs = [Path(f"{whole.out}.parts") / f"{i:04d}" for i in range(count)]
    parts = [replace(whole, out=out, shard=i, shards=count) for i, out in enumerate(outs)]
    on_ray(encode_here, parts, threads=o.threads, on_cards=o.device != "cpu")
    store = merge(outs, whole.out)
    remove(located(outs[0]).parent)
    return store


def _anywhere(name: Any) -> Any:
    """A path as a worker with another working folder understands it: names and addresses stay as they are."""
    from hwm.assets import STORES
    from hwm.loading import SHIPPED

    here = name and str(name) not in (*STORES, *SHIPPED) and Path(name).exists()
    return type(name)(Path(name).absolute()) if here else name


@dataclass(frozen=True, kw_only=True)
class VideoOptions(ExactComputing):
    """Encode video files by themselves into files of latents (data sets into stores: hwm encode).

    Of a folder, videos whose latents are there already are left alone: the same command goes on after a kill.

    Attributes:
        source: a video file, or a folder of them.
        tokenizer: a shipped tokenizer, or a folder: of a checkpoint, or of published TorchScript files.
        out: the file to write (.safetensors); for a folder of videos the folder.
        clip: encode so many frames at a time, each clip by itself (17 in 1X's data); 0 encodes a video as one clip.
        fps: frames a second to take, of which the video's rate must be a multiple; 0 takes all.
        size: height and width that the tokenizer is taken for; by default those that its checkpoint says.
        resize: resize pictures of another size to the tokenizer's.
        strict: refuse videos whose frames do not fill whole latent steps, instead of repeating the last frame.
    """

    source: tyro.conf.Positional[Path]
    tokenizer: str = "tiny"
    out: Path
    clip: int = 0
    fps: float = 0.0
    size: tuple[int, int] | None = None
    resize: bool = False
    strict: bool = False


def encode_videos(o: VideoOptions) -> None:
    from hwm.data.sources.videos import videos_in
    from hwm.encode.files import check_asked, encode_file, load_latents
    from hwm.loading import open_tokenizer

    tokenizer = open_tokenizer(o.tokenizer, o.start(), o.size)
    todo, done = _pairs(o.source, o.out, videos_in, LATENTS)
    for source, out in done:
        check_asked(source, out, tokenizer, clip=o.clip, fps=o.fps)
    for source, out in todo:
        about, repeated = encode_file(source, tokenizer, out, clip=o.clip, fps=o.fps, resize=o.resize, strict=o.strict)
        padded = f"; the last frame stands {repeated} more times, to fill the last step" if repeated else ""
        latents = load_latents(out)[0]
        print(f"{out}: {about.frames} frames as {' x '.join(map(str, latents.shape))} latents{padded}")


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(ExactComputing):
    """Decode files of latents, as `hwm tokenizer encode` writes them, into videos.

    Attributes:
        source: a file of latents (.safetensors), or a folder of them.
        tokenizer: by default the one whose name the file says.
        out: the video to write; for a folder the folder.
        steps: decode only so many latent steps, from the first on; 0 decodes all.
    """

    source: tyro.conf.Positional[Path]
    tokenizer: str = ""
    out: Path
    steps: int = 0


def decode(args: list[str]) -> None:
    """`hwm decode LATENTS --out VIDEO`."""
    o = tyro.cli(DecodeOptions, args=todays_options(args), prog="hwm decode")
    if o.steps < 0:
        raise HwmError(f"--steps {o.steps}: a number of latent steps, or 0 for all")
    from hwm.encode.files import about_of, check_decoded, decode_file
    from hwm.loading import open_tokenizer

    runtime = o.start()
    opened: dict[str, Tokenizer] = {}

    def tokenizer_of(source: Path) -> Tokenizer:
        name = o.tokenizer or about_of(source).tokenizer
        return opened[name] if name in opened else opened.setdefault(name, open_tokenizer(name, runtime))

    todo, done = _pairs(o.source, o.out, _latents_in, ".mp4")
    for source, out in done:
        check_decoded(source, tokenizer_of(source), out, o.steps)
    for source, out in todo:
        tokenizer = tokenizer_of(source)
        print(f"{out}: {decode_file(source, tokenizer, out, o.steps)} frames")


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Fetch a published tokenizer from the Hugging Face hub (extra `hub`); the same command goes on after a kill.

    Attributes:
        name: such as cosmos-dv8x8x8, sd-vae-ft-mse or svd-vae; or a repository OWNER/NAME with a VAE of diffusers.
        out: its repository becomes a folder in here.
    """

    name: tyro.conf.Positional[str]
    out: Path = Path("models")


def run_download(o: DownloadOptions) -> None:
    from hwm.convert.download import download
    from hwm.tokenizers.sd_vae import is_diffusers

    folder = download(o.name, o.out)
    if is_diffusers(folder):
        print(f"next: hwm tokenizer encode VIDEO --tokenizer {folder} --out FILE (extra `vae`)")
    else:
        print(f"next: hwm convert cosmos-tokenizer {folder} --out {o.out / o.name}")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ExactComputing):
    """Compare a tokenizer's reconstruction of video with the video: PSNR, SSIM, perceptual distance, codebook usage.

    Attributes:
        source: a video file, or a folder of them; pictures are resized to the tokenizer's size.
        tokenizer: as of `hwm encode`.
        size: height and width that the tokenizer is taken for; by default those that its checkpoint says.
        frames: how many to compare of each video, from the first on, cut to whole latent steps.
        fps: frames a second to take, of which the video's rate must be a multiple; 0 takes all.
        out: also write a picture (.png): frames, reconstructions, and four times their difference.
        json: print one JSON object.
    """

    source: tyro.conf.Positional[Path]
    tokenizer: str = "tiny"
    size: tuple[int, int] | None = None
    frames: int = 65
    fps: float = 0.0
    out: Path | None = None
    json: bool = False


def run_report(o: ReportOptions) -> None:
    from hwm.config import to_json
    from hwm.devices import name_of
    from hwm.evaluate.tokenizer import compare, picture
    from hwm.loading import open_tokenizer
    from hwm.pictures.files import save_png

    if o.frames < 1:
        raise HwmError(f"--frames {o.frames}: at least one frame is compared")
    if o.out and o.out.suffix != ".png":
        raise HwmError(f"the picture is a .png file, not {o.out}")
    runtime = o.start()
    report, truth, made = compare(o.source, open_tokenizer(o.tokenizer, runtime, o.size), o.frames, o.fps)
    if o.json:
        print(json.dumps({**to_json(report), "device": name_of(runtime.device), "dtype": runtime.format}, indent=1))
    else:
        height, width = report.size
        several = f" ({report.videos} videos)" if report.videos > 1 else ""
        shown = f"{report.frames} frames of {report.source}{several} at {height} x {width}"
        print(f"{report.tokenizer}, {shown}, on {runtime}")
        print(f"  PSNR {report.psnr:.2f} dB (worst frame {report.psnr_worst:.2f}), SSIM {report.ssim:.4f}")
        if report.psnr_copy is not None:
            print(f"  the frame before each latent step, repeated: PSNR {report.psnr_copy:.2f} dB")
        if report.perceptual is not None:
            copy = f", of the frame before {report.perceptual_copy:.4f}" if report.perceptual_copy is not None else ""
            print(f"  perceptual distance {report.perceptual:.4f}{copy} (EfficientNet-Lite0)")
        if c := report.codes:
            print(
                f"  codebook usage {c.usage:.2%}: {c.different:,} of {c.vocab:,} ids in {c.cells:,} cells, perplexity "
                f"{c.perplexity:,.0f}; of each digit: {', '.join(f'{x:.0%}' for x in c.levels) or 'ids have no digits'}"
            )
    if o.out:
        save_png(o.out, picture(truth, made))
        if not o.json:
            print(o.out)


VERBS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "download": (DownloadOptions, run_download),
    "encode": (VideoOptions, encode_videos),
    "report": (ReportOptions, run_report),
}


def tokenizer(args: list[str]) -> None:
    """`hwm tokenizer download NAME`, `hwm tokenizer encode VIDEO --out FILE`, `hwm tokenizer report VIDEO`."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: hwm tokenizer VERB [OPTIONS]   (hwm tokenizer VERB --help tells the options)\n")
        for name, (options, _) in VERBS.items():
            print(f"  {name:<10} {options.__doc__.splitlines()[0]}")
        return
    if args[0] not in VERBS:
        raise unknown("verb of hwm tokenizer", args[0], VERBS)
    options, run = VERBS[args[0]]
    run(tyro.cli(options, args=todays_options(args[1:]), prog=f"hwm tokenizer {args[0]}"))


def todays_options(args: list[str]) -> list[str]:
    """Options under the names that they have today, with a note of those that have changed."""
    out: list[str] = []
    for word in args:
        if word == "--half":
            print("note: --half is now --dtype bfloat16", file=sys.stderr)
        out += ["--dtype", "bfloat16"] if word == "--half" else [word] if word != "--no-half" else []
    return out


Pairs: TypeAlias = "list[tuple[Path, Path]]"


def _pairs(source: Path, out: Path, of: Callable[[Path], list[Path]], suffix: str) -> tuple[Pairs, Pairs]:
    """What to read and what to write; and, of a folder, what is written already."""
    if not source.is_dir():
        if not source.is_file():
            raise HwmError(f"there is no {source}")
        if out.is_dir() or (suffix == LATENTS and out.suffix != suffix):
            raise HwmError(f"--out {out}: name the {suffix} file to write")
        return [(source, out)], []
    if out.is_file():
        raise HwmError(f"--out {out} is a file: {source} is a folder, and becomes one")
    pairs = [(path, out / f"{path.stem}{suffix}") for path in of(source)]
    if not pairs:
        raise HwmError(f"{source} holds nothing to read here")
    targets = [target for _, target in pairs]
    if double := {t.name for t in targets if targets.count(t) > 1}:
        raise HwmError(f"several files of {source} would become {min(double)}: rename one")
    todo, done = ([pair for pair in pairs if pair[1].exists() is there] for there in (False, True))
    if done:
        print(f"{out}: {len(done)} of {len(pairs)} are there already")
    return todo, done


def _latents_in(folder: Path) -> list[Path]:
    return listed(folder, f"*{LATENTS}")
