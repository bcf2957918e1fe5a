"""A queue of the features of earlier batches: more wrong pairs than a batch has room for."""

import torch
from torch import nn
from transformers import initialization as init

from ..losses import gather_without_gradient


NO_ID = -100  # of a place of the queue that no batch has reached yet


class FeatureQueue(nn.Module):
    """The momentum teacher's features of the last pairs, of all processes, oldest overwritten first.

    As in MoCo, ALBEF (Li et al. 2021, section 3.2) and BLIP; the buffers are shaped as in their checkpoints. Unlike
    there, batches need not divide the queue: one that reaches its end goes on at its beginning.

    Args:
        feature_size (`int`):
            Width D of the features.
        queue_size (`int`):
            How many pairs K it holds.
        with_ids (`bool`, *optional*, defaults to `False`):
            Whether it keeps which image each pair shows, for losses that let pairs of one image be right alike.
    """

    def __init__(self, feature_size: int, queue_size: int, with_ids: bool = False):
        super().__init__()
        self.queue_size, self.with_ids = queue_size, with_ids
        self.image_features = nn.Buffer(torch.zeros(feature_size, queue_size))  # [D, K]
        self.text_features = nn.Buffer(torch.zeros(feature_size, queue_size))  # [D, K]
        self.pointer = nn.Buffer(torch.zeros(1, dtype=torch.long))  # [1]: the place of the next pair
        self.ids = nn.Buffer(torch.full((1, queue_size), NO_ID)) if with_ids else None  # [1, K]
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Fill with random features of length 1 what no checkpoint has filled; `_init_weights` of the model calls it.

        Args:
            generator (`torch.Generator`, *optional*):
                Source of chance.
        """
        for features in (self.image_features, self.text_features):
            init.normal_(features, generator=generator)
            init.copy_(features, nn.functional.normalize(features, dim=0))
        init.zeros_(self.pointer)
        if self.with_ids:
            init.constant_(self.ids, NO_ID)

    @torch.no_grad()
    def enqueue(
        self, image_features: torch.Tensor, text_features: torch.Tensor, ids: torch.Tensor | None = None
    ) -> None:
        """Put the pairs of all processes in, in the order of their ranks.

        Args:
            image_features, text_features (`torch.Tensor` of shape `(batch, feature_size)`):
                This process's pairs, each of length 1. Every process brings as many. Of more than the queue holds the
                last are kept.
            ids (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Which image each pair shows; exactly when the queue was made `with_ids`.

        Raises:
            ValueError: when features are of another width, or ids come to a queue without, or do not come to one with.
        """
        width = len(self.image_features)
        for features in (image_features, text_features):
            if features.dim() != 2 or features.shape[1] != width:
                raise ValueError(
                    f"the queue holds features of width {width}: expected [batch, {width}], got "
                    f"{list(features.shape)}."
                )
        if (ids is not None) != self.with_ids:
            came = "no ids" if ids is None else "ids"
            raise ValueError(f"the queue was made with_ids={self.with_ids}, but {came} came with the features.")
        images, texts = (gather_without_gradient(features) for features in (image_features, text_features))
        number = len(images)
        kept = slice(max(0, number - self.queue_size), number)
        places = (self.pointer + torch.arange(number, device=self.pointer.device)[kept]) % self.queue_size
        self.image_features[:, places] = images[kept].t().to(self.image_features.dtype)
        self.text_features[:, places] = texts[kept].t().to(self.text_features.dtype)
        if ids is not None:
            self.ids[:, places] = gather_without_gradient(ids.flatten())[kept]
        self.pointer.copy_((self.pointer + number) % self.queue_size)
