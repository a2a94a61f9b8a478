"""TFRecord files and the examples in them, without TensorFlow.

A record is its length (8 bytes), a checksum of that (4), the data, and a checksum of the data (4); the checksums are
CRC-32C, rotated and offset ([format](https://www.tensorflow.org/tutorials/load_data/tfrecord)). The data is a
`tf.train.Example`, a protocol buffer: a map from names to lists of bytes, of float32, or of int64
([wire format](https://protobuf.dev/programming-guides/encoding/)).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from hwm.errors import HwmError

Value: TypeAlias = "list[bytes] | np.ndarray"
CASTAGNOLI = 0x82F63B78
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # wire types


def record_starts(path: Path) -> np.ndarray:
    """Where the data of each record begins, (records,); only the lengths are read.

    Raises:
        HwmError: a length that does not match its checksum, or a file that ends within a record.
    """
    starts, size, at = [], path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            starts.append(at + 12)
            at += 16 + _length(path, file.read(12), at)
    if at > size:
        raise HwmError(f"{path} is truncated: record {len(starts) - 1} ends {at - size:,} bytes after the file")
    return np.array(starts, np.int64)


def read_record(path: Path, start: int) -> bytes:
    """The data of the record that begins there, compared with its checksum."""
    with path.open("rb") as file:
        file.seek(start - 12)
        length = _length(path, file.read(12), start - 12)
        data, tail = file.read(length), file.read(4)
    if len(data) < length or len(tail) < 4:
        raise HwmError(f"{path} is truncated within the record at byte {start}")
    if _masked(data) != struct.unpack("<I", tail)[0]:
        raise HwmError(f"{path} is damaged: the record at byte {start} does not match its checksum")
    return data


def _length(path: Path, head: bytes, at: int) -> int:
    if len(head) < 12:
        raise HwmError(f"{path} is truncated at byte {at}")
    length, checksum = struct.unpack("<QI", head)
    if _masked(head[:8]) != checksum:
        raise HwmError(f"{path} is damaged, or no TFRecord file: the length at byte {at} does not match its checksum")
    return int(length)


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _byte_table() -> np.ndarray:
    crc: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = crc >> 1 ^ np.where(crc & 1, np.uint32(CASTAGNOLI), np.uint32(0))
    return crc


TABLE = _byte_table()


def crc32c(data: bytes) -> int:
    """CRC-32C of at least four bytes.

    The data is cut into rows that are summed side by side, and the sums are joined in pairs: what `length` bytes after
    it do to a sum is linear in its bits, and known from what they do to each bit.
    """
    cut = np.frombuffer(data, np.uint8)
    rows = 1 << max(0, len(cut).bit_length() // 2 - 2)
    length = -(-len(cut) // rows)
    padded = np.zeros(rows * length, np.uint8)  # zeros before the data change nothing
    padded[len(padded) - len(cut) :] = cut
    padded[len(padded) - len(cut) :][:4] ^= 0xFF  # as starting with all bits set
    bits = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    sums = np.concatenate([np.zeros(rows, np.uint32), bits])
    columns = np.zeros((length, rows + 32), np.uint32)
    columns[:, :rows] = padded.reshape(rows, length).T
    for column in columns:
        sums = TABLE[(sums ^ column) & 0xFF] ^ sums >> 8
    sums, after = sums[:rows], sums[rows:]
    while len(sums) > 1:
        sums = _apply(after, sums[0::2]) ^ sums[1::2]
        after = _apply(after, after)
    return int(sums[0]) ^ 0xFFFFFFFF


def _apply(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A matrix over bits, (32,) columns, times values (n,)."""
    shifts = np.arange(32, dtype=np.uint32)
    picked = np.where(values[:, None] >> shifts & 1, columns, np.uint32(0))
    return np.bitwise_xor.reduce(picked, 1)


def read_example(data: bytes) -> dict[str, Value]:
    """The features of a `tf.train.Example`: lists of bytes, or arrays of float32 or int64.

    Raises:
        HwmError: the data is not such an example.
    """
    view, features = memoryview(data), dict[str, Value]()
    try:
        for field, _, inner in _fields(view):
            if field != 1:
                continue
            for _, _, entry in _fields(inner):
                parts = {number: part for number, _, part in _fields(entry)}
                features[bytes(parts[1]).decode()] = _feature(parts.get(2, memoryview(b"")))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise HwmError(f"a record holds no tf.train.Example: {error!r}") from error
    return features


def _feature(data: memoryview) -> Value:
    for kind, _, inner in _fields(data):
        values = [(wire, value) for _, wire, value in _fields(inner)]
        if kind == 1:
            return [bytes(value) for _, value in values]
        if kind == 2:  # packed, or one by one; both are four bytes each
            return np.frombuffer(b"".join(value for _, value in values), "<f4")
        whole = [_varints(v) if wire == BYTES else np.array([_signed(v)], np.int64) for wire, v in values]
        return np.concatenate(whole) if whole else np.zeros(0, np.int64)
    return []


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Numbers, wire types and contents of a message's fields; of a varint its bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire, start = tag & 7, at
        if wire == BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif wire == VARINT:
            _, at = _varint(data, at)
        elif wire in (EIGHT, FOUR):
            at += 8 if wire == EIGHT else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(data):
            raise ValueError(f"a field of {at - start} bytes ends after its message")
        yield tag >> 3, wire, data[start:at]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _signed(data: memoryview) -> int:
    value = _varint(data, 0)[0]
    return value - (1 << 64) if value >> 63 else value


def _varints(data: memoryview) -> np.ndarray:
    """Packed varints as int64, all at once."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128)
    if not len(ends):
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(ends[-1] + 1) - np.repeat(starts, ends - starts + 1)
    parts = (raw[: ends[-1] + 1] & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)
