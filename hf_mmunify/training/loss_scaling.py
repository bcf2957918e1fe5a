"""`Trainer` with a loss of the right size for every model, and the options that all tasks share.

`Trainer` counts the labels of an update, hands the number to every model whose `forward` takes keyword arguments, and
then believes that the loss was divided by it: it multiplies the loss by the number of processes and does not divide
it by the accumulated micro-batches (transformers 5.23, `Trainer.compute_loss` and `training_step`). A model that takes
the number and ignores it is trained with steps of the wrong size, and nothing says so. A model of this package either
uses the number or has `accepts_loss_kwargs = False`; of any other model, `TaskTrainer` finds out with the first batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from .layerwise import freeze_layers, layer_decay_parameter_groups
from .multi_task import MultiTaskWeights
from .patch_dropout import PatchDropout


WEIGHTS_FILE = "multi_task_weights.pt"


def uses_num_items_in_batch(model: nn.Module, batch: dict[str, Any]) -> bool | None:
    """Whether the loss of a model is divided by the `num_items_in_batch` that `Trainer` hands to it.

    The batch passes twice, in evaluation mode and with the same random numbers: divided by two items, the whole loss
    must be half of what it is divided by one.

    Args:
        model (`nn.Module`): Any model, also one in a parallel wrapper; afterwards it is in the mode it was in.
        batch (`dict`): What `forward` takes, with `labels`, on the device of the model.

    Returns:
        `bool` or `None`: `None` where the loss is zero, which tells nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    losses = []
    model.eval()
    for module, mode in modes:
        if type(module).__module__.startswith("bitsandbytes."):
            module.training = mode  # in evaluation mode it packs its weights for the CPU, and cannot train afterwards
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
            for number in (1.0, 2.0):
                torch.manual_seed(0)
                outputs = model(**batch, num_items_in_batch=torch.tensor(number, device=device))
                losses.append((outputs["loss"] if isinstance(outputs, dict) else outputs[0]).float().mean())
    finally:
        for module, mode in modes:
            module.training = mode
    if not losses[0]:
        return None
    return bool(torch.isclose(losses[0], 2 * losses[1], rtol=1e-2))


def guard_loss_scaling(model: nn.Module, batch: dict[str, Any]) -> nn.Module:
    """Tell `Trainer` the truth about a model's loss: sets `accepts_loss_kwargs`, unless the model has it already.

    For a plain `Trainer`, before it is made; `TaskTrainer` needs no telling.

    Args:
        model (`nn.Module`): Any model, of transformers or elsewhere; not in a parallel wrapper yet.
        batch (`dict`): A batch with `labels`, on the device of the model.

    Returns:
        `nn.Module`: the same model.
    """
    if not hasattr(model, "accepts_loss_kwargs"):
        model.accepts_loss_kwargs = bool(uses_num_items_in_batch(model, batch))
    return model


@dataclass
class TaskTrainingArguments(TrainingArguments):
    """`TrainingArguments`, with what fine-tuning for a task adds; nothing changes by default.

    Args:
        layer_decay (`float`, *optional*):
            Factor of the learning rate from each layer of a tower to the one below it
            (`layer_decay_parameter_groups`); usual are 0.65 to 0.9.
        frozen_layers (`int`, *optional*):
            The embeddings and this many layers of every tower are not trained (`freeze_layers`).
        patch_dropout (`float`, *optional*, defaults to 0.0):
            Share of the patches that is left out of every image while training (`PatchDropout`).
    """

    layer_decay: float | None = field(
        default=None, metadata={"help": "Factor of the learning rate from each layer to the one below it."}
    )
    frozen_layers: int | None = field(
        default=None, metadata={"help": "The embeddings and this many layers of every tower are not trained."}
    )
    patch_dropout: float = field(
        default=0.0, metadata={"help": "Share of the patches that is left out of every image while training."}
    )


class TaskTrainer(Trainer):
    """`Trainer` for any model and task: its loss has the right size on any number of processes and micro-batches.

    Args:
        args:
            As of `Trainer`. With [`TaskTrainingArguments`] also layer-wise rates, freezing and patch dropout.
        multi_task_weights ([`MultiTaskWeights`], *optional*):
            How the losses of a model with several (`loss_itc`, `loss_itm`, ...) become one, in the place of its own
            `loss`. Learned weights are trained with the model and saved in each checkpoint.
        kwargs:
            As of `Trainer`.
    """

    def __init__(self, *args, multi_task_weights: MultiTaskWeights | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        # A model that says nothing is believed by `Trainer` to use the number; here it is asked with the first batch
        self._asks_for_scaling = self.model_accepts_loss_kwargs and not hasattr(model, "accepts_loss_kwargs")
        self.multi_task_weights = multi_task_weights
        if multi_task_weights is not None:
            multi_task_weights.to(self.args.device)
            self.model_accepts_loss_kwargs = self._asks_for_scaling = False
        if isinstance(self.args, TaskTrainingArguments):
            if self.args.frozen_layers is not None:
                freeze_layers(model, self.args.frozen_layers)
            if self.args.patch_dropout:
                PatchDropout(model, self.args.patch_dropout)

    def _ask_for_scaling(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Find out with a batch whether the loss uses `num_items_in_batch`; all processes together."""
        if not self._asks_for_scaling or "labels" not in batch or self.compute_loss_func is not None:
            return
        answer = uses_num_items_in_batch(model, self._prepare_inputs(batch))
        code = torch.tensor([-1 if answer is None else int(answer)], device=self.args.device)
        code = int(self.accelerator.gather(code).max())
        if code >= 0:
            self.model_accepts_loss_kwargs, self._asks_for_scaling = bool(code), False

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The micro-batches of an update, and their number of labels, for a model that divides its loss by it."""
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._ask_for_scaling(self.model_wrapped, batches[0])
        return batches, number if self.model_accepts_loss_kwargs or self.compute_loss_func is not None else None

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> tuple:
        self._ask_for_scaling(model, inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss of a micro-batch; with `multi_task_weights`, their sum of the model's losses."""
        if self.multi_task_weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = self.multi_task_weights(outputs)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As of `Trainer`; with layer-wise learning rates and with the learned weights, where there are any."""
        trained = self.model if model is None else model
        is_new = self.optimizer is None
        decay = self.args.layer_decay if isinstance(self.args, TaskTrainingArguments) else None
        if is_new and decay is not None:
            if self.optimizer_cls_and_kwargs is not None:
                raise ValueError("Give either layer_decay or optimizer_cls_and_kwargs: both name the groups.")
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            groups = layer_decay_parameter_groups(trained, self.args.learning_rate, decay, self.args.weight_decay)
            self.optimizer_cls_and_kwargs = (optimizer, {**settings, "params": groups})
            super().create_optimizer(model)
            self.optimizer_cls_and_kwargs = None
        else:
            super().create_optimizer(model)
        if is_new and self.multi_task_weights is not None and self.multi_task_weights.is_learned:
            self.optimizer.add_param_group({"params": list(self.multi_task_weights.parameters()), "weight_decay": 0.0})
            # `Trainer` zeroes the gradients of its model, and of nothing else
            self.optimizer.register_step_post_hook(lambda *_: self.multi_task_weights.zero_grad())
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and self.multi_task_weights is not None and self.multi_task_weights.is_learned:
            folder = Path(self.args.output_dir if output_dir is None else output_dir)
            torch.save(self.multi_task_weights.state_dict(), folder / WEIGHTS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.multi_task_weights is not None and self.multi_task_weights.is_learned:
            state = torch.load(Path(resume_from_checkpoint) / WEIGHTS_FILE, map_location="cpu", weights_only=True)
            self.multi_task_weights.load_state_dict(state)


__all__ = ["TaskTrainer", "TaskTrainingArguments", "guard_loss_scaling", "uses_num_items_in_batch"]
