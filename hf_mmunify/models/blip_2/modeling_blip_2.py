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
"""BLIP-2 before its language model: the Q-Former's first stage, and retrieval, trained as published.

    pixel_values [B, 3, H, W] -> vision_model -> [B, P, D_v] --.
                                 (frozen in the paper)          | cross-attention of the queries, every second layer
                                                                v
    query_tokens [Q, D] ------------------------------> Q-Former -> [B, Q, D] -> vision_projection [B, Q, E]
    input_ids [B, T] -> embeddings [B, T, D] ---------> Q-Former -> [B, T, D] -> text_projection of [CLS] [B, E]
                        queries and text together ----> Q-Former -> itm_head of each query, mean: [B, 2]
                        queries, then text, causally -> Q-Former -> generation_head: [B, T, vocabulary]

B rows, P patches, T words, Q queries, D width of the Q-Former, E of the space that images and texts share, N pairs of
all processes. How alike an image and a text are is the largest cosine of its queries with the text.

Paper: BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models (Li et
al., 2023), section 3.2 (the three objectives, figure 2), 4.4 (retrieval is tuned with the same).
Original: salesforce/LAVIS@506965b9c4a18c1e565bd32acaccabe0198433f7, lavis/models/blip2_models/{blip2_qformer,Qformer,
blip2}.py.

The towers are those of transformers, with their parameter names, so that `Blip2ForImageTextRetrieval` checkpoints of
the Hub load; what they lack, and transformers does not have, starts fresh: `temperature`, and the head that writes.
What differs from the original, and why: features of other processes are gathered with their gradient, so that two
processes train as one with the whole batch does; the text is written by one pass over queries and words under a mask
that hides the words from the queries, which gives the keys and values that the original hands over in a cache, and the
queries' own states with them. From transformers: fresh queries are drawn, because equal ones stay equal for ever.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Blip2Config, Blip2QFormerConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from ...layers import QuantizedLoadingMixin
from ...losses import (
    causal_language_modeling_loss,
    gather,
    gather_without_gradient,
    image_text_matching_loss,
    matching_targets,
    pad_to_longest,
    rank,
    sample_hard_negatives,
    world_size,
)


INITIAL_TEMPERATURE = 0.07
LABEL_SMOOTHING = 0.1
"""Of the contrastive and of the generation loss, as in the original."""


@auto_docstring(custom_intro="How images and texts match, and the losses of retrieval and of the first stage.")
@dataclass
class Blip2ImageTextOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when it was asked for):
        The sum of the losses below.
    loss_itc (`torch.FloatTensor` of shape `()`, *optional*):
        Image-text contrast.
    loss_itm (`torch.FloatTensor` of shape `()`, *optional*):
        Image-text matching.
    loss_lm (`torch.FloatTensor` of shape `()`, *optional*, of pre-training):
        The text, written while the image is looked at.
    logits_per_image (`torch.FloatTensor` of shape `(num_images, num_texts)`, or `(batch_size, 2)`):
        Largest cosine of an image's queries with each text; or, by the matching head, scores of "no" and "yes".
    logits_per_text (`torch.FloatTensor` of shape `(num_texts, num_images)`, or `(2, batch_size)`):
        Their transpose.
    text_embeds (`torch.FloatTensor` of shape `(num_texts, image_text_hidden_size)`):
        The normalised texts; by the matching head, states of queries and words.
    image_embeds (`torch.FloatTensor` of shape `(num_images, num_query_tokens, image_text_hidden_size)`):
        The normalised queries; by the matching head, states of the patches.
    itm_logits (`torch.FloatTensor` of shape `(3 * batch_size, num_query_tokens, 2)`, *optional*, with the loss):
        Scores of each query: pairs that belong together; texts with another image; images with another text.
    lm_logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*, of pre-training):
        Scores of the word that follows each.
    text_model_output (`BaseModelOutputWithPooling`):
        What the Q-Former gave for the texts.
    vision_model_output (`BaseModelOutputWithPooling`):
        What the vision tower gave.
    """

    loss: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_lm: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    lm_logits: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, those of the towers as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def decoder_start_token_id(config: Blip2QFormerConfig) -> int:
    """The token in whose place a text begins to be written: `config.decoder_start_token_id`, a plain attribute.

    By default the last of the vocabulary, where the original adds `[DEC]` to BERT's.
    """
    return vars(config).get("decoder_start_token_id", config.vocab_size - 1)


def cast_for(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """What the Q-Former gives, which stays in float32, as `layer` takes it; one in 4 or 8 bits casts it itself."""
    return states.to(layer.weight.dtype) if layer.weight.is_floating_point() else states


class Blip2GenerationHead(nn.Module):
    """BERT's head over the words; its last matrix is that of the word embeddings."""

    def __init__(self, config: Blip2QFormerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layernorm(self.activation(self.dense(hidden_states))))  # [B, T, vocabulary]


class Blip2ForImageTextRetrieval(QuantizedLoadingMixin, transformers.Blip2ForImageTextRetrieval):
    """BLIP-2's first stage for retrieval: contrast, and matching with hard negatives of all processes.

    `image_ids`, or `return_loss=True`, make `forward` compute the loss; then every process must hold as many pairs as
    the others (`dataloader_drop_last=True`). The published tuning adds the loss of writing the text: for it take
    [`Blip2ForPreTraining`], and load this class from what it saves.

    Attributes:
        choose_negatives (`Callable`, *optional*):
            What decides on hard negatives in the place of chance, as [`~hf_mmunify.losses.sample_hard_negatives`]
            takes it; asked for an image of each text first, then for a text of each image. Set it on the model.
    """

    accepts_loss_kwargs = False  # means over pairs and over words of all processes: Trainer must not count tokens
    choose_negatives: Callable[[torch.Tensor], torch.Tensor] | None = None
    input_modalities = ("image", "text")
    _keys_to_ignore_on_load_missing = [r"temperature"]
    _keys_to_ignore_on_load_unexpected = [r"generation_head\..*"]

    def __init__(self, config: Blip2Config):
        config.qformer_config.use_qformer_text_input = True  # the stages before the language model always read text
        super().__init__(config)

    def add_parts(self) -> None:
        """What the native class lacks."""
        self.temperature = nn.Parameter(torch.full((1,), INITIAL_TEMPERATURE))

    def post_init(self) -> None:
        # The native class calls this last: what it lacks is added now, so that all is initialised and tied together
        if "temperature" not in dict(self.named_parameters(recurse=False)):
            self.add_parts()
        super().post_init()
        # Whole layers, none within another; and the words stay with the root, because the head that writes shares them
        self._no_split_modules = {"Blip2EncoderLayer", "Blip2QFormerLayer", "Blip2VisionEmbeddings"}

    @classmethod
    def is_custom_code(cls) -> bool:
        # The shortcut that loading takes for code outside of transformers skips what another module initialises
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.query_tokens, std=self.config.qformer_config.initializer_range)
            init.constant_(self.temperature, INITIAL_TEMPERATURE)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As of any model; the words are the Q-Former's, and the token that begins a written text stays the same."""
        config = self.config.qformer_config
        config.decoder_start_token_id = decoder_start_token_id(config)
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        config.vocab_size = embeddings.num_embeddings
        return embeddings

    def freeze_vision_model(self) -> None:
        """Train the Q-Former alone, as the paper does: the tower stays as it is, its last normalisation learns."""
        self.vision_model.requires_grad_(False)
        self.vision_model.post_layernorm.requires_grad_(True)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        use_image_text_matching_head: bool | None = False,
        return_loss: bool | None = None,
        image_ids: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Blip2ImageTextOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, 3, height, width)`):
                The images.
            input_ids (`torch.LongTensor` of shape `(num_texts, sequence_length)`):
                The texts; with a loss, text i belongs to image i. The image tokens that transformers' processor puts
                before them for some checkpoints are left out.
            attention_mask (`torch.LongTensor` of shape `(num_texts, sequence_length)`, *optional*):
                1 for words, 0 for padding.
            use_image_text_matching_head (`bool`, *optional*, defaults to `False`):
                Whether each image is matched with its text by the head, instead of compared with every text.
            return_loss (`bool`, *optional*):
                Whether to compute the loss; by default where `image_ids` are given.
            image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Which image each pair shows: equal numbers, on whatever process, are matches alike, never negatives.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether images of another size than the config's are encoded, with interpolated positions.
            generator (`torch.Generator`, *optional*):
                What draws the hard negatives; seeded alike on all processes.

        Returns:
            [`Blip2ImageTextOutput`].

        Raises:
            ValueError: when one modality is missing, or what must be pairs is not.
        """
        wants_loss = image_ids is not None if return_loss is None else return_loss
        self._check(pixel_values, input_ids, image_ids, are_pairs=wants_loss or use_image_text_matching_head)
        input_ids, attention_mask = self._words(input_ids, attention_mask)
        vision = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        patches = vision.last_hidden_state  # [B, P, D_v]
        if use_image_text_matching_head and not wants_loss:
            matched = self._read_together(patches, input_ids, attention_mask, **kwargs)
            logits = self._matching_logits(matched.last_hidden_state).mean(dim=1)  # [B, 2]
            return Blip2ImageTextOutput(
                logits_per_image=logits,
                logits_per_text=logits.T,
                text_embeds=matched.last_hidden_state,
                image_embeds=patches,
                text_model_output=matched,
                vision_model_output=vision,
            )

        written = self._write(patches, input_ids, attention_mask) if wants_loss else None
        queries = self._look(patches) if written is None else written[0]  # [B, Q, D]
        text = self._read(input_ids, attention_mask, **kwargs)
        image_embeds = self._image_features(queries)  # [B, Q, E]
        text_embeds = self._text_features(text.last_hidden_state)  # [B, E]
        similarities = self.similarities(image_embeds, text_embeds)  # [B_i, B_t]
        found = Blip2ImageTextOutput(
            logits_per_image=similarities,
            logits_per_text=similarities.T,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )
        if wants_loss:
            self._add_losses(found, patches, input_ids, attention_mask, image_ids, generator)
            if written is not None:
                self._add_generation_loss(found, written[1], input_ids, attention_mask)
            losses = [loss for loss in (found.loss_itc, found.loss_itm, found.loss_lm) if loss is not None]
            found.loss = torch.stack(losses).sum()
        return found

    # What the Q-Former does ---------------------------------------------------------------------------------------

    def _look(self, patches: torch.Tensor) -> torch.Tensor:
        """The queries [B, Q, D] after they have looked at patches [B, P, D_v]."""
        queries = self.query_tokens.expand(len(patches), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=patches, return_dict=True).last_hidden_state

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The words [B, T, D] of texts that are read alone."""
        return self.qformer(
            query_embeds=self._embedded(input_ids),
            query_length=0,
            attention_mask=attention_mask,
            return_dict=True,
            **kwargs,
        )

    def _read_together(
        self, patches: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Queries and words [B, Q + T, D], each of which sees all of both."""
        queries = self.query_tokens.expand(len(patches), -1, -1)
        return self.qformer(
            query_embeds=torch.cat([queries, self._embedded(input_ids)], dim=1),
            query_length=queries.shape[1],
            attention_mask=self._with_queries(attention_mask),
            encoder_hidden_states=patches,
            return_dict=True,
            **kwargs,
        )

    def _write(
        self, patches: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Queries [B, Q, D] and words [B, T, D] of texts that are written; nothing in a model without the head."""
        return None

    def _embedded(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Words [B, T, D] at their positions; the native module adds in place, which inputs that require gradients
        (LoRA on 4 bits) refuse."""
        positions = self.embeddings.position_ids[:, : input_ids.shape[1]]
        return self.embeddings.word_embeddings(input_ids) + self.embeddings.position_embeddings(positions)

    def _with_queries(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mask [B, Q + T] of queries and words."""
        return nn.functional.pad(attention_mask, (self.config.num_query_tokens, 0), value=1)

    def _image_features(self, queries: torch.Tensor) -> torch.Tensor:
        queries = cast_for(self.vision_projection, queries)
        return nn.functional.normalize(self.vision_projection(queries), dim=-1)

    def _text_features(self, words: torch.Tensor) -> torch.Tensor:
        words = cast_for(self.text_projection, words[:, 0])
        return nn.functional.normalize(self.text_projection(words), dim=-1)

    def _matching_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Scores [B, Q, 2] of each query, from states [B, Q + T, D]."""
        queries = hidden_states[:, : self.config.num_query_tokens]
        return self.itm_head(cast_for(self.itm_head, queries))

    # Losses -------------------------------------------------------------------------------------------------------

    def _add_losses(
        self,
        found: Blip2ImageTextOutput,
        patches: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_ids: torch.Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        """Contrast over the pairs of all processes, and matching with the hardest of them (section 3.2)."""
        batch = len(patches)
        own = slice(rank() * batch, (rank() + 1) * batch)
        similarities = self.similarities(gather(found.image_embeds), gather(found.text_embeds))  # [N, N]
        logits = similarities.float() / self.temperature.float()
        ids = torch.arange(len(logits), device=logits.device)
        if image_ids is not None:
            ids = gather_without_gradient(image_ids.to(logits.device))  # [N]
        targets = matching_targets(ids, ids)  # [N, N]
        contrast = [
            nn.functional.cross_entropy(x, targets, label_smoothing=LABEL_SMOOTHING) for x in (logits, logits.T)
        ]
        found.loss_itc = (contrast[0] + contrast[1]) / 2

        is_same = ids[own, None] == ids  # [B, N]
        image_of_text, text_of_image = (
            sample_hard_negatives(
                x.detach()[own].masked_fill(is_same, float("-inf")).softmax(dim=1),
                generator,
                choose=self.choose_negatives,
            )
            for x in (logits.T, logits)
        )
        input_ids, attention_mask = pad_to_longest(input_ids), pad_to_longest(attention_mask)
        other_ids = gather_without_gradient(input_ids)[text_of_image]
        other_mask = gather_without_gradient(attention_mask)[text_of_image]
        matched = self._read_together(
            torch.cat([patches, gather(patches)[image_of_text], patches]),
            torch.cat([input_ids, input_ids, other_ids]),
            torch.cat([attention_mask, attention_mask, other_mask]),
        )
        found.itm_logits = self._matching_logits(matched.last_hidden_state)  # [3 * B, Q, 2]
        belong = torch.zeros(3 * batch, dtype=torch.long, device=patches.device)
        belong[:batch] = 1
        found.loss_itm = image_text_matching_loss(found.itm_logits.mean(dim=1), belong)

    # Evaluation ---------------------------------------------------------------------------------------------------

    def encode_images(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """What retrieval keeps of images `[B, 3, H, W]`: normalised `features` `[B, Q, E]`, `hidden_states` of patches
        `[B, P, D_v]`."""
        patches = self.vision_model(pixel_values=pixel_values, return_dict=True).last_hidden_state
        return {"features": self._image_features(self._look(patches)), "hidden_states": patches}

    def encode_texts(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What retrieval keeps of texts `[B, T]`: normalised `features` `[B, E]`, and the texts themselves."""
        input_ids, attention_mask = self._words(input_ids, attention_mask)
        words = self._read(input_ids, attention_mask).last_hidden_state
        return {"features": self._text_features(words), "input_ids": input_ids, "attention_mask": attention_mask}

    def similarities(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """The largest cosine `[I, T]` of each image's queries `[I, Q, E]` with each text `[T, E]`."""
        return (image_features @ text_features.T).amax(dim=1)

    def match(
        self, images: dict[str, torch.Tensor], texts: dict[str, torch.Tensor], similarities: torch.Tensor
    ) -> torch.Tensor:
        """Scores `[P]` of aligned pairs as the original ranks them: the matching head's "yes", plus similarity."""
        hidden_states = self._read_together(
            images["hidden_states"], texts["input_ids"], texts["attention_mask"]
        ).last_hidden_state
        return self._matching_logits(hidden_states)[..., 1].mean(dim=1) + similarities

    # Input --------------------------------------------------------------------------------------------------------

    def _words(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts without the image tokens that transformers' processor puts before them, padded on the right, and
        their masks."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        image_token = self.config.image_token_index
        # CODEPATH: the Hub's retrieval checkpoints have an image token, those converted from the original have none
        if image_token is not None:
            head = input_ids[:, : self.config.num_query_tokens]
            if (head == image_token).all():  # not where texts are tokenised without their images
                input_ids, attention_mask = input_ids[:, head.shape[1] :], attention_mask[:, head.shape[1] :]
        words, longest = input_ids.shape[1], self.config.qformer_config.max_position_embeddings
        if words > longest:
            raise ValueError(f"The Q-Former reads at most {longest} words, got {words}: truncate the texts.")
        # A text begins at position 0 with [CLS], whichever side its padding is on
        starts = attention_mask.long().argmax(dim=1, keepdim=True)  # [B, 1]
        places = (torch.arange(words, device=starts.device) + starts) % words  # [B, T]
        return input_ids.gather(1, places), attention_mask.gather(1, places)

    def _check(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        image_ids: torch.Tensor | None,
        are_pairs: bool,
    ) -> None:
        """Names what cannot be right of the inputs."""
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(
                f"Blip2 compares images with texts, but got no {missing}. For one of the two alone there are "
                "`encode_images` and `encode_texts`."
            )
        images, texts = len(pixel_values), len(input_ids)
        if images == 0 or texts == 0:
            raise ValueError(f"The batch is empty: {images} images, {texts} texts. Pass at least one of each.")
        size = self.config.vision_config.image_size
        if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"pixel_values are images (batch, 3, height, width), here of size {size}; got "
                f"{tuple(pixel_values.shape)}."
            )
        if are_pairs and images != texts:
            raise ValueError(
                f"Matching and the loss are of pairs: expected as many texts as images, got {images} images and "
                f"{texts} texts. Repeat an image for each of its texts, and give the repeats one number in image_ids."
            )
        if image_ids is not None and image_ids.shape != (images,):
            raise ValueError(
                f"image_ids has one number for each pair: expected shape {(images,)}, got {tuple(image_ids.shape)}."
            )


class Blip2ForPreTraining(Blip2ForImageTextRetrieval):
    """BLIP-2's first stage: contrast, matching, and the text written from what the queries saw.

    `forward` always computes the loss, unless `return_loss=False`. Its weights are those of
    [`Blip2ForImageTextRetrieval`] and a `generation_head`; each class loads what the other saves.
    """

    _keys_to_ignore_on_load_missing = [r"temperature", r"generation_head\..*"]
    _keys_to_ignore_on_load_unexpected = []
    _tied_weights_keys = {"generation_head.decoder.weight": "embeddings.word_embeddings.weight"}

    def add_parts(self) -> None:
        super().add_parts()
        self.generation_head = Blip2GenerationHead(self.config.qformer_config)

    def get_output_embeddings(self) -> nn.Module:
        """The last matrix of the head that writes."""
        return self.generation_head.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.generation_head.decoder = value

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        use_image_text_matching_head: bool | None = False,
        return_loss: bool | None = None,
        image_ids: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Blip2ImageTextOutput:
        r"""As [`Blip2ForImageTextRetrieval`]'s, with the loss of the written text, and the losses by default."""
        return super().forward(
            pixel_values,
            input_ids,
            attention_mask,
            use_image_text_matching_head,
            return_loss=not use_image_text_matching_head if return_loss is None else return_loss,
            image_ids=image_ids,
            interpolate_pos_encoding=interpolate_pos_encoding,
            generator=generator,
            **kwargs,
        )

    def _write(
        self, patches: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        num_queries = self.config.num_query_tokens
        queries = self.query_tokens.expand(len(patches), -1, -1)
        states = torch.cat([queries, self._embedded(self._begun(input_ids))], dim=1)  # [B, Q + T, D]
        mask = create_bidirectional_mask(
            config=self.qformer.config,
            inputs_embeds=states,
            attention_mask=self._with_queries(attention_mask),
            # Queries see queries; a word sees them and the words up to itself.
            and_mask_function=lambda batch, head, seer, seen: (
                (seen < num_queries) | (seen <= seer) & (seer >= num_queries)
            ),
        )
        states = self.qformer(
            query_embeds=states,
            query_length=num_queries,
            attention_mask=mask,
            encoder_hidden_states=patches,
            return_dict=True,
        ).last_hidden_state
        return states[:, :num_queries], states[:, num_queries:]

    def _begun(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Texts [B, T] with the token that begins a written one in the place of [CLS]."""
        start = torch.full_like(input_ids[:, :1], decoder_start_token_id(self.config.qformer_config))
        return torch.cat([start, input_ids[:, 1:]], dim=1)

    def _add_generation_loss(
        self, found: Blip2ImageTextOutput, words: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> None:
        """The mean over the words of all processes."""
        found.lm_logits = self.generation_head(cast_for(self.generation_head.dense, words))
        labels = self._begun(input_ids).masked_fill(attention_mask == 0, -100)  # [B, T]
        count = (labels[:, 1:] != -100).sum()
        if world_size() > 1:
            count = gather_without_gradient(count[None]).sum() / world_size()
        found.loss_lm = causal_language_modeling_loss(
            found.lm_logits, labels, num_items_in_batch=count, label_smoothing=LABEL_SMOOTHING
        )


__all__ = [
    "Blip2ForImageTextRetrieval",
    "Blip2ForPreTraining",
    "Blip2GenerationHead",
    "Blip2ImageTextOutput",
    "decoder_start_token_id",
]
