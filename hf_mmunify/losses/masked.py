"""Losses of tokens that were hidden and are to be told from the others and the image."""

import torch
from torch import distributed, nn

from .distillation import at_least_float32, soft_cross_entropy
from .gathering import world_size


def masked_language_modeling_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    soft_logits: torch.Tensor | None = None,
    alpha: float = 0.0,
    ignore_index: int = -100,
) -> torch.Tensor:
    """Cross entropy at the masked positions, on average over those of all processes.

    Processes mask different numbers of tokens. The sum here is divided by the mean number per process, so that the
    gradient that `DistributedDataParallel` averages is that of one process with the whole batch.

    Args:
        logits (`torch.Tensor` of shape `(batch, sequence, vocabulary)`):
            Scores of the token at each position.
        labels (`torch.LongTensor` of shape `(batch, sequence)`):
            The tokens that were hidden, `ignore_index` elsewhere. Where nothing is hidden in any process the loss is
            zero, and so are its gradients.
        soft_logits (`torch.Tensor` of shape `(batch, sequence, vocabulary)`, *optional*):
            A momentum teacher's scores (ALBEF, Li et al. 2021, section 3.3); no gradient flows into them.
        alpha (`float`, *optional*, defaults to 0.0):
            Weight of the cross entropy against the teacher's softmax; that of the hidden token has `1 - alpha`.
        ignore_index (`int`, *optional*, defaults to -100):
            Label of positions that do not count.

    Returns:
        `torch.Tensor`: a scalar, at least float32.

    Raises:
        ValueError: when shapes do not belong together, a label is no token, or `alpha` comes without `soft_logits`.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have one token for each position of the logits: expected shape {tuple(logits.shape[:-1])}, got "
            f"{tuple(labels.shape)}."
        )
    if alpha and soft_logits is None:
        raise ValueError(f"alpha={alpha} weighs a teacher's prediction: pass its `soft_logits`, or alpha=0.")
    labels = labels.to(logits.device)
    counted, vocabulary = labels != ignore_index, logits.shape[-1]  # [B, T]
    if not torch.compiler.is_compiling() and (((labels < 0) | (labels >= vocabulary)) & counted).any():
        raise ValueError(
            f"labels are token ids from 0 to {vocabulary - 1}, or {ignore_index} where nothing is hidden; got "
            f"{int(labels.min())} to {int(labels.max())}. Do tokenizer and embedding table belong together?"
        )
    total = nn.functional.cross_entropy(
        at_least_float32(logits).flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="sum"
    )
    if alpha:
        probabilities = at_least_float32(soft_logits.detach()).softmax(-1)
        by_teacher = soft_cross_entropy(logits, probabilities, reduction="none").where(counted, 0.0).sum()
        total = (1 - alpha) * total + alpha * by_teacher
    number = counted.sum()
    if world_size() > 1:
        distributed.all_reduce(number)
    return total / (number / world_size()).clamp(min=1 / world_size())
