"""ViLT's Lightning checkpoints -> the ViLT classes of transformers and of this package, and back.

A published `.ckpt` keeps its weights under `state_dict`. `original_config` is the authors' (`vilt/config.py`); sizes
of the vision transformer, which their config only names, may stand beside it under `vision_transformer`.
"""

import torch
from transformers import AutoTokenizer, ViltConfig, ViltImageProcessorPil, ViltProcessor

from hf_mmunify.conversion.engine import Rename, Rule, Source, Split, Variant, bind


MODEL_TYPE = "vilt"

SOURCE = Source(
    repository="dandelin/ViLT",
    commit="762fd3975c180db6fc88f577cf39549983fa373a",
    code_license="Apache-2.0",
    weights_license="Apache-2.0",
)

HEADS = {
    None: "ViltModel",
    "pretrain": "ViltForPreTraining",
    "irtr": "ViltForImageAndTextRetrieval",
    "vqa": "ViltForQuestionAnswering",
    "nlvr2": "ViltForImagesAndTextClassification",
}

IGNORE = {"text_embeddings.position_ids": "0, 1, 2, ..., which transformers of 2021 kept as a buffer"}

_BLOCK, _LAYER = "transformer.blocks.{}", "vilt.encoder.layer.{}"

KEY_MAP: list[Rule] = [
    Rename("text_embeddings.{*}", "vilt.embeddings.text_embeddings.{*}"),
    Rename("token_type_embeddings.weight", "vilt.embeddings.token_type_embeddings.weight"),
    Rename("transformer.cls_token", "vilt.embeddings.cls_token"),
    Rename("transformer.pos_embed", "vilt.embeddings.position_embeddings"),
    Rename("transformer.patch_embed.proj.{*}", "vilt.embeddings.patch_embeddings.projection.{*}"),
    Split(f"{_BLOCK}.attn.qkv.{{*}}", [f"{_LAYER}.attention.attention.{x}.{{*}}" for x in ("query", "key", "value")]),
    Rename(f"{_BLOCK}.attn.proj.{{*}}", f"{_LAYER}.attention.output.dense.{{*}}"),
    Rename(f"{_BLOCK}.norm1.{{*}}", f"{_LAYER}.layernorm_before.{{*}}"),
    Rename(f"{_BLOCK}.norm2.{{*}}", f"{_LAYER}.layernorm_after.{{*}}"),
    Rename(f"{_BLOCK}.mlp.fc1.{{*}}", f"{_LAYER}.intermediate.dense.{{*}}"),
    Rename(f"{_BLOCK}.mlp.fc2.{{*}}", f"{_LAYER}.output.dense.{{*}}"),
    Rename("transformer.norm.{*}", "vilt.layernorm.{*}"),
    Rename("pooler.dense.{*}", "vilt.pooler.dense.{*}"),
    Rename("mlm_score.bias", "mlm_score.decoder.bias"),
    Rename("mlm_score.{*}", "mlm_score.{*}"),
    Rename("itm_score.fc.{*}", "itm_score.{*}"),
    Rename("rank_output.{*}", "rank_output.{*}"),
]

_CLASSIFIERS = {"vqa": "vqa_classifier", "nlvr2": "nlvr2_classifier"}


def key_map(config: ViltConfig) -> list[Rule]:
    """The classifiers have one name here, and one for each task there."""
    task = "vqa" if config.num_images < 1 else "nlvr2"
    return [*KEY_MAP, Rename(f"{_CLASSIFIERS[task]}.{{*}}", "classifier.{*}")]


PUBLISHED = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "mlp_ratio": 4,
    "max_text_len": 40,
    "drop_rate": 0.1,
    "image_size": 384,
    "patch_size": 32,
    "max_image_len": -1,
    "tokenizer": "bert-base-uncased",
}
"""The authors' config of all published checkpoints, as far as the model depends on it."""


def _settings(original_config: dict | None) -> dict:
    """The authors' config with the sizes of its vision transformer; what it leaves out is as published."""
    original_config = original_config or {}
    sizes = original_config.get("vision_transformer", {})
    sizes = {name: sizes[theirs] for name, theirs in (("image_size", "img_size"), ("patch_size",) * 2) if sizes}
    return {**PUBLISHED, **original_config.get("config", original_config), **sizes}


def config_from_original(original_config: dict | None, state_dict: dict[str, torch.Tensor]) -> ViltConfig:
    """The configuration of a checkpoint; how many answers and types of images there are, its weights say."""
    settings = _settings(original_config)
    types = state_dict["token_type_embeddings.weight"].shape[0]
    classes = [len(state_dict[f"{name}.3.bias"]) for name in _CLASSIFIERS.values() if f"{name}.3.bias" in state_dict]
    return ViltConfig(
        vocab_size=settings["vocab_size"],
        max_position_embeddings=settings["max_text_len"],
        modality_type_vocab_size=types,
        hidden_size=settings["hidden_size"],
        num_hidden_layers=settings["num_layers"],
        num_attention_heads=settings["num_heads"],
        intermediate_size=settings["hidden_size"] * settings["mlp_ratio"],
        hidden_dropout_prob=settings["drop_rate"],
        layer_norm_eps=1e-6,
        image_size=settings["image_size"],
        patch_size=settings["patch_size"],
        max_image_length=settings["max_image_len"],
        num_images=2 if "nlvr2_classifier.3.bias" in state_dict else -1,
        pad_token_id=0,
        num_labels=classes[0] if classes else 2,
    )


def head_from_state_dict(state_dict: dict[str, torch.Tensor], original_config: dict | None) -> str | None:
    """The head whose weights the checkpoint has."""
    for key, head in (
        ("rank_output.weight", "irtr"),
        ("vqa_classifier.3.weight", "vqa"),
        ("nlvr2_classifier.3.weight", "nlvr2"),
        ("mlm_score.bias", "pretrain"),
    ):
        if key in state_dict:
            return head
    return None


def processor(original_config: dict | None) -> ViltProcessor:
    """Images of 384 pixels at the shorter side, and BERT's tokenizer, from the repository that the config names."""
    settings = _settings(original_config)
    images = ViltImageProcessorPil(size={"shortest_edge": settings["image_size"]}, size_divisor=settings["patch_size"])
    tokenizer = AutoTokenizer.from_pretrained(settings["tokenizer"], model_max_length=settings["max_text_len"])
    return ViltProcessor(images, tokenizer)


VARIANTS = {
    "vilt_200k_mlm_itm": Variant(
        config={**PUBLISHED, "max_image_len": 200},
        parameters=135_660_092,
        file="vilt_200k_mlm_itm.ckpt",
        head="pretrain",
    ),
    "vilt_vqa": Variant(config=PUBLISHED, parameters=117_588_537, file="vilt_vqa.ckpt", head="vqa"),
    "vilt_nlvr2": Variant(config=PUBLISHED, parameters=113_962_754, file="vilt_nlvr2.ckpt", head="nlvr2"),
    "vilt_irtr_coco": Variant(config=PUBLISHED, parameters=111_597_315, file="vilt_irtr_coco.ckpt", head="irtr"),
    "vilt_irtr_f30k": Variant(
        config=PUBLISHED, parameters=111_597_315, file="vilt_irtr_f30k.ckpt", head="irtr", manifest="vilt_irtr_coco"
    ),
}


convert, export = bind(__name__)
