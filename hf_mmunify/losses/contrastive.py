"""Image and text of a pair nearer to each other than to those of other pairs, over all processes.

B  pairs of this process     N  candidates: pairs of all processes, and the queue     D  width     K  queue
"""

import torch
from torch import nn

from .distillation import at_least_float32, soft_cross_entropy
from .gathering import gather as gather_rows
from .gathering import gather_without_gradient, rank, world_size


GATHERS = ("full", "local", "none")


def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor | float,
    *,
    image_ids: torch.Tensor | None = None,
    gather: str = "full",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Symmetric InfoNCE of CLIP (Radford et al. 2021, figure 3), exact over any number of processes.

    With several processes every one must bring as many pairs. Its gradient, averaged over the processes as
    `DistributedDataParallel` does, is that of one process with the whole batch, for `"full"` and `"local"` alike.

    Args:
        image_features (`torch.Tensor` of shape `(batch, width)`):
            Features of the images, each of length 1.
        text_features (`torch.Tensor` of shape `(batch, width)`):
            Features of their texts, each of length 1.
        logit_scale (`torch.Tensor` of one element, or `float`):
            What similarities are multiplied by: the inverse temperature itself, not its logarithm.
        image_ids (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Which image each pair shows. Pairs of the same id, in whichever process, are right answers alike and share
            the target probability. By default every pair is an image of its own.
        gather (`str`, *optional*, defaults to `"full"`):
            `"full"`: every process computes the loss of all pairs (its value is that of the whole batch);
            `"local"`: of its own pairs against all, which needs less memory; `"none"`: of its own pairs alone.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            How much of the target probability is spread over all candidates.

    Returns:
        `torch.Tensor`: a scalar, at least float32.

    Raises:
        ValueError: when the features are no batch of pairs, or `gather` is another word.
    """
    if image_features.dim() != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            "expected features of as many images as texts, both [batch, width], got "
            f"{list(image_features.shape)} and {list(text_features.shape)}. Features of several queries or tokens are "
            "reduced to one, or scored by the model, before the loss."
        )
    if gather not in GATHERS:
        raise ValueError(f'gather is one of {", ".join(GATHERS)}, got "{gather}".')
    batch, is_alone = len(image_features), gather == "none" or world_size() == 1
    all_images = image_features if is_alone else gather_rows(image_features)  # [N, D]
    all_texts = text_features if is_alone else gather_rows(text_features)  # [N, D]
    all_ids = image_ids if is_alone or image_ids is None else gather_without_gradient(image_ids)  # [N]
    rows = slice(None) if is_alone or gather == "full" else slice(rank() * batch, (rank() + 1) * batch)
    positions = torch.arange(len(all_images), device=image_features.device)[rows]
    losses = [
        _cross_entropy(queries @ candidates.t() * logit_scale, positions, rows, all_ids, label_smoothing)
        for queries, candidates in ((all_images[rows], all_texts), (all_texts[rows], all_images))
    ]
    return (losses[0] + losses[1]) / 2


def _cross_entropy(
    logits: torch.Tensor,
    positions: torch.Tensor,
    rows: slice,
    ids: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Cross entropy of logits [B, N] against the candidates at `positions`, or all of the same id."""
    logits = at_least_float32(logits)
    targets = positions if ids is None else matching_targets(ids[rows], ids, logits.dtype)
    return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def matching_targets(
    ids: torch.Tensor, candidate_ids: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Target probabilities of candidates: shared evenly among those of the same id.

    Args:
        ids (`torch.LongTensor` of shape `(batch,)`):
            What each query shows.
        candidate_ids (`torch.LongTensor` of shape `(candidates,)`):
            What each candidate shows; every query is among them.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Of the probabilities.

    Returns:
        `torch.Tensor` of shape `(batch, candidates)`: rows that add up to 1.
    """
    matches = (ids.flatten()[:, None] == candidate_ids.flatten()[None]).to(dtype)  # [B, N]
    return matches / matches.sum(1, keepdim=True)


def momentum_contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    image_features_m: torch.Tensor,
    text_features_m: torch.Tensor,
    image_queue: torch.Tensor,
    text_queue: torch.Tensor,
    temperature: torch.Tensor | float,
    alpha: float,
    *,
    image_ids: torch.Tensor | None = None,
    queue_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Contrastive loss against a momentum teacher's features and queues of them, with the teacher's own soft targets.

    "Image-text contrastive learning" with momentum distillation of ALBEF (Li et al. 2021, sections 3.2 and 3.3;
    salesforce/ALBEF@b9727e4 models/model_pretrain.py and model_retrieval.py) and of BLIP. Candidates are the teacher's
    features of the batch, then the queue. With several processes the batch is that of all of them, in the order of the
    ranks (the originals: that of this process alone), so that two processes learn what one learns from the whole
    batch; row i of this process has its own pair at column `rank * batch + i`.

    Args:
        image_features, text_features (`torch.Tensor` of shape `(batch, width)`):
            Features of the pairs, each of length 1.
        image_features_m, text_features_m (`torch.Tensor` of shape `(batch, width)`):
            The teacher's features of the same pairs; no gradient flows into them.
        image_queue, text_queue (`torch.Tensor` of shape `(width, queue)`):
            The teacher's features of earlier pairs, before this batch is put in.
        temperature (`torch.Tensor` of one element, or `float`):
            What similarities are divided by; learnt by the student alone.
        alpha (`float`):
            Weight of the teacher's softmax in the targets; 0 leaves it out.
        image_ids (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Which image each pair shows; then all candidates of the same id share the target probability.
        queue_ids (`torch.LongTensor` of shape `(1, queue)` or `(queue,)`, *optional*):
            The same of the pairs in the queue, -100 where there is none. Needed with `image_ids`.

    Returns:
        The loss, a scalar, mean over this process's rows and both directions; and the similarities divided by the
        temperature, image to text and text to image, both of shape `(batch, world_size * batch + queue)`.

    Raises:
        ValueError: when one of `image_ids` and `queue_ids` comes without the other.
    """
    if (image_ids is None) != (queue_ids is None):
        raise ValueError("image_ids and queue_ids come together: pairs of the queue may show the same images.")
    first, batch = rank() * len(image_features), len(image_features)
    # The cat is a copy on purpose: the queue changes before the backward pass needs it.
    images = torch.cat([gather_without_gradient(image_features_m).t(), image_queue.detach()], dim=1)  # [D, N]
    texts = torch.cat([gather_without_gradient(text_features_m).t(), text_queue.detach()], dim=1)  # [D, N]
    similarities = [image_features @ texts / temperature, text_features @ images / temperature]  # [B, N] each
    with torch.no_grad():
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        if image_ids is None:
            positions = torch.arange(first, first + batch, device=images.device)
            targets = nn.functional.one_hot(positions, images.shape[1]).to(dtype)  # [B, N]
        else:
            candidate_ids = torch.cat([gather_without_gradient(image_ids.flatten()), queue_ids.flatten()])
            targets = matching_targets(image_ids, candidate_ids, dtype)  # [B, N]
        both = [targets, targets]
        if alpha:
            by_teacher = [image_features_m @ texts / temperature, text_features_m @ images / temperature]
            both = [alpha * at_least_float32(s).softmax(1) + (1 - alpha) * targets for s in by_teacher]
    losses = [soft_cross_entropy(s, target) for s, target in zip(similarities, both)]
    return (losses[0] + losses[1]) / 2, *similarities
