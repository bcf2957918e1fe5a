"""Retrieval and zero-shot classification: known recalls, each thing encoded once, the originals' re-ranking."""

import itertools

import pytest
import retrieval_parts
import torch
from datasets import Dataset
from PIL import Image
from tiny import TINY
from torch import nn
from transformers import pipeline

from hf_mmunify.data import DigitScenes
from hf_mmunify.embedding_index import EmbeddingIndex, EmbeddingIndexError
from hf_mmunify.evaluation import (
    EmbeddingModel,
    MatchingModel,
    PairScorer,
    RetrievalEvaluator,
    TwoTowers,
    ZeroShotClassifier,
    as_retrieval_model,
    recall_at_k,
)
from hf_mmunify.evaluation.retrieval import taken_inputs
from hf_mmunify.registry import ARCHITECTURES


@pytest.fixture(scope="module")
def rows():
    return DigitScenes("test").examples("retrieval", 11)


def columns(rows):
    return [row["image"] for row in rows], [row["caption"] for row in rows]


# Recall ------------------------------------------------------------------------------------------------------------


def test_recall_by_hand():
    """Of three images the first is found first, the second second and the third last."""
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.7, 0.6, 0.5]])
    result = recall_at_k(scores, [0, 1, 2], ks=(1, 2, 3))
    assert [result[f"image_to_text_recall@{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [result[f"text_to_image_recall@{k}"] for k in (1, 2, 3)] == pytest.approx([1, 1, 1])
    assert result["mean_recall"] == pytest.approx((1 / 3 + 2 / 3 + 4) / 6)
    both = recall_at_k((scores, scores.T.flip(1)), torch.eye(3, dtype=torch.bool), ks=(1,))
    assert both["image_to_text_recall@1"] == pytest.approx(1 / 3)
    assert both["text_to_image_recall@1"] == pytest.approx(1 / 3)  # what was last is first; the middle stays behind


def test_several_captions_of_an_image_count_once_by_the_best():
    scores = torch.tensor([[0.5, 0.1, 0.9, 0.2], [0.3, 0.4, 0.1, 0.2]])
    result = recall_at_k(scores, [0, 0, 1, 1], ks=(1, 2, 3))
    # image 0: 0.9 (not its own), 0.5; image 1: 0.4, 0.3 (not its own), 0.2
    assert [result[f"image_to_text_recall@{k}"] for k in (1, 2, 3)] == [0.0, 0.5, 1.0]
    # captions 0 and 3 are right (a tie), 1 and 2 are wrong
    assert result["text_to_image_recall@1"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)


def test_equal_scores_earn_what_a_random_order_earns():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (40, 7), generator=draw).float()
    positives = torch.rand(40, 7, generator=draw) < 0.4
    positives[:, 0] |= ~positives.any(dim=1)
    orders = torch.tensor(list(itertools.permutations(range(7))))  # [5040, 7]
    for k in (1, 2, 5, 7):
        found = []
        for row, right in zip(scores, positives):
            shuffled = row[orders].sort(dim=1, descending=True, stable=True).indices
            found.append(right[orders].gather(1, shuffled)[:, :k].any(dim=1).double().mean())
        result = recall_at_k((scores, scores.T), positives | (torch.arange(40)[:, None] == 0), ks=(k,))
        expected = torch.stack(found)
        expected[0] = 1.0  # the first row was made right throughout, so that every column has a positive
        assert result[f"image_to_text_recall@{k}"] == pytest.approx(float(expected.mean()), abs=1e-12)
    constant = recall_at_k(torch.zeros(8, 8), list(range(8)), ks=(1, 4, 8, 20))
    assert list(constant.values())[:4] == [0.125, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "scores, positives, ks, message",
    [
        (torch.zeros(2, 3), [0, 1, 2], (1,), "from 0 to 1; got 0 to 2"),
        (torch.zeros(2, 3), [0, 1], (1,), r"bool matrix \[images, texts\] = \[2, 3\]"),
        (torch.zeros(2, 2), torch.eye(2), (1,), "got torch.float32 of shape"),
        (torch.zeros(2, 3), [0, 0, 0], (1,), r"1 image\(s\) have no text that belongs to them, the first is number 1"),
        (torch.full((2, 2), torch.nan), [0, 1], (1,), "Scores are NaN"),
        (torch.zeros(2, 2), [0, 1], (0, 1), "each at least 1"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), [0, 1, 1], (1,), r"\[T, I\] = \[3, 2\]"),
    ],
)
def test_recall_says_what_does_not_fit(scores, positives, ks, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(scores, positives, ks)


# Native models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["align", "altclip", "chinese_clip", "clip", "siglip"])
def test_two_towers_are_compared_as_their_own_forward_does(family, rows):
    model, processor = retrieval_parts.model(family), retrieval_parts.processor(family)
    images, texts = columns(rows)
    made = RetrievalEvaluator(model, processor, batch_size=4)
    assert isinstance(made.retriever, TwoTowers)
    image_to_text, text_to_image = made.scores(images, texts)
    assert torch.equal(image_to_text.T, text_to_image) and image_to_text.shape == (11, 11)
    padding = {"padding": "max_length", "max_length": 64} if family == "siglip" else {"padding": True}
    inputs = processor(images=images, text=texts, return_tensors="pt", **padding)
    with torch.no_grad():
        logits = model(**inputs).logits_per_image.double()
    slope, shift = torch.linalg.lstsq(
        torch.stack((image_to_text.flatten(), torch.ones(121)), dim=1).double(), logits.flatten()[:, None]
    ).solution.flatten()
    assert torch.allclose(slope * image_to_text + shift, logits, atol=1e-4) and slope > 0.5
    assert image_to_text.std() > 1e-3


@pytest.mark.parametrize("family", ["blip", "bridgetower", "vilt"])
def test_models_of_pairs_match_every_pair_once(family, rows):
    model, processor = retrieval_parts.model(family), retrieval_parts.processor(family)
    images, texts = columns(rows[:5])
    images[1] = Image.fromarray(images[1].numpy() if isinstance(images[1], torch.Tensor) else images[1])
    if family == "vilt":
        images[1] = images[1].resize((40, 24))  # ViLT pads the images of a batch to the largest
    made = RetrievalEvaluator(model, processor, batch_size=2, match_batch_size=7)
    assert isinstance(made.retriever, PairScorer)
    pairs, forward = [], model.forward
    model.forward = lambda **inputs: pairs.append(len(inputs["input_ids"])) or forward(**inputs)
    image_to_text, text_to_image = made.scores(images, texts)
    model.forward = forward
    assert sum(pairs) == 25 and max(pairs) == 7 and torch.equal(image_to_text.T, text_to_image)
    for place, image in enumerate(images):
        for other, caption in enumerate(texts):
            inputs = processor(images=[image], text=[caption], return_tensors="pt")
            with torch.no_grad():
                outputs = model(**inputs)
            expected = outputs.itm_score if family == "blip" else outputs.logits
            assert float(image_to_text[place, other]) == pytest.approx(float(expected[0, -1]), abs=1e-5)


def test_other_models_are_refused_by_name():
    with pytest.raises(ValueError, match="Linear cannot be asked for retrieval"):
        as_retrieval_model(nn.Linear(2, 2))
    model, processor = retrieval_parts.model("vilt"), retrieval_parts.processor("vilt")
    with pytest.raises(ValueError, match="has no embeddings: without matching"):
        RetrievalEvaluator(model, processor, top_k=0)
    for settings, message in (({"top_k": -1}, "got -1"), ({"block_size": 0}, "block_size is at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            RetrievalEvaluator(model, processor, **settings)


# Re-ranking --------------------------------------------------------------------------------------------------------


class Matcher(nn.Module):
    """A `RetrievalModel` that counts: features from fixed tables, matching from states that carry who they are.

    An image is its number, in all its pixels; a text is `number` repeated a few times, so that texts differ in length.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, images: int, texts: int, queries: int = 0, seed: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        shape = (images, queries, 6) if queries else (images, 6)
        self.image_features = nn.functional.normalize(torch.randn(shape, generator=draw), dim=-1)
        own = self.image_features.view(images, -1, 6)[torch.arange(texts) * images // texts, 0]
        self.text_features = nn.functional.normalize(own + 0.4 * torch.randn(texts, 6, generator=draw), dim=-1)
        self.matching = torch.randn(images, texts, generator=draw)
        self.images, self.texts, self.pairs = [], [], []

    config = type("Config", (), {"model_type": "matcher"})

    def encode_images(self, pixel_values):
        numbers = pixel_values[:, 0, 0, 0].round().long()
        self.images += numbers.tolist()
        return {"features": self.image_features[numbers], "hidden_states": pixel_values.flatten(1)[:, :3]}

    def encode_texts(self, input_ids, attention_mask):
        numbers = input_ids[:, 0]
        self.texts += numbers.tolist()
        return {
            "features": self.text_features[numbers],
            "hidden_states": input_ids.float(),
            "attention_mask": attention_mask,
        }

    def similarities(self, image_features, text_features):
        if image_features.ndim == 3:
            return torch.einsum("iqd,td->itq", image_features, text_features).amax(dim=-1)
        return image_features @ text_features.T

    def match(self, images, texts, similarities):
        image, text = images["hidden_states"][:, 0].round().long(), texts["hidden_states"][:, 0].long()
        lengths = texts["attention_mask"].sum(dim=1)
        assert torch.equal(lengths, 1 + text % 4)
        assert torch.equal((texts["hidden_states"] * texts["attention_mask"]).sum(dim=1), (text * lengths).float())
        assert torch.equal(images["features"], self.image_features[image])
        whole = self.similarities(self.image_features, self.text_features)
        assert torch.allclose(similarities, whole[image, text], atol=1e-6)
        self.pairs += list(zip(image.tolist(), text.tolist()))
        return self.matching[image, text] + similarities  # BLIP's rule


class Counting:
    """Its processor: images are numbers, texts are numbers with repetitions; there are inputs the model takes not."""

    def __call__(self, images=None, text=None, return_tensors=None, padding=None, truncation=None):
        if images is not None:
            return {"pixel_values": torch.tensor(images).float()[:, None, None, None].expand(-1, 3, 2, 2)}
        numbers = [[int(word) for word in words.split()] for words in text]
        longest = max(map(len, numbers))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in numbers])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in numbers])
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def counting_rows(images: int, captions: int) -> list[dict]:
    """Image `i` has the captions `i * captions` and on."""
    texts = [" ".join([str(number)] * (1 + number % 4)) for number in range(images * captions)]
    return [
        {"image": image, "caption": texts[image * captions : (image + 1) * captions], "id": f"i{image}"}
        for image in range(images)
    ]


def original_recall(model: Matcher, k: int, captions: int) -> dict[str, float]:
    """As the originals: a matrix of -100, in each row the matching scores of the k most similar; then the ranks."""
    similarities = model.similarities(model.image_features, model.text_features)
    matching = model.matching + similarities
    owner = torch.arange(similarities.shape[1]) // captions
    result = {}
    for name, similar, score, queries, candidates in (
        ("image_to_text", similarities, matching, torch.arange(len(similarities)), owner),
        ("text_to_image", similarities.T, matching.T, owner, torch.arange(len(similarities))),
    ):
        matrix = torch.full_like(similar, -100.0)
        best = similar.topk(k, dim=1).indices
        matrix.scatter_(1, best, score.gather(1, best))
        order = matrix.argsort(dim=1, descending=True)
        rank = (candidates[order] == queries[:, None]).int().argmax(dim=1)
        result |= {f"{name}_recall@{n}": float((rank < n).double().mean()) for n in (1, 2, 3)}
    return result


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("queries", [0, 4])
def test_the_best_are_ranked_by_matching_as_in_the_originals(captions, queries):
    model = Matcher(17, 17 * captions, queries)
    assert isinstance(model, EmbeddingModel) and isinstance(model, MatchingModel)
    made = RetrievalEvaluator(model, Counting(), batch_size=4, top_k=5, match_batch_size=6, block_size=5)
    result = made.evaluate(counting_rows(17, captions), ks=(1, 2, 3))
    expected = original_recall(model, 5, captions)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert len(set(expected.values())) > 2
    # each encoded once, each pair matched once, and only the candidates of one direction or the other
    assert sorted(model.images) == list(range(17)) and sorted(model.texts) == list(range(17 * captions))
    similarities = model.similarities(model.image_features, model.text_features)
    candidates = {(i, t) for i, row in enumerate(similarities.topk(5, dim=1).indices.tolist()) for t in row}
    candidates |= {(i, t) for t, row in enumerate(similarities.topk(5, dim=0).indices.T.tolist()) for i in row}
    assert len(model.pairs) == len(candidates) and set(model.pairs) == candidates


def test_the_rest_comes_after_the_candidates_in_order_of_similarity():
    model = Matcher(9, 9)
    rows = counting_rows(9, 1)
    images, texts = [row["image"] for row in rows], [row["caption"][0] for row in rows]
    scores = RetrievalEvaluator(model, Counting(), top_k=3).scores(images, texts)
    similarities = model.similarities(model.image_features, model.text_features)
    for found, similar, matching in (
        (scores[0], similarities, model.matching + similarities),
        (scores[1], similarities.T, (model.matching + similarities).T),
    ):
        best = similar.topk(3, dim=1).indices
        assert torch.allclose(found.gather(1, best), matching.double().gather(1, best), atol=1e-6)
        order = found.argsort(dim=1, descending=True)
        assert [set(row) for row in order[:, :3].tolist()] == [set(row) for row in best.tolist()]
        assert torch.equal(order[:, 3:], similar.argsort(dim=1, descending=True)[:, 3:])


@pytest.mark.parametrize("top_k, pairs", [(None, 81), (128, 81), (0, 0)])
def test_how_many_candidates_are_matched(top_k, pairs):
    model = Matcher(9, 9)
    made = RetrievalEvaluator(model, Counting(), top_k=top_k, cache_device="cpu")
    result = made.evaluate(counting_rows(9, 1))
    similarities = model.similarities(model.image_features, model.text_features)
    scores = similarities + (model.matching if pairs else 0.0)
    assert result == pytest.approx(recall_at_k(scores, list(range(9)))) and len(model.pairs) == pairs


def test_rows_and_blocks_and_datasets_are_alike(rows):
    """However the rows come and in whatever portions, recall is that of the whole matrix."""
    model, processor = retrieval_parts.model("clip"), retrieval_parts.processor("clip")
    images, texts = columns(rows)
    expected = recall_at_k(RetrievalEvaluator(model, processor).scores(images, texts), list(range(11)))
    for settings in ({"block_size": 1}, {"block_size": 4, "batch_size": 3}):
        assert RetrievalEvaluator(model, processor, **settings).evaluate(rows) == pytest.approx(expected)
    model = Matcher(6, 18)
    grouped = counting_rows(6, 3)
    expected = RetrievalEvaluator(model, Counting(), top_k=4).evaluate(grouped)
    single = [{**row, "caption": caption} for row in grouped for caption in row["caption"]]
    model.images.clear()
    made = RetrievalEvaluator(model, Counting(), top_k=4, id_column="id")
    assert made.evaluate(Dataset.from_list(single)) == expected and sorted(model.images) == list(range(6))
    assert made.evaluate(Dataset.from_list(single).to_iterable_dataset()) == expected
    with pytest.raises(ValueError, match="Row 0 has no caption in 'caption'"):
        made.evaluate([{"image": 0, "caption": [], "id": 0}])
    with pytest.raises(ValueError, match="There are no rows"):
        made.evaluate([])


@pytest.mark.parametrize("family", ["clip", "vilt"])
def test_blind_recall_is_chance(family, rows):
    model, processor = retrieval_parts.model(family), retrieval_parts.processor(family)
    made = RetrievalEvaluator(model, processor, batch_size=11, match_batch_size=11 * 11)
    result = made.evaluate(rows, ks=(1, 5), blind=True)
    assert list(result.values())[:4] == pytest.approx([1 / 11, 5 / 11] * 2, abs=0.02)


def test_scores_that_are_not_numbers_are_not_ranked(rows):
    model, processor = retrieval_parts.model("clip"), retrieval_parts.processor("clip")
    with torch.no_grad():
        model.visual_projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="Scores are NaN"):
        RetrievalEvaluator(model, processor).evaluate(rows)


def test_other_precisions(rows):
    model, processor = retrieval_parts.model("clip"), retrieval_parts.processor("clip")
    images, texts = columns(rows)
    expected = RetrievalEvaluator(model, processor).scores(images, texts)[0]
    found = RetrievalEvaluator(model.to(torch.bfloat16), processor).scores(images, texts)[0]
    assert (found - expected).abs().max() < 0.05


# Zero-shot classification ------------------------------------------------------------------------------------------

NAMES = ["red seven", "blue one", "green zero", "a red three and a blue one", "white", "nine"]


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_one_template_is_what_the_pipeline_does(family, rows):
    model, processor = retrieval_parts.model(family), retrieval_parts.processor(family)
    images = [Image.fromarray(torch.as_tensor(row["image"]).numpy()) for row in rows[:5]]
    asked = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    expected = asked(images, candidate_labels=NAMES, hypothesis_template="a photo of {}.")
    found = ZeroShotClassifier(model, processor, NAMES, "a photo of {}.", batch_size=2)
    probabilities = found.probabilities(images)
    for row, answers in zip(probabilities, expected):
        told = {answer["label"]: answer["score"] for answer in answers}
        assert row.tolist() == pytest.approx([told[name] for name in NAMES], abs=1e-5)
    assert found.predict(images) == [answers[0]["label"] for answers in expected]
    assert probabilities.std() > 1e-3


def test_a_class_is_the_mean_of_its_prompts(rows):
    model, processor = retrieval_parts.model("clip"), retrieval_parts.processor("clip")
    templates = ["a photo of {}.", "{} left", "the {} above"]
    found = ZeroShotClassifier(model, processor, NAMES, templates, batch_size=4)
    singles = [ZeroShotClassifier(model, processor, NAMES, template).class_features for template in templates]
    mean = nn.functional.normalize(sum(singles) / 3, dim=-1)
    assert torch.allclose(found.class_features, mean, atol=1e-6)
    assert torch.allclose(found.class_features.norm(dim=-1), torch.ones(6))
    images = columns(rows)[0]
    scores = RetrievalEvaluator(model, processor).scores(images, [templates[0].format(name) for name in NAMES])[0]
    logits = ZeroShotClassifier(model, processor, NAMES, templates[0]).logits(iter(images))
    assert torch.allclose(logits, scores.float() * model.logit_scale.exp(), atol=1e-4)
    labels = logits.argsort(dim=-1, descending=True)[torch.arange(11), torch.arange(11) % 6]
    one = ZeroShotClassifier(model, processor, NAMES, templates[0])
    assert one.evaluate(images, labels, ks=(1, 2, 5)) == {"top1": 2 / 11, "top2": 4 / 11, "top5": 10 / 11}
    assert torch.allclose(one.logits(images, blind=True).std(dim=0), torch.zeros(6), atol=1e-5)


def test_align_divides_by_its_temperature(rows):
    model, processor = retrieval_parts.model("align"), retrieval_parts.processor("align")
    images = columns(rows)[0]
    logits = ZeroShotClassifier(model, processor, NAMES).logits(images)
    texts = [f"This is a photo of {name}." for name in NAMES]
    with torch.no_grad():
        expected = model(**processor(images=images, text=texts, padding=True, return_tensors="pt")).logits_per_image
    assert torch.allclose(logits, expected, atol=1e-4)


def test_models_of_the_contract_classify_without_a_scale():
    model = Matcher(4, 4, queries=3)
    found = ZeroShotClassifier(model, Counting(), ["0", "1", "2", "3"], "{}")
    expected = model.similarities(model.image_features, model.text_features)
    assert torch.allclose(found.logits([0, 1, 2, 3]), expected, atol=1e-6)


@pytest.mark.parametrize(
    "names, templates, message",
    [
        (["a", "a"], "{}", "names of their own"),
        ([], "{}", "at least one"),
        (["a"], "a photo", r"A template has one \{\}"),
        (["a"], [], r"A template has one \{\}"),
    ],
)
def test_classes_and_templates_that_do_not_fit(names, templates, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(retrieval_parts.model("clip"), retrieval_parts.processor("clip"), names, templates)


def test_models_without_embeddings_or_heads_are_told_apart():
    model, processor = retrieval_parts.model("vilt"), retrieval_parts.processor("vilt")
    with pytest.raises(ValueError, match="with one text a class"):
        ZeroShotClassifier(model, processor, NAMES)
    with pytest.raises(ValueError, match="FlamingoForConditionalGeneration cannot be asked for retrieval"):
        as_retrieval_model(TINY["flamingo"].model("AutoModelForImageTextToText"))


# Every architecture -------------------------------------------------------------------------------------------------

ARCHITECTURES_FOR_RETRIEVAL = [
    name
    for name, row in TINY.items()
    if "AutoModelForImageTextRetrieval" in ARCHITECTURES[name]
    and "pixel_values" in row.batch(auto_name="AutoModelForImageTextRetrieval")
]
TEXTS = [
    "a red digit",
    "one two three four",
    "where is the blue image ?",
    "two",
    "is there a green picture",
    "left of the white row",
]


@pytest.mark.parametrize("name", ARCHITECTURES_FOR_RETRIEVAL)
def test_architectures_are_evaluated_as_pair_by_pair(name):
    """Encoded in batches, cached, padded and re-ranked, a pair has the score that the model gives it alone."""
    row = TINY[name]
    model, processor, images = row.model("AutoModelForImageTextRetrieval"), row.processor(), row.images(6)
    made = RetrievalEvaluator(model, processor, batch_size=4, top_k=None, match_batch_size=7)
    retriever = made.retriever
    image_to_text, text_to_image = made.scores(images, TEXTS)
    expected = torch.empty(6, 6, dtype=torch.double)
    with torch.no_grad():
        for place, image in enumerate(images):
            pixels = processor(images=[image], return_tensors="pt")
            seen = retriever.encode_images(**taken_inputs(pixels, model, retriever.encode_images))
            for other, text in enumerate(TEXTS):
                words = processor(text=[text], return_tensors="pt")
                read = retriever.encode_texts(**taken_inputs(words, model, retriever.encode_texts))
                embeds = isinstance(retriever, EmbeddingModel)
                score = retriever.similarities(seen["features"], read["features"])[0] if embeds else torch.zeros(1)
                score = retriever.match(seen, read, score) if isinstance(retriever, MatchingModel) else score
                expected[place, other] = score.item()
    assert torch.allclose(image_to_text, expected, atol=1e-5) and torch.equal(image_to_text, text_to_image.T)
    assert expected.std() > 1e-3
    few = RetrievalEvaluator(model, processor, top_k=2).scores(images, TEXTS)
    best = few[0].topk(2, dim=1)
    assert torch.allclose(best.values, expected.gather(1, best.indices), atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES_FOR_RETRIEVAL)
def test_architectures_with_embeddings_have_an_index_and_name_classes(name):
    row = TINY[name]
    model, processor, images = row.model("AutoModelForImageTextRetrieval"), row.processor(), row.images(6)
    retriever = as_retrieval_model(model)
    pictures = [(f"{place}", image) for place, image in enumerate(images)]
    if not isinstance(retriever, EmbeddingModel):
        with pytest.raises(EmbeddingIndexError, match="reads images and texts in pairs"):
            EmbeddingIndex.build(model, processor, pictures)
        return
    similarities = RetrievalEvaluator(model, processor, top_k=0).scores(images, TEXTS)[1]
    found = EmbeddingIndex.build(model, processor, pictures, batch_size=4).query(text=TEXTS, k=6)
    for similar, matches in zip(similarities, found):
        assert [match.score for match in matches] == pytest.approx(
            [float(similar[int(match.id)]) for match in matches], abs=1e-5
        )
    classes = ZeroShotClassifier(model, processor, TEXTS, "{}")
    assert torch.equal(classes.logits(images).argmax(dim=1), similarities.argmax(dim=0))
