"""FLIP at its smallest, trained on all of its patches, so that one process draws what two draw."""

import torch
from transformers import CLIPProcessor

from .row import IMAGE_SIZE, WORDS, Tiny, image_processor, word_tokenizer


PAD = 1
LENGTHS = (6, 7, 3, 5)
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    attention_mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    input_ids = torch.randint(3, len(WORDS) + 3, attention_mask.shape, generator=draw)
    size = IMAGE_SIZE["height"]
    return {
        "input_ids": input_ids.masked_fill(attention_mask == 0, PAD),  # [B, T]
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(len(LENGTHS), 3, size, size, generator=draw),  # [B, 3, H, W]
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if auto_name == "AutoModel":
        return {}
    return {"image_ids": torch.arange(len(batch["input_ids"]))}


ROW = Tiny(
    model_type="flip",
    settings={
        "vision_config": {**TOWER, "image_size": IMAGE_SIZE["height"], "patch_size": 8, "mask_ratio": 0.0},
        "text_config": {
            **TOWER,
            "vocab_size": len(WORDS) + 3,
            "max_position_embeddings": 16,
            "pad_token_id": PAD,
        },
        "projection_dim": 64,
        "logit_scale_init_value": 0.0,
        "initializer_range": 0.2,
        "pad_token_id": PAD,
    },
    inputs=inputs,
    labels=labels,
    processor=lambda: CLIPProcessor(image_processor(), word_tokenizer()),
    lora=["q_proj", "v_proj"],
    exceptions={
        "accumulated_gradients_equal_a_large_batch": "the other pairs of a batch are its negatives",
    },
)
