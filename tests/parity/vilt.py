"""ViLT's names of inputs and outputs -> ours."""

import torch


def pixel_mask(pixel_values: torch.Tensor) -> torch.Tensor:
    """1 where a pixel is not zero in all channels, as the original finds padding."""
    return (pixel_values != 0).any(dim=1).long()  # [B, H, W]


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    """Every output of the case, with gradients wherever the caller lets parameters require them."""
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    pixels = inputs["pixel_values"]
    images = {"pixel_values": pixels, "pixel_mask": pixel_mask(pixels)}
    found = _states(model.vilt, text, images)
    task = case["config"]["task"]
    if task == "pretrain":
        false = inputs["false_pixel_values"]
        result = model(
            **text,
            **images,
            masked_input_ids=inputs["mlm_input_ids"],
            labels=inputs["mlm_labels"],
            false_pixel_values=false,
            false_pixel_mask=pixel_mask(false),
            matched=inputs["itm_labels"].bool(),
        )
        found |= {
            "mlm_loss": result.loss_mlm,
            "mlm_logits": result.logits,
            "itm_loss": result.loss_itm,
            "itm_wpa_loss": result.loss_wpa,
            "itm_logits": result.itm_logits,
        }
    elif task == "irtr":
        result = model(
            **text,
            **images,
            false_input_ids=inputs["false_input_ids"].transpose(0, 1),
            false_attention_mask=inputs["false_attention_mask"].transpose(0, 1),
            return_loss=True,
        )
        found |= {"irtr_loss": result.loss, "rank_scores": result.logits}
    elif task == "vqa":
        answers, scores = inputs["vqa_labels"], inputs["vqa_scores"]
        labels = torch.zeros(len(pixels), model.config.num_labels + 1)
        labels = labels.scatter(1, answers.where(answers >= 0, model.config.num_labels), scores)[:, :-1]
        result = model(**text, **images, labels=labels)
        found |= {"vqa_loss": result.loss, "vqa_logits": result.logits}
    else:
        pair = torch.stack((pixels, inputs["pixel_values_1"]), dim=1)
        masks = torch.stack([pixel_mask(image) for image in pair.unbind(1)], dim=1)
        result = model(**text, pixel_values=pair, pixel_mask=masks, labels=inputs["answers"])
        found |= {"nlvr2_loss": result.loss, "nlvr2_logits": result.logits}
    return {**found, "loss": result.loss}


def _states(model, text: dict, images: dict) -> dict[str, torch.Tensor]:
    """The last states of the text and of the first image, which the cases of all heads have."""
    embedded = model.embed_images(**images)
    result = model(**text, image_embeds=embedded.embeds, pixel_mask=embedded.mask)
    length = text["input_ids"].shape[1]
    return {
        "text_feats": result.last_hidden_state[:, :length],
        "image_feats": result.last_hidden_state[:, length:],
        "cls_feats": result.pooler_output,
        "image_masks": embedded.mask,
        "patch_index": embedded.positions,
    }
