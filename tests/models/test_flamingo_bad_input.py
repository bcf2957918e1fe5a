"""What Flamingo's model says about input that cannot be right: what was expected, what came, and what to do."""

from functools import partial

import pytest
import torch
from flamingo_parts import ADAPTER, IMAGE, VOCAB, attach, flamingo, images, language_model, tokens, vision_model
from huggingface_hub.errors import StrictDataclassClassValidationError

from hf_mmunify.models.flamingo import FlamingoConfig, FlamingoForConditionalGeneration


TEXT = tokens("ab*cd*ef")
TWO_ROWS = {name: tensor.repeat(2, 1) for name, tensor in TEXT.items()}
MODEL = pytest.mark.parametrize("family", ["opt", "llama"])


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"image_features": torch.zeros(1, 2, 1, 4, 24)},
            r"with vision_hidden_size=16, got \(1, 2, 1, 4, 24\)",
        ),
        ({"image_features": torch.zeros(1, 2, 4, 16)}, r"num_frames, num_tokens, .*got \(1, 2, 4, 16\)"),
        ({"image_embeds": torch.zeros(1, 2, 3, 24)}, r"3 latents of width 16; got \(1, 2, 3, 24\)"),
        ({"image_embeds": torch.zeros(1, 2, 5, 16)}, r"3 latents of width 16; got \(1, 2, 5, 16\)"),
        ({"pixel_values": torch.zeros(3, 8, 8)}, r"channels, height, width\), got \(3, 8, 8\)"),
        ({"pixel_values": images(1, 2), "image_features": torch.zeros(1, 2, 1, 4, 16)}, "one of the two"),
        (
            {"pixel_values": images(1, 2), "image_mask": torch.ones(1, 3)},
            r"marks every image slot: expected shape \(1, 2\), got \(1, 3\)",
        ),
        (
            {"pixel_values": images(1, 2), "image_embeds": torch.zeros(1, 2, 3, 16)},
            "Give pixel_values, image_features or image_embeds, one of the three",
        ),
        (
            {"image_embeds": torch.zeros(1, 2, 3, 16), "image_mask": torch.ones(1, 3)},
            r"marks every image slot: expected shape \(1, 2\), got \(1, 3\)",
        ),
        ({"pixel_values": images(2, 2)}, "1 rows of text, but 2 rows of images"),
        (
            {"pixel_values": images(1, 2), "media_index": torch.zeros(1, 7, dtype=torch.long)},
            r"one image number for each token: expected shape \(1, 8\), got \(1, 7\)",
        ),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, dict) else "",
)
@torch.no_grad()
def test_images_of_a_wrong_shape(given, message):
    with pytest.raises(ValueError, match=message):
        flamingo("opt")(**TEXT, **given)


def test_parts_that_flamingo_cannot_sit_on(tmp_path):
    with pytest.raises(ValueError, match=r"a causal language model with its head.*got LlamaModel"):
        attach(language_model("llama").model)
    attach(language_model("llama")).save_flamingo_adapter(tmp_path)
    load = partial(FlamingoForConditionalGeneration.from_flamingo_adapter, tmp_path)
    with pytest.raises(ValueError, match=r"does not say where its text_model is.*give text_model"):
        load(vision_model=vision_model())
    with pytest.raises(ValueError, match=r"vision tower of width 16, but the one given has 32"):
        load(vision_model=vision_model(hidden_size=32), text_model=language_model("llama"))


@torch.no_grad()
def test_features_of_another_tower():
    model = attach(language_model("opt"), vision_model(hidden_size=24), vision_hidden_size=16)
    with pytest.raises(ValueError, match="features of width 24, but the model was made for vision_hidden_size=16"):
        model(**TEXT, pixel_values=images(1, 2))


@MODEL
@torch.no_grad()
def test_text_that_is_missing_empty_or_given_twice(family):
    model = flamingo(family)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(pixel_values=images(1, 2))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(**TEXT, inputs_embeds=torch.zeros(1, 8, 32))
    for shape in ((0, 8), (1, 0)):
        with pytest.raises(ValueError, match=rf"text is empty: input_ids of shape \({shape[0]}, {shape[1]}\)"):
            model(input_ids=torch.zeros(shape, dtype=torch.long))


@torch.no_grad()
def test_embeddings_do_not_say_where_the_images_are():
    model, pixels = flamingo("opt"), images(1, 2)
    embeds = model.get_input_embeddings()(TEXT["input_ids"])
    with pytest.raises(ValueError, match=r"read off the <image> tokens of input_ids.*give media_index"):
        model(inputs_embeds=embeds, pixel_values=pixels)
    index = (TEXT["input_ids"] == IMAGE).cumsum(dim=1)
    found = model(inputs_embeds=embeds, pixel_values=pixels, media_index=index).logits
    torch.testing.assert_close(found, model(**TEXT, pixel_values=pixels).logits, atol=0, rtol=0)


@torch.no_grad()
def test_a_model_without_an_image_token_asks_for_media_index():
    model = attach(language_model("opt"), image_token_id=None)
    with pytest.raises(ValueError, match=r"image_token_id=None\); without them, give media_index"):
        model(**TEXT, pixel_values=images(1, 2))


@pytest.mark.parametrize("label", [VOCAB, VOCAB + 500, -1])
def test_labels_that_are_no_tokens(label):
    labels = TEXT["input_ids"].clone()
    labels[0, 3] = label
    with pytest.raises(ValueError, match=rf"token ids from 0 to {VOCAB - 1}, or -100.*got .*{label}"):
        flamingo("opt")(**TEXT, pixel_values=images(1, 2), labels=labels)


def test_labels_of_another_length():
    with pytest.raises(ValueError, match=r"expected shape \(1, 8\), got \(1, 7\)"):
        flamingo("opt")(**TEXT, pixel_values=images(1, 2), labels=TEXT["input_ids"][:, 1:])


@MODEL
@pytest.mark.parametrize("labels", ["ignored", "padding", "images"])
def test_nothing_to_learn_is_a_loss_of_zero(family, labels):
    model = attach(language_model(family))
    text = tokens("a**")
    shown = {"pixel_values": images(1, 2)}
    if labels == "ignored":
        shown["labels"] = torch.full_like(text["input_ids"], -100)
    elif labels == "padding":
        text["attention_mask"] = torch.tensor([[1, 0, 0]])
        shown["labels"] = text["input_ids"]
    else:
        shown["labels"] = text["input_ids"]  # only <image> could be predicted, which is never learned
    loss = model(**text, **shown).loss
    assert loss.item() == 0
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_padding_and_image_tokens_are_not_learned():
    model, pixels = flamingo("llama"), images(2, 2)
    batch = tokens("ab*cdef*g", "*xyz")
    expected = batch["input_ids"].clone()
    expected[expected == IMAGE] = -100
    expected[batch["attention_mask"] == 0] = -100
    output = model(**batch, pixel_values=pixels, labels=batch["input_ids"])
    scores = output.logits[:, :-1].flatten(0, 1).float()
    by_hand = torch.nn.functional.cross_entropy(scores, expected[:, 1:].flatten())
    torch.testing.assert_close(output.loss, by_hand)


@pytest.mark.parametrize("family", ["opt", "gpt2", "gptj", "mpt"])
@torch.no_grad()
def test_text_longer_than_the_table_of_positions(family):
    """Not an index out of range somewhere inside the language model."""
    model = flamingo(family)
    assert model.model.num_positions == 128
    text = tokens("a*" + "b" * 126)
    assert model(**text, pixel_values=images(1, 1)).logits.shape[1] == 128
    name = type(model.model.text_model).__name__
    message = rf"The text has 129 tokens, but {name} has 128 positions: shorten it"
    with pytest.raises(ValueError, match=message):
        model(**tokens("a*" + "b" * 127), pixel_values=images(1, 1))
    cache = model(**text, pixel_values=images(1, 1), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=message):
        model(input_ids=tokens("c")["input_ids"], past_key_values=cache)
    with pytest.raises(ValueError, match=message):
        model.generate(**text, pixel_values=images(1, 1), max_new_tokens=4, min_new_tokens=4)


@torch.no_grad()
def test_padding_takes_no_position():
    model = flamingo("opt")
    text, longer = tokens("a*" + "b" * 120), tokens("a*" + "b" * 120, side="left")
    longer = {name: torch.nn.functional.pad(x, (12, 0), value=int(name == "input_ids")) for name, x in longer.items()}
    found = model(**longer, pixel_values=images(1, 1)).logits[:, 12:]
    torch.testing.assert_close(found, model(**text, pixel_values=images(1, 1)).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba"])
@torch.no_grad()
def test_computed_positions_have_no_end(family):
    model = flamingo(family)
    assert model.model.num_positions is None
    assert model(**tokens("a*" + "b" * 150), pixel_values=images(1, 1)).logits.isfinite().all()


@torch.no_grad()
def test_generation_from_embeddings_needs_a_cache():
    embeds = flamingo("rwkv").get_input_embeddings()(tokens("abc")["input_ids"])
    with pytest.raises(ValueError, match=r"inputs_embeds needs a cache, but RwkvForCausalLM.*give input_ids"):
        flamingo("rwkv").generate(inputs_embeds=embeds, max_new_tokens=2)


def test_a_prompt_with_images_is_read_in_one_piece():
    with pytest.raises(ValueError, match="prefill_chunk_size=None"):
        flamingo("opt").generate(**TEXT, pixel_values=images(1, 2), max_new_tokens=2, prefill_chunk_size=4)


@torch.no_grad()
def test_flash_attention_takes_no_mask():
    """It reads image by image, or says so; nothing of it is installed here, so only the masks are asked for."""
    model = attach(language_model("opt"), only_attend_immediate_media=False)
    model.config._attn_implementation_internal = "flash_attention_2"
    embeds = torch.zeros(1, 2, 3, 16)
    with pytest.raises(ValueError, match=r"Flash attention takes no mask.*use attn_implementation='sdpa'"):
        model.model._view_media(TEXT["input_ids"], embeds, None, None, None)
    other = attach(language_model("opt"))
    other.config._attn_implementation_internal = "flash_attention_2"
    media = other.model._view_media(TEXT["input_ids"], embeds, None, None, None)
    assert media.mask is None and media.groups.images.tolist() == [0, 1]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"cross_attention_interval": 0}, "at least 1; got 0"),
        ({"cross_attention_offset": 3}, "from 0 to 2, got 3: no layer would see an image"),
        ({"cross_attention_offset": -1}, "from 0 to 2, got -1"),
        ({"image_token_id": VOCAB}, rf"image_token_id.*{VOCAB}.*vocabulary of {VOCAB}"),
        ({"trained_token_ids": [3, VOCAB + 7]}, rf"trained_token_ids.*{VOCAB + 7}.*vocabulary of {VOCAB}"),
    ],
    ids=str,
)
def test_configs_that_cannot_be(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        FlamingoConfig(
            text_config=language_model("opt").config, vision_config=vision_model().config, **{**ADAPTER, **fields}
        )


@torch.no_grad()
def test_an_adapter_of_other_parts(tmp_path):
    flamingo("opt").save_flamingo_adapter(tmp_path)
    wider = attach(language_model("opt", hidden_size=64, word_embed_proj_dim=64, num_attention_heads=4))
    with pytest.raises(ValueError, match=r"other parts or another config: \d+ tensors differ.*\(8?.*32\)"):
        wider.load_flamingo_adapter(tmp_path)
    with pytest.raises(ValueError, match=r"layers\.1\..* absent here"):
        attach(language_model("opt"), cross_attention_interval=2).load_flamingo_adapter(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"does not appear to have a file named flamingo_adapter\.json"):
        FlamingoForConditionalGeneration.from_flamingo_adapter(tmp_path / "empty")
