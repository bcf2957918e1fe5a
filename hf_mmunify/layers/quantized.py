"""Weights that bitsandbytes keeps in 4 or 8 bits: how to know them, copy them, and miss them."""

from copy import deepcopy

import torch
from torch import nn


def is_quantized(tensor: torch.Tensor) -> bool:
    """Whether bitsandbytes packed this parameter: it has other numbers, and in 4 bits another shape, than it means."""
    return type(tensor).__name__ in ("Params4bit", "Int8Params")  # torch.compile can follow that in a forward


def true_shape(tensor: torch.Tensor) -> torch.Size:
    """The shape of a parameter or buffer, if it is quantised that before."""
    return tensor.quant_state.shape if type(tensor).__name__ == "Params4bit" else tensor.shape


def copy_parameter(origin: torch.Tensor, holder: nn.Module, name: str) -> None:
    """Make a parameter or buffer equal to `origin`; where that is quantised, a copy of it takes its place.

    Args:
        origin (`torch.Tensor`):
            What is copied.
        holder (`nn.Module`):
            The module whose parameter or buffer is to be equal to it, of the same shape (before quantisation).
        name (`str`):
            The name of that below `holder`; dots are followed.

    Raises:
        ValueError: when `origin` is quantised, and the module that is to have it is not.
    """
    path, _, leaf = name.rpartition(".")
    module = holder.get_submodule(path)
    if not is_quantized(origin):
        getattr(module, leaf).copy_(origin)
    elif _quantizes(module):
        setattr(module, leaf, deepcopy(origin))
    else:
        raise ValueError(
            f"expected {name} in 4 or 8 bits, as what it is a copy of, but it has full precision: name both in "
            "`llm_int8_skip_modules` of the quantization_config, or neither."
        )


class QuantizedLoadingMixin:
    """For a `PreTrainedModel` with heads; it comes before it among the bases.

    What a checkpoint has not cannot be loaded in 4 or 8 bits: it is neither quantised when it is drawn, nor could it
    be trained then. transformers lets it pass, and the first `forward` ends in a bare `AssertionError`; here loading
    says so.
    """

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        for module in self._not_quantized().values():
            module.weight._is_hf_initialized = True  # in a place for packed numbers none can be drawn
        super()._initialize_missing_keys(is_quantized)

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        # `from_pretrained` calls this when everything the checkpoint lacks has been drawn, copied or tied.
        if new := list(self._not_quantized()):
            parts = "1 part" if len(new) == 1 else f"{len(new)} parts"
            raise ValueError(
                f"expected a checkpoint with everything that is to be in 4 or 8 bits, got one without {parts} of "
                f"{type(self).__name__}: {', '.join(new[:3])}{', ...' if len(new) > 3 else ''}. They are new and have "
                "to be trained in full precision: name them in `llm_int8_skip_modules` of the quantization_config "
                "(`hf_mmunify.training.qlora_config` names the heads), or load the checkpoint without quantization, "
                "train, save, and load that."
            )
        super()._adjust_missing_and_unexpected_keys(loading_info)

    def _not_quantized(self) -> dict[str, nn.Module]:
        """The layers that bitsandbytes has for quantised weights, and whose weights are not."""
        modules = {name: module for name, module in self.named_modules() if _quantizes(module)}
        return {name: module for name, module in modules.items() if not is_quantized(module.weight)}


def _quantizes(module: nn.Module) -> bool:
    """Whether it is a layer of bitsandbytes, whose weight may be quantised."""
    return type(module).__module__.partition(".")[0] == "bitsandbytes"
