"""Auto classes for three tasks that transformers has models for, but no Auto class.

`AutoModelForImageTextRetrieval`  image [B, 3, H, W] and text [B, T] -> how well they match
`AutoModelForVisualReasoning`     two images [B, 2, 3, H, W] and a statement -> true or false (NLVR2)
`AutoModelForVisualEntailment`    an image and a hypothesis -> entailment, neutral or contradiction (SNLI-VE)

Each knows the native models that were made for its task, and those that `hf_mmunify.registry` adds.
"""

from collections.abc import Iterator, Mapping

import transformers
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


class _ModelMapping(Mapping):
    """Config class -> model class, in the form an Auto class reads. Native models are imported when first asked for.

    Args:
        native (`dict[str, str]`):
            Names of public configs of transformers, each with the name of its public model.
    """

    def __init__(self, native: dict[str, str]):
        self._models = {getattr(transformers, config): model for config, model in native.items()}

    def __getitem__(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        model = self._models[config_class]
        return getattr(transformers, model) if isinstance(model, str) else model

    def __iter__(self) -> Iterator[type[PreTrainedConfig]]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def register(
        self, config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], exist_ok: bool = False
    ) -> None:
        """Let `model_class` answer for `config_class`; an answer that exists is replaced only if `exist_ok`."""
        present = self.get(config_class, model_class)
        if present is not model_class and not exist_ok:
            raise ValueError(
                f"{present.__name__} already answers for {config_class.__name__}, got {model_class.__name__}: "
                "pass `exist_ok=True` to replace it, or give the new model a config class of its own."
            )
        self._models[config_class] = model_class


class _TaskAutoModel(AutoModel):
    """What the three share: the machinery of `AutoModel`, over a mapping of their own."""

    _model_mapping: _ModelMapping

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs) -> PreTrainedModel:
        """A model of this task with random weights.

        Args:
            config ([`PreTrainedConfig`]):
                Its class selects the model.
            attn_implementation (`str`, *optional*):
                `"eager"`, `"sdpa"`, `"flash_attention_2"`, ...; by default the best one that the model supports.

        Raises:
            ValueError: no model of this task has such a config; the message lists the configs that have one.
        """
        return super().from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs) -> PreTrainedModel:
        """A model of this task with the weights of a folder, or of a repository of the Hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                The folder or the repository. The class of its config selects the model.
            kwargs:
                As for [`AutoModel.from_pretrained`]: `dtype`, `device_map`, `quantization_config`, `revision`, ...

        Raises:
            ValueError: no model of this task has such a config; the message lists the configs that have one.
        """
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


class AutoModelForImageTextRetrieval(_TaskAutoModel):
    """A model that scores how well an image and a text match, for retrieval in both directions.

    Models with a matching head (BLIP, BLIP-2, ViLT, BridgeTower) read each pair; those with two towers (CLIP and its
    kin) compare an embedding of each, and give `logits_per_image [images, texts]`.
    """

    _model_mapping = _ModelMapping(
        {
            "AlignConfig": "AlignModel",
            "AltCLIPConfig": "AltCLIPModel",
            "BlipConfig": "BlipForImageTextRetrieval",
            "Blip2Config": "Blip2ForImageTextRetrieval",
            "BridgeTowerConfig": "BridgeTowerForImageAndTextRetrieval",
            "ChineseCLIPConfig": "ChineseCLIPModel",
            "CLIPConfig": "CLIPModel",
            "MetaClip2Config": "MetaClip2Model",
            "SiglipConfig": "SiglipModel",
            "Siglip2Config": "Siglip2Model",
            "Tipsv2Config": "Tipsv2Model",
            "ViltConfig": "ViltForImageAndTextRetrieval",
            "VisionTextDualEncoderConfig": "VisionTextDualEncoderModel",
        }
    )


class AutoModelForVisualReasoning(_TaskAutoModel):
    """A model that says whether a statement about a pair of images is true (NLVR2).

    ViLT reads pixels `[B, 2, 3, H, W]`; VisualBERT reads the features of detected regions of both images.
    """

    _model_mapping = _ModelMapping(
        {
            "ViltConfig": "ViltForImagesAndTextClassification",
            "VisualBertConfig": "VisualBertForVisualReasoning",
        }
    )


class AutoModelForVisualEntailment(_TaskAutoModel):
    """A model that says whether an image entails, leaves open or contradicts a hypothesis (SNLI-VE).

    No native model of transformers has this head: only architectures of this package answer.
    """

    _model_mapping = _ModelMapping({})


__all__ = ["AutoModelForImageTextRetrieval", "AutoModelForVisualEntailment", "AutoModelForVisualReasoning"]
