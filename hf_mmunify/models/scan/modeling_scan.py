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
"""SCAN: stacked cross attention between the regions of an image and the words of a text.

    region_features [B, R, F] -> linear -> length 1 --------------------------------> regions [B, R, D] --.
                                                                                                          |
    "t2i": each word attends to the regions, and is compared with the mixture of them that it finds;      |
    "i2t": each region to the words. Scores [.., T] or [.., R] -> log-sum-exp, mean, max or sum --> score of a pair
                                                                                                          |
    input_ids [B, T] -> embedding -> GRU, both directions, their mean -> length 1 -> words [B, T, D] -----'

B images or texts, R regions, F the width of their features, T words, D that of the shared space. Of an attention: C
contexts (what is looked at) with S things each, Q queries with L things each.

Paper: Stacked Cross Attention for Image-Text Matching (Lee et al., 2018), sections 3.1 (attention and scores) and 3.2
(the loss).
Original: kuanghuei/SCAN@806355736e3c9158c9bcf2f0501ed1e961a893e9, model.py.

What differs, and why:
- A mixture of regions is never written down. Its product with a word is the same mixture of products, and its length
  follows from the products of the regions with each other: [R, R] numbers an image in place of [T, D] a pair. The
  original makes every mixture, one text after the other.
- Padding may stand anywhere: words are brought together before the GRU reads them, and put back afterwards. Images may
  differ in their number of regions (`region_mask`); the original has 36 of every image.
- The weights of the GRU are read anew in each call, so that sharding them and compiling the model work.
- `l1norm` and `clipped_l1norm` do what their names say; in the original both fail (it calls a function it lacks).
- In the loss, pairs of the same image (`image_ids`) are no negatives of each other; the original does not look.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from ...losses import gather, gather_without_gradient, hinge_ranking_loss, pad_to_longest
from .configuration_scan import ScanConfig


EPSILON = 1e-8
BLOCK = 2**26
"""How many similarities of a word with a region are in memory at once, at most, when all pairs are scored."""


@auto_docstring(custom_intro="Words and regions in the space they share.")
@dataclass
class ScanModelOutput(ModelOutput):
    r"""
    word_states (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
        The words, zero at padding.
    region_states (`torch.FloatTensor` of shape `(batch_size, num_regions, hidden_size)`, *optional*):
        The regions, zero where there is none.
    hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned when asked for):
        Word embeddings, and what each layer of the GRU says of a word in its directions, side by side.
    attentions (`tuple[torch.FloatTensor]`, *optional*, returned when asked for):
        One map of each image with its own text: `(batch_size, sequence_length, num_regions)` where words attend to
        regions, `(batch_size, num_regions, sequence_length)` where regions attend to words.
    """

    word_states: torch.FloatTensor | None = None
    region_states: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="How well images and texts match.")
@dataclass
class ScanRetrievalOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when it was asked for):
        The hinge loss, summed over the batch.
    logits (`torch.FloatTensor` of shape `(batch_size,)`):
        How well each image matches its own text.
    word_states (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        The words, zero at padding.
    region_states (`torch.FloatTensor` of shape `(batch_size, num_regions, hidden_size)`):
        The regions, zero where there is none.
    hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*, returned when asked for):
        As of [`ScanModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    word_states: torch.FloatTensor | None = None
    region_states: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def unit_length(states: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Divided by their length along `dim`; what is zero stays zero."""
    return states / (torch.linalg.vector_norm(states, dim=dim, keepdim=True) + EPSILON)


class ScanWeightNormLinear(nn.Module):
    """A linear layer whose weight is a direction `weight_v`, of length 1 as a whole, times a length `weight_g`."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features = in_features
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_g = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight = self.weight_v * (self.weight_g / torch.linalg.vector_norm(self.weight_v))
        return nn.functional.linear(states, weight, self.bias)


class ScanRecurrence(nn.Module):
    """One direction of one layer of a GRU."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden_size))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden_size))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states.to(self.weight_ih.dtype)
        start = states.new_zeros(1, len(states), self.weight_hh.shape[1])
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        # has_biases, num_layers, dropout, train, bidirectional, batch_first
        return torch.gru(states, start, weights, True, 1, 0.0, self.training, False, True)[0]  # [B, T, D]


class ScanRecurrentLayer(GradientCheckpointingLayer):
    """A layer of a GRU: forwards, and backwards where it is bidirectional."""

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool):
        super().__init__()
        self.forwards = ScanRecurrence(input_size, hidden_size)
        self.backwards = ScanRecurrence(input_size, hidden_size) if bidirectional else None

    def forward(self, states: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
        """`turned` [B, T] are the positions of each text from its last word to its first."""
        result = self.forwards(states)
        if self.backwards is None:
            return result  # [B, T, D]
        back = at_positions(self.backwards(at_positions(states, turned)), turned)
        return torch.cat([result, back], dim=-1)  # [B, T, 2 * D]


def at_positions(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """States [B, T, D] in the order of positions [B, T]."""
    return states.gather(1, positions[..., None].expand_as(states))


class ScanTextEncoder(nn.Module):
    """Words in the context of their text, in the shared space (section 3.1, "Representing Sentences")."""

    def __init__(self, config: ScanConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.normalize = config.normalize_words
        self.word_embeddings = nn.Embedding(config.vocab_size, config.word_embedding_size)
        # CODEPATH: the authors' models read in both directions (`--bi_gru`), their `train.py` in one by default
        directions = 2 if config.bidirectional else 1
        sizes = [config.word_embedding_size] + [directions * config.hidden_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(
            ScanRecurrentLayer(size, config.hidden_size, config.bidirectional) for size in sizes
        )

    def forward(
        self, embeds: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Words [B, T, D], zero at padding; and the states on the way to them."""
        is_word = attention_mask.bool()  # [B, T]
        length = is_word.sum(dim=1, keepdim=True)  # [B, 1]
        together = (~is_word).to(torch.uint8).argsort(dim=1, stable=True)  # words first, in their order
        apart = together.argsort(dim=1)
        places = torch.arange(is_word.shape[1], device=embeds.device)
        turned = (length - 1 - places) % is_word.shape[1]  # words from last to first, then padding
        states = at_positions(embeds, together)
        history = [embeds]
        for layer in self.layers:
            states = layer(states, turned)
            history.append(at_positions(states, apart))
        words = history[-1].unflatten(-1, (-1, self.hidden_size)).mean(dim=-2)  # [B, T, D]
        words = words.masked_fill(~is_word[..., None], 0)
        return unit_length(words) if self.normalize else words, tuple(history)


class ScanCrossAttention(nn.Module):
    """The score of a context by a query that looks at it (section 3.1; the original's `func_attention`).

    Of every context with every query, or of each context with one query of its own.
    """

    def __init__(self, config: ScanConfig):
        super().__init__()
        self.normalization = config.attention_normalization
        self.scale = config.attention_scale
        self.aggregation = config.aggregation
        self.aggregation_scale = config.aggregation_scale

    def forward(
        self,
        contexts: torch.Tensor,
        context_mask: torch.Tensor,
        queries: torch.Tensor,
        query_mask: torch.Tensor,
        paired: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and attention.

        Args:
            contexts: `[C, S, D]`, what is looked at.
            context_mask: `[C, S]`, true where there is something; at least once in every row.
            queries: `[Q, L, D]`, what looks.
            query_mask: `[Q, L]`, likewise.
            paired: whether each context is looked at by the query of its own place alone (Q = C).

        Returns:
            Scores `[C, Q]` and attention `[C, Q, L, S]`; of pairs, `[C]` and `[C, L, S]`.
        """
        if paired:
            queries, query_mask = queries[:, None], query_mask[:, None]  # [C, 1, L, D], [C, 1, L]
            raw = torch.einsum("csd,cqld->cqls", contexts, queries)
        else:
            queries, query_mask = queries[None], query_mask[None]  # [1, Q, L, D], [1, Q, L]
            raw = torch.einsum("csd,qld->cqls", contexts, queries[0])
        attention = self.attend(raw, context_mask[:, None, None], query_mask[..., None])  # [C, Q, L, S]
        product = (attention * raw).sum(dim=-1)  # of a query with the mixture of what it looks at: [C, Q, L]
        products = contexts @ contexts.transpose(1, 2)  # [C, S, S]
        spread = torch.einsum("cqls,cst->cqlt", attention, products)
        length = (attention * spread).sum(dim=-1).clamp(min=EPSILON**2).sqrt()  # of the mixture: [C, Q, L]
        lengths = torch.linalg.vector_norm(queries, dim=-1) * length
        scores = self.aggregate(product / lengths.clamp(min=EPSILON), query_mask)  # [C, Q]
        return (scores[:, 0], attention[:, 0]) if paired else (scores, attention)

    def attend(self, raw: torch.Tensor, context_mask: torch.Tensor, query_mask: torch.Tensor) -> torch.Tensor:
        """Similarities `[C, Q, L, S]` -> how much of each thing of a context a query takes, adding up to 1."""
        lowest = torch.finfo(raw.dtype).min
        if self.normalization.startswith("clipped"):
            raw = nn.functional.leaky_relu(raw, 0.1)
        # Each thing that is looked at shares itself out among those that look at it
        if self.normalization == "softmax":
            raw = raw.masked_fill(~query_mask, lowest).softmax(dim=2)
        raw = raw.masked_fill(~query_mask, 0)
        if self.normalization.endswith("l2norm"):
            raw = unit_length(raw, dim=2)
        elif self.normalization.endswith("l1norm"):
            raw = raw / (raw.abs().sum(dim=2, keepdim=True) + EPSILON)
        return (raw * self.scale).masked_fill(~context_mask, lowest).softmax(dim=-1)

    def aggregate(self, scores: torch.Tensor, query_mask: torch.Tensor) -> torch.Tensor:
        """Scores of the things of a query `[C, Q, L]` -> its own, `[C, Q]`."""
        lowest = torch.finfo(scores.dtype).min
        if self.aggregation == "lse":
            scaled = (scores * self.aggregation_scale).masked_fill(~query_mask, lowest)
            return scaled.logsumexp(dim=-1) / self.aggregation_scale
        if self.aggregation == "max":
            return scores.masked_fill(~query_mask, lowest).amax(dim=-1)
        total = scores.masked_fill(~query_mask, 0).sum(dim=-1)
        return total if self.aggregation == "sum" else total / query_mask.sum(dim=-1)


@auto_docstring
class ScanPreTrainedModel(PreTrainedModel):
    config: ScanConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScanRecurrentLayer"]
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, ScanRecurrence):
            bound = module.weight_hh.shape[1] ** -0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, ScanWeightNormLinear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight_v, -bound, bound)
            init.copy_(module.weight_g, torch.linalg.vector_norm(module.weight_v)[None])
            init.uniform_(module.bias, -bound, bound)

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # so that loading initialises what is missing as it does for transformers' own models


@auto_docstring(custom_intro="SCAN without a loss: regions and words in the space they share, and scores of pairs.")
class ScanModel(ScanPreTrainedModel):
    def __init__(self, config: ScanConfig):
        super().__init__(config)
        # CODEPATH: of `--precomp_enc_type=weight_norm`; the authors' models have the plain layer
        projection = ScanWeightNormLinear if config.region_weight_norm else nn.Linear
        self.region_projection = projection(config.region_feature_size, config.hidden_size)
        self.text_encoder = ScanTextEncoder(config)
        self.cross_attention = ScanCrossAttention(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_encoder.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_encoder.word_embeddings = value

    def encode_regions(
        self, region_features: torch.Tensor, region_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Regions in the shared space.

        Args:
            region_features (`torch.Tensor` of shape `(batch_size, num_regions, region_feature_size)`):
                As a detector gives them.
            region_mask (`torch.Tensor` of shape `(batch_size, num_regions)`, *optional*):
                Nonzero where there is a region; everywhere by default.

        Returns:
            `(batch_size, num_regions, hidden_size)`, zero where there is no region; and the mask, of booleans.

        Raises:
            ValueError: when the width is another, the mask does not fit, an image has no region, or there is a NaN.
        """
        width = self.config.region_feature_size
        if region_features.dim() != 3 or region_features.shape[-1] != width:
            raise ValueError(
                f"expected region_features [batch, regions, {width}], got {list(region_features.shape)}: the model "
                "was made for regions of another detector, or for another number of images."
            )
        if region_mask is None:
            region_mask = torch.ones(region_features.shape[:2], device=region_features.device)
        _check_mask("region_mask", region_mask, region_features, "region")
        is_region = region_mask.bool()  # [B, R]
        region_features = region_features.masked_fill(~is_region[..., None], 0)
        if not _is_traced() and not region_features.isfinite().all():
            raise ValueError("region_features hold NaN or infinity: what computed them failed.")
        dtype = self.text_encoder.word_embeddings.weight.dtype  # in 4 bits the model's own is another
        states = self.region_projection(region_features.to(dtype)).to(dtype)  # [B, R, D]
        # CODEPATH: not of `--no_imgnorm`; the authors' models have it
        states = unit_length(states) if self.config.normalize_regions else states
        return states.masked_fill(~is_region[..., None], 0), is_region

    def encode_words(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Words in the shared space.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The texts.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                Nonzero at words; everywhere by default.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, word_embedding_size)`, *optional*):
                Word embeddings, instead of `input_ids`.

        Returns:
            `(batch_size, sequence_length, hidden_size)`, zero at padding; the mask, of booleans; and the states on the
            way to them.

        Raises:
            ValueError: when an id is no word of the vocabulary, the mask does not fit, or a text has no word.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds.")
        if inputs_embeds is None:
            words = self.config.vocab_size
            if not _is_traced() and input_ids.numel() and not 0 <= input_ids.min() <= input_ids.max() < words:
                raise ValueError(
                    f"input_ids are from 0 to {words - 1}, got {int(input_ids.min())} to {int(input_ids.max())}: do "
                    "tokenizer and model belong together?"
                )
            inputs_embeds = self.text_encoder.word_embeddings(input_ids)  # [B, T, E]
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], device=inputs_embeds.device)
        _check_mask("attention_mask", attention_mask, inputs_embeds, "word")
        words, history = self.text_encoder(inputs_embeds, attention_mask)
        return words, attention_mask.bool(), history

    def compare(
        self,
        region_states: torch.Tensor,
        region_mask: torch.Tensor,
        word_states: torch.Tensor,
        word_mask: torch.Tensor,
        paired: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """How well images match texts: every image with every text, or each with its own.

        Args:
            region_states, region_mask: Of `I` images, as `encode_regions` gives them.
            word_states, word_mask: Of `T` texts, as `encode_words` does.
            paired (`bool`, *optional*, defaults to `False`):
                Whether each image is compared with the text of its own place alone.

        Returns:
            Scores `[I, T]`; of pairs `[I]`, and the attention of each, `[I, words, regions]` or `[I, regions, words]`.
        """
        images, texts = (region_states, region_mask), (word_states, word_mask)
        is_text_to_image = self.config.cross_attention == "t2i"
        contexts, queries = (images, texts) if is_text_to_image else (texts, images)
        if paired:
            return self.cross_attention(*contexts, *queries, paired=True)
        (states, mask), size = contexts, queries[0].shape[0] * queries[0].shape[1] * contexts[0].shape[1]
        step = max(1, BLOCK // max(1, size))
        scores = torch.cat(
            [
                self.cross_attention(states[start : start + step], mask[start : start + step], *queries)[0]
                for start in range(0, len(states), step)
            ]
        )
        return (scores if is_text_to_image else scores.t()), None

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.FloatTensor | None = None,
        region_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScanModelOutput:
        r"""
        region_features (`torch.FloatTensor` of shape `(batch_size, num_regions, region_feature_size)`, *optional*):
            Features of the regions of each image, as a detector gives them.
        region_mask (`torch.Tensor` of shape `(batch_size, num_regions)`, *optional*):
            Nonzero where there is a region; everywhere by default.
        """
        output_attentions = kwargs.get("output_attentions", self.config.output_attentions)
        output_hidden_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        word_states = word_mask = region_states = history = None
        if input_ids is not None or inputs_embeds is not None:
            word_states, word_mask, history = self.encode_words(input_ids, attention_mask, inputs_embeds)
        if region_features is not None:
            region_states, region_mask = self.encode_regions(region_features, region_mask)
        if word_states is None and region_states is None:
            raise ValueError("Nothing to encode: give input_ids, region_features, or both.")
        attentions = None
        if output_attentions and word_states is not None and region_states is not None:
            _check_pairs(region_states, word_states)
            attentions = (self.compare(region_states, region_mask, word_states, word_mask, paired=True)[1],)
        return ScanModelOutput(
            word_states=word_states,
            region_states=region_states,
            hidden_states=history if output_hidden_states else None,
            attentions=attentions,
        )


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def _check_mask(name: str, mask: torch.Tensor, states: torch.Tensor, thing: str) -> None:
    if mask.shape != states.shape[:2]:
        raise ValueError(f"expected {name} of shape {list(states.shape[:2])}, got {list(mask.shape)}.")
    if _is_traced():
        return
    if len(mask) == 0:
        raise ValueError(f"The batch is empty: {name} has shape {list(mask.shape)}.")
    if not mask.bool().any(dim=1).all():
        row = int(mask.bool().any(dim=1).int().argmin())
        raise ValueError(f"row {row} of the batch has no {thing}: {name} is zero all along. Leave the row out.")


def _check_pairs(region_states: torch.Tensor, word_states: torch.Tensor) -> None:
    if len(region_states) != len(word_states):
        raise ValueError(
            f"expected as many images as texts, got {len(region_states)} and {len(word_states)}: repeat the regions "
            "of an image for each of its texts."
        )


@auto_docstring(
    custom_intro="""
    SCAN as it is trained and searched with: the score of each image with its own text; the hinge loss against the
    other pairs of the batch, of all processes, where `return_loss` or `image_ids` ask for it.
    """
)
class ScanForImageTextRetrieval(ScanPreTrainedModel):
    accepts_loss_kwargs = False  # the loss is not divided by a number of items

    def __init__(self, config: ScanConfig):
        super().__init__(config)
        self.model = ScanModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.FloatTensor | None = None,
        region_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScanRetrievalOutput:
        r"""
        region_features (`torch.FloatTensor` of shape `(batch_size, num_regions, region_feature_size)`):
            Features of the regions of each image, as a detector gives them.
        region_mask (`torch.Tensor` of shape `(batch_size, num_regions)`, *optional*):
            Nonzero where there is a region; everywhere by default.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Which image each pair shows; pairs of the same image are no negatives of each other.
        return_loss (`bool`, *optional*):
            Whether to compute the loss; by default where `image_ids` are given.
        """
        output_attentions = kwargs.get("output_attentions", self.config.output_attentions)
        output_hidden_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        if region_features is None or (input_ids is None and inputs_embeds is None):
            raise ValueError("A pair is an image and a text: give region_features, and input_ids or inputs_embeds.")
        words, word_mask, history = self.model.encode_words(input_ids, attention_mask, inputs_embeds)
        regions, region_mask = self.model.encode_regions(region_features, region_mask)
        _check_pairs(regions, words)
        logits, attention = self.model.compare(regions, region_mask, words, word_mask, paired=True)
        loss = None
        if return_loss or (return_loss is None and image_ids is not None):
            loss = self.ranking_loss(regions, region_mask, words, word_mask, image_ids)
        return ScanRetrievalOutput(
            loss=loss,
            logits=logits,
            word_states=words,
            region_states=regions,
            hidden_states=history if output_hidden_states else None,
            attentions=(attention,) if output_attentions else None,
        )

    def ranking_loss(
        self,
        region_states: torch.Tensor,
        region_mask: torch.Tensor,
        word_states: torch.Tensor,
        word_mask: torch.Tensor,
        image_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The hinge loss (section 3.2) of this process's pairs against those of all processes.

        Args:
            region_states, region_mask, word_states, word_mask:
                As `encode_regions` and `encode_words` give them; every process has as many pairs.
            image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Which image each pair shows.

        Returns:
            `torch.Tensor`: a scalar; its mean over the processes is the loss of the whole batch.
        """
        all_regions, all_words = (gather(pad_to_longest(states)) for states in (region_states, word_states))
        all_region_mask, all_word_mask = (
            gather_without_gradient(pad_to_longest(mask.to(torch.uint8))).bool() for mask in (region_mask, word_mask)
        )
        image_to_text = self.model.compare(region_states, region_mask, all_words, all_word_mask)[0]  # [B, N]
        is_alone = all_words is word_states
        text_to_image = (
            image_to_text.t()
            if is_alone
            else self.model.compare(all_regions, all_region_mask, word_states, word_mask)[0].t()
        )
        return hinge_ranking_loss(
            image_to_text,
            self.config.margin,
            self.config.hardest_negatives,
            text_to_image=text_to_image,
            image_ids=image_ids,
        )

    def encode_images(
        self, region_features: torch.Tensor, region_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What `match` needs of images, which `hf_mmunify.evaluation.RetrievalEvaluator` keeps.

        Args:
            region_features, region_mask: As `forward` takes them.

        Returns:
            `region_states` `[B, R, D]` and `region_mask` `[B, R]`.
        """
        states, mask = self.model.encode_regions(region_features, region_mask)
        return {"region_states": states, "region_mask": mask}

    def encode_texts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What `match` needs of texts.

        Args:
            input_ids, attention_mask: As `forward` takes them.

        Returns:
            `word_states` `[B, T, D]` and `word_mask` `[B, T]`.
        """
        states, mask, _ = self.model.encode_words(input_ids, attention_mask)
        return {"word_states": states, "word_mask": mask}

    def match(
        self,
        images: dict[str, torch.Tensor],
        texts: dict[str, torch.Tensor],
        similarities: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of aligned pairs.

        Args:
            images, texts: What `encode_images` and `encode_texts` give, of as many images as texts.
            similarities: Not used: there is no embedding of an image or a text as a whole.

        Returns:
            `torch.Tensor` of shape `(P,)`.
        """
        return self.model.compare(**images, **texts, paired=True)[0]


__all__ = ["ScanForImageTextRetrieval", "ScanModel", "ScanPreTrainedModel"]
