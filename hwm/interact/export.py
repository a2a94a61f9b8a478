"""A session as a store: what was dreamt can be trained on, viewed and evaluated like what was recorded."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from hwm.data.store import Header, Store, latent_dtype
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.interact.session import Session
from hwm.pictures.video import write_video


def write_store(session: Session, path: str | Path, first: int = 0, last: int | None = None) -> Store:
    """Steps first to last of a session as a store of one episode, with video; with first = 0 the true steps before
    them too. The statistics are those that the model was trained with."""
    world, group = session.world, session.world.model.group
    begin = session.prompt + first * group if first else 0
    end = len(session.latents) if last is None else session.prompt + last * group
    if not 0 <= begin < end <= len(session.latents):
        raise HwmError(f"steps {first} to {last} are not within the {session.steps} steps of this session")
    assert session.start is not None
    spec, embodiment = world.model.spec, session.start.embodiment
    action = spec.actions[embodiment]
    header = Header(
        embodiment=embodiment,
        action_names=action.names,
        actions_per_step=action.per_step,
        fps=spec.fps,
        latent=spec.latent,
        dtype=latent_dtype(spec.latent),
        tokenizer=spec.tokenizer,
        source=f"played in {world.name}",
        views=spec.latent.views,
    )
    writer = Writer(path, header)
    video = writer.waiting("session")
    for file, film in zip(video.values(), np.split(session.video(first, last), len(video), 1), strict=True):
        write_video(file, film, world.fps)
    writer.add(
        "session",
        np.stack(session.actions[begin:end]),
        torch.cat(session.latents[begin:end]).cpu().numpy().astype(header.dtype),
        video=video,
        info={"frames_per_step": world.tokenizer.latent.stride},
    )
    return writer.finish((action.mean, action.std))


def zip_store(session: Session, first: int = 0, last: int | None = None) -> bytes:
    """The same as a zip file."""
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(session, Path(folder) / "session", first, last)
        out = Path(folder) / "session.zip"
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(store.path.rglob("*")):
                archive.write(file, file.relative_to(store.path.parent))
        return out.read_bytes()


def mp4(session: Session, first: int = 0, last: int | None = None) -> bytes:
    """The video of these steps as the bytes of an mp4 file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "session.mp4"
        session.write_video(out, first, last)
        return out.read_bytes()
