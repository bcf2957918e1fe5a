"""Losses of an order: the right pair before the wrong ones."""

import torch

from .gathering import gather_without_gradient, rank, world_size


def hinge_ranking_loss(
    scores: torch.Tensor,
    margin: float = 0.2,
    hardest: bool = True,
    *,
    text_to_image: torch.Tensor | None = None,
    image_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hinge loss of every pair against the others of its image and against those of its text.

    VSE++ (Faghri et al. 2018) and SCAN (Lee et al. 2018, section 3.2), summed over the batch, not averaged, as there:
    kuanghuei/SCAN@8063557 model.py, `ContrastiveLoss`.

    With several processes, either every process passes the scores of all pairs, or those of its own images with all
    texts and of its own texts with all images; either way the gradient that `DistributedDataParallel` averages is that
    of one process with the whole batch.

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            Of every image (row) with every text (column); the right pairs are on the diagonal. With `text_to_image`:
            of this process's images with the texts of all processes, `(batch, world_size * batch)`.
        margin (`float`, *optional*, defaults to 0.2):
            By how much the right pair is to be ahead.
        hardest (`bool`, *optional*, defaults to `True`):
            Whether only the wrong pair of the highest score counts for each image and each text, instead of all.
        text_to_image (`torch.Tensor` of shape `(batch, world_size * batch)`, *optional*):
            Of this process's texts (row) with the images of all processes; by default `scores` turned.
        image_ids (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Which image each pair of this process shows. Pairs of the same image are not wrong; the original has them
            count against each other, as this does by default.

    Returns:
        `torch.Tensor`: a scalar; zero where no pair is wrong.

    Raises:
        ValueError: when the shapes are not those.
    """
    is_whole = text_to_image is None
    batch = len(scores)
    expected = [batch, batch if is_whole else world_size() * batch]
    shapes = [list(matrix.shape) for matrix in (scores, scores.t() if is_whole else text_to_image)]
    if shapes != [expected, expected]:
        raise ValueError(
            f"expected scores of as many images as texts, {expected}, got {' and '.join(map(str, shapes))}."
        )
    first = 0 if is_whole else rank() * batch
    own = torch.arange(first, first + batch, device=scores.device)[:, None]  # [B, 1]
    if image_ids is None:
        is_right = own == torch.arange(expected[1], device=scores.device)  # [B, N]
    else:
        ids = image_ids.flatten()
        candidates = ids if is_whole else gather_without_gradient(ids)
        is_right = ids[:, None] == candidates
    total = scores.new_zeros(())
    for matrix in (scores, scores.t() if is_whole else text_to_image):
        losses = (margin + matrix - matrix.gather(1, own)).clamp(min=0).masked_fill(is_right, 0)  # [B, N]
        total = total + (losses.amax(dim=1) if hardest else losses).sum()
    return total if is_whole else total * world_size()
