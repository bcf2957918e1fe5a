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
"""ViLT, completed: pre-training, training of retrieval, visual entailment, and attention backends.

    input_ids [B, T] -> word embeddings + type 0 -----------------.
                                                                  +-> [B, T + 1 + P, D] -> layers -> norm -> states
    pixel_values [B, 3, H, W] -> patches, positions + type 1 -----'                                   |
                                 (or 2: the second image of NLVR2)                                    '-> pooler [B, D]

B rows, T words, P patches that are read, N rows of a table of positions (N x N patches), F false texts, D width.

Paper: ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision (Kim et al., 2021).
Original: dandelin/ViLT@762fd3975c180db6fc88f577cf39549983fa373a, vilt/modules/{vilt_module,objectives}.py and
vision_transformer.py.

The classes extend those of transformers and keep their names and parameters: checkpoints of the Hub load unchanged.
Heads skip the native constructors, which build a native body: it refuses every attention but the eager one.

What differs from the native classes, and why: attention has every backend; patches are chosen without chance unless
images have more than `config.max_image_length` of them, and then by a generator in training and by a fixed pattern in
evaluation (native, as the original, draws in both, and draws padding too); positions are interpolated for all images
at once; a text may be padded on either side; the masked language model's output table is not tied to the embeddings
(native ties it, the published weights do not); the two images of NLVR2 are read in one pass.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import transformers
from torch import nn
from transformers import ViltConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...layers import QuantizedLoadingMixin, eager_attention_forward
from ...losses import (
    gather_without_gradient,
    image_text_matching_loss,
    masked_language_modeling_loss,
    rank,
    sample_hard_negatives,
    word_patch_alignment_loss,
    world_size,
)


@auto_docstring(custom_intro="The three terms of ViLT's pre-training, and the scores they were computed from.")
@dataclass
class ViltForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Sum of the three terms.
    logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
        Scores of the token at each position of the masked text, with the true image.
    itm_logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
        Scores of "does not match" and "matches", of the text with the image it was shown with.
    loss_mlm (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Masked language modelling.
    loss_itm (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Image-text matching.
    loss_wpa (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Word patch alignment, times 0.1.
    matched (`torch.LongTensor` of shape `(batch_size,)`, *optional*, returned when `labels` is given):
        1 for texts that were shown with their own image, else 0.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    loss_mlm: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_wpa: torch.FloatTensor | None = None
    matched: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class ViltImageEmbeddings(NamedTuple):
    """Images as the layers read them, but for their type.

    Attributes:
        embeds (`torch.FloatTensor` of shape `(batch, 1 + patches, width)`): [CLS], then patches, with positions.
        mask (`torch.LongTensor` of shape `(batch, 1 + patches)`, or None where every patch counts): 0 at padding.
        positions (`torch.LongTensor` of shape `(batch, patches, 2)`): row and column of each patch in its image.
    """

    embeds: torch.FloatTensor
    mask: torch.LongTensor | None
    positions: torch.LongTensor


class ViltSelfAttention(nn.Module):
    """The native attention's parameters, computed by whichever backend the config names."""

    def __init__(self, config: ViltConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, S, D]
            for projection in (self.query, self.key, self.value)
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return output.flatten(2), weights


class ViltLayer(transformers.ViltLayer):
    """A layer with the native parameters: normalise, attend, normalise, feed forward."""

    def __init__(self, config: ViltConfig):
        super().__init__(config)
        self.attention.attention = ViltSelfAttention(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        attended, _ = self.attention.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.attention.output(attended, hidden_states)
        return self.output(self.intermediate(self.layernorm_after(hidden_states)), hidden_states)


def interpolation_weights(lengths: torch.Tensor, size: int, trained: int) -> torch.Tensor:
    """What each place of a line gets of the places of a trained line, when the one is laid upon the other.

    Linear, the ends on the ends: `torch.nn.functional.interpolate(..., align_corners=True)` for a length a row.

    Args:
        lengths (`torch.Tensor` of shape `(rows,)`): how many places of each row there are, at least one.
        size (`int`): how many places to give weights for; those beyond a row's length are of no use.
        trained (`int`): how many places the trained line has.

    Returns:
        `torch.Tensor` of shape `(rows, size, trained)`: weights that add up to 1 in the last dimension.
    """
    places = torch.arange(size, device=lengths.device)
    at = places * (trained - 1) / (lengths[:, None] - 1).clamp(min=1)  # [R, size]
    distances = at.clamp(max=trained - 1)[..., None] - torch.arange(trained, device=lengths.device)
    return (1 - distances.abs()).clamp(min=0)


def spread_order(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1) that depend on a patch's place alone; the patches with the least are spread over the image.

    The two-dimensional golden-ratio sequence: its multipliers are the powers of 1 / 1.3247..., the root of x³ = x + 1.
    """
    return (rows * 0.7548776662466927 + columns * 0.5698402909980532) % 1.0


class ViltPredictionTransform(nn.Module):
    """What the states of words go through before they are compared with the vocabulary."""

    def __init__(self, config: ViltConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.act_fn(self.dense(hidden_states)))


class ViltMLMHead(nn.Module):
    """States of words `[B, T, D]` -> scores of the vocabulary."""

    def __init__(self, config: ViltConfig):
        super().__init__()
        self.transform = ViltPredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_states))


class ViltClassifier(nn.Sequential):
    """Pooled states -> scores of classes, under the native names of the parameters."""

    def __init__(self, width: int, inner_width: int, num_labels: int):
        super().__init__(
            nn.Linear(width, inner_width), nn.LayerNorm(inner_width), nn.GELU(), nn.Linear(inner_width, num_labels)
        )


@auto_docstring
class ViltPreTrainedModel(QuantizedLoadingMixin, transformers.ViltPreTrainedModel):
    _no_split_modules = ["ViltLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ViltLayer, "attentions": ViltSelfAttention}
    accepts_loss_kwargs = False  # every loss is a mean of its own

    @classmethod
    def is_custom_code(cls) -> bool:
        # As for the native classes: for code outside of transformers, initialisation skips modules without parameters
        # of their own, also those that set their children's
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViltModel):
            init.trunc_normal_(module.embeddings.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.embeddings.position_embeddings, std=self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model.start_new_weights(set(report["missing_keys"]))
        return (model, report) if output_loading_info else model

    def start_new_weights(self, missing_keys: set[str]) -> None:
        """Start parameters that a checkpoint lacks from those that it has, where the authors' fine-tuning does."""


@auto_docstring(custom_intro="ViLT without a head: states of words and patches that have read each other.")
class ViltModel(ViltPreTrainedModel, transformers.ViltModel):
    def __init__(self, config: ViltConfig, add_pooling_layer: bool = True):
        r"""
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether the first token's state is pooled.
        """
        super().__init__(config, add_pooling_layer)
        self.encoder.layer = nn.ModuleList(ViltLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def embed_images(
        self,
        pixel_values: torch.FloatTensor,
        pixel_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
    ) -> ViltImageEmbeddings:
        """Images as a sequence: [CLS], then the patches of each, its own before its padding, row after row.

        An image with more than `config.max_image_length` patches (if that is positive) keeps as many of them: in
        training those that chance favours, in evaluation those that a fixed pattern spreads over it.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`):
                Images, padded at the right and at the bottom.
            pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                0 at padding. By default nothing is padding.
            generator (`torch.Generator`, *optional*):
                Source of chance, on the device of the images.
            noise (`torch.Tensor` of shape `(batch, patches)`, *optional*):
                What decides in its place: patches with the least noise are kept.

        Returns:
            [`ViltImageEmbeddings`].

        Raises:
            ValueError: when the images have another shape or number of channels, or less than a patch.
        """
        table, patch_size = self.embeddings.position_embeddings, self.embeddings.patch_embeddings.patch_size
        if pixel_values.dim() != 4 or any(side < patch for side, patch in zip(pixel_values.shape[2:], patch_size)):
            raise ValueError(
                f"pixel_values are (batch, channels, height, width) with at least one patch of {tuple(patch_size)}, "
                f"got {tuple(pixel_values.shape)}."
            )
        patches = self.embeddings.patch_embeddings(pixel_values)  # [B, D, h, w]
        batch, _, height, width = patches.shape
        patches = patches.flatten(2).transpose(1, 2)  # [B, P, D]
        valid = None
        if pixel_mask is None:
            lengths = None
        else:
            if pixel_mask.dim() != 3 or len(pixel_mask) != batch:
                raise ValueError(
                    f"pixel_mask marks the pixels of each image: expected ({batch}, height, width), got "
                    f"{tuple(pixel_mask.shape)}."
                )
            grid = nn.functional.interpolate(pixel_mask[:, None].float(), size=(height, width))[:, 0]  # [B, h, w]
            lengths = torch.stack((grid[:, :, 0].sum(1), grid[:, 0].sum(1)), dim=1)  # [B, 2]
            valid = grid.flatten(1) > 0  # [B, P]
        patches = patches + self._patch_positions(lengths, height, width)

        indices = self._chosen_patches(valid, batch, height, width, generator, noise)  # [B, P] or None
        if indices is None:
            indices = torch.arange(height * width, device=patches.device).expand(batch, -1)
        else:
            patches = patches.gather(1, indices[..., None].expand(-1, -1, patches.shape[-1]))
        mask = None
        if valid is not None:
            mask = nn.functional.pad(valid.gather(1, indices).long(), (1, 0), value=1)  # [B, 1 + P]
        first = (self.embeddings.cls_token + table[:, :1]).expand(batch, -1, -1)  # [B, 1, D]
        embeds = self.embeddings.dropout(torch.cat((first, patches), dim=1))  # [B, 1 + P, D]
        positions = torch.stack((indices // width, indices % width), dim=-1)  # [B, P, 2]
        return ViltImageEmbeddings(embeds, mask, positions)

    def _patch_positions(self, lengths: torch.Tensor | None, height: int, width: int) -> torch.Tensor:
        """Embeddings `[B or 1, height * width, D]` of places in images of `lengths` `[B, 2]` patches, or all."""
        table = self.embeddings.position_embeddings[:, 1:]  # [1, N * N, D]
        trained = self.config.image_size // self.config.patch_size
        if lengths is None and height == width == trained:
            return table
        if lengths is None:
            lengths = torch.tensor([[height, width]], device=table.device)
        by_row = interpolation_weights(lengths[:, 0], height, trained).to(table.dtype)  # [B, h, N]
        by_column = interpolation_weights(lengths[:, 1], width, trained).to(table.dtype)  # [B, w, N]
        rows = (by_row @ table[0].view(trained, -1)).unflatten(-1, (trained, -1))  # [B, h, N, D]
        return (by_column[:, None] @ rows).flatten(1, 2)  # [B, h * w, D]

    def _chosen_patches(
        self,
        valid: torch.BoolTensor | None,
        batch: int,
        height: int,
        width: int,
        generator: torch.Generator | None,
        noise: torch.Tensor | None,
    ) -> torch.LongTensor | None:
        """Indices `[B, P]` of the patches that are read, an image's own first; None for all as they stand."""
        device, number = self.embeddings.position_embeddings.device, height * width
        keep = number
        # CODEPATH: -1, no limit, in the published fine-tuned checkpoints; 200 in pre-training
        if self.config.max_image_length > 0:
            keep = min(keep, self.config.max_image_length)
        if valid is None and keep == number:
            return None
        if valid is None:
            valid = torch.ones(batch, number, dtype=torch.bool, device=device)
        places = torch.arange(number, device=device)
        if keep < number:
            if noise is None and self.training:
                noise = torch.rand(batch, number, device=device, generator=generator)
            elif noise is None:
                noise = spread_order(places // width, places % width).expand(batch, -1)
            ranks = noise.masked_fill(~valid, torch.inf).argsort(dim=1).argsort(dim=1)
            chosen = valid & (ranks < keep)  # [B, P]
        else:
            chosen = valid
        # A shape that depends on values is no shape for a graph: there, padding is carried along
        if not torch.compiler.is_compiling():
            keep = min(keep, max(int(chosen.sum(dim=1).max()), 1))
        return (places + number * ~chosen).argsort(dim=1)[:, :keep]

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        image_token_type_idx: int | torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        image_embeds (`torch.FloatTensor` of shape `(batch_size, 1 + num_patches, hidden_size)`, *optional*):
            Images that [`~ViltModel.embed_images`] embedded, in the place of `pixel_values`; `pixel_mask` is then the
            mask that came with them.
        image_token_type_idx (`int` or `torch.LongTensor` of shape `(batch_size,)`, *optional*, defaults to 1):
            Type of the images: 1, or 2 for the second image of a pair.
        generator (`torch.Generator`, *optional*):
            Source of the chance by which, in training, patches beyond `config.max_image_length` are left out.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("ViLT reads a text: pass either input_ids or inputs_embeds.")
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("ViLT reads an image with the text: pass either pixel_values or image_embeds.")
        batch, length = (inputs_embeds if input_ids is None else input_ids).shape[:2]
        if length > self.config.max_position_embeddings or length == 0:
            raise ValueError(
                f"A text has 1 to {self.config.max_position_embeddings} tokens (config.max_position_embeddings), got "
                f"{length}: let the tokenizer truncate (`truncation=True`)."
            )
        if image_embeds is None:
            image_embeds, image_mask, _ = self.embed_images(pixel_values, pixel_mask, generator)
        else:
            image_mask = None if pixel_mask is None else pixel_mask.flatten(1)
        if len(image_embeds) != batch:
            raise ValueError(
                f"Each text is read with one image: got {batch} texts and {len(image_embeds)} images. Repeat the "
                "images (`repeat_interleave`) to read several texts with each."
            )

        position_ids = None
        if attention_mask is not None:  # words are counted from the first one, on whichever side padding is
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # [B, T]
        text_embeds = self.embeddings.text_embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        types = self.embeddings.token_type_embeddings.weight  # [types, D]
        image_type = types[1 if image_token_type_idx is None else image_token_type_idx]
        image_embeds = image_embeds + (image_type if image_type.dim() == 1 else image_type[:, None])
        embeds = torch.cat((text_embeds + types[0], image_embeds), dim=1)  # [B, T + 1 + P, D]

        mask = None
        if attention_mask is not None or image_mask is not None:
            parts = ((attention_mask, length), (image_mask, image_embeds.shape[1]))
            mask = torch.cat(
                [embeds.new_ones(batch, size, dtype=torch.long) if m is None else m.long() for m, size in parts], dim=1
            )  # [B, T + 1 + P]
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embeds, attention_mask=mask)

        hidden_states = embeds
        for layer in self.encoder.layer:
            hidden_states = layer(hidden_states, mask, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        pooled = None
        if self.pooler is not None:
            first = hidden_states[:, :1]  # [B, 1, D]
            if attention_mask is not None:
                index = attention_mask.long().argmax(dim=1)[:, None, None]  # [B, 1, 1]
                first = hidden_states.gather(1, index.expand(-1, -1, hidden_states.shape[-1]))
            pooled = self.pooler(first)  # [B, D]
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


@auto_docstring(
    custom_intro="""
    ViLT with the three objectives of its pre-training (section 3.2): which words were hidden, does the image belong to
    the text, and do words and patches lie near each other (by optimal transport).
    """
)
class ViltForPreTraining(ViltPreTrainedModel, transformers.ViltForMaskedLM):
    _tied_weights_keys = {}  # as published; native ties the masked language model's output to the embeddings
    alignment_weight = 0.1
    """Weight of word patch alignment in the loss; the other terms have 1 (objectives.py)."""

    def __init__(self, config: ViltConfig):
        super(transformers.ViltForMaskedLM, self).__init__(config)
        self.vilt = ViltModel(config)
        self.mlm_score = ViltMLMHead(config)
        self.itm_score = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def start_new_weights(self, missing_keys: set[str]) -> None:
        table = "vilt.embeddings.text_embeddings.word_embeddings.weight"
        # Saved by a native model, whose output is the embeddings
        if "mlm_score.decoder.weight" in missing_keys and table not in missing_keys:
            with torch.no_grad():
                self.mlm_score.decoder.weight.copy_(self.get_input_embeddings().weight)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        false_pixel_values: torch.FloatTensor | None = None,
        false_pixel_mask: torch.LongTensor | None = None,
        matched: torch.BoolTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ViltForPreTrainingOutput:
        r"""
        masked_input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            `input_ids` with words hidden, as `hf_mmunify.data.mask_tokens` makes them; needed with `labels`.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The words that were hidden, -100 elsewhere.
        false_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
            For each text an image that is not its own. By default images of other rows of the batch.
        false_pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            0 at their padding.
        matched (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            Which texts are shown with their own image when matching is learnt. By default half of the batch, by
            chance. A row that finds no other image in the batch keeps its own.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each row shows, so that the same image is no false one.
        generator (`torch.Generator`, *optional*):
            Source of chance, on the device of the model.

        Raises:
            ValueError: when `labels` come without `masked_input_ids`, or images and false images differ in shape.
        """
        text = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if labels is None:
            outputs = self.vilt(
                input_ids, pixel_values=pixel_values, pixel_mask=pixel_mask, generator=generator, **text, **kwargs
            )
            return ViltForPreTrainingOutput(
                logits=self.mlm_score(outputs.last_hidden_state[:, : input_ids.shape[1]]),
                itm_logits=self.itm_score(outputs.pooler_output),
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            )
        if masked_input_ids is None:
            raise ValueError(
                "labels are the hidden words of masked_input_ids, which are missing: make both with "
                "hf_mmunify.data.mask_tokens(input_ids, tokenizer)."
            )
        length = input_ids.shape[1]
        outputs = self.vilt(
            masked_input_ids, pixel_values=pixel_values, pixel_mask=pixel_mask, generator=generator, **text, **kwargs
        )
        logits = self.mlm_score(outputs.last_hidden_state[:, :length])  # [B, T, vocabulary]
        loss_mlm = masked_language_modeling_loss(logits, labels)

        matched, images, masks = self._shown_images(
            pixel_values, pixel_mask, false_pixel_values, false_pixel_mask, matched, image_ids, generator
        )
        images = self.vilt.embed_images(images, masks, generator)
        shown = self.vilt(input_ids, image_embeds=images.embeds, pixel_mask=images.mask, **text)
        itm_logits = self.itm_score(shown.pooler_output)  # [B, 2]
        loss_itm = image_text_matching_loss(itm_logits, matched.long())
        states = shown.last_hidden_state
        words = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        order = words.cumsum(dim=1)  # [B, T]
        words = words.bool() & (order > 1) & (order < order[:, -1:])  # without [CLS] and [SEP]
        patches = states.new_ones(states.shape[0], states.shape[1] - length - 1, dtype=torch.bool)
        if images.mask is not None:
            patches = images.mask[:, 1:].bool()
        loss_wpa = self.alignment_weight * word_patch_alignment_loss(
            states[:, :length], states[:, length + 1 :], words, patches, matched.long()
        )
        return ViltForPreTrainingOutput(
            loss=loss_mlm + loss_itm + loss_wpa,
            logits=logits,
            itm_logits=itm_logits,
            loss_mlm=loss_mlm,
            loss_itm=loss_itm,
            loss_wpa=loss_wpa,
            matched=matched.long(),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _shown_images(
        self,
        pixel_values: torch.FloatTensor,
        pixel_mask: torch.Tensor | None,
        false_pixel_values: torch.FloatTensor | None,
        false_pixel_mask: torch.Tensor | None,
        matched: torch.BoolTensor | None,
        image_ids: torch.LongTensor | None,
        generator: torch.Generator | None,
    ) -> tuple[torch.BoolTensor, torch.FloatTensor, torch.Tensor | None]:
        """Which texts keep their image `[B]`, and the images and masks that all are shown with."""
        batch, device = len(pixel_values), pixel_values.device
        if matched is None:
            matched = torch.rand(batch, device=device, generator=generator).argsort() < batch // 2  # [B]
        matched = matched.to(device).bool()
        if false_pixel_values is None:
            ids = torch.arange(batch, device=device) if image_ids is None else image_ids
            others = ids[:, None] != ids[None]  # [B, B]
            alone = ~others.any(dim=1)
            matched = matched | alone
            drawn = sample_hard_negatives((others | alone.diag()).float(), generator)
            index = torch.where(matched, torch.arange(batch, device=device), drawn)
            return matched, pixel_values[index], None if pixel_mask is None else pixel_mask[index]
        if false_pixel_values.shape != pixel_values.shape:
            raise ValueError(
                f"false_pixel_values are as many images of the same size, {tuple(pixel_values.shape)}, got "
                f"{tuple(false_pixel_values.shape)}: let the processor pad all of them together."
            )
        if (pixel_mask is None) != (false_pixel_mask is None):
            raise ValueError("pixel_mask and false_pixel_mask come together, or not at all.")
        shown = matched[:, None, None]
        images = torch.where(shown[..., None], pixel_values, false_pixel_values)
        return matched, images, None if pixel_mask is None else torch.where(shown, pixel_mask, false_pixel_mask)


@auto_docstring(
    custom_intro="""
    ViLT that says how well an image and a text match, for retrieval, trained as the authors fine-tune it: the score of
    the true text against those of 15 false ones.
    """
)
class ViltForImageAndTextRetrieval(ViltPreTrainedModel, transformers.ViltForImageAndTextRetrieval):
    num_false_texts = 15
    """How many false texts a true one is told from in training, if the batch has as many (their `draw_false_text`)."""

    def __init__(self, config: ViltConfig):
        super(transformers.ViltForImageAndTextRetrieval, self).__init__(config)
        self.vilt = ViltModel(config)
        self.rank_output = nn.Linear(config.hidden_size, 1)
        # What `rank_output` starts from. The authors' checkpoints keep it, frozen
        self.itm_score = nn.Linear(config.hidden_size, 2)
        self.freeze_parts()
        self.post_init()

    def freeze_parts(self) -> None:
        """Leave as it is what no loss can move: the head of pre-training, and what shifts all scores alike."""
        self.itm_score.requires_grad_(False)
        self.rank_output.bias.requires_grad_(False)

    def start_new_weights(self, missing_keys: set[str]) -> None:
        self.freeze_parts()  # loading makes parameters anew
        if "rank_output.weight" in missing_keys and "itm_score.weight" not in missing_keys:
            with torch.no_grad():
                self.rank_output.weight.copy_(self.itm_score.weight[1:])
                self.rank_output.bias.copy_(self.itm_score.bias[1:])

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        false_input_ids: torch.LongTensor | None = None,
        false_attention_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        image_embeds (`torch.FloatTensor` of shape `(batch_size, 1 + num_patches, hidden_size)`, *optional*):
            Images that [`~ViltModel.embed_images`] embedded, in the place of `pixel_values`.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each row shows: another text of the same image is no false one. By default every row's own.
        false_input_ids (`torch.LongTensor` of shape `(batch_size, num_false, sequence_length)`, *optional*):
            Texts that do not describe the image. By default 15 other texts of the batch, over all processes, by
            chance, or all there are.
        false_attention_mask (`torch.Tensor` of shape `(batch_size, num_false, sequence_length)`, *optional*):
            Their masks.
        return_loss (`bool`, *optional*):
            Whether to compute the loss, by default if there are `image_ids`; `logits` then are
            `(batch_size, 1 + num_false)`, the true text first. Otherwise each row is scored alone, and they are
            `(batch_size, 1)`.
        generator (`torch.Generator`, *optional*):
            Source of chance, on the device of the model and seeded alike in all processes.

        Raises:
            ValueError: when false texts have another length than the true ones, or another number of rows.
        """
        text = {"token_type_ids": token_type_ids, "inputs_embeds": inputs_embeds}
        image = {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "image_embeds": image_embeds}
        if not (image_ids is not None if return_loss is None else return_loss):
            outputs = self.vilt(input_ids, attention_mask, **text, **image, generator=generator, **kwargs)
            return SequenceClassifierOutput(
                logits=self.rank_output(outputs.pooler_output),
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            )
        if input_ids is None or any(value is not None for value in text.values()):
            raise ValueError("The loss reads texts as input_ids, without token types: pass no inputs_embeds.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if false_input_ids is None:
            texts, masks, counted = self._texts_of_the_batch(input_ids, attention_mask, image_ids, generator)
        else:
            texts, masks = self._with_false_texts(input_ids, attention_mask, false_input_ids, false_attention_mask)
            counted = torch.ones_like(texts[..., 0], dtype=torch.bool)
        number = texts.shape[1]  # 1 + F
        if image_embeds is None:
            image_embeds, pixel_mask, _ = self.vilt.embed_images(pixel_values, pixel_mask, generator)
        outputs = self.vilt(
            texts.flatten(0, 1),
            masks.flatten(0, 1),
            image_embeds=image_embeds.repeat_interleave(number, dim=0),
            pixel_mask=None if pixel_mask is None else pixel_mask.repeat_interleave(number, dim=0),
            **kwargs,
        )
        logits = self.rank_output(outputs.pooler_output).unflatten(0, (-1, number))[..., 0]  # [B, 1 + F]
        logits = logits.masked_fill(~counted, torch.finfo(logits.dtype).min)
        loss = nn.functional.cross_entropy(logits.float(), torch.zeros_like(texts[:, 0, 0]))
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _with_false_texts(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        false_input_ids: torch.LongTensor,
        false_attention_mask: torch.Tensor | None,
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """The true text and the false ones of each row, `[B, 1 + F, T]`, and their masks."""
        batch, length = input_ids.shape
        if false_input_ids.dim() != 3 or (false_input_ids.shape[0], false_input_ids.shape[2]) != (batch, length):
            raise ValueError(
                f"false_input_ids hold false texts for each row, as long as the true ones: expected ({batch}, number, "
                f"{length}), got {tuple(false_input_ids.shape)}. Let the tokenizer pad all of them together."
            )
        if false_attention_mask is None:
            false_attention_mask = torch.ones_like(false_input_ids)
        texts = torch.cat((input_ids[:, None], false_input_ids), dim=1)
        return texts, torch.cat((attention_mask[:, None], false_attention_mask), dim=1)

    def _texts_of_the_batch(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        image_ids: torch.LongTensor | None,
        generator: torch.Generator | None,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.BoolTensor]:
        """Each row's text and others of all processes `[B, 1 + F, T]`, their masks, and which of them are usable."""
        batch, device = len(input_ids), input_ids.device
        start = rank() * batch
        if world_size() > 1:  # texts of other processes may be longer
            missing = self.config.max_position_embeddings - input_ids.shape[1]
            input_ids = gather_without_gradient(nn.functional.pad(input_ids, (0, missing)))
            attention_mask = gather_without_gradient(nn.functional.pad(attention_mask, (0, missing)))
            used = int(attention_mask.any(dim=0).nonzero().max()) + 1
            input_ids, attention_mask = input_ids[:, :used], attention_mask[:, :used]  # [N, T]
            image_ids = None if image_ids is None else gather_without_gradient(image_ids)
        total = len(input_ids)
        own = torch.arange(start, start + batch, device=device)
        ids = torch.arange(total, device=device) if image_ids is None else image_ids
        usable = ids[own, None] != ids[None]  # [B, N]
        noise = torch.rand(total, total, device=device, generator=generator)[own]  # alike in all processes
        order = noise.masked_fill(~usable, torch.inf).argsort(dim=1)[:, : min(self.num_false_texts, total - 1)]
        order = order.sort(dim=1).values  # where all are taken, chance decides nothing
        index = torch.cat((own[:, None], order), dim=1)  # [B, 1 + F]
        counted = nn.functional.pad(usable.gather(1, order), (1, 0), value=True)
        return input_ids[index], attention_mask[index], counted

    def encode_images(
        self, pixel_values: torch.FloatTensor, pixel_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What [`match`] needs of images: their patches, embedded. No layer reads an image without a text.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`):
                Images of one size, or padded to it.
            pixel_mask (`torch.Tensor` of shape `(images, height, width)`, *optional*):
                0 at padding.

        Returns:
            `dict`: `hidden_states` `(images, 1 + patches, width)` and `mask` `(images, 1 + patches)`.
        """
        embeds, mask, _ = self.vilt.embed_images(pixel_values, pixel_mask)
        return {"hidden_states": embeds, "mask": embeds.new_ones(embeds.shape[:2]).long() if mask is None else mask}

    def encode_texts(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What [`match`] needs of texts: themselves.

        Args:
            input_ids (`torch.LongTensor` of shape `(texts, sequence_length)`):
                The texts.
            attention_mask (`torch.Tensor` of shape `(texts, sequence_length)`, *optional*):
                0 at padding.

        Returns:
            `dict`: `input_ids` and `attention_mask`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return {"input_ids": input_ids, "attention_mask": mask}

    def match(
        self,
        images: dict[str, torch.Tensor],
        texts: dict[str, torch.Tensor],
        similarities: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores `(pairs,)` of images and texts that stand side by side; the larger, the better they match.

        Args:
            images, texts:
                Rows of what [`encode_images`] and [`encode_texts`] gave, as many of the one as of the other.
            similarities (`torch.Tensor` of shape `(pairs,)`, *optional*):
                Not used: ViLT has no score that is cheaper than this one.
        """
        return self(
            texts["input_ids"],
            texts["attention_mask"],
            image_embeds=images["hidden_states"],
            pixel_mask=images["mask"],
        ).logits[:, 0]


@auto_docstring(
    custom_intro="""
    ViLT that answers questions about images by choosing among the answers it knows (VQAv2: 3,129).
    """
)
class ViltForQuestionAnswering(ViltPreTrainedModel, transformers.ViltForQuestionAnswering):
    def __init__(self, config: ViltConfig):
        super(transformers.ViltForQuestionAnswering, self).__init__(config)
        self.vilt = ViltModel(config)
        self.num_labels = config.num_labels
        self.classifier = ViltClassifier(config.hidden_size, 2 * config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        labels: torch.FloatTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        image_embeds (`torch.FloatTensor` of shape `(batch_size, 1 + num_patches, hidden_size)`, *optional*):
            Images that [`~ViltModel.embed_images`] embedded, in the place of `pixel_values`.
        labels (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
            How right each answer is, from 0 to 1 (how many annotators gave it, softly counted). The loss is binary
            cross-entropy, summed over the answers.
        generator (`torch.Generator`, *optional*):
            Source of the chance by which, in training, patches beyond `config.max_image_length` are left out.

        Raises:
            ValueError: when `labels` are no scores of all answers.

        Example:

        ```python
        >>> import hf_mmunify
        >>> from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        >>> model = AutoModelForVisualQuestionAnswering.from_pretrained("dandelin/vilt-b32-finetuned-vqa")
        >>> processor = AutoProcessor.from_pretrained("dandelin/vilt-b32-finetuned-vqa")
        >>> inputs = processor(images=image, text="how many cats are there?", return_tensors="pt")
        >>> answer = model.config.id2label[model(**inputs).logits.argmax(-1).item()]
        ```
        """
        outputs = self.vilt(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
            generator=generator,
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)  # [B, answers]
        loss = None
        if labels is not None:
            if labels.shape != logits.shape or not labels.is_floating_point():
                raise ValueError(
                    f"labels are scores from 0 to 1 of all {logits.shape[1]} answers: expected floats of shape "
                    f"{tuple(logits.shape)}, got {labels.dtype} of shape {tuple(labels.shape)}."
                )
            targets = labels.to(logits.device, torch.float32)
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets) * labels.shape[1]
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(
    custom_intro="ViLT that says whether a statement about a pair of images is true (NLVR2), from a pass over each."
)
class ViltForImagesAndTextClassification(ViltPreTrainedModel, transformers.ViltForImagesAndTextClassification):
    def __init__(self, config: ViltConfig):
        # CODEPATH: 2 in vilt-b32-finetuned-nlvr2, -1 in every other published checkpoint
        if config.num_images < 1:
            config.num_images = 2
        super(transformers.ViltForImagesAndTextClassification, self).__init__(config)
        self.vilt = ViltModel(config)
        self.num_labels = config.num_labels
        width = config.hidden_size * config.num_images
        self.classifier = ViltClassifier(width, width, config.num_labels)
        self.post_init()

    def start_new_weights(self, missing_keys: set[str]) -> None:
        """Give each image of a pair a type of its own, a copy of the image type of pre-training, as the authors do."""
        types = self.vilt.embeddings.token_type_embeddings
        lacking = self.config.num_images + 1 - types.num_embeddings
        if lacking > 0:
            weight = torch.cat((types.weight.detach(), types.weight.detach()[-1:].repeat(lacking, 1)))
            self.vilt.embeddings.token_type_embeddings = nn.Embedding.from_pretrained(weight, freeze=False)
            self.config.modality_type_vocab_size = len(weight)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_images, num_channels, height, width)`):
            The images that each statement is about.
        pixel_mask (`torch.LongTensor` of shape `(batch_size, num_images, height, width)`, *optional*):
            0 at padding.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, num_images, length, hidden_size)`, *optional*):
            Images that [`~ViltModel.embed_images`] embedded, in the place of `pixel_values`.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which class each row is of.
        generator (`torch.Generator`, *optional*):
            Source of the chance by which, in training, patches beyond `config.max_image_length` are left out.

        Raises:
            ValueError: when rows have another number of images than `config.num_images`.
        """
        images = pixel_values if image_embeds is None else image_embeds
        count, expected_dims = self.config.num_images, 5 if image_embeds is None else 4
        if images is None or images.dim() != expected_dims or images.shape[1] != count:
            raise ValueError(
                f"Each row has {count} images: expected pixel_values of shape (batch, {count}, channels, height, "
                f"width), got {None if images is None else tuple(images.shape)}."
            )
        types = self.vilt.embeddings.token_type_embeddings.num_embeddings
        image_types = torch.arange(1, count + 1, device=images.device).clamp(max=types - 1).repeat(len(images))
        text = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        image = {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "image_embeds": image_embeds}
        outputs = self.vilt(
            **{name: None if value is None else value.repeat_interleave(count, dim=0) for name, value in text.items()},
            **{name: None if value is None else value.flatten(0, 1) for name, value in image.items()},
            image_token_type_idx=image_types,
            generator=generator,
            **kwargs,
        )
        pooled = outputs.pooler_output.unflatten(0, (-1, count)).flatten(1)  # [B, images * D]
        logits = self.classifier(pooled)  # [B, classes]
        return SequenceClassifierOutput(
            loss=_classification_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@auto_docstring(
    custom_intro="""
    ViLT that says whether an image entails, leaves open or contradicts a hypothesis (SNLI-VE). No such ViLT was
    published: the head is that of question answering, with three classes.
    """
)
class ViltForVisualEntailment(ViltPreTrainedModel, transformers.ViltForQuestionAnswering):
    def __init__(self, config: ViltConfig):
        config.num_labels = 3
        super(transformers.ViltForQuestionAnswering, self).__init__(config)
        self.vilt = ViltModel(config)
        self.num_labels = config.num_labels
        self.classifier = ViltClassifier(config.hidden_size, 2 * config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        image_embeds (`torch.FloatTensor` of shape `(batch_size, 1 + num_patches, hidden_size)`, *optional*):
            Images that [`~ViltModel.embed_images`] embedded, in the place of `pixel_values`.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which of the three each row is.
        generator (`torch.Generator`, *optional*):
            Source of the chance by which, in training, patches beyond `config.max_image_length` are left out.
        """
        outputs = self.vilt(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
            generator=generator,
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)  # [B, 3]
        return SequenceClassifierOutput(
            loss=_classification_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _classification_loss(logits: torch.Tensor, labels: torch.LongTensor | None) -> torch.Tensor | None:
    """Cross entropy of `logits` `[B, classes]`; None without labels."""
    if labels is None:
        return None
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels have one class for each row: expected shape ({len(logits)},), got {tuple(labels.shape)}."
        )
    if not torch.compiler.is_compiling() and ((labels < 0) | (labels >= logits.shape[1])).any():
        raise ValueError(
            f"labels are classes from 0 to {logits.shape[1] - 1}, got {int(labels.min())} to {int(labels.max())}."
        )
    return nn.functional.cross_entropy(logits.float(), labels.to(logits.device))


__all__ = [
    "ViltForImageAndTextRetrieval",
    "ViltForImagesAndTextClassification",
    "ViltForPreTraining",
    "ViltForQuestionAnswering",
    "ViltForVisualEntailment",
    "ViltImageEmbeddings",
    "ViltModel",
    "ViltPreTrainedModel",
]
