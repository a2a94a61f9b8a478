"""Stores and data sets in a bucket: written, read, trained on and encoded as if they were on this disk."""

from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hwm import far
from hwm.assets import STORES
from hwm.cli import main
from hwm.data.clips import Clips
from hwm.data.far import FarArray
from hwm.data.lerobot_write import write_lerobot
from hwm.data.merge import merge
from hwm.data.mixture import DataConfig, loader
from hwm.data.readers import open_store
from hwm.data.sources import open_source
from hwm.data.store import Store, StoreError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.errors import HwmError
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_store
from tests.data.onex_toys import make_v2
from tests.remote.conftest import Bucket

PIXELS = Pixels((32, 32))


def upload(bucket: Bucket, folder: Path, name: str) -> str:
    bucket.client.put(str(folder), f"bucket/{name}", recursive=True)  # type: ignore[attr-defined]
    return f"{bucket.url}/{name}"


def alike(one: Store, other: Store) -> None:
    assert (one.header, one.episodes, one.statistics) == (other.header, other.episodes, other.statistics)
    for a, b in ((one.actions, other.actions), (one.segments, other.segments), (one.latents, other.latents)):
        assert (a is None and b is None) or np.array_equal(np.asarray(a[:]), np.asarray(b[:]))  # type: ignore[index]
    for episode in one.episodes if one.has_video else ():
        assert one.video(episode).read_bytes() == other.video(episode).read_bytes()


@pytest.fixture
def recording(tmp_path: Path) -> Store:
    return make_store(tmp_path / "recording", [9, 6, 12], latent=None, tokenizer="", video=True)


def test_a_recording_in_a_bucket_is_encoded_into_another(bucket: Bucket, tmp_path: Path, recording: Store) -> None:
    source = upload(bucket, recording.path, "raw")
    config = EncodeConfig(keep_video=True, clip=4)
    want = encode(recording.path, PIXELS, tmp_path / "here", config)
    store = encode(source, PIXELS, "s3://bucket/made/train", config)
    assert isinstance(store.latents, FarArray)
    alike(store, want)
    assert store.settings["source"] == source, "and no place in a cache"
    store.verify()
    alike(open_store("s3://bucket/made/train"), want)
    made = [name for name in bucket.names() if name.startswith("made/")]
    assert made == [f"made/train/{p.relative_to(want.path)}" for p in sorted(want.path.rglob("*")) if p.is_file()]
    assert encode(source, PIXELS, "s3://bucket/made/train", config).path == store.path, "all is done already"
    assert store.settings["source"] == source, "wherever its cache is"
    assert not list((far.cache() / "staged").rglob("*.bin"))
    with pytest.raises(StoreError, match="s3://bucket/made/train is already complete"):
        merge([store.path], "s3://bucket/made/train")


def test_parts_in_a_bucket_are_merged_there(bucket: Bucket, tmp_path: Path, recording: Store) -> None:
    parts = [f"s3://bucket/part_{i}" for i in range(2)]
    for i, part in enumerate(parts):
        encode(recording.path, PIXELS, part, EncodeConfig(keep_video=True, shard=i, shards=2))
    whole = encode(recording.path, PIXELS, tmp_path / "whole", EncodeConfig(keep_video=True))
    alike(merge(parts, "s3://bucket/whole"), whole)
    bucket.client.pipe_file("bucket/part_1/actions.bin", b"x" * whole.actions[6:].nbytes)  # type: ignore[attr-defined]
    with pytest.raises(HwmError, match=r"actions\.bin"):
        merge(parts, tmp_path / "again")


def test_sending_that_was_broken_off_goes_on(
    bucket: Bucket, tmp_path: Path, recording: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    config, put, sent = EncodeConfig(keep_video=True), s3fs.S3FileSystem._put_file, list[str]()

    async def breaking(self: object, here: str, *args: object, **named: object) -> None:
        sent.append(Path(here).name)
        if len(sent) in (3, 4):
            raise PermissionError("for a test")
        await put(self, here, *args, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", breaking)
    for _ in range(2):
        with pytest.raises(HwmError, match="may not be accessed"):
            encode(recording.path, PIXELS, "s3://bucket/out", config)
        assert "out/meta.json" not in bucket.names(), "what is not whole is no store"
    store = encode(recording.path, PIXELS, "s3://bucket/out", config)
    assert sent == ["actions.bin", "latents.bin", "segments.bin", "segments.bin", "segments.bin",
                    "e0.mp4", "e1.mp4", "e2.mp4", "meta.json"]  # fmt: skip
    alike(store, encode(recording.path, PIXELS, tmp_path / "here", config))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_store_on_this_disk(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("hwm.data.far.BLOCK", 64)
    here = make_store(tmp_path / "s", [40, 31, 55])
    address = upload(bucket, here.path, "s")
    got, want = (DataConfig(stores=(str(s),), steps=3, stride=2).open() for s in (address, here.path))
    assert (got.far, want.far) == (True, False)
    assert got.spec == want.spec
    streams = (loader(mixture, seed=3, start=5, size=4, workers=workers) for mixture in (got, want))
    for one, other in islice(zip(*streams, strict=True), 9):
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.actions, other.actions)
    store = pickle.loads(pickle.dumps(got.clips[0].store))
    assert np.array_equal(store.latents[7], here.latents[7])  # type: ignore[index]


@pytest.mark.slow
def test_training_on_a_store_that_is_not_on_this_disk(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, held_out = upload(bucket, STORES["mini"], "mini"), upload(bucket, STORES["mini_heldout"], "held")
    main([
        "train", "hma_discrete_tiny", "--out", str(tmp_path / "run"), "--data.stores", train,
        "--data.val-stores", held_out, "--train.steps", "2", "--train.batch-size", "2", "--train.device", "cpu",
    ])  # fmt: skip
    assert "50,400 steps" in capsys.readouterr().out
    assert (tmp_path / "run" / "hwm.json").is_file()
    main(["view", train])
    assert "s3://bucket/mini" in capsys.readouterr().out


def test_a_video_that_vanished_and_a_store_that_is_not_there(bucket: Bucket, recording: Store) -> None:
    store = open_store(upload(bucket, recording.path, "raw"))
    bucket.client.rm_file("bucket/raw/video/e1.mp4")  # type: ignore[attr-defined]
    assert len(list(store.frames(store.episodes[0]))) == 9
    with pytest.raises(HwmError, match=r"s3://bucket/raw/video/e1\.mp4 is not there"):
        list(store.frames(store.episodes[1]))
    with pytest.raises(HwmError, match=r"s3://bucket/none is not there"):
        open_store("s3://bucket/none")


def test_a_store_that_was_written_anew_is_found(bucket: Bucket, tmp_path: Path) -> None:
    first, second = (make_store(tmp_path / str(seed), [5, 4], seed=seed) for seed in (1, 2))
    address = upload(bucket, first.path, "s")
    store = open_store(address)
    assert np.array_equal(store.latents[:3], first.latents[:3])  # type: ignore[index]
    bucket.client.rm("bucket/s", recursive=True)  # type: ignore[attr-defined]
    upload(bucket, second.path, "s")
    alike(open_store(address), second)


def test_a_lerobot_data_set_in_a_bucket_fetches_what_it_is_asked_for(
    bucket: Bucket, tmp_path: Path, recording: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwm.data.lerobot_write.FILE_PIXELS", 32 * 32 * 8)  # a video file an episode
    folder = write_lerobot(open_source(recording.path), tmp_path / "d")
    source, here = open_source(upload(bucket, folder, "d")), open_source(folder)
    videos = far.located("s3://bucket/d/videos")
    assert not videos.exists()
    assert np.array_equal(source[1].actions, here[1].actions)
    assert len(list(videos.rglob("*.mp4"))) == 1
    alike(encode("s3://bucket/d", PIXELS, tmp_path / "got"), encode(folder, PIXELS, tmp_path / "want"))


def test_a_server_that_fails_makes_no_episode_and_no_store_bad(
    bucket: Bucket, tmp_path: Path, recording: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_lerobot(open_source(recording.path), tmp_path / "d")
    source = open_source(upload(bucket, folder, "d"))
    address = upload(bucket, recording.path, "raw")

    import s3fs

    async def failing(self: object, *args: object, **named: object) -> None:
        raise ConnectionError("for a test")

    monkeypatch.setattr(s3fs.S3FileSystem, "_info", failing)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(far.FarError, match=r"s3://bucket/d/.* cannot be reached"):
        encode(source, PIXELS, tmp_path / "out", EncodeConfig(skip_bad=True))
    with pytest.raises(far.FarError, match=r"s3://bucket/raw/.* cannot be reached"):
        merge([recording.path, address], tmp_path / "merged", skip_bad=True)


def test_other_kinds_are_fetched_whole_within_the_bound(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_v2(tmp_path / "v2", [[40, 20], [17]])
    address, here = upload(bucket, tmp_path / "v2", "v2"), open_store(tmp_path / "v2")
    monkeypatch.setenv("HWM_CACHE_SIZE", "1000")
    with pytest.raises(HwmError, match=r"s3://bucket/v2 has .* GB, and data of its kind is fetched whole"):
        open_store(address)
    monkeypatch.delenv("HWM_CACHE_SIZE")
    for _ in range(2):
        store = open_store(address)
        assert np.array_equal(store.latents[:], here.latents[:])  # type: ignore[index]
        assert Clips(store, 3).spec() == Clips(here, 3).spec()


def test_a_data_set_is_exported_into_a_bucket(bucket: Bucket, recording: Store) -> None:
    main(["export", "lerobot", str(recording.path), "--out", "s3://bucket/d"])
    assert "d/meta/info.json" in bucket.names()
    assert not [name for name in bucket.names() if name.endswith("sent")]
    read = open_source("s3://bucket/d")
    assert [e.id for e in read] == ["e0", "e1", "e2"]
    assert np.array_equal(read[1].actions[1:], recording.actions[10:15]), "the first is not known to it"
    with pytest.raises(HwmError, match="s3://bucket/d is there already"):
        write_lerobot(open_source(recording.path), "s3://bucket/d")


def test_what_is_not_sent_is_not_written_to_an_address(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (["--out", "s3://bucket/run"], ["--out=s3://bucket/run"]):
        assert main(["train", "masked_hwm_toy", *out]) == 2
        assert "hwm train writes to folders of this disk, not to s3://bucket/run" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()
