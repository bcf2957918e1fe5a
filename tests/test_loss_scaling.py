"""`Trainer`'s loss on several processes: no model is trained with steps of the wrong size.

`Trainer` multiplies the loss of a model that takes keyword arguments by the number of processes, because it believes
that the model divided it by `num_items_in_batch`.
"""

from pathlib import Path

import contrastive_parts as parts
import pytest
import torch
import transformers
from accelerate import debug_launcher
from tiny import TINY
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_mmunify.registry import ARCHITECTURES
from hf_mmunify.training import TaskTrainer, guard_loss_scaling, uses_num_items_in_batch


VISION = {**parts.VISION, "initializer_range": 0.2}  # BLIP's own default of 1e-10 makes it blind
TEXT = {**parts.TEXT, **parts.SPECIAL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DRAW = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def native(name: str) -> tuple[transformers.PreTrainedModel, dict[str, torch.Tensor]]:
    """A model of transformers with labels for four rows, each with as many tokens."""
    transformers.set_seed(0)
    ids = torch.randint(3, 64, (4, 7))
    image = torch.randn(4, 3, 16, 16)
    both = {"pixel_values": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "vit":
        config = transformers.ViTConfig(**VISION, num_labels=3)
        return transformers.ViTForImageClassification(config), {"pixel_values": image, "labels": torch.arange(4) % 3}
    if name == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))
        return model, {"input_ids": ids, "labels": ids.masked_fill(ids % 2 == 0, -100)}
    if name == "vilt":
        config = transformers.ViltConfig(**VISION, **DRAW, vocab_size=64, max_image_length=-1, num_labels=5)
        return transformers.ViltForQuestionAnswering(config), {**both, "labels": torch.rand(4, 5)}
    config = transformers.BlipConfig(
        vision_config=VISION, text_config=TEXT | {"encoder_hidden_size": 32}, projection_dim=16
    )
    if name == "blip_vqa":
        return transformers.BlipForQuestionAnswering(config), {**both, "labels": torch.randint(3, 64, (4, 5))}
    return transformers.BlipForConditionalGeneration(config), {**both, "labels": ids}


@pytest.mark.parametrize("name, is_used", [("vit", True), ("bert", False), ("vilt", False), ("blip_caption", False)])
def test_the_question_is_answered_for_native_models(name, is_used):
    model, batch = native(name)
    model.train()
    model.get_submodule(next(path for path, _ in model.named_modules() if path)).eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert uses_num_items_in_batch(model, batch) is is_used
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(torch.get_rng_state(), state)
    assert guard_loss_scaling(model, batch) is model and model.accepts_loss_kwargs is is_used


def test_a_loss_of_zero_tells_nothing():
    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, labels, **kwargs):
            return {"loss": self.weight.sum()}

    assert uses_num_items_in_batch(Zero(), {"labels": torch.ones(2)}) is None


def moved(model, batch, trainer_class, folder, **settings) -> dict[str, torch.Tensor]:
    """How one step of gradient descent at a rate of 1 moves the weights."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    args = TrainingArguments(
        str(folder),
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **settings,
    )
    rows = [{key: value[row] for key, value in batch.items()} for row in range(4)]
    made = trainer_class(model, args, train_dataset=rows)
    made.train()
    after = dict(made.accelerator.unwrap_model(made.model).named_parameters())
    return {name: after[name].detach() - before[name] for name in before}


NATIVE = ("vit", "vilt", "blip_caption")


def _move_on_two(folder: str) -> None:
    for name in NATIVE:
        for trainer_class in (Trainer, TaskTrainer):
            settings = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", "ddp_find_unused_parameters": True}
            got = moved(*native(name), trainer_class, folder, **settings)
            assert torch.distributed.get_world_size() == 2
            if torch.distributed.get_rank() == 0:
                torch.save(got, Path(folder) / f"{name}-{trainer_class.__name__}.pt")


def ratio(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Length of all movements of one, as a share of that of the other."""
    lengths = [torch.cat([value.flatten() for value in each.values()]).norm() for each in (one, other)]
    return float(lengths[0] / lengths[1])


def test_native_models_move_on_two_processes_as_on_one(tmp_path):
    debug_launcher(_move_on_two, args=(str(tmp_path),), num_processes=2)
    for name in NATIVE:
        alone = moved(*native(name), Trainer, tmp_path, per_device_train_batch_size=4)
        guarded = torch.load(tmp_path / f"{name}-TaskTrainer.pt")
        assert parts.distance(alone, guarded) < 1e-5, name
        plain = torch.load(tmp_path / f"{name}-Trainer.pt")
        assert ratio(plain, alone) == pytest.approx(1.0 if name == "vit" else 2.0, rel=1e-4), name


@pytest.mark.parametrize("name", NATIVE)
def test_native_models_move_by_micro_batches_as_by_a_batch(tmp_path, name):
    alone = moved(*native(name), Trainer, tmp_path, per_device_train_batch_size=4)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert parts.distance(alone, moved(*native(name), TaskTrainer, tmp_path, **settings)) < 1e-5
    wrong = moved(*native(name), Trainer, tmp_path, **settings)
    assert ratio(wrong, alone) == pytest.approx(1.0 if name == "vit" else 4.0, rel=1e-4)


def registered() -> list[tuple[str, str]]:
    return [
        (model_type, auto_name)
        for model_type, row in ARCHITECTURES.items()
        for auto_name in row
        if auto_name.startswith("AutoModel")
        and TINY[model_type].labels(auto_name, TINY[model_type].batch(0, auto_name))
    ]


@pytest.mark.parametrize("model_type, auto_name", registered(), ids="-".join)
def test_registered_models_say_the_truth_about_their_loss(model_type, auto_name):
    """`accepts_loss_kwargs = False`, or the loss is really divided by the number that `Trainer` counts."""
    model = TINY[model_type].model(auto_name)
    if not getattr(model, "accepts_loss_kwargs", True):
        return
    batch = TINY[model_type].training_batch(auto_name)
    assert uses_num_items_in_batch(model, batch), (
        f"{type(model).__name__} takes num_items_in_batch, and its loss is not divided by it: Trainer would multiply "
        "the loss by the number of processes. Set `accepts_loss_kwargs = False` on the class."
    )
