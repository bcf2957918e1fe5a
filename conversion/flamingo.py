"""OpenFlamingo checkpoints -> `FlamingoForConditionalGeneration`, and back.

A published `checkpoint.pt` holds what was trained: resampler, gated blocks and the token embeddings. Vision tower and
language model come from their own repositories, which `original_config` names as OpenFlamingo's
`create_model_and_transforms` does (`clip_vision_encoder_path`, `lang_encoder_path`; folders do as well). A full state
dict brings everything along.
"""

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_mmunify.conversion.engine import MissingKeysError, Rename, Rule, Source, Split, Variant, WrongConfigError, bind
from hf_mmunify.models.flamingo import FlamingoConfig, FlamingoProcessor


MODEL_TYPE = "flamingo"

SOURCE = Source(
    repository="mlfoundations/open_flamingo",
    commit="655f693fbfa04cd6e9a987d960654624d48917cf",
    code_license="MIT",
    weights_license="MIT for the adapter; those of CLIP and of the language model apply to the frozen parts",
)

HEADS = {None: "FlamingoForConditionalGeneration", "causal_lm": "FlamingoForConditionalGeneration"}

CLIP_TOWERS = {
    ("ViT-L-14", "openai"): "openai/clip-vit-large-patch14",
    ("ViT-L-14-336", "openai"): "openai/clip-vit-large-patch14-336",
    ("ViT-B-32", "openai"): "openai/clip-vit-base-patch32",
    ("ViT-B-16", "openai"): "openai/clip-vit-base-patch16",
}
"""open_clip's names of towers that OpenAI published, and where transformers finds them."""

IGNORE = {
    "vision_encoder.proj": "CLIP's way into the space it shares with text, which Flamingo does not take",
    "lang_encoder.old_decoder_blocks.{*}": "second name of the wrapped layers",
    "lang_encoder.gated_cross_attn_layers.{*}": "second name of the gated blocks",
    "lang_encoder.{*}.attention.bias": "causal mask that transformers of 2023 kept as a buffer",
    "lang_encoder.{*}.attention.masked_bias": "constant that transformers of 2023 kept as a buffer",
    "lang_encoder.{*}.rotary_emb.inv_freq": "rotary frequencies, computed from the config",
}

UNPUBLISHED = {
    "perceiver.frame_embs": "embeddings of video frames, which their resampler can have and no published model does",
}

COMPLETE = {
    "model.text_model.{*}": "the language model that lang_encoder_path names",
    "model.vision_model.{*}": "the tower that clip_vision_encoder_path names",
}


def key_map(config: FlamingoConfig) -> list[Rule]:
    """OpenFlamingo wraps every layer of the language model; ours stays as it is."""
    theirs, ours = "lang_encoder." + config.decoder_layers_path, "model.text_model." + config.decoder_layers_path
    gated, block = theirs + ".{}.gated_cross_attn_layer", "model.adapter.layers.{}"
    perceiver, resampler = "perceiver.layers.{}", "model.adapter.resampler.layers.{}"
    tower, vision = "vision_encoder.transformer.resblocks.{}", "model.vision_model.encoder.layers.{}"
    return [
        Rename("perceiver.latents", "model.adapter.resampler.latents"),
        Rename("perceiver.frame_embs", "model.adapter.resampler.time_embedding"),
        Rename("perceiver.norm.{*}", "model.adapter.resampler.norm.{*}"),
        Rename(perceiver + ".0.norm_media.{*}", resampler + ".media_norm.{*}"),
        Rename(perceiver + ".0.norm_latents.{*}", resampler + ".latents_norm.{*}"),
        *_attention(perceiver + ".0", resampler),
        *_feed_forward(perceiver + ".1", resampler),
        Rename(gated + ".attn_gate", block + ".attention_gate"),
        Rename(gated + ".ff_gate", block + ".feed_forward_gate"),
        Rename(gated + ".attn.norm.{*}", block + ".text_norm.{*}"),
        *_attention(gated + ".attn", block),
        *_feed_forward(gated + ".ff", block),
        Rename(theirs + ".{}.decoder_layer.{*}", ours + ".{}.{*}"),
        Rename("lang_encoder.lm_head.weight", "model.text_model.lm_head.weight"),
        Rename("lang_encoder.embed_out.weight", "model.text_model.lm_head.weight"),  # GPT-NeoX's head until 2025
        Rename("lang_encoder.{*}", "model.text_model.{*}"),
        Rename("vision_encoder.class_embedding", "model.vision_model.embeddings.class_embedding"),
        Rename("vision_encoder.positional_embedding", "model.vision_model.embeddings.position_embedding.weight"),
        Rename("vision_encoder.conv1.{*}", "model.vision_model.embeddings.patch_embedding.{*}"),
        Rename("vision_encoder.ln_pre.{*}", "model.vision_model.pre_layrnorm.{*}"),
        Rename("vision_encoder.ln_post.{*}", "model.vision_model.post_layernorm.{*}"),
        Split(tower + ".attn.in_proj_weight", [f"{vision}.self_attn.{x}_proj.weight" for x in "qkv"]),
        Split(tower + ".attn.in_proj_bias", [f"{vision}.self_attn.{x}_proj.bias" for x in "qkv"]),
        Rename(tower + ".attn.out_proj.{*}", vision + ".self_attn.out_proj.{*}"),
        Rename(tower + ".ln_1.{*}", vision + ".layer_norm1.{*}"),
        Rename(tower + ".ln_2.{*}", vision + ".layer_norm2.{*}"),
        Rename(tower + ".mlp.c_fc.{*}", vision + ".mlp.fc1.{*}"),
        Rename(tower + ".mlp.c_proj.{*}", vision + ".mlp.fc2.{*}"),
    ]


def _attention(theirs: str, ours: str) -> list[Rule]:
    return [
        Rename(theirs + ".to_q.weight", ours + ".attention.q_proj.weight"),
        Split(theirs + ".to_kv.weight", [ours + ".attention.k_proj.weight", ours + ".attention.v_proj.weight"]),
        Rename(theirs + ".to_out.weight", ours + ".attention.o_proj.weight"),
    ]


def _feed_forward(theirs: str, ours: str) -> list[Rule]:
    return [
        Rename(theirs + ".0.{*}", ours + ".feed_forward.norm.{*}"),
        Rename(theirs + ".1.weight", ours + ".feed_forward.up_proj.weight"),
        Rename(theirs + ".3.weight", ours + ".feed_forward.down_proj.weight"),
    ]


def _on_meta(text_config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(text_config)


def _path_of(model: PreTrainedModel, part: torch.nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is part)


def aliases(config: FlamingoConfig) -> dict[str, str]:
    """The head of a language model that ties it to the embeddings stands in their files a second time."""
    if not config.text_config.tie_word_embeddings:
        return {}
    language_model = _on_meta(config.text_config)
    head = _path_of(language_model, language_model.get_output_embeddings())
    embeddings = _path_of(language_model, language_model.get_input_embeddings())
    return {f"lang_encoder.{head}.weight": f"lang_encoder.{embeddings}.weight"}


def config_from_original(original_config: dict, state_dict: dict[str, torch.Tensor]) -> FlamingoConfig:
    """Their `create_model_and_transforms` arguments, or the configs of the parts spelled out (as in the goldens).

    Sizes that OpenFlamingo hard-codes (8 heads of 64, 6 layers, 64 latents) are read off the tensors.
    """
    if "lm" in original_config:
        text_config = AutoConfig.for_model(original_config["model_type"], **original_config["lm"])
        vision_config = original_config["vision"] and _vision_config(original_config["vision"])
        layers_path = original_config["decoder_layers_attr_name"]
        token_ids = original_config["eoc_token_id"], original_config["media_token_id"]
        vision_hidden_size = original_config["vis_dim"]
    else:
        text_config = AutoConfig.from_pretrained(original_config["lang_encoder_path"])
        vision_config = AutoConfig.from_pretrained(_tower(original_config))
        vision_config = (
            vision_config if vision_config.model_type == "clip_vision_model" else vision_config.vision_config
        )
        layers_path = original_config.get("decoder_layers_attr_name")
        token_ids = _token_ids(original_config)
        vision_hidden_size = vision_config.hidden_size
    language_model = _on_meta(text_config)
    embeddings = _path_of(language_model, language_model.get_input_embeddings())
    if layers_path is None:
        layers_path = next(
            (
                path
                for path, module in language_model.named_modules()
                if isinstance(module, torch.nn.ModuleList)
                and any(key.startswith(f"lang_encoder.{path}.") for key in state_dict)
            ),
            None,
        )
    if layers_path is None:
        raise WrongConfigError(
            f"No layers of {type(language_model).__name__} have keys in this checkpoint: it was made for another "
            "language model. Name the right one in lang_encoder_path, or its layers in decoder_layers_attr_name."
        )
    rows = state_dict.get(f"lang_encoder.{embeddings}.weight")
    text_config.vocab_size = max(token_ids) + 1 if rows is None else rows.shape[0]

    interval = original_config["cross_attn_every_n_layers"]
    gated = f"lang_encoder.{layers_path}.{interval - 1}.gated_cross_attn_layer"
    latents, resampled = state_dict["perceiver.latents"], state_dict["perceiver.layers.0.0.to_q.weight"]
    asked, hidden = state_dict[f"{gated}.attn.to_q.weight"], state_dict[f"{gated}.ff.1.weight"]
    resampler_head_dim = original_config.get("perceiver", {}).get("dim_head", 64)
    head_dim = original_config.get("xattn", {}).get("dim_head", 64)
    return FlamingoConfig(
        vision_config=vision_config,
        text_config=text_config,
        vision_hidden_size=vision_hidden_size,
        cross_attention_interval=interval,
        cross_attention_offset=interval - 1,
        cross_attention_num_heads=asked.shape[0] // head_dim,
        cross_attention_head_dim=head_dim,
        cross_attention_intermediate_size=hidden.shape[0],
        cross_attention_media_norm=False,
        only_attend_immediate_media=original_config.get("only_attend_immediate_media", True),
        resampler_num_latents=latents.shape[0],
        resampler_num_layers=len({key.split(".")[2] for key in state_dict if key.startswith("perceiver.layers.")}),
        resampler_num_heads=resampled.shape[0] // resampler_head_dim,
        resampler_head_dim=resampler_head_dim,
        resampler_intermediate_size=state_dict["perceiver.layers.0.1.1.weight"].shape[0],
        resampler_final_norm=True,
        resampler_num_frames=state_dict["perceiver.frame_embs"].shape[0]
        if "perceiver.frame_embs" in state_dict
        else 0,
        hidden_act="gelu",
        end_of_chunk_token_id=token_ids[0],
        image_token_id=token_ids[1],
        eos_token_id=token_ids[0],  # their `generate` stops there
        pad_token_id=original_config.get("pad_token_id", text_config.pad_token_id),
        decoder_layers_path=layers_path,
    )


def _vision_config(vision: dict) -> dict:
    """open_clip's names of a tower's sizes -> CLIP's of transformers."""
    return {
        "model_type": "clip_vision_model",
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_size": vision["width"],
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": vision["heads"],
        "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
        "projection_dim": vision["output_dim"],
        "hidden_act": vision["act"],
    }


def _tower(original_config: dict) -> str:
    """Repository or folder of the vision tower."""
    path = original_config["clip_vision_encoder_path"]
    return CLIP_TOWERS.get((path, original_config.get("clip_vision_encoder_pretrained", "openai")), path)


def _token_ids(original_config: dict) -> tuple[int, int]:
    """Ids of `<|endofchunk|>` and `<image>`, which OpenFlamingo adds to the tokenizer in this order."""
    if "eoc_token_id" in original_config and "media_token_id" in original_config:
        return original_config["eoc_token_id"], original_config["media_token_id"]
    tokenizer = _tokenizer(original_config)
    return tuple(tokenizer.convert_tokens_to_ids(["<|endofchunk|>", "<image>"]))


def complete(config: FlamingoConfig, missing: list[str], original_config: dict) -> dict[str, torch.Tensor]:
    """The frozen parts, which a published checkpoint leaves out, from their own repositories.

    Raises:
        MissingKeysError: when the config names no repository for a part.
    """
    found = {}
    for prefix, name, auto_class in (
        ("model.text_model.", "lang_encoder_path", AutoModelForCausalLM),
        ("model.vision_model.", "clip_vision_encoder_path", AutoModel),
    ):
        wanted = [key for key in missing if key.startswith(prefix)]
        if not wanted:
            continue
        if name not in original_config:
            raise MissingKeysError(
                f"The checkpoint has no weights for {len(wanted)} keys under {prefix[:-1]}, first {wanted[0]}: "
                "published OpenFlamingo files leave the frozen parts out. Name a repository or folder in "
                f"original_config[{name!r}]."
            )
        if auto_class is AutoModel:
            part = AutoModel.from_pretrained(_tower(original_config), config=config.vision_config)
        else:
            part = AutoModelForCausalLM.from_pretrained(original_config[name])
            part.resize_token_embeddings(config.text_config.vocab_size)
        found.update({prefix + key: tensor for key, tensor in part.state_dict().items() if prefix + key in wanted})
    return found


def processor(original_config: dict) -> FlamingoProcessor | None:
    """CLIP's image processor and the language model's tokenizer, with the tokens that OpenFlamingo adds to it.

    None where the config spells the parts out instead of naming their repositories.
    """
    if "lang_encoder_path" not in original_config:
        return None
    image_processor = AutoImageProcessor.from_pretrained(_tower(original_config))
    return FlamingoProcessor(image_processor, _tokenizer(original_config))


def _tokenizer(original_config: dict) -> PreTrainedTokenizerBase:
    path = original_config.get("tokenizer_path", original_config["lang_encoder_path"])
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    return tokenizer


def _published(language_model: str, interval: int, layers: str, model_type: str, **sizes) -> dict:
    """`create_model_and_transforms` arguments of a published model, and the sizes of its parts."""
    return {
        "clip_vision_encoder_path": "ViT-L-14",
        "clip_vision_encoder_pretrained": "openai",
        "lang_encoder_path": language_model,
        "tokenizer_path": language_model,
        "cross_attn_every_n_layers": interval,
        "decoder_layers_attr_name": layers,
        "model_type": model_type,
        "lm": sizes,
        "vision": {
            "image_size": 224,
            "patch_size": 14,
            "width": 1024,
            "layers": 24,
            "heads": 16,
            "mlp_ratio": 4,
            "output_dim": 768,
            "act": "quick_gelu",
        },
        "vis_dim": 1024,
        "eoc_token_id": 50277,
        "media_token_id": 50278,
        "pad_token_id": 50279,
    }


def _redpajama_3b(language_model: str) -> dict:
    return _published(
        language_model,
        2,
        "gpt_neox.layers",
        "gpt_neox",
        vocab_size=50432,
        hidden_size=2560,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=10240,
        max_position_embeddings=2048,
        rotary_pct=1.0,
        use_parallel_residual=False,
    )


VARIANTS = {
    "OpenFlamingo-4B-vitl-rpj3b": Variant(
        config=_redpajama_3b("togethercomputer/RedPajama-INCITE-Base-3B-v1"),
        parameters=4_039_029_792,
        file="checkpoint.pt",
    ),
    "OpenFlamingo-4B-vitl-rpj3b-langinstruct": Variant(
        config=_redpajama_3b("togethercomputer/RedPajama-INCITE-Instruct-3B-v1"),
        parameters=4_039_029_792,
        file="checkpoint.pt",
        manifest="OpenFlamingo-4B-vitl-rpj3b",
    ),
    "OpenFlamingo-9B-vitl-mpt7b": Variant(
        config=_published(
            "anas-awadalla/mpt-7b",
            4,
            "transformer.blocks",
            "mpt",
            vocab_size=50432,
            d_model=4096,
            n_layers=32,
            n_heads=32,
            expansion_ratio=4,
            max_seq_len=2048,
        ),
        parameters=8_130_678_800,
        file="checkpoint.pt",
    ),
}
"""Their 3B models sit on MPT-1B, a language model of its own (`mosaic_gpt`) that transformers does not have."""


convert, export = bind(__name__)
