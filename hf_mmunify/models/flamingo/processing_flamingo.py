# Copyright 2026 The hf_mmunify authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Flamingo: text interleaved with images or videos becomes token ids and pixels, row by row."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import ImageInput, load_image
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import auto_docstring


# What the assistant said is marked as `generation`: `return_assistant_tokens_mask` shows what is to be learned
CHAT_TEMPLATE = (
    "{% macro content(message) %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ raise_exception('A message consists of text and images, got ' + part['type'] + '.') }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% endmacro %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ content(message) + '<|endofchunk|>' }}{% endgeneration %}"
    "{% else %}{{ content(message) }}{% if not loop.last %}{{ ' ' }}{% endif %}{% endif %}"
    "{% endfor %}"
)
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with opacity


@auto_docstring
class FlamingoProcessor(ProcessorMixin):
    text_kwargs = {"padding": True, "padding_side": "left"}  # ready for `generate`; training masks padding either way

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        image_token="<image>",
        end_of_chunk_token="<|endofchunk|>",
        chat_template=None,
        **kwargs,
    ):
        r"""
        image_token (`str`, *optional*, defaults to `"<image>"`):
            Stands for an image in the text; added to the tokenizer where it is no special token.
        end_of_chunk_token (`str`, *optional*, defaults to `"<|endofchunk|>"`):
            Ends the text that belongs to an image; added to the tokenizer where it is no special token.
        chat_template (`str`, *optional*):
            By default messages follow each other, a space between them, and the assistant's end with the
            end-of-chunk token: the prompts of the paper.
        """
        self.image_token = image_token
        self.end_of_chunk_token = end_of_chunk_token
        if tokenizer is not None:
            # A word of the vocabulary is not enough: it would be split before it is looked up
            new = [token for token in (end_of_chunk_token, image_token) if token not in tokenizer.all_special_tokens]
            if new:
                tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token or end_of_chunk_token
            self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
            self.end_of_chunk_token_id = tokenizer.convert_tokens_to_ids(end_of_chunk_token)
        if chat_template is None:
            chat_template = CHAT_TEMPLATE.replace("<image>", image_token)
            chat_template = chat_template.replace("<|endofchunk|>", end_of_chunk_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @auto_docstring
    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        images (`list[list[ImageInput]]`, *optional*):
            The images of each text, in the order of its `<image>` tokens; a flat list is dealt out to the texts in
            that order. An image is a PIL image of any mode, an array or tensor (0 to 255, or 0 to 1 if it holds
            floats), a path or an address; in its place a list of frames, or a 4-D array of them, is a video, and every
            video of a call has the same number of frames.
        text (`str` or `list[str]`, *optional*):
            Each with one `<image>` for each of its images.

        Returns:
            [`BatchFeature`]: `input_ids` and `attention_mask` `(batch_size, sequence_length)`; `pixel_values`
            `(batch_size, num_images, channels, height, width)`, or with videos `(batch_size, num_images, num_frames,
            channels, height, width)`; `image_mask` `(batch_size, num_images)` where rows differ in number of images.

        Raises:
            ValueError: when a text and its images do not fit each other, or an image cannot be used.
        """
        if kwargs.pop("videos", None) is not None:
            raise ValueError(
                "Videos go among the images, each as a list of its frames: there is one <image> for each."
            )
        if images is None and text is None:
            raise ValueError("Nothing to process: give text, images, or both.")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        texts = [text] if isinstance(text, str) else text
        if texts is not None:
            self._check_texts(texts)
        rows = None if images is None else self._rows_of_media(images, texts)
        data = {}
        if texts is not None:
            data.update(self.tokenizer(list(texts), **merged["text_kwargs"]))
            self._check_tokens(texts, data)
        if rows is not None and any(rows):
            data.update(self._process_rows(rows, **merged["images_kwargs"]))
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def _check_texts(self, texts: Sequence[str]) -> None:
        if len(texts) == 0:
            raise ValueError("The batch is empty: give at least one text.")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text is a string or a list of strings, but text {number} is {type(text).__name__}.")

    def _check_tokens(self, texts: Sequence[str], data: dict) -> None:
        """The language model can hold every text, and truncation left every image its token."""
        longest = self.tokenizer.model_max_length
        for number, text in enumerate(texts):
            ids = np.asarray(data["input_ids"][number])
            length = int(np.asarray(data["attention_mask"][number]).sum()) if "attention_mask" in data else len(ids)
            if length > longest:
                raise ValueError(
                    f"Text {number} has {length} tokens, but the language model holds {longest}: shorten it, or use "
                    "fewer shots."
                )
            if (ids == self.image_token_id).sum() != text.count(self.image_token):
                raise ValueError(
                    f"Truncation cut {self.image_token} tokens off text {number}, and its images would have no place: "
                    "raise max_length, or drop whole image-text pairs."
                )

    def _rows_of_media(self, images, texts: Sequence[str] | None) -> list[list]:
        """`images` as one list a text, with as many entries as the text has image tokens; a video is a list."""
        images = list(images) if isinstance(images, list | tuple) else [images]
        if texts is None:
            return [list(row) for row in images] if any(map(_is_list, images)) else [images]
        expected = [text.count(self.image_token) for text in texts]
        flat = not any(map(_is_list, images))
        if flat and len(images) == sum(expected):
            dealt = iter(images)
            return [[next(dealt) for _ in range(count)] for count in expected]
        if flat and len(texts) > 1:
            raise ValueError(
                f"The texts have {sum(expected)} {self.image_token} token(s), but {len(images)} image(s) came with "
                f"them: write one {self.image_token} where each image belongs."
            )
        if flat or (len(texts) == 1 and len(images) != 1):
            images = [images]  # one text, and what may be videos among its images
        if len(images) != len(texts):
            raise ValueError(
                f"There are {len(texts)} text(s), but images for {len(images)}: give one list of images a text."
            )
        rows = [list(row) if _is_list(row) else [row] for row in images]
        for number, (row, count) in enumerate(zip(rows, expected)):
            if len(row) != count:
                raise ValueError(
                    f"Text {number} has {count} {self.image_token} token(s), but {len(row)} image(s) came with it: "
                    f"write one {self.image_token} where each image belongs."
                )
        return rows

    def _process_rows(self, rows: list[list], **kwargs) -> dict:
        """Rows of images to one array, padded to the longest row, and a mask where that was needed."""
        kwargs.pop("return_tensors", None)
        rescales = kwargs.get("do_rescale", getattr(self.image_processor, "do_rescale", True))  # timm's always does
        slots, videos = [], False  # the frames of each image or video
        for number, row in enumerate(rows):
            for place, media in enumerate(row):
                name = f"Image {place} of text {number}"
                if _is_list(media) or (isinstance(media, np.ndarray | torch.Tensor) and media.ndim == 4):
                    videos = True
                    slots.append([_checked(frame, f"Frame {i} of {name}", rescales) for i, frame in enumerate(media)])
                else:
                    slots.append([_checked(media, name, rescales)])
        lengths = sorted({len(frames) for frames in slots})
        if len(lengths) > 1 or lengths == [0]:
            raise ValueError(
                f"Videos of one call have one number of frames, got {lengths}: sample the same number of each."
            )
        frames = [frame for frames in slots for frame in frames]
        pixels = self.image_processor(frames, return_tensors="pt", **kwargs)["pixel_values"]
        pixels = pixels.unflatten(0, (len(slots), lengths[0]))  # [N, F, C, H, W]
        pixels = pixels if videos else pixels[:, 0]
        longest = max(len(row) for row in rows)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])  # [B, M]
        padded = pixels.new_zeros(mask.numel(), *pixels.shape[1:])
        padded[mask.flatten().bool()] = pixels
        padded = padded.unflatten(0, mask.shape)
        return {"pixel_values": padded} if mask.all() else {"pixel_values": padded, "image_mask": mask}

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_mask"]


def _is_list(media) -> bool:
    return isinstance(media, list | tuple)


def _checked(image, name: str, rescales: bool) -> Image.Image | np.ndarray:
    """An image that an image processor can take: whole, upright, in RGB, from 0 to 255.

    With `rescales` false, the image processor is told not to scale pixels, and arrays keep the values they have.

    Raises:
        ValueError: when it is truncated, animated, empty, out of range, or no image at all; the message names it.
    """
    if isinstance(image, str | os.PathLike):
        try:
            image = Image.open(image) if os.path.isfile(image) else load_image(str(image))
        except Exception as error:  # each decoder of PIL, and each way to fetch a file, raises its own
            raise ValueError(f"{name} cannot be opened: {error}") from error
    if isinstance(image, Image.Image):
        return _checked_picture(image, name)
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ValueError(
            f"{name} is a {type(image).__name__}: expected a PIL image, an array or tensor of pixels, a path or an "
            "address."
        )
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image  # numpy has no bfloat16
    array = np.asarray(image)
    is_channels_first = array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[2] not in CHANNELS
    array = array.transpose(1, 2, 0) if is_channels_first else array  # [H, W, C] or [H, W]
    if 0 in array.shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}: expected (height, width), (height, width, channels) or "
            "(channels, height, width), with 1, 3 or 4 channels."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite pixels: clean it before it is processed.")
    if rescales:
        array = _as_bytes(array, name)
    array = array[..., None] if array.ndim == 2 else array
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]


def _checked_picture(image: Image.Image, name: str) -> Image.Image:
    """A PIL image, decoded, upright and in RGB."""
    if 0 in image.size:
        raise ValueError(f"{name} is empty: {image.width}x{image.height} pixels.")
    try:
        # A photo that carries a second, smaller copy of itself (MPO) is one image; only some formats count
        num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        image = ImageOps.exif_transpose(image)
        image.load()
    except Exception as error:  # each decoder of PIL raises its own
        raise ValueError(f"{name} cannot be read: {error}. Is the file complete?") from error
    if num_frames > 1:
        raise ValueError(
            f"{name} is animated ({num_frames} frames): pass a list of its frames as a video, or one of them."
        )
    if image.mode == "F" or image.mode.startswith("I"):  # PIL would cut 16 bits off at 255: white
        image = Image.fromarray(_as_bytes(np.asarray(image), name))
    return image.convert("RGB")


def _as_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """Pixels as 8-bit integers: 16-bit ones and booleans scaled, floats from 0 to 1 as well.

    Raises:
        ValueError: when values lie outside of the range of an image.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise ValueError(
            f"{name} has pixels from {low:g} to {high:g}: expected 0 to 255, or 0 to 1 if they are floats. If it was "
            "normalised before, pass do_rescale=False and do_normalize=False."
        )
    is_unit = array.dtype.kind == "b" or (array.dtype.kind == "f" and high <= 1)
    return np.rint(array * 255.0 if is_unit else array).astype(np.uint8)


__all__ = ["FlamingoProcessor"]
