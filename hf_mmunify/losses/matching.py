"""Whether an image and a text belong together, and the pairs that make the question hard."""

from collections.abc import Callable

import torch
from torch import nn

from .distillation import at_least_float32
from .gathering import rank, world_size


def sample_hard_negatives(
    weights: torch.Tensor,
    generator: torch.Generator | None = None,
    *,
    choose: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """One candidate for each row, drawn in proportion to its weight (Li et al. 2021, section 3.2).

    With several processes and a weight for each pair of all of them, chance is drawn for the whole square and each
    process uses its own rows: equal seeds then draw what one process draws for the whole batch.

    Args:
        weights (`torch.Tensor` of shape `(batch, candidates)`):
            Not negative; 0 for what must not be drawn, such as the row's own pair.
        generator (`torch.Generator`, *optional*):
            Source of chance, on the device of `weights`; seeded alike in all processes.
        choose (`Callable`, *optional*):
            What decides instead of chance: given `weights`, returns an index for each row.

    Returns:
        `torch.LongTensor` of shape `(batch,)`: indices of candidates.

    Raises:
        ValueError: when a row has nothing that may be drawn.
    """
    if choose is not None:
        return choose(weights)
    weights = weights.detach()
    if not torch.compiler.is_compiling() and not (weights > 0).any(dim=1).all():
        row = int((weights > 0).any(dim=1).int().argmin())
        raise ValueError(
            f"row {row} of the weights has no candidate with a positive weight: a hard negative needs a second pair, "
            "of another image, in the batch. Use larger batches (and `dataloader_drop_last=True`)."
        )
    batch, candidates = weights.shape
    is_square = world_size() > 1 and candidates == world_size() * batch
    noise = torch.empty(candidates if is_square else batch, candidates, device=weights.device, dtype=torch.float32)
    noise.exponential_(generator=generator)
    if is_square:
        noise = noise[rank() * batch : (rank() + 1) * batch]
    # The first of exponential clocks that run at these rates to ring: a draw in proportion, without normalising.
    return (weights.float() / noise).argmax(dim=1)


def image_text_matching_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: int | torch.Tensor | None = None
) -> torch.Tensor:
    """Cross entropy of "do not belong together" (class 0) and "belong together" (class 1).

    Args:
        logits (`torch.Tensor` of shape `(pairs, 2)`):
            Scores of the two answers.
        labels (`torch.LongTensor` of shape `(pairs,)`):
            The right ones.
        num_items (`int` or `torch.Tensor`, *optional*):
            What the sum is divided by; the number of pairs here by default.

    Returns:
        `torch.Tensor`: a scalar, at least float32.
    """
    total = nn.functional.cross_entropy(at_least_float32(logits), labels.to(logits.device), reduction="sum")
    return total / (len(labels) if num_items is None else num_items)
