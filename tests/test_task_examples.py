"""Each script of `examples/` that trains a model for a task: from a small model, in a few steps, to its results."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakehub import FakeHub
from peft import PeftModel
from test_examples import EXAMPLES, script
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from hf_mmunify import AutoModelForVisualEntailment
from hf_mmunify.data import load_rows


STEPS = ["--use_cpu", "--max_steps", "2", "--per_device_train_batch_size", "4", "--disable_tqdm", "1"]
ROWS = ["--max_train_rows", "12", "--max_eval_rows", "6"]

# Script, the architecture it is run with, what is said beside, and its metrics
RUNS = {
    "retrieval": ("image_text_retrieval", "clip", [], {"mean_recall"}),
    "retrieval, cached": ("image_text_retrieval", "clip", ["--gradient_cache_chunk_size", "2"], {"mean_recall"}),
    "retrieval, two towers": ("image_text_retrieval", "vision_text_dual_encoder", ["--freeze", "vision"], set()),
    "captioning": ("captioning", "blip", ["--num_beams", "2"], {"cider", "exact_match"}),
    "captioning, prompt": ("captioning", "blip", ["--prompt", "there is"], {"cider", "exact_match"}),
    "captioning, BLIP-2": ("captioning", "blip_2", ["--freeze", "vision"], {"cider", "exact_match"}),
    "questions, chosen": ("visual_question_answering", "vilt", [], {"vqa_accuracy"}),
    "questions, written": ("visual_question_answering", "blip", [], {"vqa_accuracy"}),
    "questions, ranked": ("visual_question_answering", "blip", ["--rank_answers"], {"vqa_accuracy"}),
    "questions, prompt": ("visual_question_answering", "blip_2", ["--prompt", "{question} answer:"], {"vqa_accuracy"}),
    "reasoning": ("visual_reasoning", "vilt", [], {"accuracy"}),
    "entailment": ("visual_entailment", "albef", ["--freeze", "vision"], {"accuracy"}),
    "captioning, CoCa": ("captioning", "coca", [], {"cider", "exact_match"}),
    "retrieval, matched": ("image_text_retrieval", "albef", ["--top_k", "2"], {"mean_recall"}),
    "zero-shot, FLIP": ("zero_shot_classification", "flip", ["--pairs", "digit-scenes"], {"top1", "top5"}),
    "video": ("video_classification", "timesformer", ["--frame_stride", "1", "--num_clips", "2"], {"top1", "top5"}),
    "video, VideoMAE": ("video_classification", "videomae", ["--layer_decay", "0.8"], {"top1", "top5"}),
    "zero-shot": ("zero_shot_classification", "clip", ["--pairs", "digit-scenes"], {"top1", "top5"}),
}
LORA = {
    "captioning": ("captioning", "blip", AutoModelForImageTextToText, {}),
    "entailment": ("visual_entailment", "vilt", AutoModelForVisualEntailment, {}),
    "video": ("video_classification", "timesformer", AutoModelForVideoClassification, {"num_labels": 8}),
}
QLORA = {  # heads that are new, and a decoder that starts as a copy
    "captioning": LORA["captioning"],
    "entailment": LORA["entailment"],
    "questions": ("visual_question_answering", "albef", AutoModelForVisualQuestionAnswering, {}),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small model of an architecture, made once."""
    home = tmp_path_factory.mktemp("small")

    def folder(architecture: str) -> str:
        path = home / architecture
        if not path.exists():
            script("small_model").main(["--architecture", architecture, "--output_dir", str(path)])
        return str(path)

    return folder


def run(small, name: str, architecture: str, output: Path, *more: str) -> dict[str, dict[str, float]]:
    arguments = ["--model_name_or_path", small(architecture), "--output_dir", str(output), *STEPS, *ROWS, *more]
    return script(name).main(arguments)


@pytest.mark.parametrize("name", RUNS)
def test_a_task_from_a_small_model_to_its_results(small, tmp_path, capsys, name):
    script_name, architecture, more, metrics = RUNS[name]
    results = run(small, script_name, architecture, tmp_path, *more)
    assert metrics <= set(results)
    assert all(set(scores) == {"score", "blind"} for scores in results.values())
    assert all(0 <= value <= 10 for scores in results.values() for value in scores.values())
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["results"] == results and record["steps"] == 2 and record["dataset"] == "digit-scenes"
    assert "images zeroed" in capsys.readouterr().out
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---") and record["task"] in card and "digit-scenes, test, images zeroed |" in card
    assert (tmp_path / "model.safetensors").is_file() and AutoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name, kind", [*((name, "--lora") for name in LORA), *((name, "--qlora") for name in QLORA)])
def test_a_lora_of_a_task(small, tmp_path, name, kind):
    if kind == "--qlora":
        pytest.importorskip("bitsandbytes")
    script_name, architecture, auto_class, settings = (LORA if kind == "--lora" else QLORA)[name]
    results = run(small, script_name, architecture, tmp_path, kind, "--rank", "2", "--learning_rate", "0.01")
    assert json.loads((tmp_path / "results.json").read_text())["results"] == results
    base = auto_class.from_pretrained(small(architecture), **settings)
    model = PeftModel.from_pretrained(base, tmp_path)
    moved = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert moved and any(value.abs().max() > 0 for value in moved)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "model.safetensors").exists()


def test_what_is_frozen_stays(small, tmp_path):
    run(small, "captioning", "blip", tmp_path, "--freeze", "vision", "--learning_rate", "0.01")
    before, after = (AutoModelForImageTextToText.from_pretrained(path) for path in (small("blip"), tmp_path))
    layers = zip(before.vision_model.encoder.parameters(), after.vision_model.encoder.parameters())
    assert all(torch.equal(*pair) for pair in layers)
    with pytest.raises(ValueError, match="leave out --freeze"):
        run(small, "captioning", "blip", tmp_path, "--freeze", "vision", "--lora")


def test_a_killed_run_goes_on(small, tmp_path):
    """The same command after a kill: two updates of four were saved; the other two follow, and nothing else."""
    saving = ["--save_strategy", "steps", "--save_steps", "2", "--lr_scheduler_type", "constant"]
    run(small, "captioning", "blip", tmp_path / "whole", "--max_steps", "4", *saving)
    run(small, "captioning", "blip", tmp_path / "cut", *saving)
    run(small, "captioning", "blip", tmp_path / "cut", "--max_steps", "4", *saving)
    whole, cut = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    for (name, one), other in zip(whole.named_parameters(), cut.parameters()):
        assert torch.allclose(one, other, atol=1e-6), name
    results = run(small, "captioning", "blip", tmp_path / "cut", "--evaluate_only")
    assert set(results) == {"cider", "exact_match"}


def test_data_of_ones_own(small, tmp_path):
    """A saved dataset whose columns and labels are called otherwise."""
    rows = load_rows("digit-scenes", "entailment", size=12)
    words = ["contradiction", "entailment", "neutral"]
    rows = rows.rename_columns({"image": "picture", "hypothesis": "sentence"}).map(
        lambda row: {"gold": ["entailment", "neutral", "contradiction"][row["label"]]}, remove_columns="label"
    )
    rows.save_to_disk(tmp_path / "rows")
    results = run(
        small,
        "visual_entailment",
        "vilt",
        tmp_path / "run",
        *["--dataset", str(tmp_path / "rows"), "--eval_split", "train", "--image_column", "picture"],
        *["--text_column", "sentence", "--label_column", "gold", "--class_names", *words],
    )
    assert 0 <= results["accuracy"]["score"] <= 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["id2label"] == {str(number): word for number, word in enumerate(words)}


def test_zero_shot_without_training(small, tmp_path):
    results = script("zero_shot_classification").main(
        ["--model_name_or_path", small("clip"), "--output_dir", str(tmp_path), "--max_eval_rows", "8", "--use_cpu"]
    )
    assert set(results) == {"top1", "top5"} and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("architecture", script("small_model").ARCHITECTURES)
def test_vision_learns_to_see(tmp_path, architecture):
    """Two steps: what each architecture makes of an image has a token of the whole and one a cell, and is trained."""
    module = script("small_model")
    row = module.ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = row.auto_class.from_config(row.config())
    pixels = torch.randn(2, 3, 24, 24)
    before = row.vision(model.eval(), pixels)
    assert before.shape == (2, 10, 128)
    again = row.vision(model, pixels)
    assert torch.allclose(before, again, atol=1e-5)  # ViLT draws the order of patches, which must not show
    moved = pixels.clone()
    moved[:, :, 16:, 16:] += 1  # the last cell
    change = (row.vision(model, moved) - before).norm(dim=-1)  # [2, 10]
    assert (change[:, 1:].argmax(dim=1) == 8).all()
    argv = ["--architecture", architecture, "--output_dir", str(tmp_path), "--pretrain_vision", "1"]
    assert 0 <= module.main(argv) <= 1 and (tmp_path / "model.safetensors").is_file()


def test_push(small, tmp_path):
    """As a program, against a Hub of its own: model, processor, card and results are there."""
    with FakeHub() as hub:
        command = [sys.executable, str(EXAMPLES / "visual_entailment.py"), "--model_name_or_path", small("vilt")]
        command += ["--output_dir", str(tmp_path / "run"), *STEPS, *ROWS, "--save_strategy", "no"]
        done = subprocess.run(
            [*command, "--push_to_hub", "--hub_model_id", "someone/entailment"],
            env=hub.environment(tmp_path),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        files = set(hub.files("someone/entailment"))
    assert {"model.safetensors", "config.json", "processor_config.json", "README.md", "results.json"} <= files


def test_the_commands_of_the_readme_are_those_of_the_scripts():
    """Every command of examples/README.md stands in the docstring of a script, where its options are tested."""
    found = [
        " ".join((EXAMPLES / path).read_text(encoding="utf-8").replace("\\\n", " ").split())
        for path in ("README.md", *sorted(path.name for path in EXAMPLES.glob("*.py")))
    ]
    lines = (EXAMPLES / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^ *(python examples/\w+\.py .*)$", lines, re.MULTILINE)
    assert len(commands) > 1
    for command in commands:
        assert any(" ".join(command.split()) in text for text in found[1:]), f"no script shows: {command}"
