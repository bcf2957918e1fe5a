"""Losses of an order: the right pair before the wrong ones."""

import torch


def hinge_ranking_loss(scores: torch.Tensor, margin: float = 0.2, hardest: bool = True) -> torch.Tensor:
    """Hinge loss of every pair against the others of its row and of its column.

    VSE++ (Faghri et al. 2018) and SCAN (Lee et al. 2018, section 3.2), summed over the batch, not averaged, as there:
    kuanghuei/SCAN@8063557 model.py, `ContrastiveLoss`.

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            Of every image (row) with every text (column); the right pairs are on the diagonal.
        margin (`float`, *optional*, defaults to 0.2):
            By how much the right pair is to be ahead.
        hardest (`bool`, *optional*, defaults to `True`):
            Whether only the wrong pair of the highest score counts in each row and column, instead of all of them.

    Returns:
        `torch.Tensor`: a scalar; zero for a single pair.

    Raises:
        ValueError: when `scores` is not square.
    """
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"expected scores of as many images as texts, [batch, batch], got {list(scores.shape)}.")
    right = scores.diagonal()  # [B]
    is_right = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    losses = [
        (margin + scores - own).clamp(min=0).masked_fill(is_right, 0)  # [B, B]
        for own in (right[:, None], right[None])
    ]
    if hardest:
        losses = [losses[0].amax(dim=1), losses[1].amax(dim=0)]  # [B]
    return losses[0].sum() + losses[1].sum()
