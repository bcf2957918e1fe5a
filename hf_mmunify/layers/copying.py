"""Parts that start as copies of other parts."""

from torch import nn
from transformers import initialization as init

from .quantized import copy_parameter, is_quantized, true_shape


def copy_what_is_new(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the weights of `source` where a checkpoint had none for it and the shapes are the same."""
    for name, tensor in list(target.named_parameters()):
        origin = source.get_parameter(name)
        if true_shape(origin) != true_shape(tensor):
            continue
        if not is_quantized(origin):
            init.copy_(tensor, origin)
        elif not is_quantized(tensor):
            copy_parameter(origin, target, name)
