"""CLIP checkpoints of OpenAI and of open_clip -> `CLIPModel`, and back.

OpenAI publishes TorchScript programs, whose weights are read without running them; their sizes are read off the
tensors, as OpenAI's own `build_model` does, so that no configuration is needed. open_clip trains the same architecture
under the same names, or, with a text tower of its own class, with `text.` before those of the text; its
configuration (`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`) is to be given, because weights do not tell how
they are activated. ResNets, and whatever else open_clip can build that this architecture cannot hold, are refused.
"""

from collections.abc import Mapping

import torch
from transformers import AutoProcessor, CLIPConfig, CLIPProcessor

from hf_mmunify.conversion.engine import Rename, Rule, Source, Split, Transpose, Variant, WrongConfigError, bind
from hf_mmunify.models.clip import HIGHEST_ID, VisionOptions, sin_cos_positions


MODEL_TYPE = "clip"

SOURCE = Source(
    repository="openai/CLIP",
    commit="d05afc436d78f1c48dc0dbf8e5980a9d471f35f6",
    code_license="MIT",
    weights_license="MIT",
)

HEADS = {None: "CLIPModel"}

IGNORE = {
    "input_resolution": "a size, told by the shapes",
    "context_length": "a size, told by the shapes",
    "vocab_size": "a size, told by the shapes",
    "attn_mask": "the causal mask",
    "text.attn_mask": "the causal mask",
}


def _tower(theirs: str, ours: str) -> list[Rule]:
    block, layer = theirs + "transformer.resblocks.{}", ours + ".encoder.layers.{}"
    return [
        Split(block + ".attn.in_proj_weight", [f"{layer}.self_attn.{x}_proj.weight" for x in "qkv"]),
        Split(block + ".attn.in_proj_bias", [f"{layer}.self_attn.{x}_proj.bias" for x in "qkv"]),
        Rename(block + ".attn.out_proj.{*}", layer + ".self_attn.out_proj.{*}"),
        Rename(block + ".ln_1.{*}", layer + ".layer_norm1.{*}"),
        Rename(block + ".ln_2.{*}", layer + ".layer_norm2.{*}"),
        Rename(block + ".mlp.c_fc.{*}", layer + ".mlp.fc1.{*}"),
        Rename(block + ".mlp.c_proj.{*}", layer + ".mlp.fc2.{*}"),
    ]


def _text(prefix: str) -> list[Rule]:
    return [
        Rename(prefix + "token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        Rename(prefix + "positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *_tower(prefix, "text_model"),
        Rename(prefix + "ln_final.{*}", "text_model.final_layer_norm.{*}"),
        Transpose(prefix + "text_projection", "text_projection.weight"),
    ]


KEY_MAP = [
    Rename("logit_scale", "logit_scale"),
    Rename("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    Rename("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    Rename("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    Rename("visual.ln_pre.{*}", "vision_model.pre_layrnorm.{*}"),
    *_tower("visual.", "vision_model"),
    Rename("visual.ln_post.{*}", "vision_model.post_layernorm.{*}"),
    Transpose("visual.proj", "visual_projection.weight"),
    *_text(""),
    *_text("text."),
]

UNPUBLISHED = {
    template.text: "open_clip's layout with `force_custom_text`; the way back leads to the common one"
    for rule in _text("text.")
    for template in rule.originals
}

OPEN_CLIP_VISION = {
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "patch_dropout",
    "pool_type",
    "pos_embed_type",
    "final_ln_after_pool",
}
OPEN_CLIP_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def config_from_original(original_config: dict | None, state_dict: Mapping[str, torch.Tensor]) -> CLIPConfig:
    """OpenAI's arguments of `CLIP` (read off the tensors where none are given), or open_clip's configuration."""
    if "visual.layer1.0.conv1.weight" in state_dict:
        raise WrongConfigError(
            "This is a CLIP with a ResNet, whose image tower (a changed ResNet that pools by attention) transformers "
            "does not have. Expected one with a vision transformer: ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px."
        )
    if original_config is not None and "vision_cfg" in original_config:
        return _from_open_clip(original_config)
    sizes = _read_off(state_dict) if original_config is None else original_config
    if not isinstance(sizes["vision_layers"], int):
        raise WrongConfigError(
            f"vision_layers is {sizes['vision_layers']!r}, as of a CLIP with a ResNet, whose image tower transformers "
            "does not have. Expected the number of layers of a vision transformer."
        )
    return _config(
        projection_dim=sizes["embed_dim"],
        activation="quick_gelu",
        vision={
            "image_size": sizes["image_resolution"],
            "patch_size": sizes["vision_patch_size"],
            "hidden_size": sizes["vision_width"],
            "intermediate_size": 4 * sizes["vision_width"],
            "num_hidden_layers": sizes["vision_layers"],
            "num_attention_heads": sizes["vision_width"] // 64,
        },
        text={
            "max_position_embeddings": sizes["context_length"],
            "vocab_size": sizes["vocab_size"],
            "hidden_size": sizes["transformer_width"],
            "intermediate_size": 4 * sizes["transformer_width"],
            "num_hidden_layers": sizes["transformer_layers"],
            "num_attention_heads": sizes["transformer_heads"],
        },
    )


def _read_off(state_dict: Mapping[str, torch.Tensor]) -> dict:
    """OpenAI's arguments, as the shapes tell them."""
    text = "text." if "text.positional_embedding" in state_dict else ""
    vision_width, _, patch_size, _ = state_dict["visual.conv1.weight"].shape
    context_length, width = state_dict[text + "positional_embedding"].shape
    grid = round((state_dict["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "embed_dim": state_dict[text + "text_projection"].shape[1],
        "image_resolution": grid * patch_size,
        "vision_layers": _count(state_dict, "visual.transformer.resblocks."),
        "vision_width": vision_width,
        "vision_patch_size": patch_size,
        "context_length": context_length,
        "vocab_size": state_dict[text + "token_embedding.weight"].shape[0],
        "transformer_width": width,
        "transformer_heads": width // 64,
        "transformer_layers": _count(state_dict, text + "transformer.resblocks."),
    }


def _count(state_dict: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)})


def _from_open_clip(original_config: dict) -> CLIPConfig:
    vision, text = original_config["vision_cfg"], original_config["text_cfg"]
    foreign = [f"vision_cfg.{name}" for name in vision if name not in OPEN_CLIP_VISION]
    foreign += [f"text_cfg.{name}" for name in text if name not in OPEN_CLIP_TEXT]
    if foreign:
        raise WrongConfigError(
            f"{', '.join(foreign)}: open_clip can build that, the CLIP of transformers cannot. Expected of vision_cfg "
            f"only {', '.join(sorted(OPEN_CLIP_VISION))}; of text_cfg only {', '.join(sorted(OPEN_CLIP_TEXT))}."
        )
    if not isinstance(vision["layers"], int):
        raise WrongConfigError(
            f"vision_cfg.layers is {vision['layers']!r}, as of a CLIP with a ResNet, whose image tower transformers "
            "does not have. Expected the number of layers of a vision transformer."
        )
    pool_type = vision.get("pool_type", "tok")
    if pool_type == "avg" and not vision.get("final_ln_after_pool", False):
        raise WrongConfigError(
            "pool_type 'avg' is held here with final_ln_after_pool alone: the mean is taken, then normalised."
        )
    options = {
        "patch_dropout": vision.get("patch_dropout", 0.0),
        "pool_type": pool_type,
        "pos_embed_type": vision.get("pos_embed_type", "learnable"),
    }
    plain = {"patch_dropout": 0.0, "pool_type": "tok", "pos_embed_type": "learnable"}
    return _config(
        projection_dim=original_config["embed_dim"],
        activation="quick_gelu" if original_config.get("quick_gelu", False) else "gelu",
        vision={
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_size": vision["width"],
            "intermediate_size": int(vision.get("mlp_ratio", 4.0) * vision["width"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            **{name: value for name, value in options.items() if value != plain[name]},
        },
        text={
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": int(text.get("mlp_ratio", 4.0) * text["width"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
        },
    )


def _config(projection_dim: int, activation: str, vision: dict, text: dict) -> CLIPConfig:
    of_both = {"hidden_act": activation, "projection_dim": projection_dim}
    # Their texts end in the highest id and are padded with zeros.
    ids = {"bos_token_id": text["vocab_size"] - 2, "eos_token_id": HIGHEST_ID, "pad_token_id": 0}
    return CLIPConfig(
        vision_config={**vision, **of_both}, text_config={**text, **of_both, **ids}, projection_dim=projection_dim
    )


def derived(config: CLIPConfig, originals: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The fixed table of positions, where the tower has one."""
    vision = config.vision_config
    if VisionOptions.of(vision).pos_embed_type != "sin_cos_2d":
        return {}
    table = sin_cos_positions(vision.image_size // vision.patch_size, vision.hidden_size)
    return {"visual.positional_embedding": table}


def processor(original_config: dict) -> CLIPProcessor:
    """OpenAI's tokenizer and image processor, from the repository of its first model; for images of this size."""
    vision = original_config.get("vision_cfg", {})
    size = original_config.get("image_resolution", vision.get("image_size", 224))
    found = AutoProcessor.from_pretrained("openai/clip-vit-base-patch32")
    found.image_processor.size = {"shortest_edge": size}
    found.image_processor.crop_size = {"height": size, "width": size}
    return found


def _published(
    vision_width: int, vision_layers: int, patch_size: int, resolution: int, width: int, embed_dim: int
) -> dict:
    """OpenAI's arguments of `CLIP` for one of its vision transformers."""
    return {
        "embed_dim": embed_dim,
        "image_resolution": resolution,
        "vision_layers": vision_layers,
        "vision_width": vision_width,
        "vision_patch_size": patch_size,
        "context_length": 77,
        "vocab_size": 49408,
        "transformer_width": width,
        "transformer_heads": width // 64,
        "transformer_layers": 12,
    }


VARIANTS = {
    "ViT-B-32": Variant(
        config=_published(768, 12, 32, 224, 512, 512),
        parameters=151_277_313,
        file="ViT-B-32.pt",
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    "ViT-B-16": Variant(
        config=_published(768, 12, 16, 224, 512, 512),
        parameters=149_620_737,
        file="ViT-B-16.pt",
        sha256="5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    ),
    "ViT-L-14": Variant(
        config=_published(1024, 24, 14, 224, 768, 768),
        parameters=427_616_513,
        file="ViT-L-14.pt",
        sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    ),
    "ViT-L-14-336px": Variant(
        config=_published(1024, 24, 14, 336, 768, 768),
        parameters=427_944_193,
        file="ViT-L-14-336px.pt",
        sha256="3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    ),
}
"""The sums are those in the addresses from which OpenAI's `clip.load` fetches them."""


convert, export = bind(__name__)
