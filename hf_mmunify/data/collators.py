"""From rows to batches, for each task: what `Trainer` takes as `data_collator`, for any model and processor.

    rows (dicts of images, texts, labels) -> Collator(processor, columns ...) -> dict of tensors for `forward`
                                             collator.inputs(rows)            -> the same without what is to be found

| task | collator | labels |
|---|---|---|
| image-text retrieval | `RetrievalCollator` | none; `return_loss` asks the model for its loss, `image_ids` `[B]` |
| pre-training | `PreTrainingCollator` | `masked_input_ids` and `labels` `[B, T]` of hidden tokens |
| captioning | `CaptioningCollator` | `[B, T]`, as long as `input_ids`: the model shifts them |
| questions | `QuestionAnsweringCollator` | `[B, answers]` soft scores, or `[A, L]` answers to write |
| reasoning on pairs | `VisualReasoningCollator` | `[B]` |
| visual entailment | `VisualEntailmentCollator` | `[B]` |
| video classification | `VideoClassificationCollator` | `[B]` |

Images may be of any form that `hf_mmunify.data.pictures` knows; texts are padded, and cut at the length that the
tokenizer states. A processor is what `AutoProcessor` loads, or a pair of an image processor and a tokenizer.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..evaluation import normalize_vqa_answer
from .masking import mask_tokens
from .pictures import as_frames, as_picture


Row = Mapping[str, Any]
Batch = dict[str, torch.Tensor]
_NO_LIMIT = 10**6  # a tokenizer that knows no length states one of 10^30


def _column(rows: Sequence[Row], name: str) -> list:
    """The values of a column, one of each row."""
    if len(rows) == 0:
        raise ValueError("The batch has no rows: give at least one.")
    for number, row in enumerate(rows):
        if name not in row:
            raise ValueError(
                f"Row {number} has no column {name!r}, only {sorted(row)}: name the right one when making the "
                "collator."
            )
    return [row[name] for row in rows]


def _class_ids(values: Sequence[Any], names: Sequence[str] | None) -> torch.Tensor:
    """Labels as numbers `[B]`: numbers and booleans as they are, words by their place among `names`."""
    places = {name.lower(): place for place, name in enumerate(names or ())}
    ids = []
    for number, value in enumerate(values):
        if isinstance(value, str):
            value = places.get(value.strip().lower(), value)
        if not isinstance(value, Integral):
            known = (
                f"one of {', '.join(names)}" if names else "a number, or a word of `label_names`, which was not given"
            )
            raise ValueError(f"The label of row {number} is {value!r}: expected {known}.")
        if names is not None and not 0 <= value < len(names):
            raise ValueError(f"The label of row {number} is {value}: expected 0 to {len(names) - 1}.")
        ids.append(int(value))
    return torch.tensor(ids)


@dataclass
class TaskCollator(ABC):
    """What the collators of all tasks share.

    Args:
        processor: What `AutoProcessor` loads: a processor, or an image processor alone for tasks without text; or a
            pair `(image_processor, tokenizer)`.
        max_length (`int`, *optional*): Tokens of a text at most; by default what the tokenizer states.
    """

    processor: Any
    _: KW_ONLY
    max_length: int | None = None

    @property
    def image_processor(self):
        if isinstance(self.processor, tuple | list):
            return self.processor[0]
        return self.processor.image_processor if isinstance(self.processor, ProcessorMixin) else self.processor

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if isinstance(self.processor, tuple | list):
            return self.processor[1]
        if isinstance(self.processor, ProcessorMixin):
            return self.processor.tokenizer
        raise ValueError(
            f"{type(self).__name__} reads texts, but {type(self.processor).__name__} has no tokenizer: give a whole "
            "processor, or a pair (image_processor, tokenizer)."
        )

    @property
    def text_length(self) -> int | None:
        """Tokens of a text at most."""
        stated = self.tokenizer.model_max_length
        return self.max_length or (stated if stated < _NO_LIMIT else None)

    def pixels(self, groups: Sequence[Sequence[Any]]) -> Batch:
        """`pixel_values` `[B, N, 3, H, W]` of rows of N images each, and what else the image processor gives."""
        pictures = []
        for number, group in enumerate(groups):
            try:
                pictures += [as_picture(image) for image in group]
            except ValueError as error:
                raise ValueError(f"Row {number} of the batch: {error}") from error
        if len({len(group) for group in groups}) > 1:
            raise ValueError(f"Rows of a batch have as many images each, got {[len(group) for group in groups]}.")
        found = self.image_processor(pictures, return_tensors="pt")
        # A video's processor takes them for the frames of one, and puts a dimension before them
        values = {
            name: value.flatten(0, 1) if name == "pixel_values" and value.ndim == 5 else value
            for name, value in found.items()
        }
        return {name: value.unflatten(0, (len(groups), -1)) for name, value in values.items()}

    def images(self, images: Sequence[Any]) -> Batch:
        """`pixel_values` `[B, 3, H, W]` of one image a row, and what else the image processor gives.

        Of a processor that reads the regions of images (SCAN), `region_features` `[B, R, F]` and their mask.
        """
        if isinstance(self.processor, ProcessorMixin) and "region_features" in self.processor.model_input_names:
            return dict(self.processor(images=list(images), return_tensors="pt"))
        return {name: value[:, 0] for name, value in self.pixels([[image] for image in images]).items()}

    def texts(self, texts: Sequence[str], **options: Any) -> Batch:
        """`input_ids` and `attention_mask` `[B, T]`, padded and cut; `options` go to the tokenizer."""
        settings = {"padding": True, "truncation": True, "max_length": self.text_length, "return_tensors": "pt"}
        settings["truncation"] = settings["max_length"] is not None
        encoded = self.tokenizer(list(texts), **{**settings, **options})
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def written(self, texts: Sequence[list[int]], side: str = "right") -> Batch:
        """`input_ids` and `attention_mask` `[B, T]` of lists of tokens, cut to `text_length`, padded on a side."""
        texts = [ids[: self.text_length] for ids in texts]
        longest = max(map(len, texts))
        pad = self.tokenizer.pad_token_id
        if pad is None:
            raise ValueError("The tokenizer has no padding token: set `tokenizer.pad_token`, for example to its eos.")
        input_ids, mask = torch.full((len(texts), longest), pad), torch.zeros(len(texts), longest, dtype=torch.long)
        for row, ids in enumerate(texts):
            place = slice(longest - len(ids), None) if side == "left" else slice(len(ids))
            input_ids[row, place] = torch.tensor(ids, dtype=torch.long)
            mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    def decode(self, written: torch.Tensor, batch: Batch) -> list[str]:
        """Texts that `generate` wrote, from `[B, T]`: without special tokens, and without a prompt that it repeats."""
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        prompts = self.tokenizer.batch_decode(batch.get("input_ids", written[:, :0]), skip_special_tokens=True)
        return [text.strip().removeprefix(prompt.strip()).strip() for text, prompt in zip(texts, prompts)]

    @abstractmethod
    def inputs(self, rows: Sequence[Row]) -> Batch:
        """What a model looks at to answer: the batch without labels."""


@dataclass
class RetrievalCollator(TaskCollator):
    """Pairs of an image and a text: `input_ids`, `attention_mask` `[B, T]`, `pixel_values` `[B, 3, H, W]`.

    Args:
        processor, max_length: As of [`TaskCollator`].
        image_column (`str`, defaults to "image"), text_column (`str`, defaults to "caption"): Of a list of texts the
            first is taken.
        id_column (`str`, *optional*): Rows of the same id show the same image, so that their texts are no negatives of
            each other: `image_ids` `[B]`. Whole numbers are taken as they are, other values by their hash.
    """

    image_column: str = "image"
    text_column: str = "caption"
    id_column: str | None = None

    def inputs(self, rows: Sequence[Row]) -> Batch:
        texts = [text if isinstance(text, str) else text[0] for text in _column(rows, self.text_column)]
        return {**self.images(_column(rows, self.image_column)), **self.texts(texts)}

    def image_ids(self, rows: Sequence[Row]) -> Batch:
        """`image_ids` `[B]`, if there is a column for them."""
        if self.id_column is None:
            return {}
        values = _column(rows, self.id_column)
        return {"image_ids": torch.tensor([int(id) if isinstance(id, Integral) else _hash(id) for id in values])}

    def __call__(self, rows: Sequence[Row]) -> Batch:
        return {**self.inputs(rows), **self.image_ids(rows), "return_loss": True}


def _hash(value: Any) -> int:
    """A number of 63 bits that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest()) >> 1


@dataclass
class PreTrainingCollator(RetrievalCollator):
    """Pairs for joint pre-training: besides, `masked_input_ids` and `labels` `[B, T]`, -100 where nothing is hidden.

    Args:
        processor, max_length, image_column, text_column, id_column: As of [`RetrievalCollator`].
        mask_probability (`float`, defaults to 0.15): Share of the tokens to guess; 0 leaves `masked_input_ids` and
            `labels` out, for objectives without them.
        whole_words (`bool`, defaults to `False`): Whether the tokens of a word are hidden together (ViLT).
        generator (`torch.Generator`, *optional*): Source of chance.
    """

    mask_probability: float = 0.15
    whole_words: bool = False
    generator: torch.Generator | None = None

    def __call__(self, rows: Sequence[Row]) -> Batch:
        batch = {**self.inputs(rows), **self.image_ids(rows)}
        if self.mask_probability:
            batch["masked_input_ids"], batch["labels"] = mask_tokens(
                batch["input_ids"], self.tokenizer, self.mask_probability, self.whole_words, self.generator
            )
        return batch


@dataclass
class CaptioningCollator(TaskCollator):
    """Images with a text to write: `<start>prompt text<end>`, learned from the first token after the prompt.

    Args:
        processor, max_length: As of [`TaskCollator`].
        image_column (`str`, defaults to "image"), text_column (`str`, defaults to "caption"): Of a list of texts, as
            of several people, one is drawn for each batch.
        prompt (`str`, defaults to ""): Stands before each text; columns in braces are filled in: "a picture of",
            "question: {question} answer:". With the image token of the processor in it ("<image>output:"), images go
            in as one list a text, as Flamingo takes them.
        start_token_id (`int`, *optional*): The first token, by default the tokenizer's bos, or its cls token. BLIP
            wants `model.config.text_config.bos_token_id`.
        separate_labels (`bool`, defaults to `False`): Whether `input_ids` are the prompt alone and `labels` the text
            alone, for an encoder-decoder (BLIP-2 on T5).

    `inputs` gives prompts padded on the left, to be continued; without a prompt only pixels.
    """

    image_column: str = "image"
    text_column: str = "caption"
    prompt: str = ""
    start_token_id: int | None = None
    separate_labels: bool = False

    def _prompts(self, rows: Sequence[Row]) -> list[str]:
        return [self.prompt.format(**{**row, self.text_column: ""}).strip() for row in rows]

    @property
    def _leading(self) -> list[int]:
        """Tokens that stand for the image before every text (BLIP-2), as the processor would put them."""
        number = getattr(self.processor, "num_query_tokens", None) or 0
        return [self.tokenizer.convert_tokens_to_ids("<image>")] * number

    def _pixels(self, rows: Sequence[Row]) -> Batch:
        pictures = _column(rows, self.image_column)
        token = getattr(self.processor, "image_token", None)  # only some processors have one
        if token is not None and str(token) in self.prompt:
            return self.pixels([[image] for image in pictures])
        return self.images(pictures)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def inputs(self, rows: Sequence[Row]) -> Batch:
        pixels = self._pixels(rows)
        if not self.prompt:
            return pixels
        leading = self._leading
        prompts = [leading + self.tokenizer(prompt).input_ids for prompt in self._prompts(rows)]
        return {**pixels, **self.written(prompts, "left")}

    def __call__(self, rows: Sequence[Row]) -> Batch:
        texts = [
            text if isinstance(text, str) else text[int(torch.randint(len(text), ()))]
            for text in _column(rows, self.text_column)
        ]
        end = [_end_token(self.tokenizer)]
        prompts, leading = self._prompts(rows), self._leading
        if self.separate_labels:
            answers = self.written([self._ids(text) + end for text in texts])
            labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
            asked = self.written([leading + self.tokenizer(prompt).input_ids for prompt in prompts])
            return {**self._pixels(rows), **asked, "labels": labels}
        before = leading + _start_tokens(self.tokenizer, self.start_token_id)
        known = [len(before) + len(self._ids(prompt)) for prompt in prompts]
        whole = [before + self._ids(f"{prompt} {text}".strip()) + end for prompt, text in zip(prompts, texts)]
        batch = self.written(whole)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)  # [B, T]
        for row, number in zip(labels, known):
            row[:number] = -100
        return {**self._pixels(rows), **batch, "labels": labels}


def _start_tokens(tokenizer: PreTrainedTokenizerBase, given: int | None) -> list[int]:
    """What a text that is written begins with; nothing, where the tokenizer has no token for it."""
    tokens = (given, tokenizer.bos_token_id, tokenizer.cls_token_id)
    return [token for token in tokens if token is not None][:1]


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    token = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if token is None:
        raise ValueError("The tokenizer has neither an eos nor a sep token to end a text with: set `eos_token`.")
    return token


def human_answers(value: Any) -> list[str]:
    """The answers of a row as texts: one text, several, or several with notes (`{"answer": "yes", ...}`, VQAv2)."""
    answers = [value] if isinstance(value, str) else list(value)
    return [answer["answer"] if isinstance(answer, Mapping) else answer for answer in answers]


def answer_vocabulary(
    answers: Iterable[Any],
    min_occurrences: int = 1,
    size: int | None = None,
    normalize: Callable[[str], str] = normalize_vqa_answer,
) -> dict[str, int]:
    """The answers that a classifying model chooses from, each with its number, most frequent ones first.

    Args:
        answers (`Iterable`): Of each question the answer, or the answers of several people; then the one that most of
            them gave counts, as for ViLT (answers that occur at least 9 times in VQAv2: 3,129).
        min_occurrences (`int`, defaults to 1): Rarer answers are left out.
        size (`int`, *optional*): Answers at most.
        normalize (`Callable`, defaults to `normalize_vqa_answer`): Makes equal what counts as the same.

    Raises:
        ValueError: nothing is left.
    """
    counts = Counter()
    for value in answers:
        people = Counter(normalize(answer) for answer in human_answers(value))
        counts[people.most_common(1)[0][0]] += 1
    kept = sorted((answer for answer, number in counts.items() if number >= min_occurrences), key=_by(counts))[:size]
    if not kept:
        raise ValueError(
            f"None of {len(counts)} answers occurs {min_occurrences} times: lower `min_occurrences`, or give more "
            "rows."
        )
    return {answer: number for number, answer in enumerate(kept)}


def _by(counts: Counter) -> Callable[[str], tuple]:
    return lambda answer: (-counts[answer], answer)  # in alphabetical order where as frequent


@dataclass
class QuestionAnsweringCollator(TaskCollator):
    """Images with questions, and answers to choose (with a vocabulary) or to write (without).

    Args:
        processor, max_length: As of [`TaskCollator`].
        image_column (`str`, defaults to "image"), question_column (`str`, defaults to "question"), answer_column
            (`str`, defaults to "answer"): The answer is a text, or the answers of several people (VQAv2).
        vocabulary (`Mapping[str, int]`, *optional*): Answer -> number, as [`answer_vocabulary`] makes it, or a model's
            `config.label2id`. `labels` are then soft scores `[B, answers]`, min(n / 3, 1) of an answer that n people
            gave, and 1 of an only answer.
        start_token_id (`int`, *optional*): The first token of an answer that is written, by default the tokenizer's
            bos, or its cls token.
        normalize (`Callable`, defaults to `normalize_vqa_answer`): Makes equal what counts as the same answer.

    Without a vocabulary `labels` `[A, L]` are the different answers of all questions, -100 padded. If any question has
    several, `answer_counts` `[B]` says how many of them, one question after the other, and `answer_weights` `[A]` the
    share of its people.
    """

    image_column: str = "image"
    question_column: str = "question"
    answer_column: str = "answer"
    vocabulary: Mapping[str, int] | None = None
    start_token_id: int | None = None
    normalize: Callable[[str], str] = normalize_vqa_answer

    def __post_init__(self):
        if self.vocabulary is not None:
            self._ids = {self.normalize(answer): number for answer, number in self.vocabulary.items()}

    def inputs(self, rows: Sequence[Row]) -> Batch:
        return {**self.images(_column(rows, self.image_column)), **self.texts(_column(rows, self.question_column))}

    def __call__(self, rows: Sequence[Row]) -> Batch:
        people = [human_answers(value) for value in _column(rows, self.answer_column)]
        if not all(people):
            raise ValueError(f"Row {people.index([])} of the batch has no answer: leave it out.")
        labels = self._written_answers(people) if self.vocabulary is None else {"labels": self._scores(people)}
        return {**self.inputs(rows), **labels}

    def _scores(self, people: list[list[str]]) -> torch.Tensor:
        """Soft scores `[B, answers]`; zeros for a question whose answers the vocabulary has not."""
        scores = torch.zeros(len(people), len(self.vocabulary))
        for row, answers in zip(scores, people):
            for answer, number in Counter(map(self.normalize, answers)).items():
                if answer in self._ids:
                    row[self._ids[answer]] = 1.0 if len(answers) == 1 else min(number / 3, 1.0)
        return scores

    def answers(self, texts: Sequence[str]) -> Batch:
        """Answers as a model writes them: `answer_ids` and `answer_attention_mask` `[A, L]`, as for `rank_answers`."""
        start, end = _start_tokens(self.tokenizer, self.start_token_id), _end_token(self.tokenizer)
        if not start:
            raise ValueError(
                "The tokenizer has neither a bos nor a cls token to begin an answer: give start_token_id."
            )
        written = self.written(
            [[*start, *self.tokenizer(text, add_special_tokens=False).input_ids, end] for text in texts]
        )
        return {"answer_ids": written["input_ids"], "answer_attention_mask": written["attention_mask"]}

    def _written_answers(self, people: list[list[str]]) -> Batch:
        counted = [Counter(answer.strip() for answer in answers) for answers in people]
        answers = self.answers([answer for row in counted for answer in row])
        batch = {"labels": answers["answer_ids"].masked_fill(answers["answer_attention_mask"] == 0, -100)}  # [A, L]
        if len(batch["labels"]) > len(people):
            batch["answer_counts"] = torch.tensor([len(row) for row in counted])
            batch["answer_weights"] = torch.tensor([n / row.total() for row in counted for n in row.values()])
        return batch


@dataclass
class LabelCollator(TaskCollator):
    """What the collators of tasks with one class a row share: `labels` `[B]`.

    Args:
        processor, max_length: As of [`TaskCollator`].
        label_column (`str`, defaults to "label"): Numbers, booleans or words.
        label_names (`Sequence[str]`, *optional*): The words, in the order of their numbers.
    """

    label_column: str = "label"
    label_names: Sequence[str] | None = None

    def labels(self, rows: Sequence[Row]) -> torch.Tensor:
        """Numbers of the classes `[B]`."""
        return _class_ids(_column(rows, self.label_column), self.label_names)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        return {**self.inputs(rows), "labels": self.labels(rows)}


@dataclass
class VisualReasoningCollator(LabelCollator):
    """Statements about two images: `pixel_values` `[B, 2, 3, H, W]`, texts `[B, T]` and `labels` `[B]`, 1 if true.

    Args:
        processor, max_length: As of [`TaskCollator`].
        image_columns (`Sequence[str]`, defaults to "images"): One column with a list of two, or the names of two.
        text_column (`str`, defaults to "statement").
        label_column, label_names: As of [`LabelCollator`]; "false" and "true".
    """

    image_columns: Sequence[str] = ("images",)
    text_column: str = "statement"
    label_names: Sequence[str] | None = ("false", "true")

    def inputs(self, rows: Sequence[Row]) -> Batch:
        columns = [_column(rows, name) for name in self.image_columns]
        groups = [list(images) for images in columns[0]] if len(columns) == 1 else list(zip(*columns))
        return {**self.pixels(groups), **self.texts(_column(rows, self.text_column))}


@dataclass
class VisualEntailmentCollator(LabelCollator):
    """Hypotheses about an image: `pixel_values` `[B, 3, H, W]`, texts `[B, T]` and `labels` `[B]`.

    Args:
        processor, max_length: As of [`TaskCollator`].
        image_column (`str`, defaults to "image"), text_column (`str`, defaults to "hypothesis").
        label_column, label_names: As of [`LabelCollator`]; SNLI-VE's "entailment", "neutral" and "contradiction".
    """

    image_column: str = "image"
    text_column: str = "hypothesis"
    label_names: Sequence[str] | None = ("entailment", "neutral", "contradiction")

    def inputs(self, rows: Sequence[Row]) -> Batch:
        return {**self.images(_column(rows, self.image_column)), **self.texts(_column(rows, self.text_column))}


@dataclass
class VideoClassificationCollator(LabelCollator):
    """Videos with a class: `pixel_values` `[B, F, 3, H, W]` and `labels` `[B]`.

    Args:
        processor: An image processor, or what has one.
        video_column (`str`, defaults to "video"): Frames, or the path of a file.
        label_column, label_names: As of [`LabelCollator`].
        num_frames (`int`, *optional*): Frames of a video; by default all, and then each has as many.
        frame_stride (`int`, *optional*): From one frame to the next, in a clip at a random place; by default frames
            are evenly spaced over the whole video. `inputs` takes the clip in the middle, or the one at "clip_start",
            if a row has it: from 0, as early as can be, to 1.
    """

    video_column: str = "video"
    num_frames: int | None = None
    frame_stride: int | None = None

    def _clips(self, rows: Sequence[Row], starts: Sequence[float]) -> Batch:
        videos = _column(rows, self.video_column)
        return self.pixels(
            [as_frames(video, self.num_frames, self.frame_stride, start) for video, start in zip(videos, starts)]
        )

    def inputs(self, rows: Sequence[Row]) -> Batch:
        return self._clips(rows, [row.get("clip_start", 0.5) for row in rows])

    def __call__(self, rows: Sequence[Row]) -> Batch:
        return {**self._clips(rows, torch.rand(len(rows)).tolist()), "labels": self.labels(rows)}


__all__ = [
    "CaptioningCollator",
    "LabelCollator",
    "PreTrainingCollator",
    "QuestionAnsweringCollator",
    "RetrievalCollator",
    "TaskCollator",
    "VideoClassificationCollator",
    "VisualEntailmentCollator",
    "VisualReasoningCollator",
    "answer_vocabulary",
    "human_answers",
]
