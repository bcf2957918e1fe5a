"""CLIP: that it is transformers' own where it does not differ, what it adds, its checkpoints, and input it refuses."""

import math

import pytest
import torch
import transformers
from tiny import TINY
from torch import nn
from transformers import CLIPConfig

from hf_mmunify.conversion import engine
from hf_mmunify.conversion.clip import VARIANTS, convert, export
from hf_mmunify.conversion.declarations import conversion_module, manifest_path, read_manifest
from hf_mmunify.conversion.errors import UnmappedKeysError, WrongConfigError
from hf_mmunify.models.clip import HIGHEST_ID, CLIPModel, VisionOptions, sin_cos_positions


ROW, TASK = TINY["clip"], "AutoModelForImageTextRetrieval"


def model(**vision) -> CLIPModel:
    """The tiny model, with options of its vision tower."""
    transformers.set_seed(0)
    return CLIPModel(ROW.config(vision_config={**ROW.settings["vision_config"], **vision})).eval()


# What it shares with transformers ----------------------------------------------------------------------------------


@torch.no_grad()
def test_it_is_the_native_model_in_both_directions(tmp_path):
    ours, batch = model(), ROW.batch()
    ours.save_pretrained(tmp_path / "ours")
    native, report = transformers.CLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    native.save_pretrained(tmp_path / "native")
    again, report = CLIPModel.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    expected = native(**batch, return_loss=True)
    for one in (ours, again):
        found = one(**batch, return_loss=True)
        assert list(found) == list(expected)
        for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
            assert torch.equal(found[name], expected[name])
        torch.testing.assert_close(found.loss, expected.loss)
        tower = found.vision_model_output
        assert torch.equal(tower.last_hidden_state, expected.vision_model_output.last_hidden_state)


@torch.no_grad()
def test_zero_shot_compares_any_number_of_texts_with_any_number_of_images():
    batch = ROW.batch()
    found = model()(batch["input_ids"][:3], batch["pixel_values"][:2], batch["attention_mask"][:3])
    assert found.logits_per_image.shape == (2, 3) and found.loss is None


# What it adds ------------------------------------------------------------------------------------------------------


def test_the_loss_is_asked_for_by_image_ids_or_by_name():
    batch = ROW.batch()
    one = model()
    assert one(**batch).loss is None and one(**batch, image_ids=torch.arange(4), return_loss=False).loss is None
    asked = one(**batch, return_loss=True).loss
    assert torch.equal(asked, one(**batch, image_ids=torch.tensor([7, 3, 9, 1])).loss)


def test_texts_of_one_image_are_no_negatives_of_each_other():
    batch = ROW.batch()
    found = model()(**batch, image_ids=torch.tensor([5, 2, 5, 8]))
    targets = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    expected = [-(targets * logits.log_softmax(dim=1)).sum(dim=1).mean() for logits in found[1:3]]
    torch.testing.assert_close(found.loss, sum(expected) / 2)


def test_the_temperature_is_clipped_where_it_is_trained_and_nowhere_else():
    one, batch = model(), ROW.training_batch(TASK)
    with torch.no_grad():
        one.logit_scale.fill_(6.0)
        assert one(**batch).logits_per_image.abs().max() <= math.exp(6.0) and one.logit_scale == 6
    one.train()(**batch).loss.backward()
    assert one.logit_scale.item() == pytest.approx(math.log(100)) and one.logit_scale.grad.abs() > 0


@torch.no_grad()
@pytest.mark.parametrize("eos", ["marked", "highest"])
def test_padding_may_be_the_end_of_text_and_on_the_left(eos):
    """As CLIP's tokenizers have it: `<|endoftext|>` pads. transformers takes the first for the end of a left-padded
    text, and counts positions over the padding."""
    one, batch = model(), ROW.batch()
    end = one.config.text_config.eos_token_id
    if eos == "highest":
        one.config.text_config.eos_token_id = one.text_model.eos_token_id = HIGHEST_ID
    expected = one.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    lengths = batch["attention_mask"].sum(dim=1)
    for side in ("left", "right"):
        ids, mask = torch.full((4, 9), end), torch.zeros(4, 9, dtype=torch.long)
        for row, length in enumerate(lengths.tolist()):
            place = slice(9 - length, 9) if side == "left" else slice(0, length)
            ids[row, place], mask[row, place] = batch["input_ids"][row, :length], 1
        found = one.get_text_features(ids, mask).pooler_output
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_training_drops_patches_and_evaluation_does_not():
    one, batch = model(patch_dropout=0.75), ROW.training_batch(TASK)
    lengths = []
    one.vision_model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        whole = one(**batch).image_embeds
        draws = [
            one.train()(**batch, generator=torch.Generator().manual_seed(seed)).image_embeds for seed in (0, 0, 1)
        ]
        one.config.vision_config.patch_dropout = 0.0
        assert torch.equal(one(**batch).image_embeds, whole)
    assert lengths == [17, 5, 5, 5, 17]
    assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2])


@torch.no_grad()
def test_named_patches_are_kept_and_the_others_do_not_matter():
    one, pixels = model(), ROW.batch()["pixel_values"]
    kept = torch.tensor([[0, 1, 4, 5]]).repeat(4, 1)  # the upper left quarter
    expected = one.get_image_features(pixels, patch_indices=kept).pooler_output
    noise = pixels.clone()
    noise[:, :, 16:] = 9.0
    noise[:, :, :, 16:] = 9.0
    assert torch.equal(one.get_image_features(noise, patch_indices=kept).pooler_output, expected)
    assert not torch.allclose(one.get_image_features(noise).pooler_output, expected)


def test_options_of_the_tower_are_saved_with_it(tmp_path):
    one = model(patch_dropout=0.5, pool_type="avg", pos_embed_type="sin_cos_2d")
    one.save_pretrained(tmp_path)
    again = CLIPModel.from_pretrained(tmp_path)
    options = VisionOptions.of(again.config.vision_config)
    assert options == VisionOptions(0.5, "avg", "sin_cos_2d")
    assert VisionOptions.of(CLIPConfig().vision_config) == VisionOptions(0.0, "tok", "learnable")
    table = again.vision_model.embeddings.position_embedding.weight
    assert not table.requires_grad and torch.equal(table, sin_cos_positions(4, 64))
    with torch.no_grad():
        pixels = ROW.batch()["pixel_values"]
        features = again.get_image_features(pixels).last_hidden_state[:, 1:].mean(dim=1)
        expected = again.visual_projection(again.vision_model.post_layernorm(features))
        assert torch.equal(again.get_image_features(pixels).pooler_output, expected)


def test_positions_are_waves_of_column_and_row():
    table = sin_cos_positions(3, 8)
    assert table.shape == (10, 8) and not table[0].any()
    column, row = 2, 1  # patch 1 * 3 + 2
    waves = lambda x: [math.sin(x), math.sin(x / 100), math.cos(x), math.cos(x / 100)]  # noqa: E731
    torch.testing.assert_close(table[1 + 5], torch.tensor(waves(column) + waves(row)))
    with pytest.raises(ValueError, match="hidden_size that 4 divides, got 6"):
        sin_cos_positions(3, 6)


@torch.no_grad()
def test_the_protocol_of_retrieval():
    one, batch = model(), ROW.batch()
    images = one.encode_images(batch["pixel_values"])
    texts = one.encode_texts(batch["input_ids"], batch["attention_mask"])
    scores = one.similarities(images["features"], texts["features"])
    found = one(**batch)
    torch.testing.assert_close(images["features"].norm(dim=1), torch.ones(4))
    torch.testing.assert_close(scores * one.logit_scale.exp(), found.logits_per_image)


# Checkpoints -------------------------------------------------------------------------------------------------------

OPENAI = {
    "embed_dim": 32,
    "image_resolution": 32,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 8,
    "context_length": 10,
    "vocab_size": 40,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 1,
}


def openai_state_dict() -> dict[str, torch.Tensor]:
    """As published: half precision but for the norms, and three sizes among the weights."""
    module = conversion_module("clip")
    config = engine.our_config(module, OPENAI, {})
    transformers.set_seed(0)
    weights = export(CLIPModel(config))
    weights = {key: t if ".ln_" in key or key.startswith("ln_") else t.half() for key, t in weights.items()}
    sizes = {"input_resolution": 32, "context_length": 10, "vocab_size": 40}
    return {**weights, **{name: torch.tensor(size) for name, size in sizes.items()}}


def as_module(state_dict: dict[str, torch.Tensor]) -> nn.Module:
    """A module with that state dict, which scripts."""
    root = nn.Module()
    for key, tensor in state_dict.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        if tensor.is_floating_point():
            module.register_parameter(name, nn.Parameter(tensor.clone()))
        else:
            module.register_buffer(name, tensor.clone())
    return root


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_programs_become_models_without_a_configuration(tmp_path):
    original = openai_state_dict()
    torch.jit.save(torch.jit.script(as_module(original)), tmp_path / "ViT.pt")
    one = convert(tmp_path / "ViT.pt")
    assert one.config.to_dict() == convert(original, OPENAI).config.to_dict()
    assert one.config.vision_config.hidden_act == one.config.text_config.hidden_act == "quick_gelu"
    assert one.config.text_config.num_attention_heads == 2 and one.config.vision_config.num_attention_heads == 1
    back, sizes = export(one), ("input_resolution", "context_length", "vocab_size")
    assert back.keys() == original.keys() - set(sizes)
    assert all(torch.equal(back[key], original[key]) and back[key].dtype == original[key].dtype for key in back)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_sizes_are_read_off_the_tensors(variant):
    module = conversion_module("clip")
    shapes = read_manifest(manifest_path(module, variant))
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    expected = engine.our_config(module, dict(VARIANTS[variant].config), tensors)
    assert engine.our_config(module, None, tensors).to_dict() == expected.to_dict()


@torch.no_grad()
def test_open_clips_other_layout_is_read_alike():
    original = openai_state_dict()
    apart = {
        key if key.startswith("visual.") or key == "logit_scale" else f"text.{key}": t.float()
        for key, t in original.items()
        if t.is_floating_point()
    }
    apart["text.attn_mask"] = torch.zeros(10, 10)
    open_clip = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 10, "vocab_size": 40, "width": 128, "heads": 2, "layers": 1},
        "quick_gelu": True,
    }
    one, other = convert(apart, open_clip), convert(original, OPENAI, dtype="float32")
    assert one.config.to_dict() == other.config.to_dict()
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())
    assert convert(apart, {**open_clip, "quick_gelu": False}).config.text_config.hidden_act == "gelu"


def test_what_the_architecture_cannot_hold_is_refused():
    original = openai_state_dict()
    resnet = {"visual.layer1.0.conv1.weight": torch.zeros(1), **original}
    with pytest.raises(WrongConfigError, match=r"a CLIP with a ResNet.*transformers does not have"):
        convert(resnet)
    with pytest.raises(WrongConfigError, match=r"vision_layers is \[3, 4, 6, 3\], as of a CLIP with a ResNet"):
        convert(original, {**OPENAI, "vision_layers": [3, 4, 6, 3]})
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 10, "vocab_size": 40, "width": 128, "heads": 2, "layers": 1}
    open_clip = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    with pytest.raises(
        WrongConfigError, match=r"vision_cfg\.attentional_pool, text_cfg\.hf_model_name: open_clip can"
    ):
        convert(
            original,
            {
                **open_clip,
                "vision_cfg": {**vision, "attentional_pool": True},
                "text_cfg": {**text, "hf_model_name": "roberta-base"},
            },
        )
    with pytest.raises(WrongConfigError, match=r"vision_cfg\.layers is \[3, 4, 6, 3\], as of a CLIP with a ResNet"):
        convert(original, {**open_clip, "vision_cfg": {**vision, "layers": [3, 4, 6, 3]}})
    with pytest.raises(WrongConfigError, match="pool_type 'avg' is held here with final_ln_after_pool alone"):
        convert(original, {**open_clip, "vision_cfg": {**vision, "pool_type": "avg"}})
    with pytest.raises(WrongConfigError, match="lacks 'embed_dim'"):
        convert(original, {"vision_layers": 2})
    with pytest.raises(UnmappedKeysError, match=r"vision_model\.encoder\.layers\.1"):
        convert(original, {**OPENAI, "vision_layers": 1})


# Input that cannot be right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input_ids": None}, r"got no input_ids.*`get_image_features` and `get_text_features`"),
        ({"pixel_values": None}, "got no pixel_values"),
        ({"pixel_values": torch.zeros(0, 3, 32, 32)}, "The batch is empty: 0 images, 4 texts"),
        ({"pixel_values": torch.zeros(2, 3, 32, 32)}, "as many texts as images, got 2 images and 4 texts"),
        ({"image_ids": torch.zeros(4, 1)}, r"expected shape \(4,\), got \(4, 1\)"),
        ({"pixel_values": torch.zeros(4, 3, 16, 16)}, r"size \(16\*16\) doesn't match model \(32\*32\)"),
        ({"input_ids": torch.zeros(4, 17, dtype=torch.long), "attention_mask": None}, "max_position_embeddings: 16"),
    ],
    ids=["no text", "no image", "empty", "not pairs", "ids", "size", "length"],
)
def test_input_that_cannot_be_right(change, message):
    with pytest.raises(ValueError, match=message):
        model()(**{**ROW.training_batch(TASK), **change})


@pytest.mark.parametrize(
    "option, message",
    [
        ({"patch_dropout": 1.0}, "expected 0 <= patch_dropout < 1, got 1.0"),
        ({"pool_type": "max"}, "pool_type is 'tok' .* or 'avg' .*; got 'max'"),
        ({"pos_embed_type": "rope"}, "'learnable' or 'sin_cos_2d'; got 'rope'"),
    ],
)
def test_options_that_mean_nothing(option, message):
    with pytest.raises(ValueError, match=message):
        model(**option)


def test_another_gather_is_refused():
    one = model()
    one.contrastive_gather = "everything"
    with pytest.raises(ValueError, match='full, local, none, got "everything"'):
        one(**ROW.training_batch(TASK))
