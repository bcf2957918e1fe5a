"""Reads what `flax.serialization.to_bytes` wrote: msgpack with extension types for arrays. Needs no flax, no jax."""

import struct
from pathlib import Path
from typing import Any

import torch

from hf_mmunify.conversion.errors import NotACheckpointError
from hf_mmunify.conversion.readers.arrays import from_bytes


MAX_DEPTH = 200
"""No parameter tree is deeper; a crafted one must not exhaust the stack."""

CHUNKED = "__msgpack_chunked_array__"
"""How flax marks an array that it cut into pieces because msgpack ends at 4 GiB."""


def read(path: Path) -> dict[str, Any]:
    """The parameter tree in a flax file: nested dicts down to tensors.

    Raises:
        NotACheckpointError: the bytes are not msgpack as flax writes it, or end early.
    """
    decoder = _Decoder(path.read_bytes())
    tree = decoder.value()
    if decoder.place != len(decoder.data):
        raise NotACheckpointError(
            f"{path.name} goes on after its msgpack tree ended, at byte {decoder.place} of {len(decoder.data)}: it is "
            "no flax checkpoint."
        )
    return _whole(tree)


class _Decoder:
    """msgpack, as much of it as flax uses. `place` is the next byte of `data` to read."""

    def __init__(self, data: bytes):
        self.data, self.place, self.depth = data, 0, 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.place : self.place + count]
        if len(taken) < count:
            raise EOFError(f"it ends at byte {len(self.data)}, in the middle of a value")
        self.place += count
        return taken

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "big", signed=signed)

    def value(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        value = self._value(self.number(1))
        self.depth -= 1
        return value

    def _value(self, code: int) -> Any:
        match code:
            case _ if code < 0x80:
                return code
            case _ if code >= 0xE0:
                return code - 256
            case _ if code < 0x90:
                return self._map(code & 15)
            case _ if code < 0xA0:
                return self._array(code & 15)
            case _ if code < 0xC0:
                return self.take(code & 31).decode()
            case 0xC0:
                return None
            case 0xC2 | 0xC3:
                return code == 0xC3
            case 0xC4 | 0xC5 | 0xC6:
                return self.take(self.number(1 << code - 0xC4))
            case 0xC7 | 0xC8 | 0xC9:
                return self._extension(self.number(1 << code - 0xC7))
            case 0xCA:
                return struct.unpack(">f", self.take(4))[0]
            case 0xCB:
                return struct.unpack(">d", self.take(8))[0]
            case 0xCC | 0xCD | 0xCE | 0xCF:
                return self.number(1 << code - 0xCC)
            case 0xD0 | 0xD1 | 0xD2 | 0xD3:
                return self.number(1 << code - 0xD0, signed=True)
            case 0xD4 | 0xD5 | 0xD6 | 0xD7 | 0xD8:
                return self._extension(1 << code - 0xD4)
            case 0xD9 | 0xDA | 0xDB:
                return self.take(self.number(1 << code - 0xD9)).decode()
            case 0xDC | 0xDD:
                return self._array(self.number(2 << code - 0xDC))
            case 0xDE | 0xDF:
                return self._map(self.number(2 << code - 0xDE))
        raise ValueError(f"byte {code:#x} begins no msgpack value")

    def _array(self, length: int) -> list[Any]:
        return [self.value() for _ in range(length)]

    def _map(self, length: int) -> dict[Any, Any]:
        return {self.value(): self.value() for _ in range(length)}

    def _extension(self, length: int) -> Any:
        """Type 1 is an array (shape, dtype, bytes), type 3 a numpy scalar, packed the same way."""
        kind, inner = self.number(1), _Decoder(self.take(length))
        if kind not in (1, 3):
            raise ValueError(f"msgpack extension type {kind} is neither an array nor a scalar of flax")
        entry = inner.value()
        shape, dtype, raw = entry if kind == 1 else ((), *entry)
        return from_bytes("an array", raw, dtype, tuple(shape))


def _whole(tree: Any) -> Any:
    """The tree with arrays that flax cut into chunks put together again."""
    if not isinstance(tree, dict):
        return tree
    if CHUNKED not in tree:
        return {key: _whole(value) for key, value in tree.items()}
    shape, chunks = (_sequence(tree[name]) for name in ("shape", "chunks"))
    return torch.cat([chunk.flatten() for chunk in chunks]).reshape(shape)


def _sequence(value: Any) -> list[Any]:
    """A sequence, which flax writes as a dict of its places."""
    return [value[str(place)] for place in range(len(value))] if isinstance(value, dict) else list(value)
