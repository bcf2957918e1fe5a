"""FLIP's masking, its two ways with padding, its fixed positions, and bad input."""

import pytest
import torch
from golden_case import GOLDEN, GoldenCase
from huggingface_hub.errors import StrictDataclassError
from tiny import TINY

from hf_mmunify.conversion.errors import WrongConfigError
from hf_mmunify.conversion.flip import convert
from hf_mmunify.models.flip import FlipConfig, FlipModel
from hf_mmunify.models.flip.modeling_flip import sin_cos_positions


ROW = TINY["flip"]
BATCH = ROW.batch()
TEXT = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
IMAGE = {"pixel_values": BATCH["pixel_values"]}


def model_with(**vision) -> FlipModel:
    model = ROW.model("AutoModel")
    for name, value in vision.items():
        setattr(model.vision_model.config, name, value)
    return model


def test_training_encodes_some_patches_and_evaluation_all():
    model = model_with(mask_ratio=0.75)
    draw = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    states = lambda **given: model(**BATCH, **given).vision_model_output.last_hidden_state  # noqa: E731
    assert states().shape[1] == 1 + 16
    model.train()
    first, second, third = states(generator=draw(0)), states(generator=draw(0)), states(generator=draw(1))
    assert first.shape[1] == 1 + 4 and torch.equal(first, second) and not torch.equal(first, third)
    model.vision_model.config.mask_ratio = 0.0  # unmasked tuning
    assert states().shape[1] == 1 + 16
    model.vision_model.config.mask_ratio = 0.99
    assert states().shape[1] == 1 + 1  # never none


@torch.no_grad()
def test_kept_patches_know_their_place():
    model, everything = model_with(), torch.arange(16).expand(4, -1)
    whole = model(**BATCH).image_embeds
    torch.testing.assert_close(model(**BATCH, patch_indices=everything.flip(1)).image_embeds, whole)
    kept = torch.tensor([[0, 5, 9]]).expand(4, -1)
    changed = {**BATCH, "pixel_values": BATCH["pixel_values"].clone()}
    changed["pixel_values"][:, :, 24:, 24:] += 1  # the last patch, which is not encoded
    same, other = (model(**batch, patch_indices=kept).image_embeds for batch in (BATCH, changed))
    assert torch.equal(same, other) and not torch.equal(model(**changed).image_embeds, whole)


def test_positions_are_those_of_columns_and_rows():
    table = sin_cos_positions(3, 8)
    assert table.shape == (10, 8) and not table[0].any() and not table.requires_grad
    assert torch.equal(table[1], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))
    row, column = 1, 2
    angles = torch.tensor([1.0, 0.01])
    expected = torch.cat([(place * angles).sin() if wave else (place * angles).cos() for place, wave in
                          ((column, 1), (column, 0), (row, 1), (row, 0))])  # fmt: skip
    torch.testing.assert_close(table[1 + 3 * row + column], expected)
    assert "positions" not in "".join(ROW.model("AutoModel").state_dict())


@torch.no_grad()
def test_padding_is_read_where_the_config_says_so():
    model = ROW.model("AutoModel")
    masked = model(**BATCH).text_embeds
    model.text_model.config.attend_to_padding = True
    read = model(**BATCH).text_embeds
    assert (read - masked).abs().max() > 1e-2
    # whatever the batch was padded to, and on whichever side, a text is read at its full length
    alone = model(TEXT["input_ids"][2:3, :3], BATCH["pixel_values"][:1]).text_embeds
    torch.testing.assert_close(alone, read[2:3])
    left = {name: value.roll(4, dims=1)[2:3] for name, value in TEXT.items()}  # the third has three tokens of seven
    assert left["attention_mask"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    torch.testing.assert_close(model(**left, pixel_values=BATCH["pixel_values"][:1]).text_embeds, read[2:3])


@torch.no_grad()
def test_the_temperature_is_held_within_its_bounds():
    model = ROW.model("AutoModel")
    for value, scale in ((9.0, 100.0), (-3.0, 1.0), (1.0, 2.7182817)):
        model.logit_scale.fill_(value)
        result = model(**BATCH)
        torch.testing.assert_close(result.logits_per_image, scale * result.image_embeds @ result.text_embeds.T)


@torch.no_grad()
def test_the_retrieval_protocol_is_the_forward_pass():
    model = ROW.model("AutoModelForImageTextRetrieval")
    images, texts = model.encode_images(**IMAGE), model.encode_texts(**TEXT)
    result = model(**BATCH)
    scale = model.logit_scale.exp()
    scores = model.similarities(images["features"], texts["features"])
    torch.testing.assert_close(scores * scale, result.logits_per_image)


@pytest.mark.parametrize(
    "given, message",
    [
        ({**TEXT, "pixel_values": torch.zeros(4, 3, 32, 24)}, r"\(batch, 3, 32, 32\), got \(4, 3, 32, 24\)"),
        ({**TEXT, "pixel_values": torch.zeros(4, 1, 32, 32)}, r"\(batch, 3, 32, 32\), got \(4, 1, 32, 32\)"),
        ({**TEXT}, r"\(batch, 3, 32, 32\), got None"),
        ({**IMAGE}, r"input_ids of shape \(batch, tokens\).* got None"),
        ({**IMAGE, "input_ids": torch.ones(4, 0).long()}, r"at least one token; got \(4, 0\)"),
        ({**IMAGE, "input_ids": torch.ones(4, 17).long()}, r"at most 16 tokens .* got 17.*truncation=True"),
        ({**BATCH, "patch_indices": torch.zeros(4, 17).long()}, "from 1 to 16; got 17"),
        (
            {**TEXT, "pixel_values": torch.zeros(3, 3, 32, 32), "return_loss": True},
            r"as many images as texts.*got \[3, 64\] and \[4, 64\]",
        ),
    ],
)
def test_input_that_cannot_be_right_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        ROW.model("AutoModel")(**given)


@pytest.mark.parametrize(
    "vision, message",
    [
        ({"mask_ratio": 1.0}, "0 <= mask_ratio < 1, got 1.0"),
        ({"pooling": "max"}, "'mean' .* or 'class' .* got 'max'"),
        ({"image_size": 30, "patch_size": 8}, "image_size=30, patch_size=8"),
    ],
)
def test_configs_that_make_no_model_are_refused(vision, message):
    with pytest.raises(StrictDataclassError, match=message):
        FlipConfig(vision_config=vision)


def test_a_checkpoint_without_its_config_is_refused():
    case = GoldenCase(GOLDEN / "flip" / "default.json")
    with pytest.raises(WrongConfigError, match=r"how many heads .*flip_large16_laion2b_v2, flip_huge14_laion2b_v2"):
        convert(case.state_dict())
    model = convert({"optimizer": {"target": case.state_dict(), "state": {"step": 9}}}, case.info["config"])
    assert model.config.text_config.attend_to_padding and model.config.vision_config.mask_ratio == 0.5
