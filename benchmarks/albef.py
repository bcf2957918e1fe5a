"""ALBEF beside the authors' code: one run, the same weights, outputs compared first, ratios with spread.

    ALBEF=path/to/ALBEF python benchmarks/albef.py [--rounds 5] [--threads 1] [--output out.json]

`ALBEF` is a checkout of salesforce/ALBEF; without it there is nothing to compare with, and the program says so. Its
code was written for transformers 4.8 and timm 0.4.9: `Original` stands in, at run time, for the few functions of
theirs that it imports (the maths of the model is the authors' own). The original hard-codes ViT-B/16, so its class of
towers is called with smaller sizes: a ViT of 6 layers of width 384 over 128 pixels, a text encoder of 6 layers of
width 384, three of them with cross-attention, BERT's vocabulary, a queue of 4,096.

Times are processor seconds of this process, so that other work on the machine disturbs them little; both take turns in
every round, and a ratio is taken within its round.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import hf_mmunify  # noqa: F401  (registers ALBEF)
from hf_mmunify.conversion.albef import convert
from hf_mmunify.conversion.engine import export_tensors
from hf_mmunify.models.albef.modeling_albef import hardest


VIT = {"patch_size": 16, "embed_dim": 384, "depth": 6, "num_heads": 6}
BERT = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "fusion_layer": 3,
    "encoder_width": 384,
}
TRAINING = {
    "image_res": 128,
    "vision_width": 384,
    "embed_dim": 256,
    "temp": 0.07,
    "mlm_probability": 0.15,
    "queue_size": 4096,
    "momentum": 0.995,
    "alpha": 0.4,
    "distill": True,
}
PAIRS, TOKENS, CANDIDATES = 8, 25, 64


class StandInConfig(SimpleNamespace):
    """As much of `BertConfig` of transformers 4.8 as the original reads."""

    @classmethod
    def from_json_file(cls, settings: dict) -> "StandInConfig":
        others = {
            "chunk_size_feed_forward": 0,
            "use_return_dict": True,
            "use_cache": True,
            "add_cross_attention": False,
        }
        return cls(**others, output_attentions=False, output_hidden_states=False, is_decoder=False, **settings)


class StandInModel(nn.Module):
    """As much of `PreTrainedModel` of transformers 4.8 as the original calls."""

    dtype = torch.float32

    def __init__(self, config: StandInConfig, *args, **kwargs):
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, name: str, config: StandInConfig, **kwargs) -> "StandInModel":
        return cls(config, **kwargs)

    def init_weights(self) -> None:
        self.apply(self._init_weights)
        if "cls" in self._modules:
            self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def get_head_mask(self, head_mask: None, layers: int) -> list[None]:
        return [None] * layers

    def invert_attention_mask(self, mask: torch.Tensor) -> torch.Tensor:
        return (1.0 - mask[:, None, None].float()) * -1e9


class PatchEmbed(nn.Module):
    """timm's: patches of an image, each through one linear map."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Original:
    """The authors' modules, imported from a checkout."""

    def __init__(self, folder: str):
        def passing(*_, **__) -> Callable:
            return lambda function: function

        decorators = ("add_code_sample_docstrings", "add_start_docstrings", "add_start_docstrings_to_model_forward")
        output = importlib.import_module("transformers.modeling_outputs").ModelOutput
        modules = {
            "transformers.file_utils": {
                "ModelOutput": output,
                "replace_return_docstrings": passing,
                **dict.fromkeys(decorators, passing),
            },
            "transformers.modeling_utils": {
                "PreTrainedModel": StandInModel,
                "apply_chunking_to_forward": lambda function, size, dim, *inputs: function(*inputs),
                "find_pruneable_heads_and_indices": None,
                "prune_linear_layer": None,
            },
            "transformers.models.bert.configuration_bert": {"BertConfig": StandInConfig},
            "timm": {},
            "timm.models": {},
            "timm.models.vision_transformer": {"_cfg": None, "PatchEmbed": PatchEmbed},
            "timm.models.registry": {"register_model": None},
            "timm.models.layers": {"trunc_normal_": nn.init.trunc_normal_, "DropPath": nn.Identity},
        }
        before = {name: sys.modules.get(name) for name in modules}
        sys.path.insert(0, folder)
        for name, entries in modules.items():
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(entries)
        try:
            self.modules = {
                name: importlib.import_module(f"models.model_{name}")
                for name in ("pretrain", "retrieval", "vqa", "nlvr", "pretrain_nlvr", "ve")
            }
        finally:
            sys.path.remove(folder)
            for name, module in before.items():
                sys.modules.pop(name)
                if module is not None:
                    sys.modules[name] = module

    def model(self, name: str, tokenizer: SimpleNamespace, vit: dict, bert: dict, training: dict) -> nn.Module:
        """The authors' `ALBEF` of a task, with towers of the given sizes, alone in its process."""
        module = self.modules[name]
        tower = importlib.import_module("models.vit").VisionTransformer
        module.VisionTransformer = lambda **settings: tower(**{**settings, **vit, "img_size": training["image_res"]})
        module.concat_all_gather = lambda tensor: tensor
        names = {"text_encoder": "", "tokenizer": tokenizer, "config": {**training, "bert_config": bert}}
        if name == "vqa":
            names["text_decoder"] = ""
        if name == "pretrain":
            names["init_deit"] = False
        return module.ALBEF(**names)


TOKENIZER = SimpleNamespace(pad_token_id=0, cls_token_id=101, mask_token_id=103)


def batch() -> dict[str, torch.Tensor]:
    """Pairs of noise and random words, of which every second text is shorter."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (PAIRS, TOKENS), generator=draw)
    ids[:, 0] = TOKENIZER.cls_token_id
    ids[::2, TOKENS - 6 :] = TOKENIZER.pad_token_id
    hidden = (torch.rand(ids.shape, generator=draw) < 0.15) & (ids != 0) & (ids != 101)
    answers = torch.randint(1000, 30000, (CANDIDATES, 6), generator=draw)
    answers[:, 0], answers[:, -1] = 101, 102
    size = TRAINING["image_res"]
    return {
        "pixel_values": torch.randn(PAIRS, 3, size, size, generator=draw),
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "masked_input_ids": ids.masked_fill(hidden, TOKENIZER.mask_token_id),
        "mlm_labels": ids.where(hidden, -100),
        "image_ids": torch.arange(PAIRS),
        "classes": torch.arange(PAIRS) % 3,
        "answers": answers,
    }


class Contender:
    """One task of both: the authors' model and ours with its weights."""

    def __init__(self, original: Original, name: str, given: dict[str, torch.Tensor]):
        torch.manual_seed(0)
        self.name, self.given = name, given
        self.theirs = original.model(name, TOKENIZER, VIT, BERT, TRAINING)
        if name == "pretrain":
            self.theirs.mask = lambda *_, **__: (given["masked_input_ids"].clone(), given["mlm_labels"].clone())
        config = {"vit": VIT, "bert": BERT, "config": TRAINING}
        self.ours = convert(self.theirs.state_dict(), config)

    def their_loss(self) -> torch.Tensor:
        given = self.given
        text = SimpleNamespace(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
        if self.name == "pretrain":
            return sum(self.theirs(given["pixel_values"], text, alpha=0.4))
        if self.name == "retrieval":
            return sum(self.theirs(given["pixel_values"], text, alpha=0.4, idx=given["image_ids"]))
        if self.name == "ve":
            return self.theirs(given["pixel_values"], text, given["classes"], alpha=0.4)
        answers = given["answers"][:PAIRS]
        answers = SimpleNamespace(input_ids=answers, attention_mask=torch.ones_like(answers))
        return self.theirs(given["pixel_values"], text, answers, alpha=0.4, k=[1] * PAIRS, weights=torch.ones(PAIRS))

    def our_loss(self) -> torch.Tensor:
        given = self.given
        shown = {key: given[key] for key in ("pixel_values", "input_ids", "attention_mask")}
        task = {
            "pretrain": {"masked_input_ids": given["masked_input_ids"], "labels": given["mlm_labels"]},
            "retrieval": {"image_ids": given["image_ids"]},
            "ve": {"labels": given["classes"]},
            "vqa": {"labels": given["answers"][:PAIRS]},
        }[self.name]
        return self.ours(**shown, **task).loss

    @torch.no_grad()
    def their_answer(self) -> torch.Tensor:
        given = self.given
        text = SimpleNamespace(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
        if self.name == "ve":
            return self.theirs(given["pixel_values"], text, given["classes"], train=False)
        answers = SimpleNamespace(input_ids=given["answers"], attention_mask=torch.ones_like(given["answers"]))
        return self.theirs(given["pixel_values"], text, answers, train=False, k=CANDIDATES)[1]

    @torch.no_grad()
    def our_answer(self) -> torch.Tensor:
        shown = [self.given[key] for key in ("pixel_values", "input_ids", "attention_mask")]
        if self.name == "ve":
            return self.ours(*shown).logits
        return self.ours.rank_answers(*shown, self.given["answers"], num_candidates=CANDIDATES)[1]

    def compare(self) -> dict[str, float]:
        """The greatest differences of loss and gradients, without dropout and with the hardest negatives in both."""
        rates = {}
        for module in (*self.theirs.modules(), *self.ours.modules()):
            if isinstance(module, nn.Dropout):
                rates[module], module.p = module.p, 0.0
        for module in self.ours.modules():
            if type(module).__name__ == "AlbefAttention":
                rates[module], module.dropout = module.dropout, 0.0
        if self.name in ("pretrain", "retrieval"):
            self.ours.choose_negatives = hardest
        draw, torch.multinomial = torch.multinomial, lambda weights, number: weights.topk(number).indices
        try:
            self.theirs.train(), self.ours.train()
            losses = self.their_loss(), self.our_loss()
        finally:
            torch.multinomial = draw
        for loss in losses:
            loss.backward()
        ours = {name: p.grad for name, p in self.ours.named_parameters() if p.grad is not None}
        exported = export_tensors(self.ours, ours, "albef")
        theirs = {name: p.grad for name, p in self.theirs.named_parameters() if p.grad is not None}
        apart = max((exported[key] - gradient).abs().max().item() for key, gradient in theirs.items())
        for module, rate in rates.items():
            if isinstance(module, nn.Dropout):
                module.p = rate
            else:
                module.dropout = rate
        if self.name in ("pretrain", "retrieval"):
            self.ours.choose_negatives = None
        return {"loss": abs(losses[0].item() - losses[1].item()), "gradient": apart}


def training_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        model.train()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(both: tuple[Callable, Callable], rounds: int) -> dict[str, float]:
    """Median seconds of the two, and the median, lowest and highest of the ratios theirs / ours of each round."""
    for function in both:
        function()
    times = [[seconds(function) for function in (both if k % 2 else both[::-1])] for k in range(rounds)]
    times = [pair if k % 2 else pair[::-1] for k, pair in enumerate(times)]
    ratios = [theirs / ours for theirs, ours in times]
    medians = [statistics.median(column) for column in zip(*times)]
    return {
        "original": medians[0],
        "here": medians[1],
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where to write the numbers, as json")
    options = parser.parse_args()
    if "ALBEF" not in os.environ:
        print("ALBEF is not set: name a checkout of salesforce/ALBEF to compare with.")
        return
    torch.set_num_threads(options.threads)
    original, given, found = Original(os.environ["ALBEF"]), batch(), {}
    for name, task in (
        ("pretrain", "pre-training step"),
        ("retrieval", "retrieval fine-tuning step"),
        ("ve", "visual entailment"),
        ("vqa", "question answering"),
    ):
        contender = Contender(original, name, given)
        apart = contender.compare()
        print(f"{task}: loss differs by {apart['loss']:.1e}, gradients by {apart['gradient']:.1e}")
        if apart["loss"] > 1e-4 or apart["gradient"] > 1e-4:
            raise RuntimeError(f"{name}: not the same model; there is nothing to time.")
        steps = (
            training_step(contender.theirs, contender.their_loss),
            training_step(contender.ours, contender.our_loss),
        )
        rows = {task if "step" in task else f"{task}, fine-tuning step": steps}
        if name in ("ve", "vqa"):
            answers = (contender.their_answer, contender.our_answer)
            contender.theirs.eval(), contender.ours.eval()
            difference = (answers[0]() - answers[1]()).abs().max().item()
            print(f"{task}: answers differ by {difference:.1e}")
            rows[f"{task}, forward" if name == "ve" else f"{task}, ranking {CANDIDATES} answers"] = answers
        for row, both in rows.items():
            if "step" not in row:
                contender.theirs.eval(), contender.ours.eval()
            found[row] = {**measure(both, options.rounds), **apart}
            told = found[row]
            print(
                f"| {row} | {1000 * told['original']:.0f} ms | {1000 * told['here']:.0f} ms | {told['ratio']:.2f} "
                f"({told['lowest']:.2f} to {told['highest']:.2f}) |",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
