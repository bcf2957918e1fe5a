"""Fine-tuning for a task from the command line: what the scripts of `examples/` share.

TaskArguments -> task_rows      -> training and evaluation rows
                    -> load_for_task  -> model (whole, partly frozen, LoRA or QLoRA) and processor
model, collator     -> score          -> {"score": ..., "blind": ...}: with images, and with images zeroed
trainer, scores     -> finish         -> the folder: results.json, card, and the Hub, if asked
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import EvalResult, ModelCard, upload_folder
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, Trainer
from transformers.utils import logging

from ..data import DigitSceneRows, TaskCollator, load_rows
from ..data.sources import DIGIT_SCENES
from ..hub import model_card
from ..layers import is_quantized
from .checkpoints import last_complete_checkpoint
from .layerwise import freeze_layers
from .lora import PRESETS, lora_config, qlora_config
from .loss_scaling import TaskTrainingArguments


RESULTS_FILE = "results.json"


@dataclass
class TaskArguments:
    """The model and the data of a fine-tuning script, alike for every task."""

    model_name_or_path: str = field(metadata={"help": "Any model of the task: a repository of the Hub, or a folder."})
    dataset: str = field(
        default=DIGIT_SCENES,
        metadata={"help": "Digit scenes, a repository of the Hub (name or name:config), a folder."},
    )
    train_split: str = field(default="train", metadata={"help": "Rows to learn from."})
    eval_split: str = field(default="test", metadata={"help": "Rows to evaluate on."})
    max_train_rows: int | None = field(default=None, metadata={"help": "So many; digit scenes are 20,000."})
    max_eval_rows: int | None = field(default=None, metadata={"help": "So many; digit scenes are 1,000."})
    freeze: str | None = field(
        default=None, metadata={"help": "Towers that are not trained: a regular expression of their names (vision)."}
    )
    lora: bool = field(default=False, metadata={"help": "Train a LoRA, on what the preset of the architecture says."})
    qlora: bool = field(default=False, metadata={"help": "The same on a model in 4 bits (needs bitsandbytes)."})
    rank: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    evaluate_only: bool = field(default=False, metadata={"help": "Train nothing."})

    def __post_init__(self):
        if self.freeze is not None and (self.lora or self.qlora):
            raise ValueError("A LoRA freezes every tower already: leave out --freeze, or --lora and --qlora.")


@dataclass
class FineTuningArguments(TaskTrainingArguments):
    """[`TaskTrainingArguments`] as usual for fine-tuning a published model; small ones from nothing learn faster."""

    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1  # share of the steps
    max_steps: int = 1000
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 64
    remove_unused_columns: bool = False  # collators choose
    prediction_loss_only: bool = True
    dataloader_drop_last: bool = True  # in-batch negatives want as many rows in every process
    logging_steps: float = 50


def training_rows(args: TaskArguments, task: str, dataset: str | None = None) -> Any:
    """Rows to learn from.

    Args:
        args ([`TaskArguments`]): Says which.
        task (`str`): Which digit scenes (`hf_mmunify.data.digit_scenes.TASKS`); other data has one task.
        dataset (`str`, *optional*): In the place of `args.dataset`.
    """
    dataset = args.dataset if dataset is None else dataset
    if dataset == DIGIT_SCENES:
        return DigitSceneRows(task, args.max_train_rows or 20_000, args.train_split)
    return load_rows(dataset, task, args.train_split, args.max_train_rows)


def task_rows(args: TaskArguments, task: str) -> tuple[Any, Any]:
    """Rows to learn from, and rows to evaluate on; `args` and `task` as of [`training_rows`]."""
    return training_rows(args, task), load_rows(args.dataset, task, args.eval_split, args.max_eval_rows)


def load_for_task(auto_class: type, args: TaskArguments, **settings: Any) -> tuple[PreTrainedModel, Any]:
    """A model with the head of a task, ready to be trained as `args` says, and its processor.

    What the loaded weights have not, as the head of a new task, is drawn anew, and trained in full beside a LoRA.

    Args:
        auto_class (`type`): Of transformers or of `hf_mmunify.auto`.
        args ([`TaskArguments`]): Which model, what is frozen, and whether it gets a LoRA.
        settings: For its config: `num_labels`, `id2label`, ...

    Returns:
        The model, or the `PeftModel` around it, and what `AutoProcessor` loads.
    """
    processor = AutoProcessor.from_pretrained(args.model_name_or_path)
    if args.qlora:
        model, new = _load_in_4_bits(auto_class, args, **settings)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    else:
        model, new = _load(auto_class, args, **settings)
    if args.freeze is not None:
        freeze_layers(model, towers=args.freeze)
    if args.lora or args.qlora:
        size = {"r": args.rank, "lora_alpha": 2 * args.rank}
        if model.config.model_type in PRESETS:
            config = lora_config(model, **size)
        else:  # an architecture of transformers that this package does not know
            config = LoraConfig(target_modules="all-linear", **size)
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *new}) or None
        model = get_peft_model(model, config)
        model.print_trainable_parameters()
    return model, processor


def _load(auto_class: type, args: TaskArguments, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model, and the names of its modules that the loaded weights have not."""
    model, loading = auto_class.from_pretrained(
        args.model_name_or_path,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # a head with another number of classes is drawn anew
        output_loading_info=True,
        **settings,
    )
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in loading["mismatched_keys"]}
    return model, _new_modules(model, {*loading["missing_keys"], *mismatched})


def _load_in_4_bits(auto_class: type, args: TaskArguments, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """As [`_load`], in 4 bits: what starts as a copy is as its origin is, what is drawn stays in full precision."""
    quantization = qlora_config(AutoConfig.from_pretrained(args.model_name_or_path))
    try:
        model, new = _load(auto_class, args, **settings, quantization_config=quantization)
        new = [name for name in new if not any(map(is_quantized, model.get_submodule(name).parameters()))]
    except (
        ValueError
    ):  # so models of this package refuse to draw in 4 bits, and if it was something else, it comes again
        _, new = _load(auto_class, args, **settings, device_map="meta")  # reads names and shapes only
    if new:
        quantization.llm_int8_skip_modules += [rf"{re.escape(name)}(?:\..*)?$" for name in new]
        model, _ = _load(auto_class, args, **settings, quantization_config=quantization)
    return model, new


def _new_modules(model: nn.Module, drawn: set[str]) -> list[str]:
    """The largest modules of which every parameter was drawn anew."""
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and parameters and drawn.issuperset(parameters) and not is_inside:
            found.append(name)
    return found


Answer = Callable[[PreTrainedModel, dict[str, torch.Tensor]], list]


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    collator: TaskCollator,
    rows: Sequence[dict],
    answer: Answer,
    batch_size: int = 64,
    blind: bool = False,
) -> list:
    """What a model answers to each row; several processes share the rows, and each gets all answers.

    Args:
        model (`PreTrainedModel`): On its device; afterwards in evaluation mode.
        collator ([`TaskCollator`]): Its `inputs` makes batches.
        rows (`Sequence`): A list, or a dataset.
        answer (`Callable`): `answer(model, batch)`, one answer a row of the batch.
        batch_size (`int`, defaults to 64): Rows at once.
        blind (`bool`, defaults to `False`): Whether pixels are zeroed.
    """
    model.eval()
    answers = []
    with PartialState().split_between_processes(list(range(len(rows)))) as places:
        starts = range(0, len(places), batch_size)
        for start in logging.tqdm(starts, desc="blind" if blind else "evaluation", leave=False):
            batch = collator.inputs([rows[place] for place in places[start : start + batch_size]])
            batch = {name: value.to(model.device) for name, value in batch.items()}
            if blind:
                batch["pixel_values"] = torch.zeros_like(batch["pixel_values"])
            answers += answer(model, batch)
    return gather_object(answers)


def score(
    model: PreTrainedModel,
    collator: TaskCollator,
    rows: Sequence[dict],
    answer: Answer,
    metric: Callable[[list], float],
    batch_size: int = 64,
) -> dict[str, float]:
    """How good a model is, and how good it is without seeing: `{"score": ..., "blind": ...}`.

    Args:
        model, collator, rows, answer, batch_size: As of [`predict`].
        metric (`Callable`): Of all answers, in the order of the rows.
    """
    return {
        name: metric(predict(model, collator, rows, answer, batch_size, blind))
        for name, blind in (("score", False), ("blind", True))
    }


def fit(trainer: Trainer, args: TaskArguments) -> None:
    """Train and save, from the newest complete checkpoint in the output folder if there is one; unless it is only to
    be evaluated.
    """
    if not args.evaluate_only:
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(trainer.args.output_dir))
        trainer.save_model()


def finish(
    trainer: Trainer,
    args: TaskArguments,
    task: str,
    results: dict[str, dict[str, float]],
    details: dict[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Print what was measured and leave it in the output folder, with a card; put the folder on the Hub, if asked.

    Args:
        trainer (`Trainer`): Of the run; its model and processor have been saved (`save_model`).
        args ([`TaskArguments`]): Of the run.
        task (`str`): As the Hub spells it: "visual-question-answering".
        results (`dict`): Metric -> `{"score": ..., "blind": ...}`.
        details (`dict`, *optional*): What else is to be kept in `results.json`: scores by class, confusion.

    Returns:
        `dict`: `results`.
    """
    if not trainer.is_world_process_zero():
        return results
    print(f"{'':>24}  {'score':>6}  {'images zeroed':>13}")
    for metric, scores in results.items():
        print(f"{metric:>24}  {scores['score']:>6.3f}  {scores['blind']:>13.3f}")
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"task": task, "model": args.model_name_or_path, "dataset": args.dataset, "split": args.eval_split}
    record |= {"steps": trainer.state.global_step, "results": results, **({"details": details} if details else {})}
    (folder / RESULTS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if args.evaluate_only:
        return results
    _write_card(trainer, args, task, results)
    if trainer.args.push_to_hub:
        upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=folder,
            token=trainer.args.hub_token,
            ignore_patterns=["checkpoint-*", "_*"],
            commit_message=f"Fine-tuned for {task}",
        )
    return results


def _write_card(trainer: Trainer, args: TaskArguments, task: str, results: dict[str, dict[str, float]]) -> None:
    """The card of the run: of this package for its own architectures, else that of transformers with the scores."""
    model, path = trainer.accelerator.unwrap_model(trainer.model), Path(trainer.args.output_dir) / "README.md"
    measured = [
        EvalResult(
            task_type=task,
            dataset_type=args.dataset,
            dataset_name=f"{args.dataset}, {args.eval_split}{', images zeroed' if kind == 'blind' else ''}",
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, scores in results.items()
        for kind, value in scores.items()
    ]
    if not isinstance(model, PeftModel) and not type(model.config).__module__.startswith("transformers."):
        origin = f"Fine-tuned from `{args.model_name_or_path}` in {trainer.state.global_step} steps."
        model_card(model, trainer.args.hub_model_id, origin=origin, results=measured, tags=[task]).save(path)
        return
    trainer.create_model_card(finetuned_from=args.model_name_or_path, tags=[task])
    card = ModelCard.load(path)
    card.data.model_name, card.data.eval_results = path.parent.name, measured
    rows = [f"| {result.dataset_name} | {result.metric_type} | {result.metric_value} |" for result in measured]
    card.text += "\n".join(["", "## Results", "", "| data | metric | value |", "|---|---|---|", *rows, ""])
    card.save(path)


__all__ = [
    "RESULTS_FILE",
    "FineTuningArguments",
    "TaskArguments",
    "finish",
    "fit",
    "load_for_task",
    "predict",
    "score",
    "task_rows",
    "training_rows",
]
