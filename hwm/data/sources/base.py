"""What everybody's data looks like from here: episodes of frames and actions, decoded when they are asked for.

A source is read in place. `hwm.data.sources.open_source` finds out what kind a folder or file is; what is added to the
table there is encoded, viewed and exported like all others.

Shape suffixes: N steps, K actions a step, A action dimension.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hwm.data.options import SourceOptions as SourceOptions
from hwm.data.store import EpisodeError, Header
from hwm.errors import HwmError
from hwm.far import FarError
from hwm.pictures.stack import Frames as Frames
from hwm.pictures.stack import film

#: what reading files that are damaged, or that hold something else, can end in: Arrow's, h5py's and numpy's errors
DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, EOFError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip
RATE_TOLERANCE = 0.1
"""How far, in shares of the rate, the median distance of time stamps may be from what a data set says its rate is."""


MOST_DIMENSIONS = 100_000
AS_IT_IS = SourceOptions()
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A stretch of frames that is continuous in time, with its actions.

    Attributes:
        id: its name, unlike all others of its source.
        frames: what the camera saw, a frame a step; of several cameras stacked (`hwm.pictures.stack`).
        actions: (N, K, A) in the units of the robot; row t leads from step t-1 to step t.
        embodiment: whose actions these are.
        fps: steps a second.
        text: what was to be done, in words.
        times: (N,) seconds of the steps; None where they lie evenly.
        info: free values to be kept with the episode.
        save_video: writes the frames (of several cameras those of the view that it is given) as a video file without
            decoding them; None where there is no such file.
    """

    id: str
    frames: Frames
    actions: np.ndarray
    embodiment: str
    fps: float
    text: str = ""
    times: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    save_video: Callable[..., None] | None = None

    @property
    def steps(self) -> int:
        return len(self.actions)


class Source(ABC):
    """Episodes of one robot and its camera, or several cameras in step, by number.

    Attributes:
        path: where it lies.
        header: what all episodes have in common; it has no latents.
        ids: names of the episodes, in order; they can name folders.
        steps: of all episodes together, where that is known without reading them; else 0.
        notes: what was chosen or left out when it was opened, in words.
        options: what was asked for when it was opened.
    """

    path: Path
    header: Header
    ids: Sequence[str]
    steps: int = 0
    notes: tuple[str, ...] = ()
    options: SourceOptions = AS_IT_IS

    def __init__(self, path: Path, options: SourceOptions) -> None:
        raise NotImplementedError  # how kinds are opened; views of sources take others

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether something at this path is of this kind, from names and first bytes."""
        raise NotImplementedError

    @abstractmethod
    def read(self, number: int) -> Episode:
        """An episode as it is; `EpisodeError` or another `HwmError` where it cannot be read."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> Episode:
        """An episode by its number.

        Raises:
            EpisodeError: it cannot be read, has one frame only, actions of another width than the source's or such as
                are not finite, or time stamps that are not of the source's rate.
        """
        number = range(len(self))[number]
        with of_episode(self.path, self.ids[number]):
            episode = self.read(number)
        return checked(self.path, episode, self.header)

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))


@contextmanager
def reading(what: object, error: type[HwmError] = HwmError) -> Iterator[None]:
    """Make one error of whatever reading something ends in, which says what cannot be read and why."""
    try:
        yield
    except HwmError:
        raise
    except DAMAGE as found:
        why = str(found) if isinstance(found, OSError) else f"{type(found).__name__}: {found}"
        raise error(f"{what} cannot be read: {why}") from found


@contextmanager
def of_episode(path: Path, episode: str) -> Iterator[None]:
    """The same for one episode: it can be left out."""
    try:
        with reading("it"):
            yield
    except HwmError as error:
        raise named(path, episode, error) from error


def named(path: Path, episode: str, error: HwmError) -> EpisodeError:
    """An error of one episode, which says of which; that of a server is none, and is raised as it is."""
    if isinstance(error, FarError):
        raise error
    text = str(error)
    return EpisodeError(text if f"{episode!r}" in text else f"{path}: episode {episode!r}: {text}")


def of_first(path: Path, ids: Sequence[str], read: Callable[[int], R]) -> R:
    """What is read of the first episode, by its number, that it can be read of.

    Raises:
        EpisodeError: it can be read of none; the error is that of the first.
    """
    first: EpisodeError | None = None
    for number, name in enumerate(ids):
        try:
            with of_episode(path, name):
                return read(number)
        except EpisodeError as error:
            first = first or error
    raise first or EpisodeError(f"{path} has no episodes")


def stated(where: object, fps: float) -> float:
    """Steps a second, if they are not 0.

    Raises:
        HwmError: they are.
    """
    if not fps:
        raise HwmError(f"{where} does not say how many steps a second it has: give --source-fps")
    return fps


def together(path: Path, *choices: Callable[[], Any]) -> list[Any]:
    """The results of several choices.

    Raises:
        HwmError: some cannot be made; it tells all of them, so that they can be mended at once.
    """
    made, wrong = [], list[str]()
    for choice in choices:
        try:
            made.append(choice())
        except HwmError as error:
            wrong.append(str(error).removeprefix(f"{path} ") if wrong else str(error))
    if wrong:
        raise HwmError("; ".join(wrong))
    return made


def checked(path: Path, episode: Episode, header: Header) -> Episode:
    """The episode, if it is fit to be learnt from.

    Raises:
        EpisodeError: what is wrong with it.
    """
    actions, where = episode.actions, f"{path}: episode {episode.id!r}"
    if len(actions) < 2:
        raise EpisodeError(f"{where} has {len(actions)} frames: no action leads from one to another")
    if actions.ndim != 3 or actions.shape[1:] != header.action_shape:
        raise EpisodeError(
            f"{where} has actions of shape {actions.shape}, where those of {header.embodiment!r} are (N, "
            f"{header.action_shape[0]}, {header.action_shape[1]})"
        )
    bad = np.argwhere(~np.isfinite(actions))
    if len(bad):
        t, k, a = bad[0]
        raise EpisodeError(f"{where}: action {header.action_names[a]!r} is {actions[t, k, a]} at step {t}")
    if episode.times is not None:
        check_times(where, episode.times, len(actions), header.fps)
    return episode


def check_times(where: str, times: np.ndarray, steps: int, fps: float) -> None:
    if times.shape != (steps,):
        raise EpisodeError(f"{where} has {len(times)} time stamps for {steps} steps")
    gaps = np.diff(times)
    back = np.flatnonzero(~(gaps > 0))
    if len(back):
        i = int(back[0])
        raise EpisodeError(
            f"{where}: time does not go on from step {i} ({times[i]:g} s) to the next ({times[i + 1]:g} s)"
        )
    rate = 1 / float(np.median(gaps)) if len(gaps) else fps
    if abs(rate / fps - 1) > RATE_TOLERANCE:
        raise EpisodeError(f"{where} has time stamps of {rate:.4g} steps a second, where {fps:.4g} are stated")


def leading(taken_NA: np.ndarray) -> np.ndarray:
    """Actions taken at each frame, (N, A) -> those that lead to each frame, (N, 1, A).

    Most robot data pairs a frame with the action that was taken when it was seen; here an action stands with the frame
    that it leads to. The first frame has none: the first known one stands for it. The last one leads nowhere.
    """
    if taken_NA.ndim != 2:
        raise EpisodeError(f"actions of shape {taken_NA.shape}, where (frames, dimensions) are expected")
    return np.concatenate([taken_NA[:1], taken_NA[:-1]]).astype(np.float32)[:, None]


def joined(values: Sequence[np.ndarray], steps: int | None = None) -> np.ndarray:
    """Columns of actions, (N,) or (N, ...) each, side by side: (N, A)."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found with what is not finite
        flat = [np.asarray(v, np.float32).reshape(len(v), math.prod(v.shape[1:])) for v in values]
    if len({len(v) for v in flat} | ({steps} if steps is not None else set())) > 1:
        raise EpisodeError(f"columns of actions of {', '.join(str(len(v)) for v in flat)} rows, of {steps} steps")
    return np.concatenate(flat, 1)


def dimension_names(keys: Sequence[str], widths: Sequence[int]) -> tuple[str, ...]:
    """Names for the dimensions of joined columns: `KEY`, or `KEY_0`, `KEY_1`, ... of those with several.

    Raises:
        HwmError: there are more than actions can have, so that the widths are something else.
    """
    if sum(widths) > MOST_DIMENSIONS:
        raise HwmError(f"{', '.join(keys)} are said to have {' and '.join(map(str, widths))} numbers a step")
    short = [key.rsplit("/", 1)[-1] for key in keys]
    short = short if len(set(short)) == len(short) else list(keys)
    each = zip(short, widths, strict=True)
    return tuple(name if width == 1 else f"{name}_{i}" for name, width in each for i in range(width))


def choose(what: str, wanted: str, there: Sequence[str], path: Path, option: str) -> str:
    """One of several by name, or the only one.

    Raises:
        HwmError: there are several and none is named, or there is none of that name; the message lists them.
    """
    listed = ", ".join(there) or "none"
    if wanted:
        found = [t for t in there if t == wanted] or [t for t in there if re.split(r"[./]", t)[-1] == wanted]
        if len(found) == 1:
            return found[0]
        raise HwmError(f"{path} has no {what} {wanted!r}; there are: {listed}")
    if len(there) != 1:
        raise HwmError(f"{path} has {len(there)} {what}s ({listed}): name one with {option}")
    return there[0]


def choose_cameras(wanted: Sequence[str], there: Sequence[str], path: Path) -> tuple[str, ...]:
    """The cameras of these names, in their order, or the only one; raises as `choose` does."""
    found = tuple(choose("camera", name, there, path, "--camera") for name in wanted or ("",))
    if len(set(found)) < len(found):
        raise HwmError(f"--camera {' '.join(wanted)}: a camera is named twice")
    return found


def view_names(cameras: Sequence[str]) -> tuple[str, ...]:
    """What several chosen cameras are called as views: the last part of their names where that tells them apart."""
    if len(cameras) < 2:
        return ()
    short = [re.split(r"[./]", camera)[-1] for camera in cameras]
    return tuple(short if len(set(short)) == len(short) else map(as_id, cameras))


def told(cameras: Sequence[str], there: Sequence[str]) -> str:
    """Which cameras were chosen of those that there are, in words."""
    return f"camera{'s' * (len(cameras) > 1)} {', '.join(cameras)} of {', '.join(there)}"


def seen_by(cameras: Sequence[str], frames: Callable[[str], Frames]) -> Frames:
    """The frames of an episode from those that each of the chosen cameras saw."""
    views = view_names(cameras)
    return film(views, {view: frames(camera) for view, camera in zip(views or ("",), cameras, strict=True)})


def as_id(name: str) -> str:
    """A name that a folder can have."""
    return re.sub(r"[/\\\0]+", "__", name).lstrip(".") or "episode"
