"""LAVIS's names of inputs and outputs -> ours."""

import torch


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    """Every output of the first stage, with the negatives that the original drew."""
    # The original's tower is a convolution in this case, so there is no class token to look at
    model.vision_model.embeddings.register_forward_hook(lambda module, arguments, output: output[:, 1:])
    drawn = iter([inputs["neg_image_for_text"], inputs["neg_text_for_image"]])
    model.choose_negatives = lambda weights: next(drawn)
    found = model(
        inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"], image_ids=inputs.get("image_id")
    )
    patches = found.vision_model_output.last_hidden_state
    return {
        "loss": found.loss,
        "loss_itc": found.loss_itc,
        "loss_itm": found.loss_itm,
        "loss_lm": found.loss_lm,
        "itm_query_logits": found.itm_logits,
        "lm_logits": found.lm_logits,
        "image_embeds": patches,
        "query_output": model._look(patches),
        "text_output": found.text_model_output.last_hidden_state,
        "image_feats": found.image_embeds,
        "text_feat": found.text_embeds,
    }
