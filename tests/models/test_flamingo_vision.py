"""What Flamingo looks through: vision towers of every kind, features computed beforehand, videos."""

import pytest
import torch
from flamingo_parts import ADAPTER, IMAGE, VISION, attach, flamingo, images, language_model, tokens, vision_model
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_mmunify.models.flamingo import FlamingoConfig, FlamingoForConditionalGeneration, FlamingoModel


TEXT = tokens("ab*cd*ef")

# model type -> fields over VISION, and how many tokens before those of the 2 x 2 patches are not for the resampler
TOWERS = {
    "clip_vision_model": ({}, 1),
    "siglip_vision_model": ({}, 0),
    "vit": ({}, 1),
    "dinov2": ({"mlp_ratio": 2}, 1),
    "dinov2_with_registers": ({"mlp_ratio": 2, "num_register_tokens": 3}, 4),
}


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def changed(model, pixels: torch.Tensor, other: torch.Tensor) -> bool:
    with torch.no_grad():
        first, second = (model(**TEXT, pixel_values=x).logits for x in (pixels, other))
    return bool((first - second).abs().max() > 1e-2)


@torch.no_grad()
@pytest.mark.parametrize("family", TOWERS)
def test_the_resampler_gets_the_patches_of_every_tower(family, tmp_path):
    fields, extra = TOWERS[family]
    tower = vision_model(family, **fields)
    model, pixels = attach(language_model("opt"), tower), images(1, 2)
    states = tower(pixel_values=pixels[0]).last_hidden_state  # [2, extra + 4, 16]
    assert states.shape == (2, extra + 4, 16)
    features = model.get_image_features(pixels)
    close(features.last_hidden_state, states[:, extra:], atol=0)
    assert features.pooler_output.shape == (1, 2, 3, 16)
    assert changed(model, pixels, images(1, 2, seed=9))
    model.save_pretrained(tmp_path)
    again = FlamingoForConditionalGeneration.from_pretrained(tmp_path)
    close(again(**TEXT, pixel_values=pixels).logits, model(**TEXT, pixel_values=pixels).logits, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_of_a_pair_the_vision_half_is_taken(family, tmp_path):
    half = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(family, text_config={**half, "vocab_size": 50}, vision_config=VISION)
    pair, pixels = AutoModel.from_config(config).eval(), images(1, 2)
    pair.save_pretrained(tmp_path)
    states = pair.vision_model(pixel_values=pixels[0]).last_hidden_state
    for given in (pair, str(tmp_path)):
        found = attach(language_model("opt"), given).get_image_features(pixels).last_hidden_state
        close(found, states[:, -4:], atol=1e-6)


@torch.no_grad()
def test_the_tower_is_read_before_its_last_norm():
    """open_clip 2.23 and later normalise what OpenFlamingo was trained on as it is; CLIP's last norm stays unused."""
    model, pixels = attach(language_model("opt"), vision_model()), images(1, 2)
    expected = model(**TEXT, pixel_values=pixels).logits
    nn.init.normal_(model.model.vision_model.post_layernorm.weight)
    close(model(**TEXT, pixel_values=pixels).logits, expected, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("size, patches", [((8, 8), 4), ((12, 8), 6), ((10, 10), 4)])
def test_any_resolution_gives_the_same_number_of_latents(size, patches):
    model = attach(language_model("opt"), vision_model())
    states = torch.randn(2, 1 + patches, 16)
    model.model.vision_model.forward = lambda **_: BaseModelOutput(last_hidden_state=states)
    features = model.get_image_features(torch.randn(1, 2, 3, *size))
    close(features.last_hidden_state, states[:, 1:], atol=0)
    assert features.pooler_output.shape == (1, 2, 3, 16)


@torch.no_grad()
@pytest.mark.parametrize("family", TOWERS)
def test_a_tower_reads_images_of_another_size_than_its_own(family):
    fields, extra = TOWERS[family]
    tower = vision_model(family, **fields)
    model, pixels = attach(language_model("opt"), tower), torch.randn(1, 2, 3, 12, 8)
    stretches = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}  # DINOv2 always does
    states = tower(pixel_values=pixels[0], **stretches).last_hidden_state
    features = model.get_image_features(pixels, interpolate_pos_encoding=True)
    close(features.last_hidden_state, states[:, extra:], atol=0)
    assert features.last_hidden_state.shape == (2, 6, 16)
    expected = model(**TEXT, image_embeds=features.pooler_output).logits
    close(model(**TEXT, pixel_values=pixels, interpolate_pos_encoding=True).logits, expected, atol=0)
    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    written = model.generate(**TEXT, pixel_values=pixels, interpolate_pos_encoding=True, **settings)
    assert torch.equal(written, model.generate(**TEXT, image_embeds=features.pooler_output, **settings))
    if family == "clip_vision_model":
        with pytest.raises(ValueError, match=r"size \(12\*8\) doesn't match model"):
            model(**TEXT, pixel_values=pixels)


class ConvolutionsConfig(PreTrainedConfig):
    model_type = "test_convolutions"
    channels_last: bool = False


class Convolutions(PreTrainedModel):
    """A tower as timm's NFNet, or as its Swin: the features are a map."""

    config: ConvolutionsConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvolutionsConfig):
        super().__init__(config)
        self.convolution = nn.Conv2d(3, 24, kernel_size=2, stride=2)
        self.post_init()

    def forward(self, pixel_values, return_dict=True):
        states = self.convolution(pixel_values).relu()  # [N, 24, 4, 4]
        return BaseModelOutput(last_hidden_state=states.movedim(1, 3) if self.config.channels_last else states)


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [False, True])
def test_feature_maps(channels_last):
    tower = Convolutions(ConvolutionsConfig(channels_last=channels_last))
    with pytest.raises(ValueError, match=r"does not say how wide.*give vision_hidden_size"):
        attach(language_model("opt"), tower)
    model, pixels = attach(language_model("opt"), tower, vision_hidden_size=24), images(1, 2)
    found = model.get_image_features(pixels).last_hidden_state
    close(found, tower.convolution(pixels[0]).relu().flatten(2).transpose(1, 2), atol=0)  # [2, 16, 24]
    assert changed(model, pixels, images(1, 2, seed=9))


@torch.no_grad()
@pytest.mark.parametrize(
    "architecture, settings, shape",
    [
        ("nfnet_f0", {}, (1, 3072)),  # the paper's tower, smaller
        ("resnet18", {}, (1, 512)),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "window_size": 1}, (4, 768)),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, (4, 192)),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "depth": 1}, (4, 384)),
    ],
)
def test_towers_of_timm(architecture, settings, shape, tmp_path):
    pytest.importorskip("timm")
    from transformers import TimmWrapperConfig

    tower = AutoModel.from_config(TimmWrapperConfig(architecture=architecture, model_args=settings)).eval()
    model = attach(language_model("opt"), tower)
    assert model.config.vision_hidden_size == shape[1]
    pixels = torch.randn(1, 2, 3, settings.get("img_size", 32), settings.get("img_size", 32))
    features = model.get_image_features(pixels)
    assert features.last_hidden_state.shape == (2, *shape)
    assert features.pooler_output.shape == (1, 2, 3, shape[1])
    model.save_pretrained(tmp_path)
    again = FlamingoForConditionalGeneration.from_pretrained(tmp_path)
    close(again.get_image_features(pixels).pooler_output, features.pooler_output, atol=1e-4)


@torch.no_grad()
def test_features_computed_beforehand():
    model, pixels = flamingo("opt"), images(2, 2)
    text = {"input_ids": TEXT["input_ids"].repeat(2, 1), "attention_mask": TEXT["attention_mask"].repeat(2, 1)}
    expected = model(**text, pixel_values=pixels).logits
    features = model.get_image_features(pixels)
    tower = features.last_hidden_state.unflatten(0, (2, 2))[:, :, None]  # [B, M, F, V, D_v]
    close(model(**text, image_features=tower).logits, expected, atol=1e-6)
    close(model(**text, image_embeds=features.pooler_output).logits, expected, atol=0)
    settings = {"max_new_tokens": 4, "do_sample": False}
    said = model.generate(**text, pixel_values=pixels, **settings)
    assert torch.equal(model.generate(**text, image_features=tower, **settings), said)
    assert torch.equal(model.generate(**text, image_embeds=features.pooler_output, **settings), said)


@torch.no_grad()
def test_a_model_without_a_tower(tmp_path):
    config = FlamingoConfig(
        vision_hidden_size=16, text_config=language_model("opt").config, image_token_id=IMAGE, **ADAPTER
    )
    assert config.vision_config is None
    model = FlamingoForConditionalGeneration(config).eval()
    assert model.model.vision_model is None
    features = torch.randn(1, 2, 1, 4, 16)
    expected = model(**TEXT, image_features=features).logits
    model.save_pretrained(tmp_path)
    again = FlamingoForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.vision_config is None
    close(again(**TEXT, image_features=features).logits, expected, atol=0)
    with pytest.raises(ValueError, match=r"no vision tower.*give image_features"):
        model(**TEXT, pixel_values=images(1, 2))
    model.save_flamingo_adapter(tmp_path / "adapter")
    model.model.text_model.save_pretrained(tmp_path / "text")
    again = FlamingoForConditionalGeneration.from_flamingo_adapter(
        tmp_path / "adapter", text_model=str(tmp_path / "text")
    )
    close(again(**TEXT, image_features=features).logits, expected, atol=0)


def test_features_train_the_adapter_as_pixels_do():
    model, pixels = attach(language_model("opt")), images(1, 2)
    with torch.no_grad():
        features = model.get_image_features(pixels).last_hidden_state.unflatten(0, (1, 2))[:, :, None]
    gradients = []
    for shown in ({"pixel_values": pixels}, {"image_features": features}):
        model.zero_grad()
        model(**TEXT, **shown, labels=TEXT["input_ids"]).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, atol=1e-6)


def test_a_tower_is_trained_where_the_config_says_so():
    model = attach(language_model("opt"), vision_model(), freeze_vision_model=False)
    model(**TEXT, pixel_values=images(1, 2), labels=TEXT["input_ids"]).loss.backward()
    gradient = model.model.vision_model.embeddings.patch_embedding.weight.grad
    assert gradient is not None and gradient.abs().max() > 0
    frozen = attach(language_model("opt"), vision_model())
    frozen(**TEXT, pixel_values=images(1, 2), labels=TEXT["input_ids"]).loss.backward()
    assert all(p.grad is None for p in frozen.model.vision_model.parameters())


def count_images(model, monkeypatch) -> list[int]:
    seen, forward = [], model.model.vision_model.forward
    monkeypatch.setattr(
        model.model.vision_model,
        "forward",
        lambda pixel_values, **kwargs: seen.append(len(pixel_values)) or forward(pixel_values=pixel_values, **kwargs),
    )
    return seen


@torch.no_grad()
def test_padding_images_are_never_encoded(monkeypatch):
    model, pixels = flamingo("opt"), images(3, 3)
    rows, numbers = ["a*b*c*d", "*xyz", "hello"], [3, 1, 0]
    mask = torch.tensor([[int(i < number) for i in range(3)] for number in numbers])
    text = tokens(*rows)
    seen = count_images(model, monkeypatch)
    found = model(**text, pixel_values=pixels, image_mask=mask).logits
    assert seen == [4]
    pixels[mask == 0] = float("nan")  # what padding holds is of no account
    close(model(**text, pixel_values=pixels, image_mask=mask).logits, found, atol=0)
    for i, (row, number) in enumerate(zip(rows, numbers)):
        shown = {"pixel_values": pixels[i : i + 1, :number]} if number else {}
        close(found[i : i + 1, : len(row)], model(**tokens(row), **shown).logits)
    # Holes in a row are no images either: the second <image> stands for the second image that is there
    holes = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    pixels = images(3, 3)
    row = model(**tokens("a*b*c*d"), pixel_values=pixels[:1, ::2]).logits
    close(model(**text, pixel_values=pixels, image_mask=holes).logits[:1], row)


def test_training_survives_rows_without_images():
    """A batch of text in a mixture: every adapter parameter still gets a gradient, as DDP demands."""
    model, text = attach(language_model("opt")), tokens("abc", "defgh")
    mask = torch.zeros(2, 1, dtype=torch.long)
    model(**text, pixel_values=images(2, 1), image_mask=mask, labels=text["input_ids"]).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_one_image_a_row_needs_no_dimension_of_its_own():
    model, text, pixels = flamingo("opt"), tokens("ab*cd"), images(1, 1)
    expected = model(**text, pixel_values=pixels).logits
    close(model(**text, pixel_values=pixels[:, 0]).logits, expected, atol=0)
    close(model(**text, pixel_values=pixels[:, :, None]).logits, expected, atol=0)  # a video of one frame


@torch.no_grad()
def test_frames_of_a_video_carry_their_time(monkeypatch):
    model, text, video = flamingo("opt"), tokens("ab*cd"), images(1, 1, frames=5)
    seen = count_images(model, monkeypatch)
    expected = model(**text, pixel_values=video).logits
    assert seen == [5]
    assert (model(**text, pixel_values=video.flip(2)).logits - expected).abs().max() > 1e-2  # backwards is different
    resampler = model.model.adapter.resampler
    media = torch.randn(1, 5, 4, 16)
    with_time = (media + resampler.time_embedding[:5, None]).flatten(1, 2)
    latents = resampler.latents.expand(1, -1, -1)
    for layer in resampler.layers:
        latents = layer(latents, with_time)
    close(resampler(media), latents, atol=0)
    # Without time embeddings, as OpenFlamingo, frames are a set
    timeless = attach(language_model("opt"), resampler_num_frames=0)
    assert timeless.model.adapter.resampler.time_embedding is None
    close(timeless(**text, pixel_values=video.flip(2)).logits, timeless(**text, pixel_values=video).logits)


@torch.no_grad()
def test_videos_longer_than_the_trained_ones_interpolate():
    """From 8 frames to 30, as in the paper: linear between the trained embeddings, ends fixed."""
    resampler = flamingo("opt").model.adapter.resampler
    trained = resampler.time_embedding
    assert trained.shape == (8, 16)
    for number in (1, 3, 8):
        close(resampler.time_embeddings(number), trained[:number], atol=0)
    stretched = resampler.time_embeddings(30)
    places = torch.linspace(0, 7, 30)
    low, weight = places.floor().long().clamp(max=6), places - places.floor().clamp(max=6)
    close(stretched, trained[low] * (1 - weight[:, None]) + trained[low + 1] * weight[:, None], atol=1e-6)
    close(stretched[[0, -1]], trained[[0, -1]], atol=1e-6)
    close(resampler.time_embeddings(15)[::2], trained, atol=1e-6)
    model, text = flamingo("opt"), tokens("ab*cd")
    assert model(**text, pixel_values=images(1, 1, frames=30)).logits.isfinite().all()


@torch.no_grad()
def test_attentions_and_hidden_states_of_the_tower():
    model, pixels = attach(language_model("opt"), vision_model()), images(1, 2)
    model.set_attn_implementation("eager")
    features = model.get_image_features(pixels, output_hidden_states=True, output_attentions=True)
    assert len(features.hidden_states) == VISION["num_hidden_layers"] + 1
    assert features.attentions[0].shape == (2, 2, 5, 5)
    output = model(**TEXT, pixel_values=pixels, output_attentions=True)
    assert len(output.cross_attentions) == 3 and output.cross_attentions[0].shape == (1, 2, 8, 6)
    weights = output.cross_attentions[0][0, :, 2:5]  # tokens of the first image: nothing on the second's latents
    close(weights[..., :3].sum(-1), torch.ones(2, 3), atol=1e-6)
    close(weights[..., 3:], torch.zeros(2, 3, 3), atol=0)


@torch.no_grad()
def test_the_model_without_a_head():
    whole = flamingo("opt")
    body, pixels = whole.model, images(1, 2)
    states = body(**TEXT, pixel_values=pixels).last_hidden_state
    close(whole.model.text_model.lm_head(states), whole(**TEXT, pixel_values=pixels).logits, atol=1e-6)
    assert isinstance(body, FlamingoModel)
