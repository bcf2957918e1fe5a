"""Scores of short answers to questions about images: exact match, and VQA accuracy with its official normalisation.

Normalised as by the challenge's own program (GT-Vision-Lab/VQA@a013f00, vqaEval.py), with whose results on answers of
every kind the tests compare: lower case, no articles, number words as digits, contractions with their apostrophe, no
periods but before a digit, other punctuation replaced by a space, or removed where a space stands beside it. An answer
is right as far as three of the ten people gave it, averaged over all sets of nine people.
"""

import re
from collections.abc import Sequence

from .classification import check_lengths


_COUNTING = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTING.split())}}
_ARTICLES = {"a", "an", "the"}
# A word that lacks one of its apostrophes gets it back, unless it is another word then (its, were, well, id, wed)
_SPELLED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""
_CONTRACTIONS = {
    spelled[:place] + spelled[place + 1 :]: spelled
    for spelled in _SPELLED.split()
    for place, letter in enumerate(spelled)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round in the challenge's table
_PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def _in_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalize_vqa_answer(answer: str) -> str:
    """An answer as the VQA challenge compares it: "The two Dogs." becomes "2 dogs"."""
    answer = _in_line(answer)
    thousands = _DIGIT_COMMA.search(answer) is not None  # "1,000" makes the challenge close every gap of the answer
    text = answer
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if thousands or beside_space else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


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

    An answer scores min(people who gave it / 3, 1), averaged over all ways to leave out one of the people. Where all
    of several people wrote the same, the challenge does not normalise: "Yes." does not equal ten times "yes". A
    question with one reference answer scores 1 for it, normalised.

    Args:
        predictions (`Sequence[str]`): `[N]`.
        references (`Sequence`): `[N]`, each the answers of ten people (or fewer), or one string.

    Raises:
        ValueError: when their numbers differ or are 0, or a question has no answer.
    """
    check_lengths(predictions, references)
    total = 0.0
    for number, (prediction, reference) in enumerate(zip(predictions, references)):
        people = [_in_line(answer) for answer in ([reference] if isinstance(reference, str) else reference)]
        if not people:
            raise ValueError(f"Question {number} has no reference answer: leave it out.")
        unanimous = len(people) > 1 and len(set(people)) == 1
        compared = _in_line if unanimous else normalize_vqa_answer
        agreed = [compared(answer) for answer in people].count(compared(prediction))
        if len(people) == 1:
            total += agreed
            continue
        # One who agreed is left out in `agreed` of the ways, one who did not in the others
        left_in, needed = len(people) - agreed, min(3, len(people) - 1)
        total += (agreed * min((agreed - 1) / needed, 1) + left_in * min(agreed / needed, 1)) / len(people)
    return {"vqa_accuracy": total / len(predictions)}


__all__ = ["exact_match", "normalize_vqa_answer", "vqa_accuracy"]
