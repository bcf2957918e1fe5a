"""Documents in which text and images alternate become batches, as in Flamingo's training.

    {"images": [...], "text": "my dog: <image> my cat: <image>"} -.
    {"image": ..., "text": "a dog"}                              -+-> InterleavedCollator -> input_ids, labels [B, T]
    {"video": [...], "text": "a dog runs"}                       -'                          media_index       [B, T]
                                                                        pixel_values [B, M, (F,) C, H, W]

- `<|endofchunk|>` ends the text of an image: it stands before every image that text precedes, and at the end.
- `media_index` says which image of its row a token looks at (from 1; 0 is none): the image before it, or, in a share
  of the interleaved documents, the image after it, since web pages put text on either side of its image.
- What is drawn for a document (window, side, space, caption) depends on the document, the seed and the epoch alone (or
  how often a mixture passed through its dataset): not on its batch, worker or process, nor on whether the training was
  resumed.

Paper: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), section 2.4, appendix B.1.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import load_image

from .pictures import as_frames, as_picture


# Families of language models whose masks do not follow `position_ids`, so that documents in one row read each other
READ_PACKED_AS_ONE = frozenset({"bloom", "falcon", "mpt", "opt"})


@dataclass
class InterleavedDocument:
    """A row of any of the known forms, made uniform.

    Args:
        text (`str`): With one image token for each entry of `media`, and without end-of-chunk tokens.
        media (`list`): Images, and lists of frames for videos, in the order of their tokens.
        is_pair (`bool`): Whether it is one image (or video) and its caption.
        counts (`bool`): Whether there is anything to learn from it.
        passes (`int`): How often its dataset was passed through before, in this epoch or since the first.
    """

    text: str
    media: list
    is_pair: bool = False
    counts: bool = True
    passes: int = 0


@dataclass
class _Tokens:
    """A document as tokens: ids, the image each looks at (from 1, 0 is none), and the images that stay."""

    ids: list[int]
    media_index: list[int]
    media: list
    counts: bool = field(default=True)


def _is_video(media: Any) -> bool:
    return isinstance(media, list | tuple) or (isinstance(media, np.ndarray | torch.Tensor) and media.ndim == 4)


def _picture(image: Any) -> Image.Image:
    """An upright RGB picture of what `as_picture` knows, or of an address.

    Raises:
        ValueError: it cannot be fetched or read, or is no image.
    """
    if isinstance(image, str) and not os.path.isfile(image):
        try:
            image = load_image(image)
        except Exception as error:  # each way to fetch a file raises its own
            raise ValueError(f"An image cannot be fetched: {error}") from error
    return as_picture(image)


class InterleavedCollator:
    """Rows of interleaved documents, image-text pairs and video-text pairs -> the batch that a model trains on.

    The rows of a batch may be of different forms, as long as their images and videos have equally many frames (videos
    and images are datasets apart, in a `MixtureDataset`); each is recognised by its columns:

    | columns | what it is |
    |---|---|
    | `images`, `text` | a document; `text` has one `<image>` for each of the `images` |
    | `images`, `texts` | a document as two lists of equal length, `None` where the other has something (OBELICS) |
    | `images`, `text_list`, `matched_text_index` | sentences, and for each image the sentence it precedes (MMC4) |
    | `image`, `text` or `caption` | a pair; of a list of captions one is drawn |
    | `video`, `text` or `caption` | a video, as a list or array of frames, or the path of its file; and its caption |
    | `text` | text alone |

    Images are of any form that `hf_mmunify.data.pictures` knows (PIL, arrays, paths, encoded bytes), or addresses. A
    column that holds `None` is as good as none.

    Pairs become `<bos><image>text<|endofchunk|><eos>`, documents `<bos>text<|endofchunk|><image>text<|endofchunk|>`.

    Args:
        processor (`ProcessorMixin`):
            Has a `tokenizer`, an `image_token`, and answers `processor(images=[row])` with `pixel_values` of shape
            `(1, num_images, [num_frames,] channels, height, width)`, as `FlamingoProcessor` does.
        max_images (`int`, defaults to 5):
            Images of a document; of more only the first are kept, and text that belongs to others sees none.
        max_length (`int`, defaults to 256):
            Tokens of a row. Of a longer document a random window is taken, after its BOS; of a longer pair the
            beginning.
        next_image_probability (`float`, defaults to 0.5):
            Share of the documents whose text looks at the image after it instead of the one before it (p_next).
        leading_space_probability (`float`, defaults to 0.5):
            Share of the pairs whose text begins with a space, so that the model knows both ways to write a prompt.
        end_of_chunk_token (`str`, *optional*, defaults to `"<|endofchunk|>"`):
            Must be a token of the tokenizer; `None` writes none.
        add_bos (`bool`, *optional*):
            Whether a document begins with the tokenizer's BOS. By default as the tokenizer has it when it is called,
            so that training and prompting agree.
        random_window (`bool`, defaults to `True`):
            Whether the window of a long document is random; otherwise it is the beginning.
        learn_text_without_image (`bool`, defaults to `True`):
            Whether text that sees no image is learned too, as in the paper. OpenFlamingo learns none of it.
        min_image_side (`int`, *optional*), max_aspect_ratio (`float`, *optional*):
            Leave out images with a shorter side, or whose sides have a greater ratio (the paper: 64 and 3). From a
            pair without its image nothing is learned, nor from one without its text.
        num_frames (`int`, *optional*, defaults to 8):
            Frames taken of each video, evenly spaced; `None` takes all, and all videos of a batch must have as many.
        packing (`bool`, defaults to `False`):
            Whether several documents share a row, as long as they fit `max_length`: fewer rows, less padding. Each
            document sees its own images only; its own text only where there is no cache (as with labels) and in
            language models whose masks follow `position_ids`: Llama, GPT-2, GPT-NeoX and most others, not those of
            `READ_PACKED_AS_ONE`.
        transform (`Callable`, *optional*):
            Called with the frames of an image or video (one image: a list of one), as RGB pictures of PIL, and a
            `numpy` generator, returns frames: where augmentation goes (`hf_mmunify.training.ImageAugmentation`).
        return_media_index (`bool`, defaults to `True`):
            Whether the batch has `media_index`. Models that count `<image>` tokens themselves do without; then
            `next_image_probability` must be 0 and `packing` off.
        pad_to_multiple_of (`int`, *optional*):
            Rows are padded to the longest one, and further to a multiple of this.
        seed (`int`, defaults to 0):
            Another seed draws anew; so does `set_epoch`.

    Returns:
        A `dict` of `input_ids`, `labels` and `media_index` `[B, T]`, `attention_mask` `[B, T]` (packed: `position_ids`
        instead), `pixel_values` `[B, M, (F,) C, H, W]` and `image_mask` `[B, M]` (the latter where rows differ in
        number of images, or none has any). Labels are -100 on padding, on `<image>`, and on the first token of every
        document, which nothing precedes.

    Raises:
        ValueError: a row has unknown columns, its images do not fit its text, or one of them cannot be read (it is
            truncated, animated, empty ...); the message says which row.
    """

    def __init__(
        self,
        processor,
        max_images: int = 5,
        max_length: int = 256,
        next_image_probability: float = 0.5,
        leading_space_probability: float = 0.5,
        end_of_chunk_token: str | None = "<|endofchunk|>",
        add_bos: bool | None = None,
        random_window: bool = True,
        learn_text_without_image: bool = True,
        min_image_side: int | None = None,
        max_aspect_ratio: float | None = None,
        num_frames: int | None = 8,
        packing: bool = False,
        transform: Callable[[list, np.random.Generator], list] | None = None,
        return_media_index: bool = True,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
    ):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token = processor.image_token
        self.end_of_chunk_token = end_of_chunk_token
        for token in (self.image_token, *([] if end_of_chunk_token is None else [end_of_chunk_token])):
            if token not in self.tokenizer.get_vocab():
                raise ValueError(
                    f"The tokenizer has no token {token!r}: add it with `add_special_tokens`, or name the token that "
                    "the model has for it (`end_of_chunk_token=None` for none)."
                )
        if self.tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no padding token: set `tokenizer.pad_token`, for example to its eos.")
        if not return_media_index and (packing or next_image_probability > 0):
            raise ValueError(
                "Packing and next_image_probability speak to the model through media_index: with "
                "return_media_index=False, set packing=False and next_image_probability=0."
            )
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self.max_images = max_images
        self.max_length = max_length
        self.next_image_probability = next_image_probability
        self.leading_space_probability = leading_space_probability
        self.random_window = random_window
        self.learn_text_without_image = learn_text_without_image
        self.min_image_side = min_image_side
        self.max_aspect_ratio = max_aspect_ratio
        self.num_frames = num_frames
        self.packing = packing
        self.transform = transform
        self.return_media_index = return_media_index
        self.pad_to_multiple_of = pad_to_multiple_of
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # reaches workers that live on
        bare = self.tokenizer("").input_ids  # what the tokenizer puts around a text, if anything
        own_bos = self.tokenizer.bos_token_id is not None and bare[:1] == [self.tokenizer.bos_token_id]
        with_bos = own_bos if add_bos is None else add_bos
        self._start = [self.tokenizer.bos_token_id] if with_bos and self.tokenizer.bos_token_id is not None else []

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for another pass over the same documents."""
        self._epoch.fill_(epoch)

    def generator(self, document: InterleavedDocument) -> np.random.Generator:
        """The random numbers of a document, the same in every batch, worker, process and run of this epoch."""
        digest = hashlib.blake2b(document.text.encode(), digest_size=8).digest()
        return np.random.default_rng([self.seed, int(self._epoch) + document.passes, int.from_bytes(digest)])

    def document(self, row: Mapping[str, Any], passes: int = 0) -> InterleavedDocument:
        """The document that a row holds, as the table above tells, for another pass through its dataset.

        Raises:
            ValueError: when its columns are not in the table, or its images do not fit its text.
        """
        token = self.image_token
        caption = row["text"] if row.get("text") is not None else row.get("caption")
        if row.get("image") is not None or row.get("video") is not None:
            if caption is None:
                raise ValueError(f"A pair needs a `text` or `caption` beside its image; got {sorted(row)}.")
            media = row["image"] if row.get("image") is not None else self._video(row["video"])
            text = self._one_caption(caption, passes)
            if token in text:
                raise ValueError(
                    f"The caption of a pair is text alone, as its image comes first, but here it has a {token}: "
                    f"{text[:80]!r}. Take the {token} out, or write the row as `images` and `text`."
                )
            return InterleavedDocument(f"{token}{text}", [media], is_pair=True, passes=passes)
        images = list(row.get("images") if row.get("images") is not None else [])
        if row.get("text_list") is not None:
            text = self._place_images(row["text_list"], row, len(images))
        elif row.get("texts") is not None:
            if len(row["texts"]) != len(images):
                raise ValueError(
                    f"`texts` and `images` take turns and are equally long; got {len(row['texts'])} and {len(images)}."
                )
            text = "".join(token if words is None else words for words in row["texts"])
            images = [image for image, words in zip(images, row["texts"]) if words is None]
        elif isinstance(caption, str):
            text = caption
        else:
            raise ValueError(
                "A row has the columns `images` and `text`, `image` and `text`, or `video` and `text`; got "
                f"{sorted(row)}. Rename the columns, or map the dataset to one of these forms."
            )
        if text.count(token) != len(images):
            raise ValueError(
                f"The text has {text.count(token)} {token} token(s), but {len(images)} image(s) came with it: write "
                f"one {token} where each image belongs."
            )
        return InterleavedDocument(text, images, passes=passes)

    def _video(self, video: Any) -> list:
        """The frames of a video, or of the file whose path it is."""
        frames = as_frames(video) if isinstance(video, str | os.PathLike) else list(video)
        if not frames:
            raise ValueError("A video has no frames: leave its row out.")
        return frames

    def _one_caption(self, caption: str | Sequence[str], passes: int) -> str:
        if isinstance(caption, str):
            return caption
        is_list = isinstance(caption, Sequence | np.ndarray) and len(caption) > 0
        if not is_list or not all(isinstance(text, str) for text in caption):
            raise ValueError(f"A caption is a text, or a list of texts of which one is drawn; got {caption!r}.")
        joined = InterleavedDocument("\n".join(caption), [], passes=passes)
        return caption[self.generator(joined).integers(len(caption))]

    def _place_images(self, sentences: Sequence[str], row: Mapping[str, Any], num_images: int) -> str:
        """Sentences with an image token before each that an image was matched to."""
        places = row.get("matched_text_index")
        if places is None or len(places) != num_images:
            raise ValueError(
                "`matched_text_index` names, for each of the `images`, the sentence of `text_list` that it precedes; "
                f"got {places} for {num_images} image(s)."
            )
        if any(place not in range(len(sentences)) for place in places) or list(places) != sorted(places):
            raise ValueError(
                f"`matched_text_index` counts the {len(sentences)} sentences of `text_list` from 0, in the order of "
                f"the images; got {list(places)}. Sort the images by it."
            )
        counts = np.bincount(places, minlength=len(sentences)) if num_images else np.zeros(len(sentences), int)
        return " ".join(self.image_token * count + sentence for sentence, count in zip(sentences, counts))

    def _filtered(self, document: InterleavedDocument) -> InterleavedDocument:
        """The document without the images that are too small or too narrow, and without their tokens."""
        loaded = [
            media if _is_video(media) or isinstance(media, Image.Image) else _picture(media)
            for media in document.media
        ]  # those of PIL tell their size before they are decoded
        kept = [self._is_usable(media) for media in loaded]
        first, *rest = document.text.split(self.image_token)
        text = first + "".join((self.image_token if keep else "") + words for keep, words in zip(kept, rest))
        media = [media for media, keep in zip(loaded, kept) if keep]
        return replace(document, text=text, media=media, counts=bool(media) or not document.is_pair)

    def _is_usable(self, media: Any) -> bool:
        frame = media[0] if _is_video(media) else media
        sides = (frame if isinstance(frame, Image.Image) else _picture(frame)).size
        short, long = min(sides), max(sides)
        return short >= (self.min_image_side or 0) and long <= short * (self.max_aspect_ratio or float("inf"))

    def tokenize(self, document: InterleavedDocument) -> _Tokens:
        """Token ids, the image that each token looks at, and the images, cut to `max_length` and `max_images`."""
        rng = self.generator(document)
        looks_ahead = rng.random() < self.next_image_probability
        has_space = rng.random() < self.leading_space_probability
        place = rng.random()
        if self.min_image_side is not None or self.max_aspect_ratio is not None:
            document = self._filtered(document)
        end = self.end_of_chunk_token or ""
        first, *rest = document.text.split(self.image_token)
        if document.is_pair and rest and has_space and not rest[0].startswith(" "):
            rest[0] = f" {rest[0]}"
        chunks = []
        for number, words in enumerate([first, *rest]):
            words = words.replace(end, "") if end else words
            words = words.rstrip()
            chunks.append((self.image_token if number else "") + (words + end if words else ""))
        has_words = any(chunk != self.image_token for chunk in chunks[1:])
        ids = self.tokenizer("".join(chunks), add_special_tokens=False, verbose=False).input_ids
        ids = [*self._start, *ids]
        if document.is_pair and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)

        images = np.array(ids) == self.image_token_id  # [T]
        before = images.cumsum()
        media_index = before  # the image at or before a token
        if looks_ahead and not document.is_pair:
            media_index = before + ~images  # the image at or after it
            media_index[media_index > before[-1:].sum()] = 0
        start = 0
        if self.random_window and not document.is_pair:
            start = int(place * (max(0, len(ids) - self.max_length) + 1))
        begin, rest_of_it = np.split(np.arange(len(ids)), [len(self._start)])
        window = np.concatenate((begin, rest_of_it[start : start + self.max_length - len(begin)]))
        ids, images, media_index = np.array(ids, int)[window], images[window], media_index[window]

        present = np.flatnonzero(images)[: self.max_images]
        numbers = before[window][present]  # of the images that stay, counted in the whole document
        renumbered = np.zeros(len(document.media) + 1, int)
        renumbered[numbers] = np.arange(1, len(numbers) + 1)
        keep = ~images
        keep[present] = True
        if not keep.any():  # a row that holds nothing, which language models do not read
            return _Tokens(ids=[self.tokenizer.pad_token_id], media_index=[0], media=[], counts=False)
        return _Tokens(
            ids=ids[keep].tolist(),
            media_index=renumbered[media_index][keep].tolist(),
            media=[self._frames(document.media[number - 1], rng) for number in numbers],
            counts=document.counts and (has_words or not document.is_pair),
        )

    def _frames(self, media: Any, rng: np.random.Generator) -> Any:
        """An image, or `num_frames` frames of a video evenly spaced, transformed."""
        frames = list(media) if _is_video(media) else [media]
        if _is_video(media) and self.num_frames is not None:
            places = np.linspace(0, len(frames) - 1, self.num_frames).round().astype(int)
            frames = [frames[place] for place in places]
        frames = [_picture(frame) for frame in frames]
        if self.transform is not None:
            frames = self.transform(frames, rng)
        return frames if _is_video(media) else frames[0]

    def _labels(self, tokens: _Tokens) -> list[int]:
        """The tokens that are learned, -100 for the others."""
        return [
            token
            if place > 0
            and tokens.counts
            and token != self.image_token_id
            and (index > 0 or self.learn_text_without_image)
            else -100
            for place, (token, index) in enumerate(zip(tokens.ids, tokens.media_index))
        ]

    def _pack(self, documents: Sequence[_Tokens]) -> list[list[_Tokens]]:
        """Documents that share a row: each goes into the first one that has room for it."""
        if not self.packing:
            return [[document] for document in documents]
        rows, room = [], []
        for document in documents:
            size = len(document.ids)
            place = next((number for number, left in enumerate(room) if left >= size), len(rows))
            if place == len(rows):
                rows.append([])
                room.append(self.max_length)
            rows[place].append(document)
            room[place] -= size
        return rows

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], passes: Sequence[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """A batch of rows; `passes`, as a mixture gives it, says how often the dataset of each was passed through."""
        if len(rows) == 0:
            raise ValueError("The batch has no rows: give at least one.")
        documents = []
        for number, row in enumerate(rows):
            try:
                documents.append(self.tokenize(self.document(row, 0 if passes is None else passes[number])))
            except (TypeError, ValueError) as error:  # of a wrong type are rows that Python itself finds fault with
                raise ValueError(f"Row {number} of the batch: {error}") from error
        self._check_frames(documents)
        packed = self._pack(documents)
        length = max(sum(len(document.ids) for document in row) for row in packed)
        if self.pad_to_multiple_of is not None:
            length += -length % self.pad_to_multiple_of
        shape = len(packed), length
        batch = {
            "input_ids": torch.full(shape, self.tokenizer.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, -100),
            "media_index": torch.zeros(shape, dtype=torch.long),
            "position_ids": torch.zeros(shape, dtype=torch.long),
        }
        for number, row in enumerate(packed):
            start, num_images = 0, 0
            for document in row:
                place = slice(start, start + len(document.ids))
                index = torch.tensor(document.media_index)
                batch["input_ids"][number, place] = torch.tensor(document.ids)
                batch["attention_mask"][number, place] = 1
                batch["labels"][number, place] = torch.tensor(self._labels(document))
                batch["media_index"][number, place] = torch.where(index > 0, index + num_images, 0)
                batch["position_ids"][number, place] = torch.arange(len(document.ids))
                start, num_images = start + len(document.ids), num_images + len(document.media)
            batch["position_ids"][number, start:] = torch.arange(length - start)
        # Positions that begin anew keep the documents of a row apart, in models that find no mask beside them
        del batch["attention_mask" if self.packing else "position_ids"]
        if not self.return_media_index:
            del batch["media_index"]
        media = [[image for document in row for image in document.media] for row in packed]
        return {**batch, **self._pixels(media)}

    def _check_frames(self, documents: Sequence[_Tokens]) -> None:
        """Raise a ValueError where the images and videos of a batch differ in their number of frames."""
        rows = {}
        for number, document in enumerate(documents):
            for media in document.media:
                rows.setdefault(len(media) if _is_video(media) else 1, number)
        if len(rows) > 1:
            (frames, row), (others, other) = list(rows.items())[:2]
            raise ValueError(
                f"All images and videos of a batch have the same number of frames, but row {row} has {frames} and row "
                f"{other} has {others}: take num_frames of each video, and put images and videos into datasets apart "
                "(MixtureDataset), whose batches take turns."
            )

    def _pixels(self, media: list[list]) -> dict[str, torch.Tensor]:
        """Pixels of the images of each row, padded to the row with the most, and which of them are images.

        A batch without any has one blank slot a row, marked as no image: of several processes none may leave the
        adapter out of its step, or those with images would wait for its gradients.
        """
        flat = [image for row in media for image in row] or [Image.new("RGB", (32, 32))]
        pixels = self.processor(images=[flat], return_tensors="pt")["pixel_values"][0]  # [N, (F,) C, H, W]
        longest = max(1, *(len(row) for row in media))
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in media])  # [B, M]
        padded = pixels.new_zeros(mask.numel(), *pixels.shape[1:])
        padded[mask.flatten().bool()] = pixels[: int(mask.sum())]
        images = {"pixel_values": padded.unflatten(0, mask.shape)}  # [B, M, (F,) C, H, W]
        return images if mask.all() else {**images, "image_mask": mask}


__all__ = ["READ_PACKED_AS_ONE", "InterleavedCollator", "InterleavedDocument"]
