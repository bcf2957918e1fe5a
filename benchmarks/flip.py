"""FLIP's training step at 0, 50 and 75 % of patches left out: one run, the same weights, ratios with spread.

    python benchmarks/flip.py [--size base] [--batch 16] [--rounds 5] [--threads 1] [--output out.json]
    python benchmarks/flip.py --device cuda --precision bfloat16 --size large --batch 256 --largest

Sizes are the paper's (B/16, L/16, H/14), texts have 32 tokens. A step is forward pass, loss, backward pass and AdamW.
On a CPU times are processor seconds of this process, so that other work on the machine disturbs them little, and
memory is what the forward pass keeps for the backward pass; on a GPU the clock waits for the device, memory is the
peak that was allocated, and `--precision bfloat16` (autocast) is how one trains. Ratios take turns in every round.
Each row also says how many images pass in a second, how much of the vision tower's arithmetic is left, and the largest
batch that a GPU holds, if `--largest` asks for it. What keeping every patch changes in the loss is printed first.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from hf_mmunify.models.flip import FlipConfig, FlipModel


SIZES = {  # vision width, layers, heads, patch; text width, layers, heads; shared space
    "tiny": ((64, 2, 2, 16), (64, 2, 2), 64),
    "base": ((768, 12, 12, 16), (512, 12, 8), 512),
    "large": ((1024, 24, 16, 16), (768, 12, 12), 768),
    "huge": ((1280, 32, 16, 14), (1024, 24, 16), 1024),
}
TOKENS = 32


def build(size: str, device: torch.device) -> FlipModel:
    """A FLIP of the paper's shape with random weights, for training."""
    (width, layers, heads, patch), (text_width, text_layers, text_heads), shared = SIZES[size]
    config = FlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "patch_size": patch,
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
        },
        projection_dim=shared,
    )
    torch.manual_seed(0)
    with device:
        return FlipModel(config).train()


def make_batch(model: FlipModel, number: int, device: torch.device) -> dict[str, torch.Tensor]:
    """As many pairs of noise."""
    side, words = model.config.vision_config.image_size, model.config.text_config.vocab_size
    return {
        "pixel_values": torch.randn(number, 3, side, side, device=device),
        "input_ids": torch.randint(1, words, (number, TOKENS), device=device),
    }


def vision_operations(model: FlipModel, ratio: float) -> float:
    """Multiplications and additions of a training step in the vision tower, for one image."""
    vision = model.config.vision_config
    patches = model.vision_model.grid**2
    length, width = 1 + max(1, int(patches * (1 - ratio))), vision.hidden_size
    layer = 2 * length * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * length**2 * width
    return 3 * (vision.num_hidden_layers * layer + 2 * patches * 3 * vision.patch_size**2 * width)


class Trainer:
    """One model that all ratios share, and its optimizer."""

    def __init__(self, model: FlipModel, precision: str, device: torch.device):
        self.model, self.device = model, device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.2)
        is_mixed = precision == "bfloat16"
        self.context = (lambda: torch.autocast(device.type, torch.bfloat16)) if is_mixed else nullcontext

    def loss(self, batch: dict[str, torch.Tensor], ratio: float) -> torch.Tensor:
        self.model.vision_model.config.mask_ratio = ratio
        with self.context():
            return self.model(**batch, return_loss=True).loss

    def step(self, batch: dict[str, torch.Tensor], ratio: float) -> None:
        self.loss(batch, ratio).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, work: Callable[[], None]) -> float:
        if self.device.type != "cuda":
            start = time.process_time()
            work()
            return time.process_time() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def memory(self, batch: dict[str, torch.Tensor], ratio: float) -> int:
        """Bytes: the peak of a step on a GPU; what the backward pass waits for on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.step(batch, ratio)
            return torch.cuda.max_memory_allocated()
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.loss(batch, ratio)
        del loss
        return sum(kept.values())

    def largest_batch(self, ratio: float) -> int:
        """The largest power of two of pairs with which a step fits into the GPU."""
        number = 1
        while True:
            try:
                self.step(make_batch(self.model, 2 * number, self.device), ratio)
            except torch.cuda.OutOfMemoryError:
                self.optimizer.zero_grad()
                gc.collect()
                torch.cuda.empty_cache()
                return number
            number *= 2


@torch.no_grad()
def check(trainer: Trainer, batch: dict[str, torch.Tensor]) -> float:
    """How far the loss with every patch kept, in another order, is from that without masking."""
    patches = trainer.model.vision_model.grid**2
    everything = torch.arange(patches - 1, -1, -1, device=trainer.device).expand(len(batch["input_ids"]), -1)
    kept = trainer.model(**batch, return_loss=True, patch_indices=everything).loss
    trainer.model.vision_model.config.mask_ratio = 0.0
    return abs(kept - trainer.model(**batch, return_loss=True).loss).item()


def table(results: dict[str, dict], is_gpu: bool) -> str:
    """A row a ratio; the spread is that of the rounds."""
    memory = "peak memory" if is_gpu else "kept for backward"
    names = ("left out", "training step", "of the whole (spread)", "images a second", memory, "tower's arithmetic")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    first = next(iter(results.values()))
    for ratio, found in results.items():
        shares = sorted(a / b for a, b in zip(found["seconds"], first["seconds"]))
        step = statistics.median(found["seconds"])
        spread = f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})"
        largest = f", largest batch {found['largest_batch']}" if "largest_batch" in found else ""
        size = f"{found['bytes'] / 1e6:.0f} MB ({found['bytes'] / first['bytes']:.2f}){largest}"
        lines.append(
            f"| {float(ratio):.0%} | {1000 * step:.0f} ms | {spread} | {found['batch'] / step:.1f} | {size} | "
            f"{found['operations']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.5, 0.75])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--largest", action="store_true", help="find the largest batch that a GPU holds")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.largest and device.type != "cuda":
        parser.error("--largest looks for the limit of a GPU's memory: add --device cuda.")

    model = build(arguments.size, device)
    trainer, batch = Trainer(model, arguments.precision, device), make_batch(model, arguments.batch, device)
    print(f"{model.num_parameters():,} parameters; every patch kept: loss differs by {check(trainer, batch):.1e}")
    results = {
        str(ratio): {
            "seconds": [],
            "batch": arguments.batch,
            "operations": vision_operations(model, ratio) / vision_operations(model, arguments.ratios[0]),
        }
        for ratio in arguments.ratios
    }
    for number in range(arguments.rounds + 1):
        for ratio in arguments.ratios:
            spent = trainer.seconds(lambda ratio=ratio: trainer.step(batch, ratio))
            if number:  # the first one allocates
                results[str(ratio)]["seconds"].append(spent)
    for ratio in arguments.ratios:
        results[str(ratio)]["bytes"] = trainer.memory(batch, ratio)
        if arguments.largest:
            results[str(ratio)]["largest_batch"] = trainer.largest_batch(ratio)
    print(table(results, device.type == "cuda"))
    if arguments.output:
        arguments.output.write_text(json.dumps({"size": arguments.size, "results": results}), encoding="utf-8")


if __name__ == "__main__":
    main()
