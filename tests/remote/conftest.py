"""A bucket on this machine: a server that speaks S3, on 127.0.0.1, and a cache that begins empty."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import pytest

from hwm import far

WITHOUT = "s3fs and moto are not installed (extras `remote` and `dev`)"


class Bucket(NamedTuple):
    """A bucket: where, and a client of its own that looks at what is there."""

    url: str
    endpoint: str
    client: object

    def names(self) -> list[str]:
        """All that is in it."""
        return sorted(name.partition("/")[2] for name in self.client.find(self.url))  # type: ignore[attr-defined]

    def lock(self, after: int = 0) -> None:
        """Check credentials from now on, or after some requests."""
        free_requests(self.endpoint, after)


def free_requests(endpoint: str, count: int) -> None:
    """Credentials are checked after so many requests."""
    kind = {"Content-Type": "text/plain"}
    urlopen(Request(f"{endpoint}/moto-api/reset-auth", str(count).encode(), kind, method="POST"))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason=WITHOUT)
    moto = pytest.importorskip("moto.server", reason=WITHOUT)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and servers that are asked again at once."""
    monkeypatch.setenv("HWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(far, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(far, "_versions", {})
    return tmp_path / "cache"


@pytest.fixture
def bucket(server: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, whose address the environment gives."""
    import fsspec
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(here / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(here / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    urlopen(Request(f"{server}/moto-api/reset", method="POST"))
    free_requests(server, 1_000_000)
    client = fsspec.filesystem("s3", endpoint_url=server, use_listings_cache=False)
    client.mkdir("bucket")
    yield Bucket("s3://bucket", server, client)
    free_requests(server, 1_000_000)
    s3fs.S3FileSystem.clear_instance_cache()
