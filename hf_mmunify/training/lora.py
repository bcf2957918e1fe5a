"""Which parts of each architecture a LoRA adapts, which are trained in full beside it, and which stay out of 4 bits.

`lora_config` fits a model that is loaded as it is; `qlora_config` is for loading it in 4 bits first (QLoRA: Dettmers
et al., 2023). A new architecture enters with a row of `PRESETS`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from transformers import AutoModel, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel


if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class LoraPreset:
    """How one architecture is fine-tuned with few parameters.

    Attributes:
        target_modules (`str`): the modules that get a LoRA, as `peft.LoraConfig` takes them.
        exclude_modules (`str`, *optional*): a regular expression of those among them that get none.
        modules_to_save (`tuple[str, ...]`): modules that are trained in full and saved with the LoRA.
        full_precision (`tuple[str, ...]`): modules, by the last part of their names, that are never quantised.
    """

    target_modules: str = "all-linear"
    exclude_modules: str | None = None
    modules_to_save: tuple[str, ...] = ()
    full_precision: tuple[str, ...] = ()


# One tower: its layers are adapted, the head of a task is new and trained in full.
_ONE_TOWER = LoraPreset(
    exclude_modules=r"(.*\.)?((pre_|cls_|distillation_)?classifier|pooler|decoder|lm_head|cls)(\..*)?",
    modules_to_save=("classifier", "pre_classifier", "cls_classifier", "distillation_classifier", "pooler"),
    full_precision=("(pre_|cls_|distillation_)?classifier", "pooler", "decoder", "lm_head", "cls"),
)
# Two towers: both are adapted; what leads from each into the shared space is small, and trained in full.
_TWO_TOWERS = LoraPreset(
    exclude_modules=r"(.*_projection|(.*\.)?(pooler|classifier)(\..*)?)",
    modules_to_save=("visual_projection", "text_projection", "pooler", "classifier"),
    full_precision=("visual_projection", "text_projection", "pooler", "classifier"),
)
# The head of a tower pools by attention, through weights that PEFT's layers would not see.
_TWO_TOWERS_WITH_HEADS = LoraPreset(
    exclude_modules=r"(.*\.)?(head|classifier)(\..*)?",
    modules_to_save=("head", "classifier"),
    full_precision=("head", "classifier"),
)

# By the model type of a config, a dash of it as an underscore: "blip-2" is the row "blip_2", as its folder. Those of
# transformers that need no completion are at the end.
PRESETS: dict[str, LoraPreset] = {
    # Towers, pair layers and decoder are adapted, the momentum copies (`..._m`) are not; heads are small and trained.
    "albef": LoraPreset(
        target_modules=r".*\.(q_proj|k_proj|v_proj|o_proj|fc1|fc2)",
        exclude_modules=r"(.*\.)?\w+_m\..*",
        modules_to_save=("classifier", "itm_head", "vision_proj", "text_proj"),
        full_precision=(
            *("classifier", "itm_head", "vision_proj", "text_proj", "lm_head"),
            *("classifier_m", "vision_proj_m", "text_proj_m", "lm_head_m"),
        ),
    ),
    # Towers, both cross-attentions included, are adapted, the momentum copies are not; heads are small and trained.
    "blip": LoraPreset(
        target_modules=r"(.*\.)?(vision_model|text_encoder|bert)\.encoder\..*"
        r"\.(query|key|value|dense|dense0|dense1|qkv|projection|fc1|fc2)",
        modules_to_save=("itm_head", "vision_proj", "text_proj", "cls_head", "merge_layer"),
        full_precision=("itm_head", "vision_proj", "text_proj", "cls_head", "merge_layer", "decoder", "vision_model"),
    ),
    # Tower and Q-Former are adapted, what compares them is trained in full; the head that writes shares a table.
    "blip_2": LoraPreset(
        exclude_modules=r".*(generation_head\..*|itm_head|vision_projection|text_projection)",
        modules_to_save=("itm_head", "vision_projection", "text_projection"),
        full_precision=("generation_head", "itm_head", "vision_projection", "text_projection"),
    ),
    # Both towers are adapted; what leads from each into the shared space is small, and trained in full.
    "clip": LoraPreset(
        exclude_modules=r".*_projection",
        modules_to_save=("visual_projection", "text_projection"),
        full_precision=("visual_projection", "text_projection"),
    ),
    # Tower and decoder are adapted; what pools, and what leads into the shared space, is trained in full.
    "coca": LoraPreset(
        target_modules=r"(.*\.)?(vision_model|text_model|decoder)\..*\.(q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2)",
        modules_to_save=(
            *("caption_pooler", "contrastive_pooler", "visual_projection", "text_projection"),
            *("pooler", "pooler_norm", "classifier"),
        ),
        full_precision=("visual_projection", "text_projection", r"\w*pooler", "classifier", "lm_head"),
    ),
    # The language model is adapted, the adapter trained; the tower is small beside it, and everything rests on it.
    "flamingo": LoraPreset(
        exclude_modules=r"(.*\.)?(vision_model|adapter)\..*",
        modules_to_save=("adapter",),
        full_precision=("adapter", "vision_model"),
    ),
    # PEFT has no LoRA for recurrent layers, so the GRU stays as it is: the projection of regions and the embeddings of
    # words are adapted, one on either side of it. To train the GRU too, train all of this small model.
    "scan": LoraPreset(target_modules=r"(.*\.)?(region_projection|word_embeddings)"),
    # Both towers are adapted; what leads from each into the shared space is small, and trained in full.
    "flip": LoraPreset(
        exclude_modules=r".*_projection",
        modules_to_save=("visual_projection", "text_projection"),
        full_precision=("visual_projection", "text_projection"),
    ),
    # The transformer is adapted; its pooler and what is new on top of it are small, and trained in full.
    "vilt": LoraPreset(
        target_modules=r"(.*\.)?encoder\.layer\..*\.(query|key|value|dense)",
        modules_to_save=("pooler", "classifier", "rank_output", "mlm_score", "itm_score"),
        full_precision=("pooler", "classifier", "rank_output", "mlm_score", "itm_score"),
    ),
}


PRESETS |= dict.fromkeys(
    (
        *("beit", "deit", "dinov2", "dinov2_with_registers", "swin", "timesformer", "videomae", "vit"),
        *("bert", "distilbert", "roberta"),
    ),
    _ONE_TOWER,
)
PRESETS |= dict.fromkeys(("altclip", "chinese_clip", "metaclip_2", "vision_text_dual_encoder"), _TWO_TOWERS)
PRESETS |= dict.fromkeys(("siglip", "siglip2"), _TWO_TOWERS_WITH_HEADS)


def preset_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> LoraPreset:
    """The row of `PRESETS` for a model or its config.

    Raises:
        ValueError: when there is none for this architecture; the message lists those that have one.
    """
    config = model_or_config.config if isinstance(model_or_config, PreTrainedModel) else model_or_config
    name = config.model_type.replace("-", "_")
    if name not in PRESETS:
        raise ValueError(
            f"There is no LoRA preset for {config.model_type!r}, only for {sorted(PRESETS)}: write a "
            "peft.LoraConfig by hand, or add a row to hf_mmunify.training.lora.PRESETS."
        )
    return PRESETS[name]


def lora_config(model_or_config: PreTrainedModel | PreTrainedConfig, **overrides) -> "LoraConfig":
    """The LoRA that suits an architecture: rank 16 on every linear layer of what was pre-trained and frozen.

    Args:
        model_or_config ([`PreTrainedModel`] or [`PreTrainedConfig`]):
            The model, or its config.
        overrides:
            Fields of [`peft.LoraConfig`] that are set otherwise. `modules_to_save=None` leaves everything but the LoRA
            as it is (for Flamingo: an adapter that was trained before), which makes its file much smaller.

    Returns:
        [`peft.LoraConfig`]: with `r=16`, `lora_alpha=32` and no dropout, unless `overrides` say otherwise.

    Raises:
        ValueError: when the architecture has no preset.

    Example:

    ```python
    >>> from peft import get_peft_model

    >>> model = get_peft_model(model, lora_config(model))
    >>> model = get_peft_model(model, lora_config(model, r=4, target_modules=["q_proj", "v_proj"]))
    ```
    """
    from peft import LoraConfig  # seconds to import, and of no use to who trains no LoRA

    preset = preset_of(model_or_config)
    settings = {
        "r": 16,
        "lora_alpha": 32,
        "target_modules": preset.target_modules,
        "exclude_modules": preset.exclude_modules,
        "modules_to_save": list(preset.modules_to_save) or None,
    }
    return LoraConfig(**{**settings, **overrides})


def qlora_config(model_or_config: PreTrainedModel | PreTrainedConfig, **overrides) -> BitsAndBytesConfig:
    """How `from_pretrained` is to load an architecture in 4 bits (NF4, double quantisation, computing in bfloat16).

    What is trained in full, what is small, and the output embeddings keep their precision. A width should be a
    multiple of 64, the number of weights that share a scale. On a CPU with AVX512-BF16, bitsandbytes packs the weights
    anew when the model first answers in evaluation mode, and no gradient passes them afterwards: train before you
    evaluate there, or load the model again to train it.

    Args:
        model_or_config ([`PreTrainedModel`] or [`PreTrainedConfig`]):
            The model, or its config.
        overrides:
            Fields of [`BitsAndBytesConfig`] that are set otherwise.

    Returns:
        [`BitsAndBytesConfig`]: for the argument `quantization_config` of `from_pretrained`.

    Raises:
        ValueError: when the architecture has no preset.
        ImportError: when bitsandbytes is not installed.

    Example:

    ```python
    >>> from peft import get_peft_model, prepare_model_for_kbit_training
    >>> from transformers import AutoConfig, AutoModelForImageTextToText

    >>> config = AutoConfig.from_pretrained("you/flamingo")
    >>> model = AutoModelForImageTextToText.from_pretrained("you/flamingo", quantization_config=qlora_config(config))
    >>> model = get_peft_model(prepare_model_for_kbit_training(model), lora_config(model))
    ```
    """
    preset = preset_of(model_or_config)
    if find_spec("bitsandbytes") is None:
        raise ImportError("Loading in 4 bits needs bitsandbytes: pip install 'hf-mmunify[quantization]'.")
    settings = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
        # Regular expressions, matched from the start of a name: heads put a prefix before the parts of the base model
        "llm_int8_skip_modules": [
            rf"(?:.*\.)?{name}" for name in (*preset.full_precision, *_output_embeddings(model_or_config))
        ],
    }
    return BitsAndBytesConfig(**{**settings, **overrides})


def _output_embeddings(model_or_config: PreTrainedModel | PreTrainedConfig) -> list[str]:
    """The last part of the name of the output embeddings, if there are any."""
    model = model_or_config
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"):
            model = AutoModel.from_config(model)
    head = model.get_output_embeddings()
    return [name.rpartition(".")[2] for name, module in model.named_modules() if head is not None and module is head]


__all__ = ["PRESETS", "LoraPreset", "lora_config", "preset_of", "qlora_config"]
