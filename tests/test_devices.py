"""Which device and which number format are chosen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwm import devices
from hwm.computing import Computing, ExactComputing
from hwm.devices import Runtime, choose_format, exact, find_device, format_of, open_runtime, runtime_of
from hwm.errors import HwmError
from hwm.nn.layers import roomy
from hwm.train.blocks import arithmetic

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
faster_format = devices.faster_format.__wrapped__  # before tests replace it, and without what it keeps


def having(monkeypatch: pytest.MonkeyPatch, cards: int = 0, mps: bool = False, bfloat16: bool = True) -> None:
    """A machine with these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda how: None)


@pytest.mark.parametrize(
    ("cards", "mps", "wanted", "found"),
    [
        (0, False, "auto", "cpu"), (0, True, "auto", "mps"), (1, True, "auto", "cuda"), (2, False, "cuda:1", "cuda:1"),
        (1, False, "cpu", "cpu"), (0, True, "mps", "mps"),
    ],
)  # fmt: skip
def test_devices_by_name(monkeypatch, cards, mps, wanted, found) -> None:
    having(monkeypatch, cards, mps)
    assert find_device(wanted) == find_device(torch.device(found)) == torch.device(found)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("cuda", "has no CUDA; take cpu or auto"), ("mps", "has no MPS"), ("gpu", "no device called 'gpu'"),
        ("cuda:x", "no device called"), ("", "no device called"),
    ],
)  # fmt: skip
def test_devices_that_are_not_there(monkeypatch, wanted, says) -> None:
    having(monkeypatch)
    with pytest.raises(HwmError, match=says):
        find_device(wanted)


def test_a_card_that_is_not_there(monkeypatch) -> None:
    having(monkeypatch, cards=2)
    with pytest.raises(HwmError, match="has 2 cards, of numbers 0 to 1"):
        find_device("cuda:2")


def test_an_nvidia_card_computes_float32_as_tf32(monkeypatch) -> None:
    having(monkeypatch, cards=1)
    told: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    find_device("cpu")
    assert told == []
    find_device("cuda")
    assert told == ["high"]


def test_formats_of_cards(monkeypatch) -> None:
    having(monkeypatch, cards=1, bfloat16=True)
    assert choose_format("auto", CUDA) == "bfloat16"
    having(monkeypatch, cards=1, bfloat16=False)
    assert choose_format("auto", CUDA) == "float16"
    assert choose_format("float32", CUDA) == "float32"
    with pytest.raises(HwmError, match="no number format called 'half'"):
        choose_format("half", CUDA)


@pytest.mark.parametrize(("times", "found"), [(0.25, "float32"), (1.1, "float32"), (1.3, "bfloat16"), (2, "bfloat16")])
def test_what_a_cpu_is_faster_at_is_measured(monkeypatch, times, found) -> None:
    monkeypatch.setattr(devices, "peak_flops", lambda device, dtype, **_: times if dtype == "bfloat16" else 1.0)
    assert faster_format(CPU) == found


def test_a_device_without_bfloat16_takes_float32(monkeypatch) -> None:
    def refuses(device, dtype, **_):
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(devices, "peak_flops", refuses)
    assert faster_format(MPS) == "float32"


@pytest.mark.parametrize("format", ["float32", "bfloat16", "float16"])
def test_products_are_of_the_format(format) -> None:
    with Runtime(CPU, format).autocast():
        found = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    assert found.dtype == getattr(torch, format)


def test_options_say_what_is_wrong() -> None:
    asked = Computing(device="cpu", dtype="bfloat16")
    assert open_runtime("cpu", "bfloat16") == asked.start() == Runtime(CPU, "bfloat16")
    with pytest.raises(HwmError, match="threads must not be negative, got -1"):
        Computing(threads=-1).start()


def test_weights_that_are_narrow_compute_in_their_own_format() -> None:
    wide, narrow = nn.Linear(4, 4), nn.Linear(4, 4).to(torch.bfloat16)
    assert runtime_of(wide, "bfloat16") == Runtime(CPU, "bfloat16")
    assert runtime_of(wide, torch.float16) == Runtime(CPU, "float16")
    assert runtime_of(narrow) == runtime_of(narrow, "bfloat16") == Runtime(CPU, "bfloat16", cast=False)
    with runtime_of(narrow).autocast():
        assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(HwmError, match="these weights are in bfloat16, which is what they compute in"):
        runtime_of(narrow, "float32")
    assert runtime_of(object()) == runtime_of(nn.Linear(4, 4).double()) == Runtime(CPU, "float32")
    mixed = nn.Sequential(narrow, nn.LayerNorm(2))  # norms are often kept in float32
    assert format_of(mixed) == "bfloat16"


def test_what_is_data_is_exact_and_what_follows_is_as_before(monkeypatch) -> None:
    def precision() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    seen: list[tuple[str, bool]] = []
    before = precision()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with exact():
            seen.append(precision())
        seen.append(precision())
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert seen == [("highest", False), ("high", True)]


def test_data_is_made_in_float32_unless_asked(monkeypatch) -> None:
    monkeypatch.setattr(devices, "faster_format", lambda device: "bfloat16")
    assert Computing(device="cpu").start().format == "bfloat16"
    assert ExactComputing(device="cpu").start().format == "float32"
    assert ExactComputing(device="cpu", dtype="bfloat16").start().format == "bfloat16"


def test_what_may_be_kept_is_a_share_of_the_memory_that_a_container_leaves(tmp_path, monkeypatch) -> None:
    memory = devices.machine_memory.__wrapped__
    whole = memory()
    assert whole > 2**30
    monkeypatch.setattr(devices, "CONTAINER", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    everything = memory()
    assert everything >= whole
    (tmp_path / "memory.max").write_text("1000000\n", encoding="utf-8")
    assert memory() == 1e6
    monkeypatch.setattr("hwm.nn.layers.machine_memory", memory)
    assert roomy(250_000, CPU)
    assert not roomy(250_001, CPU)
    assert not roomy(1, CUDA)
    for recomputation, room in (("none", True), ("selective", False), ("full", False)):
        with arithmetic(Runtime(CPU, "float32"), recomputation):
            assert roomy(1, CPU) is room
    assert roomy(1, CPU)
