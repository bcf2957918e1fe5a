# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Train Flamingo: adapters that let a frozen language model look at images and videos.

Any vision tower and any causal language model of `transformers`; interleaved documents, image-text pairs and
video-text pairs together, with gradients of all of them in each update, as in the paper (section 2.4). By default they
are digit scenes, which need no download.

On one GPU, or on the CPU:

    python examples/train_flamingo.py \
        --language_model_name_or_path facebook/opt-125m \
        --vision_model_name_or_path openai/clip-vit-base-patch32 \
        --output_dir runs/flamingo

Adapters of a billion parameters on many GPUs, in bfloat16 with the frozen parts in half precision:

    accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/train_flamingo.py \
        --language_model_name_or_path facebook/opt-1.3b \
        --vision_model_name_or_path openai/clip-vit-large-patch14 \
        --datasets interleaved pairs --interleaved_name owner/documents --pairs_name owner/captions \
        --streaming --accelerator_config '{"dispatch_batches": false}' --gradient_accumulation_steps 2 \
        --interleaved_batch_size 8 --pairs_batch_size 16 --bf16 --activation_checkpointing \
        --output_dir runs/flamingo-3b --max_steps 100000 --warmup_steps 5000 --save_steps 1000

`--preset` names the adapter of a published size ("flamingo-9b", "openflamingo-4b"); with `fsdp2.yaml` or `zero3.yaml`
in the place of `multi_gpu.yaml` the frozen language model is divided among the GPUs as well, for 9B and 80B.

A dataset is a repository of the Hub ("owner/name" or "owner/name:config") or a folder; its columns are those of
`hf_mmunify.data.InterleavedCollator`. The same command goes on where a killed run stopped.
"""

from dataclasses import dataclass, field

from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from hf_mmunify.data import READ_PACKED_AS_ONE, InterleavedCollator, load_rows
from hf_mmunify.models.flamingo import FLAMINGO_PRESETS, FlamingoForConditionalGeneration, FlamingoProcessor
from hf_mmunify.training import (
    CollatorEpochCallback,
    ImageAugmentation,
    MixtureDataset,
    MixtureTrainer,
    StreamedMixture,
    cast_frozen_parts,
    last_complete_checkpoint,
)


@dataclass
class ModelArguments:
    language_model_name_or_path: str = field(
        default="facebook/opt-125m", metadata={"help": "Any causal language model."}
    )
    vision_model_name_or_path: str = field(
        default="openai/clip-vit-base-patch32", metadata={"help": "Any vision tower."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A Flamingo to go on training, in the place of the two parts."}
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Shape of the adapter: flamingo-3b, -9b, -80b, or openflamingo-3b, -4b, -9b.",
            "choices": list(FLAMINGO_PRESETS),
        },
    )
    cross_attention_interval: int | None = field(
        default=None, metadata={"help": "Language model layers from one gated block to the next (paper: 1, 4, 7)."}
    )
    resampler_num_layers: int | None = field(
        default=None, metadata={"help": "Layers of the Perceiver Resampler (default: 6)."}
    )


@dataclass
class DataArguments:
    datasets: list[str] = field(
        default_factory=lambda: ["interleaved", "pairs", "videos"],
        metadata={"choices": ["interleaved", "pairs", "videos"], "help": "Which of the three take part."},
    )
    interleaved_name: str = field(default="digit-scenes", metadata={"help": "Documents of text and images."})
    pairs_name: str = field(default="digit-scenes", metadata={"help": "Images with a text."})
    videos_name: str = field(default="digit-scenes", metadata={"help": "Videos with a text."})
    interleaved_weight: float = field(default=1.0, metadata={"help": "Weight of their loss (the paper's lambda)."})
    pairs_weight: float = field(default=0.2, metadata={"help": "Likewise."})
    videos_weight: float = field(default=0.03, metadata={"help": "Likewise."})
    interleaved_batch_size: int = field(default=4, metadata={"help": "Rows of a micro-batch on a device."})
    pairs_batch_size: int = field(default=8, metadata={"help": "Likewise."})
    videos_batch_size: int = field(default=1, metadata={"help": "Likewise."})
    round_robin: bool = field(
        default=False, metadata={"help": "Update on the datasets in turn, instead of on all of them at once."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Rows taken of each dataset."})
    streaming: bool = field(default=False, metadata={"help": "Read rows when they are needed."})
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={"help": "Rows of a stream of which the next one is drawn; 0 leaves the order to the stream."},
    )
    max_images: int = field(default=5, metadata={"help": "Images of a document."})
    max_length: int = field(default=256, metadata={"help": "Tokens of a document."})
    next_image_probability: float = field(
        default=0.5, metadata={"help": "Share of the documents whose text looks at the image after it."}
    )
    num_frames: int = field(default=8, metadata={"help": "Frames of a video."})
    packing: bool = field(
        default=False,
        metadata={"help": "Put several documents into a row (not for OPT, MPT, BLOOM and Falcon)."},
    )
    augment: bool = field(default=False, metadata={"help": "Flip images and change colours (not for digit scenes)."})


@dataclass
class Arguments(TrainingArguments):
    """`TrainingArguments` with the paper's settings, for a run of a thousand updates instead of 500,000."""

    output_dir: str = "runs/flamingo"
    learning_rate: float = 1e-4
    lr_scheduler_type: str = "constant_with_warmup"
    warmup_steps: float = 100  # the paper: 5000
    weight_decay: float = 0.1
    max_steps: int = 1000
    per_device_train_batch_size: int = 1  # one item of the mixture, of as many rows as the data arguments say
    gradient_accumulation_steps: int = 3  # micro-batches of an update: of three datasets, one each
    remove_unused_columns: bool = False
    logging_steps: float = 10


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = HfArgumentParser((ModelArguments, DataArguments, Arguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # the adapter is drawn before there is a Trainer

    if model_args.model_name_or_path is not None:
        processor = AutoProcessor.from_pretrained(model_args.model_name_or_path)
        model = AutoModelForImageTextToText.from_pretrained(model_args.model_name_or_path, dtype="float32")
    else:
        vision, language = model_args.vision_model_name_or_path, model_args.language_model_name_or_path
        tokenizer = AutoTokenizer.from_pretrained(language)
        processor = FlamingoProcessor(AutoImageProcessor.from_pretrained(vision), tokenizer)
        asked = {name: vars(model_args)[name] for name in ("cross_attention_interval", "resampler_num_layers")}
        adapter = {**FLAMINGO_PRESETS.get(model_args.preset, {}), **{k: v for k, v in asked.items() if v is not None}}
        model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
            vision,
            language,
            processor=processor,
            **adapter,
        )
    family = model.config.get_text_config().model_type
    if data_args.packing and family in READ_PACKED_AS_ONE:
        raise ValueError(
            f"--packing would let the documents of a row read each other in a language model of type {family!r}: "
            "leave it out, or take a language model of another family (Llama, GPT-2, GPT-NeoX ...)."
        )
    if args.bf16:
        cast_frozen_parts(model)

    tasks = {"interleaved": "interleaved", "pairs": "caption", "videos": "video"}
    chosen = vars(data_args)
    rows = {
        name: load_rows(chosen[f"{name}_name"], tasks[name], size=data_args.max_rows, streaming=data_args.streaming)
        for name in data_args.datasets
    }
    sizes = {name: chosen[f"{name}_batch_size"] for name in rows}
    order = args.seed if args.data_seed is None else args.data_seed
    if data_args.streaming:
        if data_args.shuffle_buffer_size > 0:
            buffer_size = data_args.shuffle_buffer_size
            rows = {name: stream.shuffle(order, buffer_size=buffer_size) for name, stream in rows.items()}
        mixture = StreamedMixture(rows, sizes)
    else:
        mixture = MixtureDataset(rows, sizes, seed=order)
    collator = InterleavedCollator(
        processor,
        max_images=data_args.max_images,
        max_length=data_args.max_length,
        next_image_probability=data_args.next_image_probability,
        num_frames=data_args.num_frames,
        packing=data_args.packing,
        transform=ImageAugmentation() if data_args.augment else None,
        seed=args.seed,
    )
    trainer = MixtureTrainer(
        model,
        args,
        collator,
        train_dataset=mixture,
        processing_class=processor,
        loss_weights={name: chosen[f"{name}_weight"] for name in rows},
        accumulate=not data_args.round_robin,
        callbacks=[CollatorEpochCallback(collator)],
    )
    result = trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    return result.metrics


if __name__ == "__main__":
    main()
