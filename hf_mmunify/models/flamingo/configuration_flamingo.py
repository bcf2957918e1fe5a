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
"""Flamingo: which vision tower, which causal language model, and how the adapter between them is shaped."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import auto_docstring


_PAPER = {"cross_attention_head_dim": 128}  # the rest of the paper's shape is the default
_OPENFLAMINGO = {
    "cross_attention_num_heads": 8,
    "cross_attention_head_dim": 64,
    "cross_attention_media_norm": False,
    "resampler_num_heads": 8,
    "resampler_head_dim": 64,
    "resampler_final_norm": True,
    "resampler_num_frames": 0,
    "hidden_act": "gelu",
}

FLAMINGO_PRESETS: dict[str, dict] = {
    "flamingo-3b": {**_PAPER, "cross_attention_interval": 1, "cross_attention_num_heads": 16},
    "flamingo-9b": {**_PAPER, "cross_attention_interval": 4, "cross_attention_num_heads": 32},
    "flamingo-80b": {**_PAPER, "cross_attention_interval": 7, "cross_attention_num_heads": 64},
    "openflamingo-3b": {**_OPENFLAMINGO, "cross_attention_interval": 1, "cross_attention_offset": 0},
    "openflamingo-4b": {**_OPENFLAMINGO, "cross_attention_interval": 2, "cross_attention_offset": 1},
    "openflamingo-9b": {**_OPENFLAMINGO, "cross_attention_interval": 4, "cross_attention_offset": 3},
}
"""Adapters by name: the paper's, for language models of 24, 40 and 80 layers, and those of OpenFlamingo's releases."""


@auto_docstring(checkpoint="openflamingo/OpenFlamingo-3B-vitl-mpt1b")
@strict
class FlamingoConfig(PreTrainedConfig):
    r"""
    vision_config (`dict` or `PreTrainedConfig`, *optional*):
        Any vision model that `AutoModel` knows. Defaults to a CLIP vision tower, unless `vision_hidden_size` is given:
        then the model has no tower and reads `image_features` that were computed beforehand.
    text_config (`dict` or `PreTrainedConfig`, *optional*):
        Any language model that `AutoModelForCausalLM` knows. Defaults to OPT.
    vision_hidden_size (`int`, *optional*):
        Width of the visual features. Defaults to `vision_config.hidden_size`, where there is one.
    cross_attention_interval (`int`, *optional*, defaults to 1):
        Distance, in language model layers, between two GATED XATTN-DENSE blocks (1, 4 and 7 in the paper's 3B, 9B and
        80B).
    cross_attention_offset (`int`, *optional*, defaults to 0):
        The language model layer before which the first block stands. The paper starts with the very first layer;
        OpenFlamingo with the last one of the first interval (`cross_attention_interval - 1`).
    cross_attention_num_heads (`int`, *optional*, defaults to 16):
        Attention heads of a block.
    cross_attention_head_dim (`int`, *optional*, defaults to 128):
        Width of one of these heads (the paper: 128 at every size; OpenFlamingo: 64).
    cross_attention_intermediate_size (`int`, *optional*):
        Hidden width of a block's feed-forward. Defaults to four times the width of the language model.
    cross_attention_media_norm (`bool`, *optional*, defaults to `True`):
        Whether a block normalises the visual tokens as well as the text. OpenFlamingo normalises the text alone.
    only_attend_immediate_media (`bool`, *optional*, defaults to `True`):
        Whether a token sees the image just before it alone, as in the paper, or all images before it (an ablation).
    resampler_num_latents (`int`, *optional*, defaults to 64):
        Visual tokens that an image or video becomes.
    resampler_num_layers (`int`, *optional*, defaults to 6):
        Layers of the Perceiver Resampler.
    resampler_num_heads (`int`, *optional*, defaults to 16):
        Its attention heads.
    resampler_head_dim (`int`, *optional*, defaults to 96):
        Width of one of them.
    resampler_intermediate_size (`int`, *optional*):
        Hidden width of its feed-forward. Defaults to four times `vision_hidden_size`.
    resampler_final_norm (`bool`, *optional*, defaults to `False`):
        Whether the latents are normalised once more at the end, as in OpenFlamingo.
    resampler_num_frames (`int`, *optional*, defaults to 8):
        Learned time embeddings, one a frame; longer videos interpolate them. 0 for none, as in OpenFlamingo.
    hidden_act (`str`, *optional*, defaults to `"relu2"`):
        Activation of the adapter's feed-forwards: squared ReLU in the paper, GELU in OpenFlamingo.
    image_token_id (`int`, *optional*):
        Id of the token that stands for an image in the text.
    end_of_chunk_token_id (`int`, *optional*):
        Id of the token that ends the text of an image.
    trained_token_ids (`list[int]`, *optional*):
        Tokens whose embeddings (and output rows) the adapter owns and trains while the language model's tables stay
        frozen: `<image>` and `<|endofchunk|>`, as a rule.
    decoder_layers_path (`str`, *optional*):
        Where in the causal language model its decoder layers are (for instance `"model.layers"`). Found by itself.
    freeze_language_model (`bool`, *optional*, defaults to `True`):
        Whether the language model is frozen, as in the paper.
    freeze_vision_model (`bool`, *optional*, defaults to `True`):
        Whether the vision tower is frozen, as in the paper.

    Example:

    ```python
    >>> from hf_mmunify.models.flamingo import FlamingoConfig, FlamingoForConditionalGeneration

    >>> # Any causal language model and any vision model
    >>> config = FlamingoConfig(
    ...     text_config={"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2},
    ...     vision_config={"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    ... )
    >>> model = FlamingoForConditionalGeneration(config)
    ```"""

    model_type = "flamingo"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model", optional=True),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="opt"),
    }
    keys_to_ignore_at_inference = ["past_key_values", "image_embeds"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_hidden_size: int | None = None
    cross_attention_interval: int = 1
    cross_attention_offset: int = 0
    cross_attention_num_heads: int = 16
    cross_attention_head_dim: int = 128
    cross_attention_intermediate_size: int | None = None
    cross_attention_media_norm: bool = True
    only_attend_immediate_media: bool = True
    resampler_num_latents: int = 64
    resampler_num_layers: int = 6
    resampler_num_heads: int = 16
    resampler_head_dim: int = 96
    resampler_intermediate_size: int | None = None
    resampler_final_norm: bool = False
    resampler_num_frames: int = 8
    hidden_act: str = "relu2"
    image_token_id: int | None = None
    end_of_chunk_token_id: int | None = None
    trained_token_ids: list[int] | None = None
    decoder_layers_path: str | None = None
    freeze_language_model: bool = True
    freeze_vision_model: bool = True
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.vision_config is None and self.vision_hidden_size is None:
            self.vision_config = {}
        # Parts that are loaded already keep their backends: to the parent, nothing said means to take them away
        kwargs.setdefault("attn_implementation", {})
        kwargs.setdefault("experts_implementation", {})
        super().__post_init__(**kwargs)
        if self.vision_hidden_size is None:
            self.vision_hidden_size = getattr(self.vision_config, "hidden_size", None)
            if self.vision_hidden_size is None:
                raise ValueError(
                    f"{type(self.vision_config).__name__} does not say how wide the features of its tower are: give "
                    "vision_hidden_size, the number of channels of last_hidden_state."
                )
        if self.cross_attention_intermediate_size is None:
            self.cross_attention_intermediate_size = 4 * self.decoder_config.hidden_size
        if self.resampler_intermediate_size is None:
            self.resampler_intermediate_size = 4 * self.vision_hidden_size

    def validate_architecture(self):
        """Part of `@strict` validation: the language model must have the layers and tokens that are named."""
        num_layers = self.decoder_config.num_hidden_layers
        if self.cross_attention_interval < 1:
            raise ValueError(
                f"cross_attention_interval is a distance in layers, at least 1; got {self.cross_attention_interval}."
            )
        if not 0 <= self.cross_attention_offset < num_layers:
            raise ValueError(
                f"cross_attention_offset names a layer of the language model, from 0 to {num_layers - 1}, "
                f"got {self.cross_attention_offset}: no layer would see an image."
            )
        vocab_size = self.decoder_config.vocab_size
        for name in ("image_token_id", "end_of_chunk_token_id", "trained_token_ids"):
            value = getattr(self, name)
            token_ids = [] if value is None else value if isinstance(value, list) else [value]
            if any(not 0 <= token_id < vocab_size for token_id in token_ids):
                raise ValueError(
                    f"{name}={value} is not in the language model's vocabulary of {vocab_size} tokens: make room with "
                    "resize_token_embeddings first."
                )

    @classmethod
    def from_preset(cls, name: str, **fields) -> "FlamingoConfig":
        """The config of a published adapter on parts of your choice.

        Args:
            name (`str`):
                A key of `FLAMINGO_PRESETS`: "flamingo-3b", "flamingo-9b", "flamingo-80b", or OpenFlamingo's.
            fields:
                `text_config`, `vision_config` and any other field; they take precedence over the preset.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in FLAMINGO_PRESETS:
            raise ValueError(f"There is no preset {name!r}; there are {', '.join(FLAMINGO_PRESETS)}.")
        return cls(**{**FLAMINGO_PRESETS[name], **fields})

    @property
    def decoder_config(self) -> PreTrainedConfig:
        """The part of `text_config` that describes the decoder: of a multimodal model, its text half."""
        return self.text_config.get_text_config(decoder=True)

    @property
    def cross_attention_layers(self) -> list[int]:
        """Indices of the language model layers that a GATED XATTN-DENSE block precedes."""
        num_layers = self.decoder_config.num_hidden_layers
        return list(range(self.cross_attention_offset, num_layers, self.cross_attention_interval))


__all__ = ["FLAMINGO_PRESETS", "FlamingoConfig"]
