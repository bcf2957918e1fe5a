"""The published sizes, on the meta device: what the stated hyperparameters give, beside what was reported."""

import pytest
import torch

from hf_mmunify.models.flamingo import FLAMINGO_PRESETS, FlamingoConfig
from hf_mmunify.models.flamingo.modeling_flamingo import FlamingoAdapter


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def adapter(preset: str, width: int, layers: int, vision: int) -> FlamingoAdapter:
    text = {"model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 16}
    config = FlamingoConfig.from_preset(preset, text_config=text, vision_hidden_size=vision)
    with torch.device("meta"):
        return FlamingoAdapter(config, None)


# preset, width and layers of the language model, blocks, their parameters in billions
PAPER = [
    ("flamingo-3b", 2048, 24, 24, 1.16),  # the paper: 1.2
    ("flamingo-9b", 4096, 40, 10, 1.80),  # the paper: 1.8 in the text, 1.6 in the table
    ("flamingo-80b", 8192, 80, 12, 8.36),  # the paper: 10, which these hyperparameters do not give
]


@pytest.mark.parametrize("preset, width, layers, blocks, billions", PAPER, ids=[row[0] for row in PAPER])
def test_the_papers_sizes(preset, width, layers, blocks, billions):
    made = adapter(preset, width, layers, vision=1536)
    assert len(made.layers) == blocks
    assert round(parameters(made.layers) / 1e9, 2) == billions
    # The paper reports 194 million for these 6 layers of width 1536, 16 heads of 96, hidden width of four times 1536
    assert round(parameters(made.resampler) / 1e6) == 170


def test_the_size_that_openflamingo_3b_prints():
    """Its users report 1,046,992,944 trained parameters, among them the embeddings of 50,280 tokens."""
    made = adapter("openflamingo-3b", 2048, 24, vision=1024)
    assert parameters(made) + 50280 * 2048 == 1_046_992_944


def test_the_sizes_of_the_published_openflamingo_files():
    assert parameters(adapter("openflamingo-4b", 2560, 32, vision=1024)) == 960_763_936
    assert parameters(adapter("openflamingo-9b", 4096, 32, vision=1024)) == 1_178_834_960


def test_presets_are_configs_and_yield_to_what_is_asked():
    text = {"model_type": "llama", "num_hidden_layers": 8}
    for name in FLAMINGO_PRESETS:
        assert FlamingoConfig.from_preset(name, text_config=text).cross_attention_layers
    assert FlamingoConfig.from_preset("flamingo-9b", text_config=text).cross_attention_layers == [0, 4]
    assert FlamingoConfig.from_preset("openflamingo-9b", text_config=text).cross_attention_layers == [3, 7]
    assert FlamingoConfig.from_preset("flamingo-3b", text_config=text, hidden_act="gelu").hidden_act == "gelu"
    with pytest.raises(ValueError, match="There is no preset 'flamingo-1b'; there are flamingo-3b, "):
        FlamingoConfig.from_preset("flamingo-1b")
