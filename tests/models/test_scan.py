"""SCAN: its scores recomputed word by word, its processor, its checkpoints, bad input, and that it learns."""

import argparse
import itertools
import json

import numpy as np
import pytest
import torch
from golden_case import GOLDEN, GoldenCase
from huggingface_hub.errors import StrictDataclassError
from peft import get_peft_model
from PIL import Image
from tiny import TINY
from torch.nn.functional import cosine_similarity, leaky_relu, normalize
from transformers import AutoProcessor

from hf_mmunify.conversion import engine
from hf_mmunify.conversion.errors import (
    MissingKeysError,
    NonFiniteWeightsError,
    UnsafeCheckpointError,
    WrongConfigError,
)
from hf_mmunify.conversion.scan import convert, export, processor
from hf_mmunify.data import DigitScenes, Regions, RetrievalCollator
from hf_mmunify.data.digit_scenes import VOCABULARY
from hf_mmunify.evaluation import RetrievalEvaluator
from hf_mmunify.models.scan import (
    SCAN_PRESETS,
    ScanConfig,
    ScanForImageTextRetrieval,
    ScanModel,
    ScanProcessor,
    modeling_scan,
    scan_tokenizer,
)
from hf_mmunify.training import lora_config


ROW, RETRIEVAL = TINY["scan"], "AutoModelForImageTextRetrieval"


def model(**changes) -> ScanForImageTextRetrieval:
    torch.manual_seed(0)
    return ScanForImageTextRetrieval(ROW.config(**changes)).eval()


# Scores ------------------------------------------------------------------------------------------------------------


def score_by_words(regions: torch.Tensor, words: torch.Tensor, config: ScanConfig) -> torch.Tensor:
    """The score of one image and one text as the paper writes it (equations of section 3.1), mixtures and all."""
    context, queries = (regions, words) if config.cross_attention == "t2i" else (words, regions)
    raw = context @ queries.T  # of each thing (row) that is looked at by each that looks (column)
    kind = config.attention_normalization
    if kind.startswith("clipped"):
        raw = leaky_relu(raw, 0.1)
    if kind.endswith("norm") and kind != "no_norm":
        raw = normalize(raw, p=2 if "l2" in kind else 1, dim=1)
    elif kind == "softmax":
        raw = raw.softmax(dim=1)
    weights = (config.attention_scale * raw).softmax(dim=0)
    scores = cosine_similarity(queries, weights.T @ context, dim=1)
    if config.aggregation == "lse":
        return (config.aggregation_scale * scores).exp().sum().log() / config.aggregation_scale
    return getattr(torch, {"max": "amax"}.get(config.aggregation, config.aggregation))(scores)


@pytest.mark.parametrize(
    "direction, kind, aggregation",
    [
        *itertools.product(
            ("t2i", "i2t"),
            ("clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "softmax", "no_norm"),
            ("lse",),
        ),
        *itertools.product(("t2i", "i2t"), ("clipped_l2norm",), ("mean", "max", "sum")),
    ],
)
def test_scores_are_the_papers(direction, kind, aggregation):
    """Of images and texts of all sizes at once, without a mixture ever being made."""
    ours = model(cross_attention=direction, attention_normalization=kind, aggregation=aggregation).double()
    batch = ROW.batch()
    batch["region_features"] = batch["region_features"].double()
    with torch.no_grad():
        outputs = ours(**batch, output_attentions=True)
        states = (
            outputs.region_states,
            batch["region_mask"].bool(),
            outputs.word_states,
            batch["attention_mask"].bool(),
        )
        scores, _ = ours.model.compare(*states)
    for image, text in itertools.product(range(4), range(4)):
        regions = outputs.region_states[image][batch["region_mask"][image].bool()]
        words = outputs.word_states[text][batch["attention_mask"][text].bool()]
        expected = score_by_words(regions, words, ours.config)
        torch.testing.assert_close(scores[image, text], expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(outputs.logits, scores.diagonal())


def test_all_pairs_are_scored_in_blocks(monkeypatch):
    ours, batch = model(), ROW.batch()
    regions, region_mask = ours.model.encode_regions(batch["region_features"], batch["region_mask"])
    words, word_mask, _ = ours.model.encode_words(batch["input_ids"], batch["attention_mask"])
    whole, _ = ours.model.compare(regions, region_mask, words, word_mask)
    monkeypatch.setattr(modeling_scan, "BLOCK", 1)
    torch.testing.assert_close(ours.model.compare(regions, region_mask, words, word_mask)[0], whole)


def test_a_gru_of_both_directions_is_torchs():
    """Two layers of both directions, of which no golden case is, on texts of several lengths."""
    ours = model(num_hidden_layers=2).model
    torchs = torch.nn.GRU(384, 64, num_layers=2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for number, layer in enumerate(ours.text_encoder.layers):
            for suffix, direction in (("", layer.forwards), ("_reverse", layer.backwards)):
                for name, parameter in direction.named_parameters():
                    getattr(torchs, f"{name}_l{number}{suffix}").copy_(parameter)
    batch = ROW.batch()
    words, _, _ = ours.encode_words(batch["input_ids"], batch["attention_mask"])
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        states = torchs(ours.get_input_embeddings()(batch["input_ids"][row : row + 1, :length]))[0][0]
        expected = normalize((states[:, :64] + states[:, 64:]) / 2, dim=1)
        torch.testing.assert_close(words[row, :length], expected, atol=1e-6, rtol=1e-5)
        assert not words[row, length:].any()


def test_attention_says_where_a_word_looks():
    ours, batch = model(cross_attention="t2i"), ROW.batch()
    with torch.no_grad():
        (maps,) = ours(**batch, output_attentions=True).attentions
    assert maps.shape == (4, 7, 5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 7))
    assert not maps.masked_select(batch["region_mask"][:, None] == 0).any()
    turned = model(cross_attention="i2t")(**batch, output_attentions=True).attentions[0]
    assert turned.shape == (4, 5, 7) and not turned.masked_select(batch["attention_mask"][:, None] == 0).any()


def test_checkpointing_changes_no_gradient():
    ours, batch = model(num_hidden_layers=2).train(), ROW.training_batch(RETRIEVAL)
    expected, runs = {}, []
    for checkpointing in (None, False, True):
        if checkpointing is not None:
            ours.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        hook = ours.model.text_encoder.layers[0].forwards.register_forward_hook(lambda *_: runs.append(1))
        ours.zero_grad()
        ours(**batch).loss.backward()
        hook.remove()
        found = {name: p.grad.clone() for name, p in ours.named_parameters()}
        expected = expected or found
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], msg=lambda m, n=name: f"{n}: {m}")
    assert len(runs) == 1 + 2 + 2  # once, and twice where a layer is recomputed


def test_weights_start_as_the_authors_do():
    ours = model(hidden_size=256)
    projection, gru = ours.model.region_projection, ours.model.text_encoder.layers[0].forwards
    assert abs(projection.weight.abs().max() - (6 / (64 + 256)) ** 0.5) < 1e-3 and not projection.bias.any()
    assert abs(ours.get_input_embeddings().weight.abs().max() - 0.1) < 1e-3
    assert abs(gru.weight_hh.abs().max() - 256**-0.5) < 1e-3
    normed = model(region_weight_norm=True).model.region_projection
    torch.testing.assert_close(normed.weight_g[0], normed.weight_v.norm())


# Processor ---------------------------------------------------------------------------------------------------------


WORDS = ["a", "man", "'s", "do", "n't", "t-shirt", ",", "is", "red", "!"]
SENTENCE = "A man's t-shirt, isn't red! Don't"


def test_texts_become_the_authors_words():
    tokenizer = scan_tokenizer(WORDS)
    words = tokenizer.convert_ids_to_tokens(tokenizer(SENTENCE)["input_ids"])
    assert words == ["<start>", "a", "man", "'s", "t-shirt", ",", "is", "n't", "red", "!", "do", "n't", "<end>"]
    assert tokenizer("a zebra")["input_ids"] == [1, 4, 3, 2]
    assert tokenizer("")["input_ids"] == [1, 2]
    ids = {word: number for number, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *WORDS])}
    assert scan_tokenizer(ids)(SENTENCE)["input_ids"] == tokenizer(SENTENCE)["input_ids"]
    with pytest.raises(ValueError, match="at 0 to 3, as `word2idx`"):
        scan_tokenizer({"a": 0})


def test_the_processor_reads_regions_and_comes_back(tmp_path):
    ours = ScanProcessor(scan_tokenizer(WORDS), region_feature_size=8, max_regions=3)
    ours.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is ScanProcessor and again.to_dict() | {"auto_map": None} == ours.to_dict() | {"auto_map": None}
    few, many = torch.randn(2, 8), Regions(torch.randn(5, 8), scores=[0.1, 0.5, 0.4, 0.9, 0.3])
    for one in (ours, again):
        batch = one(images=[few, many], text=["a man", SENTENCE], return_tensors="pt")
        assert set(batch) == set(one.model_input_names)
        assert torch.equal(batch["region_features"][1], many.features[[1, 2, 3]])
        assert batch["region_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
        assert batch["attention_mask"].sum(1).tolist() == [4, 13] and batch["input_ids"][0, 4:].tolist() == [0] * 9
    alone = ours(images=many, text="a man", return_tensors="pt")
    assert alone["region_features"].shape == (1, 3, 8) and alone["input_ids"].shape == (1, 4)
    assert ours(images=few, return_tensors="pt").keys() == {"region_features", "region_mask"}
    assert ours(text=["a"], return_tensors="np").keys() == {"input_ids", "attention_mask"}
    cut = ours(text=SENTENCE, max_length=5, truncation=True, return_tensors="pt")["input_ids"][0]
    assert len(cut) == 5 and cut[-1] == 2  # a caption longer than allowed ends all the same


def test_attention_becomes_a_picture():
    """Each word's picture is bright where its regions are."""
    regions = Regions(torch.randn(2, 8), torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]))
    ours = ScanProcessor(scan_tokenizer(WORDS), region_feature_size=8)
    attention = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]])
    sheet = ours.draw_attention(
        Image.new("L", (40, 20), 200), regions, attention, ["left", "right"], columns=2, size=40
    )
    assert sheet.size == (80, 36)
    pixels = np.asarray(sheet)[16:, :, 0].reshape(20, 4, 20).mean((0, 2))  # halves of the two pictures
    assert pixels[0] == 200 and pixels[3] == 200 and pixels[1] < 60 and pixels[2] < 90
    with pytest.raises(ValueError, match="these regions have none"):
        ours.draw_attention(Image.new("RGB", (40, 20)), regions.features, attention, ["left"])
    with pytest.raises(ValueError, match=r"\[4 words, 2 regions\], got \[3, 3\]"):
        ours.draw_attention(Image.new("RGB", (40, 20)), regions, attention, ["a"] * 4)


# Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"region_features": torch.zeros(4, 5, 65)}, r"\[batch, regions, 64\], got \[4, 5, 65\].*another detector"),
        ({"region_features": torch.zeros(5, 64)}, r"got \[5, 64\]"),
        ({"region_features": torch.full((4, 5, 64), float("nan"))}, "NaN or infinity"),
        ({"region_features": torch.zeros(3, 5, 64), "region_mask": None}, "as many images as texts, got 3 and 4"),
        ({"region_mask": torch.ones(4, 6)}, r"region_mask of shape \[4, 5\], got \[4, 6\]"),
        ({"region_mask": torch.tensor([[1] * 5] * 2 + [[0] * 5] + [[1] * 5])}, "row 2 of the batch has no region"),
        ({"attention_mask": torch.tensor([[1] * 7] * 3 + [[0] * 7])}, "row 3 of the batch has no word"),
        ({"attention_mask": torch.ones(4, 6)}, r"attention_mask of shape \[4, 7\], got \[4, 6\]"),
        ({"input_ids": torch.full((4, 7), 999)}, r"input_ids are from 0 to \d+, got 999 to 999.*belong together"),
        ({"input_ids": torch.full((4, 7), -1)}, "got -1 to -1"),
        ({"input_ids": torch.zeros(0, 7).long(), "attention_mask": torch.zeros(0, 7)}, "The batch is empty"),
        ({"input_ids": None}, "A pair is an image and a text"),
        ({"region_features": None}, "A pair is an image and a text"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        model()(**{**ROW.batch(), **changes})


def test_nan_where_there_is_no_region_is_not_seen():
    ours, batch = model(), ROW.batch()
    spoilt = batch["region_features"].masked_fill(batch["region_mask"][..., None] == 0, float("nan"))
    assert torch.equal(ours(**{**batch, "region_features": spoilt}).logits, ours(**batch).logits)


def test_any_number_of_regions_and_words_is_read():
    """There are no positions to run out of."""
    ours = model()
    features, ids = torch.randn(1, 500, 64), torch.randint(4, 20, (1, 300))
    assert ours(input_ids=ids, region_features=features).logits.isfinite().all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cross_attention": "both"}, "cross_attention is one of t2i, i2t; got 'both'"),
        ({"aggregation": "LogSumExp"}, "aggregation is one of lse, mean, max, sum; got 'LogSumExp'"),
        ({"attention_normalization": "l3norm"}, "attention_normalization is one of"),
        ({"hidden_size": 0}, "hidden_size is at least 1, got 0"),
    ],
)
def test_a_config_that_makes_no_model_is_named(changes, message):
    with pytest.raises(StrictDataclassError) as refused:
        ROW.config(**changes)
    assert message in f"{refused.value} {refused.value.__cause__}"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: p(), "Nothing to process"),
        (lambda p: p(text=[]), "The batch is empty: give at least one text"),
        (lambda p: p(images=[]), "The batch is empty: give the regions"),
        (lambda p: p(images=[Image.new("RGB", (8, 8))]), "got Image: the model reads what a detector sees"),
        (lambda p: p(images=Image.new("RGB", (8, 8))), "got Image: the model reads what a detector sees"),
        (lambda p: p(images=[torch.randn(2, 7)]), "of width 8, but those of image 0 have 7"),
        (lambda p: p(images=[torch.tensor([[float("inf")] * 8])]), "NaN or infinity"),
        (
            lambda p: p(images=[{"features": torch.randn(1, 8), "boxes": [[10, 10, 90, 90]]}]),
            "fractions of the image, but box 0 is",
        ),
    ],
)
def test_the_processor_names_what_it_cannot_read(call, message):
    with pytest.raises(ValueError, match=message):
        call(ScanProcessor(scan_tokenizer(WORDS), region_feature_size=8))


# Checkpoints -------------------------------------------------------------------------------------------------------


def published(tmp_path, **options):
    """A file as the authors' `train.py` writes it: a list of two state dicts, and the options as a namespace."""
    case = GoldenCase(GOLDEN / "scan" / "i2t_lse.json")
    parts = [{}, {}]
    for key, tensor in case.state_dict().items():
        number, _, name = key.partition(".")
        parts[int(number)][name] = tensor
    opt = argparse.Namespace(**{**case.info["config"], **options})
    file = tmp_path / "model_best.pth.tar"
    content = {"epoch": 3, "model": parts, "best_rsum": 400.0, "opt": opt, "Eiters": 7}
    torch.save(content, file, _use_new_zipfile_serialization=False)  # as torch 0.3 did
    return case, file


def test_a_published_file_brings_its_options_along(tmp_path):
    case, file = published(tmp_path)
    ours = convert(file)
    assert (ours.config.cross_attention, ours.config.aggregation) == ("i2t", "lse")
    assert (ours.config.attention_scale, ours.config.aggregation_scale) == (4.0, 5.0)
    assert (ours.config.vocab_size, ours.config.hidden_size, ours.config.region_feature_size) == (30, 16, 24)
    assert ours.config.hardest_negatives and ours.config.bidirectional
    original = case.state_dict()
    exported = export(ours)
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[key], original[key]) for key in original)
    with pytest.raises(WrongConfigError, match="holds no options"):
        convert(original)


def test_what_was_asked_for_wins_over_what_the_file_says(tmp_path):
    case, file = published(tmp_path)
    ours = convert(file, {**case.info["config"], "agg_func": "Mean"})
    assert ours.config.aggregation == "mean"
    with pytest.raises(WrongConfigError, match=r"agg_func|Median"):
        convert(file, {**case.info["config"], "agg_func": "Median"})


def test_a_damaged_file_is_named(tmp_path):
    _, file = published(tmp_path)
    content = engine.read(file)
    del content["model"][1]["rnn.weight_hh_l0"]
    with pytest.raises(MissingKeysError, match="weight_hh"):
        convert(content)
    content = engine.read(published(tmp_path)[1])
    content["model"][0]["fc.bias"][0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match=r"region_projection\.bias|fc\.bias"):
        convert(content)


class Runs:
    """A pickle that runs a command when it is read."""

    def __reduce__(self):
        return print, ("this ran",)


def test_a_malicious_file_is_refused(tmp_path, capsys):
    _, file = published(tmp_path, logger=Runs())
    with pytest.raises(UnsafeCheckpointError, match="print"):
        convert(file)
    assert "this ran" not in capsys.readouterr().out


def test_the_processor_is_made_of_the_authors_vocabulary(tmp_path):
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", "a", "dog"])}
    file = tmp_path / "f30k_precomp_vocab.json"
    file.write_text(json.dumps({"word2idx": vocabulary, "idx2word": {}, "idx": 6}))
    options = {"vocab_path": str(tmp_path), "data_name": "f30k_precomp", "img_dim": 24}
    found = processor(options)
    assert found.region_feature_size == 24 and found(text="A dog!")["input_ids"] == [[1, 4, 5, 3, 2]]
    assert processor({**options, "data_name": "coco_precomp"}) is None and processor(None) is None


# Retrieval ---------------------------------------------------------------------------------------------------------


def cells(image: np.ndarray) -> Regions:
    """The nine cells of a digit scene as its regions: pixels for features, and boxes."""
    pixels = torch.as_tensor(image).float() / 255
    features = pixels.view(3, 8, 3, 8, 3).permute(0, 2, 1, 3, 4).reshape(9, 192)
    boxes = [[x / 3, y / 3, (x + 1) / 3, (y + 1) / 3] for y in range(3) for x in range(3)]
    return Regions(features, boxes)


def pairs(split: str, number: int) -> list[dict]:
    scenes = DigitScenes(split=split, image_size=24, max_objects=2).examples("retrieval", number)
    return [{"image": cells(scene["image"]), "caption": scene["caption"]} for scene in scenes]


def test_the_evaluator_ranks_by_all_scores():
    """What it makes of pairs, one by one, is what `compare` says of all at once."""
    ours = ScanForImageTextRetrieval(
        ScanConfig(vocab_size=len(VOCABULARY) + 4, region_feature_size=192, hidden_size=32)
    )
    rows = pairs("train", 12)
    reader = ScanProcessor(scan_tokenizer(VOCABULARY), region_feature_size=192)
    evaluator = RetrievalEvaluator(ours.eval(), reader, batch_size=5, top_k=None, match_batch_size=7)
    images, captions = [row["image"] for row in rows], [row["caption"] for row in rows]
    found, _ = evaluator.scores(images, captions)
    batch = reader(images=images, text=captions, return_tensors="pt")
    with torch.no_grad():
        regions, words = (
            ours.encode_images(batch["region_features"]),
            ours.encode_texts(batch["input_ids"], batch["attention_mask"]),
        )
        expected, _ = ours.model.compare(**regions, **words)
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=1e-5)


def test_it_learns_to_find_unseen_handwriting():
    """Captions of two digits, of writers that were not trained on; blind, it is at chance (1 in 100)."""
    reader = ScanProcessor(scan_tokenizer(VOCABULARY), region_feature_size=192)
    torch.manual_seed(0)
    ours = ScanForImageTextRetrieval(
        ScanConfig(
            vocab_size=len(reader.tokenizer),
            region_feature_size=192,
            word_embedding_size=32,
            hidden_size=64,
            **SCAN_PRESETS["f30k-t2i-avg"],
        )
    )
    rows, collate = pairs("train", 1200), RetrievalCollator(reader)
    optimizer = torch.optim.Adam(ours.parameters(), lr=3e-3)
    for step in range(100):
        ours.config.hardest_negatives = step >= 40  # with all of them it finds its way sooner
        chosen = torch.randint(len(rows), (64,)).tolist()
        ours(**collate([rows[i] for i in chosen])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    held_out = pairs("test", 100)
    evaluator = RetrievalEvaluator(ours.eval(), reader, top_k=None, match_batch_size=1024)
    found, blind = evaluator.evaluate(held_out), evaluator.evaluate(held_out, blind=True)
    assert found["image_to_text_recall@1"] > 0.7 and found["text_to_image_recall@1"] > 0.7
    assert blind["image_to_text_recall@1"] < 0.05 and blind["text_to_image_recall@1"] < 0.05
    assert looks_at_its_digit(ours, reader) > 0.9


def looks_at_its_digit(ours: ScanForImageTextRetrieval, reader: ScanProcessor) -> float:
    """How often the name of a digit looks at its cell more than at any other; 1 in 9 by chance."""
    scenes, draw, hits = DigitScenes(split="test", image_size=24), np.random.default_rng(0), []
    for index in range(30):
        (red, blue), digits = draw.permutation(9)[:2], draw.permutation(10)[:2]
        scene = scenes.compose({int(red): ("red", int(digits[0])), int(blue): ("blue", int(digits[1]))}, index)
        batch = reader(images=[cells(scene.render())], text=scene.caption(), return_tensors="pt")
        with torch.no_grad():
            attention = ours(**batch, output_attentions=True).attentions[0][0]  # [T, R]
        words = reader.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
        for thing in scene.visible:
            digit = thing.name.split()[1]
            hits.append(int(attention[words.index(digit)].argmax()) == scene.cell(thing))
    return sum(hits) / len(hits)


def test_lora_leaves_the_gru_alone():
    adapted = get_peft_model(model(), lora_config(model()))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 4 and all("region_projection" in name or "word_embeddings" in name for name in trained)


def test_the_base_model_encodes_one_side_alone():
    ours, batch = model().model, ROW.batch()
    assert type(ours) is ScanModel
    only_text = ours(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    only_image = ours(region_features=batch["region_features"], region_mask=batch["region_mask"])
    both = ours(**batch)
    assert torch.equal(only_text.word_states, both.word_states) and only_text.region_states is None
    assert torch.equal(only_image.region_states, both.region_states) and only_image.word_states is None
    with pytest.raises(ValueError, match="Nothing to encode"):
        ours()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours(**batch, inputs_embeds=ours.get_input_embeddings()(batch["input_ids"]))
