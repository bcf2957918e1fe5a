"""ViLT against transformers' own, its way of choosing patches and false pairs, what loads into what, and bad input."""

import pytest
import torch
import transformers
from golden_case import GOLDEN, GoldenCase
from tiny import TINY
from torch import nn
from transformers import AutoModelForPreTraining

from hf_mmunify.auto import AutoModelForImageTextRetrieval, AutoModelForVisualReasoning
from hf_mmunify.conversion.vilt import convert, export
from hf_mmunify.models.vilt import ViltForPreTraining, ViltModel
from hf_mmunify.models.vilt.modeling_vilt import interpolation_weights


ROW = TINY["vilt"]
RETRIEVAL, REASONING = "AutoModelForImageTextRetrieval", "AutoModelForVisualReasoning"
PRETRAINING, ANSWERING = "AutoModelForPreTraining", "AutoModelForVisualQuestionAnswering"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The native model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_name", ["AutoModel", RETRIEVAL, REASONING, ANSWERING])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_answers_as_the_native_model(auto_name, attention, tmp_path):
    model = ROW.model(auto_name, attn_implementation=attention)
    model.save_pretrained(tmp_path)
    native = getattr(transformers, type(model).__name__).from_pretrained(tmp_path)
    assert type(native).__module__.startswith("transformers.")
    batch = ROW.batch(auto_name=auto_name)
    ours, theirs = model(**batch), native(**batch)
    name = "pooler_output" if auto_name == "AutoModel" else "logits"
    torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_native_masked_language_model_brings_its_output_along(tmp_path):
    native = transformers.ViltForMaskedLM(ROW.config()).eval()
    native.save_pretrained(tmp_path)
    model, report = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"mlm_score.decoder.weight", "itm_score.weight", "itm_score.bias"}
    batch = ROW.batch()
    words = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).logits[words], native(**batch).logits[words], atol=1e-5, rtol=1e-5)
    assert model.mlm_score.decoder.weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("length, width", [(1, 1), (1, 5), (3, 4), (4, 4), (7, 2), (12, 20)])
def test_positions_are_interpolated_as_the_original_does(length, width):
    table = torch.randn(1, 6, 4, 4, generator=generator())  # [1, D, N, N]
    expected = nn.functional.interpolate(table, size=(length, width), mode="bilinear", align_corners=True)[0]
    rows, columns = (interpolation_weights(torch.tensor([size]), size + 3, 4)[0, :size] for size in (length, width))
    torch.testing.assert_close(torch.einsum("hp,wq,dpq->dhw", rows, columns, table[0]), expected)


# Patches -----------------------------------------------------------------------------------------------------------


def with_limit(keep: int) -> ViltModel:
    return ViltModel(ROW.config(max_image_length=keep)).eval()


@torch.no_grad()
def test_in_evaluation_the_same_patches_are_kept_whatever_stands_beside():
    model, images = with_limit(4), ROW.batch()
    embedded = model.embed_images(images["pixel_values"], images["pixel_mask"])
    assert (
        embedded.positions.shape == (4, 4, 2)
        and embedded.mask[:3].all()
        and embedded.mask[3].tolist() == [1] * 4 + [0]
    )
    again = model.embed_images(images["pixel_values"], images["pixel_mask"])
    assert torch.equal(embedded.embeds, again.embeds)
    alone = model.embed_images(images["pixel_values"][2:3, :, :16])  # the third image without its padding
    assert torch.equal(alone.positions, embedded.positions[2:3])
    torch.testing.assert_close(alone.embeds, embedded.embeds[2:3], atol=1e-5, rtol=1e-5)
    rows, columns = embedded.positions[0].unbind(-1)
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == 3  # spread over the image


@torch.no_grad()
def test_in_training_chance_chooses_and_can_be_had_again():
    model, images = with_limit(4).train(), ROW.batch()
    images = {name: images[name] for name in ("pixel_values", "pixel_mask")}
    first, second, third = (model.embed_images(**images, generator=generator(seed)).positions for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)
    noise = torch.arange(9.0).flip(0).expand(4, -1)  # the last patches are wanted most
    chosen = model.embed_images(**images, noise=noise)
    assert chosen.positions[0].tolist() == [[1, 2], [2, 0], [2, 1], [2, 2]]
    assert chosen.positions[2].tolist() == [[0, 2], [1, 0], [1, 1], [1, 2]]  # padding is not chosen


@torch.no_grad()
def test_padding_is_not_carried_along():
    model, images = with_limit(-1), ROW.batch()
    embedded = model.embed_images(images["pixel_values"][2:], images["pixel_mask"][2:])
    assert embedded.embeds.shape[1] == 1 + 6 and embedded.mask.sum(1).tolist() == [7, 4]


# Retrieval ---------------------------------------------------------------------------------------------------------


def test_retrieval_starts_from_the_matching_head(tmp_path):
    pretrained = ROW.model(PRETRAINING)
    pretrained.save_pretrained(tmp_path)
    model = AutoModelForImageTextRetrieval.from_pretrained(tmp_path)
    batch = ROW.batch()
    with torch.no_grad():
        assert torch.equal(model.rank_output.weight, pretrained.itm_score.weight[1:])
        torch.testing.assert_close(model(**batch).logits[:, 0], pretrained(**batch).itm_logits[:, 1])
        model.rank_output.weight.fill_(0.5)
    model.save_pretrained(tmp_path / "tuned")
    again = AutoModelForImageTextRetrieval.from_pretrained(tmp_path / "tuned")
    assert (again.rank_output.weight == 0.5).all()  # only what is missing starts from elsewhere
    assert {name for name, p in again.named_parameters() if not p.requires_grad} == {
        "itm_score.weight",
        "itm_score.bias",
        "rank_output.bias",
    }


def test_false_texts_are_those_of_other_images():
    model, batch = ROW.model(RETRIEVAL), ROW.batch()
    texts, masks = batch["input_ids"], batch["attention_mask"]
    others = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    given = model(**batch, false_input_ids=texts[others], false_attention_mask=masks[others], return_loss=True)
    drawn = model(**batch, return_loss=True)
    torch.testing.assert_close(drawn.logits, given.logits)
    torch.testing.assert_close(drawn.loss, nn.functional.cross_entropy(given.logits, torch.zeros(4).long()))
    same = model(**batch, image_ids=torch.tensor([0, 0, 1, 2]))  # the first two show one image
    lowest = torch.finfo(torch.float32).min
    expected = given.logits.index_put((torch.tensor([0, 1]), torch.tensor([1, 1])), torch.tensor(lowest))
    torch.testing.assert_close(same.loss, nn.functional.cross_entropy(expected, torch.zeros(4).long()))


def test_as_many_false_texts_as_asked_are_drawn_and_can_be_had_again():
    model, batch = ROW.model(RETRIEVAL), ROW.batch()
    model.num_false_texts = 2
    first, second, third = (model(**batch, return_loss=True, generator=generator(seed)).logits for seed in (0, 0, 5))
    assert first.shape == (4, 3) and torch.equal(first, second) and not torch.equal(first, third)
    assert model(**{name: value[:1] for name, value in batch.items()}, return_loss=True).loss == 0


@torch.no_grad()
def test_pairs_that_are_encoded_once_score_as_if_read_together():
    model, batch = ROW.model(RETRIEVAL), ROW.batch()
    images = model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    texts = model.encode_texts(batch["input_ids"], batch["attention_mask"])
    order = torch.tensor([2, 0, 3, 1])
    scores = model.match({name: value[order] for name, value in images.items()}, texts)
    shown = {name: batch[name][order] for name in ("pixel_values", "pixel_mask")}
    torch.testing.assert_close(scores, model(**{**batch, **shown}).logits[:, 0], atol=1e-5, rtol=1e-5)
    plain = model.encode_images(batch["pixel_values"])
    assert plain["mask"].shape == (4, 10) and plain["mask"].all()


# Pre-training and pairs of images ----------------------------------------------------------------------------------


def test_false_images_are_drawn_from_the_batch():
    model, batch = ROW.model(PRETRAINING), ROW.training_batch(PRETRAINING)
    for name in ("false_pixel_values", "false_pixel_mask", "matched"):
        del batch[name]
    first, second = (model(**batch, generator=generator(3)) for _ in range(2))
    assert torch.equal(first.loss, second.loss) and first.matched.sum() == 2
    one = torch.zeros(4, dtype=torch.long)  # all rows show the same image, so none is false
    assert model(**batch, image_ids=one).matched.all()
    assert model(**{name: value[:1] for name, value in batch.items()}).matched.all()
    pixels, mask, shown = batch["pixel_values"], batch["pixel_mask"], torch.zeros(4).bool()
    ids = torch.tensor([0, 0, 0, 1])
    _, images, _ = model._shown_images(pixels, mask, None, None, shown, ids, None)
    assert torch.equal(images[:3], pixels[3:].expand(3, -1, -1, -1)) and any(torch.equal(images[3], p) for p in pixels)


def test_the_second_image_of_a_pair_starts_with_the_type_of_the_first(tmp_path):
    config = ROW.config(modality_type_vocab_size=2)
    ViltForPreTraining(config).save_pretrained(tmp_path)
    model = AutoModelForVisualReasoning.from_pretrained(tmp_path)
    types = model.vilt.embeddings.token_type_embeddings.weight
    assert model.config.num_images == 2 and model.config.modality_type_vocab_size == 3 and types.requires_grad
    assert types.shape == (3, 64) and torch.equal(types[2], types[1]) and not torch.equal(types[1], types[0])
    model.save_pretrained(tmp_path / "pairs")
    again, report = AutoModelForVisualReasoning.from_pretrained(tmp_path / "pairs", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    batch = ROW.batch(auto_name=REASONING)
    assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


@pytest.mark.parametrize("name", ["pretrain", "irtr", "vqa", "nlvr2"])
def test_lightning_files_come_and_go(name, tmp_path):
    case = GoldenCase(GOLDEN / "vilt" / f"{name}.json")
    weights = case.state_dict()
    stored = {**weights, "text_embeddings.position_ids": torch.arange(12)[None]}
    file = {"epoch": 9, "pytorch-lightning_version": "1.1.4", "state_dict": stored, "hyper_parameters": {"config": {}}}
    torch.save(file, tmp_path / f"vilt_{name}.ckpt")
    exported = export(convert(tmp_path / f"vilt_{name}.ckpt", case.info["config"]))
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[key], weight) for key, weight in weights.items())


# Bad input ---------------------------------------------------------------------------------------------------------

BATCH = ROW.batch()
TEXT = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
IMAGE = {"pixel_values": BATCH["pixel_values"]}


@pytest.mark.parametrize(
    "auto_name, given, message",
    [
        ("AutoModel", IMAGE, "either input_ids or inputs_embeds"),
        ("AutoModel", TEXT, "either pixel_values or image_embeds"),
        (
            "AutoModel",
            {"input_ids": torch.ones(4, 25).long(), **IMAGE},
            "1 to 24 tokens .* got 25: .*truncation",
        ),
        ("AutoModel", {"input_ids": torch.ones(4, 0).long(), **IMAGE}, "got 0"),
        ("AutoModel", {**TEXT, "pixel_values": torch.zeros(3, 3, 24, 24)}, "got 4 texts and 3 images"),
        ("AutoModel", {**TEXT, "pixel_values": torch.zeros(4, 3, 24, 7)}, r"at least one patch of \(8, 8\), got"),
        ("AutoModel", {**TEXT, "pixel_values": torch.zeros(4, 1, 24, 24)}, "channel dimension"),
        ("AutoModel", {**TEXT, **IMAGE, "pixel_mask": torch.ones(4, 16)}, r"expected \(4, height, width\), got"),
        (PRETRAINING, {**TEXT, **IMAGE, "labels": TEXT["input_ids"]}, r"missing: make both with .*mask_tokens"),
        (
            PRETRAINING,
            {
                **TEXT,
                **IMAGE,
                "labels": TEXT["input_ids"],
                "masked_input_ids": TEXT["input_ids"],
                "false_pixel_values": torch.zeros(4, 3, 16, 16),
            },
            r"same size, \(4, 3, 24, 24\), got \(4, 3, 16, 16\)",
        ),
        (
            RETRIEVAL,
            {**TEXT, **IMAGE, "false_input_ids": torch.ones(4, 2, 5).long(), "return_loss": True},
            r"expected \(4, number, 6\), got \(4, 2, 5\)",
        ),
        (ANSWERING, {**TEXT, **IMAGE, "labels": torch.zeros(4, 3)}, r"all 5 answers: .* \(4, 5\), got .* \(4, 3\)"),
        (ANSWERING, {**TEXT, **IMAGE, "labels": torch.zeros(4, 5).long()}, "expected floats"),
        (REASONING, {**TEXT, **IMAGE}, r"Each row has 2 images: .*\(batch, 2, channels, height, width\), got"),
        (
            REASONING,
            {**TEXT, "pixel_values": torch.zeros(4, 2, 3, 24, 24), "labels": torch.tensor([0, 1, 2, 0])},
            "classes from 0 to 1, got 0 to 2",
        ),
        (
            "AutoModelForVisualEntailment",
            {**TEXT, **IMAGE, "labels": torch.zeros(4, 3)},
            r"one class for each row: expected shape \(4,\), got \(4, 3\)",
        ),
    ],
)
def test_input_that_cannot_be_right_is_named(auto_name, given, message):
    with pytest.raises(ValueError, match=message):
        ROW.model(auto_name)(**given)
