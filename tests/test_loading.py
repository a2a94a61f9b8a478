"""Finding models, tokenizers and stores by name, folder or run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwm.assets import STORES, resolve_store
from hwm.devices import Runtime, format_of
from hwm.errors import HwmError
from hwm.loading import copy_weights, load, load_tokenizer, open_tokenizer
from hwm.models.masked_hwm import MaskedHWM
from hwm.tokenizers.tiny import TinyTokenizer
from hwm.train.checkpoint import save_model
from hwm.types import ActionSpec, DataSpec, LatentSpec
from tests.models.toys import is_aligned

ACTIONS = {"toy": ActionSpec(2, ("a", "b"), (0.0, 0.0), (1.0, 1.0))}
TOKENS = DataSpec(LatentSpec((2, 2), 25, levels=(5, 5)), ACTIONS)
PIXELS = DataSpec(LatentSpec((16, 16), channels=3), ACTIONS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", MaskedHWM.tiny().build(TOKENS))
    return tmp_path / "model"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    save_model(tmp_path / "to@kenizer", TinyTokenizer.tiny().build(PIXELS))
    return tmp_path / "to@kenizer"


def test_a_folder_is_loaded(model: Path) -> None:
    assert isinstance(load(model), MaskedHWM)
    assert isinstance(load(str(model)), MaskedHWM)


def test_loaded_weights_are_aligned(model: Path, tokenizer: Path) -> None:
    for module in (load(model), load_tokenizer(tokenizer)):
        assert [k for k, v in module.state_dict().items() if not is_aligned(v)] == []


def test_one_kind_is_not_taken_for_the_other(model: Path, tokenizer: Path) -> None:
    with pytest.raises(HwmError, match="checkpoint of a 'tiny', not of a world model"):
        load(tokenizer)
    with pytest.raises(HwmError, match="checkpoint of a 'masked_hwm', not of a tokenizer"):
        load_tokenizer(model)


def test_the_identity_of_a_tokenizer_finds_it_again(tokenizer: Path) -> None:
    loaded = load_tokenizer(tokenizer)  # a folder may have an @ in its name
    assert loaded.id.startswith(f"{tokenizer}@")
    assert load_tokenizer(loaded.id).id == loaded.id
    with pytest.raises(HwmError, match="is wanted, but the weights at"):
        load_tokenizer(f"{tokenizer}@00000000")


def test_unknown_names_show_the_nearest() -> None:
    with pytest.raises(HwmError, match="no model called 'masked_hwm_mino'; did you mean masked_hwm_mini"):
        load("masked_hwm_mino")
    with pytest.raises(HwmError, match=r"there is no store minni: .*\(mini, mini_heldout\)"):
        resolve_store("minni")


def test_stores_are_found_by_name_or_folder(tmp_path: Path) -> None:
    assert resolve_store(tmp_path) == tmp_path
    for name, folder in STORES.items():
        if folder.exists():
            assert resolve_store(name) == folder


def test_weights_are_copied_where_they_fit(model: Path) -> None:
    same, other = MaskedHWM.tiny().build(TOKENS), MaskedHWM.Config(dim=16, depth=1, heads=2).build(TOKENS)
    copy_weights(model, same)
    saved = load(model).state_dict()
    assert all(torch.equal(v, saved[k]) for k, v in same.state_dict().items())
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(HwmError, match=r"do not fit this 'masked_hwm'.* is not known, and \d+ more$") as refused:
        copy_weights(model, other)
    assert len(str(refused.value)) < 500
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items()), "nothing of it is half copied"


def test_devices_are_named(model: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(name: torch.device | str) -> torch.device:
        asked.append(str(name))
        return torch.device("cpu" if str(name) == "auto" else name)

    monkeypatch.setattr("hwm.loading.find_device", find)
    for open_ in (lambda *where: load(model, *where), lambda *where: load_tokenizer(tokenizer, *where)):
        open_()
        open_("auto")
    assert asked == ["cpu", "auto"] * 2
    monkeypatch.undo()
    for name in (lambda: load("none", "abacus"), lambda: load_tokenizer("none", "abacus")):
        with pytest.raises(HwmError, match="no device called 'abacus'"):
            name()


def test_tokenizers_are_opened_in_a_number_format(tokenizer: Path) -> None:
    half = open_tokenizer(tokenizer, Runtime(torch.device("cpu"), "bfloat16"))
    assert format_of(half) == "bfloat16"
    assert half.id == load_tokenizer(tokenizer).id
    assert format_of(open_tokenizer(tokenizer, Runtime(torch.device("cpu"), "float32"))) == "float32"
    with pytest.raises(HwmError, match="leave out --dtype bfloat16"):
        open_tokenizer("pixels-16x16", Runtime(torch.device("cpu"), "bfloat16"))
