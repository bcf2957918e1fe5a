"""Words and image patches (or regions) brought into correspondence by optimal transport.

B  pairs     T  words     P  patches     D  width
"""

import torch
from torch import nn

from .distillation import at_least_float32


def optimal_transport(
    cost: torch.Tensor,
    first_mask: torch.Tensor,
    second_mask: torch.Tensor,
    beta: float = 0.5,
    iterations: int = 50,
) -> torch.Tensor:
    """The plan that moves a uniform distribution onto another at least cost, by inexact proximal point iterations.

    IPOT (Xie et al. 2019, "A fast proximal point method for computing exact Wasserstein distance") with one inner
    iteration, as UNITER and ViLT use it (dandelin/ViLT@762fd39 vilt/modules/objectives.py).

    Args:
        cost (`torch.Tensor` of shape `(batch, first, second)`):
            Of moving a unit from one place to another.
        first_mask (`torch.BoolTensor` of shape `(batch, first)`):
            Where there is anything; each of these places has the same share.
        second_mask (`torch.BoolTensor` of shape `(batch, second)`):
            The same of the places it is moved to.
        beta (`float`, *optional*, defaults to 0.5):
            Step of the proximal point; any value converges, a small one sooner and less stably.
        iterations (`int`, *optional*, defaults to 50):
            How many steps.

    Returns:
        `torch.Tensor` of shape `(batch, first, second)`: what is moved from where to where, a constant. Rows and
        columns add up to the shares; nothing where a mask is false, nor in a pair one side of which is empty.
    """
    cost = at_least_float32(cost.detach())
    first, second = (mask.to(cost.dtype) for mask in (first_mask, second_mask))
    first_size, second_size = (mask.sum(1, keepdim=True).clamp(min=1) for mask in (first, second))  # [B, 1]
    allowed = first[:, :, None] * second[:, None]  # [B, T, P]
    kernel = (-cost / beta).exp() * allowed
    plan, left = allowed, first / first_size  # [B, T, P], [B, T]
    for _ in range(iterations):
        step = kernel * plan
        right = _inverse(second_size * torch.einsum("btp,bt->bp", step, left), second_mask)  # [B, P]
        left = _inverse(first_size * torch.einsum("btp,bp->bt", step, right), first_mask)  # [B, T]
        plan = left[:, :, None] * step * right[:, None]
    return plan


def _inverse(numbers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 / numbers where the mask is true and there is something to divide by, 0 elsewhere."""
    is_something = mask & (numbers > 0)
    return torch.where(is_something, 1 / numbers.where(is_something, 1), 0)


def optimal_transport_distance(
    first: torch.Tensor,
    second: torch.Tensor,
    first_mask: torch.Tensor,
    second_mask: torch.Tensor,
    beta: float = 0.5,
    iterations: int = 50,
) -> torch.Tensor:
    """Least cost of moving one set of vectors onto another, at 1 - cosine for a pair of them.

    Args:
        first (`torch.Tensor` of shape `(batch, first, width)`):
            Such as the states of words.
        second (`torch.Tensor` of shape `(batch, second, width)`):
            Such as the states of patches.
        first_mask, second_mask (`torch.BoolTensor` of shape `(batch, first)` and `(batch, second)`):
            Which of them count.
        beta, iterations:
            As for [`optimal_transport`].

    Returns:
        `torch.Tensor` of shape `(batch,)`, at least float32; gradients flow through the costs, not through the plan.
    """
    first, second = (nn.functional.normalize(at_least_float32(x), dim=-1, eps=1e-5) for x in (first, second))
    cost = 1 - first @ second.transpose(1, 2)  # [B, T, P]
    plan = optimal_transport(cost, first_mask, second_mask, beta, iterations)
    return (plan * cost).sum((1, 2))


def word_patch_alignment_loss(
    text_states: torch.Tensor,
    image_states: torch.Tensor,
    text_mask: torch.Tensor,
    image_mask: torch.Tensor,
    labels: torch.Tensor,
    beta: float = 0.5,
    iterations: int = 50,
) -> torch.Tensor:
    """Words near the patches (or regions) of their own image, and far from those of another.

    "Word-region alignment" of UNITER (Chen et al. 2020, section 3.2), "word patch alignment" of ViLT (Kim et al. 2021,
    section 3.2; dandelin/ViLT@762fd39 vilt/modules/objectives.py, `compute_itm_wpa`, which multiplies it by 0.1).

    Args:
        text_states (`torch.Tensor` of shape `(batch, words, width)`):
            Last hidden states of the text.
        image_states (`torch.Tensor` of shape `(batch, patches, width)`):
            Last hidden states of the image.
        text_mask (`torch.Tensor` of shape `(batch, words)`):
            Nonzero for words. The originals leave out [CLS] and [SEP]: see [`inner_words`].
        image_mask (`torch.Tensor` of shape `(batch, patches)`):
            Nonzero for patches; the originals leave out [CLS].
        labels (`torch.LongTensor` of shape `(batch,)`):
            1 where image and text belong together, 0 where they do not.
        beta, iterations:
            As for [`optimal_transport`].

    Returns:
        `torch.Tensor`: a scalar: the mean over the batch of the transport distances, those of wrong pairs negated.
    """
    distances = optimal_transport_distance(
        text_states, image_states, text_mask.bool(), image_mask.bool(), beta, iterations
    )
    return (distances * (2 * labels - 1)).mean()


def inner_words(attention_mask: torch.Tensor) -> torch.Tensor:
    """A text's mask without its first and its last token, [CLS] and [SEP].

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, words)`):
            Nonzero for tokens; padding is on the right.

    Returns:
        `torch.BoolTensor` of shape `(batch, words)`.
    """
    mask = attention_mask.bool()
    followed = nn.functional.pad(mask[:, 1:], (0, 1), value=False)  # whether a token comes after
    return nn.functional.pad((mask & followed)[:, 1:], (1, 0), value=False)
