"""Scores of short answers to questions about images: exact match, and VQA accuracy with its official normalisation.

Rules of the VQA challenge (visualqa.org/evaluation): answers in lower case, without articles and periods, number words
as digits, contractions with their apostrophe, other punctuation replaced by a space; an answer is right as far as
three of the ten people gave it, averaged over all sets of nine people.
"""

import re
from collections.abc import Sequence

from .classification import check_lengths


_COUNTING = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTING.split())}}
_ARTICLES = {"a", "an", "the"}
# Those that are other words without their apostrophe (its, were, well, hell, id, ill, wed, shed) are left out
_SPELLED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'm
    i've isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't she's
    should've shouldn't somebody'll somebody's someone'll someone's something'd something'll that'd that's there'd
    there're there's they'd they'll they're they've wasn't we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've
"""
_CONTRACTIONS = {spelled.replace("'", ""): spelled for spelled in _SPELLED.split()}
_PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-<>@`,?!]")
_DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")


def normalize_vqa_answer(answer: str) -> str:
    """An answer as the VQA challenge compares it: "The two Dogs." becomes "2 dogs"."""
    answer = answer.lower().replace("\n", " ").replace("\t", " ")
    answer = _PERIOD.sub("", _PUNCTUATION.sub(" ", _DIGIT_COMMA.sub("", answer)))
    words = [_NUMBERS.get(word, word) for word in answer.split() if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def exact_match(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Share of the predictions that equal their reference, or one of them: `{"exact_match": ...}` from 0 to 1.

    Args:
        predictions (`Sequence[str]`): `[N]`; spaces around them and upper case do not count.
        references (`Sequence`): `[N]`, each a string or several.

    Raises:
        ValueError: when their numbers differ or are 0.
    """
    check_lengths(predictions, references)
    right = 0
    for prediction, reference in zip(predictions, references):
        accepted = [reference] if isinstance(reference, str) else reference
        right += prediction.strip().lower() in {answer.strip().lower() for answer in accepted}
    return {"exact_match": right / len(predictions)}


def vqa_accuracy(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """VQA accuracy (Antol et al., 2015): `{"vqa_accuracy": ...}` from 0 to 1.

    An answer scores min(people who gave it / 3, 1), averaged over all ways to leave out one of the people. A question
    with one reference answer scores 1 for it.

    Args:
        predictions (`Sequence[str]`): `[N]`.
        references (`Sequence`): `[N]`, each the answers of ten people (or fewer), or one string.

    Raises:
        ValueError: when their numbers differ or are 0, or a question has no answer.
    """
    check_lengths(predictions, references)
    total = 0.0
    for number, (prediction, reference) in enumerate(zip(predictions, references)):
        people = [
            normalize_vqa_answer(answer) for answer in ([reference] if isinstance(reference, str) else reference)
        ]
        if not people:
            raise ValueError(f"Question {number} has no reference answer: leave it out.")
        agreed = people.count(normalize_vqa_answer(prediction))
        if len(people) == 1:
            total += agreed
            continue
        # One who agreed is left out in `agreed` of the ways, one who did not in the others
        left_in, needed = len(people) - agreed, min(3, len(people) - 1)
        total += (agreed * min((agreed - 1) / needed, 1) + left_in * min(agreed / needed, 1)) / len(people)
    return {"vqa_accuracy": total / len(predictions)}


__all__ = ["exact_match", "normalize_vqa_answer", "vqa_accuracy"]
