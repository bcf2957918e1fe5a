"""Tiny parts for the tests of Flamingo: language models of every family, vision towers, texts and images."""

from functools import cache

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_mmunify.models.flamingo import FlamingoForConditionalGeneration


VOCAB, IMAGE, EOC, PAD = 96, 95, 94, 1

_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GPT2_LIKE = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}

# family -> model type and fields; every config gets the vocabulary and the special tokens below
LANGUAGE_MODELS = {
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "gpt_neox": {**_LLAMA_LIKE, "num_key_value_heads": None, "rotary_pct": 0.5},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 128},
    "llama": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 8},
    "gemma2": {**_LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {**_LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gpt2": _GPT2_LIKE,
    "gptj": {**_GPT2_LIKE, "rotary_dim": 4},
    "mistral": {**_LLAMA_LIKE, "sliding_window": 8},
    "mixtral": {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {**_LLAMA_LIKE, "num_key_value_heads": 4},
    "phi3": {**_LLAMA_LIKE, "original_max_position_embeddings": 128},
    "falcon": {**_LLAMA_LIKE, "num_key_value_heads": None, "num_kv_heads": 2, "ffn_hidden_size": 48},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
}

# Recurrent states in the place of attention, or beside it
_MAMBA = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "conv_kernel": 4}
_MAMBA_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
RECURRENT_MODELS = {
    "mamba": {**_MAMBA, "intermediate_size": 64, "time_step_rank": 4},
    "mamba2": {**_MAMBA, "num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 2, "chunk_size": 8},
    "jamba": {
        **_LLAMA_LIKE,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "falcon_h1": {**_LLAMA_LIKE, **_MAMBA_HEADS, "mamba_d_ssm": 64, "head_dim": 8},
    "qwen3_next": {
        **_LLAMA_LIKE,
        **_LINEAR_ATTENTION,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "lfm2": {**_LLAMA_LIKE, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "recurrent_gemma": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "lru_width": 32,
        "head_dim": 8,
        "attention_window_size": 16,
    },
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 3, "context_length": 128},
    "minimax": {
        **_LLAMA_LIKE,
        "head_dim": 8,
        "num_local_experts": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "block_size": 8,
    },
}

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}

ADAPTER = {
    "cross_attention_num_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_intermediate_size": 24,
    "resampler_num_latents": 3,
    "resampler_num_layers": 1,
    "resampler_num_heads": 2,
    "resampler_head_dim": 8,
    "resampler_intermediate_size": 24,
}


def text_config(family: str, **fields):
    tokens = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": None}
    return AutoConfig.for_model(family, **{**tokens, **(LANGUAGE_MODELS | RECURRENT_MODELS)[family], **fields})


@torch.no_grad()
def draw(model: torch.nn.Module, seed: int = 0, std: float = 0.15) -> torch.nn.Module:
    """Weights large enough that what should matter is seen in the output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * std if parameter.ndim > 1 else parameter + noise * 0.05)
    return model.eval()


def language_model(family: str, **fields) -> torch.nn.Module:
    torch.manual_seed(0)  # what `draw` leaves as it was made: decays and time steps of recurrent layers
    return draw(AutoModelForCausalLM.from_config(text_config(family, **fields)))


def vision_model(family: str = "clip_vision_model", **fields) -> torch.nn.Module:
    torch.manual_seed(0)  # as above: class embeddings
    return draw(AutoModel.from_config(AutoConfig.for_model(family, **{**VISION, **fields})), seed=1)


@torch.no_grad()
def open_gates(model, seed: int = 2):
    draw(model.model.adapter, seed, std=0.3)
    for block in model.model.adapter.layers.values():
        block.attention_gate.fill_(0.9)
        block.feed_forward_gate.fill_(0.4)
    return model


def attach(text, vision=None, **fields) -> FlamingoForConditionalGeneration:
    """A Flamingo on `text` whose images show."""
    vision = vision_model() if vision is None else vision
    model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
        vision, text, **{"image_token_id": IMAGE, "end_of_chunk_token_id": EOC, **ADAPTER, **fields}
    )
    return open_gates(model)


@cache
def flamingo(family: str) -> FlamingoForConditionalGeneration:
    """One model a family for all tests, which leave it as they found it."""
    return attach(language_model(family))


def tokens(*rows: str, side: str = "right") -> dict[str, torch.Tensor]:
    """Rows of text, a letter a token and `*` an image, padded to the longest."""
    ids = [[IMAGE if letter == "*" else 3 + ord(letter) % 88 for letter in row] for row in rows]
    longest = max(map(len, ids))
    right = side == "right"
    fill = [[PAD] * (longest - len(row)) for row in ids]
    ones = [[1] * len(row) for row in ids]
    zeros = [[0] * len(row) for row in fill]
    return {
        "input_ids": torch.tensor([a + b if right else b + a for a, b in zip(ids, fill)]),
        "attention_mask": torch.tensor([a + b if right else b + a for a, b in zip(ones, zeros)]),
    }


def images(batch: int, number: int, seed: int = 3, frames: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, number, 3, 8, 8) if frames is None else (batch, number, frames, 3, 8, 8)
    return torch.randn(shape, generator=generator)
