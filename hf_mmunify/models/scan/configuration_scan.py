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
"""SCAN: the widths of regions and words, and how one attends to the other."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import auto_docstring


SCAN_PRESETS: dict[str, dict] = {
    "f30k-t2i-lse": {"cross_attention": "t2i", "aggregation": "lse", "attention_scale": 9.0, "aggregation_scale": 6.0},
    "f30k-t2i-avg": {"cross_attention": "t2i", "aggregation": "mean", "attention_scale": 9.0},
    "f30k-i2t-lse": {"cross_attention": "i2t", "aggregation": "lse", "attention_scale": 4.0, "aggregation_scale": 5.0},
    "f30k-i2t-avg": {"cross_attention": "i2t", "aggregation": "mean", "attention_scale": 4.0},
    "coco-t2i-lse": {"cross_attention": "t2i", "aggregation": "lse", "attention_scale": 9.0, "aggregation_scale": 6.0},
    "coco-t2i-avg": {"cross_attention": "t2i", "aggregation": "mean", "attention_scale": 9.0},
    "coco-i2t-lse": {
        "cross_attention": "i2t",
        "aggregation": "lse",
        "attention_scale": 4.0,
        "aggregation_scale": 20.0,
    },
    "coco-i2t-avg": {"cross_attention": "i2t", "aggregation": "mean", "attention_scale": 4.0},
}
"""The authors' settings for Flickr30K and COCO (README.md of kuanghuei/SCAN@8063557), by name."""

CROSS_ATTENTIONS = ("t2i", "i2t")
NORMALIZATIONS = ("clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "softmax", "no_norm")
AGGREGATIONS = ("lse", "mean", "max", "sum")


@auto_docstring(checkpoint="kuanghuei/SCAN")
@strict
class ScanConfig(PreTrainedConfig):
    r"""
    vocab_size (`int`, *optional*, defaults to 10000):
        Words of the vocabulary, `<pad>`, `<start>`, `<end>` and `<unk>` included.
    region_feature_size (`int`, *optional*, defaults to 2048):
        Width of the features that a detector gives of a region.
    word_embedding_size (`int`, *optional*, defaults to 300):
        Width of the word embeddings that the GRU reads.
    hidden_size (`int`, *optional*, defaults to 1024):
        Width of the space that regions and words share.
    num_hidden_layers (`int`, *optional*, defaults to 1):
        Layers of the GRU.
    bidirectional (`bool`, *optional*, defaults to `True`):
        Whether the GRU reads texts in both directions; a word is the mean of what both say of it.
    region_weight_norm (`bool`, *optional*, defaults to `False`):
        Whether length and direction of the projection of regions are separate weights (the original's
        `precomp_enc_type="weight_norm"`).
    normalize_regions (`bool`, *optional*, defaults to `True`):
        Whether regions have length 1 in the shared space.
    normalize_words (`bool`, *optional*, defaults to `True`):
        Whether words have length 1 in the shared space.
    cross_attention (`str`, *optional*, defaults to `"t2i"`):
        `"t2i"`: each word attends to the regions, and is compared with what it finds; `"i2t"`: each region to the
        words.
    attention_normalization (`str`, *optional*, defaults to `"clipped_l2norm"`):
        What becomes of the similarities before the softmax, over all that attend to one thing: `"clipped_l2norm"` (the
        paper's: negative ones are shrunk, then all have length 1), `"l2norm"`, `"clipped_l1norm"`, `"l1norm"`,
        `"clipped"`, `"softmax"` or `"no_norm"`.
    attention_scale (`float`, *optional*, defaults to 9.0):
        What the softmax of the attention multiplies similarities by (the original's `lambda_softmax`).
    aggregation (`str`, *optional*, defaults to `"lse"`):
        How the scores of words (or regions) become that of a pair: `"lse"` (log-sum-exp), `"mean"`, `"max"`, `"sum"`.
    aggregation_scale (`float`, *optional*, defaults to 6.0):
        What log-sum-exp multiplies scores by (the original's `lambda_lse`).
    margin (`float`, *optional*, defaults to 0.2):
        By how much a right pair is to be ahead of a wrong one.
    hardest_negatives (`bool`, *optional*, defaults to `True`):
        Whether only the hardest wrong text of an image, and image of a text, counts in the loss, as the authors train
        (`--max_violation`), or all of the batch.

    Example:

    ```python
    >>> from hf_mmunify.models.scan import SCAN_PRESETS, ScanConfig, ScanForImageTextRetrieval

    >>> config = ScanConfig(vocab_size=100, hidden_size=64, **SCAN_PRESETS["f30k-t2i-avg"])
    >>> model = ScanForImageTextRetrieval(config)
    ```
    """

    model_type = "scan"

    vocab_size: int = 10000
    region_feature_size: int = 2048
    word_embedding_size: int = 300
    hidden_size: int = 1024
    num_hidden_layers: int = 1
    bidirectional: bool = True
    region_weight_norm: bool = False
    normalize_regions: bool = True
    normalize_words: bool = True
    cross_attention: str = "t2i"
    attention_normalization: str = "clipped_l2norm"
    attention_scale: float = 9.0
    aggregation: str = "lse"
    aggregation_scale: float = 6.0
    margin: float = 0.2
    hardest_negatives: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def validate_attention(self):
        for name, options in (
            ("cross_attention", CROSS_ATTENTIONS),
            ("attention_normalization", NORMALIZATIONS),
            ("aggregation", AGGREGATIONS),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is one of {', '.join(options)}; got {getattr(self, name)!r}.")

    def validate_sizes(self):
        for name in ("vocab_size", "region_feature_size", "word_embedding_size", "hidden_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}.")


__all__ = ["SCAN_PRESETS", "ScanConfig"]
