"""Images and videos as data sets hold them, made what every image processor of transformers takes: whole, in RGB."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


CHANNELS = (1, 3, 4)  # grey, RGB, RGB with opacity


def as_picture(image: Any) -> Image.Image:
    """An image of any form as an upright RGB picture.

    Args:
        image: A PIL image of any mode; an array or tensor `[H, W]`, `[H, W, C]` or `[C, H, W]` of bytes, 16-bit
            integers, or floats from 0 to 1 or 0 to 255; a path; encoded bytes; or a mapping with "bytes" or "path", as
            `datasets` keeps an image that it does not decode.

    Raises:
        ValueError: it is truncated, animated, empty, out of range, NaN, or no image at all.
    """
    if isinstance(image, Mapping) and ("bytes" in image or "path" in image):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    try:
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        elif isinstance(image, str | os.PathLike):
            image = Image.open(image)
        if isinstance(image, Image.Image):
            return _upright(image)
    except OSError as error:  # PIL's decoders raise it, and so does a file that is not there
        raise ValueError(f"An image cannot be read: {error}. Is its file complete?") from error
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ValueError(
            f"Expected an image (PIL, an array, a tensor, a path or encoded bytes), got {type(image).__name__}."
        )
    array = np.asarray(image.detach().cpu().float() if isinstance(image, torch.Tensor) else image)
    if array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[2] not in CHANNELS:
        array = array.transpose(1, 2, 0)  # [H, W, C]
    if 0 in array.shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise ValueError(
            f"An image has shape {tuple(image.shape)}: expected [H, W], [H, W, C] or [C, H, W], with 1, 3 or 4 "
            "channels."
        )
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array[..., :3] if array.ndim == 3 else array
    return Image.fromarray(_as_bytes(array)).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"An image is empty: {image.width} x {image.height} pixels.")
    # A photo that carries a second, smaller copy of itself (MPO) is one image; only some formats count
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"An image is animated ({image.n_frames} frames): take one of them, or use it as a video.")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # PIL would cut 16 bits off at 255: white
        image = Image.fromarray(_as_bytes(np.asarray(image)))
    return image.convert("RGB")


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Pixels as 8-bit integers: 16-bit ones, booleans, and floats that reach no further than 1, are scaled."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # also where they are NaN
        raise ValueError(
            f"An image has pixels from {low:g} to {high:g}: expected 0 to 255, or 0 to 1 if they are floats. Give it "
            "as it is, before any normalisation."
        )
    is_unit = array.dtype.kind == "b" or (array.dtype.kind == "f" and high <= 1)
    return np.rint(array * 255.0 if is_unit else array).astype(np.uint8)


def as_frames(
    video: Any, num_frames: int | None = None, stride: int | None = None, start: float = 0.0
) -> list[Image.Image]:
    """A video as RGB frames: evenly spaced over its length, the first and the last among them, or a clip of it.

    Args:
        video: Frames, as a sequence of images or an array or tensor `[F, H, W, C]`, `[F, C, H, W]` or `[F, H, W]`; or
            the path of a file, which PyAV decodes (`pip install 'hf-mmunify[video]'`).
        num_frames (`int`, *optional*): How many; by default all. Of a shorter video frames are repeated.
        stride (`int`, *optional*): Takes a clip, every so many frames, in the place of the whole length.
        start (`float`, defaults to 0.0): Where the clip begins: 0 is as early, 1 as late as it can.

    Raises:
        ValueError: there are no frames, or one of them is no image.
    """
    if isinstance(video, str | os.PathLike):
        from transformers.video_utils import load_video

        video, _ = load_video(str(video), backend="pyav")
    if not isinstance(video, Sequence | np.ndarray | torch.Tensor) or len(video) == 0:
        raise ValueError(f"Expected the frames of a video or the path of its file, got {type(video).__name__}.")
    places = range(len(video))
    if num_frames is not None and stride is not None:
        first = round(start * max(0, len(video) - 1 - (num_frames - 1) * stride))
        places = [min(first + number * stride, len(video) - 1) for number in range(num_frames)]
    elif num_frames is not None:
        places = np.linspace(0, len(video) - 1, num_frames).round().astype(int).tolist()
    return [as_picture(video[place]) for place in places]


__all__ = ["as_frames", "as_picture"]
