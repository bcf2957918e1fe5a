"""CoCa at its smallest: a CLIP tower, a cascade of poolers, a layer of the decoder without the image and one with."""

import torch
from transformers import CLIPProcessor, PreTrainedModel

from .row import VISION_TOWER, WORDS, Tiny, image_processor, word_tokenizer


SIZE, PAD, START, END = VISION_TOWER["image_size"], 1, 0, 2
LENGTHS = (9, 7, 6, 4)
SEES_ONLY = ("AutoModelForImageClassification", "AutoModelForVideoClassification")
RETRIEVES = ("AutoModelForImageTextRetrieval", "AutoModelForZeroShotImageClassification")
COMPARES = ("AutoModelForImageTextToText", *RETRIEVES)


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rows, longest = len(LENGTHS), max(LENGTHS)
    input_ids = torch.randint(3, len(WORDS) + 3, (rows, longest), generator=draw)
    attention_mask = (torch.arange(longest) < torch.tensor(LENGTHS)[:, None]).long()
    frames = (3,) if auto_name == "AutoModelForVideoClassification" else ()
    pixel_values = torch.randn(rows, *frames, 3, SIZE, SIZE, generator=draw)  # [B, (F,) 3, H, W]
    if auto_name in SEES_ONLY:
        return {"pixel_values": pixel_values}
    return {
        "input_ids": input_ids.masked_fill(attention_mask == 0, PAD),  # [B, T]
        "attention_mask": attention_mask,
        "pixel_values": pixel_values,
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    match auto_name:
        case "AutoModelForImageTextToText":
            return {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
        case name if name in RETRIEVES:
            return {"image_ids": batch["input_ids"].cumsum(dim=1).sum(dim=1)}  # another for each text
        case "AutoModelForImageClassification" | "AutoModelForVideoClassification":
            return {"labels": torch.arange(len(batch["pixel_values"])) % 2}
    return {}


def wake(model: PreTrainedModel) -> None:
    """Every word and patch acts: what mixes tokens is large enough."""
    fresh = {n: p for n, p in model.named_parameters() if not vars(p).get("_is_hf_initialized")}  # not from a file
    for name, weight in fresh.items():
        if name.endswith(("v_proj.weight", "o_proj.weight")):
            weight.mul_(6)
        if name.endswith("embed_tokens.weight"):
            weight.mul_(3)


ROW = Tiny(
    model_type="coca",
    settings={
        "vision_config": VISION_TOWER,
        "text_config": {
            "vocab_size": len(WORDS) + 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_unimodal_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 24,
            "pad_token_id": PAD,
            "bos_token_id": START,
            "eos_token_id": END,
            "initializer_range": 0.05,
        },
        "projection_dim": 64,
        "pooler_num_queries": 5,
        "pooler_num_attention_heads": 2,
        "initializer_range": 0.05,
    },
    head_settings={name: {"num_labels": 3} for name in SEES_ONLY},
    inputs=inputs,
    labels=labels,
    processor=lambda: CLIPProcessor(image_processor(), word_tokenizer()),
    lora=r".*\.(q_proj|v_proj)",
    wake=wake,
    exceptions={
        **{
            f"accumulated_gradients_equal_a_large_batch[{name}]": "the other pairs of a batch are its negatives"
            for name in COMPARES
        },
        "loss_survives_nothing_to_learn": "contrast needs no labels: tests/models/test_coca.py has the captions",
        **{
            f"base_and_heads_load_from_each_other[{name}]": "it has no text: tests/models/test_coca.py"
            for name in SEES_ONLY
        },
    },
)
