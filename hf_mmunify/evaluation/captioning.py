"""How well captions agree with what people wrote: CIDEr-D, by the n-grams that are telling in the set, BLEU, ROUGE-L.

Papers: CIDEr: Consensus-based Image Description Evaluation (Vedantam et al., 2015); BLEU: a Method for Automatic
Evaluation of Machine Translation (Papineni et al., 2002); ROUGE: A Package for Automatic Evaluation of Summaries (Lin,
2004). Values as in published tables come from `pycocoevalcap` with its own tokenizer, which needs Java; on texts that
both split alike all three agree.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from .classification import check_lengths


_WORD = re.compile(r"[\w']+")
_LONGEST = 4  # n-grams of 1 to 4 words
_SIGMA = 6.0  # of the penalty on a difference in length
_RECALL = 1.2  # how much more recall weighs than precision in ROUGE-L, as in pycocoevalcap


def _ngrams(caption: str) -> list[Counter]:
    """For each n from 1 to 4 how often each n-gram occurs."""
    words = _WORD.findall(caption.lower())
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1)) for n in range(1, _LONGEST + 1)
    ]


def _captions(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """The captions of people for each image, of which there must be one."""
    check_lengths(predictions, references)
    people = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    if not all(people):
        raise ValueError(f"Image {people.index([])} has no reference caption: leave it out.")
    return people


def _weigh(counts: list[Counter], rarity: list[dict], unseen: float) -> list[dict]:
    return [
        {ngram: number * rare.get(ngram, unseen) for ngram, number in found.items()}
        for found, rare in zip(counts, rarity)
    ]


def _norm(weights: dict) -> float:
    return math.sqrt(sum(weight**2 for weight in weights.values()))


def _agreement(candidate: dict, reference: dict) -> float:
    """Cosine of two weighted n-gram vectors, with the candidate's clipped to the reference's."""
    product = sum(
        min(weight, reference.get(ngram, 0.0)) * reference.get(ngram, 0.0) for ngram, weight in candidate.items()
    )
    norms = _norm(candidate) * _norm(reference)
    return product / norms if norms else 0.0


def cider(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """CIDEr-D of captions: `{"cider": ...}` from 0 to 10; published tables multiply it by 100.

    How telling an n-gram is, is learned from the references of all images: the score of a single image is 0.

    Args:
        predictions (`Sequence[str]`): `[N]`, one caption an image.
        references (`Sequence`): `[N]`, the captions of people for each image, or one string.

    Raises:
        ValueError: when their numbers differ or are 0, or an image has no reference.
    """
    people = _captions(predictions, references)
    counted = [[_ngrams(caption) for caption in captions] for captions in people]
    unseen = math.log(len(people))
    rarity = []
    for n in range(_LONGEST):
        images = Counter(ngram for captions in counted for ngram in set().union(*(caption[n] for caption in captions)))
        rarity.append({ngram: unseen - math.log(number) for ngram, number in images.items()})
    total = 0.0
    for prediction, captions in zip(predictions, counted):
        own = _ngrams(prediction)
        candidate = _weigh(own, rarity, unseen)
        for caption in captions:
            longer = own[1].total() - caption[1].total()  # lengths are counted in bigrams, as in the original
            penalty = math.exp(-(longer**2) / (2 * _SIGMA**2))
            pairs = zip(candidate, _weigh(caption, rarity, unseen))
            total += penalty * sum(_agreement(*pair) for pair in pairs) / _LONGEST / len(captions)
    return {"cider": 10 * total / len(predictions)}


def bleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """BLEU of all captions together: `{"bleu4": ..., "bleu1": ..., "bleu2": ..., "bleu3": ...}`, each from 0 to 1.

    The length that a caption should have is that of the reference nearest to its own.

    Args:
        predictions (`Sequence[str]`): `[N]`, one caption an image.
        references (`Sequence`): `[N]`, the captions of people for each image, or one string.

    Raises:
        ValueError: when their numbers differ or are 0, or an image has no reference.
    """
    right, written = [0] * _LONGEST, [0] * _LONGEST
    length = wanted = 0
    for prediction, captions in zip(predictions, _captions(predictions, references)):
        own, others = _ngrams(prediction), [_ngrams(caption) for caption in captions]
        length += own[0].total()
        wanted += min((abs(other[0].total() - own[0].total()), other[0].total()) for other in others)[1]
        for n in range(_LONGEST):
            most = Counter()
            for other in others:
                most |= other[n]
            right[n] += (own[n] & most).total()
            written[n] += own[n].total()
    brevity = math.exp(min(0.0, 1 - wanted / length)) if length else 0.0
    scores, logarithm = {}, 0.0
    for n in range(_LONGEST):
        logarithm += math.log(right[n] / written[n]) if right[n] else -math.inf
        scores[f"bleu{n + 1}"] = brevity * math.exp(logarithm / (n + 1))
    return {"bleu4": scores.pop("bleu4"), **scores}


def _longest_common(one: list[str], other: list[str]) -> int:
    """Words of the longest sequence that both have, with gaps."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, match in enumerate(other, start=1):
            best = diagonal + 1 if word == match else max(row[place], row[place - 1])
            diagonal, row[place] = row[place], best
    return row[-1]


def rouge_l(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """ROUGE-L, the mean over images: `{"rouge_l": ...}` from 0 to 1.

    Of several references the best precision and the best recall count, also when they are not those of the same one.

    Args:
        predictions (`Sequence[str]`): `[N]`, one caption an image.
        references (`Sequence`): `[N]`, the captions of people for each image, or one string.

    Raises:
        ValueError: when their numbers differ or are 0, or an image has no reference.
    """
    total = 0.0
    for prediction, captions in zip(predictions, _captions(predictions, references)):
        own = _WORD.findall(prediction.lower())
        others = [_WORD.findall(caption.lower()) for caption in captions]
        common = [_longest_common(own, other) for other in others]
        if any(common):
            precision = max(common) / len(own)
            recall = max(words / len(other) for words, other in zip(common, others) if other)
            total += (1 + _RECALL**2) * precision * recall / (recall + _RECALL**2 * precision)
    return {"rouge_l": total / len(predictions)}


__all__ = ["bleu", "cider", "rouge_l"]
