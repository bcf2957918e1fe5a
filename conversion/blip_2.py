"""LAVIS's BLIP-2 -> `Blip2ForPreTraining` (first stage) and `Blip2ForConditionalGeneration` (second), and back.

`original_config` holds the arguments of LAVIS's models in their own names (`img_size`, `num_query_token`, ...). LAVIS
saves no parameter that it froze. What a file leaves out is completed from where the config says: the vision tower from
LAVIS's `eva_vit_g.pth` (`vit_weights`, a path), the language model from the repository or folder in `opt_model` or
`t5_model`. `temp` and the head that writes (`Qformer.cls.*`) are kept. The COCO checkpoint is one of the first stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, Blip2Config

from hf_mmunify.conversion.engine import (
    MissingKeysError,
    Rename,
    Reshape,
    Rule,
    Source,
    Variant,
    WrongConfigError,
    bind,
)
from hf_mmunify.conversion.readers import read
from hf_mmunify.conversion.rules import KeyMap


MODEL_TYPE = "blip_2"

SOURCE = Source(
    repository="salesforce/LAVIS",
    commit="506965b9c4a18c1e565bd32acaccabe0198433f7",
    code_license="BSD-3-Clause",
    weights_license="BSD-3-Clause; those of the language model apply to the second stage",
)

HEADS = {
    None: "Blip2ForPreTraining",
    "pretraining": "Blip2ForPreTraining",
    "generation": "Blip2ForConditionalGeneration",
}

ALIASES = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}

COMPLETE = {
    "vision_model.{*}": "the frozen tower: LAVIS's eva_vit_g.pth, which `vit_weights` of original_config names",
    "language_model.{*}": "the frozen language model, which `opt_model` or `t5_model` of original_config names",
}

UNPUBLISHED = {
    "visual_encoder.proj.{*}": "the convolution that stands for the vision tower in the golden cases",
    "opt_model.{*}": "frozen, and left out of published files",
    "opt_proj.{*}": "of the second stage, whose published sizes depend on a language model elsewhere",
    "t5_model.{*}": "frozen, and left out of published files",
    "t5_proj.{*}": "of the second stage, whose published sizes depend on a language model elsewhere",
}


@dataclass(frozen=True)
class WithoutKeyBias:
    """Biases of queries and values -> one of queries, keys and values; that of the keys is zero, and has no effect."""

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        query, value = tensors
        return [torch.cat([query, torch.zeros_like(value), value])]

    def backward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        query, _, value = tensors[0].chunk(3)
        return [query, value]


def key_map(config: Blip2Config) -> list[Rule]:
    """Of the golden cases' tower there is one convolution; of the language model, what kind of model it is decides."""
    language_model = "opt" if config.use_decoder_only_language_model else "t5"
    has_tower = config.vision_config.num_hidden_layers > 0
    tower = _vision_tower() if has_tower else [_vision("visual_encoder.proj.{*}", "embeddings.patch_embedding.{*}")]
    theirs, ours = "Qformer.bert.encoder.layer.{}", "qformer.encoder.layer.{}"
    return [
        Rename("query_tokens", "query_tokens"),
        Reshape("temp", "temperature", (1,), ()),
        *tower,
        Rename("ln_vision.{*}", "vision_model.post_layernorm.{*}"),
        Rename("Qformer.bert.embeddings.LayerNorm.{*}", "qformer.layernorm.{*}"),
        Rename("Qformer.bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
        Rename("Qformer.bert.embeddings.position_embeddings.weight", "embeddings.position_embeddings.weight"),
        Rename(theirs + ".attention.self.{*}", ours + ".attention.attention.{*}"),
        Rename(theirs + ".crossattention.self.{*}", ours + ".crossattention.attention.{*}"),
        Rename(theirs + ".{*}", ours + ".{*}"),
        Rename("Qformer.cls.predictions.transform.dense.{*}", "generation_head.dense.{*}"),
        Rename("Qformer.cls.predictions.transform.LayerNorm.{*}", "generation_head.layernorm.{*}"),
        Rename("Qformer.cls.predictions.bias", "generation_head.decoder.bias"),
        Rename("vision_proj.{*}", "vision_projection.{*}"),
        Rename("text_proj.{*}", "text_projection.{*}"),
        Rename("itm_head.{*}", "itm_head.{*}"),
        Rename(language_model + "_proj.{*}", "language_projection.{*}"),
        Rename(language_model + "_model.{*}", "language_model.{*}"),
    ]


def _vision(theirs: str, ours: str) -> Rename:
    return Rename(theirs, "vision_model." + ours)


def _vision_tower() -> list[Rule]:
    """EVA's names -> BLIP-2's."""
    block, layer = "visual_encoder.blocks.{}", "encoder.layers.{}"
    biases = [block + ".attn.q_bias", block + ".attn.v_bias"]
    return [
        _vision("visual_encoder.cls_token", "embeddings.class_embedding"),
        _vision("visual_encoder.pos_embed", "embeddings.position_embedding"),
        _vision("visual_encoder.patch_embed.proj.{*}", "embeddings.patch_embedding.{*}"),
        _vision(block + ".norm1.{*}", layer + ".layer_norm1.{*}"),
        _vision(block + ".norm2.{*}", layer + ".layer_norm2.{*}"),
        _vision(block + ".attn.qkv.weight", layer + ".self_attn.qkv.weight"),
        Rule(biases, f"vision_model.{layer}.self_attn.qkv.bias", WithoutKeyBias()),
        _vision(block + ".attn.proj.{*}", layer + ".self_attn.projection.{*}"),
        _vision(block + ".mlp.{*}", layer + ".mlp.{*}"),
    ]


def config_from_original(original_config: dict, state_dict: Mapping[str, torch.Tensor]) -> Blip2Config:
    """Arguments of LAVIS's models; or, of the golden cases, the Q-Former's sizes and a stub of a tower."""
    if "qformer" in original_config:
        return _golden_config(original_config)
    tower = original_config.get("vit_model", "eva_clip_g")
    if tower != "eva_clip_g":
        raise WrongConfigError(
            f"vit_model is {tower!r}, whose tower (CLIP's, with a normalisation before the encoder) the BLIP-2 of "
            "transformers does not have. Expected 'eva_clip_g'."
        )
    num_query_tokens = original_config.get("num_query_token", 32)
    sizes = {
        "vision_config": {"image_size": original_config.get("img_size", 224)},
        "num_query_tokens": num_query_tokens,
    }
    language_model = original_config.get("opt_model", original_config.get("t5_model"))
    if language_model is not None:
        return Blip2Config(text_config=_text_config(language_model), qformer_config={}, **sizes)
    return Blip2Config(
        qformer_config={
            "vocab_size": 30523,  # BERT's words, and [DEC]
            "cross_attention_frequency": original_config.get("cross_attention_freq", 2),
            "use_qformer_text_input": True,
        },
        image_text_hidden_size=original_config.get("embed_dim", 256),
        tie_word_embeddings=True,
        **sizes,
    )


def _text_config(language_model: str | Mapping) -> dict:
    """That of a repository or folder, or spelled out."""
    if isinstance(language_model, Mapping):
        return dict(language_model)
    return AutoConfig.from_pretrained(language_model).to_dict()


def _golden_config(original_config: dict) -> Blip2Config:
    qformer, stub, tokenizer = (original_config[name] for name in ("qformer", "vision_stub", "tokenizer"))
    return Blip2Config(
        vision_config={
            "hidden_size": stub["width"],
            "patch_size": stub["patch_size"],
            "image_size": 32,
            "num_hidden_layers": 0,
            "num_attention_heads": 1,
            "intermediate_size": stub["width"],
            "layer_norm_eps": 1e-5,
        },
        qformer_config={
            **qformer,
            "vocab_size": tokenizer["size"],
            "cross_attention_frequency": original_config["cross_attention_freq"],
            "use_qformer_text_input": True,
            "decoder_start_token_id": tokenizer["bos_token_id"],
        },
        num_query_tokens=original_config["args"]["num_query_token"],
        image_text_hidden_size=original_config["args"]["embed_dim"],
        tie_word_embeddings=True,
    )


def head_from_state_dict(state_dict: Mapping[str, torch.Tensor], original_config: dict | None) -> str | None:
    """The second stage has a projection into its language model."""
    return "generation" if {"opt_proj.weight", "t5_proj.weight"} & state_dict.keys() else "pretraining"


def derived(config: Blip2Config, originals: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Numbers of positions, which BERT kept as a buffer."""
    positions = torch.arange(config.qformer_config.max_position_embeddings)
    return {"Qformer.bert.embeddings.position_ids": positions[None]}


def complete(config: Blip2Config, missing: list[str], original_config: dict) -> dict[str, torch.Tensor]:
    """The frozen parts, which LAVIS does not save, from their own files.

    Raises:
        MissingKeysError: the config does not say where a part is.
    """
    if "vision_stub" in original_config:  # a tower of one convolution has neither a class token nor positions
        shapes = {
            "vision_model.embeddings.class_embedding": (1, 1, config.vision_config.hidden_size),
            "vision_model.embeddings.position_embedding": (1, 17, config.vision_config.hidden_size),
        }
        return {name: torch.zeros(shape) for name, shape in shapes.items()}
    found = {}
    if any(name.startswith("vision_model.") for name in missing):
        if "vit_weights" not in original_config:
            raise MissingKeysError(
                "The checkpoint has no weights of the vision tower, which LAVIS froze and did not save. Fetch LAVIS's "
                "eva_vit_g.pth, and name it in original_config['vit_weights']."
            )
        tower = {f"visual_encoder.{key}": tensor for key, tensor in read(original_config["vit_weights"]).items()}
        for step in KeyMap(_vision_tower(), {}).forward(tower):
            found |= {name: t for name, t in zip(step.targets, step.tensors) if name in missing}
    if any(name.startswith("language_model.") for name in missing):
        source = original_config.get("opt_model", original_config.get("t5_model"))
        auto_class = AutoModelForCausalLM if config.use_decoder_only_language_model else AutoModelForSeq2SeqLM
        weights = auto_class.from_pretrained(source).state_dict()
        found |= {f"language_model.{name}": t for name, t in weights.items() if f"language_model.{name}" in missing}
    return found


def _published(img_size: int) -> dict:
    return {"vit_model": "eva_clip_g", "img_size": img_size, "num_query_token": 32, "embed_dim": 256}


VARIANTS = {
    "pretrain": Variant(config=_published(224), parameters=1_172_654_910, file="blip2_pretrained.pth"),
    "coco": Variant(config=_published(364), parameters=1_173_246_270, file="blip2_finetune_coco.pth"),
}
"""The manifests list the whole model; a published file may leave the frozen tower out."""


convert, export = bind(__name__)
