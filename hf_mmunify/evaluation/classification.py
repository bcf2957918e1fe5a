"""Accuracy of answers, words and classes; of classes also the confusion, the first k places, and clips of videos."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch


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


def _labels(values: Sequence[int] | torch.Tensor, classes: int, name: str) -> torch.Tensor:
    labels = torch.as_tensor(values).cpu()
    if labels.ndim != 1 or labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"{name} are numbers of classes [N], from 0 to {classes - 1}; got {labels.dtype} of shape "
            f"{tuple(labels.shape)} from {labels.min().item()} to {labels.max().item()}."
        )
    return labels.long()


def class_accuracy(
    predictions: Sequence[int], references: Sequence[int], class_names: Sequence[str]
) -> dict[str, float | dict[str, float] | list[list[int]]]:
    """Accuracy, over all and by class, and which class is taken for which.

    Args:
        predictions, references (`Sequence[int]` or `torch.Tensor`): Numbers of classes `[N]`.
        class_names (`Sequence[str]`): Of the `C` classes.

    Returns:
        `dict`: "accuracy"; "mean_class_accuracy", the mean over the classes that occur in the references; "by_class",
        their accuracies by name; and "confusion" `[C][C]`, how often a class (row) was predicted as another (column).

    Raises:
        ValueError: when their numbers differ or are 0, or a label is none of the classes.
    """
    check_lengths(predictions, references)
    number = len(class_names)
    predicted, true = _labels(predictions, number, "predictions"), _labels(references, number, "references")
    confusion = torch.bincount(true * number + predicted, minlength=number**2).view(number, number)
    right, total = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist()
    by_class = {name: hit / all_ for name, hit, all_ in zip(class_names, right, total) if all_}
    return {
        "accuracy": sum(right) / len(true),
        "mean_class_accuracy": sum(by_class.values()) / len(by_class),
        "by_class": by_class,
        "confusion": confusion.tolist(),
    }


def top_k_accuracy(
    scores: torch.Tensor, references: Sequence[int] | torch.Tensor, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Share of rows whose class is among the first k: `{"top1": ..., "top5": ...}` from 0 to 1.

    A class that shares its score with others comes after them, so that constant scores earn nothing.

    Args:
        scores (`torch.Tensor`): Logits or probabilities `[N, C]`.
        references (`Sequence[int]` or `torch.Tensor`): Numbers of the right classes `[N]`.
        ks (`Sequence[int]`, defaults to 1 and 5): Numbers of places; from `C` on everything is right.

    Raises:
        ValueError: shapes do not fit, a label is none of the classes, a score is NaN, or a k is below 1.
    """
    check_lengths(scores, references)
    scores = torch.as_tensor(scores).cpu()
    if scores.ndim != 2 or not ks or min(ks) < 1 or scores.isnan().any():
        raise ValueError(
            f"top_k_accuracy takes scores [N, C] without NaN and ks from 1 on; got scores {tuple(scores.shape)} with "
            f"{int(scores.isnan().sum())} NaN, and ks {tuple(ks)}."
        )
    labels = _labels(references, scores.shape[1], "references")
    ahead = (scores >= scores.gather(1, labels[:, None])).sum(dim=1) - 1  # [N]
    return {f"top{k}": (ahead < k).double().mean().item() for k in ks}


def clip_accuracy(
    logits: torch.Tensor,
    videos: Sequence[Hashable],
    references: Sequence[int] | torch.Tensor,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """`top_k_accuracy` of videos that are seen in several clips: probabilities are averaged over a video's clips.

    Args:
        logits (`torch.Tensor`): Of each clip `[M, C]`.
        videos (`Sequence`): `[M]`, which video each clip is from: a number or a name.
        references (`Sequence[int]` or `torch.Tensor`): `[M]`, of each clip the number of its video's class.
        ks (`Sequence[int]`, defaults to 1 and 5): Numbers of places.

    Raises:
        ValueError: as `top_k_accuracy`, and when clips of a video disagree about its class.
    """
    check_lengths(logits, references)
    check_lengths(videos, references)
    probabilities = torch.as_tensor(logits).cpu().double().softmax(dim=-1)
    places: dict[Hashable, int] = {}
    video = torch.tensor([places.setdefault(name, len(places)) for name in _plain(videos)])  # [M]
    labels = _labels(references, probabilities.shape[-1], "references")
    label = torch.zeros(len(places), dtype=torch.long).scatter(0, video, labels)
    if not torch.equal(label[video], labels):
        name = _plain(videos)[int((label[video] != labels).nonzero()[0])]
        raise ValueError(f"Clips of video {name!r} have different classes in the references: a video has one.")
    total = torch.zeros(len(places), probabilities.shape[-1], dtype=torch.double).index_add(0, video, probabilities)
    return top_k_accuracy(total / video.bincount()[:, None], label, ks)


def _plain(values: Sequence[Hashable]) -> list[Hashable]:
    return values.tolist() if isinstance(values, torch.Tensor) else list(values)


__all__ = ["accuracy", "class_accuracy", "clip_accuracy", "top_k_accuracy"]
