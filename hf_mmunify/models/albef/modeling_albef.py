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
"""ALBEF: align the features of images and texts, then fuse their states; a slow copy of the model helps to teach it.

    pixel_values [B, 3, H, W] -> vision_model -> [B, N, D_v] ----------------------.
                                     |  first token                                v
                                     v                              layers with cross-attention -> [B, T, D]
                     contrast (ITC): features [B, P]                               ^                  |
                                     ^                                             |                  v
                                     |  first token                                |         match (ITM), words (MLM),
    input_ids [B, T] -> embeddings -> layers that read text alone -> [B, T, D] ----'         classes, answers

B pairs, A answers, C candidate answers, T and L tokens of a text and of an answer, N visual tokens (the class token,
then the patches), D_v and D the widths of image and text, P the width they are compared in, K pairs in the queue,
W processes, V words, H heads.

Paper: Align before Fuse: Vision and Language Representation Learning with Momentum Distillation (Li et al., 2021),
sections 3 and 4, appendices A and B.
Original: salesforce/ALBEF@b9727e43c3040491774d1b22cc27718aa7772fac, models/{model_pretrain,model_retrieval,model_vqa,
model_nlvr,model_pretrain_nlvr,model_ve,xbert,vit}.py, Retrieval.py, VQA.py, NLVR.py, Grounding.py.

What differs, and why: with several processes the contrastive candidates and the hard negatives come from all of them,
with gradient, so that two processes learn what one learns from the whole batch (the original: each from its own); the
second image of NLVR2 is read by layers of their own, beside those of the base model, instead of a text encoder of 18
layers, so that a checkpoint of one task loads into the model of another; hard negatives are drawn in training alone,
evaluation takes the hardest; positions are counted from the first token that is no padding, so that texts may be
padded on either side; candidate answers share the keys and values of their question.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithCrossAttentions, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...layers import (
    ComposedModelMixin,
    FeatureQueue,
    MomentumMixin,
    QuantizedLoadingMixin,
    copy_what_is_new,
    eager_attention_forward,
)
from ...losses import (
    contrastive_loss,
    gather,
    gather_without_gradient,
    image_text_matching_loss,
    masked_language_modeling_loss,
    momentum_contrastive_loss,
    rank,
    sample_hard_negatives,
    soft_cross_entropy,
    world_size,
)
from .configuration_albef import AlbefConfig, AlbefTextConfig


TEMPERATURES = (0.001, 0.5)  # bounds of the learnt temperature
NO_ID = -100  # of pairs in the queue of which it is not known which image they show


@auto_docstring(custom_intro="What the text encoder made of a text, with or without an image.")
@dataclass
class AlbefTextModelOutput(ModelOutput):
    r"""
    text_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        The text after the layers that read it alone; `last_hidden_state` is the same where no image was given.
    past_key_values (`Cache`, *optional*, returned when `use_cache=True`):
        Keys and values of a decoder: of the text, and, projected once, of what cross-attention reads.
    """

    last_hidden_state: torch.FloatTensor | None = None
    text_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="A text that has looked at its image.")
@dataclass
class AlbefModelOutput(ModelOutput):
    r"""
    text_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        The text before it looked at the image.
    image_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_patches + 1, vision_hidden_size)`):
        The image: class token, then patches. With two images a text, `(batch_size, 2, num_patches + 1, ...)`.
    vision_hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
        The image after each layer of the vision tower.
    vision_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
        Attention of each layer of the vision tower, where its backend gives it (eager).
    """

    last_hidden_state: torch.FloatTensor | None = None
    text_hidden_state: torch.FloatTensor | None = None
    image_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    vision_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    vision_attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="Class scores of an image (or two) and a text, and the loss.")
@dataclass
class AlbefClassifierOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Cross entropy of the labels, and of the momentum copy's prediction.
    logits (`torch.FloatTensor` of shape `(batch_size, num_classes)`):
        Scores of the classes.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="Scores of the next token of each answer, and the loss.")
@dataclass
class AlbefQuestionAnsweringOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Weighted negative log-likelihood of the answers, a question; and against the momentum copy's prediction.
    logits (`torch.FloatTensor` of shape `(num_answers, answer_length, vocab_size)`):
        Scores of the token that follows each token of the answers; without `labels`, `(batch_size, 1, vocab_size)`:
        of the first token.
    question_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        The question that has looked at its image, which the decoder reads.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    question_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="How well each image and text of a batch match, and the terms of the loss.")
@dataclass
class AlbefImageTextOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned in training):
        Sum of the terms.
    itm_logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
        Scores of "do not match" and "match" for each image with its own text.
    image_features (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
        What images are compared by, of length 1.
    text_features (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
        What texts are compared by, of length 1.
    mlm_logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*):
        In pre-training: scores of the words at each position of `masked_input_ids`, or else of `input_ids`. Where it
        learns from `labels`, of the hidden words alone: `(num_hidden, vocab_size)`.
    loss_itc (`torch.FloatTensor` of shape `(1,)`, *optional*):
        Image-text contrastive loss (the original's "ITA").
    loss_itm (`torch.FloatTensor` of shape `(1,)`, *optional*):
        Image-text matching loss over pairs and hard negatives.
    loss_mlm (`torch.FloatTensor` of shape `(1,)`, *optional*):
        In pre-training: masked language modelling loss.
    itm_logits_all (`torch.FloatTensor` of shape `(3 * batch_size, 2)`, *optional*, returned in training):
        `itm_logits`, those of each text with its hard negative image, those of each image with its hard negative text.
    """

    loss: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    image_features: torch.FloatTensor | None = None
    text_features: torch.FloatTensor | None = None
    mlm_logits: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_mlm: torch.FloatTensor | None = None
    itm_logits_all: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


def first_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The state of each text's first token that is no padding: `[B, T, D]` and `[B, T]` to `[B, D]`."""
    if attention_mask is None:
        return hidden_states[:, 0]
    first = attention_mask.int().argmax(dim=1)  # [B]
    return hidden_states[torch.arange(len(first), device=first.device), first]


def pad_like_all_processes(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts `[B, T, D]` and their mask `[B, T]`, padded on the right to the longest of all processes."""
    if world_size() == 1:
        return hidden_states, attention_mask
    length = torch.tensor([hidden_states.shape[1]], device=hidden_states.device)
    missing = int(gather_without_gradient(length).max() - length)
    padded = nn.functional.pad(hidden_states, (0, 0, 0, missing))
    return padded, nn.functional.pad(attention_mask, (0, missing))


class AlbefAttention(nn.Module):
    """Queries of a text over keys and values of the text itself, or of what cross-attention reads.

    Args:
        config (`AlbefTextConfig`): widths, heads, and the attention backend.
        width (`int`, *optional*): width of what is read; `None` where another layer projects the keys and values.
        is_causal (`bool`): whether a token sees those before it alone.
    """

    def __init__(self, config: AlbefTextConfig, width: int | None, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = is_causal
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = None if width is None else nn.Linear(width, config.hidden_size)
        self.v_proj = None if width is None else nn.Linear(width, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)  # [..., H, N, d]

    def keys_and_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States `[..., N, width]` to keys and values `[..., H, N, d]`."""
        return self.split_heads(self.k_proj(states)), self.split_heads(self.v_proj(states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text `[B, T, D]` over keys and values `[B, H, N, d]` to `[B, T, D]`, and the weights `[B, H, T, N]`."""
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
            **kwargs,
        )
        return self.o_proj(attended.flatten(2)), weights


class AlbefTextLayer(GradientCheckpointingLayer):
    """A layer of BERT, normalised after each part; from `fusion_layer` on with cross-attention in its middle."""

    def __init__(self, config: AlbefTextConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.self_attn = AlbefAttention(config, config.hidden_size, is_causal=config.is_decoder)
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        is_fusion = layer_idx >= config.fusion_layer
        self.cross_attn = AlbefAttention(config, self.cross_attention_width(config)) if is_fusion else None
        self.cross_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if is_fusion else None
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def cross_attention_width(self, config: AlbefTextConfig) -> int | None:
        """Width of the states from which this layer projects keys and values."""
        return config.encoder_hidden_size

    def read_text(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None, **kwargs
    ) -> torch.Tensor:
        """Self-attention."""
        key, value = self.self_attn.keys_and_values(hidden_states)  # [B, H, T, d]
        if past_key_values is not None:
            key, value = past_key_values.self_attention_cache.update(key, value, self.layer_idx)
        attended, _ = self.self_attn(hidden_states, key, value, attention_mask, **kwargs)
        return self.self_attn_norm(hidden_states + self.dropout(attended))

    def read_image(
        self, hidden_states: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **kwargs
    ) -> torch.Tensor:
        """Cross-attention."""
        attended, _ = self.cross_attn(hidden_states, key, value, mask, **kwargs)
        return self.cross_attn_norm(hidden_states + self.dropout(attended))

    def think(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Feed-forward."""
        return self.final_norm(hidden_states + self.dropout(self.fc2(self.activation(self.fc1(hidden_states)))))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Text `[B, T, D]` over `encoder_hidden_states` `[B, N, width]` to `[B, T, D]`.

        Of two images `[B, 2, N, width]` it reads the first, and returns keys and values of the second beside the text:
        `[B, H, N, d]` each, for the [`AlbefPairLayer`] that follows.
        """
        hidden_states = self.read_text(hidden_states, attention_mask, past_key_values, **kwargs)
        others = ()
        if self.cross_attn is not None:
            if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
                cached = past_key_values.cross_attention_cache.layers[self.layer_idx]
                key, value = cached.keys, cached.values
            else:
                key, value = self.cross_attn.keys_and_values(encoder_hidden_states)
                if past_key_values is not None:
                    key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
                    past_key_values.is_updated[self.layer_idx] = True
            if key.dim() == 5:
                (key, *others), (value, *values) = key.unbind(1), value.unbind(1)
                others = (*others, *values)
            hidden_states = self.read_image(hidden_states, key, value, encoder_attention_mask, **kwargs)
        hidden_states = self.think(hidden_states)
        return (hidden_states, *others) if others else hidden_states


class AlbefPairLayer(AlbefTextLayer):
    """The layer that reads the second of two images, by keys and values that the layer before it projected.

    Original: `share_cross_attention` in models/model_nlvr.py, where the odd layers of a text encoder of 18 are these.
    """

    def cross_attention_width(self, config: AlbefTextConfig) -> int | None:
        return None

    def forward(
        self,
        hidden_states: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Text `[B, T, D]` over the second image's keys and values `[B, H, N, d]` to `[B, T, D]`."""
        hidden_states = self.read_text(hidden_states, attention_mask, None, **kwargs)
        return self.think(self.read_image(hidden_states, key, value, None, **kwargs))


class AlbefTextEmbeddings(nn.Module):
    """Word, place and segment; ALBEF has one segment only."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.LongTensor) -> torch.Tensor:
        """Embedded words `[B, T, D]` at the places `[B, T]` to `[B, T, D]`."""
        segment = self.token_type_embeddings(torch.zeros_like(position_ids))
        return self.dropout(self.norm(inputs_embeds + segment + self.position_embeddings(position_ids)))


class AlbefLMHead(nn.Module):
    """BERT's prediction of the word at each position; the table of scores is that of the embeddings."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., V]`."""
        return self.decoder(self.norm(self.activation(self.dense(hidden_states))))


class AlbefClassifier(nn.Module):
    """Class scores of the state of a first token, through one hidden layer."""

    def __init__(self, hidden_size: int, num_classes: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, D]` to `[B, classes]`."""
        return self.out_proj(nn.functional.relu(self.dense(hidden_states)))


def build_vision_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A vision tower of `config`, without the pooling layer that ALBEF has no use for, where its class has one."""
    parameters = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}))


@auto_docstring
class AlbefPreTrainedModel(ComposedModelMixin, QuantizedLoadingMixin, PreTrainedModel):
    config: AlbefConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["AlbefTextLayer", "AlbefPairLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def post_init(self) -> None:
        super().post_init()
        if isinstance(self.config, AlbefConfig):
            self.config.architectures = [type(self).__name__]  # by which a conversion knows the authors' names

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefImageTextModel | AlbefForTextAssignment):
            init.constant_(module.temperature, self.config.temperature)
        if isinstance(module, FeatureQueue):
            module.reset()
        if isinstance(module, AlbefForImagesAndTextClassification | AlbefForTextAssignment):
            for pair, layer in zip(module.pair_layers, module.model.text_model.fusion_layers):
                copy_what_is_new(layer, pair)
        if isinstance(module, AlbefForQuestionAnswering):
            copy_what_is_new(module.model.text_model.embeddings, module.text_decoder.model.embeddings)
            for ours, layer in zip(module.text_decoder.model.layers, module.model.text_model.fusion_layers):
                copy_what_is_new(layer, ours)

    def resize_images(self, image_size: int | tuple[int, int]) -> None:
        """Read images of another size from now on, by a bicubic interpolation of the position embeddings.

        Fine-tuning of the original does so, from 256 to 384 pixels (`interpolate_pos_embed` in models/vit.py).
        Momentum copies follow.

        Args:
            image_size (`int` or `tuple[int, int]`):
                Height and width in pixels.

        Raises:
            ValueError: when the tower keeps its positions otherwise than ViT does, or patches do not fill the image.
        """
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        for tower in (module.vision_model for module in self.modules() if isinstance(module, AlbefModel)):
            tables = {
                name: p for name, p in tower.named_parameters() if name.endswith("embeddings.position_embeddings")
            }
            patch, old = tower.config.patch_size, self.config.patch_grid
            if len(tables) != 1 or not isinstance(patch, int) or any(side % patch for side in size):
                raise ValueError(
                    f"expected a tower with the position embeddings of ViT and an image of whole patches, got "
                    f"{type(tower).__name__} with {list(tables)} and {size} pixels for patches of {patch}: pass "
                    "interpolate_pos_encoding=True to forward instead, or choose another size."
                )
            ((name, table),) = tables.items()
            module = tower.get_submodule(name.rpartition(".")[0])
            grid = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)  # [1, D_v, rows, columns]
            new = tuple(side // patch for side in size)
            grid = nn.functional.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False).to(table)
            table.data = torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1).detach()
            module.image_size = module.patch_embeddings.image_size = size
            module.patch_embeddings.num_patches = new[0] * new[1]
        self.config.vision_config.image_size = image_size

    @classmethod
    def from_pretrained(cls, *args, image_size: int | tuple[int, int] | None = None, **kwargs):
        r"""
        As [`PreTrainedModel.from_pretrained`], and:

        Args:
            image_size (`int` or `tuple[int, int]`, *optional*):
                Size of the images that are to be read, if it is another than the checkpoint's: see `resize_images`.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        if image_size is not None:
            (loaded[0] if isinstance(loaded, tuple) else loaded).resize_images(image_size)  # with the loading report
        return loaded


@auto_docstring(
    custom_intro="The text encoder, which turns into the multimodal encoder where its cross-attention begins."
)
class AlbefTextModel(AlbefPreTrainedModel):
    config: AlbefTextConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _can_record_outputs = {
        "hidden_states": AlbefTextLayer,
        "attentions": OutputRecorder(AlbefAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(AlbefAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.embeddings = AlbefTextEmbeddings(config)
        self.layers = nn.ModuleList([AlbefTextLayer(config, index) for index in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @property
    def fusion_layers(self) -> nn.ModuleList:
        """The layers with cross-attention."""
        return self.layers[self.config.fusion_layer :]

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        text_hidden_state: torch.FloatTensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        pair_layers: nn.ModuleList | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefTextModelOutput:
        r"""
        text_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
            A text that was read alone before: only the layers with cross-attention follow (the original's
            `mode="fusion"`). In the place of `input_ids`.
        encoder_hidden_states (`torch.FloatTensor` of shape `(batch_size, num_tokens, encoder_hidden_size)`):
            What cross-attention reads; of two images `(batch_size, 2, ...)`. Without it, the layers before the first
            with cross-attention read the text alone (`mode="text"`).
        encoder_attention_mask (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*):
            1 for what cross-attention may read.
        pair_layers (`nn.ModuleList`, *optional*):
            Layers that read the second image, one behind each layer with cross-attention.
        """
        if (input_ids is not None) + (inputs_embeds is not None) + (text_hidden_state is not None) != 1:
            raise ValueError("expected exactly one of input_ids, inputs_embeds and text_hidden_state.")
        is_cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        is_alone = encoder_hidden_states is None and not is_cached
        if self.config.is_decoder and use_cache and not isinstance(past_key_values, EncoderDecoderCache):
            past = DynamicCache(config=self.config) if past_key_values is None else past_key_values
            past_key_values = EncoderDecoderCache(past, DynamicCache(config=self.config))

        if text_hidden_state is None:
            if inputs_embeds is None:
                inputs_embeds = self.embeddings.word_embeddings(input_ids)
            if position_ids is None:
                past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
                position_ids = self.places(inputs_embeds, attention_mask, past_length)
            hidden_states = self.embeddings(inputs_embeds, position_ids)  # [B, T, D]
            start = 0
        else:
            hidden_states, start = text_hidden_state, self.config.fusion_layer
        mask = {"config": self.config, "inputs_embeds": hidden_states, "attention_mask": attention_mask}
        if self.config.is_decoder:
            attention_mask = create_causal_mask(**mask, past_key_values=past_key_values, position_ids=position_ids)
        else:
            attention_mask = create_bidirectional_mask(**mask)
        if encoder_attention_mask is not None:
            read = {} if encoder_hidden_states is None else {"encoder_hidden_states": encoder_hidden_states}
            encoder_attention_mask = create_bidirectional_mask(
                **(mask | {"attention_mask": encoder_attention_mask}), **read
            )

        end = self.config.fusion_layer if is_alone else self.config.num_hidden_layers
        fusion_layer = self.config.fusion_layer
        for index in range(start, end):
            if index == fusion_layer:
                text_hidden_state = hidden_states
            hidden_states = self.layers[index](
                hidden_states,
                encoder_hidden_states,
                attention_mask,
                encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            if isinstance(hidden_states, tuple):
                pair_layer = pair_layers[index - fusion_layer]
                hidden_states = pair_layer(*hidden_states, attention_mask, **kwargs)
        return AlbefTextModelOutput(
            last_hidden_state=hidden_states,
            text_hidden_state=hidden_states if is_alone else text_hidden_state,
            past_key_values=past_key_values if use_cache else None,
        )

    def places(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_length: int
    ) -> torch.LongTensor:
        """Places `[B, T]` of tokens `[B, T, D]` in their texts, counted from the first that is no padding."""
        batch, length = inputs_embeds.shape[:2]
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"a text of {length} tokens is longer than the {limit} positions that the encoder has: truncate it "
                f"(truncation=True, max_length={limit} in the processor)."
            )
        places = torch.arange(past_length, past_length + length, device=inputs_embeds.device).expand(batch, -1)
        if attention_mask is None or attention_mask.dim() != 2:
            return places
        return (places - attention_mask.int().argmax(dim=1, keepdim=True)).clamp(min=0)


@auto_docstring(custom_intro="ALBEF without a head: a text that has looked at its image.")
class AlbefModel(AlbefPreTrainedModel):
    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.vision_model = build_vision_model(config.vision_config)
        self.text_model = AlbefTextModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_model.set_input_embeddings(value)

    def read_images(
        self, pixel_values: torch.FloatTensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """What the vision tower makes of images `[B, 3, H, W]`: `last_hidden_state` `[B, N, D_v]`, class token first.

        Raises:
            ValueError: when there are no images, or `pixel_values` have other dimensions.
        """
        if pixel_values is None or pixel_values.dim() != 4 or len(pixel_values) == 0:
            came = "none" if pixel_values is None else list(pixel_values.shape)
            raise ValueError(
                f"expected pixel_values of at least one image, [batch, 3, height, width], got {came}: the processor "
                "makes them of pictures."
            )
        if interpolate_pos_encoding:
            kwargs["interpolate_pos_encoding"] = True
        return self.vision_model(pixel_values, **{**kwargs, "return_dict": True})

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        interpolate_pos_encoding: bool = False,
        pair_layers: nn.ModuleList | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
            The images; with `pair_layers`, two for each text: `(batch_size, 2, 3, height, width)`.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the vision tower was made for.
        pair_layers (`nn.ModuleList`, *optional*):
            Layers that read the second image (the head of NLVR2 owns them).
        """
        texts = len(input_ids if inputs_embeds is None else inputs_embeds)
        pixels = pixel_values if pair_layers is None or pixel_values is None else pixel_values.flatten(0, 1)
        vision = self.read_images(pixels, interpolate_pos_encoding, **kwargs)
        image_hidden_state = vision.last_hidden_state  # [B, N, D_v]
        if pair_layers is not None:
            image_hidden_state = image_hidden_state.unflatten(0, (-1, 2))  # [B, 2, N, D_v]
        if len(image_hidden_state) != texts:
            raise ValueError(
                f"expected an image for each text, got {len(image_hidden_state)} images and {texts} texts: repeat the "
                "images of which there are several texts."
            )
        text = self.text_model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            encoder_hidden_states=image_hidden_state,
            pair_layers=pair_layers,
            **kwargs,
        )
        return AlbefModelOutput(
            last_hidden_state=text.last_hidden_state,
            text_hidden_state=text.text_hidden_state,
            image_hidden_state=image_hidden_state,
            hidden_states=text.hidden_states,
            attentions=text.attentions,
            cross_attentions=text.cross_attentions,
            vision_hidden_states=vision.hidden_states,
            vision_attentions=vision.attentions,
        )


@auto_docstring(
    custom_intro="What heads share: a base model, and momentum copies of what is trained, if the config asks for them."
)
class AlbefDistilledModel(MomentumMixin, AlbefPreTrainedModel):
    def make_base(self, config: AlbefConfig) -> None:
        """The base model and its copy, at the beginning of every head's `__init__`."""
        self.model = AlbefModel(config)
        self.has_copies = config.distill
        if self.has_copies:
            self.model_m = AlbefModel(config)
        else:
            self._momentum_pairs = {}

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def follow(self) -> None:
        """In training, a step of the momentum copies."""
        if self.training:
            self.update_momentum(self.config.momentum)

    def weight_of_distillation(self, alpha: float | None) -> float:
        """`alpha`, by default the config's; 0 where there are no copies to learn from.

        Raises:
            ValueError: when there are none, but `alpha` asks for them.
        """
        if self.has_copies:
            return self.config.alpha if alpha is None else alpha
        if alpha:
            raise ValueError(
                f"alpha={alpha} weighs the predictions of momentum copies, which this model has not: load it with "
                "distill=True, or leave alpha out."
            )
        return 0.0


@auto_docstring(custom_intro="A classifier over the first token of a text that has looked at its image.")
class AlbefClassificationModel(AlbefDistilledModel):
    _momentum_pairs = {"model": "model_m", "classifier": "classifier_m"}
    num_classes: int

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.make_base(config)
        self.classifier = AlbefClassifier(config.text_config.hidden_size, self.num_classes)
        if self.has_copies:
            self.classifier_m = AlbefClassifier(config.text_config.hidden_size, self.num_classes)

    def classify(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        alpha: float | None,
        interpolate_pos_encoding: bool,
        **kwargs,
    ) -> AlbefClassifierOutput:
        """`forward` of both classifying heads: `(1 - alpha)` labels and `alpha` the copies' prediction."""
        inputs = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "interpolate_pos_encoding": interpolate_pos_encoding,
        }
        outputs = self.model(**inputs, return_dict=True, **self.pair_layers_of(""), **kwargs)
        logits = self.classifier(first_token(outputs.last_hidden_state, attention_mask))  # [B, classes]
        loss = None
        if labels is not None:
            alpha, logits_m = self.weight_of_distillation(alpha), None
            if self.has_copies:
                with torch.no_grad():
                    self.follow()
                    outputs_m = self.model_m(**inputs, return_dict=True, **self.pair_layers_of("_m"))
                    logits_m = self.classifier_m(first_token(outputs_m.last_hidden_state, attention_mask))
            loss = masked_language_modeling_loss(logits, labels, soft_logits=logits_m, alpha=alpha)
        return AlbefClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def pair_layers_of(self, copy: str) -> dict[str, nn.ModuleList]:
        """The argument `pair_layers` of the base model, or of its momentum copy (`copy="_m"`)."""
        return {}


@auto_docstring(
    custom_intro="ALBEF that says whether an image entails, leaves open or contradicts a text (SNLI-VE; section 4)."
)
class AlbefForVisualEntailment(AlbefClassificationModel):
    num_classes = 3

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        alpha: float | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Classes as in the original: 0 contradiction, 1 neutral, 2 entailment; -100 where there is none.
        alpha (`float`, *optional*):
            Weight of the momentum copy's prediction in the loss; defaults to `config.alpha`.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the vision tower was made for.
        """
        return self.classify(
            pixel_values, input_ids, attention_mask, labels, alpha, interpolate_pos_encoding, **kwargs
        )


@auto_docstring(custom_intro="ALBEF that says whether a text about two images is true (NLVR2; section 4, figure 4).")
class AlbefForImagesAndTextClassification(AlbefClassificationModel):
    _momentum_pairs = {"model": "model_m", "classifier": "classifier_m", "pair_layers": "pair_layers_m"}
    num_classes = 2

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.pair_layers = make_pair_layers(config.text_config)
        if self.has_copies:
            self.pair_layers_m = make_pair_layers(config.text_config)
        self.post_init()

    def pair_layers_of(self, copy: str) -> dict[str, nn.ModuleList]:
        return {"pair_layers": self.pair_layers_m if copy else self.pair_layers}

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        alpha: float | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, 3, height, width)`):
            Two images for each text.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            0 where the text is false, 1 where it is true; -100 where it is not known.
        alpha (`float`, *optional*):
            Weight of the momentum copy's prediction in the loss; defaults to `config.alpha`.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the vision tower was made for.
        """
        require_pairs(pixel_values)
        return self.classify(
            pixel_values, input_ids, attention_mask, labels, alpha, interpolate_pos_encoding, **kwargs
        )


def make_pair_layers(config: AlbefTextConfig) -> nn.ModuleList:
    """A layer for the second image behind each layer of the text encoder that has cross-attention."""
    return nn.ModuleList(
        AlbefPairLayer(config, index) for index in range(config.fusion_layer, config.num_hidden_layers)
    )


def require_pairs(pixel_values: torch.Tensor | None) -> None:
    """Refuses what is no batch of pairs of images.

    Raises:
        ValueError: with the shape that came.
    """
    if pixel_values is None or pixel_values.dim() != 5 or pixel_values.shape[1] != 2:
        came = "none" if pixel_values is None else list(pixel_values.shape)
        raise ValueError(f"expected two images for each text, pixel_values [batch, 2, 3, height, width], got {came}.")


@auto_docstring(
    custom_intro="""
    ALBEF that learns to read two images: it tells which of the two a text belongs to, or neither (text assignment,
    section 4). Pre-training for NLVR2; the images of the other texts of a batch serve as the second ones.
    """
)
class AlbefForTextAssignment(AlbefPreTrainedModel):
    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.model = AlbefModel(config)
        self.pair_layers = make_pair_layers(config.text_config)
        self.classifier = nn.Linear(config.text_config.hidden_size, 3)
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, config.projection_dim)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.temperature = nn.Parameter(torch.empty(1))
        self.post_init()
        self.freeze_parts()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with the loading report
        model.freeze_parts()  # loading makes parameters anew, and with them what is trained
        return loaded

    def freeze_parts(self) -> None:
        """Train all but what tells which images are alike, and what waits for the heads that come after."""
        for part in (self.vision_proj, self.text_proj, self.temperature):
            part.requires_grad_(False)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_indices: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
            An image for each text, and at least three of them over all processes.
        image_indices (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
            Which images of the batch (of all processes, in the order of their ranks) each text is shown; drawn if it
            is not given: of similar images the more often.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            With `image_indices`: 0 where the first image is the text's own, 1 where the second is, 2 where neither is.
        generator (`torch.Generator`, *optional*):
            Source of chance, seeded alike in all processes.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the vision tower was made for.
        """
        if (image_indices is None) != (labels is None):
            raise ValueError("image_indices and labels come together: the one says what the other is the answer to.")
        images = gather(
            self.model.read_images(pixel_values, interpolate_pos_encoding).last_hidden_state
        )  # [W * B, N, D_v]
        if image_indices is None:
            image_indices, labels = self.draw(images, len(pixel_values), generator)
        outputs = self.model.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=images[image_indices],  # [B, 2, N, D_v]
            pair_layers=self.pair_layers,
            **kwargs,
        )
        logits = self.classifier(first_token(outputs.last_hidden_state, attention_mask))  # [B, 3]
        return AlbefClassifierOutput(
            loss=masked_language_modeling_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    @torch.no_grad()
    def draw(
        self, images: torch.Tensor, batch: int, generator: torch.Generator | None
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Two of the images `[W * B, N, D_v]` for each text of this process, `[B, 2]`, and the right answers `[B]`.

        The text's own image first, second, or not at all, a third of the time each; others in proportion to the
        softmax of how alike they are to it. Chance is drawn for the texts of all processes.

        Raises:
            ValueError: when there are fewer than three images.
        """
        number = len(images)
        if number < 3:
            raise ValueError(f"expected at least 3 images to choose among, got {number}: use a larger batch.")
        features = nn.functional.normalize(self.vision_proj(images[:, 0]), dim=-1)
        weights = (features @ features.t() / self.config.temperature).float().softmax(dim=1).fill_diagonal_(0)
        noise = torch.empty_like(weights).exponential_(generator=generator)
        others = (weights / noise).topk(2, dim=1).indices  # [W * B, 2]: two draws without replacement
        own = torch.arange(number, device=images.device)
        places = torch.stack([own, others[:, 0], own], dim=1)
        labels = torch.randint(3, (number,), generator=generator, device=images.device)
        first = torch.where(labels == 2, others[:, 0], places.gather(1, labels.clamp(max=1)[:, None])[:, 0])
        second = torch.where(labels == 2, others[:, 1], places.gather(1, labels.clamp(max=1)[:, None] + 1)[:, 0])
        mine = slice(rank() * batch, (rank() + 1) * batch)
        return torch.stack([first, second], dim=1)[mine], labels[mine]


@auto_docstring(custom_intro="The decoder that writes an answer while it reads the states of a question.")
class AlbefAnswerDecoder(AlbefPreTrainedModel, GenerationMixin):
    config: AlbefTextConfig
    input_modalities = ("text",)
    _tied_weights_keys = {"lm_head.decoder.weight": "model.embeddings.word_embeddings.weight"}

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.model = AlbefTextModel._from_config(config)
        self.lm_head = AlbefLMHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return CausalLMOutputWithCrossAttentions(
            logits=self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


@auto_docstring(
    custom_intro="ALBEF that answers questions about images with words of its own (section 4, appendix B)."
)
class AlbefForQuestionAnswering(AlbefDistilledModel):
    _momentum_pairs = {"model": "model_m", "text_decoder": "text_decoder_m"}

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.make_base(config)
        self.text_decoder = AlbefAnswerDecoder._from_config(config.decoder_config)
        if self.has_copies:
            self.text_decoder_m = AlbefAnswerDecoder._from_config(config.decoder_config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, key_mapping: dict[str, str] | None = None, **kwargs):
        # Pre-training knows words by a head of its own, which is the decoder's here
        heads = {rf"^lm_head{copy}\.": f"text_decoder{copy}.lm_head." for copy in ("", "_m")}
        return super().from_pretrained(*args, key_mapping=key_mapping or heads, **kwargs)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As transformers' own, of the questions' words and of the answers'."""
        self.text_decoder.resize_token_embeddings(*args, **kwargs)
        return super().resize_token_embeddings(*args, **kwargs)

    def read_question(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> AlbefModelOutput:
        """Question `[B, T]` and image `[B, 3, H, W]` to states `[B, T, D]`."""
        return self.model(
            pixel_values, input_ids, attention_mask, None, interpolate_pos_encoding, return_dict=True, **kwargs
        )

    @can_return_tuple
    @auto_docstring(checkpoint="salesforce/ALBEF")
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        answer_counts: torch.LongTensor | None = None,
        answer_weights: torch.FloatTensor | None = None,
        alpha: float | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefQuestionAnsweringOutput:
        r"""
        labels (`torch.LongTensor` of shape `(num_answers, answer_length)`, *optional*):
            The answers, those of one question after those of the one before: `[CLS]`, words, `[SEP]`, then -100.
        answer_counts (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            How many of the answers belong to each question; one each by default.
        answer_weights (`torch.FloatTensor` of shape `(num_answers,)`, *optional*):
            Weight of each answer: the share of annotators who gave it. One by default.
        alpha (`float`, *optional*):
            Weight of the momentum copy's prediction in the loss; defaults to `config.alpha`.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the vision tower was made for.

        Example:

        ```python
        >>> import hf_mmunify
        >>> from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        >>> model = AutoModelForVisualQuestionAnswering.from_pretrained("albef-vqa")
        >>> processor = AutoProcessor.from_pretrained("albef-vqa")
        >>> inputs = processor(images=image, text="how many cats are there?", return_tensors="pt")
        >>> answer = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        ```
        """
        question = (pixel_values, input_ids, attention_mask, interpolate_pos_encoding)
        outputs = self.read_question(*question, **kwargs)
        states, mask = outputs.last_hidden_state, attention_mask  # [B, T, D], [B, T]
        loss = None
        if labels is None:
            start = states.new_full((len(states), 1), self.text_decoder.config.bos_token_id, dtype=torch.long)
            logits = self.text_decoder(start, encoder_hidden_states=states, encoder_attention_mask=mask).logits
        else:
            self.require_words(labels)
            states, mask = self.for_each_answer(states, labels, answer_counts, mask)
            answers = {
                "input_ids": labels.masked_fill(labels == -100, self.config.pad_token_id),
                "attention_mask": (labels != -100).long(),
                "encoder_attention_mask": mask,
            }
            logits = self.text_decoder(**answers, encoder_hidden_states=states).logits  # [A, L, V]
            alpha, logits_m = self.weight_of_distillation(alpha), None
            if self.has_copies:
                with torch.no_grad():
                    self.follow()
                    states_m = self.model_m(
                        pixel_values, *question[1:3], None, interpolate_pos_encoding, return_dict=True
                    )
                    states_m, _ = self.for_each_answer(states_m.last_hidden_state, labels, answer_counts, None)
                    logits_m = self.text_decoder_m(**answers, encoder_hidden_states=states_m).logits
            losses = answer_losses(logits, labels, logits_m, alpha)  # [A]
            loss = (losses if answer_weights is None else answer_weights * losses).sum() / len(input_ids)
        return AlbefQuestionAnsweringOutput(
            loss=loss,
            logits=logits,
            question_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def require_words(self, labels: torch.Tensor) -> None:
        """Refuses answers with tokens that the decoder does not know.

        Raises:
            ValueError: when a label is no token.
        """
        words = self.text_decoder.config.vocab_size
        is_known = ((labels >= 0) & (labels < words)) | (labels == -100)
        if not torch.compiler.is_compiling() and not is_known.all():
            raise ValueError(
                f"labels are token ids from 0 to {words - 1}, or -100 behind an answer; got {int(labels.min())} to "
                f"{int(labels.max())}. Do tokenizer and embedding table belong together?"
            )

    @staticmethod
    def for_each_answer(
        states: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States `[B, T, D]` and mask `[B, T]` of the questions, once for each of their answers.

        Raises:
            ValueError: when the answers are not as many as the questions, or as `counts` say.
        """
        number = len(labels)
        if not torch.compiler.is_compiling() and number != (len(states) if counts is None else int(counts.sum())):
            expected = f"{len(states)}, one for each question" if counts is None else f"{int(counts.sum())}"
            raise ValueError(f"expected {expected} answers (answer_counts says how many), got labels of {number}.")
        if counts is None:
            return states, mask
        repeat = {"dim": 0, "output_size": number}
        return states.repeat_interleave(counts, **repeat), None if mask is None else mask.repeat_interleave(
            counts, **repeat
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> torch.LongTensor:
        """Write an answer to each question, token by token.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                The images.
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                The questions.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for their tokens, 0 for padding.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether images may have another size than the vision tower was made for.
            kwargs:
                As for [`GenerationMixin.generate`]: `max_new_tokens`, `num_beams`, `do_sample`, ...

        Returns:
            `torch.LongTensor` of shape `(batch_size, length)`: the answers, from `[CLS]` to `[SEP]`, then padding.
        """
        states = self.read_question(pixel_values, input_ids, attention_mask, interpolate_pos_encoding)
        states = states.last_hidden_state  # [B, T, D]
        start = input_ids.new_full((len(states), 1), self.text_decoder.config.bos_token_id)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.text_decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            **kwargs,
        )

    @torch.no_grad()
    def rank_answers(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        answer_ids: torch.LongTensor,
        answer_attention_mask: torch.Tensor | None = None,
        num_candidates: int = 128,
        interpolate_pos_encoding: bool = False,
    ) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Choose among given answers, as the original's evaluation does (`rank_answer` in models/model_vqa.py).

        The answers whose first word is likeliest are scored whole. Their score counts the first word twice, as in the
        original, by whose numbers published results were made.

        Args:
            pixel_values, input_ids, attention_mask, interpolate_pos_encoding:
                Images and questions, as for `generate`.
            answer_ids (`torch.LongTensor` of shape `(num_answers, answer_length)`):
                All answers that can be given: `[CLS]`, words, `[SEP]`, padded on the right.
            answer_attention_mask (`torch.Tensor` of shape `(num_answers, answer_length)`, *optional*):
                1 for their tokens, 0 for padding.
            num_candidates (`int`, *optional*, defaults to 128):
                How many are scored whole; all of them, where there are fewer.

        Returns:
            Indices of the answers, best first, and their probabilities among the candidates; `(batch_size, k)` both.
        """
        if answer_attention_mask is None:
            answer_attention_mask = torch.ones_like(answer_ids)
        number = min(num_candidates, len(answer_ids))
        states = self.read_question(pixel_values, input_ids, attention_mask, interpolate_pos_encoding)
        states = states.last_hidden_state  # [B, T, D]
        read = {"encoder_hidden_states": states, "encoder_attention_mask": attention_mask, "use_cache": True}
        begin = self.text_decoder(answer_ids[:1, :1].expand(len(states), 1), **read)
        first = begin.logits[:, 0].float().log_softmax(dim=-1)[:, answer_ids[:, 1]]  # [B, answers]
        first, chosen = first.topk(number, dim=1)  # [B, C]

        # The question's keys and values serve all its candidates, and so do those of the first token
        cache = begin.past_key_values
        cache.batch_repeat_interleave(number)
        candidates = answer_ids[chosen.flatten()]  # [B * C, L]
        mask = answer_attention_mask[chosen.flatten()]
        read_mask = None if attention_mask is None else attention_mask.repeat_interleave(number, dim=0)
        logits = self.text_decoder(
            candidates[:, 1:],
            attention_mask=mask,
            encoder_hidden_states=states.repeat_interleave(number, dim=0),
            encoder_attention_mask=read_mask,
            past_key_values=cache,
            use_cache=True,
        ).logits  # [B * C, L - 1, V]
        labels = candidates[:, 2:].masked_fill(mask[:, 2:] == 0, -100)
        rest = nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, reduction="none").sum(dim=1)
        scores = 2 * first - rest.view_as(first)
        scores, order = scores.softmax(dim=-1).sort(dim=1, descending=True)
        return chosen.gather(1, order), scores


def answer_losses(
    logits: torch.Tensor, labels: torch.Tensor, soft_logits: torch.Tensor | None, alpha: float
) -> torch.Tensor:
    """Negative log-likelihood `[A]` of each answer, of scores `[A, L, V]` and labels `[A, L]`, which are shifted here.

    `alpha` is the weight of the cross entropy against the softmax of `soft_logits`, as in the original's decoder.
    """
    counted = (labels[:, 1:] != -100) & (labels[:, :-1] != -100)  # [A, L - 1]
    targets = labels[:, 1:].masked_fill(~counted, -100)
    scores = logits[:, :-1].float()  # [A, L - 1, V]
    losses = nn.functional.cross_entropy(scores.transpose(1, 2), targets, reduction="none")
    if alpha:
        probabilities = soft_logits[:, :-1].float().softmax(dim=-1)
        by_teacher = soft_cross_entropy(scores, probabilities, reduction="none").where(counted, 0.0)
        losses = (1 - alpha) * losses + alpha * by_teacher
    return losses.sum(dim=1)


def hardest(weights: torch.Tensor) -> torch.LongTensor:
    """The most likely of each row of weights `[B, N]`, `[B]`."""
    return weights.argmax(dim=1)


@auto_docstring(
    custom_intro="""
    Contrast (ITC) and match (ITM) of images and texts: what pre-training and retrieval share (section 3.2). Its
    attribute `choose_negatives`, a function of weights `[B, W * B]` that gives indices `[B]`, decides in the place of
    chance which wrong image each text is matched with, and then which wrong text each image.
    """
)
class AlbefImageTextModel(AlbefDistilledModel):
    _momentum_pairs = {"model": "model_m", "vision_proj": "vision_proj_m", "text_proj": "text_proj_m"}
    _queue_has_ids = False

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.make_base(config)
        vision_width, text_width = config.vision_config.hidden_size, config.text_config.hidden_size
        self.vision_proj = nn.Linear(vision_width, config.projection_dim)
        self.text_proj = nn.Linear(text_width, config.projection_dim)
        self.temperature = nn.Parameter(torch.empty(1))
        self.itm_head = nn.Linear(text_width, 2)
        self.choose_negatives: Callable[[torch.Tensor], torch.LongTensor] | None = None
        self.queue = None
        if self.has_copies:
            self.vision_proj_m = nn.Linear(vision_width, config.projection_dim)
            self.text_proj_m = nn.Linear(text_width, config.projection_dim)
            # CODEPATH: as the copies, the queue is missing from checkpoints published for use alone
            if config.queue_size:
                self.queue = FeatureQueue(config.projection_dim, config.queue_size, with_ids=self._queue_has_ids)

    def project_images(self, image_hidden_state: torch.Tensor, copy: str = "") -> torch.Tensor:
        """Images `[B, N, D_v]` to features `[B, P]` of length 1."""
        projection = self.vision_proj_m if copy else self.vision_proj
        return nn.functional.normalize(projection(image_hidden_state[:, 0]), dim=-1)

    def project_texts(
        self, text_hidden_state: torch.Tensor, attention_mask: torch.Tensor | None, copy: str = ""
    ) -> torch.Tensor:
        """Texts `[B, T, D]` to features `[B, P]` of length 1."""
        projection = self.text_proj_m if copy else self.text_proj
        return nn.functional.normalize(projection(first_token(text_hidden_state, attention_mask)), dim=-1)

    @can_return_tuple
    @auto_docstring
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the vision tower was made for.
        """
        outputs = self.model.read_images(pixel_values, interpolate_pos_encoding, **kwargs)
        outputs.pooler_output = self.project_images(outputs.last_hidden_state)
        return outputs

    @can_return_tuple
    @auto_docstring
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        outputs = self.model.text_model(input_ids, attention_mask, **{**kwargs, "return_dict": True})
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.project_texts(outputs.last_hidden_state, attention_mask),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def contrast_and_match(
        self,
        outputs: AlbefModelOutput,
        itm_logits: torch.Tensor,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        inputs: dict,
        image_ids: torch.LongTensor | None,
        alpha: float,
        generator: torch.Generator | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """ITC and ITM losses of aligned images and texts.

        Args:
            outputs: of the base model for the pairs.
            itm_logits: `[B, 2]`, of the pairs.
            image_features, text_features: `[B, P]`, of the pairs.
            inputs: the base model's arguments, for its momentum copy.
            image_ids: `[B]`, or None where every pair shows another image.
            alpha: weight of the copy's similarities in the targets.
            generator: source of chance.

        Returns:
            ITC loss, ITM loss, ITM logits `[3 * B, 2]`, and the copy's states of the images `[B, N, D_v]`, if any.
        """
        if self.training:
            with torch.no_grad():
                self.temperature.clamp_(*TEMPERATURES)
        ids = None if image_ids is None else image_ids.flatten()
        images_m = None
        if self.has_copies:
            with torch.no_grad():
                self.follow()
                mask = inputs["attention_mask"]
                images_m = self.model_m.read_images(
                    inputs["pixel_values"], inputs["interpolate_pos_encoding"]
                ).last_hidden_state
                texts_m = self.model_m.text_model(inputs["input_ids"], mask).last_hidden_state
                features_m = self.project_images(images_m, "_m"), self.project_texts(texts_m, mask, "_m")
            loss, images_to_texts, texts_to_images = self.contrast_with_copies(
                image_features, text_features, *features_m, ids, alpha
            )
            if self.training and self.queue is not None:
                unknown = torch.full_like(inputs["input_ids"][:, 0], NO_ID)
                self.queue.enqueue(*features_m, (unknown if ids is None else ids) if self._queue_has_ids else None)
        else:
            loss = contrastive_loss(image_features, text_features, 1 / self.temperature, image_ids=ids)
            images_to_texts = image_features @ gather_without_gradient(text_features).t() / self.temperature
            texts_to_images = text_features @ gather_without_gradient(image_features).t() / self.temperature

        wrong_images = self.hard_negatives(texts_to_images, ids, generator)  # [B], of the texts
        wrong_texts = self.hard_negatives(images_to_texts, ids, generator)  # [B], of the images
        mask = inputs["attention_mask"]
        mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        texts, mask = pad_like_all_processes(outputs.text_hidden_state, mask)  # [B, T, D], [B, T]
        images, all_texts, all_masks = outputs.image_hidden_state, gather(texts), gather_without_gradient(mask)
        mask = torch.cat([mask, all_masks[wrong_texts]])
        wrong = self.model.text_model(
            text_hidden_state=torch.cat([texts, all_texts[wrong_texts]]),  # [2 * B, T, D]
            attention_mask=mask,
            encoder_hidden_states=torch.cat([gather(images)[wrong_images], images]),  # [2 * B, N, D_v]
        )
        logits = torch.cat([itm_logits, self.itm_head(first_token(wrong.last_hidden_state, mask))])  # [3 * B, 2]
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        labels[: len(itm_logits)] = 1
        return loss, image_text_matching_loss(logits, labels), logits, images_m

    def contrast_with_copies(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        image_features_m: torch.Tensor,
        text_features_m: torch.Tensor,
        ids: torch.Tensor | None,
        alpha: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss and the similarities `[B, W * B + K]` of features `[B, P]` with those of the momentum copies."""
        images = texts = image_features.new_zeros(self.config.projection_dim, 0)
        if self.queue is not None:
            images, texts = self.queue.image_features, self.queue.text_features  # [P, K]
        queue_ids = None
        if ids is not None:
            has_ids = self.queue is not None and self._queue_has_ids
            queue_ids = self.queue.ids if has_ids else ids.new_full((1, images.shape[1]), NO_ID)
        return momentum_contrastive_loss(
            image_features,
            text_features,
            image_features_m,
            text_features_m,
            images,
            texts,
            self.temperature,
            alpha,
            image_ids=ids,
            queue_ids=queue_ids,
        )

    @torch.no_grad()
    def hard_negatives(
        self, similarities: torch.Tensor, ids: torch.Tensor | None, generator: torch.Generator | None
    ) -> torch.LongTensor:
        """For each row of `similarities` `[B, W * B + K]` a column `[B]` of the batch that shows another image.

        Drawn in training, in proportion to the softmax of the similarities; the most similar one in evaluation.

        Raises:
            ValueError: when all pairs of the batch show the image of one of them.
        """
        batch = len(similarities)
        columns = torch.arange(world_size() * batch, device=similarities.device)
        all_ids = columns if ids is None else gather_without_gradient(ids)
        own = all_ids[rank() * batch : (rank() + 1) * batch]
        same = own[:, None] == all_ids[None]  # [B, W * B]
        scores = similarities[:, : len(columns)].float().masked_fill(same, -torch.inf)
        if not torch.compiler.is_compiling() and same.all(dim=1).any():
            raise ValueError(
                f"all {len(columns)} pairs of this batch show one image: matching needs a pair of another image for "
                "each. Use larger batches (and dataloader_drop_last=True), or fewer texts an image."
            )
        choose = self.choose_negatives or (None if self.training else hardest)
        return sample_hard_negatives(scores.softmax(dim=1), generator, choose=choose)


@auto_docstring(
    custom_intro="""
    ALBEF for image-text retrieval (section 4): scores pairs, learns from pairs of which several may show one image,
    and finds which part of an image a text is about (`ground`).
    """
)
class AlbefForImageTextRetrieval(AlbefImageTextModel):
    _queue_has_ids = True

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefImageTextOutput:
        r"""
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each pair shows. Pairs of one image are right answers to each other, in the queue as well. By
            default every pair shows an image of its own.
        return_loss (`bool`, *optional*):
            Whether to compute the loss, contrast and match. By default where `image_ids` are given.
        alpha (`float`, *optional*):
            Weight of the momentum copy's similarities in the targets; defaults to `config.alpha`.
        generator (`torch.Generator`, *optional*):
            Source of chance, seeded alike in all processes.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the vision tower was made for.
        """
        inputs = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "interpolate_pos_encoding": interpolate_pos_encoding,
        }
        outputs = self.model(**inputs, return_dict=True, **kwargs)
        itm_logits = self.itm_head(first_token(outputs.last_hidden_state, attention_mask))  # [B, 2]
        image_features = self.project_images(outputs.image_hidden_state)  # [B, P]
        text_features = self.project_texts(outputs.text_hidden_state, attention_mask)  # [B, P]
        loss = loss_itc = loss_itm = itm_logits_all = None
        if return_loss or (return_loss is None and image_ids is not None):
            loss_itc, loss_itm, itm_logits_all, _ = self.contrast_and_match(
                outputs=outputs,
                itm_logits=itm_logits,
                image_features=image_features,
                text_features=text_features,
                inputs=inputs,
                image_ids=image_ids,
                alpha=self.weight_of_distillation(alpha),
                generator=generator,
            )
            loss = loss_itc + loss_itm
        return AlbefImageTextOutput(
            loss=loss,
            itm_logits=itm_logits,
            image_features=image_features,
            text_features=text_features,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            itm_logits_all=itm_logits_all,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def encode_images(self, pixel_values: torch.FloatTensor) -> dict[str, torch.Tensor]:
        """What ranking needs of images `[B, 3, H, W]`: `features` `[B, P]` and `hidden_states` `[B, N, D_v]`."""
        hidden_states = self.model.read_images(pixel_values).last_hidden_state
        return {"features": self.project_images(hidden_states), "hidden_states": hidden_states}

    def encode_texts(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What ranking needs of texts `[B, T]`: `features` `[B, P]`, `hidden_states` `[B, T, D]`, `attention_mask`."""
        hidden_states = self.model.text_model(input_ids, attention_mask).last_hidden_state
        return {
            "features": self.project_texts(hidden_states, attention_mask),
            "hidden_states": hidden_states,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
        }

    def similarities(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """Images `[I, P]` and texts `[T, P]` to scores `[I, T]`, by which candidates are found."""
        return image_features @ text_features.t()

    def match(
        self, images: dict[str, torch.Tensor], texts: dict[str, torch.Tensor], similarities: torch.Tensor
    ) -> torch.Tensor:
        """Re-ranking score `[B]` of aligned encodings: the logit of "match" (Retrieval.py of the original).

        Args:
            images (`dict`): rows of what `encode_images` gives.
            texts (`dict`): rows of what `encode_texts` gives; their texts are not read again.
            similarities (`torch.Tensor` of shape `(B,)`): which ALBEF does not add, unlike BLIP.
        """
        outputs = self.model.text_model(
            text_hidden_state=texts["hidden_states"],
            attention_mask=texts["attention_mask"],
            encoder_hidden_states=images["hidden_states"],
        )
        return self.itm_head(first_token(outputs.last_hidden_state, texts["attention_mask"]))[:, 1]

    def ground(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        layer: int | None = None,
        by: str = "itm",
    ) -> torch.FloatTensor:
        """Where in an image the thing is that a text speaks of: Grad-CAM (section 6.2; Grounding.py of the original).

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                The images.
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                A text for each.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for its tokens, 0 for padding.
            layer (`int`, *optional*):
                Whose attention is read; two thirds of the way up by default, the ninth of 12 layers, as published.
            by (`str`, *optional*, defaults to `"itm"`):
                `"itm"`: how the matching score depends on cross-attention of a layer of the text encoder;
                `"itc"`: how the similarity depends on attention of the class token in a layer of the vision tower.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, rows, columns)`: a heat map over the patches, not normalised.

        Raises:
            ValueError: when there is no such layer, or `by` is another word.
        """
        maps, weights, _ = self.attention_and_gradient(pixel_values, input_ids, attention_mask, layer, by)
        if by == "itm":
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            heat = maps[..., 1:] * weights[..., 1:].clamp(min=0) * mask[:, None, :, None]  # [B, H, T, N - 1]
            heat = heat.mean(dim=(1, 2))
        else:
            heat = (maps[:, :, 0, 1:] * weights[:, :, 0, 1:].clamp(min=0)).mean(dim=1)
        return heat.unflatten(1, self.config.patch_grid)

    def attention_and_gradient(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layer: int | None,
        by: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attention of `layer`, the gradient of the summed scores with respect to it, and the scores `[B]`."""
        if by not in ("itm", "itc"):
            raise ValueError(f'by is "itm" or "itc", got {by!r}.')
        text, vision = self.config.text_config, self.config.vision_config
        start, end = (text.fusion_layer, text.num_hidden_layers) if by == "itm" else (0, vision.num_hidden_layers)
        layer = max(start, 2 * end // 3) if layer is None else layer
        if not start <= layer < end:
            raise ValueError(
                f"expected a layer from {start} to {end - 1}, of those whose attention the image is in, got {layer}."
            )
        with torch.enable_grad(), eager_attention(self):
            # So that there is a gradient in a model that is frozen as well
            pixel_values = pixel_values.detach().requires_grad_()
            if by == "itm":
                outputs = self.model(pixel_values, input_ids, attention_mask, return_dict=True, output_attentions=True)
                attention = outputs.cross_attentions[layer - start]
                scores = self.itm_head(first_token(outputs.last_hidden_state, attention_mask))[:, 1]
            else:
                images = self.get_image_features(pixel_values, return_dict=True, output_attentions=True)
                attention = images.attentions[layer]
                texts = self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output
                scores = (images.pooler_output * texts).sum(dim=-1) / self.temperature
            (gradient,) = torch.autograd.grad(scores.sum(), attention)
        return attention.detach(), gradient, scores.detach()


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within it, attention is computed step by step, so that its weights can be looked at."""
    before = {part: part.config._attn_implementation for part in model.modules() if isinstance(part, PreTrainedModel)}
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for part, implementation in before.items():
            part.config._attn_implementation = implementation


@auto_docstring(
    custom_intro="ALBEF with the objectives of its pre-training: contrast, match and masked words (section 3.2, 3.3)."
)
class AlbefForPreTraining(AlbefImageTextModel):
    _momentum_pairs = {**AlbefImageTextModel._momentum_pairs, "lm_head": "lm_head_m"}
    _tied_weights_keys = {
        "lm_head.decoder.weight": "model.text_model.embeddings.word_embeddings.weight",
        "lm_head_m.decoder.weight": "model_m.text_model.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.lm_head = AlbefLMHead(config.text_config)
        if self.has_copies:
            self.lm_head_m = AlbefLMHead(config.text_config)
        else:
            self._tied_weights_keys = {k: v for k, v in self._tied_weights_keys.items() if "_m." not in k}
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefImageTextOutput:
        r"""
        masked_input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            `input_ids` with some words hidden, as `hf_mmunify.data.mask_tokens` makes them.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The hidden words, -100 elsewhere. With them, the loss is computed.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each pair shows, where several of a batch may show one. By default each shows another.
        alpha (`float`, *optional*):
            Weight of the momentum copies' predictions; defaults to `config.alpha`. The original lets it grow from 0
            over the first epoch.
        generator (`torch.Generator`, *optional*):
            Source of chance, seeded alike in all processes.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than the vision tower was made for.
        """
        inputs = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "interpolate_pos_encoding": interpolate_pos_encoding,
        }
        outputs = self.model(**inputs, return_dict=True, **kwargs)
        itm_logits = self.itm_head(first_token(outputs.last_hidden_state, attention_mask))  # [B, 2]
        image_features = self.project_images(outputs.image_hidden_state)  # [B, P]
        text_features = self.project_texts(outputs.text_hidden_state, attention_mask)  # [B, P]
        words = outputs.last_hidden_state
        if masked_input_ids is not None:
            read = {"attention_mask": attention_mask, "encoder_hidden_states": outputs.image_hidden_state}
            words = self.model.text_model(masked_input_ids, **read).last_hidden_state
        if labels is not None and self.training and not torch.compiler.is_compiling():
            hidden = labels != -100  # [B, T]: scores of the other words would train nothing
        else:
            hidden = slice(None)
        mlm_logits = self.lm_head(words[hidden])  # [B, T, V], or, in training, [hidden words, V]
        loss = loss_itc = loss_itm = loss_mlm = itm_logits_all = None
        if labels is not None:
            if masked_input_ids is None:
                raise ValueError(
                    "labels are the words that masked_input_ids hide, which are missing: make both with "
                    "hf_mmunify.data.mask_tokens(input_ids, tokenizer)."
                )
            alpha, logits_m = self.weight_of_distillation(alpha), None
            loss_itc, loss_itm, itm_logits_all, images_m = self.contrast_and_match(
                outputs=outputs,
                itm_logits=itm_logits,
                image_features=image_features,
                text_features=text_features,
                inputs=inputs,
                image_ids=image_ids,
                alpha=alpha,
                generator=generator,
            )
            if self.has_copies:
                with torch.no_grad():
                    words_m = self.model_m.text_model(
                        masked_input_ids, attention_mask=attention_mask, encoder_hidden_states=images_m
                    )
                    logits_m = self.lm_head_m(words_m.last_hidden_state[hidden])
            loss_mlm = masked_language_modeling_loss(mlm_logits, labels[hidden], soft_logits=logits_m, alpha=alpha)
            loss = loss_mlm + loss_itc + loss_itm
        return AlbefImageTextOutput(
            loss=loss,
            itm_logits=itm_logits,
            image_features=image_features,
            text_features=text_features,
            mlm_logits=mlm_logits,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            loss_mlm=loss_mlm,
            itm_logits_all=itm_logits_all,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


__all__ = [
    "AlbefAnswerDecoder",
    "AlbefForImageTextRetrieval",
    "AlbefForImagesAndTextClassification",
    "AlbefForPreTraining",
    "AlbefForQuestionAnswering",
    "AlbefForTextAssignment",
    "AlbefForVisualEntailment",
    "AlbefModel",
    "AlbefPreTrainedModel",
    "AlbefTextModel",
]
