"""CoCa checkpoints of open_clip -> our models, and back.

The authors published neither code nor weights; open_clip trained CoCa on LAION-2B. Its configuration (`embed_dim`,
`vision_cfg`, `text_cfg`, `multimodal_cfg`) is to be given, by name or as a file, because weights do not tell their
heads. Released checkpoints have `attentional_pool: true`: the first query of one pooler is the image's feature.
"""

from collections.abc import Mapping

import torch
from transformers import AutoProcessor, CLIPProcessor

from hf_mmunify.conversion.engine import (
    Rename,
    Reshape,
    Rule,
    Source,
    Split,
    Transpose,
    Variant,
    WrongConfigError,
    bind,
)
from hf_mmunify.models.coca import CocaConfig


MODEL_TYPE = "coca"

SOURCE = Source(
    repository="mlfoundations/open_clip",
    commit="89fb801f1e6087880e951fc8354b8a2077b79c6d",
    code_license="MIT",
    weights_license="MIT",
)

HEADS = {None: "CocaForConditionalGeneration"}

IGNORE = {
    "text.attn_mask": "the causal mask",
    "text_decoder.attn_mask": "the causal mask",
}

POOLERS = {True: "first_query", "parallel": "parallel", "cascade": "cascade"}
"""open_clip's `attentional_pool` -> our `pooler_type`."""

OPEN_CLIP_VISION = {
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "attentional_pool",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "output_tokens",
}
OPEN_CLIP_TEXT = {
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "embed_cls",
    "correct_cls_mask",
    "pad_id",
    "output_tokens",
}
OPEN_CLIP_DECODER = {
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "dim_head",
    "n_queries",
    "attn_pooler_heads",
}
"""What can be held. Nothing in open_clip reads `dim_head`, `n_queries` and `attn_pooler_heads` of the decoder."""


def _attention(theirs: str, ours: str, is_of_one_width: bool = True) -> list[Rule]:
    """torch's attention, whose weights are one tensor where query and keys have the same width."""
    names = [f"{ours}.{x}_proj" for x in "qkv"]
    weights = [Rename(f"{theirs}.{x}_proj_weight", f"{name}.weight") for x, name in zip("qkv", names)]
    if is_of_one_width:
        weights = [Split(f"{theirs}.in_proj_weight", [f"{name}.weight" for name in names])]
    return [
        *weights,
        Split(f"{theirs}.in_proj_bias", [f"{name}.bias" for name in names]),
        Rename(f"{theirs}.out_proj.{{*}}", f"{ours}.o_proj.{{*}}"),
    ]


def _layer(theirs: str, ours: str, attention: str) -> list[Rule]:
    return [
        *_attention(f"{theirs}.attn", f"{ours}.{attention}"),
        Rename(f"{theirs}.ln_1.{{*}}", f"{ours}.{attention}_norm.{{*}}"),
        Rename(f"{theirs}.ln_2.{{*}}", f"{ours}.mlp_norm.{{*}}"),
        Rename(f"{theirs}.mlp.c_fc.{{*}}", f"{ours}.mlp.fc1.{{*}}"),
        Rename(f"{theirs}.mlp.c_proj.{{*}}", f"{ours}.mlp.fc2.{{*}}"),
    ]


def _pooler(theirs: str, ours: str, is_of_one_width: bool) -> list[Rule]:
    return [
        Rename(f"{theirs}.query", f"{ours}.query"),
        Rename(f"{theirs}.ln_q.{{*}}", f"{ours}.query_norm.{{*}}"),
        Rename(f"{theirs}.ln_k.{{*}}", f"{ours}.read_norm.{{*}}"),
        *_attention(f"{theirs}.attn", f"{ours}.attention", is_of_one_width),
    ]


def key_map(config: CocaConfig) -> list[Rule]:
    """Names of one model, for every way of pooling."""
    vision, block, layer = (
        "model.vision_model",
        "visual.transformer.resblocks.{}",
        "model.vision_model.encoder.layers.{}",
    )
    of_one_width = config.vision_config.hidden_size == config.projection_dim
    return [
        Reshape("logit_scale", "model.logit_scale", (1,), ()),
        Rename("visual.class_embedding", f"{vision}.embeddings.class_embedding"),
        Rename("visual.positional_embedding", f"{vision}.embeddings.position_embedding.weight"),
        Rename("visual.conv1.weight", f"{vision}.embeddings.patch_embedding.weight"),
        Rename("visual.ln_pre.{*}", f"{vision}.pre_layrnorm.{{*}}"),
        Split(f"{block}.attn.in_proj_weight", [f"{layer}.self_attn.{x}_proj.weight" for x in "qkv"]),
        Split(f"{block}.attn.in_proj_bias", [f"{layer}.self_attn.{x}_proj.bias" for x in "qkv"]),
        Rename(f"{block}.attn.out_proj.{{*}}", f"{layer}.self_attn.out_proj.{{*}}"),
        Rename(f"{block}.ln_1.{{*}}", f"{layer}.layer_norm1.{{*}}"),
        Rename(f"{block}.ln_2.{{*}}", f"{layer}.layer_norm2.{{*}}"),
        Rename(f"{block}.mlp.c_fc.{{*}}", f"{layer}.mlp.fc1.{{*}}"),
        Rename(f"{block}.mlp.c_proj.{{*}}", f"{layer}.mlp.fc2.{{*}}"),
        *_pooler("visual.attn_pool", "model.caption_pooler", of_one_width),
        *_pooler("visual.attn_pool_contrastive", "model.contrastive_pooler", True),
        Rename("visual.ln_post.{*}", "model.vision_norm.{*}"),
        Transpose("visual.proj", "model.visual_projection.weight"),
        Rename("text.cls_emb", "model.text_model.class_embedding"),
        Rename("text.positional_embedding", "model.text_model.embed_positions.weight"),
        Rename("text.token_embedding.weight", "model.text_model.embed_tokens.weight"),
        *_layer("text.transformer.resblocks.{}", "model.text_model.layers.{}", "self_attn"),
        Rename("text.ln_final.{*}", "model.text_model.norm.{*}"),
        Transpose("text.text_projection", "model.text_projection.weight"),
        *_layer("text_decoder.resblocks.{}", "decoder.layers.{}", "self_attn"),
        *_layer("text_decoder.cross_attn.{}", "decoder.image_layers.{}", "cross_attn"),
        Rename("text_decoder.cross_attn.{}.ln_1_kv.{*}", "decoder.image_layers.{}.image_norm.{*}"),
        Rename("text_decoder.ln_final.{*}", "decoder.norm.{*}"),
        Transpose("text_decoder.text_projection", "lm_head.weight"),
    ]


def config_from_original(original_config: dict | None, state_dict: Mapping[str, torch.Tensor]) -> CocaConfig:
    """open_clip's configuration of a CoCa."""
    if original_config is None or "multimodal_cfg" not in original_config:
        raise WrongConfigError(
            "A CoCa of open_clip needs its configuration, with embed_dim, vision_cfg, text_cfg, multimodal_cfg: give "
            f"the model's json file, or one of {', '.join(VARIANTS)}."
        )
    vision, text, decoder = (original_config[f"{part}_cfg"] for part in ("vision", "text", "multimodal"))
    foreign = [f"vision_cfg.{name}" for name in vision if name not in OPEN_CLIP_VISION]
    foreign += [f"text_cfg.{name}" for name in text if name not in OPEN_CLIP_TEXT]
    foreign += [f"multimodal_cfg.{name}" for name in decoder if name not in OPEN_CLIP_DECODER]
    if foreign or vision.get("attentional_pool") not in POOLERS or not text.get("embed_cls"):
        raise WrongConfigError(
            f"This CoCa of open_clip is of a kind that was not released: {', '.join(foreign) or 'its poolers'}. "
            f"Expected attentional_pool of {list(POOLERS)}, embed_cls, and besides of vision_cfg only "
            f"{', '.join(sorted(OPEN_CLIP_VISION))}; of text_cfg only {', '.join(sorted(OPEN_CLIP_TEXT))}; of "
            f"multimodal_cfg only {', '.join(sorted(OPEN_CLIP_DECODER))}."
        )
    ratios = {part.get("mlp_ratio", 4) for part in (text, decoder)}
    if text["width"] != decoder["width"] or len(ratios) > 1:
        raise WrongConfigError(
            f"The halves of the decoder have one width: text_cfg.width={text['width']} (mlp_ratio "
            f"{text.get('mlp_ratio', 4)}), multimodal_cfg.width={decoder['width']} ({decoder.get('mlp_ratio', 4)})."
        )
    activation = "quick_gelu" if original_config.get("quick_gelu", False) else "gelu"
    return CocaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_size": vision["width"],
            "intermediate_size": int(vision.get("mlp_ratio", 4) * vision["width"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "hidden_act": activation,
        },
        text_config={
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": int(text.get("mlp_ratio", 4) * text["width"]),
            "num_hidden_layers": text["layers"] + decoder["layers"],
            "num_unimodal_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "num_multimodal_attention_heads": decoder["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": activation,
            "legacy_class_mask": not text.get("correct_cls_mask", False),
            "pad_token_id": text.get("pad_id", 0),
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
        },
        projection_dim=original_config["embed_dim"],
        pooler_type=POOLERS[vision["attentional_pool"]],
        pooler_num_queries=vision.get("attn_pooler_queries", 256),
        pooler_num_attention_heads=vision.get("attn_pooler_heads", 8),
        contrastive_loss_weight=original_config.get("clip_loss_weight", 1.0),
        caption_loss_weight=original_config.get("caption_loss_weight", 2.0),
    )


def processor(original_config: dict) -> CLIPProcessor:
    """OpenAI's tokenizer, which pads with token 0 here, and image processor; texts and images of this size."""
    found = AutoProcessor.from_pretrained("openai/clip-vit-base-patch32")
    size = original_config["vision_cfg"]["image_size"]
    found.image_processor.size = {"shortest_edge": size}
    found.image_processor.crop_size = {"height": size, "width": size}
    found.tokenizer.pad_token = found.tokenizer.convert_ids_to_tokens(original_config["text_cfg"].get("pad_id", 0))
    found.tokenizer.model_max_length = original_config["text_cfg"]["context_length"]
    return found


def _published(vision: dict, width: int, heads: int) -> dict:
    """open_clip's configuration of a released CoCa."""
    text = {"context_length": 76, "vocab_size": 49408, "width": width, "heads": heads, "layers": 12}
    return {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": 224,
            "attentional_pool": True,
            "attn_pooler_heads": 8,
            "output_tokens": True,
            **vision,
        },
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "attn_pooler_heads": heads},
    }


_BASE = _published({"layers": 12, "width": 768, "patch_size": 32}, 512, 8)
_LARGE = _published({"layers": 24, "width": 1024, "patch_size": 14}, 768, 12)

VARIANTS = {
    "coca_ViT-B-32": Variant(
        config=_BASE, parameters=253_560_065, file="open_clip_pytorch_model.bin", manifest="coca_ViT-B-32"
    ),
    "coca_ViT-L-14": Variant(
        config=_LARGE, parameters=638_450_177, file="open_clip_pytorch_model.bin", manifest="coca_ViT-L-14"
    ),
    "mscoco_finetuned_coca_ViT-B-32": Variant(
        config=_BASE, parameters=253_560_065, file="open_clip_pytorch_model.bin", manifest="coca_ViT-B-32"
    ),
    "mscoco_finetuned_coca_ViT-L-14": Variant(
        config=_LARGE, parameters=638_450_177, file="open_clip_pytorch_model.bin", manifest="coca_ViT-L-14"
    ),
}

convert, export = bind(__name__)
