"""Teachers, momentum teachers' weight, and mixed images: each against an independent computation."""

import contrastive_parts as parts
import pytest
import torch
import transformers
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_mmunify.training import (
    AlphaRampCallback,
    DistillationTrainer,
    DistillationTrainingArguments,
    MixingCollator,
    soft_target_loss,
)


SETTINGS = {
    "per_device_train_batch_size": 4,
    "max_steps": 1,
    "learning_rate": 1.0,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
    "remove_unused_columns": False,
    "save_strategy": "no",
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}


def vit(seed: int = 0, **changes) -> transformers.ViTForImageClassification:
    transformers.set_seed(seed)
    config = {**parts.VISION, "num_labels": 3, "initializer_range": 0.3, **changes}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**config)).double()


def pictures(number: int = 4) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {"pixel_values": torch.randn(3, 16, 16, generator=draw).double(), "labels": torch.tensor(row % 3)}
        for row in range(number)
    ]


def collate(rows: list) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def gradients(trainer_class, model, rows, folder, collator=collate, **settings) -> dict[str, torch.Tensor]:
    """From how far one update at a rate of 1 moved each parameter."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    extra = {name: settings.pop(name) for name in ("teacher", "compute_loss_func") if name in settings}
    arguments = DistillationTrainingArguments if trainer_class is DistillationTrainer else TrainingArguments
    args = arguments(str(folder), **{**SETTINGS, **settings})
    trainer_class(model, args, collator, train_dataset=rows, **extra).train()
    return {name: before[name] - value.detach() for name, value in model.named_parameters()}


# Teachers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight, temperature", [(0.5, 2.0), (1.0, 1.0), (0.0, 3.0)])
def test_a_student_learns_from_labels_and_teacher(tmp_path, weight, temperature):
    batch, student, teacher = collate(pictures()), vit(), vit(seed=5, num_hidden_layers=3)
    teacher.config.hidden_dropout_prob = 0.5
    logits = student.train()(batch["pixel_values"]).logits
    with torch.no_grad():
        taught = (teacher.eval()(batch["pixel_values"]).logits / temperature).softmax(1)
    soft = nn.functional.kl_div((logits / temperature).log_softmax(1), taught, reduction="batchmean")
    loss = (1 - weight) * nn.functional.cross_entropy(logits, batch["labels"]) + weight * temperature**2 * soft
    loss.backward()
    expected = {name: value.grad for name, value in student.named_parameters() if value.grad is not None}
    settings = {"distillation_weight": weight, "distillation_temperature": temperature, "teacher": teacher.train()}
    got = gradients(DistillationTrainer, vit(), pictures(), tmp_path, **settings)
    assert parts.distance(expected, got) < 1e-6 if weight == 1.0 else parts.distance(expected, got) < 1e-10
    assert not any(value.requires_grad or value.grad is not None for value in teacher.parameters())
    assert not teacher.training
    micro = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, **settings}
    pieces = gradients(DistillationTrainer, vit(), pictures(), tmp_path, **micro)
    assert parts.distance(got, pieces) < 1e-6


def test_padding_is_not_taught(tmp_path):
    """Tokens that `attention_mask` hides have no part in the divergence."""
    config = transformers.LlamaConfig(**parts.TEXT, **parts.SPECIAL, initializer_range=0.3)
    models = []
    for seed in (0, 1):
        transformers.set_seed(seed)
        models.append(transformers.LlamaForCausalLM(config).double())
    ids = torch.randint(3, 64, (2, 7))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    one, other = (model.eval()(**batch).logits.log_softmax(-1) for model in models)
    each = (other.exp() * (other - one)).sum(-1)
    expected = float((each * mask).sum() / mask.sum())
    args = DistillationTrainingArguments(
        str(tmp_path), use_cpu=True, distillation_weight=1.0, distillation_temperature=1.0
    )
    made = DistillationTrainer(models[0], args, teacher=models[1])
    models[0].train()
    made.current_gradient_accumulation_steps = 1
    labels = ids.masked_fill(mask == 0, -100)
    assert float(made.compute_loss(models[0], {**batch, "labels": labels}).detach()) == pytest.approx(expected)
    models[0].eval()
    own = models[0](**batch, labels=labels).loss
    assert float(made.compute_loss(models[0], {**batch, "labels": labels}).detach()) == pytest.approx(float(own))


def test_two_towers_learn_from_two_towers(tmp_path):
    args = DistillationTrainingArguments(
        str(tmp_path), use_cpu=True, distillation_outputs=["logits_per_image", "logits_per_text"]
    )
    student, teacher = parts.clip(), parts.clip()
    with torch.no_grad():
        teacher.visual_projection.weight.mul_(-1.0)
    made = DistillationTrainer(student.train(), args, teacher=teacher)
    batch = parts.collate(parts.pairs(ids=False))
    loss = made.compute_loss(student, batch)
    own, taught = student(**batch), teacher(**batch)
    terms = [
        4 * nn.functional.kl_div((a / 2).log_softmax(1), (b / 2).softmax(1), reduction="batchmean")
        for a, b in ((own[name], taught[name]) for name in args.distillation_outputs)
    ]
    assert float(loss.detach()) == pytest.approx(float((own.loss + sum(terms) / 2).detach()) / 2)


def test_teachers_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"The student returns no 'scores', only \['loss', 'logits'\]"):
        gradients(DistillationTrainer, vit(), pictures(), tmp_path, teacher=vit(), distillation_outputs=["scores"])
    rows = [{"pixel_values": row["pixel_values"], "labels": row["labels"]} for row in pictures()]
    with pytest.raises(ValueError, match=r"'logits', \(4, 3\) and \(4, 5\): they need the same classes"):
        gradients(DistillationTrainer, vit(), rows, tmp_path, teacher=vit(num_labels=5))
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        DistillationTrainingArguments(str(tmp_path), distillation_weight=2.0)


class Momentum(nn.Module):
    """Notes the weight of its teacher in every step."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.config = transformers.PreTrainedConfig()
        self.config.alpha = 0.4
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []

    def forward(self, value):
        self.seen.append(self.config.alpha)
        return {"loss": (self.weight - value).square().mean()}


@pytest.mark.parametrize("steps, ramp", [(None, 4), (2, 2)])
def test_the_weight_of_a_momentum_teacher_rises(tmp_path, steps, ramp):
    """By default over the first of two epochs, of four updates each; between steps the config has the full value."""
    model, rows = Momentum(), [{"value": torch.ones(1)}] * 16
    args = TrainingArguments(str(tmp_path), **{**SETTINGS, "max_steps": -1, "num_train_epochs": 2})
    made = Trainer(model, args, train_dataset=rows, callbacks=[AlphaRampCallback(steps)])
    kept = []

    class Looks(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept.append(model.config.alpha)

    made.add_callback(Looks())
    made.train()
    assert model.seen == pytest.approx([0.4 * min(1.0, step / ramp) for step in range(8)])
    assert kept == [0.4] * 8
    del model.config.alpha
    with pytest.raises(ValueError, match="The config of Momentum has no alpha"):
        made.train()


# Mixed images ------------------------------------------------------------------------------------------------------


def flat_rows(number: int = 6, shape: tuple[int, ...] = (3, 10, 8)) -> list[dict[str, torch.Tensor]]:
    """Image k has the value k everywhere, and the label k."""
    return [{"pixel_values": torch.full(shape, float(k)), "labels": torch.tensor(k)} for k in range(number)]


@pytest.mark.parametrize("shape", [(3, 10, 8), (2, 3, 10, 8)])
def test_mixup_mixes_images_as_labels(shape):
    collator = MixingCollator(collate, num_labels=6, mixup_alpha=1.0, cutmix_alpha=0.0)
    torch.manual_seed(0)
    batch = collator(flat_rows(shape=shape))
    value = batch["pixel_values"].flatten(1)
    assert torch.allclose(value, value[:, :1].expand_as(value))
    assert torch.allclose(batch["labels"].sum(1), torch.ones(6))
    assert torch.allclose(batch["labels"] @ torch.arange(6.0), value[:, 0], atol=1e-5)
    assert not torch.equal(value[:, 0], torch.arange(6.0))


def test_cutmix_shares_labels_as_it_shares_the_area():
    collator = MixingCollator(collate, num_labels=6, mixup_alpha=0.0, cutmix_alpha=1.0)
    torch.manual_seed(0)
    sizes = set()
    for _ in range(20):
        batch = collator(flat_rows())
        for row, image in enumerate(batch["pixel_values"]):
            values, counts = image.unique(return_counts=True)
            assert row in values.tolist() or len(values) == 1
            expected = torch.zeros(6)
            expected[values.long()] = counts / image.numel()
            assert torch.allclose(batch["labels"][row], expected, atol=1e-6)
            if len(values) == 2:
                where = (image[0] != row).nonzero()
                height, width = (where.amax(0) - where.amin(0) + 1).tolist()
                assert height * width == len(where)  # a rectangle
                sizes.add((height, width))
    assert len(sizes) > 5


def test_the_draws_are_beta_and_both_ways_occur():
    collator = MixingCollator(collate, num_labels=2, mixup_alpha=0.4, cutmix_alpha=1.0)
    torch.manual_seed(0)
    ratios, cut = [], 0
    for _ in range(400):
        batch = collator(flat_rows(2))
        if len(batch["pixel_values"][0].unique()) == 2:
            cut += 1
        elif not torch.equal(batch["labels"], torch.eye(2)):
            ratios.append(float(batch["labels"][0, 0]))
    assert 0.3 < cut / 200 < 1.2
    expected = torch.distributions.Beta(0.4, 0.4)
    assert torch.tensor(ratios).mean() == pytest.approx(0.5, abs=0.08)
    assert torch.tensor(ratios).var() == pytest.approx(float(expected.variance), abs=0.03)


def test_only_answers_to_the_same_question_are_mixed():
    """Soft scores of VQA: 0 and 1 ask the same, as do 2 and 4; 3 and 5 ask alone."""
    questions = torch.tensor([7, 7, 8, 5, 8, 6])
    scores = torch.rand(6, 4)
    rows = [
        {"pixel_values": torch.full((3, 4, 4), float(k)), "input_ids": questions[k][None], "labels": scores[k]}
        for k in range(6)
    ]
    torch.manual_seed(0)
    batch = MixingCollator(collate, mixup_alpha=5.0, cutmix_alpha=0.0)(rows)
    value = batch["pixel_values"][:, 0, 0, 0]
    for alone in (3, 5):
        assert value[alone] == alone and torch.allclose(batch["labels"][alone], scores[alone])
    for one, other in ((0, 1), (1, 0), (2, 4), (4, 2)):
        ratio = (value[one] - other) / (one - other)
        assert 0 < ratio < 1
        assert torch.allclose(batch["labels"][one], ratio * scores[one] + (1 - ratio) * scores[other], atol=1e-5)


def test_unmixed_batches_and_smoothed_labels():
    collator = MixingCollator(collate, num_labels=6, probability=0.0, label_smoothing=0.3)
    batch = collator(flat_rows())
    assert torch.equal(batch["pixel_values"][:, 0, 0, 0], torch.arange(6.0))
    assert torch.allclose(batch["labels"], torch.eye(6) * 0.7 + 0.05)
    with pytest.raises(ValueError, match="Nothing would be mixed"):
        MixingCollator(collate, mixup_alpha=0.0, cutmix_alpha=0.0)
    with pytest.raises(ValueError, match="give the collator num_labels"):
        MixingCollator(collate)(flat_rows())
    with pytest.raises(ValueError, match=r"no \['labels'\], only \['pixel_values'\]"):
        MixingCollator(collate)([{"pixel_values": torch.zeros(3, 4, 4)}])


def test_a_classifier_learns_soft_targets(tmp_path):
    """By micro-batches as by a batch, with the gradient of the cross entropy against probabilities."""
    rows = [{**row, "labels": torch.eye(3)[row["labels"]].double() * 0.4 + 0.2} for row in pictures()]
    model = vit().train()
    batch = collate(rows)
    logits = model(batch["pixel_values"]).logits
    (-(batch["labels"] * logits.log_softmax(1)).sum(1).mean()).backward()
    expected = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    for settings in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
        got = gradients(Trainer, vit(), rows, tmp_path, compute_loss_func=soft_target_loss, **settings)
        assert parts.distance(expected, got) < 1e-6
