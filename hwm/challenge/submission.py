"""The folder of a submission: written file by file, resumed after a kill, looked over, packed.

OUT/about.json     which track, which samples, and with what they were made: what a resumed command must repeat
OUT/scores.jsonl   a line of figures for each sample whose truth is known
OUT/README.txt     who submits
OUT/ID.npz         the samples of the compression track, or ID.png, those of the sampling track
OUT/submission.zip these files and README.txt, side by side, if asked for
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwm.challenge.formats import FORMATS, Format, readme_problems
from hwm.challenge.formats import Sender as Sender
from hwm.config import from_json, to_json
from hwm.errors import HwmError, unknown
from hwm.evaluate.uncertainty import estimate
from hwm.files import listed, write_atomically
from hwm.progress import track as shown

ABOUT, SCORES, README, ZIP = "about.json", "scores.jsonl", "README.txt", "submission.zip"


class Problem(NamedTuple):
    """Something wrong with a file of a submission."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass
class Submission:
    """A folder of samples of one track.

    Args:
        folder: a new one, or one that was begun with the same settings.
        track: "compression" or "sampling".
        form: what its files have to be.
        names: the samples, by the names of their files.
        settings: all that the files depend on.

    Raises:
        HwmError: the folder was begun with other settings, or holds something else.
    """

    folder: Path
    track: str
    form: Format
    names: Sequence[str]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        about = {
            "track": self.track,
            "format": to_json(self.form),
            "settings": to_json(self.settings),
            "samples": list(self.names),
        }
        known = read_about(self.folder)
        if known is None:
            if self.folder.exists() and (not self.folder.is_dir() or listed(self.folder)):
                raise HwmError(f"{self.folder} holds something else already; choose another --out")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / ABOUT, json.dumps(about, indent=1).encode())
        elif differ := list(_differences(known, json.loads(json.dumps(about)))):
            raise HwmError(
                f"{self.folder} was begun with other settings ({'; '.join(differ)}): repeat them to go on, or choose "
                "another --out"
            )

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{self.form.suffix}"

    def todo(self, scored: bool) -> list[str]:
        """Samples whose file is not there or not whole, or whose figures are missing where they are wanted."""
        have = self.scores() if scored else dict.fromkeys(self.names)
        there = [name for name in self.names if name in have and self.path(name).exists()]
        whole = {name for name in shown(there, len(there), "looking over") if not self.form.problems(self.path(name))}
        return [name for name in self.names if name not in whole]

    def check_room(self, size: int) -> None:
        """Raise `HwmError` where the disk has no room for so many bytes."""
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise HwmError(
                f"{self.folder} has room for {free / 1e9:.1f} GB, the files to write take {size / 1e9:.1f}: choose "
                "another --out, or fewer --clips"
            )

    def add(self, name: str, data: bytes, figures: dict[str, Any] | None = None) -> None:
        """Write a sample's file, whole or not at all, and then its figures.

        Raises:
            HwmError: the disk is full.
        """
        try:
            write_atomically(self.path(name), data)
            if figures is not None:
                with (self.folder / SCORES).open("a", encoding="utf-8") as file:
                    # a line that a kill cut off ends here
                    file.write("\n" + json.dumps({"sample": name, **figures}) + "\n")
        except OSError as error:
            raise HwmError(
                f"{self.path(name)} cannot be written: {error}. The same command goes on once that is mended"
            ) from error

    def scores(self) -> dict[str, dict[str, Any]]:
        """The figures that were written for each sample; a line that a kill cut off is left out."""
        found = {}
        path = self.folder / SCORES
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                figures = json.loads(line)
                found[figures.pop("sample")] = figures
            except (ValueError, KeyError, AttributeError, TypeError):
                continue
        return found

    def sign(self, sender: Sender) -> None:
        write_atomically(self.folder / README, sender.text().encode())

    def pack(self) -> Path:
        """All samples and the README in one flat archive, which is there whole or not at all."""
        final, new = self.folder / ZIP, self.folder / f".{ZIP}.{os.getpid()}.new"
        try:
            with zipfile.ZipFile(new, "w") as archive:
                for file in shown(
                    [self.folder / README, *map(self.path, self.names)], len(self.names) + 1, "packing", unit="files"
                ):
                    archive.write(file, file.name)
            os.replace(new, final)
        finally:
            new.unlink(missing_ok=True)
        return final


def summary(values_N: np.ndarray, episodes: Sequence[str]) -> dict[str, Any]:
    """A figure of every sample as its mean, the standard error of that, and how many.

    Args:
        episodes: (N,) which episode each sample is from, by which the error is clustered; of one there is none.
    """
    found = estimate(values_N, episodes)
    return {
        "mean": found.mean,
        "standard_error": found.known_error,
        "clips": len(values_N),
        "episodes": found.episodes,
    }


def _differences(known: dict[str, Any], mine: dict[str, Any]) -> Any:
    """What two descriptions of a submission disagree in, in words."""
    for key in ("track", "format"):
        if known.get(key) != mine[key]:
            yield f"{key}: {known.get(key)}, now {mine[key]}"
    old = {"dtype": "float32"} | (known.get("settings") or {})  # which stood nowhere while there was no other
    for key, value in mine["settings"].items():
        if old.get(key) != value:
            yield f"{key}: {old.get(key)!r}, now {value!r}"
    if known.get("samples") != mine["samples"]:
        yield f"{len(known.get('samples') or ())} samples, now {len(mine['samples'])} or others"


def read_about(folder: Path) -> dict[str, Any] | None:
    """What a folder says of itself; None where it says nothing."""
    path = folder / ABOUT
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_bytes())
        if isinstance(about, dict) and about["track"] in FORMATS:
            return about
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise HwmError(f"{path} is not the description of a submission: remove it, or choose another folder")


def validate(folder: str | Path, track: str = "", samples: int | None = None) -> list[Problem]:
    """Everything that is wrong with a submission, whoever wrote it; an empty list where nothing is.

    A folder that was written here says itself what has to be in it. Of any other, the files have to be those of the
    challenge: 450 .npz files or 250 .png files, of any names.

    Args:
        track: "compression" or "sampling"; by default what the folder says, else what its files tell.
        samples: how many there have to be; by default what the folder says, else the challenge's number.

    Raises:
        HwmError: there is no such folder or track, or nothing in it that tells the track.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HwmError(f"there is no folder {folder} to look over")
    about = read_about(folder) or {}
    track = track or about.get("track", "") or _guess(folder)
    if track not in FORMATS:
        raise unknown("track", track, FORMATS)
    own = about.get("format") if about.get("track") == track else None
    form: Format = from_json(FORMATS[track], own) if own else FORMATS[track]()
    names = list(about["samples"]) if own else None
    problems = [Problem(README, what) for what in readme_problems(folder / README)]
    there = [file.stem for file in listed(folder, f"*{form.suffix}")]
    want = samples if samples is not None else len(names) if names is not None else form.samples
    if names is not None and samples is None:
        problems += [Problem(f"{name}{form.suffix}", "expected the file, found none") for name in names
                     if not (folder / f"{name}{form.suffix}").exists()]  # fmt: skip
        problems += [Problem(f"{name}{form.suffix}", "expected no such sample, found the file")
                     for name in sorted(set(there) - set(names))]  # fmt: skip
    elif len(there) != want:
        problems.append(Problem(str(folder), f"expected {want:,} {form.suffix} files, found {len(there):,}"))
    check: Callable[[str], list[str]] = lambda name: form.problems(folder / f"{name}{form.suffix}")  # noqa: E731
    for name in shown(there, len(there), "looking over", unit="files"):
        problems += [Problem(f"{name}{form.suffix}", what) for what in check(name)]
    return problems


def _guess(folder: Path) -> str:
    for track, form in FORMATS.items():
        if listed(folder, f"*{form.suffix}"):
            return track
    kinds = " nor ".join(form.suffix for form in FORMATS.values())
    raise HwmError(f"{folder} holds neither {kinds} files: it is no submission, or say its --track")
