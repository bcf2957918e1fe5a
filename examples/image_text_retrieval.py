# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Train a model to find texts by images and images by texts, and evaluate its recall beside that of black images.

Two towers (CLIP and its kin) learn contrastively, with the negatives of all processes, and, with gradient caching, of
as large a batch as you like; models with a matching head (BLIP, ALBEF, ViLT) by the loss they were published with.
From nothing, in minutes:

    python examples/small_model.py --architecture coca --pretrain_vision 400 --output_dir runs/small/coca
    python examples/image_text_retrieval.py --model_name_or_path runs/small/coca --freeze vision_model \
        --output_dir runs/retrieval --learning_rate 1e-3 --max_steps 400 --max_eval_rows 100

Or a LoRA, which leaves the weights of that model as they are:

    python examples/image_text_retrieval.py --model_name_or_path runs/small/coca --lora \
        --output_dir runs/retrieval-lora --learning_rate 2e-3 --max_steps 400 --max_eval_rows 100

A published model on data of your own, with a LoRA and 4,096 pairs a batch:

    python examples/image_text_retrieval.py --model_name_or_path openai/clip-vit-base-patch32 --lora \
        --dataset owner/captions --text_column captions --output_dir runs/clip --bf16 \
        --per_device_train_batch_size 4096 --gradient_cache_chunk_size 64

Many GPUs: `accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/image_text_retrieval.py` and
the same options. The same command goes on where a killed run stopped.
"""

from dataclasses import dataclass, field

from peft import PeftModel
from transformers import HfArgumentParser, set_seed

from hf_mmunify import AutoModelForImageTextRetrieval
from hf_mmunify.data import RetrievalCollator
from hf_mmunify.evaluation import MatchingModel, RetrievalEvaluator, as_retrieval_model
from hf_mmunify.training import (
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
    FineTuningArguments,
    TaskArguments,
    TaskTrainer,
    finish,
    fit,
    load_for_task,
    task_rows,
)


@dataclass
class ScriptArguments(TaskArguments):
    image_column: str = field(default="image", metadata={"help": "Images."})
    text_column: str = field(default="caption", metadata={"help": "The text, or several."})
    id_column: str | None = field(default=None, metadata={"help": "Rows of the same id show the same image."})
    top_k: int = field(default=128, metadata={"help": "Candidates of a query that are matched again, if it can be."})


@dataclass
class Arguments(FineTuningArguments, ContrastiveTrainingArguments):
    output_dir: str = "runs/retrieval"


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    script_args, args = HfArgumentParser((ScriptArguments, Arguments)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # a new head is drawn before there is a Trainer
    train, test = task_rows(script_args, "retrieval")
    model, processor = load_for_task(AutoModelForImageTextRetrieval, script_args)
    columns = {name: vars(script_args)[name] for name in ("image_column", "text_column", "id_column")}
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    trainer_class = TaskTrainer if isinstance(as_retrieval_model(plain), MatchingModel) else ContrastiveTrainer
    trainer = trainer_class(
        model,
        args,
        RetrievalCollator(processor, **columns),
        train_dataset=train,
        eval_dataset=test,
        processing_class=processor,
    )
    fit(trainer, script_args)
    evaluator = RetrievalEvaluator(plain, processor, args.per_device_eval_batch_size, script_args.top_k, **columns)
    seeing, blind = evaluator.evaluate(test), evaluator.evaluate(test, blind=True)
    results = {name: {"score": seeing[name], "blind": blind[name]} for name in seeing}
    return finish(trainer, script_args, "image-text-retrieval", results)


if __name__ == "__main__":
    main()
