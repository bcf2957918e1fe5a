"""Flamingo at its smallest: OPT and a CLIP tower, two images in one row and none in the second half of the batch."""

import torch
from transformers import PreTrainedModel

from hf_mmunify.models.flamingo import FlamingoProcessor

from .row import VISION_TOWER, WORDS, Tiny, image_processor, word_tokenizer


END_OF_CHUNK, IMAGE = len(WORDS) + 3, len(WORDS) + 4  # the processor adds the two to the tokenizer, in this order

# A row each: w a word, i an image, e the end of a chunk. The second half has no image, and fewer tokens to learn.
LAYOUTS = ("w w i w w w e i w w w w e i w w", "i w w w e w i w w w", "w w w w w w", "w w w e w w w")


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    layouts = [layout.split() for layout in LAYOUTS]
    longest, most = max(map(len, layouts)), max(layout.count("i") for layout in layouts)
    input_ids = torch.ones(len(layouts), longest, dtype=torch.long)
    image_mask = torch.zeros(len(layouts), most, dtype=torch.long)
    for row, layout in enumerate(layouts):
        words = torch.randint(3, END_OF_CHUNK, (len(layout),), generator=draw).tolist()
        special = {"i": IMAGE, "e": END_OF_CHUNK}
        input_ids[row, : len(layout)] = torch.tensor([special.get(k, w) for k, w in zip(layout, words)])
        image_mask[row, : layout.count("i")] = 1
    size = VISION_TOWER["image_size"]
    return {
        "input_ids": input_ids,  # [B, T]
        "attention_mask": (input_ids != 1).long(),
        "pixel_values": torch.randn(len(layouts), most, 3, size, size, generator=draw),  # [B, M, 3, H, W]
        "image_mask": image_mask,  # [B, M]
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if auto_name == "AutoModel":
        return {}
    ignored = (batch["attention_mask"] == 0) | (batch["input_ids"] == IMAGE)
    return {"labels": batch["input_ids"].masked_fill(ignored, -100)}


def wake(model: PreTrainedModel) -> None:
    for number, block in enumerate(model.base_model.adapter.layers.values()):
        block.attention_gate.fill_(1.0 + 0.2 * number)
        block.feed_forward_gate.fill_(-0.6)


ROW = Tiny(
    model_type="flamingo",
    settings={
        "vision_config": VISION_TOWER,
        "text_config": {
            "model_type": "opt",
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": IMAGE + 1,
            "max_position_embeddings": 64,
            "init_std": 0.1,
            "dropout": 0.0,  # so that one process draws what two draw
        },
        "cross_attention_num_heads": 2,
        "cross_attention_head_dim": 32,
        "resampler_num_latents": 4,
        "resampler_num_layers": 2,
        "resampler_num_heads": 2,
        "resampler_head_dim": 32,
        "image_token_id": IMAGE,
        "end_of_chunk_token_id": END_OF_CHUNK,
        "trained_token_ids": [END_OF_CHUNK, IMAGE],
        "pad_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.1,
    },
    inputs=inputs,
    labels=labels,
    processor=lambda: FlamingoProcessor(image_processor(), word_tokenizer()),
    lora=r".*text_model.*\.(q_proj|v_proj)",
    wake=wake,
)
