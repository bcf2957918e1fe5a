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
"""BLIP, completed: the native classes of transformers, repaired where they are wrong and given what they lack.

    pixel_values [B, 3, H, W] -> vision_model -> [B, V, D_v] --------------.------------------------.
                                      |                                    | keys and values        |
                                      '-> vision_proj -> [B, D] --.        v                        v
    input_ids [B, T] -> text_encoder, text alone -> text_proj ----+-> ITC  text_encoder -> ITM      text_decoder -> LM
                                                       [B, D]              [ENC] [B, T, D_t]        [DEC] [B, T, K]

B rows, V image tokens (the class token first), T text tokens, K words, D_v and D_t the widths of vision and text, D
the width that both share, A answers of all questions, L tokens of an answer. One text tower reads alone (no image),
reads while it looks at the image ([ENC], for matching), or writes while it looks ([DEC], causal).

Paper: BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and Generation
(Li et al., 2022), sections 3.1, 3.2, 5.1-5.5. Original: salesforce/BLIP@056a169437371659074aa2732649d5de3bffb4a8,
models/{med,vit,blip,blip_vqa,blip_nlvr,nlvr_encoder,blip_retrieval,blip_pretrain}.py.

What differs from the native classes, and why. Parameter names are theirs, so checkpoints go both ways unchanged.
- The native text layer loses the mask over what is cross-attended, so that an answer looks at the padding of shorter
  questions; here the mask arrives.
- Attention goes through the attention backends (native: eager alone); the static cache works.
- Losses are the published ones: answers are weighted and summed, text is smoothed as the config says, retrieval is
  trained, with the momentum teacher and the queue as published, and so is the joint objective; NLVR2 has its class.
- [ENC] and [DEC] are put in the place of a text's first token here, as the original does, and not by the caller;
  texts may be padded on either side.

What differs from the original, and why: with several processes, negatives and teacher features come from all of them
(the original: in pre-training, and for Flickr30K, from its own), so that they learn what one learns from the whole
batch; a written answer does not look at padding; towers have no stochastic depth, which native towers lack.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import BlipConfig, BlipTextConfig, BlipVisionConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from ...layers import (
    FeatureQueue,
    MomentumMixin,
    QuantizedLoadingMixin,
    copy_what_is_new,
    eager_attention_forward,
)
from ...losses import (
    causal_language_modeling_loss,
    contrastive_loss,
    gather,
    gather_without_gradient,
    image_text_matching_loss,
    momentum_contrastive_loss,
    rank,
    sample_hard_negatives,
    world_size,
)


MERGE_FROM_LAYER = 6
"""From which layer on NLVR2's branches are merged by a layer of their own, instead of averaged (nlvr_encoder.py)."""

TEMPERATURE_BOUNDS = (0.001, 0.5)
"""Between which values the learnt temperature is kept (blip_retrieval.py)."""


def _option(config: BlipConfig, name: str) -> Any:
    """What the native config has no field for: an attribute of it if the user set one, or else the published value.

    | attribute | published | what |
    |---|---|---|
    | `encoder_token_id` | the token after [DEC] | [ENC], the first token of a text that is read with its image |
    | `queue_size` | 57600 | columns of the feature queue; 0: neither queue nor teacher, as in native checkpoints |
    | `momentum` | 0.995 | how much of the teacher stays at each step |
    | `alpha` | 0.4 | weight of the teacher's answer in the contrastive targets |
    | `contrastive_temperature` | 0.07 | of the contrastive loss; where it is learnt, at the start |
    """
    published = {
        "encoder_token_id": (config.text_config.bos_token_id or 0) + 1,
        "queue_size": 57600,
        "momentum": 0.995,
        "alpha": 0.4,
        "contrastive_temperature": 0.07,
    }
    return vars(config).get(name, published[name])


@auto_docstring(custom_intro="What a text decoder makes of an image, or of an image and a question.")
@dataclass
class BlipForConditionalGenerationModelOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Next-token loss over the labels that count, smoothed by `config.text_config.label_smoothing`.
    logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
        Scores of the next token.
    image_embeds (`torch.FloatTensor` of shape `(batch_size, image_tokens, hidden_size)`):
        What the vision tower makes of the images.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="The answers' scores, and the loss.")
@dataclass
class BlipQuestionAnsweringOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Negative log-likelihoods of the answers, weighted, summed, and divided by the number of questions.
    logits (`torch.FloatTensor` of shape `(answers, answer_length, vocab_size)`):
        Scores of each answer's next token.
    question_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        The questions, read with their images.
    image_embeds (`torch.FloatTensor` of shape `(batch_size, image_tokens, hidden_size)`):
        What the vision tower makes of the images.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    question_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="How well images and texts match, and the loss of retrieval.")
@dataclass
class BlipImageTextMatchingModelOutput(ModelOutput):
    r"""
    itm_score (`torch.FloatTensor` of shape `(batch_size, 2)`, or `(images, texts)` with `use_itm_head=False`):
        Logits of "does not match" and "matches"; or cosine similarities of every image and every text.
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `return_loss=True`):
        The sum of the two that follow.
    loss_itc (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `return_loss=True`):
        Image-text contrastive loss.
    loss_itm (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `return_loss=True`):
        Image-text matching loss of the pairs and of two hard negatives for each.
    itm_logits (`torch.FloatTensor` of shape `(3 * batch_size, 2)`, *optional*, returned with `return_loss=True`):
        Of the pairs; of each text with another image; of each image with another text.
    question_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        What the text tower makes of the texts.
    """

    itm_score: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    question_embeds: torch.FloatTensor | None = None


@auto_docstring(custom_intro="The two answers' scores, and the loss.")
@dataclass
class BlipImagesAndTextClassificationOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Cross entropy.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
        Scores of the classes: the statement is false of the two images, or true.
    image_embeds (`torch.FloatTensor` of shape `(batch_size, 2, image_tokens, hidden_size)`):
        What the vision tower makes of the images.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="The joint objective and its three terms.")
@dataclass
class BlipForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`):
        The sum of the three terms.
    logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
        Scores of each text's next token, written while its image is looked at.
    loss_itc (`torch.FloatTensor` of shape `(1,)`):
        Image-text contrastive loss.
    loss_itm (`torch.FloatTensor` of shape `(1,)`):
        Image-text matching loss of the pairs and of two hard negatives for each.
    loss_lm (`torch.FloatTensor` of shape `(1,)`):
        Next-token loss of the texts, smoothed by `config.text_config.label_smoothing` (published: 0.1).
    itm_logits (`torch.FloatTensor` of shape `(3 * batch_size, 2)`):
        Of the pairs; of each text with another image; of each image with another text.
    image_embeds (`torch.FloatTensor` of shape `(batch_size, image_tokens, hidden_size)`):
        What the vision tower makes of the images.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_lm: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


class BlipAttention(nn.Module):
    """Self-attention of the vision tower, with one matrix for queries, keys and values."""

    def __init__(self, config: BlipVisionConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.dropout = nn.Dropout(config.attention_dropout)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, tokens, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, H, V, D] each
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        states, weights = attention(
            self,
            query,
            key,
            value,
            None,
            scaling=self.scaling,
            dropout=self.dropout.p if self.training else 0.0,
            is_causal=False,
            **kwargs,
        )
        return self.projection(states.reshape(batch, tokens, -1)), weights


class BlipVisionModel(transformers.BlipVisionModel):
    """The native vision tower, with attention by any backend."""

    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {**transformers.BlipVisionModel._can_record_outputs, "attentions": BlipAttention}

    def __init__(self, config: BlipVisionConfig):
        super().__init__(config)
        for layer in self.encoder.layers:
            layer.self_attn = BlipAttention(config)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # as of `BlipPreTrainedModel`


class BlipTextEmbeddings(nn.Module):
    """Words and their positions: the native parts, summed without changing the words' embeddings in place.

    (What the native module does is refused where those are made to require a gradient: checkpointing, 4-bit LoRA.)

    Args:
        native (`nn.Module`): the native module, whose parts are kept.
    """

    def __init__(self, native: nn.Module):
        super().__init__()
        self.word_embeddings = native.word_embeddings
        self.position_embeddings = native.position_embeddings
        self.LayerNorm = native.LayerNorm
        self.dropout = native.dropout

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values_length: int = 0,
    ) -> torch.Tensor:
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, D_t]
        if position_ids is None:
            position_ids = torch.arange(words.shape[1], device=words.device)[None] + past_key_values_length  # [1, T]
        return self.dropout(self.LayerNorm(words + self.position_embeddings(position_ids)))


class BlipTextSelfAttention(nn.Module):
    """Multi-head attention of the text tower: over its own tokens, or over those of an encoder.

    The mask is the one of whatever is attended to. (The native module takes the mask over an encoder from an argument
    that the native layer never passes on.) Keys and values of an encoder are projected once, if there is a cache.

    Args:
        config (`BlipTextConfig`): widths, heads, dropout, and the attention backend.
        is_cross_attention (`bool`): whether keys and values are made of an encoder's states.
        layer_idx (`int`): place of the layer, by which a cache knows it.
    """

    def __init__(self, config: BlipTextConfig, is_cross_attention: bool, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_cross_attention = is_cross_attention
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        width = config.encoder_hidden_size if is_cross_attention else config.hidden_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(width, config.hidden_size)
        self.value = nn.Linear(width, config.hidden_size)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:2], -1, self.head_dim).transpose(1, 2)  # [B, H, T, D]

    def _keys_and_values(self, states: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
        if cache is None:
            return self._heads(self.key(states)), self._heads(self.value(states))
        if not self.is_cross_attention:
            own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
            return own.update(self._heads(self.key(states)), self._heads(self.value(states)), self.layer_idx)
        if cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(
            self._heads(self.key(states)), self._heads(self.value(states)), self.layer_idx
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attended_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        is_causal: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self._heads(self.query(hidden_states))  # [B, H, T, D]
        key, value = self._keys_and_values(attended_states, past_key_values)  # [B, H, N, D]
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        states, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout.p if self.training else 0.0,
            is_causal=is_causal,
            **kwargs,
        )
        return states.flatten(2), weights  # [B, T, D_t]


class BlipTextAttention(nn.Module):
    """Attention and what follows it: projection, dropout, residual connection, normalisation.

    Args:
        output (`nn.Module`): the native module of what follows.
        self_attention (`BlipTextSelfAttention`): the attention.
    """

    def __init__(self, output: nn.Module, self_attention: BlipTextSelfAttention):
        super().__init__()
        self.self = self_attention
        self.output = output

    def forward(
        self, hidden_states: torch.Tensor, attended_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        context, _ = self.self(hidden_states, attended_states, **kwargs)
        return self.output(context, hidden_states)


class BlipTextTwinOutput(nn.Module):
    """What follows the attention over two images: their two results become one.

    Args:
        config (`BlipTextConfig`): widths, dropout.
        merges (`bool`): whether a layer of its own merges the two, instead of their mean.
    """

    def __init__(self, config: BlipTextConfig, merges: bool):
        super().__init__()
        self.dense0 = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.merge_layer = nn.Linear(2 * config.hidden_size, config.hidden_size) if merges else None
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, first: torch.Tensor, second: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        first, second = self.dense0(first), self.dense1(second)  # [B, T, D_t]
        if self.merge_layer is None:
            merged = (first + second) / 2
        else:
            merged = self.merge_layer(torch.cat([first, second], dim=-1))
        return self.LayerNorm(self.dropout(merged) + hidden_states)


class BlipTextTwinAttention(nn.Module):
    """Cross-attention over two images, each by an attention of its own (models/nlvr_encoder.py of the original)."""

    def __init__(self, config: BlipTextConfig, layer_idx: int):
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, True, layer_idx)
        self.self1 = BlipTextSelfAttention(config, True, layer_idx)
        self.output = BlipTextTwinOutput(config, merges=layer_idx >= MERGE_FROM_LAYER)

    def forward(
        self, hidden_states: torch.Tensor, attended_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        image0, image1 = attended_states.unbind(1)  # [B, V, D_v] each
        first, _ = self.self0(hidden_states, image0, **kwargs)
        second, _ = self.self1(hidden_states, image1, **kwargs)
        return self.output(first, second, hidden_states)


class BlipTextLayer(GradientCheckpointingLayer):
    """A layer of the text tower: the native parts, with attention modules of this file.

    Args:
        config (`BlipTextConfig`): widths, heads, dropout, and the attention backend.
        native (`nn.Module`): the native layer, whose other parts are kept.
        layer_idx (`int`): its place.
        is_twin (`bool`): whether it looks at two images.
    """

    def __init__(self, config: BlipTextConfig, native: nn.Module, layer_idx: int, is_twin: bool):
        super().__init__()
        self.layer_idx = layer_idx
        self.attention = BlipTextAttention(native.attention.output, BlipTextSelfAttention(config, False, layer_idx))
        if is_twin:
            self.crossattention = BlipTextTwinAttention(config, layer_idx)
        elif config.is_decoder:
            self.crossattention = BlipTextAttention(
                native.crossattention.output, BlipTextSelfAttention(config, True, layer_idx)
            )
        self.intermediate = native.intermediate
        self.output = native.output

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        is_causal: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = self.attention(
            hidden_states,
            hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            is_causal=is_causal,
            **kwargs,
        )
        if encoder_hidden_states is not None:
            hidden_states = self.crossattention(
                hidden_states,
                encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return self.output(self.intermediate(hidden_states), hidden_states)  # [B, T, D_t]


class BlipTextModel(transformers.BlipTextModel):
    """The native text tower, with the mask over an encoder's states, and attention by any backend.

    Args:
        config (`BlipTextConfig`): sizes.
        add_pooling_layer (`bool`, *optional*, defaults to `True`): as of the native class.
        is_twin (`bool`, *optional*, defaults to `False`): whether the encoder's states are those of two images.
    """

    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": BlipTextLayer,
        "attentions": [OutputRecorder(BlipTextSelfAttention, index=1, layer_name=".attention.")],
        "cross_attentions": [OutputRecorder(BlipTextSelfAttention, index=1, layer_name=".crossattention.")],
    }

    def __init__(self, config: BlipTextConfig, add_pooling_layer: bool = True, is_twin: bool = False):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        layers = [BlipTextLayer(config, layer, index, is_twin) for index, layer in enumerate(self.encoder.layer)]
        self.encoder.layer = nn.ModuleList(layers)
        self.embeddings = BlipTextEmbeddings(self.embeddings)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        is_decoder: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """As of the native class; without `position_ids`, positions are counted from a text's first token."""
        tokens = input_ids if input_ids is not None else inputs_embeds
        if position_ids is None and tokens is not None and attention_mask is not None and attention_mask.dim() == 2:
            first = _first_tokens(attention_mask, attention_mask)  # [B, 1]
            positions = torch.arange(attention_mask.shape[1], device=attention_mask.device) - first
            position_ids = positions.clamp(min=0)[:, -tokens.shape[1] :]  # [B, T]
        if past_key_values is not None and not isinstance(past_key_values, EncoderDecoderCache):
            # The native encoder wraps a dynamic cache alone; any other would mix the image's keys with the text's
            past_key_values = EncoderDecoderCache(past_key_values, DynamicCache(config=self.config))
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            is_decoder=is_decoder,
            is_causal=is_decoder,
            **kwargs,
        )

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # as of `BlipPreTrainedModel`


class BlipTextPredictionHeadTransform(nn.Module):
    """The last layer before words, as of BERT."""

    def __init__(self, config: BlipTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.transform_act_fn(self.dense(hidden_states)))


class BlipTextLMPredictionHead(nn.Module):
    """From states to words; `bias` is `decoder.bias`, tied, under the name that checkpoints have it."""

    def __init__(self, config: BlipTextConfig):
        super().__init__()
        self.transform = BlipTextPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_states))  # [B, T, K]


class BlipTextLMHead(nn.ModuleDict):
    """`predictions`, under the name that checkpoints have it."""

    def __init__(self, config: BlipTextConfig):
        super().__init__({"predictions": BlipTextLMPredictionHead(config)})

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.predictions(hidden_states)


class BlipTextLMHeadModel(transformers.BlipTextLMHeadModel):
    """The native text decoder on the text tower of this file."""

    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: BlipTextConfig):
        # Not the native constructor: it would build a native tower, which knows eager attention alone
        super(transformers.BlipTextLMHeadModel, self).__init__(config)
        self.bert = BlipTextModel(config, add_pooling_layer=False)
        self.cls = BlipTextLMHead(config)
        self.label_smoothing = config.label_smoothing
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlipTextLMPredictionHead):
            init.zeros_(module.bias)

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # as of `BlipPreTrainedModel`


def _first_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Where each text starts, `[B, 1]`: behind its padding, if that is on the left."""
    if attention_mask is None:
        return input_ids.new_zeros(len(input_ids), 1)
    return attention_mask.long().argmax(dim=1, keepdim=True)


def _starting_with(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_id: int) -> torch.Tensor:
    """The texts with another first token: [ENC] or [DEC] where the tokenizer puts [CLS]."""
    return input_ids.scatter(1, _first_tokens(input_ids, attention_mask), token_id)  # [B, T]


@auto_docstring(custom_intro="What all heads share.")
class BlipPreTrainedModel(QuantizedLoadingMixin, transformers.BlipPreTrainedModel):
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["BlipTextLayer"]
    accepts_loss_kwargs = False

    @classmethod
    def is_custom_code(cls) -> bool:
        # What transformers registered for the native class of this name (conversions of old files) holds here as well
        return False

    def post_init(self) -> None:
        super().post_init()
        # The native tower names them as a unit of their own; but a decoder's head shares the words' weights
        self._no_split_modules.discard("BlipTextEmbeddings")

    def _check_texts(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, name: str = "input_ids") -> None:
        """Refuses texts that are none, or not as many as images, or longer than the table of positions."""
        longest = self.config.text_config.max_position_embeddings
        if input_ids.dim() != 2 or len(input_ids) != len(pixel_values) or len(input_ids) == 0:
            raise ValueError(
                f"expected one text for each row of images, {name} of shape [{len(pixel_values)}, length] and at "
                f"least one row; got {list(input_ids.shape)} beside pixel_values {list(pixel_values.shape)}."
            )
        if input_ids.shape[1] > longest:
            raise ValueError(
                f"{name} have {input_ids.shape[1]} tokens, and the model has positions for {longest}: let the "
                f"tokenizer cut them (`truncation=True, max_length={longest}`)."
            )

    def _see(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> ModelOutput:
        """The vision tower's output for images [B, 3, H, W] of the size it was trained with, unless told otherwise."""
        size = self.config.vision_config.image_size
        if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"expected pixel_values [batch, 3, height, width], got {list(pixel_values.shape)}.")
        if pixel_values.shape[-2:] != (size, size) and not interpolate_pos_encoding:
            raise ValueError(
                f"expected images of {size} x {size} pixels, got {pixel_values.shape[-2]} x {pixel_values.shape[-1]}: "
                "resize them with the model's image processor, or pass `interpolate_pos_encoding=True`."
            )
        return self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)


@auto_docstring(
    custom_intro="""
    Captioning: the native class, by any attention backend, with prompts of different lengths in a batch.

    The first token of a text is read as [DEC], whatever it is, as the original does to [CLS]. The loss is smoothed by
    `config.text_config.label_smoothing`: 0.1 as published and as converted, 0 in the native configs on the Hub.
    """
)
class BlipForConditionalGeneration(BlipPreTrainedModel, transformers.BlipForConditionalGeneration):
    accepts_loss_kwargs = True

    def __init__(self, config: BlipConfig):
        # Not the native constructor: it would build native towers, which know eager attention alone
        super(transformers.BlipForConditionalGeneration, self).__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.decoder_input_ids = config.text_config.bos_token_id
        self.decoder_pad_token_id = config.text_config.pad_token_id
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        config: BlipConfig | str | os.PathLike | None = None,
        key_mapping: dict[str, str] | None = None,
        **kwargs,
    ):
        # Joint pre-training saves what its encoder and decoder share once, under the encoder's names
        if key_mapping is None and pretrained_model_name_or_path is not None:
            if isinstance(config, BlipConfig):
                architectures = config.architectures
            else:
                settings, _ = BlipConfig.get_config_dict(config or pretrained_model_name_or_path, **kwargs)
                architectures = settings.get("architectures")
            if architectures == ["BlipForPreTraining"]:
                key_mapping = {r"^text_encoder\.(?!.*\.attention\.)": "text_decoder.bert."}
        return super().from_pretrained(
            pretrained_model_name_or_path, *args, config=config, key_mapping=key_mapping, **kwargs
        )

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs) -> None:
        """As transformers' own, under the names that the model has, whatever those of the file that it came from."""
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BlipForConditionalGenerationModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
            The images.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            The captions.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for tokens, 0 for padding.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The captions again, -100 where nothing is to be learned (padding, and the prompt as published).
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the tower was trained with.
        logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
            How many of the last positions get scores, or which; 0 for all.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            What the loss is divided by, as `Trainer` passes it; by default the labels that count.
        shift_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The token that follows each position, in the place of `labels`: those of a text that is split over several
            processes are shifted before it is. -100 where nothing is to be learned.

        Raises:
            ValueError: no text is given, or images and texts do not belong together.
        """
        if input_ids is None:
            raise ValueError("expected the captions in `input_ids`; to have them written, call `generate`.")
        self._check_texts(input_ids, pixel_values)
        # Not in the signature: Trainer evaluates no loss unless every argument with "label" in its name is given
        shift_labels = kwargs.pop("shift_labels", None)
        vision = self._see(pixel_values, interpolate_pos_encoding, **kwargs)
        if shift_labels is not None:
            labels = shift_labels
        elif labels is not None:  # nothing predicts the first token: before it is padding, or nothing
            labels = labels.scatter(1, _first_tokens(labels, attention_mask), -100)
        text = self.text_decoder(
            input_ids=_starting_with(input_ids, attention_mask, self.config.text_config.bos_token_id),
            attention_mask=attention_mask,
            encoder_hidden_states=vision.last_hidden_state,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        loss = None
        if labels is not None:
            loss = causal_language_modeling_loss(
                text.logits,
                labels,
                num_items_in_batch,
                shifted=shift_labels is not None,
                label_smoothing=self.config.text_config.label_smoothing,
            )
        return BlipForConditionalGenerationModelOutput(
            loss=loss,
            logits=text.logits,
            image_embeds=vision.last_hidden_state,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **generate_kwargs,
    ) -> torch.LongTensor:
        r"""
        Writes captions, or goes on with prompts.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                The images.
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Prompts as the processor gives them: [CLS] becomes [DEC], a [SEP] at the end is taken off. Padding may
                be on either side. By default [DEC] alone.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                As of `forward`.
            generate_kwargs:
                As of [`~transformers.GenerationMixin.generate`]. As published: `num_beams=3, max_length=20,
                min_length=5` (configs/caption_coco.yaml).

        Returns:
            `torch.LongTensor` of shape `(batch_size, length)`: prompts, padded on the left, with what follows.
        """
        image_embeds = self._see(pixel_values, interpolate_pos_encoding).last_hidden_state  # [B, V, D_v]
        if input_ids is None:
            bos = self.config.text_config.bos_token_id
            input_ids = torch.full((len(pixel_values), 1), bos, device=image_embeds.device)
        input_ids, attention_mask = self._prompts(torch.as_tensor(input_ids), attention_mask)
        self._check_texts(input_ids, pixel_values)
        settings = {
            "eos_token_id": self.config.text_config.sep_token_id,
            "pad_token_id": self.config.text_config.pad_token_id,
            **generate_kwargs,
        }
        return self.text_decoder.generate(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=image_embeds, **settings
        )

    def _prompts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts that start with [DEC], end with their last word, and have their padding on the left; with masks."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        order = mask.argsort(dim=1, stable=True)  # padding first
        input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)  # [B, T]
        ends = input_ids[:, -1:] == self.config.text_config.sep_token_id  # [B, 1]
        shifted = nn.functional.pad(mask[:, :-1], (1, 0))
        input_ids, mask = torch.where(ends, input_ids.roll(1, 1), input_ids), torch.where(ends, shifted, mask)
        if ends.all():
            input_ids, mask = input_ids[:, 1:], mask[:, 1:]
        input_ids = input_ids.masked_fill(mask == 0, self.config.text_config.pad_token_id)
        return _starting_with(input_ids, mask, self.config.text_config.bos_token_id), mask


@auto_docstring(
    custom_intro="""
    Visual question answering: a question is read with its image, an answer is written, or ranked among many.

    The decoder looks at the question's tokens, not at its padding (the native class: at both). The first token of a
    question is read as [ENC], that of an answer as [DEC], whatever it is, as the original does to [CLS].
    """
)
class BlipForQuestionAnswering(BlipPreTrainedModel, transformers.BlipForQuestionAnswering):
    def __init__(self, config: BlipConfig):
        # Not the native constructor: it would build native towers, which know eager attention alone
        super(transformers.BlipForQuestionAnswering, self).__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        decoder_config = config.text_config
        if decoder_config.encoder_hidden_size != decoder_config.hidden_size:
            # It looks at questions, which are as wide as it is itself, and not at images
            decoder_config = copy.deepcopy(decoder_config)
            decoder_config.encoder_hidden_size = decoder_config.hidden_size
        self.text_decoder = BlipTextLMHeadModel(decoder_config)
        self.decoder_pad_token_id = config.text_config.pad_token_id
        self.decoder_start_token_id = config.text_config.bos_token_id
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        words = self.text_encoder.embeddings.word_embeddings.weight
        if module is self and vars(words).get("_is_hf_initialized"):
            # Joint pre-training saves what its encoder and decoder share once, under the encoder's names
            copy_what_is_new(self.text_encoder, self.text_decoder.bert)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As transformers' own, of the questions' words and of the answers'."""
        self.text_decoder.resize_token_embeddings(*args, **kwargs)
        return super().resize_token_embeddings(*args, **kwargs)

    def _read(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        interpolate_pos_encoding: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ModelOutput]:
        """Questions read with their images, [B, T, D_t], and the vision tower's output."""
        self._check_texts(input_ids, pixel_values)
        vision = self._see(pixel_values, interpolate_pos_encoding, **kwargs)
        question = self.text_encoder(
            input_ids=_starting_with(input_ids, attention_mask, _option(self.config, "encoder_token_id")),
            attention_mask=attention_mask,
            encoder_hidden_states=vision.last_hidden_state,
            **kwargs,
        )
        return question.last_hidden_state, vision

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        answer_counts: torch.LongTensor | None = None,
        answer_weights: torch.FloatTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BlipQuestionAnsweringOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            The questions.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
            Their images.
        decoder_input_ids (`torch.LongTensor` of shape `(answers, answer_length)`, *optional*):
            What the decoder reads; by default `labels`, and without them [DEC] alone.
        decoder_attention_mask (`torch.LongTensor` of shape `(answers, answer_length)`, *optional*):
            1 for tokens, 0 for padding; by default what counts in `labels`.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for the questions' tokens, 0 for their padding.
        labels (`torch.LongTensor` of shape `(answers, answer_length)`, *optional*):
            The answers of all questions one after another, from their first token ([CLS] or [DEC]) to [SEP];
            -100 behind it.
        answer_counts (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            How many of the answers belong to each question; by default one to each.
        answer_weights (`torch.FloatTensor` of shape `(answers,)`, *optional*):
            How much each answer counts (published: how many of the ten annotators gave it, as a fraction); by
            default 1.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the tower was trained with.

        Raises:
            ValueError: the answers do not belong to the questions, or a label is no token.

        Example:

        ```python
        >>> import hf_mmunify
        >>> from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        >>> model = AutoModelForVisualQuestionAnswering.from_pretrained("Salesforce/blip-vqa-base")
        >>> processor = AutoProcessor.from_pretrained("Salesforce/blip-vqa-base")
        >>> inputs = processor(images=image, text="how many cats are there?", return_tensors="pt")
        >>> answer = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        ```
        """
        words = self.config.text_config.vocab_size
        is_checked = labels is not None and not torch.compiler.is_compiling()
        if is_checked and ((labels >= words) | ((labels < 0) & (labels != -100))).any():
            raise ValueError(
                f"labels are token ids from 0 to {words - 1}, or -100 where nothing is to be learned; got "
                f"{int(labels.min())} to {int(labels.max())}. Do tokenizer and embedding table belong together?"
            )
        question, vision = self._read(input_ids, pixel_values, attention_mask, interpolate_pos_encoding, **kwargs)
        if decoder_input_ids is None and labels is None:
            decoder_input_ids = input_ids.new_full((len(input_ids), 1), self.decoder_start_token_id)
        elif decoder_input_ids is None:
            decoder_input_ids = labels.masked_fill(labels == -100, self.decoder_pad_token_id)  # [A, L]
            if decoder_attention_mask is None:
                decoder_attention_mask = (labels != -100).long()
                decoder_attention_mask[:, 0] |= decoder_attention_mask.sum(dim=1) == 0  # no answer: [DEC] alone
        states, mask = self._for_each_answer(question, attention_mask, answer_counts, len(decoder_input_ids))
        answer = self.text_decoder(
            input_ids=_starting_with(decoder_input_ids, decoder_attention_mask, self.decoder_start_token_id),
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            **kwargs,
        )
        loss = None
        if labels is not None:
            labels = labels.scatter(1, _first_tokens(labels, decoder_attention_mask), -100)
            losses = self._answer_losses(answer.logits, labels)  # [A]
            weighted = losses if answer_weights is None else losses * answer_weights.to(losses.device)
            loss = weighted.sum() / len(input_ids)
        return BlipQuestionAnsweringOutput(
            loss=loss,
            logits=answer.logits,
            question_embeds=question,
            image_embeds=vision.last_hidden_state,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
        )

    @staticmethod
    def _for_each_answer(
        question: torch.Tensor,
        attention_mask: torch.Tensor | None,
        answer_counts: torch.Tensor | None,
        num_answers: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The question that each answer belongs to, `[A, T, D_t]`, and its mask, `[A, T]`."""
        batch = len(question)
        if answer_counts is None:
            if num_answers != batch:
                raise ValueError(
                    f"got {num_answers} answers for {batch} questions: pass `answer_counts` to say how many belong to "
                    "each."
                )
            return question, attention_mask
        answer_counts = answer_counts.to(question.device)
        if int(answer_counts.sum()) != num_answers or len(answer_counts) != batch:
            raise ValueError(
                f"expected {num_answers} answers to be shared out among {batch} questions, got answer_counts "
                f"{answer_counts.tolist()}."
            )
        mask = None if attention_mask is None else attention_mask.repeat_interleave(answer_counts, dim=0)
        return question.repeat_interleave(answer_counts, dim=0), mask

    def _answer_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each whole answer, smoothed as the config says, `[A]`."""
        if labels.shape != logits.shape[:2]:
            raise ValueError(f"expected labels {list(logits.shape[:2])}, as the answers, got {list(labels.shape)}.")
        targets = labels[:, 1:].to(logits.device)
        losses = nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2),
            targets,
            reduction="none",
            label_smoothing=self.config.text_config.label_smoothing,
        )
        return losses.sum(dim=1)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **generate_kwargs,
    ) -> torch.LongTensor:
        r"""
        Writes answers.

        Args:
            input_ids, pixel_values, attention_mask, interpolate_pos_encoding:
                As of `forward`.
            generate_kwargs:
                As of [`~transformers.GenerationMixin.generate`]. As published: `num_beams=3, max_length=10`.

        Returns:
            `torch.LongTensor` of shape `(batch_size, length)`: the answers, from [DEC] on.
        """
        input_ids = torch.as_tensor(input_ids)
        question, _ = self._read(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        settings = {
            "eos_token_id": self.config.text_config.sep_token_id,
            "pad_token_id": self.decoder_pad_token_id,
            **generate_kwargs,
        }
        start = torch.full((len(question), 1), self.decoder_start_token_id, device=question.device)
        return self.text_decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=question,
            encoder_attention_mask=attention_mask,
            **settings,
        )

    @torch.no_grad()
    def rank_answers(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None,
        answer_ids: torch.LongTensor,
        answer_attention_mask: torch.LongTensor,
        num_candidates: int = 128,
        interpolate_pos_encoding: bool = False,
    ) -> tuple[torch.LongTensor, torch.FloatTensor]:
        r"""
        The most likely answers of a given list (section 5.3): those with the likeliest first words are scored whole.

        Args:
            pixel_values, input_ids, attention_mask, interpolate_pos_encoding:
                The questions, as of `forward`.
            answer_ids (`torch.LongTensor` of shape `(answers, answer_length)`):
                The list, from [CLS] or [DEC] to [SEP], padded on the right.
            answer_attention_mask (`torch.LongTensor` of shape `(answers, answer_length)`):
                1 for tokens, 0 for padding.
            num_candidates (`int`, *optional*, defaults to 128):
                How many answers a question are scored whole.

        Returns:
            Which answers, best first, `(batch_size, candidates)`, and their log-likelihoods, smoothed as the loss.
        """
        question, _ = self._read(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        answer_ids = _starting_with(answer_ids, None, self.decoder_start_token_id)  # [N, L]
        first = self.text_decoder(
            input_ids=answer_ids[:1, :1].expand(len(question), 1),
            encoder_hidden_states=question,
            encoder_attention_mask=attention_mask,
        )
        likely = first.logits[:, 0].softmax(dim=-1)[:, answer_ids[:, 1]]  # [B, N]
        candidates = likely.topk(min(num_candidates, len(answer_ids)), dim=1).indices  # [B, C]
        count = candidates.shape[1]
        chosen, chosen_mask = answer_ids[candidates.flatten()], answer_attention_mask[candidates.flatten()]
        whole = self.text_decoder(
            input_ids=chosen,  # [B * C, L]
            attention_mask=chosen_mask,
            encoder_hidden_states=question.repeat_interleave(count, dim=0),
            encoder_attention_mask=None if attention_mask is None else attention_mask.repeat_interleave(count, dim=0),
        )
        losses = self._answer_losses(whole.logits, chosen.masked_fill(chosen_mask == 0, -100))
        scores, order = (-losses).view(-1, count).sort(dim=1, descending=True)  # [B, C]
        return candidates.gather(1, order), scores


class BlipClassifier(nn.Sequential):
    """States -> scores of classes, under the original's names of the parameters."""

    def __init__(self, width: int, num_labels: int):
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_labels))


@auto_docstring(
    custom_intro="""
    Reasoning over two images (NLVR2, section 5.4): each layer looks at both, by an attention for each.

    The results of the two are averaged in the first six layers, and merged by a layer from then on. The first token of
    a text is read as [ENC], whatever it is, as the original does to [CLS].
    """
)
class BlipForImagesAndTextClassification(BlipPreTrainedModel):
    def __init__(self, config: BlipConfig):
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        width = config.text_config.hidden_size
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False, is_twin=True)
        self.cls_head = BlipClassifier(width, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    def start_from(self, model: PreTrainedModel) -> None:
        """Takes over the towers of a BLIP that reads texts with one image, as the original's `load_checkpoint` does.

        Both attentions get a copy of its cross-attention. The layers that merge, and the classifier, stay new.

        Args:
            model ([`PreTrainedModel`]):
                A BLIP with `vision_model` and `text_encoder`, native or ours, of the same sizes: pre-trained, or
                trained for retrieval.

        Raises:
            ValueError: it has no such towers, or of other sizes.
        """
        ours = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("cls_head.")}
        theirs, taken = model.state_dict(), {}
        for name in ours:
            source = name
            for branch in ("0", "1"):
                source = source.replace(f".crossattention.self{branch}.", ".crossattention.self.")
                source = source.replace(f".crossattention.output.dense{branch}.", ".crossattention.output.dense.")
            if ".merge_layer." not in name:
                taken[name] = theirs.get(source)
        wrong = [name for name, tensor in taken.items() if tensor is None or tensor.shape != ours[name].shape]
        if wrong:
            raise ValueError(
                f"expected a BLIP with a vision tower and a text encoder of the sizes of this config; "
                f"{type(model).__name__} has nothing that fits {len(wrong)} keys, first {wrong[0]}."
            )
        self.load_state_dict(taken, strict=False)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BlipImagesAndTextClassificationOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            The statements.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, 3, height, width)`):
            The two images of each.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for tokens, 0 for padding.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            0 for false, 1 for true.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the tower was trained with.

        Raises:
            ValueError: a statement has another number of images than two, or a label is no class.
        """
        if pixel_values.dim() != 5 or pixel_values.shape[1] != 2:
            raise ValueError(
                f"expected two images a statement, pixel_values [batch, 2, 3, height, width]; got "
                f"{list(pixel_values.shape)}."
            )
        self._check_texts(input_ids, pixel_values)
        vision = self._see(pixel_values.flatten(0, 1), interpolate_pos_encoding, **kwargs)
        image_embeds = vision.last_hidden_state.unflatten(0, (-1, 2))  # [B, 2, V, D_v]
        text = self.text_encoder(
            input_ids=_starting_with(input_ids, attention_mask, _option(self.config, "encoder_token_id")),
            attention_mask=attention_mask,
            encoder_hidden_states=image_embeds,
            **kwargs,
        )
        logits = self.cls_head(_first_states(text.last_hidden_state, attention_mask))  # [B, num_labels]
        loss = None
        if labels is not None:
            classes = logits.shape[-1]
            if not torch.compiler.is_compiling() and ((labels < 0) | (labels >= classes)).any():
                raise ValueError(
                    f"labels are classes from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}."
                )
            loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device))
        return BlipImagesAndTextClassificationOutput(
            loss=loss,
            logits=logits,
            image_embeds=image_embeds,
            hidden_states=text.hidden_states,
            attentions=text.attentions,
            cross_attentions=text.cross_attentions,
        )


def _first_states(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The states of the texts' first tokens, `[B, D_t]`."""
    if attention_mask is None:
        return hidden_states[:, 0]
    first = _first_tokens(attention_mask, attention_mask)  # [B, 1]
    return hidden_states.take_along_dim(first[..., None], dim=1)[:, 0]


def hardest(weights: torch.Tensor) -> torch.Tensor:
    """The likeliest of each row of weights `[B, N]`, `[B]`."""
    return weights.argmax(dim=1)


@dataclass
class BlipAlignment:
    """What image-text contrast and matching make of a batch; shapes as of the outputs that carry them."""

    loss_itc: torch.Tensor
    loss_itm: torch.Tensor
    itm_logits: torch.Tensor
    text_states: torch.Tensor
    vision: ModelOutput


@auto_docstring(
    custom_intro="""
    What retrieval and joint pre-training share: contrast, matching, hard negatives, the momentum teacher.

    Parameters beyond the native ones, all optional on load: `temp` (the temperature), `vision_model_m`,
    `vision_proj_m`, `text_encoder_m`, `text_proj_m` (the teacher) and `queue`.

    Attributes:
        choose_negatives (`Callable`, *optional*): decides in the place of chance which wrong image each text is
            matched with, then which wrong text each image: weights `[B, W * B]` to indices `[B]`, as
            `sample_hard_negatives(choose=...)` takes it.
    """
)
class BlipMatchingPreTrainedModel(MomentumMixin, BlipPreTrainedModel):
    _keys_to_ignore_on_load_missing = [r"^temp$"]
    _negatives_by_teacher, _negative_floor = False, 0.0  # blip_retrieval.py

    def _add_towers(self, queue_size: int, with_ids: bool) -> None:
        config, width = self.config, self.config.image_text_hidden_size
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, width)
        self.text_proj = nn.Linear(config.text_config.hidden_size, width)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.temp = None
        self.queue = None
        self.choose_negatives: Callable[[torch.Tensor], torch.Tensor] | None = None
        if queue_size:
            self._add_teacher(queue_size, with_ids)

    def _add_teacher(self, queue_size: int, with_ids: bool) -> None:
        config, width = self.config, self.config.image_text_hidden_size
        self.temp = nn.Parameter(torch.full((1,), float(_option(config, "contrastive_temperature"))))
        self.vision_model_m = BlipVisionModel(config.vision_config)
        self.vision_proj_m = nn.Linear(config.vision_config.hidden_size, width)
        self.text_encoder_m = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_proj_m = nn.Linear(config.text_config.hidden_size, width)
        self.queue = FeatureQueue(width, queue_size, with_ids=with_ids)
        self._momentum_pairs = {
            name: f"{name}_m" for name in ("vision_model", "vision_proj", "text_encoder", "text_proj")
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureQueue):
            module.reset()
        elif isinstance(module, BlipMatchingPreTrainedModel) and module.temp is not None:
            init.constant_(module.temp, float(_option(self.config, "contrastive_temperature")))

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    def _image_features(self, image_states: torch.Tensor, projection: nn.Module) -> torch.Tensor:
        return nn.functional.normalize(projection(image_states[:, 0]), dim=-1)  # [B, D]

    def _text_features(
        self, text_states: torch.Tensor, attention_mask: torch.Tensor | None, projection: nn.Module
    ) -> torch.Tensor:
        return nn.functional.normalize(projection(_first_states(text_states, attention_mask)), dim=-1)  # [B, D]

    def encode_images(
        self, pixel_values: torch.FloatTensor, interpolate_pos_encoding: bool = False
    ) -> dict[str, torch.Tensor]:
        """Images as retrieval compares (`features`, `[B, D]`, of length 1) and matches them (`hidden_states`)."""
        states = self._see(pixel_values, interpolate_pos_encoding).last_hidden_state  # [B, V, D_v]
        return {"features": self._image_features(states, self.vision_proj), "hidden_states": states}

    def encode_texts(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Texts as retrieval compares them (`features`, `[B, D]`, of length 1), and as they are read with an image."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.text_encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state  # [B, T, D_t]
        features = self._text_features(states, mask, self.text_proj)
        return {"features": features, "input_ids": input_ids, "attention_mask": mask}

    def similarities(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """Cosine similarities of every image `[I, D]` and every text `[T, D]`: `[I, T]`."""
        return image_features @ text_features.t()

    def match(
        self, images: dict[str, torch.Tensor], texts: dict[str, torch.Tensor], similarities: torch.Tensor
    ) -> torch.Tensor:
        """Scores of aligned pairs `[P]`: the logit of "matches", plus the similarity (train_retrieval.py, evaluation).

        Args:
            images: what `encode_images` gave of the image of each pair.
            texts: what `encode_texts` gave of the text of each pair.
            similarities (`torch.Tensor` of shape `(pairs,)`): of each pair.
        """
        logits = self._matching_logits(texts["input_ids"], texts["attention_mask"], images["hidden_states"])
        return logits[:, 1] + similarities

    def _matching_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, image_states: torch.Tensor
    ) -> torch.Tensor:
        """Texts, from [ENC] on, read with their images: logits of "does not match" and "matches", `[P, 2]`."""
        states = self.text_encoder(
            input_ids=_starting_with(input_ids, attention_mask, _option(self.config, "encoder_token_id")),
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
        ).last_hidden_state
        return self.itm_head(_first_states(states, attention_mask))

    def _align(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_ids: torch.Tensor | None,
        alpha: float | None,
        generator: torch.Generator | None,
        interpolate_pos_encoding: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BlipAlignment:
        """Contrastive and matching loss of pairs; in training mode, the teacher and the queue take their step."""
        self._check_texts(input_ids, pixel_values)
        if image_ids is not None and image_ids.numel() != len(input_ids):
            raise ValueError(f"expected an id for each of {len(input_ids)} images, got {list(image_ids.shape)}.")
        if self.temp is not None and self.training:
            with torch.no_grad():
                self.temp.clamp_(*TEMPERATURE_BOUNDS)
        temperature = _option(self.config, "contrastive_temperature") if self.temp is None else self.temp

        vision = self._see(pixel_values, interpolate_pos_encoding, **kwargs)
        text = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        image_features = self._image_features(vision.last_hidden_state, self.vision_proj)
        text_features = self._text_features(text.last_hidden_state, attention_mask, self.text_proj)
        if self.queue is None:
            loss_itc = contrastive_loss(image_features, text_features, 1 / temperature, image_ids=image_ids)
            candidates = None
        else:
            with torch.no_grad():
                if self.training:
                    self.update_momentum(_option(self.config, "momentum"))
                image_m = self.vision_model_m(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
                text_m = self.text_encoder_m(input_ids=input_ids, attention_mask=attention_mask)
                image_features_m = self._image_features(image_m.last_hidden_state, self.vision_proj_m)
                text_features_m = self._text_features(text_m.last_hidden_state, attention_mask, self.text_proj_m)
            loss_itc, *candidates = momentum_contrastive_loss(
                image_features,
                text_features,
                image_features_m,
                text_features_m,
                self.queue.image_features,
                self.queue.text_features,
                temperature,
                _option(self.config, "alpha") if alpha is None else alpha,
                image_ids=image_ids,
                queue_ids=None if image_ids is None else self.queue.ids,
            )
            if self.training:
                self.queue.enqueue(image_features_m, text_features_m, image_ids)

        with torch.no_grad():
            another_text, another_image = self._negative_weights(
                image_features,
                text_features,
                temperature,
                image_ids,
                candidates if self._negatives_by_teacher else None,
            )
            choose = self.choose_negatives or (None if self.training else hardest)
            image_indices = sample_hard_negatives(another_image, generator, choose=choose)  # [B]
            text_indices = sample_hard_negatives(another_text, generator, choose=choose)  # [B]
        itm_logits, loss_itm = self._match_hard_negatives(
            input_ids, attention_mask, vision.last_hidden_state, image_indices, text_indices
        )
        return BlipAlignment(loss_itc, loss_itm, itm_logits, text.last_hidden_state, vision)

    def _negative_weights(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        temperature: torch.Tensor | float,
        image_ids: torch.Tensor | None,
        candidates: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How likely each text (of all processes) is drawn for an image, and each image for a text; `[B, W * B]`."""
        batch = len(image_features)
        total = world_size() * batch
        if candidates is None:
            candidates = [
                image_features @ gather_without_gradient(text_features).t() / temperature,
                text_features @ gather_without_gradient(image_features).t() / temperature,
            ]
        if image_ids is None:
            own = torch.arange(batch, device=image_features.device) + rank() * batch
            same = own[:, None] == torch.arange(total, device=own.device)  # [B, W * B]
        else:
            ids = image_ids.flatten()
            same = ids[:, None] == gather_without_gradient(ids)  # [B, W * B]
        texts, images = (
            (scores[:, :total].float().softmax(dim=1) + self._negative_floor).masked_fill(same, 0)
            for scores in candidates
        )
        return texts, images

    def _match_hard_negatives(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_states: torch.Tensor,
        image_indices: torch.Tensor,
        text_indices: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Matching logits and loss of the pairs, of each text with another image, of each image with another text."""
        batch = len(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        input_ids, mask = self._equally_long(input_ids, mask)
        logits = self._matching_logits(
            torch.cat([input_ids, input_ids, gather_without_gradient(input_ids)[text_indices]]),  # [3 * B, T]
            torch.cat([mask, mask, gather_without_gradient(mask)[text_indices]]),
            torch.cat([image_states, gather(image_states)[image_indices], image_states]),  # [3 * B, V, D_v]
        )
        labels = torch.zeros(3 * batch, dtype=torch.long, device=logits.device)
        labels[:batch] = 1
        return logits, image_text_matching_loss(logits, labels)

    def _equally_long(self, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts padded to the longest of all processes: rows that are gathered have one shape."""
        if world_size() == 1:
            return input_ids, mask
        length = torch.tensor([input_ids.shape[1]], device=input_ids.device)
        missing = int(gather_without_gradient(length).max()) - input_ids.shape[1]
        padding = self.config.text_config.pad_token_id
        return nn.functional.pad(input_ids, (0, missing), value=padding), nn.functional.pad(mask, (0, missing))


@auto_docstring(
    custom_intro="""
    Image-text retrieval: the native class, which can be trained here, and its published way to rank.

    As native checkpoints are, it has neither temperature nor teacher: it is then trained by contrast within the batch
    (of all processes) at a fixed temperature, and by matching with hard negatives. `add_momentum_teacher` gives it
    what the original is fine-tuned with; `config.queue_size` remembers.
    """
)
class BlipForImageTextRetrieval(BlipMatchingPreTrainedModel, transformers.BlipForImageTextRetrieval):
    def __init__(self, config: BlipConfig):
        # Not the native constructor: it would build native towers, which know eager attention alone
        super(transformers.BlipForImageTextRetrieval, self).__init__(config)
        self._add_towers(queue_size=vars(config).get("queue_size", 0), with_ids=True)
        self.decoder_pad_token_id = config.text_config.pad_token_id
        self.decoder_start_token_id = config.text_config.bos_token_id
        self.post_init()

    def add_momentum_teacher(self, queue_size: int = 57600) -> None:
        """Adds the learnt temperature, the momentum teacher (a copy of the towers) and the feature queue.

        Args:
            queue_size (`int`, *optional*, defaults to 57600):
                Columns of the queue.

        Raises:
            ValueError: there is one, or the queue would have no column.
        """
        if self.queue is not None or queue_size < 1:
            raise ValueError(
                f"expected a model without a teacher, and a queue of at least one column; this one has "
                f"{'one' if self.queue is not None else 'none'}, and queue_size is {queue_size}."
            )
        self.config.queue_size = queue_size
        weight = self.itm_head.weight
        self._add_teacher(queue_size, with_ids=True)
        for part in (self.vision_model_m, self.vision_proj_m, self.text_encoder_m, self.text_proj_m, self.queue):
            part.to(weight.device, weight.dtype)
        self.temp.data = self.temp.data.to(weight.device, weight.dtype)
        self.reset_momentum()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        use_itm_head: bool = True,
        attention_mask: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        image_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BlipImageTextMatchingModelOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            The texts.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
            The images.
        use_itm_head (`bool`, *optional*, defaults to `True`):
            Without a loss: whether each text is matched with its image (read as it is given, from [CLS] on, as
            models/blip_itm.py does), or every image is compared with every text.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for tokens, 0 for padding.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the tower was trained with.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each pair shows: pairs of one image are right answers alike. By default all differ.
        return_loss (`bool`, *optional*):
            Whether the loss of fine-tuning is computed (models/blip_retrieval.py); by default if `image_ids` are
            given.
        alpha (`float`, *optional*, defaults to `config.alpha`, or 0.4):
            Weight of the teacher's answer in the contrastive targets.
        generator (`torch.Generator`, *optional*):
            Source of chance of the hard negatives, drawn in training; in evaluation the hardest are taken.

        Raises:
            ValueError: images, texts and ids do not belong together, or a pair has no negative.
        """
        if image_ids is not None if return_loss is None else return_loss:
            image_ids = torch.arange(len(input_ids), device=input_ids.device) if image_ids is None else image_ids
            found = self._align(
                input_ids,
                pixel_values,
                attention_mask,
                image_ids,
                alpha,
                generator,
                interpolate_pos_encoding,
                **kwargs,
            )
            return BlipImageTextMatchingModelOutput(
                itm_score=found.itm_logits[: len(input_ids)],
                loss=found.loss_itc + found.loss_itm,
                loss_itc=found.loss_itc,
                loss_itm=found.loss_itm,
                itm_logits=found.itm_logits,
                last_hidden_state=found.vision.last_hidden_state,
                hidden_states=found.vision.hidden_states,
                attentions=found.vision.attentions,
                question_embeds=found.text_states,
            )
        vision = self._see(pixel_values, interpolate_pos_encoding, **kwargs)
        if use_itm_head:
            self._check_texts(input_ids, pixel_values)
        text = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=vision.last_hidden_state if use_itm_head else None,
            **kwargs,
        ).last_hidden_state
        if use_itm_head:
            score = self.itm_head(_first_states(text, attention_mask))  # [B, 2]
        else:
            score = self.similarities(
                self._image_features(vision.last_hidden_state, self.vision_proj),
                self._text_features(text, attention_mask, self.text_proj),
            )  # [I, T]
        return BlipImageTextMatchingModelOutput(
            itm_score=score,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            question_embeds=text,
        )


@auto_docstring(
    custom_intro="""
    Joint pre-training: contrast, matching, and captions, on one vision tower (section 3.2).

    Encoder and decoder share everything but self-attention. Teacher and queue are there as published, unless
    `config.queue_size` is 0. Set `config.text_config.label_smoothing = 0.1` to train as published.
    """
)
class BlipForPreTraining(BlipMatchingPreTrainedModel):
    _no_split_modules = []  # layers of encoder and decoder share weights: they stay together
    _negatives_by_teacher, _negative_floor = True, 1e-4  # blip_pretrain.py

    def __init__(self, config: BlipConfig):
        super().__init__(config)
        self._add_towers(queue_size=_option(config, "queue_size"), with_ids=False)
        if self.temp is None:
            self.temp = nn.Parameter(torch.full((1,), float(_option(config, "contrastive_temperature"))))
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self._tied_weights_keys = {
            f"text_decoder.bert.{name}": f"text_encoder.{name}"
            for name, _ in self.text_encoder.named_parameters()
            if ".attention." not in name
        }
        decoder = "text_decoder.cls.predictions."
        self._tied_weights_keys[decoder + "decoder.weight"] = "text_encoder.embeddings.word_embeddings.weight"
        self._tied_weights_keys[decoder + "decoder.bias"] = decoder + "bias"
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BlipForPreTrainingOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            The texts, as the tokenizer gives them: from [CLS] to [SEP].
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
            Their images.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for tokens, 0 for padding.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            What the captions' loss is over, -100 where nothing is to be learned; by default the texts. Padding
            never counts.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the tower was trained with.
        alpha (`float`, *optional*, defaults to `config.alpha`, or 0.4):
            Weight of the teacher's answer in the contrastive targets.
        generator (`torch.Generator`, *optional*):
            Source of chance of the hard negatives, drawn in training; in evaluation the hardest are taken.

        Raises:
            ValueError: images and texts do not belong together, or a pair has no negative.
        """
        found = self._align(
            input_ids,
            pixel_values,
            attention_mask,
            None,
            alpha,
            generator,
            interpolate_pos_encoding,
            **kwargs,
        )
        decoder_ids = _starting_with(input_ids, attention_mask, self.config.text_config.bos_token_id)  # [B, T]
        text = self.text_decoder(
            input_ids=decoder_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=found.vision.last_hidden_state,
            **kwargs,
        )
        labels = decoder_ids if labels is None else labels
        if attention_mask is not None:
            labels = labels.masked_fill(attention_mask == 0, -100)
        labels = labels.scatter(1, _first_tokens(labels, attention_mask), -100)
        counted = (labels[:, 1:] != -100).sum().view(1)
        loss_lm = causal_language_modeling_loss(
            text.logits,
            labels,
            num_items_in_batch=gather_without_gradient(counted).sum() / world_size(),
            label_smoothing=self.config.text_config.label_smoothing,
        )
        return BlipForPreTrainingOutput(
            loss=found.loss_itc + found.loss_itm + loss_lm,
            logits=text.logits,
            loss_itc=found.loss_itc,
            loss_itm=found.loss_itm,
            loss_lm=loss_lm,
            itm_logits=found.itm_logits,
            image_embeds=found.vision.last_hidden_state,
            hidden_states=text.hidden_states,
            attentions=text.attentions,
            cross_attentions=text.cross_attentions,
        )


__all__ = [
    "BlipForConditionalGeneration",
    "BlipForImageTextRetrieval",
    "BlipForImagesAndTextClassification",
    "BlipForPreTraining",
    "BlipForQuestionAnswering",
    "BlipPreTrainedModel",
    "BlipTextLMHeadModel",
    "BlipTextModel",
    "BlipVisionModel",
]
