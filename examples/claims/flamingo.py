# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""The claims of the Flamingo paper in small: each choice of its ablations against the choice it made, over seeds.

    python examples/claims/flamingo.py --output runs/claims/flamingo

Less than ten minutes on two quiet cores, offline. A small vision tower learns to read handwriting, a small language
model learns the words of captions and questions without ever seeing an image; both are then frozen and shared by all
variants, and an adapter for each variant and seed is trained on digit scenes. A claim or two, longer:

    python examples/claims/flamingo.py --claims gating resampler --steps 600 --seeds 4

Written to `--output`: `results.json` (every run, with its loss curve), `table.md`, and `scores.svg`, a plot of both
scores. A score is exact match on handwriting of writers whom no part was trained on. README.md beside this file holds
what we measured.

Paper: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), tables 3 and 10.
"""

import copy
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from html import escape
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    get_cosine_schedule_with_warmup,
    set_seed,
)
from transformers.utils import logging

from hf_mmunify.data.digit_scenes import (
    CAPTION_PROMPT,
    COLORS,
    DIGITS,
    QUESTION_PROMPT,
    VOCABULARY,
    DigitScenes,
)
from hf_mmunify.models.flamingo import FlamingoForConditionalGeneration, FlamingoProcessor


MAX_IMAGES = 5  # of a document, as in the paper
LEARNING_RATE, GATE_RATE = 3e-3, 20  # gates move little in few steps: their rate is so many times as high
BATCH_SIZE = 16  # documents in an update
OPEN = 10.0  # tanh(10) = 1 in float32: a gate that is no gate
TASKS = {"caption": "Caption", "vqa": "VQA"}

# The smallest adapter that learns within minutes; squared ReLU and more layers learn too, but later
ADAPTER = {
    "cross_attention_num_heads": 4,
    "cross_attention_head_dim": 32,
    "cross_attention_intermediate_size": 256,
    "resampler_num_latents": 9,
    "resampler_num_layers": 1,
    "resampler_num_heads": 4,
    "resampler_head_dim": 24,
    "resampler_num_frames": 0,
    "resampler_final_norm": True,
    "hidden_act": "gelu",
    "initializer_range": 0.05,
}


@dataclass(frozen=True)
class Variant:
    """A way to build or train Flamingo; every default is the paper's choice.

    Args:
        title (`str`): Its name in table and plot.
        paper (`float`): Overall score of the paper's ablation (Flamingo-3B, 4 shots).
        config (`dict`): Fields of `FlamingoConfig` that differ.
        gates (`bool`): Whether gates start closed and are learned; otherwise they stay open.
        resampler (`bool`): Whether images pass the resampler; otherwise the blocks read the tower's tokens.
        interleaved (`bool`): Whether a document has up to five images with their texts; otherwise one, and an update
            has as many more documents.
        accumulate (`bool`): Whether each update has gradients of both datasets; otherwise they take turns.
    """

    title: str
    paper: float
    config: dict[str, Any] = field(default_factory=dict)
    gates: bool = True
    resampler: bool = True
    interleaved: bool = True
    accumulate: bool = True


VARIANTS = {
    "paper": Variant("as in the paper", 70.7),
    "no_gates": Variant("no gates", 66.5, gates=False),
    "every_2": Variant("a block before every 2nd layer", 68.2, {"cross_attention_interval": 2}),
    "every_4": Variant("a block before every 4th layer", 68.8, {"cross_attention_interval": 4}),
    "no_resampler": Variant("no resampler (paper: an MLP)", 66.6, resampler=False),
    "trained_language_model": Variant("language model trained too", 62.7, {"freeze_language_model": False}),
    "all_previous": Variant("all previous images seen", 63.5, {"only_attend_immediate_media": False}),
    "pairs": Variant("pairs only (paper: no M3W)", 53.4, interleaved=False),
    "round_robin": Variant("round-robin updates", 62.9, accumulate=False),
}
CLAIMS = {
    "gating": ["no_gates"],
    "frequency": ["every_2", "every_4"],
    "resampler": ["no_resampler"],
    "frozen": ["trained_language_model"],
    "immediate": ["all_previous"],
    "interleaved": ["pairs"],
    "accumulated": ["round_robin"],
}


@dataclass
class ScriptArguments:
    claims: list[str] = field(
        default_factory=lambda: list(CLAIMS), metadata={"choices": list(CLAIMS), "help": "What to compare."}
    )
    steps: int = field(default=400, metadata={"help": "Updates of an adapter."})
    seeds: int = field(default=2, metadata={"help": "Adapters of each variant."})
    vision_steps: int = field(default=500, metadata={"help": "Updates of the vision tower."})
    language_steps: int = field(default=120, metadata={"help": "Updates of the language model."})
    train_images: int = field(default=4000, metadata={"help": "Images of each task to train on."})
    test_images: int = field(default=500, metadata={"help": "Held-out images of each task."})
    shots: list[int] = field(default_factory=lambda: [0, 4], metadata={"help": "Numbers of solved examples."})
    processes: int = field(default=2, metadata={"help": "Adapters trained at once, each on one thread; 1 for none."})
    output: str = field(default="runs/claims/flamingo", metadata={"help": "Folder for results, table and plot."})


@dataclass
class Items:
    """Images of one task with their words; the first `num_train` are to train on, the others are held out.

    Args:
        features (`Tensor` `[N, V, D]`): What the tower makes of each image.
        prompts (`list[list[int]]`), answers (`list[list[int]]`): Their tokens.
        num_train (`int`): How many belong to the training split.
    """

    features: torch.Tensor
    prompts: list[list[int]]
    answers: list[list[int]]
    num_train: int


@dataclass
class Parts:
    """What all variants share.

    Args:
        tower (`ViTModel`), language_model (`LlamaForCausalLM`): As trained here.
        processor (`FlamingoProcessor`): Names the two new tokens.
        items (`dict[str, Items]`): The data of each task.
        black (`Tensor` `[V, D]`): What the tower makes of a black image.
    """

    tower: ViTModel
    language_model: LlamaForCausalLM
    processor: FlamingoProcessor
    items: dict[str, Items]
    black: torch.Tensor


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *VOCABULARY]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def as_pixels(images: Sequence[np.ndarray]) -> torch.Tensor:
    """Images uint8 `[H, W, 3]` to pixels from -1 to 1 `[N, 3, H, W]`."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


def optimize(groups: list[dict], steps: int, updates: Iterator[Iterable[tuple[torch.Tensor, float]]]) -> list[float]:
    """`steps` updates by AdamW, over a cosine of the learning rate.

    Args:
        groups (`list[dict]`): Parameters, as an optimizer takes them.
        steps (`int`): Updates, the first of which warm up.
        updates (`Iterator`): For each update some losses with their weights; the gradient of one is added before the
            next is asked for.

    Returns:
        `list[float]`: the weighted sum of the losses at each update.
    """
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(30, steps // 5), steps)
    parameters = [parameter for group in groups for parameter in group["params"]]
    curve = []
    for _ in range(steps):
        total = 0.0
        for loss, weight in next(updates):
            (weight * loss).backward()
            total += weight * loss.item()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append(total)
    return curve


def learn_to_see(steps: int, batch_size: int) -> ViTModel:
    """A tower that has learned what is in each cell of a scene (digit, color, place); its heads are thrown away."""
    config = ViTConfig(
        image_size=24,
        patch_size=8,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.1,
    )
    tower, heads = ViTModel(config, add_pooling_layer=False), nn.Linear(96, len(DIGITS) + 1 + len(COLORS) + 1 + 9)
    scenes = DigitScenes("train")

    def updates() -> Iterator:
        for start in range(0, steps * batch_size, batch_size):
            rows = [scenes.cells(index) for index in range(start, start + batch_size)]
            pixels = as_pixels([row["image"] for row in rows])
            pixels = pixels + 0.3 * torch.randn_like(pixels)  # so few writers would else be learned by heart
            scores = heads(tower(pixel_values=pixels).last_hidden_state[:, 1:])  # [B, 9, classes]
            answers = [torch.tensor([row[name] for row in rows]) for name in ("digits", "colors")]
            answers.append(torch.arange(9).expand_as(answers[0]))
            split = scores.split([len(DIGITS) + 1, len(COLORS) + 1, 9], dim=-1)
            yield [(sum(nn.functional.cross_entropy(s.mT, a) for s, a in zip(split, answers)), 1.0)]

    optimize([{"params": [*tower.parameters(), *heads.parameters()]}], steps, updates())
    return tower.eval()


def load_items(
    tower: ViTModel, tokenizer: PreTrainedTokenizerFast, num_train: int, num_test: int
) -> tuple[dict[str, Items], torch.Tensor]:
    """The items of each task, and what the tower makes of a black image `[V, D]`.

    An answer says the word that was asked for once more ("what digit is red? answer: red seven"): a block looks with
    the word it stands at, and a language model of four layers would else have to carry the word there first.
    """

    @torch.no_grad()
    def encode(images: Sequence[np.ndarray]) -> torch.Tensor:
        parts = [tower(pixel_values=part).last_hidden_state[:, 1:] for part in as_pixels(images).split(500)]
        return torch.cat(parts)  # without the class token

    items = {}
    splits = {"train": num_train, "test": num_test}
    for task in TASKS:
        rows = []
        for split, size in splits.items():
            rows += DigitScenes(split, max_objects=2, question_types=("color", "digit", "count")).examples(task, size)
        if task == "caption":
            prompts, answers = [CAPTION_PROMPT] * len(rows), [row["caption"] for row in rows]
        else:
            prompts = [QUESTION_PROMPT.format(question=row["question"]) for row in rows]
            asked = [re.fullmatch(r"what (?:digit is|color is the) (\w+)\?", row["question"]) for row in rows]
            answers = [f"{word[1]} {row['answer']}" if word else row["answer"] for word, row in zip(asked, rows)]
        items[task] = Items(
            encode([row["image"] for row in rows]),
            *(tokenizer(texts, add_special_tokens=False).input_ids for texts in (prompts, answers)),
            num_train,
        )
    black = np.zeros((1, 24, 24, 3), np.uint8)
    return items, encode(black)[0]


def documents(items: Items, interleaved: bool, size: int, rng: np.random.Generator) -> list[list[int]]:
    """Items of each of `size` documents; those that are not interleaved have one each, and are as many as images."""
    lengths = rng.integers(1, MAX_IMAGES + 1, size)
    lengths = lengths if interleaved else np.ones(lengths.sum(), np.int64)
    return [rng.integers(items.num_train, size=length).tolist() for length in lengths]


def learn_to_speak(
    items: dict[str, Items], tokenizer: PreTrainedTokenizerFast, steps: int, batch_size: int
) -> LlamaForCausalLM:
    """A language model of the words of documents; it never sees an image."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model, rng = LlamaForCausalLM(config), np.random.default_rng(0)

    def updates() -> Iterator:
        while True:
            texts = []
            for task in items.values():
                for row in documents(task, True, batch_size // len(items), rng):
                    chunks = [[*task.prompts[item], *task.answers[item], tokenizer.eos_token_id] for item in row]
                    texts.append([tokenizer.bos_token_id, *chain.from_iterable(chunks)])
            inputs = tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")
            yield [(model(**inputs, labels=inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)).loss, 1.0)]

    optimize([{"params": list(model.parameters())}], steps, updates())
    return model.eval()


def learn_parts(args: ScriptArguments) -> Parts:
    set_seed(0)
    tokenizer = word_tokenizer()
    tower = learn_to_see(args.vision_steps, batch_size=64)
    items, black = load_items(tower, tokenizer, args.train_images, args.test_images)
    language_model = learn_to_speak(items, tokenizer, args.language_steps, batch_size=64)
    return Parts(tower, language_model, FlamingoProcessor(ViTImageProcessor(), tokenizer), items, black)


def build(parts: Parts, variant: Variant, seed: int) -> FlamingoForConditionalGeneration:
    """A Flamingo of the shared parts with a new adapter."""
    set_seed(seed)
    model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
        parts.tower,
        copy.deepcopy(parts.language_model),
        processor=parts.processor,
        **{**ADAPTER, **variant.config},
    )
    adapter = model.model.adapter
    with torch.no_grad():
        adapter.resampler.latents.mul_(0.1)  # drawn with deviation 1, too far apart for so few updates
    if not variant.gates:
        for block in adapter.layers.values():
            for gate in (block.attention_gate, block.feed_forward_gate):
                nn.init.constant_(gate, OPEN).requires_grad_(False)
    adapter.resampler.requires_grad_(variant.resampler)
    return model


def assemble(
    items: Items, rows: Sequence[Sequence[int]], model: PreTrainedModel, variant: Variant, last_only: bool = False
) -> dict[str, torch.Tensor]:
    """Documents as the model's inputs, with labels on the answers: on all, or on the last one of each document."""
    image, end = model.config.image_token_id, model.config.end_of_chunk_token_id
    text_config = model.config.text_config
    longest = max(map(len, rows))
    tokens, labels = [], []
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])  # [B, M]
    for row in rows:
        ids, learned = [text_config.bos_token_id], [-100]
        for place, item in enumerate(row):
            prompt, answer = [image, *items.prompts[item]], [*items.answers[item], end]
            ids += prompt + answer
            is_learned = not last_only or place == len(row) - 1
            learned += [-100] * len(prompt) + (answer if is_learned else [-100] * len(answer))
        tokens.append(torch.tensor(ids))
        labels.append(torch.tensor(learned))
    input_ids, labels = (
        nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=value)
        for part, value in ((tokens, text_config.pad_token_id), (labels, -100))
    )
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    features = items.features[padded]  # [B, M, V, D]
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != text_config.pad_token_id).long(),
        "labels": labels,
        "image_mask": mask,
        **({"image_features": features[:, :, None]} if variant.resampler else {"image_embeds": features}),
    }


def train(model: PreTrainedModel, variant: Variant, items: dict[str, Items], steps: int, seed: int) -> list[float]:
    """Train what the variant trains, each variant on as many images; returns the loss of each update."""
    rng = np.random.default_rng([1, seed])

    def losses(names: Sequence[str]) -> Iterator[tuple[torch.Tensor, float]]:
        for name in names:
            rows = documents(items[name], variant.interleaved, BATCH_SIZE // len(names), rng)
            yield model(**assemble(items[name], rows, model, variant)).loss, 1 / len(names)

    tasks = list(TASKS)
    updates = (losses(tasks if variant.accumulate else [tasks[step % len(tasks)]]) for step in range(steps))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gates = [parameter for name, parameter in trained.items() if name.endswith("_gate")]
    others = [parameter for name, parameter in trained.items() if not name.endswith("_gate")]
    groups = [{"params": others}, {"params": gates, "lr": GATE_RATE * LEARNING_RATE, "weight_decay": 0.0}]
    model.train()
    model.model.vision_model.eval()
    curve = optimize(groups, steps, updates)
    model.eval()
    return curve


@torch.no_grad()
def exact_match(
    model: PreTrainedModel, variant: Variant, items: Items, shots: int, black: torch.Tensor | None = None
) -> float:
    """Share of held-out answers that greedy decoding writes word for word, and then ends the chunk.

    It does where each token of the answer is the likeliest after those before it, which one pass over the solved
    documents tells for all of them.

    Args:
        shots (`int`): Solved examples before each query, of the training split; the same for every model.
        black (`Tensor` `[V, D]`, *optional*): Shown in the place of every image: the score of a blind model.
    """
    rng = np.random.default_rng(2)
    queries = range(items.num_train, len(items.features))
    rows = [[*rng.integers(items.num_train, size=shots).tolist(), query] for query in queries]
    right = 0
    for start in range(0, len(rows), 100):
        inputs = assemble(items, rows[start : start + 100], model, variant, last_only=True)
        labels = inputs.pop("labels")[:, 1:]
        if black is not None:
            name = "image_features" if variant.resampler else "image_embeds"
            inputs[name] = black.expand_as(inputs[name])
        written = model(**inputs).logits[:, :-1].argmax(dim=-1)
        right += ((written == labels) | (labels == -100)).all(dim=1).sum().item()
    return right / len(rows)


def run(job: tuple[str, int], parts: Parts, args: ScriptArguments) -> dict[str, Any]:
    """Train and test one variant with one seed."""
    started, (name, seed) = time.perf_counter(), job
    variant = VARIANTS[name]
    model = build(parts, variant, seed)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    curve = train(model, variant, parts.items, args.steps, seed)
    scores = {}
    for task in TASKS:
        for shots in args.shots:
            scores[f"{task}_{shots}"] = exact_match(model, variant, parts.items[task], shots)
        scores[f"{task}_blind"] = exact_match(model, variant, parts.items[task], max(args.shots), parts.black)
    blocks = model.model.adapter.layers
    return {
        "variant": name,
        "seed": seed,
        "trained_parameters": trained,
        "training_loss": fmean(curve[-math.ceil(args.steps / 10) :]),
        **scores,
        "attention_gates": {layer: abs(block.attention_gate.tanh().item()) for layer, block in blocks.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "loss_curve": [round(loss, 4) for loss in curve],
    }


def prepare_process() -> None:
    """One thread a process: two of one thread get more done than one of two."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and in brackets the lowest and the highest where there are several."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def of_variant(runs: list[dict[str, Any]], name: str, key: str) -> list[float]:
    return [run[key] for run in runs if run["variant"] == name]


def markdown_table(runs: list[dict[str, Any]], names: Sequence[str], shots: Sequence[int]) -> str:
    """A line for each variant: mean and range over the seeds of both scores and of the training loss."""
    scores = {f"{task}_{number}": f"{title}, {number} shots" for task, title in TASKS.items() for number in shots}
    blind = {f"{task}_blind": f"{title}, blind" for task, title in TASKS.items()}
    columns = {**scores, **blind, "training_loss": "Training loss"}
    lines = [
        f"| Variant | {' | '.join(columns.values())} | Paper, overall |",
        f"|---|{'---|' * (len(columns) + 1)}",
    ]
    for name in names:
        cells = [spread(of_variant(runs, name, key)) for key in columns]
        lines.append(f"| {VARIANTS[name].title} | {' | '.join(cells)} | {VARIANTS[name].paper} |")
    return "\n".join(lines) + "\n"


def svg_plot(runs: list[dict[str, Any]], names: Sequence[str], shots: int) -> str:
    """Both scores of each variant: a dot for the mean over seeds on a line from the lowest to the highest."""
    left, width, line, top = 230, 420, 30, 44
    height = top + line * len(names) + 34
    hues = dict(zip(TASKS, ("#1f6fb2", "#c8552b")))

    def across(score: float) -> float:
        return round(left + score * width, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 24} {height}" role="img" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f"<title>Exact match on unseen handwriting after {shots} shots</title>",
        f'<rect width="{left + width + 24}" height="{height}" fill="#fff"/>',
    ]
    for place, (task, title) in enumerate(TASKS.items()):
        x = left + 110 * place
        parts.append(f'<circle cx="{x}" cy="18" r="5" fill="{hues[task]}"/><text x="{x + 10}" y="22">{title}</text>')
    parts.append(f'<text x="{left + 220}" y="22">exact match, {shots} shots</text>')
    for tenth in range(0, 11, 2):
        x = across(tenth / 10)
        parts.append(f'<line x1="{x}" y1="{top - 10}" x2="{x}" y2="{height - 28}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{height - 12}" text-anchor="middle">{tenth / 10:.1f}</text>')
    for place, name in enumerate(names):
        middle = top + line * place + line // 2
        parts.append(f'<text x="{left - 12}" y="{middle + 4}" text-anchor="end">{escape(VARIANTS[name].title)}</text>')
        for task, shift in zip(TASKS, (-5, 5)):
            scores = of_variant(runs, name, f"{task}_{shots}")
            y, low, high = middle + shift, across(min(scores)), across(max(scores))
            parts.append(
                f'<line x1="{low}" y1="{y}" x2="{high}" y2="{y}" stroke="{hues[task]}" stroke-width="2"/>'
                f'<circle cx="{across(fmean(scores))}" cy="{y}" r="5" fill="{hues[task]}">'
                f"<title>{spread(scores)}</title></circle>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    names = ["paper", *(name for claim in CLAIMS if claim in args.claims for name in CLAIMS[claim])]

    logging.set_verbosity_error()
    started = time.perf_counter()
    parts = learn_parts(args)
    setting = {**asdict(args), "seconds_of_parts": round(time.perf_counter() - started, 1)}
    print(f"vision tower and language model: {setting['seconds_of_parts']} s", flush=True)

    jobs = [(name, seed) for seed in range(args.seeds) for name in names]
    do, runs = partial(run, parts=parts, args=args), []
    with ExitStack() as stack:
        results = map(do, jobs)
        if args.processes > 1:
            pool = ProcessPoolExecutor(args.processes, get_context("spawn"), prepare_process)
            results = stack.enter_context(pool).map(do, jobs)
        for result in results:
            runs.append(result)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in result.items() if isinstance(value, float))
            print(f"seed {result['seed']}, {VARIANTS[result['variant']].title}: {shown}", flush=True)
            (output / "results.json").write_text(json.dumps({"setting": setting, "runs": runs}), encoding="utf-8")
    table = markdown_table(runs, names, args.shots)
    (output / "table.md").write_text(table, encoding="utf-8")
    (output / "scores.svg").write_text(svg_plot(runs, names, max(args.shots)), encoding="utf-8")
    print(table)
    return runs


if __name__ == "__main__":
    main()
