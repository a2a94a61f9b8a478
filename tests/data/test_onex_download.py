"""Fetching: what is wanted, resumably, shard by shard, with sizes checked; and through the real client, where it is."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from hwm import cli
from hwm.data.onex.download import DATASETS, TOKENS, download, shard_of
from hwm.data.readers import open_store
from hwm.errors import HwmError
from hwm.hub import HuggingFace, RemoteFile
from tests.data.onex_toys import make_v1, make_v2


class Folder:
    """A hub whose data sets are folders here; it counts what is fetched, and may fail."""

    def __init__(self, root: Path, fail_after: int = 10**9, cut: str = "") -> None:
        self.root, self.fetched, self.fail_after, self.cut = root, [], fail_after, cut

    def files(self, repo: str, folder: str) -> Iterable[RemoteFile]:
        assert repo == TOKENS
        found = sorted(p for p in (self.root / folder).rglob("*") if p.is_file())
        return [RemoteFile(str(p.relative_to(self.root)), p.stat().st_size) for p in found]

    def fetch(self, repo: str, path: str, out: Path) -> None:
        if len(self.fetched) >= self.fail_after:
            raise OSError("the line is dead")
        self.fetched.append(path)
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / path, out / path)
        if path == self.cut:
            (out / path).write_bytes((out / path).read_bytes()[:-1])


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """What lies on the hub: three training shards, a validation split, and files that are no data."""
    root = tmp_path / "remote"
    make_v2(root / "train_v2.0", [[40], [20, 30], [51]])
    make_v2(root / "val_v2.0", [[45]], flat=True)
    make_v1(root / "val_v1.1", [30])
    (root / "train_v2.0" / "unpack_data.py").write_text("print('no data')", encoding="utf-8")
    return root


def quiet(_: str) -> None:
    pass


def test_a_split_is_fetched_and_opens(remote: Path, tmp_path: Path) -> None:
    said: list[str] = []
    hub = Folder(remote)
    folder = download("1x-v2.0", "train", tmp_path / "data", hub=hub, say=said.append)
    assert folder == tmp_path / "data" / "train_v2.0"
    assert open_store(folder).steps == open_store(remote / "train_v2.0").steps
    assert "Licence: Apache-2.0" in said[0]
    assert TOKENS in said[0]
    assert not (folder / "unpack_data.py").exists()
    # shard by shard, so that those that are there can be used
    order = [shard_of(RemoteFile(p, 0)) for p in hub.fetched]
    assert order == [None, *[0] * 4, *[1] * 4, *[2] * 4]
    again = Folder(remote)
    download("1x-v2.0", "train", tmp_path / "data", hub=again, say=said.append)
    assert again.fetched == []


def test_one_shard_at_a_time(remote: Path, tmp_path: Path) -> None:
    hub = Folder(remote)
    folder = download("1x-v2.0", "train", tmp_path / "data", [1], hub, quiet)
    assert {e.info["shard"] for e in open_store(folder).episodes} == {1}
    download("1x-v2.0", "train", tmp_path / "data", [1, 2], hub, quiet)
    assert {e.info["shard"] for e in open_store(folder).episodes} == {1, 2}
    assert len(hub.fetched) == len(set(hub.fetched)) == 9
    with pytest.raises(HwmError, match="no shard 7: its shards are 0 to 2"):
        download("1x-v2.0", "train", tmp_path / "data", [2, 7], hub, quiet)
    with pytest.raises(HwmError, match="no shard 1: it is not in shards"):
        download("1x-v1.1", "val", tmp_path / "data", [1], hub, quiet)


@pytest.mark.parametrize("after", [0, 1, 6])
def test_what_was_cut_off_goes_on(remote: Path, tmp_path: Path, after: int) -> None:
    broken, whole = Folder(remote, fail_after=after), Folder(remote)
    with pytest.raises(HwmError, match=r"cannot be fetched: the line is dead. The same command goes on"):
        download("1x-v2.0", "train", tmp_path / "data", hub=broken, say=quiet)
    folder = download("1x-v2.0", "train", tmp_path / "data", hub=whole, say=quiet)
    assert len(broken.fetched) == after
    assert not set(broken.fetched) & set(whole.fetched)
    assert open_store(folder).steps == open_store(remote / "train_v2.0").steps


def test_a_file_of_another_size_is_an_error(remote: Path, tmp_path: Path) -> None:
    cut = "val_v2.0/states_0.bin"
    with pytest.raises(HwmError, match=r"states_0.bin has 4,499 bytes, the hub says 4,500"):
        download("1x-v2.0", "val", tmp_path / "data", hub=Folder(remote, cut=cut), say=quiet)
    folder = download("1x-v2.0", "val", tmp_path / "data", hub=Folder(remote), say=quiet)
    open_store(folder).verify()


def test_mistakes_are_explained(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Folder(remote)
    with pytest.raises(HwmError, match="no data set called '1x-v2'"):
        download("1x-v2", "train", tmp_path, hub=hub, say=quiet)
    with pytest.raises(HwmError, match=r"no split of 1x-v1.1 called 'test'"):
        download("1x-v1.1", "test", tmp_path, hub=hub, say=quiet)
    with pytest.raises(HwmError, match=r"no files in test_v2.0"):
        download("1x-v2.0", "test", tmp_path, hub=hub, say=quiet)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 5))  # type: ignore[attr-defined]
    with pytest.raises(HwmError, match="GB free; fetch fewer shards"):
        download("1x-v2.0", "train", tmp_path / "data", hub=hub, say=quiet)
    assert hub.fetched == []


def test_no_file_is_written_elsewhere(tmp_path: Path) -> None:
    class Evil(Folder):
        def files(self, repo: str, folder: str) -> Iterable[RemoteFile]:
            return [RemoteFile(f"{folder}/../../video_0.bin", 1)]

    with pytest.raises(HwmError, match="outside its folder"):
        download("1x-v2.0", "val", tmp_path / "data", hub=Evil(tmp_path), say=quiet)


def test_every_licence_is_stated() -> None:
    assert "no commercial use" in DATASETS["1x-v2.0-raw"].licence
    assert all(d.licence and d.splits for d in DATASETS.values())


def test_without_the_client_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert cli.main(["data", "download", "1x-v2.0", "--split", "val", "--out", str(tmp_path)]) == 2
    assert "humanoid-world-models[hub]" in capsys.readouterr().err


# ---------------------------------------------------------------------- the real client, on a hub of our own
class Handler(BaseHTTPRequestHandler):
    """As much of the hub's interface as listing and fetching take."""

    root: Path
    dead_after: int | None = None  # bytes of a file after which the line dies, once
    ranges: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        tree, resolve = f"/api/datasets/{TOKENS}/tree/main/", f"/datasets/{TOKENS}/resolve/main/"
        if path.startswith(tree):
            found = sorted(p for p in (self.root / path.removeprefix(tree)).rglob("*") if p.is_file())
            listed = [
                {"type": "file", "oid": "0" * 40, "size": p.stat().st_size, "path": str(p.relative_to(self.root))}
                for p in found
            ]
            self.send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(resolve):
            data = (self.root / path.removeprefix(resolve)).read_bytes()
            headers = {"ETag": f'"{len(data):040x}"', "X-Repo-Commit": "1" * 40, "Accept-Ranges": "bytes"}
            asked = self.headers.get("Range")
            if body and asked:
                type(self).ranges.append(asked)
                start = int(asked.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.send(206, data[start:], headers, body)
            else:
                self.send(200, data, headers, body)
        else:
            self.send(404, b"", {}, body)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        cut, cls = self.dead_after, type(self)
        if cut is not None and len(data) > cut:
            cls.dead_after = None
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(data)


@pytest.fixture
def hub(remote: Path) -> Iterator[tuple[HuggingFace, type[Handler]]]:
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    handler = type("Own", (Handler,), {"root": remote, "ranges": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield HuggingFace(f"http://127.0.0.1:{server.server_address[1]}"), handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_real_client_fetches(hub: tuple[HuggingFace, type[Handler]], remote: Path, tmp_path: Path) -> None:
    client, _ = hub
    folder = download("1x-v2.0", "train", tmp_path / "data", [0, 2], client, quiet)
    store = open_store(folder)
    store.verify()
    assert {e.info["shard"] for e in store.episodes} == {0, 2}
    assert (folder / "videos/video_2.bin").read_bytes() == (remote / "train_v2.0/videos/video_2.bin").read_bytes()


def test_the_real_client_resumes(hub: tuple[HuggingFace, type[Handler]], remote: Path, tmp_path: Path) -> None:
    client, handler = hub
    big = remote / "val_v2.0" / "video_0.bin"
    big.write_bytes(bytes(range(256)) * 100_000)  # the client keeps what it has in pieces of 10 MB
    handler.dead_after = 15_000_000
    folder = tmp_path / "data" / "val_v2.0"
    for _ in range(3):  # the client may also go on by itself
        with suppress(HwmError):
            download("1x-v2.0", "val", tmp_path / "data", hub=client, say=quiet)
    assert handler.dead_after is None
    assert (folder / "video_0.bin").read_bytes() == big.read_bytes()
    assert [r for r in handler.ranges if not r.startswith("bytes=0-")], handler.ranges


def test_what_the_client_complains_of_is_told(hub: tuple[HuggingFace, type[Handler]], tmp_path: Path) -> None:
    client, _ = hub
    with pytest.raises(HwmError, match=r"1x-technologies/worldmodel_raw_data/val_v2.0_raw cannot be listed: .*404"):
        download("1x-v2.0-raw", "val", tmp_path, hub=client, say=quiet)
