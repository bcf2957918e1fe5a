"""open_clip's names of inputs and outputs -> ours."""

import torch


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    """What the model says of all patches in evaluation mode, and of the kept ones in training mode."""
    batch = {"pixel_values": inputs["pixel_values"], "input_ids": inputs["input_ids"], "return_loss": True}
    model.eval()
    full = model(**batch)
    found = {
        "full.image_features": full.image_embeds,
        "full.text_features": full.text_embeds,
        "full.loss": full.loss,
        "logits_per_image": full.logits_per_image,
    }
    if "kept_patches" in inputs:
        masked = model.train()(**batch, patch_indices=inputs["kept_patches"])
        found |= {"masked.image_features": masked.image_embeds, "masked.loss": masked.loss}
    return found


def loss(found: dict, case: dict) -> torch.Tensor:
    """What the gradients are of: the loss of the kept patches, where some are dropped."""
    return found["masked.loss"] if "masked.loss" in found else found["full.loss"]
