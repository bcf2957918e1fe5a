"""SCAN at its smallest: images with three to five regions, texts of three to seven words."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_mmunify.models.scan import ScanProcessor, scan_tokenizer

from .row import WORDS, Tiny


LENGTHS, REGIONS, WIDTH = (6, 7, 3, 5), (5, 3, 4, 5), 64
PAD, START, END, FIRST_WORD = 0, 1, 2, 4


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    input_ids = torch.full((len(LENGTHS), max(LENGTHS)), PAD)
    for row, length in enumerate(LENGTHS):
        input_ids[row, 0] = START
        input_ids[row, 1 : length - 1] = torch.randint(FIRST_WORD, len(WORDS), (length - 2,), generator=draw)
        input_ids[row, length - 1] = END
    region_mask = (torch.arange(max(REGIONS)) < torch.tensor(REGIONS)[:, None]).long()
    return {
        "input_ids": input_ids,  # [B, T]
        "attention_mask": (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long(),
        "region_features": torch.randn(len(REGIONS), max(REGIONS), WIDTH, generator=draw),  # [B, R, F]
        "region_mask": region_mask,  # [B, R]
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if auto_name == "AutoModel":
        return {}
    return {"image_ids": torch.arange(len(batch["input_ids"]))}


def tokenizer() -> PreTrainedTokenizerFast:
    return scan_tokenizer(WORDS)


def wake(model: PreTrainedModel) -> None:
    embeddings = model.base_model.text_encoder.word_embeddings.weight
    draw = torch.Generator().manual_seed(3)
    embeddings.copy_(
        torch.randn(embeddings.shape, generator=draw) / 2
    )  # they start at 0.1 at most: the GRU hears little


ROW = Tiny(
    model_type="scan",
    settings={
        "vocab_size": len(WORDS) + FIRST_WORD,
        "region_feature_size": WIDTH,
        "word_embedding_size": 384,
        "hidden_size": 64,
        "aggregation": "sum",  # in which every word counts; log-sum-exp listens to the best
    },
    inputs=inputs,
    labels=labels,
    processor=lambda: ScanProcessor(tokenizer(), region_feature_size=WIDTH),
    lora=["region_projection"],
    wake=wake,
    exceptions={
        "accumulated_gradients_equal_a_large_batch": "the other pairs of a batch are its negatives",
        "eager_equals_sdpa": "its attention, normalised over what attends, is none that a backend knows",
        "gradient_checkpointing_changes_nothing": "its layers have no linear one to count by: models/test_scan.py",
        "processor_reads_pictures_and_comes_back": "it reads regions: models/test_scan.py",
    },
)
