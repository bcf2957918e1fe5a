"""Reads the weights in a checkpoint file, safely: nothing in the file is ever run."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def read(path: str | Path) -> dict[str, Any]:
    """The tree of tensors in the file at `path`."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
