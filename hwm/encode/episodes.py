"""Video and actions through a tokenizer into a store of latents: in shards, resumably, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm import far
from hwm.config import to_json
from hwm.data.ahead import ahead
from hwm.data.sources import Episode, Source, SourceOptions, open_source
from hwm.data.sources.base import named, of_episode
from hwm.data.sources.views import Cropped
from hwm.data.store import EpisodeError, Header, Store, StoreError, differing, latent_dtype
from hwm.data.writer import Writer
from hwm.devices import device_of, exact, format_of
from hwm.encode.options import OF_NO_CONSEQUENCE
from hwm.encode.options import EncodeConfig as EncodeConfig
from hwm.errors import HwmError
from hwm.pictures.stack import of_view
from hwm.pictures.video import to_video, write_video
from hwm.progress import track
from hwm.tokenizers.views import for_views
from hwm.types import Tokenizer

USUAL = EncodeConfig()


@exact()
def encode(
    source: str | Path | Source,
    tokenizer: Tokenizer,
    out: str | Path,
    config: EncodeConfig = USUAL,
    *,
    statistics: Store | None = None,
) -> Store:
    """Encode the episodes of a recording, or of data of any other kind (`hwm.data.sources`).

    A tokenizer in float32 computes exactly in that (`hwm.devices.exact`), so that ids do not depend on the device.

    Killed and called again with the same arguments, it goes on; the result is that of a call that was not killed. When
    all is done already, it returns what is there, if that is what is asked for.

    Args:
        source: a store with video, a path of another known kind, or a source that is open. The pictures of several
            cameras are encoded each by itself (`hwm.tokenizers.views`).
        tokenizer: of one camera's pictures.
        statistics: take the action statistics of this store (the training set's, for a held-out store).

    Raises:
        EpisodeError: an episode is not fit to be encoded: one frame, actions that are missing, not finite or of another
            width, time stamps of another rate, a video that is missing, damaged, or has another number of frames than
            there are actions.
        HwmError: a clip that does not fill whole latent steps; a shard without episodes; statistics of other actions;
            no episode that is fit; or `out` was begun, or is complete, with other settings: the message names them.
    """
    config.check(tokenizer.latent.stride)
    source = source if isinstance(source, Source) else open_source(source)
    one, tokenizer = tokenizer.size, for_views(tokenizer, source.header.views)
    if statistics and statistics.header.action_names != source.header.action_names:
        raise HwmError(f"{statistics.path} has other actions than {source.path}: its statistics do not describe them")
    names = _names(source, config)
    if config.crop:
        source = Cropped(source, one)
    header = _header(source.header, tokenizer, config)
    settings, place = _settings(source, tokenizer, config, statistics), far.located(out)
    if far.is_file(place / "meta.json"):
        return _finished(place, header, settings, config, names, statistics)
    writer = Writer(out, header, settings)
    skipped = _encode_episodes(writer, source, tokenizer, config, names)
    if len(skipped) == len(names):
        raise HwmError(f"{source.path}: none of {len(names)} episodes can be encoded. {next(iter(skipped.values()))}")
    return writer.finish(statistics.statistics if statistics else None, part=config.part, skipped=skipped)


def _settings(source: Source, tokenizer: Tokenizer, config: EncodeConfig, statistics: Store | None) -> dict[str, Any]:
    """All that the result depends on, to be kept with it and compared when it is asked for again."""
    return {
        "source": _where(source.path),
        **{f.name: to_json(getattr(source.options, f.name)) for f in fields(SourceOptions)},
        "tokenizer": tokenizer.id,
        "dtype": format_of(tokenizer),
        **{f.name: to_json(getattr(config, f.name)) for f in fields(EncodeConfig) if f.name not in OF_NO_CONSEQUENCE},
        "statistics": _where(statistics.path) if statistics else "",
        "notes": list(source.notes),
    }


def _where(path: Path) -> str:
    """What a path is called everywhere: an address, or all of the path."""
    known = far.address(path)
    return str(path.resolve()) if known == str(path) else known


def _names(source: Source, config: EncodeConfig) -> list[str]:
    """The episodes of a shard."""
    names = [source.ids[i] for i in range(config.shard, len(source), config.shards)]
    if not names:
        raise HwmError(f"shard {config.shard} of {config.shards} is empty: {source.path} has {len(source)} episodes")
    if len(set(names)) < len(names):
        raise HwmError(f"{source.path}: several episodes are called {max(names, key=names.count)!r}")
    return names


def _header(h: Header, tokenizer: Tokenizer, config: EncodeConfig) -> Header:
    """Of the store of latents, from that of the source."""
    frames = config.every * tokenizer.latent.stride
    return Header(
        embodiment=h.embodiment,
        action_names=h.action_names,
        actions_per_step=h.actions_per_step * frames,
        fps=h.fps / frames,
        latent=tokenizer.latent,
        dtype=tokenizer.stored or latent_dtype(tokenizer.latent),
        action_dtype="float16" if config.half_actions else "float32",
        tokenizer=tokenizer.id,
        source=h.source,
        views=h.views,
    )


def _encode_episodes(
    writer: Writer, source: Source, tokenizer: Tokenizer, config: EncodeConfig, names: Sequence[str]
) -> dict[str, str]:
    """Write what is not written yet; returns the episodes that are not fit, with the reasons."""
    done = writer.done_of(_written(writer, set(names), config.clip))
    todo = [config.shard + i * config.shards for i, name in enumerate(names) if name not in done]
    unit = source.steps / len(source) / config.every
    skipped, there = dict[str, str](), set(names)

    def read(number: int) -> tuple[int, Episode | EpisodeError]:
        try:
            return number, source[number]
        except EpisodeError as error:
            return number, error

    # what is far away is fetched while the episode before it is encoded
    episodes = ahead(map(read, todo), 1) if far.is_far(source.path) else map(read, todo)
    unit_name = "frames" if unit else "episodes"
    for number, episode in track(episodes, len(todo), f"encoding with {tokenizer.id}", unit or 1, unit_name):
        try:
            if isinstance(episode, EpisodeError):
                raise episode
            # of a recording that was cut before, the episode that has the video, if it is encoded here too
            film = episode.info.get("video")
            film = film if film in there else episode.id
            for cut in _cuts(episode, config, tokenizer.latent.stride, film):
                if cut.name not in done:
                    _encode_cut(writer, cut, tokenizer, config, source.path)
        except EpisodeError as error:
            if not config.skip_bad:
                raise
            skipped[source.ids[number]] = str(error)
            for left in _written(writer, {source.ids[number]}, config.clip):
                writer.drop(left)
    return skipped


def thin_actions(actions_NKA: np.ndarray, every: int) -> np.ndarray:
    """Actions of every n-th step, each with those that lead to it from the step kept before: (N', K*n, A).

    The actions before the first step are not known; its own are repeated in their place.
    """
    n, k, a = actions_NKA.shape
    kept = 1 + (n - 1) // every
    head = np.repeat(actions_NKA[:1], every, 0)
    body = actions_NKA[1 : 1 + (kept - 1) * every]
    return np.concatenate([head, body]).reshape(kept, every * k, a)


class _Cut(NamedTuple):
    """Kept steps start..stop of an episode, which are encoded together and become an episode of this name.

    Its frames are in the video of `film`, which may be another cut.
    """

    episode: Episode
    name: str
    film: str
    start: int
    stop: int
    last: bool


def _cuts(episode: Episode, config: EncodeConfig, stride: int, film: str) -> Iterator[_Cut]:
    """The clips of an episode (or all of it), each cut to whole latent steps."""
    kept, clip = 1 + (episode.steps - 1) // config.every, config.clip
    for number, start in enumerate(range(0, kept, clip or kept)):
        there = min(clip or kept, kept - start)
        name, first = (f"{e}_clip_{i:05d}" if clip else e for e, i in ((episode.id, number), (film, 0)))
        yield _Cut(episode, name, first, start, start + 1 + (there - 1) // stride * stride, start + there == kept)


def _finished(
    out: Path,
    header: Header,
    settings: dict[str, Any],
    config: EncodeConfig,
    names: Sequence[str],
    statistics: Store | None,
) -> Store:
    """The store that an earlier call has finished, if it is what is asked for.

    Raises:
        StoreError: it was made with other settings, of other episodes, or lacks some that nobody allows it to.
    """
    store = Store(out)
    known = {"keep_video": store.has_video, **store.settings}
    differ = differing(known, settings) or differing(to_json(store.header), to_json(header))
    if not differ and store.part != config.part:
        differ = [f"part: {store.part}, now {config.part}"]
    if not differ and statistics and store.statistics != statistics.statistics:
        differ = [f"statistics: others than those of {statistics.path}"]
    if differ:
        raise StoreError(
            f"{out} is complete, and was made with other settings ({'; '.join(differ)}): choose another folder, or "
            "remove it"
        )
    there = {e.id.rpartition("_clip_")[0] if config.clip else e.id for e in store.episodes} | store.skipped.keys()
    if other := sorted(there ^ set(names)):
        more = f" and {len(other) - 1} more" if other[1:] else ""
        raise StoreError(
            f"{out} is complete, but {'holds' if other[0] in there else 'lacks'} episode {other[0]!r}{more}: the "
            "source has changed since; choose another folder, or remove it"
        )
    if store.skipped and not config.skip_bad:
        name, why = next(iter(store.skipped.items()))
        raise StoreError(
            f"{out} is complete but for {len(store.skipped)} episodes that were left out (--skip-bad), as {name!r}: "
            f"{why}"
        )
    shutil.rmtree(out / ".partial", ignore_errors=True)  # left by a kill in the last moment
    return store


def _written(writer: Writer, names: set[str], clip: int) -> set[str]:
    """What is there already of some episodes, whole or as clips."""
    return {done for done in writer.done() if (done.rpartition("_clip_")[0] if clip else done) in names}


def _encode_cut(writer: Writer, cut: _Cut, tokenizer: Tokenizer, config: EncodeConfig, path: Path) -> None:
    episode, every, stride = cut.episode, config.every, tokenizer.latent.stride
    parts = list(_latents(cut, tokenizer, every, config.batch, path))
    if not parts:
        raise EpisodeError(f"{path}: the video of {episode.id!r} shows no frames")
    latents = np.concatenate(parts)
    actions = thin_actions(thin_actions(episode.actions, every)[cut.start : cut.stop], stride)
    if len(latents) != len(actions):
        raise EpisodeError(
            f"{path}: the video of {episode.id!r} shows {len(latents)} steps, its actions are of "
            f"{len(actions)}: the video is truncated or not of this episode"
        )
    video = writer.waiting(cut.name) if config.keep_video and cut.film == cut.name else {}
    for view, file in video.items():
        _save_video(episode, file, path, view, writer.header.views)
    info = {**({"text": episode.text} if episode.text else {}), **_place(cut, config, stride)}
    values = np.round(latents * 255).astype(np.uint8) if tokenizer.stored == "uint8" else latents
    writer.add(cut.name, actions, values, video or None, info)


def _place(cut: _Cut, config: EncodeConfig, stride: int) -> dict[str, Any]:
    """What is kept of an episode's `info`, and where in which video the frames of a cut are."""
    info = {k: v for k, v in cut.episode.info.items() if k != "video"}
    per_step = int(info.get("frames_per_step", 1)) * config.every
    info["frames_per_step"] = per_step * stride
    if first := int(info.get("first_frame", 0)) + cut.start * per_step:
        info["first_frame"] = first
    if config.keep_video and (config.clip or "video" in cut.episode.info):
        info["video"] = cut.film
    return info


def _save_video(episode: Episode, to: Path, path: Path, view: str, views: Sequence[str]) -> None:
    """Write what the camera, or one of several, saw, as it is where it has a file of its own."""
    if episode.save_video:
        try:
            episode.save_video(to, view) if view else episode.save_video(to)
        except HwmError as error:
            raise named(path, episode.id, error) from error
        except OSError as error:  # the disk is full, say: this is no fault of the episode
            raise HwmError(f"the video of {episode.id!r} cannot be written to {to}: {error}") from error
        return
    shown = replace(episode, frames=of_view(episode.frames, views, view)) if view else episode
    frames = _decoded(shown, path, 1, 0, None)
    # H.264 has half as many colours a side, so that sides are even
    write_video(to, (f[: len(f) // 2 * 2, : f.shape[1] // 2 * 2] for f in frames), episode.fps)


def _decoded(episode: Episode, path: Path, every: int, start: int, stop: int | None) -> Iterator[np.ndarray]:
    """Frames of an episode, all of one size; what goes wrong is said to be of that episode."""
    shape = None
    with of_episode(path, episode.id):
        for i, frame in enumerate(episode.frames(every, start, stop)):
            shape = shape or frame.shape
            if frame.shape != shape:
                raise HwmError(f"frame {start + i * every} has shape {frame.shape}, the first had {shape}")
            yield frame


def _latents(cut: _Cut, tokenizer: Tokenizer, every: int, batch: int, path: Path) -> Iterator[np.ndarray]:
    # of the last cut all that is left, so that a video of too many frames is noticed
    stop = None if cut.last else (cut.stop - 1) * every + 1
    frames = _decoded(cut.episode, path, every, cut.start * every, stop)
    spec, device = tokenizer.latent, device_of(tokenizer, torch.device("cpu"))
    sizes = chain([spec.frames(max(1, batch // spec.stride))], repeat(max(1, batch // spec.stride) * spec.stride))

    def pieces() -> Iterator[Tensor]:
        for i, size in enumerate(sizes):
            some = list(islice(frames, size))
            whole = len(some) - (len(some) - (i == 0)) % spec.stride
            if not whole:
                return
            yield to_video(some[:whole], tokenizer.size, device, max(1, len(spec.views)))[None]

    with torch.inference_mode(), closing(ahead(pieces())) as ready:
        for part in tokenizer.encode_pieces(ready):
            yield part[0].cpu().numpy()
