"""Reads the weights in a checkpoint, in the format that its bytes say it has, and never runs anything in it.

| format | how |
|---|---|
| safetensors: a file, or shards with their `*.index.json` | `safetensors` |
| torch files, zip or legacy; pickles of arrays | `torch.load(weights_only=True)`, else `pickled`, which runs nothing |
| a pickled `nn.Module` | the same; its state dict, without the package that defines it |
| a TorchScript program | `pickled`: the weights of its modules; its code is not even read |
| TensorFlow V2 checkpoints (`*.index` and `*.data-*`) | `tensorflow`, without TensorFlow |
| flax msgpack | `flax`, without flax or jax |
| t5x: a folder with flax msgpack and zarr arrays | `t5x`, the same |
"""

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hf_mmunify.conversion.errors import ConversionError, NotACheckpointError, listing
from hf_mmunify.conversion.readers import flax, pickled, t5x, tensorflow


__all__ = ["read"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar", ".msgpack", ".th")
"""What weight files are called; only asked for when a folder must be searched."""

FOREIGN = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"\x89HDF": "an HDF5 file (Keras weights), which no reader here understands",
    b"GGUF": "a GGUF file, which no reader here understands",
}

DAMAGE = (
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    json.JSONDecodeError,
    SafetensorError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
)
"""What parsers raise over bytes that are not what they should be."""


def read(path: str | Path) -> Mapping[str, Any]:
    """The checkpoint at `path` as a tree: nested mappings down to torch tensors and whatever else it holds.

    Args:
        path: a file; a folder with one checkpoint in it, or one of t5x; an `*.index.json` of shards; or the prefix of
            a TensorFlow checkpoint (`model.ckpt-1000` for `model.ckpt-1000.index`).

    Raises:
        NotACheckpointError: there is no such file, or it is something else, and what.
        UnsafeCheckpointError: a pickle that wants to call what no checkpoint needs; the message names it.
    """
    path = Path(path)
    if t5x.is_checkpoint(path):
        return _guarded(t5x.read, path, "a checkpoint of t5x")
    if path.is_dir():
        path = _only_checkpoint(path)
    if (prefix := tensorflow.prefix_of(path)) is not None:
        return _guarded(tensorflow.read, prefix, "a TensorFlow checkpoint")
    if not path.is_file():
        raise NotACheckpointError(f"There is no file or folder {path}.")
    if path.name.endswith(".index.json"):
        return _guarded(_read_shards, path, "an index of shards")
    reader, what = _recognise(path)
    tree = _guarded(reader, path, what)
    if not isinstance(tree, Mapping):
        raise NotACheckpointError(
            f"{path.name} is {what}, but holds a {type(tree).__name__}; expected a dict of tensors."
        )
    return tree


def _guarded(reader: Callable[[Path], Any], path: Path, what: str) -> Any:
    try:
        return reader(path)
    except ConversionError:
        raise
    except DAMAGE as error:
        raise NotACheckpointError(
            f"{path.name} looks like {what}, but is truncated or damaged ({type(error).__name__}: {error}). "
            "Fetch it again and compare its size or checksum."
        ) from error


def _recognise(path: Path) -> tuple[Callable[[Path], Any], str]:
    """The reader for a file by its first bytes; names lie, and published ones more often than not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise NotACheckpointError(f"{path.name} is empty. Fetch it again.")
    if start.startswith(b"version https://git-lfs"):
        raise NotACheckpointError(
            f"{path.name} is a git-lfs pointer, not the weights themselves. Run `git lfs pull` in its repository, or "
            "download the file itself."
        )
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            raise NotACheckpointError(f"{path.name} is {what}. Expected a checkpoint.")
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000:
        return load_file, "a safetensors file"
    if start.startswith(b"PK\x03\x04"):
        return _read_zip, "a torch file"
    if start[0] == 0x80 and len(start) > 1 and start[1] in range(2, 6):
        return _read_pickle, "a pickle"
    if start[0] in range(0x80, 0x90) or start[0] in (0xDE, 0xDF):
        return flax.read, "a flax msgpack file"
    if start[257:262] == b"ustar":
        raise NotACheckpointError(f"{path.name} is a tar archive; unpack it first. Expected a checkpoint.")
    if b"<html" in start.lower() or b"<!doctype" in start.lower():
        raise NotACheckpointError(
            f"{path.name} is an HTML page, not weights: the download got an error or consent page. Open the link in a "
            "browser, or use the publisher's own downloader."
        )
    if start.isascii() and b"\0" not in start:
        line = start.decode().splitlines()[0][:60]
        raise NotACheckpointError(f"{path.name} is a text file that begins with {line!r}. Expected a checkpoint.")
    raise NotACheckpointError(
        f"{path.name} ({size} bytes, beginning with {start[:8].hex(' ')}) is no checkpoint that a reader here "
        "understands: safetensors, torch, pickle, TensorFlow V2, flax msgpack."
    )


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return pickled.read_zip(path)  # a TorchScript program, which `torch.load` would run
    if sum(name.endswith("data.pkl") for name in names) != 1:
        raise NotACheckpointError(
            f"{path.name} is a zip archive, but not of torch; unpack it. It has {listing(names)}."
        )
    try:
        return _torch_load(path)
    except pickle.UnpicklingError:
        return pickled.read_zip(path)


def _read_pickle(path: Path) -> Any:
    try:
        return _torch_load(path)
    except DAMAGE:  # also what torch says of a pickle that `torch.save` did not write
        return pickled.read_stream(path)


def _torch_load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols that it may not know: then `pickled` does
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_shards(index: Path) -> dict[str, Any]:
    weight_map = json.loads(index.read_text())["weight_map"]
    tensors = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise NotACheckpointError(
                f"{index.name} names the shard {name!r} outside its own folder; it was not read."
            )
        tensors |= read(index.parent / name)
    if absent := [key for key in weight_map if key not in tensors]:
        raise NotACheckpointError(f"{index.name} promises keys that its shards lack, {listing(absent)}.")
    return tensors


def _only_checkpoint(folder: Path) -> Path:
    """The one checkpoint in a folder; safetensors before other formats, an index before its shards."""
    if (latest := tensorflow.latest(folder)) is not None:
        return latest
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    for found in (
        [file for file in files if file.name.endswith(".safetensors.index.json")],
        [file for file in files if file.suffix == ".safetensors"],
        [file for file in files if file.name.endswith(".index.json")],
        [file for file in files if file.suffix in SUFFIXES],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise NotACheckpointError(
                f"The folder {folder} holds several checkpoints, {listing(file.name for file in found)}. Name one."
            )
    raise NotACheckpointError(
        f"The folder {folder} holds no checkpoint, only {listing(file.name for file in files)}. Name the file."
    )
