"""The layers of every tower of a model: learning rates that fall from layer to layer, and layers that are frozen.

    embeddings   depth 0        rate * decay^(N+1)
    layer 1      depth 1        rate * decay^N
    ...
    layer N      depth N        rate * decay
    head         depth N + 1    rate

Paper: BEiT: BERT Pre-Training of Image Transformers (Bao et al., 2021), appendix, fine-tuning; first in ELECTRA (Clark
et al., 2020), appendix B. Original: microsoft/unilm, beit/optim_factory.py.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .optimizer import NO_DECAY, decay_parameter_names


class LayerDepth(NamedTuple):
    """Where a parameter is: the path of its tower, its depth there, and the number of the tower's layers.

    What belongs to no tower, as the projections and the temperature of a two-tower model do, has the tower `None` and
    the depth of a head, with no layers below it.
    """

    tower: str | None
    depth: int
    layers: int


def layer_depths(model: nn.Module) -> dict[str, LayerDepth]:
    """How deep each parameter of a model lies in its tower.

    Layers are what transformers can checkpoint, in a `ModuleList`. A tower is the largest part of the model with one
    stack of them (or stages of stacks, as in Swin), so a model with one stack is one tower, its head included. In a
    tower, what comes before the first layer is depth 0, and what comes after the last is N + 1.

    Args:
        model (`nn.Module`): Any model of transformers or of this package, also one that PEFT holds.

    Returns:
        `dict[str, LayerDepth]`: by the name of the parameter.

    Raises:
        ValueError: the model has no such layers.
    """
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no stack of layers (a ModuleList of GradientCheckpointingLayer): write the "
            "optimizer's groups by hand."
        )
    stacks = list(dict.fromkeys(blocks.values()))
    towers = {stack: _tower(stack, stacks) for stack in stacks}
    layers = {stack: [path for path in blocks if blocks[path] == stack] for stack in stacks}
    depths, seen = {}, dict.fromkeys(stacks, 0)
    for name, _ in model.named_parameters():
        stack = next(
            (stack for stack in stacks if f"{name}.".startswith(f"{towers[stack]}.") or not towers[stack]), None
        )
        if stack is None:
            depths[name] = LayerDepth(None, 1, 0)
            continue
        number = len(layers[stack])
        own = next((depth for depth, path in enumerate(layers[stack], 1) if name.startswith(path + ".")), None)
        if own is not None:
            seen[stack] = own
        elif seen[stack] == number and not name.startswith(stack + "."):
            own = number + 1
        else:
            own = seen[stack]  # between the layers, as where a stage ends
        depths[name] = LayerDepth(towers[stack], own, number)
    return depths


def tower_layers(tower: nn.Module) -> dict[str, nn.Module]:
    """By path, from first to last: the layers of a model with one stack of them; of any other model none."""
    blocks = _blocks(tower)
    return {path: tower.get_submodule(path) for path in blocks} if len(set(blocks.values())) == 1 else {}


def _blocks(model: nn.Module) -> dict[str, str]:
    """Path of each layer, in order -> path of its stack."""
    modules = dict(model.named_modules())
    blocks: dict[str, str] = {}
    for path, module in modules.items():
        parent, _, place = path.rpartition(".")
        if not (place.isdigit() and isinstance(modules[parent], nn.ModuleList)):
            continue
        if not isinstance(module, GradientCheckpointingLayer) or next(module.parameters(), None) is None:
            continue
        for stage in [above for above in blocks if path.startswith(above + ".")]:
            del blocks[stage]  # a stage whose layers can be checkpointed one by one
        blocks[path] = _outermost_list(path, modules)
    return blocks


def _outermost_list(path: str, modules: dict[str, nn.Module]) -> str:
    parts = path.split(".")
    above = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next(name for name in above if isinstance(modules[name], nn.ModuleList))


def _tower(stack: str, stacks: Sequence[str]) -> str:
    """The largest part of the model around a stack that has no other stack."""
    parts = stack.split(".")
    for length in range(len(parts)):
        path = ".".join(parts[:length])
        if not any(other != stack and (not path or other.startswith(path + ".")) for other in stacks):
            return path
    return stack


def layer_decay_parameter_groups(
    model: nn.Module,
    learning_rate: float,
    layer_decay: float = 0.75,
    weight_decay: float = 0.05,
    no_decay: Sequence[str] = NO_DECAY,
) -> list[dict[str, object]]:
    """Groups for an optimizer: the deeper a layer of a tower lies, the slower it learns.

    Args:
        model (`nn.Module`): With `requires_grad` set as it will be trained.
        learning_rate (`float`): Of the heads, and of what belongs to no tower.
        layer_decay (`float`, defaults to 0.75): Factor from each layer to the one below it, above 0 and up to 1.
        weight_decay (`float`, defaults to 0.05): Of matrices; norms, biases and other vectors have none.
        no_decay (`Sequence[str]`, defaults to `NO_DECAY`): Regular expressions of more names without weight decay.

    Returns:
        `list[dict]`: with `params`, `lr` and `weight_decay`, one for each rate and decay.

    Raises:
        ValueError: nothing is trained, the model has no layers, or `layer_decay` is out of range.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is a factor above 0 and up to 1, got {layer_decay}.")
    depths = layer_depths(model)
    decayed = set(decay_parameter_names(model, no_decay))
    groups: dict[tuple[float, float], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning_rate * layer_decay ** (depths[name].layers + 1 - depths[name].depth)
        decay = weight_decay if name in decayed and parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ValueError("No parameter of the model requires a gradient: unfreeze what is to be trained.")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def freeze_layers(model: nn.Module, layers: int | None = None, towers: str = "") -> list[str]:
    """Freeze the embeddings and the lowest layers of towers, in place.

    Args:
        model (`nn.Module`): Any model with towers.
        layers (`int`, *optional*): How many layers of each tower, beside its embeddings; by default all of them, so
            that only its head is trained.
        towers (`str`, defaults to all): A regular expression, searched in the paths of the towers (`"vision"`).

    Returns:
        `list[str]`: the names of the parameters that were frozen.

    Raises:
        ValueError: no tower has that name, or none has so many layers.
    """
    depths = layer_depths(model)
    chosen = {depth.tower: depth.layers for depth in depths.values() if depth.tower is not None}
    every = sorted(chosen)
    chosen = {tower: number for tower, number in chosen.items() if re.search(towers, tower)}
    if not chosen:
        raise ValueError(f"No tower is called {towers!r}, only {every}.")
    if layers is not None and not 0 <= layers <= max(chosen.values()):
        raise ValueError(f"layers is a number from 0 to {max(chosen.values())} for {chosen}, got {layers}.")
    frozen = []
    for name, parameter in model.named_parameters():
        tower, depth, number = depths[name]
        if tower in chosen and depth <= min(number, number if layers is None else layers):
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


__all__ = ["LayerDepth", "freeze_layers", "layer_decay_parameter_groups", "layer_depths", "tower_layers"]
