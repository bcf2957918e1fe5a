"""What is trained how: weight decay by parameter, the published schedule, and frozen parts in half precision.

Paper: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), appendix B.1.2: AdamW, weight
decay 0.1 except for the resampler, gradients clipped to norm 1, learning rate from 0 to 1e-4 in 5,000 steps and
constant from then on; trained parameters and optimizer in float32, frozen parameters in bfloat16.
"""

import re
from collections.abc import Sequence

import torch
from torch import nn


# Parameters without weight decay, beside norms and biases: the resampler (as published), gates, and the rows of new
# tokens, which decay would pull towards zero although most batches hardly use them.
NO_DECAY = (r"(^|\.)resampler\.", r"_gate$", r"(^|\.)token_rows\.")

# Fields of `TrainingArguments` as the paper trains: `TrainingArguments(out, **FLAMINGO_ARGUMENTS)`.
FLAMINGO_ARGUMENTS = {
    "optim": "adamw_torch",
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5000,
    "max_steps": 500_000,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
}


def decay_parameter_names(model: nn.Module, no_decay: Sequence[str] = NO_DECAY) -> list[str]:
    """Names of the parameters that decay: neither of a norm, nor a bias, nor matched by `no_decay`.

    Args:
        model (`nn.Module`): Any model, also one that PEFT or a parallel wrapper holds.
        no_decay (`Sequence[str]`, defaults to `NO_DECAY`): Regular expressions, searched in the names.
    """
    norms = {
        path
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not any(module.children())
    }
    return [
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[0] not in norms
        and not name.endswith("bias")
        and not any(re.search(pattern, name) for pattern in no_decay)
    ]


def parameter_groups(
    model: nn.Module, weight_decay: float = 0.1, no_decay: Sequence[str] = NO_DECAY
) -> list[dict[str, object]]:
    """Groups for an optimizer: the trained parameters with weight decay, and those without.

    For an optimizer of your own, or for a plain `Trainer`:
    `Trainer(..., optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": parameter_groups(model), "lr": 1e-4}))`.

    Raises:
        ValueError: when nothing is trained.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("No parameter of the model requires a gradient: unfreeze what is to be trained.")
    decayed = set(decay_parameter_names(model, no_decay))
    return [
        {"params": [trained[name] for name in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [trained[name] for name in trained if name not in decayed], "weight_decay": 0.0},
    ]


def cast_frozen_parts(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Put frozen parameters in half precision and trained ones in float32, in place; buffers and 4-bit weights stay.

    Saved, each keeps its precision; `from_pretrained` then reads all in half precision, unless it is told
    `dtype=torch.float32`.

    Args:
        model (`nn.Module`): With `requires_grad` set as it will be trained.
        dtype (`torch.dtype`, defaults to `torch.bfloat16`): Of the frozen parameters.

    Returns:
        `nn.Module`: the same model.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
    return model


__all__ = ["FLAMINGO_ARGUMENTS", "NO_DECAY", "cast_frozen_parts", "decay_parameter_names", "parameter_groups"]
