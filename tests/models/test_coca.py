"""CoCa beyond what every architecture promises: its class token, its captions, its poolers, its frozen encoder."""

from pathlib import Path

import pytest
import torch
from golden_case import GoldenCase
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny.coca import LENGTHS, PAD, ROW, SIZE, START, inputs, labels
from torch import nn

from hf_mmunify.conversion.coca import convert, export
from hf_mmunify.conversion.errors import ConversionError
from hf_mmunify.models.coca import (
    CocaConfig,
    CocaForConditionalGeneration,
    CocaForImageClassification,
    CocaForImageTextRetrieval,
    CocaForVideoClassification,
    CocaTextModel,
)


CAPTIONING, RETRIEVAL = "AutoModelForImageTextToText", "AutoModelForImageTextRetrieval"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "coca"
LIMIT = ROW.settings["text_config"]["max_position_embeddings"]


def original(case: str = "default") -> tuple[dict[str, torch.Tensor], dict]:
    """State dict and configuration of a golden case."""
    golden = GoldenCase(GOLDEN / f"{case}.json")
    return golden.state_dict(), golden.info["config"]


def captions(seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with its labels."""
    batch = inputs(CAPTIONING, seed)
    return {**batch, **labels(CAPTIONING, batch)}


@pytest.fixture(scope="module")
def writer() -> CocaForConditionalGeneration:
    return ROW.model(CAPTIONING)


# The class token ---------------------------------------------------------------------------------------------------


def text_model(is_legacy: bool, length: int = 7) -> CocaTextModel:
    torch.manual_seed(0)
    settings = {**ROW.settings["text_config"], "max_position_embeddings": length, "legacy_class_mask": is_legacy}
    settings |= {"num_hidden_layers": 3, "num_unimodal_layers": 2}
    config = CocaConfig(**{**ROW.settings, "text_config": settings}).text_config
    config._attn_implementation = "eager"
    return CocaTextModel(config).eval()


def by_the_rule_of_open_clip(model: CocaTextModel, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The class tokens `[B, D]` of texts that are padded to full length, with every mask written out.

    In open_clip a column may be read if it holds a word or the class token; with `correct_cls_mask=False` each column
    asks the one before it, and the first may be read always (transformer.py, `_build_additive_mask`).
    """
    batch, length = input_ids.shape
    is_word = torch.arange(length) < lengths[:, None]  # [B, T]
    always = torch.ones(batch, 1, dtype=torch.bool)
    readable = torch.cat([always, is_word] if model.config.legacy_class_mask else [is_word, always], dim=1)
    allowed = readable[:, None] & torch.ones(length + 1, length + 1, dtype=torch.bool).tril()  # [B, T + 1, T + 1]
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    states = torch.cat([model.embed_tokens(input_ids), model.class_embedding.expand(batch, 1, -1)], dim=1)
    states = states + model.embed_positions.weight
    for layer in model.layers:
        states = layer(states, mask)
    return model.norm(states[:, -1])


@pytest.mark.parametrize("is_legacy", [True, False], ids=["legacy", "correct"])
@torch.no_grad()
def test_the_class_token_reads_what_it_reads_in_open_clip(is_legacy):
    """For every number of words from none to as many as there are positions, padded on either side or not at all."""
    model, full = text_model(is_legacy), 7
    draw = torch.Generator().manual_seed(1)
    lengths = torch.arange(full + 1)
    words = torch.randint(3, 40, (full + 1, full), generator=draw)
    mask = torch.arange(full) < lengths[:, None]  # [B, T]
    right = words.masked_fill(~mask, PAD)
    expected = by_the_rule_of_open_clip(model, right, lengths)
    for readable in (None, mask, mask.long()):
        torch.testing.assert_close(model(right, readable).pooler_output, expected, atol=1e-5, rtol=0)
    for length in range(1, full + 1):
        alone, row = words[length : length + 1, :length], expected[length : length + 1]
        torch.testing.assert_close(model(alone, torch.ones_like(alone)).pooler_output, row, atol=1e-5, rtol=0)
        for width in (length + 1, full, full + 2):  # padding has no position
            left = nn.functional.pad(alone, (width - length, 0), value=PAD)
            found = model(left, (left != PAD).long()).pooler_output
            torch.testing.assert_close(found, row, atol=1e-5, rtol=0)
    apart = (expected - by_the_rule_of_open_clip(text_model(not is_legacy), right, lengths)).abs().amax(dim=1)
    assert (apart[:-1] > 1e-3).all() and apart[-1] < 1e-6  # where no padding is left both read the same


@torch.no_grad()
def test_flash_attention_would_drop_the_legacy_class_token():
    model = text_model(is_legacy=True)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match=r"legacy_class_mask=True.*use attn_implementation='sdpa'"):
        model(torch.ones(1, 3, dtype=torch.long))


# Captions ----------------------------------------------------------------------------------------------------------


def written_anew(model: CocaForConditionalGeneration, pixels: torch.Tensor, prefix: torch.Tensor, length: int):
    """Greedy captions, reading everything again for each word."""
    for _ in range(length):
        logits = model(pixel_values=pixels, input_ids=prefix).logits[:, -1]
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        prefix = torch.cat([prefix, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return prefix


@pytest.mark.parametrize("length", [1, 4], ids=["start", "prefix"])
@torch.no_grad()
def test_captions_are_written_the_same_however_they_are_asked(writer, length):
    pixels, settings = inputs(CAPTIONING, 0)["pixel_values"], {"max_new_tokens": 6, "min_new_tokens": 6}
    prefix = torch.full((len(pixels), 1), START)
    if length > 1:
        prefix = torch.cat([prefix, torch.randint(3, 40, (len(pixels), length - 1))], dim=1)
    expected = written_anew(writer, pixels, prefix, 6)
    asked = {"pixel_values": pixels, **({"input_ids": prefix} if length > 1 else {}), **settings}
    assert torch.equal(writer.generate(**asked), expected)
    assert torch.equal(writer.generate(**asked, use_cache=False), expected)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(writer.generate(**asked, **static), expected)
    beams = writer.generate(**asked, num_beams=3)
    assert torch.equal(beams, writer.generate(**asked, num_beams=3, use_cache=False))
    for row in range(len(pixels)):
        alone = {
            key: value[row : row + 1] if isinstance(value, torch.Tensor) else value for key, value in asked.items()
        }
        assert torch.equal(writer.generate(**alone, num_beams=3)[0], beams[row])
    if length > 1:
        assert torch.equal(writer.generate(prefix, pixel_values=pixels, **settings), expected)


@torch.no_grad()
def test_an_image_is_read_once_whatever_the_beams(writer):
    read, projected = [], []
    hooks = [
        writer.model.caption_pooler.register_forward_hook(lambda module, args, out: read.append(len(out))),
        writer.decoder.image_layers[0].cross_attn.k_proj.register_forward_hook(lambda *_: projected.append(1)),
    ]
    pixels, settings = inputs(CAPTIONING, 0)["pixel_values"], {"max_new_tokens": 5, "min_new_tokens": 5}
    several = writer.generate(pixel_values=pixels, num_beams=4, num_return_sequences=2, **settings)
    for hook in hooks:
        hook.remove()
    assert several.shape == (2 * len(pixels), 6)
    assert read == [len(pixels)] and len(projected) == 1  # keys of the image too, once for the whole caption
    tokens = writer.get_image_features(pixels).caption_tokens
    again = writer.generate(caption_tokens=tokens, num_beams=4, num_return_sequences=2, **settings)
    assert torch.equal(again, several)


@torch.no_grad()
def test_prefixes_of_different_lengths(writer):
    """Padded on the left, as generation wants it, each is gone on with as if it were alone."""
    batch, settings = inputs(CAPTIONING, 0), {"max_new_tokens": 5, "min_new_tokens": 5}
    longest = max(LENGTHS)
    left = torch.full_like(batch["input_ids"], PAD)
    for row, length in enumerate(LENGTHS):
        left[row, longest - length :] = batch["input_ids"][row, :length]
    asked = {"input_ids": left, "attention_mask": (left != PAD).long(), "pixel_values": batch["pixel_values"]}
    for more in ({}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        written = writer.generate(**asked, **settings, **more)
        for row, length in enumerate(LENGTHS):
            alone = {"input_ids": batch["input_ids"][row : row + 1, :length]}
            alone["pixel_values"] = batch["pixel_values"][row : row + 1]
            assert torch.equal(writer.generate(**alone, **settings)[0, length:], written[row, longest:])


def test_losses_are_those_of_the_paper(writer):
    """Each word from those before it, on average over all words; contrast of each text with each image."""
    batch = captions()
    found = writer(**batch)
    scores, targets = found.logits[:, :-1], batch["labels"][:, 1:]
    caption = nn.functional.cross_entropy(scores[targets != -100], targets[targets != -100])
    similar = found.image_embeds @ found.text_embeds.T * writer.model.logit_scale.exp()
    own = torch.arange(len(similar))
    contrast = (nn.functional.cross_entropy(similar, own) + nn.functional.cross_entropy(similar.T, own)) / 2
    torch.testing.assert_close(found.loss_caption, caption)
    torch.testing.assert_close(found.loss_contrastive, contrast)
    torch.testing.assert_close(found.loss, contrast + 2 * caption)
    moved = nn.functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(writer(**batch, shift_labels=moved).loss, found.loss)


def test_no_caption_to_learn(writer):
    """Then only contrast is learned; nothing is infinite."""
    batch = captions()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    found = writer(**batch)
    assert found.loss_caption == 0 and torch.equal(found.loss, found.loss_contrastive)
    found.loss.backward()
    gradients = {name: p.grad for name, p in writer.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not gradients["lm_head.weight"].any() and gradients["model.text_projection.weight"].any()
    writer.zero_grad()


def test_texts_of_one_image_are_right_alike(writer):
    batch = captions()
    batch["pixel_values"][2] = batch["pixel_values"][0]
    known = writer(**batch, image_ids=torch.tensor([5, 6, 5, 7])).loss_contrastive
    retrieval = CocaForImageTextRetrieval(writer.config).eval()
    retrieval.model.load_state_dict(writer.model.state_dict())
    batch.pop("labels")
    found = retrieval(**batch, image_ids=torch.tensor([5, 6, 5, 7]))
    torch.testing.assert_close(found.loss, known)
    targets = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    rows = [nn.functional.cross_entropy(logits, targets) for logits in (found.logits_per_image, found.logits_per_text)]
    torch.testing.assert_close(known, (rows[0] + rows[1]) / 2)
    assert retrieval(**batch).loss is None and retrieval(**batch, return_loss=True).loss > 0


def test_similarities_are_scaled_a_hundredfold_at_most():
    model = ROW.model(RETRIEVAL)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.train()(**inputs(RETRIEVAL, 0), return_loss=True)
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-4)


# Poolers -----------------------------------------------------------------------------------------------------------


def by_torch(pooler: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """What torch's own attention makes of a pooler's weights."""
    width, read_width = pooler.query.shape[1], states.shape[2]
    attention = pooler.attention
    other = nn.MultiheadAttention(
        width, width // attention.head_dim, kdim=read_width, vdim=read_width, batch_first=True
    )
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    if read_width == width:
        other.in_proj_weight.copy_(torch.cat([x.weight for x in projections]))
    else:
        for name, projection in zip("qkv", projections):
            getattr(other, f"{name}_proj_weight").copy_(projection.weight)
    other.in_proj_bias.copy_(torch.cat([x.bias for x in projections]))
    other.out_proj.load_state_dict(attention.o_proj.state_dict())
    read = pooler.read_norm(states)
    query = pooler.query_norm(pooler.query).expand(len(states), -1, -1)
    return other(query, read, read, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["cascade", "parallel", "first_query"])
@pytest.mark.parametrize("width", [64, 96], ids=["one width", "two widths"])
def test_poolers(kind, width):
    """Of every kind, also where image encoder and poolers differ in width, on which open_clip fails."""
    torch.manual_seed(0)
    model = CocaForConditionalGeneration(ROW.config(projection_dim=width, pooler_type=kind)).eval()
    batch = captions()
    with torch.no_grad():
        vision = model.get_image_features(batch["pixel_values"])
        states, norm, core = vision.last_hidden_state, model.model.vision_norm, model.model
        if kind == "first_query":
            pooled = norm(by_torch(core.caption_pooler, states))
            tokens, feature = pooled[:, 1:], pooled[:, 0]
        else:
            tokens = by_torch(core.caption_pooler, norm(states))
            feature = by_torch(core.contrastive_pooler, tokens if kind == "cascade" else norm(states))[:, 0]
        torch.testing.assert_close(vision.caption_tokens, tokens, atol=1e-5, rtol=0)
        torch.testing.assert_close(vision.pooler_output, core.visual_projection(feature), atol=1e-5, rtol=0)
        assert tokens.shape == (4, 4 if kind == "first_query" else 5, width)
    model.train()(**batch).loss.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert silent == set()


def test_any_tower_serves(tmp_path):
    tower = {**ROW.settings["vision_config"], "model_type": "dinov2"}
    model = CocaForConditionalGeneration(ROW.config(vision_config=tower)).train()
    model(**captions()).loss.backward()
    model.save_pretrained(tmp_path)
    again = CocaForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in model.named_parameters())


# The encoder as it is ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    ROW.model(CAPTIONING, seed=3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", [CocaForImageClassification, CocaForVideoClassification])
def test_classification_by_a_frozen_encoder(pretrained, head):
    """Section 3.3: what pre-training left in the encoder is loaded and stays; pooler and classifier are learned."""
    whole = CocaForConditionalGeneration.from_pretrained(pretrained)
    model, info = head.from_pretrained(pretrained, num_labels=3, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    new = set(info["missing_keys"])
    assert new and all(name.startswith(("pooler.", "pooler_norm.", "classifier.")) for name in new)
    encoder = whole.model.vision_model
    assert all(torch.equal(p, encoder.get_parameter(name)) for name, p in model.vision_model.named_parameters())
    model.freeze_vision()
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learned == new
    name = (
        "AutoModelForVideoClassification" if head is CocaForVideoClassification else "AutoModelForImageClassification"
    )
    batch = {**inputs(name, 0), "labels": torch.tensor([0, 1, 2, 1])}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(torch.equal(p, encoder.get_parameter(name)) for name, p in model.vision_model.named_parameters())


@pytest.mark.parametrize("frames", [1, 2, 5])
@torch.no_grad()
def test_videos_of_any_length(frames):
    """One pooler reads the tokens of all frames, whose order it does not know."""
    model = ROW.model("AutoModelForVideoClassification")
    video = torch.randn(2, frames, 3, SIZE, SIZE)
    scores = model(pixel_values=video).logits
    tokens = torch.cat([model.vision_model(video[:, frame]).last_hidden_state for frame in range(frames)], dim=1)
    expected = model.classifier(model.pooler_norm(by_torch(model.pooler, tokens)[:, 0]))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(pixel_values=video.flip(1)).logits, scores, atol=1e-5, rtol=0)
    if frames == 1:
        images = ROW.model("AutoModelForImageClassification")
        images.load_state_dict(model.state_dict())
        torch.testing.assert_close(images(pixel_values=video[:, 0]).logits, scores, atol=1e-5, rtol=0)


# Original checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["default", "cascade_pool", "parallel_pool"])
def test_checkpoints_come_and_go(case):
    state, config = original(case)
    model = convert(state, config)
    assert model.config.text_config.legacy_class_mask
    found = export(model)
    kept = {key: tensor for key, tensor in state.items() if not key.endswith("attn_mask")}
    assert found.keys() == kept.keys() and all(torch.equal(found[key], kept[key]) for key in kept)


def changed(config: dict, part: str, **options) -> dict:
    return {**config, part: {**config[part], **options}}


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda config: None, "needs its configuration, with embed_dim, vision_cfg, text_cfg, multimodal_cfg"),
        (lambda config: {"embed_dim": 32, "vision_cfg": {}, "text_cfg": {}}, "needs its configuration"),
        (lambda config: changed(config, "vision_cfg", timm_model_name="vit"), r"vision_cfg\.timm_model_name"),
        (lambda config: changed(config, "text_cfg", hf_model_name="bert"), r"text_cfg\.hf_model_name"),
        (lambda config: changed(config, "multimodal_cfg", ls_init_value=0.1), r"multimodal_cfg\.ls_init_value"),
        (lambda config: changed(config, "vision_cfg", attentional_pool=False), "its poolers"),
        (lambda config: changed(config, "multimodal_cfg", width=48), r"text_cfg\.width=32.*multimodal_cfg\.width=48"),
        (lambda config: changed(config, "vision_cfg", layers=3), "layers.2"),
        (lambda config: changed(config, "vision_cfg", attentional_pool="cascade"), "contrastive_pooler"),
    ],
    ids=["none", "CLIP's", "timm", "bert", "scale", "no pooler", "widths", "layers", "other pooler"],
)
def test_configurations_that_are_refused(wrong, message):
    state, config = original()
    with pytest.raises(ConversionError, match=message):
        convert(state, wrong(config))


def test_a_clip_is_no_coca():
    state, config = original()
    clip = {key: tensor for key, tensor in state.items() if not key.startswith("text_decoder.")}
    with pytest.raises(ConversionError, match="decoder"):
        convert(clip, config)


# Bad input ---------------------------------------------------------------------------------------------------------


def test_captions_longer_than_the_text_tower(writer):
    long, pixels = torch.full((1, LIMIT + 1), 5), torch.randn(1, 3, SIZE, SIZE)
    message = rf"a text of {LIMIT + 1} tokens is longer than the {LIMIT} .*truncation=True, max_length={LIMIT}"
    for call in (writer, writer.model, writer.model.get_text_features):
        images = {} if call == writer.model.get_text_features else {"pixel_values": pixels}
        with pytest.raises(ValueError, match=message):
            call(input_ids=long, **images)
    assert writer(input_ids=long[:, 1:], pixel_values=pixels).logits.shape[1] == LIMIT
    for use_cache in (True, False):
        length = {"max_new_tokens": LIMIT, "min_new_tokens": LIMIT, "use_cache": use_cache}
        assert writer.generate(pixel_values=pixels, **length).shape[1] == LIMIT + 1
        length = {"max_new_tokens": LIMIT + 1, "min_new_tokens": LIMIT + 1, "use_cache": use_cache}
        with pytest.raises(ValueError, match=message):
            writer.generate(pixel_values=pixels, **length)


def test_numbers_of_images_and_texts_that_differ(writer):
    batch = captions()
    fewer = {**batch, "pixel_values": batch["pixel_values"][:3]}
    with pytest.raises(ValueError, match="got 3 images and 4 texts: repeat the images"):
        writer(**fewer)
    with pytest.raises(ValueError, match="got 3 images and 4 texts: repeat the images"):
        writer.generate(batch["input_ids"], pixel_values=fewer["pixel_values"])
    fewer.pop("labels")
    assert writer.model(**fewer).logits_per_image.shape == (3, 4)  # to compare them is no mistake
    with pytest.raises(ValueError, match=r"got 3 images and 4 texts\. Repeat an image"):
        writer.model(**fewer, return_loss=True)


@pytest.mark.parametrize("label", [200, -1])
def test_labels_that_are_none(writer, label):
    batch = captions()
    batch["labels"][1, 2] = label
    with pytest.raises(ValueError, match=rf"token ids from 0 to \d+, or -100.*{label}"):
        writer(**batch)
    for name in ("AutoModelForImageClassification", "AutoModelForVideoClassification"):
        with pytest.raises(ValueError, match=rf"classes from 0 to 2 \(num_labels=3\), got .*{label}"):
            ROW.model(name)(**inputs(name, 0), labels=torch.tensor([0, 1, label, 2]))


def test_labels_of_another_length(writer):
    batch = captions()
    with pytest.raises(ValueError, match=r"expected shape \(4, 9\), got \(4, 8\)"):
        writer(**{**batch, "labels": batch["labels"][:, 1:]})


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 2, 3, 32, 32), (0, 3, 32, 32)], ids=str)
def test_images_of_a_wrong_shape(writer, shape):
    text = {"input_ids": torch.full((1, 3), 5)}
    with pytest.raises(ValueError, match=r"expected pixel_values \[batch, 3, height, width\] .*got \["):
        writer(pixel_values=torch.zeros(shape), **text)
    with pytest.raises(ValueError, match=r"expected pixel_values \[batch, 3, height, width\]"):
        ROW.model("AutoModelForImageClassification")(pixel_values=torch.zeros(shape))
    if len(shape) == 4:
        with pytest.raises(ValueError, match=r"\[batch, frames, 3, height, width\]"):
            ROW.model("AutoModelForVideoClassification")(pixel_values=torch.zeros(shape))


def test_captions_without_an_image(writer):
    for call in (writer, writer.generate):
        with pytest.raises(ValueError, match="expected pixel_values or caption_tokens, got neither"):
            call(input_ids=torch.full((1, 3), 5))
    tokens = torch.zeros(4, 5, 64)
    batch = captions()
    batch.pop("pixel_values")
    with pytest.raises(ValueError, match="pass pixel_values with labels"):
        writer(**batch, caption_tokens=tokens)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        writer.model.text_model()


@torch.no_grad()
def test_an_image_of_nothing_spoils_its_own_row_alone(writer):
    """NaN is not hidden, and reaches no other image, text or caption."""
    batch = inputs(CAPTIONING, 0)
    whole = writer(**batch).logits
    batch["pixel_values"][1] = torch.nan
    logits = writer(**batch).logits
    assert logits[1].isnan().any() and torch.equal(logits[[0, 2, 3]], whole[[0, 2, 3]])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"pooler_type": "mean"}, "one of cascade, parallel, first_query; got 'mean'"),
        ({"pooler_num_attention_heads": 5}, "multiple of pooler_num_attention_heads=5"),
        ({"pooler_type": "first_query", "pooler_num_queries": 1}, "leaves no caption token: expected at least 2"),
        ({"text_config": {"encoder_hidden_size": 32}}, "leave encoder_hidden_size out"),
        ({"text_config": {"num_unimodal_layers": 2}}, r"fewer than num_hidden_layers=2; got 2"),
        ({"text_config": {"num_attention_heads": 5}}, "multiple of num_attention_heads=5"),
    ],
    ids=str,
)
def test_configs_that_cannot_be(settings, message):
    settings = {**settings}
    if "text_config" in settings:
        settings["text_config"] = {**ROW.settings["text_config"], **settings["text_config"]}
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        ROW.config(**settings)
