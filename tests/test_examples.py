"""Each script of `examples/`, run for two steps on tiny parts, and each config for accelerate, read by accelerate."""

import ast
import dataclasses
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import digit_parts
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from datasets import DatasetDict
from fakehub import FakeHub
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
)

from hf_mmunify.data import load_digit_scenes, load_rows
from hf_mmunify.models.flamingo import FlamingoForConditionalGeneration
from hf_mmunify.training import MixtureTrainer


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def script(name: str):
    """An example as a module; it must be known by its name, so that its classes can be pickled."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, str]:
    return digit_parts.save_parts(tmp_path_factory.mktemp("parts"))


TINY_TRAINING = [
    "--use_cpu",
    "--max_steps",
    "2",
    "--logging_steps",
    "1",
    "--save_strategy",
    "no",
    "--disable_tqdm",
    "1",
]


def train(parts, output_dir, *more: str) -> dict[str, float]:
    arguments = ["--language_model_name_or_path", parts["language"], "--vision_model_name_or_path", parts["vision"]]
    arguments += ["--output_dir", str(output_dir), "--max_rows", "12", "--resampler_num_layers", "1"]
    arguments += ["--interleaved_batch_size", "2", "--pairs_batch_size", "3", "--warmup_steps", "0"]
    return script("train_flamingo").main([*arguments, *TINY_TRAINING, *more])


@pytest.fixture(scope="module")
def flamingo(parts, tmp_path_factory) -> str:
    """A folder with a Flamingo of the tiny parts, written by the training example."""
    folder = tmp_path_factory.mktemp("flamingo")
    metrics = train(parts, folder)
    assert np.isfinite(metrics["train_loss"])
    return str(folder)


def test_what_was_trained_is_a_flamingo_anyone_can_load(flamingo, parts):
    model, processor = AutoModelForImageTextToText.from_pretrained(flamingo), AutoProcessor.from_pretrained(flamingo)
    assert type(model) is FlamingoForConditionalGeneration
    gates = [block.attention_gate.item() for block in model.model.adapter.layers.values()]
    assert len(gates) == 2 and all(gate != 0 for gate in gates)  # closed before the first update
    assert processor.image_token_id == model.config.image_token_id
    # the language model is as it was, but for the rows that the two new tokens added to its table
    before = AutoModelForCausalLM.from_pretrained(parts["language"]).state_dict()
    after = model.model.text_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name][: len(value)], value) for name, value in before.items())


@pytest.mark.parametrize(
    "more",
    [
        ["--round_robin", "--datasets", "interleaved", "pairs", "--gradient_accumulation_steps", "1", "--augment"],
        ["--streaming", "--packing", "--next_image_probability", "0"],
        ["--bf16", "--activation_checkpointing"],
    ],
    ids=lambda more: more[0],
)
def test_train_flamingo_with_other_settings(parts, tmp_path, more):
    if more[0] == "--bf16":
        more = [*more, "--preset", "openflamingo-3b", "--cross_attention_interval", "2"]
    if "--packing" in more:
        with pytest.raises(ValueError, match="read each other in a language model of type 'opt'"):
            train(parts, tmp_path, *more)
        parts = digit_parts.save_parts(tmp_path / "parts", "llama")
    metrics = train(parts, tmp_path, *more)
    assert 0 < metrics["train_loss"] < 10
    if more[0] == "--bf16":
        config = AutoConfig.from_pretrained(tmp_path)
        assert (config.hidden_act, config.cross_attention_num_heads, config.cross_attention_interval) == ("gelu", 8, 2)


def test_train_flamingo_goes_on_where_it_stopped(parts, tmp_path):
    """The same command after a kill: two updates of four were saved; the other two follow, and nothing else."""
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    train(parts, tmp_path / "whole", "--max_steps", "4")
    train(parts, tmp_path / "cut", *saving)
    train(parts, tmp_path / "cut", "--max_steps", "4", *saving)
    whole, cut = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    for (name, one), other in zip(whole.named_parameters(), cut.parameters()):
        assert torch.allclose(one, other, atol=1e-6), name


def test_train_flamingo_shuffles_streams_as_the_seed_says(parts, tmp_path, monkeypatch):
    """Anew in every pass; and tables by the same seed."""
    train_flamingo = script("train_flamingo")
    mixtures = []

    class Trainer(MixtureTrainer):
        def train(self, *args, **kwargs):
            mixtures.append(self.train_dataset)
            raise InterruptedError

    monkeypatch.setattr(train_flamingo, "MixtureTrainer", Trainer)
    arguments = ["--language_model_name_or_path", parts["language"], "--vision_model_name_or_path", parts["vision"]]
    arguments += [
        "--output_dir",
        str(tmp_path),
        "--max_rows",
        "12",
        "--datasets",
        "pairs",
        "--resampler_num_layers",
        "1",
    ]
    arguments += ["--gradient_accumulation_steps", "1", "--pairs_batch_size", "12", *TINY_TRAINING]
    seen = []
    for more in (["--streaming", "--shuffle_buffer_size", "0"], ["--streaming"], [], ["--seed", "1"]):
        with pytest.raises(InterruptedError):
            train_flamingo.main([*arguments, *more])
        items = iter(mixtures[-1]) if "--streaming" in more else (mixtures[-1][0] for _ in range(2))
        seen.append([[row["caption"] for row in next(items).rows] for _ in range(2)])
    captions = load_digit_scenes("caption", size=12)[:]["caption"]
    in_order, streamed, table, other_seed = seen
    assert in_order[0] == captions
    assert all(sorted(rows) == sorted(captions) for made in seen for rows in made)
    assert len({tuple(rows) for rows in (captions, *streamed, table[0], other_seed[0])}) == 5


def test_train_flamingo_goes_on_from_a_model(parts, flamingo, tmp_path):
    metrics = train(parts, tmp_path, "--model_name_or_path", flamingo)
    assert metrics["train_loss"] > 0


@pytest.mark.parametrize("more", [[], ["--freeze_adapter"], ["--load_in_4bit"]], ids=str)
def test_lora_flamingo(flamingo, tmp_path, more):
    if more == ["--load_in_4bit"]:
        pytest.importorskip("bitsandbytes")
    arguments = ["--model_name_or_path", flamingo, "--output_dir", str(tmp_path), "--max_rows", "8", "--rank", "2"]
    metrics = script("lora_flamingo").main([*arguments, *TINY_TRAINING, *more])
    assert 0 < metrics["train_loss"] < 10
    base = AutoModelForImageTextToText.from_pretrained(flamingo)
    model = PeftModel.from_pretrained(base, tmp_path)
    moved = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert moved and any(value.abs().max() > 0 for value in moved)
    weights = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert (weights < 50_000) is ("--freeze_adapter" in more)
    assert AutoProcessor.from_pretrained(tmp_path).image_token == "<image>"


@pytest.mark.slow
def test_lora_flamingo_in_4_bits_goes_on_where_it_stopped(flamingo, tmp_path):
    """Two updates of three were saved; the third is the one of the run that was not stopped."""
    pytest.importorskip("bitsandbytes")
    arguments = ["--model_name_or_path", flamingo, "--max_rows", "24", "--rank", "2", "--load_in_4bit"]
    arguments += [*TINY_TRAINING, "--lr_scheduler_type", "constant", "--save_strategy", "steps", "--save_steps", "2"]
    for name, steps in (("whole", "3"), ("cut", "2"), ("cut", "3")):
        script("lora_flamingo").main([*arguments, "--output_dir", str(tmp_path / name), "--max_steps", steps])
    whole, cut, before = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut", "cut/checkpoint-2")
    )
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert any("lora_B" in name and not torch.equal(value, before[name]) for name, value in whole.items())


def test_generate(flamingo, tmp_path, capsys):
    answers = script("generate").main(["--model_name_or_path", flamingo, "--max_new_tokens", "3", "--device", "cpu"])
    printed = capsys.readouterr().out.splitlines()
    assert len(answers) == 3 and all(line.startswith("<image>output:") and "(it is a " in line for line in printed)
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for path in paths:
        Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(path)
    prompt = ["--prompt", "<image>output: a red one<|endofchunk|><image>output:", "--num_beams", "1"]
    answers = script("generate").main(
        ["--model_name_or_path", flamingo, "--images", *paths, *prompt, "--max_new_tokens", "3", "--device", "cpu"]
    )
    assert len(answers) == 1


@pytest.mark.parametrize(
    "more",
    [
        ["--task", "vqa", "--candidates", "red", "blue", "yes", "--permutations", "2"],
        ["--task", "caption", "--selection", "similar", "--metric", "exact_match"],
    ],
    ids=["ranked", "similar"],
)
def test_evaluate_few_shot(flamingo, tmp_path, capsys, more):
    arguments = ["--model_name_or_path", flamingo, "--shots", "0", "2", "--support_size", "6", "--query_size", "4"]
    arguments += ["--max_new_tokens", "2", "--num_beams", "1", "--device", "cpu"]
    results = script("evaluate_few_shot").main(
        [*arguments, *more, "--output_file", str(tmp_path / "a" / "scores.json")]
    )
    assert set(results) == {0, 2} and all(set(scores) == {"score", "blind"} for scores in results.values())
    written = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert written["shots"] == {str(shots): scores for shots, scores in results.items()}
    table = capsys.readouterr().out
    assert "images zeroed" in table and re.search(r"^ +2 +\d\.\d{3} +\d\.\d{3}$", table, re.MULTILINE)


def test_push_to_hub(flamingo, tmp_path):
    """As a program, against a Hub of its own: what was pushed is there, and its card says how it is loaded."""
    with FakeHub() as hub:
        command = [sys.executable, str(EXAMPLES / "push_to_hub.py"), "--model_name_or_path", flamingo]
        done = subprocess.run(
            [*command, "--repo_id", "someone/tiny"], env=hub.environment(tmp_path), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "someone/tiny" in done.stdout
        files = set(hub.files("someone/tiny"))
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files


# What all of them are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_say_how_they_are_run(path):
    """A header of dependencies, a docstring with complete commands, and only options that the script has."""
    source = path.read_text(encoding="utf-8")
    assert source.startswith("# /// script\n# requires-python = "), "a header as in PEP 723 comes first"
    docstring = ast.get_docstring(ast.parse(source))
    commands = re.sub(r"\\\n\s*", "", docstring)
    runs = re.findall(rf"^ +((?:python|accelerate launch).* ?examples/{path.name} .*)$", commands, re.MULTILINE)
    assert runs, "the docstring shows a command"
    module = script(path.stem)
    parser = HfArgumentParser([thing for thing in vars(module).values() if _is_own_dataclass(thing, module)])
    for run in runs:
        _, _, arguments = run.partition(path.name)
        parser.parse_args(shlex.split(arguments))  # exits on an option that it has not
        config = re.search(r"--config_file (\S+)", run)
        assert config is None or (EXAMPLES.parent / config[1]).is_file()


def _is_own_dataclass(thing, module) -> bool:
    return dataclasses.is_dataclass(thing) and thing.__module__ == module.__name__


@pytest.mark.parametrize("path", sorted((EXAMPLES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path):
    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    kinds = {
        "one_cpu": ("NO", 1),
        "one_gpu": ("NO", 1),
        "multi_gpu": ("MULTI_GPU", 8),
        "fsdp2": ("FSDP", 8),
        "zero3": ("DEEPSPEED", 8),
    }
    assert (str(config.distributed_type.value), config.num_processes) == kinds[path.stem]
    assert config.use_cpu is (path.stem == "one_cpu")
    assert config.mixed_precision == ("no" if path.stem == "one_cpu" else "bf16")
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if path.stem == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3


def test_rows_come_from_digit_scenes_folders_and_files(tmp_path):
    scenes = load_rows("digit-scenes", "caption", size=3)
    assert scenes[:]["caption"] == load_digit_scenes("caption", size=3)[:]["caption"]
    scenes.save_to_disk(tmp_path / "saved")
    assert load_rows(str(tmp_path / "saved"), "caption")[:]["caption"] == scenes[:]["caption"]
    assert len(load_rows(str(tmp_path / "saved"), "caption", size=2)) == 2
    DatasetDict({"test": scenes}).save_to_disk(tmp_path / "splits")
    streamed = load_rows(str(tmp_path / "splits"), "caption", split="test", streaming=True, size=1)
    assert [row["caption"] for row in streamed] == scenes[:1]["caption"]
    assert load_rows(str(tmp_path / "saved"), "caption", streaming=True).num_shards == 3  # for as many workers
    with pytest.raises(ValueError, match=r"has the splits \['test'\], not 'train'"):
        load_rows(str(tmp_path / "splits"), "caption")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert load_rows(str(tmp_path / "files"), "text")["text"][:] == ["one", "two"]
