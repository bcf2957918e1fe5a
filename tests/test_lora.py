"""The LoRA and QLoRA presets: what they adapt, what they leave alone, and what they say when they cannot help.

That a LoRA trains, saves and loads again, also on 4-bit weights, is shown for every architecture in
`test_conformance.py`.
"""

import re
from collections.abc import Callable

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from tiny import TINY, auto_class, rows_of_answers
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig

from hf_mmunify.registry import ARCHITECTURES
from hf_mmunify.training import guard_loss_scaling, lora, lora_config, qlora_config


def test_every_architecture_has_a_preset():
    assert set(ARCHITECTURES) <= set(lora.PRESETS)


def test_flamingo_adapts_the_text_model_and_trains_the_adapter():
    model = TINY["flamingo"].model("AutoModelForImageTextToText")
    linear = {
        name
        for name, module in model.model.text_model.model.named_modules(prefix="model.text_model.model")
        if isinstance(module, nn.Linear)
    }
    trained = get_peft_model(model, lora_config(model)).base_model.model
    adapted = {name for name, module in trained.named_modules() if "lora_A" in dict(module.named_children())}
    assert adapted == linear and len(adapted) == 12
    in_full = {name for name, p in trained.named_parameters() if p.requires_grad and "lora_" not in name}
    assert in_full and all(name.startswith("model.adapter.modules_to_save.default.") for name in in_full)


@pytest.mark.parametrize(
    "text_config, number",
    [
        ({"model_type": "llama", "num_key_value_heads": 2}, 14),
        ({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2}, 8),  # Conv1D instead of Linear
        ({"model_type": "gpt_neox"}, 8),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_flamingo_adapts_any_text_model(text_config, number):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = sizes if text_config["model_type"] != "gpt2" else {}
    row = TINY["flamingo"]
    config = row.config(text_config={**sizes, "vocab_size": 80, "max_position_embeddings": 64, **text_config})
    model = get_peft_model(type(row.model("AutoModelForImageTextToText"))(config), lora_config(config))
    adapted = [name for name, module in model.named_modules() if "lora_A" in dict(module.named_children())]
    assert len(adapted) == number
    assert all(".text_model." in name and not name.endswith(("lm_head", "embed_out")) for name in adapted)
    loss = model(**row.training_batch("AutoModelForImageTextToText")).loss
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)


def test_overrides_win():
    config = lora_config(TINY["flamingo"].config(), r=4, target_modules=["q_proj"], modules_to_save=None)
    assert (config.r, config.lora_alpha, config.target_modules, config.modules_to_save) == (4, 32, {"q_proj"}, None)


def test_4_bit_weights_leave_out_what_is_trained_small_or_last():
    config = TINY["flamingo"].config()
    quantization = qlora_config(config)
    assert quantization.load_in_4bit and quantization.bnb_4bit_quant_type == "nf4"
    assert quantization.bnb_4bit_compute_dtype == torch.bfloat16
    names = {pattern.rpartition(")?")[2] for pattern in quantization.llm_int8_skip_modules}
    assert names == {"adapter", "vision_model", "lm_head"}
    from_model = qlora_config(TINY["flamingo"].model("AutoModelForImageTextToText"), bnb_4bit_use_double_quant=False)
    assert from_model.llm_int8_skip_modules == quantization.llm_int8_skip_modules
    assert not from_model.bnb_4bit_use_double_quant


def test_the_output_embeddings_are_found_by_whatever_name():
    text_config = {"model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("flamingo", text_config=text_config, vision_hidden_size=64)
    model = TINY["flamingo"].model("AutoModel")
    model.text_model.embed_out = model.text_model.lm_head
    del model.text_model.lm_head
    model.text_model.get_output_embeddings = lambda: model.text_model.embed_out
    assert any(pattern.endswith("embed_out") for pattern in qlora_config(model).llm_int8_skip_modules)
    assert len(qlora_config(config).llm_int8_skip_modules) == 3


def test_no_preset_and_no_library_say_what_to_do(monkeypatch):
    for function in (lora_config, qlora_config):
        with pytest.raises(ValueError, match=r"no LoRA preset for '', only for \[.*'flamingo'.*PRESETS"):
            function(PreTrainedConfig())
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf-mmunify\[quantization\]'"):
        qlora_config(TINY["flamingo"].config())


# Architectures of transformers -------------------------------------------------------------------------------------

# Widths are multiples of 64, as many 4-bit weights share a scale; BLIP's own initializer_range of 1e-10 is blind
LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": 16, "patch_size": 8, "initializer_range": 0.1}
TEXT = {**LAYERS, "vocab_size": 64, "max_position_embeddings": 40, "initializer_range": 0.1}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CLASSES = {"num_labels": 3}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOWERS = {"vision_config": VISION, "text_config": TEXT | SPECIAL}
OPT = {"model_type": "opt", "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 2}
OPT |= {"num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 40, "init_std": 0.1} | SPECIAL


def swin() -> PreTrainedConfig:
    stages = {"embed_dim": 64, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    return transformers.SwinConfig(image_size=32, patch_size=4, **stages, **CLASSES, initializer_range=0.1)


def pixels(*shape: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(3, *shape), "labels": torch.arange(3)}


def words(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 64, (3, 6))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def pairs(**more) -> dict[str, torch.Tensor]:
    return {**words(), "pixel_values": torch.randn(3, 3, 16, 16), **more}


def with_image_tokens(batch: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Places for an image's queries before the text, which is learned."""
    ids = torch.cat([torch.full((3, number), 63), batch["input_ids"].clamp(max=62)], dim=1)
    labels = ids.masked_fill(ids == 63, -100)
    return {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


# Class, config, batch
NATIVE: dict[str, tuple[str, Callable[[], PreTrainedConfig], Callable[[], dict[str, torch.Tensor]]]] = {
    "vit": (
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(**VISION, **CLASSES),
        lambda: pixels(3, 16, 16),
    ),
    "deit": (
        "DeiTForImageClassification",
        lambda: transformers.DeiTConfig(**VISION, **CLASSES),
        lambda: pixels(3, 16, 16),
    ),
    "beit": (
        "BeitForImageClassification",
        lambda: transformers.BeitConfig(**VISION, **CLASSES),
        lambda: pixels(3, 16, 16),
    ),
    "dinov2": (
        "Dinov2ForImageClassification",
        lambda: transformers.Dinov2Config(**VISION, **CLASSES),
        lambda: pixels(3, 16, 16),
    ),
    "dinov2_with_registers": (
        "Dinov2WithRegistersForImageClassification",
        lambda: transformers.Dinov2WithRegistersConfig(**VISION, **CLASSES),
        lambda: pixels(3, 16, 16),
    ),
    "swin": ("SwinForImageClassification", swin, lambda: pixels(3, 32, 32)),
    "timesformer": (
        "TimesformerForVideoClassification",
        lambda: transformers.TimesformerConfig(**VISION, **CLASSES, num_frames=2),
        lambda: pixels(2, 3, 16, 16),
    ),
    "videomae": (
        "VideoMAEForVideoClassification",
        lambda: transformers.VideoMAEConfig(**VISION, **CLASSES, num_frames=4),
        lambda: pixels(4, 3, 16, 16),
    ),
    "bert": (
        "BertForSequenceClassification",
        lambda: transformers.BertConfig(**TEXT, **CLASSES, **NO_DROPOUT),
        lambda: words(labels=torch.arange(3)),
    ),
    "roberta": (
        "RobertaForSequenceClassification",
        lambda: transformers.RobertaConfig(**TEXT, **CLASSES, **NO_DROPOUT),
        lambda: words(labels=torch.arange(3)),
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        lambda: transformers.DistilBertConfig(dim=64, hidden_dim=128, n_layers=2, n_heads=2, vocab_size=64, **CLASSES),
        lambda: words(labels=torch.arange(3)),
    ),
    "clip": (
        "CLIPModel",
        lambda: transformers.CLIPConfig(**TOWERS, projection_dim=64),
        lambda: pairs(return_loss=True),
    ),
    "siglip": (
        "SiglipModel",
        lambda: transformers.SiglipConfig(vision_config=VISION, text_config=TEXT | SPECIAL | {"projection_size": 64}),
        lambda: pairs(return_loss=True),
    ),
    "altclip": (
        "AltCLIPModel",
        lambda: transformers.AltCLIPConfig(
            vision_config=VISION, text_config=TEXT | {"project_dim": 64, "pad_token_id": 0}, projection_dim=64
        ),
        lambda: pairs(return_loss=True),
    ),
    "chinese_clip": (
        "ChineseCLIPModel",
        lambda: transformers.ChineseCLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=64),
        lambda: pairs(return_loss=True),
    ),
    "metaclip_2": (
        "MetaClip2Model",
        lambda: transformers.MetaClip2Config(**TOWERS, projection_dim=64),
        lambda: pairs(return_loss=True),
    ),
    "vision_text_dual_encoder": (
        "VisionTextDualEncoderModel",
        lambda: transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            transformers.ViTConfig(**VISION), transformers.BertConfig(**TEXT), projection_dim=64
        ),
        lambda: pairs(return_loss=True),
    ),
    "vilt": (
        "ViltForQuestionAnswering",
        lambda: transformers.ViltConfig(**VISION, vocab_size=64, max_image_length=-1, **CLASSES),
        lambda: pairs(labels=torch.rand(3, 3)),
    ),
    "blip": (
        "BlipForImageTextRetrieval",
        lambda: transformers.BlipConfig(**TOWERS, projection_dim=64, image_text_hidden_size=64),
        pairs,
    ),
    "blip_2": (
        "Blip2ForConditionalGeneration",
        lambda: transformers.Blip2Config(
            vision_config=VISION,
            qformer_config=TEXT | {"encoder_hidden_size": 64},
            text_config=OPT,
            num_query_tokens=4,
            image_token_index=63,
        ),
        lambda: with_image_tokens(pairs(), 4),
    ),
    "blip_caption": (
        "BlipForConditionalGeneration",
        lambda: transformers.BlipConfig(**TOWERS, projection_dim=64, image_text_hidden_size=64),
        lambda: pairs(labels=torch.randint(3, 64, (3, 6))),
    ),
}


def native(name: str) -> tuple[transformers.PreTrainedModel, dict[str, torch.Tensor]]:
    class_name, config, batch = NATIVE[name]
    transformers.set_seed(0)
    model = getattr(transformers, class_name)(config())
    for key, parameter in model.named_parameters():
        if key == "query_tokens":  # BLIP-2's start at zero, alike, and what is alike attends to nothing in particular
            nn.init.normal_(parameter)
    return model, batch()


def objective(model: nn.Module, batch: dict) -> torch.Tensor:
    """The loss, or for a class without one (BLIP's matching head) a score to lower."""
    outputs = model(**batch)
    return outputs.loss if outputs.loss is not None else outputs.itm_score.square().mean()


def trained(model: nn.Module, batch: dict) -> list[float]:
    """Losses of three updates."""
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = objective(model.train(), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def answers(model: nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        outputs = model.eval()(**batch)
    keys = ("logits", "logits_per_image", "itm_score")
    return next(outputs[key] for key in keys if key in outputs)


@pytest.mark.parametrize("name", list(NATIVE))
def test_a_native_lora_trains_and_is_loaded_again(name, tmp_path):
    model, batch = native(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    adapted = get_peft_model(model, lora_config(model, r=4))
    losses = trained(adapted, batch)
    assert losses[-1] < losses[0]
    moved = {key: value for key, value in adapted.named_parameters() if "lora_B" in key}
    unused = [key for key, value in moved.items() if not value.any()]
    assert len(moved) >= 4 and all(key.split(".lora_B")[0].endswith(UNUSED.get(name, ())) for key in unused), unused
    base = {key.replace(".base_layer", ""): value for key, value in model.named_parameters() if "lora_" not in key}
    assert all(torch.equal(base[key], value) for key, value in before.items() if key in base)  # frozen
    expected = answers(adapted, batch)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(native(name)[0], tmp_path)
    assert torch.allclose(answers(again, batch), expected, atol=1e-6)
    assert not torch.allclose(answers(native(name)[0], batch), expected, atol=1e-4)


# Layers of native classes that no loss reaches
UNUSED: dict[str, tuple[str, ...]] = {}


@pytest.mark.parametrize("name", list(NATIVE))
def test_a_native_model_in_4_bits_trains_a_lora(name, tmp_path):
    pytest.importorskip("bitsandbytes")
    model, batch = native(name)
    model.save_pretrained(tmp_path)
    quantization = qlora_config(model.config)

    def load() -> transformers.PreTrainedModel:
        return type(model).from_pretrained(tmp_path, quantization_config=quantization, device_map="cpu")

    small = load()
    in_4_bits = {key for key, module in small.named_modules() if type(module).__name__ == "Linear4bit"}
    adapted = get_peft_model(
        prepare_model_for_kbit_training(small, use_gradient_checkpointing=False), lora_config(small, r=4)
    )
    wanted = {
        key.removeprefix("base_model.model.")
        for key, module in adapted.named_modules()
        if "lora_A" in dict(module.named_children())
    }
    assert len(in_4_bits & wanted) >= 8  # what is in 4 bits can only learn by a LoRA
    if "labels" in batch:  # as `TaskTrainer` asks before the first step: the weights stay trainable
        guard_loss_scaling(adapted.train(), batch)
    losses = trained(adapted, batch)
    assert losses[-1] < losses[0]
    expected = answers(adapted, batch)
    adapted.save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(load(), tmp_path / "lora")
    assert torch.allclose(answers(again, batch), expected, atol=1e-3)


@pytest.mark.parametrize(
    "name, head, new",
    [
        ("vilt", "AutoModelForVisualQuestionAnswering", "2 parts of ViltForQuestionAnswering: classifier.0, "),
        (
            "coca",
            "AutoModelForImageClassification",
            "5 parts of CocaForImageClassification: pooler.attention.q_proj, ",
        ),
        ("blip_2", "AutoModelForPreTraining", "1 part of Blip2ForPreTraining: generation_head.dense. "),
    ],
)
def test_new_parts_stay_in_full_precision_beside_4_bits(name, head, new, tmp_path):
    """Those that a preset names are drawn; where all is to be in 4 bits, loading says that they cannot be."""
    row = TINY[name]
    saved = "AutoModelForImageTextRetrieval" if name == "blip_2" else "AutoModel"
    row.model(saved).save_pretrained(tmp_path)
    everything = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with pytest.raises(ValueError, match=f"got one without {re.escape(new)}.*name them in `llm_int8_skip_modules`"):
        auto_class(head).from_pretrained(tmp_path, config=row.config(head), quantization_config=everything)
    but_new = qlora_config(row.config(head), bnb_4bit_compute_dtype=torch.float32)
    model = auto_class(head).from_pretrained(tmp_path, config=row.config(head), quantization_config=but_new)
    outputs = model(**row.training_batch(head))
    assert torch.isfinite(outputs.loss)


def test_blip_2_answers_with_every_layer_in_4_bits(tmp_path):
    row, head = TINY["blip_2"], "AutoModelForImageTextRetrieval"
    exact = row.model(head)
    exact.save_pretrained(tmp_path)
    everything = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = auto_class(head).from_pretrained(tmp_path, quantization_config=everything)
    batch = row.batch(0, head)
    with torch.no_grad():
        scores, expected = (rows_of_answers(each(**batch)) for each in (model, exact))
    assert 0 < (scores - expected).norm() / expected.norm() < 0.5
