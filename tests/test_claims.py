"""`examples/claims`: the scripts run, their variants differ as they say, and their scores are what decoding gives."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers.utils import logging


CLAIMS = Path(__file__).resolve().parents[1] / "examples" / "claims"


@pytest.fixture(scope="module", autouse=True)
def verbosity():
    """The scripts keep transformers quiet; later tests may want to hear it."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def claims():
    """The script as a module; by its name the dataclasses in it find their types."""
    spec = importlib.util.spec_from_file_location("claims_flamingo", CLAIMS / "flamingo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parts(claims):
    return claims.learn_parts(claims.ScriptArguments(vision_steps=2, language_steps=2, train_images=40, test_images=6))


def test_every_claim_runs_and_is_reported(claims, tmp_path):
    sizes = ["--vision_steps", "2", "--language_steps", "2", "--train_images", "40", "--test_images", "6"]
    few = ["--steps", "2", "--seeds", "2", "--processes", "1", "--shots", "0", "1"]
    runs = claims.main([*sizes, *few, "--output", str(tmp_path)])
    assert [run["variant"] for run in runs] == 2 * list(claims.VARIANTS)
    names = {name for claim in claims.CLAIMS.values() for name in claim}
    assert {"paper", *names} == set(claims.VARIANTS)
    # as good as a guess among the words, after two updates
    assert all(1 < run["training_loss"] < 6 and len(run["loss_curve"]) == 2 for run in runs)
    assert all(0 <= run[f"{task}_{shots}"] <= 1 for run in runs for task in claims.TASKS for shots in (0, 1, "blind"))
    first, second = (run["training_loss"] for run in runs if run["variant"] == "paper")
    assert first != second

    written = json.loads((tmp_path / "results.json").read_text())
    assert written["runs"] == runs and written["setting"]["steps"] == 2
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + len(claims.VARIANTS) and len({line.count("|") for line in table}) == 1
    assert f"{(first + second) / 2:.2f} ({min(first, second):.2f} to {max(first, second):.2f})" in table[2]
    plot = ElementTree.parse(tmp_path / "scores.svg")
    assert len(plot.findall(".//{*}circle")) == 2 + 2 * len(claims.VARIANTS)


def test_only_the_chosen_claims_run(claims, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "learn_parts", lambda args: parts)
    runs = claims.main(
        ["--claims", "frequency", "--steps", "1", "--seeds", "1", "--processes", "1", "--output", str(tmp_path)]
    )
    assert [run["variant"] for run in runs] == ["paper", "every_2", "every_4"]
    assert [list(run["attention_gates"]) for run in runs] == [["0", "1", "2", "3"], ["0", "2"], ["0"]]


@pytest.mark.parametrize("name", ["paper", "no_gates", "no_resampler", "trained_language_model"])
def test_a_variant_trains_what_it_says(claims, parts, name):
    variant = claims.VARIANTS[name]
    model = claims.build(parts, variant, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    claims.train(model, variant, parts.items, steps=2, seed=0)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.endswith("_gate") for key in moved) is (name != "no_gates")
    assert any(".resampler." in key for key in moved) is (name != "no_resampler")
    assert any("text_model.model.layers" in key for key in moved) is (name == "trained_language_model")
    assert any("adapter.layers.3.attention.k_proj" in key for key in moved)
    assert not any("vision_model" in key for key in moved)
    gates = [block.attention_gate.tanh().item() for block in model.model.adapter.layers.values()]
    assert (gates == [1.0] * 4) is (name == "no_gates")


def test_documents_are_interleaved_or_single_with_as_many_images(claims, parts):
    items, rng = parts.items["vqa"], claims.np.random.default_rng
    rows, single = (claims.documents(items, interleaved, 100, rng(0)) for interleaved in (True, False))
    assert {len(row) for row in rows} == {1, 2, 3, 4, 5} and {len(row) for row in single} == {1}
    assert sum(map(len, rows)) == len(single)
    assert max(max(row) for row in rows) < items.num_train  # nothing held out is trained on


def test_answers_alone_are_learned(claims, parts):
    variant, items = claims.VARIANTS["paper"], parts.items["vqa"]
    model = claims.build(parts, variant, seed=0)
    inputs = claims.assemble(items, [[0, 1], [2]], model, variant)
    decode, end = parts.processor.tokenizer.decode, model.config.end_of_chunk_token_id
    for labels, row in zip(inputs["labels"], ([0, 1], [2])):
        learned = [token for item in row for token in (*items.answers[item], end)]
        assert labels[labels != -100].tolist() == learned, decode(learned)
    assert inputs["image_mask"].tolist() == [[1, 1], [1, 0]]
    assert torch.equal(inputs["image_features"][0, 1, 0], items.features[1])


@pytest.mark.parametrize("name", ["paper", "no_resampler", "all_previous"])
def test_the_score_is_that_of_greedy_decoding(claims, parts, name):
    """Items whose answers are what `generate` writes are all right; with one token exchanged they are all wrong."""
    variant, items = claims.VARIANTS[name], parts.items["caption"]
    model = claims.build(parts, variant, seed=1)
    claims.train(model, variant, parts.items, steps=20, seed=1)
    end, written = model.config.end_of_chunk_token_id, []
    for query in range(items.num_train, len(items.features)):
        inputs = claims.assemble(items, [[query]], model, variant)
        prompt = 2 + len(items.prompts[query])  # with <s> and <image>
        images = {key: inputs[key] for key in ("image_features", "image_embeds") if key in inputs}
        row = model.generate(inputs["input_ids"][:, :prompt], **images, max_new_tokens=12, do_sample=False)[0, prompt:]
        row = row.tolist()
        written.append(row[: row.index(end)] if end in row else None)
    ended = [place for place, answer in enumerate(written) if answer is not None]
    share = len(ended) / len(written)
    answers = [*items.answers[: items.num_train], *(answer or [end] for answer in written)]
    right = claims.Items(items.features, items.prompts, answers, items.num_train)
    assert claims.exact_match(model, variant, right, shots=0) == share > 0
    wrong = [[(answer or [0])[0] + 1, *(answer or [0])[1:]] for answer in written]
    wrong = claims.Items(items.features, items.prompts, [*items.answers[: items.num_train], *wrong], items.num_train)
    assert claims.exact_match(model, variant, wrong, shots=0) == 0


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    sizes = ["--vision_steps", "2", "--language_steps", "2", "--train_images", "40", "--test_images", "6"]
    few = ["--steps", "2", "--seeds", "1", "--claims", "gating"]
    losses = []
    for processes in ("1", "2"):
        command = [sys.executable, str(CLAIMS / "flamingo.py"), *sizes, *few, "--processes", processes]
        subprocess.run([*command, "--output", str(tmp_path / processes)], check=True)
        runs = json.loads((tmp_path / processes / "results.json").read_text())["runs"]
        losses.append([run["training_loss"] for run in runs])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
