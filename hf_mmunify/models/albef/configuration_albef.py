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
"""ALBEF: which vision tower, how many layers of the text encoder look at the image, and what the teacher is."""

import copy

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import auto_docstring


@auto_docstring(checkpoint="salesforce/ALBEF")
@strict
class AlbefTextConfig(PreTrainedConfig):
    r"""
    fusion_layer (`int`, *optional*, defaults to 6):
        The first layer with cross-attention: those before it read the text alone.
    encoder_hidden_size (`int`, *optional*):
        Width of the states that cross-attention reads. Defaults to the width of the vision tower.
    is_decoder (`bool`, *optional*, defaults to `False`):
        Whether a token sees those before it alone, as in the decoder that writes answers.
    bos_token_id (`int`, *optional*, defaults to 101):
        The token that every text and every answer begins with: BERT's `[CLS]`.
    eos_token_id (`int`, *optional*, defaults to 102):
        The token that ends an answer: BERT's `[SEP]`."""

    model_type = "albef_text"
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    fusion_layer: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    encoder_hidden_size: int | None = None
    is_decoder: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102
    tie_word_embeddings: bool = True

    def validate_architecture(self):
        """Part of `@strict` validation: the widths must divide, and the layers be there."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is shared evenly among the heads: expected a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if not 0 <= self.fusion_layer <= self.num_hidden_layers:
            raise ValueError(
                f"fusion_layer is the number of layers without cross-attention, from 0 to num_hidden_layers="
                f"{self.num_hidden_layers}; got {self.fusion_layer}."
            )


@auto_docstring(checkpoint="salesforce/ALBEF")
@strict
class AlbefConfig(PreTrainedConfig):
    r"""
    vision_config (`dict` or `PreTrainedConfig`, *optional*):
        Any vision model of `AutoModel` that gives a class token and patches. Defaults to ViT-B/16 at 256 pixels.
    text_config (`dict` or `AlbefTextConfig`, *optional*):
        The text and multimodal encoder. Defaults to the size of BERT base, the second half with cross-attention.
    projection_dim (`int`, *optional*, defaults to 256):
        Width of the features that images and texts are compared by.
    temperature (`float`, *optional*, defaults to 0.07):
        What similarities are divided by, when training begins.
    queue_size (`int`, *optional*, defaults to 65536):
        Pairs of earlier batches that the contrastive loss compares with; 0 for none. Batches need not divide it.
    distill (`bool`, *optional*, defaults to `True`):
        Whether heads keep momentum copies of their parts to learn from. Without, they need half the memory, and the
        contrastive loss compares within the batch: what checkpoints published without the copies suffice for.
    momentum (`float`, *optional*, defaults to 0.995):
        How much a momentum copy keeps of itself at each training step.
    alpha (`float`, *optional*, defaults to 0.4):
        Weight of the copies' predictions in the losses.
    num_decoder_layers (`int`, *optional*):
        Layers of the decoder that writes answers. Defaults to the number of layers with cross-attention.

    Example:

    ```python
    >>> from hf_mmunify.models.albef import AlbefConfig, AlbefForImageTextRetrieval

    >>> config = AlbefConfig(
    ...     vision_config={"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    ...     text_config={"hidden_size": 64, "num_hidden_layers": 4, "fusion_layer": 2, "num_attention_heads": 2},
    ...     queue_size=1024,
    ... )
    >>> model = AlbefForImageTextRetrieval(config)
    ```"""

    model_type = "albef"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="vit", init_kwargs={"image_size": 256, "layer_norm_eps": 1e-6}
        ),
        "text_config": AlbefTextConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    temperature: float = 0.07
    queue_size: int = 65536
    distill: bool = True
    momentum: float = 0.995
    alpha: float | int = 0.4
    num_decoder_layers: int | None = None
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.text_config.encoder_hidden_size is None:
            self.text_config.encoder_hidden_size = self.vision_config.hidden_size
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.text_config.num_hidden_layers - self.text_config.fusion_layer
        if self.pad_token_id is None:
            self.pad_token_id = self.text_config.pad_token_id

    def validate_architecture(self):
        """Part of `@strict` validation: the parts must fit each other."""
        width = self.text_config.encoder_hidden_size
        if width is not None and width != self.vision_config.hidden_size:
            raise ValueError(
                f"The text encoder reads states of width encoder_hidden_size={width}, but the vision tower gives "
                f"{self.vision_config.hidden_size}: leave encoder_hidden_size out, it follows the tower."
            )
        if self.queue_size < 0:
            raise ValueError(f"queue_size is a number of pairs, 0 for no queue; got {self.queue_size}.")
        for name in ("momentum", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1; got {getattr(self, name)}.")

    @property
    def decoder_config(self) -> AlbefTextConfig:
        """The decoder that writes answers: as wide as the text encoder, whose states each of its layers reads."""
        config = copy.deepcopy(self.text_config)
        config.num_hidden_layers = self.num_decoder_layers
        config.fusion_layer = 0
        config.encoder_hidden_size = config.hidden_size
        config.is_decoder = True
        return config

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        sizes = (self.vision_config.image_size, self.vision_config.patch_size)
        (height, width), patch = ((size, size) if isinstance(size, int) else tuple(size) for size in sizes)
        return height // patch[0], width // patch[1]


__all__ = ["AlbefConfig", "AlbefTextConfig"]
