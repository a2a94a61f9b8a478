"""TFRecord and tf.train.Example: what another program writes is read, and damage is found."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwm.data.sources.tfrecord import _masked, crc32c, read_example, read_record, record_starts
from hwm.errors import HwmError


def bit_by_bit(data: bytes) -> int:
    """CRC-32C as it is defined."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    value, out = value % (1 << 64), b""
    while value > 127:
        value, out = value >> 7, out + bytes([value & 127 | 128])
    return out + bytes([value])


def message(*fields: tuple[int, bytes]) -> bytes:
    """A protocol buffer of fields with a length."""
    return b"".join(varint(number << 3 | 2) + varint(len(data)) + data for number, data in fields)


def example(features: dict[str, tuple[int, bytes]]) -> bytes:
    entries = [(1, message((1, name.encode()), (2, message(value)))) for name, value in features.items()]
    return message((1, message(*entries)))


def write_records(path: Path, *records: bytes) -> None:
    with path.open("wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data)))


def test_the_known_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(min_size=4, max_size=700))
def test_the_checksum_is_that_of_the_definition(data: bytes) -> None:
    assert crc32c(data) == bit_by_bit(data)


@given(
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=9),
    st.lists(st.floats(width=32, allow_nan=False), max_size=9),
    st.lists(st.binary(max_size=300), max_size=4),
)
def test_examples_are_read(whole: list[int], floats: list[float], raw: list[bytes]) -> None:
    data = example(
        {
            "whole": (3, message((1, b"".join(map(varint, whole))))),
            "single": (3, b"".join(varint(1 << 3) + varint(v) for v in whole)),
            "floats": (2, message((1, struct.pack(f"<{len(floats)}f", *floats)))),
            "raw": (1, message(*((1, value) for value in raw))),
        }
    )
    got = read_example(data)
    assert list(got["whole"]) == list(got["single"]) == whole
    assert list(got["floats"]) == list(np.float32(floats))
    assert list(got["raw"]) == raw


def test_records_are_found_and_read(tmp_path: Path) -> None:
    records = [bytes([i]) * (i * 37 + 4) for i in range(5)]
    write_records(tmp_path / "a", *records)
    starts = record_starts(tmp_path / "a")
    assert [read_record(tmp_path / "a", int(s)) for s in starts] == records


@pytest.mark.parametrize("place", [0, 9, 14, -6, -1])
def test_a_changed_byte_is_noticed(tmp_path: Path, place: int) -> None:
    write_records(tmp_path / "a", b"something to be read")
    data = bytearray((tmp_path / "a").read_bytes())
    data[place] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(HwmError, match="is damaged"):
        [read_record(tmp_path / "a", int(s)) for s in record_starts(tmp_path / "a")]


@pytest.mark.parametrize("left", [3, 15, 30])
def test_a_file_that_is_cut_is_noticed(tmp_path: Path, left: int) -> None:
    write_records(tmp_path / "a", b"something to be read")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:left])
    with pytest.raises(HwmError, match="truncated"):
        record_starts(tmp_path / "a")


@given(st.binary(min_size=1, max_size=60))
def test_other_bytes_are_no_example_or_one_without_surprises(data: bytes) -> None:
    with contextlib.suppress(HwmError):
        assert all(isinstance(name, str) for name in read_example(data))
