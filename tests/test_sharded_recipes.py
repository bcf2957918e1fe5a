"""`fsdp2.yaml` and `zero3.yaml` as `accelerate launch` runs them: two processes are as one with the whole model."""

import pytest
from accelerate import FullyShardedDataParallelPlugin
from flamingo_parts import attach, language_model, vision_model


@pytest.mark.parametrize("vision", ["clip_vision_model", "siglip_vision_model", "vit"])
def test_fsdp_finds_every_layer_that_it_divides_a_flamingo_by(vision):
    """CLIP's and SigLIP's vision towers name the embeddings of their text towers too."""
    model = attach(language_model("opt"), vision_model(vision))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    divided = {layer.__name__ for layer in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]}
    assert divided >= {"OPTDecoderLayer", "FlamingoGatedCrossAttention", "FlamingoResamplerLayer"}
    assert divided == model._no_split_modules
