"""Files that are far away: what is fetched is what is there, once, within a bound, and what goes wrong is named."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwm import far
from hwm.data.far import FarArray
from hwm.errors import HwmError
from tests.remote.conftest import Bucket


@pytest.fixture
def memory(here: Path) -> Any:
    """A file system in memory, empty."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra `remote`)")
    client = fsspec.filesystem("memory")
    client.store.clear()
    yield client
    client.store.clear()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each stretch that is fetched from now on."""
    sizes, fetched = list[int](), far._fetched

    def counting(path: Path, spans: Any) -> list[bytes]:
        pieces = fetched(path, spans)
        sizes.extend(map(len, pieces))
        return pieces

    monkeypatch.setattr(far, "_fetched", counting)
    return sizes


def test_an_address_is_a_place_in_the_cache_and_back(here: Path) -> None:
    for name in ("s3://bucket/a/b", "hf://datasets/owner/name@main/x.parquet", "memory://x", "file:///tmp/x"):
        place = far.located(name)
        assert far.address(place) == name
        assert far.located(Path(name)) == place, "as options of the command line have it"
        assert far.located(place) == place
    assert far.located("data/train") == Path("data/train")
    assert far.address(Path("data/train")) == "data/train"
    assert far.located("C:/data") == Path("C:/data")
    with pytest.raises(HwmError, match="without dots"):
        far.located("s3://bucket/../other")


@pytest.mark.parametrize(("text", "want"), [("50GB", 50e9), ("1.5 TiB", 1.5e12), ("300mb", 3e8), ("12", 12)])
def test_the_bound_is_read(text: str, want: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWM_CACHE_SIZE", text)
    assert far.bound() == want
    monkeypatch.setenv("HWM_CACHE_SIZE", f"{text}x")
    with pytest.raises(HwmError, match="is no size"):
        far.bound()


def test_a_file_is_fetched_once_and_anew_where_it_was_changed(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/x/a.bin", b"first")
    sizes, name = counted(monkeypatch), "memory://x/a.bin"
    for _ in range(3):
        assert far.near(far.located(name)).read_bytes() == b"first"
    assert sizes == [5]
    memory.pipe_file("/x/a.bin", b"other")
    assert far.near(far.located(name)).read_bytes() == b"other"


def test_rows_are_those_of_the_file(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwm.data.far.BLOCK", 100)
    monkeypatch.setattr("hwm.data.far.AT_ONCE", 3)
    values = np.arange(101 * 6, dtype=np.int32).reshape(101, 2, 3)
    memory.pipe_file("/x/a.bin", values.tobytes())
    array = FarArray(far.located("memory://x/a.bin"), "int32", values.shape)
    sizes = counted(monkeypatch)
    for rows in (5, -1, slice(3, 9), slice(None), slice(90, 4, -7), np.array([[100, 0], [7, 7]]), slice(4, 4)):
        assert np.array_equal(array[rows], values[rows])
    assert sum(sizes) == values.nbytes, "each block once"
    with pytest.raises(IndexError):
        array[101]


def test_rows_that_are_asked_for_together_are_fetched_together(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwm.data.far.BLOCK", 40)
    values = np.arange(1000, dtype=np.int32)
    memory.pipe_file("/x/a.bin", values.tobytes())
    array, asked, fetched = FarArray(far.located("memory://x/a.bin"), "int32", values.shape), list[int](), far._fetched
    monkeypatch.setattr(far, "_fetched", lambda path, spans: (asked.append(len(spans)), fetched(path, spans))[1])
    rows = np.array([3, 500, 999, 4, 21])
    array.fetch(rows)
    assert np.array_equal(array[rows], values[rows])
    assert asked == [4]


def test_the_cache_keeps_what_was_used_last_within_its_bound(
    memory: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000, 9000))
    monkeypatch.setattr(far.time, "time", lambda: float(next(clock)))
    monkeypatch.setenv("HWM_CACHE_SIZE", "1000")
    values = np.arange(4000, dtype=np.uint8)
    memory.pipe_file("/x/a.bin", values.tobytes())
    monkeypatch.setattr("hwm.data.far.BLOCK", 100)
    monkeypatch.setattr("hwm.data.far.AT_ONCE", 1)  # is held in memory
    array, sizes = FarArray(far.located("memory://x/a.bin"), "uint8", values.shape), counted(monkeypatch)
    for i in range(0, 4000, 100):
        assert np.array_equal(array[i : i + 100], values[i : i + 100])
        array[0]  # which stays, being used
        assert sum(p.stat().st_size for p in here.rglob("*") if p.is_file()) <= 1000
    assert len(sizes) == 40
    array[0]
    array[3900]
    array[3200]
    assert len(sizes) == 40
    array[3000]
    assert len(sizes) == 41


def test_copies_are_kept_within_the_bound_unless_a_process_works_with_them(
    memory: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HWM_CACHE_SIZE", "1000")
    for i in range(4):
        memory.pipe_file(f"/x/{i}/a/b.bin", bytes([i]) * 400)

    def copied(i: int) -> Path:
        return far.copy(far.located(f"memory://x/{i}")) / "a" / "b.bin"

    def ended() -> None:  # as processes do
        for lock in far._held.values():
            lock.close()
        far._held.clear()

    def kept() -> list[int]:
        return [i for i in range(4) if (here / f"copies/memory/x/{i}/a/b.bin").is_file()]

    monkeypatch.setattr(far, "_held", {})
    assert copied(0).read_bytes() == bytes([0]) * 400
    ended()
    copied(1)
    assert kept() == [0, 1], "a copy and what it is linked to are one"
    copied(2)
    assert kept() == [1, 2], "what was not used for longest is gone"
    assert not far.located("memory://x/0/a/b.bin").exists()
    copied(3)
    assert kept() == [1, 2, 3], "all of them are in use"
    ended()
    assert copied(0).read_bytes() == bytes([0]) * 400
    assert kept() == [0, 3]
    far.copy(far.located("memory://x/0/a"))  # a part of another, by itself
    ended()
    far.copy(far.located("memory://x/0"))
    copied(1)
    assert kept() == [0, 1]
    ended()


def hold_it(name: str, told: Any, asked: Any) -> None:
    far.copy(far.located(name))
    told.put("held")
    asked.get(timeout=60)


def test_a_copy_that_another_process_works_with_stays(memory: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWM_CACHE_SIZE", "1000")
    monkeypatch.setattr(far, "_held", {})
    for name in "abc":
        memory.pipe_file(f"/x/{name}/y.bin", name.encode() * 600)
    context = multiprocessing.get_context("fork")
    told, asked = context.Queue(), context.Queue()
    process = context.Process(target=hold_it, args=("memory://x/a", told, asked))
    process.start()
    told.get(timeout=60)
    copy = here / "copies/memory/x/a/y.bin"
    far.copy(far.located("memory://x/b"))
    assert copy.is_file()
    asked.put("end")
    process.join()
    far.copy(far.located("memory://x/c"))
    assert not copy.exists()


def test_a_download_that_was_broken_off_goes_on(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far, "PIECE", 10)
    monkeypatch.setattr(far, "AT_ONCE", 2)
    data = os.urandom(95)
    memory.pipe_file("/x/a.bin", data)
    sizes, fetched = counted(monkeypatch), far._fetched

    def breaking(path: Path, spans: Any) -> list[bytes]:
        if len(sizes) >= 6:
            raise KeyboardInterrupt
        return fetched(path, spans)

    monkeypatch.setattr(far, "_fetched", breaking)
    path = far.located("memory://x/a.bin")
    with pytest.raises(KeyboardInterrupt):
        far.near(path)
    assert not path.exists()
    monkeypatch.setattr(far, "_fetched", fetched)
    assert far.near(path).read_bytes() == data
    assert sum(sizes) == 95, "nothing twice"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_download_of_another_version_begins_anew(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far, "PIECE", 4)
    monkeypatch.setattr(far, "AT_ONCE", 1)
    memory.pipe_file("/x/a.bin", b"aaaaaaaa")
    path, fetched = far.located("memory://x/a.bin"), far._fetched

    def changing(at: Path, spans: Any) -> list[bytes]:
        memory.pipe_file("/x/a.bin", b"bbbbbbbb")
        return fetched(at, spans)

    monkeypatch.setattr(far, "_fetched", changing)
    with pytest.raises(HwmError, match=r"memory://x/a\.bin was changed while it was read"):
        far.near(path)
    monkeypatch.setattr(far, "_fetched", fetched)
    assert far.near(far.located("memory://x/a.bin")).read_bytes() == b"bbbbbbbb"


def test_a_server_that_fails_for_a_while_is_asked_again(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/x/a.bin", b"there")
    fails, ranges = [3], type(memory).cat_ranges

    def failing(self: Any, *args: Any, **named: Any) -> Any:
        fails[0] -= 1
        if fails[0] > 0:
            raise ConnectionError("reset by peer")
        return ranges(self, *args, **named)

    monkeypatch.setattr(type(memory), "cat_ranges", failing)
    assert far.near(far.located("memory://x/a.bin")).read_bytes() == b"there"
    memory.pipe_file("/x/a.bin", b"again")
    fails[0] = 99
    with pytest.raises(HwmError, match=r"memory://x/a\.bin cannot be reached: .*reset by peer.* same command goes on"):
        far.near(far.located("memory://x/a.bin"))


def test_what_was_sent_is_not_sent_again(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, to, sent = tmp_path / "made", far.located("memory://x"), tmp_path / "sent"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(name.encode())
    put, calls = type(memory).put_file, list[str]()

    def breaking(self: Any, here: str, there: str, **named: Any) -> None:
        calls.append(Path(here).name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        put(self, here, there, **named)

    monkeypatch.setattr(type(memory), "put_file", breaking)
    with pytest.raises(KeyboardInterrupt):
        far.send(folder, "abc", to, sent)
    far.send(folder, "abc", to, sent)
    assert "".join(calls) == "abbc"
    (folder / "a").write_bytes(b"A")
    far.send(folder, "abc", to, sent)
    assert "".join(calls) == "abbca", "of another content"
    assert memory.cat_file("/x/a") == b"A"


def test_without_the_extra_it_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(HwmError, match=r"s3://bucket/x cannot be opened.*humanoid-world-models\[remote\]"):
        far.near(far.located("s3://bucket/x"))


def test_an_address_of_no_known_kind(memory: Any) -> None:
    with pytest.raises(HwmError, match="nowhere://x/y is no path and no address that is known"):
        far.near(far.located("nowhere://x/y"))


# ---------------------------------------------------------------------- a server
def test_a_bucket_is_read_and_its_errors_are_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    bucket.client.pipe_file("bucket/x/a.bin", b"0123456789")  # type: ignore[attr-defined]
    path = far.located("s3://bucket/x/a.bin")
    assert far.near(path).read_bytes() == b"0123456789"
    assert far.files(far.located("s3://bucket/x")) == [path]
    assert (far.is_file(path), far.is_dir(path), far.is_dir(path.parent)) == (True, False, True)
    array = FarArray(path, "uint8", (10,))
    bucket.client.rm_file("bucket/x/a.bin")  # type: ignore[attr-defined]
    with pytest.raises(HwmError, match=r"s3://bucket/x/a\.bin is not there: it was removed or renamed"):
        array[2]
    with pytest.raises(HwmError, match=r"s3://nobucket/b\.bin is not there"):
        far.near(far.located("s3://nobucket/b.bin"))
    bucket.client.pipe_file("bucket/x/b.bin", b"0123456789")  # type: ignore[attr-defined]
    bucket.lock()
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(HwmError, match=r"s3://bucket/x/b\.bin may not be accessed .*: check the credentials"):
        far.near(far.located("s3://bucket/x/b.bin"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(HwmError, match=r"s3://bucket/x/b\.bin may not be accessed \(Unable to locate credentials\)"):
        far.near(far.located("s3://bucket/x/b.bin"))


def fetch_it(name: str, queue: Any) -> None:
    sizes: list[int] = []
    fetched = far._fetched

    def counting(path: Path, spans: Any) -> list[bytes]:
        pieces = fetched(path, spans)
        sizes.extend(map(len, pieces))
        return pieces

    far._fetched = counting  # type: ignore[assignment]
    queue.put((far.near(far.located(name)).read_bytes(), sum(sizes)))


def test_several_processes_fetch_a_file_once(bucket: Bucket) -> None:
    data = os.urandom(1 << 20)
    bucket.client.pipe_file("bucket/a.bin", data)  # type: ignore[attr-defined]
    far.is_file(far.located("s3://bucket/a.bin"))  # the client of this process is no use to those forked from it
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=fetch_it, args=("s3://bucket/a.bin", queue)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(read == data for read, _ in found)
    assert sorted(fetched for _, fetched in found) == [0, 0, len(data)]
