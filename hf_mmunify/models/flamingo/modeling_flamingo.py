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
"""Flamingo: a frozen language model that looks at images through gated cross-attention.

    pixel_values [B, M, F, C, H, W] -> vision_model -> [B, M, F, V, D_v] -> resampler -> [B, M, R, D_v] -.
                                       (frozen)                                                           |
                                                         .---------------------------.--------------------'
                                                         v                           v
    input_ids [B, T] -> embeddings [B, T, D_t] -> GATED XATTN-DENSE -> layer -> GATED XATTN-DENSE -> layer -> ...
                                                                        (frozen)                      (frozen)

B rows, M images (or videos) a row, F frames, V visual tokens a frame, R latents, T text tokens, S image slots (the
image that a cache remembers, then the M new ones), H heads, D_v and D_t the widths of vision and text.

Paper: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), sections 2.1-2.3, appendix A.1.
Original: no code was published; checked against mlfoundations/open_flamingo@655f693fbfa04cd6e9a987d960654624d48917cf,
open_flamingo/src/{flamingo,flamingo_lm,helpers}.py.

What differs from OpenFlamingo, and why: the blocks are attached by forward pre-hooks instead of wrapping the layers,
so the language model keeps its class, its parameter names and its checkpoints; keys and values of an image are
projected once a sequence, not once a token; padding images are never encoded; a text with more `<image>` tokens than
images sees none for the surplus (the original: all of them at once); frames have the paper's time embeddings.
"""

import copy
import inspect
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import align_module_device
from accelerate.utils.modeling import get_state_dict_offloaded_model
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, cached_file, logging
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested

from ...layers import ComposedModelMixin, eager_attention_forward
from ...losses import causal_language_modeling_loss
from .configuration_flamingo import FlamingoConfig


logger = logging.get_logger(__name__)


@auto_docstring(custom_intro="What the language model made of text and images.")
@dataclass
class FlamingoModelOutputWithPast(ModelOutput):
    r"""
    past_key_values (`Cache`, *optional*, returned when `use_cache=True`):
        The language model's cache, with one more layer at its end for the images (`FlamingoMediaLayer`).
    image_embeds (`torch.FloatTensor` of shape `(batch_size, num_images, num_latents, hidden_size)`, *optional*):
        The images of this call after the Perceiver Resampler.
    cross_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`, eager attention):
        Attention of each GATED XATTN-DENSE block, `(batch_size, num_heads, sequence_length, images * num_latents)`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    image_embeds: torch.FloatTensor | None = None


@auto_docstring(custom_intro="The next token's scores, and the loss.")
@dataclass
class FlamingoCausalLMOutputWithPast(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Next-token loss over the labels that count: not -100, no padding, no `<image>`.
    logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
        Scores of the next token.
    past_key_values (`Cache`, *optional*, returned when `use_cache=True`):
        The language model's cache, with one more layer at its end for the images (`FlamingoMediaLayer`).
    image_embeds (`torch.FloatTensor` of shape `(batch_size, num_images, num_latents, hidden_size)`, *optional*):
        The images of this call after the Perceiver Resampler.
    cross_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`, eager attention):
        Attention of each GATED XATTN-DENSE block, `(batch_size, num_heads, sequence_length, images * num_latents)`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    image_embeds: torch.FloatTensor | None = None


class FlamingoMediaLayer(CacheLayerMixin):
    """What a cache remembers of the images: the last one's keys and values for every block, and who looked at what.

    It is appended to the language model's own cache, so it is reordered with the beams, repeated, cropped, copied and
    reset together with it, and nothing of a generation outlives its cache.

    Attributes:
        blocks (`dict[int, tuple[Tensor, Tensor]]`): keys and values of each block, `[B, H, S * R, D]`.
        slots (`LongTensor` `[B, S]`): the number of the image in each slot, counted from 1 along its row; 0 is empty.
        numbers (`LongTensor` `[B, T]`): for each token so far, the number of the image it looks at; 0 is none.
    """

    is_compileable = True
    is_croppable = True
    is_sliding = True  # so that masks and offloading, which look for full-attention layers, pass it by
    supports_early_init = False

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.blocks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.slots: torch.LongTensor | None = None
        self.numbers: torch.LongTensor | None = None

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.numbers is not None:
            self.blocks = {index: (function(k), function(v)) for index, (k, v) in self.blocks.items()}
            self.slots, self.numbers = function(self.slots), function(self.numbers)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._map(lambda tensor: tensor[indices.to(tensor.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens (a negative number, as in every cache layer).

        Raises:
            ValueError: when the tokens that stay look at an image whose keys and values are no longer held.
        """
        if self.numbers is None or tokens_to_remove == 0:
            return
        numbers = self.numbers[:, : -abs(tokens_to_remove)]
        if numbers.shape[1] == 0:
            self.reset()
            return
        last = numbers[:, -1:]  # [B, 1]
        is_held = (self.slots == last).any(dim=1, keepdim=True)
        is_replaced = (self.slots > last).any(dim=1, keepdim=True) & ~is_held
        if (is_replaced & (last > 0)).any():
            raise ValueError(
                "The cache keeps the keys and values of the last image only, and cannot be cropped to before it: "
                "compute the shorter prefix again (or deep-copy the cache before the image is read)."
            )
        self.numbers = numbers

    def get_seq_length(self) -> int:
        return 0 if self.numbers is None else self.numbers.shape[1]

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to prepare: the tensors come with the first image."""

    def update(self, key_states, value_states, *args, **kwargs):
        raise TypeError("FlamingoMediaLayer holds images, not text: the language model must not update it.")

    def offload(self) -> None:
        """Stays where it is: every decoded token reads it."""

    def prefetch(self) -> None:
        """Never offloaded."""

    @classmethod
    def of(cls, cache: Cache | None, create: bool = False) -> "FlamingoMediaLayer | None":
        """The media layer of `cache`, if it has one, or else a new one."""
        layers = [] if cache is None else cache.layers
        found = next((layer for layer in layers if isinstance(layer, cls)), None)
        if found is None and create:
            layers.append(found := cls())
        return found


class FlamingoGroups(NamedTuple):
    """Tokens in blocks of equal size; all of a block see the same image.

    Attributes:
        tokens (`LongTensor` `[G, C]`): positions in the flattened text; B * T fills up.
        images (`LongTensor` `[G]`): the place of each block's image among all that have keys, row after row.
    """

    tokens: torch.LongTensor
    images: torch.LongTensor


@dataclass
class FlamingoMedia:
    """What the blocks of one forward pass share: the images, and which token sees which.

    Attributes:
        states (`Tensor` `[B, M, R, D_v]`, *optional*): the images that are new in this pass.
        shown (`Tensor` `[B, M * R, D_v]`, *optional*): the same as the blocks take them; where nothing is remembered
            and tokens are grouped, those that a token sees alone, `[1, N * R, D_v]`.
        slots (`LongTensor` `[B, S]`): number of the image in each slot; 0 is empty.
        numbers (`LongTensor` `[B, T]`): number of the image that each token looks at; 0 is none.
        sees (`BoolTensor` `[B, T]`): whether the image a token looks at is there.
        mask: attention mask of the dense path, in the form that the attention backend takes.
        groups (`FlamingoGroups`, *optional*): the tokens by the image they see, in the place of a mask.
        past (`FlamingoMediaLayer`, *optional*): the image remembered from earlier passes.
        blocks (`dict`, *optional*): collects each block's keys and values, when a cache will remember them.
        attentions (`list`, *optional*): collects each block's attention weights, when asked for.
    """

    states: torch.Tensor | None
    slots: torch.LongTensor
    numbers: torch.LongTensor
    shown: torch.Tensor | None = None
    sees: torch.BoolTensor | None = None
    mask: torch.Tensor | None = None
    groups: FlamingoGroups | None = None
    past: FlamingoMediaLayer | None = None
    blocks: dict | None = None
    attentions: list | None = None

    def show_what_is_seen(self) -> None:
        """Leave out images that no token sees, padding among them: no block projects them."""
        images, place = torch.unique_consecutive(self.groups.images, return_inverse=True)
        self.shown = self.states.flatten(0, 1).index_select(0, images.to(self.states.device)).flatten(0, 1)[None]
        self.groups = self.groups._replace(images=place)

    @property
    def cross_attentions(self) -> tuple[torch.Tensor, ...] | None:
        """The collected weights, where the attention backend gives them."""
        return tuple(self.attentions) if self.attentions and self.attentions[0] is not None else None


class FlamingoReading(threading.local):
    """Who reads what in this thread: the side channel from a forward pass to the hooks in the language model."""

    model: "FlamingoModel | None" = None
    media: FlamingoMedia | None = None


_reading = FlamingoReading()


def group_by_slot(slot: torch.LongTensor, num_slots: int, num_latents: int) -> FlamingoGroups:
    """Divide the tokens into blocks that see one image each, so that a token's attention costs one image.

    The tokens of an image fill one block or several, all of one size: the one with the fewest rows to lay out.

    Args:
        slot (`torch.LongTensor` of shape `(batch, sequence)`): the slot each token sees, from 1; 0 is none.
        num_slots (`int`): how many slots there are in a row.
        num_latents (`int`): how many keys an image has.
    """
    (batch, length), device = slot.shape, slot.device
    first = torch.arange(0, batch * num_slots, num_slots, device=device)[:, None]  # [B, 1]
    image = torch.where(slot > 0, first + slot - 1, batch * num_slots).flatten()  # [B * T]
    order = image.argsort(stable=True)  # [B * T] tokens sorted by image, those without one last
    count = image.bincount(minlength=batch * num_slots + 1)[:-1]  # [B * S]
    counts = count.tolist()
    longest = max(counts)
    if longest == 0:  # one block of nothing, so that no parameter is idle
        return FlamingoGroups(order.new_full((1, 1), batch * length), order.new_zeros(1))

    def rows(size: int) -> int:
        return sum(-(-number // size) for number in counts) * (size + num_latents)

    size = min((longest, *(2**power for power in range(5, longest.bit_length()))), key=rows)
    blocks = (count + size - 1) // size  # [B * S]
    images = torch.arange(len(count), device=device).repeat_interleave(blocks)  # [G]
    done = size * (torch.arange(len(images), device=device) - (blocks.cumsum(0) - blocks)[images])  # in earlier blocks
    rank = torch.arange(size, device=device)
    place = (count.cumsum(0) - count)[images] + done  # [G]
    tokens = order[(place[:, None] + rank).clamp(max=batch * length - 1)]  # [G, C]
    return FlamingoGroups(tokens.masked_fill(rank >= (count[images] - done)[:, None], batch * length), images)


class FlamingoAttention(nn.Module):
    """Queries of one sequence over the keys and values of another, without biases.

    Args:
        config (`FlamingoConfig`): names the attention backend.
        query_width (`int`): width of the sequence that asks, and of the output.
        media_width (`int`): width of the sequence that is asked.
        heads (`int`): attention heads.
        head_width (`int`): width of one head.
    """

    def __init__(self, config: FlamingoConfig, query_width: int, media_width: int, heads: int, head_width: int):
        super().__init__()
        self.config = config
        self.head_dim = head_width
        self.scaling = head_width**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(query_width, heads * head_width, bias=False)
        self.k_proj = nn.Linear(media_width, heads * head_width, bias=False)
        self.v_proj = nn.Linear(media_width, heads * head_width, bias=False)
        self.o_proj = nn.Linear(heads * head_width, query_width, bias=False)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, N, D]

    def keys_and_values(self, media: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[B, H, N, D]` of the tokens `media` `[B, N, media_width]`."""
        return self.split_heads(self.k_proj(media)), self.split_heads(self.v_proj(media))

    def forward(
        self,
        hidden_states: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        groups: FlamingoGroups | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend, `[B, T, query_width]` to `[B, T, query_width]`, and return the weights where the backend has them.

        With `groups` the N keys are images of equal length, each read by its own tokens alone: the same result as a
        mask, at the cost of one image a token. Keys and values may then have other rows than the text.
        """
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query = self.q_proj(hidden_states)  # [B, T, H * D]
        if query.device.type == "cpu" and query.dtype == torch.bfloat16 and attention_mask is None:
            attend = eager_attention_forward  # the CPU's fused kernel takes 2 to 6 times as long, forward and backward
        if groups is None:
            output, weights = attend(
                self, self.split_heads(query), key, value, attention_mask, scaling=self.scaling, is_causal=False
            )  # [B, T, H, D]
            return self.o_proj(output.flatten(2)), weights
        shape, tokens, flat = query.shape, groups.tokens.flatten(), query.flatten(0, 1)
        query = flat.index_select(0, tokens.clamp(max=len(flat) - 1)).unflatten(0, groups.tokens.shape)
        key, value = (
            states.transpose(1, 2)
            .unflatten(1, (-1, self.config.resampler_num_latents))
            .flatten(0, 1)
            .index_select(0, groups.images)  # [G, R, H, D]
            .transpose(1, 2)
            for states in (key, value)
        )
        output, _ = attend(self, self.split_heads(query), key, value, None, scaling=self.scaling, is_causal=False)
        spread = output.new_zeros(len(flat) + 1, shape[-1])  # the last row takes what fills up the blocks
        spread = spread.index_copy(0, tokens, output.flatten(2).flatten(0, 1))  # [B * T + 1, H * D]
        return self.o_proj(spread[:-1].view(shape)), None


class FlamingoFeedForward(nn.Module):
    """The dense half of a block: normalise, widen, activate, narrow; no biases in the projections."""

    def __init__(self, config: FlamingoConfig, width: int, inner_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, inner_width, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(inner_width, width, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(self.norm(hidden_states))))


class FlamingoResamplerLayer(GradientCheckpointingLayer):
    """One layer of the Perceiver Resampler: latents attend to visual tokens and to themselves, then feed forward."""

    def __init__(self, config: FlamingoConfig):
        super().__init__()
        size = config.vision_hidden_size
        self.media_norm = nn.LayerNorm(size)
        self.latents_norm = nn.LayerNorm(size)
        self.attention = FlamingoAttention(config, size, size, config.resampler_num_heads, config.resampler_head_dim)
        self.feed_forward = FlamingoFeedForward(config, size, config.resampler_intermediate_size)

    def forward(self, latents: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
        normed = self.latents_norm(latents)  # [N, R, D_v]
        key, value = self.attention.keys_and_values(torch.cat((self.media_norm(media), normed), dim=1))
        latents = latents + self.attention(normed, key, value)[0]
        return latents + self.feed_forward(latents)


class FlamingoResampler(nn.Module):
    """Perceiver Resampler (section 2.1, appendix A.1.1): any number of visual tokens becomes R latents.

    An image is a video of one frame. Frames carry learned time embeddings, tokens within a frame none; a video longer
    than the trained number of frames interpolates the embeddings linearly, as the paper goes from 8 to 30 frames.
    """

    def __init__(self, config: FlamingoConfig):
        super().__init__()
        size = config.vision_hidden_size
        self.latents = nn.Parameter(torch.empty(config.resampler_num_latents, size))
        self.time_embedding = None
        # CODEPATH: OpenFlamingo's published checkpoints have no time embeddings, the paper's models have 8
        if config.resampler_num_frames:
            self.time_embedding = nn.Parameter(torch.empty(config.resampler_num_frames, size))
        self.layers = nn.ModuleList(FlamingoResamplerLayer(config) for _ in range(config.resampler_num_layers))
        # CODEPATH: OpenFlamingo's published checkpoints normalise the latents at the end, the paper does not
        self.norm = nn.LayerNorm(size) if config.resampler_final_norm else nn.Identity()

    def time_embeddings(self, num_frames: int) -> torch.Tensor:
        """Embeddings `[F, D_v]` of `num_frames` frames, interpolated beyond the trained number."""
        trained = self.time_embedding.shape[0]
        if num_frames <= trained:
            return self.time_embedding[:num_frames]
        stretched = nn.functional.interpolate(
            self.time_embedding.T[None], size=num_frames, mode="linear", align_corners=True
        )
        return stretched[0].T

    def forward(self, media: torch.Tensor) -> torch.Tensor:
        """Visual tokens `[N, F, V, D_v]` of N images or videos to latents `[N, R, D_v]`."""
        if self.time_embedding is not None:
            media = media + self.time_embeddings(media.shape[1])[:, None]
        media = media.flatten(1, 2)  # [N, F * V, D_v]
        latents = self.latents.expand(media.shape[0], -1, -1)  # [N, R, D_v]
        for layer in self.layers:
            latents = layer(latents, media)
        return self.norm(latents)


class FlamingoGatedCrossAttention(GradientCheckpointingLayer):
    """GATED XATTN-DENSE (section 2.2): text looks at its image, behind gates that start closed.

    With both gates at zero the block is the identity, so training starts from the language model as it is.
    """

    def __init__(self, config: FlamingoConfig):
        super().__init__()
        text_size, vision_size = config.decoder_config.hidden_size, config.vision_hidden_size
        self.text_norm = nn.LayerNorm(text_size)
        # CODEPATH: OpenFlamingo's published checkpoints normalise the text alone, the paper the images as well
        self.media_norm = nn.LayerNorm(vision_size) if config.cross_attention_media_norm else nn.Identity()
        self.attention = FlamingoAttention(
            config, text_size, vision_size, config.cross_attention_num_heads, config.cross_attention_head_dim
        )
        self.attention_gate = nn.Parameter(torch.empty(1))
        self.feed_forward = FlamingoFeedForward(config, text_size, config.cross_attention_intermediate_size)
        self.feed_forward_gate = nn.Parameter(torch.empty(1))

    def forward(
        self,
        hidden_states: torch.Tensor,
        media: torch.Tensor | None = None,
        past_key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        groups: FlamingoGroups | None = None,
        sees: torch.BoolTensor | None = None,
        return_key_value: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor | None]:
        """Text `[B, T, D_t]` over the new images `media` `[B, M * R, D_v]` and those already projected.

        Returns:
            The text `[B, T, D_t]`; keys and values `[B, H, S * R, D]`, when `return_key_value`; the attention weights,
            where the backend has them. Tokens that see no image (`sees` `[B, T]` false) take the feed-forward alone.
        """
        key_value, weights = past_key_value, None
        if media is not None:
            key_value = self.attention.keys_and_values(self.media_norm(media))
            if past_key_value is not None:
                key_value = tuple(torch.cat(pair, dim=2) for pair in zip(past_key_value, key_value))
        if key_value is not None:
            attended, weights = self.attention(self.text_norm(hidden_states), *key_value, attention_mask, groups)
            if sees is not None:
                attended = attended.masked_fill(~sees[..., None], 0.0)
            hidden_states = hidden_states + self.attention_gate.tanh() * attended
        hidden_states = hidden_states + self.feed_forward_gate.tanh() * self.feed_forward(hidden_states)
        return hidden_states, key_value if return_key_value else None, weights


class FlamingoTokenRows(nn.Module):
    """Embeddings of the few tokens that are trained while the language model's tables stay frozen.

    The rows stand in for those of the frozen tables: at the input, and at the output as well (by the same values where
    the language model ties its two tables).
    """

    def __init__(self, num_tokens: int, embedding_size: int, output_size: int | None):
        super().__init__()
        self.input_rows = nn.Parameter(torch.empty(num_tokens, embedding_size))
        self.output_rows = None if output_size is None else nn.Parameter(torch.empty(num_tokens, output_size))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows at the input and at the output, `[tokens, D]` each.

        A call, since what offloads or shards parameters brings them in for one; copies, since it takes them out again.
        """
        rows = self.input_rows.clone()
        return rows, rows if self.output_rows is None else self.output_rows.clone()


class FlamingoAdapter(nn.Module):
    """Everything that Flamingo trains: the resampler, the gated blocks, and the new tokens' rows."""

    def __init__(self, config: FlamingoConfig, token_rows: FlamingoTokenRows | None):
        super().__init__()
        self.resampler = FlamingoResampler(config)
        self.layers = nn.ModuleDict(
            {str(index): FlamingoGatedCrossAttention(config) for index in config.cross_attention_layers}
        )
        self.token_rows = token_rows


class FlamingoBlockHook:
    """Runs a block of the adapter before its language model layer. An object, so that copies of the model copy it."""

    def __init__(self, model: "FlamingoModel", index: int):
        self.model = model
        self.index = index

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        media = self.model.media
        if media is None:
            # The language model is used on its own, or a wrapper that checkpoints whole layers (FSDP's) computes this
            # one again for the backward pass, from the same states: they carry what they were shown
            model, media = getattr(hidden_states, "flamingo_reading", (None, None))
            if model is not self.model or torch._C._current_graph_task_id() < 0:
                return None
        elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
            hidden_states.flamingo_reading = self.model, media
        hidden_states = self.model.look(self.index, hidden_states, media)
        return ((hidden_states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden_states})


class FlamingoInputRowsHook:
    """Puts the trained rows of the adapter into the output of the frozen input embeddings."""

    def __init__(self, model: "FlamingoModel"):
        self.model = model

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        # Also where no forward pass is on: who embeds the text himself (prompt tuning) wants the rows that are trained
        if _reading.model not in (None, self.model):
            return output
        rows, _ = self.model.adapter.token_rows()
        rows = (rows * getattr(module, "embed_scale", 1.0)).to(output)
        input_ids = args[0].to(output.device)
        for token_id, row in zip(self.model.config.trained_token_ids, rows):
            output = torch.where((input_ids == token_id)[..., None], row, output)
        return output


class FlamingoOutputRowsHook:
    """Puts the scores of the trained rows into the output of the frozen language model head."""

    def __init__(self, model: "FlamingoModel"):
        self.model = model

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        if self.model.media is None:
            return output
        _, rows = self.model.adapter.token_rows()
        rows = rows.to(output.device)
        token_ids = torch.tensor(self.model.config.trained_token_ids, device=output.device)
        bias = None
        if module.bias is not None:
            # An offloaded head has left by now: accelerate, who moved it, brings it back
            with align_module_device(module) if module.bias.is_meta else nullcontext():
                bias = module.bias[token_ids].to(rows)
        scores = nn.functional.linear(args[0].to(rows), rows, bias)  # [B, T, tokens]
        return output.index_copy(-1, token_ids, scores.to(output.dtype))


def find_decoder_layers(text_model: PreTrainedModel, config: FlamingoConfig) -> nn.ModuleList:
    """The decoder layers of any causal language model: its one list with as many modules as it has layers.

    Raises:
        ValueError: when there is no such list, or several equally near the root; `decoder_layers_path` then names it.
    """
    name = type(text_model).__name__
    # CODEPATH: named in conversions of OpenFlamingo's checkpoints; found in models made from two parts
    if config.decoder_layers_path is not None:
        try:
            return text_model.get_submodule(config.decoder_layers_path)
        except AttributeError as error:
            raise ValueError(
                f"decoder_layers_path={config.decoder_layers_path!r} leads nowhere in {name}: {error}."
            ) from error
    num_layers = config.decoder_config.num_hidden_layers
    lists = {
        path: module
        for path, module in text_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    }
    depth = min((path.count(".") for path in lists), default=0)
    nearest = [path for path in lists if path.count(".") == depth]
    if len(nearest) != 1:
        found = f"the candidates are {nearest}" if nearest else "it has none"
        raise ValueError(
            f"The decoder layers of {name} should be its only list of {num_layers} modules, but {found}. "
            "Set decoder_layers_path to the path of the list, as in named_modules()."
        )
    return lists[nearest[0]]


def find_num_positions(text_model: PreTrainedModel, config: PreTrainedConfig) -> int | None:
    """How many tokens a language model with a table of positions can read; None where it computes positions."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return getattr(config, "max_seq_len", None)  # MPT, whose attention bias is made for as many tokens
    tensors = [*text_model.named_parameters(), *text_model.named_buffers()]
    tables = [tensor for name, tensor in tensors if tensor.ndim == 2 and ("pos" in name or "wpe" in name)]
    return limit if any(limit <= len(table) <= limit + 2 for table in tables) else None  # OPT's table has 2 more rows


def find_quantization(model: "FlamingoModel") -> BitsAndBytesConfig | None:
    """What loads a saved Flamingo as it is, where one of its parts was quantised before it was attached."""
    exact, found = ["adapter"], None
    for prefix, part in (("vision_model", model.vision_model), ("text_model", model.text_model)):
        quantization = None if part is None else getattr(part.config, "quantization_config", None)
        if isinstance(quantization, BitsAndBytesConfig):
            found = copy.deepcopy(quantization)
            exact += [f"{prefix}.{name}" for name, module in part.named_modules() if type(module) is nn.Linear]
        else:
            exact.append(prefix)
    if found is None:
        return None
    # Regular expressions, matched from the start of a name: the head puts a prefix before the parts of the base model
    found.llm_int8_skip_modules = [rf"(?:.*\.)?{name}" for name in exact]
    return found


def build_part(auto_class: type, mapping, config: PreTrainedConfig) -> PreTrainedModel:
    """A vision tower or language model of `config`, on eager attention where its class has no other."""
    model_class = mapping[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    if not (model_class._supports_sdpa or model_class._supports_flash_attn):
        config._attn_implementation = "eager"
    return auto_class.from_config(config)


def gathered(parameters: list[nn.Parameter], writer: int | None = None) -> AbstractContextManager:
    """Within it, what ZeRO-3 has divided is whole in every process, and what process `writer` changes in it stays."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=writer)


@torch.no_grad()
def copy_rows(table: nn.Module, rows: nn.Parameter, token_ids: list[int]) -> None:
    """Copy rows of the language model's table to those that are trained."""
    with gathered([table.weight, rows], writer=0):
        rows.copy_(table.weight[token_ids])


@auto_docstring
class FlamingoPreTrainedModel(ComposedModelMixin, PreTrainedModel):
    config: FlamingoConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["FlamingoGatedCrossAttention", "FlamingoResamplerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FlamingoResampler):
            init.normal_(module.latents)
            if module.time_embedding is not None:
                init.normal_(module.time_embedding, std=self.config.initializer_range)
        elif isinstance(module, FlamingoGatedCrossAttention):
            init.zeros_(module.attention_gate)
            init.zeros_(module.feed_forward_gate)
        elif isinstance(module, FlamingoTokenRows):
            init.normal_(module.input_rows, std=self.config.initializer_range)
            if module.output_rows is not None:
                init.normal_(module.output_rows, std=self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        model.freeze_parts()  # loading makes parameters anew, and with them what is trained
        return loaded

    def freeze_parts(self) -> None:
        """Train the adapter alone: freeze vision tower and language model as the config says (section 2.2)."""
        model = self.base_model
        # CODEPATH: frozen in every published checkpoint; the paper's ablations train them as well
        if self.config.freeze_language_model:
            model.text_model.requires_grad_(False)
        # CODEPATH: as above
        if self.config.freeze_vision_model and model.vision_model is not None:
            model.vision_model.requires_grad_(False)


@auto_docstring(
    custom_intro="Flamingo without a language modelling head: hidden states of a text that looks at its images."
)
class FlamingoModel(FlamingoPreTrainedModel):
    def __init__(
        self,
        config: FlamingoConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        r"""
        vision_model (`PreTrainedModel`, *optional*):
            A vision tower to attach to, already loaded; by default one is made from `config.vision_config`.
        text_model (`PreTrainedModel`, *optional*):
            A causal language model to attach to, already loaded; by default one is made from `config.text_config`.
        """
        super().__init__(config)
        for part in filter(None, (vision_model, text_model)):
            for module in part.modules():
                module._is_hf_initialized = True  # `post_init` draws nothing anew, LoRA of the part included
        # CODEPATH: without a tower, for features computed beforehand
        if vision_model is None and config.vision_config is not None:
            vision_model = build_part(AutoModel, MODEL_MAPPING, config.vision_config)
        if text_model is None:
            text_model = build_part(AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, config.text_config)
        self.vision_model = vision_model
        self.text_model = text_model
        # How the language model calls its cache, if it has one: Mamba's holds a state of fixed size, RWKV's is none
        accepted = inspect.signature(type(text_model).forward).parameters
        named = [name for name in ("past_key_values", "cache_params") if name in accepted]
        self.cache_name = named[0] if named and text_model._supports_default_dynamic_cache() else None
        self.num_positions = find_num_positions(text_model, config.decoder_config)
        layers = find_decoder_layers(text_model, config)
        for index in config.cross_attention_layers:
            layers[index].register_forward_pre_hook(FlamingoBlockHook(self, index), with_kwargs=True)
        self.adapter = FlamingoAdapter(config, self._attach_token_rows())
        self.post_init()
        self.freeze_parts()

    @property
    def media(self) -> FlamingoMedia | None:
        """What this thread's forward pass shows to the blocks; None while the language model is used on its own."""
        return _reading.media if _reading.model is self else None

    def _attach_token_rows(self) -> FlamingoTokenRows | None:
        """Rows for `config.trained_token_ids`, and the hooks that put them in the place of the frozen ones."""
        # CODEPATH: OpenFlamingo's published checkpoints keep the new rows in the language model's own tables
        if not self.config.trained_token_ids:
            return None
        embeddings = self.text_model.get_input_embeddings()
        head = self.text_model.get_output_embeddings()
        self._hook_rows(embeddings, FlamingoInputRowsHook)
        self._hook_rows(head, FlamingoOutputRowsHook)
        tied = bool(self.config.decoder_config.tie_word_embeddings)
        return FlamingoTokenRows(
            len(self.config.trained_token_ids), embeddings.embedding_dim, None if tied else head.in_features
        )

    def _hook_rows(self, table: nn.Module, hook_class: type) -> None:
        """Put the trained rows into what `table` gives, once, also where it takes another table's place."""
        hooks = table._forward_hooks.values()
        is_hooked = any(isinstance(hook, hook_class) and hook.model is self for hook in hooks)
        # CODEPATH: as in `_attach_token_rows`
        if self.config.trained_token_ids and not is_hooked:
            table.register_forward_hook(hook_class(self))

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)
        self._hook_rows(value, FlamingoInputRowsHook)

    def get_output_embeddings(self) -> nn.Module:
        return self.text_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.text_model.set_output_embeddings(new_embeddings)
        self._hook_rows(new_embeddings, FlamingoOutputRowsHook)

    def get_decoder(self) -> nn.Module:
        return self.text_model.base_model

    def _encode(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> ModelOutput:
        """What the tower makes of images `[N, C, H, W]`; of its tokens `[N, V, D_v]` no class or register tokens."""
        if interpolate_pos_encoding:  # not every tower knows the word
            kwargs["interpolate_pos_encoding"] = True
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.vision_model.parameters())
        with torch.set_grad_enabled(trained):
            # Not the pooled or post-normalised output: OpenFlamingo was trained on what the last layer gives
            outputs = self.vision_model(
                pixel_values=pixel_values.to(self.vision_model.dtype), return_dict=True, **kwargs
            )
        states, width = outputs.last_hidden_state, self.config.vision_hidden_size
        patch = getattr(self.config.vision_config, "patch_size", None)
        timm_model = getattr(self.vision_model, "timm_model", None)
        if states.ndim == 4:  # a map: [N, D_v, h, w] of convolutions, [N, h, w, D_v] of timm's Swin
            states = states.movedim(1 if states.shape[1] == width else 3, 3).flatten(1, 2)
        elif timm_model is not None:
            states = states[:, timm_model.num_prefix_tokens :]
        elif patch is not None:
            patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
            num_patches = (pixel_values.shape[-2] // patch_height) * (pixel_values.shape[-1] // patch_width)
            states = states[:, max(0, states.shape[1] - num_patches) :]
        if states.shape[-1] != width:
            raise ValueError(
                f"{type(self.vision_model).__name__} gives features of width {states.shape[-1]}, but the model was "
                f"made for vision_hidden_size={width}."
            )
        outputs.last_hidden_state = states
        return outputs

    @can_return_tuple
    @auto_docstring
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_images, [num_frames,] channels, height, width)`):
            Images, or videos of several frames, in the order of their `<image>` tokens. Rows with fewer images are
            padded with anything and marked in `image_mask`. One image a row may come without the second dimension.
        image_features (`torch.FloatTensor` of shape `(batch_size, num_images, num_frames, num_tokens, hidden_size)`):
            What the vision tower made of the images, computed beforehand; in the place of `pixel_values`.
        image_mask (`torch.Tensor` of shape `(batch_size, num_images)`, *optional*):
            1 for an image, 0 for padding, which is never encoded.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether the tower stretches its table of positions to images of another size than it was trained with.

        Returns:
            `pooler_output` of shape `(batch_size, num_images, num_latents, vision_hidden_size)`: the images after the
            resampler, zero where padding is. `last_hidden_state` of shape `(frames of all images, num_tokens,
            vision_hidden_size)`: the vision tower's tokens; `hidden_states` and `attentions` of the tower on request.
        """
        media = self._check_images(pixel_values, image_features, image_mask)  # [B, M, F, ...]
        batch, num_images, num_frames = media.shape[:3]
        media = media.flatten(0, 1)  # [B * M, F, ...]
        if image_mask is not None:
            real = image_mask.flatten().nonzero().squeeze(1).to(media.device)  # [N]
            if torch.compiler.is_compiling() or len(real):
                media = media[real]
            else:  # towers take no empty batch, and DDP no idle parameters
                media, real = torch.zeros_like(media[:1]), real.new_zeros(1)
        tokens, tower = media.flatten(0, 1), {}  # [N * F, ...]
        if pixel_values is not None:
            tower = self._encode(tokens, interpolate_pos_encoding, **kwargs)
            tokens = tower.last_hidden_state  # [N * F, V, D_v]
        resampler = self.adapter.resampler
        latents = resampler(tokens.to(resampler.latents.dtype).unflatten(0, (-1, num_frames)))  # [N, R, D_v]
        if image_mask is not None:
            empty = latents.new_zeros(batch * num_images, *latents.shape[1:])
            latents = empty.index_copy(0, real.to(latents.device), latents)
            latents = latents.masked_fill(image_mask.to(latents.device).view(-1, 1, 1) == 0, 0.0)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=latents.unflatten(0, (batch, num_images)),
            hidden_states=tower.get("hidden_states"),
            attentions=tower.get("attentions"),
        )

    def _check_images(
        self, pixel_values: torch.Tensor | None, image_features: torch.Tensor | None, image_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Whichever of the two was given, as `[B, M, F, ...]`.

        Raises:
            ValueError: when neither or both were given, or their shapes are not those of images.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Give either pixel_values or image_features, one of the two.")
        if image_features is not None:
            size = self.config.vision_hidden_size
            if image_features.ndim != 5 or image_features.shape[-1] != size:
                raise ValueError(
                    "image_features have shape (batch_size, num_images, num_frames, num_tokens, vision_hidden_size) "
                    f"with vision_hidden_size={size}, got {tuple(image_features.shape)}."
                )
            media = image_features
        else:
            if self.vision_model is None:
                raise ValueError(
                    "This model has no vision tower (its vision_config is None): give image_features, computed by the "
                    "tower it was trained with, instead of pixel_values."
                )
            shape = tuple(pixel_values.shape)
            if pixel_values.ndim not in (4, 5, 6):
                raise ValueError(
                    "pixel_values have shape (batch_size, num_images, [num_frames,] channels, height, width), "
                    f"got {shape}."
                )
            if pixel_values.ndim == 4:
                pixel_values = pixel_values[:, None]
            media = pixel_values[:, :, None] if pixel_values.ndim == 5 else pixel_values
        if image_mask is not None and image_mask.shape != media.shape[:2]:
            raise ValueError(
                f"image_mask marks every image slot: expected shape {tuple(media.shape[:2])}, "
                f"got {tuple(image_mask.shape)}."
            )
        return media

    def _check_length(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
    ) -> None:
        """Raise a ValueError when the text is longer than the language model's table of positions."""
        if self.num_positions is None:
            return
        length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if isinstance(length, torch.Tensor):  # a static cache, whose own size is the limit
            return
        length += inputs.shape[1]
        if length > self.num_positions and attention_mask is not None and attention_mask.ndim == 2:
            length = int(attention_mask.sum(dim=1).max())  # padding takes no position
        if length > self.num_positions:
            raise ValueError(
                f"The text has {length} tokens, but {type(self.text_model).__name__} has {self.num_positions} "
                "positions: shorten it (an image takes one token), or use a language model that computes positions."
            )

    def _view_media(
        self,
        inputs: torch.Tensor,
        image_embeds: torch.Tensor | None,
        image_mask: torch.Tensor | None,
        media_index: torch.LongTensor | None,
        past: FlamingoMediaLayer | None,
        output_attentions: bool = False,
    ) -> FlamingoMedia:
        """Which token of `inputs` (ids `[B, T]` or embeddings `[B, T, D_t]`) sees which image (the paper's phi)."""
        (batch, length), device = inputs.shape[:2], inputs.device
        num_new = 0 if image_embeds is None else image_embeds.shape[1]
        shape = (self.config.resampler_num_latents, self.config.vision_hidden_size)
        if num_new and image_embeds.shape[2:] != shape:
            raise ValueError(
                "image_embeds have shape (batch_size, num_images, num_latents, vision_hidden_size), here with "
                f"{shape[0]} latents of width {shape[1]}; got {tuple(image_embeds.shape)}."
            )
        if num_new and image_embeds.shape[0] != batch:
            raise ValueError(f"There are {batch} rows of text, but {image_embeds.shape[0]} rows of images.")
        if num_new and image_mask is not None and image_mask.shape != (batch, num_new):
            raise ValueError(
                f"image_mask marks every image slot: expected shape {(batch, num_new)}, got {tuple(image_mask.shape)}."
            )
        if media_index is not None:
            if media_index.shape != (batch, length):
                raise ValueError(
                    f"media_index has one image number for each token: expected shape {(batch, length)}, "
                    f"got {tuple(media_index.shape)}."
                )
            steps = media_index if past is None else media_index - past.numbers[:, -1:]
        # CODEPATH: no token for images where media_index says everything
        elif inputs.ndim == 2 and self.config.image_token_id is not None:
            steps = (inputs == self.config.image_token_id).cumsum(dim=1)  # [B, T]
        elif num_new:
            raise ValueError(
                "Which text belongs to which image is read off the <image> tokens of input_ids "
                f"(image_token_id={self.config.image_token_id}); without them, give media_index: for each token the "
                "number of its image in the row, from 1; 0 for none."
            )
        else:
            steps = torch.zeros(batch, length, dtype=torch.long, device=device)

        slots, numbers = steps.new_zeros(batch, 0), steps
        if num_new:
            present = steps.new_ones(batch, num_new) if image_mask is None else image_mask.to(device, torch.long)
            slots = present.cumsum(dim=1) * present  # [B, M]
        if past is not None:
            # The images of a later turn are the last ones given: a caller may pass those of earlier turns again
            before = past.numbers[:, -1:]  # [B, 1]
            if num_new:
                skipped = (slots.amax(dim=1) - steps.amax(dim=1)).clamp(min=0)[:, None]
                slots = torch.where(slots > skipped, before + slots - skipped, 0)
            slots, numbers = torch.cat((past.slots, slots), dim=1), before + steps
        num_slots = slots.shape[1]
        states = image_embeds if num_new else None
        shown = None if states is None else states.flatten(1, 2)  # [B, M * R, D_v]
        media = FlamingoMedia(states=states, slots=slots, numbers=numbers, shown=shown, past=past)
        media.attentions = [] if output_attentions else None
        if num_slots == 0:
            return media

        immediate = self.config.only_attend_immediate_media
        numbers = numbers[..., None]  # [B, T, 1]
        visible = slots[:, None] == numbers if immediate else slots[:, None] <= numbers  # [B, T, S]
        visible = visible & (slots[:, None] > 0)
        media.sees = visible.any(dim=-1)
        flash = is_flash_attention_requested(self.config)
        if num_slots == 1:
            return media
        is_grouped = num_slots > 2 and not output_attentions  # the weights of a group are not those of all images
        if immediate and not torch.compiler.is_compiling() and (flash or is_grouped):
            slot = torch.where(media.sees, visible.long().argmax(dim=-1) + 1, 0)
            groups = group_by_slot(slot, num_slots, self.config.resampler_num_latents)
            if flash or 2 * groups.tokens.numel() <= batch * length * num_slots:
                media.groups = groups
                return media
        if flash:
            raise ValueError(
                "Flash attention takes no mask, which seeing several images at once "
                "(only_attend_immediate_media=False) or compiling needs: use attn_implementation='sdpa'."
            )
        opened = visible | ~media.sees[..., None]  # a row without any key has no softmax; its output is dropped
        num_latents = self.config.resampler_num_latents

        def sees_image(batch_idx: int, head_idx: int, q_idx: int, kv_idx: int) -> torch.Tensor:
            return opened[batch_idx, q_idx, kv_idx // num_latents]

        dtype = self.adapter.resampler.latents.dtype
        media.mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=torch.empty(batch, length, 0, dtype=dtype, device=device),
            attention_mask=None,
            encoder_hidden_states=torch.empty(batch, num_slots * num_latents, 0, dtype=dtype, device=device),
            and_mask_function=sees_image,
        )
        return media

    def look(self, index: int, hidden_states: torch.Tensor, media: FlamingoMedia) -> torch.Tensor:
        """Run the GATED XATTN-DENSE block that stands before language model layer `index`.

        Raises:
            ValueError: when the layer does not read one state for each token.
        """
        if hidden_states.shape[:-1] != media.numbers.shape:
            raise ValueError(
                f"The layers of {type(self.text_model).__name__} read states of shape {tuple(hidden_states.shape)} "
                f"where the text has {tuple(media.numbers.shape)} tokens: Flamingo needs a language model with one "
                "state a token."
            )
        block = self.adapter.layers[str(index)]
        past_key_value = None if media.past is None else media.past.blocks.get(index)
        looked, key_value, weights = block(
            hidden_states.to(block.attention_gate.dtype),
            media.shown,
            past_key_value,
            attention_mask=media.mask,
            groups=media.groups,
            sees=media.sees,
            return_key_value=media.blocks is not None,
        )
        if media.blocks is not None and key_value is not None:
            media.blocks[index] = key_value
        if media.attentions is not None:
            media.attentions.append(weights)
        return looked.to(hidden_states.dtype)

    def _remember(self, media: FlamingoMedia, cache: Cache) -> None:
        """Keep in `cache` what later tokens need of the images: of all, or of each row's last one."""
        layer = FlamingoMediaLayer.of(cache, create=True)
        if media.past is None or media.states is not None:
            layer.blocks, layer.slots = media.blocks, media.slots
            # CODEPATH: true in every published checkpoint; an ablation of the paper sees all earlier images
            if self.config.only_attend_immediate_media and media.states is not None:
                last = media.numbers[:, -1:]  # [B, 1]
                held = (media.slots == last) & (last > 0)  # [B, S]
                chosen = held.long().argmax(dim=1)  # [B]
                rows = torch.arange(len(chosen), device=chosen.device)
                layer.slots = torch.where(held.any(dim=1, keepdim=True), last, 0)

                def of_chosen(states: torch.Tensor) -> torch.Tensor:
                    place = rows.to(states.device), slice(None), chosen.to(states.device)  # layers on several devices
                    return states.unflatten(2, (media.slots.shape[1], -1))[place]  # [B, H, R, D]

                layer.blocks = {index: tuple(map(of_chosen, pair)) for index, pair in media.blocks.items()}
        numbers = media.numbers
        if layer.numbers is not None and not torch.compiler.is_compiling():  # compiled steps keep their shapes
            numbers = torch.cat((layer.numbers, numbers), dim=1)
        layer.numbers = numbers

    def read(
        self,
        reader: nn.Module,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        media_index: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> tuple[ModelOutput, FlamingoMedia]:
        """Let `reader`, the language model or its body, read text while its layers look at the images."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, one of the two.")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs.shape[0] == 0 or inputs.shape[1] == 0:
            raise ValueError(f"The text is empty: input_ids of shape {tuple(inputs.shape[:2])}.")
        self._check_length(inputs, attention_mask, past_key_values)
        if self.cache_name is None:
            if use_cache or past_key_values is not None:
                raise ValueError(
                    f"{type(reader).__name__} keeps a state of its own kind, which Flamingo cannot continue: pass the "
                    "whole text, without past_key_values and use_cache."
                )
            kwargs["use_cache"] = False
        else:
            if use_cache is None:
                use_cache = getattr(self.config.decoder_config, "use_cache", True) and not self.training
            if use_cache and past_key_values is None:
                past_key_values = DynamicCache(config=self.config.decoder_config)
                FlamingoMediaLayer.of(past_key_values, create=True)
            kwargs.update({self.cache_name: past_key_values, "use_cache": use_cache})
        accepted = inspect.signature(type(reader).forward).parameters
        optional = {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        kwargs.update({name: value for name, value in optional.items() if value is not None and name in accepted})
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
            kwargs = {name: value for name, value in kwargs.items() if name in accepted}

        past = FlamingoMediaLayer.of(past_key_values)
        past = None if past is None or past.numbers is None else past
        if pixel_values is not None or image_features is not None:
            if image_embeds is not None:
                raise ValueError("Give pixel_values, image_features or image_embeds, one of the three.")
            features = self.get_image_features(
                pixel_values,
                image_features,
                image_mask,
                interpolate_pos_encoding=interpolate_pos_encoding,
                return_dict=True,
            )
            image_embeds = features.pooler_output
        weighed = bool(kwargs.get("output_attentions", self.config.output_attentions))
        media = self._view_media(inputs, image_embeds, image_mask, media_index, past, weighed)
        if past_key_values is not None and (media.states is not None or past is None):
            media.blocks = {}
        elif media.groups is not None and past is None:
            media.show_what_is_seen()
        _reading.model, _reading.media = self, media
        try:
            outputs = reader(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        finally:
            _reading.model = _reading.media = None
        if past_key_values is not None:
            self._remember(media, past_key_values)
        return outputs, media

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        media_index: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FlamingoModelOutputWithPast:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_images, [num_frames,] channels, height, width)`):
            Images, or videos, in the order of their `<image>` tokens. With a cache that holds earlier images: the new
            ones, or all of them again.
        image_features (`torch.FloatTensor` of shape `(batch_size, num_images, num_frames, num_tokens, hidden_size)`):
            The vision tower's tokens, computed beforehand; in the place of `pixel_values`.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, num_images, num_latents, vision_hidden_size)`):
            The resampler's latents, computed beforehand (`get_image_features(...).pooler_output`).
        image_mask (`torch.Tensor` of shape `(batch_size, num_images)`, *optional*):
            1 for an image, 0 for padding.
        media_index (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            For each token the number of the image it looks at, from 1 along its row; 0 for none. By default the last
            image at or before the token, counted by the `<image>` tokens.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether the tower stretches its table of positions to images of another size than it was trained with.
        """
        outputs, media = self.read(
            self.text_model.base_model,
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_features=image_features,
            image_embeds=image_embeds,
            image_mask=image_mask,
            media_index=media_index,
            use_cache=use_cache,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **kwargs,
        )
        return FlamingoModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.get(self.cache_name),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            cross_attentions=media.cross_attentions,
            image_embeds=media.states,
        )


@auto_docstring(
    custom_intro="""
    Flamingo: a frozen causal language model that reads text interleaved with images and goes on writing.
    `from_vision_text_pretrained` attaches it to any two pre-trained parts.
    """
)
class FlamingoForConditionalGeneration(FlamingoPreTrainedModel, GenerationMixin):
    def __init__(
        self,
        config: FlamingoConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        r"""
        vision_model (`PreTrainedModel`, *optional*):
            A vision tower to attach to, already loaded; by default one is made from `config.vision_config`.
        text_model (`PreTrainedModel`, *optional*):
            A causal language model to attach to, already loaded; by default one is made from `config.text_config`.
        """
        super().__init__(config)
        self.model = FlamingoModel(config, vision_model, text_model)
        # No assisted decoding over a recurrent state, nor without a cache
        self._is_stateful = self.model.text_model._is_stateful or self.model.cache_name is None
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision_model: str | PreTrainedModel | None,
        text_model: str | PreTrainedModel,
        processor=None,
        vision_kwargs: dict | None = None,
        text_kwargs: dict | None = None,
        **config_kwargs,
    ) -> "FlamingoForConditionalGeneration":
        r"""Attach new adapters to a pre-trained vision tower and a pre-trained causal language model, both frozen.

        Args:
            vision_model (`str` or `PreTrainedModel`, *optional*):
                A vision tower, or the repository or folder of one; of a CLIP-like pair the vision half is taken. None
                for features that are computed beforehand, whose width `vision_hidden_size` then says.
            text_model (`str` or `PreTrainedModel`):
                A causal language model, or the repository or folder of one; it may be quantised.
            processor (`FlamingoProcessor`, *optional*):
                Names the `<image>` and `<|endofchunk|>` tokens. Where the language model's tables have no rows for
                them, they are resized; the adapter trains those rows (`trained_token_ids`).
            vision_kwargs, text_kwargs (`dict`, *optional*):
                For `from_pretrained` of the two parts (`dtype`, `quantization_config`, `device_map`, ...).
            config_kwargs:
                Fields of [`FlamingoConfig`].

        Returns:
            `FlamingoForConditionalGeneration`: in evaluation mode; its gates are closed, so it writes exactly as the
            language model does.

        Raises:
            ValueError: when `text_model` is no causal language model, or its decoder layers are not found.
        """
        if isinstance(vision_model, str):
            vision_config = AutoConfig.from_pretrained(vision_model)
            vision_config = getattr(vision_config, "vision_config", vision_config)
            vision_model = AutoModel.from_pretrained(vision_model, config=vision_config, **(vision_kwargs or {}))
        elif hasattr(getattr(vision_model, "config", None), "vision_config"):
            vision_model = vision_model.vision_model
        if isinstance(text_model, str):
            text_model = AutoModelForCausalLM.from_pretrained(text_model, **(text_kwargs or {}))
        if not text_model.can_generate():
            raise ValueError(
                "text_model should be a causal language model with its head, as AutoModelForCausalLM loads it; got "
                f"{type(text_model).__name__}."
            )
        embeddings = text_model.get_input_embeddings()
        if processor is not None:
            tokenizer = processor.tokenizer
            if len(tokenizer) > embeddings.num_embeddings:
                text_model.resize_token_embeddings(len(tokenizer))
                embeddings = text_model.get_input_embeddings()
            config_kwargs.setdefault("image_token_id", processor.image_token_id)
            config_kwargs.setdefault("end_of_chunk_token_id", processor.end_of_chunk_token_id)
            config_kwargs.setdefault("trained_token_ids", [processor.end_of_chunk_token_id, processor.image_token_id])
        if hasattr(vision_model, "timm_model"):  # whose config does not tell
            config_kwargs.setdefault("vision_hidden_size", vision_model.timm_model.num_features)
        vision_config = None if vision_model is None else vision_model.config
        config = FlamingoConfig(vision_config=vision_config, text_config=text_model.config, **config_kwargs)
        # `_from_config` divides the adapter among the processes while it is made, as ZeRO-3 did with the parts
        make = cls._from_config if is_deepspeed_zero3_enabled() else cls
        model = make(config, vision_model=vision_model, text_model=text_model)
        adapter = model.model.adapter.to(embeddings.weight.device)
        if (quantization := find_quantization(model.model)) is not None:
            config.quantization_config = quantization
        # CODEPATH: none without a processor to name them
        if config.trained_token_ids:
            copy_rows(embeddings, adapter.token_rows.input_rows, config.trained_token_ids)
            if adapter.token_rows.output_rows is not None:
                copy_rows(text_model.get_output_embeddings(), adapter.token_rows.output_rows, config.trained_token_ids)
        model.generation_config = copy.deepcopy(text_model.generation_config)  # the language model's stays as it is
        # CODEPATH: as above
        if config.end_of_chunk_token_id is not None:
            stops = model.generation_config.eos_token_id
            stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
            model.generation_config.eos_token_id = [*stops, config.end_of_chunk_token_id]
        # CODEPATH: as above
        if config.image_token_id is not None:
            model.generation_config.suppress_tokens = [config.image_token_id]  # there is no image to go with it
        return model.eval()

    def save_flamingo_adapter(self, save_directory: str | Path) -> None:
        """Save what Flamingo trains and nothing of the frozen parts: `flamingo_adapter.safetensors` and its `.json`.

        The json holds the config and the names of the two parts, which `from_flamingo_adapter` loads again. Where FSDP
        or ZeRO-3 has divided the model, every process must call this, and the first one writes.
        """
        directory, parameters = Path(save_directory), list(self.model.adapter.parameters())
        is_divided = is_deepspeed_zero3_enabled() or any(isinstance(parameter, DTensor) for parameter in parameters)
        with gathered(parameters):
            state = {
                name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                for name, tensor in get_state_dict_offloaded_model(self.model.adapter).items()
            }
            if not is_divided or distributed.get_rank() == 0:
                self._write_flamingo_adapter(directory, state)

    def _write_flamingo_adapter(self, directory: Path, state: dict[str, torch.Tensor]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        vision_model, text_model = self.model.vision_model, self.model.text_model
        parts = {
            "vision_model": None if vision_model is None else vision_model.name_or_path,
            "text_model": text_model.name_or_path,
        }
        state = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
        save_file(state, directory / "flamingo_adapter.safetensors", metadata={"format": "pt"})
        description = {"config": self.config.to_dict(), **parts}
        (directory / "flamingo_adapter.json").write_text(
            json.dumps(description, indent=2, sort_keys=True, default=str)
        )

    def load_flamingo_adapter(self, name_or_path: str | Path) -> None:
        """Load into this model's adapter what `save_flamingo_adapter` wrote, from a folder or a repository.

        Raises:
            ValueError: when the adapter belongs to parts or settings of another shape; both are named. When this
                model's own adapter is offloaded, and nothing can be written into it.
        """
        if any(parameter.is_meta for parameter in self.model.adapter.parameters()):
            raise ValueError(
                "This model's adapter is offloaded to the CPU or the disk, and nothing can be loaded into it there: "
                "keep it on a device, as with device_map={'model.adapter': 0, ...}."
            )
        state = load_file(cached_file(str(name_or_path), "flamingo_adapter.safetensors"))
        with gathered(list(self.model.adapter.parameters()), writer=0):
            own = self.model.adapter.state_dict()
            wrong = sorted(
                f"{name}: {_shape(own.get(name))} here, {_shape(state.get(name))} in the file"
                for name in own.keys() | state.keys()
                if name not in own or name not in state or own[name].shape != state[name].shape
            )
            if wrong:
                raise ValueError(
                    f"The adapter in {name_or_path} was made for other parts or another config: {len(wrong)} tensors "
                    f"differ, first {'; '.join(wrong[:3])}. Compare flamingo_adapter.json with this model's config."
                )
            self.model.adapter.load_state_dict(state)

    @classmethod
    def from_flamingo_adapter(
        cls,
        name_or_path: str | Path,
        vision_model: str | PreTrainedModel | None = None,
        text_model: str | PreTrainedModel | None = None,
        vision_kwargs: dict | None = None,
        text_kwargs: dict | None = None,
    ) -> "FlamingoForConditionalGeneration":
        """A saved adapter on its frozen parts: those it was trained with, or the ones given.

        Raises:
            ValueError: when a part has another shape than the adapter's, or neither adapter nor caller names it.
        """
        description = json.loads(Path(cached_file(str(name_or_path), "flamingo_adapter.json")).read_text())
        config = description["config"]
        fields = {name: config[name] for name in FlamingoConfig().to_dict() if name in config}
        for name in ("vision_config", "text_config", "architectures", "transformers_version", "model_type", "dtype"):
            fields.pop(name, None)
        vocab_size = config["text_config"]["vocab_size"]
        vision_model = description["vision_model"] if vision_model is None else vision_model
        text_model = description["text_model"] if text_model is None else text_model
        for name, part in (("vision_model", vision_model), ("text_model", text_model)):
            if part == "":
                raise ValueError(
                    f"The adapter in {name_or_path} does not say where its {name} is, which came from no repository "
                    f"or folder when the adapter was saved: give {name}."
                )
        if isinstance(text_model, str):
            text_model = AutoModelForCausalLM.from_pretrained(text_model, **(text_kwargs or {}))
        if text_model.get_input_embeddings().num_embeddings < vocab_size:
            text_model.resize_token_embeddings(vocab_size)
        model = cls.from_vision_text_pretrained(vision_model, text_model, vision_kwargs=vision_kwargs, **fields)
        width = (config["vision_config"] or {}).get("hidden_size")
        given = getattr(model.config.vision_config, "hidden_size", None)
        if given != width:
            raise ValueError(
                f"The adapter in {name_or_path} was made for a vision tower of width {width}, but the one given has "
                f"{given}: give the tower that it was trained with."
            )
        model.load_flamingo_adapter(name_or_path)
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return self.model.get_decoder()

    @auto_docstring
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_images, [num_frames,] channels, height, width)`):
            Images, or videos.
        image_features (`torch.FloatTensor` of shape `(batch_size, num_images, num_frames, num_tokens, hidden_size)`):
            What the vision tower made of them, computed beforehand; in the place of `pixel_values`.
        image_mask (`torch.Tensor` of shape `(batch_size, num_images)`, *optional*):
            1 for an image, 0 for padding.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether the tower stretches its table of positions to images of another size than it was trained with.
        """
        return self.model.get_image_features(
            pixel_values, image_features, image_mask, interpolate_pos_encoding, **kwargs
        )

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        media_index: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FlamingoCausalLMOutputWithPast:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_images, [num_frames,] channels, height, width)`):
            Images, or videos, in the order of their `<image>` tokens. With a cache that holds earlier images: the new
            ones, or all of them again.
        image_features (`torch.FloatTensor` of shape `(batch_size, num_images, num_frames, num_tokens, hidden_size)`):
            The vision tower's tokens, computed beforehand; in the place of `pixel_values`.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, num_images, num_latents, vision_hidden_size)`):
            The resampler's latents, computed beforehand (`get_image_features(...).pooler_output`).
        image_mask (`torch.Tensor` of shape `(batch_size, num_images)`, *optional*):
            1 for an image, 0 for padding.
        media_index (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            For each token the number of the image it looks at, from 1 along its row; 0 for none. By default the last
            image at or before the token, counted by the `<image>` tokens.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether the tower stretches its table of positions to images of another size than it was trained with.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The tokens to learn, not shifted; -100 where nothing is to be learned. Padding and `<image>` never count.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            What the summed loss is divided by, as `Trainer` passes it; by default the labels that count.
        shift_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The token that follows each position, in the place of `labels`: those of a text that is split over several
            processes are shifted before it is. -100 where nothing is to be learned; `<image>` never counts.
        """
        # Not in the signature: Trainer evaluates no loss unless every argument with "label" in its name is given
        shift_labels = kwargs.pop("shift_labels", None)
        if use_cache is None and past_key_values is None and (labels is not None or shift_labels is not None):
            use_cache = False  # nothing follows; and with a cache, documents packed into one row would read each other
        takes_kept = "logits_to_keep" in inspect.signature(type(self.model.text_model).forward).parameters
        outputs, media = self.model.read(
            self.model.text_model,
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_features=image_features,
            image_embeds=image_embeds,
            image_mask=image_mask,
            media_index=media_index,
            use_cache=use_cache,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **({"logits_to_keep": logits_to_keep} if takes_kept else {}),
            **kwargs,
        )
        logits = outputs.logits if takes_kept else slice_logits_to_keep(outputs.logits, logits_to_keep)
        loss = None
        shifted = shift_labels is not None
        labels = shift_labels if shifted else labels
        if labels is not None:
            labels = labels.to(logits.device)
            # CODEPATH: no token for images where media_index says everything
            if self.config.image_token_id is not None:
                labels = labels.masked_fill(labels == self.config.image_token_id, -100)
            if not shifted and attention_mask is not None and attention_mask.shape == labels.shape:
                padding = attention_mask.to(labels.device) == 0
                labels = labels.masked_fill(padding | padding.roll(1, dims=1), -100)  # nothing is read off padding
            loss = causal_language_modeling_loss(logits, labels, num_items_in_batch, shifted=shifted)
        return FlamingoCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.get(self.model.cache_name),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            cross_attentions=media.cross_attentions,
            image_embeds=media.states,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ):
        r"""Go on writing a text that is interleaved with images; see [`~transformers.GenerationMixin.generate`].

        Vision tower and resampler run once, before the first token and before the beams part; keys and values of the
        images are projected once and kept with the language model's cache.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The prompt; `input_ids` says the same.
            pixel_values, image_features, image_mask, interpolate_pos_encoding:
                The prompt's images, as in `forward`.
            kwargs:
                Everything that `GenerationMixin.generate` takes, and `image_embeds` and `media_index` of `forward`.

        Raises:
            ValueError: when `prefill_chunk_size` would split a prompt that has images; when images are given twice;
                when `inputs_embeds` are given to a language model that keeps no cache.
        """
        if pixel_values is not None or image_features is not None:
            if kwargs.get("image_embeds") is not None:
                raise ValueError("Give pixel_values, image_features or image_embeds, one of the three.")
            features = self.get_image_features(
                pixel_values,
                image_features,
                image_mask,
                interpolate_pos_encoding=interpolate_pos_encoding,
                return_dict=True,
            )
            kwargs["image_embeds"] = features.pooler_output
        if kwargs.get("image_embeds") is not None:
            kwargs["image_mask"] = image_mask
            generation_config = kwargs.get("generation_config") or self.generation_config
            if kwargs.get("prefill_chunk_size", generation_config.prefill_chunk_size) is not None:
                raise ValueError("A prompt with images is read in one piece: set prefill_chunk_size=None.")
        if self.model.cache_name is None:
            if kwargs.get("inputs_embeds") is not None:
                raise ValueError(
                    f"Generating from inputs_embeds needs a cache, but {type(self.model.text_model).__name__} keeps a "
                    "state of its own kind, which Flamingo cannot continue: give input_ids."
                )
            logger.warning_once(
                f"{type(self.model.text_model).__name__} keeps a recurrent state of its own kind, which Flamingo "
                "cannot continue: every token is generated from the whole text again."
            )
            kwargs["use_cache"] = False
        return super().generate(inputs, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        cache = model_kwargs.get("past_key_values")
        if cache is not None and cache.layers:  # one without makes its layers while it reads; ours comes after them
            FlamingoMediaLayer.of(cache, create=True)  # from the start: a cache of Mamba's kind counts no tokens

    def _get_candidate_generator(self, *args, model_kwargs: dict, assistant_model=None, **kwargs):
        if not isinstance(assistant_model, FlamingoForConditionalGeneration):  # it drafts from the text alone
            images = ("image_embeds", "image_mask", "media_index")
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in images}
        return super()._get_candidate_generator(
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        is_first_iteration: bool | None = False,
        image_embeds: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        media_index: torch.LongTensor | None = None,
        **kwargs,
    ) -> dict:
        # The language model knows best how its inputs, positions and masks are made; only the images are ours
        cache = {} if past_key_values is None else {self.model.cache_name: past_key_values}
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        inputs = self.model.text_model.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            is_first_iteration=is_first_iteration,
            **cache,
            **kwargs,
        )
        inputs["past_key_values"] = inputs.pop(self.model.cache_name, None)
        if is_first_iteration or past_key_values is None:  # later the cache remembers them
            inputs.update(image_embeds=image_embeds, image_mask=image_mask)
            if media_index is not None:
                length = (inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]).shape[1]
                written = max(0, length - media_index.shape[1])  # new tokens look where the last one looked
                media_index = torch.cat((media_index, media_index[:, -1:].expand(-1, written)), dim=1)
                inputs["media_index"] = media_index[:, -length:]
        return inputs


def _shape(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))


__all__ = ["FlamingoForConditionalGeneration", "FlamingoMediaLayer", "FlamingoModel", "FlamingoPreTrainedModel"]
