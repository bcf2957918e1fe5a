"""SCAN checkpoints -> `ScanForImageTextRetrieval`, and back.

The authors' `model_best.pth.tar` holds `model`, a list of two state dicts (of the image and of the text encoder), and
`opt`, the options of training as an `argparse.Namespace`, which are read from there where no `original_config` is
given. All sizes are read off the tensors. The vocabulary is a file of its own, `{data_name}_vocab.json` in the folder
`vocab_path`; a processor is made of it where `original_config` names both and the file is there.

There are no manifests of published sizes: the repository publishes features, vocabularies and the commands of
training, and says nowhere how many words a vocabulary has.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_mmunify.conversion.engine import Rename, Reshape, Rule, Source, WrongConfigError, bind
from hf_mmunify.models.scan import ScanConfig, ScanProcessor, scan_tokenizer


MODEL_TYPE = "scan"

SOURCE = Source(
    repository="kuanghuei/SCAN",
    commit="806355736e3c9158c9bcf2f0501ed1e961a893e9",
    code_license="Apache-2.0",
    weights_license="none is stated; the code is under Apache-2.0",
)

HEADS = {None: "ScanForImageTextRetrieval", "retrieval": "ScanForImageTextRetrieval"}

AGGREGATIONS = {"LogSumExp": "lse", "Mean": "mean", "Max": "max", "Sum": "sum"}
"""The original's names of how scores are aggregated, and ours."""


def _layer(suffix: str, direction: str) -> list[Rule]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ours = "model.text_encoder.layers.{}." + direction
    return [Rename(f"1.rnn.{name}_l{{}}{suffix}", f"{ours}.{name}") for name in names]


KEY_MAP = [
    Rename("0.fc.weight", "model.region_projection.weight"),
    Rename("0.fc.weight_v", "model.region_projection.weight_v"),
    Reshape("0.fc.weight_g", "model.region_projection.weight_g", (1,), ()),  # 0-d there, which `fully_shard` refuses
    Rename("0.fc.bias", "model.region_projection.bias"),
    Rename("1.embed.weight", "model.text_encoder.word_embeddings.weight"),
    *_layer("_reverse", "backwards"),
    *_layer("", "forwards"),
]


def config_in_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options of training that a checkpoint holds."""
    options = checkpoint.get("opt")
    return options if options is None or (isinstance(options, dict) and options) else dict(vars(options))


def config_from_original(original_config: dict[str, Any] | None, state_dict: dict[str, torch.Tensor]) -> ScanConfig:
    """The options of `train.py` that shape the model; sizes are read off the tensors.

    Raises:
        WrongConfigError: when there are no options.
    """
    if original_config is None:
        raise WrongConfigError(
            "The checkpoint holds no options (`opt`): pass those that it was trained with, at least cross_attn, "
            "agg_func, lambda_softmax and lambda_lse, as `train.py` of kuanghuei/SCAN names them."
        )
    options = {**DEFAULTS, **original_config}
    projection = state_dict["0.fc.weight_v" if options["precomp_enc_type"] == "weight_norm" else "0.fc.weight"]
    vocabulary, width = state_dict["1.embed.weight"].shape
    return ScanConfig(
        vocab_size=vocabulary,
        word_embedding_size=width,
        hidden_size=projection.shape[0],
        region_feature_size=projection.shape[1],
        num_hidden_layers=options["num_layers"],
        bidirectional=options["bi_gru"],
        region_weight_norm=options["precomp_enc_type"] == "weight_norm",
        normalize_regions=not options["no_imgnorm"],
        normalize_words=not options["no_txtnorm"],
        cross_attention=options["cross_attn"],
        attention_normalization=options["raw_feature_norm"],
        attention_scale=options["lambda_softmax"],
        aggregation=AGGREGATIONS[options["agg_func"]],
        aggregation_scale=options["lambda_lse"],
        margin=options["margin"],
        hardest_negatives=options["max_violation"],
    )


DEFAULTS = {
    "num_layers": 1,
    "bi_gru": False,
    "precomp_enc_type": "basic",
    "no_imgnorm": False,
    "no_txtnorm": False,
    "cross_attn": "t2i",
    "raw_feature_norm": "clipped_l2norm",
    "lambda_softmax": 9.0,
    "agg_func": "LogSumExp",
    "lambda_lse": 6.0,
    "margin": 0.2,
    "max_violation": False,
}
"""What `train.py` takes where an option is not given."""


def processor(original_config: dict[str, Any] | None) -> ScanProcessor | None:
    """The words of the vocabulary file that the options name; `None` where there is no such file."""
    options = original_config or {}
    path = Path(options.get("vocab_path", "."), f"{options.get('data_name')}_vocab.json")
    if not path.is_file():
        return None
    tokenizer = scan_tokenizer(json.loads(path.read_text(encoding="utf-8"))["word2idx"])
    return ScanProcessor(tokenizer, region_feature_size=options.get("img_dim", 2048))


convert, export = bind(__name__)
