"""Adversarial steps against VILLA's algorithm written out, on one process and on two."""

from pathlib import Path

import contrastive_parts as parts
import pytest
import torch
import transformers
from accelerate import debug_launcher
from torch import nn

from hf_mmunify.training import AdversarialTrainer, AdversarialTrainingArguments


DRAW = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
SIZES = {"adversarial_text_step_size": 0.4, "adversarial_image_step_size": 0.7, "adversarial_kl_weight": 1.5}


def vilt() -> transformers.ViltForQuestionAnswering:
    transformers.set_seed(0)
    config = transformers.ViltConfig(**parts.VISION, **DRAW, vocab_size=64, max_image_length=-1, num_labels=5)
    return transformers.ViltForQuestionAnswering(config).double()


def questions(number: int = 4) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {
            "pixel_values": torch.randn(3, 16, 16, generator=draw).double(),
            "input_ids": torch.randint(3, 64, (7,), generator=draw),
            "attention_mask": (torch.arange(7) < 5 + row % 3).long(),
            "labels": torch.rand(5, generator=draw).double(),
        }
        for row in range(number)
    ]


def collate(rows: list) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def by_hand(model, batch, modality: str, norm: str = "l2", bound: float = 0.0, weight: float = 1.5) -> dict:
    """Gradients of the parameters after three steps, as the original computes them: one graph of the clean pass."""
    model.train()
    table = model.get_input_embeddings()
    words = table(batch["input_ids"]).detach()
    deltas = {"text": torch.zeros_like(words), "image": torch.zeros_like(batch["pixel_values"])}
    sizes = {"text": SIZES["adversarial_text_step_size"], "image": SIZES["adversarial_image_step_size"]}
    kinds = ["text", "image"] if modality in ("both", "alternate") else [modality]
    passes = [[kind] for kind in kinds] if modality == "alternate" else [kinds]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    clean = model(**inputs).logits
    for _ in range(3):
        deltas = {kind: delta.detach().requires_grad_() for kind, delta in deltas.items()}
        for changed in passes:
            text = deltas["text"] if "text" in changed else 0.0
            image = deltas["image"] if "image" in changed else 0.0
            handle = table.register_forward_hook(lambda module, args, out, text=text: out + text)
            logits = model(**{**inputs, "pixel_values": inputs["pixel_values"] + image}).logits
            handle.remove()
            loss = nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"]) * logits.shape[1]
            kl = sum(
                nn.functional.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")
                for p, q in ((clean, logits), (logits, clean))
            )
            ((loss + weight * kl) / (3 * len(passes))).backward(retain_graph=True)
        for kind in kinds:
            order = 2 if norm == "l2" else float("inf")
            gradient = deltas[kind].grad
            lengths = [row.norm(order) if norm == "l2" else row.abs().max() for row in gradient]
            delta = torch.stack([d + sizes[kind] * g / n for d, g, n in zip(deltas[kind].detach(), gradient, lengths)])
            if bound and norm == "l2":
                delta = torch.stack([d * min(1.0, bound / float(d.norm())) for d in delta])
            elif bound:
                delta = delta.clamp(-bound, bound)
            deltas[kind] = delta
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def step(model, rows, folder, trainer_class=AdversarialTrainer, **settings) -> dict[str, torch.Tensor]:
    """Gradients of one update, from how far the parameters moved at a rate of 1."""
    defaults = {
        "per_device_train_batch_size": len(rows),
        "max_steps": 1,
        "learning_rate": 1.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    args = AdversarialTrainingArguments(str(folder), **{**defaults, **SIZES, **settings})
    made = trainer_class(model, args, collate, train_dataset=rows, eval_dataset=rows)
    made.train()
    after = dict(made.accelerator.unwrap_model(made.model).named_parameters())
    return {name: before[name] - after[name].detach() for name in before}


@pytest.mark.parametrize("modality", ["text", "image", "both", "alternate"])
def test_three_steps_are_those_of_the_paper(tmp_path, modality):
    expected = by_hand(vilt(), collate(questions()), modality)
    got = step(vilt(), questions(), tmp_path, adversarial_modality=modality)
    assert parts.distance(expected, got) < 1e-10
    plain = vilt()
    plain(**collate(questions())).loss.backward()
    ordinary = {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}
    assert parts.distance(ordinary, got) > 1e-2


@pytest.mark.parametrize("norm, bound", [("l2", 0.5), ("linf", 0.0), ("linf", 0.5)])
def test_changes_are_measured_and_bounded(tmp_path, norm, bound):
    expected = by_hand(vilt(), collate(questions()), "both", norm, bound)
    settings = {"adversarial_norm": norm, "adversarial_max_norm": bound, "adversarial_modality": "both"}
    assert parts.distance(expected, step(vilt(), questions(), tmp_path, **settings)) < 1e-10


def test_one_step_is_ordinary_training(tmp_path):
    plain = vilt()
    plain(**collate(questions())).loss.backward()
    expected = {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}
    assert parts.distance(expected, step(vilt(), questions(), tmp_path, adversarial_steps=1)) < 1e-10


def test_micro_batches_are_averaged(tmp_path):
    expected = step(vilt(), questions(), tmp_path)
    got = step(vilt(), questions(), tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert parts.distance(expected, got) < 1e-10


def _step_of_two(folder: str) -> None:
    settings = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", "adversarial_modality": "alternate"}
    got = step(vilt(), questions(), folder, **settings)
    assert torch.distributed.get_world_size() == 2
    if torch.distributed.get_rank() == 0:
        torch.save(got, Path(folder) / "together.pt")


def test_two_processes_are_one(tmp_path):
    """The model's loss ignores the number of labels that it is given: `TaskTrainer`'s guard is needed as well."""
    debug_launcher(_step_of_two, args=(str(tmp_path),), num_processes=2)
    alone = step(vilt(), questions(), tmp_path, adversarial_modality="alternate")
    assert parts.distance(alone, torch.load(tmp_path / "together.pt")) < 1e-10


def test_a_language_model_divides_by_its_tokens(tmp_path):
    """A loss over the tokens of all micro-batches, which `Trainer` does not divide by their number."""
    transformers.set_seed(0)
    settings = {**parts.TEXT, **parts.SPECIAL, "initializer_range": 0.3}
    config = transformers.LlamaConfig(**settings)
    model = transformers.LlamaForCausalLM(config).double()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    draw = torch.Generator().manual_seed(1)
    rows = [{"input_ids": torch.randint(3, 64, (7,), generator=draw)} for _ in range(4)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    whole = step(model, rows, tmp_path)
    model.load_state_dict(weights)
    pieces = step(model, rows, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert parts.distance(whole, pieces) < 1e-10


def test_what_cannot_be_changed_is_said(tmp_path):
    images = [{"pixel_values": torch.randn(3, 16, 16), "labels": torch.tensor(0)}]
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**parts.VISION))
    with pytest.raises(ValueError, match="ViTPatchEmbeddings, not a table of words: name their path"):
        step(vit, images, tmp_path)
    step(vit, images, tmp_path, adversarial_modality="image")
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**parts.TEXT))
    texts = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in questions()]
    with pytest.raises(ValueError, match=r"The batch has none of \['pixel_values'.* to change, only \['input_ids'"):
        step(bert, texts, tmp_path, adversarial_modality="image")
    with pytest.raises(ValueError, match="not asked in a forward pass"):
        step(vilt(), questions(), tmp_path, adversarial_embeddings="vilt.encoder.layer")  # only its members are
    for settings, message in (
        ({"adversarial_steps": 0}, "at least 1, got 0"),
        ({"adversarial_modality": "audio"}, 'text, image, both, alternate, got "audio"'),
        ({"adversarial_norm": "l1"}, 'l2 or linf, got "l1"'),
    ):
        with pytest.raises(ValueError, match=message):
            AdversarialTrainingArguments(str(tmp_path), **settings)
