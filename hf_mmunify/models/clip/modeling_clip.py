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
"""CLIP as it is trained: gathered negatives, patches that are dropped, and the evaluation protocol of retrieval.

    pixel_values [B, 3, H, W] -> vision_model -> class token [B, D_v] -> visual_projection [B, D] -.
                 (patches are dropped between embedding and encoder while training)                 |
                                                                              cosine * exp(logit_scale) -> [B_i, B_t]
    input_ids [B, T] -> text_model (causal) -> end of text [B, D_t] -> text_projection [B, D] -----'

B images or texts, P patches, K of them kept, D_v and D_t the widths of the towers, D that of the shared space.

Paper: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), sections 2.3 (the
loss, figure 3), 2.4 (the towers) and 2.5 (the temperature is clipped so that no logit is scaled by more than 100).
Patch dropping: Scaling Language-Image Pre-training via Masking (Li et al., 2023), section 3.
Original: openai/CLIP@d05afc436d78f1c48dc0dbf8e5980a9d471f35f6, clip/model.py; training, patch dropping and average
pooling as in mlfoundations/open_clip@89fb801, src/open_clip/{model,transformer,loss}.py.

The towers are those of transformers, with their parameter names, so that every CLIP of the Hub loads, and what is
saved here loads there. What differs from transformers' `CLIPModel`, and why: the loss has the negatives of all
processes (its loss: those of one); texts of one image are no negatives of each other (`image_ids`); texts may have
their padding on the left (its positions and its end of text ignore the mask); the temperature is clipped; and the
vision tower can drop patches and pool by their mean, as open_clip's can.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import CLIPConfig, CLIPVisionConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...layers import keep_patches
from ...losses import contrastive_loss


MAX_LOGIT_SCALE = math.log(100.0)
"""Where the paper clips `logit_scale` (section 2.5)."""

HIGHEST_ID = 2
"""The `eos_token_id` by which transformers marks texts that end in the highest of their ids, as OpenAI's do."""


@auto_docstring(
    custom_intro="What CLIP says of images and texts: the fields of transformers' output of that name, in its order."
)
@dataclass
class CLIPOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when it was asked for):
        The contrastive loss.
    logits_per_image (`torch.FloatTensor` of shape `(num_images, num_texts)`):
        Cosines, scaled by `exp(logit_scale)`.
    logits_per_text (`torch.FloatTensor` of shape `(num_texts, num_images)`):
        Their transpose.
    text_embeds (`torch.FloatTensor` of shape `(num_texts, projection_dim)`):
        The normalised texts.
    image_embeds (`torch.FloatTensor` of shape `(num_images, projection_dim)`):
        The normalised images.
    text_model_output (`BaseModelOutputWithPooling`):
        What the text tower gave, with hidden states and attentions where they were asked for.
    vision_model_output (`BaseModelOutputWithPooling`):
        The same of the vision tower.
    """

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, those of the towers as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class VisionOptions(NamedTuple):
    """What a CLIP vision tower can do here beyond transformers: plain attributes of `config.vision_config`.

    Attributes:
        patch_dropout (`float`, *optional*, defaults to 0.0):
            Share of the patches that training drops; evaluation always encodes all. May be changed at any time.
        pool_type (`str`, *optional*, defaults to `"tok"`):
            What represents the image: `"tok"`, the class token; or `"avg"`, the mean of the patches.
        pos_embed_type (`str`, *optional*, defaults to `"learnable"`):
            `"learnable"`, or `"sin_cos_2d"`: a fixed table of sines and cosines, which is not trained.
    """

    patch_dropout: float = 0.0
    pool_type: str = "tok"
    pos_embed_type: str = "learnable"

    @classmethod
    def of(cls, config: CLIPVisionConfig) -> "VisionOptions":
        """Those of a config; native ones, which have none, mean the defaults.

        Raises:
            ValueError: when one of them has a value that means nothing.
        """
        options = cls(**{name: value for name, value in vars(config).items() if name in cls._fields})
        if not 0 <= options.patch_dropout < 1:
            raise ValueError(
                "patch_dropout is the share of the patches that training drops: expected 0 <= patch_dropout < 1, got "
                f"{options.patch_dropout}."
            )
        if options.pool_type not in ("tok", "avg"):
            raise ValueError(
                f"pool_type is 'tok' (class token) or 'avg' (mean of patches); got {options.pool_type!r}."
            )
        if options.pos_embed_type not in ("learnable", "sin_cos_2d"):
            raise ValueError(f"pos_embed_type is 'learnable' or 'sin_cos_2d'; got {options.pos_embed_type!r}.")
        return options


def sin_cos_positions(grid: int, width: int) -> torch.Tensor:
    """The fixed positions of a class token and a square of patches: MAE's, which open_clip took over.

    Args:
        grid (`int`):
            Patches along a side.
        width (`int`):
            Of the tower; a multiple of 4.

    Returns:
        `torch.Tensor` of shape `(1 + grid**2, width)`: zeros for the class token, then, row by row, sines and cosines
        of the column in the first half, of the row in the second.

    Raises:
        ValueError: when `width` is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sin_cos_2d positions need a hidden_size that 4 divides, got {width}.")
    place = torch.arange(grid, dtype=torch.float64)
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = place[:, None] * frequencies  # [G, D/4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [G, D/2]
    table = torch.cat([waves.repeat(grid, 1), waves.repeat_interleave(grid, dim=0)], dim=1)  # [G * G, D]
    return torch.cat([table.new_zeros(1, width), table]).float()


def _normalised(features: torch.Tensor) -> torch.Tensor:
    """Features [B, D] of length 1, rounded as transformers rounds them."""
    return features / features.pow(2).sum(dim=-1, keepdim=True).pow(0.5)


class CLIPVisionModel(transformers.CLIPVisionModel):
    """CLIP's vision tower, which encodes only some of the patches while it trains, and pools as it is told.

    Its options are plain attributes of its config, see `VisionOptions`; without them it is transformers' own.
    """

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.freeze_positions()

    @classmethod
    def is_custom_code(cls) -> bool:
        # As for the native tower: for code outside of transformers, initialisation skips layers whose own parameters
        # are all set, also those that then set their children's (attention, MLP)
        return False

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        model.freeze_positions()  # loading makes parameters anew, and with them what is trained
        return loaded

    def freeze_positions(self) -> None:
        """Leave a fixed table of positions out of training."""
        if VisionOptions.of(self.config).pos_embed_type == "sin_cos_2d":
            self.embeddings.position_embedding.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.embeddings and VisionOptions.of(self.config).pos_embed_type == "sin_cos_2d":
            grid = math.isqrt(module.num_patches)
            init.copy_(module.position_embedding.weight, sin_cos_positions(grid, module.embed_dim))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        patch_indices: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                The images.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether images of another size than the config's are encoded, with interpolated positions.
            patch_indices (`torch.LongTensor` of shape `(batch_size, num_kept)`, *optional*):
                The patches to encode, counted from 0 row by row. By default those that are drawn, where the model
                trains with `patch_dropout`, and else all.
            generator (`torch.Generator`, *optional*):
                What draws them; by default that of the device.

        Returns:
            [`~modeling_outputs.BaseModelOutputWithPooling`]: `last_hidden_state` `(batch_size, 1 + num_patches or
            num_kept, hidden_size)` and `pooler_output` `(batch_size, hidden_size)`.
        """
        if pixel_values is None:
            raise ValueError("The vision tower of CLIP needs pixel_values of shape (batch, channels, height, width).")
        options = VisionOptions.of(self.config)
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        if patch_indices is not None or (self.training and options.patch_dropout > 0):
            class_token, patches = hidden_states[:, :1], hidden_states[:, 1:]
            num_patches = patches.shape[1]
            kept = max(1, int(num_patches * (1 - options.patch_dropout)))
            if patch_indices is not None:
                kept = patch_indices.shape[1]
            patches, _ = keep_patches(patches, kept, generator=generator, indices=patch_indices)
            hidden_states = torch.cat([class_token, patches], dim=1)  # [B, 1 + K, D_v]
        hidden_states = self.encoder(inputs_embeds=self.pre_layrnorm(hidden_states), **kwargs).last_hidden_state
        pooled = hidden_states[:, 0] if options.pool_type == "tok" else hidden_states[:, 1:].mean(dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,  # [B, 1 + K, D_v]
            pooler_output=self.post_layernorm(pooled),  # [B, D_v]
        )


class CLIPModel(transformers.CLIPModel):
    """CLIP: images and texts in one space, trained by contrast over all processes.

    `image_ids`, or `return_loss=True`, make `forward` compute the published loss; then every process must hold as many
    pairs as the others (`dataloader_drop_last=True`).

    Attributes:
        contrastive_gather (`str`, defaults to `"full"`):
            Where the negatives come from, as [`~hf_mmunify.losses.contrastive_loss`] says: `"full"`, all processes,
            with the whole matrix on each, so that `logit_scale` has the same gradient everywhere; `"local"`, the same
            in less memory; `"none"`, this process alone. Set it on the model.
    """

    accepts_loss_kwargs = False  # a mean over pairs: Trainer must not count tokens
    contrastive_gather = "full"

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        self.vision_model = CLIPVisionModel._from_config(config.vision_config)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # as `CLIPVisionModel`

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.vision_model.freeze_positions()
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        """The words; transformers' class has none, so that no token can be added to it."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Texts, each ending in the config's `eos_token_id`.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for words, 0 for padding, which may be on either side.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                By default each text counts its words from 0.

        Returns:
            [`~modeling_outputs.BaseModelOutputWithPooling`]: `last_hidden_state` of the text tower; `pooler_output`
            `(batch_size, projection_dim)`, the projected end of each text, not normalised.
        """
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # [B, T]
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        pooled = outputs.pooler_output  # [B, D_t]
        if attention_mask is not None:  # the native tower takes padding for an end, where both are the same token
            words = input_ids.masked_fill(attention_mask == 0, -1)
            is_marked = self.config.text_config.eos_token_id != HIGHEST_ID
            end = ((words == self.config.text_config.eos_token_id).int() if is_marked else words).argmax(dim=1)  # [B]
            pooled = outputs.last_hidden_state[torch.arange(len(end), device=end.device), end]
        outputs.pooler_output = self.text_projection(pooled)
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        image_ids: torch.LongTensor | None = None,
        patch_indices: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(num_texts, sequence_length)`):
                The texts; with a loss, text i belongs to image i.
            pixel_values (`torch.Tensor` of shape `(num_images, num_channels, height, width)`):
                The images.
            attention_mask (`torch.Tensor` of shape `(num_texts, sequence_length)`, *optional*):
                1 for words, 0 for padding.
            position_ids (`torch.LongTensor` of shape `(num_texts, sequence_length)`, *optional*):
                By default each text counts its words from 0.
            return_loss (`bool`, *optional*):
                Whether to compute the contrastive loss; by default where `image_ids` are given.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether images of another size than the config's are encoded, with interpolated positions.
            image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Which image each pair shows: equal numbers, on whatever process, are matches alike.
            patch_indices (`torch.LongTensor` of shape `(num_images, num_kept)`, *optional*):
                The patches to encode, instead of those that are drawn.
            generator (`torch.Generator`, *optional*):
                What draws them; by default that of the device.

        Returns:
            [`CLIPOutput`].

        Raises:
            ValueError: when one modality is missing, or a loss is asked for and there are not as many texts as images.
        """
        self._check(input_ids, pixel_values, image_ids, return_loss)
        if self.training:
            with torch.no_grad():
                self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        vision_outputs = self.get_image_features(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            patch_indices=patch_indices,
            generator=generator,
            **kwargs,
        )
        text_outputs = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
        image_embeds = _normalised(vision_outputs.pooler_output)  # [B_i, D]
        text_embeds = _normalised(text_outputs.pooler_output)  # [B_t, D]
        logit_scale = self.logit_scale.exp()
        logits_per_text = text_embeds @ image_embeds.T * logit_scale  # [B_t, B_i]
        loss = None
        if return_loss or (return_loss is None and image_ids is not None):
            loss = contrastive_loss(
                image_embeds, text_embeds, logit_scale, image_ids=image_ids, gather=self.contrastive_gather
            )
        return CLIPOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def encode_images(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """What retrieval keeps of images `[B, 3, H, W]`: `features` `[B, D]`, normalised."""
        return {"features": _normalised(self.get_image_features(pixel_values).pooler_output)}

    def encode_texts(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What retrieval keeps of texts `[B, T]`: `features` `[B, D]`, normalised."""
        return {"features": _normalised(self.get_text_features(input_ids, attention_mask).pooler_output)}

    def similarities(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """Cosines `[I, T]` of images' features `[I, D]` and texts' `[T, D]`."""
        return image_features @ text_features.T

    def _check(
        self,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_ids: torch.Tensor | None,
        return_loss: bool | None,
    ) -> None:
        """Names what cannot be right of the inputs."""
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(
                f"CLIP compares images with texts, but got no {missing}. For one of the two alone there are "
                "`get_image_features` and `get_text_features`."
            )
        images, texts = len(pixel_values), len(input_ids)
        if images == 0 or texts == 0:
            raise ValueError(f"The batch is empty: {images} images, {texts} texts. Pass at least one of each.")
        if return_loss is False or (return_loss is None and image_ids is None):
            return
        if images != texts:
            raise ValueError(
                f"The loss is of pairs: expected as many texts as images, got {images} images and {texts} texts. "
                "Repeat an image for each of its texts, and give the repeats one number in `image_ids`."
            )
        if image_ids is not None and image_ids.shape != (images,):
            raise ValueError(
                f"image_ids has one number for each pair: expected shape {(images,)}, got {tuple(image_ids.shape)}."
            )


__all__ = ["HIGHEST_ID", "CLIPModel", "CLIPOutput", "CLIPVisionModel", "VisionOptions", "sin_cos_positions"]
