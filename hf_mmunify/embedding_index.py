"""An index of images that are found by text or by image, without the model's other tower.

    images -> encode_images -> features [N, D] or [N, Q, D] --.-> search -> the k most similar, best first
    text   -> encode_texts  -> [D]  (text tower alone)  ------'
    image  -> encode_images -> [D]  (image tower alone) ------'

On disk an index is a folder: `features-<digest>.safetensors`, and `index.json` with the ids, the fingerprint of the
model and the name of the features' file. `index.json` is replaced last and at once, so that a process killed while
saving leaves the index that was there. One process at a time may write to an index.
"""

import copy
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
import transformers
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.image_utils import load_image
from transformers.utils import logging

from .auto import AutoModelForImageTextRetrieval
from .data import load_rows
from .evaluation import EmbeddingModel, as_retrieval_model
from .evaluation.retrieval import batches, taken_inputs, text_settings


FORMAT = 1
_INDEX_FILE = "index.json"
_IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_QUERIES, _ENTRIES = 256, 8192  # that are compared at once: 8 MB of similarities, which a cache holds

Part = Literal["image", "text"]

# Native models whose towers have classes of their own: the class, and where its output has the projected features
_TOWERS = {
    "clip": {
        "image": ("CLIPVisionModelWithProjection", "image_embeds"),
        "text": ("CLIPTextModelWithProjection", "text_embeds"),
    },
    "metaclip_2": {
        "image": ("MetaClip2VisionModelWithProjection", "image_embeds"),
        "text": ("MetaClip2TextModelWithProjection", "text_embeds"),
    },
    "siglip": {"image": ("SiglipVisionModel", "pooler_output"), "text": ("SiglipTextModel", "pooler_output")},
}


class EmbeddingIndexError(ValueError):
    """An index that cannot be read, or cannot do what it was asked for; the message says what to do instead."""


class Match(NamedTuple):
    """One thing that was found.

    Args:
        id (`str`): Of the image, as it was added.
        score (`float`): Its similarity to the query, a cosine.
    """

    id: str
    score: float


# The model behind the features --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFingerprint:
    """By which model the features were made. What another model makes of a query cannot be compared with them.

    Args:
        name (`str`): Repository of the Hub or folder; empty of a model that was never saved.
        revision (`str`, *optional*): The commit of the repository.
        model_class (`str`), dtype (`str`): As in "CLIPModel", "float32".
        config (`str`): Digest of the model's config.
        image_weights (`str`), text_weights (`str`): Digests of the tensors that each tower reads.
        image_processor (`str`), tokenizer (`str`): Digests of how images and texts are prepared.
        feature_shape (`list[int]`): `[D]`, or `[Q, D]` of a model with several features an image (BLIP-2).
    """

    name: str
    revision: str | None
    model_class: str
    dtype: str
    config: str
    image_weights: str
    text_weights: str
    image_processor: str
    tokenizer: str
    feature_shape: list[int]

    def __str__(self) -> str:
        at = f"@{self.revision[:8]}" if self.revision else ""
        return f"{self.model_class} {self.name or '(never saved)'}{at}"


class _Reads(TorchFunctionMode):
    """Notes which of a model's own tensors take part in what is computed."""

    _ASKED_ABOUT = frozenset({"__get__", "is_floating_point", "size", "dim", "numel"})  # a dtype, a device, a shape

    def __init__(self, model: nn.Module):
        super().__init__()
        self._own = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        self.tensors: dict[int, torch.Tensor] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ not in self._ASKED_ABOUT:
            self.tensors |= {
                id(leaf): self._own[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._own
            }
        return function(*args, **(kwargs or {}))


class _Tower:
    """Half of a model: it turns images, or texts, into unit vectors.

    Args:
        part (`str`): "image" or "text".
        model (`PreTrainedModel`): The model, or its tower alone.
        encode (`Callable`): What the model does with the processor's tensors: features `[B, D]` or `[B, Q, D]`.
        processor (`ProcessorMixin`): Of the whole model.
        config (`PreTrainedConfig`): Of the whole model.
    """

    def __init__(
        self,
        part: Part,
        model: PreTrainedModel,
        encode: Callable[..., torch.Tensor],
        processor: ProcessorMixin,
        config: PreTrainedConfig,
    ):
        self.part = part
        self.model = model.eval()
        self.encode = encode
        self.processor = processor
        self.config = config
        self.settings = text_settings(config) if part == "text" else {"return_tensors": "pt"}

    def _inputs(self, batch: list) -> dict[str, torch.Tensor]:
        name = "text" if self.part == "text" else "images"
        return taken_inputs(self.processor(**{name: batch}, **self.settings), self.model, self.encode)

    @torch.no_grad()
    def __call__(self, batch: list) -> torch.Tensor:
        """Unit vectors, on the CPU in float32."""
        features = nn.functional.normalize(self.encode(**self._inputs(batch)).float(), dim=-1).cpu()
        if not features.isfinite().all():
            raise EmbeddingIndexError(
                f"Of a batch of {len(batch)} the features are not finite: the model's weights or its dtype (float16 "
                "overflows) are to blame."
            )
        return features

    @torch.no_grad()
    def tensors(self) -> list[torch.Tensor]:
        """The weights that it reads."""
        blank = "a" if self.part == "text" else np.zeros((32, 32, 3), dtype=np.uint8)
        inputs = self._inputs([blank])
        with _Reads(self.model) as reads:
            self.encode(**inputs)
        return list(reads.tensors.values())

    def weights(self) -> str:
        """Digest of the weights that it reads, whatever the names a class gives them."""
        digests = []
        for tensor in self.tensors():
            if tensor.dtype == torch.long:
                continue  # numbers of positions, which one class of a tower reads and another counts itself
            content = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            digests.append(content.hexdigest())
        return _digest(sorted(digests))

    def preparation(self) -> str:
        """Digest of what the processor does with an image or a text, but for its class and its file's version."""
        if self.part == "text":
            return _digest(sorted(self.processor.tokenizer.get_vocab().items()))
        settings = self.processor.image_processor.to_dict()
        return _digest({name: value for name, value in settings.items() if not name.endswith(("_type", "_class"))})

    def free_the_rest(self) -> None:
        """Gives back the memory of weights that this half does not read."""
        kept = {id(tensor) for tensor in self.tensors()}
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if id(tensor) not in kept:
                tensor.data = tensor.new_empty(0)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _config_digest(config: PreTrainedConfig) -> str:
    return _digest(_lasting(config.to_dict()))


def _lasting(settings: Any) -> Any:
    """Without what loading and saving change."""
    if not isinstance(settings, Mapping):
        return settings
    passing = {"architectures", "dtype", "torch_dtype", "transformers_version"}
    return {
        str(name): _lasting(value)
        for name, value in settings.items()
        if name not in passing and not str(name).startswith("_")
    }


def _as_tower(part: Part, model: PreTrainedModel, processor: ProcessorMixin) -> _Tower:
    """Half of a whole model."""
    try:
        retriever = as_retrieval_model(model)
    except ValueError as error:
        raise EmbeddingIndexError(str(error)) from error
    if not isinstance(retriever, EmbeddingModel):
        raise EmbeddingIndexError(
            f"{type(model).__name__} reads images and texts in pairs and has no embeddings to keep: use a model of "
            "two towers (CLIP, SigLIP) or one that matches after it compares (ALBEF, BLIP, BLIP-2)."
        )
    whole = retriever.encode_texts if part == "text" else retriever.encode_images

    @functools.wraps(whole)
    def encode(**inputs: torch.Tensor) -> torch.Tensor:
        return whole(**inputs)["features"]

    return _Tower(part, model, encode, processor, model.config)


def _load_tower(part: Part, fingerprint: ModelFingerprint, device: str | torch.device) -> _Tower:
    """Half of the model that a fingerprint names: read alone where there is a class for it, or else cut out."""
    name, revision = fingerprint.name, fingerprint.revision
    if not name:
        raise EmbeddingIndexError(
            f"The index was made by a {fingerprint.model_class} that was never saved: pass it as `model`, with its "
            "`processor`."
        )
    config = AutoConfig.from_pretrained(name, revision=revision)
    if _config_digest(config) != fingerprint.config:
        raise EmbeddingIndexError(_refusal(fingerprint, f"{name} has another config than it had then"))
    processor = AutoProcessor.from_pretrained(name, revision=revision)
    dtype = getattr(torch, fingerprint.dtype)
    if config.model_type not in _TOWERS:
        model = load_retrieval_model(name, revision, device, dtype)
        tower = _as_tower(part, model, processor)
        tower.free_the_rest()
        return tower
    class_name, output = _TOWERS[config.model_type][part]
    half = copy.deepcopy(config.text_config if part == "text" else config.vision_config)
    if "projection_dim" in config.to_dict():
        half.projection_dim = config.projection_dim  # CLIP keeps it with the whole
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list the other half, which is left out on purpose
    try:
        model = getattr(transformers, class_name).from_pretrained(name, revision=revision, config=half, dtype=dtype)
    finally:
        logging.set_verbosity(verbosity)
    model.to(device)

    def encode(**inputs: torch.Tensor) -> torch.Tensor:
        return model(**inputs)[output]

    return _Tower(part, model, encode, processor, config)


def load_retrieval_model(
    name: str, revision: str | None = None, device: str | torch.device = "cpu", dtype: torch.dtype | str = "auto"
) -> PreTrainedModel:
    """The model of a repository or folder in the class that is made for retrieval, or else in its base class.

    Args:
        name (`str`), revision (`str`, *optional*): As for `from_pretrained`.
        device (`str` or `torch.device`, defaults to "cpu"): Where to put it.
        dtype (`torch.dtype` or `str`, defaults to "auto"): Of its weights; by default as they were saved.
    """
    config = AutoConfig.from_pretrained(name, revision=revision)
    is_made_for_it = type(config) in AutoModelForImageTextRetrieval._model_mapping
    auto_class = AutoModelForImageTextRetrieval if is_made_for_it else AutoModel
    return auto_class.from_pretrained(name, revision=revision, dtype=dtype).to(device)


def _refusal(fingerprint: ModelFingerprint, difference: str) -> str:
    return (
        f"This is not the model of the index, {fingerprint}: {difference}. Its features cannot be compared; use that "
        "model, or build the index anew."
    )


# Images -------------------------------------------------------------------------------------------------------------


def read_images(
    source: str | os.PathLike,
    split: str = "train",
    image_column: str = "image",
    id_column: str | None = None,
    size: int | None = None,
) -> Iterator[tuple[str, Any]]:
    """Ids and images of a folder or a dataset, one after the other.

    Args:
        source (`str` or `os.PathLike`):
            A folder of image files, at any depth, or what `hf_mmunify.data.load_rows` takes: "digit-scenes", a
            repository of the Hub, a saved dataset.
        split (`str`, defaults to "train"), image_column (`str`, defaults to "image"):
            Of a dataset.
        id_column (`str`, *optional*):
            Column of a dataset with the ids; by default rows are numbered. Files are called by their path in the
            folder, with `/` between its parts.
        size (`int`, *optional*):
            The first so many.

    Raises:
        EmbeddingIndexError: a file is no image, or a dataset has no such column.
    """
    folder = Path(source)
    is_dataset = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    files = [] if is_dataset else sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    for path in files[:size]:
        try:
            image = load_image(str(path))
        except Exception as error:  # Pillow's decoders raise kinds of their own
            raise EmbeddingIndexError(
                f"{path} cannot be read as an image ({error}): mend it or leave it out."
            ) from error
        yield path.relative_to(folder).as_posix(), image
    if files:
        return
    for place, row in enumerate(load_rows(str(source), "retrieval", split, size)):
        for column in (image_column, id_column):
            if column is not None and column not in row:
                raise EmbeddingIndexError(f"{source} has the columns {list(row)}, not {column!r}: name one of them.")
        image = row[image_column]
        image = load_image(image) if isinstance(image, Image.Image) else image  # grey and palette ones as RGB
        yield str(place if id_column is None else row[id_column]), image


# The index ----------------------------------------------------------------------------------------------------------


class EmbeddingIndex:
    """Features of images, and how to find the most similar ones.

    Made by `build` or `load`. Loading a model is left until a query needs it, and then its half is loaded that the
    query needs: of CLIP, MetaCLIP 2 and SigLIP nothing else is read; other models are read whole, and the weights of
    the other half given back.

    Args:
        features (`torch.Tensor` `[N, D]` or `[N, Q, D]`): Unit vectors, in float32.
        ids (`Sequence[str]`): `[N]`, no two alike.
        fingerprint (`ModelFingerprint`): Of the model that made them.

    Raises:
        EmbeddingIndexError: numbers or shapes do not fit, or two ids are alike.

    Example:

    ```python
    index = EmbeddingIndex.build(model, processor, read_images("photos"))
    index.save("photos.index")
    index = EmbeddingIndex.load("photos.index")
    index.query(text="a dog in the snow")[0]  # [Match(id="2019/IMG_0815.jpg", score=0.31), ...]
    ```
    """

    def __init__(self, features: torch.Tensor, ids: Sequence[str], fingerprint: ModelFingerprint):
        if features.ndim not in (2, 3) or len(features) != len(ids):
            raise EmbeddingIndexError(
                f"Features are [N, D] or [N, Q, D] with one id each; got {tuple(features.shape)} and {len(ids)} ids."
            )
        if list(features.shape[1:]) != list(fingerprint.feature_shape):
            raise EmbeddingIndexError(
                f"Features of {fingerprint} are of shape {fingerprint.feature_shape}, got {list(features.shape[1:])}."
            )
        self.features = features
        self.ids = list(ids)
        self.fingerprint = fingerprint
        self._places = {name: place for place, name in enumerate(self.ids)}
        if len(self._places) < len(self.ids):
            twice = next(name for place, name in enumerate(self.ids) if self._places[name] != place)
            raise EmbeddingIndexError(f"Two images have the id {twice!r}: an id says which image was found.")
        self._towers: dict[Part, _Tower] = {}
        self._faiss = None

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    # Entries --------------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        images: Iterable[tuple[str, Any]],
        batch_size: int = 64,
    ) -> "EmbeddingIndex":
        """An index of images.

        Args:
            model (`PreTrainedModel`): With embeddings of images and texts: any of
                `AutoModelForImageTextRetrieval`, but for those that read pairs alone.
            processor (`ProcessorMixin`): Its processor.
            images (`Iterable`): Pairs of id and image, from `read_images` or your own.
            batch_size (`int`, defaults to 64): Images that are encoded at once.

        Raises:
            EmbeddingIndexError: the model has no embeddings or compares them by a rule of its own, there are no
                images, or two ids are alike.
        """
        towers = {part: _as_tower(part, model, processor) for part in ("image", "text")}
        ids, features = _encode(towers["image"], images, batch_size, set())
        if not ids:
            raise EmbeddingIndexError("There are no images to make an index of.")
        _check_rule(as_retrieval_model(model), features, model)
        name = model.name_or_path
        fingerprint = ModelFingerprint(
            name=str(Path(name).resolve()) if Path(name).is_dir() and name else name,
            revision=getattr(model.config, "_commit_hash", None),  # of a model from the Hub
            model_class=type(model).__name__,
            dtype=str(model.dtype).removeprefix("torch."),
            config=_config_digest(model.config),
            image_weights=towers["image"].weights(),
            text_weights=towers["text"].weights(),
            image_processor=towers["image"].preparation(),
            tokenizer=towers["text"].preparation(),
            feature_shape=list(features.shape[1:]),
        )
        index = cls(features, ids, fingerprint)
        index._towers = towers
        return index

    def add(
        self,
        images: Iterable[tuple[str, Any]],
        model: PreTrainedModel | None = None,
        processor: ProcessorMixin | None = None,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
    ) -> int:
        """Adds images; either all or, when something is wrong with one of them, none.

        Args:
            images (`Iterable`): Pairs of id and image.
            model (`PreTrainedModel`, *optional*), processor (`ProcessorMixin`, *optional*): Those of the index; by
                default they are loaded by the name in its fingerprint.
            batch_size (`int`, defaults to 64): Images that are encoded at once.
            device (`str` or `torch.device`, defaults to "cpu"): Where to load the model.

        Returns:
            `int`: how many were added.

        Raises:
            EmbeddingIndexError: an id is there already, or the model is not that of the index.
        """
        ids, features = _encode(self._tower("image", model, processor, device), images, batch_size, self._places)
        if ids:
            self._replace(torch.cat((self.features, features)), [*self.ids, *ids])
        return len(ids)

    def remove(self, ids: Iterable[str]) -> None:
        """Removes entries.

        Raises:
            EmbeddingIndexError: one is not there; none is removed then.
        """
        gone = set(ids)
        if unknown := sorted(gone - self._places.keys()):
            raise EmbeddingIndexError(f"The index has no {unknown[0]!r} ({len(unknown)} of {len(gone)} are unknown).")
        kept = [place for place, name in enumerate(self.ids) if name not in gone]
        self._replace(self.features[kept], [self.ids[place] for place in kept])

    def _replace(self, features: torch.Tensor, ids: list[str]) -> None:
        changed = EmbeddingIndex(features, ids, self.fingerprint)
        self.features, self.ids, self._places, self._faiss = changed.features, changed.ids, changed._places, None

    # Searching ------------------------------------------------------------------------------------------------------

    def query(
        self,
        text: str | Sequence[str] | None = None,
        image: Any | None = None,
        k: int = 10,
        model: PreTrainedModel | None = None,
        processor: ProcessorMixin | None = None,
        device: str | torch.device = "cpu",
    ) -> list[list[Match]]:
        """The most similar images of each query, best first.

        Args:
            text (`str` or `Sequence[str]`, *optional*): What to find, one or several queries.
            image (*optional*): Or an image, or a list of them.
            k (`int`, defaults to 10): How many to find for each.
            model, processor, device: As for `add`.

        Raises:
            EmbeddingIndexError: neither or both of text and image are given, the model is not that of the index, or
                images are asked for by image of a model that compares them with texts alone (BLIP-2).
        """
        if (text is None) == (image is None):
            raise EmbeddingIndexError("Ask by text or by image, one of the two.")
        if image is not None and self.features.ndim == 3:
            raise EmbeddingIndexError(
                f"{self.fingerprint} has {self.features.shape[1]} features an image, and a rule to compare them with "
                "a text, none for two images: ask by text."
            )
        queries = image if text is None else text
        queries = list(queries) if isinstance(queries, (list, tuple)) else [queries]
        tower = self._tower("image" if text is None else "text", model, processor, device)
        if not queries:
            return []
        scores, places = self.search(torch.cat([tower(batch) for batch in batches(queries, 64)]), k)
        return [
            [Match(self.ids[place], score) for place, score in zip(*found)]
            for found in zip(places.tolist(), scores.tolist())
        ]

    def search(
        self, queries: torch.Tensor, k: int = 10, backend: Literal["auto", "exact", "faiss"] = "auto"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The most similar entries of vectors.

        Both ways are exact: they give the same scores but for rounding, and entries with equal scores in any order.

        Args:
            queries (`torch.Tensor` `[M, D]`): Unit vectors.
            k (`int`, defaults to 10): How many to find for each; at most all are found.
            backend (`str`, defaults to "auto"): "exact" compares block by block; "faiss" by faiss's inner products;
                "auto" is faiss where it is installed.

        Returns:
            `tuple` of the similarities `[M, k]`, and the places of the entries in `ids` `[M, k]`, best first.

        Raises:
            EmbeddingIndexError: queries have another shape, k is below 1, or faiss is asked for and not installed.
        """
        if queries.ndim != 2 or queries.shape[1] != self.features.shape[-1] or k < 1:
            raise EmbeddingIndexError(
                f"Queries are [M, {self.features.shape[-1]}] and k is at least 1; got {tuple(queries.shape)} and {k}."
            )
        if backend not in ("auto", "exact", "faiss"):
            raise EmbeddingIndexError(f"backend is 'auto', 'exact' or 'faiss'; got {backend!r}.")
        is_installed = importlib.util.find_spec("faiss") is not None
        if backend == "faiss" and not is_installed:
            raise EmbeddingIndexError("faiss is not installed: `pip install faiss-cpu`, or leave it to 'exact'.")
        k = min(k, len(self))
        queries = queries.float().cpu()
        if k == 0 or len(queries) == 0:
            return torch.zeros(len(queries), k), torch.zeros(len(queries), k, dtype=torch.long)
        if is_installed and backend != "exact":
            return self._find_by_faiss(queries, k)
        found = [self._find(block, k) for block in queries.split(_QUERIES)]
        return torch.cat([scores for scores, _ in found]), torch.cat([places for _, places in found])

    def _find(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores, places = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for start in range(0, len(self), _ENTRIES):
            block = _similarities(queries, self.features[start : start + _ENTRIES])  # [M, b]
            best = block.topk(min(k, block.shape[1]), dim=1)
            scores, places = torch.cat((scores, best.values), 1), torch.cat((places, best.indices + start), 1)
            scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
            places = places.gather(1, order)
        return scores, places

    def _find_by_faiss(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        import faiss

        if self._faiss is None:
            self._faiss = faiss.IndexFlatIP(self.features.shape[-1])
            self._faiss.add(self.features.flatten(0, -2).contiguous().numpy())
        each = self.features.shape[1] if self.features.ndim == 3 else 1
        # The k best entries are among the owners of so many best vectors, of which an entry has `each`
        scores, vectors = self._faiss.search(queries.contiguous().numpy(), (k - 1) * each + 1)
        scores, owners = torch.from_numpy(scores), torch.from_numpy(vectors) // each
        if each == 1:
            return scores, owners
        found = [list(dict.fromkeys(row))[:k] for row in owners.tolist()]  # each where its best vector stands
        places = torch.tensor(found)
        firsts = (owners[:, None] == places[:, :, None]).int().argmax(dim=-1)  # [M, k]
        return scores.gather(1, firsts), places

    def _tower(
        self, part: Part, model: PreTrainedModel | None, processor: ProcessorMixin | None, device: str | torch.device
    ) -> _Tower:
        """Half of the model of the index: the one given, or the one that was loaded before, or a new one."""
        if (model is None) != (processor is None):
            raise EmbeddingIndexError("A model comes with its processor: give both or neither.")
        if model is None and part in self._towers:
            return self._towers[part]
        is_named = model is None
        tower = _load_tower(part, self.fingerprint, device) if is_named else _as_tower(part, model, processor)
        self._check(tower)
        self._towers[part] = tower
        return tower

    def _check(self, tower: _Tower) -> None:
        """Refuses a model whose features cannot be compared with those of the index."""
        made, kept = tower.model, self.fingerprint
        of_part = {
            "image": (kept.image_weights, kept.image_processor, "images"),
            "text": (kept.text_weights, kept.tokenizer, "texts"),
        }
        weights, preparation, what = of_part[tower.part]
        given = f"{type(made).__name__} {made.name_or_path or '(never saved)'}"
        if _config_digest(tower.config) != kept.config:
            raise EmbeddingIndexError(_refusal(kept, f"{given} has another config"))
        if (dtype := str(made.dtype).removeprefix("torch.")) != kept.dtype:
            raise EmbeddingIndexError(_refusal(kept, f"{given} is in {dtype}, the index was made in {kept.dtype}"))
        if tower.weights() != weights:
            raise EmbeddingIndexError(_refusal(kept, f"{given} has other weights in the half that reads {what}"))
        if tower.preparation() != preparation:
            raise EmbeddingIndexError(_refusal(kept, f"the processor of {given} prepares {what} otherwise"))

    # On disk --------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index to a folder; an index that is there is replaced at once or, if that fails, stays.

        Raises:
            EmbeddingIndexError: the folder holds something else.
        """
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        if any(folder.iterdir()) and not (folder / _INDEX_FILE).is_file() and not list(_leftovers(folder)):
            raise EmbeddingIndexError(f"{folder} is not empty and holds no index: name another folder.")
        content = safetensors.torch.save({"features": self.features.contiguous()})
        digest = hashlib.sha256(content).hexdigest()
        about = {
            "format": FORMAT,
            "features": f"features-{digest[:16]}.safetensors",
            "features_sha256": digest,
            "model": asdict(self.fingerprint),
            "ids": self.ids,
        }
        _write(folder / about["features"], content)
        _write(folder / _INDEX_FILE, json.dumps(about, ensure_ascii=False, indent=1).encode())
        for path in _leftovers(folder):
            if path.name != about["features"]:
                path.unlink()

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "EmbeddingIndex":
        """Reads an index; no model is loaded.

        Raises:
            EmbeddingIndexError: there is none, or a file of it is damaged or of a later version; the message names it.
        """
        folder = Path(folder)
        path = folder / _INDEX_FILE
        if not path.is_file():
            raise EmbeddingIndexError(f"There is no index in {folder}: it has no {_INDEX_FILE}.")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            version = about["format"]
            if version == FORMAT:
                name, digest, ids = about["features"], about["features_sha256"], about["ids"]
                fingerprint = ModelFingerprint(
                    **{field.name: about["model"][field.name] for field in fields(ModelFingerprint)}
                )
        except (ValueError, KeyError, TypeError) as error:
            raise EmbeddingIndexError(
                f"{path} is damaged ({type(error).__name__}: {error}): restore it, or build the index anew."
            ) from error
        if version != FORMAT:
            raise EmbeddingIndexError(f"{path} is of format {version}, this version reads {FORMAT}: build it anew.")
        path = folder / Path(name).name
        if not path.is_file():
            raise EmbeddingIndexError(f"{path} is missing: restore it, or build the index anew.")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise EmbeddingIndexError(
                f"{path} is damaged: its {len(content)} bytes are not those that were written. Restore it, or build "
                "the index anew."
            )
        return cls(safetensors.torch.load(content)["features"], ids, fingerprint)


def _encode(
    tower: _Tower, images: Iterable[tuple[str, Any]], batch_size: int, taken: Iterable[str]
) -> tuple[list[str], torch.Tensor]:
    """Ids and features of images, in batches; an id may not be among those taken."""
    ids, features, taken = [], [], set(taken)
    for batch in logging.tqdm(batches(images, batch_size), desc="batches of images", leave=False):
        for name, _ in batch:
            if name in taken:
                raise EmbeddingIndexError(
                    f"Two images have the id {name!r}: an id says which image was found. Remove the old one first, or "
                    "call the new one otherwise."
                )
            taken.add(name)
        ids += [name for name, _ in batch]
        features.append(tower([image for _, image in batch]))
    return ids, torch.cat(features) if features else torch.empty(0)


def _similarities(queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Cosines `[M, N]`; of an entry with several features that of the most similar one."""
    # By numpy: its product is up to twice as fast here as torch's on a CPU (benchmarks/retrieval_index.py)
    products = torch.from_numpy(queries.numpy() @ features.flatten(0, -2).numpy().T)
    return products if features.ndim == 2 else products.unflatten(1, features.shape[:2]).amax(dim=-1)


def _check_rule(retriever: EmbeddingModel, features: torch.Tensor, model: PreTrainedModel) -> None:
    """An index compares by cosine, and several features of an image by their maximum: so must the model."""
    few = features[:8]
    text = nn.functional.normalize(torch.linspace(-1.0, 1.0, 3 * few.shape[-1]).view(3, -1).cos(), dim=-1)  # [3, D]
    placed = few.to(model.device, model.dtype), text.to(model.device, model.dtype)
    with torch.no_grad():
        own = retriever.similarities(*placed).float().cpu()  # [n, 3]
    cosines = _similarities(placed[1].float().cpu(), placed[0].float().cpu()).T
    scale = (own * cosines).sum() / cosines.square().sum()  # such as a temperature, which changes no order
    if scale <= 0 or not torch.allclose(own / scale, cosines, atol=2e-2):
        raise EmbeddingIndexError(
            f"{type(model).__name__} compares features by a rule of its own, an index by their cosine: it cannot be "
            "searched by this model."
        )


def _leftovers(folder: Path) -> Iterator[Path]:
    """Files of features, of this index and of saves that were cut short."""
    yield from folder.glob("features-*.safetensors*")
    yield from folder.glob(f"{_INDEX_FILE}.new-*")


def _write(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    new = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


__all__ = [
    "EmbeddingIndex",
    "EmbeddingIndexError",
    "Match",
    "ModelFingerprint",
    "load_retrieval_model",
    "read_images",
]
