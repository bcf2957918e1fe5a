"""Attention as it is written in the papers, where no faster backend is chosen.

B rows, H heads, T queries, N keys, D width of a head.
"""

import torch
from torch import nn


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `ALL_ATTENTION_FUNCTIONS` has no entry for, `"eager"`, with the weights as its second result.

    Args:
        module (`nn.Module`):
            The attention; its mode decides whether anything is dropped.
        query (`torch.Tensor` of shape `(batch, heads, queries, width)`):
            What asks.
        key, value (`torch.Tensor` of shape `(batch, heads, keys, width)`):
            What is asked.
        attention_mask (`torch.Tensor`, *optional*):
            Added to the scores `(batch, heads, queries, keys)`.
        scaling (`float`):
            What scores are multiplied by.
        dropout (`float`, *optional*, defaults to 0.0):
            Share of the weights that training drops.

    Returns:
        The result `(batch, queries, heads, width)`, and the weights `(batch, heads, queries, keys)`.
    """
    scores = (query @ key.transpose(2, 3)) * scaling  # [B, H, T, N]
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # [B, T, H, D]
