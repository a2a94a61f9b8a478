"""Encoding data of all kinds: what is bad is named, left out only if asked, counted, and shifts nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwm.cli import main
from hwm.data.merge import merge
from hwm.data.sources import SourceOptions, open_source
from hwm.data.sources.base import Episode
from hwm.data.store import EpisodeError, Store, StoreError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.errors import HwmError
from hwm.pictures.video import read_video
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_store
from tests.data.sources.test_folder import make_folder
from tests.data.sources.test_lerobot import write_v21
from tests.data.sources.test_views import Toy

SMALL = Pixels((6, 8))


class Odd(Toy):
    """Five episodes of nine frames, of which one is bad in a way of choice."""

    def __init__(self, bad: str, which: int = 2) -> None:
        super().__init__((9,) * 5)
        self.bad, self.which = bad, which

    def read(self, number: int) -> Episode:
        episode = super().read(number)
        if number != self.which:
            return episode
        actions, frames = episode.actions.copy(), list(episode.frames())
        if self.bad == "one frame":
            return replace(episode, actions=actions[:1])
        if self.bad == "no action":
            raise EpisodeError("action is missing")
        if self.bad == "width":
            return replace(episode, actions=actions[..., :3])
        if self.bad == "nan":
            actions[4, 0, 1] = np.nan
            return replace(episode, actions=actions)
        if self.bad == "rate":
            return replace(episode, times=np.arange(9) / 15)

        def shown(every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
            for i, frame in list(enumerate(frames))[start:stop:every]:
                if self.bad == "decode" and i == 5:
                    raise HwmError("cannot read the video x.mp4: invalid data")
                if self.bad == "short" and i == 5:
                    return
                yield frame[:4] if self.bad == "size" and i == 5 else frame

        return replace(episode, frames=shown)


BAD = {
    "one frame": "'e2' has 1 frames: no action leads from one to another",
    "no action": "'e2': action is missing",
    "width": r"'e2' has actions of shape \(9, 1, 3\), where those of 'toy' are \(N, 1, 4\)",
    "nan": "'e2': action 'left_hand' is nan at step 4",
    "rate": "'e2' has time stamps of 15 steps a second, where 30 are stated",
    "decode": "'e2': cannot read the video x.mp4",
    "short": r"the video of 'e2' shows \d steps, its actions are of \d",
    "size": r"'e2': frame 5 has shape \(4, 8, 3\), the first had \(6, 8, 3\)",
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("clip", [0, 4])
def test_a_bad_episode_is_named_or_left_out(tmp_path: Path, bad: str, clip: int) -> None:
    with pytest.raises(EpisodeError, match=BAD[bad]):
        encode(Odd(bad), SMALL, tmp_path / "stopped", EncodeConfig(clip=clip))
    with pytest.raises(StoreError, match="not finished"):
        Store(tmp_path / "stopped")
    store = encode(Odd(bad), SMALL, tmp_path / "out", EncodeConfig(clip=clip, skip_bad=True))
    assert list(store.skipped) == ["e2"]
    assert any("e2" in note for note in store.notes)
    whole = encode(Toy((9,) * 5), SMALL, tmp_path / "whole", EncodeConfig(clip=clip))
    kept = [e for e in whole.episodes if not e.id.startswith("e2")]
    assert [(e.id, e.steps) for e in store.episodes] == [(e.id, e.steps) for e in kept]
    assert store.segments.tolist() == np.repeat(np.arange(len(kept)), [e.steps for e in kept]).tolist()
    assert store.latents is not None
    assert whole.latents is not None
    for mine, other in zip(store.episodes, kept, strict=True):
        assert np.array_equal(store.latents[mine.start : mine.stop], whole.latents[other.start : other.stop])
        assert np.array_equal(store.actions[mine.start : mine.stop], whole.actions[other.start : other.stop])
    store.verify()


@pytest.mark.parametrize("bad", ["nan", "decode"])
def test_what_stopped_goes_on_without_the_bad_one(tmp_path: Path, bad: str) -> None:
    with pytest.raises(EpisodeError):
        encode(Odd(bad), SMALL, tmp_path / "out")
    store = encode(Odd(bad), SMALL, tmp_path / "out", EncodeConfig(skip_bad=True))
    assert [e.id for e in store.episodes] == ["e0", "e1", "e3", "e4"]


def test_nothing_but_bad_episodes_is_an_error(tmp_path: Path) -> None:
    source = Odd("nan", 0)
    source.ids, source.lengths = ["e0"], (9,)
    with pytest.raises(HwmError, match=r"none of 1 episodes can be encoded. .*'e0': action 'left_hand' is nan"):
        encode(source, SMALL, tmp_path / "out", EncodeConfig(skip_bad=True))


def test_two_episodes_of_one_name_are_refused(tmp_path: Path) -> None:
    source = Toy()
    source.ids = ["e", "e"]
    with pytest.raises(HwmError, match="several episodes are called 'e'"):
        encode(source, SMALL, tmp_path / "out")


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError):
        encode(Odd("nan"), SMALL, tmp_path / "out", EncodeConfig(clip=4))
    for settings in ({"clip": 8}, {"clip": 4, "crop": True}):
        with pytest.raises(StoreError, match="begun with other settings"):
            encode(Odd("nan"), SMALL, tmp_path / "out", EncodeConfig(skip_bad=True, **settings))  # type: ignore[arg-type]


def test_a_finished_part_is_left_as_it_is(tmp_path: Path) -> None:
    once = encode(Odd("nan"), SMALL, tmp_path / "out", EncodeConfig(skip_bad=True, shard=0, shards=2))
    before = (tmp_path / "out/meta.json").stat().st_mtime_ns
    (tmp_path / "out/.partial/e0").mkdir(parents=True)  # as a kill in the last moment leaves it
    again = encode(Odd("nan"), SMALL, tmp_path / "out", EncodeConfig(skip_bad=True, shard=0, shards=2))
    assert (tmp_path / "out/meta.json").stat().st_mtime_ns == before
    assert again.episodes == once.episodes
    assert not (tmp_path / "out/.partial").exists()
    with pytest.raises(StoreError, match=r"is complete, .* other settings \(shard: 0, now 1\)"):
        encode(Odd("nan"), SMALL, tmp_path / "out", EncodeConfig(skip_bad=True, shard=1, shards=2))


def test_damage_while_it_was_written_is_found(tmp_path: Path) -> None:
    class Damaging(Pixels):
        def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
            done = tmp_path / "out/.partial/e0/latents.bin"
            if done.exists():
                data = bytearray(done.read_bytes())
                data[3] ^= 255
                done.write_bytes(data)
            return super().encode(video_BFCHW)

    with pytest.raises(StoreError, match="episode 'e0' is damaged: remove the folder"):
        encode(Toy((5, 5)), Damaging((6, 8)), tmp_path / "out")


def test_video_is_kept_of_sources_without_files(tmp_path: Path) -> None:
    write_v21(tmp_path / "d")
    store = encode(tmp_path / "d", Pixels((32, 32)), tmp_path / "out", EncodeConfig(keep_video=True, every=2))
    for episode in store.episodes:
        film = np.stack(list(read_video(store.video(episode), int(episode.info["frames_per_step"]))))
        assert store.latents is not None
        latents = np.asarray(store.latents[episode.start : episode.stop]).transpose(0, 2, 3, 1)
        assert abs(film.astype(int) - latents).mean() < 3
        assert episode.info["text"] == f"task {episode.info['episode_index']}"


def test_cropping_keeps_proportions(tmp_path: Path) -> None:
    write_v21(tmp_path / "d", image=True)
    wide = encode(tmp_path / "d", Pixels((16, 32)), tmp_path / "wide", EncodeConfig(crop=True, keep_video=True))
    full = encode(tmp_path / "d", Pixels((32, 32)), tmp_path / "full")
    assert wide.latents is not None
    assert full.latents is not None
    assert np.array_equal(wide.latents, full.latents[:, :, 8:24])
    assert next(iter(wide.frames(wide.episodes[0]))).shape == (16, 32, 3)


def test_a_film_that_is_made_anew_has_one_frame_a_step(tmp_path: Path) -> None:
    recording = make_store(tmp_path / "r", [12], latent=None, tokenizer="", video=True, fps=30.0)
    kept = encode(recording.path, Pixels((32, 32)), tmp_path / "kept", EncodeConfig(every=2, keep_video=True))
    assert kept.episodes[0].info["frames_per_step"] == 2
    for name, options in (("crop", {"crop": True}), ("copy", {})):
        store = encode(kept.path, Pixels((32, 32)), tmp_path / name, EncodeConfig(every=2, keep_video=True, **options))  # type: ignore[arg-type]
        per_step = int(store.episodes[0].info["frames_per_step"])
        assert per_step == (2 if options else 4)
        film = np.stack(list(store.frames(store.episodes[0], per_step)))
        assert store.latents is not None
        assert abs(film.astype(int) - store.latents[:].transpose(0, 2, 3, 1)).mean() < 3


# ---------------------------------------------------------------------- parts
def parts_of(tmp_path: Path, count: int, without: tuple[int, ...] = ()) -> list[Path]:
    recording = make_store(tmp_path / "r", [4, 3, 5, 4, 3], latent=None, tokenizer="", video=True)
    paths = [tmp_path / f"part_{i}" for i in range(count)]
    for i, path in enumerate(paths):
        if i not in without:
            encode(recording.path, Pixels((32, 32)), path, EncodeConfig(shard=i, shards=count))
    return paths


def test_missing_parts_are_named_and_done_without_if_asked(tmp_path: Path) -> None:
    paths = parts_of(tmp_path, 4, without=(1, 3))
    there = [p for p in paths if p.exists()]
    with pytest.raises(StoreError, match="parts 1, 3 are missing: encode them, or do without them with --skip-bad"):
        merge(there, tmp_path / "m")
    with pytest.raises(HwmError, match="part_1"):
        merge(paths, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    merged = merge(paths, tmp_path / "m", skip_bad=True)
    assert [e.id for e in merged.episodes] == ["e0", "e2", "e4"]
    assert merged.missing == (1, 3)
    assert sorted(merged.skipped) == [str(paths[1]), str(paths[3])]
    assert any("1, 3" in note for note in merged.notes)
    with pytest.raises(StoreError, match="parts 1, 3 are missing"):
        merge([merged.path], tmp_path / "again")


def test_all_parts_make_the_whole(tmp_path: Path) -> None:
    paths = parts_of(tmp_path, 3)
    assert [Store(p).part for p in paths] == [(0, 3), (1, 3), (2, 3)]
    merged = merge(reversed(paths), tmp_path / "m")
    assert [e.id for e in merged.episodes] == [f"e{i}" for i in range(5)]
    assert (merged.part, merged.missing, dict(merged.skipped)) == (None, (), {})


def test_unfinished_damaged_and_other_stores_are_left_out_if_asked(tmp_path: Path) -> None:
    stores = [make_store(tmp_path / name, [3, 4], prefix=name) for name in "abcd"]
    other = make_store(tmp_path / "other", [3], prefix="o", tokenizer="another@1")
    latents = tmp_path / "b/latents.bin"
    latents.write_bytes(bytes([latents.read_bytes()[0] ^ 1]) + latents.read_bytes()[1:])
    (tmp_path / "c/meta.json").unlink()
    paths = [other.path, *(s.path for s in stores), tmp_path / "absent"]
    for path, message in [(paths[2], "checksum"), (paths[3], "is not a store"), (paths[5], "there is no store")]:
        with pytest.raises(HwmError, match=message):
            merge([paths[1], path], tmp_path / "m")
    with pytest.raises(StoreError, match="tokenizer: 'test' against 'another@1'"):
        merge([paths[0], paths[1]], tmp_path / "m")
    merged = merge(paths, tmp_path / "m", skip_bad=True)
    assert [e.id for e in merged.episodes] == ["a0", "a1", "d0", "d1"]
    assert sorted(Path(p).name for p in merged.skipped) == ["absent", "b", "c", "other"]


# ---------------------------------------------------------------------- commands
def test_commands_say_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "lab", (6, 4, 5))
    (tmp_path / "lab/take_1.mp4").write_bytes(b"nothing")
    base = ["encode", str(tmp_path / "lab"), "--tokenizer", "pixels-16x16", "--shards", "2"]
    assert main([*base, "--shard", "1", "--out", str(tmp_path / "p1")]) == 2
    assert "episode 'take_1'" in capsys.readouterr().err
    assert main([*base, "--shard", "1", "--out", str(tmp_path / "p1"), "--skip-bad"]) == 2
    assert "none of 1 episodes can be encoded" in capsys.readouterr().err
    assert main([*base, "--shard", "0", "--out", str(tmp_path / "p0"), "--skip-bad"]) == 0
    assert "left out" not in capsys.readouterr().out
    parts = [str(tmp_path / "p0"), str(tmp_path / "p1")]
    assert main(["merge", *parts, "--out", str(tmp_path / "m"), "--skip-bad"]) == 0
    out = capsys.readouterr().out
    assert "left out: 1\n" in out
    assert "missing parts: 1" in out


def test_two_robots_of_one_recording(tmp_path: Path) -> None:
    names = ("LEFT_A", "LEFT_B", "RIGHT_A", "NECK", "LINEAR_VELOCITY")
    recording = make_store(
        tmp_path / "r", [12, 9], latent=None, tokenizer="", video=True, action_names=names, actions_per_step=1, fps=30.0
    )
    out = tmp_path / "arms"
    command = ["encode", str(recording.path), "--tokenizer", "pixels-16x16", "--out", str(out), "--fps", "10"]
    assert main([*command, "--actions", "LEFT_*", "RIGHT_*"]) == 2  # another robot needs another name
    assert main([*command, "--actions", "LEFT_*", "RIGHT_*", "--embodiment", "sim_arms"]) == 0
    arms = Store(out)
    assert (arms.header.embodiment, arms.header.fps, arms.header.actions_per_step) == ("sim_arms", 10, 3)
    assert arms.header.action_names == names[:3]
    whole = encode(recording.path, Pixels((16, 16)), tmp_path / "whole", EncodeConfig(every=3))
    assert np.array_equal(arms.latents, whole.latents)
    begins = arms.bounds[0]
    inner = np.setdiff1d(np.arange(arms.steps), begins)
    assert np.array_equal(arms.actions[inner], whole.actions[inner][..., :3])


def test_view_shows_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_v21(tmp_path / "d", (6, 4, 5))
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["view", str(tmp_path / "d"), "--out", str(tmp_path / "v.png")]) == 0
    assert (tmp_path / "v.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["view", str(tmp_path / "d"), "--open"]) == 0
    assert opened[0].startswith("file://")
    page = Path(opened[0].removeprefix("file://")).read_text(encoding="utf-8")
    assert "episode_000002: 5 steps" in page
    assert page.count("<svg") == 3  # an episode's charts, of its two actions
    assert all(page.count(f">{name}</text>") == 3 for name in ("pan", "tilt"))
    assert "Episodes (all)" in page
    out = capsys.readouterr().out
    assert "camera observation.image of observation.image" in out
    rows = tmp_path / "d/data/chunk-000/episode_000001.parquet"
    rows.write_bytes(b"nothing")
    assert main(["view", str(tmp_path / "d")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 episodes are shown" in out
    assert "'episode_000001'" in out
    assert main(["view", str(tmp_path / "d"), "--out", str(tmp_path / "two.html")]) == 0
    assert "Episodes (2 of 3)" in (tmp_path / "two.html").read_text(encoding="utf-8")


def test_unknown_data_is_said_to_be_unknown(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text(json.dumps({}), encoding="utf-8")
    kinds = r"\(folder, lerobot, rlds, robomimic, store, videos\)"
    with pytest.raises(HwmError, match=f"none of the known kinds of data {kinds}"):
        open_source(tmp_path)
    with pytest.raises(HwmError, match="no kind of source called 'lerobt'; did you mean lerobot"):
        open_source(tmp_path, SourceOptions(kind="lerobt"))
    store = make_store(tmp_path / "s", [4], latent=None, tokenizer="", video=True)
    with pytest.raises(HwmError, match="is a store of one camera"):
        open_source(store.path, SourceOptions(camera=("front",)))
