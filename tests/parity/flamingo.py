"""OpenFlamingo's names of inputs and outputs -> ours."""

import torch


def _images(inputs: dict, tower: bool) -> dict:
    """`vision_x` is pixels, or, of a case without a tower, the tokens that the frozen tower would give."""
    return {"pixel_values": inputs["vision_x"]} if tower else {"image_features": inputs["vision_x"][:, :, :, 0]}


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    """Every output of the case, with gradients wherever the caller lets parameters require them."""
    config, flamingo = case["config"], model.model
    images = _images(inputs, config["vision"] is not None)
    ids, mask = inputs["lang_x"], inputs["attention_mask"]
    found = {}
    features = flamingo.get_image_features(**images)
    found["perceiver_out"] = features.pooler_output
    if config["vision"] is not None:
        # the traps: open_clip >= 2.23 hands out normalised tokens, which the published weights never saw
        found["vision_tokens"] = found["vision_tokens_oc223"] = features.last_hidden_state  # [B * M, V, D_v]
    embeds = model.get_input_embeddings()(ids)
    media = flamingo._view_media(ids, found["perceiver_out"], None, None, None)
    block = flamingo.adapter.layers[str(model.config.cross_attention_layers[0])]
    found["block_out"] = flamingo.look(model.config.cross_attention_layers[0], embeds, media)
    key, value = block.attention.keys_and_values(block.media_norm(media.states.flatten(1, 2)))
    attended = block.attention(block.text_norm(embeds), key, value, media.mask, media.groups)[0]
    found["block_attn_out"] = attended.masked_fill(~media.sees[..., None], 0.0)
    result = model(input_ids=ids, attention_mask=mask, labels=inputs["labels"], **images)
    found["logits"], found["loss"] = result.logits, result.loss
    found["logits_oc223"] = result.logits

    settings = config["generate"]
    prompt = inputs["gen_lang_x"]
    shown = {name: value[: len(prompt), : settings["images"]] for name, value in images.items()}
    ask = {
        "input_ids": prompt,
        "attention_mask": inputs["gen_attention_mask"],
        "max_new_tokens": settings["max_new_tokens"],
        **shown,
    }
    found["generated"] = model.generate(**ask, do_sample=False)
    found["generated_beam"] = model.generate(**ask, do_sample=False, num_beams=settings["num_beams"])
    return found
