"""The table: every architecture at its smallest, with a batch it could be trained on.

`TINY[model_type]` makes a model, a batch, its labels, a processor and images; `test_conformance.py` holds each row to
every promise. Nothing is read from elsewhere: weights are drawn, tokenizers built here, images painted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from hf_mmunify import auto
from hf_mmunify.models.flamingo import FlamingoProcessor


@dataclass(frozen=True)
class Tiny:
    """One architecture at its smallest: at most a million parameters, and a batch in which everything is used.

    Attributes:
        model_type: the row's name in `hf_mmunify.registry.ARCHITECTURES`.
        settings: what its config is made of; widths are multiples of 64, as many 4-bit weights share a scale.
        inputs: Auto class and seed -> what its `forward` takes, without labels. Rows differ in length and in number of
            images, text stands before images, padding is on the right, and no row of the second half has an image, so
            that one of two processes sees none.
        labels: Auto class and inputs -> what makes `forward` compute a loss; empty where the class has none.
        processor: makes its processor.
        lora: modules that a LoRA adapts, as `peft.LoraConfig(target_modules=...)` takes them.
        wake: opens, in a fresh model, what training would open (gates that start at zero), so that every part acts.
        exceptions: promise of `test_conformance.py` (the name of its test) -> why this architecture cannot keep it.
    """

    model_type: str
    settings: dict
    inputs: Callable[[str, int], dict[str, torch.Tensor]]
    labels: Callable[[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    processor: Callable[[], ProcessorMixin]
    lora: str | list[str]
    wake: Callable[[PreTrainedModel], None] = lambda model: None
    exceptions: dict[str, str] = field(default_factory=dict)

    def config(self, **changes) -> PreTrainedConfig:
        """The smallest config; `changes` replace some of its settings."""
        return AutoConfig.for_model(self.model_type, **{**self.settings, **changes})

    def model(self, auto_name: str, seed: int = 0, **kwargs) -> PreTrainedModel:
        """A model of the Auto class `auto_name`, in evaluation mode; `kwargs` as for its `from_config`."""
        transformers.set_seed(seed)
        model = auto_class(auto_name).from_config(self.config(), **kwargs)
        with torch.no_grad():
            self.wake(model)
        return model.eval()

    def batch(self, seed: int = 0, auto_name: str = "AutoModel") -> dict[str, torch.Tensor]:
        """What `forward` takes, without labels."""
        return self.inputs(auto_name, seed)

    def training_batch(self, auto_name: str, seed: int = 0) -> dict[str, torch.Tensor]:
        """What `forward` takes, with labels where the class has a loss."""
        batch = self.batch(seed, auto_name)
        return {**batch, **self.labels(auto_name, batch)}

    def images(self, number: int = 3, size: int = 32, seed: int = 0) -> list[Image.Image]:
        """Pictures of noise, each another one."""
        noise = np.random.default_rng(seed).integers(0, 256, (number, size, size, 3), dtype=np.uint8)
        return [Image.fromarray(pixels) for pixels in noise]


def auto_class(name: str) -> type:
    """The Auto class of that name, of `hf_mmunify.auto` or else of transformers."""
    return getattr(auto if name in auto.__all__ else transformers, name)


TEXT = """
    a an the one two three four five six seven eight nine zero first second third last red green blue yellow orange
    purple white brown digit image picture row question answer yes no is are there in on at of to and with left right
    above below between next many number where which what how shows small large . , : ?
"""
WORDS = sorted(set(TEXT.split()))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with the special tokens of OPT: `<unk>` 0, `<pad>` 1, `</s>` 2."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<pad>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()  # spaces between the words
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", model_max_length=64
    )


VISION_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
IMAGE_SIZE = {"height": VISION_TOWER["image_size"], "width": VISION_TOWER["image_size"]}


def image_processor() -> transformers.CLIPImageProcessorPil:
    return transformers.CLIPImageProcessorPil(size=IMAGE_SIZE, crop_size=IMAGE_SIZE)


# Flamingo ----------------------------------------------------------------------------------------------------------

END_OF_CHUNK, IMAGE = len(WORDS) + 3, len(WORDS) + 4  # the processor adds the two to the tokenizer, in this order

# A row each: w a word, i an image, e the end of a chunk. The second half has no image, and fewer tokens to learn.
FLAMINGO_LAYOUTS = ("w w i w w w e i w w w w e i w w", "i w w w e w i w w w", "w w w w w w", "w w w e w w w")


def flamingo_inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    layouts = [layout.split() for layout in FLAMINGO_LAYOUTS]
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


def flamingo_labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if auto_name == "AutoModel":
        return {}
    ignored = (batch["attention_mask"] == 0) | (batch["input_ids"] == IMAGE)
    return {"labels": batch["input_ids"].masked_fill(ignored, -100)}


def wake_flamingo(model: PreTrainedModel) -> None:
    for number, block in enumerate(model.base_model.adapter.layers.values()):
        block.attention_gate.fill_(1.0 + 0.2 * number)
        block.feed_forward_gate.fill_(-0.6)


FLAMINGO = Tiny(
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
    inputs=flamingo_inputs,
    labels=flamingo_labels,
    processor=lambda: FlamingoProcessor(image_processor(), word_tokenizer()),
    lora=r".*text_model.*\.(q_proj|v_proj)",
    wake=wake_flamingo,
)


TINY: dict[str, Tiny] = {row.model_type: row for row in (FLAMINGO,)}
