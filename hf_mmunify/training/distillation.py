"""Learning from a teacher: another model's predictions beside the labels, or a momentum copy's as training goes on.

Papers: Distilling the Knowledge in a Neural Network (Hinton et al., 2015), section 2; Align before Fuse (Li et al.,
2021), section 3.3 and salesforce/ALBEF@b9727e4 Pretrain.py, where the weight of the momentum teacher rises over the
first epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..losses import knowledge_distillation_loss
from .loss_scaling import TaskTrainer, TaskTrainingArguments


@dataclass
class DistillationTrainingArguments(TaskTrainingArguments):
    """[`TaskTrainingArguments`] of a [`DistillationTrainer`].

    Args:
        distillation_weight (`float`, *optional*, defaults to 0.5):
            Share of the teacher in the loss; the labels have the rest. With 1 no labels count.
        distillation_temperature (`float`, *optional*, defaults to 2.0):
            What the logits of both are divided by.
        distillation_outputs (`list[str]`, *optional*, defaults to `["logits"]`):
            The outputs that are compared, classes last: `logits_per_image logits_per_text` for two towers.
    """

    distillation_weight: float = field(default=0.5, metadata={"help": "Share of the teacher in the loss."})
    distillation_temperature: float = field(default=2.0, metadata={"help": "What logits are divided by."})
    distillation_outputs: list[str] = field(
        default_factory=lambda: ["logits"], metadata={"help": "The outputs that are compared."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"distillation_weight is a share from 0 to 1, got {self.distillation_weight}.")


class DistillationTrainer(TaskTrainer):
    """`Trainer` of a student that learns from labels and from a teacher's predictions.

    The teacher gets the same batches, in evaluation mode and without gradients. Predictions are compared over the
    tokens that `attention_mask` shows, where they are as many as the positions. Evaluation is the student's own loss.

    Args:
        args:
            As of `Trainer`, with [`DistillationTrainingArguments`].
        teacher (`nn.Module`):
            Any model that takes the same batches and returns the same outputs, for as many classes. It is moved to
            the device of the run; each process has a whole one.
        kwargs:
            As of [`TaskTrainer`].

    Raises:
        ValueError: an output that is to be compared is missing, or has another shape.
    """

    def __init__(self, *args, teacher: nn.Module, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, DistillationTrainingArguments):
            raise ValueError(f"args are DistillationTrainingArguments, got {type(self.args).__name__}.")
        self.teacher = teacher.to(self.args.device).eval().requires_grad_(False)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The weighted loss of labels and teacher of a micro-batch; while evaluating that of the labels."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            with torch.no_grad(), self.accelerator.autocast():
                taught = self.teacher(**inputs)
            term = distillation_term(
                outputs, taught, inputs, self.args.distillation_outputs, self.args.distillation_temperature
            )
            if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
                # A loss over all tokens of the update is not divided by its micro-batches, this mean is
                term = term / self.current_gradient_accumulation_steps
            weight = self.args.distillation_weight
            loss = (1 - weight) * loss + weight * term
        return (loss, outputs) if return_outputs else loss


def distillation_term(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    inputs: Mapping[str, Any],
    names: list[str],
    temperature: float,
) -> torch.Tensor:
    """How far the named outputs of a student are from its teacher's, a scalar: the mean over the names.

    Args:
        student (`Mapping`), teacher (`Mapping`): What the two returned, `[..., classes]` each.
        inputs (`Mapping`): The batch; its `attention_mask` says which positions count.
        names (`list[str]`): The outputs that are compared.
        temperature (`float`): What both are divided by.
    """
    terms = []
    for name in names:
        both = [outputs.get(name) for outputs in (student, teacher)]
        if any(each is None for each in both):
            who = "student" if both[0] is None else "teacher"
            found = list(student if both[0] is None else teacher)
            raise ValueError(
                f"The {who} returns no {name!r}, only {found}: choose among them with distillation_outputs."
            )
        if both[0].shape != both[1].shape:
            raise ValueError(
                f"Student and teacher disagree on the shape of {name!r}, {tuple(both[0].shape)} and "
                f"{tuple(both[1].shape)}: they need the same classes, tokenizer and image size."
            )
        counted = real_tokens(inputs, both[0])
        if counted is not None:
            both = [each[counted] for each in both]  # [K, C]
        terms.append(knowledge_distillation_loss(*both, temperature))
    return torch.stack(terms).mean()


def real_tokens(inputs: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor | None:
    """Which positions of logits `[B, T, C]` are tokens and no padding, `[B, T]`; `None` for other logits."""
    mask = inputs.get("attention_mask")
    return mask.bool() if logits.dim() == 3 and mask is not None and mask.shape == logits.shape[:2] else None


class AlphaRampCallback(TrainerCallback):
    """Lets the weight of a momentum teacher rise from 0 to `config.alpha`, step by step.

    A model of momentum distillation (ALBEF, BLIP) reads `config.alpha` in every forward pass. Checkpoints keep the
    full value.

    Args:
        steps (`int`, *optional*): Updates until the full value; by default those of the first epoch, as published.
    """

    def __init__(self, steps: int | None = None):
        self.steps = steps
        self.alpha: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        if "alpha" not in model.config.to_dict():
            raise ValueError(f"The config of {type(model).__name__} has no alpha: it has no momentum teacher.")
        self.alpha = model.config.alpha

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        steps = self.steps or state.max_steps / (state.num_train_epochs or args.num_train_epochs)
        model.config.alpha = self.alpha * min(1.0, state.global_step / max(1.0, steps))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        model.config.alpha = self.alpha


__all__ = ["AlphaRampCallback", "DistillationTrainer", "DistillationTrainingArguments"]
