"""Checkpoints of t5x, a flax file with zarr arrays beside it, are read whole, or refused with a reason."""

import gzip
import json
import struct
import zlib

import numpy as np
import pytest
import torch

from hf_mmunify.conversion.errors import NotACheckpointError
from hf_mmunify.conversion.readers import read


PACK = {None: bytes, "gzip": gzip.compress, "zlib": zlib.compress}


def packed(value) -> bytes:
    """msgpack of short dicts, strings, integers below 128 and float32 arrays, as flax writes them."""
    if isinstance(value, dict):
        return bytes([0x80 | len(value)]) + b"".join(packed(key) + packed(one) for key, one in value.items())
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return bytes([value])
    shape = bytes([0x90 | value.ndim]) + bytes(value.shape)
    inner = b"\x93" + shape + packed("float32") + b"\xc4" + bytes([value.nbytes]) + value.tobytes()
    return b"\xc8" + struct.pack(">H", len(inner)) + b"\x01" + inner


def checkpoint(folder, compressor=None, chunks=(2, 3)):
    """A folder in which `kernel` (3, 4) is a zarr array, and `bias` stands in the flax file."""
    kernel, bias = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(2, np.float32)
    tree = {"kernel": "PLACEHOLDER://optimizer.target.img_mlp1.kernel", "bias": bias}
    (folder / "checkpoint").write_bytes(packed({"version": 3, "optimizer": {"target": {"img_mlp1": tree}}}))
    array = folder / "target.img_mlp1.kernel"
    array.mkdir()
    about = {"shape": [3, 4], "chunks": list(chunks), "dtype": "<f4", "filters": None, "order": "C", "zarr_format": 2}
    about["compressor"] = compressor and {"id": compressor}
    (array / ".zarray").write_text(json.dumps(about))
    for row in range(-(-3 // chunks[0])):
        for column in range(-(-4 // chunks[1])):
            chunk = np.zeros(chunks, np.float32)  # the last ones reach beyond the array
            part = kernel[row * chunks[0] : (row + 1) * chunks[0], column * chunks[1] : (column + 1) * chunks[1]]
            chunk[: part.shape[0], : part.shape[1]] = part
            (array / f"{row}.{column}").write_bytes(PACK.get(compressor, bytes)(chunk.tobytes()))
    return kernel, bias, array


@pytest.mark.parametrize("compressor", PACK)
@pytest.mark.parametrize("chunks", [(3, 4), (2, 3)])
def test_small_and_large_arrays_are_read(compressor, chunks, tmp_path):
    kernel, bias, _ = checkpoint(tmp_path, compressor, chunks)
    found = read(tmp_path)["optimizer"]["target"]["img_mlp1"]
    assert torch.equal(found["kernel"], torch.from_numpy(kernel)) and torch.equal(
        found["bias"], torch.from_numpy(bias)
    )


def test_what_is_missing_or_packed_otherwise_is_named(tmp_path):
    _, _, array = checkpoint(tmp_path)
    (array / "1.0").unlink()
    with pytest.raises(NotACheckpointError, match=r"target.img_mlp1.kernel lacks its chunk 1.0"):
        read(tmp_path)
    (array / "1.0").write_bytes(b"short")
    with pytest.raises(NotACheckpointError, match="needs 24 bytes and has 5"):
        read(tmp_path)
    about = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps({**about, "compressor": {"id": "blosc"}}))
    with pytest.raises(NotACheckpointError, match="packed by 'blosc'; only None, gzip, zlib"):
        read(tmp_path)
    array.rename(tmp_path / "target.elsewhere")
    with pytest.raises(NotACheckpointError, match="in a folder of its own, which is not there"):
        read(tmp_path)
