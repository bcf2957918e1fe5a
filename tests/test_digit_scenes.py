"""Digit scenes are what they say, as read back from their pixels, and their words alone give nothing away.

At the native scale a drawn digit is one of 1,797 x 5 patches, so a test can look a rendered image up patch by patch
(`read`) and check every caption, answer, statement and box against what is really there.
"""

import itertools
import pickle
import re
import sys

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Image, IterableDataset, List, Value
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from hf_mmunify.data.digit_scenes import (
    ACTIONS,
    COLORS,
    DIGITS,
    END_OF_CHUNK_TOKEN,
    ENTAILMENT_LABELS,
    IMAGE_TOKEN,
    QUESTION_TYPES,
    TASKS,
    VOCABULARY,
    DigitScenes,
    PlacedDigit,
    Scene,
    _draw,
    _handwriting,
    _sources,
    load_digit_scenes,
)


SIZE = 2000  # examples of a task in a split
BACKGROUND = 16
SHOTS = 2


class Split:
    """The examples of one split, each task generated once."""

    def __init__(self, split):
        self.scenes = DigitScenes(split)
        self.done = {}

    def __call__(self, task, size=SIZE, **options):
        key = task, size, tuple(options.items())
        if key not in self.done:
            self.done[key] = self.scenes.examples(task, size, **options)
        return self.done[key]


@pytest.fixture(scope="module")
def train():
    return Split("train")


@pytest.fixture(scope="module")
def test():
    return Split("test")


@pytest.fixture(scope="module")
def read():
    """A function from an image [24, 24, 3] to {cell: (color, digit, source)}; a card is ("card", None, None)."""
    digits = load_digits()
    ink = np.rint(digits.images * 255 / 16).astype(np.uint16)[..., None]  # [1797, 8, 8, 1]
    patches = {np.full((8, 8, 3), 120, np.uint8).tobytes(): ("card", None, None)}
    for name, color in COLORS.items():
        drawn = ((BACKGROUND * (255 - ink) + np.array(color, np.uint16) * ink + 127) // 255).astype(np.uint8)
        for source, patch in enumerate(drawn):
            patches[patch.tobytes()] = (name, int(digits.target[source]), source)
    assert len(patches) == 1 + 5 * 1797  # no two digits look the same
    empty = np.full((8, 8, 3), BACKGROUND, np.uint8).tobytes()

    def look(image):
        cells = {}
        for cell in range(9):
            row, column = divmod(cell, 3)
            patch = np.ascontiguousarray(image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]).tobytes()
            if patch != empty:
                cells[cell] = patches[patch]
        return cells

    return look


def words(text):
    return re.findall(r"\w+|[^\w\s]", text.replace(IMAGE_TOKEN, " ").replace(END_OF_CHUNK_TOKEN, " "))


def texts(example):
    """Every string of an example that a model could read."""
    return [value for name, value in example.items() if isinstance(value, str) and name != "type"]


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def chance(probability, trials):
    """Four standard deviations above a probability: a blind model stays below, one that knows something does not."""
    return probability + 4 * np.sqrt(probability * (1 - probability) / trials)


def blind_accuracy(train, test, text, label):
    """Accuracy on `test` of a classifier of words and pairs of words that was trained on `train`."""
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", binary=True)
    classifier = make_pipeline(counts, LogisticRegression(max_iter=200, C=0.05, tol=1e-3))
    classifier.fit([text(example) for example in train], [label(example) for example in train])
    found = classifier.predict([text(example) for example in test])
    return float(np.mean(found == np.array([label(example) for example in test])))


# Examples are a function of seed, split, task and index.


@pytest.mark.parametrize("task", TASKS)
def test_an_example_is_always_the_same(task):
    scenes = DigitScenes("validation", seed=5)
    forward = [scenes.example(task, index) for index in range(12)]
    _draw.cache_clear()
    backward = [DigitScenes("validation", seed=5).example(task, index) for index in reversed(range(12))][::-1]
    assert all(same(one, other) for one, other in zip(forward, backward))
    for other in (DigitScenes("validation", seed=6), DigitScenes("test", seed=5)):
        assert not all(same(one, two) for one, two in zip(forward, other.examples(task, 12)))


def test_the_first_examples_have_not_changed():
    scenes = DigitScenes("test")
    assert scenes.caption(2)["caption"] == "a green nine and a yellow three and a white two"
    assert scenes.retrieval(0)["caption"] == "a yellow three and a blue two"
    assert texts(scenes.vqa(1)) == ["what digit is left of the others?", "three"]
    assert scenes.reasoning(0)["statement"] == "the right image has more digits than the left image"
    assert scenes.entailment(0)["hypothesis"] == "there is a white three"
    assert scenes.video(0)["caption"] == "a green four moving down"
    assert scenes.interleaved(0)["text"] == (
        "<image>output: a white one and a green nine<|endofchunk|>"
        "<image>question: what color is the five? answer: white<|endofchunk|>"
        "<image>question: what digit is below the others? answer: one<|endofchunk|>"
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_dataset_and_streams_have_the_same_examples(task):
    size = 20
    expected = DigitScenes("test", seed=3).examples(task, size)
    stored = load_digit_scenes(task, "test", size, seed=3)
    stream = load_digit_scenes(task, "test", size, seed=3, streaming=True)
    arrays = load_digit_scenes(task, "test", size, seed=3, streaming=True, as_arrays=True)
    assert isinstance(stored, Dataset) and len(stored) == size and str(stored.split) == "test"
    assert isinstance(stream, IterableDataset) and isinstance(arrays, IterableDataset)
    assert stored.features == stream.features
    streamed, bare = list(stream), list(arrays)
    assert len(streamed) == len(bare) == size

    def opened(value):
        if isinstance(value, PILImage.Image):
            assert value.mode == "RGB"
            return np.asarray(value)
        if isinstance(value, list) and value and isinstance(value[0], PILImage.Image):
            return np.stack([np.asarray(image) for image in value])
        return value

    for one, two, three, example in zip(stored, streamed, bare, expected):
        assert same({name: opened(value) for name, value in one.items()}, example)
        assert same({name: opened(value) for name, value in two.items()}, example)
        assert same(three, example)
        for value in three.values():
            assert not isinstance(value, np.ndarray) or value.dtype == np.uint8


def test_a_stream_can_be_shared_among_workers():
    stream = pickle.loads(pickle.dumps(load_digit_scenes("vqa", size=50, streaming=True, as_arrays=True)))
    parts = [list(stream.shard(4, part)) for part in range(4)]
    assert sorted(map(len, parts))[0] >= 10
    together = [example["question"] for part in parts for example in part]
    assert sorted(together) == sorted(example["question"] for example in DigitScenes().examples("vqa", 50))


def test_feature_types():
    string, image, box = Value("string"), Image(), List(Value("int64"), length=4)
    digit, color = ClassLabel(names=list(DIGITS)), ClassLabel(names=list(COLORS))
    expected = {
        "cells": {
            "image": image,
            "digits": List(ClassLabel(names=[*DIGITS, "empty"]), length=9),
            "colors": List(ClassLabel(names=[*COLORS, "empty"]), length=9),
        },
        "caption": {"image": image, "caption": string},
        "retrieval": {"image": image, "caption": string},
        "vqa": {"image": image, "question": string, "answer": string, "type": string},
        "reasoning": {
            "images": List(image, length=2),
            "statement": string,
            "label": ClassLabel(names=["false", "true"]),
            "type": string,
        },
        "entailment": {"image": image, "hypothesis": string, "label": ClassLabel(names=list(ENTAILMENT_LABELS))},
        "video": {"video": List(image, length=8), "label": ClassLabel(names=list(ACTIONS)), "caption": string},
        "detection": {
            "image": image,
            "objects": {"bbox": List(box), "category": List(digit), "color": List(color)},
            "phrase": string,
            "phrase_box": box,
        },
        "interleaved": {
            "images": List(image, length=3),
            "prompt": string,
            "answer": string,
            "type": string,
            "text": string,
        },
        "text": {"text": string},
    }
    for task in TASKS:
        assert dict(load_digit_scenes(task, size=2).features) == expected[task], task
    assert len(load_digit_scenes("video", size=1, num_frames=5)[0]["video"]) == 5
    assert len(load_digit_scenes("interleaved", size=1, shots=4, image_size=32)[0]["images"]) == 5
    assert len(load_digit_scenes("caption", size=0)) == 0


@pytest.mark.parametrize("task", TASKS)
def test_scales_differ_in_pixels_only(task):
    for small, large in zip(DigitScenes().examples(task, 20), DigitScenes(image_size=64).examples(task, 20)):
        for name, value in small.items():
            if isinstance(value, np.ndarray):
                assert value.shape[-3:] == (24, 24, 3) and large[name].shape == (*value.shape[:-3], 64, 64, 3)
            elif name == "objects":
                assert value["category"] == large[name]["category"]
            elif name != "phrase_box":
                assert value == large[name]


def test_digits_stay_in_their_cells_at_every_scale():
    captions = [example["caption"] for example in DigitScenes().examples("caption", 40)]
    for image_size in (*range(25, 50), 224):
        scenes = DigitScenes(image_size=image_size)
        assert [example["caption"] for example in scenes.examples("caption", 40)] == captions
        scenes.examples("video", 8)  # raises where a frame would leave the canvas


# Handwriting.


def test_no_handwriting_is_in_two_splits(read):
    seen, pixels = {}, {}
    labels = load_digits().target
    for split in ("train", "validation", "test"):
        examples = DigitScenes(split).examples("cells", 1500)
        found = [thing for example in examples for thing in read(example["image"]).values()]
        seen[split] = {source for _, _, source in found}
        assert seen[split] <= set(np.concatenate(_sources(split)).tolist())
        assert {labels[source] for source in seen[split]} == set(range(10))
        pixels[split] = {_handwriting()[0][source].tobytes() for source in seen[split]}
        assert len(seen[split]) > 0.95 * sum(map(len, _sources(split)))  # and all of a split's handwriting is used
    for one, other in itertools.combinations(seen, 2):
        assert not seen[one] & seen[other]
        assert not pixels[one] & pixels[other]
    assert sum(len(indices) for split in seen for indices in _sources(split)) == 1797


def test_splits_begin_where_a_writer_begins():
    # Every writer copied the same form, which begins with the digits in order, three times.
    for first in (0, 1157, 1415):
        assert load_digits().target[first : first + 30].tolist() == [*range(10)] * 3


def test_every_task_uses_its_split_only(test, read):
    allowed = set(np.concatenate(_sources("test")).tolist())
    for task in ("caption", "retrieval", "vqa", "reasoning", "entailment", "detection", "interleaved"):
        for example in test(task)[:300]:
            for image in np.reshape(example.get("image", example.get("images")), (-1, 24, 24, 3)):
                assert {source for _, _, source in read(image).values()} - {None} <= allowed, task


# Words and labels are true of the pixels.


def caption_of(cells):
    return " and ".join(f"a {color} {DIGITS[digit]}" for _, (color, digit, _) in sorted(cells.items()))


def check_answer(cells, question, answer):
    """The truth of an answer, from the cells alone; returns the type of question."""
    by_color = {color: digit for color, digit, _ in cells.values()}
    if found := re.fullmatch(r"what color is the (\w+)\?", question):
        assert by_color[answer] == DIGITS.index(found[1])
        return "color"
    if found := re.fullmatch(r"what digit is (\w+)\?", question):
        assert DIGITS[by_color[found[1]]] == answer
        return "digit"
    if question == "how many digits are there?":
        assert DIGITS.index(answer) == len(cells)
        return "count"
    relation = re.fullmatch(r"what digit is (left of|right of|above|below) the others\?", question)[1]
    centers = {DIGITS[digit]: (8 * (cell % 3) + 4, 8 * (cell // 3) + 4) for cell, (_, digit, _) in cells.items()}
    x, y = centers.pop(answer)
    assert centers
    for other_x, other_y in centers.values():
        assert {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}[relation]
    return "relation"


def test_cells_say_what_is_in_each_cell(test, read):
    counts = np.zeros(5)
    for example in test("cells"):
        cells = read(example["image"])
        counts[len(cells)] += 1
        for cell in range(9):
            color, digit, _ = cells.get(cell, ("empty", 10, None))
            assert example["digits"][cell] == digit
            assert [*COLORS, "empty"][example["colors"][cell]] == color
    assert np.all(np.abs(counts[1:] / SIZE - 0.25) < 0.04) and counts[0] == 0


@pytest.mark.parametrize("task", ["caption", "retrieval"])
def test_captions_name_what_is_there_in_reading_order(test, read, task):
    for example in test(task):
        assert example["caption"] == caption_of(read(example["image"]))


@pytest.mark.parametrize("max_objects, unique", [(4, 5400), (3, 3600), (2, 1800), (1, 50)])
def test_no_retrieval_caption_occurs_twice(monkeypatch, max_objects, unique):
    monkeypatch.setattr(Scene, "render", lambda scene: None)  # 5,400 words are wanted, not images
    scenes = DigitScenes("test", max_objects=max_objects)
    captions = [scenes.retrieval(index)["caption"] for index in range(4002, 4002 + unique + 1)]
    assert len(set(captions[:unique])) == unique
    assert len(set(captions)) == unique  # and no more than that


def test_answers_are_true(test, read):
    for example in test("vqa"):
        assert check_answer(read(example["image"]), example["question"], example["answer"]) == example["type"]


def test_statements_are_true_or_false_as_labelled(test, read):
    for example in test("reasoning"):
        sides = {side: read(image) for side, image in zip(("left", "right"), example["images"])}
        statement = example["statement"]

        if found := re.fullmatch(r"both images have a (\w+) digit", statement):
            shown = [any(color == found[1] for color, _, _ in cells.values()) for cells in sides.values()]
            kind, truth = "both", all(shown)
            assert any(shown)
        else:
            one, other = re.fullmatch(r"the (\w+) image has more digits than the (\w+) image", statement).groups()
            kind, truth = "more", len(sides[one]) > len(sides[other])
        assert (example["type"], example["label"]) == (kind, truth)


def test_hypotheses_follow_contradict_or_stay_open(test, read):
    for example in test("entailment"):
        seen = list(read(example["image"]).values())
        visible = [(color, digit) for color, digit, _ in seen if color != "card"]
        assert len(seen) == len(visible) + 1  # always one card
        color, name = re.fullmatch(r"there is a (\w+) (\w+)", example["hypothesis"]).groups()
        hits = [(color == other, name == DIGITS[digit]) for other, digit in visible]
        if (True, True) in hits:
            label = "entailment"
        else:
            label = "contradiction" if any(a or b for a, b in hits) else "neutral"
        assert ENTAILMENT_LABELS[example["label"]] == label


def test_boxes_are_tight_around_the_ink(test, read):
    for example in test("detection"):
        cells = [(color, digit) for _, (color, digit, _) in sorted(read(example["image"]).items())]
        objects = example["objects"]
        assert [(list(COLORS)[c], d) for c, d in zip(objects["color"], objects["category"])] == cells
        rest = example["image"].copy()
        for x0, y0, x1, y1 in objects["bbox"]:
            assert 0 <= x0 < x1 <= 24 and 0 <= y0 < y1 <= 24
            ink = (example["image"][y0:y1, x0:x1] != BACKGROUND).any(-1)
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
            rest[y0:y1, x0:x1] = BACKGROUND
        assert np.all(rest == BACKGROUND)
        named = [f"the {color} {DIGITS[digit]}" for color, digit in cells].index(example["phrase"])
        assert example["phrase_box"] == objects["bbox"][named]


def test_boxes_at_a_larger_scale():
    for example in DigitScenes("test", image_size=64).examples("detection", 200):
        rest = example["image"].astype(int)
        for x0, y0, x1, y1 in example["objects"]["bbox"]:
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
            assert rest[y0:y1, x0:x1].max() > 120
            rest[y0:y1, x0:x1] = BACKGROUND
        assert np.abs(rest - BACKGROUND).max() < 16  # resampling leaves a faint halo, no stroke


# Video.


def ink_of(video):
    ink = np.abs(video.astype(float) - BACKGROUND).sum(-1)  # [T, H, W]
    return ink / ink.sum((1, 2), keepdims=True)


def test_videos_show_their_action(test):
    right = {action: [] for action in ACTIONS}
    rows, columns = np.mgrid[:24, :24]
    for example in test("video", 1600)[:400]:
        ink, action = ink_of(example["video"]), ACTIONS[example["label"]]  # [T, H, W]
        assert example["caption"].endswith(action)
        x, y = (ink * columns).sum((1, 2)), (ink * rows).sum((1, 2))  # [T]
        spread = (ink * ((columns - x[:, None, None]) ** 2 + (rows - y[:, None, None]) ** 2)).sum((1, 2))  # [T]
        if action.startswith("moving"):
            along, across = (x, y) if action in ("moving left", "moving right") else (y, x)
            sign = -1 if action in ("moving left", "moving up") else 1
            assert np.all(np.diff(sign * along) > 0.5)  # every frame, and by about a pixel or more
            assert np.ptp(across) < 1e-6 and np.ptp(spread) < 1e-6
        elif action in ("growing", "shrinking"):
            ratio = spread[-1] / spread[0]
            assert ratio > 1.2 if action == "growing" else ratio < 1 / 1.2
            assert np.hypot(np.ptp(x), np.ptp(y)) < 2
        else:
            # The long axis of the ink turns: sum its small steps, which are unique up to half a turn.
            u, v = columns - x[:, None, None], y[:, None, None] - rows  # v points up
            axis = np.arctan2(2 * (ink * u * v).sum((1, 2)), (ink * (u**2 - v**2)).sum((1, 2))) / 2  # [T]
            steps = (np.diff(axis) + np.pi / 2) % np.pi - np.pi / 2
            right[action].append(np.degrees(steps.sum()))
            assert np.hypot(np.ptp(x), np.ptp(y)) < 4  # ink is not centred in its square
    # Round digits have no long axis to speak of, so that most, not all, show the turn of 90 to 180 degrees.
    assert np.mean(np.array(right["turning left"]) > 60) > 0.85
    assert np.mean(np.array(right["turning right"]) < -60) > 0.85


def test_opposite_actions_differ_in_order_only(test):
    """Backwards, each video is one of the opposite action: its frames alone do not tell the two apart."""
    mean = {action: [] for action in ACTIONS}
    for example in test("video", 1600):
        ink = ink_of(example["video"])  # [T, H, W]
        mean[ACTIONS[example["label"]]].append([(ink.mean(0) * grid).sum() for grid in np.mgrid[:24, :24]])
    for one, other in zip(ACTIONS[::2], ACTIONS[1::2]):
        a, b = np.array(mean[one]), np.array(mean[other])  # [N, 2]
        error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4 * error)


# Interleaved documents and text.


@pytest.mark.parametrize("kind", ["caption", "vqa", "mixed", "rule"])
def test_documents_are_true_and_nested(test, read, kind):
    for index, example in enumerate(test("interleaved", kind=kind)[:500]):
        assert example["text"] == f"{example['prompt']} {example['answer']}{END_OF_CHUNK_TOKEN}"
        assert example["text"].count(IMAGE_TOKEN) == len(example["images"]) == SHOTS + 1
        chunks = example["text"].split(END_OF_CHUNK_TOKEN)
        assert chunks.pop() == "" and len(chunks) == SHOTS + 1
        labels = set()
        for image, chunk in zip(example["images"], chunks):
            cells = read(image)
            if found := re.fullmatch(f"{IMAGE_TOKEN}question: (.*) answer: (\\w+)", chunk):
                assert kind in ("vqa", "mixed")
                answer_type = check_answer(cells, *found.groups())
            elif chunk.startswith(f"{IMAGE_TOKEN}output: "):
                assert kind in ("caption", "mixed")
                assert chunk == f"{IMAGE_TOKEN}output: {caption_of(cells)}"
                answer_type = "caption"
            else:
                assert kind == "rule"
                ((color, digit, _),) = cells.values()
                answer_type = {
                    f"{IMAGE_TOKEN}label: {color}": "color",
                    f"{IMAGE_TOKEN}label: {DIGITS[digit]}": "digit",
                }[chunk]
                labels.add(answer_type)
        assert answer_type == example["type"]
        assert len(labels) <= 1  # one rule a document
        if index < 20:
            longer = test.scenes.interleaved(index, shots=5, kind=kind)
            query = test.scenes.interleaved(index, shots=0, kind=kind)
            assert longer["prompt"].endswith(example["prompt"]) and example["prompt"].endswith(query["prompt"])
            assert longer["answer"] == example["answer"] == query["answer"]
            assert np.array_equal(longer["images"][-3:], example["images"])


def test_text_is_the_language_of_the_documents(train):
    kinds = {"output": 0, "question": 0, "label": 0}
    documents = {
        tuple(words(chunk)) for example in train("interleaved") for chunk in example["text"].split(END_OF_CHUNK_TOKEN)
    }
    shared = 0
    for example in train("text"):
        text = example["text"]
        kinds[text[: text.index(":")]] += 1
        shared += tuple(words(text)) in documents
        assert re.fullmatch(
            r"output: a \w+ \w+( and a \w+ \w+){0,3}|question: (what|how) [a-z ]+\? answer: \w+|label: \w+", text
        )
    assert kinds["output"] > 0.4 * SIZE and kinds["question"] > 0.4 * SIZE and kinds["label"] > 0.05 * SIZE
    assert shared > 0.3 * SIZE


def test_the_vocabulary_is_closed_and_used(monkeypatch):
    monkeypatch.setattr(Scene, "render", lambda scene: np.zeros(0))
    options = {"interleaved": [{"kind": kind} for kind in ("mixed", "rule")]}
    used = {
        word
        for task in TASKS
        for given in options.get(task, [{}])
        for example in DigitScenes().examples(task, 500, **given)
        for text in texts(example)
        for word in words(text)
    }
    assert used == set(VOCABULARY) and len(VOCABULARY) == len(used)


# Balance, and what can be known without the image.


def test_answers_are_balanced(monkeypatch):
    monkeypatch.setattr(Scene, "render", lambda scene: np.zeros(0))  # words are wanted, not images

    def shares(values):
        _, counts = np.unique(values, return_counts=True)
        return counts / counts.sum()

    scenes = DigitScenes("test")
    vqa = scenes.examples("vqa", 4 * SIZE)
    assert np.ptp(shares([example["type"] for example in vqa])) < 0.03
    answers = {kind: [example["answer"] for example in vqa if example["type"] == kind] for kind in QUESTION_TYPES}
    for kind, number in (("color", 5), ("digit", 10), ("count", 4), ("relation", 10)):
        share = shares(answers[kind])
        assert len(share) == number and np.abs(share - 1 / number).max() < 0.03, kind
    reasoning = scenes.examples("reasoning", 4 * SIZE)
    for kind in ("both", "more"):
        assert abs(np.mean([example["label"] for example in reasoning if example["type"] == kind]) - 0.5) < 0.03
    for task, number in (("entailment", 3), ("video", 8)):
        share = shares([example["label"] for example in scenes.examples(task, SIZE)])
        assert len(share) == number and np.abs(share - 1 / number).max() < 0.03


BLIND = {  # task and options, what a blind model reads, what it must say, and chance for each type of example
    "vqa": ({}, "question", "answer", {"color": 1 / 5, "digit": 1 / 10, "count": 1 / 4, "relation": 1 / 10}),
    "reasoning": ({}, "statement", "label", {"both": 1 / 2, "more": 1 / 2}),
    "entailment": ({}, "hypothesis", "label", {None: 1 / 3}),
    "interleaved vqa": (
        {"kind": "vqa"},
        "prompt",
        "answer",
        {"color": 1 / 5, "digit": 1 / 10, "count": 1 / 4, "relation": 1 / 10},
    ),
    "interleaved rule": ({"kind": "rule"}, "prompt", "answer", {"color": 1 / 5, "digit": 1 / 10}),
}


@pytest.mark.parametrize("name", BLIND)
def test_words_alone_stay_at_chance(train, test, name):
    options, text, label, expected = BLIND[name]
    task = name.split()[0]
    for kind, probability in expected.items():
        known, asked = (
            [example for example in split(task, 2 * SIZE, **options) if kind is None or example["type"] == kind]
            for split in (train, test)
        )
        accuracy = blind_accuracy(known, asked, lambda example: example[text], lambda example: example[label])
        print(f"{name} {kind}: {accuracy:.3f} of {len(asked)}")
        assert accuracy < chance(probability, len(asked)), kind


def test_the_control_finds_a_leak(train, test):
    def leak(example):
        return f"{example['question']} {example['answer']}"

    assert blind_accuracy(train("vqa"), test("vqa"), leak, lambda example: example["answer"]) > 0.95


def test_no_shot_has_the_answer(test):
    for kind, alike in (("vqa", True), ("rule", True), ("caption", False)):
        hits = {}
        for example in test("interleaved", 2 * SIZE, kind=kind):
            for shot in example["text"].split(END_OF_CHUNK_TOKEN)[:SHOTS]:
                question, answer = shot.rsplit(": ", 1)
                if not alike or set(words(question)[:4]) == set(words(example["prompt"].rsplit(IMAGE_TOKEN)[-1])[:4]):
                    hits.setdefault(example["type"], []).append(answer == example["answer"])
        expected = {"color": 1 / 5, "digit": 1 / 10, "count": 1 / 4, "relation": 1 / 10, "caption": 1 / 80}
        for answer_type, found in hits.items():
            assert np.mean(found) < chance(expected[answer_type], len(found)), (kind, answer_type)


def test_the_image_alone_does_not_tell_the_entailment(train, test, read):
    def seen(example):
        return " ".join(f"{color}{digit} {color} n{digit}" for color, digit, _ in read(example["image"]).values())

    accuracy = blind_accuracy(train("entailment"), test("entailment"), seen, lambda example: example["label"])
    assert accuracy < chance(1 / 3, SIZE)


def test_a_caption_cannot_be_guessed(train, test):
    for name, task, key, options in (
        ("caption", "caption", "caption", {}),
        ("interleaved caption", "interleaved", "answer", {"kind": "caption"}),
    ):
        captions, counts = np.unique([example[key] for example in train(task, **options)], return_counts=True)
        guess = captions[counts.argmax()]
        accuracy = np.mean([example[key] == guess for example in test(task, **options)])
        print(f"{name}: {accuracy:.4f}")
        assert accuracy < 0.02

    def first(example):
        return example["answer"].split()[1]  # the first colour

    known, asked = (split("interleaved", kind="caption") for split in (train, test))
    accuracy = blind_accuracy(known, asked, lambda example: example["prompt"], first)
    print(f"interleaved caption, first color: {accuracy:.3f}")
    assert accuracy < chance(1 / 5, SIZE)


def overlap(one, others):
    """Intersection over union of a box with boxes [N, 4] -> [N]."""
    inside = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])  # [N, 2]
    common = inside.clip(0).prod(1)
    return common / ((one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common)


def test_a_box_cannot_be_guessed(train, test):
    known, asked = (np.array([example["phrase_box"] for example in split("detection")]) for split in (train, test))
    best = max(known[:200], key=lambda box: overlap(box, known).mean())  # the constant that does best on train
    for name, guess in (("mean box", known.mean(0)), ("best box", best)):
        score = overlap(guess, asked).mean()
        print(f"detection, IoU of the {name}: {score:.3f}")
        assert score < 0.16

    def cell(example):
        x0, y0, x1, y1 = example["phrase_box"]
        return (y0 + y1) // 16 * 3 + (x0 + x1) // 16

    accuracy = blind_accuracy(train("detection"), test("detection"), lambda example: example["phrase"], cell)
    print(f"detection, cell from the phrase: {accuracy:.3f}")
    assert accuracy < chance(1 / 9, SIZE)


def test_actions_and_cells_cannot_be_guessed(train, test):
    known, asked = ([example["label"] for example in split("video", 1600)] for split in (train, test))
    accuracy = np.mean(np.array(asked) == np.bincount(known).argmax())
    print(f"video, majority: {accuracy:.3f}")
    assert accuracy < chance(1 / 8, 1600)
    known, asked = (np.array([example["digits"] for example in split("cells")]) for split in (train, test))
    full = np.stack([(known == digit).mean(0) for digit in range(10)]).argmax(0)  # [9]: the commonest in each cell
    accuracy = (asked == full)[asked < 10].mean()
    print(f"cells, digit of a cell that is not empty: {accuracy:.3f}")
    print(f"cells, empty: {(asked == 10).mean():.3f}")
    assert accuracy < chance(1 / 10, (asked < 10).sum())
    assert (asked == 10).mean() < 0.74  # 2.5 of 9 cells are full on average


# Scenes of one's own, and bad input.


def test_a_scene_can_be_composed(read):
    scenes = DigitScenes("validation")
    scene = scenes.compose({8: ("white", 0), 3: ("green", 2), 1: ("red", 7)})
    assert scene.caption() == "a red seven and a green two and a white zero"
    assert {cell: thing[:2] for cell, thing in read(scene.render()).items()} == {
        1: ("red", 7),
        3: ("green", 2),
        8: ("white", 0),
    }
    assert {read(scenes.compose({0: ("red", 7)}, index).render())[0][2] for index in range(200)} == set(
        _sources("validation")[7].tolist()
    )
    assert [scene.outermost(relation) for relation in ("above", "below", "left of", "right of")] == [
        scene.objects[0],
        scene.objects[2],
        scene.objects[1],
        scene.objects[2],
    ]
    pair = scenes.compose({2: ("red", 7), 8: ("white", 0)})
    assert pair.outermost("left of") is None
    assert pair.question("relation", np.random.default_rng(0)) in (
        ("what digit is above the others?", "seven"),
        ("what digit is below the others?", "zero"),
    )
    assert scene.question("count", np.random.default_rng(0)) == ("how many digits are there?", "three")
    turned = Scene([PlacedDigit(0, "red", 4, 4, 12, angle=45), PlacedDigit(1, "blue", 16, 0, covered=True)])
    assert turned.caption() == "a red zero" and turned.render()[4, 20].tolist() == [120, 120, 120]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: load_digit_scenes("segmentation"), r"`task` must be one of cells, .*; got 'segmentation'"),
        (lambda: load_digit_scenes("vqa", "dev"), r"`split` must be one of train, validation, test; got 'dev'"),
        (lambda: load_digit_scenes("vqa", size=-1), r"`size` must be an integer of 0 or more; got -1"),
        (lambda: load_digit_scenes("vqa", size=2.5), r"`size` must be an integer of 0 or more; got 2.5"),
        (lambda: load_digit_scenes("vqa", seed=-1), r"`seed` must be an integer of 0 or more; got -1"),
        (
            lambda: load_digit_scenes("vqa", image_size=16),
            r"`image_size` must be an integer of 24 or more; got 16. Three digits",
        ),
        (
            lambda: load_digit_scenes("vqa", max_objects=10),
            r"`max_objects` must be an integer from 1 to 4; got 10. The canvas",
        ),
        (
            lambda: load_digit_scenes("vqa", question_types=["shape"]),
            r"`question_types` must be one of color, .*; got 'shape'",
        ),
        (
            lambda: load_digit_scenes("vqa", question_types=[]),
            r"`question_types` must name at least one of color, digit",
        ),
        (
            lambda: load_digit_scenes("vqa", max_objects=1, streaming=True),
            r"type 'relation' needs `max_objects` of 2 or more; got 1",
        ),
        (
            lambda: load_digit_scenes("entailment", max_objects=1),
            r"'entailment' needs `max_objects` of 2 or more; got 1",
        ),
        (
            lambda: load_digit_scenes("reasoning", max_objects=1),
            r"'reasoning' needs `max_objects` of 2 or more; got 1",
        ),
        (lambda: load_digit_scenes("video", num_frames=1), r"`num_frames` must be an integer of 2 or more; got 1"),
        (lambda: load_digit_scenes("interleaved", shots=-1), r"`shots` must be an integer of 0 or more; got -1"),
        (
            lambda: load_digit_scenes("interleaved", kind="story"),
            r"`kind` must be one of caption, vqa, mixed, rule; got 'story'",
        ),
        (lambda: load_digit_scenes("vqa", as_arrays=True), r"`as_arrays=True` needs `streaming=True`"),
        (lambda: DigitScenes().caption(-1), r"`index` must be an integer of 0 or more; got -1"),
        (lambda: DigitScenes().compose({9: ("red", 7)}), r"`cell` must be an integer from 0 to 8; got 9"),
        (lambda: DigitScenes().compose({0: ("pink", 7)}), r"`color` must be one of red, .*; got 'pink'"),
        (lambda: DigitScenes().compose({0: ("red", 12)}), r"`digit` must be an integer from 0 to 9; got 12"),
        (
            lambda: DigitScenes().compose({0: ("red", 7), 1: ("red", 8)}),
            r"differ in their color; got 2 objects with 1",
        ),
        (lambda: DigitScenes().compose({0: ("red", 7), 1: ("blue", 7)}), r"differ in their digit"),
        (lambda: Scene([PlacedDigit(0, "red", 0, 0), PlacedDigit(1, "blue", 1, 1)]), r"differ in their cell"),
        (
            lambda: Scene([PlacedDigit(0, "red", 20, 0)]),
            r"24 x 24 pixels; the red zero takes 8 x 8 pixels from \(20, 0\)",
        ),
        (lambda: Scene([PlacedDigit(0, "red", 0, 0, angle=45)]), r"takes 12 x 12 pixels from \(-2, -2\)"),
        (lambda: PlacedDigit(1797, "red", 0, 0), r"`source` must be an integer from 0 to 1796; got 1797"),
        (
            lambda: Scene([]).question("color", np.random.default_rng(0)),
            r"'color' needs an object; this scene of 0 visible",
        ),
    ],
)
def test_bad_arguments_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_option_of_another_task_is_refused():
    with pytest.raises(TypeError, match="task 'vqa' has no option 'shots'; its options are: none"):
        load_digit_scenes("vqa", shots=2)
    with pytest.raises(TypeError, match="task 'interleaved' has no option 'frames'; its options are: shots, kind"):
        DigitScenes().example("interleaved", 0, frames=3)


def test_without_scikit_learn_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    _handwriting.cache_clear()
    _sources.cache_clear()
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        load_digit_scenes("caption", size=1)
