"""What a row of the table of tiny architectures is, and the parts that rows share.

Nothing is read from elsewhere: weights are drawn, tokenizers built here, images painted.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from hf_mmunify import auto


@dataclass(frozen=True)
class Tiny:
    """One architecture at its smallest: at most a million parameters, and a batch in which everything is used.

    Attributes:
        model_type: the row's name in `hf_mmunify.registry.ARCHITECTURES`.
        settings: what its config is made of; widths are multiples of 64, as many 4-bit weights share a scale.
        head_settings: Auto class -> what its config needs besides (`num_labels`, ...).
        inputs: Auto class and seed -> what its `forward` takes, without labels. Rows differ in length and in number of
            images, text stands before images, padding is on the right, and no row of the second half has an image, so
            that one of two processes sees none.
        labels: Auto class and inputs -> what makes `forward` compute a loss; empty where the class has none.
        processor: makes its processor.
        lora: modules that a LoRA adapts, as `peft.LoraConfig(target_modules=...)` takes them.
        wake: opens, in a fresh model, what training would open (gates that start at zero), so that every part acts.
        exceptions: promise of `test_conformance.py` (the name of its test) -> why this architecture cannot keep it;
            with an Auto class in brackets behind it, for that class alone.
    """

    model_type: str
    settings: dict
    inputs: Callable[[str, int], dict[str, torch.Tensor]]
    labels: Callable[[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    processor: Callable[[], ProcessorMixin]
    lora: str | list[str]
    wake: Callable[[PreTrainedModel], None] = lambda model: None
    head_settings: dict[str, dict] = field(default_factory=dict)
    exceptions: dict[str, str] = field(default_factory=dict)

    def config(self, auto_name: str = "AutoModel", **changes) -> PreTrainedConfig:
        """The smallest config of the class that `auto_name` finds; `changes` replace some of its settings."""
        settings = {**self.settings, **self.head_settings.get(auto_name, {}), **changes}
        # The name that transformers knows some of its models by has dashes: "blip-2"
        name = self.model_type if self.model_type in CONFIG_MAPPING else self.model_type.replace("_", "-")
        return AutoConfig.for_model(name, **copy.deepcopy(settings))

    def model(self, auto_name: str, seed: int = 0, **kwargs) -> PreTrainedModel:
        """A model of the Auto class `auto_name`, in evaluation mode; `kwargs` as for its `from_config`."""
        transformers.set_seed(seed)
        model = auto_class(auto_name).from_config(self.config(auto_name), **kwargs)
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


def rows_of_answers(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a model answers, a row for each example: its first output beside the loss.

    Of one that compares every image of a batch with every text, the embeddings of both, side by side.
    """
    if "logits_per_image" in outputs:
        return torch.cat([outputs[name].flatten(1) for name in ("image_embeds", "text_embeds")], dim=1)
    return next(value for key, value in outputs.items() if key != "loss")


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
