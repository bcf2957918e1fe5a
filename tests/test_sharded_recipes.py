"""`fsdp2.yaml` and `zero3.yaml` as `accelerate launch` runs them: two processes are as one with the whole model."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import digit_parts
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from flamingo_parts import ADAPTER, EOC, IMAGE, attach, language_model, vision_model
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from two_processes import on_two_processes

from hf_mmunify.models.flamingo import FlamingoConfig, FlamingoForConditionalGeneration, FlamingoProcessor
from hf_mmunify.training import cast_frozen_parts


TESTS = Path(__file__).resolve().parent
RECIPES = TESTS.parent / "examples" / "accelerate"
PROGRAM = str(TESTS / "distributed" / "sharded.py")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: DS_BUILD_OPS=0 pip install deepspeed",
)


@pytest.mark.parametrize("vision", ["clip_vision_model", "siglip_vision_model", "vit"])
def test_fsdp_finds_every_layer_that_it_divides_a_flamingo_by(vision):
    """CLIP's and SigLIP's vision towers name the embeddings of their text towers too."""
    model = attach(language_model("opt"), vision_model(vision))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    divided = {layer.__name__ for layer in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]}
    assert divided >= {"OPTDecoderLayer", "FlamingoGatedCrossAttention", "FlamingoResamplerLayer"}
    assert divided == model._no_split_modules


def test_a_divided_adapter_is_saved_whole(tmp_path):
    model = attach(language_model("opt"), trained_token_ids=[EOC, IMAGE])
    model.save_flamingo_adapter(tmp_path / "whole")

    def save() -> dict:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        model.save_flamingo_adapter(tmp_path / "divided")
        return {"latents": model.model.adapter.resampler.latents.to_local()}

    ranks = on_two_processes(save, tmp_path)
    assert [len(rank["latents"]) for rank in ranks] == [2, 1]
    whole, saved = (load_file(tmp_path / name / "flamingo_adapter.safetensors") for name in ("whole", "divided"))
    assert whole.keys() == saved.keys()
    assert all(torch.equal(whole[name], saved[name]) for name in whole)


def main_of(example: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{example}", TESTS.parent / "examples" / f"{example}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its classes can be pickled
    spec.loader.exec_module(module)
    return module.main


def test_a_lora_on_a_model_of_two_precisions_trains_in_float32(tmp_path):
    """As `train_flamingo.py --bf16` saves it: frozen parts in bfloat16, in which updates of the adapter were lost."""
    parts = digit_parts.save_parts(tmp_path / "parts")
    processor = FlamingoProcessor(
        AutoImageProcessor.from_pretrained(parts["vision"]), AutoTokenizer.from_pretrained(parts["language"])
    )
    model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
        parts["vision"], parts["language"], processor=processor, resampler_num_layers=1
    )
    processor.save_pretrained(tmp_path / "start")
    cast_frozen_parts(model).save_pretrained(tmp_path / "start")
    arguments = ["--model_name_or_path", str(tmp_path / "start"), "--output_dir", str(tmp_path / "lora")]
    arguments += ["--max_rows", "8", "--rank", "2", "--max_steps", "2", "--save_strategy", "no", "--disable_tqdm", "1"]
    main_of("lora_flamingo")([*arguments, "--use_cpu", "--bf16"])
    before = load_file(tmp_path / "start" / "model.safetensors")
    trained = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {weight.dtype for name, weight in before.items() if ".adapter." not in name} == {torch.bfloat16}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    latents = trained["base_model.model.model.adapter.resampler.latents"]
    moved = (latents - before["model.adapter.resampler.latents"]).abs().max()
    assert 1e-5 < moved < 1e-3  # two updates of Adam with a rate of 2e-4


# Language models of the shapes that the presets are for
LANGUAGE_MODELS = {
    "flamingo-3b": ("opt", 2048, 24, 32, {"word_embed_proj_dim": 2048, "ffn_dim": 8192}),
    "openflamingo-3b": ("mpt", 2048, 24, 16, {"vocab_size": 50432}),
    "openflamingo-4b": ("gpt_neox", 2560, 32, 32, {"intermediate_size": 10240, "vocab_size": 50432}),
    "openflamingo-9b": ("mpt", 4096, 32, 32, {"vocab_size": 50432}),
    "flamingo-9b": ("opt", 4096, 40, 32, {"word_embed_proj_dim": 4096, "ffn_dim": 16384}),
    "flamingo-80b": ("llama", 8192, 80, 64, {"num_key_value_heads": 8, "intermediate_size": 28672}),
}


@pytest.mark.parametrize("preset", LANGUAGE_MODELS)
def test_the_memory_that_the_readme_counts(preset):
    family, width, layers, heads, more = LANGUAGE_MODELS[preset]
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}
    config = FlamingoConfig.from_preset(
        preset,
        text_config=AutoConfig.for_model(family, **size, **more),
        vision_config=AutoConfig.for_model("clip_vision_model", num_attention_heads=16, **vision),
    )
    with torch.device("meta"):
        model = FlamingoForConditionalGeneration(config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = model.num_parameters() - trained
    gigabytes = (2 * frozen + 8 * 4 * trained, 8 * 4 * (frozen + trained), (2 * frozen + 16 * trained) / 8)
    expected = [f"{frozen / 1e9:.1f}", f"{trained / 1e9:.1f}", *(f"{number / 1e9:,.0f}" for number in gigabytes[:2])]
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{preset}`"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [*expected, f"{gigabytes[2] / 1e9:.1f}"]


def run(*command: str) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Where one process trained the whole model, and what it started from."""
    folder = tmp_path_factory.mktemp("alone")
    text, vision = language_model("opt", dropout=0.0, attention_dropout=0.0), vision_model()
    text.save_pretrained(folder / "text")
    vision.save_pretrained(folder / "vision")
    model = attach(text, vision, trained_token_ids=[EOC, IMAGE])
    model.save_pretrained(folder / "start")
    model.save_flamingo_adapter(folder / "start_adapter")
    run(PROGRAM, str(folder), "whole")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return FlamingoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, start",
    [
        ("fsdp2", ["whole"]),
        ("fsdp2", ["parts", "CHECKPOINT"]),
        pytest.param("zero3", ["whole", "CHECKPOINT"], marks=needs_deepspeed),
        pytest.param("zero3", ["parts"], marks=needs_deepspeed),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_recipe_trains_on_two_processes_what_one_process_trains(alone, tmp_path, recipe, start):
    """A frozen language model with trained token rows; two datasets, each of which goes backwards before an update."""
    for name in ("start", "start_adapter", "text", "vision"):
        shutil.copytree(alone / name, tmp_path / name)
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(RECIPES / f"{recipe}.yaml")]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    run(*launch, PROGRAM, str(tmp_path), *start)

    one, two = (json.loads((folder / "losses.json").read_text()) for folder in (alone, tmp_path))
    assert len(one["losses"]) == 3
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["pairs"] == pytest.approx(one["pairs"], abs=1e-5)
    whole = one["held"][0]
    assert all(whole / 2 <= held < 0.51 * whole for held in two["held"][:1])  # each process holds its half
    assert sum(two["held"]) == pytest.approx(whole, rel=0.001)
    if recipe == "fsdp2":
        assert {"FSDPOPTDecoderLayer", "FSDPCLIPEncoderLayer", "FSDPFlamingoGatedCrossAttention"} <= set(
            two["divided"]
        )

    before, expected, trained, resumed = (
        weights(folder) for folder in (alone / "start", alone / "trained", tmp_path / "trained", tmp_path / "resumed")
    )
    assert expected.keys() == trained.keys()
    for name, weight in trained.items():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
        assert torch.allclose(weight, resumed[name], atol=1e-6), name
        assert torch.equal(weight, before[name]) == (".adapter." not in name), name  # the parts stay frozen
    adapter = load_file(tmp_path / "adapter" / "flamingo_adapter.safetensors")
    for name, weight in adapter.items():
        assert torch.equal(weight, trained[f"model.adapter.{name}"]), name
    if start[0] == "parts":
        drawn = load_file(tmp_path / "drawn" / "flamingo_adapter.safetensors")
        assert drawn["resampler.latents"].shape == (ADAPTER["resampler_num_latents"], 16)
        assert 0.7 < drawn["resampler.latents"].std() < 1.3
        assert torch.equal(drawn["layers.0.attention_gate"], torch.zeros(1))
        table = before["model.text_model.model.decoder.embed_tokens.weight"]
        assert torch.equal(drawn["token_rows.input_rows"], table[[EOC, IMAGE]])
