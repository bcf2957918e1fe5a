"""Raw bytes to tensors."""

import math

import numpy as np
import torch

from hf_mmunify.conversion.errors import NotACheckpointError


def from_bytes(name: str, raw: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of its own memory from little-endian bytes.

    Args:
        name: of the tensor, for the error.
        raw: its values in C order.
        dtype: numpy's name of the type, or `bfloat16`, which numpy has not.
        shape: its sizes.

    Raises:
        NotACheckpointError: there are more or fewer bytes than the shape needs.
    """
    stored = np.dtype("<u2") if dtype == "bfloat16" else np.dtype(dtype)
    if len(raw) != math.prod(shape) * stored.itemsize:
        raise NotACheckpointError(
            f"`{name}` {list(shape)} of {dtype} needs {math.prod(shape) * stored.itemsize} bytes and has {len(raw)}: "
            "the file is truncated or damaged. Fetch it again."
        )
    tensor = torch.from_numpy(np.frombuffer(raw, stored).reshape(shape).copy())
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
