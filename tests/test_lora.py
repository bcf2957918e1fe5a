"""The LoRA and QLoRA presets: what they adapt, what they leave alone, and what they say when they cannot help.

That a LoRA trains, saves and loads again, also on 4-bit weights, is shown for every architecture in
`test_conformance.py`.
"""

import pytest
import torch
from peft import get_peft_model
from tiny import TINY
from torch import nn
from transformers import AutoConfig, BertConfig

from hf_mmunify.registry import ARCHITECTURES
from hf_mmunify.training import lora, lora_config, qlora_config


def test_every_architecture_has_a_preset():
    assert set(lora.PRESETS) == set(ARCHITECTURES)


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
        with pytest.raises(ValueError, match=r"no LoRA preset for 'bert', only for \['flamingo'.*PRESETS"):
            function(BertConfig())
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf-mmunify\[quantization\]'"):
        qlora_config(TINY["flamingo"].config())
