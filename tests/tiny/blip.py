"""BLIP at its smallest, without the momentum teacher, whose step makes no two calls alike (`models/test_blip.py`)."""

import torch
from tokenizers.processors import TemplateProcessing
from transformers import BlipImageProcessorPil, BlipProcessor, PreTrainedModel

from hf_mmunify.models.blip import BlipForImageTextRetrieval, BlipForPreTraining

from .row import IMAGE_SIZE, WORDS, Tiny, word_tokenizer


PAD, FIRST, SEP, DEC, ENC, CLS = 1, 5, *(len(WORDS) + place for place in range(3, 7))
LENGTHS = (8, 7, 5, 4)
CONTRASTED = ("AutoModelForImageTextRetrieval", "AutoModelForPreTraining")


TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": CLS + 1,
    "max_position_embeddings": 24,
    "pad_token_id": PAD,
    "sep_token_id": SEP,
    "bos_token_id": DEC,
    "eos_token_id": SEP,
    "label_smoothing": 0.1,
    "initializer_range": 0.2,
}


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    """Texts start with one token, whose place [ENC] or [DEC] takes."""
    draw = torch.Generator().manual_seed(seed + 2)  # a batch from which AdamW at 1e-2 goes down at once
    rows, longest, size = len(LENGTHS), max(LENGTHS), IMAGE_SIZE["height"]
    input_ids = torch.randint(FIRST + 1, SEP, (rows, longest), generator=draw)
    attention_mask = (torch.arange(longest) < torch.tensor(LENGTHS)[:, None]).long()
    input_ids[:, 0] = FIRST
    pair = (2,) if auto_name == "AutoModelForVisualReasoning" else ()
    return {
        "input_ids": input_ids.masked_fill(attention_mask == 0, PAD),  # [B, T]
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(rows, *pair, 3, size, size, generator=draw),  # [B, (2,) 3, H, W]
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = len(batch["input_ids"])
    match auto_name:
        case "AutoModelForImageTextToText":
            return {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
        case "AutoModelForVisualQuestionAnswering":
            answers = batch["input_ids"].flip(0).masked_fill(batch["attention_mask"] == 0, -100)
            return {"labels": answers.where(answers != PAD, SEP)}
        case "AutoModelForVisualReasoning":
            return {"labels": torch.arange(rows) % 2}
        case "AutoModelForImageTextRetrieval":
            return {"image_ids": torch.arange(rows)}
        case "AutoModelForPreTraining":
            return {"labels": batch["input_ids"].clone()}
    return {}


def likeliest(weights: torch.Tensor) -> torch.Tensor:
    return weights.argmax(dim=1)


def choose_the_hardest(model: PreTrainedModel) -> None:
    """Hard negatives without chance, so that two calls are alike."""
    if isinstance(model, BlipForImageTextRetrieval | BlipForPreTraining):
        model.choose_negatives = likeliest


def processor() -> BlipProcessor:
    tokenizer = word_tokenizer()
    special = {
        "sep_token": "[SEP]",
        "bos_token": "[DEC]",
        "additional_special_tokens": ["[ENC]"],
        "cls_token": "[CLS]",
    }
    for name, token in special.items():
        tokenizer.add_special_tokens({name: token})
    first = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", CLS)])
    tokenizer.backend_tokenizer.post_processor = first
    return BlipProcessor(BlipImageProcessorPil(size=IMAGE_SIZE), tokenizer)


ROW = Tiny(
    model_type="blip",
    settings={
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE["height"],
            "patch_size": 8,
            "initializer_range": 0.2,
        },
        "text_config": TEXT,
        "image_text_hidden_size": 64,
        "queue_size": 0,
        "contrastive_temperature": 0.03,
        "pad_token_id": PAD,
        "initializer_range": 0.3,
    },
    head_settings={
        "AutoModelForImageTextToText": {"text_config": {**TEXT, "initializer_range": 0.12}},
        "AutoModelForImageTextRetrieval": {"text_config": {**TEXT, "initializer_range": 0.15}},
        "AutoModelForVisualQuestionAnswering": {"text_config": {**TEXT, "initializer_range": 0.1}},
        "AutoModelForVisualReasoning": {
            # At 0.2 attention saturates, which four bits turn upside down; trained towers, 12 times as wide, have 0.02
            "text_config": {**TEXT, "num_hidden_layers": 2, "intermediate_size": 64, "initializer_range": 0.12},
            "initializer_range": 0.1,
        },
    },
    inputs=inputs,
    labels=labels,
    processor=processor,
    lora=["query", "value"],
    wake=choose_the_hardest,
    exceptions={
        "base_and_heads_load_from_each_other": "the native heads have no base in common; each owns its towers",
        **{
            f"accumulated_gradients_equal_a_large_batch[{name}]": "the other pairs of a batch are its negatives"
            for name in CONTRASTED
        },
        "lora_trains_saves_and_loads[AutoModelForPreTraining]": "encoder and decoder share weights, each with a LoRA",
        "trainer_trains_evaluates_and_saves[AutoModelForImageTextRetrieval]": "its loss is of the hardest negatives, "
        "which are others after each of two large steps: tests/models/test_blip.py lets it learn with small ones",
        "4_bit_loads_answers_and_trains_a_lora[AutoModelForPreTraining]": "weights that encoder and decoder share are "
        "packed once for each",
    },
)
