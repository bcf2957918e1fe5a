"""CoCa beside that of open_clip: one run, the same weights, outputs compared first, ratios with spread.

    OPEN_CLIP=path/to/open_clip python benchmarks/coca.py [--rounds 5] [--pairs 4] [--threads 1] [--output out.json]

`OPEN_CLIP` is a checkout of mlfoundations/open_clip; without it there is nothing to compare with, and the program says
so; torchvision and timm need not be there (`side_by_side.open_clip`). A ViT of 6 layers over 224 pixels, a decoder of
3 layers without the image and 3 with it, all of width 384, 256 queries, the vocabulary of CLIP. Times are processor
seconds; AdamW's step is part of a training step.

open_clip pads every text to 76 tokens, here a batch is as long as its longest text: the tasks with short captions give
each what its own tokenizer makes of them. open_clip keeps no keys and values, and reads every word again for the next;
captions are measured here with a cache and without.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import measure, open_clip, table
from torch import nn

from hf_mmunify.conversion.coca import convert
from hf_mmunify.conversion.engine import export_tensors
from hf_mmunify.models.coca import CocaForConditionalGeneration


TEXT = {"context_length": 76, "vocab_size": 49408, "width": 384, "heads": 6, "layers": 3}
ORIGINAL = {
    "embed_dim": 384,
    "vision_cfg": {
        "image_size": 224,
        "layers": 6,
        "width": 384,
        "head_width": 64,
        "patch_size": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 8,
        "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 6},
}
START, END = 49406, 49407
WRITTEN = 24  # tokens of a caption


class Pair:
    """open_clip's model, and ours with its weights."""

    def __init__(self, checkout: str):
        module = open_clip(checkout, "coca_model")
        torch.manual_seed(0)
        self.theirs = module.CoCa(**ORIGINAL)
        nn.init.normal_(self.theirs.text_decoder.text_projection, std=0.05)  # it leaves the head as memory was
        self.ours: CocaForConditionalGeneration = convert(self.theirs.state_dict(), ORIGINAL)
        weights = {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0}
        self.their_loss = open_clip(checkout, "loss").CoCaLoss(**weights)

    def both(self, work: Callable[[bool], object]) -> dict[str, Callable[[], object]]:
        """Contenders of a task, which is told whether it is ours."""
        return {"here": lambda: work(True), "open_clip": lambda: work(False)}

    def loss(self, is_ours: bool, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Both losses with their weights."""
        if is_ours:
            mask = (ids != 0).long()
            batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
            return self.ours(**batch, labels=ids.masked_fill(mask == 0, -100)).loss
        out = self.theirs(pixels, ids)
        parts = self.their_loss(
            out["image_features"], out["text_features"], out["logits"][:, :-1], ids[:, 1:], out["logit_scale"]
        )
        return sum(parts)

    @torch.no_grad()
    def forward(self, is_ours: bool, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Scores of every word."""
        if is_ours:
            return self.ours(pixel_values=pixels, input_ids=ids).logits
        return self.theirs(pixels, ids)["logits"]

    @torch.no_grad()
    def write(self, is_ours: bool, pixels: torch.Tensor, use_cache: bool = True) -> torch.Tensor:
        """Greedy captions. open_clip's `generate` fails under transformers 5.23, so the loop in it is written here."""
        if is_ours:
            settings = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False}
            return self.ours.generate(pixel_values=pixels, use_cache=use_cache, **settings)
        _, image = self.theirs._encode_image(pixels)
        ids = torch.full((len(pixels), 1), START)
        for _ in range(WRITTEN):
            scores = self.theirs.text_decoder(image, self.theirs._encode_text(ids)[1])[:, -1]
            scores[:, END] = -torch.inf
            ids = torch.cat([ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
        return ids


def texts(rows: int, words: int, length: int) -> torch.Tensor:
    """Random words between start and end, `[rows, length]`, of which every second text is shorter."""
    ids = torch.randint(1, START, (rows, length), generator=torch.Generator().manual_seed(words))
    ids[:, 0] = START
    for row in range(rows):
        last = words - 1 - 5 * (row % 2)
        ids[row, last] = END
        ids[row, last + 1 :] = 0
    return ids


def compare(pair: Pair, pixels: torch.Tensor, ids: torch.Tensor) -> None:
    """Print how far losses, gradients and scores are apart; stop where they are not the same."""
    losses = {is_ours: pair.loss(is_ours, pixels, ids) for is_ours in (True, False)}
    for loss in losses.values():
        loss.backward()
    named = export_tensors(pair.ours, {name: p.grad for name, p in pair.ours.named_parameters() if p.grad is not None})
    theirs = {name: p.grad for name, p in pair.theirs.named_parameters() if p.grad is not None}
    found = {
        "loss": abs(losses[True] - losses[False]).item(),
        "gradients": max((named[name] - gradient).abs().max().item() for name, gradient in theirs.items()),
        "scores": (pair.forward(True, pixels, ids) - pair.forward(False, pixels, ids))[ids != 0].abs().max().item(),
    }
    written = [pair.write(True, pixels), pair.write(True, pixels, use_cache=False), pair.write(False, pixels)]
    same = torch.equal(written[0], written[1]) and torch.equal(written[0], written[2])
    print(f"outputs differ by at most {found}, captions equal: {same}", flush=True)
    if max(found.values()) > 1e-4 or not same or named.keys() != theirs.keys():
        raise SystemExit("The outputs differ, so their times say nothing.")
    for model in (pair.ours, pair.theirs):
        model.zero_grad()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often every contender does every task")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--pairs", type=int, default=4, help="rows of a batch")
    parser.add_argument("--output", type=Path, help="a json file for all measured seconds")
    arguments = parser.parse_args(argv)
    checkout = os.environ.get("OPEN_CLIP")
    if not checkout:
        raise SystemExit("OPEN_CLIP is not set: there is nothing to compare with. It is a checkout of open_clip.")
    torch.set_num_threads(arguments.threads)
    pair, rows = Pair(checkout), arguments.pairs
    pixels = torch.randn(rows, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    long, short, padded = texts(rows, 76, 76), texts(rows, 20, 20), torch.zeros(rows, 76, dtype=torch.long)
    padded[:, :20] = short

    for model in (pair.ours, pair.theirs):
        model.eval()
    compare(pair, pixels, padded)
    optimizers = {
        is_ours: torch.optim.AdamW((pair.ours if is_ours else pair.theirs).parameters(), lr=1e-6)
        for is_ours in (True, False)
    }

    def step(is_ours: bool, ids: torch.Tensor) -> None:
        pair.loss(is_ours, pixels, ids).backward()
        optimizers[is_ours].step()
        optimizers[is_ours].zero_grad()

    found = measure(
        {
            "forward, 76 tokens": pair.both(lambda is_ours: pair.forward(is_ours, pixels, long)),
            "forward, 20 tokens": pair.both(
                lambda is_ours: pair.forward(is_ours, pixels, short if is_ours else padded)
            ),
            f"captions of {WRITTEN} tokens, cached here": pair.both(lambda is_ours: pair.write(is_ours, pixels)),
            f"captions of {WRITTEN} tokens, no cache": pair.both(
                lambda is_ours: pair.write(is_ours, pixels, use_cache=False)
            ),
        },
        arguments.rounds,
    )
    for model in (pair.ours, pair.theirs):
        model.train()
    found |= measure(
        {
            "training step, 76 tokens": pair.both(lambda is_ours: step(is_ours, long)),
            "training step, 20 tokens": pair.both(lambda is_ours: step(is_ours, short if is_ours else padded)),
        },
        arguments.rounds,
    )
    print(table(found))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
