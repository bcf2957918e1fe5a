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
"""SCAN: regions of images become a batch of features, texts words of a vocabulary, and attention a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import auto_docstring

from ...layers import Regions, pad_regions


SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")

# The Treebank's words, by which the authors' vocabularies were made: a clitic is a word, as is a mark of punctuation.
WORD = r"\w+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b|\w+(?:[-'/.](?!(?:s|m|d|ll|re|ve|t)\b)\w+)*|[^\w\s]"


def scan_tokenizer(vocabulary: Sequence[str] | dict[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer of the words of a vocabulary, in lower case, between `<start>` and `<end>`.

    Words are split as by the tokenizer of the Penn Treebank, with which the authors made their vocabularies (through
    nltk), in all that captions commonly hold: clitics ("do n't", "man 's") and punctuation are words of their own,
    compounds ("t-shirt") stay whole.

    Args:
        vocabulary (`Sequence[str]` or `dict[str, int]`):
            The words in the order of their ids, or with their ids (`word2idx` of the authors' `*_vocab.json`);
            starting with `<pad>`, `<start>`, `<end>` and `<unk>`, which are put in front of a sequence without them.

    Returns:
        [`PreTrainedTokenizerFast`]: pads with `<pad>`, on the right.

    Raises:
        ValueError: when a dictionary does not have the four special words at 0 to 3.
    """
    if not isinstance(vocabulary, dict):
        words = [*SPECIAL_TOKENS, *(word for word in vocabulary if word not in SPECIAL_TOKENS)]
        vocabulary = {word: number for number, word in enumerate(words)}
    if [vocabulary.get(word) for word in SPECIAL_TOKENS] != [0, 1, 2, 3]:
        raise ValueError(
            f"a vocabulary has {', '.join(SPECIAL_TOKENS)} at 0 to 3, as `word2idx` of the authors' files; got "
            f"{ {word: vocabulary.get(word) for word in SPECIAL_TOKENS} }."
        )
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **names)


@auto_docstring
class ScanProcessor(ProcessorMixin):
    text_kwargs = {"padding": True}

    def __init__(self, tokenizer=None, region_feature_size=2048, max_regions=36, **kwargs):
        r"""
        region_feature_size (`int`, *optional*, defaults to 2048):
            Width of the features of a region, as of the model's config.
        max_regions (`int`, *optional*, defaults to 36):
            How many regions of an image are kept, those that its detector is surest of; all of them if `None`.
        """
        self.region_feature_size = region_feature_size
        self.max_regions = max_regions
        super().__init__(tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "region_features", "region_mask"]

    @auto_docstring
    def __call__(
        self,
        images: Sequence[Any] | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        images (`Sequence`, *optional*):
            The regions of each image: [`~hf_mmunify.data.Regions`], a mapping with "features" (and "boxes", "scores"),
            or an array of features `(regions, region_feature_size)`. [`~hf_mmunify.data.detect_regions`] takes them
            from any detector of transformers.
        text (`str` or `list[str]`, *optional*):
            The texts.

        Returns:
            [`BatchFeature`]: `region_features` `(batch_size, num_regions, region_feature_size)` and `region_mask`
            `(batch_size, num_regions)`; `input_ids` and `attention_mask` `(batch_size, sequence_length)`.

        Raises:
            ValueError: when there is nothing, the batch is empty, or regions cannot be used.
        """
        if images is None and text is None:
            raise ValueError("Nothing to process: give text, the regions of images, or both.")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if not texts:
                raise ValueError("The batch is empty: give at least one text.")
            encoded = self.tokenizer(texts, **merged["text_kwargs"])
            data |= {name: encoded[name] for name in ("input_ids", "attention_mask")}
        if images is not None:
            if isinstance(images, Regions | dict | Image.Image | str) or getattr(images, "ndim", 0) == 2:
                images = [images]
            batch = pad_regions(images, self.region_feature_size, self.max_regions)
            data |= {name: batch[name] for name in ("region_features", "region_mask")}
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def draw_attention(
        self,
        image: Image.Image,
        regions: Any,
        attention: torch.Tensor,
        words: Sequence[str],
        columns: int = 4,
        size: int = 224,
    ) -> Image.Image:
        """A picture for each word: the image, lit where the word looks (figures 4 and 5 of the paper are such).

        Args:
            image (`PIL.Image.Image`):
                The image.
            regions ([`~hf_mmunify.data.Regions`]):
                Its regions, with boxes: those that were processed.
            attention (`torch.Tensor` of shape `(words, regions)`):
                How much of each region a word takes: a row of the model's `attentions[0]` if words attend to regions;
                turned (`.T`), how much of each word a region takes, if regions do.
            words (`Sequence[str]`):
                What is written above each picture, for the first rows of `attention`.
            columns (`int`, *optional*, defaults to 4):
                Pictures side by side.
            size (`int`, *optional*, defaults to 224):
                Width of a picture; the height follows from the image's.

        Returns:
            `PIL.Image.Image`: the pictures, row by row.

        Raises:
            ValueError: when regions have no boxes, or `attention` has fewer columns or rows than regions or words.
        """
        regions = Regions.of(regions)
        if regions.boxes is None:
            raise ValueError("attention is drawn into boxes, and these regions have none.")
        if attention.dim() != 2 or attention.shape[0] < len(words) or attention.shape[1] < len(regions):
            raise ValueError(
                f"expected attention of at least [{len(words)} words, {len(regions)} regions], got "
                f"{list(attention.shape)}."
            )
        height, band = max(1, round(size * image.height / image.width)), 16
        pixels = np.asarray(image.convert("RGB").resize((size, height)), dtype=np.float32)
        edges = (regions.boxes * regions.boxes.new_tensor([size, height, size, height])).round().int().tolist()
        rows = -(-len(words) // columns)
        sheet = Image.new("RGB", (min(columns, len(words)) * size, rows * (height + band)), "white")
        draw = ImageDraw.Draw(sheet)
        weights = attention.detach().float().cpu()
        for number, word in enumerate(words):
            light = np.zeros((height, size, 1), dtype=np.float32)
            for weight, (left, top, right, bottom) in zip(weights[number].tolist(), edges):
                light[top:bottom, left:right] += weight
            light = 0.15 + 0.85 * light / max(light.max(), 1e-8)
            place = number % columns * size, number // columns * (height + band)
            sheet.paste(Image.fromarray((pixels * light).astype(np.uint8)), (place[0], place[1] + band))
            draw.text((place[0] + 2, place[1] + 2), word, fill="black")
        return sheet


__all__ = ["ScanProcessor", "scan_tokenizer"]
