# Copyright 2026 The hf_mmunify authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""FLIP: two towers of the same kind of layer, what of an image is encoded in training, and the space they share."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import auto_docstring


@auto_docstring(checkpoint="facebookresearch/flip")
@strict
class FlipTextConfig(PreTrainedConfig):
    r"""
    attend_to_padding (`bool`, *optional*, defaults to `False`):
        Whether every text is read at its full length of `max_position_embeddings`, padding included, as the authors'
        models were trained. By default padding is masked, as it should be.

    Example:

    ```python
    >>> from hf_mmunify.models.flip import FlipTextConfig, FlipTextModel

    >>> model = FlipTextModel(FlipTextConfig(vocab_size=100, hidden_size=64, num_attention_heads=2))
    ```"""

    model_type = "flip_text_model"
    base_config_key = "text_config"

    vocab_size: int = 30523
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 32
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    attend_to_padding: bool = False


@auto_docstring(checkpoint="facebookresearch/flip")
@strict
class FlipVisionConfig(PreTrainedConfig):
    r"""
    mask_ratio (`float`, *optional*, defaults to 0.5):
        Share of the patches that training leaves out. Evaluation always encodes all of them. May be changed at any
        time: the authors end training with 0, their "unmasked tuning".
    pooling (`str`, *optional*, defaults to `"mean"`):
        What represents an image: `"mean"` of all states, that of the class token among them, or `"class"`, that one
        alone.

    Example:

    ```python
    >>> from hf_mmunify.models.flip import FlipVisionConfig, FlipVisionModel

    >>> model = FlipVisionModel(FlipVisionConfig(image_size=32, patch_size=8, hidden_size=64, num_attention_heads=2))
    ```"""

    model_type = "flip_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    mask_ratio: float = 0.5
    pooling: str = "mean"

    def validate_vision(self):
        """What the tower needs: whole patches, a share that leaves some, and a known way to pool."""
        if self.image_size % self.patch_size or self.hidden_size % 4:
            raise ValueError(
                "image_size is a multiple of patch_size and hidden_size one of 4 (fixed positions); got image_size="
                f"{self.image_size}, patch_size={self.patch_size}, hidden_size={self.hidden_size}."
            )
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(
                "mask_ratio is the share of patches that training leaves out: expected 0 <= mask_ratio < 1, got "
                f"{self.mask_ratio}."
            )
        if self.pooling not in ("mean", "class"):
            raise ValueError(f"pooling is 'mean' (of all states) or 'class' (the class token); got {self.pooling!r}.")


@auto_docstring(checkpoint="facebookresearch/flip")
@strict
class FlipConfig(PreTrainedConfig):
    r"""
    projection_bias (`bool`, *optional*, defaults to `False`):
        Whether the projections into the shared space have a bias. Those of the published models have none.
    logit_scale_init_value (`float`, *optional*, defaults to ln(1 / 0.07)):
        Logarithm of what cosines are multiplied by, at the start.

    Example:

    ```python
    >>> from hf_mmunify.models.flip import FlipConfig, FlipModel

    >>> model = FlipModel(FlipConfig())  # the size of ViT-B/16
    ```"""

    model_type = "flip"
    sub_configs_defaults = {"text_config": FlipTextConfig, "vision_config": FlipVisionConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    projection_bias: bool = False
    logit_scale_init_value: float = math.log(1 / 0.07)
    initializer_range: float = 0.02


__all__ = ["FlipConfig", "FlipTextConfig", "FlipVisionConfig"]
