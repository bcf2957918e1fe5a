"""The two frozen parts: small ones that learn here, handwriting and language apart, or real ones by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
)

from ..data import VOCABULARY, DigitScenes
from ..data.digit_scenes import COLORS, DIGITS, END_OF_CHUNK_TOKEN
from .data import FewShotDocuments
from .training import fit


IMAGE_SIZE, CELL = 24, 8  # a patch of the tower is a cell of the scene
NOISE = 0.3  # on pixels from -1 to 1: so few writers would else be learned by heart

Curve = list[tuple[int, float]]


class CellReader(nn.Module):
    """A vision tower that learns to see: for each patch, what digit it shows, in which color, and as the how-manieth.

    Objects are counted in reading order, in which captions name them, so that patches must look at each other. The
    heads are thrown away afterwards.

    Args:
        vision_model (`PreTrainedModel`): A ViT whose patches are the cells of a scene.
    """

    def __init__(self, vision_model: PreTrainedModel):
        super().__init__()
        self.vision_model = vision_model
        size = vision_model.config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "digits": nn.Linear(size, len(DIGITS) + 1),
                "colors": nn.Linear(size, len(COLORS) + 1),
                "order": nn.Linear(size, len(COLORS) + 1),
            }
        )

    def read(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images `[B, 3, 24, 24]` to scores `[B, 9, classes]` of each head."""
        tokens = self.vision_model(pixel_values=pixel_values).last_hidden_state[:, 1:]  # [B, 9, D]
        return {name: head(tokens) for name, head in self.heads.items()}

    def forward(self, pixel_values: torch.Tensor, **answers: torch.Tensor) -> dict[str, torch.Tensor]:
        """The summed loss of the three heads; `answers` `[B, 9]` by the name of each."""
        if self.training:
            pixel_values = pixel_values + NOISE * torch.randn_like(pixel_values)
        scores = self.read(pixel_values)
        losses = [
            nn.functional.cross_entropy(scores[name].flatten(0, 1), answers[name].flatten()) for name in self.heads
        ]
        return {"loss": sum(losses)}


class _Scenes(Dataset):
    """Scenes with what is in each of their cells, made when they are asked for."""

    def __init__(self, scenes: DigitScenes, size: int):
        self.scenes = scenes
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.scenes.cells(index)


def _as_cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    pixels = torch.from_numpy(np.stack([row["image"] for row in rows])).permute(0, 3, 1, 2)  # [B, 3, 24, 24]
    answers = {name: torch.tensor([row[name] for row in rows]) for name in ("digits", "colors")}
    is_object = answers["digits"] < len(DIGITS)
    order = torch.where(is_object, is_object.cumsum(dim=1) - 1, len(COLORS))  # [B, 9]
    return {"pixel_values": pixels / 127.5 - 1, **answers, "order": order}


@torch.no_grad()
def read_correctly(reader: CellReader, scenes: DigitScenes, size: int) -> float:
    """Share of the objects of `size` scenes whose digit and color are both read correctly."""
    batch = {
        name: tensor.to(reader.heads["digits"].weight.device)
        for name, tensor in _as_cells(scenes.examples("cells", size)).items()
    }
    scores = reader.eval().read(batch["pixel_values"])
    right = (scores["digits"].argmax(-1) == batch["digits"]) & (scores["colors"].argmax(-1) == batch["colors"])
    return right[batch["digits"] < len(DIGITS)].float().mean().item()


def learn_to_see(folder: Path, steps: int, batch_size: int, seed: int) -> tuple[Curve, float]:
    """Train a vision tower on the handwriting of the training split, and save it with its image processor.

    Returns:
        Its loss curve, and the share of objects in unseen handwriting that it reads correctly.
    """
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=CELL,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.1,
    )
    reader = CellReader(AutoModel.from_config(config, add_pooling_layer=False))
    curve = fit(
        "vision tower",
        reader,
        _Scenes(DigitScenes("train", seed), steps * batch_size),
        _as_cells,
        steps=steps,
        batch_size=batch_size,
        learning_rate=3e-3,
        seed=seed,
        output=str(folder),
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    reader.vision_model.save_pretrained(folder)
    ViTImageProcessor(size=size).save_pretrained(folder)
    return curve, read_correctly(reader, DigitScenes("test", seed), 500)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of digit scenes, and nothing of images."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *VOCABULARY]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=256,
    )


class _Words(Dataset):
    """The texts of documents as tokens; where an image's text ends, a sentence ends."""

    def __init__(self, documents: FewShotDocuments, tokenizer: PreTrainedTokenizerFast):
        self.documents = documents
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        text = self.documents[index]["text"].replace(END_OF_CHUNK_TOKEN, self.tokenizer.eos_token)
        return {"input_ids": self.tokenizer(text).input_ids}


def learn_to_speak(folder: Path, documents: FewShotDocuments, steps: int, batch_size: int, seed: int) -> Curve:
    """Train a small Llama on the words of documents, without any image, and save it with its tokenizer."""
    tokenizer = word_tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    curve = fit(
        "language model",
        model,
        _Words(documents, tokenizer),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        steps=steps,
        batch_size=batch_size,
        learning_rate=3e-3,
        seed=seed,
        output=str(folder),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return curve
