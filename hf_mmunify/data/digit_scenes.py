"""Digit scenes: every task of this package on real handwriting, offline, from a seed.

A scene is a dark canvas of 3 x 3 cells with up to four of the 1,797 handwritten digits that scikit-learn carries, each
in a colour of its own. From scenes come captions, questions, statements, hypotheses, videos, boxes and documents:

    (seed, split, task, index) -> numpy generator -> Scene -> .render()   uint8 [H, W, 3]
                                                           -> .caption()  "a red seven and a blue three"
                                                           -> .question() ("what color is the seven?", "red")

- Example `index` is a pure function of (seed, split, task, index, options). `image_size` changes pixels only: words,
  labels and handwriting of an example are the same at every scale.
- A scene shows no digit and no colour twice, so that "the seven" and "the red digit" name one object.
- Reading order is by cell: rows from top to bottom, in a row from left to right.
- Every label is drawn before the words and the scene that fit it, so that a model that sees only the words stays at
  chance; in the entailment task a model that sees only the image does too.
- The language is closed: `VOCABULARY` holds every word and punctuation mark of every text.

Scales. `image_size=24` is native: digits keep the 8 x 8 pixels of the scanner and fill their cells, so cells are the
patches of a vision transformer with patch size 8, and small models learn within CPU minutes. From 30 pixels on digits
leave their cells room and are jittered in it; 64 is pleasant to look at.

Handwriting. The file holds 14 forms, on each of which one writer copied about 130 digits in the same order. No form is
divided between splits: train has forms 1-9, validation 10 and 11 (the two that resemble each other most), test 12-14.

Source of the digits: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (CC BY 4.0), in `sklearn.datasets.load_digits`.
"""

import io
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, Literal, get_args, overload

import numpy as np
from datasets import Array3D, Array4D, ClassLabel, Dataset, Features, Image, IterableDataset, List, NamedSplit, Value
from PIL import Image as PILImage


Task = Literal[
    "cells", "caption", "retrieval", "vqa", "reasoning", "entailment", "video", "detection", "interleaved", "text"
]
Split = Literal["train", "validation", "test"]
QuestionType = Literal["color", "digit", "count", "relation"]
DocumentKind = Literal["caption", "vqa", "mixed", "rule"]

TASKS: tuple[str, ...] = get_args(Task)
QUESTION_TYPES: tuple[str, ...] = get_args(QuestionType)
DOCUMENT_KINDS: tuple[str, ...] = get_args(DocumentKind)
TASK_OPTIONS: dict[str, tuple[str, ...]] = {"video": ("num_frames",), "interleaved": ("shots", "kind")}

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 60, 50),
    "green": (60, 190, 80),
    "blue": (70, 110, 240),
    "yellow": (240, 210, 60),
    "white": (235, 235, 235),
}
DIGITS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EMPTY = "empty"
_MOTIONS = {  # an action, what it changes, and whether upwards
    "moving left": ("x", False),
    "moving right": ("x", True),
    "moving up": ("y", False),
    "moving down": ("y", True),
    "growing": ("size", True),
    "shrinking": ("size", False),
    "turning left": ("angle", True),
    "turning right": ("angle", False),
}
ACTIONS: tuple[str, ...] = tuple(_MOTIONS)
ENTAILMENT_LABELS: tuple[str, ...] = ("entailment", "neutral", "contradiction")
IMAGE_TOKEN = "<image>"
END_OF_CHUNK_TOKEN = "<|endofchunk|>"
CAPTION_PROMPT = "output:"
QUESTION_PROMPT = "question: {question} answer:"
RULE_PROMPT = "label:"

VOCABULARY: tuple[str, ...] = (
    *COLORS,
    *DIGITS,
    *("?", ":", "a", "above", "and", "answer", "are", "below", "both", "color", "digit", "digits", "down"),
    *("growing", "has", "have", "how", "image", "images", "is", "label", "left", "many", "more", "moving"),
    *("of", "others", "output", "question", "right", "shrinking", "than", "the", "there", "turning", "up", "what"),
)

RELATIONS: dict[str, tuple[int, int]] = {  # row (0) or column (1), and the sign that makes the outermost the smallest
    "left of": (1, 1),
    "right of": (1, -1),
    "above": (0, 1),
    "below": (0, -1),
}

_FORMS = {"train": (0, 1157), "validation": (1157, 1415), "test": (1415, 1797)}  # where a writer's form begins
_GRID = 3
_NATIVE = 8  # pixels a side, as scanned
_BACKGROUND = 16
_CARD = (120, 120, 120)
_INK = 16  # the faintest of the scanner's 16 levels of grey, of 255
_SHARDS = 16  # of a stream: 1, 2, 4, 8 or 16 workers get equal parts


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}. Pass one of these names.")


def _check_integer(name: str, value: Any, low: int, high: int | None = None, advice: str = "") -> None:
    if not isinstance(value, int | np.integer) or value < low or (high is not None and value > high):
        limits = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"`{name}` must be an integer {limits}; got {value!r}.{advice and ' ' + advice}")


@lru_cache(maxsize=1)
def _handwriting() -> tuple[np.ndarray, np.ndarray]:
    """Ink of all digits, uint8 [1797, 8, 8] (0 is paper), and what they are, int [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "Digit scenes are made of the handwritten digits that scikit-learn carries, and scikit-learn is not "
            "installed: `pip install scikit-learn`."
        ) from error
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


@lru_cache(maxsize=3)
def _sources(split: str) -> list[np.ndarray]:
    """For each of the ten digits the indices of its handwriting in a split."""
    first, end = _FORMS[split]
    labels = _handwriting()[1][first:end]
    return [first + np.flatnonzero(labels == digit) for digit in range(10)]


@lru_cache(maxsize=8192)
def _draw(source: int, size: int, angle: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Ink, uint8 [side, side], of one digit `size` pixels wide, turned `angle` degrees counter-clockwise, and its box.

    Upright, `side` is `size`; turned, it is larger by a margin on each side, so that no corner is cut.
    """
    ink = _handwriting()[0][source]
    if size != _NATIVE:
        ink = np.asarray(PILImage.fromarray(ink).resize((size, size), PILImage.Resampling.BICUBIC))
    if angle:
        ink = np.pad(ink, math.ceil(size * (math.sqrt(2) - 1) / 2))
        ink = np.asarray(PILImage.fromarray(ink).rotate(angle, PILImage.Resampling.BILINEAR))
    columns, rows = np.flatnonzero((ink >= _INK).any(0)), np.flatnonzero((ink >= _INK).any(1))
    return ink, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


@dataclass(frozen=True)
class PlacedDigit:
    """One handwritten digit on a canvas.

    Args:
        source (`int`): Which handwriting, 0 to 1796 in the order of `sklearn.datasets.load_digits`.
        color (`str`): A key of `COLORS`.
        x (`int`), y (`int`): Left and upper edge in pixels.
        size (`int`, defaults to 8): Side of its square in pixels.
        angle (`int`, defaults to 0): Degrees it is turned counter-clockwise about its centre.
        covered (`bool`, defaults to `False`): Whether a grey card lies on its square.
    """

    source: int
    color: str
    x: int
    y: int
    size: int = _NATIVE
    angle: int = 0
    covered: bool = False

    def __post_init__(self):
        _check_choice("color", self.color, tuple(COLORS))
        _check_integer("source", self.source, 0, 1796)
        _check_integer("size", self.size, 1)

    @property
    def digit(self) -> int:
        return int(_handwriting()[1][self.source])

    @property
    def name(self) -> str:
        """For example "red seven"."""
        return f"{self.color} {DIGITS[self.digit]}"

    @property
    def corner(self) -> tuple[int, int]:
        """Left and upper edge of what is drawn; a turned digit needs more than its square."""
        margin = (len(_draw(self.source, self.size, self.angle)[0]) - self.size) // 2
        return self.x - margin, self.y - margin

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The ink's bounding box `(x0, y0, x1, y1)` in pixels of the canvas; x1 and y1 are the first outside."""
        (x, y), (x0, y0, x1, y1) = self.corner, _draw(self.source, self.size, self.angle)[1]
        return x + x0, y + y0, x + x1, y + y1


@dataclass(frozen=True)
class Scene:
    """A canvas with placed digits; `objects` are brought into reading order.

    Args:
        objects (`Sequence[PlacedDigit]`): At most one in each cell, no digit and no colour twice.
        image_size (`int`, defaults to 24): Side of the canvas in pixels.

    Raises:
        ValueError: two objects share a cell, a digit or a colour, or one leaves the canvas.
    """

    objects: Sequence[PlacedDigit]
    image_size: int = _GRID * _NATIVE

    def __post_init__(self):
        object.__setattr__(self, "objects", tuple(sorted(self.objects, key=self.cell)))
        for what, keys in (
            ("cell", {self.cell(thing) for thing in self.objects}),
            ("digit", {thing.digit for thing in self.objects}),
            ("color", {thing.color for thing in self.objects}),
        ):
            if len(keys) < len(self.objects):
                raise ValueError(
                    f"The objects of a scene must differ in their {what}; got {len(self.objects)} objects with "
                    f"{len(keys)} different ones. Move, replace or recolour an object, or leave one out."
                )
        for thing in self.objects:
            (x, y), side = thing.corner, len(_draw(thing.source, thing.size, thing.angle)[0])
            if min(x, y) < 0 or max(x, y) + side > self.image_size:
                raise ValueError(
                    f"Objects must lie on the canvas of {self.image_size} x {self.image_size} pixels; the "
                    f"{thing.name} takes {side} x {side} pixels from ({x}, {y}). Move or shrink it, or enlarge "
                    "`image_size`."
                )

    def cell(self, thing: PlacedDigit) -> int:
        """The cell, 0 to 8 row by row, in which an object's centre lies."""
        column, row = ((2 * edge + thing.size) * _GRID // (2 * self.image_size) for edge in (thing.x, thing.y))
        return row * _GRID + column

    @property
    def visible(self) -> tuple[PlacedDigit, ...]:
        """The objects that no card covers, in reading order."""
        return tuple(thing for thing in self.objects if not thing.covered)

    def render(self) -> np.ndarray:
        """The image, RGB, uint8 [image_size, image_size, 3]."""
        canvas = np.full((self.image_size, self.image_size, 3), _BACKGROUND, np.uint8)
        for thing in self.objects:
            if thing.covered:
                canvas[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size] = _CARD
                continue
            ink, (x, y) = _draw(thing.source, thing.size, thing.angle)[0][..., None].astype(np.uint16), thing.corner
            patch = canvas[y : y + len(ink), x : x + len(ink)]
            patch[:] = (patch * (255 - ink) + np.array(COLORS[thing.color], np.uint16) * ink + 127) // 255
        return canvas

    def caption(self) -> str:
        """The visible objects in reading order, for example "a red seven and a blue three"."""
        return " and ".join(f"a {thing.name}" for thing in self.visible)

    def cell_labels(self) -> tuple[list[int], list[int]]:
        """Digit (10: none) and index in `COLORS` (5: none) of what is visible in each of the nine cells."""
        digits, colors = [len(DIGITS)] * _GRID**2, [len(COLORS)] * _GRID**2
        for thing in self.visible:
            digits[self.cell(thing)] = thing.digit
            colors[self.cell(thing)] = list(COLORS).index(thing.color)
        return digits, colors

    def outermost(self, relation: str) -> PlacedDigit | None:
        """The visible object that is "left of", "right of", "above" or "below" all others, if a single one is."""
        _check_choice("relation", relation, tuple(RELATIONS))
        axis, sign = RELATIONS[relation]
        places = [sign * divmod(self.cell(thing), _GRID)[axis] for thing in self.visible]
        if len(places) < 2 or places.count(min(places)) > 1:
            return None
        return self.visible[places.index(min(places))]

    def question(self, question_type: QuestionType, rng: np.random.Generator) -> tuple[str, str]:
        """A question about the visible objects, and its answer, a single word.

        Args:
            question_type (`str`): One of
                "color" ("what color is the seven?"), "digit" ("what digit is red?"), "count" ("how many digits are
                there?") and "relation" ("what digit is left of the others?", or right of, above, below).
            rng (`np.random.Generator`): Draws which object is asked about.

        Raises:
            ValueError: the type is unknown, or the scene has nothing to ask about.
        """
        _check_choice("question_type", question_type, QUESTION_TYPES)
        if question_type == "count":
            return "how many digits are there?", DIGITS[len(self.visible)]
        if question_type == "relation":
            asked = [(relation, self.outermost(relation)) for relation in RELATIONS]
            asked = [(relation, thing) for relation, thing in asked if thing is not None]
        else:
            asked = [(question_type, thing) for thing in self.visible]
        if not asked:
            needed = "one object on one side of all others" if question_type == "relation" else "an object"
            raise ValueError(
                f"A question of type '{question_type}' needs {needed}; this scene of {len(self.visible)} visible "
                "objects has none. Ask another question or add objects."
            )
        what, thing = asked[rng.integers(len(asked))]
        if question_type == "color":
            return f"what color is the {DIGITS[thing.digit]}?", thing.color
        if question_type == "digit":
            return f"what digit is {thing.color}?", DIGITS[thing.digit]
        return f"what digit is {what} the others?", DIGITS[thing.digit]


def _draw_other(rng: np.random.Generator, things: Iterable[Any], taken: Set[Any]) -> Any:
    """One of the things that are not taken."""
    free = [thing for thing in things if thing not in taken]
    return free[rng.integers(len(free))]


@lru_cache(maxsize=32)
def _caption_order(seed: int, split: str, count: int) -> np.ndarray:
    """A permutation of all captions of `count` objects, by rank: int [P(10, count) * P(5, count)]."""
    captions = math.perm(len(DIGITS), count) * math.perm(len(COLORS), count)
    rng = np.random.default_rng([seed, list(_FORMS).index(split), zlib.crc32(b"caption order"), count])
    return rng.permutation(captions)


def _unrank(rank: int, items: int, count: int) -> tuple[list[int], int]:
    """The arrangement of `count` out of `items` with this rank, and what the rank leaves over."""
    pool, chosen = list(range(items)), []
    for _ in range(count):
        rank, place = divmod(rank, len(pool))
        chosen.append(pool.pop(place))
    return chosen, rank


@dataclass(frozen=True)
class DigitScenes:
    """The examples of one split: `DigitScenes("test").vqa(3)` is always the same dict.

    Images come as uint8 arrays [H, W, 3], several of one example as one array [N, H, W, 3]. A list of such dicts
    (`examples`) is a dataset to `DataLoader` and `Trainer`; `load_digit_scenes` turns the same examples into a
    `datasets` object.

    Args:
        split (`str`, defaults to "train"): "train", "validation" or "test"; no handwriting is in two of them.
        seed (`int`, defaults to 0): Another seed gives other examples of the same handwriting.
        image_size (`int`, defaults to 24): Side of the canvas in pixels, 24 or more.
        max_objects (`int`, defaults to 4): Scenes have 1 to `max_objects` objects; at most 4, one less than there are
            colours, so that a colour can be missing from every scene.
        question_types (`Sequence[str]`, defaults to all four): What `vqa`, `interleaved` and `text` ask, each type
            equally often: "color", "digit", "count", "relation".

    Raises:
        ValueError: an argument is outside of these limits.
        ImportError: scikit-learn is missing.
    """

    split: Split = "train"
    seed: int = 0
    image_size: int = _GRID * _NATIVE
    max_objects: int = 4
    question_types: Sequence[QuestionType] = QUESTION_TYPES

    def __post_init__(self):
        _check_choice("split", self.split, tuple(_FORMS))
        _check_integer("seed", self.seed, 0)
        _check_integer(
            "image_size", self.image_size, _GRID * _NATIVE, None, "Three digits of 8 pixels must fit a side."
        )
        advice = f"The canvas shows each of the {len(COLORS)} colors once at most, and one must stay unused."
        _check_integer("max_objects", self.max_objects, 1, len(COLORS) - 1, advice)
        object.__setattr__(self, "question_types", tuple(self.question_types))
        if not self.question_types:
            raise ValueError(f"`question_types` must name at least one of {', '.join(QUESTION_TYPES)}; got none.")
        for question_type in self.question_types:
            _check_choice("question_types", question_type, QUESTION_TYPES)

    def _rng(self, task: str, index: int) -> np.random.Generator:
        _check_integer("index", index, 0)
        return np.random.default_rng([self.seed, list(_FORMS).index(self.split), zlib.crc32(task.encode()), index])

    def _count(self, rng: np.random.Generator, least: int = 1) -> int:
        return int(rng.integers(least, self.max_objects + 1))

    def _need_two_objects(self, what: str, advice: str) -> None:
        if self.max_objects < 2:
            raise ValueError(f"{what} needs `max_objects` of 2 or more; got {self.max_objects}. {advice}")

    def _place(
        self, digits: Sequence[int], colors: Sequence[int], cells: Sequence[int], rng: np.random.Generator
    ) -> Scene:
        """One digit a cell, by index of digit, color and cell; draws the handwriting and the place in the cell."""
        cell = self.image_size // _GRID
        size = max(_NATIVE, cell * 6 // 7)
        margin = (self.image_size - _GRID * cell) // 2
        names, sources, objects = list(COLORS), _sources(self.split), []
        draws = rng.random((len(digits), 3)).tolist()  # of fixed number, so that scales differ in pixels only
        for digit, color, at, (hand, right, down) in zip(digits, colors, cells, draws):
            row, column = divmod(int(at), _GRID)
            x, y = (
                margin + place * cell + int(shift * (cell - size + 1))
                for place, shift in ((column, right), (row, down))
            )
            source = int(sources[digit][int(hand * len(sources[digit]))])
            objects.append(PlacedDigit(source, names[color], x, y, size))
        return Scene(objects, self.image_size)

    def _scene(self, rng: np.random.Generator, count: int, color: int | None = None, wanted: bool = True) -> Scene:
        """A random scene of `count` objects that has, or (`wanted=False`) has not, a given color."""
        digits, colors, cells = rng.permutation(len(DIGITS)), rng.permutation(len(COLORS)), rng.permutation(_GRID**2)
        if color is not None:
            place = int(np.flatnonzero(colors == color)[0])
            if (place < count) != wanted:
                other = rng.integers(count) if wanted else rng.integers(count, len(COLORS))
                colors[[place, other]] = colors[[other, place]]
        return self._place(digits[:count], colors[:count], cells[:count], rng)

    def _ask(self, rng: np.random.Generator) -> tuple[Scene, str, str, str]:
        """A random scene with question, answer and type of question."""
        if "relation" in self.question_types:
            self._need_two_objects("A question of type 'relation'", "Or leave 'relation' out of `question_types`.")
        question_type = self.question_types[rng.integers(len(self.question_types))]
        count = self._count(rng, 2 if question_type == "relation" else 1)
        scene = self._scene(rng, count)
        while question_type == "relation" and not any(map(scene.outermost, RELATIONS)):
            scene = self._scene(rng, count)  # four digits in the corners, say: none is on one side of all others
        return scene, *scene.question(question_type, rng), question_type

    def compose(self, cells: Mapping[int, tuple[str, int]], index: int = 0) -> Scene:
        """A scene of your own: `DigitScenes("test").compose({0: ("red", 7), 4: ("blue", 3)}).render()`.

        Args:
            cells (`Mapping[int, tuple[str, int]]`): Color and digit for each cell that is not empty; cells are
                numbered 0 to 8 row by row.
            index (`int`, defaults to 0): Another index takes other handwriting of this split.

        Raises:
            ValueError: a cell, color or digit does not exist, or a digit or color occurs twice.
        """
        for cell, (color, digit) in cells.items():
            _check_integer("cell", cell, 0, _GRID**2 - 1)
            _check_choice("color", color, tuple(COLORS))
            _check_integer("digit", digit, 0, 9)
        colors = [list(COLORS).index(color) for color, _ in cells.values()]
        return self._place([digit for _, digit in cells.values()], colors, list(cells), self._rng("compose", index))

    def cells(self, index: int) -> dict[str, Any]:
        """What is in each cell: `image`, `digits` (nine labels, 10 is empty), `colors` (nine labels, 5 is empty)."""
        rng = self._rng("cells", index)
        scene = self._scene(rng, self._count(rng))
        digits, colors = scene.cell_labels()
        return {"image": scene.render(), "digits": digits, "colors": colors}

    def caption(self, index: int) -> dict[str, Any]:
        """`image` and `caption`, which names all objects in reading order, so that there is one right caption."""
        rng = self._rng("caption", index)
        scene = self._scene(rng, self._count(rng))
        return {"image": scene.render(), "caption": scene.caption()}

    def retrieval(self, index: int) -> dict[str, Any]:
        """`image` and `caption` of 2 to `max_objects` objects, no caption twice among 5,400 examples in a row.

        Numbers of objects take turns (2, 3, 4, 2, ...), and for each number the examples walk through a random
        permutation of all its captions; the 1,800 captions of two objects are the first to be used up. With
        `max_objects` of 3, 2 and 1 the examples without a repetition are 3,600, 1,800 and 50.
        """
        counts = range(min(2, self.max_objects), self.max_objects + 1)
        rng, count = self._rng("retrieval", index), counts[index % len(counts)]
        order = _caption_order(self.seed, self.split, count)
        digits, rank = _unrank(int(order[index // len(counts) % len(order)]), len(DIGITS), count)
        colors, _ = _unrank(rank, len(COLORS), count)
        scene = self._place(digits, colors, sorted(rng.permutation(_GRID**2)[:count]), rng)
        return {"image": scene.render(), "caption": scene.caption()}

    def vqa(self, index: int) -> dict[str, Any]:
        """`image`, `question`, `answer` (one word) and `type`; within a type all answers are equally frequent."""
        scene, question, answer, question_type = self._ask(self._rng("vqa", index))
        return {"image": scene.render(), "question": question, "answer": answer, "type": question_type}

    def reasoning(self, index: int) -> dict[str, Any]:
        """`images` [2, H, W, 3] (left, right), `statement`, `label` (1 if it is true) and `type` of statement:

        "more" ("the left image has more digits than the right image", or the reverse) and "both" ("both images have a
        red digit"; where that is false, one of them has).
        """
        self._need_two_objects("The task 'reasoning'", "Its statements compare numbers of digits.")
        rng = self._rng("reasoning", index)
        statement_type, label = ("more", "both")[rng.integers(2)], int(rng.integers(2))
        side, color = int(rng.integers(2)), int(rng.integers(len(COLORS)))
        if statement_type == "more":
            counts = product(range(1, self.max_objects + 1), repeat=2)
            counts = [pair for pair in counts if (pair[0] > pair[1]) == label]
            scenes = [self._scene(rng, count) for count in counts[rng.integers(len(counts))]]
            one, other = ("left", "right") if side == 0 else ("right", "left")
            statement = f"the {one} image has more digits than the {other} image"
        else:
            scenes = [self._scene(rng, self._count(rng), color, wanted) for wanted in (True, bool(label))]
            statement = f"both images have a {list(COLORS)[color]} digit"
        images = np.stack([scene.render() for scene in (scenes if side == 0 else scenes[::-1])])  # [2, H, W, 3]
        return {"images": images, "statement": statement, "label": label, "type": statement_type}

    def entailment(self, index: int) -> dict[str, Any]:
        """`image` with a grey card on one of its 2 to `max_objects` digits, `hypothesis` and `label`.

        "there is a red seven" follows (0) if a red seven is visible, is contradicted (2) if red is seen on another
        digit or the seven in another color, as neither occurs twice, and is open (1) otherwise: it could lie under
        the card. The scene is drawn without regard to the label, so that the image alone does not give it away.
        """
        self._need_two_objects("The task 'entailment'", "A card covers one object, and another must be visible.")
        rng = self._rng("entailment", index)
        label = int(rng.integers(len(ENTAILMENT_LABELS)))
        scene = self._scene(rng, self._count(rng, 2))
        covered = int(rng.integers(len(scene.objects)))
        objects = [replace(thing, covered=at == covered) for at, thing in enumerate(scene.objects)]
        scene = Scene(objects, self.image_size)
        one = scene.visible[rng.integers(len(scene.visible))]
        color, digit = one.color, one.digit
        if ENTAILMENT_LABELS[label] == "neutral":
            color = _draw_other(rng, COLORS, {thing.color for thing in scene.visible})
            digit = _draw_other(rng, range(len(DIGITS)), {thing.digit for thing in scene.visible})
        elif ENTAILMENT_LABELS[label] == "contradiction":
            if rng.random() < 0.5:
                color = _draw_other(rng, COLORS, {color})
            else:
                digit = _draw_other(rng, range(len(DIGITS)), {digit})
        return {"image": scene.render(), "hypothesis": f"there is a {color} {DIGITS[digit]}", "label": label}

    def video(self, index: int, num_frames: int = 8) -> dict[str, Any]:
        """`video` [num_frames, H, W, 3] of one digit, `label` (index in `ACTIONS`), `caption` ("a red seven growing").

        An action and its opposite are the same frames in opposite order: a model that does not see the order cannot
        tell them apart. "left" and "right" are the viewer's; turning left is turning counter-clockwise. The caption
        names the action: it is a target for captioning and retrieval, not an input for classification.
        """
        _check_integer("num_frames", num_frames, 2, None, "A still does not move.")
        rng = self._rng("video", index)
        label = int(rng.integers(len(ACTIONS)))
        still = self._scene(rng, 1).objects[0]
        across, down, begin, span = rng.random(4).tolist()
        span = (1 + span) / 2  # an action runs through half of what there is room for, or more
        quantity, forward = _MOTIONS[ACTIONS[label]]
        largest = still.size + 2 * math.ceil(still.size / 4)  # also holds the corners of a turned digit
        room = self.image_size - (still.size if quantity in ("x", "y") else largest)
        x, y = round(across * room), round(down * room)
        frames = []
        for progress in np.linspace(0, 1, num_frames).tolist()[:: 1 if forward else -1]:
            place = begin * (1 - span) + progress * span  # 0 to 1
            size, angle, left, top = still.size, 0, x, y
            if quantity == "x":
                left = round(place * room)
            elif quantity == "y":
                top = round(place * room)
            else:
                if quantity == "size":
                    size = round(largest / 2 + place * largest / 2)
                else:
                    angle = round(180 * place) - 90
                left, top = (edge + (largest - size) // 2 for edge in (x, y))
            frame = PlacedDigit(still.source, still.color, left, top, size, angle)
            frames.append(Scene([frame], self.image_size).render())
        return {"video": np.stack(frames), "label": label, "caption": f"a {still.name} {ACTIONS[label]}"}

    def detection(self, index: int) -> dict[str, Any]:
        """`image`, `objects` in reading order, and one of them by name: `phrase` ("the red seven"), `phrase_box`.

        `objects` is a dict of lists: `bbox`, `category` (the digit) and `color` (index in `COLORS`). A box is
        `[x0, y0, x1, y1]` in pixels of this image, around the ink; x1 - x0 is its width.
        """
        rng = self._rng("detection", index)
        scene = self._scene(rng, self._count(rng))
        phrased = scene.objects[rng.integers(len(scene.objects))]
        objects = {
            "bbox": [list(thing.box) for thing in scene.objects],
            "category": [thing.digit for thing in scene.objects],
            "color": [list(COLORS).index(thing.color) for thing in scene.objects],
        }
        return {
            "image": scene.render(),
            "objects": objects,
            "phrase": f"the {phrased.name}",
            "phrase_box": list(phrased.box),
        }

    def interleaved(self, index: int, shots: int = 2, kind: DocumentKind = "mixed") -> dict[str, Any]:
        """A few-shot document: `shots` solved chunks and a query, each an image and its words.

            <image>output: a red seven<|endofchunk|><image>question: what digit is blue? answer:

        Args:
            index (`int`): Which example. Its query is the same for every number of shots, and the shots of a shorter
                document are the last ones of a longer document, so that numbers of shots compare pair by pair.
            shots (`int`, defaults to 2): Solved chunks before the query, 0 or more.
            kind (`str`, defaults to "mixed"): "caption" (`output:` and the caption), "vqa" (`question: ... answer:`
                and a word), "mixed" (each chunk one of these two) or "rule" (`label:` and one word for a single
                digit: which digit it is in half of the documents, its colour in the others; only shots tell which).

        Returns:
            `dict`: `images` [shots + 1, H, W, 3]; `prompt`, which ends where the `answer` is due; `answer`; `type`
            of the query ("caption", a question type, "digit" or "color"); `text`, the whole document with its
            answer, every chunk closed: the form to train on (a document of n chunks has n - 1 shots).
        """
        _check_integer("shots", shots, 0)
        _check_choice("kind", kind, DOCUMENT_KINDS)
        rng = self._rng(f"interleaved {kind}", index)
        rule = QUESTION_TYPES[rng.integers(2)]  # color or digit
        images, chunks = [], []
        for _ in range(shots + 1):  # the query, then its shots from the nearest to the farthest
            chunk_kind = ("caption", "vqa")[rng.integers(2)] if kind == "mixed" else kind
            if chunk_kind == "vqa":
                scene, question, answer, answer_type = self._ask(rng)
                prompt = QUESTION_PROMPT.format(question=question)
            elif chunk_kind == "caption":
                scene = self._scene(rng, self._count(rng))
                prompt, answer, answer_type = CAPTION_PROMPT, scene.caption(), "caption"
            else:
                scene = self._scene(rng, 1)
                one = scene.objects[0]
                prompt, answer, answer_type = RULE_PROMPT, one.color if rule == "color" else DIGITS[one.digit], rule
            images.append(scene.render())
            chunks.append((f"{IMAGE_TOKEN}{prompt}", answer, answer_type))
        prompt, answer, answer_type = chunks[0]
        solved = [f"{words} {solution}{END_OF_CHUNK_TOKEN}" for words, solution, _ in chunks[::-1]]
        return {
            "images": np.stack(images[::-1]),
            "prompt": "".join(solved[:-1]) + prompt,
            "answer": answer,
            "type": answer_type,
            "text": "".join(solved),
        }

    def text(self, index: int) -> dict[str, Any]:
        """`text` without an image, for a language model: a caption, a question with an answer, now and then a label.

        It reads like one chunk of `interleaved` without its tokens: "question: what digit is blue? answer: seven".
        """
        rng = self._rng("text", index)
        share = rng.random()
        if share < 0.45:
            return {"text": f"{CAPTION_PROMPT} {self._scene(rng, self._count(rng)).caption()}"}
        if share < 0.9:
            _, question, answer, _ = self._ask(rng)
            return {"text": f"{QUESTION_PROMPT.format(question=question)} {answer}"}
        return {"text": f"{RULE_PROMPT} {(*COLORS, *DIGITS)[rng.integers(len(COLORS) + len(DIGITS))]}"}

    def example(self, task: Task, index: int, **options: Any) -> dict[str, Any]:
        """Example `index` of a task; `options` are those of the task's method (`TASK_OPTIONS`).

        Raises:
            ValueError: the task is unknown, or an argument is outside of its limits.
            TypeError: the task has no such option.
        """
        _check_choice("task", task, TASKS)
        allowed = TASK_OPTIONS.get(task, ())
        for option in options:
            if option not in allowed:
                raise TypeError(
                    f"The task '{task}' has no option '{option}'; its options are: {', '.join(allowed) or 'none'}. "
                    "Leave it out, or choose the task it belongs to."
                )
        methods = {
            "cells": self.cells,
            "caption": self.caption,
            "retrieval": self.retrieval,
            "vqa": self.vqa,
            "reasoning": self.reasoning,
            "entailment": self.entailment,
            "video": self.video,
            "detection": self.detection,
            "interleaved": self.interleaved,
            "text": self.text,
        }
        return methods[task](index, **options)

    def examples(self, task: Task, size: int, **options: Any) -> list[dict[str, Any]]:
        """The first `size` examples of a task, images as uint8 arrays."""
        _check_integer("size", size, 0)
        return [self.example(task, index, **options) for index in range(size)]


def _features(task: str, example: Mapping[str, Any], as_arrays: bool) -> Features:
    """The columns of a task; an example gives the sizes of its arrays."""

    def image(name: str) -> Any:
        return Array3D(example[name].shape, "uint8") if as_arrays else Image()

    def images(name: str) -> Any:
        return Array4D(example[name].shape, "uint8") if as_arrays else List(Image(), length=len(example[name]))

    string, digit, color = Value("string"), ClassLabel(names=list(DIGITS)), ClassLabel(names=list(COLORS))
    box = List(Value("int64"), length=4)
    match task:
        case "cells":
            digits = List(ClassLabel(names=[*DIGITS, EMPTY]), length=_GRID**2)
            colors = List(ClassLabel(names=[*COLORS, EMPTY]), length=_GRID**2)
            columns = {"image": image("image"), "digits": digits, "colors": colors}
        case "caption" | "retrieval":
            columns = {"image": image("image"), "caption": string}
        case "vqa":
            columns = {"image": image("image"), "question": string, "answer": string, "type": string}
        case "reasoning":
            label = ClassLabel(names=["false", "true"])
            columns = {"images": images("images"), "statement": string, "label": label, "type": string}
        case "entailment":
            label = ClassLabel(names=list(ENTAILMENT_LABELS))
            columns = {"image": image("image"), "hypothesis": string, "label": label}
        case "video":
            columns = {"video": images("video"), "label": ClassLabel(names=list(ACTIONS)), "caption": string}
        case "detection":
            objects = {"bbox": List(box), "category": List(digit), "color": List(color)}
            columns = {"image": image("image"), "objects": objects, "phrase": string, "phrase_box": box}
        case "interleaved":
            texts = dict.fromkeys(("prompt", "answer", "type", "text"), string)
            columns = {"images": images("images"), **texts}
        case "text":
            columns = {"text": string}
    return Features(columns)


def _encode(image: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _encoded(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with its arrays as the PNG images that `datasets` stores."""
    columns = dict(example)
    for name, value in example.items():
        if isinstance(value, np.ndarray):
            columns[name] = _encode(value) if value.ndim == 3 else [_encode(image) for image in value]
    return columns


def _stream(
    scenes: DigitScenes, task: str, options: dict[str, Any], as_arrays: bool, ranges: list[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    for start, end in ranges:
        for index in range(start, end):
            example = scenes.example(task, index, **options)
            yield example if as_arrays else _encoded(example)


@overload
def load_digit_scenes(
    task: Task,
    split: Split = ...,
    size: int = ...,
    seed: int = ...,
    *,
    streaming: Literal[False] = ...,
    **options: Any,
) -> Dataset: ...


@overload
def load_digit_scenes(
    task: Task, split: Split = ..., size: int = ..., seed: int = ..., *, streaming: Literal[True], **options: Any
) -> IterableDataset: ...


def load_digit_scenes(
    task: Task,
    split: Split = "train",
    size: int = 1000,
    seed: int = 0,
    *,
    streaming: bool = False,
    as_arrays: bool = False,
    image_size: int = _GRID * _NATIVE,
    max_objects: int = 4,
    question_types: Sequence[QuestionType] = QUESTION_TYPES,
    **options: Any,
) -> Dataset | IterableDataset:
    """Digit scenes as a `datasets` object.

    | task | columns | blind (image zeroed) |
    |---|---|---|
    | "cells" | image, digits [9], colors [9] | most cells are empty |
    | "caption" | image, caption | exact match under 0.01 |
    | "retrieval" | image, caption (unique) | recall@1 of 1 in `size` |
    | "vqa" | image, question, answer, type | color 1/5, digit 1/10, count 1/4, relation 1/10 |
    | "reasoning" | images [2], statement, label, type | 1/2 |
    | "entailment" | image, hypothesis, label | 1/3 |
    | "video" | video [num_frames], label, caption | 1/8 |
    | "detection" | image, objects (bbox, category, color), phrase, phrase_box | one cell of nine |
    | "interleaved" | images [shots + 1], prompt, answer, type, text | as caption or vqa |
    | "text" | text | |

    The method of `DigitScenes` with the name of the task says what each column holds. The blind accuracy of "count" is
    1 in `max_objects`.

    Args:
        task (`str`): One of `TASKS`.
        split (`str`, defaults to "train"): "train", "validation" or "test".
        size (`int`, defaults to 1000): Number of examples.
        seed (`int`, defaults to 0): Another seed gives other examples of the same handwriting.
        streaming (`bool`, defaults to `False`): Whether to make examples when they are asked for
            (`IterableDataset` of 16 shards, in the same order) or all now (`Dataset`, in memory).
        as_arrays (`bool`, defaults to `False`): With `streaming`, images as uint8 arrays instead of PIL images, with
            no encoding on the way: the fastest form to train on.
        image_size (`int`, defaults to 24), max_objects (`int`, defaults to 4), question_types (`Sequence[str]`):
            See `DigitScenes`.
        options: `num_frames` (8) of "video"; `shots` (2) and `kind` ("mixed") of "interleaved".

    Raises:
        ValueError: an argument is unknown or outside of its limits.
        TypeError: the task has no such option.
        ImportError: scikit-learn is missing.
    """
    scenes = DigitScenes(split, seed, image_size, max_objects, question_types)
    _check_integer("size", size, 0)
    if as_arrays and not streaming:
        raise ValueError(
            "`as_arrays=True` needs `streaming=True`: a `Dataset` stores its images encoded. Stream, or take a list "
            "of arrays from `DigitScenes(...).examples(task, size)`."
        )
    features = _features(task, scenes.example(task, 0, **options), as_arrays)
    if streaming:
        ends = [size * shard // _SHARDS for shard in range(_SHARDS + 1)]
        given = {"scenes": scenes, "task": task, "options": options, "as_arrays": as_arrays}
        given["ranges"] = list(pairwise(ends))
        return IterableDataset.from_generator(_stream, features=features, gen_kwargs=given, split=NamedSplit(split))
    columns = {name: [] for name in features}
    for example in _stream(scenes, task, options, False, [(0, size)]):
        for name, value in example.items():
            columns[name].append(value)
    return Dataset.from_dict(columns, features=features, split=NamedSplit(split))


__all__ = [
    "ACTIONS",
    "CAPTION_PROMPT",
    "COLORS",
    "DIGITS",
    "DOCUMENT_KINDS",
    "EMPTY",
    "END_OF_CHUNK_TOKEN",
    "ENTAILMENT_LABELS",
    "IMAGE_TOKEN",
    "QUESTION_PROMPT",
    "QUESTION_TYPES",
    "RELATIONS",
    "RULE_PROMPT",
    "TASKS",
    "TASK_OPTIONS",
    "VOCABULARY",
    "DigitScenes",
    "PlacedDigit",
    "Scene",
    "load_digit_scenes",
]
