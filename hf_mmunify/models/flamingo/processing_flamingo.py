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

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import ImageInput, load_image
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import auto_docstring


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|endofchunk|>' }}{% elif not loop.last %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
)


@auto_docstring
class FlamingoProcessor(ProcessorMixin):
    text_kwargs = {"padding": True, "padding_side": "left"}  # ready for `generate`; training masks padding either way

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        image_token="<image>",
        end_of_chunk_token="<|endofchunk|>",
        chat_template=CHAT_TEMPLATE,
        **kwargs,
    ):
        r"""
        image_token (`str`, *optional*, defaults to `"<image>"`):
            Stands for an image in the text; added to the tokenizer where it is unknown.
        end_of_chunk_token (`str`, *optional*, defaults to `"<|endofchunk|>"`):
            Ends the text that belongs to an image; added to the tokenizer where it is unknown.
        """
        self.image_token = image_token
        self.end_of_chunk_token = end_of_chunk_token
        if tokenizer is not None:
            known = tokenizer.get_vocab()
            new = [token for token in (end_of_chunk_token, image_token) if token not in known]
            if new:
                tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token or end_of_chunk_token
            self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
            self.end_of_chunk_token_id = tokenizer.convert_tokens_to_ids(end_of_chunk_token)
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
            The images of each text, in the order of its `<image>` tokens; one flat list (or one image) goes with one
            text. An image is a PIL image, an array, a path or an address; a list of them in its place is a video, and
            every video of a call has the same number of frames.
        text (`str` or `list[str]`, *optional*):
            Each with one `<image>` for each of its images.

        Returns:
            [`BatchFeature`]: `input_ids` and `attention_mask` `(batch_size, sequence_length)`; `pixel_values`
            `(batch_size, num_images, channels, height, width)`, or with videos `(batch_size, num_images, num_frames,
            channels, height, width)`; `image_mask` `(batch_size, num_images)` where rows differ in number of images.

        Raises:
            ValueError: when a text and its images do not fit each other, or an image cannot be used.
        """
        if images is None and text is None:
            raise ValueError("Nothing to process: give text, images, or both.")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        texts = [text] if isinstance(text, str) else text
        rows = None if images is None else _rows_of_images(images, 1 if texts is None else len(texts))
        data = {}
        if texts is not None:
            self._check_texts(texts, rows)
            data.update(self.tokenizer(list(texts), **merged["text_kwargs"]))
            self._check_truncation(texts, data["input_ids"])
        if rows is not None and any(rows):
            data.update(self._process_rows(rows, **merged["images_kwargs"]))
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def _check_texts(self, texts: Sequence[str], rows: list[list] | None) -> None:
        if len(texts) == 0:
            raise ValueError("The batch is empty: give at least one text.")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text is a string or a list of strings, but text {number} is {type(text).__name__}.")
        if rows is None:
            return  # image features or embeddings may come from elsewhere
        if len(rows) != len(texts):
            raise ValueError(
                f"There are {len(texts)} texts, but images for {len(rows)}: give one list of images a text."
            )
        for number, (text, row) in enumerate(zip(texts, rows)):
            expected = text.count(self.image_token)
            if expected != len(row):
                raise ValueError(
                    f"Text {number} has {expected} {self.image_token} token(s), but {len(row)} image(s) came with it: "
                    f"write one {self.image_token} where each image belongs."
                )

    def _check_truncation(self, texts: Sequence[str], input_ids) -> None:
        rows = input_ids.tolist() if isinstance(input_ids, torch.Tensor | np.ndarray) else input_ids
        longest = self.tokenizer.model_max_length
        for number, (text, ids) in enumerate(zip(texts, rows)):
            if len(ids) > longest:
                raise ValueError(
                    f"Text {number} has {len(ids)} tokens, but the language model holds {longest}: shorten it, or use "
                    "fewer shots."
                )
            if list(ids).count(self.image_token_id) != text.count(self.image_token):
                raise ValueError(
                    f"Truncation cut {self.image_token} tokens off text {number}, and its images would have no place: "
                    "raise max_length, or drop whole image-text pairs."
                )

    def _process_rows(self, rows: list[list], **kwargs) -> dict:
        """Rows of images to one array, padded to the longest row, and a mask where that was needed."""
        kwargs.pop("return_tensors", None)
        frames = [slot if isinstance(slot, list) else [slot] for row in rows for slot in row]
        lengths = {len(slot) for slot in frames}
        if len(lengths) > 1:
            raise ValueError(
                f"Videos of one call have one number of frames, got {sorted(lengths)}: sample the same number of each."
            )
        flat = [image for slot in frames for image in slot]
        pixels = self.image_processor(flat, return_tensors="pt", **kwargs)["pixel_values"]
        if not torch.isfinite(pixels).all():
            raise ValueError("An image holds NaN or infinite pixels: clean it before it is processed.")
        videos = any(isinstance(slot, list) for row in rows for slot in row)
        slots = pixels.unflatten(0, (len(frames), lengths.pop()))  # [N, F, C, H, W]
        slots = slots if videos else slots[:, 0]
        longest = max(len(row) for row in rows)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])  # [B, M]
        padded = slots.new_zeros(mask.numel(), *slots.shape[1:])
        padded[mask.flatten().bool()] = slots
        padded = padded.unflatten(0, mask.shape)
        return {"pixel_values": padded} if mask.all() else {"pixel_values": padded, "image_mask": mask}

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_mask"]


def _rows_of_images(images, num_texts: int) -> list[list]:
    """`images` as one list a text; each entry an RGB image, or a list of them for a video."""
    if not isinstance(images, list | tuple):
        images = [[images]]
    elif not any(isinstance(row, list | tuple) for row in images):
        # Flat: all for the one text, or one for each text
        images = [images] if num_texts == 1 else [[image] for image in images]
    elif num_texts == 1 and len(images) != 1:
        images = [images]  # one text, and videos among its images
    rows = []
    for number, row in enumerate(images):
        row = row if isinstance(row, list | tuple) else [row]
        rows.append(
            [
                [
                    _checked(frame, f"frame {place} of video {slot} of text {number}")
                    for place, frame in enumerate(media)
                ]
                if isinstance(media, list | tuple)
                else _checked(media, f"image {slot} of text {number}")
                for slot, media in enumerate(row)
            ]
        )
    return rows


def _checked(image, name: str):
    """An image that an image processor can take: loaded, RGB, finite, not empty.

    Raises:
        ValueError: when it is truncated, animated, empty, or no image at all; the message says which image it is.
    """
    if isinstance(image, str):
        image = load_image(image)
    if isinstance(image, Image.Image):
        if getattr(image, "n_frames", 1) > 1:  # only formats that can be animated have the attribute
            raise ValueError(
                f"{name} is animated ({image.n_frames} frames): pass a list of its frames as a video, or one of them."
            )
        if 0 in image.size:
            raise ValueError(f"{name} is empty: {image.width}x{image.height} pixels.")
        try:
            return image.convert("RGB")
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error}. Is the file complete?") from error
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ValueError(
            f"{name} is a {type(image).__name__}: expected a PIL image, an array or tensor of pixels, a path or an "
            "address."
        )
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}: expected (height, width), (height, width, channels) or "
            "(channels, height, width), none of them 0."
        )
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite pixels: clean it before it is processed.")
    return np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array


__all__ = ["FlamingoProcessor"]
