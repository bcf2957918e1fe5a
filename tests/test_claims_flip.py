"""`examples/claims/flip.py` runs, counts what it says, and its masking costs less."""

import importlib.util
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch


@pytest.fixture(scope="module")
def claims():
    """The script as a module; by its name the dataclasses in it find their types."""
    path = Path(__file__).resolve().parents[1] / "examples" / "claims" / "flip.py"
    spec = importlib.util.spec_from_file_location("claims_flip", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SMALL = ["--seconds", "0.1", "--train_images", "80", "--test_images", "50", "--width", "16", "--layers", "1"]


def test_every_ratio_is_trained_and_reported(claims, tmp_path):
    runs = claims.main([*SMALL, "--seeds", "2", "--batch_size", "8", "--output", str(tmp_path)])
    assert [(one["seed"], one["ratio"]) for one in runs] == [(s, r) for s in (0, 1) for r in (0.0, 0.5, 0.75)]
    for one in runs:
        assert one["updates"] >= 1 and one["images"] == 8 * one["updates"]
        assert one["curve"][-1][1] == one["recall"] and 0 <= one["recall"] <= 1
        assert one["recall_blind"] == pytest.approx(1 / 50)  # all black, all alike: a guess
    costs = json.loads((tmp_path / "results.json").read_text())["costs"]
    assert costs["0.0"]["kept_mb"] > 1.1 * costs["0.5"]["kept_mb"] > 1.1 * costs["0.75"]["kept_mb"]
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1
    assert len(ElementTree.parse(tmp_path / "curves.svg").findall(".//{*}polyline")) == 6


def test_the_last_part_is_unmasked(claims, monkeypatch):
    (args,) = claims.HfArgumentParser(claims.ScriptArguments).parse_args_into_dataclasses([*SMALL, "--tuning", "0.5"])
    tokenizer = claims.make_tokenizer()
    pairs = claims.read_pairs("train", 80, tokenizer, args)
    lengths, clock = [], iter(range(1000))
    monkeypatch.setattr(claims.time, "process_time", lambda: next(clock) * 0.01)

    def update(model, optimizer, rows):
        lengths.append(model(**rows).vision_model_output.last_hidden_state.shape[1])
        return 0.0

    monkeypatch.setattr(claims, "update", update)
    claims.run(0.75, 0, pairs, pairs, tokenizer, args)
    assert lengths == [1 + 9] * 5 + [1 + 36] * 5


def test_scenes_of_one_caption_are_right_answers_alike(claims):
    (args,) = claims.HfArgumentParser(claims.ScriptArguments).parse_args_into_dataclasses(SMALL)
    tokenizer = claims.make_tokenizer()
    pairs = claims.read_pairs("test", 60, tokenizer, args)
    captions = tokenizer.batch_decode(pairs.input_ids)
    same = [[first == second for second in captions] for first in captions]
    assert torch.equal(pairs.image_ids[:, None] == pairs.image_ids, torch.tensor(same))
    assert len(set(captions[:50])) == 50
