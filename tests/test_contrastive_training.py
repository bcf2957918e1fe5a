"""Contrastive training: two processes, one process and chunks of a batch have the same gradients."""

import json
import math
import subprocess
import sys
from pathlib import Path

import contrastive_parts as parts
import pytest
import torch
import transformers
from accelerate import debug_launcher
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_mmunify.losses import contrastive_loss
from hf_mmunify.training import ContrastiveTrainer, ContrastiveTrainingArguments, LogitScaleCallback


ROOT = Path(__file__).resolve().parents[1]


def features(model, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    image = model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    text = model.get_text_features(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    return tuple(nn.functional.normalize(side, dim=-1) for side in (image, text))


def by_hand(model, batches: list[dict]) -> dict[str, torch.Tensor]:
    """Gradients of one loss over all pairs, whose features are computed batch after batch, with their graphs."""
    model.train()
    images, texts = (torch.cat(side) for side in zip(*(features(model, batch) for batch in batches)))
    ids = torch.cat([batch["image_ids"] for batch in batches]) if "image_ids" in batches[0] else None
    targets = torch.eye(len(images), dtype=images.dtype) if ids is None else (ids[:, None] == ids[None]).to(images)
    logits = images @ texts.T * model.logit_scale.exp()
    each = [
        -(side.log_softmax(1) * targets / targets.sum(1, keepdim=True)).sum(1).mean() for side in (logits, logits.T)
    ]
    loss = sum(each) / 2
    loss.backward()
    return {"loss": loss.detach()} | {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("ids", [False, True])
def test_a_step_has_the_gradients_of_the_published_loss(tmp_path, ids):
    rows = parts.pairs(ids=ids)
    expected = by_hand(parts.clip(), [parts.collate(rows)])
    got = parts.step(parts.clip(), rows, tmp_path)
    assert parts.distance(expected, got) < 1e-10
    assert float(got["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-4)
    if not ids:  # and those of transformers' own loss
        own = parts.clip()
        own(**parts.collate(rows)).loss.backward()
        assert parts.distance({name: value.grad for name, value in own.named_parameters()}, got) < 1e-10


@pytest.mark.parametrize("size", [1, 3, 8, 64])
@pytest.mark.parametrize("ids", [False, True])
def test_cached_gradients_are_those_of_the_whole_batch(tmp_path, size, ids):
    """Dropout is on: the reference computes the same chunks, but keeps all their graphs until the end."""
    rows = parts.pairs(ids=ids)
    chunks = [parts.collate(rows[start : start + size]) for start in range(0, 8, size)]
    reference, model = parts.clip(dropout=0.3), parts.clip(dropout=0.3)
    transformers.set_seed(7)
    expected = by_hand(reference, chunks)
    state = torch.get_rng_state()
    made = parts.trainer(model, rows, tmp_path, gradient_cache_chunk_size=size)
    made.current_gradient_accumulation_steps = 1
    transformers.set_seed(7)
    loss = made.training_step(model, parts.collate(rows))
    got = {"loss": loss} | {name: value.grad for name, value in model.named_parameters()}
    assert parts.distance(expected, got) < 1e-10
    assert float(loss) == pytest.approx(float(expected["loss"]), abs=1e-10)
    assert torch.equal(torch.get_rng_state(), state)  # random numbers go on as if it had been one pass
    assert parts.distance(expected, by_hand(parts.clip(dropout=0.3), chunks)) > 1e-2  # others would be noticed


def test_accumulated_batches_are_averaged(tmp_path):
    rows = parts.pairs(12, ids=False)
    halves = [by_hand(parts.clip(), [parts.collate(half)]) for half in (rows[:6], rows[6:])]
    expected = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    for settings in ({}, {"gradient_cache_chunk_size": 4}):
        got = parts.step(
            parts.clip(), rows, tmp_path, per_device_train_batch_size=6, gradient_accumulation_steps=2, **settings
        )
        assert parts.distance(expected, got) < 1e-10
        assert float(got["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-4)


def test_mixed_precision_reaches_both_passes(tmp_path):
    """Autocast remembers cast weights; those of the pass without a graph must not be used in the pass with one."""
    rows = parts.pairs(dtype=torch.float32)
    exact, whole, cached = (
        parts.step(parts.clip(dtype=torch.float32), rows, tmp_path, **settings)
        for settings in ({}, {"bf16": True}, {"bf16": True, "gradient_cache_chunk_size": 3})
    )
    assert parts.distance(whole, cached) < 1e-2
    assert 1e-5 < parts.distance(exact, whole) < 5e-2  # bfloat16 was in use


def _step_of_two(folder: str) -> None:
    """One of two processes, each with half of the pairs, several settings in turn."""
    for name, settings in SETTINGS.items():
        settings = {"per_device_train_batch_size": 4, "ddp_backend": "gloo", **settings}
        got = parts.step(parts.clip(), parts.pairs(), folder, **settings)
        assert torch.distributed.get_world_size() == 2
        if torch.distributed.get_rank() == 0:
            torch.save(got, Path(folder) / f"{name}.pt")


SETTINGS = {
    "full": {"contrastive_gather": "full"},
    "local": {"contrastive_gather": "local"},
    "cached": {"gradient_cache_chunk_size": 3},
    "cached_local": {"contrastive_gather": "local", "gradient_cache_chunk_size": 1},
    "unused": {"gradient_cache_chunk_size": 2, "ddp_find_unused_parameters": True},
    "accumulated": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_cache_chunk_size": 1,
    },
    "none": {"contrastive_gather": "none"},
}


def test_two_processes_are_one_process_with_the_whole_batch_are_chunks(tmp_path):
    debug_launcher(_step_of_two, args=(str(tmp_path),), num_processes=2)
    rows = parts.pairs()
    alone = parts.step(parts.clip(), rows, tmp_path)
    for name in ("full", "local", "cached", "cached_local", "unused"):
        got = torch.load(tmp_path / f"{name}.pt")
        assert parts.distance(alone, got) < 1e-10, name
        assert float(got["loss"]) == pytest.approx(float(alone["loss"]), abs=1e-4), name
    pieces = [parts.step(parts.clip(), piece, tmp_path) for piece in (rows[:4], rows[4:])]
    got = torch.load(tmp_path / "accumulated.pt")
    assert parts.distance({name: (pieces[0][name] + pieces[1][name]) / 2 for name in alone}, got) < 1e-10
    assert parts.distance(alone, torch.load(tmp_path / "none.pt")) > 1e-2  # fewer negatives are another objective


def test_a_lora_learns_the_same_from_chunks(tmp_path):
    def adapted():
        model = get_peft_model(parts.clip(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.add_(0.1 if "lora_B" in name else 0.0)
        return model

    whole = parts.step(adapted(), parts.pairs(), tmp_path)
    assert all("lora_" in name or name == "loss" for name in whole)
    assert parts.distance(whole, parts.step(adapted(), parts.pairs(), tmp_path, gradient_cache_chunk_size=3)) < 1e-10


def other_models() -> dict[str, transformers.PreTrainedModel]:
    bert = {**parts.TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    roberta = {**bert, "project_dim": 32, "pad_token_id": 0}
    vision = transformers.ViTConfig(**parts.VISION)
    return {
        "altclip": transformers.AltCLIPModel(
            transformers.AltCLIPConfig(vision_config=parts.VISION, text_config=roberta, projection_dim=16)
        ),
        "chinese_clip": transformers.ChineseCLIPModel(
            transformers.ChineseCLIPConfig(vision_config=parts.VISION, text_config=bert, projection_dim=16)
        ),
        "dual_encoder": transformers.VisionTextDualEncoderModel(
            transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
                vision, transformers.BertConfig(**bert), projection_dim=16
            )
        ),
    }


@pytest.mark.parametrize("name", ["altclip", "chinese_clip", "dual_encoder"])
def test_other_two_towers_train_likewise(tmp_path, name):
    transformers.set_seed(0)
    model = other_models()[name].double()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    own = model.train()(**parts.collate(parts.pairs(ids=False))).loss
    own.backward()
    expected = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    for settings in ({}, {"gradient_cache_chunk_size": 3}):
        model.load_state_dict(weights)
        model.zero_grad()
        got = parts.step(model, parts.pairs(ids=False), tmp_path, **settings)
        assert parts.distance(expected, got) < 1e-10


def test_evaluation_gives_loss_features_and_metrics(tmp_path):
    rows = parts.pairs()
    model = parts.clip(dropout=0.3)
    made = parts.trainer(model, rows, tmp_path, per_device_eval_batch_size=4, gradient_cache_chunk_size=3)
    model.eval()
    with torch.no_grad():
        batches = [parts.collate(rows[:4]), parts.collate(rows[4:])]
        sides = [features(model, batch) for batch in batches]
        losses = [
            contrastive_loss(*side, model.logit_scale.exp(), image_ids=batch["image_ids"])
            for side, batch in zip(sides, batches)
        ]
    assert made.evaluate()["eval_loss"] == pytest.approx(float(sum(losses)) / 2, abs=1e-6)
    images, texts = made.predict(rows).predictions
    assert abs(images - torch.cat([side[0] for side in sides]).numpy()).max() < 1e-10
    assert abs(texts - torch.cat([side[1] for side in sides]).numpy()).max() < 1e-10
    made.compute_metrics = lambda found: {"rows": len(found.predictions[0]), "ids": sorted(found.label_ids.tolist())}
    metrics = made.evaluate()
    assert metrics["eval_rows"] == 8 and metrics["eval_ids"] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_temperature_stays_in_bounds(tmp_path):
    model = parts.clip()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    made = parts.trainer(model, parts.pairs(), tmp_path, learning_rate=1e-6)
    made.add_callback(LogitScaleCallback(50.0))
    made.train()
    assert float(model.logit_scale.detach()) == pytest.approx(math.log(50.0), abs=1e-6)


class WithMatching(transformers.CLIPModel):
    """A model whose own loss has a second term."""

    def forward(self, return_loss=None, **inputs):
        outputs = super().forward(return_loss=return_loss, **inputs)
        outputs.loss = outputs.loss + outputs.logits_per_image.square().mean()
        return outputs


def siglip() -> transformers.SiglipModel:
    config = transformers.SiglipConfig(
        vision_config=parts.VISION, text_config=parts.TEXT | parts.SPECIAL | {"projection_size": 32}
    )
    return transformers.SiglipModel(config).double()


def test_models_whose_loss_is_another_are_refused(tmp_path):
    for model in (WithMatching(parts.clip().config).double(), siglip()):
        with pytest.raises(ValueError, match=r"is more or other than contrastive \(.*Train it with TaskTrainer"):
            parts.trainer(model, parts.pairs(), tmp_path).train()
    tower = transformers.ViTModel(transformers.ViTConfig(**parts.VISION))
    with pytest.raises(
        ValueError, match="ViTModel has no get_image_features, get_text_features, logit_scale: train it"
    ):
        parts.trainer(tower, parts.pairs(), tmp_path)


def test_settings_and_batches_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match='full, local or none, got "all"'):
        ContrastiveTrainingArguments(str(tmp_path), contrastive_gather="all")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ContrastiveTrainingArguments(str(tmp_path), gradient_cache_chunk_size=0)
    with pytest.raises(ValueError, match="ContrastiveTrainingArguments, got TrainingArguments"):
        ContrastiveTrainer(parts.clip(), transformers.TrainingArguments(str(tmp_path), use_cpu=True))
    rows = [{**row, "labels": torch.tensor(0)} for row in parts.pairs()]
    with pytest.raises(ValueError, match=r"Neither tower takes \['labels'\] of the batch: images take"):
        parts.trainer(parts.clip(), rows, tmp_path).train()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc, which Linux has")
def test_memory_does_not_grow_with_a_cached_batch():
    """Peak memory over what the process holds before, in fresh processes: the benchmark at its smallest."""
    command = [sys.executable, str(ROOT / "benchmarks" / "contrastive_memory.py"), "--tiny", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)  # a busy machine takes minutes
    assert result.returncode == 0, result.stderr[-2000:]
    found = {(row["cached"], row["batch"]): row["megabytes"] for row in json.loads(result.stdout.splitlines()[-1])}
    (small, large) = sorted({batch for cached, batch in found if cached})
    assert large == 16 * small
    growth = {cached: found[cached, large] - found[cached, small] for cached in (True, False)}
    assert growth[False] > 500  # megabytes
    assert growth[True] < 0.05 * growth[False]
