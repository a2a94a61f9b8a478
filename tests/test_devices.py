"""Which device and which number format are chosen."""

from __future__ import annotations

import pytest
import torch

from hwm import devices
from hwm.computing import Computing
from hwm.devices import Runtime, choose_format, find_device, open_runtime
from hwm.errors import HwmError

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
