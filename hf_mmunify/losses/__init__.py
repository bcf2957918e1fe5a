"""One function of tensors for each published term of a training objective."""

from .captioning import causal_language_modeling_loss
