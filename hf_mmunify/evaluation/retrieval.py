"""Image-text retrieval: scores of embeddings, then matching of the best, and recall at k in both directions.

    images -> encode_images -> features [I, D] --.-> similarities [I, T] -> the best k -> match [P] --> recall@1/5/10
    texts  -> encode_texts  -> features [T, D] --'                           |    |
                   '------------- states, cached ----------------------------'----'

Every image and every text is encoded once. A pair that is among the best of its image and of its text is matched once.
Rules of matching are the models' own: ALBEF takes the matching logit, BLIP adds the similarity to it. Originals:
salesforce/ALBEF@b9727e4 (Retrieval.py, evaluation), salesforce/BLIP@056a169 (train_retrieval.py, evaluation).
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging


Encoding = dict[str, torch.Tensor]
_WITHOUT_MASK = {"siglip", "siglip2"}


class _EncodingModel(Protocol):
    def encode_images(self, pixel_values: torch.Tensor) -> Encoding:
        """States of images `[B, 3, H, W]`, batch first; "features" `[B, D]` or `[B, Q, D]` are L2-normalised."""

    def encode_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Encoding:
        """States of texts `[B, T]`, batch first; "features" `[B, D]` are L2-normalised."""


@runtime_checkable
class EmbeddingModel(_EncodingModel, Protocol):
    """A model with an embedding of images and one of texts: "features" are among the states it gives."""

    def similarities(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """How alike `I` images and `T` texts are by the model's own rule, `[I, T]`."""


@runtime_checkable
class MatchingModel(_EncodingModel, Protocol):
    """A model that reads an image and a text together to say how well they match."""

    def match(self, images: Encoding, texts: Encoding, similarities: torch.Tensor) -> torch.Tensor:
        """Scores `[P]` of aligned pairs by the model's own rule, from their states and their similarities `[P]`."""


class RetrievalModel(EmbeddingModel, MatchingModel, Protocol):
    """What `RetrievalEvaluator` asks of a model: embeddings to find the best by, and matching to put them in order.

    A model of two towers is an `EmbeddingModel` alone, one that reads pairs alone (ViLT) a `MatchingModel` alone.
    """


class TwoTowers:
    """Makes an `EmbeddingModel` of a native model with two towers: CLIP, SigLIP, AltCLIP, ALIGN and their kin.

    Args:
        model (`PreTrainedModel`): `get_image_features` and `get_text_features` give projected features as
            `pooler_output`; they are compared by their cosine.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def encode_images(self, **inputs: torch.Tensor) -> Encoding:
        return {"features": nn.functional.normalize(self.model.get_image_features(**inputs).pooler_output, dim=-1)}

    def encode_texts(self, **inputs: torch.Tensor) -> Encoding:
        return {"features": nn.functional.normalize(self.model.get_text_features(**inputs).pooler_output, dim=-1)}

    def similarities(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        return image_features @ text_features.T  # [I, T]


class PairScorer:
    """Makes a `MatchingModel` of a native model whose forward reads pairs: BridgeTower, ViLT, BLIP, BLIP-2.

    The score is the only logit of a pair (ViLT), or the logit of "match", the second of two.

    Args:
        model (`PreTrainedModel`): Its forward takes both inputs; its output has `logits`, `itm_score` or
            `logits_per_image`, `[P, 1]` or `[P, 2]`.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def encode_images(self, **inputs: torch.Tensor) -> Encoding:
        return inputs

    def encode_texts(self, **inputs: torch.Tensor) -> Encoding:
        return inputs

    def match(self, images: Encoding, texts: Encoding, similarities: torch.Tensor) -> torch.Tensor:
        outputs = self.model(**images, **texts, return_dict=True)
        names = ("logits", "itm_score", "logits_per_image")
        scores = next((outputs[name] for name in names if name in outputs), None)
        if scores is None or scores.ndim != 2 or scores.shape[1] not in (1, 2):
            found = {name: tuple(value.shape) for name, value in outputs.items() if isinstance(value, torch.Tensor)}
            raise ValueError(
                f"{type(self.model).__name__} reads pairs, so one or two logits a pair are due as one of {names}; got "
                f"{found}. Load a model with a retrieval head (`AutoModelForImageTextRetrieval`)."
            )
        return scores[:, -1]


def as_retrieval_model(model: Any) -> EmbeddingModel | MatchingModel:
    """The model itself if it has the methods of `RetrievalModel`, otherwise an adapter that gives it those.

    Raises:
        ValueError: when it neither embeds images and texts nor reads pairs of them.
    """
    if isinstance(model, (EmbeddingModel, MatchingModel)):
        return model
    if isinstance(model, PreTrainedModel):
        if "ImageTextRetrieval" in type(model).__name__ or "ImageAndTextRetrieval" in type(model).__name__:
            return PairScorer(model)
        if callable(getattr(model, "get_image_features", None)) and callable(
            getattr(model, "get_text_features", None)
        ):
            return TwoTowers(model)
    raise ValueError(
        f"{type(model).__name__} cannot be asked for retrieval: it has no `encode_images` and `encode_texts` with "
        "`similarities` or `match` (hf_mmunify.evaluation.RetrievalModel), no pair of `get_image_features` and "
        "`get_text_features`, and no retrieval head. Load it with `AutoModelForImageTextRetrieval`."
    )


def taken_inputs(inputs: Mapping[str, Any], model: PreTrainedModel, method: Callable) -> Encoding:
    """What a processor gave, as far as `method` takes it, on the model's device; pixels in the model's dtype."""
    parameters = inspect.signature(method).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and (takes_all or name in names)
    }


def text_settings(config: PreTrainedConfig, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How the processor of a model is asked to read texts: padded to the longest, cut at the limit; `options` win.

    SigLIP saw texts of 64 tokens in training and has no mask, so its padding is part of the text.
    """
    fixed = {"padding": "max_length", "max_length": 64} if config.model_type in _WITHOUT_MASK else {}
    return {"padding": True, "truncation": True, "return_tensors": "pt", **fixed, **(options or {})}


# Recall -------------------------------------------------------------------------------------------------------------


def _hits(scores: torch.Tensor, positives: torch.Tensor, ks: Sequence[int]) -> torch.Tensor:
    """For each k and each query (row of `scores [Q, N]`) the probability `[ks, Q]` of a positive among the first k.

    0 or 1, unless the best positive has the score of others: then all orders of the equals are alike.
    """
    best = scores.masked_fill(~positives, -math.inf).max(dim=1, keepdim=True).values  # [Q, 1]
    ahead = (scores > best).sum(dim=1)
    equal = scores == best
    total, right = equal.sum(dim=1), (equal & positives).sum(dim=1)
    places = (torch.tensor(ks, device=scores.device)[:, None] - ahead).clamp(min=0)  # that the equals share [ks, Q]
    missed = torch.ones(places.shape, dtype=torch.double, device=scores.device)
    for number in range(int(right.max())):  # each of the positives comes later, after those before it
        later = (total - places - number).clamp(min=0) / (total - number).double()
        missed *= torch.where(number < right, later, 1.0)
    return 1.0 - missed


def _positives(positives: torch.Tensor | Sequence, images: int, texts: int) -> torch.Tensor:
    """As a matrix `[I, T]`, checked."""
    positives = torch.as_tensor(positives)
    if positives.ndim == 1 and positives.dtype != torch.bool and len(positives) == texts:
        if texts and not 0 <= int(positives.min()) <= int(positives.max()) < images:
            raise ValueError(
                f"positives names for each text its image, from 0 to {images - 1}; got {int(positives.min())} to "
                f"{int(positives.max())}."
            )
        positives = positives == torch.arange(images, device=positives.device)[:, None]
    if positives.dtype != torch.bool or positives.shape != (images, texts):
        raise ValueError(
            f"positives is a bool matrix [images, texts] = [{images}, {texts}], or for each of the {texts} texts the "
            f"number of its image; got {positives.dtype} of shape {tuple(positives.shape)}."
        )
    for dim, name, other in ((1, "image", "text"), (0, "text", "image")):
        alone = (~positives.any(dim=dim)).nonzero().flatten()
        if len(alone):
            raise ValueError(
                f"{len(alone)} {name}(s) have no {other} that belongs to them, the first is number {int(alone[0])}: "
                "leave them out, they can only be missed."
            )
    return positives


def _as_result(image_to_text: Mapping[int, float], text_to_image: Mapping[int, float]) -> dict[str, float]:
    result = {f"image_to_text_recall@{k}": value for k, value in image_to_text.items()}
    result |= {f"text_to_image_recall@{k}": value for k, value in text_to_image.items()}
    return {**result, "mean_recall": sum(result.values()) / len(result)}


def recall_at_k(
    scores: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    positives: torch.Tensor | Sequence,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Share of queries with something that belongs to them among the first k, in both directions, from 0 to 1.

    Several positives of a query (five captions of an image) count once, by the best of them. Equal scores are in
    random order: the result is its expectation, so that constant scores earn what guessing does.

    Args:
        scores (`torch.Tensor` or a pair of them):
            `[I, T]`, the greater the better; or a pair where the directions differ, as after matching: of images with
            texts `[I, T]` and of texts with images `[T, I]`.
        positives (`torch.Tensor` or `Sequence`):
            bool `[I, T]`, or `[T]` the number of each text's image.
        ks (`Sequence[int]`, defaults to 1, 5 and 10).

    Returns:
        `dict`: "image_to_text_recall@1" (texts found by an image, TR), ..., "text_to_image_recall@1" (IR), ..., and
        "mean_recall", the mean of all of them.

    Raises:
        ValueError: shapes do not fit, a score is NaN, a k is below 1, or a query has no positive.
    """
    image_to_text, text_to_image = scores if isinstance(scores, tuple) else (scores, scores.T)
    images, texts = image_to_text.shape
    if text_to_image.shape != (texts, images):
        raise ValueError(
            f"Scores of texts with images are [T, I] = [{texts}, {images}], the other way round than those of images "
            f"with texts; got {tuple(text_to_image.shape)}."
        )
    _check_ks(ks)
    for one in (image_to_text, text_to_image):
        _check_scores(one)
    positives = _positives(positives, images, texts).to(image_to_text.device)
    hits = _hits(image_to_text, positives, ks), _hits(text_to_image, positives.T, ks)
    return _as_result(*(dict(zip(ks, found.mean(dim=1).tolist())) for found in hits))


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks are numbers of places, each at least 1; got {tuple(ks)}.")


def _check_scores(scores: torch.Tensor) -> None:
    if scores.isnan().any():
        raise ValueError(
            "Scores are NaN: the model's weights or its dtype (float16 overflows) are to blame, nothing is ranked."
        )


# Evaluation ---------------------------------------------------------------------------------------------------------


class _States:
    """What the matching needs of encoded images or texts, batch by batch as they came, and their features.

    Args:
        device (`torch.device`): where the states wait; features stay where the model is.
    """

    def __init__(self, device: torch.device | None):
        self.device = device
        self.features: torch.Tensor | None = None  # [N, D] or [N, Q, D]
        self._places: list[tuple[int, int]] = []  # of an item: its batch, and the row there
        self._batches: list[Encoding] = []
        self._features: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self._places)

    def append(self, encoding: Encoding, keep: bool) -> None:
        """Adds a batch; of a model that does not match nothing but the features is kept."""
        size = len(next(iter(encoding.values())))
        self._places += [(len(self._batches), row) for row in range(size)]
        if "features" in encoding:
            self._features.append(encoding["features"])
        states = {name: value for name, value in encoding.items() if name != "features"} if keep else {}
        self._batches.append({name: value.to(self.device or value.device) for name, value in states.items()})

    def finish(self) -> None:
        if self._features:
            self.features = torch.cat(self._features)
            self._features = []

    def take(self, numbers: Sequence[int], device: torch.device) -> Encoding:
        """States of these items, in this order; shorter ones are padded with zeros, as is their mask."""
        places = [self._places[number] for number in numbers]
        taken = {
            name: _stack([self._batches[batch][name][row] for batch, row in places]).to(device)
            for name in self._batches[0]
        }
        if self.features is not None:
            taken["features"] = self.features[torch.as_tensor(numbers, device=self.features.device)]
        return taken


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors of one rank as a batch; smaller ones are filled up with zeros at their ends."""
    shapes = {tensor.shape for tensor in tensors}
    if len(shapes) == 1:
        return torch.stack(tensors)
    largest = [max(sizes) for sizes in zip(*shapes)]
    batch = tensors[0].new_zeros(len(tensors), *largest)
    for row, tensor in zip(batch, tensors):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return batch


class RetrievalEvaluator:
    """Recall of a model that finds texts by images and images by texts.

    An `EmbeddingModel` ranks by similarity; a `RetrievalModel` then matches the `top_k` best of each query and ranks
    them by that; a `MatchingModel` without embeddings matches every pair. What is not among the `top_k` comes after
    all that is, in order of similarity; the originals give it the same score of -100.

    Args:
        model (`PreTrainedModel`):
            A `RetrievalModel`, or a native model that `as_retrieval_model` makes one of.
        processor (`ProcessorMixin`):
            Its processor: `processor(images=[...])` and `processor(text=[...])`.
        batch_size (`int`, defaults to 64):
            Images or texts that are encoded at once.
        top_k (`int`, *optional*, defaults to 128):
            Candidates a query that are matched, as the originals do on Flickr30K (256 on COCO); `None` matches all, 0
            none.
        match_batch_size (`int`, defaults to 64):
            Pairs that are matched at once.
        block_size (`int`, defaults to 1024):
            Queries whose scores are in memory at once: `evaluate` holds `block_size * N` of them.
        cache_device (`str` or `torch.device`, *optional*):
            Where the states of all images and texts wait to be matched; by default where the model is. "cpu" spares
            an accelerator's memory: the states of one image of ALBEF at 384 pixels are 1.8 MB in float32.
        text_options (`Mapping`, *optional*):
            For the processor, as `{"max_length": 30}`; by default texts are padded to the longest of their batch, of
            SigLIP to 64 tokens.
        image_column (`str`, defaults to `"image"`), text_column (`str`, defaults to `"caption"`):
            Columns of a row; the text may be a list of several.
        id_column (`str`, *optional*):
            Rows with equal ids are captions of the same image, which is read from the first of them.

    Raises:
        ValueError: `model` is no model for retrieval, or a size is not positive.

    Example:

    ```python
    evaluator = RetrievalEvaluator(model, processor, top_k=128)
    evaluator.evaluate(rows)  # {"image_to_text_recall@1": 0.94, ..., "mean_recall": 0.93}
    evaluator.evaluate(rows, blind=True)  # the same with black images: what is left is chance
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        batch_size: int = 64,
        top_k: int | None = 128,
        *,
        match_batch_size: int = 64,
        block_size: int = 1024,
        cache_device: str | torch.device | None = None,
        text_options: Mapping[str, Any] | None = None,
        image_column: str = "image",
        text_column: str = "caption",
        id_column: str | None = None,
    ):
        sizes = {"batch_size": batch_size, "match_batch_size": match_batch_size, "block_size": block_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is at least 1, got {size}.")
        if top_k is not None and top_k < 0:
            raise ValueError(f"top_k is a number of candidates, None for all or 0 for none; got {top_k}.")
        self.model = model
        self.retriever = as_retrieval_model(model)
        if top_k == 0 and not isinstance(self.retriever, EmbeddingModel):
            raise ValueError(f"{type(model).__name__} has no embeddings: without matching (top_k=0) it has no scores.")
        self.processor = processor
        self.batch_size = batch_size
        self.top_k = top_k
        self.match_batch_size = match_batch_size
        self.block_size = block_size
        self.cache_device = None if cache_device is None else torch.device(cache_device)
        self.text_settings = text_settings(model.config, text_options)
        self.image_column = image_column
        self.text_column = text_column
        self.id_column = id_column

    @property
    def _matches(self) -> bool:
        return isinstance(self.retriever, MatchingModel) and self.top_k != 0

    # Encoding -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode_images(self, images: Iterable[list], blind: bool) -> _States:
        states = _States(self.cache_device)
        encode = self.retriever.encode_images
        for batch in logging.tqdm(images, desc="batches of images", leave=False):
            inputs = taken_inputs(self.processor(images=batch, return_tensors="pt"), self.model, encode)
            if blind:
                # Pixels, or the features of regions; masks stay
                inputs = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in inputs.items()}
            states.append(encode(**inputs), self._matches)
        states.finish()
        return states

    @torch.no_grad()
    def _encode_texts(self, texts: Sequence[str]) -> _States:
        states = _States(self.cache_device)
        encode = self.retriever.encode_texts
        for batch in logging.tqdm(list(batches(texts, self.batch_size)), desc="batches of texts", leave=False):
            inputs = self.processor(text=batch, **self.text_settings)
            states.append(encode(**taken_inputs(inputs, self.model, encode)), self._matches)
        states.finish()
        return states

    def _images(self, rows: Iterable[Mapping[str, Any]], texts: list[str], owners: list[int]) -> Iterator[Any]:
        """Each image once; fills in all captions, and for each caption the number of its image."""
        known: dict[Any, int] = {}
        for place, row in enumerate(rows):
            key = place if self.id_column is None else row[self.id_column]
            captions = row[self.text_column]
            captions = [captions] if isinstance(captions, str) else list(captions)
            if not captions:
                raise ValueError(f"Row {place} has no caption in {self.text_column!r}: leave it out.")
            is_new = key not in known
            number = known.setdefault(key, len(known))
            texts += captions
            owners += [number] * len(captions)
            if is_new:
                yield row[self.image_column]

    # Scoring --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self, images: Sequence, texts: Sequence[str], blind: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of every image with every text, as `recall_at_k` takes them.

        Args:
            images (`Sequence`): `[I]`, what the processor takes.
            texts (`Sequence[str]`): `[T]`.
            blind (`bool`, defaults to `False`): Whether pixels are zeroed.

        Returns:
            `tuple` of `[I, T]` and `[T, I]` on the CPU, in float64: without matching the one is the other transposed.
        """
        self.model.eval()
        encoded = self._encode_images(batches(images, self.batch_size), blind), self._encode_texts(texts)
        return tuple(torch.cat([block.double() for _, block in blocks]) for blocks in self._both_ways(*encoded))

    def evaluate(
        self, rows: Iterable[Mapping[str, Any]], ks: Sequence[int] = (1, 5, 10), blind: bool = False
    ) -> dict[str, float]:
        """Recall in both directions, as `recall_at_k` gives it, without ever holding the scores of all pairs.

        Args:
            rows (`Iterable[Mapping]`): Images with their captions: a list, or a dataset, which is read once.
            ks (`Sequence[int]`, defaults to 1, 5 and 10): Numbers of places.
            blind (`bool`, defaults to `False`): Whether pixels are zeroed, for the score of not seeing.

        Raises:
            ValueError: there are no rows, an image has no caption, a score is NaN, or a k is below 1.
        """
        _check_ks(ks)
        self.model.eval()
        texts, owners = [], []
        images = self._encode_images(batches(self._images(rows, texts, owners), self.batch_size), blind)
        if not texts:
            raise ValueError("There are no rows: nothing to evaluate.")
        encoded = images, self._encode_texts(texts)
        owner, image = torch.tensor(owners), torch.arange(len(images))  # [T], [I]
        recalls = []
        for blocks, (query, candidate) in zip(self._both_ways(*encoded), ((image, owner), (owner, image))):
            total = torch.zeros(len(ks), dtype=torch.double)
            for start, block in blocks:
                _check_scores(block)
                positives = query[start : start + len(block), None] == candidate
                total += _hits(block, positives, ks).sum(dim=1)
            recalls.append(dict(zip(ks, (total / len(query)).tolist())))
        return _as_result(*recalls)

    def _both_ways(self, images: _States, texts: _States) -> tuple[Iterator, Iterator]:
        """Blocks `(start, scores [b, N])` of images with texts, and of texts with images."""
        matched = _Matched(len(texts))
        return self._blocks(images, texts, matched, False), self._blocks(images, texts, matched, True)

    @torch.no_grad()
    def _blocks(
        self, images: _States, texts: _States, matched: "_Matched", by_text: bool
    ) -> Iterator[tuple[int, torch.Tensor]]:
        number = len(texts if by_text else images)
        starts = range(0, number, self.block_size)
        for start in logging.tqdm(starts, desc="text to image" if by_text else "image to text", leave=False):
            stop = min(start + self.block_size, number)
            similarities = self._similarities(images, texts, start, stop, by_text)  # [b, N]
            if self._matches:
                similarities = self._rerank(images, texts, matched, start, similarities, by_text)
            yield start, similarities.cpu()

    def _similarities(self, images: _States, texts: _States, start: int, stop: int, by_text: bool) -> torch.Tensor:
        if images.features is None or texts.features is None:
            return torch.zeros(stop - start, len(images if by_text else texts), device=self.model.device)
        if by_text:
            return self.retriever.similarities(images.features, texts.features[start:stop]).T.float()
        return self.retriever.similarities(images.features[start:stop], texts.features).float()

    def _rerank(
        self,
        images: _States,
        texts: _States,
        matched: "_Matched",
        start: int,
        similarities: torch.Tensor,
        by_text: bool,
    ) -> torch.Tensor:
        """Scores of a block: matching scores of the best, and everything else moved below them."""
        number = similarities.shape[1]
        has_embeddings = images.features is not None and texts.features is not None
        k = min(self.top_k, number) if has_embeddings and self.top_k is not None else number
        similar, best = (found.cpu() for found in similarities.topk(k, dim=1))  # [b, k]
        query = torch.arange(start, start + len(best))[:, None].expand_as(best)
        pairs = matched.numbers(best, query) if by_text else matched.numbers(query, best)
        self._match(images, texts, matched, pairs.flatten(), similar.flatten())
        scores = matched.scores(pairs)  # [b, k]
        rest = similarities.cpu().double()  # so that moving them makes no two alike
        step = scores.min(dim=1).values - rest.max(dim=1).values - 1.0
        return (rest + step[:, None]).scatter(1, best, scores)

    def _match(
        self, images: _States, texts: _States, matched: "_Matched", pairs: torch.Tensor, similarities: torch.Tensor
    ) -> None:
        is_new = matched.are_new(pairs)
        if not is_new.any():
            return
        pairs, similarities = pairs[is_new], similarities[is_new]
        found = []
        for chunk, similar in zip(pairs.split(self.match_batch_size), similarities.split(self.match_batch_size)):
            image, text = matched.image_and_text(chunk)
            states = images.take(image.tolist(), self.model.device), texts.take(text.tolist(), self.model.device)
            found.append(self.retriever.match(*states, similar.to(self.model.device)).float().cpu().double())
        matched.add(pairs, torch.cat(found))


class _Matched:
    """Matching scores of pairs, by the number `image * texts + text` of a pair, so that none is matched twice."""

    def __init__(self, texts: int):
        self.texts = texts
        self._pairs: torch.Tensor | None = None  # [M], in increasing order
        self._scores: torch.Tensor | None = None  # [M]

    def numbers(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return image * self.texts + text

    def image_and_text(self, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pairs // self.texts, pairs % self.texts

    def are_new(self, pairs: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(pairs, dtype=torch.bool) if self._pairs is None else ~torch.isin(pairs, self._pairs)

    def add(self, pairs: torch.Tensor, scores: torch.Tensor) -> None:
        if self._pairs is not None:
            pairs, scores = torch.cat((self._pairs, pairs)), torch.cat((self._scores, scores))
        self._pairs, order = pairs.sort()
        self._scores = scores[order]

    def scores(self, pairs: torch.Tensor) -> torch.Tensor:
        return self._scores[torch.searchsorted(self._pairs, pairs)]


def batches(items: Iterable[Any], size: int) -> Iterator[list]:
    """Lists of `size` items, the last one of those that are left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


__all__ = [
    "EmbeddingModel",
    "MatchingModel",
    "PairScorer",
    "RetrievalEvaluator",
    "RetrievalModel",
    "TwoTowers",
    "as_retrieval_model",
    "recall_at_k",
]
