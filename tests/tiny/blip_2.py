"""BLIP-2's first stage at its smallest."""

import torch
from transformers import Blip2Processor, BlipImageProcessorPil, PreTrainedModel

from hf_mmunify.models.blip_2 import Blip2ForImageTextRetrieval

from .row import IMAGE_SIZE, WORDS, Tiny, word_tokenizer


PAD, FIRST, DEC = 1, 5, len(WORDS) + 3
LENGTHS = (8, 7, 5, 4)


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    """Texts start with one token, whose place [DEC] takes where they are written."""
    draw = torch.Generator().manual_seed(seed)
    rows, longest, size = len(LENGTHS), max(LENGTHS), IMAGE_SIZE["height"]
    input_ids = torch.randint(FIRST + 1, DEC, (rows, longest), generator=draw)
    attention_mask = (torch.arange(longest) < torch.tensor(LENGTHS)[:, None]).long()
    input_ids[:, 0] = FIRST
    return {
        "input_ids": input_ids.masked_fill(attention_mask == 0, PAD),  # [B, T]
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(rows, 3, size, size, generator=draw),  # [B, 3, H, W]
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if auto_name == "AutoModel":
        return {}
    return {"image_ids": torch.arange(len(batch["input_ids"]))}


def likeliest(weights: torch.Tensor) -> torch.Tensor:
    return weights.argmax(dim=1)


def choose_the_hardest(model: PreTrainedModel) -> None:
    """Hard negatives without chance, so that two calls are alike; and heads that one large step makes better."""
    if isinstance(model, Blip2ForImageTextRetrieval):
        model.choose_negatives = likeliest
        model.temperature.fill_(0.5)
        model.itm_head.bias.copy_(torch.tensor([-0.5, 0.5]))


ROW = Tiny(
    model_type="blip_2",
    settings={
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE["height"],
            "patch_size": 8,
            "initializer_range": 0.1,
        },
        "qformer_config": {
            "vocab_size": DEC + 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 24,
            "hidden_dropout_prob": 0.0,  # so that one process draws what two draw
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": PAD,
            "initializer_range": 0.1,
            "use_qformer_text_input": True,
        },
        "text_config": {
            "model_type": "opt",
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": DEC + 1,
        },
        "num_query_tokens": 4,
        "image_text_hidden_size": 64,
        "pad_token_id": PAD,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    },
    inputs=inputs,
    labels=labels,
    processor=lambda: Blip2Processor(BlipImageProcessorPil(size=IMAGE_SIZE), word_tokenizer()),
    lora=["query", "value"],
    wake=choose_the_hardest,
    exceptions={
        "base_and_heads_load_from_each_other": "the native classes have no base in common; each owns its towers",
        "accumulated_gradients_equal_a_large_batch": "the other pairs of a batch are its negatives",
    },
)
