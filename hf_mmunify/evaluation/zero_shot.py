"""Zero-shot classification: images are compared with what prompts say of each class.

    class names x templates -> encode_texts -> mean of each class's unit vectors, a unit vector again [C, D]
    images -> encode_images -> features [N, D] -> similarities, times the model's scale -> logits [N, C] -> top k

Paper: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), section 3.1.4.
Original: openai/CLIP@d05afc4 (notebooks/Prompt_Engineering_for_ImageNet.ipynb, with its 80 templates).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from .classification import top_k_accuracy
from .retrieval import EmbeddingModel, as_retrieval_model, batches, taken_inputs, text_settings


TEMPLATES = ("This is a photo of {}.",)


class ZeroShotClassifier:
    """Names the class of an image by a model that compares images with texts.

    Args:
        model (`PreTrainedModel`):
            With embeddings of both (`hf_mmunify.evaluation.EmbeddingModel`): CLIP, SigLIP, ALBEF, BLIP-2 and the like.
        processor (`ProcessorMixin`):
            Its processor.
        class_names (`Sequence[str]`):
            What the templates call the `C` classes.
        templates (`str` or `Sequence[str]`, *optional*):
            Prompts with `{}` for the name of a class; by default the one of transformers' pipeline. The embedding of
            a class is the mean over the templates.
        batch_size (`int`, defaults to 64):
            Prompts or images that are encoded at once.

    Attributes:
        class_features (`torch.Tensor` `[C, D]`): Unit vectors, encoded once, when the classifier is made.

    Raises:
        ValueError: the model has no embeddings, there are no classes or templates, two classes have one name, or a
            template has not one `{}`.

    Example:

    ```python
    classifier = ZeroShotClassifier(model, processor, ["dog", "cat"], ["a photo of a {}.", "a sketch of a {}."])
    classifier.evaluate(images, labels)  # {"top1": 0.93, "top5": 1.0}
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        class_names: Sequence[str],
        templates: str | Sequence[str] = TEMPLATES,
        batch_size: int = 64,
    ):
        templates = [templates] if isinstance(templates, str) else list(templates)
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise ValueError(f"A template has one {{}} for the name of a class, as in {TEMPLATES[0]!r}; got {wrong}.")
        if not class_names or len(set(class_names)) < len(class_names):
            raise ValueError(f"Classes have names of their own, at least one; got {list(class_names)}.")
        self.model = model
        self.retriever = as_retrieval_model(model)
        if not isinstance(self.retriever, EmbeddingModel):
            raise ValueError(
                f"{type(model).__name__} reads pairs of images and texts and has no embedding of either: use "
                "RetrievalEvaluator.scores with one text a class."
            )
        self.processor = processor
        self.class_names = list(class_names)
        self.batch_size = batch_size
        self.class_features = self._encode_classes(templates)

    @torch.no_grad()
    def _encode_classes(self, templates: list[str]) -> torch.Tensor:
        self.model.eval()
        prompts = [template.replace("{}", name) for name in self.class_names for template in templates]
        settings, encode = text_settings(self.model.config), self.retriever.encode_texts
        features = [
            encode(**taken_inputs(self.processor(text=batch, **settings), self.model, encode))["features"]
            for batch in batches(prompts, self.batch_size)
        ]
        features = torch.cat(features).unflatten(0, (len(self.class_names), len(templates)))  # [C, templates, D]
        return nn.functional.normalize(features.mean(dim=1), dim=-1)  # [C, D]

    @torch.no_grad()
    def logits(self, images: Iterable[Any], blind: bool = False) -> torch.Tensor:
        """Logits `[N, C]`, on the CPU in float32: similarities times the model's scale, plus its bias (SigLIP).

        Args:
            images (`Iterable`): What the processor takes; they may come one by one from a dataset.
            blind (`bool`, defaults to `False`): Whether pixels are zeroed.

        Raises:
            ValueError: when there are none.
        """
        self.model.eval()
        found, encode = [], self.retriever.encode_images
        for batch in logging.tqdm(batches(images, self.batch_size), desc="batches of images", leave=False):
            inputs = taken_inputs(self.processor(images=batch, return_tensors="pt"), self.model, encode)
            if blind:
                inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
            similarities = self.retriever.similarities(encode(**inputs)["features"], self.class_features)
            found.append(self._scaled(similarities).float().cpu())
        if not found:
            raise ValueError("There are no images to classify.")
        return torch.cat(found)

    def _scaled(self, similarities: torch.Tensor) -> torch.Tensor:
        """As the model's own `forward` does; a model that keeps its temperature to itself ranks as well without."""
        scale, temperature, bias = (
            getattr(self.model, name, None) for name in ("logit_scale", "temperature", "logit_bias")
        )
        if isinstance(scale, torch.Tensor):
            similarities = similarities * scale.exp()
        elif isinstance(temperature, torch.Tensor):  # ALIGN, BLIP-2
            similarities = similarities / temperature
        return similarities + bias if isinstance(bias, torch.Tensor) else similarities

    def probabilities(self, images: Iterable[Any], blind: bool = False) -> torch.Tensor:
        """As transformers' pipeline gives them, `[N, C]`: softmax of the logits; of SigLIP's the sigmoid."""
        logits = self.logits(images, blind)
        has_bias = isinstance(getattr(self.model, "logit_bias", None), torch.Tensor)
        return logits.sigmoid() if has_bias else logits.softmax(dim=-1)

    def predict(self, images: Iterable[Any]) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.class_names[place] for place in self.logits(images).argmax(dim=-1)]

    def evaluate(
        self, images: Iterable[Any], labels: Sequence[int], ks: Sequence[int] = (1, 5), blind: bool = False
    ) -> dict[str, float]:
        """Share of images whose class is among the first k: `{"top1": ..., "top5": ...}`, as `top_k_accuracy`.

        Args:
            images (`Iterable`), blind (`bool`): As for `logits`.
            labels (`Sequence[int]`): `[N]`, numbers of `class_names`.
            ks (`Sequence[int]`, defaults to 1 and 5): Numbers of places.
        """
        return top_k_accuracy(self.logits(images, blind), labels, ks)


__all__ = ["TEMPLATES", "ZeroShotClassifier"]
