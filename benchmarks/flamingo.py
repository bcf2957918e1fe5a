"""Flamingo beside OpenFlamingo's modules and transformers' IDEFICS: one run, the same weights, ratios with spread.

    OPEN_FLAMINGO=path/to/open_flamingo python benchmarks/flamingo.py [--rounds 5] [--threads 1] [--output out.json]

`OPEN_FLAMINGO` is a checkout of mlfoundations/open_flamingo (it needs `einops` and `einops_exts`); without it that
column is left out. OpenFlamingo's model is built first, its weights are converted, and logits, loss and gradients are
compared before anything is timed. IDEFICS has another block (SwiGLU, RMS norm) and is built to the same sizes: 12
layers of width 512, a vision tower of 12 layers of width 384, 64 latents, a block before every layer.

Times are processor seconds of this process, so that other work on the machine disturbs them little; the contenders
take turns in every round, and a ratio is taken within its round. Peak memory is that of a fresh process for each.
Each trains with AdamW as its own recipe has it: that of transformers' `Trainer` is fused, OpenFlamingo's is not.

An "update as published" is one of OpenFlamingo's training script: the gradients of interleaved documents and, twice as
many, image-text pairs are added up, clipped, and applied. OpenFlamingo has its own layout (documents padded to 256
tokens and 6 images, gradients of all words but the new ones erased), ours that of `InterleavedCollator`, with packing
and without. Documents are new in every round, the same for all; how long they are, and how many images they have, is
drawn from geometric distributions with the means of MMC4-core without faces: 327 tokens and 4.1 images, of which up
to 6 are kept.

`--precision mixed` trains as the recipes of all three do: what is computed is autocast to bfloat16, what is trained
stays in float32. Ours keeps its frozen parts in bfloat16, as its recipe says; `--frozen bfloat16`: all do.
`--device cuda --size large` is for an accelerator: 24 layers of width 2048, a ViT-L/14, and a clock that waits for the
device. `--compile` adds ours, compiled (decoding with a static cache).
"""

import argparse
import copy
import functools
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    IdeficsConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import hf_mmunify  # noqa: F401  (registers Flamingo)
from hf_mmunify.conversion.engine import export_tensors
from hf_mmunify.conversion.flamingo import convert
from hf_mmunify.data import InterleavedCollator
from hf_mmunify.models.flamingo import FlamingoConfig, FlamingoForConditionalGeneration, FlamingoProcessor


VOCABULARY, IMAGE, END_OF_CHUNK = 8194, 8193, 8192
NEW_TOKENS = [END_OF_CHUNK, IMAGE]
ROWS = 1  # how many times the rows of each batch are repeated
DOCUMENTS, PAIRS = 4, 8  # of an update as published; OpenFlamingo's script has 32 and 64 a process
MAX_TOKENS, MAX_IMAGES = 256, 6  # of a document, OpenFlamingo's defaults
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 224,
    "patch_size": 16,
}


def enlarge() -> None:
    """The sizes of a language model of a billion parameters and of CLIP's ViT-L/14, with four times the rows."""
    global ROWS
    ROWS = 4
    TEXT.update(hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16)
    VISION.update(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )


class Tower(nn.Module):
    """What OpenFlamingo expects of open_clip: a module that returns (pooled, tokens)."""

    def __init__(self, model: CLIPVisionModel):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, self.model(pixels).last_hidden_state[:, 1:]


def open_flamingo(path: str) -> nn.Module:
    """OpenFlamingo's own model, with open gates."""
    package = types.ModuleType("open_flamingo")  # its own __init__ would import open_clip, which nothing here needs
    package.__path__ = [str(Path(path) / "open_flamingo")]
    sys.modules["open_flamingo"] = package
    flamingo = importlib.import_module("open_flamingo.src.flamingo").Flamingo
    mixin = importlib.import_module("open_flamingo.src.flamingo_lm").FlamingoLMMixin
    extend = importlib.import_module("open_flamingo.src.utils").extend_instance

    torch.manual_seed(0)
    language_model = LlamaForCausalLM(LlamaConfig(**TEXT))
    extend(language_model, mixin)
    forward = type(language_model).forward

    def with_optional_mask(self, input_ids, attention_mask=None, **kwargs):  # transformers 5 drops a mask of ones
        return forward(self, input_ids, attention_mask, **kwargs)

    type(language_model).forward = with_optional_mask
    language_model.set_decoder_layers_attr_name("model.layers")
    tower = types.SimpleNamespace(visual=Tower(CLIPVisionModel(CLIPVisionConfig(**VISION))))
    model = flamingo(tower, language_model, END_OF_CHUNK, IMAGE, VISION["hidden_size"])
    with torch.no_grad():
        for block in model.lang_encoder.gated_cross_attn_layers:
            block.attn_gate.fill_(0.5)
            block.ff_gate.fill_(0.5)
    model.requires_grad_(False)
    model.perceiver.requires_grad_(True)
    model.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
    model.lang_encoder.get_input_embeddings().requires_grad_(True)  # as its factory does, for the new tokens' rows
    return model


def ours(theirs: nn.Module | None) -> FlamingoForConditionalGeneration:
    """Our model in OpenFlamingo's shape; with the weights of `theirs`, if given."""
    if theirs is None:
        torch.manual_seed(0)
        config = FlamingoConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            cross_attention_num_heads=8,
            cross_attention_head_dim=64,
            cross_attention_media_norm=False,
            resampler_num_heads=8,
            resampler_head_dim=64,
            resampler_final_norm=True,
            resampler_num_frames=0,
            hidden_act="gelu",
            image_token_id=IMAGE,
            end_of_chunk_token_id=END_OF_CHUNK,
            trained_token_ids=NEW_TOKENS,
        )
        model = FlamingoForConditionalGeneration(config)
        with torch.no_grad():
            for block in model.model.adapter.layers.values():
                block.attention_gate.fill_(0.5)
                block.feed_forward_gate.fill_(0.5)
        return model
    weights = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if "old_decoder_blocks" not in name and "lang_encoder.gated_cross" not in name and "vision" not in name
    }
    original = {
        "model_type": "llama",
        "lm": TEXT,
        "vision": None,
        "vis_dim": VISION["hidden_size"],
        "decoder_layers_attr_name": "model.layers",
        "cross_attn_every_n_layers": 1,
        "eoc_token_id": END_OF_CHUNK,
        "media_token_id": IMAGE,
    }
    blind = convert(weights, original)
    config = blind.config
    config.vision_config = CLIPVisionConfig(**VISION)
    config.trained_token_ids = NEW_TOKENS
    text_model = blind.model.text_model
    model = FlamingoForConditionalGeneration(config, theirs.vision_encoder.model, text_model)
    model.model.adapter.load_state_dict(blind.model.adapter.state_dict(), strict=False)
    with torch.no_grad():
        model.model.adapter.token_rows.input_rows.copy_(text_model.get_input_embeddings().weight[NEW_TOKENS])
        model.model.adapter.token_rows.output_rows.copy_(text_model.get_output_embeddings().weight[NEW_TOKENS])
    return model


def idefics() -> nn.Module:
    """transformers' IDEFICS at the same sizes, its frozen parts frozen."""
    from transformers import IdeficsForVisionText2Text

    torch.manual_seed(0)
    config = IdeficsConfig(
        **{name: value for name, value in TEXT.items() if name not in ("bos_token_id", "eos_token_id")},
        additional_vocab_size=0,
        cross_layer_interval=1,
        use_resampler=True,
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 64,
            "resampler_depth": 6,
            "resampler_n_heads": 8,
            "resampler_head_dim": 64,
            "qk_layer_norms_perceiver": False,
        },
        vision_config={
            "embed_dim": VISION["hidden_size"],
            "intermediate_size": VISION["intermediate_size"],
            "num_hidden_layers": VISION["num_hidden_layers"],
            "num_attention_heads": VISION["num_attention_heads"],
            "image_size": VISION["image_size"],
            "patch_size": VISION["patch_size"],
        },
        alpha_initializer="ones",
        eos_token_id=None,
    )
    model = IdeficsForVisionText2Text(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("perceiver" in name or "gated_cross" in name)
    return model


def inputs(length: int, *images: int) -> dict[str, torch.Tensor]:
    """Rows of text with so many `images` each, evenly spread from the first token on; short rows are padded."""
    generator = torch.Generator().manual_seed(0)
    images = images * ROWS
    ids = torch.randint(3, 8000, (len(images), length), generator=generator)
    side = VISION["image_size"]
    pixels = torch.zeros(len(images), max(images), 3, side, side)
    mask = torch.zeros(len(images), max(images), dtype=torch.long)
    for row, count in enumerate(images):
        ids[row, torch.linspace(0, length - 1, count + 1)[:-1].long()] = IMAGE
        pixels[row, :count] = torch.randn(count, 3, side, side, generator=generator)
        mask[row, :count] = 1
    return {"ids": ids, "pixels": pixels, "mask": mask}


def processor() -> FlamingoProcessor:
    """A word for every token, and images of the tower's size."""
    vocabulary = {f"w{number}": number for number in range(1, END_OF_CHUNK)}
    vocabulary.update({"<pad>": 0, "<|endofchunk|>": END_OF_CHUNK, "<image>": IMAGE})
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<|endofchunk|>", "<image>"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", additional_special_tokens=special)
    side = {"height": VISION["image_size"], "width": VISION["image_size"]}
    return FlamingoProcessor(CLIPImageProcessorPil(size=side, do_center_crop=False), tokenizer)


def drawn_rows(number: int) -> tuple[list[dict], list[dict]]:
    """Interleaved documents and image-text pairs, other ones for every `number`."""
    rng = np.random.default_rng(number)

    def image() -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (VISION["image_size"], VISION["image_size"], 3), np.uint8))

    def words(count: int) -> list[str]:
        return [f"w{word}" for word in rng.integers(3, 8000, count)]

    documents = []
    while len(documents) < DOCUMENTS * ROWS:
        count = min(int(rng.geometric(1 / 4.1)), MAX_IMAGES)
        if count == 1 and rng.random() < 0.5:  # OpenFlamingo leaves out half of the documents with one image
            continue
        text = words(max(int(rng.geometric(1 / 327)), 8 * count))
        for place in np.linspace(0, len(text), count, endpoint=False).astype(int)[::-1]:
            text.insert(place, "<image>")
        documents.append({"images": [image() for _ in range(count)], "text": " ".join(text)})
    lengths = rng.integers(6, 30, PAIRS * ROWS)
    return documents, [{"image": image(), "text": " ".join(words(length))} for length in lengths]


def published(number: int) -> dict[str, list[dict[str, torch.Tensor]]]:
    """The two batches of an update as published, for the documents and pairs of this `number`, in every layout."""
    settings = {"max_images": MAX_IMAGES, "max_length": MAX_TOKENS, "next_image_probability": 0.0}
    settings.update(random_window=False, learn_text_without_image=False)
    found = {}
    for name, packing in (("packed", True), ("rows", False)):
        collator = InterleavedCollator(processor(), packing=packing, **settings)
        found[name] = [collator(rows) for rows in drawn_rows(number)]
    found["open_flamingo"] = []
    for batch, length, images in zip(found["rows"], (MAX_TOKENS, 0), (MAX_IMAGES, 0)):
        missing = max(0, length - batch["input_ids"].shape[1])
        without = max(0, images - batch["pixel_values"].shape[1])
        pad = nn.functional.pad
        laid_out = {
            "lang_x": pad(batch["input_ids"], (0, missing)),
            "attention_mask": pad(batch["attention_mask"], (0, missing)),
            "labels": pad(batch["labels"], (0, missing), value=-100),
            "vision_x": pad(batch["pixel_values"], (0, 0, 0, 0, 0, 0, 0, without))[:, :, None],
        }
        found["open_flamingo"].append(laid_out)
    found["idefics"] = []
    for batch in found["rows"]:
        index, images = batch["media_index"], batch["pixel_values"].shape[1]
        seen = (index[..., None] == torch.arange(1, images + 1)).long()
        kept = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")}
        found["idefics"].append({**kept, "image_attention_mask": seen})
    return found


class Contender:
    """One model behind one interface: `train_step(batch)`, `prefill(batch)` and `generate(batch, tokens)`."""

    def __init__(self, name: str, theirs: nn.Module | None = None, device: str = "cpu"):
        self.name = name
        make = {"open_flamingo": lambda: theirs, "ours": lambda: ours(theirs), "idefics": idefics}
        self.model = make[name]().to(device)
        self.run = self.model  # what computes: the model, or its compiled form
        self.device, self.precision = device, "float32"
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=name != "open_flamingo" or None)

    def mix_precision(self, frozen: torch.dtype) -> None:
        """Compute in bfloat16 from now on, with what is frozen kept in `frozen`."""
        self.precision = "mixed"
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(frozen)

    def compiled(self) -> "Contender":
        """The same model behind `torch.compile`."""
        other = copy.copy(self)
        other.name, other.run = f"{self.name}_compiled", torch.compile(self.model, dynamic=False)
        return other

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "mixed")

    def call(self, batch: dict[str, torch.Tensor]) -> dict:
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        ids, pixels = batch["ids"], batch["pixels"]
        if self.name.startswith("ours"):
            found = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
            return found if batch["mask"].all() else {**found, "image_mask": batch["mask"]}
        if self.name == "open_flamingo":
            return {"lang_x": ids, "vision_x": pixels[:, :, None], "attention_mask": torch.ones_like(ids)}
        number = (ids == IMAGE).cumsum(1)[..., None]
        seen = (number == torch.arange(1, pixels.shape[1] + 1, device=self.device)).long()
        return {
            "input_ids": ids,
            "pixel_values": pixels,
            "attention_mask": torch.ones_like(ids),
            "image_attention_mask": seen,
        }

    def forward(self, batch: dict[str, torch.Tensor]):
        labels = batch["ids"].masked_fill(batch["ids"] == IMAGE, -100).to(self.device)
        return self.run(**self.call(batch), labels=labels)

    def train_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.model.train()
        with self.autocast():
            loss = self.forward(batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def accumulate(self, batches: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        """Add up the gradients of several batches, given in this model's layout; their losses."""
        self.model.train()
        losses = []
        for batch in batches:
            with self.autocast():
                losses.append(self.run(**{name: tensor.to(self.device) for name, tensor in batch.items()}).loss)
            losses[-1].backward()
        if self.name == "open_flamingo":  # which trains all words' embeddings to train the new ones
            gradient = self.model.lang_encoder.get_input_embeddings().weight.grad
            kept = torch.zeros_like(gradient)
            kept[NEW_TOKENS] = 1
            gradient.mul_(kept)
        return losses

    def update(self, batches: list[dict[str, torch.Tensor]]) -> None:
        """One update as published."""
        self.accumulate(batches)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def prefill(self, batch: dict[str, torch.Tensor]) -> None:
        self.model.eval()
        with self.autocast():
            self.run(**self.call(batch))

    @torch.no_grad()
    def generate(self, batch: dict[str, torch.Tensor], tokens: int, **settings) -> torch.Tensor:
        self.model.eval()
        settings.update(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        if self.run is not self.model:
            settings.update(cache_implementation="static")  # with it, `generate` compiles each step
        with self.autocast():
            return self.model.generate(**self.call(batch), **settings)

    def seconds_a_token(self, batch: dict[str, torch.Tensor], tokens: int = 16) -> float:
        """Of decoding alone: from the first new token to the last, the prompt and its images not counted."""
        clock = []

        def tick(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            clock.append(now())
            return scores

        self.generate(batch, tokens + 1, logits_processor=[tick])
        return (clock[-1] - clock[0]) / tokens


def compare(theirs: Contender, mine: Contender) -> dict[str, float]:
    """Largest differences of logits, loss and trained gradients; nothing is timed that does not agree."""

    def gradient_difference() -> float:
        gradients = {name: p.grad for name, p in mine.model.named_parameters() if p.grad is not None}
        named = export_tensors(mine.model, gradients)
        original = dict(theirs.model.named_parameters())
        worst = max((named[name] - p.grad).abs().max().item() for name, p in original.items() if name in named)
        for contender in (theirs, mine):
            contender.optimizer.zero_grad()
        return worst

    batch = inputs(64, 3, 2)
    theirs.model.eval()
    mine.model.eval()
    a, b = theirs.forward(batch), mine.forward(batch)
    a.loss.backward()
    b.loss.backward()
    found = {
        "logits": (a.logits - b.logits).abs().max().item(),
        "loss": (a.loss - b.loss).abs().item(),
        "gradients": gradient_difference(),
    }
    same = torch.equal(theirs.generate(batch, 4), mine.generate(batch, 4))
    batches = published(0)
    for layout in ("rows", "packed"):
        losses = zip(theirs.accumulate(batches["open_flamingo"]), mine.accumulate(batches[layout]))
        found[f"losses of an update, {layout}"] = max((a - b).abs().item() for a, b in losses)
        found[f"gradients of an update, {layout}"] = gradient_difference()
    differ = [name for name, value in found.items() if name != "logits" and value > 1e-4]
    if differ or found["logits"] > 1e-4 * max(1, a.logits.abs().max().item()) or not same:
        raise SystemExit(f"The outputs differ, so their times say nothing: {found}, generations equal: {same}.")
    return found


def now() -> float:
    """Processor seconds of this process; with an accelerator, the time once it has done all it was given."""
    if not torch.cuda.is_initialized():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], None]) -> float:
    start = now()
    work()
    return now() - start


def measure(contenders: list[Contender], rounds: int, only: str) -> dict[str, dict[str, list[float]]]:
    """Seconds of every task whose name `only` matches, for every contender, round by round."""
    training = {
        "3 images a row": inputs(256, 3, 3),
        "1 to 5 images a row": inputs(256, 1, 2, 3, 5),
        "16 images a row": inputs(256, 16),
    }
    updates = functools.cache(published)  # of a round, the same for all

    def update(contender: Contender, number: int, mine: str) -> float:
        batches = updates(number)[contender.name if contender.name in ("open_flamingo", "idefics") else mine]
        return seconds(lambda: contender.update(batches))

    tasks: dict[str, Callable[[Contender, int], float]] = {}
    for name, batch in training.items():
        tasks[f"training step, {name}"] = lambda c, _, batch=batch: seconds(lambda: c.train_step(batch))
    tasks["update as published, packed"] = functools.partial(update, mine="packed")
    tasks["update as published, not packed"] = functools.partial(update, mine="rows")
    tasks["prefill, 3 images a row"] = lambda c, _: seconds(lambda: c.prefill(training["3 images a row"]))
    for images in (1, 3, 8, 32):
        prompt = inputs(64, images, images)
        tasks[f"decoded token, {images} image{'s' * (images > 1)}"] = lambda c, _, p=prompt: c.seconds_a_token(p)
    tasks = {task: run for task, run in tasks.items() if re.search(only, task)}
    found = {task: {contender.name: [] for contender in contenders} for task in tasks}
    warm_up = list(tasks.values()) if torch.cuda.is_initialized() else list(tasks.values())[:1]
    for run in warm_up:  # the first step allocates, and compiles what is compiled
        for contender in contenders:
            run(contender, 0)
    for number in range(rounds):
        for task, run in tasks.items():
            for contender in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
                found[task][contender.name].append(run(contender, number))
    return found


def peak_memory(name: str, arguments: argparse.Namespace) -> float:
    """Peak megabytes of a fresh process that trains one step of `name`: resident, or on the accelerator."""
    command = [sys.executable, __file__, "--peak", name, "--device", arguments.device, "--size", arguments.size]
    command += ["--precision", arguments.precision, "--frozen", arguments.frozen]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def table(found: dict, memory: dict[str, float]) -> str:
    """Medians, and the ratio of each peer to ours with its lowest and highest round."""
    names = list(memory)
    peers = [name for name in names if name != "ours"]
    header = ["", *names, *(f"{name} / ours" for name in peers)]
    rows = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for task, times in found.items():
        cells = [task, *(f"{1000 * statistics.median(times[name]):.1f} ms" for name in names)]
        for peer in peers:
            ratios = sorted(a / b for a, b in zip(times[peer], times["ours"]))
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        rows.append("| " + " | ".join(cells) + " |")
    cells = ["peak memory, training step", *(f"{memory[name]:.0f} MB" for name in names)]
    cells += [f"{memory[peer] / memory['ours']:.2f}" for peer in peers]
    return "\n".join([*rows, "| " + " | ".join(cells) + " |"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often every contender does every task")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--only", default="", help="a regular expression: the names of the tasks to measure")
    parser.add_argument("--compile", action="store_true", help="ours a second time, compiled")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    parser.add_argument("--precision", choices=("float32", "mixed"), default="float32", help="of what is computed")
    parser.add_argument(
        "--frozen", choices=("float32", "bfloat16"), default="float32", help="of the peers' frozen parts"
    )
    parser.add_argument("--size", choices=("small", "large"), default="small", help="of the models and batches")
    parser.add_argument("--output", type=Path, help="a json file for all measured seconds")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.size == "large":
        enlarge()
    on_accelerator = arguments.device != "cpu"
    path = os.environ.get("OPEN_FLAMINGO")

    def prepare(contender: Contender) -> None:
        if arguments.precision == "mixed":
            contender.mix_precision(torch.bfloat16 if contender.name == "ours" else getattr(torch, arguments.frozen))

    if arguments.peak:
        name = arguments.peak.removesuffix("_compiled")
        theirs = open_flamingo(path) if name == "open_flamingo" else None
        contender = Contender(name, theirs, arguments.device)
        del theirs
        prepare(contender)
        if name != arguments.peak:
            contender = contender.compiled()
        contender.train_step(inputs(256, 3, 3))
        status = Path("/proc/self/status").read_text()  # unlike getrusage, it does not remember the parent's peak
        resident = int(status.split("VmHWM:")[1].split()[0]) / 1024
        print(torch.cuda.max_memory_allocated() / 2**20 if on_accelerator else resident)
        return
    theirs = open_flamingo(path) if path else None
    contenders = [Contender(name, theirs, arguments.device) for name in ("ours", "idefics")]
    if path:
        contenders.insert(0, Contender("open_flamingo", theirs, arguments.device))
        print("outputs differ by at most", compare(contenders[0], contenders[1]))
    else:
        print("OPEN_FLAMINGO is not set: its column is left out")
    for contender in contenders:
        prepare(contender)
    if arguments.compile:
        contenders.append(next(contender for contender in contenders if contender.name == "ours").compiled())
    found = measure(contenders, arguments.rounds, arguments.only)
    memory = {contender.name: peak_memory(contender.name, arguments) for contender in contenders}
    print(table(found, memory))
    if arguments.output:
        arguments.output.write_text(json.dumps({"seconds": found, "megabytes": memory}, indent=2))


if __name__ == "__main__":
    main()
