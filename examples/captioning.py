# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Train a model to describe images, and evaluate it beside what it would say without looking.

Any model of `AutoModelForImageTextToText`. From nothing, in minutes:

    python examples/small_model.py --architecture blip --pretrain_vision 500 --output_dir runs/small/blip
    python examples/captioning.py --model_name_or_path runs/small/blip --freeze vision --output_dir runs/captions \
        --learning_rate 1e-3 --max_steps 400

A published model on data of your own, with a LoRA, and afterwards on the Hub:

    python examples/captioning.py --model_name_or_path Salesforce/blip-image-captioning-base --lora \
        --dataset owner/captions --caption_column captions --prompt "a picture of" --num_beams 3 --bf16 \
        --output_dir runs/blip-captions --push_to_hub --hub_model_id you/blip-captions

Many GPUs: `accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/captioning.py` and the same
options. The same command goes on where a killed run stopped.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoModelForImageTextToText, HfArgumentParser, set_seed

import hf_mmunify  # noqa: F401  (registers the architectures)
from hf_mmunify.data import CaptioningCollator
from hf_mmunify.evaluation import cider, exact_match
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
    caption_column: str = field(default="caption", metadata={"help": "The caption, or those of several people."})
    prompt: str = field(default="", metadata={"help": "How every caption begins; with an <image> for Flamingo."})
    max_new_tokens: int = field(default=24, metadata={"help": "Tokens of a caption at most."})
    num_beams: int = field(default=1, metadata={"help": "Beams of the search."})


@dataclass
class Arguments(FineTuningArguments):
    output_dir: str = "runs/captions"


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    script_args, args = HfArgumentParser((ScriptArguments, Arguments)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # a new head is drawn before there is a Trainer
    train, test = task_rows(script_args, "caption")
    model, processor = load_for_task(AutoModelForImageTextToText, script_args)
    writer = model.config.get_text_config(decoder=True)
    collator = CaptioningCollator(
        processor,
        image_column=script_args.image_column,
        text_column=script_args.caption_column,
        prompt=script_args.prompt,
        start_token_id=writer.bos_token_id,
        separate_labels=writer.is_encoder_decoder,
    )
    settings = {"max_new_tokens": script_args.max_new_tokens, "num_beams": script_args.num_beams}

    def answer(model, batch: dict[str, torch.Tensor]) -> list[str]:
        return collator.decode(model.generate(**batch, **settings), batch)

    trainer = TaskTrainer(model, args, collator, train_dataset=train, eval_dataset=test, processing_class=processor)
    fit(trainer, script_args)
    truth = [row[script_args.caption_column] for row in test]
    results = {"cider": {}, "exact_match": {}}
    for name, blind in (("score", False), ("blind", True)):
        captions = predict(trainer.model, collator, test, answer, args.per_device_eval_batch_size, blind)
        for metric, measure in (("cider", cider), ("exact_match", exact_match)):
            results[metric][name] = measure(captions, truth)[metric]
    return finish(trainer, script_args, "image-to-text", results)


if __name__ == "__main__":
    main()
