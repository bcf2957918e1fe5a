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
"""CoCa: which image encoder, how its tokens are pooled, and how many layers of the decoder read the image."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import auto_docstring


POOLERS = ("cascade", "parallel", "first_query")


@auto_docstring(checkpoint="laion/CoCa-ViT-L-14-laion2B-s13B-b90k")
@strict
class CocaTextConfig(PreTrainedConfig):
    r"""
    num_hidden_layers (`int`, *optional*, defaults to 24):
        Layers of the decoder, of both halves.
    num_unimodal_layers (`int`, *optional*, defaults to 12):
        Layers of the first half, which reads the text alone. Each layer after them is followed by one that reads the
        image.
    num_multimodal_attention_heads (`int`, *optional*):
        Attention heads of the second half. Defaults to `num_attention_heads`.
    max_position_embeddings (`int`, *optional*, defaults to 76):
        Tokens that a text may have; the class token that follows them has a position of its own.
    encoder_hidden_size (`int`, *optional*):
        Width of the caption tokens of the image, which the second half reads. Defaults to `projection_dim`.
    legacy_class_mask (`bool`, *optional*, defaults to `False`):
        Whether the class token reads the first padding after its text and not itself, as the released weights learned
        it: open_clip shifts the padding mask by one place (its `correct_cls_mask=False`). Conversion sets it."""

    model_type = "coca_text"
    base_config_key = "text_config"

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 24
    num_unimodal_layers: int = 12
    num_attention_heads: int = 12
    num_multimodal_attention_heads: int | None = None
    max_position_embeddings: int = 76
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    encoder_hidden_size: int | None = None
    legacy_class_mask: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 49406
    eos_token_id: int | list[int] | None = 49407
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.num_multimodal_attention_heads is None:
            self.num_multimodal_attention_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def num_multimodal_layers(self) -> int:
        """Layers of the second half."""
        return self.num_hidden_layers - self.num_unimodal_layers

    def validate_architecture(self):
        """Part of `@strict` validation: the widths must divide, and both halves be there."""
        for name in ("num_attention_heads", "num_multimodal_attention_heads"):
            heads = getattr(self, name)
            if heads is not None and self.hidden_size % heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is shared evenly among the heads: expected a multiple of "
                    f"{name}={heads}."
                )
        if not 0 < self.num_unimodal_layers < self.num_hidden_layers:
            raise ValueError(
                "num_unimodal_layers is the first part of the layers: expected at least one there, and fewer than "
                f"num_hidden_layers={self.num_hidden_layers}; got {self.num_unimodal_layers}."
            )


@auto_docstring(checkpoint="laion/CoCa-ViT-L-14-laion2B-s13B-b90k")
@strict
class CocaConfig(PreTrainedConfig):
    r"""
    vision_config (`dict` or `PreTrainedConfig`, *optional*):
        Any vision model of `AutoModel` that gives a token for each patch. Defaults to CLIP's ViT-L/14 at 224 pixels.
    text_config (`dict` or `CocaTextConfig`, *optional*):
        The text decoder. Defaults to that of CoCa ViT-L/14.
    projection_dim (`int`, *optional*, defaults to 768):
        Width of the poolers, and of the features that images and texts are compared by.
    pooler_type (`str`, *optional*, defaults to `"cascade"`):
        Where the image's feature for the contrastive loss comes from (section 3.2): `"cascade"`, a pooler of one query
        over the caption tokens, the paper's choice; `"parallel"`, one over the patches; `"first_query"`, the first
        query of the caption pooler, as in the released weights of open_clip, where only the others are caption tokens.
    pooler_num_queries (`int`, *optional*, defaults to 256):
        Queries of the caption pooler.
    pooler_num_attention_heads (`int`, *optional*, defaults to 8):
        Attention heads of all poolers.
    logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
        Logarithm of what similarities are multiplied by, when training begins.
    contrastive_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the contrastive loss in pre-training.
    caption_loss_weight (`float`, *optional*, defaults to 2.0):
        Weight of the captioning loss in pre-training.

    Example:

    ```python
    >>> from hf_mmunify.models.coca import CocaConfig, CocaForConditionalGeneration

    >>> size = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
    >>> config = CocaConfig(
    ...     vision_config={"model_type": "clip_vision_model", **size},
    ...     text_config={"num_unimodal_layers": 2, **size},
    ...     projection_dim=64,
    ... )
    >>> model = CocaForConditionalGeneration(config)
    ```"""

    model_type = "coca"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "patch_size": 14,
                "hidden_act": "gelu",
            },
        ),
        "text_config": CocaTextConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 768
    pooler_type: str = "cascade"
    pooler_num_queries: int = 256
    pooler_num_attention_heads: int = 8
    logit_scale_init_value: float | int = 2.6592
    contrastive_loss_weight: float | int = 1.0
    caption_loss_weight: float | int = 2.0
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.text_config.encoder_hidden_size is None:
            self.text_config.encoder_hidden_size = self.projection_dim
        if self.pad_token_id is None:
            self.pad_token_id = self.text_config.pad_token_id

    def validate_architecture(self):
        """Part of `@strict` validation: the parts must fit each other."""
        if self.pooler_type not in POOLERS:
            raise ValueError(f"pooler_type is one of {', '.join(POOLERS)}; got {self.pooler_type!r}.")
        if self.projection_dim % self.pooler_num_attention_heads:
            raise ValueError(
                f"projection_dim={self.projection_dim} is shared evenly among the heads of the poolers: expected a "
                f"multiple of pooler_num_attention_heads={self.pooler_num_attention_heads}."
            )
        least = 2 if self.pooler_type == "first_query" else 1
        if self.pooler_num_queries < least:
            raise ValueError(
                f"pooler_num_queries={self.pooler_num_queries} leaves no caption token: expected at least {least} "
                f"with pooler_type={self.pooler_type!r}."
            )
        width = self.text_config.encoder_hidden_size
        if width is not None and width != self.projection_dim:
            raise ValueError(
                f"The decoder reads caption tokens of width encoder_hidden_size={width}, but the pooler gives "
                f"projection_dim={self.projection_dim}: leave encoder_hidden_size out, it follows the pooler."
            )


__all__ = ["CocaConfig", "CocaTextConfig"]
