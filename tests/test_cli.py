"""The command `hf-mmunify`: what it lists, what it writes, and that errors are one line and leave everything whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import retrieval_parts
import torch
import yaml
from fakehub import FakeHub
from golden_case import GoldenCase
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from hf_mmunify import __version__, cli
from hf_mmunify.conversion import flamingo
from hf_mmunify.conversion.engine import export
from hf_mmunify.data import DigitScenes
from hf_mmunify.embedding_index import EmbeddingIndex
from hf_mmunify.registry import ARCHITECTURES


CASE = GoldenCase(Path(__file__).parent / "golden" / "flamingo" / "opt.json")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint of OpenFlamingo and its configuration, as files."""
    folder = tmp_path_factory.mktemp("original")
    torch.save({"model_state_dict": CASE.state_dict(), "epoch": 1}, folder / "checkpoint.pt")
    (folder / "config.json").write_text(json.dumps(CASE.info["config"]))
    (folder / "config.yaml").write_text(yaml.safe_dump(CASE.info["config"]))
    return folder


def convert(files, out, *options, config="config.json"):
    return cli.main(
        ["convert", "flamingo", str(files / "checkpoint.pt"), str(out), "--config", str(files / config), *options]
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_list_names_every_architecture_class_and_checkpoint(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, row in ARCHITECTURES.items():
        assert name in lines
        for auto_class, class_name in row.items():
            assert [auto_class, class_name] in [line.split() for line in lines]
    for variant, about in flamingo.VARIANTS.items():
        assert any(line.split()[:2] == [variant, f"{about.parameters:,}"] for line in lines)
    assert any("mlfoundations/open_flamingo@" in line for line in lines)


@pytest.mark.parametrize("config", ["config.json", "config.yaml"])
def test_convert_writes_a_model_that_the_auto_classes_load(files, tmp_path, capsys, config):
    out = tmp_path / "model"
    assert convert(files, out, config=config) == 0
    assert f"Wrote {out}: FlamingoForConditionalGeneration, " in capsys.readouterr().out
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    original = CASE.state_dict()
    exported = export(model)
    assert all(torch.equal(exported[key], original[key]) for key in exported)
    card = (out / "README.md").read_text()
    assert "Converted from `checkpoint.pt` of [mlfoundations/open_flamingo]" in card
    assert str(files) not in card
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_convert_to_another_dtype(files, tmp_path):
    assert convert(files, tmp_path / "model", "--dtype", "bfloat16") == 0
    assert AutoConfig.from_pretrained(tmp_path / "model").dtype == torch.bfloat16
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_a_processor_is_saved_where_its_parts_are_known(files, tmp_path, monkeypatch, capsys):
    def saved(folder):
        (folder / "processor_config.json").write_text("{}")

    for processor, expected in (
        (lambda config: SimpleNamespace(save_pretrained=saved), True),
        (lambda config: None, False),
    ):
        monkeypatch.setattr(flamingo, "processor", processor)
        assert convert(files, tmp_path / str(expected)) == 0
        assert (tmp_path / str(expected) / "processor_config.json").is_file() == expected
        assert ("Without a processor" in capsys.readouterr().err) != expected

    def unreachable(config):
        raise OSError("no such\nrepository")

    monkeypatch.setattr(flamingo, "processor", unreachable)
    assert convert(files, tmp_path / "offline") == 0
    assert "Without a processor: no such repository." in capsys.readouterr().err


# --- errors -------------------------------------------------------------------------------------------------------


def assert_one_line(capsys, text):
    """One line of error, as the last thing said."""
    said = capsys.readouterr().err
    *notes, error = said.splitlines()
    assert error.startswith("hf-mmunify: ") and text in error, said
    assert not any(note.startswith(("hf-mmunify", "Traceback")) for note in notes), said


@pytest.mark.parametrize(
    "command, text",
    [
        ("convert alchemy {pt} {out}", "No conversion for architecture `alchemy`; there are"),
        ("convert flamingo {files}/absent.pt {out} --config {json}", "There is no file or folder"),
        ("convert flamingo {json} {out} --config {json}", "is a text file that begins with"),
        ("convert flamingo {pt} {out} --config {json} --head vqa", "no head 'vqa'"),
        ("convert flamingo {pt} {out} --config OpenFlamingo-99B", "no published variant `OpenFlamingo-99B`"),
        ("convert flamingo {pt} {out} --config {files}/absent.json", "No such file"),
        ("convert flamingo {pt} {out} --config {files}/broken.json", "broken.json is no json"),
        ("convert flamingo {pt} {out} --config {files}/broken.yaml", "broken.yaml is no yaml"),
        ("convert flamingo {pt} {out} --config {files}/list.yaml", "holds a list; expected the authors'"),
        ("convert flamingo {pt} {out}", "original_config of `flamingo`: none was given"),
        ("convert flamingo {pt} {files}/checkpoint.pt/x --config {json}", "There is no folder"),
        ("convert flamingo {pt} {pt} --config {json}", "holds the checkpoint itself"),
        ("convert flamingo {pt} {files} --config {json} --overwrite", "holds the checkpoint itself"),
        ("convert flamingo {pt} {json} --config {json}", "is a file. Name a folder"),
        ("convert flamingo {pt} {full} --config {json}", "is not empty. Name another folder"),
        ("convert flamingo {pt} {full} --config {json} --overwrite", "holds no model (no config.json)"),
        ("convert flamingo {pt} {out} --config {json} --push a/b/c", "Repo id must be"),
    ],
)
def test_errors_are_one_line(files, tmp_path, capsys, command, text):
    (files / "broken.json").write_text("{'lm': 1}")
    (files / "broken.yaml").write_text("lm: [1,\nb: 2")
    (files / "list.yaml").write_text("[1, 2]")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("the only copy")
    places = {"files": files, "pt": files / "checkpoint.pt", "json": files / "config.json"}
    argv = command.format(**places, out=tmp_path / "model", full=full).split()
    assert cli.main(argv) == 2
    assert_one_line(capsys, text)
    assert contents(full) == {"thesis.txt": b"the only copy"}
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_what_argparse_refuses_has_the_same_exit_code(capsys):
    for argv in ([], ["paint"], ["convert", "flamingo"], ["convert", "flamingo", "a", "b", "--dtype", "int4"]):
        with pytest.raises(SystemExit) as exit:
            cli.main(argv)
        assert exit.value.code == 2
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out.strip() == __version__


def test_overwriting_replaces_a_model_whole(files, tmp_path):
    out = tmp_path / "model"
    assert convert(files, out) == 0
    (out / "training_args.bin").write_bytes(b"of the old one")
    before = contents(out)
    assert convert(files, out) == 2
    assert contents(out) == before
    assert convert(files, out, "--overwrite") == 0
    assert "training_args.bin" not in contents(out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_full_disk_leaves_the_old_model(files, tmp_path, monkeypatch, capsys, moment):
    out = tmp_path / "model"
    assert convert(files, out) == 0
    before, save = contents(out), PreTrainedModel.save_pretrained

    def no_space(self, folder, **options):
        if moment == "after":
            save(self, folder, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", no_space)
    capsys.readouterr()
    assert convert(files, out, "--overwrite") == 2
    assert_one_line(capsys, "No space left on device")
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process to kill")
def test_a_killed_process_leaves_the_old_model(tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text("old")
    if (child := os.fork()) == 0:
        with cli._replaced(out) as folder:
            (folder / "config.json").write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert contents(out) == {"config.json": b"old"}


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text("old")
    rename = Path.rename

    def fail_to_come_in(self, target):
        if ".new-" in self.name:
            raise OSError("cannot rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_come_in)
    with pytest.raises(OSError, match="cannot rename"), cli._replaced(out) as folder:
        (folder / "config.json").write_text("new")
    assert contents(out) == {"config.json": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_pushed_is_still_there(files, tmp_path, capsys):
    out = tmp_path / "model"
    assert convert(files, out, "--push", "user/model") == 2  # the tests are offline
    assert_one_line(capsys, f"The model is in {out}, but was not pushed to user/model: ")
    assert (out / "model.safetensors").is_file()


def test_the_demo_is_another_program_with_options_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "hf_mmunify.demo", SimpleNamespace(main=lambda argv: asked.append(argv)))
    assert cli.main(["demo", "--steps", "3", "--help"]) == 0
    assert asked == [["--steps", "3", "--help"]]


def test_the_command_converts_and_pushes(files, tmp_path):
    """The one test of the command as a process: its exit code, and what arrives at the Hub."""
    with FakeHub() as hub:
        arguments = ["convert", "flamingo", "checkpoint.pt", str(tmp_path / "model"), "--config", "config.json"]
        run = subprocess.run(
            [sys.executable, "-m", "hf_mmunify", *arguments, "--push", "user/flamingo-tiny"],
            cwd=files, env=hub.environment(tmp_path / "home"), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert "Pushed to user/flamingo-tiny" in run.stdout
        pushed = hub.files("user/flamingo-tiny")
    assert {"config.json", "model.safetensors", "README.md"} <= pushed.keys()
    assert pushed["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert b"user/flamingo-tiny" in pushed["README.md"]


# --- an index of images -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of seven pictures, one of them in a folder of its own, and two models with processors."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "photos" / "2019").mkdir(parents=True)
    (folder / "more").mkdir()
    for place, row in enumerate(DigitScenes("test").examples("retrieval", 9)):
        name = ("more/" if place > 6 else "photos/2019/" if place == 3 else "photos/") + f"{place}.png"
        Image.fromarray(np.asarray(row["image"])).save(folder / name)
    for family in ("clip", "vilt"):
        retrieval_parts.model(family).save_pretrained(folder / family)
        retrieval_parts.processor(family).save_pretrained(folder / family)
    return folder


def build(photos, out, *options):
    return cli.main(["index", "build", str(out), str(photos / "photos"), "--model", str(photos / "clip"), *options])


def test_an_index_from_build_to_remove(photos, tmp_path, capsys):
    out = tmp_path / "photos.index"
    assert build(photos, out, "--batch-size", "3") == 0
    assert f"Wrote {out}: 7 images, features [16] of CLIPModel {photos / 'clip'}" in capsys.readouterr().out
    assert cli.main(["index", "query", str(out), "--image", str(photos / "photos" / "2019" / "3.png"), "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].split() == ["1.0000", "2019/3.png"]
    assert cli.main(["index", "add", str(out), str(photos / "more")]) == 0
    assert f"Added 2 images to {out}: 9" in capsys.readouterr().out
    assert cli.main(["index", "remove", str(out), "2019/3.png", "0.png"]) == 0
    assert "Removed 2 images" in capsys.readouterr().out
    texts = ["a red seven", "a blue one"]
    assert cli.main(["index", "query", str(out), "--text", *texts, "-k", "20", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["query"] for answer in answers] == texts
    expected = EmbeddingIndex.load(out).query(text=texts, k=20)
    assert [[tuple(match.values()) for match in answer["matches"]] for answer in answers] == expected
    assert {match.id for match in expected[0]} == {"1.png", "2.png", "4.png", "5.png", "6.png", "7.png", "8.png"}
    assert cli.main(["index", "query", str(out), "--text", *texts, "-k", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == texts and lines[1].split()[1] == expected[0][0].id
    assert cli.main(["index", "info", str(out)]) == 0
    assert "7 images, features [16] of CLIPModel" in capsys.readouterr().out


def test_building_an_index_again_needs_a_word(photos, tmp_path, capsys):
    out = tmp_path / "index"
    assert build(photos, out, "--size", "2") == 0
    before = contents(out)
    assert build(photos, out) == 2
    assert_one_line(capsys, f"There is an index in {out}. Name another folder")
    assert contents(out) == before
    assert build(photos, out, "--overwrite", "--dtype", "bfloat16") == 0
    assert EmbeddingIndex.load(out).fingerprint.dtype == "bfloat16" and len(EmbeddingIndex.load(out)) == 7


def test_an_index_of_a_dataset(photos, tmp_path, capsys):
    options = ["--model", str(photos / "clip"), "--split", "test", "--size", "4", "--id-column", "caption"]
    assert cli.main(["index", "build", str(tmp_path / "index"), "digit-scenes", *options]) == 0
    captions = [row["caption"] for row in DigitScenes("test").examples("retrieval", 4)]
    assert EmbeddingIndex.load(tmp_path / "index").ids == captions


@pytest.mark.parametrize(
    "command, text",
    [
        ("build {new} {folder}/absent --model {folder}/clip", "absent"),
        ("build {new} {folder}/photos --model {folder}/absent", "absent"),
        ("build {new} {folder}/photos --model {folder}/vilt", "reads images and texts in pairs"),
        ("build {new} {folder}/photos --model {folder}/clip --device nowhere", "clip cannot be loaded: "),
        ("build {folder}/no/index {folder}/photos --model {folder}/clip", "cannot be a folder"),
        ("build {broken}/broken.png {folder}/photos --model {folder}/clip", "it is a file"),
        ("build {broken} {folder}/photos --model {folder}/clip", "is not empty and holds no index"),
        ("build {new} {broken} --model {folder}/clip", "broken.png cannot be read as an image"),
        ("add {index} {folder}/photos", "Two images have the id '0.png'"),
        ("add {new} {folder}/photos", "There is no index in"),
        ("add {index} digit-scenes --id-column name", "has the columns"),
        ("remove {index} 1.png 9.png", "The index has no '9.png' (1 of 2 are unknown)"),
        ("query {index} --image {broken}/broken.png", "broken.png cannot be read as an image"),
        ("query {index} --image {folder}/absent.png", "absent.png cannot be read as an image"),
        ("info {folder}/photos", "it has no index.json"),
    ],
)
def test_errors_about_an_index_are_one_line(photos, tmp_path, capsys, command, text):
    index, broken = tmp_path / "index", tmp_path / "broken"
    broken.mkdir()
    (broken / "broken.png").write_bytes(b"not a picture")
    assert build(photos, index, "--size", "3") == 0
    before = contents(index)
    places = {"folder": photos, "index": index, "new": tmp_path / "new", "broken": broken}
    assert cli.main(["index", *command.format(**places).split()]) == 2
    assert_one_line(capsys, text)
    assert contents(index) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "index"]


def test_the_command_asks_an_index_of_another_process(photos, tmp_path, capsys, monkeypatch):
    """Built in one process by a relative path, asked in another from elsewhere; then the model changes."""
    monkeypatch.chdir(photos)
    shutil.copytree("clip", tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["index", "build", "index", str(photos / "photos"), "--model", "clip"]) == 0
    command = [sys.executable, "-m", "hf_mmunify", "index", "query", str(tmp_path / "index"), "--text", "a red seven"]
    asked = subprocess.run(command, cwd=photos, capture_output=True, text=True, timeout=300)
    assert asked.returncode == 0 and len(asked.stdout.splitlines()) == 7, asked.stderr
    retrieval_parts.model("clip", seed=5).save_pretrained("clip")
    assert cli.main(["index", "query", "index", "--text", "a red seven"]) == 2
    assert_one_line(capsys, "This is not the model of the index, CLIPModel")
