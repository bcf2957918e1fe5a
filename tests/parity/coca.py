"""open_clip's names of inputs and outputs -> ours."""

import torch


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    """Features, scores of words, both losses, and greedy decoding with a cache and without."""
    weights = case["config"]
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    found = model(pixel_values=pixels, input_ids=ids, labels=ids.masked_fill(ids == 0, -100))
    text = model.model.text_model(input_ids=ids)
    steps = weights["greedy_steps"]
    start = inputs["greedy.start_ids"]
    settings = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "eos_token_id": None}
    model.eval()
    greedy = [
        model.generate(
            start,
            pixel_values=pixels,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(greedy[0].sequences, greedy[1].sequences)
    return {
        "image_features": found.image_embeds,
        "text_features": found.text_embeds,
        "logits": found.logits[:, :-1],
        "logit_scale": model.model.logit_scale.exp().squeeze(0),
        "image_embs": found.caption_tokens,
        "token_embs": text.last_hidden_state,
        "contrastive_loss": weights["clip_loss_weight"] * found.loss_contrastive,
        "caption_loss": weights["caption_loss_weight"] * found.loss_caption,
        "greedy.ids": greedy[0].sequences,
        "greedy.logits": torch.stack(greedy[0].logits, dim=1),
        "loss": found.loss,
    }
