"""One way to train everything in the demo: `Trainer`, a progress bar that names the stage, and the curves kept."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging


class StageProgress(ProgressCallback):
    """A progress bar with the name of the stage and its loss, in the place of a line for every logged loss."""

    def __init__(self, stage: str):
        super().__init__()
        self.stage = stage

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.stage)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs
    ) -> None:
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class GateRecorder(TrainerCallback):
    """Keeps how far the gates of a Flamingo have opened, layer by layer, whenever the trainer logs.

    Attributes:
        steps (`list[int]`): When.
        attention (`dict[str, list[float]]`), feed_forward (`dict[str, list[float]]`):
            |tanh| of each gate at those steps, by the index of its language model layer: figure 6 of the paper.
    """

    def __init__(self):
        self.steps: list[int] = []
        self.attention: dict[str, list[float]] = {}
        self.feed_forward: dict[str, list[float]] = {}

    def _record(self, step: int, model: nn.Module) -> None:
        self.steps.append(step)
        for index, block in model.base_model.adapter.layers.items():
            self.attention.setdefault(index, []).append(block.attention_gate.detach().tanh().abs().item())
            self.feed_forward.setdefault(index, []).append(block.feed_forward_gate.detach().tanh().abs().item())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        self._record(0, model)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        if state.global_step > self.steps[-1]:
            self._record(state.global_step, model)


def fit(
    stage: str,
    model: nn.Module,
    dataset: Dataset,
    collator: Callable[[list], dict[str, torch.Tensor]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    output: str,
    parameter_groups: Iterable[dict] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[tuple[int, float]]:
    """Train for a number of steps, on a GPU in bfloat16 where there is one.

    Args:
        stage (`str`): Named beside the progress bar.
        model (`nn.Module`): Returns its loss.
        dataset (`Dataset`): Rows for the collator.
        collator (`Callable`): Rows to a batch.
        steps (`int`), batch_size (`int`), learning_rate (`float`), seed (`int`): As they say. The learning rate rises
            for a tenth of the steps, then falls along a cosine.
        output (`str`): A folder that `TrainingArguments` wants to be named; nothing is written there.
        parameter_groups (`Iterable[dict]`, *optional*): Groups for AdamW; by default all that is trained, alike.
        callbacks (`Sequence[TrainerCallback]`): Further ones.

    Returns:
        `list[tuple[int, float]]`: step and mean loss since the one before: the loss curve.
    """
    has_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        adam_beta2=0.98,
        bf16=has_gpu and torch.cuda.is_bf16_supported(),
        logging_steps=max(1, steps // 50),
        save_strategy="no",
        report_to="none",
        disable_tqdm=not logging.is_progress_bar_enabled(),
        remove_unused_columns=False,
        dataloader_pin_memory=has_gpu,
        seed=seed,
    )
    optimizer = None
    if parameter_groups is not None:
        optimizer = (torch.optim.AdamW, {"params": list(parameter_groups), "lr": learning_rate, "betas": (0.9, 0.98)})
    trainer = Trainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=dataset,
        optimizer_cls_and_kwargs=optimizer,
        callbacks=list(callbacks),
    )
    for reporter in (ProgressCallback, PrinterCallback):  # Trainer has one of them, which prints every loss
        trainer.remove_callback(reporter)
    if not arguments.disable_tqdm:
        trainer.add_callback(StageProgress(stage))
    trainer.train()
    model.eval()
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
