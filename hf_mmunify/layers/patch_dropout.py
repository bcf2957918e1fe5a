"""Some of an image's patches, at random: a shorter sequence makes training cheaper."""

import torch


def keep_patches(
    hidden_states: torch.Tensor,
    keep: int,
    generator: torch.Generator | None = None,
    indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep a random choice of each image's patches (FLIP, Li et al. 2023, section 3; MAE).

    Args:
        hidden_states (`torch.Tensor` of shape `(batch, patches, width)`):
            Patches with their position embeddings, without [CLS].
        keep (`int`):
            How many to keep of each image.
        generator (`torch.Generator`, *optional*):
            Source of chance, on the device of `hidden_states`.
        indices (`torch.LongTensor` of shape `(batch, keep)`, *optional*):
            Which to keep, instead of chance.

    Returns:
        `torch.Tensor` of shape `(batch, keep, width)`: the kept ones; and `torch.LongTensor` of shape `(batch, keep)`:
        where they were. A random choice comes in random order.

    Raises:
        ValueError: when there are not as many patches as are to be kept.
    """
    batch, patches, width = hidden_states.shape
    if not 0 < keep <= patches:
        raise ValueError(f"keep is how many of the {patches} patches stay, from 1 to {patches}; got {keep}.")
    if indices is None:
        noise = torch.rand(batch, patches, generator=generator, device=hidden_states.device)
        indices = noise.argsort(dim=1)[:, :keep]
    return hidden_states.gather(1, indices[:, :, None].expand(-1, -1, width)), indices  # [B, keep, D], [B, keep]
