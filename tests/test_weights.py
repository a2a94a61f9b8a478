"""Weights out of files of others: nothing of theirs is run, nothing is held twice, and mistakes are named."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hwm.errors import CheckpointError
from hwm.models.genie import Genie
from hwm.types import DataSpec, LatentSpec
from hwm.weights import read_weights, with_weights
from tests.models.toys import is_aligned

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}
SPEC = DataSpec(LatentSpec((2, 2), 16, levels=(4, 4)), {})
CONFIG = replace(Genie.tiny(), actions=False)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(v, TENSORS[k]) for k, v in found.items())


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    torch.save(TENSORS, tmp_path / "bare.pt")
    nested = {"state_dict": {**TENSORS, "count": 3}, "optimizer_states": [{"lr": 0.1}], "epoch": 4}
    torch.save(nested, tmp_path / "nested.ckpt")
    for name in ("w.safetensors", "bare.pt", "nested.ckpt"):
        assert same(read_weights(tmp_path / name)), name


class Trap:
    """A pickle of it makes whoever reads it make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_a_pickle_of_more_than_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "callbacks": Trap(tmp_path / "sprung")}, tmp_path / "trap.ckpt")
    with pytest.raises(CheckpointError, match=r"holds more than weights.*mkdir.*as safetensors"):
        read_weights(tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "plain.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
def test_a_file_that_ends_early_is_named(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    big = {"a": torch.zeros(1000), "b": torch.ones(1000)}
    save_file(big, path) if path.suffix == ".safetensors" else torch.save({"state_dict": big}, path)
    whole = path.read_bytes()
    assert read_weights(path).keys() == big.keys()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=name):
        read_weights(path)


def test_files_without_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no\.ckpt"):
        read_weights(tmp_path / "no.ckpt")
    with pytest.raises(CheckpointError, match=r"no\.safetensors"):
        read_weights(tmp_path / "no.safetensors")
    for name, value in (("list.pt", [torch.ones(1)]), ("empty.pt", {"state_dict": {"epoch": 1}})):
        torch.save(value, tmp_path / name)
        with pytest.raises(CheckpointError, match="holds no tensors by name"):
            read_weights(tmp_path / name)


def test_weights_become_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CONFIG.build(SPEC)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    made = with_weights(CONFIG, SPEC, weights, tmp_path)
    assert not made.training
    for name, parameter in made.named_parameters():
        assert parameter.requires_grad
        assert parameter.data_ptr() == weights[name].data_ptr(), "the tensor itself, not a copy of it"
        assert is_aligned(parameter)
    half = with_weights(CONFIG, SPEC, {k: v.half() for k, v in weights.items()}, tmp_path)
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_parts_of_a_larger_tensor_become_aligned_parameters(tmp_path: Path) -> None:
    weights = {}
    for name, value in CONFIG.build(SPEC).state_dict().items():
        weights[name] = torch.cat([torch.zeros(1), value.flatten()])[1:].view_as(value)
    assert not any(is_aligned(v) for v in weights.values())
    made = with_weights(CONFIG, SPEC, weights, tmp_path)
    assert all(is_aligned(v) and torch.equal(v, weights[k]) for k, v in made.state_dict().items())


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    good = CONFIG.build(SPEC).state_dict()

    def fails(weights: dict[str, torch.Tensor], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            with_weights(CONFIG, SPEC, weights, Path("there"))

    fails({k: v for k, v in good.items() if k != "head.bias"}, r"in there do not fit a 'genie': head.bias is missing$")
    fails({**good, "extra": torch.ones(1)}, "extra is not known")
    fails({**good, "head.bias": torch.ones(3)}, r"head.bias is \(3,\) instead of \(8,\)")
    fails({**good, "head.bias": torch.ones(8, dtype=torch.long)}, r"head.bias is of type torch.int64")
    fails({}, r"is missing, .* and \d+ more")


def test_a_module_that_no_file_describes_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Genie.__init__

    def with_a_buffer(self: Genie, *given: Any) -> None:
        whole(self, *given)
        self.register_buffer("table", torch.ones(2), persistent=False)

    weights = CONFIG.build(SPEC).state_dict()
    monkeypatch.setattr(Genie, "__init__", with_a_buffer)
    with pytest.raises(TypeError, match="buffers that no file holds"):
        with_weights(CONFIG, SPEC, weights, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(("name", "copies"), [("w.safetensors", 1), ("w.pt", 0)])
def test_large_weights_are_read_once_or_mapped(tmp_path: Path, name: str, copies: int) -> None:
    spec = DataSpec(LatentSpec((8, 8), 2**18, levels=(512, 512)), {})
    config = Genie.Config(dim=384, depth=8, past=3, window_stride=1)  # 60 MB
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in config.build(spec).state_dict().items()}
    weights = {k: torch.randn(s) for k, s in shapes.items()}
    size = sum(v.nbytes for v in weights.values())
    assert size > 50_000_000
    save_file(weights, tmp_path / name) if name.endswith("safetensors") else torch.save(weights, tmp_path / name)
    before = own_memory()
    model = with_weights(config, spec, read_weights(tmp_path / name), tmp_path)
    assert own_memory() - before < (copies + 0.1) * size
    assert all(torch.equal(p, weights[k]) for k, p in model.state_dict().items())
    assert own_memory() - before < (copies + 0.1) * size, "using them does not copy them either"


def own_memory() -> int:
    """Bytes of this process that are not pages of a file."""
    line = next(
        x for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if x.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024
