"""CIDEr-D: how well captions agree with what people wrote, by the n-grams that are telling in the whole set.

Paper: CIDEr: Consensus-based Image Description Evaluation (Vedantam et al., 2015). Values as in published tables come
from `pycocoevalcap` with its own tokenizer, which needs Java; on texts that both split alike the two agree.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from .classification import check_lengths


_WORD = re.compile(r"[\w']+")
_LONGEST = 4  # n-grams of 1 to 4 words
_SIGMA = 6.0  # of the penalty on a difference in length


def _ngrams(caption: str) -> list[Counter]:
    """For each n from 1 to 4 how often each n-gram occurs."""
    words = _WORD.findall(caption.lower())
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1)) for n in range(1, _LONGEST + 1)
    ]


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
    check_lengths(predictions, references)
    people = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    if not all(people):
        raise ValueError(f"Image {people.index([])} has no reference caption: leave it out.")
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


__all__ = ["cider"]
