"""BLIP-2's first stage: that it is transformers' own where it does not differ, what it adds, checkpoints, refusals."""

import pytest
import torch
import transformers
from tiny import TINY
from transformers import Blip2Config, Blip2ForConditionalGeneration

from hf_mmunify.conversion import engine
from hf_mmunify.conversion.blip_2 import WithoutKeyBias, convert, export
from hf_mmunify.conversion.declarations import conversion_module
from hf_mmunify.conversion.errors import MissingKeysError, WrongConfigError
from hf_mmunify.models.blip_2 import Blip2ForImageTextRetrieval, Blip2ForPreTraining


ROW = TINY["blip_2"]
RETRIEVAL, PRETRAINING = "AutoModelForImageTextRetrieval", "AutoModelForPreTraining"


def model(auto_name: str = RETRIEVAL, **settings) -> Blip2ForImageTextRetrieval:
    one = ROW.model(auto_name)
    for name, value in settings.items():
        setattr(one.config, name, value)
    return one


def batch(*, loss: bool = False) -> dict[str, torch.Tensor]:
    return ROW.training_batch(RETRIEVAL) if loss else ROW.batch()


# What it shares with transformers ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("matching", [False, True], ids=["contrast", "matching"])
def test_checkpoints_of_the_native_class_load_and_answer_alike(tmp_path, matching):
    native = transformers.Blip2ForImageTextRetrieval(ROW.config()).eval()
    native.query_tokens.normal_()
    native.save_pretrained(tmp_path)
    ours, report = Blip2ForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]  # the temperature is not asked for
    assert ours.temperature == pytest.approx(0.07)
    found, expected = (one(**batch(), use_image_text_matching_head=matching) for one in (ours, native))
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_image_tokens_before_the_text_change_nothing():
    one, given = model(image_token_index=0), batch()
    expected = one(**given)
    ids = torch.cat([torch.zeros(4, 4, dtype=torch.long), given["input_ids"]], dim=1)
    mask = torch.cat([torch.ones(4, 4, dtype=torch.long), given["attention_mask"]], dim=1)
    found = one(given["pixel_values"], ids, mask)
    assert torch.equal(found.logits_per_image, expected.logits_per_image)


def test_fresh_queries_are_not_alike():
    """The native class starts with queries of zeros, which have the same gradient for ever."""
    queries = Blip2ForImageTextRetrieval(ROW.config()).query_tokens[0]
    assert torch.cdist(queries, queries).add(torch.eye(4)).min() > 0.1


@torch.no_grad()
def test_retrieval_and_pre_training_load_from_each_other(tmp_path):
    whole = model(PRETRAINING)
    whole.save_pretrained(tmp_path / "whole")
    part, report = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected = whole(**batch(), return_loss=False)
    assert torch.equal(part(**batch()).logits_per_image, expected.logits_per_image) and expected.loss is None
    part.save_pretrained(tmp_path / "part")
    again = Blip2ForPreTraining.from_pretrained(tmp_path / "part")
    assert again.generation_head.decoder.weight is again.embeddings.word_embeddings.weight
    assert torch.equal(again(**batch(), return_loss=False).logits_per_image, expected.logits_per_image)


@torch.no_grad()
@pytest.mark.parametrize("auto_name", [RETRIEVAL, PRETRAINING])
def test_words_can_be_added(tmp_path, auto_name):
    one, given = model(auto_name), batch(loss=True)
    expected, words = one(**given), one.config.qformer_config.vocab_size
    one.resize_token_embeddings(words + 3, mean_resizing=False)
    one.save_pretrained(tmp_path)
    again, report = type(one).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    again.choose_negatives = one.choose_negatives
    assert again.get_input_embeddings().num_embeddings == words + 3
    found = again(**given)
    torch.testing.assert_close(found.loss_itm, expected.loss_itm)
    if auto_name == PRETRAINING:
        assert found.lm_logits.shape[-1] == words + 3
        torch.testing.assert_close(found.lm_logits[..., :words], expected.lm_logits)


# What it adds ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_losses_add_up_and_come_when_asked_for():
    one, given = model(), batch()
    assert one(**given).loss is None
    found = one(**given, return_loss=True)
    torch.testing.assert_close(found.loss, found.loss_itc + found.loss_itm)
    assert found.loss_lm is None and found.itm_logits.shape == (12, 4, 2)
    found = model(PRETRAINING)(**given)
    torch.testing.assert_close(found.loss, found.loss_itc + found.loss_itm + found.loss_lm)


@torch.no_grad()
def test_pairs_of_one_image_are_matches_alike_and_never_negatives():
    one, weights = model(), []
    one.choose_negatives = lambda given: weights.append(given) or given.argmax(dim=1)
    found = one(**batch(), image_ids=torch.tensor([5, 2, 5, 8]))
    same = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
    assert len(weights) == 2 and all(torch.equal(given > 0, same == 0) for given in weights)
    targets = 0.9 * same / same.sum(dim=1, keepdim=True) + 0.1 / 4
    logits = found.logits_per_image / one.temperature
    losses = [-(targets * x.log_softmax(dim=1)).sum(dim=1).mean() for x in (logits, logits.T)]
    torch.testing.assert_close(found.loss_itc, sum(losses) / 2)
    with pytest.raises(ValueError, match="a hard negative needs a second pair"):
        one.choose_negatives = None
        one(**batch(), image_ids=torch.zeros(4, dtype=torch.long))


@torch.no_grad()
def test_words_are_written_without_a_look_ahead_and_out_of_sight_of_the_queries():
    one, given = model(PRETRAINING), batch()
    changed = dict(given, input_ids=given["input_ids"].clone())
    changed["input_ids"][:, 3] = 9
    before, after = one(**given), one(**changed)
    differs = (before.lm_logits - after.lm_logits).abs().amax(dim=-1) > 1e-6  # [B, T]
    assert not differs[:, :3].any() and differs[:, 3].all()
    assert torch.equal(before.image_embeds, after.image_embeds)
    torch.testing.assert_close(one.encode_images(given["pixel_values"])["features"], before.image_embeds)
    blind = one(**dict(given, pixel_values=torch.zeros_like(given["pixel_values"])))
    assert (blind.lm_logits - before.lm_logits).abs().max() > 1e-2  # but the words see what the queries saw


@torch.no_grad()
def test_the_protocol_of_retrieval():
    one, given = model(), batch()
    images = one.encode_images(given["pixel_values"])
    texts = one.encode_texts(given["input_ids"], given["attention_mask"])
    similarities = one.similarities(images["features"], texts["features"])
    assert torch.equal(similarities, one(**given).logits_per_image)
    matched = one(**given, use_image_text_matching_head=True).logits_per_image  # [B, 2]
    pairs = similarities.diagonal()
    torch.testing.assert_close(one.match(images, texts, pairs), matched[:, 1] + pairs)


def test_the_tower_can_be_frozen_as_published():
    one = model(PRETRAINING).train()
    one.freeze_vision_model()
    one(**batch()).loss.backward()
    learns = {name for name, p in one.vision_model.named_parameters() if p.grad is not None}
    assert learns == {"post_layernorm.weight", "post_layernorm.bias"}


# Checkpoints -------------------------------------------------------------------------------------------------------

SECOND_STAGE = {
    "opt": {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 1},
    "t5": {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1},
}
SMALL = {"num_attention_heads": 2, "vocab_size": 20}


def small_second_stage(monkeypatch) -> None:
    """Sizes of tower and Q-Former are constants of LAVIS; here they are small ones."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}

    def small_config(vision_config, qformer_config, **changes):
        return Blip2Config(
            vision_config={**vision_config, **sizes, "image_size": 28},
            qformer_config={**qformer_config, **sizes},
            **changes,
        )

    monkeypatch.setattr(conversion_module("blip_2"), "Blip2Config", small_config)


@pytest.mark.parametrize("kind", SECOND_STAGE)
def test_the_second_stage_becomes_the_native_model_and_comes_back(monkeypatch, kind):
    small_second_stage(monkeypatch)
    original_config = {f"{kind}_model": {**SECOND_STAGE[kind], **SMALL}}
    module = conversion_module("blip_2")
    transformers.set_seed(0)
    native = Blip2ForConditionalGeneration(engine.our_config(module, original_config, {})).eval()
    original = engine.export(native, "blip-2")
    assert {f"{kind}_proj.weight", "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"} <= original.keys()
    assert not any(key.startswith("Qformer.cls") or "word_embeddings" in key for key in original)
    again = convert(original, original_config)
    assert type(again) is Blip2ForConditionalGeneration
    expected = native.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        if not name.endswith("qkv.bias"):
            assert torch.equal(tensor, expected[name])


def test_a_frozen_tower_comes_from_its_own_file(monkeypatch, tmp_path):
    small_second_stage(monkeypatch)
    module = conversion_module("blip_2")
    transformers.set_seed(0)
    whole = export(Blip2ForPreTraining(engine.our_config(module, {}, {})))
    tower = {key.removeprefix("visual_encoder."): t for key, t in whole.items() if key.startswith("visual_encoder.")}
    torch.save({**tower, "blocks.2.norm1.weight": torch.ones(32), "head.bias": torch.ones(3)}, tmp_path / "eva.pth")
    trained = {key: t for key, t in whole.items() if not key.startswith("visual_encoder.")}
    with pytest.raises(MissingKeysError, match=r"LAVIS froze and did not save. Fetch LAVIS's eva_vit_g\.pth"):
        convert(trained, {})
    back = export(convert(trained, {"vit_weights": tmp_path / "eva.pth"}))
    assert back.keys() == whole.keys() and all(torch.equal(back[key], tensor) for key, tensor in whole.items())


def test_key_biases_are_none():
    query, value = torch.randn(4), torch.randn(4)
    (bias,) = WithoutKeyBias().forward([query, value])
    assert torch.equal(bias, torch.cat([query, torch.zeros(4), value]))
    assert all(torch.equal(a, b) for a, b in zip(WithoutKeyBias().backward([bias]), (query, value)))


def test_another_tower_is_refused():
    with pytest.raises(WrongConfigError, match=r"vit_model is 'clip_L'.*Expected 'eva_clip_g'"):
        convert({"temp": torch.ones(())}, {"vit_model": "clip_L"})


# Input that cannot be right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input_ids": None}, r"got no input_ids.*`encode_images` and `encode_texts`"),
        ({"pixel_values": None}, "got no pixel_values"),
        ({"pixel_values": torch.zeros(0, 3, 32, 32)}, "The batch is empty: 0 images, 4 texts"),
        ({"pixel_values": torch.zeros(2, 3, 32, 32)}, "as many texts as images, got 2 images and 4 texts"),
        ({"pixel_values": torch.zeros(4, 1, 32, 32)}, r"\(batch, 3, height, width\).*got \(4, 1, 32, 32\)"),
        ({"image_ids": torch.zeros(4, 1)}, r"expected shape \(4,\), got \(4, 1\)"),
        ({"input_ids": torch.ones(4, 25, dtype=torch.long), "attention_mask": None}, "at most 24 words, got 25"),
    ],
    ids=["no text", "no image", "empty", "not pairs", "channels", "ids", "length"],
)
def test_input_that_cannot_be_right(change, message):
    with pytest.raises(ValueError, match=message):
        model()(**{**batch(loss=True), **change})
