"""Parts small enough to train in a moment: a tokenizer of the words of digit scenes, towers, a Flamingo of them."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPImageProcessorPil, PreTrainedTokenizerFast

from hf_mmunify.data import VOCABULARY
from hf_mmunify.models.flamingo import FlamingoForConditionalGeneration, FlamingoProcessor


SIZE = {"height": 24, "width": 24}
ADAPTER = {
    "cross_attention_num_heads": 2,
    "cross_attention_head_dim": 16,
    "resampler_num_latents": 4,
    "resampler_num_layers": 1,
    "resampler_num_heads": 2,
    "resampler_head_dim": 16,
}


def word_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; with `bos` it puts `<s>` before every text, as those of Llama and OPT do."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *VOCABULARY]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size=SIZE, do_center_crop=False)


def processor(bos: bool = False) -> FlamingoProcessor:
    return FlamingoProcessor(image_processor(), word_tokenizer(bos))


LANGUAGE_MODELS = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
}


def language_model(family: str = "llama", vocab_size: int | None = None, seed: int = 0) -> torch.nn.Module:
    transformers.set_seed(seed)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512}
    if family == "gpt2":
        del tokens["max_position_embeddings"]
    vocab_size = len(processor().tokenizer) if vocab_size is None else vocab_size
    config = AutoConfig.for_model(family, vocab_size=vocab_size, **tokens, **LANGUAGE_MODELS[family])
    return AutoModelForCausalLM.from_config(config)


def vision_model(seed: int = 1) -> torch.nn.Module:
    transformers.set_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("clip_vision_model", image_size=24, patch_size=8, **sizes)
    return AutoModel.from_config(config)


def flamingo(family: str = "llama", awake: bool = True, seed: int = 0) -> FlamingoForConditionalGeneration:
    """A Flamingo on random parts; `awake`, its weights are large enough and its gates open, so that images show."""
    model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
        vision_model(), language_model(family), processor(), **ADAPTER
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters() if awake else ():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
        for block in model.model.adapter.layers.values() if awake else ():
            block.attention_gate.fill_(0.9)
            block.feed_forward_gate.fill_(0.4)
    return model


def save_parts(folder: Path, family: str = "opt") -> dict[str, str]:
    """Vision tower and language model in two folders, as they come from the Hub, and their paths."""
    paths = {"vision": folder / "vision", "language": folder / "language"}
    vision_model().save_pretrained(paths["vision"])
    image_processor().save_pretrained(paths["vision"])
    tokenizer = word_tokenizer()
    language_model(family, vocab_size=len(tokenizer)).save_pretrained(paths["language"])
    tokenizer.save_pretrained(paths["language"])
    return {name: str(path) for name, path in paths.items()}
