"""Reads checkpoints of t5x: a folder with a flax file of small arrays, and a zarr array for each large one.

The file `checkpoint` is flax msgpack; where an array lies beside it stands `PLACEHOLDER://<folder>`. Such a folder has
`.zarray` (zarr version 2: shape, chunks, type, how chunks are packed) and a file `<i>.<j>...` for each chunk. Needs
no t5x, jax, tensorstore or zarr.
"""

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_mmunify.conversion.errors import NotACheckpointError
from hf_mmunify.conversion.readers import flax
from hf_mmunify.conversion.readers.arrays import from_bytes


PLACEHOLDER = "PLACEHOLDER://"
UNPACK: dict[str | None, Callable[[bytes], bytes]] = {None: bytes, "gzip": gzip.decompress, "zlib": zlib.decompress}


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one: the file `checkpoint`, and arrays beside it."""
    return (folder / "checkpoint").is_file() and any(folder.glob("*/.zarray"))


def read(folder: Path) -> dict[str, Any]:
    """The tree of a t5x checkpoint: nested dicts down to tensors.

    Raises:
        NotACheckpointError: an array that the tree names is missing, damaged, or packed in another way.
    """
    return _filled(flax.read(folder / "checkpoint"), folder)


def _filled(tree: Any, folder: Path) -> Any:
    if isinstance(tree, dict):
        return {key: _filled(value, folder) for key, value in tree.items()}
    if isinstance(tree, str) and tree.startswith(PLACEHOLDER):
        return _array(folder, tree.removeprefix(PLACEHOLDER))
    return tree


def _array(root: Path, name: str) -> torch.Tensor:
    # The placeholder names the whole path of the tree; the folder may leave the optimizer's own name out
    names = [name.replace("/", "."), name.replace("/", ".").removeprefix("optimizer.")]
    folder = next((root / one for one in names if (root / one / ".zarray").is_file()), None)
    if folder is None or folder.parent != root:
        raise NotACheckpointError(
            f"The checkpoint in {root} keeps `{name}` in a folder of its own, which is not there: fetch all of it."
        )
    about = json.loads((folder / ".zarray").read_text())
    packing = about["compressor"] and about["compressor"]["id"]
    if packing not in UNPACK or about.get("filters") or about.get("order", "C") != "C":
        raise NotACheckpointError(
            f"The array {folder.name} is packed by {packing!r}; only {', '.join(map(str, UNPACK))} can be read here. "
            "Save it again with one of them."
        )
    shape, chunks = tuple(about["shape"]), tuple(about["chunks"])
    separator = about.get("dimension_separator", ".")
    whole = None
    for place in itertools.product(*(range(math.ceil(size / chunk)) for size, chunk in zip(shape, chunks))):
        file = folder / (separator.join(map(str, place)) or "0")
        if not file.is_file():
            raise NotACheckpointError(f"The array {folder.name} lacks its chunk {file.name}: fetch it again.")
        chunk = from_bytes(folder.name, UNPACK[packing](file.read_bytes()), about["dtype"], chunks)
        if whole is None:
            whole = torch.empty(shape, dtype=chunk.dtype)
        part = whole[tuple(slice(at * size, (at + 1) * size) for at, size in zip(place, chunks))]
        part.copy_(chunk[tuple(slice(0, size) for size in part.shape)])
    return whole
