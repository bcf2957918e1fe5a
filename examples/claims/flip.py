# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""The claim of the FLIP paper in small: a model that sees half of each image learns more in the same time.

    python examples/claims/flip.py --output runs/claims/flip

A few minutes on one quiet core, offline. A small FLIP is trained from nothing on digit scenes ("a red seven"), with 0,
50 and 75 % of the 36 patches left out, each for as many processor seconds; the last tenth of them is unmasked tuning
(paper, section 3).

Written to `--output`: `results.json` (every run, with its curve), `table.md` (time and memory of a training step,
retrieval among 50 scenes in handwriting of writers whom no model was trained on), and `curves.svg`, retrieval over
time. README.md beside this file holds what we measured. `--max_objects 2 --test_images 100` takes longer to learn.

Paper: Scaling Language-Image Pre-training via Masking (Li et al., 2023), figure 1, tables 1 and 2.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import HfArgumentParser, PreTrainedTokenizerFast, set_seed

from hf_mmunify.data.digit_scenes import VOCABULARY, DigitScenes
from hf_mmunify.evaluation import recall_at_k
from hf_mmunify.models.flip import FlipConfig, FlipModel


HUES = ("#222222", "#1f6fb2", "#c8552b", "#3a8f4d", "#8a4fb0")


@dataclass
class ScriptArguments:
    output: str = field(default="runs/claims/flip", metadata={"help": "Folder for table, plot and results."})
    ratios: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.75], metadata={"help": "Patches left out."})
    seconds: float = field(default=60.0, metadata={"help": "Processor seconds that each model is trained for."})
    tuning: float = field(default=0.1, metadata={"help": "Share of them, at the end, in which no patch is left out."})
    seeds: int = field(default=1, metadata={"help": "How often everything is repeated."})
    batch_size: int = field(default=64, metadata={"help": "Pairs in an update."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Its highest value; it falls to a tenth."})
    train_images: int = field(default=6000, metadata={"help": "Scenes that are trained on."})
    test_images: int = field(default=50, metadata={"help": "Scenes among which one is found."})
    max_objects: int = field(default=1, metadata={"help": "Digits in a scene: 1 (50 captions), or up to 4."})
    image_size: int = field(default=24, metadata={"help": "Side of a scene in pixels."})
    patch_size: int = field(default=4, metadata={"help": "Side of a patch in pixels."})
    width: int = field(default=64, metadata={"help": "Of the vision tower; the text tower has half of it."})
    layers: int = field(default=3, metadata={"help": "Of the vision tower; the text tower has two."})


@dataclass
class Pairs:
    """Scenes `[N, 3, H, W]`, their captions `[N, T]` with masks, and which caption each has `[N]`."""

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def rows(self, index: Sequence[int] | slice) -> dict[str, torch.Tensor]:
        return {name: value[index] for name, value in vars(self).items()}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *VOCABULARY])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def read_pairs(split: str, number: int, tokenizer: PreTrainedTokenizerFast, args: ScriptArguments) -> Pairs:
    """The first scenes of a split; no caption comes twice in the test."""
    scenes = DigitScenes(split, image_size=args.image_size, max_objects=args.max_objects)
    examples = [scenes.retrieval(index) for index in range(number)]
    pixels = torch.from_numpy(np.stack([example["image"] for example in examples])).permute(0, 3, 1, 2)
    captions = [example["caption"] for example in examples]
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    text = tokenizer(captions, padding=True, return_tensors="pt")
    # Scenes of one caption are right answers alike: the loss takes them for one image
    ids = torch.tensor([numbers[caption] for caption in captions])
    return Pairs(pixels / 127.5 - 1, text["input_ids"], text["attention_mask"], ids)


def build(tokenizer: PreTrainedTokenizerFast, length: int, ratio: float, args: ScriptArguments) -> FlipModel:
    tower = {"num_attention_heads": 4, "initializer_range": 0.05}
    config = FlipConfig(
        vision_config={
            **tower,
            "hidden_size": args.width,
            "intermediate_size": 4 * args.width,
            "num_hidden_layers": args.layers,
            "image_size": args.image_size,
            "patch_size": args.patch_size,
            "mask_ratio": ratio,
        },
        text_config={
            **tower,
            "hidden_size": args.width // 2,
            "intermediate_size": 2 * args.width,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": length,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=args.width,
        initializer_range=0.05,
    )
    return FlipModel(config).train()


@torch.no_grad()
def recall(model: FlipModel, pairs: Pairs, blind: bool = False) -> float:
    """Recall@1, mean of both directions; `blind` blackens every image."""
    model.eval()
    rows = pairs.rows(slice(None))
    pixels, ids = rows.pop("pixel_values"), rows.pop("image_ids")
    images = model.encode_images(torch.full_like(pixels, -1) if blind else pixels)["features"]
    scores = model.similarities(images, model.encode_texts(**rows)["features"])
    found = recall_at_k(scores, ids[:, None] == ids, ks=(1,))
    model.train()
    return found["mean_recall"]


def update(model: FlipModel, optimizer: torch.optim.Optimizer, rows: dict[str, torch.Tensor]) -> float:
    loss = model(**rows).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def kept_for_backward(model: FlipModel, rows: dict[str, torch.Tensor]) -> int:
    """Bytes of what the forward pass of an update keeps for the backward pass, besides the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**rows).loss
    del loss
    return sum(kept.values())


def step_costs(ratios: Sequence[float], pairs: Pairs, tokenizer, args: ScriptArguments, rounds: int = 7) -> dict:
    """Milliseconds of processor time and megabytes of an update at each ratio; ratios take turns in every round."""
    rows, length = pairs.rows(range(args.batch_size)), pairs.input_ids.shape[1]  # copies, no views of all pairs
    contenders = {ratio: build(tokenizer, length, ratio, args) for ratio in ratios}
    optimizers = {ratio: torch.optim.AdamW(model.parameters()) for ratio, model in contenders.items()}
    times: dict[float, list[float]] = {ratio: [] for ratio in ratios}
    for number in range(rounds + 1):
        for ratio, model in contenders.items():
            started = time.process_time()
            update(model, optimizers[ratio], rows)
            if number:  # the first one allocates
                times[ratio].append(1000 * (time.process_time() - started))
    return {
        ratio: {"step_ms": statistics.median(times[ratio]), "kept_mb": kept_for_backward(model, rows) / 1e6}
        for ratio, model in contenders.items()
    }


def run(ratio: float, seed: int, train: Pairs, test: Pairs, tokenizer, args: ScriptArguments) -> dict[str, Any]:
    """Train one model for its time, and follow what it finds; looking at it is not counted."""
    set_seed(seed)
    model = build(tokenizer, train.input_ids.shape[1], ratio, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    draw, curve, spent, steps, loss = np.random.default_rng(seed), [], 0.0, 0, float("nan")
    untuned = None
    while spent < args.seconds:
        share = spent / args.seconds
        if share >= 1 - args.tuning and untuned is None:
            untuned = recall(model, test)
            model.vision_model.config.mask_ratio = 0.0
        if share * 10 >= len(curve):
            curve.append([round(spent, 2), recall(model, test)])
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1.0, share / 0.05 + 0.1) * (1 - 0.9 * share)
        index = draw.integers(len(train), size=args.batch_size)
        started = time.process_time()
        loss = update(model, optimizer, train.rows(index))
        spent += time.process_time() - started
        steps += 1
    curve.append([round(spent, 2), recall(model, test)])
    return {
        "ratio": ratio,
        "seed": seed,
        "updates": steps,
        "images": steps * args.batch_size,
        "last_loss": loss,
        "recall_untuned": curve[-1][1] if untuned is None else untuned,
        "recall": curve[-1][1],
        "recall_blind": recall(model, test, blind=True),
        "curve": curve,
    }


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and in brackets the lowest and the highest where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown_table(costs: dict, runs: list[dict[str, Any]]) -> str:
    """A line for each ratio; times and memory also as shares of those without masking."""
    lines = [
        "| Left out | Step | Kept for backward | Updates | R@1 | R@1 before tuning | R@1, blind |",
        "|---|---|---|---|---|---|---|",
    ]
    first = next(iter(costs.values()))
    for ratio, cost in costs.items():
        mine = [one for one in runs if one["ratio"] == ratio]
        cells = [
            f"{ratio:.0%}",
            f"{cost['step_ms']:.1f} ms ({cost['step_ms'] / first['step_ms']:.2f})",
            f"{cost['kept_mb']:.1f} MB ({cost['kept_mb'] / first['kept_mb']:.2f})",
            spread([one["updates"] for one in mine], 0),
            *(spread([one[key] for one in mine]) for key in ("recall", "recall_untuned", "recall_blind")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def svg_plot(runs: list[dict[str, Any]], seconds: float) -> str:
    """Recall@1 over training time: a line for each run, a colour for each ratio."""
    left, top, width, height = 52, 40, 520, 260

    def point(at: float, score: float) -> str:
        return f"{left + min(at / seconds, 1) * width:.1f},{top + (1 - score) * height:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 24} {top + height + 48}" role="img" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        "<title>Retrieval over training time, by share of patches left out</title>",
        f'<rect width="{left + width + 24}" height="{top + height + 48}" fill="#fff"/>',
    ]
    for fifth in range(6):
        x, y = (float(one) for one in point(seconds * fifth / 5, fifth / 5).split(","))
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + width}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{fifth / 5:.1f}</text>')
        parts.append(f'<text x="{x}" y="{top + height + 18}" text-anchor="middle">{seconds * fifth / 5:.0f}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">processor seconds</text>')
    ratios = list(dict.fromkeys(one["ratio"] for one in runs))
    for place, ratio in enumerate(ratios):
        hue, x = HUES[place % len(HUES)], left + 110 * place
        parts.append(f'<line x1="{x}" y1="18" x2="{x + 20}" y2="18" stroke="{hue}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 26}" y="22">{ratio:.0%} left out</text>')
        for one in runs:
            if one["ratio"] == ratio:
                line = " ".join(point(*pair) for pair in one["curve"])
                parts.append(f'<polyline points="{line}" fill="none" stroke="{hue}" stroke-width="2"/>')
    parts.append(f'<text x="{left + 110 * len(ratios)}" y="22">R@1, mean of both directions</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    train = read_pairs("train", args.train_images, tokenizer, args)
    test = read_pairs("test", args.test_images, tokenizer, args)
    costs, runs = step_costs(args.ratios, train, tokenizer, args), []
    for seed in range(args.seeds):
        for ratio in args.ratios:
            runs.append(run(ratio, seed, train, test, tokenizer, args))
            shown = ", ".join(f"{key} {value:.3f}" for key, value in runs[-1].items() if isinstance(value, float))
            print(f"seed {seed}, {shown}, {runs[-1]['updates']} updates", flush=True)
            written = {"setting": asdict(args), "costs": {str(r): cost for r, cost in costs.items()}, "runs": runs}
            (output / "results.json").write_text(json.dumps(written), encoding="utf-8")
    table = markdown_table(costs, runs)
    (output / "table.md").write_text(table, encoding="utf-8")
    (output / "curves.svg").write_text(svg_plot(runs, args.seconds), encoding="utf-8")
    print(table)
    return runs


if __name__ == "__main__":
    main()
