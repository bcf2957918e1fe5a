"""Images that are two images, and labels that are both of theirs: mixup and cutmix for any classifying model.

    mixup     r * image + (1 - r) * other           labels  r * label + (1 - r) * other label,  r ~ Beta(a, a)
    cutmix    image with a rectangle of the other   the same, with r the share of the image that stayed

Papers: mixup: Beyond Empirical Risk Minimization (Zhang et al., 2017), section 2; CutMix: Regularization Strategy to
Train Strong Classifiers with Localizable Features (Yun et al., 2019), section 3.1.
"""

from collections.abc import Callable
from typing import Any

import torch

from ..losses import soft_cross_entropy


class MixingCollator:
    """Batches of a collator, mixed: `pixel_values` with those of another row, `labels` to soft ones.

    A batch is mixed by mixup or by cutmix, with one r. Each row is mixed with the row that a random order puts in its
    place. Where a batch has texts (`input_ids`), only rows with the same text are mixed, as the label of another
    question says nothing about this one; a text that occurs once stays as it is. Pairs of images and frames of a
    video are mixed all in the same place. Chance is torch's, which `Trainer` seeds, in workers as well.

    Args:
        collator (`Callable`):
            Rows to a batch with `pixel_values` `[B, ..., H, W]` and `labels`, classes `[B]` or soft scores `[B, C]`.
        num_labels (`int`, *optional*):
            C, needed for classes `[B]`.
        mixup_alpha (`float`, defaults to 0.8): Of mixup's Beta distribution; 0 leaves mixup out.
        cutmix_alpha (`float`, defaults to 1.0): The same of cutmix.
        probability (`float`, defaults to 1.0): Of a batch being mixed at all.
        label_smoothing (`float`, defaults to 0.0): How much of a class's probability goes to all classes.

    Raises:
        ValueError: both are left out; or a batch has not what is to be mixed.

    Example:

    ```python
    >>> collator = MixingCollator(VideoClassificationCollator(processor), num_labels=10)
    >>> trainer = TaskTrainer(model, args, collator, rows, compute_loss_func=soft_target_loss)
    ```
    """

    def __init__(
        self,
        collator: Callable[[list], dict[str, Any]],
        num_labels: int | None = None,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
    ):
        if mixup_alpha <= 0 and cutmix_alpha <= 0:
            raise ValueError("Nothing would be mixed: mixup_alpha or cutmix_alpha is above 0.")
        self.collator = collator
        self.num_labels = num_labels
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.probability = probability
        self.label_smoothing = label_smoothing

    def __call__(self, rows: list) -> dict[str, Any]:
        """Rows to a batch, with soft labels `[B, C]` whether it is mixed or not."""
        batch = self.collator(rows)
        missing = [name for name in ("pixel_values", "labels") if name not in batch]
        if missing:
            raise ValueError(
                f"Images and their labels are mixed, but the batch has no {missing}, only {sorted(batch)}."
            )
        images, labels = batch["pixel_values"], self._soft(batch["labels"])
        if torch.rand(()) < self.probability:
            others = self._partners(batch)
            images, ratio = self._mixed(images, others)
            labels = ratio * labels + (1 - ratio) * labels[others]
        return {**batch, "pixel_values": images, "labels": labels}

    def _soft(self, labels: torch.Tensor) -> torch.Tensor:
        if labels.dim() == 2:
            return labels.float()
        if self.num_labels is None:
            raise ValueError("Labels are classes [B]: give the collator num_labels.")
        hard = torch.nn.functional.one_hot(labels, self.num_labels).float()  # [B, C]
        return hard * (1 - self.label_smoothing) + self.label_smoothing / self.num_labels

    def _partners(self, batch: dict[str, Any]) -> torch.Tensor:
        """For each row the one that it is mixed with, [B]."""
        order = torch.randperm(len(batch["pixel_values"]))
        if "input_ids" not in batch:
            return order
        texts = [tuple(row) for row in batch["input_ids"].tolist()]
        groups: dict[tuple, list[int]] = {}
        for place in order.tolist():
            groups.setdefault(texts[place], []).append(place)
        partners = torch.arange(len(texts))
        for places in groups.values():
            partners[places] = torch.tensor(places[1:] + places[:1])
        return partners

    def _mixed(self, images: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Mixed images, and the share of each that stayed."""
        cuts = self.cutmix_alpha > 0 and (self.mixup_alpha <= 0 or torch.rand(()) < 0.5)
        alpha = self.cutmix_alpha if cuts else self.mixup_alpha
        ratio = float(torch.distributions.Beta(alpha, alpha).sample())
        if not cuts:
            return ratio * images + (1 - ratio) * images[others], ratio
        height, width = images.shape[-2:]
        sides = [round(size * (1 - ratio) ** 0.5) for size in (height, width)]
        centres = [int(torch.randint(size, ())) for size in (height, width)]
        top, left = (max(0, centre - side // 2) for centre, side in zip(centres, sides))
        bottom = min(height, centres[0] - sides[0] // 2 + sides[0])
        right = min(width, centres[1] - sides[1] // 2 + sides[1])
        images, other = images.clone(), images[others]
        images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return images, 1 - max(0, bottom - top) * max(0, right - left) / (height * width)


def soft_target_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy against soft labels `[B, C]`: `compute_loss_func` of a `Trainer` of a single-label model.

    Models of transformers take soft labels for several classes that may all be right, and use another loss. A model
    of VQA, whose labels are soft anyway, needs nothing but the collator.

    Args:
        outputs: Of a model, with `logits` `[B, C]`.
        labels (`torch.Tensor`): Probabilities `[B, C]`.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*): What `Trainer` counts: all entries of all labels of
            an update.
    """
    logits = outputs["logits"]
    if num_items_in_batch is None:
        return soft_cross_entropy(logits, labels)
    return soft_cross_entropy(logits, labels, "sum") * logits.shape[-1] / num_items_in_batch


__all__ = ["MixingCollator", "soft_target_loss"]
