"""A teacher that is the moving average of its student."""

import re
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .feature_queue import FeatureQueue
from .quantized import copy_parameter, is_quantized


class MomentumMixin:
    """What a `PreTrainedModel` with momentum copies of some of its parts needs; it comes before it among the bases.

    As in MoCo and ALBEF (Li et al. 2021, section 3.3; salesforce/ALBEF@b9727e4 models/model_pretrain.py): a copy
    starts equal to its part, follows it slowly with `update_momentum`, and is not trained. A checkpoint without the
    copies, or without the [`FeatureQueue`], as the authors publish some for use without further training, loads
    without a word: each copy is then made from the loaded part, and the queue is filled anew.

    A part may carry adapters of PEFT: its copy follows the weights with what they add. The copy itself should not (the
    LoRA presets leave it out). Where both are quantised, the copy stays what it was, which at first is what the part
    is.

    Class attributes:
        _momentum_pairs (`dict[str, str]`):
            Path of each part below the model -> path of its copy, a module built alike.
    """

    _momentum_pairs: dict[str, str] = {}

    def post_init(self) -> None:
        queues = [name for name, module in self.named_modules() if isinstance(module, FeatureQueue)]
        optional = {rf"^{re.escape(path)}\." for path in [*self._momentum_pairs.values(), *queues]}
        self._keys_to_ignore_on_load_missing = set(self._keys_to_ignore_on_load_missing or []) | optional
        super().post_init()
        self.reset_momentum()

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        # `from_pretrained` calls this when everything the checkpoint has is in its place, and marked.
        absent = [
            tensor for _, tensor, _ in self._followed_and_copy() if not getattr(tensor, "_is_hf_initialized", False)
        ]
        super()._initialize_missing_keys(is_quantized)
        self.reset_momentum(only=absent)

    @torch.no_grad()
    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As transformers' own; the copies keep what they have, and start with their parts' rows for new tokens."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        for followed, copy, name in self._followed_and_copy():
            if copy.shape != followed.shape and not is_quantized(copy):
                rows, kept = followed.detach().clone(), min(len(copy), len(followed))
                rows[:kept] = copy[:kept]
                path, _, leaf = name.rpartition(".")
                module = self.get_submodule(path)
                setattr(module, leaf, nn.Parameter(rows, requires_grad=False))
                if isinstance(module, nn.Embedding):
                    module.num_embeddings = len(rows)
                elif isinstance(module, nn.Linear):
                    module.out_features = len(rows)
        self.tie_weights()
        return embeddings

    @torch.no_grad()
    def reset_momentum(self, only: list[torch.Tensor] | None = None) -> None:
        """Make the copies equal to their parts, and not trained.

        Args:
            only (`list[torch.Tensor]`, *optional*):
                The tensors of the copies to which this is confined; all by default.
        """
        chosen = None if only is None else {id(tensor) for tensor in only}
        for followed, copy, name in self._followed_and_copy():
            if chosen is None or id(copy) in chosen:
                copy_parameter(followed, self, name)
        for path in self._momentum_pairs.values():
            self.get_submodule(path).requires_grad_(False)

    @torch.no_grad()
    def update_momentum(self, decay: float) -> None:
        """Let the copies follow: `copy = decay * copy + (1 - decay) * part`, parameter by parameter.

        Args:
            decay (`float`):
                How much a copy keeps of itself, from 0 to 1 (ALBEF, BLIP: 0.995). In bfloat16 a step of 1 - decay is
                mostly lost to rounding: train in float32 with autocast.
        """
        # In its forward the root of `fully_shard` has gathered weights in place: a change of these would be lost.
        is_gathered = isinstance(self, FSDPModule) and not all(isinstance(p, DTensor) for p in self.parameters())
        if is_gathered:
            self.set_reshard_after_forward(True, recurse=False)
            self.reshard()
        for followed, copy, _ in self._followed_and_copy():
            if isinstance(copy, nn.Parameter) and copy.is_floating_point() and not is_quantized(copy):
                copy.lerp_(followed.to(copy.dtype), 1 - decay)
        if is_gathered:
            self.unshard()
            self.set_reshard_after_forward(False, recurse=False)

    def _followed_and_copy(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, str]]:
        """Each tensor of the copies once: the one that it follows, the tensor, its name below the model."""
        seen = set()
        for path, copy_path in self._momentum_pairs.items():
            part, copy = self.get_submodule(path), self.get_submodule(copy_path)
            for name, tensor in [*copy.named_parameters(), *copy.named_buffers()]:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield _followed(part, name), tensor, f"{copy_path}.{name}"


def _followed(part: nn.Module, name: str) -> torch.Tensor:
    """The tensor of `part` under this name, with what adapters of PEFT add to it."""
    *path, leaf = name.split(".")
    module = part
    for step in path:
        module = getattr(module, step)  # wrappers of PEFT hand attributes of what they wrap through
    tensor = getattr(module, leaf)
    if leaf == "weight" and tensor.is_floating_point() and hasattr(module, "get_delta_weight") and not module.merged:
        tensor = tensor + sum(
            module.get_delta_weight(name) for name in module.active_adapters if name in module.scaling
        )
    return tensor
