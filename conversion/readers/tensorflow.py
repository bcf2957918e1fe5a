"""Reads TensorFlow V2 checkpoints: a sorted string table of names (`.index`) and the tensors (`.data-*`).

Needs no TensorFlow. Object-graph checkpoints (TF2, Keras) and name-based ones (TF1 savers) are the same on disk.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import torch

from hf_mmunify.conversion.errors import NotACheckpointError, listing
from hf_mmunify.conversion.readers.arrays import from_bytes


MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "bfloat16", 17: "<u2",
          19: "<f2", 22: "<u4", 23: "<u8"}  # fmt: skip
STRING = 7
"""The type of the object graph and of the save counter's name: not weights."""


def prefix_of(path: Path) -> Path | None:
    """The prefix of the TensorFlow checkpoint that `path` names by its prefix, its index or a data shard, if any."""
    name = re.sub(r"\.index$|\.data-\d{5}-of-\d{5}$", "", path.name)
    prefix = path.with_name(name) if name else path
    return prefix if prefix.with_name(f"{prefix.name}.index").is_file() else None


def latest(folder: Path) -> Path | None:
    """The prefix of the checkpoint that a training folder calls its latest, or of the only one.

    Raises:
        NotACheckpointError: there are several, and none is called the latest.
    """
    names = sorted(file.name.removesuffix(".index") for file in folder.glob("*.index"))
    state = folder / "checkpoint"
    if names and state.is_file():
        called = re.search(r'^model_checkpoint_path: "(.*)"', state.read_text(errors="replace"), re.MULTILINE)
        if called and Path(called[1]).name in names:  # the path is that of the machine that trained
            return folder / Path(called[1]).name
    if len(names) > 1:
        raise NotACheckpointError(f"The folder {folder} holds several checkpoints, {listing(names)}. Name one.")
    return folder / names[0] if names else None


def read(prefix: Path) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint `prefix`.index, `prefix`.data-*, under their names in the file.

    Raises:
        NotACheckpointError: a file is missing, damaged, or holds what no reader here understands.
    """
    index = prefix.with_name(f"{prefix.name}.index").read_bytes()
    if index[-len(MAGIC) :] != MAGIC:
        raise NotACheckpointError(f"{prefix.name}.index is no TensorFlow index: it is truncated, or another thing.")
    footer = index[-FOOTER:]
    place = 0
    numbers = []
    for _ in range(4):  # place and size of the (unused) meta index block, then of the index block
        number, place = _varint(footer, place)
        numbers.append(number)
    entries = {}
    for _, handle in _entries(_block(index, numbers[2], numbers[3])):
        offset, place = _varint(handle, 0)
        size, _ = _varint(handle, place)
        entries.update(_entries(_block(index, offset, size)))
    shards = dict(_fields(entries.pop(b""))).get(1, 1)
    tensors = {}
    for key, entry in entries.items():
        fields = dict(_fields(entry))
        if fields.get(1) != STRING:
            tensors[key.decode()] = _tensor(prefix, key.decode(), fields, shards)
    return tensors


def _tensor(prefix: Path, name: str, fields: dict[int, int | bytes], shards: int) -> torch.Tensor:
    if fields.get(1) not in DTYPES or 7 in fields:
        raise NotACheckpointError(
            f"`{name}` of {prefix.name} is of TensorFlow type {fields.get(1)}{' and sliced' if 7 in fields else ''}, "
            "which this reader does not understand. Save the checkpoint again as whole tensors of a plain type."
        )
    sizes = [dict(_fields(size)) for number, size in _fields(fields.get(2, b"")) if number == 2]
    data = prefix.with_name(f"{prefix.name}.data-{fields.get(3, 0):05d}-of-{shards:05d}")
    if not data.is_file():
        raise NotACheckpointError(f"{data.name} is missing beside {prefix.name}.index. Fetch all of its files.")
    with data.open("rb") as file:
        file.seek(fields.get(4, 0))
        raw = file.read(fields.get(5, 0))
    return from_bytes(name, raw, DTYPES[fields[1]], tuple(size.get(1, 0) for size in sizes))


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of a protocol buffer message."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        match tag & 7:
            case 0:
                value, place = _varint(message, place)
            case 2:
                length, place = _varint(message, place)
                value, place = message[place : place + length], place + length
            case 1 | 5:
                length = 8 if tag & 7 == 1 else 4
                value, place = message[place : place + length], place + length
            case kind:
                raise ValueError(f"a protocol buffer field has wire type {kind}")
        yield tag >> 3, value


def _block(table: bytes, offset: int, size: int) -> bytes:
    """A block of the table; the byte behind it says whether it is compressed."""
    block = table[offset : offset + size]
    match table[offset + size]:
        case 0:
            return block
        case 1:
            return _unsnappy(block)
        case kind:
            raise ValueError(f"a table block has compression {kind}")


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of a block; each key says how much of the one before it shares."""
    (restarts,) = struct.unpack("<I", block[-4:])
    end, place, key = len(block) - 4 * (restarts + 1), 0, b""
    while place < end:
        shared, place = _varint(block, place)
        fresh, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + fresh]
        place += fresh
        yield key, block[place : place + length]
        place += length


def _unsnappy(block: bytes) -> bytes:
    """Undoes the snappy compression of a block: literals, and copies of what was already written."""
    length, place = _varint(block, 0)
    out = bytearray()
    while place < len(block):
        tag = block[place]
        place += 1
        if tag & 3 == 0:
            count = tag >> 2
            if count >= 60:
                width = count - 59
                count = int.from_bytes(block[place : place + width], "little")
                place += width
            out += block[place : place + count + 1]
            place += count + 1
            continue
        if tag & 3 == 1:
            count, width = 4 + ((tag >> 2) & 7), 1
            offset = (tag >> 5) << 8 | block[place]
        else:
            count, width = 1 + (tag >> 2), 2 if tag & 3 == 2 else 4
            offset = int.from_bytes(block[place : place + width], "little")
        place += width
        for _ in range(count):  # byte by byte: a copy may overlap what it writes
            out.append(out[-offset])
    if len(out) != length:
        raise ValueError(f"a compressed block unpacks to {len(out)} bytes instead of {length}")
    return bytes(out)
