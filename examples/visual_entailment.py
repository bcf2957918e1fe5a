# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Train a model to say whether an image entails, leaves open or contradicts a hypothesis (SNLI-VE).

Evaluated beside black images, which show what the hypotheses alone are worth. From nothing, in minutes:

    python examples/small_model.py --architecture vilt --pretrain_vision 400 --output_dir runs/small/vilt
    python examples/visual_entailment.py --model_name_or_path runs/small/vilt --output_dir runs/entailment \
        --learning_rate 5e-4 --max_steps 800

A model that has learned to answer questions (`visual_question_answering.py`) learns more; all of it, or a LoRA:

    python examples/visual_entailment.py --model_name_or_path runs/vqa --output_dir runs/entailment-all \
        --learning_rate 5e-4 --max_steps 800
    python examples/visual_entailment.py --model_name_or_path runs/vqa --lora --output_dir runs/entailment-lora \
        --learning_rate 1e-3 --max_steps 800

A published model on data of your own, with a LoRA, and afterwards on the Hub:

    python examples/visual_entailment.py --model_name_or_path dandelin/vilt-b32-mlm --lora \
        --dataset owner/snli-ve --output_dir runs/snli-ve --bf16 --push_to_hub --hub_model_id you/snli-ve

Many GPUs: `accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/visual_entailment.py` and the
same options. The same command goes on where a killed run stopped.
"""

from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, set_seed

from hf_mmunify import AutoModelForVisualEntailment
from hf_mmunify.data import VisualEntailmentCollator
from hf_mmunify.evaluation import class_accuracy
from hf_mmunify.training import (
    FineTuningArguments,
    TaskArguments,
    TaskTrainer,
    finish,
    fit,
    load_for_task,
    predict,
    task_rows,
)


@dataclass
class ScriptArguments(TaskArguments):
    image_column: str = field(default="image", metadata={"help": "Images."})
    text_column: str = field(default="hypothesis", metadata={"help": "Hypotheses."})
    label_column: str = field(default="label", metadata={"help": "Numbers, or words of --class_names."})
    class_names: list[str] = field(
        default_factory=lambda: ["entailment", "neutral", "contradiction"], metadata={"help": "In their order."}
    )


@dataclass
class Arguments(FineTuningArguments):
    output_dir: str = "runs/entailment"


def answer(model, batch: dict[str, torch.Tensor]) -> list[int]:
    return model(**batch).logits.argmax(dim=-1).tolist()


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    script_args, args = HfArgumentParser((ScriptArguments, Arguments)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # a new head is drawn before there is a Trainer
    train, test = task_rows(script_args, "entailment")
    names = script_args.class_names
    model, processor = load_for_task(
        AutoModelForVisualEntailment,
        script_args,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    collator = VisualEntailmentCollator(
        processor,
        image_column=script_args.image_column,
        text_column=script_args.text_column,
        label_column=script_args.label_column,
        label_names=names,
    )
    trainer = TaskTrainer(model, args, collator, train_dataset=train, eval_dataset=test, processing_class=processor)
    fit(trainer, script_args)
    truth = collator.labels(test)
    results, details = {"accuracy": {}}, {}
    for name, blind in (("score", False), ("blind", True)):
        answers = predict(trainer.model, collator, test, answer, args.per_device_eval_batch_size, blind)
        details[name] = class_accuracy(answers, truth, names)
        results["accuracy"][name] = details[name]["accuracy"]
    return finish(trainer, script_args, "visual-entailment", results, details)


if __name__ == "__main__":
    main()
