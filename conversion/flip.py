"""FLIP's flax checkpoints, as t5x keeps them -> `FlipModel`, and back.

`original_config` is the authors' (the model's part of `configs/default.py`, with `image_size` and `text_length`);
names of tensors are the paths of the parameter tree, joined by `/`. Layers are numbered with two digits.
"""

import torch

from hf_mmunify.conversion.engine import (
    Permute,
    Rename,
    Reshape,
    Rule,
    Source,
    Transpose,
    Variant,
    WrongConfigError,
    bind,
)
from hf_mmunify.models.flip import FlipConfig
from hf_mmunify.models.flip.modeling_flip import sin_cos_positions


MODEL_TYPE = "flip"

SOURCE = Source(
    repository="facebookresearch/flip",
    commit="9bf6bf810d6697d7a6376093d41d88320e225c8d",
    code_license="CC-BY-NC-4.0",
    weights_license="CC-BY-NC-4.0: not for commercial use",
)

HEADS = {None: "FlipModel"}

CONTAINERS = ("optimizer", "target", "params")
"""t5x keeps the parameters under `optimizer/target`, flax's own training states under `params`."""

POSITIONS = "img_encoder/posembed_encoder/pos_embedding"


def key_map(config: FlipConfig) -> list[Rule]:
    """flax keeps kernels as (in, out), and a convolution's as (height, width, in, out)."""
    rules = [
        Reshape("img_encoder/cls", "vision_model.class_embedding", (-1,), (1, 1, -1)),
        Permute("img_encoder/embedding/kernel", "vision_model.patch_embedding.weight", (3, 2, 0, 1)),
        Rename("img_encoder/embedding/bias", "vision_model.patch_embedding.bias"),
        Rename("txt_encoder/token_embedding/embedding", "text_model.token_embedding.weight"),
        Reshape(
            "txt_encoder/posembed_encoder/pos_embedding",
            "text_model.position_embedding.weight",
            (-1, config.text_config.hidden_size),
            (1, -1, config.text_config.hidden_size),
        ),
        Transpose("img_mlp1/kernel", "visual_projection.weight"),
        Transpose("txt_mlp1/kernel", "text_projection.weight"),
        Rename("img_mlp1/bias", "visual_projection.bias"),
        Rename("txt_mlp1/bias", "text_projection.bias"),
        Rename("logit_scale", "logit_scale"),
    ]
    for theirs, ours, tower in (
        ("img_encoder", "vision_model", config.vision_config),
        ("txt_encoder", "text_model", config.text_config),
    ):
        rules += _norm(f"{theirs}/Transformer/encoder_norm", f"{ours}.norm")
        for number in range(tower.num_hidden_layers):
            rules += _layer(f"{theirs}/Transformer/encoderblock_{number:02d}", f"{ours}.layers.{number}")
    return rules


def _layer(theirs: str, ours: str) -> list[Rule]:
    attention = f"{theirs}/MultiHeadDotProductAttention_0"
    return [
        *_norm(f"{theirs}/LayerNorm_0", f"{ours}.attention_norm"),
        *_norm(f"{theirs}/LayerNorm_1", f"{ours}.feed_forward_norm"),
        *_linear(f"{attention}/query", f"{ours}.self_attn.q_proj"),
        *_linear(f"{attention}/key", f"{ours}.self_attn.k_proj"),
        *_linear(f"{attention}/value", f"{ours}.self_attn.v_proj"),
        *_linear(f"{attention}/out", f"{ours}.self_attn.o_proj"),
        *_linear(f"{theirs}/MlpBlock_0/Dense_0", f"{ours}.fc1"),
        *_linear(f"{theirs}/MlpBlock_0/Dense_1", f"{ours}.fc2"),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rename(f"{theirs}/scale", f"{ours}.weight"), Rename(f"{theirs}/bias", f"{ours}.bias")]


def _linear(theirs: str, ours: str) -> list[Rule]:
    return [Transpose(f"{theirs}/kernel", f"{ours}.weight"), Rename(f"{theirs}/bias", f"{ours}.bias")]


def derived(config: FlipConfig, originals: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The fixed positions, which the original keeps among its parameters and never trains."""
    vision = config.vision_config
    return {POSITIONS: sin_cos_positions(vision.image_size // vision.patch_size, vision.hidden_size)[None]}


def config_from_original(original_config: dict | None, state_dict: dict[str, torch.Tensor]) -> FlipConfig:
    """The configuration; whether projections have a bias, and how long texts are, the weights say."""
    if original_config is None:
        raise WrongConfigError(
            "FLIP's weights do not say how many heads they have: pass original_config, or the name of a published "
            f"variant ({', '.join(VARIANTS)})."
        )
    image, text = original_config["model_img"], original_config["model_txt"]
    contrast = original_config.get("clr", {})
    patch_size = image["patches"]["size"]
    if patch_size[0] != patch_size[1]:
        raise WrongConfigError(f"model_img.patches.size is {patch_size}; only square patches are known here.")
    return FlipConfig(
        vision_config={
            **_tower(image),
            "image_size": original_config["image_size"],
            "patch_size": patch_size[0],
            "mask_ratio": image.get("mask_ratio", 0.5),
            "pooling": "mean" if contrast.get("img_avg_token", True) else "class",
        },
        text_config={
            **_tower(text),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": state_dict["txt_encoder/posembed_encoder/pos_embedding"].shape[1],
            "attend_to_padding": True,
        },
        projection_dim=contrast["proj_dim_out"],
        projection_bias="img_mlp1/bias" in state_dict,
    )


def _tower(sizes: dict) -> dict:
    """Their names of a tower's sizes -> ours."""
    transformer = sizes["transformer"]
    return {
        "hidden_size": sizes["hidden_size"],
        "intermediate_size": transformer["mlp_dim"],
        "num_hidden_layers": transformer["num_layers"],
        "num_attention_heads": transformer["num_heads"],
    }


def _published(image: tuple[int, int, int, int], text: tuple[int, int, int], dim: int) -> dict:
    """The authors' config of a published model; towers as width, layers, heads (and the size of a patch)."""
    (width, layers, heads, patch), (text_width, text_layers, text_heads) = image, text
    return {
        "model_img": {
            "hidden_size": width,
            "patches": {"size": [patch, patch]},
            "mask_ratio": 0.5,
            "transformer": {"mlp_dim": 4 * width, "num_heads": heads, "num_layers": layers},
        },
        "model_txt": {
            "hidden_size": text_width,
            "vocab_size": 30523,
            "transformer": {"mlp_dim": 4 * text_width, "num_heads": text_heads, "num_layers": text_layers},
        },
        "clr": {"proj_dim_out": dim, "img_avg_token": True, "proj_out_bias": False},
        "image_size": 224,
        "text_length": 32,
    }


VARIANTS = {
    "flip_large16_laion2b_v2": Variant(
        config=_published((1024, 24, 16, 16), (768, 12, 12), 768),
        parameters=412_998_401,
        file="flip_large16_laion2b_v2",
    ),
    "flip_huge14_laion2b_v2": Variant(
        config=_published((1280, 32, 16, 14), (1024, 24, 16), 1024),
        parameters=966_394_881,
        file="flip_huge14_laion2b_v2",
    ),
}


convert, export = bind(__name__)
