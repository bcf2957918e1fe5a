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
"""CoCa: a dual encoder and a captioner in one, by a decoder of which only the second half reads the image.

    pixel_values [B, 3, H, W] -> vision_model -> [B, N, D_v] -> poolers -> feature [B, P] ------> contrast
                                                                  |                                 ^
                                                    caption tokens [B, Q, P]          feature [B, P] |
                                                                  |                                 |
    input_ids [B, T] (+ class token) -> text_model (causal, text alone) -> class token -------------'
                                             |  words [B, T, D]   |
                                             '--------------> decoder (causal, reads the image) -> logits [B, T, V]

B pairs, N visual tokens, Q caption tokens, T tokens of a text, D_v, D and P the widths of image, text and poolers, V
words, H heads, d their width.

Paper: CoCa: Contrastive Captioners are Image-Text Foundation Models (Yu et al., 2022), sections 3.2 (both losses,
poolers), 3.3 (classification of frozen features, video) and appendix B.
Original: the authors published no code and no weights; released weights were trained with
mlfoundations/open_clip@89fb801f1e6087880e951fc8354b8a2077b79c6d, src/open_clip/{coca_model,transformer,loss}.py.

What differs from open_clip, and why: keys and values are cached, those of the image once for all tokens (it has no
cache); the poolers "cascade" and "parallel" give features of the right shape, and poolers and image encoder may
differ in width (its loss fails on either); the head is initialised (its is uninitialised memory); the class token has
the last position of the table however short its text is, as it has there where texts are padded to full length, so
that padding, on either side, changes nothing; and it reads itself and no padding, unless `legacy_class_mask` asks for
what the released weights learned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithCrossAttentions,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    ModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...layers import ComposedModelMixin, QuantizedLoadingMixin, eager_attention_forward
from ...losses import contrastive_loss, masked_language_modeling_loss
from .configuration_coca import CocaConfig, CocaTextConfig


MAX_LOGIT_SCALE = 4.6052  # log of 100, beyond which similarities are not scaled


@auto_docstring(custom_intro="What the image encoder and its poolers made of images.")
@dataclass
class CocaImageOutput(BaseModelOutputWithPooling):
    r"""
    pooler_output (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
        The feature that is compared with texts, not normalised.
    caption_tokens (`torch.FloatTensor` of shape `(batch_size, num_caption_tokens, projection_dim)`):
        What the second half of the decoder reads.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    caption_tokens: torch.FloatTensor | None = None


@auto_docstring(custom_intro="Images and texts beside each other.")
@dataclass
class CocaOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when it was asked for):
        The contrastive loss.
    logits_per_image (`torch.FloatTensor` of shape `(num_images, num_texts)`):
        Cosines, multiplied by `exp(logit_scale)`.
    logits_per_text (`torch.FloatTensor` of shape `(num_texts, num_images)`):
        Their transpose.
    image_embeds (`torch.FloatTensor` of shape `(num_images, projection_dim)`):
        The images' features, of length 1.
    text_embeds (`torch.FloatTensor` of shape `(num_texts, projection_dim)`):
        The texts' features, of length 1.
    vision_model_output (`CocaImageOutput`):
        What the image encoder and its poolers gave.
    text_model_output (`BaseModelOutputWithPooling`):
        What the first half of the decoder gave.
    """

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    vision_model_output: CocaImageOutput | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, those of the towers as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@auto_docstring(custom_intro="Scores of the words of a caption, and the losses.")
@dataclass
class CocaCaptioningOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
        `contrastive_loss_weight * loss_contrastive + caption_loss_weight * loss_caption`.
    logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
        Scores of the word that follows each.
    past_key_values (`Cache`, *optional*, returned with `use_cache=True`):
        Keys and values of both halves, and those of the image, projected once.
    loss_contrastive (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
        The contrastive loss, without its weight.
    loss_caption (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
        The captioning loss, without its weight.
    image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*, returned with `labels`):
        The images' features, of length 1.
    text_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*, returned with `labels`):
        The texts' features, of length 1.
    caption_tokens (`torch.FloatTensor` of shape `(batch_size, num_caption_tokens, projection_dim)`, *optional*):
        What the decoder read of the image; pass them again with other texts.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    loss_contrastive: torch.FloatTensor | None = None
    loss_caption: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    caption_tokens: torch.FloatTensor | None = None


class CocaAttention(nn.Module):
    """Queries of one sequence over the keys and values of another, or of the same.

    Args:
        config (`PreTrainedConfig`): names the attention backend.
        width (`int`): of the queries and of the output.
        read_width (`int`): of what is read.
        heads (`int`): attention heads.
        dropped (`float`): share of the weights that training drops.
        is_causal (`bool`): whether a token sees those before it alone.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        width: int,
        read_width: int,
        heads: int,
        dropped: float = 0.0,
        is_causal: bool = False,
    ):
        super().__init__()
        self.config = config
        self.head_dim = width // heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropped
        self.is_causal = is_causal
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(read_width, width)
        self.v_proj = nn.Linear(read_width, width)
        self.o_proj = nn.Linear(width, width)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, N, d]

    def keys_and_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States `[B, N, read_width]` to keys and values `[B, H, N, d]`."""
        return self.split_heads(self.k_proj(states)), self.split_heads(self.v_proj(states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[B, T, width]` over keys and values `[B, H, N, d]` to `[B, T, width]`, and the weights `[B, H, T, N]`."""
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(
            self,
            self.split_heads(self.q_proj(hidden_states)),
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            is_causal=self.is_causal,
            **kwargs,
        )
        return self.o_proj(attended.flatten(2)), weights


class CocaMLP(nn.Module):
    """The dense half of a layer: widen, activate, narrow."""

    def __init__(self, config: CocaTextConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class CocaTextLayer(GradientCheckpointingLayer):
    """A layer that reads the text so far, normalised before each part.

    Args:
        config (`CocaTextConfig`): widths.
        layer_idx (`int`): place of its keys and values in the cache; by it, the half that the layer belongs to.
    """

    def __init__(self, config: CocaTextConfig, layer_idx: int):
        super().__init__()
        width, is_first_half = config.hidden_size, layer_idx < config.num_unimodal_layers
        heads = config.num_attention_heads if is_first_half else config.num_multimodal_attention_heads
        self.layer_idx = layer_idx
        self.self_attn_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = CocaAttention(config, width, width, heads, config.attention_dropout, is_causal=True)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = CocaMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Text `[B, T, D]` to `[B, T, D]`."""
        normed = self.self_attn_norm(hidden_states)
        key, value = self.self_attn.keys_and_values(normed)  # [B, H, T, d]
        if past_key_values is not None:
            key, value = past_key_values.self_attention_cache.update(key, value, self.layer_idx)
        attended, _ = self.self_attn(normed, key, value, attention_mask, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class CocaImageLayer(GradientCheckpointingLayer):
    """A layer of the second half that reads the image; it has a dense half of its own.

    Args:
        config (`CocaTextConfig`): widths.
        layer_idx (`int`): place of the image's keys and values in the cache.
    """

    def __init__(self, config: CocaTextConfig, layer_idx: int):
        super().__init__()
        width, read_width = config.hidden_size, config.encoder_hidden_size
        self.layer_idx = layer_idx
        self.cross_attn_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.image_norm = nn.LayerNorm(read_width, eps=config.layer_norm_eps)
        self.cross_attn = CocaAttention(
            config, width, read_width, config.num_multimodal_attention_heads, config.attention_dropout
        )
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = CocaMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Text `[B, T, D]` over caption tokens `[B, Q, P]`, or what the cache has of them, to `[B, T, D]`."""
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            cached = past_key_values.cross_attention_cache.layers[self.layer_idx]
            key, value = cached.keys, cached.values
        else:
            key, value = self.cross_attn.keys_and_values(self.image_norm(encoder_hidden_states))  # [B, H, Q, d]
            if past_key_values is not None:
                key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        attended, _ = self.cross_attn(self.cross_attn_norm(hidden_states), key, value, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class CocaAttentionalPooler(GradientCheckpointingLayer):
    """Learned queries that read a sequence: attentional pooling (section 3.2).

    Args:
        config (`CocaConfig`): heads, and the attention backend.
        num_queries (`int`): queries, each of which gives a token.
        read_width (`int`): width of the sequence.
    """

    def __init__(self, config: CocaConfig, num_queries: int, read_width: int):
        super().__init__()
        width, eps = config.projection_dim, config.text_config.layer_norm_eps
        self.query = nn.Parameter(torch.empty(num_queries, width))
        self.query_norm = nn.LayerNorm(width, eps=eps)
        self.read_norm = nn.LayerNorm(read_width, eps=eps)
        self.attention = CocaAttention(config, width, read_width, config.pooler_num_attention_heads)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, N, read_width]` to `[B, Q, P]`."""
        key, value = self.attention.keys_and_values(self.read_norm(hidden_states))
        query = self.query_norm(self.query).repeat(len(hidden_states), 1, 1)  # [B, Q, P]
        return self.attention(query, key, value)[0]


def build_vision_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The vision tower of `config`, all of whose tokens the poolers read, after their own normalisation."""
    tower = AutoModel.from_config(config)
    # CODEPATH: CLIP's tower, which every published checkpoint has, brings a normalisation for its own pooling
    if config.model_type == "clip_vision_model":
        tower.post_layernorm = nn.Identity()
    return tower


def require_images(pixel_values: torch.Tensor | None, dimensions: str = "batch, 3, height, width") -> None:
    """Refuse what is no batch of images.

    Raises:
        ValueError: when there is none, or its dimensions are others.
    """
    if pixel_values is None or pixel_values.dim() != dimensions.count(",") + 1 or len(pixel_values) == 0:
        came = "none" if pixel_values is None else list(pixel_values.shape)
        raise ValueError(
            f"expected pixel_values [{dimensions}] with at least one row, got {came}: the processor makes them of "
            "pictures."
        )


@auto_docstring
class CocaPreTrainedModel(ComposedModelMixin, QuantizedLoadingMixin, PreTrainedModel):
    config: CocaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["CocaTextLayer", "CocaImageLayer", "CocaAttentionalPooler"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CocaAttentionalPooler):
            init.normal_(module.query)  # normalised before it asks
        if isinstance(module, CocaTextModel):
            init.normal_(module.class_embedding, std=self.config.initializer_range)
        if isinstance(module, CocaModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)


@auto_docstring(
    custom_intro="The first half of the decoder: it reads the text alone, and sums it up in a class token at its end."
)
class CocaTextModel(CocaPreTrainedModel):
    config: CocaTextConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _can_record_outputs = {
        "hidden_states": OutputRecorder(CocaTextLayer, num_hidden_layers_key="num_unimodal_layers"),
        "attentions": OutputRecorder(CocaAttention, index=1, layer_name="self_attn"),
    }

    def __init__(self, config: CocaTextConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 1, config.hidden_size)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.layers = nn.ModuleList([CocaTextLayer(config, index) for index in range(config.num_unimodal_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        with_class_token: bool = True,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for words, 0 for padding, which may be on either side. By default `pad_token_id` is padding, as for the
            original, where the class token is asked for; and nothing, where it is not.
        position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            By default each text counts its words from 0.
        with_class_token (`bool`, *optional*, defaults to `True`):
            Whether to sum the text up in `pooler_output`, normalised; not together with a cache. Neither it nor the
            normalisation is part of `last_hidden_state`, from which the second half goes on.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # [B, T, D]
        is_legacy = with_class_token and self.config.legacy_class_mask
        if is_legacy and is_flash_attention_requested(self.config):
            raise ValueError(
                "Flash attention drops what may not be read, and with legacy_class_mask=True that is the class token "
                "itself: use attn_implementation='sdpa'."
            )
        if with_class_token and attention_mask is None and input_ids is not None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        batch, length = inputs_embeds.shape[:2]
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = self.places(batch, length, attention_mask, past_length)
        limit = self.config.max_position_embeddings
        # Padding has no position, so texts that are longer than the table with it may fit
        if not torch.compiler.is_compiling() and past_length + length > limit and position_ids.max() >= limit:
            raise ValueError(
                f"a text of {int(position_ids.max()) + 1} tokens is longer than the {limit} that the decoder has "
                f"positions for: truncate it (truncation=True, max_length={limit} in the processor), or generate "
                "fewer tokens."
            )
        if with_class_token:
            inputs_embeds, attention_mask, position_ids = self.append_class_token(
                inputs_embeds, attention_mask, position_ids
            )
        hidden_states = inputs_embeds + self.embed_positions(position_ids)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states[:, :length],
            pooler_output=self.norm(hidden_states[:, -1]) if with_class_token else None,
        )

    def places(
        self, batch: int, length: int, attention_mask: torch.Tensor | None, past_length: int | torch.Tensor
    ) -> torch.LongTensor:
        """Places `[B, T]` of tokens in their texts, counted from the first that is no padding."""
        places = torch.arange(length, device=self.embed_tokens.weight.device) + past_length
        places = places.expand(batch, -1)
        if attention_mask is None or attention_mask.dim() != 2:
            return places
        return (places - attention_mask.int().argmax(dim=1, keepdim=True)).clamp(min=0)

    def append_class_token(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.BoolTensor, torch.LongTensor]:
        """Texts with the class token behind them: embeddings `[B, T + 1, D]`, what may be read, and places.

        With `legacy_class_mask`, as released weights learned it, the mask is shifted by one place: the first padding
        after a text is read, for which there is another column, and the class token is not, not even by itself, except
        behind a text that leaves no room for padding.
        """
        batch, length = inputs_embeds.shape[:2]
        limit = self.config.max_position_embeddings
        if attention_mask is None:
            attention_mask = position_ids.new_ones(batch, length)
        readable = attention_mask.bool()  # [B, T]
        reads_itself = torch.ones_like(readable[:, :1])  # [B, 1]
        # CODEPATH: every published checkpoint learned the shifted mask; models of the paper's kind mask padding alone
        if self.config.legacy_class_mask:
            padding = self.embed_tokens.weight[self.config.pad_token_id].to(inputs_embeds.dtype)
            inputs_embeds = torch.cat([inputs_embeds, padding.expand(batch, 1, -1)], dim=1)
            position_ids = torch.cat([position_ids, position_ids[:, -1:] + 1], dim=1)
            reads_itself = readable.sum(dim=1, keepdim=True) == limit
            is_empty = ~readable.any(dim=1, keepdim=True)  # then the first token is the first padding
            behind = readable[:, -1:] & ~reads_itself
            readable = torch.cat([readable | torch.cat([is_empty, readable[:, :-1]], dim=1), behind], dim=1)
        token = self.class_embedding.to(inputs_embeds.dtype).expand(batch, 1, -1)
        return (
            torch.cat([inputs_embeds, token], dim=1),
            torch.cat([readable, reads_itself], dim=1),
            torch.cat([position_ids, torch.full_like(position_ids[:, :1], limit)], dim=1),
        )


@auto_docstring(
    custom_intro="The second half of the decoder: each layer of the text is followed by one that reads the image."
)
class CocaDecoder(CocaPreTrainedModel):
    config: CocaTextConfig
    main_input_name = "inputs_embeds"
    input_modalities = ("text",)
    _can_record_outputs = {
        "hidden_states": OutputRecorder(CocaImageLayer, num_hidden_layers_key="num_multimodal_layers"),
        "attentions": OutputRecorder(CocaAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(CocaAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: CocaTextConfig):
        super().__init__(config)
        first = config.num_unimodal_layers
        self.layers = nn.ModuleList([CocaTextLayer(config, index) for index in range(first, config.num_hidden_layers)])
        self.image_layers = nn.ModuleList(
            [CocaImageLayer(config, index) for index in range(config.num_multimodal_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        inputs_embeds: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        r"""
        inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            The words, as the first half left them.
        attention_mask (`torch.Tensor`, *optional*):
            A mask as `create_causal_mask` makes it.
        encoder_hidden_states (`torch.FloatTensor` of shape `(batch_size, num_caption_tokens, projection_dim)`):
            The caption tokens of the image; not needed once the cache has them.
        """
        hidden_states = inputs_embeds
        for layer, image_layer in zip(self.layers, self.image_layers):
            hidden_states = layer(hidden_states, attention_mask, past_key_values=past_key_values, **kwargs)
            hidden_states = image_layer(
                hidden_states, encoder_hidden_states, past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithCrossAttentions(last_hidden_state=self.norm(hidden_states))


@auto_docstring(custom_intro="CoCa as a dual encoder: images and texts in one space.")
class CocaModel(CocaPreTrainedModel):
    main_input_name = "pixel_values"

    def __init__(self, config: CocaConfig):
        super().__init__(config)
        vision_width = config.vision_config.hidden_size
        eps = config.text_config.layer_norm_eps
        is_first = config.pooler_type == "first_query"
        self.vision_model = build_vision_model(config.vision_config)
        self.caption_pooler = CocaAttentionalPooler(config, config.pooler_num_queries, vision_width)
        self.contrastive_pooler = None
        if not is_first:
            # CODEPATH: a cascade in the paper, a parallel pooler in its ablation; weights of neither are published
            read_width = config.projection_dim if config.pooler_type == "cascade" else vision_width
            self.contrastive_pooler = CocaAttentionalPooler(config, 1, read_width)
        # Behind the pooler where one query is the feature, else before the poolers
        self.vision_norm = nn.LayerNorm(config.projection_dim if is_first else vision_width, eps=eps)
        self.visual_projection = nn.Linear(config.projection_dim, config.projection_dim, bias=False)
        self.text_model = CocaTextModel._from_config(config.text_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_model.embed_tokens = value

    @can_return_tuple
    @auto_docstring
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> CocaImageOutput:
        require_images(pixel_values)
        outputs = self.vision_model(pixel_values, return_dict=True, **kwargs)
        states = outputs.last_hidden_state  # [B, N, D_v]
        if self.contrastive_pooler is None:
            pooled = self.vision_norm(self.caption_pooler(states))  # [B, 1 + Q, P]
            feature, caption_tokens = pooled[:, 0], pooled[:, 1:]
        else:
            states = self.vision_norm(states)
            caption_tokens = self.caption_pooler(states)  # [B, Q, P]
            # CODEPATH: as in `__init__`
            read = caption_tokens if self.config.pooler_type == "cascade" else states
            feature = self.contrastive_pooler(read)[:, 0]
        return CocaImageOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.visual_projection(feature),  # [B, P]
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            caption_tokens=caption_tokens,
        )

    @can_return_tuple
    @auto_docstring
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        outputs = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        outputs.pooler_output = self.text_projection(outputs.pooler_output)  # [B, P]
        return outputs

    def compare(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        image_ids: torch.LongTensor | None = None,
        with_loss: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Contrastive loss, logits `[B_i, B_t]`, and both features `[B, P]` at length 1.

        Raises:
            ValueError: when a loss is asked for, and there are not as many texts as images.
        """
        if self.training:
            with torch.no_grad():
                self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        images = nn.functional.normalize(image_features, dim=-1)
        texts = nn.functional.normalize(text_features, dim=-1)
        scale = self.logit_scale.exp()
        loss = None
        if with_loss:
            if len(images) != len(texts):
                raise ValueError(
                    f"the loss is of pairs: expected as many texts as images, got {len(images)} images and "
                    f"{len(texts)} texts. Repeat an image for each of its texts, with one number in `image_ids`."
                )
            loss = contrastive_loss(images, texts, scale, image_ids=image_ids)
        return loss, images @ texts.T * scale, images, texts

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CocaOutput:
        r"""
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each pair shows: equal numbers, on whatever process, are matches alike.
        return_loss (`bool`, *optional*):
            Whether to compute the contrastive loss; by default where `image_ids` are given.
        """
        vision = self.get_image_features(pixel_values, **kwargs)
        text = self.get_text_features(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        with_loss = image_ids is not None if return_loss is None else return_loss
        loss, logits, images, texts = self.compare(vision.pooler_output, text.pooler_output, image_ids, with_loss)
        return CocaOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=images,
            text_embeds=texts,
            vision_model_output=vision,
            text_model_output=text,
        )


@auto_docstring(
    custom_intro="CoCa that finds images for texts and texts for images, and names classes it was never shown."
)
class CocaForImageTextRetrieval(CocaPreTrainedModel):
    main_input_name = "pixel_values"

    def __init__(self, config: CocaConfig):
        super().__init__(config)
        self.model = CocaModel(config)
        self.post_init()

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of what similarities are multiplied by."""
        return self.model.logit_scale

    @auto_docstring
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> CocaImageOutput:
        return self.model.get_image_features(pixel_values, **kwargs)

    @auto_docstring
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        return self.model.get_text_features(input_ids, attention_mask, **kwargs)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CocaOutput:
        r"""
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each pair shows: equal numbers, on whatever process, are matches alike.
        return_loss (`bool`, *optional*):
            Whether to compute the contrastive loss; by default where `image_ids` are given.
        """
        return self.model(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            image_ids=image_ids,
            return_loss=return_loss,
            **kwargs,
        )

    def encode_images(self, pixel_values: torch.FloatTensor) -> dict[str, torch.Tensor]:
        """What retrieval keeps of images `[B, 3, H, W]`: `features` `[B, P]` of length 1."""
        return {"features": nn.functional.normalize(self.get_image_features(pixel_values).pooler_output, dim=-1)}

    def encode_texts(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What retrieval keeps of texts `[B, T]`: `features` `[B, P]` of length 1."""
        pooled = self.get_text_features(input_ids, attention_mask).pooler_output
        return {"features": nn.functional.normalize(pooled, dim=-1)}

    def similarities(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """Cosines `[I, T]` of images' features `[I, P]` and texts' `[T, P]`."""
        return image_features @ text_features.T


@auto_docstring(
    custom_intro="CoCa whole: it contrasts images with texts and writes captions, and is pre-trained on both."
)
class CocaForConditionalGeneration(CocaPreTrainedModel, GenerationMixin):
    def __init__(self, config: CocaConfig):
        super().__init__(config)
        self.model = CocaModel(config)
        self.decoder = CocaDecoder._from_config(config.text_config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    @auto_docstring
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> CocaImageOutput:
        return self.model.get_image_features(pixel_values, **kwargs)

    @auto_docstring
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        return self.model.get_text_features(input_ids, attention_mask, **kwargs)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        caption_tokens: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CocaCaptioningOutput:
        r"""
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for words, 0 for padding, which may be on either side. By default nothing is padding, except, for the
            contrastive loss, what has `pad_token_id`.
        caption_tokens (`torch.FloatTensor` of shape `(batch_size, num_caption_tokens, projection_dim)`, *optional*):
            What the poolers made of the images before, in the place of `pixel_values`, where there are no labels.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The captions to learn, -100 where there is nothing to learn; the model compares each with the word that
            follows. With them both losses are computed.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each pair shows: equal numbers, on whatever process, are no negatives of each other.
        shift_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The word that follows each, in the place of `labels`: those of a text that is split over several processes
            are moved before it is. -100 where there is nothing to learn.
        """
        # Not in the signature: Trainer evaluates no loss unless every argument with "label" in its name is given
        targets = kwargs.pop("shift_labels", None)
        text_config = self.config.text_config
        is_cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        feature = None
        if pixel_values is not None and caption_tokens is None and not is_cached:
            vision = self.get_image_features(pixel_values)
            feature, caption_tokens = vision.pooler_output, vision.caption_tokens
        if caption_tokens is None and not is_cached:
            raise ValueError("a caption needs its image: expected pixel_values or caption_tokens, got neither.")
        if (labels is not None or targets is not None) and feature is None:
            raise ValueError("the contrastive loss needs the images themselves: pass pixel_values with labels.")
        words = self.model.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, D]
        if caption_tokens is not None and len(caption_tokens) != len(words):
            raise ValueError(
                f"expected an image for each text, got {len(caption_tokens)} images and {len(words)} texts: repeat "
                "the images of which there are several texts."
            )
        if targets is None and labels is not None:
            if labels.shape != words.shape[:2]:
                raise ValueError(
                    f"labels have one token for each of the text: expected shape {tuple(words.shape[:2])}, got "
                    f"{tuple(labels.shape)}; the model itself compares each with the word that follows."
                )
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)  # moved, as logits are much larger
            if attention_mask is not None:  # behind padding on the left there is no word that the first one follows
                targets = targets.masked_fill(attention_mask == 0, -100)
        if use_cache and not isinstance(past_key_values, EncoderDecoderCache):
            past = DynamicCache(config=text_config) if past_key_values is None else past_key_values
            past_key_values = EncoderDecoderCache(past, DynamicCache(config=text_config))
        # Now, as the first half fills the cache from which the mask takes its length
        mask = create_causal_mask(
            config=text_config,
            inputs_embeds=words,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        text = self.model.text_model(
            input_ids=input_ids if inputs_embeds is None else None,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            with_class_token=targets is not None,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        outputs = self.decoder(
            inputs_embeds=text.last_hidden_state,
            attention_mask=mask,
            encoder_hidden_states=caption_tokens,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))  # [B, T, V]
        losses = {}
        if targets is not None:
            contrast, _, images, texts = self.model.compare(
                feature, self.model.text_projection(text.pooler_output), image_ids
            )
            caption = masked_language_modeling_loss(logits, targets)
            losses = {
                "loss": self.config.contrastive_loss_weight * contrast + self.config.caption_loss_weight * caption,
                "loss_contrastive": contrast,
                "loss_caption": caption,
                "image_embeds": images,
                "text_embeds": texts,
            }
        hidden_states = None
        if text.hidden_states is not None:
            hidden_states = (*text.hidden_states, *outputs.hidden_states[1:])
        attentions = None
        if text.attentions is not None:
            attentions = (*text.attentions, *outputs.attentions)
        return CocaCaptioningOutput(
            logits=logits,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=hidden_states,
            attentions=attentions,
            cross_attentions=outputs.cross_attentions,
            caption_tokens=caption_tokens,
            **losses,
        )

    @torch.no_grad()
    def generate(
        self, inputs: torch.Tensor | None = None, pixel_values: torch.FloatTensor | None = None, **kwargs
    ) -> torch.LongTensor:
        """Captions of images; as [`~transformers.GenerationMixin.generate`], with beams, sampling, prefixes.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                How the captions begin, as `input_ids`. By default with `bos_token_id`.
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                The images; each is encoded once, whatever the number of beams.
            kwargs:
                As for `generate`, and `caption_tokens` in the place of `pixel_values`.

        Returns:
            `torch.LongTensor` of shape `(batch_size, generated_length)`: the prefix, and what follows it.
        """
        if pixel_values is not None:
            kwargs["caption_tokens"] = self.get_image_features(pixel_values).caption_tokens
        if kwargs.get("caption_tokens") is None:
            raise ValueError("a caption needs its image: expected pixel_values or caption_tokens, got neither.")
        return super().generate(inputs, **kwargs)


class CocaPooledClassifier(CocaPreTrainedModel):
    """What image and video classification share: a pooler of its own, which reads all tokens, and the class scores.

    Section 3.3: the image encoder may stay as pre-training left it (`freeze_vision`); only the pooler and the scores
    are then learned.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    loss_type = "ForImageClassification"
    _keys_to_ignore_on_load_unexpected = [
        r"caption_pooler\.",
        r"contrastive_pooler\.",
        r"vision_norm\.",
        r"visual_projection\.",
        r"text_projection\.",
        r"text_model\.",
        r"logit_scale",
        r"^decoder\.",
        r"^lm_head\.",
    ]

    def __init__(self, config: CocaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = build_vision_model(config.vision_config)
        self.pooler = CocaAttentionalPooler(config, 1, config.vision_config.hidden_size)
        self.pooler_norm = nn.LayerNorm(config.projection_dim, eps=config.text_config.layer_norm_eps)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    def freeze_vision(self) -> None:
        """Leave the image encoder as it is: only pooler and classifier are trained (frozen-encoder evaluation)."""
        self.vision_model.requires_grad_(False)

    def classify(
        self,
        states: torch.Tensor,
        labels: torch.LongTensor | None,
        hidden_states: tuple[torch.Tensor, ...] | None,
        attentions: tuple[torch.Tensor, ...] | None,
    ) -> ImageClassifierOutput:
        """Class scores of tokens `[B, N, D_v]`, and the loss that `config.problem_type` asks for, if there are labels.

        Raises:
            ValueError: when a label is no class.
        """
        logits = self.classifier(self.pooler_norm(self.pooler(states)[:, 0]))  # [B, C]
        loss = None
        if labels is not None:
            is_class = self.num_labels > 1 and not labels.is_floating_point()
            wrong = (labels < 0) | (labels >= self.num_labels)
            if is_class and not torch.compiler.is_compiling() and wrong.any():
                raise ValueError(
                    f"labels are classes from 0 to {self.num_labels - 1} (num_labels={self.num_labels}), got "
                    f"{int(labels.min())} to {int(labels.max())}."
                )
            loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)


@auto_docstring(custom_intro="CoCa's image encoder with an attentional pooler and class scores (section 3.3).")
class CocaForImageClassification(CocaPooledClassifier):
    @can_return_tuple
    @auto_docstring(checkpoint="laion/CoCa-ViT-L-14-laion2B-s13B-b90k")
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            The classes. Of another shape or kind where `config.problem_type` says so.
        """
        require_images(pixel_values)
        vision = self.vision_model(pixel_values, return_dict=True, **kwargs)
        return self.classify(vision.last_hidden_state, labels, vision.hidden_states, vision.attentions)


@auto_docstring(
    custom_intro="CoCa's image encoder on each frame of a video, and one pooler over the tokens of all (section 3.3)."
)
class CocaForVideoClassification(CocaPooledClassifier):
    input_modalities = ("video",)

    @can_return_tuple
    @auto_docstring(checkpoint="laion/CoCa-ViT-L-14-laion2B-s13B-b90k")
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_frames, 3, height, width)`):
            The videos.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            The classes. Of another shape or kind where `config.problem_type` says so.
        """
        require_images(pixel_values, "batch, frames, 3, height, width")
        vision = self.vision_model(pixel_values.flatten(0, 1), return_dict=True, **kwargs)
        states = vision.last_hidden_state.unflatten(0, pixel_values.shape[:2]).flatten(1, 2)  # [B, F * N, D_v]
        return self.classify(states, labels, vision.hidden_states, vision.attentions)


__all__ = [
    "CocaDecoder",
    "CocaForConditionalGeneration",
    "CocaForImageClassification",
    "CocaForImageTextRetrieval",
    "CocaForVideoClassification",
    "CocaModel",
    "CocaPreTrainedModel",
    "CocaTextModel",
]
