# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Name the class of images by texts alone, with a model of two towers that may first learn from images and captions.

Scores stand beside those of black images. From nothing, in minutes; its classes are 50 colored digits:

    python examples/small_model.py --architecture coca --pretrain_vision 400 --output_dir runs/small/coca
    python examples/zero_shot_classification.py --model_name_or_path runs/small/coca --freeze vision_model \
        --pairs digit-scenes --output_dir runs/zero-shot --learning_rate 1e-3 --max_steps 400

A published model on images of your own, as it is:

    python examples/zero_shot_classification.py --model_name_or_path openai/clip-vit-base-patch32 \
        --dataset owner/pets --class_names cat dog --templates "a photo of a {}." "a drawing of a {}." \
        --output_dir runs/pets

Many GPUs: `accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/zero_shot_classification.py`
and the same options. The same command goes on where a killed run stopped.
"""

from dataclasses import dataclass, field

from peft import PeftModel
from transformers import AutoModelForZeroShotImageClassification, HfArgumentParser, set_seed

import hf_mmunify  # noqa: F401  (registers the architectures)
from hf_mmunify.data import RetrievalCollator, load_rows
from hf_mmunify.data.digit_scenes import COLORS, DIGITS
from hf_mmunify.data.sources import DIGIT_SCENES
from hf_mmunify.evaluation import ZeroShotClassifier
from hf_mmunify.training import (
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
    FineTuningArguments,
    TaskArguments,
    finish,
    fit,
    load_for_task,
    training_rows,
)


@dataclass
class ScriptArguments(TaskArguments):
    pairs: str | None = field(default=None, metadata={"help": "Images with captions to learn from: as --dataset."})
    image_column: str = field(default="image", metadata={"help": "Images."})
    caption_column: str = field(default="caption", metadata={"help": "Captions of the pairs."})
    label_column: str = field(default="label", metadata={"help": "Numbers of classes, or their names."})
    class_names: list[str] = field(default_factory=list, metadata={"help": "By default those of the dataset."})
    templates: list[str] = field(
        default_factory=lambda: ["This is a photo of {}."], metadata={"help": "Prompts; {} is the name of a class."}
    )


@dataclass
class Arguments(FineTuningArguments, ContrastiveTrainingArguments):
    output_dir: str = "runs/zero-shot"


def labelled(args: ScriptArguments) -> tuple[list, list[int], list[str], list[str]]:
    """Images, their classes, the names of the classes, templates. Of digit scenes: single digits with their color."""
    if args.dataset == DIGIT_SCENES:
        names = [f"{color} {digit}" for color in COLORS for digit in DIGITS]
        rows = load_rows(args.dataset, "caption", args.eval_split, args.max_eval_rows, max_objects=1)
        return rows["image"], [names.index(text.removeprefix("a ")) for text in rows["caption"]], names, ["a {}"]
    rows = load_rows(args.dataset, "classification", args.eval_split, args.max_eval_rows)
    labels = rows[args.label_column]
    names = args.class_names or rows.features[args.label_column].names
    return (
        rows[args.image_column],
        [names.index(x) if isinstance(x, str) else x for x in labels],
        names,
        args.templates,
    )


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    script_args, args = HfArgumentParser((ScriptArguments, Arguments)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # a new head is drawn before there is a Trainer
    script_args.evaluate_only |= script_args.pairs is None
    images, labels, names, templates = labelled(script_args)
    train = None if script_args.pairs is None else training_rows(script_args, "caption", script_args.pairs)
    model, processor = load_for_task(AutoModelForZeroShotImageClassification, script_args)
    collator = RetrievalCollator(
        processor, image_column=script_args.image_column, text_column=script_args.caption_column
    )
    trainer = ContrastiveTrainer(model, args, collator, train_dataset=train, processing_class=processor)
    fit(trainer, script_args)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    classifier = ZeroShotClassifier(plain, processor, names, templates, args.per_device_eval_batch_size)
    seeing, blind = classifier.evaluate(images, labels), classifier.evaluate(images, labels, blind=True)
    results = {name: {"score": seeing[name], "blind": blind[name]} for name in seeing}
    return finish(trainer, script_args, "zero-shot-image-classification", results)


if __name__ == "__main__":
    main()
