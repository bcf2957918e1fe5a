"""ViLT at its smallest: the images of the second half of the batch are padded, and its texts shorter."""

import torch
from transformers import PreTrainedModel, ViltImageProcessorPil, ViltProcessor

from .row import WORDS, Tiny, word_tokenizer


SIZE, PATCH, PAD = 24, 8, 1
LENGTHS = (6, 5, 4, 4)
HEIGHTS = (24, 24, 16, 8)
ANSWERS = 5


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rows, longest = len(LENGTHS), max(LENGTHS)
    input_ids = torch.randint(3, len(WORDS) + 3, (rows, longest), generator=draw)
    attention_mask = (torch.arange(longest) < torch.tensor(LENGTHS)[:, None]).long()
    pair = (2,) if auto_name == "AutoModelForVisualReasoning" else ()
    pixel_mask = (torch.arange(SIZE)[:, None] < torch.tensor(HEIGHTS)[:, None, None]).long().expand(-1, -1, SIZE)
    pixel_values = torch.randn(rows, *pair, 3, SIZE, SIZE, generator=draw)
    if pair:
        pixel_mask = pixel_mask[:, None].expand(-1, *pair, -1, -1)
    return {
        "input_ids": input_ids.masked_fill(attention_mask == 0, PAD),  # [B, T]
        "attention_mask": attention_mask,
        "pixel_values": pixel_values * pixel_mask.unsqueeze(-3),  # [B, (2,) 3, H, W]
        "pixel_mask": pixel_mask.contiguous(),  # [B, (2,) H, W]
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = len(batch["input_ids"])
    match auto_name:
        case "AutoModelForPreTraining":
            hidden = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
            hidden[:, 1:3] = True
            return {
                "masked_input_ids": batch["input_ids"].masked_fill(hidden, 0),
                "labels": batch["input_ids"].where(hidden, -100),
                "false_pixel_values": batch["pixel_values"].flip(-1),
                "false_pixel_mask": batch["pixel_mask"],
                "matched": torch.arange(rows) % 2 == 0,
            }
        case "AutoModelForImageTextRetrieval":
            return {"image_ids": torch.arange(rows)}
        case "AutoModelForVisualQuestionAnswering":
            return {"labels": torch.eye(rows, ANSWERS)}
        case "AutoModelForVisualReasoning":
            return {"labels": (torch.arange(rows) == 1).long()}
        case "AutoModelForVisualEntailment":
            return {"labels": (torch.arange(rows) + 1) // 2}
    return {}


def wake(model: PreTrainedModel) -> None:
    """Sharper attention and pooling: a small random ViLT pools nearly the same state from every pair."""
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.query.weight", "pooler.dense.weight", "rank_output.weight")):
            parameter.mul_(round(0.35 / parameter.std().item(), 2))  # of what is awake nothing changes


ROW = Tiny(
    model_type="vilt",
    settings={
        "vocab_size": len(WORDS) + 3,
        "hidden_size": 64,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "modality_type_vocab_size": 3,
        "image_size": SIZE,
        "patch_size": PATCH,
        "pad_token_id": PAD,
        "num_labels": ANSWERS,
        "initializer_range": 0.1,
    },
    head_settings={
        "AutoModelForVisualReasoning": {"num_images": 2, "num_labels": 2},
        "AutoModelForVisualEntailment": {"num_labels": 3},
    },
    inputs=inputs,
    labels=labels,
    processor=lambda: ViltProcessor(
        ViltImageProcessorPil(size={"shortest_edge": SIZE}, size_divisor=PATCH), word_tokenizer()
    ),
    lora=["query", "value"],
    wake=wake,
    exceptions={
        "loss_survives_nothing_to_learn": "matching and alignment are learnt where no word is hidden",
        "accumulated_gradients_equal_a_large_batch": "in retrieval the false texts are those of the batch",
    },
)
