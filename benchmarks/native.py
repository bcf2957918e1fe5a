"""Training steps of CLIP, BLIP and ViLT beside transformers' own classes and, for CLIP, open_clip.

    OPEN_CLIP=path/to/open_clip python benchmarks/native.py [--rounds 5] [--threads 1] [--output out.json]

`OPEN_CLIP` is a checkout of mlfoundations/open_clip; without it that column is left out. All contenders of a task have
the same weights, and their losses are compared before anything is timed. Sizes: towers of 6 layers of width 384 over
images of 224 pixels, texts of 77 (CLIP), 32 (BLIP) and 40 tokens (ViLT), without dropout. Times are processor seconds;
AdamW's step is part of a training step.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from side_by_side import measure, open_clip, table
from torch import nn
from transformers import BlipConfig, CLIPConfig, PreTrainedModel, ViltConfig

from hf_mmunify.conversion.clip import convert
from hf_mmunify.models.blip import BlipForConditionalGeneration, BlipForQuestionAnswering
from hf_mmunify.models.clip import CLIPModel
from hf_mmunify.models.vilt import ViltForQuestionAnswering


SIZE = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
PATCH = 16
Loss = Callable[[], torch.Tensor]


def training_step(model: nn.Module, loss: Loss) -> Callable[[], None]:
    """Forward, backward and AdamW's step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model.train()

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def pair(native: type, ours: type, config) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A native model as transformers builds it, and ours with the same weights, as it builds itself."""
    torch.manual_seed(0)
    model = native(config)
    again = ours(config)
    # Ours may have parts besides (what only training needs); everything native is there under its name
    _, unexpected = again.load_state_dict(model.state_dict(), strict=False)
    if unexpected:
        raise SystemExit(f"{ours.__name__} does not know {unexpected[:3]}.")
    return model, again


def compare(task: str, losses: dict[str, Loss]) -> None:
    """Stop where the contenders do not compute the same loss."""
    values = {name: loss().item() for name, loss in losses.items()}
    if max(values.values()) - min(values.values()) > 1e-4 * abs(values["here"]):
        raise SystemExit(f"{task}: the losses differ, so their times say nothing: {values}.")
    print(f"{task}: {values}", flush=True)


def clip(pairs: int, checkout: str | None) -> tuple[dict[str, nn.Module], dict[str, Loss]]:
    """Contrast of so many pairs."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 384, "heads": 6, "layers": 6}
    original = {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 224, "layers": 6, "width": 384, "head_width": 64, "patch_size": PATCH},
        "text_cfg": text,
    }
    torch.manual_seed(0)
    ids = torch.randint(1, 49000, (pairs, 77))
    ids[:, -1] = 49407
    pixels = torch.randn(pairs, 3, 224, 224)
    models, losses = {}, {}
    if checkout:
        theirs = open_clip(checkout, "model").CLIP(**original)
        models["open_clip"] = theirs
        ours = convert(theirs.state_dict(), original)
        targets = torch.arange(pairs)

        def their_loss() -> torch.Tensor:
            images, texts, scale = theirs(pixels, ids)
            logits = scale * images @ texts.T
            cross_entropy = nn.functional.cross_entropy
            return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2

        losses["open_clip"] = their_loss
    else:
        tower = {**SIZE, "hidden_act": "gelu", "projection_dim": 256}
        config = CLIPConfig(
            text_config={**tower, "vocab_size": 49408, "eos_token_id": 49407},
            vision_config={**tower, "image_size": 224, "patch_size": PATCH},
            projection_dim=256,
        )
        ours = CLIPModel(config)
    native = transformers.CLIPModel(ours.config)
    native.load_state_dict(ours.state_dict())
    batch = {"input_ids": ids, "pixel_values": pixels, "return_loss": True}
    models |= {"here": ours, "transformers": native}
    losses |= {"here": lambda: ours(**batch).loss, "transformers": lambda: native(**batch).loss}
    return models, losses


def blip_config() -> BlipConfig:
    return BlipConfig(
        text_config={
            **SIZE,
            "attention_probs_dropout_prob": 0.0,
            "hidden_dropout_prob": 0.0,
            "encoder_hidden_size": 384,
        },
        vision_config={**SIZE, "image_size": 224, "patch_size": PATCH, "initializer_range": 0.02},
    )


def captioning(pairs: int) -> tuple[dict[str, nn.Module], dict[str, Loss]]:
    native, ours = pair(transformers.BlipForConditionalGeneration, BlipForConditionalGeneration, blip_config())
    ids = torch.randint(1000, 30000, (pairs, 32))
    ids[:, 0] = ours.config.text_config.bos_token_id  # as which ours reads the first token anyway
    batch = {"pixel_values": torch.randn(pairs, 3, 224, 224), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    models = {"here": ours, "transformers": native}
    return models, {name: lambda model=model: model(**batch, labels=ids).loss for name, model in models.items()}


def blip_answers(pairs: int) -> tuple[dict[str, nn.Module], dict[str, Loss]]:
    """Questions of one length, as transformers does not mask padding; its loss is of a token, not of an answer."""
    native, ours = pair(transformers.BlipForQuestionAnswering, BlipForQuestionAnswering, blip_config())
    ids, answers = torch.randint(1000, 30000, (pairs, 32)), torch.randint(1000, 30000, (pairs, 8))
    answers[:, 0] = ours.config.text_config.bos_token_id
    batch = {"pixel_values": torch.randn(pairs, 3, 224, 224), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    models = {"here": ours, "transformers": native}
    tokens = {"here": answers.shape[1] - 1, "transformers": 1}
    return models, {
        name: lambda model=model, name=name: model(**batch, labels=answers).loss / tokens[name]
        for name, model in models.items()
    }


def vilt_answers(pairs: int) -> tuple[dict[str, nn.Module], dict[str, Loss]]:
    sizes = {**SIZE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = ViltConfig(**sizes, image_size=224, patch_size=PATCH, num_labels=3129, max_image_length=-1)
    native, ours = pair(transformers.ViltForQuestionAnswering, ViltForQuestionAnswering, config)
    ids = torch.randint(1000, 30000, (pairs, 40))
    batch = {
        "pixel_values": torch.randn(pairs, 3, 224, 224),
        "pixel_mask": torch.ones(pairs, 224, 224, dtype=torch.long),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.rand(pairs, 3129).round(),
    }
    models = {"here": ours, "transformers": native}
    return models, {name: lambda model=model: model(**batch).loss for name, model in models.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often every contender does every task")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--pairs", type=int, default=8, help="rows of a batch")
    parser.add_argument("--output", type=Path, help="a json file for all measured seconds")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    checkout, pairs, found = os.environ.get("OPEN_CLIP"), arguments.pairs, {}
    for task, build in {
        "CLIP, contrast": lambda: clip(pairs, checkout),
        "BLIP, captions": lambda: captioning(pairs),
        "BLIP, answers": lambda: blip_answers(pairs),
        "ViLT, answers": lambda: vilt_answers(pairs),
    }.items():
        models, losses = build()
        for model in models.values():
            model.train()
        compare(task, losses)
        steps = {name: training_step(models[name], loss) for name, loss in losses.items()}
        found |= measure({f"{task}, training step": steps}, arguments.rounds)
    print(table(found))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
