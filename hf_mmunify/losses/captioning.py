"""Losses of text that is written while an image is looked at."""

import torch
from torch import nn


def causal_language_modeling_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
    shifted: bool = False,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood of the next token, over the positions whose label counts.

    Args:
        logits (`torch.Tensor` of shape `(batch, sequence, vocabulary)`):
            Scores of the token that follows each position.
        labels (`torch.LongTensor` of shape `(batch, sequence)`):
            The tokens themselves, unless `shifted`; `ignore_index` where nothing is to be learned.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            What the sum is divided by, as `Trainer` passes it: the tokens of all accumulated batches. By default the
            tokens that count here; a batch in which none counts has loss zero, and gradients of zero.
        ignore_index (`int`, *optional*, defaults to -100):
            Label of positions that do not count.
        shifted (`bool`, *optional*, defaults to `False`):
            Whether `labels` hold the token that follows each position, instead of the one there.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            How much of the target probability is spread over the whole vocabulary (BLIP: 0.1).

    Returns:
        `torch.Tensor`: the loss, a scalar in float32.

    Raises:
        ValueError: when the two shapes do not belong together, or a label is no token of the vocabulary.
    """
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels have one token for each position of the logits: expected shape {tuple(logits.shape[:2])}, "
            f"got {tuple(labels.shape)}."
        )
    vocabulary = logits.shape[-1]
    targets = labels if shifted else nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index)  # [B, T]
    targets = targets.to(logits.device)
    counted = targets != ignore_index  # [B, T]
    if not torch.compiler.is_compiling() and ((targets >= vocabulary) | ((targets < 0) & counted)).any():
        raise ValueError(
            f"labels are token ids from 0 to {vocabulary - 1}, or {ignore_index} where nothing is to be learned; got "
            f"{int(targets.min())} to {int(targets.max())}. Do tokenizer and embedding table belong together?"
        )
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if num_items_in_batch is None:
        return total / counted.sum().clamp(min=1)
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
