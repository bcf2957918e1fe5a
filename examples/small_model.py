# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Make a small model and its processor in a folder, so that every example here runs offline, from nothing, on a CPU.

Canvas 24 x 24, patches of 8 x 8, about a million parameters, the words of digit scenes. Random weights:

    python examples/small_model.py --architecture clip --output_dir runs/small/clip

In so few minutes no model learns to see and to speak at once. With `--pretrain_vision` its vision learns to see first:
which digit of which color lies in each cell of a scene. A task then trains the rest:

    python examples/small_model.py --architecture blip --pretrain_vision 500 --output_dir runs/small/blip
    python examples/captioning.py --model_name_or_path runs/small/blip --freeze vision --output_dir runs/captions \
        --learning_rate 1e-3 --max_steps 400
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    Blip2Processor,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPProcessor,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Trainer,
    TrainingArguments,
    VideoMAEImageProcessor,
    ViltImageProcessor,
    ViltProcessor,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderProcessor,
    ViTImageProcessor,
    set_seed,
)

import hf_mmunify  # noqa: F401  (registers the architectures)
from hf_mmunify.data import VOCABULARY, DigitSceneRows
from hf_mmunify.data.digit_scenes import COLORS, DIGITS


IMAGE_SIZE, PATCH_SIZE, NUM_FRAMES = 24, 8, 8  # a patch is a cell of a scene
MAX_LENGTH = 40  # tokens
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}
LAYERS = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 128**-0.5,  # in so narrow layers the usual 0.02 would take long to grow
}
VISION = {**LAYERS, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
NOISE = 0.2  # on pixels: so few writers would else be learned by heart


def word_tokenizer(closes: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of the words of digit scenes; a text becomes `<s> words </s>`, or `<s> words` to be gone on with."""
    words = [*dict.fromkeys(SPECIAL_TOKENS.values()), *VOCABULARY]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, words.index(token)) for token in ("<s>", "</s>")]
    template = "<s> $A </s>" if closes else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **SPECIAL_TOKENS)


TOKENIZER = word_tokenizer()
TEXT = {
    **LAYERS,
    "vocab_size": len(TOKENIZER),
    "max_position_embeddings": MAX_LENGTH,
    "pad_token_id": TOKENIZER.pad_token_id,
    "bos_token_id": TOKENIZER.bos_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
}
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


# Each architecture: its config, its processor, and the class it is made with -----------------------------------------


def clip() -> PreTrainedConfig:
    return AutoConfig.for_model("clip", text_config=dict(TEXT), vision_config=dict(VISION), projection_dim=128)


def vision_text_dual_encoder() -> PreTrainedConfig:
    vision, text = AutoConfig.for_model("vit", **VISION), AutoConfig.for_model("bert", **TEXT)
    return VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=128)


def vilt() -> PreTrainedConfig:
    tower = {**VISION, "num_hidden_layers": 4}
    return AutoConfig.for_model("vilt", **{**TEXT, **tower}, num_images=2, modality_type_vocab_size=3)


def blip() -> PreTrainedConfig:
    text = {**TEXT, "encoder_hidden_size": 128, "sep_token_id": TOKENIZER.sep_token_id}
    return AutoConfig.for_model("blip", text_config=text, vision_config=dict(VISION), image_text_hidden_size=128)


def blip_2() -> PreTrainedConfig:
    text = {"ffn_dim": 512, "word_embed_proj_dim": 128, "model_type": "opt", **TEXT, "vocab_size": len(TOKENIZER) + 1}
    qformer = {**TEXT, "encoder_hidden_size": 128, "cross_attention_frequency": 1}
    return AutoConfig.for_model(
        "blip-2",
        text_config={name: value for name, value in text.items() if name != "intermediate_size"},
        vision_config=dict(VISION),
        qformer_config=qformer,
        num_query_tokens=9,
        image_text_hidden_size=128,
        image_token_index=len(TOKENIZER),
    )


def albef() -> PreTrainedConfig:
    text = {**TEXT, "num_hidden_layers": 4, "fusion_layer": 2}
    vision = {**VISION, "model_type": "vit"}
    settings = {"projection_dim": 128, "queue_size": 512, "distill": False}  # a teacher that knows nothing yet hinders
    return AutoConfig.for_model("albef", text_config=text, vision_config=vision, **settings)


def coca() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "coca",
        text_config={**TEXT, "num_hidden_layers": 4, "num_unimodal_layers": 2},
        vision_config={**VISION, "model_type": "clip_vision_model"},
        projection_dim=128,
        pooler_num_queries=9,
        pooler_num_attention_heads=4,
    )


def flip() -> PreTrainedConfig:
    vision = {**VISION, "mask_ratio": 0.0}  # of nine patches none can be spared
    return AutoConfig.for_model("flip", text_config=dict(TEXT), vision_config=vision, projection_dim=128)


def vit() -> PreTrainedConfig:
    return AutoConfig.for_model("vit", **VISION)


def timesformer() -> PreTrainedConfig:
    return AutoConfig.for_model("timesformer", **VISION, num_frames=NUM_FRAMES)


def videomae() -> PreTrainedConfig:
    return AutoConfig.for_model("videomae", **VISION, num_frames=NUM_FRAMES, decoder_hidden_size=64)


# What its vision makes of an image: a token of the whole, and one for each cell, [B, 1 + 9, D] -----------------------

Reader = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]


def of_tower(name: str) -> Reader:
    """Of a model whose tower is called `name`; the empty name is the model itself."""
    return lambda model, pixels: model.get_submodule(name)(pixel_values=pixels).last_hidden_state


def of_single_stream(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Of ViLT, which reads patches in random order, after a text: here an empty one."""
    empty = torch.tensor([TOKENIZER("").input_ids], device=pixels.device).expand(len(pixels), -1)  # [B, 2]
    mask = torch.ones_like(pixels[:, 0], dtype=torch.long)  # [B, H, W]
    patches, mask, (places, (_, width)) = model.embeddings.visual_embed(pixels, mask, max_image_length=-1)
    tokens = model(empty, image_embeds=patches, pixel_mask=mask).last_hidden_state[:, empty.shape[1] :]
    order = (places[..., 0] * width + places[..., 1]).argsort(dim=1)  # [B, 9]
    cells = tokens[:, 1:].gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    return torch.cat((tokens[:, :1], cells), dim=1)


def of_timesformer(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Of a video that stands still; frames of a cell lie side by side."""
    tokens = model(pixels[:, None].expand(-1, NUM_FRAMES, -1, -1, -1)).last_hidden_state
    return torch.cat((tokens[:, :1], tokens[:, 1:].unflatten(1, (-1, NUM_FRAMES)).mean(dim=2)), dim=1)


def of_videomae(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Of a video that stands still; it has no token of the whole, and heads take the mean."""
    tokens = model(pixels[:, None].expand(-1, NUM_FRAMES, -1, -1, -1)).last_hidden_state
    cells = tokens.unflatten(1, (NUM_FRAMES // model.config.tubelet_size, -1)).mean(dim=1)
    return torch.cat((cells.mean(dim=1, keepdim=True), cells), dim=1)


class Architecture(NamedTuple):
    """How one architecture is made small.

    Args:
        config (`Callable`): Makes its config.
        processor (`Callable`): Makes its processor.
        vision (`Callable`): What its vision makes of images, pixels to tokens `[B, 10, D]`.
        auto_class (`type`, defaults to `AutoModel`): What it is made with. Heads that it has not are new to each task.
    """

    config: Callable[[], PreTrainedConfig]
    processor: Callable[[], ProcessorMixin]
    vision: Reader
    auto_class: type = AutoModel


ARCHITECTURES = {
    "albef": Architecture(
        albef, lambda: BlipProcessor(BlipImageProcessor(size=SQUARE), TOKENIZER), of_tower("vision_model")
    ),
    "blip": Architecture(
        blip, lambda: BlipProcessor(BlipImageProcessor(size=SQUARE), TOKENIZER), of_tower("vision_model")
    ),
    "blip_2": Architecture(
        blip_2,
        lambda: Blip2Processor(BlipImageProcessor(size=SQUARE), word_tokenizer(closes=False), num_query_tokens=9),
        of_tower("vision_model"),
        AutoModelForImageTextToText,
    ),
    "clip": Architecture(
        clip,
        lambda: CLIPProcessor(CLIPImageProcessor(size=SQUARE, do_center_crop=False), TOKENIZER),
        of_tower("vision_model"),
    ),
    "coca": Architecture(
        coca,
        lambda: CLIPProcessor(CLIPImageProcessor(size=SQUARE, do_center_crop=False), TOKENIZER),
        of_tower("vision_model"),
    ),
    "flip": Architecture(
        flip,
        lambda: CLIPProcessor(CLIPImageProcessor(size=SQUARE, do_center_crop=False), TOKENIZER),
        of_tower("vision_model"),
    ),
    "timesformer": Architecture(
        timesformer, lambda: VideoMAEImageProcessor(size=SQUARE, do_center_crop=False), of_timesformer
    ),
    "videomae": Architecture(videomae, lambda: VideoMAEImageProcessor(size=SQUARE, do_center_crop=False), of_videomae),
    "vilt": Architecture(
        vilt,
        lambda: ViltProcessor(
            ViltImageProcessor(size={"shortest_edge": IMAGE_SIZE}, size_divisor=PATCH_SIZE), TOKENIZER
        ),
        of_single_stream,
    ),
    "vision_text_dual_encoder": Architecture(
        vision_text_dual_encoder,
        lambda: VisionTextDualEncoderProcessor(ViTImageProcessor(size=SQUARE), TOKENIZER),
        of_tower("vision_model"),
    ),
    "vit": Architecture(vit, lambda: ViTImageProcessor(size=SQUARE), of_tower("")),
}


# Vision first --------------------------------------------------------------------------------------------------------


class SceneReader(nn.Module):
    """A model that learns to see: what is in each cell of a scene, and what is in it anywhere.

    Of each cell it tells the digit, the color, and as the how-manieth in reading order the object is named in captions
    (so that patches look at each other); of the whole, which colored digits there are. Its heads are thrown away.

    Args:
        model (`PreTrainedModel`): The small model.
        vision (`Callable`): Its row of `ARCHITECTURES`.
        num_features (`int`): Width of its tokens.
    """

    def __init__(self, model: PreTrainedModel, vision: Reader, num_features: int):
        super().__init__()
        self.model, self.vision = model, vision
        classes = {"digits": len(DIGITS) + 1, "colors": len(COLORS) + 1, "order": len(COLORS) + 1}
        self.heads = nn.ModuleDict({name: nn.Linear(num_features, number) for name, number in classes.items()})
        self.scene = nn.Linear(num_features, len(COLORS) * len(DIGITS))

    def forward(self, pixel_values: torch.Tensor, **cells: torch.Tensor) -> dict[str, torch.Tensor]:
        """Summed loss, and logits `[B, 9, classes]`; `cells` are `digits`, `colors` and `order` `[B, 9]`."""
        if self.training:
            pixel_values = pixel_values + NOISE * torch.randn_like(pixel_values)
        whole, patches = self.vision(self.model, pixel_values).split([1, len(cells["digits"][0])], dim=1)
        logits = {name: head(patches) for name, head in self.heads.items()}
        losses = [nn.functional.cross_entropy(logits[name].flatten(0, 1), cells[name].flatten()) for name in logits]
        names = cells["colors"] * len(DIGITS) + cells["digits"]  # [B, 9], of what is no empty cell
        shown = nn.functional.one_hot(names.where(cells["digits"] < len(DIGITS), 0), len(COLORS) * len(DIGITS))
        shown = (shown * (cells["digits"] < len(DIGITS))[..., None]).sum(dim=1)  # [B, 50]
        whole_loss = nn.functional.binary_cross_entropy_with_logits(self.scene(whole[:, 0]), shown.float())
        return {"loss": sum(losses) + len(DIGITS) * whole_loss, **logits}


def learn_to_see(
    model: PreTrainedModel, row: Architecture, image_processor, steps: int, seed: int, output_dir: str
) -> float:
    """Train the vision of `model` in place; share of the objects of unseen handwriting that it then reads rightly."""

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        frames = image_processor([scene["image"] for scene in rows], return_tensors="pt")["pixel_values"]
        cells = {name: torch.tensor([scene[name] for scene in rows]) for name in ("digits", "colors")}
        is_object = cells["digits"] < len(DIGITS)
        order = torch.where(is_object, is_object.cumsum(dim=1) - 1, len(COLORS))  # [B, 9]
        return {"pixel_values": frames.reshape(len(rows), *frames.shape[-3:]), **cells, "order": order}

    reader = SceneReader(model, row.vision, LAYERS["hidden_size"])
    arguments = TrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=64,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        dataloader_pin_memory=False,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        remove_unused_columns=False,
        seed=seed,
    )
    Trainer(reader, arguments, collate, train_dataset=DigitSceneRows("cells", 10_000, seed=seed)).train()
    unseen = collate(list(DigitSceneRows("cells", 500, "test")))
    batch = {name: value.to(model.device) for name, value in unseen.items()}
    with torch.no_grad():
        logits = reader.eval()(**batch)
    right = [logits[name].argmax(dim=-1) == batch[name] for name in ("digits", "colors")]
    return (right[0] & right[1])[batch["digits"] < len(DIGITS)].float().mean().item()


@dataclass
class ScriptArguments:
    architecture: str = field(metadata={"choices": sorted(ARCHITECTURES), "help": "Which."})
    output_dir: str = field(metadata={"help": "Where the model and its processor go."})
    pretrain_vision: int = field(default=0, metadata={"help": "Steps of learning to see (400 take a minute or two)."})
    seed: int = field(default=0, metadata={"help": "Draws weights and scenes."})


def main(argv: list[str] | None = None) -> float | None:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    set_seed(args.seed)
    row = ARCHITECTURES[args.architecture]
    model, processor = row.auto_class.from_config(row.config()), row.processor()
    score = None
    if args.pretrain_vision:
        image_processor = processor.image_processor if isinstance(processor, ProcessorMixin) else processor
        score = learn_to_see(model, row, image_processor, args.pretrain_vision, args.seed, args.output_dir)
        print(f"Objects of unseen handwriting read rightly: {score:.3f}")
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters in {args.output_dir}")
    return score


if __name__ == "__main__":
    main()
