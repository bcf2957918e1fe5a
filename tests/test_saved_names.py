"""Composed models are saved under the names they have, whatever names a part of theirs had in older transformers."""

import pytest
from safetensors.torch import load_file
from tiny import TINY, auto_class


@pytest.mark.parametrize("model_type", ["albef", "coca", "flamingo"])
def test_a_checkpoint_has_the_names_of_the_model(model_type, tmp_path):
    """`Trainer` resumes by them: with ViT's former names it would leave its weights out, without a word."""
    row = TINY[model_type]
    config = row.config(vision_config={**row.settings["vision_config"], "model_type": "vit"})
    model = auto_class("AutoModel").from_config(config)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() <= model.state_dict().keys()
