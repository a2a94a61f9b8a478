"""What tests of training share: a small store, and runs that begin at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwm.config import REGISTRY
from hwm.train import trainer
from tests.conftest import make_store
from tests.train.toy import Toy


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is known by its name, and nobody measures what this machine is capable of."""
    monkeypatch.setitem(REGISTRY, Toy.name, Toy)
    monkeypatch.setattr(trainer, "peak_flops", lambda device, dtype: 1e9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store", [30, 20]).path
