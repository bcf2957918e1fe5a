"""Files as OpenFlamingo publishes them: the adapter and the embeddings; the frozen parts come from elsewhere."""

from pathlib import Path

import pytest
import torch
from golden_case import GoldenCase

from hf_mmunify.conversion.errors import ConversionError, WrongConfigError
from hf_mmunify.conversion.flamingo import convert


GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "flamingo"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The whole model, its frozen parts as folders, a training checkpoint of the rest, and the authors' arguments."""
    case = GoldenCase(GOLDEN / "opt_clip.json")
    weights, config = case.state_dict(), case.info["config"]
    whole = convert(weights, config)
    folder = tmp_path_factory.mktemp("published")
    whole.model.vision_model.save_pretrained(folder / "vision")
    whole.model.text_model.save_pretrained(folder / "language")
    kept = {f"module.{key}": weights[key] for key in case.info["published_keys"]}
    torch.save({"epoch": 3, "model_state_dict": kept}, folder / "checkpoint.pt")
    arguments = {
        "clip_vision_encoder_path": str(folder / "vision"),
        "lang_encoder_path": str(folder / "language"),
        "cross_attn_every_n_layers": config["cross_attn_every_n_layers"],
        "eoc_token_id": config["eoc_token_id"],
        "media_token_id": config["media_token_id"],
    }
    return whole, folder / "checkpoint.pt", arguments


def test_a_published_file_and_its_parts_are_the_whole_model(published):
    whole, checkpoint, arguments = published
    model = convert(checkpoint, arguments)
    expected = whole.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.config.decoder_layers_path == "model.decoder.layers"
    assert model.config.image_token_id == whole.config.image_token_id


def test_another_language_model_is_refused(published, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    _, checkpoint, arguments = published
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=122)).save_pretrained(tmp_path)
    with pytest.raises(WrongConfigError, match="made for another language model"):
        convert(checkpoint, {**arguments, "lang_encoder_path": str(tmp_path)})


def test_a_missing_name_is_named(published):
    _, checkpoint, arguments = published
    with pytest.raises(ConversionError, match="lang_encoder_path"):
        convert(checkpoint, {name: value for name, value in arguments.items() if name != "lang_encoder_path"})
