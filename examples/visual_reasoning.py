# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Train a model to say whether a statement about two images is true (NLVR2), and evaluate it beside black images.

Without a download, on a small model that was trained on questions about single images before:

    python examples/small_model.py --architecture vilt --pretrain_vision 400 --output_dir runs/small/vilt
    python examples/visual_question_answering.py --model_name_or_path runs/small/vilt --output_dir runs/vqa \
        --learning_rate 5e-4 --max_steps 1500
    python examples/visual_reasoning.py --model_name_or_path runs/vqa --output_dir runs/reasoning \
        --learning_rate 5e-4 --max_steps 400

Or a LoRA, which leaves the weights of that model as they are:

    python examples/visual_reasoning.py --model_name_or_path runs/vqa --lora --output_dir runs/reasoning-lora \
        --learning_rate 3e-3 --max_steps 400

A published model on data of your own, with a LoRA, and afterwards on the Hub:

    python examples/visual_reasoning.py --model_name_or_path dandelin/vilt-b32-finetuned-nlvr2 --lora \
        --dataset owner/pairs --image_columns left right --text_column sentence --output_dir runs/nlvr2 --bf16 \
        --push_to_hub --hub_model_id you/nlvr2

Many GPUs: `accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/visual_reasoning.py` and the
same options. The same command goes on where a killed run stopped.
"""

from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, set_seed

from hf_mmunify import AutoModelForVisualReasoning
from hf_mmunify.data import VisualReasoningCollator
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
    image_columns: list[str] = field(
        default_factory=lambda: ["images"], metadata={"help": "One column with both images, or two."}
    )
    text_column: str = field(default="statement", metadata={"help": "Statements."})
    label_column: str = field(default="label", metadata={"help": "Whether they are true."})


@dataclass
class Arguments(FineTuningArguments):
    output_dir: str = "runs/reasoning"


def answer(model, batch: dict[str, torch.Tensor]) -> list[int]:
    return model(**batch).logits.argmax(dim=-1).tolist()


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    script_args, args = HfArgumentParser((ScriptArguments, Arguments)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # a new head is drawn before there is a Trainer
    train, test = task_rows(script_args, "reasoning")
    model, processor = load_for_task(
        AutoModelForVisualReasoning,
        script_args,
        id2label={0: "false", 1: "true"},
        label2id={"false": 0, "true": 1},
    )
    collator = VisualReasoningCollator(
        processor,
        image_columns=script_args.image_columns,
        text_column=script_args.text_column,
        label_column=script_args.label_column,
    )
    trainer = TaskTrainer(model, args, collator, train_dataset=train, eval_dataset=test, processing_class=processor)
    fit(trainer, script_args)
    truth = collator.labels(test)
    results, details = {"accuracy": {}}, {}
    for name, blind in (("score", False), ("blind", True)):
        answers = predict(trainer.model, collator, test, answer, args.per_device_eval_batch_size, blind)
        details[name] = class_accuracy(answers, truth, collator.label_names)
        results["accuracy"][name] = details[name]["accuracy"]
    return finish(trainer, script_args, "visual-reasoning", results, details)


if __name__ == "__main__":
    main()
