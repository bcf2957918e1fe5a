"""CLIP at its smallest."""

import torch
from transformers import CLIPProcessor

from .row import VISION_TOWER, WORDS, Tiny, image_processor, word_tokenizer


END_OF_TEXT = len(WORDS) + 3  # the token that the row's processor adds to the tokenizer
LENGTHS = (6, 7, 3, 5)


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    size = VISION_TOWER["image_size"]
    input_ids = torch.ones(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        input_ids[row, :length] = torch.randint(6, END_OF_TEXT, (length,), generator=draw)
        input_ids[row, length - 1] = END_OF_TEXT
    return {
        "input_ids": input_ids,  # [B, T]
        "attention_mask": (input_ids != 1).long(),
        "pixel_values": torch.randn(len(LENGTHS), 3, size, size, generator=draw),  # [B, 3, H, W]
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if auto_name == "AutoModel":
        return {}
    return {"image_ids": torch.arange(len(batch["input_ids"]))}


def processor() -> CLIPProcessor:
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    return CLIPProcessor(image_processor(), tokenizer)


ROW = Tiny(
    model_type="clip",
    settings={
        "vision_config": {**VISION_TOWER, "initializer_range": 0.2},
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": END_OF_TEXT + 1,
            "max_position_embeddings": 16,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": END_OF_TEXT,
        },
        "projection_dim": 64,
        "logit_scale_init_value": 0.0,
        "pad_token_id": 1,
    },
    inputs=inputs,
    labels=labels,
    processor=processor,
    lora=["q_proj", "v_proj"],
    exceptions={
        "accumulated_gradients_equal_a_large_batch": "the other pairs of a batch are its negatives",
    },
)
