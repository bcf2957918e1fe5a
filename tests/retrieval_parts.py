"""Native models for retrieval at their smallest, with processors, on the words and pictures of digit scenes."""

import digit_parts
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from hf_mmunify.data import VOCABULARY


VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
    "initializer_range": 0.2,  # so that pictures and texts make a difference; BLIP's default is 1e-10
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words between `<s>` and `</s>`; the end is not number 2, by which CLIP knows its first checkpoints."""
    words = ["<pad>", "<unk>", "<s>", "</s>", *VOCABULARY]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 2), ("</s>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def text() -> dict:
    return {
        "vocab_size": len(word_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }


def processor(family: str) -> ProcessorMixin:
    """The family's own processor, of words and of images of 24 x 24 pixels."""
    tokenizer = word_tokenizer()
    if family == "vilt":
        images = transformers.ViltImageProcessorPil(size={"shortest_edge": 24}, size_divisor=8)
        return transformers.ViltProcessor(images, tokenizer)
    if family == "align":  # it shrinks an image 32 times
        images = transformers.CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
        return transformers.CLIPProcessor(images, tokenizer)
    if family == "bridgetower":
        sizes = {"size": {"shortest_edge": 24}, "crop_size": {"shortest_edge": 24}, "size_divisor": 8}
        images = transformers.BridgeTowerImageProcessorPil(**sizes)
        return transformers.BridgeTowerProcessor(images, tokenizer)
    classes = {"siglip": transformers.SiglipProcessor, "blip": transformers.BlipProcessor}
    return classes.get(family, transformers.CLIPProcessor)(digit_parts.image_processor(), tokenizer)


def model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family with random weights, in evaluation mode."""
    transformers.set_seed(seed)
    return _MODELS[family]().eval()


def _clip() -> PreTrainedModel:
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text(), vision_config=VISION, projection_dim=16))


def _metaclip_2() -> PreTrainedModel:
    return transformers.MetaClip2Model(
        transformers.MetaClip2Config(text_config=text(), vision_config=VISION, projection_dim=16)
    )


def _siglip() -> PreTrainedModel:
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text(), vision_config=VISION))
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.0)
    return model


def _blip() -> PreTrainedModel:
    return transformers.BlipForImageTextRetrieval(
        transformers.BlipConfig(
            text_config={**text(), "encoder_hidden_size": 32, "sep_token_id": 3},
            vision_config=VISION,
            image_text_hidden_size=16,
        )
    )


def _vilt() -> PreTrainedModel:
    return transformers.ViltForImageAndTextRetrieval(
        transformers.ViltConfig(**{**text(), **VISION}, max_image_length=-1, qkv_bias=True)
    )


def _bridgetower() -> PreTrainedModel:
    return transformers.BridgeTowerForImageAndTextRetrieval(
        transformers.BridgeTowerConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            initializer_factor=4.0,
            text_config={**text(), "hidden_size": 64, "max_position_embeddings": 66, "type_vocab_size": 1},
            vision_config={"hidden_size": 64, "num_hidden_layers": 2, "image_size": 24, "patch_size": 8},
        )
    )


def _altclip() -> PreTrainedModel:
    return transformers.AltCLIPModel(
        transformers.AltCLIPConfig(
            text_config={**text(), "project_dim": 32, "max_position_embeddings": 66},
            vision_config=VISION,
            projection_dim=16,
        )
    )


def _chinese_clip() -> PreTrainedModel:
    return transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(text_config=text(), vision_config=VISION, projection_dim=16)
    )


def _align() -> PreTrainedModel:
    vision = {"image_size": 64, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 32}
    model = transformers.AlignModel(
        transformers.AlignConfig(
            text_config=text(), vision_config=vision, projection_dim=32, temperature_init_value=0.5
        )
    )
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.mul_(8.0)  # small as it begins, a picture leaves no trace of itself
    return model


_MODELS = {
    "align": _align,
    "altclip": _altclip,
    "blip": _blip,
    "bridgetower": _bridgetower,
    "chinese_clip": _chinese_clip,
    "clip": _clip,
    "metaclip_2": _metaclip_2,
    "siglip": _siglip,
    "vilt": _vilt,
}
