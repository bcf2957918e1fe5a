"""What transformers' common tests need to know of an architecture besides its row in the table of tiny models."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tiny import VISION_TOWER
from tiny.blip import ROW as TINY_BLIP
from tiny.coca import ROW as TINY_COCA
from tiny.flamingo import END_OF_CHUNK, IMAGE


@dataclass(frozen=True)
class Row:
    """How upstream's tests meet one architecture. An architecture that needs none of this has no row.

    Attributes:
        settings: changes to the settings of the tiny model.
        inputs: makes what `forward` takes, in the place of the tiny model's batch. Upstream wants one image a row,
            texts of equal length, and no padding.
        also: name of a test -> what it needs among the inputs besides, made from them.
        num_words: how many token ids, from 0, are words that a text may have without an image; by default all.
        skips: name of a test, or `test_x[ClassName]` where the reason holds for that class of the architecture alone
            (see `only`) -> why it does not keep what the test asks for. The tests run nonetheless, and must fail.
    """

    settings: dict = field(default_factory=dict)
    inputs: Callable[[], dict[str, torch.Tensor]] | None = None
    also: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = field(default_factory=dict)
    num_words: int | None = None
    skips: dict[str, str] = field(default_factory=dict)


def only(*classes: str, skips: dict[str, str]) -> dict[str, str]:
    """`skips` of these classes: their names -> the reasons."""
    return {f"{test}[{name}]": why for name in classes for test, why in skips.items()}


SCAN_ATTENTION = "its attention, normalised over what attends, is none that a backend knows"
SCAN_REGIONS = "its processor reads regions, not pictures"

# How upstream's tests say that they find nothing to test ("test[class]: reason") -> why that is as it should be. They
# fail where they skip for any other reason. Not in the table: what a machine lacks (accelerators, packages), which
# upstream's decorators say.
JUSTIFIED = {
    r"grouped_mm|sparse experts|output_router_logits|MoE|expert parallel": "no part of the model has experts",
    r"[Ee]ncoder-decoder|sequence-to-sequence": "the model has no encoder-decoder",
    r"No decoder-only language modeling head": "the class has no head",
    r"no `base_model_class`": "upstream tests rotary embeddings on the base model",
    r"partial rope|axial RoPE": "no part of the model has rotary embeddings of that kind",
    r"No conversion found": "original checkpoints are converted by hf_mmunify.conversion",
    r"cannot test composite SDPA dispatch": "no part of the model is a language model",
    r"is not (a )?composite|No subconfigs": "the config has no parts",
    r"RoPE": "no part of the model has rotary embeddings",
    r"doesn't use `inputs_embeds`": "the class takes ids alone",
    r"does not have a TP plan": "the class has no plan for tensor parallelism",
    r"sliding_window": "no part of the model has a sliding window",
    r"test_resize_position_vector": "the class does not resize its table of positions",
    r"_keep_in_fp32_modules": "the class keeps nothing in float32",
    r"test_reverse_loading_mapping.*PrefixChange": "original checkpoints are converted by hf_mmunify.conversion",
    r"test_sdpa_can_dispatch_non_composite_models": "the model is composite: test_sdpa_can_dispatch_composite_models",
    r"(video_processor|audio_processor|feature_extractor) attribute|accept videos": "videos are images in a list, "
    "and there is no sound",
    r"Scan\w+ does not support SDPA": SCAN_ATTENTION,
    r"ScanProcessor": SCAN_REGIONS,
    r"has no chat template|doesn't accept chat templates": "the processor reads no conversations",
    r"does not support tools": "the chat template has no tools",
    r"_get_num_multimodal_tokens": "an image is one token, whatever its size",
    r"requires torchao": "torchao is not installed",
    r"at least \d (FSDP workers|CPUs)": "the machine has too few cores",
    r"CPU-only": "upstream runs processes in parallel on machines without accelerators alone",
}


# Flamingo ----------------------------------------------------------------------------------------------------------


def flamingo_inputs() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, END_OF_CHUNK, (4, 10), generator=draw)
    input_ids[:, 2] = IMAGE
    size = VISION_TOWER["image_size"]
    return {
        "input_ids": input_ids,  # [B, T]
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(4, 1, 3, size, size, generator=draw),  # [B, 1, 3, H, W]
    }


def flamingo_media_index(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"media_index": (inputs["input_ids"] == IMAGE).cumsum(dim=1)}  # [B, T]


FLAMINGO_WITHOUT_IMAGES = (
    "upstream trains on text alone, and resumes an optimizer that has no state for what reads images"
)

FLAMINGO = Row(
    settings={
        # Towers of today, on which upstream's tests of rotary embeddings, tensor parallelism and initialisation run
        "vision_config": {**VISION_TOWER, "model_type": "siglip_vision_model"},
        "text_config": {
            "model_type": "qwen3",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 96,
            "max_position_embeddings": 64,
        },
        "freeze_language_model": False,  # upstream trains input embeddings
    },
    inputs=flamingo_inputs,
    # Embeddings do not say where the images are
    also={"test_inputs_embeds": flamingo_media_index, "test_inputs_embeds_matches_input_ids": flamingo_media_index},
    num_words=END_OF_CHUNK,
    skips={
        "test_model_input_names": "image_mask comes only where the rows of a batch differ in number of images",
        "test_subprocessor_defaults_1_images": "pixel_values have a dimension more than the image processor's: images",
        "test_fsdp2_plan_vs_ddp_0_untied": FLAMINGO_WITHOUT_IMAGES,
        "test_fsdp2_plan_vs_ddp_1_tied": FLAMINGO_WITHOUT_IMAGES,
        "test_get_image_features_pooler_output[FlamingoForConditionalGeneration]": (
            "upstream's generate expands a flat list of images with the beams; Flamingo's encodes them first, and "
            "what it expands has a row of images for each text"
        ),
    },
)


# ALBEF -------------------------------------------------------------------------------------------------------------

ALBEF = Row(
    skips={
        "test_attention_outputs": "upstream wants those of one tower alone; vision and fusion have theirs as well",
        "test_hidden_states_output": "upstream takes the length of the text from pixel_values",
        **only(
            "AlbefForImageTextRetrieval",
            "AlbefForPreTraining",
            skips={
                "test_get_text_features_attentions": "only the layers before fusion read a text alone",
                "test_get_text_features_hidden_states": "only the layers before fusion read a text alone",
                "test_init_weights_can_init_buffers": "the queue begins with features drawn by chance",
            },
        ),
        **only(
            "AlbefModel",
            "AlbefForImageTextRetrieval",
            "AlbefForImagesAndTextClassification",
            "AlbefForVisualEntailment",
            skips={
                "test_reverse_loading_mapping": (
                    "weights are saved by the names of today, so that Trainer finds them again"
                )
            },
        ),
    },
)


# BLIP --------------------------------------------------------------------------------------------------------------

BLIP_TOWER = "hidden states and attentions are those of the vision tower, as in the native model"

BLIP = Row(
    # Upstream's tolerances are for states about as large as those of a model that is drawn by the defaults
    settings={
        "vision_config": {**TINY_BLIP.settings["vision_config"], "initializer_range": 0.02},
        "text_config": {**TINY_BLIP.settings["text_config"], "initializer_range": 0.02},
        "initializer_range": 0.02,
    },
    skips={
        **only(
            "BlipForConditionalGeneration",
            "BlipForImageTextRetrieval",
            "BlipForQuestionAnswering",
            skips={"test_attention_outputs": BLIP_TOWER, "test_hidden_states_output": BLIP_TOWER},
        ),
        **only(
            "BlipForConditionalGeneration",
            "BlipForQuestionAnswering",
            skips={"test_model_base_model_prefix": "each head has towers of its own, as the native ones"},
        ),
        **only(
            "BlipForConditionalGeneration",
            "BlipForImagesAndTextClassification",
            "BlipForPreTraining",
            "BlipForQuestionAnswering",
            skips={
                "test_resize_tokens_embeddings": "upstream cuts off the last words, among which are [DEC] and [ENC]"
            },
        ),
        "test_batching_equivalence[BlipForPreTraining]": "the other rows of a batch are the negatives of a pair",
        "test_training_overfit": "upstream trains on text alone, and a text is written about an image",
    },
)


# BLIP-2 ------------------------------------------------------------------------------------------------------------

BLIP_2_PARTS = "hidden states and attentions lie in the outputs of tower and Q-Former, as in the native model"

BLIP_2 = Row(
    skips={
        "test_attention_outputs": BLIP_2_PARTS,
        "test_hidden_states_output": BLIP_2_PARTS,
        "test_retain_grad_hidden_states_attentions": BLIP_2_PARTS,
        **only(
            "Blip2ForPreTraining",
            skips={
                "test_resize_tokens_embeddings": "upstream cuts off the last word, with which a written text begins",
                "test_resize_embeddings_untied": "upstream cuts off the last word, with which a written text begins",
                "test_batching_equivalence": "the other rows of a batch are the negatives of a pair",
            },
        ),
    },
)


# CLIP --------------------------------------------------------------------------------------------------------------

CLIP_TOWERS = "hidden states and attentions lie in the outputs of the two towers, as in native CLIP"

CLIP = Row(
    skips={
        "test_attention_outputs": CLIP_TOWERS,
        "test_hidden_states_output": CLIP_TOWERS,
        "test_retain_grad_hidden_states_attentions": CLIP_TOWERS,
    },
)


# CoCa --------------------------------------------------------------------------------------------------------------

COCA_TOWERS = "hidden states and attentions lie in the outputs of image encoder and text, as in CLIP"

COCA_LENGTH = "upstream takes the length of a sequence from pixel_values"

COCA = Row(
    # Upstream's tolerances are for states about as large as those of a model that is drawn by the defaults
    settings={
        "text_config": {**TINY_COCA.settings["text_config"], "initializer_range": 0.02},
        "initializer_range": 0.02,
    },
    skips={
        **only(
            "CocaModel",
            "CocaForImageTextRetrieval",
            skips={
                "test_attention_outputs": COCA_TOWERS,
                "test_hidden_states_output": COCA_TOWERS,
                "test_retain_grad_hidden_states_attentions": COCA_TOWERS,
            },
        ),
        **only(
            "CocaModel",
            "CocaForConditionalGeneration",
            "CocaForImageTextRetrieval",
            skips={
                "test_get_text_features_attentions": "only the first half of the decoder reads a text alone",
                "test_get_text_features_hidden_states": "only the first half of the decoder reads a text alone",
            },
        ),
        **only(
            "CocaForConditionalGeneration",
            skips={
                "test_can_capture_specific_layers_hidden_states": "each half of the decoder counts its own layers",
                "test_get_image_features_pooler_output": (
                    "what `generate` expands are the caption tokens that it made before"
                ),
            },
        ),
        **only(
            "CocaForImageClassification",
            "CocaForVideoClassification",
            skips={
                "test_attention_outputs": COCA_LENGTH,
                "test_hidden_states_output": COCA_LENGTH,
                "test_model_get_set_embeddings": "the classifiers embed patches, not words",
                "test_resize_tokens_embeddings": "the classifiers embed patches, not words",
            },
        ),
        "test_problem_types[CocaForImageClassification]": (
            "upstream asks for one class, and the table has labels of two"
        ),
        "test_training_overfit": "upstream trains on text alone, and a text is written about an image",
    },
)


# SCAN --------------------------------------------------------------------------------------------------------------

SCAN = Row(
    skips={
        "test_attention_outputs": "there is one map of each image with its text, without heads or layers",
        "test_hidden_states_output": "states of the GRU have both directions side by side",
        "test_retain_grad_hidden_states_attentions": "the map is a view of the attention that the score is made of",
        "test_capture_outputs_decorator": "what the GRU gives is turned before it is shown, so nothing is captured",
        "test_can_capture_specific_layers_hidden_states": "as above",
        "test_can_set_attention_dynamically": SCAN_ATTENTION,
        "test_can_set_attention_dynamically_composite_model": SCAN_ATTENTION,
        "test_config": "upstream wants a number of attention heads; a GRU has none",
        "test_flat_kwarg_applied_when_modality_dict_lacks_it": SCAN_REGIONS,
        "test_model_input_names": SCAN_REGIONS,
        "test_processor_with_multiple_inputs": SCAN_REGIONS,
    },
)


# FLIP --------------------------------------------------------------------------------------------------------------

FLIP = Row(
    skips={
        "test_attention_outputs": CLIP_TOWERS,
        "test_hidden_states_output": CLIP_TOWERS,
        "test_retain_grad_hidden_states_attentions": CLIP_TOWERS,
    },
)


# ViLT --------------------------------------------------------------------------------------------------------------

VILT_SEQUENCE = "patches stand behind the words, and upstream counts the words alone"

VILT = Row(
    skips={
        "test_attention_outputs": VILT_SEQUENCE,
        "test_hidden_states_output": VILT_SEQUENCE,
        "test_sdpa_can_dispatch_composite_models": "the config has no parts",
    },
)


ROWS: dict[str, Row] = {
    "albef": ALBEF,
    "blip": BLIP,
    "blip_2": BLIP_2,
    "clip": CLIP,
    "coca": COCA,
    "flamingo": FLAMINGO,
    "flip": FLIP,
    "scan": SCAN,
    "vilt": VILT,
}
