"""Video files by themselves, for training on video that has no actions. Nothing is recognised as such: `--kind videos`
says that there are none, so that actions which were not found are not lost without a word."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np

from hwm.data.sources.base import Episode, Source, SourceOptions, of_first
from hwm.data.store import EpisodeError, Header
from hwm.errors import HwmError
from hwm.files import listed
from hwm.pictures.video import count_frames, frame_rate, read_video

VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")
NO_ACTION = "none"
"""The name of the one action, which is zero: a store has at least one."""


class Videos(Source):
    """A video file, or the video files of a folder, an episode each.

    They are of one rate, or are brought to one by `fps`.

    Raises:
        HwmError: there is no video, or an option that means nothing here.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = path
        if options.camera or options.split or options.action_keys:
            raise HwmError(f"{path} is read as videos without actions: they have no cameras, splits or columns")
        self.files = videos_in(path) if path.is_dir() else [path]
        if not self.files:
            raise HwmError(f"{path} holds no video ({', '.join(VIDEOS)})")
        self.ids = [file.stem for file in self.files]
        self.wanted, self.stated = options.fps, options.source_fps
        self.example, rate = of_first(path, self.ids, lambda n: (self.files[n], frame_rate(self.files[n])))
        self.header = Header(
            embodiment="video",
            action_names=(NO_ACTION,),
            actions_per_step=1,
            fps=self.stated or rate,
            source="video files",
        )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return False

    def read(self, number: int) -> Episode:
        video, fps = self.files[number], self.header.fps
        rate = self.stated or frame_rate(video)
        if self.wanted > 1.01 * rate:
            raise EpisodeError(f"{video.name} has {rate:g} frames a second: {self.wanted:g} cannot be made of them")
        if not self.wanted and abs(rate / fps - 1) > 0.01:
            raise EpisodeError(
                f"{video.name} has {rate:g} frames a second and {self.example.name} {fps:g}: say how many to take "
                "(--fps), or make a store of each"
            )
        return Episode(
            id=self.ids[number],
            frames=partial(read_video, video),
            actions=np.zeros((count_frames(video), 1, 1), np.float32),
            embodiment=self.header.embodiment,
            fps=rate,
            save_video=partial(shutil.copyfile, video),
        )


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def videos_in(folder: Path) -> list[Path]:
    """The video files of a folder, in order."""
    return [p for p in listed(folder) if is_video(p) and p.is_file()]
