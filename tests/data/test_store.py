"""The on-disk format: what is written comes back, damage is named, kills and other processes do no harm."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.data import writer as module
from hwm.data.arrays import moments
from hwm.data.store import Header, Store, StoreError, latent_dtype
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.types import LatentSpec
from tests.conftest import make_arrays, make_header, make_store

KINDS = {
    "ids": LatentSpec((2, 3), 25),
    "many ids": LatentSpec((1, 2), 70_000),
    "values": LatentSpec((2, 3), channels=4),
    "recording": None,
}


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    kind=st.sampled_from(sorted(KINDS)),
    per_step=st.integers(1, 3),
    action_dtype=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 1000),
)
def test_what_is_written_comes_back(tmp_path_factory, lengths, kind, per_step, action_dtype, seed) -> None:
    path = tmp_path_factory.mktemp("store")
    header = make_header(latent=KINDS[kind], actions_per_step=per_step, action_dtype=action_dtype)
    writer, written = Writer(path, header), []
    for i, n in enumerate(lengths):
        written.append(make_arrays(header, n, seed + i))
        writer.add(f"ep{i}", *written[-1], info={"number": i})
    store = writer.finish()
    store.verify()
    assert store.header == header
    assert store.steps == sum(lengths)
    assert [e.steps for e in store.episodes] == lengths
    assert not (path / ".partial").exists()
    for i, (episode, (actions, latents)) in enumerate(zip(Store(path).episodes, written, strict=True)):
        rows = slice(episode.start, episode.stop)
        assert episode.info == {"number": i}
        assert (store.segments[rows] == i).all()
        assert np.array_equal(store.actions[rows], actions.astype(action_dtype))
        if latents is None:
            assert store.latents is None
        else:
            assert np.array_equal(store.latents[rows], latents.astype(header.dtype))


def test_latents_are_as_small_as_they_can_be() -> None:
    assert latent_dtype(LatentSpec((1, 1), 64_000)) == "uint16"
    assert latent_dtype(LatentSpec((1, 1), 65_536)) == "uint16"
    assert latent_dtype(LatentSpec((1, 1), 65_537)) == "int32"
    assert latent_dtype(LatentSpec((1, 1), channels=4)) == "float16"
    assert make_header(latent=LatentSpec((1, 1), 70_000)).dtype == "int32"


def test_a_header_refuses_types_that_do_not_hold_its_values() -> None:
    with pytest.raises(StoreError, match="uint16 does not hold the ids of a vocabulary of 70000"):
        make_header(latent=LatentSpec((1, 1), 70_000), dtype="uint16")
    with pytest.raises(StoreError, match="does not hold"):
        make_header(dtype="float16")
    with pytest.raises(StoreError, match="float32 or float16, not int32"):
        make_header(action_dtype="int32")
    with pytest.raises(StoreError, match="numpy's names"):
        make_header(dtype="flaot16")


@pytest.mark.parametrize("name", ["actions.bin", "latents.bin", "segments.bin"])
def test_a_truncated_file_is_named(store: Store, name: str) -> None:
    file = store.path / name
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(StoreError, match=rf"{name} has .* bytes; 36 steps of shape .* take"):
        Store(store.path)
    file.unlink()
    with pytest.raises(StoreError, match=rf"{name} has 0 bytes"):
        Store(store.path)


@pytest.mark.parametrize("name", ["actions.bin", "latents.bin", "segments.bin"])
def test_a_flipped_bit_is_found_by_its_checksum(store: Store, name: str) -> None:
    data = bytearray((store.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (store.path / name).write_bytes(data)
    opened = Store(store.path)
    with pytest.raises(StoreError, match=f"{name} does not match its checksum"):
        opened.verify()


@pytest.mark.parametrize(
    "damage",
    [
        lambda meta: b"{" + meta,
        lambda meta: b"\xff\xfe\x00",
        lambda meta: b"[]",
        lambda meta: b"{}",
        lambda meta: meta.replace(b'"episodes"', b'"episods"'),
        lambda meta: meta.replace(b'"embodiment"', b'"body"'),
        lambda meta: meta.replace(b'"stop": 12', b'"stop": 11'),
        lambda meta: meta.replace(b'"steps": 36', b'"steps": "many"'),
    ],
)
def test_a_damaged_meta_json_is_named(store: Store, damage: Callable[[bytes], bytes]) -> None:
    meta = store.path / "meta.json"
    before = meta.read_bytes()
    meta.write_bytes(damage(before))
    assert meta.read_bytes() != before
    with pytest.raises(StoreError, match=r"meta.json is damaged"):
        Store(store.path)


def test_other_folders_are_not_stores(tmp_path: Path, store: Store) -> None:
    with pytest.raises(StoreError, match=r"is not a store \(no meta.json\)"):
        Store(tmp_path / "nothing")
    writer = Writer(tmp_path / "half", make_header())
    writer.add("e0", *make_arrays(writer.header, 3))
    with pytest.raises(StoreError, match="is not finished"):
        Store(tmp_path / "half")
    meta = store.path / "meta.json"
    meta.write_text(meta.read_text(encoding="utf-8").replace("hwm-store/1", "hwm-store/9"), encoding="utf-8")
    with pytest.raises(StoreError, match="has format 'hwm-store/9'"):
        Store(store.path)


def refused(writer: Writer, message: str, *args: object, **kwargs: object) -> None:
    with pytest.raises(StoreError, match=message):
        writer.add(*args, **kwargs)  # type: ignore[arg-type]
    assert not writer.done()
    assert not [p for p in writer.partial.iterdir() if p.is_dir()]


def test_bad_actions_are_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    actions, latents = make_arrays(writer.header, 4)
    refused(writer, r"actions of shape \(4, 2, 1\), expected \(N, 2, 2\)", "e", actions[:, :, :1], latents)
    refused(writer, r"expected \(N, 2, 2\)", "e", actions[:, 0], latents)
    refused(writer, "at least one step", "e", actions[:0], latents[:0])
    for bad in (np.nan, np.inf, -np.inf):
        wrong = actions.copy()
        wrong[2, 1, 1] = bad
        refused(writer, r"action 'right' is .* at step 2 \(slot 1\)", "e", wrong, latents)


def test_actions_too_large_for_half_floats_are_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header(action_dtype="float16"))
    actions, latents = make_arrays(writer.header, 4)
    actions[3, 0, 0] = 70_000
    refused(writer, "action 'left' is 70000.0 at step 3 .* not a finite float16", "e", actions, latents)


def test_bad_ids_are_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    actions, latents = make_arrays(writer.header, 4)
    for bad in (-1, 25):
        wrong = latents.copy()
        wrong[3, 1, 1] = bad
        refused(writer, "outside the vocabulary of 25", "e", actions, wrong)
    refused(writer, "outside the vocabulary", "e", actions, latents.astype(np.float32))
    refused(writer, r"latents of shape \(3, 2, 2\), expected \(4, 2, 2\)", "e", actions, latents[:3])
    refused(writer, "latents of shape None", "e", actions)


def test_bad_values_are_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header(latent=LatentSpec((2, 2), channels=3)))
    actions, latents = make_arrays(writer.header, 4)
    for bad in (np.nan, 1e6):
        wrong = latents.copy()
        wrong[1, 2, 0, 0] = bad
        refused(writer, "not finite as float16", "e", actions, wrong)
    pixels = Writer(tmp_path / "p", make_header(latent=LatentSpec((2, 2), channels=3), dtype="uint8"))
    refused(pixels, "latents of float32, expected uint8", "e", actions, latents)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a\\b", "nul\0"])
def test_names_that_cannot_be_folders_are_refused(tmp_path: Path, name: str) -> None:
    writer = Writer(tmp_path / "s", make_header())
    refused(writer, "cannot name an episode", name, *make_arrays(writer.header, 4))


def test_an_episode_is_written_once(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    arrays = make_arrays(writer.header, 4)
    writer.add("e", *arrays)
    film = tmp_path / "film.mp4"
    film.write_bytes(b"film")
    with pytest.raises(StoreError, match=r"'e' is in .* already"):
        writer.add("e", *arrays, video=film)
    assert film.exists()  # what was not taken is left alone


def test_a_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "s", make_header())
    arrays = make_arrays(writer.header, 4)
    writer.add("first", *arrays)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match=r"'second' cannot be written .*No space left"):
            writer.add("second", *arrays)
    assert writer.done() == {"first"}
    writer.add("second", *arrays)
    assert len(writer.finish().episodes) == 2


def test_work_goes_on_after_a_kill(tmp_path: Path) -> None:
    path, header = tmp_path / "s", make_header()
    first = Writer(path, header)
    first.add("a", *make_arrays(header, 3, 0))
    # what a killed process leaves behind: an episode under way, and a film
    (path / ".partial" / ".b.12345").mkdir()
    (path / ".partial" / ".b.12345" / "actions.bin").write_bytes(b"half")
    (path / ".partial" / ".b.12345.mp4").write_bytes(b"half")
    (path / ".partial" / f".b.{os.getpid()}").mkdir()  # perhaps of this very process number
    (path / ".partial" / f".b.{os.getpid()}" / "old").write_bytes(b"x")
    second = Writer(path, header)
    assert second.done() == {"a"}
    second.add("b", *make_arrays(header, 5, 1))
    store = second.finish()
    assert [e.id for e in store.episodes] == ["a", "b"]
    assert sorted(p.name for p in path.iterdir()) == ["actions.bin", "latents.bin", "meta.json", "segments.bin"]


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    Writer(tmp_path / "s", make_header())
    with pytest.raises(StoreError, match=r"begun with other settings \(fps: 10.0, now 5.0\)"):
        Writer(tmp_path / "s", make_header(fps=5.0))
    for _ in range(2):
        Writer(tmp_path / "s", make_header(), {"size": 64, "pair": (1, 2)})
    with pytest.raises(StoreError, match="size: 64, now 32"):
        Writer(tmp_path / "s", make_header(), {"size": 32, "pair": (1, 2)})


def test_a_complete_store_is_not_written_again(store: Store) -> None:
    (store.path / ".partial").mkdir()  # by a kill in the last moment
    with pytest.raises(StoreError, match="already complete"):
        Writer(store.path, store.header)
    assert Store(store.path).steps == 36


def films(tmp_path: Path, path: Path, names: str) -> Writer:
    writer = Writer(path, make_header())
    for i, name in enumerate(names):
        film = tmp_path / f"{name}.mp4"
        film.write_bytes(b"film of " + name.encode())
        writer.add(name, *make_arrays(writer.header, 3 + i, i), video=film)
    return writer


# when `finish` may be killed: at a rename (three arrays, three videos, meta.json) or at the removal in the end
@pytest.mark.parametrize("moment", range(8))
def test_a_kill_at_any_moment_of_finish_loses_nothing(tmp_path: Path, monkeypatch, moment: int) -> None:
    whole = films(tmp_path, tmp_path / "whole", "abc").finish()
    path = tmp_path / "s"
    writer, calls = films(tmp_path, path, "abc"), 0

    class Killed(BaseException):
        pass

    def dying(real: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == moment + 1:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", dying(os.replace))
        patch.setattr(module.shutil, "rmtree", dying(shutil.rmtree))
        with pytest.raises(Killed):
            writer.finish()
    if moment < 7:
        assert not (path / "meta.json").exists()
        again = Writer(path, make_header())
        assert again.done() == {"a", "b", "c"}
        again.finish()
    store = Store(path)
    store.verify()
    assert [(e.id, e.steps) for e in store.episodes] == [("a", 3), ("b", 4), ("c", 5)]
    assert np.array_equal(store.actions, whole.actions)
    assert np.array_equal(store.latents, whole.latents)
    assert [store.video(e).read_bytes() for e in store.episodes] == [b"film of a", b"film of b", b"film of c"]


def test_an_episode_cut_short_by_a_power_cut_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    header = make_header()
    writer = Writer(tmp_path / "s", header)
    for name in "ab":
        writer.add(name, *make_arrays(header, 4))
    file = writer.partial / "b" / "latents.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(StoreError, match=r"episode 'b' is damaged: remove the folder .*\.partial/b"):
        writer.finish()
    shutil.rmtree(writer.partial / "b")
    writer.add("b", *make_arrays(header, 4))
    assert writer.finish().steps == 8


def test_no_episodes_make_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no episode was written"):
        Writer(tmp_path / "s", make_header()).finish()


def test_video_is_of_all_episodes_or_of_none(tmp_path: Path) -> None:
    writer = films(tmp_path, tmp_path / "s", "bc")
    writer.add("a", *make_arrays(writer.header, 3))
    with pytest.raises(StoreError, match="2 episodes have video and 1 have none, as 'a'"):
        writer.finish()
    plain = make_store(tmp_path / "plain")
    assert not plain.has_video
    with pytest.raises(StoreError, match="has no video of episode 'e0'"):
        plain.video(plain.episodes[0])


def add_some(path: Path, names: list[str]) -> None:
    writer = Writer(path, make_header())
    for name in names:
        writer.add(name, *make_arrays(writer.header, 3, int(name)))


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    names = [str(i) for i in range(40)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_some, args=(tmp_path / "s", names[i::2])) for i in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    assert [p.exitcode for p in processes] == [0, 0]
    writer = Writer(tmp_path / "s", make_header())
    assert writer.done() == set(names)
    store = writer.finish()
    for e in store.episodes:
        assert np.array_equal(store.actions[e.start : e.stop], make_arrays(store.header, 3, int(e.id))[0])


def test_of_two_writers_of_one_episode_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "s", make_header())
    real = os.replace

    def overtaken(source: object, target: object) -> None:  # the other is done between the check and the rename
        monkeypatch.setattr(module.os, "replace", real)
        Writer(tmp_path / "s", make_header()).partial.joinpath("e").mkdir()
        (writer.partial / "e" / "info.json").write_text("{}", encoding="utf-8")
        real(source, target)  # type: ignore[call-overload]

    monkeypatch.setattr(module.os, "replace", overtaken)
    with pytest.raises(StoreError, match=r"'e' is in .* already"):
        writer.add("e", *make_arrays(writer.header, 3))
    assert [p.name for p in writer.partial.iterdir() if p.is_dir()] == ["e"]


def test_statistics_are_those_of_all_actions(store: Store) -> None:
    flat = np.asarray(store.actions, np.float64).reshape(-1, 2)
    mean, std = store.statistics
    assert np.allclose(mean, flat.mean(0))
    assert np.allclose(std, flat.std(0))
    spec = store.data_spec()
    assert spec.actions["toy"].mean == mean
    assert (spec.latent, spec.tokenizer, spec.fps) == (store.header.latent, "test", 10.0)


@settings(max_examples=25)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50),
    st.sampled_from([0.0, 1e4, -1e6]),
)
def test_moments_do_not_cancel(values: list[float], offset: float) -> None:
    x = (np.array(values, np.float32) + np.float32(offset)).reshape(-1, 1, 1)
    mean, std = moments(x)
    exact = x.astype(np.float64)
    assert np.allclose(mean, exact.mean(), rtol=1e-9, atol=1e-6)
    assert np.allclose(std, exact.std(), rtol=1e-6, atol=1e-6)


def test_moments_over_several_pieces_and_of_a_constant() -> None:
    x = np.random.default_rng(0).normal(5, 2, (70_000, 2, 3)).astype(np.float32)
    x[..., 1] = 0.1
    mean, std = moments(x)
    flat = x.reshape(-1, 3).astype(np.float64)
    assert np.allclose(mean, flat.mean(0), rtol=1e-9)
    assert np.allclose(std, flat.std(0), rtol=1e-9)
    assert std[1] == 0


def test_given_statistics_are_recorded(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    writer.add("e", *make_arrays(writer.header, 4))
    with pytest.raises(StoreError, match="statistics of 1 and 1 dimensions; actions have 2"):
        writer.finish(([1.0], [2.0]))
    assert writer.finish(([1, 2], np.array([3, 4]))).statistics == ((1.0, 2.0), (3.0, 4.0))


def test_missing_statistics_are_an_error(store: Store) -> None:
    meta = json.loads((store.path / "meta.json").read_text(encoding="utf-8"))
    meta["statistics"] = None
    (store.path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    opened = Store(store.path)
    with pytest.raises(StoreError, match="has no action statistics; compute them with: hwm merge"):
        opened.data_spec()


def test_a_recording_has_no_spec_yet(tmp_path: Path) -> None:
    recording = make_store(tmp_path / "r", latent=None)
    with pytest.raises(StoreError, match="encode it first: hwm encode"):
        recording.data_spec()


def test_half_floats_are_read_as_they_are_stored(tmp_path: Path) -> None:
    half = make_store(tmp_path / "half", action_dtype="float16")
    full = make_store(tmp_path / "full")
    assert half.actions.dtype == np.float16
    assert (half.path / "actions.bin").stat().st_size * 2 == (full.path / "actions.bin").stat().st_size
    assert np.allclose(half.actions, full.actions, rtol=1e-3)
    assert np.allclose(half.statistics, np.stack(full.statistics), atol=1e-3)


def test_a_store_is_sent_to_other_processes_by_its_path(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [2000])
    sent = ForkingPickler.dumps(store)
    assert len(sent) < 1000
    again = ForkingPickler.loads(sent)
    assert isinstance(again.actions, np.memmap)
    assert np.array_equal(again.actions, store.actions)


def test_store_errors_are_the_users() -> None:
    assert issubclass(StoreError, HwmError)
    assert Header(embodiment="x", action_names=("a",), actions_per_step=1, fps=1.0).action_shape == (1, 1)


def test_arrays_that_are_not_what_was_written_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "s", make_header())
    writer.add("e", *make_arrays(writer.header, 4))
    monkeypatch.setattr("hwm.data.writer.checksum", lambda path: 0)
    with pytest.raises(StoreError, match=r"actions.bin is not what was written to it"):
        writer.finish()
    monkeypatch.undo()
    writer.finish().verify()
