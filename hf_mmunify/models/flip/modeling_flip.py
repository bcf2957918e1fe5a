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
"""FLIP: CLIP's objective with half of the patches, so that twice as many images pass in the same time.

    pixel_values [B, 3, H, W] -> patches + positions [B, P, D] -> KEEP some [B, K, D] -> class token -> layers -> norm
                                                                                                                |
                                            [B_i, F] <- normalise <- projection <- mean of all states <---------'

    input_ids [B, T] -> embeddings + positions [B, T, D] -> layers -> norm -> first state -> projection -> normalise
                                                                                                 -> [B_t, F]

B rows (B_i images, B_t texts), P patches, K those that are kept in training, T tokens, D width of a tower, H heads,
F width of the shared space.

Paper: Scaling Language-Image Pre-training via Masking (Li et al., 2023), section 3.
Original: facebookresearch/flip@9bf6bf810d6697d7a6376093d41d88320e225c8d, models_flip.py (JAX, CC-BY-NC 4.0). This file
was written from the paper and from what that code computes, without its text.

What differs, and why: padding of texts is masked unless the config says otherwise (the original reads it, which its
weights need); a text may be padded on either side; negatives come from all processes with their gradient.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...layers import eager_attention_forward, keep_patches
from ...losses import contrastive_loss
from .configuration_flip import FlipConfig, FlipTextConfig, FlipVisionConfig


LOGIT_SCALE_MAX = math.log(100)
"""Above which the logarithm of the temperature is held."""


@auto_docstring(custom_intro="Images and texts in the shared space, and every cosine between them.")
@dataclass
class FlipOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `return_loss=True` or `image_ids` is given):
        Contrastive loss over the pairs of all processes.
    logits_per_image (`torch.FloatTensor` of shape `(num_images, num_texts)`):
        Cosines times the temperature.
    logits_per_text (`torch.FloatTensor` of shape `(num_texts, num_images)`):
        The same, transposed.
    text_embeds (`torch.FloatTensor` of shape `(num_texts, projection_dim)`):
        Texts in the shared space, of length 1.
    image_embeds (`torch.FloatTensor` of shape `(num_images, projection_dim)`):
        Images in the shared space, of length 1.
    text_model_output (`BaseModelOutputWithPooling`):
        What the text tower gave.
    vision_model_output (`BaseModelOutputWithPooling`):
        What the vision tower gave.
    """

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def sin_cos_positions(grid: int, width: int) -> torch.Tensor:
    """Fixed positions of a class token and a square of patches, row after row.

    Args:
        grid (`int`): patches along a side.
        width (`int`): of the tower; a multiple of 4.

    Returns:
        `torch.Tensor` of shape `(1 + grid**2, width)`: zeros for the class token; then sines and cosines of the
        patch's column, and of its row, a quarter of the width each.
    """
    places = torch.arange(grid, dtype=torch.float64)
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = places[:, None] * frequencies  # [G, D / 4]
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)  # [G, D / 2]
    table = torch.cat((waves.repeat(grid, 1), waves.repeat_interleave(grid, dim=0)), dim=1)  # [G * G, D]
    return torch.cat((table.new_zeros(1, width), table)).float()


class FlipAttention(nn.Module):
    """Every position attends to every other."""

    def __init__(self, config: FlipTextConfig | FlipVisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, S, D]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(output.flatten(2)), weights


class FlipLayer(GradientCheckpointingLayer):
    """Normalise, attend, add; normalise, feed forward, add."""

    def __init__(self, config: FlipTextConfig | FlipVisionConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = FlipAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        attended, _ = self.self_attn(self.attention_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.fc2(self.act_fn(self.fc1(self.feed_forward_norm(hidden_states))))


@auto_docstring
class FlipPreTrainedModel(PreTrainedModel):
    config: FlipConfig
    base_model_prefix = "flip"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["FlipLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": FlipLayer, "attentions": FlipAttention}

    @classmethod
    def is_custom_code(cls) -> bool:
        # For code outside of transformers, initialisation skips modules without parameters of their own, also those
        # that set their children's
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FlipTextModel):
            init.normal_(module.position_embedding.weight, std=0.01)
        elif isinstance(module, FlipVisionModel):
            init.normal_(module.class_embedding, std=self.config.initializer_range)
            init.copy_(module.positions, sin_cos_positions(module.grid, module.config.hidden_size))
        elif isinstance(module, FlipModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)


@auto_docstring(custom_intro="FLIP's text tower: a bidirectional transformer, of which the first token speaks.")
class FlipTextModel(FlipPreTrainedModel):
    config: FlipTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, config: FlipTextConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(FlipLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.token_embedding = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        if input_ids is None or input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(
                "FLIP reads texts as input_ids of shape (batch, tokens), with at least one token; got "
                f"{None if input_ids is None else tuple(input_ids.shape)}."
            )
        length, longest = input_ids.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(
                f"A text has at most {longest} tokens (text_config.max_position_embeddings), got {length}: let the "
                f"tokenizer truncate (`truncation=True, max_length={longest}`)."
            )
        position_ids = torch.arange(length, device=input_ids.device)[None]  # [1, T]
        first = 0
        # CODEPATH: the published models read padding and know every text at full length; new ones mask it
        if self.config.attend_to_padding:
            if attention_mask is not None:
                input_ids, attention_mask = self._moved_to_the_left(input_ids, attention_mask), None
            input_ids = nn.functional.pad(input_ids, (0, longest - length), value=self.config.pad_token_id)
            position_ids = torch.arange(longest, device=input_ids.device)[None]
        elif attention_mask is not None:  # words are counted from the first one, on whichever side padding is
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # [B, T]
            first = attention_mask.long().argmax(dim=1)  # [B]
        hidden_states = self.token_embedding(input_ids) + self.position_embedding(position_ids)  # [B, T, D]
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        hidden_states = self.norm(hidden_states)
        rows = torch.arange(len(hidden_states), device=hidden_states.device)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[rows, first])

    def _moved_to_the_left(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor) -> torch.LongTensor:
        """The same tokens with what is masked behind them, as padding."""
        mask = attention_mask.bool()
        order = (~mask).long().argsort(dim=1, stable=True)
        return input_ids.masked_fill(~mask, self.config.pad_token_id).gather(1, order)


@auto_docstring(
    custom_intro="FLIP's vision tower: a ViT with fixed positions, which in training encodes some patches."
)
class FlipVisionModel(FlipPreTrainedModel):
    config: FlipVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: FlipVisionConfig):
        super().__init__(config)
        self.grid = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.positions = nn.Buffer(sin_cos_positions(self.grid, config.hidden_size), persistent=False)
        self.layers = nn.ModuleList(FlipLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        patch_indices: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        patch_indices (`torch.LongTensor` of shape `(batch_size, num_kept)`, *optional*):
            The patches to encode, counted from 0 row by row. By default those that chance keeps, in training with a
            `mask_ratio`, and else all.
        generator (`torch.Generator`, *optional*):
            Source of chance, on the device of the images.
        """
        size, channels = self.config.image_size, self.config.num_channels
        if pixel_values is None or pixel_values.dim() != 4 or pixel_values.shape[1:] != (channels, size, size):
            raise ValueError(
                f"FLIP encodes images of shape (batch, {channels}, {size}, {size}), got "
                f"{None if pixel_values is None else tuple(pixel_values.shape)}: let the image processor resize them."
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        positions = self.positions.to(patches.dtype)
        patches = patches.flatten(2).transpose(1, 2) + positions[1:]  # [B, P, D]
        if patch_indices is not None:
            patches, _ = keep_patches(patches, patch_indices.shape[1], indices=patch_indices)
        # CODEPATH: the published models were trained with 0.5, and with 0 in the end
        elif self.training and self.config.mask_ratio > 0:
            keep = max(1, int(self.grid**2 * (1 - self.config.mask_ratio)))
            patches, _ = keep_patches(patches, keep, generator=generator)  # [B, K, D]
        class_token = (self.class_embedding + positions[0]).expand(len(patches), 1, -1)
        hidden_states = torch.cat((class_token, patches), dim=1)  # [B, 1 + K, D]
        for layer in self.layers:
            hidden_states = layer(hidden_states, None, **kwargs)
        hidden_states = self.norm(hidden_states)
        # CODEPATH: the published models pool the mean; the authors' option `img_avg_token=False` takes the class token
        pooled = hidden_states.mean(dim=1) if self.config.pooling == "mean" else hidden_states[:, 0]
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


@auto_docstring(
    custom_intro="""
    FLIP: images and texts in one space, trained by contrast over all processes. It serves retrieval and zero-shot
    classification as it is.
    """
)
class FlipModel(FlipPreTrainedModel):
    accepts_loss_kwargs = False  # a mean over pairs: Trainer must not count tokens
    contrastive_gather = "full"
    """Where negatives come from: `"full"`, `"local"` or `"none"`, as [`~hf_mmunify.losses.contrastive_loss`] says."""

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.text_model = FlipTextModel._from_config(config.text_config)
        self.vision_model = FlipVisionModel._from_config(config.vision_config)
        self.text_projection = nn.Linear(
            config.text_config.hidden_size, config.projection_dim, bias=config.projection_bias
        )
        self.visual_projection = nn.Linear(
            config.vision_config.hidden_size, config.projection_dim, bias=config.projection_bias
        )
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    @auto_docstring
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        outputs = self.text_model(input_ids, attention_mask, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)  # [B, F]
        return outputs

    @can_return_tuple
    @auto_docstring
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        patch_indices: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        patch_indices (`torch.LongTensor` of shape `(batch_size, num_kept)`, *optional*):
            The patches to encode; by default as for [`FlipVisionModel`].
        generator (`torch.Generator`, *optional*):
            What draws them otherwise.
        """
        outputs = self.vision_model(pixel_values, patch_indices=patch_indices, generator=generator, **kwargs)
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)  # [B, F]
        return outputs

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        patch_indices: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FlipOutput:
        r"""
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each pair shows: texts of one image are right answers alike. By default each its own.
        return_loss (`bool`, *optional*):
            Whether to compute the loss, for which image and text of a row belong together; by default if there are
            `image_ids`.
        patch_indices (`torch.LongTensor` of shape `(batch_size, num_kept)`, *optional*):
            The patches to encode; by default as for [`FlipVisionModel`].
        generator (`torch.Generator`, *optional*):
            What draws them otherwise.
        """
        vision_outputs = self.get_image_features(
            pixel_values, patch_indices=patch_indices, generator=generator, **kwargs
        )
        text_outputs = self.get_text_features(input_ids, attention_mask, **kwargs)
        image_embeds = nn.functional.normalize(vision_outputs.pooler_output, dim=-1)  # [B_i, F]
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)  # [B_t, F]
        scale = self.logit_scale.clamp(0, LOGIT_SCALE_MAX).exp()
        logits_per_image = scale * image_embeds @ text_embeds.T  # [B_i, B_t]
        loss = None
        if return_loss or (return_loss is None and image_ids is not None):
            loss = contrastive_loss(
                image_embeds, text_embeds, scale, image_ids=image_ids, gather=self.contrastive_gather
            )
        return FlipOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def encode_images(self, pixel_values: torch.FloatTensor) -> dict[str, torch.Tensor]:
        """What retrieval keeps of images `[B, 3, H, W]`: `features` `[B, F]`, of length 1."""
        return {"features": nn.functional.normalize(self.get_image_features(pixel_values).pooler_output, dim=-1)}

    def encode_texts(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What retrieval keeps of texts `[B, T]`: `features` `[B, F]`, of length 1."""
        features = self.get_text_features(input_ids, attention_mask).pooler_output
        return {"features": nn.functional.normalize(features, dim=-1)}

    def similarities(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """Cosines `[I, T]` of images' features `[I, F]` and texts' `[T, F]`."""
        return image_features @ text_features.T


__all__ = ["FlipModel", "FlipOutput", "FlipPreTrainedModel", "FlipTextModel", "FlipVisionModel"]
