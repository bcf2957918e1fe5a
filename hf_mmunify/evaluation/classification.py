"""Accuracy of answers, words and classes."""

from collections.abc import Sequence
from typing import Any


def check_lengths(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raise `ValueError` unless there is one reference for each of at least one prediction."""
    if len(predictions) != len(references) or len(predictions) == 0:
        raise ValueError(
            f"There must be one reference for each prediction, and at least one; got {len(predictions)} prediction(s) "
            f"and {len(references)} reference(s)."
        )


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Share of the predictions that equal their reference: `{"accuracy": ...}` from 0 to 1.

    Args:
        predictions, references: Labels, ids or words, of equal number `[N]`.

    Raises:
        ValueError: when their numbers differ or are 0.
    """
    check_lengths(predictions, references)
    right = sum(bool(prediction == reference) for prediction, reference in zip(predictions, references))
    return {"accuracy": right / len(predictions)}


__all__ = ["accuracy"]
