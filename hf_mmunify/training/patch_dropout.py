"""Leaving out patches while training, in any vision tower whose layers take its tokens as a set.

    patches [B, P] + positions -> [B, S + P, D] -> S tokens of the tower, K of P patches -> layers [B, S + K, D] -> ...

The patches are left out after their positions were added and before the first layer, so every layer computes K patches
instead of P. Another choice is made for each image and each step.

Papers: Scaling Language-Image Pre-training via Masking (Li et al., 2022), section 3; PatchDropout: Economizing Vision
Transformers Using Patch Dropout (Liu et al., 2022), section 3.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..layers import keep_patches
from .layerwise import tower_layers


# Parameters of embeddings that are tokens beside the patches, and are kept
TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


class PatchDropout:
    """Leaves out patches of images while a model trains; `remove` takes it off again.

    For ViT, DeiT, CLIP, SigLIP, BLIP, DINOv2 (registers are kept), BEiT (its relative positions are those of the
    patches that stay), VideoMAE (tubes of frames) and any tower like them, alone or in a larger model. In evaluation
    mode nothing changes. What needs every patch in its place (windows, as in Swin; attention along one axis, as in
    TimeSformer; the reconstruction of pixels) cannot do without some.

    Args:
        model (`nn.Module`): A model with one vision tower or several.
        ratio (`float`): Share of the patches that is left out, from 0 up to but not including 1. At least one stays.

    Raises:
        ValueError: the ratio is out of range, or the model has no tower that this is possible with; the message says
            what was found.

    Example:

    ```python
    >>> dropout = PatchDropout(model, 0.5)
    >>> trainer.train()
    >>> dropout.remove()
    ```
    """

    def __init__(self, model: nn.Module, ratio: float):
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio is a share from 0 up to but not including 1, got {ratio}.")
        self.ratio = ratio
        towers = _vision_towers(model)
        if not towers:
            raise ValueError(
                f"{type(model).__name__} has no vision tower with patches of its own: a model whose main input are "
                "`pixel_values`, with one stack of layers. Images and texts in one stack cannot be told apart here."
            )
        self._handles = []
        for path, tower in towers.items():
            self._attach(path, tower)

    def remove(self) -> None:
        """Let the model see all patches again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> "PatchDropout":
        return self

    def __exit__(self, *error) -> None:
        self.remove()

    def _attach(self, path: str, tower: PreTrainedModel) -> None:
        stack = tower_layers(tower)
        layers = list(stack.values())
        biases = [module for layer in layers for module in layer.modules() if _is_bias(module)]
        has_stages = len({name.rpartition(".")[0] for name in stack}) > 1
        if has_stages or not (biases or _takes_a_set(layers[0], tower.config.hidden_size)):
            raise ValueError(
                f"The layers of {path or type(tower).__name__} do not take their tokens as a set (they cut them into "
                "windows, stages or frames, or need a position for each), so no patch can be left out."
            )
        prefix = _prefix(tower)
        state: dict[str, torch.Tensor | None] = {"places": None}

        def drop(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            state["places"] = None
            if not layer.training or not self.ratio:
                return None
            tokens = args[0] if args else kwargs["hidden_states"]  # [B, S + P, D]
            others = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.Tensor)]
            if any(value is not tokens and value.dim() > 1 for value in others):
                raise ValueError(
                    f"The layers of {path or type(tower).__name__} take a mask or positions beside the tokens, which "
                    "would have to lose the same patches: pass images without a mask, or leave out patch dropout."
                )
            if biases and any(getattr(each, "gradient_checkpointing", False) for each in layers):
                raise ValueError(
                    "Patch dropout and gradient checkpointing exclude each other in a tower with relative positions: "
                    "its layers run anew when it is forgotten which patches were left out."
                )
            number = tokens.shape[1] - prefix
            keep = max(1, round(number * (1 - self.ratio)))
            kept, places = keep_patches(tokens[:, prefix:], keep)  # [B, K, D], [B, K]
            first = torch.arange(prefix, device=places.device).expand(len(places), -1)  # [B, S]
            state["places"] = torch.cat([first, places + prefix], dim=1)
            tokens = torch.cat([tokens[:, :prefix], kept], dim=1)  # [B, S + K, D]
            return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": tokens})

        def select(module: nn.Module, args: tuple, bias: torch.Tensor) -> torch.Tensor | None:
            places = state["places"]
            if places is None:
                return None
            rows = bias.expand(len(places), -1, -1, -1).gather(
                2, places[:, None, :, None].expand(-1, bias.shape[1], -1, bias.shape[3])
            )  # [B, H, S + K, S + P]
            return rows.gather(3, places[:, None, None].expand(-1, *rows.shape[1:3], -1))  # [B, H, S + K, S + K]

        self._handles.append(layers[0].register_forward_pre_hook(drop, with_kwargs=True))
        self._handles += [module.register_forward_hook(select) for module in biases]


def _vision_towers(model: nn.Module) -> dict[str, PreTrainedModel]:
    """By path: the largest models in it that begin with pixels and have one stack of layers."""
    found: dict[str, PreTrainedModel] = {}
    for path, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) or module.main_input_name != "pixel_values":
            continue
        is_inside = any(not above or path.startswith(above + ".") for above in found)
        if not is_inside and "text" not in module.input_modalities and tower_layers(module):
            found[path] = module
    return found


def _prefix(tower: nn.Module) -> int:
    """How many tokens stand before the patches."""
    tokens = [value for name, value in tower.named_parameters() if name.rpartition(".")[2] in TOKENS]
    return sum(1 if value.dim() == 1 else value.shape[-2] for value in tokens)


def _is_bias(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RelativePositionBias")


def _takes_a_set(layer: nn.Module, width: int) -> bool:
    """Whether permuted tokens give permuted outputs, of a layer that is given nothing else."""
    parameter = next(value for value in layer.parameters() if value.is_floating_point())
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 7, width, generator=draw).to(parameter.device, parameter.dtype)
    required = [
        name
        for name, argument in list(inspect.signature(layer.forward).parameters.items())[1:]
        if argument.default is argument.empty and argument.kind == argument.POSITIONAL_OR_KEYWORD
    ]
    modes = [(module, module.training) for module in layer.modules()]
    layer.eval()
    try:
        with torch.no_grad():
            outputs = [layer(each, **dict.fromkeys(required)) for each in (tokens, tokens.flip(1))]
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False  # it asks for more than tokens, or cuts them up
    finally:
        for module, mode in modes:
            module.training = mode
    one, other = (output[0] if isinstance(output, tuple) else output for output in outputs)
    close = 1e-4 if parameter.dtype.itemsize >= 4 else 5e-2
    return one.shape == tokens.shape and torch.allclose(one.flip(1), other, atol=close)


__all__ = ["PatchDropout"]
