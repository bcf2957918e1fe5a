"""Golden cases: inputs and outputs of the authors' own code at tiny sizes, with weights drawn from their names.

A case is `<system>/<case>.json` and `.safetensors`. The weights are not stored but drawn again from their original
names, by a rule that never changes; the state dict so made is what the authors' checkpoint would be at this size.
"""

import json
import os
import re
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


GOLDEN = Path(os.environ.get("MMUNIFY_GOLDEN", Path(__file__).parent / "golden"))

SYSTEMS = {"blip2": "blip_2"}
"""Folders of cases that are not called as their system is here."""

WHERE = re.compile(
    r"where (?P<kind>inputs|outputs)/(?P<name>[\w.]+)(?:\[\.\.\., (?P<index>\d+)\])? "
    r"(?P<relation>is|>|<|>=|<=) (?P<value>-?[\d.]+)"
)
WITHIN = re.compile(r"where position < (?P<kind>inputs|outputs)/(?P<name>[\w.]+)")
RELATIONS = {"is": torch.eq, ">": torch.gt, "<": torch.lt, ">=": torch.ge, "<=": torch.le}


def draw(seed: int, key: str, shape: tuple[int, ...], scale: float, offset: float) -> np.ndarray:
    """The frozen rule: the weights of every case are these numbers."""
    rng = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()))
    return (offset + scale * rng.standard_normal(tuple(shape))).astype(np.float32)


def cases(folder: Path = GOLDEN) -> list["GoldenCase"]:
    """Every case in `folder`, sorted."""
    return [GoldenCase(path) for path in sorted(folder.glob("*/*.json")) if path.with_suffix(".safetensors").is_file()]


class GoldenCase:
    """One case; `info` is its json."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        self.system = SYSTEMS.get(path.parent.name, path.parent.name)

    def __str__(self) -> str:
        return f"{self.system}/{self.name}"

    @cached_property
    def info(self) -> dict:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def of_kind(self, kind: str) -> dict[str, torch.Tensor]:
        """The stored tensors of one kind (`inputs`, `outputs`, `weights`, `grads`) by their names."""
        return {
            key.removeprefix(f"{kind}/"): value for key, value in self.tensors.items() if key.startswith(f"{kind}/")
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The authors' state dict, aliases included; what they compute themselves is in `derived`."""
        weights, drawn, stored = self.info["weights"], {}, self.of_kind("weights")
        for key, rule in weights.items():
            if "stored" in rule:
                drawn[key] = stored[key]
            elif "scale" in rule:
                numbers = draw(self.info["seed"], key, rule["shape"], rule["scale"], rule["offset"])
                drawn[key] = torch.from_numpy(np.asarray(numbers))
        values = {**drawn, **self.derived}
        return {key: values[_source(key, weights)].clone() for key in weights if _source(key, weights) in values}

    @cached_property
    def derived(self) -> dict[str, torch.Tensor]:
        """Those of the keys that the original computes whose values the case's description gives away."""
        return {
            key: torch.arange(rule["shape"][-1]).expand(rule["shape"])
            for key, rule in self.info["weights"].items()
            if rule.get("derived") == "arange"
        }

    def mask(self, name: str) -> torch.Tensor | None:
        """Where an output counts, as its `compare` says; `None` if it says so in words that are not known here.

        Returns:
            A boolean tensor of the output's shape.
        """
        compare, shape = self.info["outputs"][name]["compare"], self.tensors[f"outputs/{name}"].shape
        if compare == "exact" or re.fullmatch(r"everywhere( \(.*\))?", compare):
            return torch.ones(shape, dtype=torch.bool)
        if found := WHERE.fullmatch(compare):
            values = self.tensors[f"{found['kind']}/{found['name']}"]
            if found["index"] is not None:
                values = values[..., int(found["index"])]
            mask = RELATIONS[found["relation"]](values, float(found["value"]))
        elif found := WITHIN.fullmatch(compare):
            lengths = self.tensors[f"{found['kind']}/{found['name']}"]
            mask = torch.arange(shape[lengths.dim()]) < lengths[..., None]
        else:
            return None
        return spread(mask, shape)


def spread(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A mask over the leading axes of `shape`, spread over the others."""
    if mask.shape != shape[: mask.dim()]:
        raise ValueError(f"a mask {list(mask.shape)} does not lead the axes of an output {list(shape)}")
    return mask.view(*mask.shape, *[1] * (len(shape) - mask.dim())).expand(shape)


def _source(key: str, weights: dict) -> str:
    while "alias" in weights[key]:
        key = weights[key]["alias"]
    return key


def disagreement(
    ours: torch.Tensor, theirs: torch.Tensor, atol: float, mask: torch.Tensor | None = None
) -> str | None:
    """How two tensors differ by more than `atol` where `mask` is true (default: everywhere); `None` if they do not."""
    if ours.shape != theirs.shape:
        return f"shape {list(ours.shape)}, expected {list(theirs.shape)}"
    if mask is None:
        mask = torch.ones(theirs.shape, dtype=torch.bool)
    if not mask.any():
        return "the mask selects nothing, so nothing was compared"
    left, right = ours.detach()[mask].double(), theirs[mask].double()
    wrong = ~((left == right) | ((left - right).abs() <= atol))
    if not wrong.any():
        return None
    worst = (left - right).abs()[wrong].max().item()
    return f"{int(wrong.sum())} of {left.numel()} values differ, the worst by {worst:.3g}; allowed {atol:.3g}"
