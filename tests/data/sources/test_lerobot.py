"""LeRobot in and out: what lerobot wrote is read, what is written lerobot reads, and both ways lose nothing."""

from __future__ import annotations

import io
import json
import shutil
import sys
import types
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hwm.cli import main
from hwm.data.lerobot_write import write_lerobot
from hwm.data.sources import LeRobot, SourceOptions, open_source
from hwm.data.sources.decoded import Decoded
from hwm.data.sources.views import Cropped
from hwm.data.store import EpisodeError
from hwm.encode.episodes import encode
from hwm.errors import HwmError
from hwm.pictures.video import write_video
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_frames, make_store

HERE = Path(__file__).parent / "lerobot"
FRONT = SourceOptions(camera=("front",))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(HERE, tmp_path / "toy")
    return tmp_path / "toy"


def write_v21(
    folder: Path, lengths: Iterable[int] = (6, 4), fps: int = 10, image: bool = False, **info: object
) -> dict[int, np.ndarray]:
    """A data set in the layout before 3.0, with pictures in the rows or as video; returns each episode's actions."""
    rng, taken, episodes = np.random.default_rng(3), {}, []
    (folder / "meta").mkdir(parents=True)
    for e, n in enumerate(lengths):
        taken[e] = rng.normal(size=(n, 2)).astype(np.float32)
        columns = {
            "action": pa.array(list(taken[e])),
            "timestamp": pa.array((np.arange(n) / fps).astype(np.float32)),
            "episode_index": pa.array([e] * n),
        }
        frames = make_frames(n, seed=e)
        if image:
            columns["observation.image"] = pa.array([{"bytes": png(f), "path": None} for f in frames])
        else:
            video = folder / f"videos/chunk-000/observation.image/episode_{e:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            write_video(video, frames, fps)
        rows = folder / f"data/chunk-000/episode_{e:06d}.parquet"
        rows.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), rows)
        episodes.append({"episode_index": e, "tasks": [f"task {e}"], "length": n})
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(e) + "\n" for e in episodes), encoding="utf-8")
    about = {
        "codebase_version": "v2.1", "robot_type": "arm", "fps": fps, "chunks_size": 1000,
        "splits": {"train": "0:1", "val": "1:2"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.image": {"dtype": "image" if image else "video", "shape": [32, 32, 3]},
            "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["pan", "tilt"]}},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    }  # fmt: skip
    (folder / "meta/info.json").write_text(json.dumps({**about, **info}), encoding="utf-8")
    return taken


def png(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("camera", ["front", "observation.images.wrist"])
@pytest.mark.parametrize("folder", [HERE, HERE.with_name("lerobot_v21")], ids=lambda folder: folder.name)
def test_what_lerobot_wrote_is_read(folder: Path, camera: str) -> None:
    expected = np.load(folder / "expected.npz")
    source = open_source(folder, SourceOptions(camera=(camera,)))
    assert isinstance(source, LeRobot)
    assert (source.header.embodiment, source.header.action_names) == ("toy_arm", ("x", "y", "grip"))
    assert (source.header.fps, source.steps, len(source)) == (10, 21, 3)
    for i, episode in enumerate(source):
        taken, truth = expected[f"{i}/action"], expected[f"{i}/frames"].astype(int)
        truth = truth if camera == "front" else 255 - truth
        assert np.array_equal(episode.actions[1:, 0], taken[:-1]), "an action leads to the frame after it"
        assert np.array_equal(episode.actions[0, 0], taken[0])
        assert episode.text == f"task {i % 2}"
        frames = np.stack(list(episode.frames())).astype(int)
        assert frames.shape == truth.shape
        assert 3 * abs(frames - truth).mean() < abs(frames[1:] - truth[:-1]).mean(), "in their order"
        assert np.array_equal(np.stack(list(episode.frames(2, 1, 4))), frames[1:4:2])


def test_other_keys_may_be_the_actions() -> None:
    expected = np.load(HERE / "expected.npz")
    source = open_source(HERE, SourceOptions(camera=("front",), action_keys=("observation.state", "action")))
    assert source.header.action_names == ("a", "b", "c", "x", "y", "grip")
    taken = expected["1/action"]
    assert np.array_equal(source[1].actions[1:, 0], np.concatenate([taken + 1, taken], 1)[:-1])


@pytest.mark.parametrize("image", [False, True])
def test_the_layout_before_3(tmp_path: Path, image: bool) -> None:
    taken = write_v21(tmp_path / "d", image=image)
    source = open_source(tmp_path / "d")
    assert source.header.action_names == ("pan", "tilt")
    assert [(e.id, e.text, e.steps) for e in source] == [
        ("episode_000000", "task 0", 6),
        ("episode_000001", "task 1", 4),
    ]
    for i, episode in enumerate(source):
        assert np.array_equal(episode.actions[1:, 0], taken[i][:-1])
        frames, truth = np.stack(list(episode.frames())).astype(int), np.stack(make_frames(episode.steps, seed=i))
        assert abs(frames - truth).mean() < (1e-9 if image else 4)
        assert np.array_equal(np.stack(list(episode.frames(2, 1, 4))), frames[1:4:2])
    assert [e.id for e in open_source(tmp_path / "d", SourceOptions(split="val"))] == ["episode_000001"]


@pytest.mark.parametrize("per_step", [1, 2])
def test_out_and_in_again(tmp_path: Path, per_step: int) -> None:
    recording = make_store(
        tmp_path / "r", [14, 9, 21], latent=None, tokenizer="", video=True, actions_per_step=per_step, prefix="take "
    )
    source = open_source(recording.path)
    write_lerobot(source, tmp_path / "out")
    back = open_source(tmp_path / "out")
    assert back.header == recording.header
    assert list(back.ids) == ["take 0", "take 1", "take 2"]
    for mine, other in zip(back, source, strict=True):
        assert np.array_equal(mine.actions[1:], other.actions[1:]), "all that lead from one frame to another"
        a, b = (np.stack(list(e.frames())).astype(int) for e in (mine, other))
        assert a.shape == b.shape
        assert abs(a - b).mean() < 2
    again = encode(back, Pixels((32, 32)), tmp_path / "again")
    once = encode(source, Pixels((32, 32)), tmp_path / "once")
    assert again.bounds[0].tolist() == once.bounds[0].tolist()
    assert np.array_equal(again.segments, once.segments)


def test_many_episodes_fill_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwm.data import lerobot_write

    monkeypatch.setattr(lerobot_write, "FILE_PIXELS", 6 * 32 * 32)
    monkeypatch.setattr(lerobot_write, "DATA_MB", 0)
    recording = make_store(tmp_path / "r", [5, 4, 6], latent=None, tokenizer="", video=True)
    write_lerobot(open_source(recording.path), tmp_path / "out")
    assert len(list((tmp_path / "out/videos").rglob("*.mp4"))) == 2
    assert len(list((tmp_path / "out/data").rglob("*.parquet"))) == 3
    for mine, other in zip(open_source(tmp_path / "out"), open_source(recording.path), strict=True):
        assert np.array_equal(mine.actions[1:], other.actions[1:])
        assert len(list(mine.frames())) == mine.steps


def test_pictures_of_odd_sides_lose_a_row_or_a_column(tmp_path: Path) -> None:
    recording = make_store(tmp_path / "r", [5], latent=None, tokenizer="", video=True)
    write_lerobot(Cropped(open_source(recording.path), (31, 32)), tmp_path / "out")
    (frame, *_) = open_source(tmp_path / "out")[0].frames()
    assert frame.shape == (30, 32, 3)


def test_latents_without_video_are_decoded(tmp_path: Path) -> None:
    recording = make_store(tmp_path / "r", [5, 4], latent=None, tokenizer="", video=True)
    pixels = encode(recording.path, Pixels((32, 32)), tmp_path / "pixels")
    assert not pixels.has_video
    assert main(["export", "lerobot", str(pixels.path), "--out", str(tmp_path / "out")]) == 0
    for mine, other in zip(open_source(tmp_path / "out"), open_source(recording.path), strict=True):
        assert np.array_equal(mine.actions[1:], other.actions[1:])
        a, b = (np.stack(list(e.frames())).astype(int) for e in (mine, other))
        assert abs(a - b).mean() < 2


def test_latents_of_another_tokenizer_are_not_decoded(tmp_path: Path) -> None:
    recording = make_store(tmp_path / "r", [5], latent=None, tokenizer="", video=True)
    pixels = encode(recording.path, Pixels((32, 32)), tmp_path / "pixels")
    with pytest.raises(HwmError, match="holds latents of pixels-32x32, not of pixels-16x16"):
        Decoded(pixels, Pixels((16, 16)))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    recording = make_store(tmp_path / "r", [5, 4], latent=None, tokenizer="", video=True)
    recording.video(recording.episodes[1]).write_bytes(b"no video")
    with pytest.raises(EpisodeError, match="episode 'e1'"):
        write_lerobot(open_source(recording.path), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]
    with pytest.raises(HwmError, match="is there already"):
        write_lerobot(open_source(recording.path), tmp_path / "r")


def test_lerobot_reads_what_was_written(tmp_path: Path) -> None:
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs lerobot", exc_type=ImportError)
    recording = make_store(tmp_path / "r", [14, 9], latent=None, tokenizer="", video=True, actions_per_step=2)
    write_lerobot(open_source(recording.path), tmp_path / "out")
    read = module.LeRobotDataset("toy/recording", root=tmp_path / "out")
    assert (read.num_episodes, read.num_frames, read.fps) == (2, 23, 10)
    assert read.meta.robot_type == "toy"
    actions = np.asarray(recording.actions).reshape(23, -1)
    frames = np.concatenate([np.stack(list(recording.frames(e))) for e in recording.episodes]).astype(int)
    for i in range(23):
        row = read[i]
        assert np.array_equal(row["action"].numpy(), actions[i if i in (13, 22) else i + 1])
        assert abs(row["observation.images.camera"].permute(1, 2, 0).numpy() * 255 - frames[i]).mean() < 3


# ---------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"2 cameras \(observation.images.front, observation.images.wrist\): name one with --camera"),
        ({"camera": "left"}, "no camera 'left'"),
        ({"camera": "front", "action_keys": ("torque",)}, "has no torque; there are: observation.state, action"),
        ({"camera": "front", "split": "test"}, "no split 'test'; there are: train"),
    ],
)
def test_what_is_not_said_is_asked_for(options: dict, message: str) -> None:
    with pytest.raises(HwmError, match=message):
        open_source(HERE, SourceOptions(**options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "of version v1.6; those from v2.0 to v3 are read"),
        ({"fps": None}, "does not say how many steps a second it has: give --source-fps"),
    ],
)
def test_descriptions_that_are_none(copy: Path, change: dict, message: str) -> None:
    info = json.loads((copy / "meta/info.json").read_text(encoding="utf-8"))
    info.update(change)
    (copy / "meta/info.json").write_text(json.dumps({k: v for k, v in info.items() if v is not None}), encoding="utf-8")
    with pytest.raises(HwmError, match=message):
        open_source(copy, FRONT)


def test_a_wrong_rate_is_noticed(copy: Path) -> None:
    info = json.loads((copy / "meta/info.json").read_text(encoding="utf-8"))
    (copy / "meta/info.json").write_text(json.dumps({**info, "fps": 30}), encoding="utf-8")
    with pytest.raises(EpisodeError, match="time stamps of 10 steps a second, where 30 are stated"):
        open_source(copy, FRONT)[0]
    (copy / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(EpisodeError, match="time stamps of 10 steps a second, where 5 are stated"):
        open_source(copy, SourceOptions(camera=("front",), source_fps=5.0))[0]


def test_missing_and_cut_files_are_named(copy: Path, tmp_path: Path) -> None:
    video = copy / "videos/observation.images.front/chunk-000/file-000.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(EpisodeError, match=r"episode 'episode_00000\d'.*file-000.mp4"):
        encode(open_source(copy, FRONT), Pixels((48, 64)), tmp_path / "out")
    video.unlink()
    with pytest.raises(EpisodeError, match=r"episode 'episode_00000\d'.*there is no video"):
        encode(open_source(copy, FRONT), Pixels((48, 64)), tmp_path / "out")
    next(copy.glob("data/*/*.parquet")).unlink()
    with pytest.raises(EpisodeError, match=r"there is no .*file-000.parquet"):
        open_source(copy, FRONT)[0]
    shutil.rmtree(copy / "meta/episodes")
    with pytest.raises(HwmError, match="lacks meta/episodes"):
        open_source(copy, FRONT)


def test_a_video_of_another_length_is_noticed_before_3(tmp_path: Path) -> None:
    write_v21(tmp_path / "d")
    write_video(tmp_path / "d/videos/chunk-000/observation.image/episode_000001.mp4", make_frames(7), 10)
    with pytest.raises(
        EpisodeError,
        match=r"'episode_000001': episode_000001.mp4 of observation.image shows 7 frames, its",
    ):
        open_source(tmp_path / "d")[1]


# ---------------------------------------------------------------------- by name
def test_a_name_that_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    with pytest.raises(HwmError, match="there is no nothing-here: give a folder, a file, or a LeRobot data set"):
        open_source("nothing-here")
    shutil.copytree(HERE, tmp_path / "somebody" / "arm")
    assert len(open_source("somebody/arm", FRONT)) == 3


def test_of_a_data_set_on_the_hub_one_camera_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def snapshot_download(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        assert (name, repo_type) == ("somebody/arm", "dataset")
        asked.append(allow_patterns)
        for file in HERE.rglob("*"):
            path = file.relative_to(HERE)
            if file.is_file() and any(path.match(p) or path.is_relative_to(p.rstrip("/*")) for p in allow_patterns):
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, tmp_path / path)
        return str(tmp_path)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "none"))
    assert len(list(open_source("somebody/arm", SourceOptions(camera=("wrist",)))[2].frames())) == 9
    assert asked[0] == ["meta/*"]
    assert "videos/observation.images.wrist/*" in asked[1]
    assert not (tmp_path / "videos/observation.images.front").exists()

    def offline(*_: object, **__: object) -> str:
        raise OSError("no route")

    hub.snapshot_download = offline  # type: ignore[attr-defined]
    with pytest.raises(HwmError, match="somebody/arm cannot be fetched from the hub: no route"):
        open_source("somebody/arm", FRONT)


@pytest.mark.parametrize("folder", [HERE, HERE.with_name("lerobot_v21")], ids=lambda folder: folder.name)
def test_several_cameras_in_step(folder: Path) -> None:
    source = open_source(folder, SourceOptions(camera=("wrist", "front")))
    assert source.header.views == ("wrist", "front")
    assert source.notes == ("cameras observation.images.wrist, observation.images.front of "
                            "observation.images.front, observation.images.wrist",)  # fmt: skip
    each = [open_source(folder, SourceOptions(camera=(camera,))) for camera in ("wrist", "front")]
    for i, episode in enumerate(source):
        films = [np.stack(list(one[i].frames())) for one in each]
        assert np.array_equal(np.stack(list(episode.frames())), np.concatenate(films, 1))
        assert np.array_equal(np.stack(list(episode.frames(3, 1))), np.concatenate(films, 1)[1::3])


def test_a_camera_that_lacks_frames_is_named(tmp_path: Path) -> None:
    shutil.copytree(HERE.with_name("lerobot_v21"), tmp_path / "toy")
    video = next((tmp_path / "toy/videos").rglob("*wrist/episode_000001.mp4"))
    write_video(video, make_frames(3), 10)
    source = open_source(tmp_path / "toy", SourceOptions(camera=("front", "wrist")))
    with pytest.raises(EpisodeError, match=r"of observation.images.wrist shows 3 frames, its actions are of"):
        source[1]
