"""Peak memory and time of one contrastive training step against the size of the batch, cached and not.

    python benchmarks/contrastive_memory.py [--model base] [--batches 64 256 1024 4096] [--chunk 64] [--bf16] [--json]

Each row is a process of its own: it makes a CLIP, takes one step of `ContrastiveTrainer` with one chunk of pairs, and
then measures a step with the whole batch. Memory is what that step needs beyond model, gradients and batch: on a GPU
what torch had allocated at its peak, on the CPU the growth of the resident set up to its peak (Linux). An uncached
batch that does not fit is reported as such, and larger ones are not tried. On a GPU, when there is one; `--model base`
is ViT-B/32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import CLIPConfig, CLIPModel

from hf_mmunify.training import ContrastiveTrainer, ContrastiveTrainingArguments


SIZES = {
    "tiny": {"width": 64, "layers": 2, "heads": 2, "image": 32, "patch": 4, "tokens": 16},
    "small": {"width": 192, "layers": 6, "heads": 3, "image": 64, "patch": 8, "tokens": 32},
    "base": {"width": 768, "layers": 12, "heads": 12, "image": 224, "patch": 32, "tokens": 77},
}


def model_of(size: dict[str, int]) -> CLIPModel:
    tower = {"num_hidden_layers": size["layers"], "num_attention_heads": size["heads"]}
    tower |= {"hidden_size": size["width"], "intermediate_size": 4 * size["width"], "attention_dropout": 0.1}
    config = CLIPConfig(
        vision_config={**tower, "image_size": size["image"], "patch_size": size["patch"]},
        text_config={**tower, "max_position_embeddings": size["tokens"], "vocab_size": 1000}
        | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        projection_dim=size["width"],
    )
    return CLIPModel(config)


def batch_of(size: dict[str, int], pairs: int, device: torch.device) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(pairs, 3, size["image"], size["image"], generator=draw).to(device),
        "input_ids": torch.randint(3, 1000, (pairs, size["tokens"]), generator=draw).to(device),
    }


def resident(line: str) -> int:
    """Bytes of this process in memory, as Linux counts them: now (`VmRSS`) or at the peak (`VmHWM`)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(f"{line}:")[1].split()[0])


def measure(options: argparse.Namespace, pairs: int, is_cached: bool) -> dict[str, float]:
    """One step in this process: megabytes at its peak, seconds."""
    transformers.set_seed(0)
    size = SIZES[options.model]
    with tempfile.TemporaryDirectory() as folder:
        args = ContrastiveTrainingArguments(
            folder,
            per_device_train_batch_size=pairs,
            gradient_cache_chunk_size=options.chunk if is_cached else None,
            bf16=options.bf16,
        )
        trainer = ContrastiveTrainer(model_of(size), args)
    trainer.current_gradient_accumulation_steps = 1
    model, device = trainer.accelerator.prepare_model(trainer.model), args.device
    trainer.training_step(model, batch_of(size, options.chunk, device))
    batch = batch_of(size, pairs, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the first step
    start = time.perf_counter()
    trainer.training_step(model, batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resident("VmHWM")
    return {"megabytes": (peak - before) / 1e6, "seconds": time.perf_counter() - start}


def rows_of(options: argparse.Namespace) -> list[dict]:
    rows = []
    for is_cached in (True, False):
        for pairs in (size for size in options.batches if is_cached or size <= options.uncached_up_to):
            command = [sys.executable, __file__, *sys.argv[1:], "--one", str(pairs), "--cached", str(int(is_cached))]
            # Tensors are given back to the system when they are freed, so that the resident set is what is in use
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            result = subprocess.run(command, env=environment, capture_output=True, text=True)
            row = {"batch": pairs, "cached": is_cached}
            if result.returncode:
                reason = result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "killed"
                if "memory" not in reason and result.returncode > 0:
                    raise RuntimeError(f"The step with {pairs} pairs failed: {result.stderr[-2000:]}")
                rows.append({**row, "error": reason})
                break
            rows.append(row | json.loads(result.stdout.splitlines()[-1]))
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| pairs | cached: MB | s | not cached: MB | s |", "|---|---|---|---|---|"]
    for pairs in sorted({row["batch"] for row in rows}):
        cells = []
        for is_cached in (True, False):
            row = next((row for row in rows if (row["batch"], row["cached"]) == (pairs, is_cached)), None)
            if row is None or "error" in row:
                cells += ["does not fit" if row else "", ""]
            else:
                cells += [f"{row['megabytes']:.0f}", f"{row['seconds']:.2f}"]
        lines.append(f"| {pairs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SIZES), default="small")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--uncached_up_to", type=int, default=10**9, help="Largest batch that is not cached.")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="Sizes for a test.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cached", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.model, options.batches, options.chunk = "tiny", [64, 1024], 32
    if options.one is not None:
        print(json.dumps(measure(options, options.one, bool(options.cached))))
        return
    rows = rows_of(options)
    print(json.dumps(rows) if options.json else table(rows))


if __name__ == "__main__":
    main()
