"""FLIP's names of inputs and outputs -> ours."""

import torch


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    """Every output of the case, with gradients wherever the caller lets parameters require them."""
    pixels = inputs["pixel_values_nhwc"].permute(0, 3, 1, 2)  # [B, 3, H, W]
    result = model(inputs["input_ids"], pixels, return_loss=True)
    noise, mask_ratio = inputs["mask_noise"], case["config"]["model_img"]["mask_ratio"]
    kept = noise.argsort(dim=1)[:, : int(noise.shape[1] * (1 - mask_ratio))]
    with torch.no_grad():
        masked = model(inputs["input_ids"], pixels, return_loss=True, patch_indices=kept)
    return {
        "z_img": result.image_embeds,
        "z_txt": result.text_embeds,
        "loss": result.loss[None],  # theirs has one element, as their temperature has
        "tau": (result.image_embeds @ result.text_embeds.T / result.logits_per_image).mean()[None],
        "masked_loss": masked.loss[None],
    }
