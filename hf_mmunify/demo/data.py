"""What the demo learns from: digit scenes or a dataset of yours, as tasks, and few-shot documents of their rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from ..data.digit_scenes import (
    CAPTION_PROMPT,
    END_OF_CHUNK_TOKEN,
    IMAGE_TOKEN,
    QUESTION_PROMPT,
    RULE_PROMPT,
    DigitScenes,
)
from ..evaluation import CAPTION_TEMPLATE, QUESTION_TEMPLATE, cider, exact_match, vqa_accuracy
from .options import DemoError


TRAIN_ROWS = 12_000  # digit scenes of a task
MAX_OBJECTS = 2  # in a scene: what can be learned within minutes


@dataclass
class Task:
    """Something to ask about an image.

    Args:
        name (`str`): For example "caption".
        template (`str`): How an example is written, as `FewShotEvaluator` takes it.
        train (`Sequence[Mapping]`), test (`Sequence[Mapping]`): Rows of `image`, `answer`, and what `template` names.
        metric (`Callable`): Scores predictions against references.
        answer_length (`int`, defaults to 24): Most tokens of an answer.
        weight (`int`, defaults to 1): How often it is practised, compared with other tasks.
    """

    name: str
    template: str
    train: Sequence[Mapping[str, Any]] = field(repr=False)
    test: Sequence[Mapping[str, Any]] = field(repr=False)
    metric: Callable[[list[str], list], dict[str, float]] = exact_match
    answer_length: int = 24
    weight: int = 1


class FewShotDocuments(Dataset):
    """Documents to train on: several examples of one task in a row, each with its image.

    Document `index` depends on the seed and the index alone. Its number of examples is random, so that a trained model
    has met every number of shots.

    Args:
        tasks (`Sequence[Task]`): What documents are about, drawn by their weights.
        size (`int`): Number of documents.
        max_shots (`int`, defaults to 4): A document has 1 to `max_shots + 1` examples.
        seed (`int`, defaults to 0): Draws tasks and rows.
        with_images (`bool`, defaults to `True`): Otherwise only the words, for a language model.
    """

    def __init__(self, tasks: Sequence[Task], size: int, max_shots: int = 4, seed: int = 0, with_images: bool = True):
        self.tasks = [task for task in tasks for _ in range(task.weight)]
        self.size = size
        self.max_shots = max_shots
        self.seed = seed
        self.with_images = with_images

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        task = self.tasks[rng.integers(len(self.tasks))]
        size = rng.integers(1, self.max_shots + 2)
        rows = [task.train[int(place)] for place in rng.integers(len(task.train), size=size)]
        answers = [_one_of(row["answer"], rng) for row in rows]
        text = "".join(task.template.format(**{**row, "answer": answer}) for row, answer in zip(rows, answers))
        if not self.with_images:
            return {"text": text.replace(IMAGE_TOKEN, "")}
        return {"images": [row["image"] for row in rows], "text": text}


def _one_of(answer: str | Sequence[str], rng: np.random.Generator) -> str:
    """An answer, or one of several that people gave."""
    return answer if isinstance(answer, str) else answer[rng.integers(len(answer))]


def digit_scene_tasks(test_examples: int, train_rows: int = TRAIN_ROWS, seed: int = 0) -> list[Task]:
    """Captions, questions, and labels whose rule only the shots tell; tests are of writers that no one trained on.

    The labels are two tasks that look alike: what digit a picture shows, and in which colour. With no shot before it a
    label can be either.
    """
    scenes = {"max_objects": MAX_OBJECTS, "question_types": ("color", "digit", "count")}
    train, test = DigitScenes("train", seed, **scenes), DigitScenes("test", seed, **scenes)

    def template(prompt: str) -> str:
        return f"{IMAGE_TOKEN}{prompt} {{answer}}{END_OF_CHUNK_TOKEN}"

    def captions(scenes: DigitScenes, size: int) -> list[dict[str, Any]]:
        return [{"image": row["image"], "answer": row["caption"]} for row in scenes.examples("caption", size)]

    def labels(scenes: DigitScenes, kind: str, size: int) -> list[dict[str, Any]]:
        rows = (scenes.interleaved(index, shots=0, kind="rule") for index in count())
        rows = ({"image": row["images"][0], "answer": row["answer"]} for row in rows if row["type"] == kind)
        return list(islice(rows, size))

    return [
        Task(
            "caption", template(CAPTION_PROMPT), captions(train, train_rows), captions(test, test_examples), weight=3
        ),
        Task(
            "vqa",
            template(QUESTION_PROMPT),
            train.examples("vqa", train_rows),
            test.examples("vqa", test_examples),
            answer_length=3,
            weight=4,
        ),
        *(
            Task(
                f"label: {kind}",
                template(RULE_PROMPT),
                labels(train, kind, train_rows // 4),
                labels(test, kind, test_examples // 2),
                answer_length=3,
            )
            for kind in ("digit", "color")
        ),
    ]


IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "description", "sentences", "label", "labels")
ANSWER_COLUMNS = ("answer", "answers")


class Rows(Sequence):
    """Rows of a dataset by the names that tasks use, read when they are asked for.

    Args:
        dataset (`datasets.Dataset`): With the columns below.
        columns (`Mapping[str, str]`): The dataset's column for "image", "answer" and, where there is one, "question".
    """

    def __init__(self, dataset: datasets.Dataset, columns: Mapping[str, str]):
        self.dataset = dataset.select_columns(list(columns.values()))
        self.columns = dict(columns)
        feature = dataset.features[columns["answer"]]
        self.classes = feature if isinstance(feature, datasets.ClassLabel) else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        row = {name: row[column] for name, column in self.columns.items()}
        if self.classes is not None:
            row["answer"] = self.classes.int2str(row["answer"]).replace("_", " ")
        return row


def dataset_tasks(name: str, test_examples: int, seed: int = 0) -> list[Task]:
    """The task of a dataset: questions where it has them, else captions, or the names of classes.

    Args:
        name (`str`): Name of a dataset on the Hub, or a folder: images with a `metadata.csv` or `.jsonl`, images in a
            subfolder for each class, or what `save_to_disk` wrote.
        test_examples (`int`): How many to hold out, or to take of its test split.
        seed (`int`, defaults to 0): Draws those to hold out.

    Raises:
        DemoError: it has no column of images, or none of texts.
        OSError, ValueError: it cannot be loaded.
    """
    folder = Path(name)
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict({"train": loaded})
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    held_out = next((splits[split] for split in ("test", "validation") if split in splits and "train" in splits), None)
    if held_out is None:
        if len(train) < 2:
            raise DemoError(f"The dataset {name} has {len(train)} rows: at least one to train on and one to test on.")
        parts = train.train_test_split(min(test_examples, len(train) // 2), seed=seed)
        train, held_out = parts["train"], parts["test"]
    held_out = held_out.shuffle(seed=seed).select(range(min(test_examples, len(held_out))))
    columns = _find_columns(name, train.features)
    rows = Rows(train, columns)
    test = [Rows(held_out, columns)[place] for place in range(len(held_out))]
    if "question" in columns:
        return [Task("vqa", QUESTION_TEMPLATE, rows, test, vqa_accuracy, answer_length=8)]
    metric = cider if rows.classes is None else exact_match
    return [Task("caption", CAPTION_TEMPLATE, rows, test, metric)]


def _find_columns(name: str, features: datasets.Features) -> dict[str, str]:
    """Which columns of a dataset hold image, answer and question."""
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise DemoError(f"The dataset {name} has no column of images, only {', '.join(features)}.")
    image = next((column for column in IMAGE_COLUMNS if column in images), images[0])
    answers = [column for column in ANSWER_COLUMNS if column in features]
    if "question" in features and answers:
        return {"image": image, "question": "question", "answer": answers[0]}
    captions = [column for column in CAPTION_COLUMNS if column in features]
    if not captions:
        raise DemoError(
            f"The dataset {name} has neither captions (a column {', '.join(CAPTION_COLUMNS)}) nor questions with "
            f"answers, only {', '.join(features)}. Rename its column."
        )
    return {"image": image, "answer": captions[0]}
