"""BLIP checkpoints -> the native BLIP classes, completed here, and back.

A published file is `{"model": ...}`. Which head it holds is read off its keys, and so are its sizes, all but those of
attention heads, which are 64 wide in everything published; an `original_config` is needed for other sizes only. It
has the names of the authors' constructors: `vit` ("base", "large", or a dict of `embed_dim`, `depth`, `num_heads`,
`patch_size`), `image_size`, `med_config` (a dict), `embed_dim`, `momentum`, and `tokenizer` (ids of the special
tokens, where it is another than theirs).

Files with momentum parts and queues become models that have them; those that were stripped become models without.
"""

import re
from collections.abc import Mapping

import torch
from transformers import BertTokenizerFast, BlipConfig, BlipImageProcessorPil, BlipProcessor

from hf_mmunify.conversion.engine import Rename, Reshape, Rule, Source, Variant, WrongConfigError, bind


MODEL_TYPE = "blip"

SOURCE = Source(
    repository="salesforce/BLIP",
    commit="056a169437371659074aa2732649d5de3bffb4a8",
    code_license="BSD-3-Clause",
    weights_license="BSD-3-Clause",
)

HEADS = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "retrieval": "BlipForImageTextRetrieval",
    "nlvr2": "BlipForImagesAndTextClassification",
    "pretrain": "BlipForPreTraining",
}

VITS = {
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
"""`create_vit` of models/blip.py; patches are 16 pixels wide."""

MED_CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
"""configs/med_config.json."""

TOKENIZER = {"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 30522, "enc_token_id": 30523}
"""`bert-base-uncased` with [DEC] and [ENC] added, `init_tokenizer` of models/blip.py."""

LABEL_SMOOTHING = 0.1
"""Written out in the loss of models/med.py."""


def key_map(config: BlipConfig) -> list[Rule]:
    """The text towers keep their names; the vision tower and the queue change theirs."""
    pointer = "queue_ptr" if _is_pre_training(config) else "ptr_queue"
    return [
        *_vision("visual_encoder", "vision_model"),
        *_vision("visual_encoder_m", "vision_model_m"),
        Rename("text_encoder.{*}", "text_encoder.{*}"),
        Rename("text_encoder_m.{*}", "text_encoder_m.{*}"),
        Rename("text_decoder.{*}", "text_decoder.{*}"),
        Rename("vision_proj.{*}", "vision_proj.{*}"),
        Rename("vision_proj_m.{*}", "vision_proj_m.{*}"),
        Rename("text_proj.{*}", "text_proj.{*}"),
        Rename("text_proj_m.{*}", "text_proj_m.{*}"),
        Rename("itm_head.{*}", "itm_head.{*}"),
        Rename("cls_head.{*}", "cls_head.{*}"),
        Reshape("temp", "temp", (1,), ()),
        Rename("image_queue", "queue.image_features"),
        Rename("text_queue", "queue.text_features"),
        Rename("idx_queue", "queue.ids"),
        Rename(pointer, "queue.pointer"),
    ]


def _is_pre_training(config: BlipConfig) -> bool:
    return HEADS["pretrain"] in (config.architectures or ())


def _vision(theirs: str, ours: str) -> list[Rule]:
    block, layer = theirs + ".blocks.{}", ours + ".encoder.layers.{}"
    return [
        Rename(theirs + ".cls_token", ours + ".embeddings.class_embedding"),
        Rename(theirs + ".pos_embed", ours + ".embeddings.position_embedding"),
        Rename(theirs + ".patch_embed.proj.{*}", ours + ".embeddings.patch_embedding.{*}"),
        Rename(block + ".norm1.{*}", layer + ".layer_norm1.{*}"),
        Rename(block + ".attn.qkv.{*}", layer + ".self_attn.qkv.{*}"),
        Rename(block + ".attn.proj.{*}", layer + ".self_attn.projection.{*}"),
        Rename(block + ".norm2.{*}", layer + ".layer_norm2.{*}"),
        Rename(block + ".mlp.{*}", layer + ".mlp.{*}"),
        Rename(theirs + ".norm.{*}", ours + ".post_layernorm.{*}"),
    ]


def ignore(config: BlipConfig) -> dict[str, str]:
    """What a stripped file may have kept of its training."""
    if vars(config).get("queue_size"):
        return {}
    reason = "part of a queue or a teacher that the file does not hold whole"
    return {"queue_ptr": reason, "ptr_queue": reason}


def aliases(config: BlipConfig) -> dict[str, str]:
    """The words' table is tied to the scores of words; in pre-training, encoder and decoder share more."""
    words = {
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
    }
    if not _is_pre_training(config):
        return words
    layer = "encoder.layer.{}."
    shared = ["embeddings.{*}", *(layer + part + ".{*}" for part in ("crossattention", "intermediate", "output"))]
    return {**{f"text_decoder.bert.{part}": f"text_encoder.{part}" for part in shared}, **words}


def derived(config: BlipConfig, originals: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Position ids, which transformers of 2022 kept in the state dict."""
    positions = torch.arange(config.text_config.max_position_embeddings).expand(1, -1)
    tables = [key for key in originals if key.endswith("embeddings.position_embeddings.weight")]
    return {key.replace("position_embeddings.weight", "position_ids"): positions for key in tables}


def head_from_state_dict(state_dict: Mapping[str, torch.Tensor], original_config: dict | None) -> str:
    """By the parts that only one head has."""
    parts = {key.partition(".")[0] for key in state_dict}
    if "cls_head" in parts:
        return "nlvr2"
    if "text_decoder" not in parts:
        return "retrieval"
    if "text_encoder" not in parts:
        return "caption"
    return "pretrain" if "itm_head" in parts else "vqa"


def config_from_original(original_config: dict | None, state_dict: Mapping[str, torch.Tensor]) -> BlipConfig:
    """The constructors' arguments, and what shapes tell."""
    given = original_config or {}
    tokenizer = {**TOKENIZER, **given.get("tokenizer", {})}
    text_tower = "text_encoder." if "text_encoder.embeddings.LayerNorm.weight" in state_dict else "text_decoder.bert."
    words = state_dict[text_tower + "embeddings.word_embeddings.weight"].shape[0]
    med_config = {**_text_sizes(state_dict, text_tower), **given.get("med_config", {})}
    text_config = {
        **{name: med_config.get(name, default) for name, default in MED_CONFIG.items()},
        "vocab_size": words,
        "bos_token_id": tokenizer["bos_token_id"],
        "sep_token_id": tokenizer["sep_token_id"],
        "eos_token_id": tokenizer["sep_token_id"],
        "pad_token_id": tokenizer["pad_token_id"],
        "label_smoothing": LABEL_SMOOTHING,
    }
    settings = {
        "text_config": text_config,
        "vision_config": _vision_config(given, state_dict),
        "encoder_token_id": tokenizer["enc_token_id"],
        "queue_size": state_dict["image_queue"].shape[1] if "image_queue" in state_dict else 0,
    }
    arguments = {**given, **given.get("args", {})}
    if "vision_proj.weight" in state_dict:
        settings["image_text_hidden_size"] = state_dict["vision_proj.weight"].shape[0]
    if "momentum" in arguments:
        settings["momentum"] = arguments["momentum"]
    return BlipConfig(**settings)


def _text_sizes(state_dict: Mapping[str, torch.Tensor], tower: str) -> dict:
    """The text tower's sizes, as shapes tell them; attention heads are 64 wide."""
    positions, width = state_dict[tower + "embeddings.position_embeddings.weight"].shape
    return {
        "hidden_size": width,
        "num_attention_heads": max(1, width // 64),
        "num_hidden_layers": _count(state_dict, tower + "encoder.layer."),
        "intermediate_size": state_dict[tower + "encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": positions,
    }


def _vision_config(given: dict, state_dict: Mapping[str, torch.Tensor]) -> dict:
    """The vision tower's sizes by name or by dict; without either as shapes tell them."""
    width, _, patch_size, _ = state_dict["visual_encoder.patch_embed.proj.weight"].shape
    grid = round((state_dict["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    told = {"embed_dim": width, "depth": _count(state_dict, "visual_encoder.blocks."), "num_heads": width // 64}
    vit = given.get("vit", told)
    if isinstance(vit, str) and vit not in VITS:
        raise WrongConfigError(f"vit is {vit!r}; expected one of {', '.join(VITS)}, or a dict of its sizes.")
    vit = VITS[vit] if isinstance(vit, str) else vit
    return {
        "hidden_size": vit["embed_dim"],
        "num_hidden_layers": vit["depth"],
        "num_attention_heads": vit["num_heads"],
        "intermediate_size": 4 * vit["embed_dim"],
        "patch_size": vit.get("patch_size", patch_size),
        "image_size": vit.get("img_size", given.get("image_size", grid * patch_size)),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.02,
    }


def _count(state_dict: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many layers there are under this prefix."""
    numbers = {match[1] for key in state_dict if (match := re.match(re.escape(prefix) + r"(\d+)\.", key))}
    return len(numbers)


def processor(original_config: dict | None) -> BlipProcessor | None:
    """The words of `bert-base-uncased`, and images resized by bicubic interpolation, normalised with CLIP's numbers.

    None where the configuration brings a tokenizer of its own.
    """
    given = original_config or {}
    if "tokenizer" in given or "image_size" not in given:
        return None
    tokenizer = BertTokenizerFast.from_pretrained("bert-base-uncased")
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    size = {"height": given["image_size"], "width": given["image_size"]}
    return BlipProcessor(BlipImageProcessorPil(size=size), tokenizer)


def _published(
    vit: str, image_size: int, parameters: int, name: str, head: str, same_as: str | None = None
) -> Variant:
    return Variant(
        config={"vit": vit, "image_size": image_size},
        parameters=parameters,
        file=f"{name}.pth",
        head=head,
        manifest=same_as,
    )


PUBLISHED = [
    ("base", 224, 475_892_799, "model_base_14M", "pretrain", "model_base"),
    ("base", 224, 475_892_799, "model_base", "pretrain"),
    ("base", 224, 475_892_799, "model_base_capfilt_large", "pretrain", "model_base"),
    ("large", 224, 920_467_007, "model_large", "pretrain"),
    ("base", 384, 447_486_979, "model_base_retrieval_coco", "retrieval"),
    ("base", 384, 447_486_979, "model_base_retrieval_flickr", "retrieval", "model_base_retrieval_coco"),
    ("large", 384, 892_255_747, "model_large_retrieval_coco", "retrieval"),
    ("large", 384, 892_255_747, "model_large_retrieval_flickr", "retrieval", "model_large_retrieval_coco"),
    ("base", 384, 223_971_644, "model_base_caption_capfilt_large", "caption"),
    ("large", 384, 446_290_492, "model_large_caption", "caption"),
    ("base", 480, 361_478_972, "model_vqa", "vqa", "model_base_vqa_capfilt_large"),
    ("base", 480, 361_478_972, "model_base_vqa_capfilt_large", "vqa"),
    ("base", 384, 259_372_034, "model_base_nlvr", "nlvr2"),
]
"""README.md and configs/ of the original. The manifests are what its constructors give at these sizes; a file that was
stripped of teacher and queue has fewer keys, and becomes a model without them."""

VARIANTS = {row[3]: _published(*row) for row in PUBLISHED}


convert, export = bind(__name__)
