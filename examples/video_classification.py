# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Train a model to recognise what happens in videos, and evaluate it beside black frames.

Any model of `AutoModelForVideoClassification`: TimeSformer, VideoMAE, ViViT. Without a download, small:

    python examples/small_model.py --architecture videomae --output_dir runs/small/videomae
    python examples/video_classification.py --model_name_or_path runs/small/videomae --output_dir runs/actions \
        --learning_rate 1e-3 --max_steps 600 --per_device_train_batch_size 32

A published model on data of your own, with a LoRA, and afterwards on the Hub:

    python examples/video_classification.py --model_name_or_path facebook/timesformer-base-finetuned-k400 --lora \
        --dataset owner/videos --class_names waving nodding --frame_stride 16 --num_clips 3 --bf16 \
        --output_dir runs/gestures --push_to_hub --hub_model_id you/gestures

Many GPUs: `accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/video_classification.py` and
the same options. The same command goes on where a killed run stopped.
"""

from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForVideoClassification, HfArgumentParser, set_seed

import hf_mmunify  # noqa: F401  (registers the architectures)
from hf_mmunify.data import VideoClassificationCollator
from hf_mmunify.data.digit_scenes import ACTIONS
from hf_mmunify.evaluation import clip_accuracy
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
    video_column: str = field(default="video", metadata={"help": "Frames, or paths of files."})
    label_column: str = field(default="label", metadata={"help": "Numbers, or words of --class_names."})
    class_names: list[str] = field(
        default_factory=lambda: list(ACTIONS), metadata={"help": "What happens, in the order of the numbers."}
    )
    frame_stride: int | None = field(
        default=None, metadata={"help": "From frame to frame of a clip; by default frames span the whole video."}
    )
    num_clips: int = field(default=1, metadata={"help": "Clips of a video that are averaged in evaluation."})


class Clips(Dataset):
    """Each row several times, with the place of a clip: `clip_start`."""

    def __init__(self, rows, number: int):
        self.rows, self.number = rows, number

    def __len__(self) -> int:
        return len(self.rows) * self.number

    def __getitem__(self, index: int) -> dict:
        video, clip = divmod(index, self.number)
        return {**self.rows[video], "clip_start": clip / (self.number - 1) if self.number > 1 else 0.5}


@dataclass
class Arguments(FineTuningArguments):
    output_dir: str = "runs/actions"


def answer(model, batch: dict[str, torch.Tensor]) -> list[list[float]]:
    return model(**batch).logits.tolist()


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    script_args, args = HfArgumentParser((ScriptArguments, Arguments)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # a new head is drawn before there is a Trainer
    train, test = task_rows(script_args, "video")
    names = script_args.class_names
    model, processor = load_for_task(
        AutoModelForVideoClassification,
        script_args,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    collator = VideoClassificationCollator(
        processor,
        video_column=script_args.video_column,
        label_column=script_args.label_column,
        label_names=names,
        num_frames=AutoConfig.from_pretrained(script_args.model_name_or_path).num_frames,
        frame_stride=script_args.frame_stride,
    )
    trainer = TaskTrainer(model, args, collator, train_dataset=train, eval_dataset=test, processing_class=processor)
    fit(trainer, script_args)
    clips = Clips(test, script_args.num_clips)
    videos = torch.arange(len(test)).repeat_interleave(script_args.num_clips)
    truth = collator.labels(test)[videos]
    results = {"top1": {}, "top5": {}}
    for name, blind in (("score", False), ("blind", True)):
        logits = predict(trainer.model, collator, clips, answer, args.per_device_eval_batch_size, blind)
        for metric, value in clip_accuracy(torch.tensor(logits), videos, truth).items():
            results[metric][name] = value
    return finish(trainer, script_args, "video-classification", results)


if __name__ == "__main__":
    main()
