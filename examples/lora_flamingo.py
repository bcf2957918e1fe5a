# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify[quantization]"]
# ///
r"""Fine-tune a Flamingo on questions about images with LoRA, or with QLoRA: the language model in 4 bits.

The language model gets a LoRA, the adapter is trained along. Without a download, on the model of the demo:

    make demo
    python examples/lora_flamingo.py --model_name_or_path runs/demo/model --output_dir runs/lora --max_steps 100

QLoRA, on a dataset of your own with the columns `image`, `question` and `answer`:

    python examples/lora_flamingo.py --model_name_or_path runs/flamingo --load_in_4bit \
        --dataset_name owner/questions --output_dir runs/qlora --bf16

Many GPUs: `accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/lora_flamingo.py ...`.
Afterwards `PeftModel.from_pretrained(model, "runs/lora")` puts it on the model again.
"""

from dataclasses import dataclass, field

from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_mmunify  # noqa: F401  (registers the architectures)
from hf_mmunify.data import InterleavedCollator, load_rows
from hf_mmunify.training import (
    CollatorEpochCallback,
    cast_frozen_parts,
    last_complete_checkpoint,
    lora_config,
    qlora_config,
)


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(
        metadata={"help": "Any model of AutoModelForImageTextToText with an <image> token."}
    )
    dataset_name: str = field(default="digit-scenes", metadata={"help": "A repository of the Hub, or a folder."})
    template: str = field(
        default="<image>question: {question} answer: {answer}", metadata={"help": "How a row is written."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Rows taken of the dataset."})
    rank: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the language model (needs bitsandbytes)."})
    freeze_adapter: bool = field(default=False, metadata={"help": "Train the LoRA alone: its file is much smaller."})


@dataclass
class Arguments(TrainingArguments):
    """`TrainingArguments` with other defaults."""

    output_dir: str = "runs/lora"
    learning_rate: float = 2e-4
    remove_unused_columns: bool = False
    logging_steps: float = 10


def main(argv: list[str] | None = None) -> dict[str, float]:
    script_args, args = HfArgumentParser((ScriptArguments, Arguments)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # the LoRA is drawn before there is a Trainer
    processor = AutoProcessor.from_pretrained(script_args.model_name_or_path)
    settings = {}
    if script_args.load_in_4bit:
        config = AutoConfig.from_pretrained(script_args.model_name_or_path)
        settings["quantization_config"] = qlora_config(config)
    model = AutoModelForImageTextToText.from_pretrained(script_args.model_name_or_path, dtype="float32", **settings)
    if script_args.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    overrides = {"modules_to_save": None} if script_args.freeze_adapter else {}
    model = get_peft_model(model, lora_config(model, r=script_args.rank, lora_alpha=2 * script_args.rank, **overrides))
    model.print_trainable_parameters()
    if args.bf16 and not script_args.load_in_4bit:
        cast_frozen_parts(model)

    collator = InterleavedCollator(processor, next_image_probability=0.0, seed=args.seed)

    def collate(rows: list[dict]) -> dict:
        texts = [script_args.template.format(**{**row, "image": None}) for row in rows]
        return collator([{"images": [row["image"]], "text": text} for row, text in zip(rows, texts)])

    trainer = Trainer(
        model,
        args,
        collate,
        train_dataset=load_rows(script_args.dataset_name, "vqa", size=script_args.max_rows),
        processing_class=processor,
        callbacks=[CollatorEpochCallback(collator)],
    )
    result = trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    return result.metrics


if __name__ == "__main__":
    main()
